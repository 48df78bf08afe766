"""What tests ask of the library's inner parts. The only file of the tests that may touch a private name.

Three kinds of words: questions ("does its thread sleep?"), places where something is counted ("how often was it
rung?"), and faults that are put in ("the next start of a thread fails"). What they mean is said without names of
fields, so that another construction of the library needs other bodies here, and no other tests.

`f` is a decorated function, a method of an instance, or a `BatchProcessor`.
"""

import functools
import itertools
import logging
import sys
import threading
import weakref
from _thread import get_ident
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from math import inf
from pathlib import Path
from types import FrameType
from typing import Any
from unittest.mock import patch
from weakref import WeakKeyDictionary

import batchify
from batchify import Stats, _asyncio, _batch, _buffer, _engine, _stats, _threads
from batchify._asyncio import LoopEngine, LoopEngines
from batchify._batch import Batch, Call, MapCall, complain, warn_of_few_callers
from batchify._buffer import Buffer, GroupedBuffer
from batchify._engine import Ahead, Controls, Engine
from batchify._errors import ClosedError
from batchify._inside import Runner
from batchify._options import Options
from batchify._stats import Tally
from batchify._threads import FutureCall, ItemFuture, ThreadBatch, ThreadEngine, ThreadRunner

__all__ = [
    "Batch",
    "Buffer",
    "Call",
    "Engine",
    "GroupedBuffer",
    "MapCall",
    "Options",
    "Tally",
    "complain",
    "warn_of_few_callers",
]

BUFFER = "_buffer.py"  # the file in which an intruder may strike
_OURS = (str(Path(batchify.__file__).parent), str(Path(threading.__file__).parent))  # and the standard library

Block = AbstractContextManager[Any]
Fault = Callable[[], Block]
Function = tuple[Any, str]  # a class or a module, and a name in it


def engine(f: Any) -> Any:
    """Return what gathers the calls of `f` and runs its function."""
    return f._self_engine


def is_on_loops(f: Any) -> bool:
    """Whether it is an `async def` function."""
    return isinstance(engine(f), LoopEngines)


def engines(f: Any) -> list[Engine]:
    """Return the engine of `f`; of an `async def` function, that of each event loop."""
    it = engine(f)
    return list(it._all()) if is_on_loops(f) else [it]


# Questions


def threads_of(f: Any) -> list[threading.Thread]:
    """Return the flush threads that work for `f` now."""
    runners = engine(f)._own_runners.copy().values()
    return [runner.flush_thread for runner in runners if hasattr(runner, "flush_thread")]  # else it is about to start


def _is_asleep(it: ThreadEngine, thread: threading.Thread) -> bool:
    frame: FrameType | None = sys._current_frames().get(thread.ident or 0)
    while frame is not None:
        if frame.f_code.co_filename in (_threads.__file__, _engine.__file__, _batch.__file__, _buffer.__file__):
            if it._own_runners.copy()[0].flush_thread is thread:
                return frame.f_code.co_name == "_own" and it._bell.locked() and len(it.inbox) < it.wake_at
            return frame.f_code.co_name == "_run" and frame.f_locals.get("batch") is None
        frame = frame.f_back
    return False


def sleeping(f: Any) -> int:
    """How many of its flush threads sleep."""
    return sum(_is_asleep(engine(f), thread) for thread in threads_of(f))


def sleeps(f: Any) -> bool:
    """Whether its flush thread sleeps, so that somebody would have to wake it for an item that is due at once."""
    it = engine(f)
    return bool(len(it.inbox) < it.wake_at < inf and it._own_runners and it._bell.locked() and not it.news)


def sleeps_without_end(f: Any) -> bool:
    """Whether its flush thread sleeps, and will not wake by itself."""
    return sleeps(f) and bool(engine(f).alarm_at == inf)


def sleeps_until_an_item_is_due(f: Any) -> bool:
    """Whether its flush thread will wake by itself."""
    return sleeps(f) and bool(engine(f).alarm_at < inf)


def has_a_timer(f: Any) -> bool:
    """Whether something of `f` will begin by itself as time goes by."""
    return bool(timers_set(f)) if is_on_loops(f) else sleeps_until_an_item_is_due(f)


def waits_for_room(f: Any) -> bool:
    """Whether its flush thread sleeps while as many batches as may be are in flight elsewhere, at an engine."""
    it = engine(f)
    owner = it.owner
    waits = owner is not None and _is_asleep(it, owner.flush_thread)
    return waits and not it.has_turn and not it.news


def wake_by_themselves(f: Any) -> int:
    """How many of its flush threads that sleep will wake though nobody wakes them."""
    return int(sleeps_until_an_item_is_due(f))


def is_at_rest(f: Any) -> bool:
    """Whether nothing will happen by itself before time goes by: each of its threads sleeps or is in the function."""
    it = engine(f)
    threads = [thread for thread in threads_of(f) if thread.is_alive()]
    owner = None if it.owner is None else it.owner.flush_thread
    for thread in threads:
        asleep = _is_asleep(it, thread)  # asked once, as it may have fallen asleep a moment later
        if thread is owner and asleep:
            if it.news or (isinstance(it._bell, _HandLock) and not it._bell.keeps_asleep(1)):
                return False
            if it.has_turn and it.wake_at == inf:
                return False
        elif not asleep and not _is_in_the_function(thread):
            return False
    if owner is not None and not it._bell.locked() and not _is_in_the_function(owner):
        return False
    return bool(it._batches.empty())


def _is_in_the_function(thread: threading.Thread) -> bool:
    """Whether it runs code that is neither ours nor the standard library's, and so no longer sees to answers."""
    frame: FrameType | None = sys._current_frames().get(thread.ident or 0)
    is_users = False
    while frame is not None:
        file = frame.f_code.co_filename
        if frame.f_code.co_name == "run" and file == _threads.__file__:
            return is_users
        is_users = is_users or not file.startswith(_OURS)
        frame = frame.f_back
    return False


