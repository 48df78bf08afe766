"""What tests ask of the library's inner parts. The only file of the tests that may touch a private name.

Three kinds of words: questions ("does its thread sleep?"), places where something is counted ("how often was it
rung?"), and faults that are put in ("the next start of a thread fails"). What they mean is said without names of
fields, so that another construction of the library needs other bodies here, and no other tests.

`f` is a decorated function, a method of an instance, or a `BatchProcessor`.
"""

import functools
import sys
import threading
import weakref
from _thread import get_ident
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from math import inf
from types import FrameType
from typing import Any
from unittest.mock import patch
from weakref import WeakKeyDictionary

from batchify import Stats, _asyncio, _batch, _buffer, _threads
from batchify._asyncio import LoopBatcher, LoopFlusher
from batchify._batch import Batch, Call, advise, complain
from batchify._buffer import Buffer, batches_at_once
from batchify._options import Options
from batchify._stats import Tally
from batchify._threads import ItemFuture, ThreadBatch, ThreadBatcher

__all__ = ["Batch", "Buffer", "Call", "Options", "Tally", "advise", "batches_at_once", "complain"]

Block = AbstractContextManager[Any]
Fault = Callable[[], Block]
Function = tuple[Any, str]  # a class or a module, and a name in it


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
    return max(len(buffer_of(f)._groups), len(buffer_of(f)._full))


def groups_in(buffer: Buffer[Any]) -> int:
    """How many groups a buffer alone remembers."""
    return len(buffer._groups)


def full_groups_listed(buffer: Buffer[Any]) -> int:
    """How many entries the list of full groups has, of a buffer alone."""
    return len(buffer._full)


def buffer_of(f: Any) -> Buffer[Any]:
    """Return the buffer of `f`; of an `async def` function, that of its first event loop."""
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
def no_memory_to_store_a_result(batch: Batch) -> Iterator[None]:
    """Let no memory be left when a batch alone is about to put a first result into its place."""
    store = batch._store

    def fail(call: Any, result: Any) -> bool:
        stack.close()
        raise MemoryError

    with ExitStack() as stack:
        stack.enter_context(patch.object(type(batch), "_store", lambda _, call, result: fail(call, result)))
        yield
    assert store == batch._store


@contextmanager
def no_memory_for_a_batch(*, of: int = 0, runs: bool = False) -> Iterator[list[MemoryError]]:
    """Let making a batch fail once, or, with `runs`, running it on a flush thread. `of` so many items (0: any).

    Yields a list that is empty once that has happened.
    """
    errors = [MemoryError()]

    def failing_once(kind: Any) -> Any:
        class FailsOnce(kind):  # type: ignore[misc]
            def __new__(cls, _: Any, calls: Any, *__: Any) -> Any:
                if errors and not runs and of in (0, len(calls)):
                    raise errors.pop()
                return super().__new__(cls)

            def run(self, function: Any) -> None:
                if errors and runs:
                    raise errors.pop()
                super().run(function)

        return FailsOnce

    with (
        patch.object(_threads, "ThreadBatch", failing_once(_threads.ThreadBatch)),
        patch.object(_asyncio, "LoopBatch", failing_once(_asyncio.LoopBatch)),
    ):
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


# For slow/schedules/: what a scheduler of threads must replace


@contextmanager
def other_threading(*, complain: Callable[..., object], **names: Any) -> Iterator[None]:
    """Let the library use these in place of what it imported from `threading`, `_thread` and `time`.

    It logs errors by `complain()`, and knows nothing of the threads and functions of before.
    """
    fresh: dict[str, Any] = {"_flushing": {}, "_waits_for": {}, "_passed": {}, "_delivering": {}, "_dropped": set()}
    with (
        patch.multiple(_threads, **fresh, **names, complain=complain, _lock=None, _live=WeakKeyDictionary()),
        patch.object(_batch, "complain", complain),
    ):
        yield


def begin_anew(lock: Any) -> None:
    """Forget all threads and functions, and use that re-entrant lock; at the beginning of each schedule."""
    _threads._lock = _make_lock(lock)
    _threads._live = WeakKeyDictionary()
    for table in _tables_of_threads():
        table.clear()


def remembers_a_thread() -> bool:
    """Whether anything is left of a thread; when all have ended, nothing should be."""
    return any(_tables_of_threads())


