"""Items that do something when they are squared, wherever that is; so what a page shows is tested as it stands."""

import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NoReturn


class UnluckyError(Exception):
    """What `Unlucky` raises. Cannot be made of its `args`, as pickle does by default."""

    def __init__(self, number: int, *, hint: str) -> None:
        super().__init__(f"unlucky number {number}: {hint}")
        self.number, self.hint = number, hint

    def __reduce__(self) -> tuple[object, ...]:
        return _unlucky, (self.number, self.hint)


def _unlucky(number: int, hint: str) -> UnluckyError:
    return UnluckyError(number, hint=hint)


@dataclass(frozen=True)
class Unlucky:
    """An item that raises."""

    number: int

    def __mul__(self, other: object) -> NoReturn:
        raise UnluckyError(self.number, hint="try another one")


class Exits:
    """An item that raises what is no Exception."""

    def __mul__(self, other: object) -> NoReturn:
        raise SystemExit(3)


GO_ON, KILL, EXIT = b"", b"k", b"e"


@dataclass(frozen=True)
class Visitor:
    """An item that comes to a door when it is squared, and waits there to be told how to go on."""

    number: int
    address: tuple[str, int]

    def __mul__(self, other: object) -> int:
        with socket.create_connection(self.address) as door:
            door.sendall(f"{self.number} {os.getpid()}\n".encode())
            word = door.recv(1)
        if word == KILL:
            os.kill(os.getpid(), signal.SIGKILL)
            threading.Event().wait()  # a signal need not arrive before the call returns
        if word == EXIT:
            os._exit(1)
        return self.number**2


class Visit:
    """A visitor that stands at the door."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        with connection.makefile("r") as said:
            number, pid = said.readline().split()
        self.number, self.pid = int(number), int(pid)

    def tell(self, word: bytes) -> None:
        if word:
            self._connection.sendall(word)
        self._connection.close()


class Door:
    """Where visitors arrive."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._visits: list[Visit] = []

    def visitor(self, number: int) -> Visitor:
        return Visitor(number, self._listener.getsockname())

    def visit(self) -> Visit:
        """Wait until a visitor arrives. The watchdog ends it if none does."""
        connection, _ = self._listener.accept()
        visit = Visit(connection)
        self._visits.append(visit)
        return visit

    def close(self) -> None:
        """Let all go on, also those that arrive later: their connection is reset."""
        self._listener.close()
        for visit in self._visits:
            visit.tell(GO_ON)


@contextmanager
def a_door() -> Iterator[Door]:
    door = Door()
    try:
        yield door
    finally:
        door.close()


@dataclass(frozen=True)
class Parcel:
    """An item that is heavy to carry, and remains so."""

    content: bytes

    def __mul__(self, other: object) -> "Parcel":
        return self