def is_waited_for(future: Any) -> bool:
    """Whether somebody waits for a future of the standard library's: the library knows its private names."""
    return bool(future._condition._waiters or future._waiters)


def is_closed(f: Any) -> bool:
    """Whether it accepts nothing any more, as seen from another thread while `close()` waits."""
    return bool(engine(f).closed)


def groups_kept(f: Any) -> int:
    """How many groups its buffer remembers."""
    return groups_in(buffer_of(f))


def groups_in(buffer: Any) -> int:
    """How many groups a buffer alone remembers."""
    return max(len(buffer._groups), len(buffer._listed_full))


def groups_listed(buffer: Any) -> int:
    """How long the list is from which a buffer alone finds the group that has waited longest."""
    return len(buffer._listed)


def full_groups_listed(buffer: Any) -> int:
    """How many entries the list of full groups has, of a buffer alone."""
    return len(buffer._listed_full)


def buffer_of(f: Any) -> Any:
    """Return the buffer of `f`; of an `async def` function, that of its first event loop."""
    return engines(f)[0].buffer


def maps_remembered(f: Any) -> int:
    """How many maps of `f` would be woken by a change of its settings."""
    return sum(len(each.maps) for each in engines(f))


def timers_set(f: Any) -> list[Any]:
    """Return, of an `async def` function, the event loops in which a timer of it is set."""
    return [each for each in engines(f) if each._timer is not None]  # type: ignore[attr-defined]


def options_of(f: Any) -> Options:
    """Return the options of `f`, or of a buffer alone, as they stand."""
    options: Options = f._options if isinstance(f, Buffer) else engine(f).options
    return options


def buffers_of_dead_instances(method: Any) -> int:
    """How many buffers a method of a class keeps for instances that are gone."""
    return sum(reference() is None for reference, _ in method._self_engines.values())


def list_function_of(f: Any) -> Callable[..., Any]:
    """Return what is called with a list: the user's function, or what binds it to its instance."""
    function: Callable[..., Any] = engine(f).function
    return function


def reference_to_the_engine(f: Any) -> "weakref.ref[Any]":
    """Return a weak reference to all that lives for `f` but `f` itself."""
    return weakref.ref(engine(f))


def figures_of_what_may_be_dropped(f: Any) -> Callable[[], Stats]:
    """Return what tells the figures of `f`, also when it is gone."""
    known, tally = weakref.ref(engine(f)), engine(f).tally

    def figures() -> Stats:
        it = known()
        stats: Stats = tally.read(lambda: (0, 0)) if it is None else it.stats
        return stats

    return figures


async def all_on_this_loop_is_answered(f: Any) -> None:
    """Wait until nothing of an `async def` function waits or runs on this loop, also for callers that have left."""
    await f.adrain()


def holds_a_lock() -> bool:
    """Whether this thread holds a lock of ours."""
    return any(it.tally.is_mine for it in _threads._all()) or any(it.tally.is_mine for it in _asyncio._live)


def _runners_of(ident: int) -> list[Any]:
    return [runner for it in _threads._all() for runner in it.held_up_by(at_all=True) if runner.thread == ident]


def works_for_a_function(ident: int) -> bool:
    """Whether that thread is known to run or answer batches."""
    return bool(_runners_of(ident))


def waits_inside(ident: int) -> bool:
    """Whether that thread runs a batch and waits, in its function, for an answer of another one."""
    return any(runner.unanswered() for runner in _runners_of(ident))


def threads_that_wait_inside() -> list[int]:
    """Return the threads of which that is remembered."""
    runners = [runner for it in _threads._all() for runner in it.held_up_by(at_all=True)]
    return [runner.thread for runner in runners if runner.thread is not None and runner.unanswered()]


def is_known(ident: int) -> bool:
    """Whether anything is remembered of that thread."""
    return bool(_runners_of(ident))


def check(f: Any) -> None:
    """Assert what the comments of the code say is true at any moment; of a buffer alone too."""
    buffer = f if isinstance(f, Buffer) else engine(f).buffer
    if isinstance(buffer, GroupedBuffer):
        _check_groups(buffer)


def _check_groups(buffer: GroupedBuffer) -> None:
    """Assert that all that a buffer of groups has found out is what its entries that wait say."""
    dedupe, most = buffer._options.dedupe, buffer._options.max_weight
    groups = {id(entry.group): entry.group for entry in buffer.waiting}
    assert {id(group) for group in buffer._groups.values()} == set(groups)
    assert sum(map(len, groups.values())) == len(buffer.waiting)
    equals = {entry for group in groups.values() for entry in group.equals.values()}
    assert equals == (buffer.waiting if dedupe else set())
    calls = [call for entry in buffer.waiting for call in (entry if dedupe else [entry])]
    assert len(set(calls)) == len(calls) >= len(buffer.waiting)
    assert buffer.limited == sum(call.limited for call in calls)
    longest = min(max(map(len, groups.values()), default=0), buffer._options.batch_size)
    assert {size: groups for size, groups in buffer._sizes.items() if groups} == {
        size: sum(len(group) >= size for group in groups.values()) for size in range(1, longest + 1)
    }
    for group in groups.values():
        assert buffer._groups[group[0].key] is group
        assert {*group} <= buffer.waiting
        assert all(entry.group is group for entry in group)
        order = [(entry.arrival, entry.number) for entry in group]
        assert order == sorted(order)
        # It is found by these no later than by its oldest entry.
        for listed in [buffer._listed, buffer._listed_full] if buffer._is_full(group) else [buffer._listed]:
            assert any(each is group and (arrival, number) <= order[0] for arrival, number, each in listed)
        if most is not None and len(group) < buffer._options.batch_size:
            weight = sum(entry.weight for entry in group)
            assert group.weight == weight or most <= group.weight <= weight