def close_what_is_left() -> None:
    """Let the functions of a schedule that failed not close themselves when they are garbage."""
    for batcher in _threads._all_batchers():
        batcher._buffer.close()


def _tables_of_threads() -> tuple[Any, ...]:
    return _threads._flushing, _threads._waits_for, _threads._passed, _threads._delivering, _threads._dropped


# And faults: the library as it would be with a bug, as long as a block lasts. Something is left out, or looks
# different, or is done without the lock, while a thread is in a certain function. These are the ways to do that.


@contextmanager
def _threads_in(function: Function) -> Iterator[Callable[[], bool]]:
    """Yield what says whether this thread is in the function."""
    depth: Counter[int] = Counter()

    def counted(original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def run(*args: Any, **kwargs: Any) -> Any:
            ident = get_ident()
            depth[ident] += 1
            try:
                return original(*args, **kwargs)
            finally:
                depth[ident] -= 1

        return run

    with _replaced(*function, counted):
        yield lambda: depth[get_ident()] > 0


def _replaced(owner: Any, name: str, make: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Block:
    """Replace a function by what is made of it."""
    return patch.object(owner, name, make(getattr(owner, name)))


@contextmanager
def _left_out(owner: Any, name: str, *, within: Function, result: Any = None) -> Iterator[None]:
    """A call of a function is left out in another one; `result` stands for what it would have returned."""

    def left_out(original: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **kwargs: result if inside() else original(*args, **kwargs)

    with _threads_in(within) as inside, _replaced(owner, name, left_out):
        yield


@contextmanager
def _looks_like(
    owner: type, attribute: str, value: Any, *, within: Function, when: Callable[[], bool] = lambda: True
) -> Iterator[None]:
    """A look at an attribute is left out in a function, which finds `value` in its place."""

    class Look:
        def __get__(self, it: Any, _: type) -> Any:
            return value if inside() and when() else it.__dict__[attribute]

        def __set__(self, it: Any, new: Any) -> None:
            it.__dict__[attribute] = new

    with _threads_in(within) as inside, patch.object(owner, attribute, Look(), create=True):
        yield


def _made_with(attribute: str, make: Callable[[], Any]) -> Block:
    """Each batcher has a table that somebody else made."""

    def made(start_clean: Callable[..., Any]) -> Callable[..., Any]:
        def start(it: Any) -> None:
            start_clean(it)
            setattr(it, attribute, make())

        return start

    return _replaced(ThreadBatcher, "_start_clean", made)


def _holds_the_lock() -> bool:
    return bool(_threads._lock._is_owned())  # type: ignore[attr-defined]


class _NoLock:
    """A lock that is no lock for a thread in a certain function."""

    def __init__(self, lock: Any, inside: Callable[[], bool]) -> None:
        self._lock = lock
        self._inside = inside

    def __enter__(self) -> None:
        if not self._inside():
            self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        if not self._inside():
            self._lock.release()

    def _is_owned(self) -> bool:
        return bool(self._lock._is_owned())


def _make_lock(lock: Any) -> Any:
    """Return what is used for a lock; a fault replaces this."""
    return lock


@contextmanager
def _no_lock(*, within: Function) -> Iterator[None]:
    with (
        _threads_in(within) as inside,
        patch.object(sys.modules[__name__], "_make_lock", lambda lock: _NoLock(lock, inside)),
    ):
        yield


# Faults: one flush thread


def bell_that_does_not_ring() -> Block:
    """Who wakes a flush thread does all that belongs to it, but does not ring."""
    return _left_out(_threads, "_ring", within=(ThreadBatcher, "_wake_locked"))


def call_that_asks_too_early() -> Block:
    """A call looks whether the function is closed, and only then takes the lock."""
    return _asks_too_early("call")


def submit_that_asks_too_early() -> Block:
    """As before, of a future."""
    return _asks_too_early("_put")


@contextmanager
def _asks_too_early(method: str) -> Iterator[None]:
    def too_early(original: Callable[..., Any]) -> Callable[..., Any]:
        def run(it: Any, *args: Any, **kwargs: Any) -> Any:
            if it._buffer.closed:
                raise it._closed_error()
            return original(it, *args, **kwargs)

        return run

    with (
        _left_out(ThreadBatcher, "_check_open_locked", within=(ThreadBatcher, method)),
        _replaced(ThreadBatcher, method, too_early),
    ):
        yield


def sleeper_that_says_too_late_when_to_wake_it() -> Block:
    """A flush thread that looks, lets the lock go, and only then says from when on it must be woken."""

    def too_late(look: Callable[..., Any]) -> Callable[..., Any]:
        def run(it: Any, *, flushed: bool) -> Any:
            with _threads._lock:
                before = it._wakes_at
                found = look(it, flushed=flushed)
                after, it._wakes_at = it._wakes_at, before
            with _threads._lock:
                it._wakes_at = after
            return found

        return run

    return _replaced(ThreadBatcher, "_next", too_late)


def look_without_the_lock() -> Block:
    """A flush thread looks at what waits, and takes a batch, without the lock."""
    return _no_lock(within=(ThreadBatcher, "_next"))


def figures_without_the_lock() -> Block:
    """What was answered is counted without the lock."""
    return _no_lock(within=(ThreadBatch, "answer"))


def flush_that_wakes_nobody() -> Block:
    return _left_out(ThreadBatcher, "_wake_if_due_locked", within=(ThreadBatcher, "flush"))


def cancel_that_counts_an_item_in_a_batch() -> Block:
    """An item counts as cancelled whether it waited or was taken already."""

    def counted(withdraw: Callable[..., Any]) -> Callable[..., Any]:
        def run(it: Any, call: Any) -> bool:
            waited: bool = withdraw(it, call)
            if not waited:
                with _threads._lock:
                    it._tally.cancelled += 1
            return waited

        return run

    return _replaced(ThreadBatcher, "withdraw", counted)


def cancel_that_does_not_ask() -> Block:
    """A future says that it is cancelled, though it may be answered."""
    return _replaced(ItemFuture, "cancel", lambda cancel: lambda future: cancel(future) or True)


@contextmanager
def second_thread_that_is_kept() -> Iterator[None]:
    """Of two callers who both start the first flush thread, the second one does not find that of the first."""

    class LooksEmpty(dict[Any, Any]):
        def __bool__(self) -> bool:
            return len(self) > 0 and not inside()

    with _threads_in((ThreadBatcher, "_start_thread")) as inside, _made_with("_threads", LooksEmpty):
        yield


def thread_that_is_kept_after_close() -> Block:
    """A flush thread stays that was started before the function was closed, and is there only afterwards."""
    return _looks_like(Buffer, "closed", False, within=(ThreadBatcher, "_start_thread"), when=_holds_the_lock)


def map_that_does_not_hear_of_a_batch_size() -> Block:
    """A map does not read on when `batch_size` grows."""

    class Forgets(set[Any]):
        def add(self, _: Any) -> None:
            """Do nothing."""

    return _made_with("_bells", Forgets)


def lock_that_is_let_go_before_the_note() -> Block:
    """Of two threads that look whether the other one waits for them, and note that they wait, neither may see it."""

    def let_go(needs: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            found = needs(*args)
            _threads._lock.release()
            _threads._lock.acquire()
            return found

        return run

    return _replaced(_threads, "_needs", let_go)


def function_that_is_dropped_with_its_items() -> Block:
    """When nobody holds a function any more, what waits in it is forgotten."""
    return patch.object(ThreadBatcher, "__del__", lambda _: None)


def sleeping_thread_that_keeps_its_function() -> Block:
    """An idle flush thread holds its function, so that nobody can drop it."""

    def keeping(flush_forever: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any) -> None:
            kept = [arg() for arg in args if isinstance(arg, weakref.ref)]
            flush_forever(*args)
            kept.clear()

        return run

    return _replaced(_threads, "_flush_forever", keeping)


# Faults: batches that run elsewhere


def batch_that_ends_unheard() -> Block:
    """Nobody is woken when a batch ends at an engine, for which others had to wait."""
    return _left_out(ThreadBatcher, "_wake_locked", within=(ThreadBatch, "finish"))


def batch_that_ends_without_the_lock() -> Block:
    return _no_lock(within=(ThreadBatch, "finish"))


# Faults: several flush threads


def lack_of_a_thread_that_is_overlooked() -> Block:
    """No second thread is started for what the first one cannot take, as it is in the function."""
    return _looks_like(ThreadBatcher, "_short", False, within=(ThreadBatcher, "_after_the_lock"))


def lack_of_a_thread_that_is_overlooked_before_a_batch() -> Block:
    """As before, by who takes a batch and leaves another one."""
    return _left_out(ThreadBatcher, "_after_the_lock", within=(ThreadBatcher, "_before_a_batch"))


def sleeper_that_counts_as_asleep_for_ever() -> Block:
    """A thread that is awake is still taken for one that can be woken."""

    class Forgets(dict[Any, Any]):
        def pop(self, *_: Any) -> None:
            """Do nothing."""

    return _made_with("_asleep", Forgets)


@contextmanager
def rest_that_is_left_to_nobody() -> Iterator[None]:
    """Who takes a batch lets no other thread look after what waits, and comes."""

    def alone(look: Callable[..., Any]) -> Callable[..., Any]:
        def run(it: Any, *, flushed: bool) -> Any:
            with _threads._lock:
                found = look(it, flushed=flushed)
                if isinstance(found, ThreadBatch):
                    it._wakes_at = -inf
            return found

        return run

    with (
        _left_out(ThreadBatcher, "_wake_if_due_locked", within=(ThreadBatcher, "_next")),
        _replaced(ThreadBatcher, "_next", alone),
    ):
        yield


def second_batch_that_is_left_to_nobody() -> Block:
    """Who takes a batch does not look whether another one is due."""
    return _left_out(ThreadBatcher, "_wake_if_due_locked", within=(ThreadBatcher, "_next"))


def one_thread_too_many() -> Block:
    """A thread is started for an item though there are as many as may be."""

    def wakes(wake: Callable[..., Any]) -> Callable[..., Any]:
        def run(it: Any) -> None:
            wake(it)
            it._short = it._short or not it._asleep

        return run

    return _replaced(ThreadBatcher, "_wake_locked", wakes)


def one_batch_too_many() -> Block:
    """One of the batches in flight is not counted."""

    class OneLess(set[Any]):
        def __len__(self) -> int:
            return max(0, super().__len__() - 1)

    return _made_with("_unfinished", OneLess)


@contextmanager
def thread_that_ends_unheard() -> Iterator[None]:
    """A flush thread that ends does not wake the next one."""

    def silent(ring: Callable[..., Any]) -> Callable[..., Any]:
        return lambda bell: None if inside() and get_ident() not in _threads._flushing else ring(bell)

    with _threads_in((_threads, "_flush_forever")) as inside, _replaced(_threads, "_ring", silent):
        yield


def thread_that_ends_while_a_batch_runs() -> Block:
    """After `close()` a flush thread ends as soon as nothing waits, though a batch may yet fail, and be run again."""

    def hasty(look: Callable[..., Any]) -> Callable[..., Any]:
        def run(it: Any, *, flushed: bool) -> Any:
            with _threads._lock:
                if it._buffer.closed and not len(it._buffer) and not it._parts:
                    it._asleep.pop(get_ident(), None)
                    return None
                return look(it, flushed=flushed)

        return run

    return _replaced(ThreadBatcher, "_next", hasty)


# Faults: halves of batches that failed


def halves_that_wake_nobody() -> Block:
    """Halves are left to whoever comes, if there was room while their batch ran."""
    return _looks_like(ThreadBatcher, "_parts", (), within=(ThreadBatch, "finish"))


def halves_that_are_not_seen() -> Block:
    """A flush thread that looks for a batch does not see that there are halves."""
    return _looks_like(ThreadBatcher, "_parts", (), within=(ThreadBatcher, "_next"))


def halves_that_are_not_due() -> Block:
    """Halves are due only when something else is."""
    return patch.object(ThreadBatcher, "_due_at", lambda it: it._buffer.due_at)


# Faults: what is due


def limit_that_makes_nothing_due() -> Block:
    """The last item that `max_pending` lets in does not make all due, as far as those know who pass items."""

    def added(add: Callable[..., Any]) -> Callable[..., Any]:
        def run(it: Any, *args: Any) -> Any:
            due_at = add(it, *args)
            return due_at if len(it) >= it._options.batch_size else inf

        return run

    return _replaced(Buffer, "add", added)


def full_group_that_makes_nothing_due() -> Block:
    return patch.object(_buffer, "heappush", lambda *_: None)


def group_that_stays_full() -> Block:
    """A group that was full is taken for full, though one of it left."""
    return _left_out(Buffer, "_is_full", within=(Buffer, "_oldest_full"), result=True)
