"""How do coroutines wait?

Two ways in: `AioCall` for a function that runs in a flush thread, `LoopBatcher` for a coroutine function; `awaits()` is
what the caller awaits of either. Imported with the first use.

A LoopBatcher has a LoopFlusher, with a buffer, for each event loop it is called on:
  - it begins with the loop's first item, and goes with the loop;
  - it runs no thread. A timer is set while a batch is open, and each batch runs in a task of its own;
  - what waits in a loop that closes stays unanswered, since nobody can hear an answer there;
  - after a fork: the child has none, and starts its own with its first item.
"""

import asyncio
import os
import weakref
from collections import deque
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Callable,
    Coroutine,
    Generator,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import suppress
from contextvars import Context, ContextVar
from functools import partial
from math import inf
from operator import call as call_directly
from threading import RLock
from types import coroutine
from typing import Any, Protocol

from ._batch import NO_CONSTANTS, Ahead, Batch, Call, MapCall, advise, is_sound
from ._buffer import Buffer, arrival_of, batches_at_once
from ._errors import ClosedError
from ._options import Options, Takes, check_count, check_timeout
from ._stats import Reason, Stats, Tally

# Guards what the loops of a function share, as they may run in several threads: the table of flushers, and the figures.
# Re-entrant, and one for all functions, for the same reasons as the lock of the flush threads.
_lock = RLock()
_live: "weakref.WeakSet[LoopBatcher]" = weakref.WeakSet()

# The batch whose function runs here, also in tasks that it started. A call made there may need that very batch to end.
_inside: "ContextVar[LoopBatch | None]" = ContextVar("batchify batch", default=None)


class LoopCall(Call):
    """A call whose caller is a coroutine that awaits `answered`. Its home is its loop, then the flusher of that."""

    __slots__ = ("answered", "home")

    # Only says when. The answer stays in the call, so that nobody misses an exception that nobody waits for.
    answered: asyncio.Future[None]

    @staticmethod
    def deliver_all(calls: Sequence["LoopCall"]) -> None:
        for call in calls:
            if not call.answered.done():  # its caller may have been cancelled
                call.answered.set_result(None)


class AioCall(LoopCall):
    """The same, answered by a thread."""

    __slots__ = ()

    @staticmethod
    def deliver_all(calls: Sequence[LoopCall]) -> None:
        # One message per batch and loop: a message wakes the loop, and costs several times what the rest does.
        home = calls[0].home
        with suppress(RuntimeError):  # the loop is closed, so nobody waits; asking beforehand would be a race
            home.call_soon_threadsafe(LoopCall.deliver_all, calls)


class TakesCalls(Protocol):
    """A batcher."""

    def put(self, call: Any, constants: Mapping[str, Any], /) -> None: ...
    def withdraw(self, call: Any, /) -> object: ...


def awaits(name: str, takes: Takes, kind: type[LoopCall]) -> Callable[..., Coroutine[Any, Any, Any]]:
    """Return a coroutine function that passes an item to a batcher, and awaits its result.

    Its first argument is the batcher, and the owner whose method must answer: so a coroutine keeps both alive, and the
    function, made once per batcher, neither.
    """
    plain, bind, running_loop, future = takes.plain, takes.bind, asyncio.get_running_loop, asyncio.Future

    async def aio(of: tuple[TakesCalls, object], /, *args: Any, **kwargs: Any) -> Any:
        batcher, constants = of[0], NO_CONSTANTS
        if plain and len(args) == 1 and not kwargs:
            (item,) = args
        else:
            item, constants = bind(*args, **kwargs)
        call = kind()
        call.item = item
        try:
            call.home = running_loop()
        except RuntimeError:
            raise no_loop_error(name) from None
        call.answered = future(loop=call.home)
        try:
            batcher.put(call, constants)
            await call.answered
        except BaseException:  # cancelled, or closed
            batcher.withdraw(call)
            raise
        return call.value if call.error is None else call.outcome()

    aio.__name__ = aio.__qualname__ = name  # for the warning that nobody awaited it, among others
    return aio


def no_loop_error(name: str) -> RuntimeError:
    return RuntimeError(f"{name}() is a coroutine function: call it where an event loop runs")