# Places where something is counted


@contextmanager
def rings(f: Any, *, instead: Callable[[], object] | None = None) -> Iterator[list[int]]:
    """Yield a list that gets, for each ring that wakes the flush thread of `f`, how many items waited then.

    With `instead` that happens in place of a ring, until the end of the block.
    """
    it = engine(f)
    rung: list[int] = []
    ring = _threads._ring

    def counted(bell: Any) -> None:
        if bell is not it._bell:
            ring(bell)
            return
        rung.append(it.waiting()[0])
        if instead is None:
            ring(bell)
        else:
            instead()

    with patch.object(_threads, "_ring", counted):
        yield rung


def looks(f: Any) -> list[Any]:
    """Return a list that gets what each look of the flush thread at the buffer comes to, from now on.

    That is the batch to be run, the seconds to sleep (inf: until woken), or None, to end.
    """
    it = engine(f)
    found: list[Any] = []
    step = it.next

    def look(now: float, **rested: bool) -> Any:
        what = step(now, **rested)
        found.append(what)
        return what

    it.next = look
    return found


def before_looks(f: Any, do: Callable[[], object]) -> None:
    """Let the flush thread of `f` call this before each look at the buffer, from now on."""
    it = engine(f)
    step = it.next

    def look(now: float, **rested: bool) -> Any:
        do()
        return step(now, **rested)

    it.next = look


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
        with (
            patch.multiple(_threads, monotonic=self.time, allocate_lock=self.allocate_lock),
            patch.object(ThreadEngine, "now", staticmethod(self.time)),
        ):
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


def fails_as_it_hands_out(*, nth: int) -> Block:
    """Let no memory be left, once, when a buffer is about to hand out the n-th item of a batch that has weights."""
    errors = [MemoryError()]

    def accumulate(weights: Iterable[float]) -> Iterator[float]:
        for position, weight in enumerate(itertools.accumulate(weights)):
            if position == nth - 1 and errors:
                raise errors.pop()
            yield weight

    return patch.object(_buffer, "accumulate", accumulate)


def another_thread_takes_the_calls_first(batch: Batch, do: Callable[[], object]) -> None:
    """Let another thread do that to a batch just as its calls are about to be taken out of it to be answered."""

    class Raced(list[Any]):
        def pop(self, *args: Any) -> Any:
            batch.to_answer = [*self]
            self.clear()
            do()
            batch.to_answer = self
            return super().pop(*args)

    batch.to_answer = Raced(batch.to_answer)


def no_memory_to_copy_the_calls_of(batch: Batch) -> None:
    """Let a batch find no memory, once, when it copies its calls."""

    class Fails(list[Any]):
        failed = False

        def __iter__(self) -> Iterator[Any]:
            if not self.failed:
                self.failed = True
                raise MemoryError
            return super().__iter__()

    batch.to_answer = [Fails(batch.to_answer[0])]


@contextmanager
def no_memory_to_count_a_batch() -> Iterator[list[MemoryError]]:
    """Let a batch that was just made not be counted, once. Yields a list that is empty once that has happened."""
    errors = [MemoryError()]

    def failing_once(begin: Callable[..., bool]) -> Callable[..., bool]:
        def run(*args: Any) -> bool:
            if errors:
                raise errors.pop()
            return begin(*args)

        return run

    # Else the log record that pytest keeps would keep the batch.
    with _replaced(Tally, "begin", failing_once), patch.object(logging.getLogger("batchify"), "disabled", True):
        yield errors


@contextmanager
def no_memory_for_a_batch(*, of: int = 0, runs: bool = False) -> Iterator[list[MemoryError]]:
    """Let making a batch fail once, or, with `runs`, running it on a flush thread. `of` so many items (0: any).

    Yields a list that is empty once that has happened.
    """
    errors = [MemoryError()]

    def failing_once(kind: Any) -> Any:
        class FailsOnce(kind):  # type: ignore[misc]
            __slots__ = ()

            def __new__(cls, _: Any, calls: Any, *__: Any, **___: Any) -> Any:
                if errors and not runs and of in (0, len(calls)):
                    raise errors.pop()
                return super().__new__(cls)

            def run(self, *args: Any) -> None:
                if errors and runs:
                    raise errors.pop()
                super().run(*args)

        return FailsOnce

    with (
        patch.object(ThreadEngine, "make_batch", failing_once(ThreadEngine.make_batch)),
        patch.object(LoopEngine, "make_batch", failing_once(LoopEngine.make_batch)),
    ):
        yield errors


def no_memory_for_a_look(f: Any, *, at_the_buffer: bool) -> None:
    """Let the next look of the flush thread of `f` for a batch fail, once; at the buffer, or before that."""
    it = engine(f)
    owner, name = (it.buffer, "take") if at_the_buffer else (it, "next")
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

        def acquire(self, *how: Any, **limit: Any) -> bool:
            if how and errors:  # so the bell is waited for
                raise errors.pop()
            return self.lock.acquire(*how, **limit)

    with patch.object(_threads, "allocate_lock", Lock):
        yield errors


@contextmanager
def ctrl_c_in_calls_made_inside() -> Iterator[None]:
    """Let each call that blocks inside a function be interrupted as it begins to wait."""

    wait = ThreadRunner.wait

    def interrupted(runner: ThreadRunner, *args: Any) -> bool:
        if _threads.runner_here() is runner:
            raise KeyboardInterrupt
        return wait(runner, *args)

    with patch.object(ThreadRunner, "wait", interrupted):
        yield


def blocked_call(item: Any) -> Call:
    """Return the call of somebody who blocks, to be posted."""
    call = Call()
    call.item, call.bell = item, threading.Lock()
    call.bell.acquire()
    return call


