"""How do coroutines wait?

Two ways in: `answered()` for a function that runs in a flush thread, `LoopBatcher` for a coroutine function. Imported
with the first use of either.

A LoopBatcher has a LoopFlusher, with a buffer, for each event loop it is called on:
  - it begins with the loop's first item, and goes with the loop;
  - it runs no thread. A timer is set while a batch is open, and each batch runs in a task of its own;
  - items that wait in a loop that closes stay unanswered, since nobody can hear an answer there.
"""

import asyncio
import os
import weakref
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import suppress
from contextvars import Context, ContextVar
from itertools import islice
from math import inf
from threading import RLock
from typing import Any

from ._batch import Batch, Call, GroupedCall
from ._buffer import Buffer, check_batch_size, check_timeout
from ._errors import ClosedError
from ._stats import Reason, Stats, Tally

# What the loops of one function share, and they may run in several threads: the table of flushers, and the figures.
# Re-entrant, and one for all, for the same reasons as the lock of the flush threads.
_lock = RLock()
_live: "weakref.WeakSet[LoopBatcher]" = weakref.WeakSet()

# The batch from inside which the current task, or the task that started it, was started. A call made there may have to
# wait for that very batch.
_inside: "ContextVar[LoopBatch | None]" = ContextVar("batchify batch", default=None)


class LoopCall(GroupedCall):
    """A call whose caller is a coroutine that awaits `answered`."""

    __slots__ = ("answered", "home")

    home: asyncio.AbstractEventLoop

    def __init__(self, item: Any, loop: asyncio.AbstractEventLoop) -> None:
        self.item = item
        self.home = loop
        # Only says when. The answer stays in the call, so that nobody misses an exception that nobody waits for.
        self.answered: asyncio.Future[None] = loop.create_future()

    def deliver(self) -> None:
        if not self.answered.done():  # its caller may have been cancelled
            self.answered.set_result(None)

    @staticmethod
    def deliver_group(calls: Sequence["LoopCall"]) -> None:
        # One message per batch and loop: a message wakes the loop, and costs several times what the rest does.
        with suppress(RuntimeError):  # the loop is closed, so nobody waits; asking beforehand would be a race
            calls[0].home.call_soon_threadsafe(_deliver, calls)


def _deliver(calls: Sequence[Call]) -> None:
    for call in calls:
        call.deliver()


async def answered(item: Any, put: Callable[[LoopCall], None], withdraw: Callable[[LoopCall], object]) -> Any:
    """Pass an item, and return its result or raise its error once it is answered."""
    call = LoopCall(item, asyncio.get_running_loop())
    try:
        put(call)
        await call.answered
    except BaseException:  # cancelled, or closed
        call.answered.cancel()
        withdraw(call)
        raise
    return call.result if call.error is None else call.outcome()


class FutureCall(Call):
    """A call that answers a future."""

    __slots__ = ("future",)

    def __init__(self, item: Any, future: "ItemFuture") -> None:
        self.item = item
        self.future = future

    def deliver(self) -> None:
        future = self.future
        future.call = None  # a cycle
        if future.done():
            return  # cancelled, or answered by a stranger
        if self.error is None:
            future.set_result(self.result)
        else:
            future.set_exception(self.error)
            future.exception()  # as if somebody had asked: one error for a whole batch must not be logged for each item


class ItemFuture(asyncio.Future[Any]):
    """The future of one item. Cancelling it takes the item out of the buffer, or else drops the answer."""

    call: FutureCall | None = None  # until it is delivered
    flusher: "LoopFlusher"

    def cancel(self, msg: Any | None = None) -> bool:
        """Cancel the call. False if it is answered already."""
        if not super().cancel(msg):
            return False
        call, self.call = self.call, None
        if call is not None:
            self.flusher.withdraw(call)
        return True


class MapCall(Call):
    """A call of which a map will ask for the answer in its turn."""

    waiter: "asyncio.Future[None] | None" = None

    def __init__(self, item: Any) -> None:
        self.item = item

    def deliver(self) -> None:
        waiter = self.waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    async def wait(self) -> None:
        if not hasattr(self, "error"):
            self.waiter = asyncio.get_running_loop().create_future()
            await self.waiter


