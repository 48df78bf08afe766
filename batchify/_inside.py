"""Would this wait for itself?

A function may call batched functions, itself included. Whoever waits there holds up a batch, and may so hold up the
very batch that it waits for. One `ContextVar` says, for threads and event loops alike, where a call comes from.
"""

from _thread import get_ident
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any


class Place:
    """Where calls of batched functions come from that may hold up a batch.

    That is a batch, as long as its function runs; or a thread that owns or runs batches of an engine, while it runs
    what is no function: a callback of a future, `on_batch`, a finalizer.
    """

    life: object  # of the engine for which it works: a token, since this must not keep the engine alive
    # None once it has been left. Another thread is outside, also if a context was copied to it.
    thread: int | None = None
    beneath: "Place | None" = None  # the place in whose midst this one is, on the same thread
    # Calls made here, and their engines. Written by this thread alone (a finalizer on it too), and read by any thread
    # that looks for a ring, so on a copy.
    passed: "list[tuple[Any, Any]] | None" = None

    def note(self, engine: Any, calls: Any) -> None:
        """Note that these calls are made here, and may be waited for."""
        passed = self.passed
        if passed is None:
            passed = self.passed = []
        before = len(passed)
        passed += [(engine, call) for call in calls]
        if len(passed) >= 64 and len(passed).bit_length() > before.bit_length():  # so it is done seldom
            passed[:] = self.unanswered()

    def forget(self, engine: Any, calls: Any) -> None:
        """Forget what note() was told."""
        for call in calls:
            self.passed.remove((engine, call))  # type: ignore[union-attr]

    def unanswered(self) -> list[tuple[Any, Any]]:
        """Return those of the calls made here that have no answer yet, and whose callers have not left."""
        return [each for each in list(self.passed or ()) if not each[1].is_over()]

    def is_here(self) -> bool:
        """Whether this thread is in it: a context may have been copied to another one, or kept."""
        return self.thread == get_ident()


# None outside.
place: ContextVar[Place | None] = ContextVar("batchify place", default=None)


def here() -> Place | None:
    """Return the place in which this thread is."""
    found = place.get()
    return found if found is not None and found.is_here() else None


def needs(engine: Any, within: Place) -> bool:
    """Whether what is passed to an engine may be answered only after that place has been left."""
    held = {each.life for each in _and_beneath(within)}
    seen: set[Any] = set()
    todo = [engine]
    while todo:
        engine = todo.pop()
        if engine.life in held:
            return True
        if engine not in seen:
            seen.add(engine)
            for other in engine.places.copy():
                todo += [awaited for awaited, _ in other.unanswered()]
    return False


def _and_beneath(at: Place | None) -> Iterator[Place]:
    while at is not None:
        yield at
        at = at.beneath
