"""How do coroutines wait?

Two ways in: `AioCall` for a function that runs in a flush thread, `LoopEngines` for a coroutine function. Imported with
the first use.

A coroutine function has an engine for each event loop it is called on, whose owner is that loop:
  - it begins with the loop's first item, and goes with the loop;
  - it runs no thread. A timer is set while a batch is open, and each batch runs in a task of its own;
  - what waits in a loop that closes stays unanswered, since nobody can hear an answer there;
  - after a fork: the child has none, and starts its own with its first item.
"""

import asyncio
import os
import weakref
from _thread import get_ident
from asyncio import BaseEventLoop, Future, _get_running_loop, current_task, get_running_loop
from collections import deque
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Callable,
    Collection,
    Coroutine,
    Generator,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import suppress
from contextvars import Context
from functools import partial
from itertools import islice
from math import inf
from operator import attrgetter
from time import monotonic
from types import coroutine
from typing import Any

from ._batch import Batch, Call, MapCall
from ._engine import Ahead, Controls, Engine
from ._inside import Runner, current, here
from ._options import MISSING, NO_CONSTANTS, Options, Takes, given
from ._stats import Stats, Tally

get_runner = current.get
loop_of = attrgetter("loop")
_live: "weakref.WeakSet[LoopEngines]" = weakref.WeakSet()
# Strong references to the engines where something waits, but that no timer and no task holds.
_held: "set[LoopEngine]" = set()


class LoopCall(Call):
    """A call whose caller awaits `future`, on the loop that owns the buffer."""

    __slots__ = ("__weakref__", "future", "owner")

    future: "asyncio.Future[Any]"
    owner: object  # kept alive, since its method must answer this

    def has_left(self) -> bool:
        return self.future.done()

    def is_over(self) -> bool:
        return self.future.done()

    def leave(self) -> None:
        self.future.cancel()

    @staticmethod
    def tell(calls: Sequence[Any], results: Sequence[Any], failed: int) -> None:
        for call, result in zip(calls, results, strict=True):
            try:
                if failed and issubclass(type(result), BaseException):
                    call.future.set_exception(result)
                    call.future.exception()  # as if asked for: an error must not be logged once for each item
                else:
                    call.future.set_result(result)
            except (
                asyncio.InvalidStateError,
                RuntimeError,
            ):  # its caller has left, or a stranger did it; the loop is closed
                pass


class SubmitCall(LoopCall):
    """The same, where who holds the future may cancel it without a word."""

    __slots__ = ()


class AioCall(Call):
    """A call whose caller awaits `future` on `loop`, and which a thread answers."""

    __slots__ = ("__weakref__", "future", "loop")

    future: "asyncio.Future[Any]"
    loop: asyncio.AbstractEventLoop

    def is_over(self) -> bool:
        return self.future.done()

    @staticmethod
    def tell(calls: Sequence["AioCall"], results: Sequence[Any], failed: int) -> None:
        # One message for each batch and loop: a message wakes the loop, and costs several times what the rest does.
        loops = set(map(loop_of, calls))
        for loop in loops:
            there, answers = calls, results
            if len(loops) > 1:
                mine = [each for each in zip(calls, results, strict=True) if each[0].loop is loop]
                there, answers = zip(*mine, strict=True)
            with suppress(RuntimeError):  # the loop is closed, so nobody waits; asking beforehand would be a race
                loop.call_soon_threadsafe(LoopCall.tell, there, answers, failed)


def aio_of(name: str, takes: Takes, submit: Callable[..., Any]) -> Callable[..., Coroutine[Any, Any, Any]]:
    """Return a coroutine function that passes an item to an engine by `submit(engine, item, ...)`; awaits its result.

    Its first argument is the engine, and the owner whose method must answer: so a coroutine keeps both alive, and the
    function, made once, neither.
    """
    plain, bind = takes.plain, takes.bind

    async def aio(of: tuple[Any, object], item: Any = MISSING, /, *args: Any, **kwargs: Any) -> Any:
        engine, constants = of[0], NO_CONSTANTS
        if not plain or args or kwargs or item is MISSING:
            item, constants = bind(*given(item, args), **kwargs)
        call = submit(engine, item, None, constants, LoopCall)
        try:
            return await call.future
        except (asyncio.CancelledError, GeneratorExit):
            engine.withdraw(call)
            raise
        finally:
            del call  # an error would know this frame, and the call the error

    aio.__name__ = aio.__qualname__ = name  # for the warning that nobody awaited it, among others
    return aio