def post(f: Any, call: Call) -> None:
    engine(f).post((call,))


def withdraw(f: Any, call: Call) -> None:
    engine(f).withdraw(call)


def before_posts(f: Any, do: Callable[[], object]) -> None:
    """Do something whenever a caller of `f`, which is unused yet, has looked for a flush thread and is about to
    post."""

    class Inbox(deque[Any]):
        def append(self, call: Any) -> None:
            if isinstance(call, Call):
                do()
            super().append(call)

        def extend(self, calls: Any) -> None:
            do()
            super().extend(calls)

    with patch.object(_engine, "deque", Inbox):
        engine(f).begin_anew()


@contextmanager
def inside_the_lock(f: Any) -> Iterator[None]:
    """Do something as a finalizer would that strikes this thread where it holds a lock of ours."""
    with engine(f).tally.lock:
        yield


def as_it_falls_asleep(f: Any, do: Callable[[], object]) -> None:
    """Do something, as a finalizer would, whenever the owner of the buffer of `f` is about to sleep."""
    it = engines(f)[0]
    sleep_until = it.sleep_until

    def asleep(moment: float, head: Any) -> None:
        sleep_until(moment, head)
        do()

    it.sleep_until = asleep  # type: ignore[method-assign]


def at_line_of_the_flush_thread(f: Any, number: int, intrude: Callable[[], object]) -> Callable[[], bool]:
    """Start its thread, and let it do something at that one line of ours, as a finalizer would.

    Returns what says whether it has done so, or sleeps until it is woken.
    """
    passed = 0

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal passed
        if frame.f_code.co_filename not in (_threads.__file__, _engine.__file__, _buffer.__file__):
            return None
        if event == "line" and frame.f_code.co_name not in ("_start", "__init__"):
            passed += 1  # first, since another thread may be started, which is traced as well
            if passed == number:
                intrude()
        return trace

    threading.settrace(trace)
    try:
        with suppress(ClosedError):  # by what it did
            engine(f)._start()
    finally:
        threading.settrace(None)
    return lambda: passed >= number or sleeps_without_end(f)


@contextmanager
def after_the_main_thread() -> Iterator[None]:
    """Let no thread be started any more, as when the main thread has ended."""

    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    with patch.object(threading.Thread, "start", start), patch.object(_threads, "main_thread", threading.Thread):
        yield


def owner_ends_when_it_was_seen(f: Any) -> None:
    """Let the next caller find a flush thread, and when it has posted none, as if that ended just then."""

    class Ending(dict[Any, Any]):
        looks = iter((True,))

        def __bool__(self) -> bool:
            return next(self.looks, len(self) > 0)

    engine(f)._own_runners = Ending()


def leave_the_buffer_of(instance: object, *, to: object, method: Any) -> None:
    """Let a method of a class find the buffer of one instance for another, as if the first had died unnoticed."""
    method._self_engines[id(to)] = method._self_engines[id(instance)]


def always_find_that_another_thread_made_the_buffer(method: Any) -> None:
    """Let each look of a method of a class for a buffer fail, so that it makes one and then finds another there."""

    class NotFoundAtFirst(dict[Any, Any]):
        def get(self, key: Any, default: Any = None) -> Any:
            return None

    method._self_engines = NotFoundAtFirst()


# What is done for a test


class HandBatch(Batch):
    """A batch that nobody runs: a test lets it `settle()` or `fail()`."""

    __slots__ = ("entries", "reason")

    def __init__(self, engine: "HandEngine", entries: Any, reason: Any, now: float) -> None:
        if engine.fails:
            engine.fails = False
            raise MemoryError
        super().__init__(engine, entries, reason, now)
        self.entries, self.reason = list(entries), reason

    @property
    def callers(self) -> list[Call]:
        """All whom it is to answer."""
        return list(self.calls(self.entries))


class HandBell:
    """What a call, or a map, sleeps on; counts how often it was told."""

    def __init__(self) -> None:
        self.told = 0

    def release(self) -> None:
        self.told += 1

    ring = release


class HandEngine(Engine):
    """An engine that nobody drives: a test posts calls, moves the clock and asks for the owner's `next()` step."""

    make_batch = HandBatch
    closed = False  # whoever closes it goes on posting

    def __init__(self, options: Options, *, ended_by_news: bool = False) -> None:
        self.moment = 1000.0
        self.rung = 0  # how often
        self.fails = False  # whether there is no memory for the next batch
        self.ended_by_news = ended_by_news  # as where others than the owner run batches
        self.tally = Tally()
        super().__init__(list, "f", options, None)

    def call(self, item: Any, *, limited: bool = True, arrival: float | None = None) -> Call:
        """Return a call, of a map if it is not `limited`, that nobody has posted yet."""
        call = Call() if limited else MapCall()
        call.item, call.bell = item, HandBell()
        call.arrival = self.moment if arrival is None else arrival
        self.ask(call)
        return call

    def post(self, calls: Any) -> Any:
        """Let a call, or calls, wait, as the fourth of the numbered steps says."""
        self.inbox.extend(calls if isinstance(calls, tuple | list) else (calls,))
        if len(self.inbox) >= self.wake_at:
            self.ring()
        return calls

    @property
    def turns(self) -> int:
        """How many further batches may begin."""
        return self.concurrency - len(self._running)

    def look(self, at: float | None = None) -> Any:
        """Let the owner make its step, at that moment or at the one at which the clock stands."""
        if at is not None:
            self.moment = at
        return self.next(self.moment)

    def ring(self) -> None:
        self.rung += 1

    def now(self) -> float:
        return self.moment

    def closed_error(self) -> ClosedError:
        return ClosedError("f() is closed")

    def ended(self, batch: Batch) -> None:
        if self.ended_by_news:
            self.post_news(self.turn_ended, batch)
        else:
            self.turn_ended(batch)


