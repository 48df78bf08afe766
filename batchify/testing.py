"""For tests of code that uses batched functions: calls that wait for nobody, and which batches there were.

Imported by nothing else here.
"""

import asyncio
import weakref
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from contextvars import copy_context
from functools import partial
from threading import RLock
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from ._asyncio import LoopCall, LoopEngine, LoopEngines
from ._decorator import BatchedCoroutineFunction, BatchedFunction, BatchedMethod
from ._engine import Engine
from ._processor import BatchProcessor
from ._stats import Reason
from ._threads import ThreadEngine, ThreadRunner

Batched = (
    BatchedFunction[Any, Any, ...]
    | BatchedCoroutineFunction[Any, Any, ...]
    | BatchedMethod[Any, Any]
    | BatchProcessor[Any]
)


class BatchRecord(NamedTuple):
    """One batch, as `recorded()` lists it.

    Attributes:
        items: Its items, in order: tuples if the function has several columns, dictionaries of a `BatchProcessor`.
        reason: Why it was taken; see `Stats.reasons`.
    """

    items: list[Any]
    reason: Reason


class _Watched:
    """What tests ask of a function, of the method of an instance, or of an engine. Any thread may ask."""

    def __init__(self) -> None:
        self.above: _Watched | None = None  # of all instances, or all loops
        self.immediate: list[None] = []  # blocks that are open
        self.records: dict[int, list[BatchRecord]] = {}  # by id(), as lists may be equal

    @property
    def is_immediate(self) -> bool:
        return bool(self.immediate) or (self.above is not None and self.above.is_immediate)

    def record(self, record: BatchRecord) -> None:
        for records in self.records.copy().values():
            records.append(record)
        if self.above is not None:
            self.above.record(record)


_lock = RLock()
_watched: "WeakKeyDictionary[Any, _Watched]" = WeakKeyDictionary()


@contextmanager
def immediate(*functions: Batched) -> Iterator[None]:
    """Let each call run the list function at once, with its own item alone: nothing waits, and no thread is started.

    Use as `with immediate(f):`. The function runs on the caller's thread; an `async def` function in the task that
    awaits the call, or for `submit()` and `map()` in a new one. It sees the caller's context, such as a database
    transaction that a test has begun. All else is as ever: what it returns and raises, `weight` and `group_by`,
    `on_batch`. In `stats` such a batch is `nested`.

    Other threads and loops that call meanwhile get the same. Blocks may be nested, and overlap.

    Args:
        *functions: Batched functions; methods of an instance, or of the class for all its instances; processors.

    Raises:
        TypeError: One of them is none of these.
    """
    watched = [_watched_of(function) for function in functions]
    for each in watched:
        each.immediate.append(None)
    try:
        yield
    finally:
        for each in watched:
            each.immediate.pop()


@contextmanager
def recorded(function: Batched) -> Iterator[list[BatchRecord]]:
    """List the batches that are taken in this block.

    Use as `with recorded(f) as batches:`. To assert which batches form, use `timeout=None`, then call `flush()` or pass
    enough items for a full batch. The items of other threads are recorded too.

    Args:
        function: As for `immediate()`.

    Yields:
        list[BatchRecord]: One per batch, in the order in which they are taken. The list is kept when the block ends.

    Raises:
        TypeError: It is none of these.
    """
    watched, records = _watched_of(function), list[BatchRecord]()
    watched.records[id(records)] = records
    try:
        yield records
    finally:
        del watched.records[id(records)]


def _watched_of(function: Any) -> _Watched:
    if not isinstance(function, (BatchedFunction, BatchedCoroutineFunction, BatchedMethod, BatchProcessor)):
        raise TypeError(f"this is for what batched() has made, and for a BatchProcessor, got {function!r}")
    return _watch(function if isinstance(function, BatchedMethod) else function._self_engine)


def _watch(of: Any, above: _Watched | None = None) -> _Watched:
    """Let a method of a class, the engines of a function or one engine heed what tests ask, from now on."""
    parts: list[Any] = []
    with _lock:
        watched = _watched.setdefault(of, _Watched())
        watched.above = watched.above or above
        weak = weakref.ref(of)  # since it is to go when its function is dropped
        if isinstance(of, BatchedMethod) and not isinstance(of._self_begin, partial):
            of._self_begin = partial(_begin, watched, of._self_begin)
            parts = [access.engine for _, (access, _) in of._self_engines.copy().values()]
        elif isinstance(of, LoopEngines) and "_of" not in vars(of):
            of._of = partial(_of, watched, weak)  # type: ignore[method-assign]
            parts = of._all()
        elif isinstance(of, Engine) and "make_batch" not in vars(of):
            of.make_batch = partial(_make, watched, of.make_batch)  # type: ignore[assignment]
            if isinstance(of, ThreadEngine):
                of.post = partial(_post, watched, weak)  # type: ignore[method-assign]
            else:
                of.bounded = True  # so that it asks whether it is full, and does not just post
                of.is_full = lambda: watched.is_immediate or LoopEngine.is_full(weak())  # type: ignore[method-assign, arg-type]
                of.put = partial(_put, watched, weak)  # type: ignore[method-assign]
    for part in parts:
        _watch(part, watched)
    return watched


def _begin(watched: _Watched, begin: Any, *args: Any) -> Any:
    access, entries = begin(*args)
    _watch(access.engine, watched)
    return access, entries


def _of(watched: _Watched, weak: Any, loop: asyncio.AbstractEventLoop) -> LoopEngine:
    engine = LoopEngines._of(weak(), loop)
    _watch(engine, watched)
    return engine


def _make(watched: _Watched, kind: Any, engine: Any, entries: Sequence[Any], reason: Reason, now: float) -> Any:
    watched.record(BatchRecord([entry.item for entry in entries], reason))
    return kind(engine, entries, reason, now)


def _post(watched: _Watched, weak: Any, calls: Sequence[Any]) -> None:
    engine: ThreadEngine = weak()
    if not watched.is_immediate:
        ThreadEngine.post(engine, calls)
        return
    for call in calls:
        if call.claim():
            runner = ThreadRunner(engine)
            runner.context = copy_context()
            engine.batch_of_one(call).run(engine.function, runner)


def _put(watched: _Watched, weak: Any, calls: Sequence[Any], *, waits: bool) -> None:
    engine: LoopEngine = weak()
    if not watched.is_immediate or engine.closed:
        LoopEngine.put(engine, calls, waits=waits)
        return
    loop = asyncio.get_running_loop()
    for call in calls:
        batch = engine.batch_of_one(call)
        steps = batch.run_async(engine.function)
        if type(call) is LoopCall:
            call.future = _Own(loop=loop)
            call.future.steps = steps
        else:
            batch.task = loop.create_task(steps)


class _Own(asyncio.Future[Any]):
    """The future of a call that its own caller answers, in its own task, as it awaits this."""

    steps: Any

    def __await__(self) -> Generator[Any, None, Any]:
        try:
            yield from self.steps.__await__()
            task = asyncio.current_task()
            if task is not None and task.cancelling():  # the function may have heard it in its caller's stead
                raise asyncio.CancelledError
            return (yield from super().__await__())
        finally:
            del self  # an error knows this frame

    __iter__ = __await__
