"""What tests ask of the library's inner parts. The only file of the tests that may touch a private name.

Three kinds of words: questions ("does its thread sleep?"), places where something is counted ("how often was it rung?"),
and faults that are put in ("the next start of a thread fails"). What they mean is said without the names of fields, so
that another construction of the library needs other bodies here, and no other tests.

`f` is a decorated function, a method of an instance, or a `BatchProcessor`.
"""

import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import inf
from typing import Any
from unittest.mock import patch

from batchify import _asyncio, _threads
from batchify._asyncio import LoopBatcher, LoopFlusher
from batchify._batch import Batch, Call, advise, complain, refuse
from batchify._buffer import Buffer
from batchify._options import Options
from batchify._stats import Tally

__all__ = ["Batch", "Buffer", "Call", "Options", "Tally", "advise", "complain", "refuse"]


def engine(f: Any) -> Any:
    """Return what gathers the calls of `f` and runs its function."""
    return f._batcher if hasattr(f, "_batcher") else f._self_batcher


def is_on_loops(f: Any) -> bool:
    """Whether it is an `async def` function."""
    return isinstance(engine(f), LoopBatcher)


# Questions


def threads_of(f: Any) -> list[threading.Thread]:
    """Return the flush threads that work for `f` now."""
    return list(engine(f)._threads.values())


def sleeping(f: Any) -> int:
    """How many of its flush threads sleep."""
    return len(engine(f)._asleep)


def sleeps(f: Any) -> bool:
    """Whether a flush thread sleeps, so that somebody would have to wake it for an item that is due at once."""
    return bool(engine(f)._wakes_at > -inf and engine(f)._threads)


def sleeps_without_end(f: Any) -> bool:
    """Whether no flush thread will wake by itself."""
    return bool(engine(f)._wakes_at == inf)


def sleeps_until_an_item_is_due(f: Any) -> bool:
    """Whether a flush thread will wake by itself."""
    return bool(-inf < engine(f)._wakes_at < inf)


def waits_for_room(f: Any) -> bool:
    """Whether its flush threads sleep while as many batches as may be are in flight elsewhere, at an engine."""
    return bool(engine(f)._has_no_room and engine(f)._asleep)


def is_at_rest(f: Any) -> bool:
    """Whether nothing will happen by itself before time goes by: each of its threads sleeps or is in the function."""
    it = engine(f)
    with _threads._lock:
        if len(it._threads) - len(it._asleep) > it._tally.in_flight or it._handed or not it._bell.locked():
            return False
        return not it._asleep or it._has_no_room or it._wakes_at > -inf


def is_closed(f: Any) -> bool:
    """Whether its buffer accepts nothing any more, as seen from another thread while `close()` waits."""
    return bool(engine(f)._buffer.closed)


def groups_kept(f: Any) -> int:
    """How many groups its buffer remembers."""
    return len(_buffer(f)._groups) + len(_buffer(f)._full)


def _buffer(f: Any) -> Buffer[Any]:
    it = engine(f)
    buffer: Buffer[Any] = next(iter(it._flushers.values())).buffer if is_on_loops(f) else it._buffer
    return buffer


def timers_set(f: Any) -> list[LoopFlusher]:
    """Return, of an `async def` function, the event loops in which a timer of it is set."""
    return [flusher for flusher in engine(f)._flushers.values() if flusher._timer is not None]


def options_of(f: Any) -> Options:
    """Return the options of `f` as they stand."""
    options: Options = f._self_options
    return options


def list_function_of(f: Any) -> Callable[..., Any]:
    """Return what is called with a list: the user's function, or what binds it to its instance."""
    function: Callable[..., Any] = engine(f).function
    return function


def reference_to_the_engine(f: Any) -> "weakref.ref[Any]":
    """Return a weak reference to all that lives for `f` but `f` itself."""
    return weakref.ref(engine(f))


def holds_a_lock() -> bool:
    """Whether this thread holds a lock of ours."""
    return bool(_threads._lock._is_owned() or _asyncio._lock._is_owned())  # type: ignore[attr-defined]


def works_for_a_function(ident: int) -> bool:
    """Whether that thread is known to run or answer batches."""
    return ident in _threads._flushing


def waits_inside(ident: int) -> bool:
    """Whether that thread runs a batch and waits, in its function, for an answer of another one."""
    return ident in _threads._waits_for


def is_known(ident: int) -> bool:
    """Whether anything is remembered of that thread."""
    tables = (_threads._flushing, _threads._delivering, _threads._passed, _threads._waits_for)
    return any(ident in table for table in tables)


def check(f: Any) -> None:
    """Assert what the comments of the code say is true at any moment."""
    engine(f)._check()


# Places where something is counted


@contextmanager
def rings(f: Any, *, instead: Callable[[], object] | None = None) -> Iterator[list[int]]:
    """Yield a list that gets, for each ring that wakes a flush thread of `f`, how many items waited then.

    With `instead` that happens in place of a ring, until the end of the block.
    """
    it = engine(f)
    rung: list[int] = []
    ring = it._wake_locked

    def counted() -> None:
        rung.append(len(it._buffer))
        (ring if instead is None else instead)()

    it._wake_locked = counted
    try:
        yield rung
    finally:
        it._wake_locked = ring


def looks(f: Any) -> list[Any]:
    """Return a list that gets what each look of a flush thread at the buffer comes to, from now on.

    That is the batch to be run, the seconds to sleep (inf: until woken), or None, to end.
    """
    it = engine(f)
    found: list[Any] = []
    step = it._next

    def look(*, flushed: bool) -> Any:
        what = step(flushed=flushed)
        found.append(what)
        return what

    it._next = look
    return found


# Time


class HandClock:
    """The clock of flush threads, on which only `move()` lets time go by; made before what is to go by it."""

    def __init__(self) -> None:
        self.moment = 1000.0
        self.changed = threading.Condition()

    def time(self) -> float:
        return self.moment

    def move(self, seconds: float) -> None:
        with self.changed:
            self.moment += seconds
            self.changed.notify_all()

    def allocate_lock(self) -> "_HandLock":
        return _HandLock(self)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        with patch.multiple(_threads, monotonic=self.time, allocate_lock=self.allocate_lock):
            yield


class _HandLock:
    """As `_thread.lock`, by the clock that is moved by hand."""

    def __init__(self, clock: HandClock) -> None:
        self._clock = clock
        self._held = False

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        clock = self._clock
        with clock.changed:
            deadline = inf if timeout < 0 else clock.moment + timeout
            while self._held:
                if not blocking or clock.moment >= deadline:
                    return False
                clock.changed.wait()
            self._held = True
            return True

    def locked(self) -> bool:
        return self._held

    def release(self) -> None:
        with self._clock.changed:
            if not self._held:
                raise RuntimeError("release unlocked lock")
            self._held = False
            self._clock.changed.notify_all()


# Faults that are put in


@contextmanager
def inside_the_lock(f: Any) -> Iterator[None]:
    """Do something as a finalizer would that strikes this thread where it holds a lock of ours."""
    with _asyncio._lock if is_on_loops(f) else _threads._lock:
        yield


@contextmanager
def while_the_interpreter_exits() -> Iterator[None]:
    """Let the library think so."""
    with patch.object(_threads, "_exiting", True):
        yield


# What is done for a test


def call_with(item: Any, deliver: Callable[[], object]) -> Call:
    """Return a call of an item, to be told by `deliver`."""
    call = Call()
    call.item, call.deliver = item, deliver
    return call


def begin_to_close(f: Any) -> None:
    """Refuse what comes, and make what waits due, without waiting for it."""
    engine(f).close(wait=False)