class LoopBatch(Batch):
    """A batch that runs in a task."""

    __slots__ = ("__weakref__", "_flusher", "_nested", "_task", "waits_for")

    accepts = "a list or other sequence, a mapping from item to result, or an iterator"

    def __init__(self, flusher: "LoopFlusher", calls: Sequence[Call], *, nested: bool) -> None:
        super().__init__(flusher.batcher.name, calls)
        self._flusher = flusher
        self._nested = nested
        self._task: asyncio.Task[None] | None = None
        # Calls made from inside the function, and on which flusher.
        self.waits_for: list[tuple[Call, LoopFlusher]] = []

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        try:
            self._context.run(self._create_task, loop)
        except BaseException as error:  # noqa: BLE001 - by a task factory
            self.fail(error)

    def _create_task(self, loop: asyncio.AbstractEventLoop) -> None:
        _inside.set(self)
        # Not create_task(context=...), which not every task factory takes.
        self._task = _create_task(
            loop, self.run_async(self._flusher.batcher.function), f"batchify batch of {self.name}()"
        )
        self._task.add_done_callback(self._ended)

    def _ended(self, _: "asyncio.Task[None]") -> None:
        self._task = None  # a cycle, by way of its context
        if self._unanswered:  # cancelled before its first step
            self.fail(asyncio.CancelledError())

    def answer(self, calls: Sequence[Call], failed: int, *, done: bool) -> None:
        with _lock:
            self._flusher.batcher.tally.answer(len(calls), failed, done=done)
        with suppress(RuntimeError):  # the loop is closed, and this batch was closed by the garbage collector
            for call in calls:
                call.deliver()

    def finish(self) -> None:
        self.waits_for.clear()
        self._flusher.finished(self, nested=self._nested)


def _create_task(
    loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, None], name: str
) -> "asyncio.Task[None]":
    try:
        task = loop.create_task(coroutine, name=name)
    except BaseException:
        coroutine.close()
        raise
    task._log_destroy_pending = False  # type: ignore[attr-defined]  # if the loop is closed, its owner wanted that
    return task


class LoopFlusher:
    """Gathers the items of the coroutines of one event loop, and runs the function there.

    Used on the thread of its loop only, but for what is under the lock.
    """

    # True at every line, also for a finalizer that calls in:
    #   1. look() will run at _looks_at (inf: not by itself), by _timer; or soon, or when the batch in flight has
    #      finished, if _looks_at is -inf. So an item that is not due before that need not do anything.
    #   2. look() may run more often than that: it looks at the state, and relies on nothing else.
    #   3. batches holds those that run, and they hold their tasks: asyncio itself holds tasks weakly.

    def __init__(self, batcher: "LoopBatcher", loop: asyncio.AbstractEventLoop) -> None:
        self.batcher = batcher
        self.loop = weakref.ref(loop)  # the batcher holds this as long as the loop lives
        self.buffer: Buffer[Call] = batcher.new_buffer()
        self.batches: set[LoopBatch] = set()
        self._in_flight = 0
        self._looks_at = inf
        self._timer: asyncio.TimerHandle | None = None
        self._closers: list[asyncio.Future[None]] = []
        self._context = Context()  # for look(): a timer would keep that of the first caller

    def put(self, call: Call) -> None:
        """Let a call wait."""
        loop = self.loop()
        assert loop is not None
        if _inside.get() is not None and self._put_inside((call,), loop):
            return
        if self.buffer.closed:
            raise self.batcher.closed_error()
        due_at = self.buffer.add(call, loop.time())
        if due_at < self._looks_at:
            self._look_at(due_at, loop)

    def put_all(self, calls: Sequence[Call]) -> None:
        """Let many calls wait."""
        loop = self.loop()
        assert loop is not None
        if _inside.get() is not None and self._put_inside(calls, loop):
            return
        if self.buffer.closed:
            raise self.batcher.closed_error()
        now = loop.time()
        add = self.buffer.add
        for call in calls:
            due_at = add(call, now)
            if due_at < self._looks_at:
                self._look_at(due_at, loop)

    def withdraw(self, call: Call) -> None:
        """Take out a call whose caller left, if it is in no batch yet."""
        with _lock:
            if self.buffer.remove(call):
                self.batcher.tally.cancelled += 1
        call.error = None  # needs() shall not think that somebody waits for it
        # Also where it was not there: its caller may have been interrupted between adding it and setting the timer.
        self.look_soon()

    def flush(self) -> None:
        """Make what waits due now."""
        loop = self.loop()
        if loop is not None:
            self.buffer.flush(loop.time())
            self.look_soon()

    def adapt(self) -> None:
        """Take over the options of the batcher."""
        self.buffer.batch_size, self.buffer.timeout = self.batcher.batch_size, self.batcher.timeout
        self.look_soon()

    def close(self) -> None:
        """Refuse what comes, and make what waits due."""
        self.buffer.close()
        self.look_soon()

    async def closed(self) -> None:
        """Wait until what was accepted is answered."""
        batch = _inside.get()
        if (self.batches or len(self.buffer)) and not (batch is not None and self.needs(batch)):
            waiter = asyncio.get_running_loop().create_future()
            self._closers.append(waiter)
            await waiter

    def look_soon(self) -> None:
        """See in the loop's next turn what has become due."""
        loop = self.loop()
        if self._looks_at > -inf and loop is not None:
            with suppress(RuntimeError):  # closed
                self._look_at(-inf, loop)

    def _look_at(self, moment: float, loop: asyncio.AbstractEventLoop) -> None:
        # _looks_at last: if this is interrupted before, the next item still sees to it.
        if moment == -inf:
            loop.call_soon(self.look, context=self._context)
        else:
            self._timer = loop.call_at(moment, self.look, moment, context=self._context)
        self._looks_at = moment

    def look(self, moment: float = -inf) -> None:
        """Start a batch if one is due and the function is free. `moment`: what the timer was set to, if it is one."""
        loop = self.loop()
        assert loop is not None
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()
        if self._in_flight:
            self._looks_at = -inf
            return
        # From here on whoever adds sees to it that this is called again.
        self._looks_at = inf
        now = max(loop.time(), moment)  # a loop may call a little early (uvloop counts in milliseconds)
        with _lock:
            taken = self.buffer.take(now) if len(self.buffer) else None
            if taken is not None:
                calls, reason = taken
                self.batcher.tally.begin(reason, [call.arrival for call in calls], now)
        if taken is not None:
            self._in_flight += 1
            self._looks_at = -inf
            self._start(calls, loop, nested=False)
        elif len(self.buffer):
            due_at = self.buffer.due_at
            if due_at < self._looks_at:
                self._look_at(due_at, loop)
        elif not self.batches:
            for waiter in self._closers:
                if not waiter.done():
                    waiter.set_result(None)
            self._closers.clear()

    def _start(self, calls: Sequence[Call], loop: asyncio.AbstractEventLoop, *, nested: bool) -> None:
        batch = LoopBatch(self, calls, nested=nested)
        self.batches.add(batch)
        batch.start(loop)

    def finished(self, batch: LoopBatch, *, nested: bool) -> None:
        """Make room for the next batch."""
        self.batches.discard(batch)
        if not nested:
            self._in_flight -= 1
        # Not at once: the callers just answered come first, and what they pass now joins the next batch.
        self._looks_at = inf
        self.look_soon()

    # Calls from inside the function

    def _put_inside(self, calls: Sequence[Call], loop: asyncio.AbstractEventLoop) -> bool:
        batch = _inside.get()
        assert batch is not None
        if self.needs(batch):
            with _lock:
                self.batcher.tally.begin("nested", [0.0] * len(calls), 0.0)
            self._start(calls, loop, nested=True)
            return True
        batch.waits_for += [(call, self) for call in calls]
        return False

    def needs(self, batch: LoopBatch) -> bool:
        """Whether what is passed here may be answered only after that batch has ended."""
        seen: set[LoopFlusher] = set()
        todo = [self]
        while todo:
            flusher = todo.pop()
            if batch in flusher.batches:
                return True
            if flusher not in seen:
                seen.add(flusher)
                for running in flusher.batches:
                    todo += [other for call, other in running.waits_for if not hasattr(call, "error")]
        return False


