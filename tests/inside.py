"""What tests ask of the library's inner parts. The only file of the tests that may touch a private name.

Three kinds of words: questions ("does its thread sleep?"), places where something is counted ("how often was it
rung?"), and faults that are put in ("the next start of a thread fails"). What they mean is said without names of
fields, so that another construction of the library needs other bodies here, and no other tests.

`f` is a decorated function, a method of an instance, or a `BatchProcessor`.
"""

import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from math import inf
from types import FrameType
from typing import Any
from unittest.mock import patch

from batchify import Stats, _asyncio, _threads
from batchify._asyncio import LoopBatcher, LoopFlusher
from batchify._batch import Batch, Call, advise, complain
from batchify._buffer import Buffer, batches_at_once
from batchify._options import Options
from batchify._stats import Tally

__all__ = ["Batch", "Buffer", "Call", "Options", "Tally", "advise", "batches_at_once", "complain"]


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


def has_a_timer(f: Any) -> bool:
    """Whether something of `f` will begin by itself as time goes by."""
    return bool(timers_set(f)) if is_on_loops(f) else sleeps_until_an_item_is_due(f)


def waits_for_room(f: Any) -> bool:
    """Whether its flush threads sleep while as many batches as may be are in flight elsewhere, at an engine."""
    return bool(engine(f)._has_no_room and engine(f)._asleep)


def wake_by_themselves(f: Any) -> int:
    """How many of its flush threads that sleep will wake though nobody wakes them."""
    return sum(moment < inf for moment in list(engine(f)._asleep.values()))


def is_at_rest(f: Any) -> bool:
    """Whether nothing will happen by itself before time goes by: each of its threads sleeps or is in the function."""
    it = engine(f)
    with _threads._lock:
        if not any(thread.is_alive() for thread in it._threads.values()):
            return True
        if len(it._threads) - len(it._asleep) > it._tally.in_flight or it._handed or not it._bell.locked():
            return False
        if isinstance(it._bell, _HandLock) and not it._bell.keeps_asleep(len(it._asleep)):
            return False
        return not it._asleep or it._has_no_room or it._wakes_at > -inf


def is_closed(f: Any) -> bool:
    """Whether its buffer accepts nothing any more, as seen from another thread while `close()` waits."""
    return bool(engine(f)._buffer.closed)


def groups_kept(f: Any) -> int:
    """How many groups its buffer remembers."""
    return max(len(_buffer(f)._groups), len(_buffer(f)._full))


def groups_in(buffer: Buffer[Any]) -> int:
    """How many groups a buffer alone remembers."""
    return len(buffer._groups)


def full_groups_listed(buffer: Buffer[Any]) -> int:
    """How many entries the list of full groups has, of a buffer alone."""
    return len(buffer._full)


def _buffer(f: Any) -> Buffer[Any]:
    it = engine(f)
    buffer: Buffer[Any] = next(iter(it._flushers.values())).buffer if is_on_loops(f) else it._buffer
    return buffer


def maps_remembered(f: Any) -> int:
    """How many maps of `f` would be woken by a change of its settings."""
    it = engine(f)
    return sum(len(flusher.bells) for flusher in it._flushers.values()) if is_on_loops(f) else len(it._bells)


def timers_set(f: Any) -> list[LoopFlusher]:
    """Return, of an `async def` function, the event loops in which a timer of it is set."""
    return [flusher for flusher in engine(f)._flushers.values() if flusher._timer is not None]


def options_of(f: Any) -> Options:
    """Return the options of `f`, or of a buffer alone, as they stand."""
    options: Options = f._options if isinstance(f, Buffer) else f._self_options
    return options


def buffers_of_dead_instances(method: Any) -> int:
    """How many buffers a method of a class keeps for instances that are gone."""
    return sum(reference() is None for reference, _ in method._self_batchers.values())


def list_function_of(f: Any) -> Callable[..., Any]:
    """Return what is called with a list: the user's function, or what binds it to its instance."""
    function: Callable[..., Any] = engine(f).function
    return function


def reference_to_the_engine(f: Any) -> "weakref.ref[Any]":
    """Return a weak reference to all that lives for `f` but `f` itself."""
    return weakref.ref(engine(f))