def begin_to_close(f: Any) -> None:
    """Refuse what comes, and make what waits due, without waiting for it."""
    engine(f).begin_to_close(cancel_pending=False)


def begin_block(f: Any) -> None:
    """Begin a `with` block, also where only `async with` is allowed."""
    engine(f).open()


# For slow/schedules/: what a scheduler of threads must replace


_blind: set[int] = set()  # threads to which shared deques look empty: a fault


def _switching(kind: type, switch: Callable[[], object], names: str) -> Any:
    """Return a kind of container: before each of these uses of it another thread may go on."""

    def switching(name: str) -> Callable[..., Any]:
        use = getattr(kind, name)

        def run(it: Any, *args: Any) -> Any:
            switch()
            return use(it, *args)

        return run

    return type(f"Shared{kind.__name__}", (kind,), {name: switching(name) for name in names.split()})


class _Shared:
    """An attribute that threads share; what is put there is replaced by what `make` makes of it."""

    def __init__(self, kind: type, name: str, switch: Callable[[], object], make: Callable[[Any], Any]) -> None:
        self.name, self.switch, self.make = name, switch, make
        self.unset = {name: getattr(kind, name)} if hasattr(kind, name) else {}

    def __get__(self, it: Any, _: Any) -> Any:
        self.switch()
        try:
            return {**self.unset, **it.__dict__}[self.name]
        except KeyError:
            raise AttributeError(self.name) from None

    def __set__(self, it: Any, value: Any) -> None:
        self.switch()
        it.__dict__[self.name] = self.make(value)