def submit_to_thread(engine: Any, item: Any, _: object, constants: Mapping[str, Any], __: object) -> AioCall:
    """Pass an item to a ThreadEngine from the running event loop."""
    call = AioCall()
    call.item = item
    try:
        call.loop = loop = get_running_loop()
    except RuntimeError:
        raise no_loop_error(f"{engine.name}.aio") from None
    call.future = Future(loop=loop) if get_runner() is None else InsideFuture(call, engine, loop)
    try:
        if get_runner() is None and not engine.asks and not engine.closed:  # as most are: a step less
            engine.post((call,))
        else:
            engine.ask(call, constants)
            engine.put((call,), waits=True)
    except BaseException:
        call.future.cancel()  # so it is over
        raise
    return call


def no_loop_error(name: str) -> RuntimeError:
    return RuntimeError(f"{name}() is a coroutine function: call it where an event loop runs")


async def when_answered(of: Any, timeout: float | None) -> None:
    """Wait until an engine, or of several the one of this loop, has answered what it accepted.

    Not from inside a function for which it would wait.
    """
    loop = get_running_loop()
    engine = of._engines.get(loop) if type(of) is LoopEngines else of
    if engine is None:
        return
    call = AioCall()
    call.loop, runner = loop, here()
    call.future = Future(loop=loop) if runner is None else InsideFuture(call, engine, loop)
    try:
        waits = runner is None or not runner.would_wait_for_itself(engine, call)
        if not engine.when_answered(partial(AioCall.tell, (call,), (None,), 0)) or not waits:
            return
        await asyncio.wait([call.future], timeout=timeout)
        if not call.future.done():
            raise TimeoutError(engine.late_message(timeout))
        call.future.exception()  # else Python would complain that nobody asked: a ring may have closed meanwhile
    finally:
        call.future.cancel()


class InsideFuture(asyncio.Future[Any]):
    """The future of an item that was passed inside a function: it tells who waits for it there."""

    def __init__(self, call: Call, engine: Any, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop=loop)
        self._known = weakref.ref(engine), weakref.ref(call)

    def add_done_callback(self, *args: Any, **context: Any) -> None:
        super().add_done_callback(*args, **context)
        runner, (engine, call) = here(), [known() for known in self._known]
        if runner is not None and call is not None and engine is not None and not self.done():
            runner.note(engine, call, self.get_loop())

    def remove_done_callback(self, *args: Any) -> int:
        runner, (engine, call) = here(), [known() for known in self._known]
        if runner is not None and not self.done():
            runner.forget(engine, call)
        return super().remove_done_callback(*args)


class LoopBatch(Batch, Runner):
    """A batch that runs in a task, in a context of its own."""

    accepts = "a list or other sequence, a mapping from item to result, or an iterator, asynchronous or not"

    engine: "LoopEngine"
    task: "asyncio.Task[None]"
    lender: "LoopBatch | None" = None  # on whose turn it runs
    borrower: "LoopBatch | None" = None  # which runs on its turn
    has_lent = False  # that one may not have begun yet

    def lend(self) -> bool:
        for lender, engine, call in self.to_lend():
            if type(lender) is LoopBatch and lender.thread == self.thread:
                engine.lend(call, lender)
            else:
                lender.wake()
        return False

    def watch(self, _: object = None) -> None:
        """Cancel the task if all callers have left: they post that, or, for submit(), their futures tell it."""
        entries = self.to_answer[0] if self.to_answer else ()
        if self.engine is None or not entries:
            return  # it has ended, or all have their answers
        for call in self.calls(entries):
            if not call.is_over():
                if type(call) is SubmitCall:
                    asyncio.Future.add_done_callback(call.future, self.watch, context=self.engine.context)
                return
        self.task.cancel()