def figures_of_what_may_be_dropped(f: Any) -> Callable[[], Stats]:
    """Return what tells, once `f` is gone and all its items are answered, the figures that it had."""
    tally: Tally = engine(f)._tally
    return lambda: tally.snapshot(0)


async def all_on_this_loop_is_answered(f: Any) -> None:
    """Wait until nothing of an `async def` function waits or runs on this loop, also for callers that have left."""
    await engine(f).here()[1].closed()


def holds_a_lock() -> bool:
    """Whether this thread holds a lock of ours."""
    return bool(_threads._lock._is_owned() or _asyncio._lock._is_owned())  # type: ignore[attr-defined]


def works_for_a_function(ident: int) -> bool:
    """Whether that thread is known to run or answer batches."""
    return ident in _threads._flushing


def waits_inside(ident: int) -> bool:
    """Whether that thread runs a batch and waits, in its function, for an answer of another one."""
    return ident in _threads._waits_for


def threads_that_wait_inside() -> list[int]:
    """Return the threads of which that is remembered."""
    return list(_threads._waits_for)


def is_known(ident: int) -> bool:
    """Whether anything is remembered of that thread."""
    tables = (_threads._flushing, _threads._delivering, _threads._passed, _threads._waits_for)
    return any(ident in table for table in tables)


def check(f: Any) -> None:
    """Assert what the comments of the code say is true at any moment; of a buffer alone too."""
    (f if isinstance(f, Buffer) else engine(f))._check()


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


def before_looks(f: Any, do: Callable[[], object]) -> None:
    """Let flush threads of `f` call this before each look at the buffer, from now on."""
    it = engine(f)
    step = it._next

    def look(*, flushed: bool) -> Any:
        do()
        return step(flushed=flushed)

    it._next = look


@contextmanager
def seconds_slept() -> Iterator[list[float]]:
    """Yield what gets, for each sleep of a thread, after how many seconds it ends by itself (-1: never).

    Those of functions that are decorated in the block.
    """
    seconds: list[float] = []

    class Lock:
        def __init__(self) -> None:
            self.lock = threading.Lock()
            self.locked, self.release = self.lock.locked, self.lock.release

        def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
            seconds.append(timeout)
            return self.lock.acquire(blocking, timeout)

    with patch.object(_threads, "allocate_lock", Lock):
        yield seconds