class ItemFuture(asyncio.Future[Any]):
    """The future of one item, and the call itself. Cancelling it takes the item out, or else drops the answer."""

    __slots__ = ("arrival", "context", "error", "flusher", "group", "item", "owner", "value", "weight")

    home = "futures"
    limited = True
    item: Any
    group: Any
    weight: float
    context: Context | None
    owner: object  # kept alive, since its method must answer this
    flusher: "LoopFlusher"
    value: Any
    error: Exception | None

    @staticmethod
    def deliver_all(calls: Sequence["ItemFuture"]) -> None:
        for future in calls:
            if not future.done():  # cancelled, or answered by a stranger
                if future.error is None:
                    future.set_result(future.value)
                else:
                    future.set_exception(future.error)
                    future.exception()  # as if asked for: one error must not be logged once for each item of its batch
            future.item = future.owner = future.value = future.error = None
            if future.flusher.batcher.asks:
                future.group = future.context = None

    def cancel(self, msg: Any | None = None) -> bool:
        """Cancel the call. False if it is answered already."""
        if not super().cancel(msg):
            return False
        if self.flusher.withdraw(self):
            self.item = self.owner = None  # else its batch still needs the item, to look into a mapping
        return True


class LoopBell:
    """What a map sleeps on until any of its calls is answered."""

    def __init__(self) -> None:
        self._waiter: asyncio.Future[None] | None = None

    def ring(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def wait(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        await self._waiter


class LoopBatch(Batch):
    """A batch that runs in a task, in a context of its own."""

    __slots__ = ("_flusher", "_waits_for")

    accepts = "a list or other sequence, a mapping from item to result, or an iterator, asynchronous or not"

    def __init__(self, flusher: "LoopFlusher", calls: Sequence[Any], reason: Reason, now: float) -> None:
        super().__init__(flusher.batcher, calls, call_directly, reason, now)
        self._flusher = flusher
        # Calls made from inside the function, and where; those answered are taken out now and then.
        self._waits_for: dict[LoopFlusher, list[Any]] = {}

    def answer(self, calls: Sequence[Any], failed: int, *, done: bool) -> None:
        flusher = self._flusher
        now = flusher.now() if done else None
        with _lock:
            flusher.tally.answer(len(calls), failed, now)
        if now is not None:
            if self.tell is not None:
                self.report(now, len(flusher.buffer), flusher.tally.in_flight)
            flusher.finished(self)  # first: if the next batch is full, it need not wait until these have gone on
        try:  # noqa: SIM105 - suppress() takes three calls
            self.deliver(calls)
        except RuntimeError:  # the loop is closed, and the garbage collector ended this batch: nobody hears
            pass

    def again(self, parts: Sequence[Sequence[Any]]) -> None:
        self._flusher.again(self, parts)

    def finish(self) -> None:
        """It made room when it was answered, or else does so when its task ends."""
        self._waits_for.clear()

    def runs(self) -> bool:
        return self in self._flusher.batches

    def will_wait_for(self, flusher: "LoopFlusher", calls: Sequence[Any]) -> None:
        """Note that these calls are made from inside the function."""
        waiting = self._waits_for.setdefault(flusher, [])
        before = len(waiting)
        waiting.extend(calls)
        if len(waiting) >= 64 and len(waiting).bit_length() > before.bit_length():  # so it is done seldom
            waiting[:] = [call for call in waiting if not hasattr(call, "error")]

    def waits_for(self) -> "list[LoopFlusher]":
        return [
            flusher
            for flusher, calls in tuple(self._waits_for.items())
            if any(not hasattr(call, "error") for call in calls)
        ]


@coroutine
def _begun() -> Generator[None, None, None]:
    yield


class LoopFlusher:
    """Gathers the items of the coroutines of one event loop, and runs the function there.

    Used on the thread of its loop only, but for what is done under the lock.
    """

    # True at every line, also for a finalizer that calls in:
    #   1. A flush will begin at looks_at, started by _timer (inf: never); or, if that is -inf, in the loop's next turn
    #      or when a batch in flight has ended. So an item that is not due before then has nothing to do.
    #   2. A flush may begin more often than that: it goes by what it finds.
    #   3. batches holds those that run; _tasks the tasks, since asyncio holds them weakly.
    #   4. _parts are those of batches that failed and are to be run again, before all that waits.

    def __init__(self, batcher: "LoopBatcher", loop: asyncio.AbstractEventLoop) -> None:
        self.batcher = batcher
        self.loop = weakref.ref(loop)  # the batcher keeps this as long as the loop lives
        self.buffer: Buffer[Any] = batcher.new_buffer()
        self.tally = batcher.tally
        self.batches: set[LoopBatch] = set()
        self.bells: set[LoopBell] = set()  # of maps, which may have to read on when batch_size changes
        self._parts: deque[Sequence[Any]] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._in_flight: set[LoopBatch] = set()  # those of batches that are not nested
        self.looks_at = inf
        self._timer: asyncio.TimerHandle | None = None

    # What callers do

    def ask(self, call: Any, constants: Mapping[str, Any]) -> None:
        """Find out what options want to know of a call, before it is put."""
        batcher = self.batcher
        call.group = self.buffer.group_of(batcher.options.ask(batcher.name, call, batcher.takes), constants)

    def put_all(self, calls: Sequence[Any], loop: asyncio.AbstractEventLoop) -> None:
        """Let calls wait; or if they come from inside the function and would wait for themselves, run them at once."""
        if not calls:
            return
        batch = _inside.get()
        if batch is not None and not batch.runs():
            batch = None  # it has ended, and this is a task that it left behind
        nested = batch is not None and self.needs(batch)
        if self.buffer.closed and not nested:
            raise self.batcher.closed_error()
        if batch is not None:
            batch.will_wait_for(self, calls)
        if nested:
            for part in batches_at_once(calls, self.batcher.options) if self.batcher.asks else (calls,):
                self._begin_nested(part, "nested", loop)
            return
        add, now = self.buffer.add, loop.time()
        for call in calls:
            if call.limited and self.buffer.is_full:
                with _lock:
                    self.tally.refused += 1
                raise self.batcher.options.full_error(self.batcher.name)
            due_at = add(call, now)
            if due_at < self.looks_at:
                self.look_at(due_at, loop)
        if -inf < self.looks_at <= now:
            self.look()

    def withdraw(self, call: Any) -> bool:
        """Take out a call whose caller left. False if it is in a batch already."""
        with _lock:
            waited = self.buffer.remove(call)
            self.tally.cancelled += waited
        call.error = None  # needs() shall not think that somebody waits for it
        if self._timer is not None and not len(self.buffer):
            self._look_anew()
        return waited

    def flush(self) -> None:
        """Make what waits due now."""
        loop = self.loop()
        if loop is not None:
            self.buffer.flush(loop.time())
            self.look()

    def adapt(self) -> None:
        """Take notice that options have changed."""
        self.buffer.adapt()
        for bell in tuple(self.bells):
            bell.ring()
        self.look()

    def close(self) -> None:
        """Refuse what comes, and make what waits due."""
        self.buffer.close()
        self.look()

    async def closed(self) -> None:
        """Wait until what was accepted is answered."""
        batch = _inside.get()
        if batch is not None and self.needs(batch):
            return
        waiting = MapCall(None, int)
        if batch is not None:
            batch.will_wait_for(self, (waiting,))
        try:
            # Once closed, there is a task as long as anything waits or runs.
            while running := [task for task in self._tasks if not task.done()]:
                await asyncio.wait(running)
        finally:
            waiting.error = None

    # When to flush

    def now(self) -> float:
        """Return the time of the loop, by which all that happens here is measured."""
        loop = self.loop()
        return 0.0 if loop is None else loop.time()

    def look(self) -> None:
        """See to it that what waits is flushed when it is due."""
        loop = self.loop()
        if loop is not None and not loop.is_closed():
            now, due_at = loop.time(), -inf if self._parts else self.buffer.due_at
            if -inf < self.looks_at <= now:
                self.looks_at = inf  # that timer has yet to come, or Ctrl-C struck it as it began
            if due_at < self.looks_at:
                self.look_at(due_at if due_at > now else -inf, loop, due_at)

    def look_at(self, due_at: float, loop: asyncio.AbstractEventLoop, moment: float = -inf) -> None:
        """Begin a flush at `due_at`; if that is now, `moment` is what the timer was set to that called this."""
        before = self._timer  # stopped last: should a recursion limit come in between, it still looks after the others
        timer: asyncio.TimerHandle | None = None
        if due_at == -inf:
            self._start(self._flush(moment), loop)
        else:
            # In a context of its own: else it would keep that of the caller.
            timer = loop.call_at(due_at, self.look_at, -inf, loop, due_at, context=Context())
        self._timer = timer
        self.looks_at = due_at
        if before is not None:
            before.cancel()
        if self._timer is not timer:
            self._look_anew()  # a finalizer set another one meanwhile, or stopped this one

    def _look_anew(self) -> None:
        self.looks_at = inf  # first, as Ctrl-C or a recursion limit may come here
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()
        self.looks_at = inf  # again: a finalizer may have set a timer, which was just stopped
        self.look()

    def _start(self, steps: Coroutine[Any, Any, None], loop: asyncio.AbstractEventLoop) -> None:
        # Up to its _begun(), so that it hears of all that happens before its task's first step: it may be cancelled, or
        # the loop closed, of which Python would complain.
        steps.send(None)
        context = Context()
        # Not loop.create_task(): a task factory may know no context, and an eager one would run the function in the
        # midst of its first caller.
        task = asyncio.Task(steps, loop=loop, name=self.batcher.task_name, context=context)
        task._log_destroy_pending = False  # type: ignore[attr-defined]  # if the loop is closed, its owner wanted that
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard, context=context)

    # The task of a batch

    async def _flush(self, moment: float, batch: LoopBatch | None = None) -> None:
        """Run a nested batch, or else the one that is due."""
        try:
            await _begun()
            if batch is None:
                # It is taken here and not by whoever started this: as late as can be, when all have added their items
                # whom the loop had woken before.
                batch = self._take(moment)
                if batch is not None:
                    self._in_flight.add(batch)
                self.buffer.let_go()
                if len(self._in_flight) >= self.batcher.options.concurrency:
                    self.looks_at = -inf
                elif self.looks_at != -inf:
                    self.look()
            if batch is not None:
                _inside.set(batch)
                self.batches.add(batch)
                await batch.run_async(self.batcher.function)
        except BaseException as error:  # it was cancelled, or Ctrl-C struck a loop that is run by hand
            if batch is not None:
                batch.fail(error)
                self.finished(batch)
            self.looks_at = inf
            self.look()
            raise

    def _begin_nested(self, calls: Sequence[Any], reason: Reason, loop: asyncio.AbstractEventLoop) -> None:
        now = loop.time()
        for call in calls:
            call.arrival = now
        with _lock:
            self.tally.begin(reason, [now] * len(calls), now)
        self._start(self._flush(now, LoopBatch(self, calls, reason, now)), loop)

    def _take(self, moment: float) -> LoopBatch | None:
        """Return the batch that is due, if there is room. `moment`: what the timer was set to that woke us."""
        options = self.batcher.options
        if len(self._in_flight) >= options.concurrency:
            return None
        # From here on whoever adds sees to it that this is called again.
        self.looks_at = inf
        now = max(self.now(), moment)  # a timer may be a little early (uvloop counts in milliseconds)
        with _lock:
            parts = self._parts
            taken: tuple[Sequence[Any], Reason] | None
            taken = (parts.popleft(), "isolate") if parts else self.buffer.take(now)
            if taken is None:
                return None
            calls, reason = taken
            try:
                batch = LoopBatch(self, calls, reason, now)
                arrivals = list(map(arrival_of, calls))
                hint = self.tally.too_few_callers(reason, arrivals, options.timeout)
                self.tally.begin(reason, arrivals, now)  # last, since it is not undone
            except BaseException:  # no memory: nobody else knows these calls
                if reason == "isolate":
                    parts.appendleft(calls)
                else:
                    self.buffer.put_back(list(calls))
                raise
        if hint:
            advise(self.batcher.name, len(arrivals), options.batch_size, options.timeout)
        return batch

    def finished(self, batch: LoopBatch) -> None:
        """Make room for the next batch."""
        self.batches.discard(batch)
        if batch in self._in_flight:
            self.looks_at = inf
            self._in_flight.discard(batch)
            self.look()

    def again(self, batch: LoopBatch, parts: Sequence[Sequence[Any]]) -> None:
        """Run the parts of a batch that failed, before all that waits; or at once, if that was nested."""
        loop = self.loop()
        if batch in self._in_flight:
            self._parts.extendleft(reversed(parts))  # finished() looks after them
        elif loop is not None:
            for part in parts:
                self._begin_nested(part, "isolate", loop)

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
                for running in tuple(flusher.batches):
                    todo += running.waits_for()
        return False


class LoopBatcher:
    """Gathers the items of coroutines in any number of event loops, and runs the function in each of them."""

    def __init__(self, function: Callable[..., Any], name: str, options: Options, takes: Takes) -> None:
        self.function = function
        self.name = name
        self.options = options
        self.takes = takes
        self.asks = options.ask_items or takes.constants
        self._bounded = options.max_pending is not None
        self.task_name = f"batchify task of {name}()"
        self.aio = awaits(name, takes, LoopCall)
        self._closed = False
        self._start_clean()
        _live.add(self)

    def _start_clean(self) -> None:
        self.tally = Tally()
        self._flushers: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, LoopFlusher] = weakref.WeakKeyDictionary()
        self._latest: LoopFlusher | None = None

    def here(self) -> tuple[asyncio.AbstractEventLoop, LoopFlusher]:
        """Return the running event loop, and its flusher."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            raise no_loop_error(self.name) from None
        return loop, self._of(loop)

    def _of(self, loop: asyncio.AbstractEventLoop) -> LoopFlusher:
        flusher = self._latest
        if flusher is None or flusher.loop() is not loop:
            flusher = self._latest = self._flushers.get(loop) or self._begin(loop)
        return flusher

    def _begin(self, loop: asyncio.AbstractEventLoop) -> LoopFlusher:
        with _lock:
            self._forget_closed_locked()
            return self._flushers.setdefault(loop, LoopFlusher(self, loop))

    def _forget_closed_locked(self) -> None:
        # The flusher of a loop may hold futures, and they the loop: so it would never go by itself.
        for loop in [loop for loop in self._flushers if loop.is_closed()]:
            gone = self._flushers.pop(loop)
            self.tally.cancelled += len(gone.buffer)
            gone.buffer = self.new_buffer()
            parts = sum(map(len, gone._parts))
            gone._parts.clear()
            self.tally.answer(parts, parts, None)
            self._latest = None

    def _everywhere(self, action: Callable[[LoopFlusher], None]) -> None:
        with _lock:
            self._forget_closed_locked()
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

    def new_buffer(self) -> Buffer[Any]:
        buffer: Buffer[Any] = Buffer(self.options, grouped=self.takes.constants)
        if self._closed:
            buffer.close()
        return buffer

    def closed_error(self) -> ClosedError:
        return ClosedError(f"{self.name}() is closed")

    # What callers do

    def put(self, call: LoopCall, constants: Mapping[str, Any]) -> None:
        """Let a call wait in its event loop, which is the running one."""
        loop, flusher = call.home, self._latest
        if flusher is None or flusher.loop() is not loop:
            flusher = self._of(loop)
        call.home = flusher  # before it waits there: withdraw() asks for it, also in a forked child
        if self.asks:
            flusher.ask(call, constants)
        if self._bounded or flusher.buffer.closed or _inside.get() is not None:
            flusher.put_all((call,), loop)
            return
        # put_all() for one call, written out, since everybody pays for each step here.
        now = loop.time()
        due_at = flusher.buffer.add(call, now)
        if due_at < flusher.looks_at:
            flusher.look_at(due_at, loop)
        elif -inf < flusher.looks_at <= now:
            flusher.look()

    def withdraw(self, call: LoopCall) -> None:
        """Take out a call whose caller left."""
        if isinstance(call.home, LoopFlusher):  # else Ctrl-C came before it was put there
            call.home.withdraw(call)

    def submit(self, item: Any, owner: object, constants: Mapping[str, Any] = NO_CONSTANTS) -> ItemFuture:
        """Return a future of the item's result."""
        loop, flusher = self.here()
        future = ItemFuture(loop=loop)
        future.item = item
        future.owner = owner
        future.flusher = flusher
        try:
            if self.asks:
                flusher.ask(future, constants)
            flusher.put_all((future,), loop)
        except BaseException:
            future.cancel()
            raise
        return future

    def map(
        self,
        items: Iterable[Any] | AsyncIterable[Any],
        owner: object,
        constants: Mapping[str, Any] = NO_CONSTANTS,
    ) -> AsyncGenerator[Any, None]:
        """Yield the results of the items in order, reading at most two batches of items ahead."""
        if isinstance(items, AsyncIterable):
            return self._map_async(aiter(items), owner, constants)
        return self._map(iter(items), owner, constants)

    async def _map(
        self,
        items: Iterator[Any],
        owner: object,  # noqa: ARG002
        constants: Mapping[str, Any],
    ) -> AsyncGenerator[Any, None]:
        loop, flusher = self.here()
        bell = LoopBell()
        ahead = Ahead(items, bell.ring, partial(flusher.ask, constants=constants) if self.asks else None)
        calls, options = ahead.calls, self.options
        flusher.bells.add(bell)
        try:
            while True:
                while ahead.more and len(calls) <= options.batch_size:
                    flusher.put_all(ahead.read(options.batch_size), loop)
                    if not ahead.more:
                        flusher.flush()  # nothing of this map will join what is left
                if not calls:
                    break
                if hasattr(calls[0], "error"):
                    yield calls.popleft().outcome()
                else:
                    if options.fills_by_groups and flusher.buffer.waits_for_company(calls[0]):
                        flusher.flush()
                    await bell.wait()
            ahead.raise_error()
        finally:
            flusher.bells.discard(bell)
            for call in calls:
                flusher.withdraw(call)

    async def _map_async(
        self,
        items: AsyncIterator[Any],
        owner: object,  # noqa: ARG002
        constants: Mapping[str, Any],
    ) -> AsyncGenerator[Any, None]:
        # One task reads all items, while this waits for results: a result must not wait for the next item to come, and
        # a generator must not find itself in another task at each of its steps (timeouts and cancel scopes forbid it).
        loop, flusher = self.here()
        calls: deque[MapCall] = deque()
        bell, room = LoopBell(), LoopBell()
        more = True
        ask = partial(flusher.ask, constants=constants)

        async def read() -> None:
            with suppress(StopAsyncIteration):
                while True:
                    while len(calls) >= 2 * self.options.batch_size:
                        if self.options.fills_by_groups and flusher.buffer.waits_for_company(calls[0]):
                            flusher.flush()
                        await room.wait()
                    call = MapCall(await anext(items), bell.ring)
                    if not more:
                        return  # this was cancelled, and the items took no notice
                    if not self.asks or is_sound(call, ask):
                        flusher.put_all((call,), loop)
                    calls.append(call)
                    if hasattr(call, "error"):
                        bell.ring()
                    del call

        def ended(_: object) -> None:
            if more:
                flusher.flush()  # nothing of this map will join what is left
            bell.ring()

        reader = loop.create_task(read(), name=f"batchify reader of a map of {self.name}()")
        reader._log_destroy_pending = False  # type: ignore[attr-defined]  # as for a batch
        reader.add_done_callback(ended)
        flusher.bells.add(room)
        try:
            while calls or not reader.done():
                if calls and hasattr(calls[0], "error"):
                    room.ring()
                    yield calls.popleft().outcome()
                else:
                    await bell.wait()
            await reader  # raises what the items raised
        finally:
            more = False
            flusher.bells.discard(room)
            reader.cancel()
            for call in calls:
                flusher.withdraw(call)
            await asyncio.wait([reader])

    def flush(self) -> None:
        """Make what waits due now, in all loops; may be called from any thread."""
        self._everywhere(LoopFlusher.flush)

    async def aclose(self) -> None:
        """Refuse what comes, in all loops, and wait until what this one accepted is answered."""
        self._closed = True
        self._everywhere(LoopFlusher.close)
        flusher = self._flushers.get(asyncio.get_running_loop())
        if flusher is not None:
            await flusher.closed()

    @property
    def batch_size(self) -> int:
        return self.options.batch_size

    @batch_size.setter
    def batch_size(self, value: int) -> None:
        self.options.batch_size = check_count(self.name, "batch_size", value)
        self._everywhere(LoopFlusher.adapt)

    @property
    def timeout(self) -> float | None:
        return self.options.timeout

    @timeout.setter
    def timeout(self, value: float | None) -> None:
        self.options.timeout = check_timeout(self.name, value)
        self._everywhere(LoopFlusher.adapt)

    @property
    def stats(self) -> Stats:
        with _lock:
            self._forget_closed_locked()
            buffers = [flusher.buffer for flusher in self._flushers.values()]
            return self.tally.snapshot(sum(map(len, buffers)))


def _forget_parent() -> None:
    """Begin anew in a forked child: the lock may be held by a thread that does not exist here."""
    global _lock
    _lock = RLock()
    for batcher in _live:
        batcher._start_clean()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_parent)