@coroutine
def _begun() -> Generator[None, None, None]:
    yield


class LoopEngine(Engine):
    """Gathers the items of the coroutines of one event loop, and runs the function there.

    Beside `wake_at` stands `alarm_at`, the moment at which the timer wakes the owner. A call that comes later finds
    that the timer did not, as Ctrl-C may have struck it, and rings.
    """

    make_batch = LoopBatch

    def __init__(self, of: "LoopEngines", loop: asyncio.AbstractEventLoop) -> None:
        self.of = of
        self.loop = weakref.ref(loop)  # `of` keeps this as long as the loop lives
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = inf
        self._next: asyncio.Task[None] | None = None  # the one that will take the next batch, and has not begun yet
        self._due_since = -inf  # by a timer, which may be a little early (uvloop counts in milliseconds)
        self._watched: SubmitCall | None = None
        self.has_usual_clock = getattr(loop.time, "__func__", None) is BaseEventLoop.time  # of a class, or of its own
        self.context = Context()  # for callbacks, which would keep that of the caller
        self.tally = of.tally
        super().__init__(of.function, of.name, of.options, of.takes)
        self.buffer.ends = of.closed

    @property
    def closed(self) -> bool:  # type: ignore[override]
        return self.of.closed

    def now(self) -> float:
        loop = self.loop()
        return 0.0 if loop is None else loop.time()

    def forget(self) -> None:
        """Count what has no answer, and let go of it: the loop is closed."""
        failed = sum(len(self.buffer.callers(part)) for part in self._parts)
        with self.tally.lock:
            self.tally.cancelled += len(self.buffer.calls())
            self.tally.answer(failed, failed, False)
        _held.discard(self)
        self.begin_anew()

    # Waking

    def ring(self) -> None:
        loop = self.loop()
        if loop is None:
            return
        with suppress(RuntimeError):  # the loop is closed
            # If a task of it runs here it does not sleep; if not, this may be a signal handler while it does.
            runs_here = _get_running_loop() is loop and current_task(loop) is not None
            (loop.call_soon if runs_here else loop.call_soon_threadsafe)(self.look, loop, context=self.context)

    def post(self, calls: Sequence[Any]) -> None:
        loop = get_running_loop()
        now = loop.time()
        for call in calls:
            call.arrival = now
        self.inbox.extend(calls)
        if len(self.inbox) >= self.wake_at or now >= self.alarm_at:
            self.wake(loop)

    def wake(self, loop: asyncio.AbstractEventLoop) -> None:
        """Look at once. While the owner looks, wake_at and alarm_at are inf, so this is never in the midst of that."""
        if current_task(loop) is not None:
            self.look(loop)
        else:  # perhaps a signal handler, while the loop sleeps
            self.ring()

    def look(self, loop: asyncio.AbstractEventLoop, moment: float = -inf) -> None:
        """See to it that what waits is taken when it is due. `moment`: what the timer was set to that called this."""
        try:
            waits = len(self.inbox) + len(self.buffer.waiting)
            is_full = waits >= self.options.batch_size and self.buffer.is_inbox  # else they may be of several groups
            is_free = len(self._running) < self.concurrency
            if is_free and (is_full or (waits and self.options.timeout == 0.0)):
                self.wake_at = self.alarm_at = inf
                if self._next is None:
                    self._start(loop)  # almost certainly due; if it is not, its task looks again
            elif waits or self.news or self._drains or self._parts or self._timer or self._running or self.buffer.ends:
                if not loop.is_closed() and self.next(max(loop.time(), moment)) is None:
                    self.buffer.ends = self.closed  # who dropped the function may have kept `f.aio`
                    self.say_end()
            else:  # nothing to do, as so often after a batch: what next() would do
                _held.discard(self)
                self.wake_at, self.alarm_at = 1, inf
                if self.inbox or self.news:
                    self.look(loop)
        except BaseException:  # Ctrl-C, a recursion limit, no memory
            self.alarm_at = -inf  # whoever comes next rings
            raise

    def sleep_until(self, moment: float, head: Any) -> None:
        if moment != self._timer_at:
            self._set_timer(moment)
        if head is not None and self._timer is None:
            _held.add(self)
        else:
            _held.discard(self)
        if type(head) is SubmitCall and head is not self._watched:
            # Who holds its future may cancel it without a word: then there may be nothing to wait for.
            self._watched = head
            Future.add_done_callback(head.future, self._head_is_done, context=self.context)
        self.alarm_at = moment

    def _head_is_done(self, future: "Future[Any]") -> None:
        self._watched, loop = None, self.loop()
        if future.cancelled() and loop is not None:
            self.look(loop)

    def _set_timer(self, moment: float) -> None:
        timer, loop = self._timer, self.loop()
        self._timer, self._timer_at = None, inf
        if timer is not None:
            timer.cancel()
        if moment < inf and loop is not None:
            self._timer = loop.call_at(moment, self.look, loop, moment, context=self.context)
            self._timer_at = moment

    def _begin(self, now: float) -> Batch | None:
        loop = self.loop()
        if self._next is None and loop is not None and (self._parts or self.buffer.due(now)):
            self._due_since = now
            self._start(loop)
        return self._next  # type: ignore[return-value]  # if there is one it looks next, so there is nothing to wake for

    def _start(self, loop: asyncio.AbstractEventLoop, awaited: Any = None, lender: LoopBatch | None = None) -> None:
        """Start a task that will take the next batch, as late as can be; or on a lent turn one that is `awaited`."""
        steps = self._turn(loop, awaited, lender)
        # Up to its _begun(), so that it hears of all that happens before its task's first step: it may be cancelled, or
        # the loop closed, of which Python would complain.
        steps.send(None)
        # Not loop.create_task(): a task factory may know no context, and an eager one would run the function in the
        # midst of its first caller.
        task = asyncio.Task(steps, loop=loop, name=self.of.task_name, context=Context())
        task._log_destroy_pending = False  # type: ignore[attr-defined]  # if the loop is closed, its owner wanted that
        if lender is None:
            self._next = task

    async def _turn(self, loop: asyncio.AbstractEventLoop, awaited: Any, lender: LoopBatch | None) -> None:
        """Run the batch that is due; or on a lent turn the next one on the way to the call that is `awaited`."""
        batch: Any = None
        task = None
        try:
            await _begun()
            now = max(loop.time(), self._due_since)
            if lender is None:
                task = self._next
                self._next = None
                batch = self._take_due(now, self._take)
            elif lender.thread is not None:  # else it has ended, and with it its turn
                task = current_task(loop)
                batch = self._take_due(now, partial(self._take, awaited=awaited), lent=True)
                if batch is not None:
                    lender.borrower, batch.lender = batch, lender
            self._disturbed = False
            if batch is not None:
                batch.task = task
            if batch is None or self.concurrency > 1:
                self.look(loop)  # another one may be due
            elif self._timer is not None:
                self._set_timer(inf)
            if batch is not None:
                batch.thread, batch.awaits, batch.noted, batch.runner = get_ident(), deque(), [], batch
                current.set(batch)
                self.runners[batch] = None
                if SubmitCall in map(type, batch.to_answer[0]):
                    batch.watch()
                await batch.run_async(self.function)
                batch = None
                self.look(loop)
        except BaseException as error:  # it was cancelled, or Ctrl-C struck a loop that is run by hand
            if lender is None and (task is None or task is self._next):
                self._next = None
            if batch is not None:
                batch.fail(error)
                self.ended(batch)  # once more, if it was struck just there
                batch = None  # a cycle
            for lost in (self._running.keys() | self._lent.keys()) - set(map(id, self.runners)):
                self._running.pop(lost, None)
                self._lent.pop(lost, None)
            self.alarm_at = -inf
            self.ring()
            raise
        finally:
            if here() is None:  # else this was left behind, and is closed as garbage in the midst of another runner
                current.set(None)  # a cycle: task, context, batch
            if lender is not None:
                self.take_back(lender)

    # Batches

    def claim(self, calls: list[Any]) -> list[Any]:
        if self.has_leavers:
            return super().claim(calls)
        for call in calls:
            if type(call) is not MapCall and call.future.done():  # without a word, or with one that comes later
                return super().claim(calls)
        return calls

    def ended(self, batch: Any) -> None:
        self.runners.pop(batch, None)
        self.turn_ended(batch)
        batch.thread, batch.awaits = None, deque()
        if batch.has_lent or batch.lender is not None:
            self.pass_on(batch)

    def pass_on(self, batch: LoopBatch) -> None:
        """See to the turn that a batch which has ended had lent, or was lent."""
        lender, borrower = batch.lender, batch.borrower
        batch.lender = batch.borrower = None
        if borrower is not None:  # it goes on, on the turn that this had
            borrower.lender = lender
            if lender is None:
                self._running[id(borrower)] = self._lent.pop(id(borrower))
        if lender is not None:
            lender.borrower = borrower
            self.take_back(lender)

    def take_back(self, lender: LoopBatch) -> None:
        """Let a batch have its turn back, unless another one runs on it; it may lend it once more."""
        loop = self.loop()
        if lender.borrower is None and loop is not None:
            lender.has_lent = False
            lender.look_soon(loop)

    def left(self, call: Call) -> None:
        super().left(call)
        for batch in list(self.runners):
            batch.watch()

    def is_at_work(self) -> bool:
        return bool(self._running or len(self.buffer) or self._parts)

    def held_up_by(self, *, at_all: bool = False) -> Collection[Runner]:
        if at_all:
            return self.runners.copy().keys()
        # Of many that call each other, the latest have the turns.
        latest = (each for each in reversed(self.runners.copy()) if not each.has_lent)
        return () if self.has_turn else list(islice(latest, self.concurrency))

    def lend(self, call: LoopCall, lender: LoopBatch) -> None:
        """Let the next batch on the way to a call run on the turn of a batch that waits."""
        loop = self.loop()
        if loop is not None and not lender.has_lent:
            lender.has_lent = True
            self._start(loop, call, lender)