@contextmanager
def changes_of_what_threads_share() -> Iterator[tuple[set[str], set[str]]]:
    """Yield the names of what is changed under the lock, and of what is changed without it and should not be."""
    locked: set[str] = set()
    unlocked: set[str] = set()

    def note(what: str) -> None:
        if what != "ThreadBatcher.aio":  # it only saves making the same once more
            (locked if _threads._lock._is_owned() else unlocked).add(what)  # type: ignore[attr-defined]

    def watch(stack: ExitStack, kind: type, *methods: str) -> None:
        def field_is_set(self: Any, name: str, value: Any) -> None:
            if name in vars(self):  # not while it is made
                note(f"{kind.__name__}.{name}")
            object.__setattr__(self, name, value)

        def noted(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
            def called(*args: Any, **options: Any) -> Any:
                note(f"{kind.__name__}.{name}()")
                return method(*args, **options)

            return called

        stack.enter_context(patch.object(kind, "__setattr__", field_is_set))
        for name in methods:
            stack.enter_context(patch.object(kind, name, noted(name, getattr(kind, name))))

    with ExitStack() as stack:
        watch(stack, _threads.ThreadBatcher)
        watch(stack, Buffer, "add", "remove", "take", "flush", "close")
        watch(stack, Tally, "begin", "answer", "snapshot")
        yield locked, unlocked


class CountedLock:
    """As `_thread.lock`, and counts how often it was asked for."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.acquired = 0
        self.release = self._lock.release

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        self.acquired += 1
        return self._lock.acquire(blocking, timeout)


@contextmanager
def locks_made(made: list[CountedLock]) -> Iterator[None]:
    """Append to the list the locks that are made in this block, on which threads sleep that wait for a result."""

    def make() -> CountedLock:
        made.append(CountedLock())
        return made[-1]

    with patch.object(_threads, "allocate_lock", make):
        yield


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
        self._wait_until: list[float] = []  # one entry for each thread that waits

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        clock = self._clock
        with clock.changed:
            deadline = inf if timeout < 0 else clock.moment + timeout
            while self._held:
                if not blocking or clock.moment >= deadline:
                    return False
                self._wait_until.append(deadline)
                try:
                    clock.changed.wait()
                finally:
                    self._wait_until.remove(deadline)
            self._held = True
            return True

    def keeps_asleep(self, threads: int) -> bool:
        """Whether so many threads wait for it, and the time of none of them has come."""
        with self._clock.changed:
            waiting = self._wait_until
            return len(waiting) >= threads and all(self._clock.moment < deadline for deadline in waiting)

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
def waits_at_a_lock() -> Iterator[threading.Event]:
    """Yield what is set once any thread finds a lock held by which one thread tells another that it may go on."""
    waits = threading.Event()

    class Lock:
        def __init__(self) -> None:
            self.lock = threading.Lock()
            self.locked, self.release = self.lock.locked, self.lock.release

        def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
            if self.lock.locked():
                waits.set()
            return self.lock.acquire(blocking, timeout)

    with patch.object(_threads, "allocate_lock", Lock):
        yield waits


def fails_as_it_hands_out(buffer: Buffer[Any], *, nth: int) -> None:
    """Let no memory be left when a buffer alone is about to hand out the n-th item of a batch."""

    class Fails(OrderedDict[Any, None]):
        pops = 0

        def popitem(self, last: bool = True) -> tuple[Any, None]:
            self.pops += 1
            if self.pops == nth:
                raise MemoryError
            return super().popitem(last)

    buffer._waiting = Fails(buffer._waiting)


def changes_as_it_is_looked_at(buffer: Buffer[Any]) -> None:
    """Let a finalizer change a buffer alone just as its oldest item is looked for, once."""

    class ChangedOnce(OrderedDict[Any, None]):
        looks = 0

        def __iter__(self) -> Iterator[Any]:
            self.looks += 1
            if self.looks == 1:
                raise RuntimeError("OrderedDict mutated during iteration")
            return super().__iter__()

    buffer._waiting = ChangedOnce(buffer._waiting)


def another_thread_takes_the_calls_first(batch: Batch, do: Callable[[], object]) -> None:
    """Let another thread do that to a batch just as its calls are about to be taken out of it to be answered."""

    class Raced(list[Any]):
        def pop(self, *args: Any) -> Any:
            batch._unanswered = [*self]
            self.clear()
            do()
            batch._unanswered = self
            return super().pop(*args)

    batch._unanswered = Raced(batch._unanswered)


@contextmanager
def no_memory_for_a_batch(*, of: int = 0, runs: bool = False) -> Iterator[list[MemoryError]]:
    """Let making a batch fail once, or, with `runs`, running it. `of` so many items (0: any).

    Yields a list that is empty once that has happened.
    """
    errors = [MemoryError()]

    class FailsOnce(_threads.ThreadBatch):
        def __new__(cls, _: Any, calls: Any, *__: Any) -> "FailsOnce":
            if errors and not runs and of in (0, len(calls)):
                raise errors.pop()
            return super().__new__(cls)

        def run(self, function: Any) -> None:
            if errors and runs:
                raise errors.pop()
            super().run(function)

    with patch.object(_threads, "ThreadBatch", FailsOnce):
        yield errors


def no_memory_for_a_look(f: Any, *, at_the_buffer: bool) -> None:
    """Let the next look of a flush thread of `f` for a batch fail, once; at the buffer, or before that."""
    it = engine(f)
    owner, name = (it._buffer, "take") if at_the_buffer else (it, "_next")
    look = getattr(owner, name)

    def fail(*args: Any, **options: Any) -> Any:
        setattr(owner, name, look)
        raise MemoryError

    setattr(owner, name, fail)


@contextmanager
def no_memory_to_fall_asleep() -> Iterator[list[MemoryError]]:
    """Let the first sleep of a flush thread that is started here fail; yields a list that is empty once it has."""
    errors = [MemoryError()]

    class Lock:
        def __init__(self) -> None:
            self.lock = threading.Lock()
            self.locked, self.release = self.lock.locked, self.lock.release

        def acquire(self, *how: Any) -> bool:
            if how and errors:  # only the bell is waited for with a limit
                raise errors.pop()
            return self.lock.acquire(*how)

    with patch.object(_threads, "allocate_lock", Lock):
        yield errors


@contextmanager
def ctrl_c_in_calls_made_inside() -> Iterator[None]:
    """Let each call that blocks inside a function be interrupted as it begins to wait."""

    class Interrupted:
        def acquire(self) -> None:
            raise KeyboardInterrupt

    with patch.object(_threads, "_blocking_call", lambda item: (call_with(item, int), Interrupted())):
        yield


@contextmanager
def inside_the_lock(f: Any) -> Iterator[None]:
    """Do something as a finalizer would that strikes this thread where it holds a lock of ours."""
    with _asyncio._lock if is_on_loops(f) else _threads._lock:
        yield


def as_it_falls_asleep(f: Any, do: Callable[[], object]) -> None:
    """Do something, as a finalizer would, whenever a flush thread of `f` is about to sleep."""

    class Asleep(dict[int, float]):
        def __setitem__(self, ident: int, wakes_at: float) -> None:
            super().__setitem__(ident, wakes_at)
            do()

    engine(f)._asleep = Asleep()


def at_line_of_the_flush_thread(f: Any, number: int, intrude: Callable[[], object]) -> Callable[[], bool]:
    """Start its thread, and let it do something at that one line of ours, as a finalizer would.

    Returns what says whether it has done so, or sleeps until it is woken.
    """
    passed = 0

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal passed
        if frame.f_code.co_filename != _threads.__file__:
            return None
        if event == "line" and frame.f_code.co_name in ("_next", "_flush_forever"):
            passed += 1  # first, since another thread may be started, which is traced as well
            if passed == number:
                intrude()
        return trace

    threading.settrace(trace)
    try:
        engine(f)._start_thread()
    finally:
        threading.settrace(None)
    return lambda: passed >= number or sleeps_without_end(f)


@contextmanager
def while_the_interpreter_exits() -> Iterator[None]:
    """Let the library think so."""
    with patch.object(_threads, "_exiting", True):
        yield


@contextmanager
def after_the_main_thread() -> Iterator[None]:
    """Let the library think that the main thread has ended."""
    with patch.object(_threads, "main_thread", threading.Thread):  # a thread that was never started is not alive
        yield


class Held:
    """A thread that is stopped on its way: it `arrived` there, it `may_go_on`, it `went_on`."""

    def __init__(self) -> None:
        self.arrived, self.may_go_on, self.went_on = threading.Event(), threading.Event(), threading.Event()


def hold_the_second_to_wake(f: Any) -> Held:
    """Stop the second flush thread that is woken, when it has heard that and does not know yet what for."""
    held, known = Held(), set[int]()

    class Handed(list[Any]):
        def pop(self, *position: Any) -> Any:
            if threading.get_ident() not in known and len(known) == 1:
                known.add(threading.get_ident())
                held.arrived.set()
                held.may_go_on.wait(100)
                held.went_on.set()
            known.add(threading.get_ident())
            return super().pop(*position)

    engine(f)._handed = Handed()
    return held


def leave_the_buffer_of(instance: object, *, to: object, method: Any) -> None:
    """Let a method of a class find the buffer of one instance for another, as if the first had died unnoticed."""
    method._self_batchers[id(to)] = method._self_batchers[id(instance)]


def always_find_that_another_thread_made_the_buffer(method: Any) -> None:
    """Let each look of a method of a class for a buffer fail, so that it makes one and then finds another there."""

    class NotFoundAtFirst(dict[Any, Any]):
        def get(self, key: Any, default: Any = None) -> Any:
            return None

    method._self_batchers = NotFoundAtFirst()


# What is done for a test


def call_with(item: Any, deliver: Callable[[], object]) -> Call:
    """Return a call of an item, to be told by `deliver`."""
    call = Call()
    call.item, call.deliver = item, deliver
    return call


def begin_to_close(f: Any) -> None:
    """Refuse what comes, and make what waits due, without waiting for it."""
    engine(f).close(wait=False)