@contextmanager
def other_threading(*, complain: Callable[..., object], switch: Callable[[], object], **names: Any) -> Iterator[None]:
    """Let the library use these in place of what it imported from `threading`, `_thread`, `queue` and `time`.

    It logs errors by `complain()`, knows nothing of the functions of before, and calls `switch()` before each use of
    what threads share, also in the midst of a line.
    """
    counted: Any = _switching(deque, switch, "append extend extendleft remove popleft copy __getitem__ __len__")

    class Box(counted):  # type: ignore[misc]
        def __len__(self) -> int:
            found: int = super().__len__()
            return 0 if get_ident() in _blind else found

        __bool__ = lambda self: len(self) > 0  # noqa: E731

    owners = _switching(dict, switch, "get setdefault pop values copy __len__ __setitem__")
    sets = _switching(set, switch, "add discard copy __len__")
    lists = _switching(list, switch, "append remove copy __contains__ __len__")
    made: dict[str, Callable[[Any], Any]] = {
        "inbox": Box,
        "news": Box,
        "_own_runners": owners,
        "runners": owners,
        "_running": owners,
        "_lent": owners,
        "awaits": lambda value: lists(value) if type(value) is list else value,
        "maps": sets,
        "changing": lists,
    }
    shared: dict[type, str] = {
        Engine: "inbox news runners _running _lent maps wake_at has_leavers tracks",
        Runner: "awaits thread cannot_lend",
        ThreadBatch: "runner turn",
        ThreadEngine: "_own_runners closed returns_futures",
        ItemFuture: "call",
        Tally: "changing version answered failed cancelled running in_flight",
    }

    def switching(use: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(use)
        def run(*args: Any, **kwargs: Any) -> Any:
            switch()
            return use(*args, **kwargs)

        return run

    with ExitStack() as stack:
        for module in (_threads, _engine, _stats, _batch):
            for name, value in {**names, "complain": complain}.items():
                if hasattr(module, name):
                    stack.enter_context(patch.object(module, name, value))
        stack.enter_context(patch.object(_threads, "_live", WeakKeyDictionary()))
        stack.enter_context(patch.object(ThreadEngine, "now", staticmethod(names["monotonic"])))
        for kind, attributes in shared.items():
            for name in attributes.split():
                it = _Shared(kind, name, switch, made.get(name, lambda value: value))
                stack.enter_context(patch.object(kind, name, it, create=True))
        for owner, name in (
            (Call, "claim"),
            (Call, "leave"),
            (Call, "has_left"),
            (FutureCall, "has_left"),
            (Call, "put"),
            (Batch, "_conclude"),
        ):
            stack.enter_context(_replaced(owner, name, switching))
        yield


def begin_anew() -> None:
    """Forget all functions; at the beginning of each schedule."""
    close_what_is_left()
    _threads._live = WeakKeyDictionary()
    _blind.clear()


def remembers_a_thread() -> bool:
    """Whether a function remembers a thread; when all have ended, none should."""
    return any(
        it._own_runners or it.runners or it.maps or it._running or it._lent or it._drains for it in _threads._all()
    )


def close_what_is_left() -> None:
    """Let what a schedule left that failed answer nobody any more."""
    for it in _threads._all():
        it.begin_anew()


def _replaced(owner: Any, name: str, make: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Block:
    """Replace a function by what is made of it."""
    return patch.object(owner, name, make(getattr(owner, name)))


# And faults: the library as it would be with a bug, as long as a block lasts. Something is left out, or comes too early
# or too late, perhaps only while a thread is in a certain function. These are the ways to do that.


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


@contextmanager
def _left_out(owner: Any, name: str, *, within: Function, result: Any = None) -> Iterator[None]:
    """A call of a function is left out in another one; `result` stands for what it would have returned."""

    def left_out(original: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **kwargs: result if inside() else original(*args, **kwargs)

    with _threads_in(within) as inside, _replaced(owner, name, left_out):
        yield


def _nothing(owner: Any, name: str, result: Any = None) -> Block:
    """A function does nothing."""
    return patch.object(owner, name, lambda *_, **__: result)


def _and_then(owner: Any, name: str, do: Callable[..., object]) -> Block:
    """A function does something more at its end, with what it was called with."""

    def both(original: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            found = original(*args, **kwargs)
            do(*args)
            return found

        return run

    return _replaced(owner, name, both)


def _always_true(owner: Any, name: str) -> Block:
    """A function does what it does, and says that it did."""
    return _replaced(owner, name, lambda original: lambda *args: original(*args) or True)


def _step(change: Callable[[Any, list[Any]], object], restore: Callable[[Any, list[Any]], object]) -> Block:
    """Between steps 2 and 3 the owner does `change`, and when it has made its step `restore`; both may note things."""

    class Between:
        def __init__(self, it: Any, notes: list[Any]) -> None:
            self.it, self.notes = it, notes

        def acquire(self, _: bool) -> bool:
            change(self.it, self.notes)
            return False

    def both(next_step: Callable[..., Any]) -> Callable[..., Any]:
        def run(it: Any, *args: Any, **kwargs: Any) -> Any:
            notes: list[Any] = []
            it._barrier = Between(it, notes)
            try:
                return next_step(it, *args, **kwargs)
            finally:
                restore(it, notes)

        return run

    return _replaced(Engine, "next", both)


# Faults: the four steps


def step_2_too_late() -> Block:
    """The owner says when to ring when it has looked for the last time."""

    def change(it: Any, notes: list[Any]) -> None:
        notes[:] = [it.wake_at]
        it.wake_at = inf

    def restore(it: Any, notes: list[Any]) -> None:
        if notes:
            it.wake_at = notes[0]

    return _step(change, restore)


def step_3_left_out() -> Block:
    """The owner says when to ring, and does not look again."""
    return _step(lambda *_: _blind.add(get_ident()), lambda *_: _blind.discard(get_ident()))


def step_4_left_out() -> Block:
    """Who posts does not ring."""
    return _left_out(_threads, "_ring", within=(ThreadEngine, "post"))


def step_4_left_out_by_maps() -> Block:
    """A map does not ring when it posts."""
    return _left_out(_threads, "_ring", within=(Ahead, "put"))


@contextmanager
def step_4_reversed() -> Iterator[None]:
    """Who posts asks whether to ring, and then appends."""

    def early(post: Callable[..., Any]) -> Callable[..., Any]:
        def run(it: Any, call: Any) -> None:
            if len(it.inbox) + 1 >= it.wake_at:
                it.ring()
            post(it, call)

        return run

    with step_4_left_out(), _replaced(ThreadEngine, "post", early):
        yield


def step_4_left_out_for_news() -> Block:
    """News do not ring."""
    return _left_out(ThreadEngine, "ring", within=(Engine, "post_news"))


def drain_that_does_not_ring() -> Block:
    """Who drains leaves a note, and does not ring."""
    return _left_out(ThreadEngine, "ring", within=(ThreadEngine, "when_answered"))


def wake_at_that_knows_no_groups() -> Block:
    """The owner is rung for a full batch, however many of a group wait already."""
    return patch.object(GroupedBuffer, "wake_at", lambda it: it._options.batch_size)


def wake_at_that_knows_no_limit() -> Block:
    """The owner is not rung for the last item that `max_pending` lets in."""

    def lacking(it: Any) -> Any:
        return max(1, it._options.batch_size - len(it._sizes))

    return patch.object(GroupedBuffer, "wake_at", lacking)


def owner_that_is_not_rung_for_the_first() -> Block:
    """The owner is rung for a full batch only, also if nothing waits, so that it times nothing."""
    return _step(lambda it, _: setattr(it, "wake_at", max(it.wake_at, it.options.batch_size)), lambda *_: None)


def news_of_which_an_owner_that_comes_does_not_hear() -> Block:
    """Who has news asks twice for an owner; if there is none at first and then one, that is taken for having heard."""

    def twice(let: Callable[..., bool]) -> Callable[..., bool]:
        def run(it: Any, *args: Any) -> bool:
            return (bool(it._own_runners) and let(it, *args)) or bool(it._own_runners)

        return run

    return _replaced(ThreadEngine, "post_news", twice)


def news_of_which_only_the_first_is_heard() -> Block:
    """The owner hears one piece of news, and takes all for heard."""

    def first(hear: Callable[..., Any]) -> Callable[..., Any]:
        def run(it: Any, now: float) -> None:
            hear_first, it.news = it.news[0], type(it.news)()
            hear_first()

        return run

    return _replaced(Engine, "_hear", first)


# Faults: owners


def owner_that_does_not_look_again() -> Block:
    """An owner that ends does not look whether somebody posted who still saw it."""
    return _and_then(ThreadEngine, "make_room", lambda _: _blind.add(get_ident()))


def poster_that_does_not_look_again() -> Block:
    """Who posts does not look whether the owner has just ended."""
    return _replaced(ThreadEngine, "_start", lambda start: lambda it, posted=(): posted or start(it))


def second_owner_that_stays() -> Block:
    """Of two threads that are started at once, both work."""
    return _always_true(ThreadEngine, "become_owner")


def owner_that_is_remembered() -> Block:
    """An owner that ends does not make room for the next one."""
    return _replaced(ThreadEngine, "make_room", lambda begin: lambda it: None if hasattr(it, "_batches") else begin(it))


def owner_that_does_not_know_that_it_is_closed() -> Block:
    """A thread that is started while the function is closed waits for what will never come."""

    def unknowing(become_owner: Callable[..., bool]) -> Callable[..., bool]:
        def become(it: Any, me: Any) -> bool:
            is_owner = become_owner(it, me)
            if is_owner:
                it.buffer.ends = False
            return is_owner

        return become

    return _replaced(ThreadEngine, "become_owner", unknowing)


# Faults: callers that leave


def future_that_is_answered_though_cancelled() -> Block:
    """Who takes a batch does not ask whether a future was cancelled."""
    return _always_true(FutureCall, "claim")


def call_that_is_answered_though_it_left() -> Block:
    """As before, of a call or a map."""
    return _always_true(Call, "claim")


def call_that_leaves_twice() -> Block:
    """A call that leaves counts at once, and again when it is met."""
    return _and_then(Engine, "left", lambda it, _: it.tally.leave(1))


def futures_that_are_known_too_late() -> Block:
    """That calls may have futures is said when the first one has been posted."""

    def late(put: Callable[..., Any]) -> Callable[..., Any]:
        def run(it: Any, *args: Any, **kwargs: Any) -> None:
            tracks, it.tracks = it.tracks, False
            put(it, *args, **kwargs)
            it.tracks = tracks

        return run

    return _replaced(ThreadEngine, "put", late)


def leavers_that_are_not_heard() -> Block:
    """The owner hears that somebody left, and does not ask who when it takes the next batch."""
    return _and_then(Engine, "left", lambda it, _: setattr(it, "has_leavers", False))


def neighbours_that_are_lost() -> Block:
    """Those with whom a call that left was taken are forgotten."""
    return _nothing(Buffer, "put_back")


def future_that_says_it_is_cancelled() -> Block:
    """A future says that it is cancelled, though it may be answered."""
    return _always_true(ItemFuture, "cancel")


def callbacks_that_come_too_early() -> Block:
    """Callbacks of a future run before its neighbours have their answers."""
    return patch.object(ItemFuture, "_invoke_callbacks", Future._invoke_callbacks)  # type: ignore[attr-defined]


# Faults: batches that run elsewhere, and their turns


def batch_that_ends_unheard() -> Block:
    """Whoever ends a batch that ran elsewhere does not wake the owner."""
    return _left_out(ThreadEngine, "ring", within=(ThreadEngine, "ended"))


def turn_that_is_lost() -> Block:
    """A batch that ends does not give its turn back."""
    return _nothing(Engine, "turn_ended")


def one_turn_too_many() -> Block:
    return _and_then(ThreadEngine, "begin_anew", lambda it: setattr(it, "concurrency", it.concurrency + 1))


def runner_that_is_not_started() -> Block:
    """The owner takes another runner for idle, which is not."""
    return _left_out(ThreadEngine, "_start_thread", within=(ThreadEngine, "give_to_a_runner"))


def runner_that_ends_unheard() -> Block:
    """A runner that is sent home does not send home the next one."""

    class Quiet:
        def __init__(self, batches: Any) -> None:
            self.get = batches.get

        def put(self, _: object) -> None:
            """Do nothing."""

    return _replaced(_threads, "_run", lambda run: lambda it, batches, *args: run(it, Quiet(batches), *args))


# Faults: closing, draining, dropping


def close_that_makes_nothing_due() -> Block:
    """What waits when it is closed is not due."""
    return _nothing(Engine, "closed_or_opened")


def opening_that_is_not_heard() -> Block:
    """What comes after it was opened again is still due at once."""
    return _replaced(Engine, "closed_or_opened", lambda hear: lambda it, of=None: hear(it))


def close_that_does_not_wait() -> Block:
    return _nothing(ThreadEngine, "drain", False)


def drain_that_forgets_what_runs() -> Block:
    """Who drains is told while a batch still runs."""

    def early(say: Callable[..., Any]) -> Callable[..., Any]:
        def run(it: Any) -> None:
            kept, it._running = it._running, {}
            try:
                say(it)
            finally:
                it._running = kept

        return run

    return _replaced(Engine, "say_what_is_answered", early)


def end_that_is_not_told() -> Block:
    """Who closes is not told that the owner has ended."""

    def forgets(begin: Callable[..., Any]) -> Callable[..., Any]:
        def run(it: Any) -> None:
            it._drains.clear()
            begin(it)

        return run

    return _replaced(ThreadEngine, "make_room", forgets)


def function_that_is_dropped_with_its_items() -> Block:
    """When nobody holds a function any more, what waits in it is forgotten."""
    return _nothing(Controls, "drop")


@contextmanager
def dropped_function_of_which_nobody_hears() -> Iterator[None]:
    """The idle flush thread of a function that is garbage sleeps on."""
    with function_that_is_dropped_with_its_items(), _nothing(ThreadEngine, "__del__"):
        yield


# Faults: halves of batches that failed


def halves_that_are_forgotten() -> Block:
    return _nothing(Engine, "again")


def halves_that_come_too_late() -> Block:
    """Halves are there only when their batch has ended already."""

    def late(conclude: Callable[..., Any]) -> Callable[..., Any]:
        def run(it: Any, *args: Any) -> None:
            engine = it.engine
            conclude(it, *args)
            if engine in kept:
                again(engine, kept.pop(engine))

        return run

    again, kept = Engine.again, dict[Any, Any]()
    stack = ExitStack()
    stack.enter_context(patch.object(Engine, "again", lambda it, parts: kept.update({it: parts})))
    stack.enter_context(_replaced(Batch, "_conclude", late))
    return stack


# Faults: turns that are lent


def halves_that_are_forgotten_inside() -> Block:
    """Halves of a batch to which a turn was lent are not run."""
    return _left_out(Engine, "again", within=(ThreadRunner, "lend"))


def calls_inside_that_nobody_notes() -> Block:
    """Of two functions that call each other neither knows that the other one waits."""
    return patch.object(Runner, "unanswered", lambda _: [])


def look_that_wakes_no_other() -> Block:
    """Who waits in a ring lends what it can, and lets those who could lend sleep."""

    def own(to_lend: Callable[..., Any]) -> Callable[..., Any]:
        return lambda it: (each for each in to_lend(it) if each[0] is it)

    return _replaced(Runner, "to_lend", own)


class _Late(list[Any]):
    """What is awaited, as long as the runner alone knows it."""

    def __init__(self, awaited: list[Any]) -> None:
        super().__init__(awaited)
        self.ident: int | None = get_ident()

    def copy(self) -> list[Any]:
        return self if self.ident in (None, get_ident()) else []


class _LateBell:
    """A bell: who is about to sleep on it says before that what it awaits."""

    def __init__(self, bell: Any, awaited: _Late) -> None:
        self.bell, self.awaited = bell, awaited
        self.release, self.locked = bell.release, bell.locked

    def acquire(self, *args: Any) -> bool:
        self.awaited.ident = None
        acquired: bool = self.bell.acquire(*args)
        return acquired


def runner_that_looks_before_it_notes() -> Block:
    """Who waits inside looks for a ring, and then says what it awaits."""

    def late(wait: Callable[..., bool]) -> Callable[..., bool]:
        def run(it: Any, awaited: list[Any], *args: Any) -> bool:
            bell, known = it.bell, _Late(awaited)
            it.bell = _LateBell(bell, known)
            try:
                return wait(it, known, *args)
            finally:
                it.bell = bell

        return run

    return _replaced(ThreadRunner, "wait", late)


def lent_turn_that_counts_twice() -> Block:
    """A batch on a lent turn counts beside the one that lent it."""
    return _and_then(Engine, "_take", lambda it, *_: it._running.update(it._lent))


def turn_that_is_asked_for_twice() -> Block:
    """An owner that is asked for a turn gives two, and nobody takes the second."""

    def twice(take: Callable[..., None]) -> Callable[..., None]:
        def run(it: Any, asked: list[Any], *args: Any) -> None:
            take(it, [*asked], *args)
            take(it, asked, *args)

        return run

    return _replaced(ThreadEngine, "take_lent_for", twice)


def lent_turn_that_ends_unheard() -> Block:
    """Who has lent its turn to a batch on an engine does not hear that it has ended."""
    return _left_out(ThreadRunner, "wake", within=(ThreadEngine, "ended"))


def lent_turn_that_ends_too_late() -> Block:
    """Who has lent its turn hears that the batch has ended, and then that is so."""

    def late(wake: Callable[..., None]) -> Callable[..., None]:
        def run(it: Any) -> None:
            wake(it)
            if it.batch is not None and it.batch.turn is not None:
                it.batch.turn.append(0)
                it.batch.turn.pop()

        return run

    return _replaced(ThreadRunner, "wake", late)


def turn_that_is_lent_to_two() -> Block:
    """Who has lent its turn to a batch on an engine lends it to another one as well."""
    return patch.object(ThreadRunner, "has_lent", False)


# Faults: the rest


def map_that_does_not_hear_of_a_batch_size() -> Block:
    """A map does not read on when `batch_size` grows."""
    return _nothing(Engine, "settings_changed")


def flush_that_comes_too_late() -> Block:
    """flush() makes due only what came long before."""
    return _replaced(Engine, "make_due", lambda due: lambda it, until, *args: due(it, until - 1e6, *args))


def figures_that_are_read_as_they_change() -> Block:
    """Who reads figures does not ask whether somebody changes them."""
    return patch.object(Tally, "read", lambda it, waiting: it._snapshot(*waiting()))


def batch_that_is_taken_without_a_word() -> Block:
    """Who takes a batch does not say that it changes figures."""

    class Silent:
        def __init__(self, tally: Tally) -> None:
            self._tally = tally

        def __enter__(self) -> None:
            """Do nothing."""

        def __exit__(self, *_: object) -> None:
            """Do nothing."""

        def __getattr__(self, name: str) -> Any:
            return getattr(self._tally, name)

    def silent(take_due: Callable[..., Any]) -> Callable[..., Any]:
        def run(it: Any, now: float, take: Callable[[float], Any]) -> Any:
            tally = it.tally

            def aloud(now: float) -> Any:
                it.tally = tally
                return take(now)

            it.tally = Silent(tally)
            try:
                return take_due(it, now, aloud)
            finally:
                it.tally = tally

        return run

    return _replaced(Engine, "_take_due", silent)


def answers_without_a_word() -> Block:
    """Who answers a batch does not say that it changes figures."""

    def answer(it: Any, items: int, failed: int, ended: bool) -> None:
        with it.lock:
            it.running -= items
            it.in_flight -= ended
            it.answered += items - failed
            it.failed += failed

    return patch.object(Tally, "answer", answer)


@contextmanager
def changes_without_a_word() -> Iterator[None]:
    """Neither who leaves, nor what is refused or run at once, changes figures with a word."""
    with _nothing(Tally, "__enter__"), _nothing(Tally, "__exit__"):
        yield


def refused_items_that_are_nowhere() -> Block:
    """What is to be refused waits no more, and is not counted as failed yet."""
    return patch.object(Engine, "waiting", lambda it: (len(it.buffer), 0))


def figures_without_the_lock() -> Block:
    """Two threads that end a batch count what they answered at the same time."""

    class NoLock:
        def __enter__(self) -> None:
            """Do nothing."""

        def __exit__(self, *_: object) -> None:
            """Do nothing."""

    return _and_then(Tally, "__init__", lambda it: setattr(it, "lock", NoLock()))


def full_group_that_makes_nothing_due() -> Block:
    return _left_out(_buffer, "heappush", within=(GroupedBuffer, "_enter"))


def group_that_stays_full() -> Block:
    """A group that was full is taken for full, though one of it left."""
    return _left_out(GroupedBuffer, "_is_full", within=(GroupedBuffer, "_first"), result=True)


def equal_items_of_which_one_is_answered() -> Block:
    """Of the callers of equal items only the first is told."""

    def first(calls: Callable[..., Any]) -> Callable[..., Any]:
        return lambda it, entries: [entry[0] for entry in entries]

    return _replaced(Batch, "calls", first)