class LoopAhead(Ahead):
    """What a map has read that a task iterates."""

    async def sleep(self, bell: asyncio.Event) -> None:
        """Wait until there is an answer, or the settings have changed."""
        runner, call = here(), next(iter(self.calls), None)
        if runner is not None and call is not None:
            runner.note(self._engine, call, get_running_loop())
        try:
            await bell.wait()
            bell.clear()
        finally:
            if runner is not None and call is not None:
                runner.forget(self._engine, call)


class LoopEngines(Controls):
    """The engines of a coroutine function, one for each event loop it is called on."""

    def __init__(self, function: Callable[..., Any], name: str, options: Options, takes: Takes) -> None:
        self.function = function
        self.name = name
        self.options = options
        self.takes = takes
        self.task_name = f"batchify task of {name}()"
        self.closed = False
        self.blocks: list[None] = []
        self.aio = aio_of(name, takes, LoopEngines.submit)
        self.begin_anew()
        _live.add(self)

    def begin_anew(self) -> None:
        self.tally = Tally()
        self._engines: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, LoopEngine] = weakref.WeakKeyDictionary()
        self._latest: LoopEngine | None = None

    def _of(self, loop: asyncio.AbstractEventLoop) -> LoopEngine:
        engine = self._latest
        if engine is None or engine.loop() is not loop:
            engine = self._engines.get(loop)
            if engine is None:
                self._all()  # forgets those of closed loops
                engine = self._engines.setdefault(loop, LoopEngine(self, loop))
            self._latest = engine
        return engine

    def _all(self) -> list[LoopEngine]:
        """Return the engines, and forget those of closed loops: they may hold futures, and these the loop for ever."""
        found = []
        for reference in self._engines.keyrefs():
            loop = reference()
            engine = None if loop is None else self._engines.get(loop)
            if engine is not None and loop is not None:
                if not loop.is_closed():
                    found.append(engine)
                elif self._engines.pop(loop, None) is not None:
                    self._latest = None
                    engine.forget()
        return found

    def flush(self) -> None:
        """Make due what waits, in all loops; any thread may call."""
        for engine in self._all():
            engine.flush()

    # What callers do

    def submit(
        self, item: Any, owner: object, constants: Mapping[str, Any] = NO_CONSTANTS, kind: type[LoopCall] = SubmitCall
    ) -> LoopCall:
        """Pass an item to the running event loop."""
        try:
            loop = get_running_loop()
        except RuntimeError:
            raise no_loop_error(self.name) from None
        engine = self._latest
        if engine is None or engine.loop() is not loop:
            engine = self._of(loop)
        call = kind()
        call.item, call.owner = item, owner
        runner = get_runner()
        call.future = Future(loop=loop) if runner is None else InsideFuture(call, engine, loop)
        try:
            if engine.asks:
                engine.ask(call, constants)
            if runner is not None or self.closed or (engine.bounded and engine.is_full()):
                engine.put((call,), waits=kind is LoopCall)
            else:  # what put() and post() would do, written out, as everybody pays for each step here
                call.arrival = now = monotonic() if engine.has_usual_clock else loop.time()
                inbox = engine.inbox
                inbox.append(call)
                if len(inbox) >= engine.wake_at or now >= engine.alarm_at:
                    engine.wake(loop)
        except BaseException:
            call.future.cancel()
            raise
        return call

    def withdraw(self, call: LoopCall) -> None:
        """Let a caller leave."""
        with suppress(RuntimeError):  # no loop runs, and the garbage collector ended this
            self._of(get_running_loop()).withdraw(call)

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
        owner: object,  # noqa: ARG002 - kept alive, as its method must answer
        constants: Mapping[str, Any],
    ) -> AsyncGenerator[Any, None]:
        bell = asyncio.Event()
        ahead = self._ahead(constants, bell)
        try:
            while ahead.reads(items):
                results = ahead.take()
                if not results:
                    await ahead.sleep(bell)
                while results:
                    yield results.popleft()
        finally:
            ahead.end()

    async def _map_async(
        self,
        items: AsyncIterator[Any],
        owner: object,  # noqa: ARG002
        constants: Mapping[str, Any],
    ) -> AsyncGenerator[Any, None]:
        # One task reads all items, while this waits for results: a result must not wait for the next item to come, and
        # a generator must not find itself in another task at each of its steps (timeouts and cancel scopes forbid it).
        bell, room = asyncio.Event(), asyncio.Event()
        ahead = self._ahead(constants, bell)

        async def read() -> None:
            async for item in items:
                if not ahead.more:
                    return  # this was cancelled, and the items took no notice
                ahead.put((item,))
                del item
                while ahead.is_full:
                    ahead.make_due()
                    await room.wait()
                    room.clear()

        def ended(_: object) -> None:
            ahead.has_ended()
            bell.set()

        reader = get_running_loop().create_task(read())
        reader.set_name(f"batchify reader of a map of {self.name}()")  # afterwards: a task factory may know no name
        reader._log_destroy_pending = False  # type: ignore[attr-defined]  # as for a batch
        reader.add_done_callback(ended)
        try:
            while ahead.calls or not reader.done():
                results = ahead.take(1)
                room.set()
                if not results:
                    await ahead.sleep(bell)
                while results:
                    yield results.popleft()
            await reader  # raises what the items raised
        finally:
            ahead.end()
            reader.cancel()
            await asyncio.wait([reader])

    def _ahead(self, constants: Mapping[str, Any], bell: asyncio.Event) -> "LoopAhead":
        return LoopAhead(self._of(get_running_loop()), constants, bell.set)

    @property
    def stats(self) -> Stats:
        return self.tally.read(self._waiting)

    def _waiting(self) -> tuple[int, int]:
        waiting = [engine.waiting() for engine in self._all()]
        return sum(pending for pending, _ in waiting), sum(left for _, left in waiting)


def _forget_parent() -> None:
    """Begin anew in a forked child."""
    for engines in _live:
        engines.begin_anew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_parent)