class LoopBatcher:
    """Gathers the items of coroutines in any number of event loops, and runs the function in each of them."""

    def __init__(self, function: Callable[[list[Any]], Any], name: str, buffer: Buffer[Call]) -> None:
        self.function = function
        self.name = name
        self._options = buffer  # nothing ever waits in this one
        self._start_clean()
        _live.add(self)

    def _start_clean(self) -> None:
        self.tally = Tally()
        self._flushers: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, LoopFlusher] = weakref.WeakKeyDictionary()

    def _begin(self, loop: asyncio.AbstractEventLoop) -> LoopFlusher:
        with _lock:
            for other in [other for other in self._flushers if other.is_closed()]:
                # Its flusher may hold futures, and they the loop: so it would never go by itself.
                gone = self._flushers.pop(other)
                self.tally.cancelled += len(gone.buffer)
                gone.buffer = self.new_buffer()
            flusher = self._flushers[loop] = LoopFlusher(self, loop)
        return flusher

    def _here(self) -> tuple[LoopFlusher, asyncio.AbstractEventLoop]:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            raise RuntimeError(f"{self.name}() is a coroutine function: call it where an event loop runs") from None
        return self._flushers.get(loop) or self._begin(loop), loop

    def _everywhere(self, action: Callable[[LoopFlusher], None]) -> None:
        with _lock:
            flushers = list(self._flushers.items())
        try:
            here = asyncio.get_running_loop()
        except RuntimeError:
            here = None
        for loop, flusher in flushers:
            if loop is here:
                action(flusher)
            else:
                with suppress(RuntimeError):  # the loop is closed
                    loop.call_soon_threadsafe(action, flusher)

    def new_buffer(self) -> Buffer[Call]:
        buffer: Buffer[Call] = Buffer(self.name, self._options.batch_size, self._options.timeout)
        if self._options.closed:
            buffer.close()
        return buffer

    def closed_error(self) -> ClosedError:
        return ClosedError(f"{self.name}() is closed")

    # What callers do

    async def call(self, item: Any) -> Any:
        """Return the item's result or raise its error, once it is answered."""
        loop = asyncio.get_running_loop()
        flusher = self._flushers.get(loop) or self._begin(loop)
        call = LoopCall(item, loop)
        try:
            flusher.put(call)
            await call.answered
        except BaseException:  # cancelled, or closed
            call.answered.cancel()
            flusher.withdraw(call)
            raise
        return call.result if call.error is None else call.outcome()

    def submit(self, item: Any) -> ItemFuture:
        """Return a future of the item's result."""
        flusher, loop = self._here()
        future = ItemFuture(loop=loop)
        future.flusher = flusher
        call = future.call = FutureCall(item, future)
        try:
            flusher.put(call)
        except BaseException:
            future.cancel()
            raise
        return future

    def map(self, items: Iterable[Any] | AsyncIterable[Any]) -> AsyncIterator[Any]:
        """Yield the results of the items in order, reading at most two batches of items ahead."""
        if isinstance(items, AsyncIterable):
            return self._map_async(aiter(items))
        return self._map(iter(items))

    async def _map(self, items: Iterator[Any]) -> AsyncIterator[Any]:
        flusher, _ = self._here()
        ahead: deque[MapCall] = deque()
        more = True
        error: BaseException | None = None  # of the items, raised behind the results of those before
        try:
            while True:
                if more and len(ahead) <= self.batch_size:
                    read = []
                    try:
                        for item in islice(items, self.batch_size):
                            read.append(MapCall(item))  # noqa: PERF401 - what was read must not be lost
                    except Exception as raised:  # noqa: BLE001 - whatever they raise
                        error = raised
                    more = len(read) == self.batch_size and error is None
                    ahead.extend(read)
                    flusher.put_all(read)
                    del read
                    if not more:
                        flusher.flush()  # nothing of this map will join what is left
                if not ahead:
                    break
                call = ahead[0]
                await call.wait()
                ahead.popleft()
                yield call.result if call.error is None else call.outcome()
            if error is not None:
                try:
                    raise error
                finally:
                    del error
        finally:
            for call in ahead:
                flusher.withdraw(call)

    async def _map_async(self, items: AsyncIterator[Any]) -> AsyncIterator[Any]:
        # One task reads all items, while this waits for results: a result must not wait for the next item to come, and
        # a generator must not find itself in another task at each of its steps (timeouts and cancel scopes forbid it).
        flusher, loop = self._here()
        ahead: asyncio.Queue[MapCall | None] = asyncio.Queue()
        room = asyncio.Semaphore(2 * self.batch_size)

        async def read() -> None:
            try:
                while True:
                    await room.acquire()
                    call = MapCall(await anext(items))
                    flusher.put(call)
                    ahead.put_nowait(call)
            except StopAsyncIteration:
                pass
            finally:
                flusher.flush()
                ahead.put_nowait(None)

        reader = _create_task(loop, read(), f"batchify reader of a map of {self.name}()")
        call: MapCall | None = None
        try:
            while (call := await ahead.get()) is not None:
                await call.wait()
                room.release()
                yield call.result if call.error is None else call.outcome()
            await reader  # raises what the items raised
        finally:
            reader.cancel()
            await asyncio.wait([reader])
            if not reader.cancelled():
                reader.exception()  # as if somebody had asked
            ahead.put_nowait(call)
            while not ahead.empty():
                if (call := ahead.get_nowait()) is not None:
                    flusher.withdraw(call)

    def flush(self) -> None:
        """Make what waits due now, in all loops; may be called from any thread."""
        self._everywhere(LoopFlusher.flush)

    async def aclose(self) -> None:
        """Refuse what comes, in all loops, and wait until what this one accepted is answered."""
        self._options.close()
        self._everywhere(LoopFlusher.close)
        flusher = self._flushers.get(asyncio.get_running_loop())
        if flusher is not None:
            await flusher.closed()

    @property
    def batch_size(self) -> int:
        return self._options.batch_size

    @batch_size.setter
    def batch_size(self, value: int) -> None:
        self._options.batch_size = check_batch_size(self.name, value)
        self._everywhere(LoopFlusher.adapt)

    @property
    def timeout(self) -> float | None:
        return self._options.timeout

    @timeout.setter
    def timeout(self, value: float | None) -> None:
        self._options.timeout = check_timeout(self.name, value)
        self._everywhere(LoopFlusher.adapt)

    @property
    def stats(self) -> Stats:
        with _lock:
            return self.tally.snapshot(sum(len(flusher.buffer) for flusher in self._flushers.values()))


def _forget_parent() -> None:
    """Begin anew in a forked child: the lock may be held by a thread that does not exist here."""
    global _lock
    _lock = RLock()
    for batcher in _live:
        batcher._start_clean()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_parent)
