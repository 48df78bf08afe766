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
import weakref
from _thread import get_ident
from asyncio import AbstractEventLoop, BaseEventLoop, Future, _get_running_loop, current_task, get_running_loop
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Coroutine, Generator, Iterable, Mapping, Sequence
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
from ._engine import Ahead, Controls, Engine, begin_anew_in_children, is_on_trio
from ._inside import Runner, current, here
from ._options import MISSING, NO_CONSTANTS, Options, Takes, given
from ._stats import Stats, Tally

get_runner = current.get
loop_of = attrgetter("loop")
_live: "weakref.WeakKeyDictionary[LoopEngines, None]" = weakref.WeakKeyDictionary()
# Strong references to the engines where something waits, but that no timer and no task holds.
_held: "set[LoopEngine]" = set()


class LoopCall(Call):
    """A call whose caller awaits `future`, on the loop that owns the buffer."""

    __slots__ = ("__weakref__", "future", "owner")

    future: "asyncio.Future[Any]"
    owner: object  # kept alive, since its method must answer this

    def has_left(self) -> bool:
        return self.future.done()

    is_over = has_left

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
            # Its caller has left, or a stranger did it; or the loop is closed.
            except (asyncio.InvalidStateError, RuntimeError):
                pass


class SubmitCall(LoopCall):
    """The same, where who holds the future may cancel it without a word."""

    __slots__ = ("is_watched",)

    is_watched: bool


class AioCall(LoopCall):
    """A call whose caller awaits `future` on `loop`, and which a thread answers."""

    __slots__ = ("loop",)

    loop: AbstractEventLoop
    # Not by its future, as the garbage collector may do so on any thread; is_over() goes by the future.
    has_left, leave = Call.has_left, Call.leave

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
        """Await an item's result, from any event loop; see `BatchedFunction.aio`."""
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
    loop = _get_running_loop()
    if loop is None:
        raise no_loop_error(f"{engine.name}.aio")
    call = AioCall()
    call.item, call.loop, runner = item, loop, get_runner()
    call.future = Future(loop=loop) if runner is None else InsideFuture(call, engine, loop)
    try:
        if runner is None and not engine.asks and not engine.closed:  # as most are: a step less
            engine.post((call,))
        else:
            engine.ask(call, constants)
            engine.put((call,), waits=True)
    except BaseException:
        call.future.cancel()  # so it is over
        raise
    return call


def no_loop_error(name: str) -> RuntimeError:
    if is_on_trio():
        return RuntimeError(
            f"{name}() needs an event loop of asyncio, and this one is trio's: there, a `def` function can be awaited "
            f"with `await trio.to_thread.run_sync({name.removesuffix('.aio')}, item)`"
        )
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

    def __init__(self, call: Call, engine: Any, loop: AbstractEventLoop) -> None:
        super().__init__(loop=loop)
        self._known = weakref.ref(engine), weakref.ref(call)

    def add_done_callback(self, *args: Any, **context: Any) -> None:
        super().add_done_callback(*args, **context)
        self._tell_runner(Runner.note, self.get_loop())

    def remove_done_callback(self, *args: Any) -> int:
        self._tell_runner(Runner.forget)
        return super().remove_done_callback(*args)

    def _tell_runner(self, what: Callable[..., None], *args: Any) -> None:
        runner, (engine, call) = here(), [known() for known in self._known]
        if runner is not None and engine is not None and call is not None and not self.done():
            what(runner, engine, call, *args)


class LoopBatch(Batch, Runner):
    """A batch that runs in a task, in a context of its own."""

    accepts = "a list or other sequence, a mapping from item to result, or an iterator, asynchronous or not"

    task: "asyncio.Task[None]"

    def lend(self) -> bool:
        for lender, engine, call in self.to_lend():
            if type(lender) is not LoopBatch or lender.thread != self.thread:
                lender.wake()
            elif not lender.has_lent:
                engine.start(get_running_loop(), -inf, lender, call)
        return False

    def watch(self) -> None:
        """Cancel the task if all callers have left."""
        for entries in self.to_answer:
            waits = next((call for call in self.calls(entries) if not call.is_over()), None)
            if waits is not None:
                self.engine.watch(waits)
            elif entries:  # else all have their answers
                self.task.cancel()


@coroutine
def _begun() -> Generator[None, None, None]:
    yield


class LoopEngine(Engine):
    """Gathers the items of the coroutines of one event loop, and runs the function there.

    Beside `wake_at` stands `alarm_at`, the moment at which the timer wakes the owner: inf without a timer, and -inf
    after the owner's step was cut short. A call that comes later finds that the timer did not, as Ctrl-C may have
    struck it, and rings.
    """

    make_batch = LoopBatch
    closed = property(attrgetter("of.closed"))  # pyright: ignore[reportAssignmentType]

    def __init__(self, of: "LoopEngines", loop: AbstractEventLoop) -> None:
        self.of = of
        self.loop = weakref.ref(loop)  # `of` keeps this as long as the loop lives
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = inf
        self._starting: asyncio.Task[None] | None = None  # will take the next batch in its first step, still to come
        # No if the loop's class, or the loop itself, has another time(), which must be asked then.
        self.has_usual_clock = getattr(loop.time, "__func__", None) is BaseEventLoop.time
        self.context = Context()  # for callbacks, which would keep that of the caller
        self.tally = of.tally
        super().__init__(of.function, of.name, of.options, of.takes)
        self.buffer.ends = of.closed

    def now(self) -> float:
        loop = self.loop()
        return 0.0 if loop is None else loop.time()

    def forget(self) -> None:
        """Count what has no answer, and let go of it: the loop is closed."""
        failed = sum(len(self.buffer.calls_of(part)) for part in self._halves)
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

    def wake(self, loop: AbstractEventLoop) -> None:
        """Look at once. While the owner looks, wake_at and alarm_at are inf, so this is never in the midst of that."""
        if current_task(loop) is not None:
            self.look(loop)
        else:  # perhaps a signal handler, while the loop sleeps
            self.ring()

    def look(self, loop: AbstractEventLoop, moment: float = -inf) -> None:
        """See to it that what waits is taken when it is due. `moment`: what the timer was set to that called this."""
        try:
            waits = len(self.inbox) + len(self.buffer.waiting)
            is_full = waits >= self.options.batch_size and self.buffer.is_inbox  # else they may be of several groups
            is_free = len(self._running) < self.concurrency
            if is_free and (is_full or (waits and self.options.timeout == 0.0)):
                self.wake_at = self.alarm_at = inf
                if self._starting is None:
                    self.start(loop, moment)  # almost certainly due; if it is not, its task looks again
            elif waits or self.news or self._drains or self._halves or self._timer or self._running or self.buffer.ends:
                if not loop.is_closed() and self.next(max(loop.time(), moment)) is None:
                    self.buffer.ends = self.closed  # who dropped the function may have kept `f.aio`
                    self.say_what_is_answered()
            else:  # nothing to do, as so often after a batch: what next() would do
                _held.discard(self)
                self.wake_at, self.alarm_at = 1, inf
                if self.inbox or self.news:
                    self.look(loop)
        except BaseException:  # Ctrl-C, a recursion limit, no memory
            self.alarm_at = -inf  # whoever comes next rings
            raise

    def sleep_until(self, moment: float, head: Any) -> None:
        loop = self.loop()
        if moment != self._timer_at and loop is not None:
            self._timer_at = inf
            if self._timer is not None:
                self._timer.cancel()
            self._timer = None if moment == inf else loop.call_at(moment, self.look, loop, moment, context=self.context)
            self._timer_at = moment
        hold = _held.add if head is not None and self._timer is None else _held.discard
        hold(self)
        self.watch(head)
        self.alarm_at = moment

    def watch(self, call: Any) -> None:
        """Hear of it if that caller leaves without a word, as who holds the future of submit() may."""
        if type(call) is SubmitCall and not hasattr(call, "is_watched"):
            call.is_watched = True
            done = partial(self._future_done, weakref.ref(call))
            Future.add_done_callback(call.future, done, context=self.context)

    def _future_done(self, known: Callable[[], Any], future: "Future[Any]") -> None:
        call = known()
        if future.cancelled() and call is not None:
            self.post_news(self.left, call)

    def _begin(self, now: float) -> Any:
        loop = self.loop()
        if self._starting is None and loop is not None and (self._halves or self.buffer.due(now)):
            self.start(loop, now)
        return self._starting  # if there is one it looks next, so there is nothing to wake for

    def start(self, loop: AbstractEventLoop, now: float, lender: LoopBatch | None = None, awaited: Any = None) -> None:
        """Start a task for a _turn(), which takes a batch as late as can be."""
        if lender is not None:
            lender.turn = lender.turn or [id(lender)]
            lender.turn.append(0)
        steps = self._turn(loop, now, lender, awaited)
        # Up to its _begun(), so that it hears of all that happens before its task's first step: it may be cancelled, or
        # the loop closed, of which Python would complain.
        steps.send(None)
        # Not loop.create_task(): a task factory may know no context, and an eager one would run the function in the
        # midst of its first caller.
        task = asyncio.Task(steps, loop=loop, name=self.of.task_name, context=Context())
        task._log_destroy_pending = False  # type: ignore[attr-defined]  # if the loop is closed, its owner wanted that
        if lender is None:
            self._starting = task

    async def _turn(self, loop: AbstractEventLoop, now: float, lender: LoopBatch | None, awaited: Any) -> None:
        """Run the batch that is due; or on the turn of a `lender` the next one on the way to a call that is `awaited`.

        `now`: the moment at which it was found to be due, as a timer may be early (uvloop counts in milliseconds).
        """
        batch: Any = None
        task: Any = None
        turn: Any = None if lender is None else lender.turn
        try:
            await _begun()
            now = max(loop.time(), now)
            if lender is None:
                task, self._starting = self._starting, None
                batch = self._take_due(now, self._take)
            else:
                if lender.thread is not None:  # else it has ended, and with it its turn
                    batch = self._take_due(now, partial(self._take, awaited=awaited), lent=True)
                if batch is not None:
                    task, batch.turn, turn[-1] = current_task(loop), turn, id(batch)
                    lender = None  # so its turn is not given back below
            self._must_repair = False
            if batch is None or self.concurrency > 1:
                self.look(loop)  # another one may be due
            elif self._timer is not None:
                self.sleep_until(inf, None)
            if batch is not None:
                batch.task, batch.thread = task, get_ident()
                batch.awaits, batch.noted, batch.runner = [], [], batch
                current.set(batch)
                self.runners[id(batch)] = batch
                if type(batch.to_answer[0][0]) is not LoopCall:  # else they say when they leave
                    batch.watch()
                await batch.run_async(self.function)
                batch = None
                self.look(loop)
        except BaseException as error:  # it was cancelled, or Ctrl-C struck a loop that is run by hand
            if task is None and lender is None:
                self._starting = None  # it had not begun
            if batch is not None:
                batch.fail(error)
                self.ended(batch)  # once more, if it was struck just there
                batch = None  # a cycle
            for lost in (self._running.keys() | self._lent.keys()) - self.runners.keys():
                self._running.pop(lost, None)
                self._lent.pop(lost, None)
            self.alarm_at = -inf
            self.ring()
            raise
        finally:
            if lender is not None:  # nothing was taken
                turn.pop()
                self._take_back(turn)

    # Batches

    def claim(self, calls: list[Any]) -> list[Any]:
        if self.has_leavers:
            return super().claim(calls)
        for call in calls:
            if type(call) is not MapCall and call.future.done():  # without a word, or with one that comes later
                return super().claim(calls)
        return calls

    def ended(self, batch: Any) -> None:
        self.runners.pop(id(batch), None)
        turn = batch.leave_turn()
        self.turn_ended(batch, turn)
        self._take_back(turn)
        batch.task = batch.thread = None  # the task knows the context, and that this: a cycle
        batch.awaits = []

    def _take_back(self, turn: list[int] | None) -> None:
        """Let the batch that has lent a turn have it back; it may lend it once more."""
        loop, lender = self.loop(), self.runners.get(turn[-1]) if turn else None
        if lender is not None and loop is not None and not loop.is_closed():
            lender.look_soon(loop)

    def left(self, call: Call) -> None:
        super().left(call)
        for batch in list(self.runners.values()):
            batch.watch()

    def is_at_work(self) -> bool:
        return bool(self._running or len(self.buffer) or self._halves)

    def held_up_by(self, *, at_all: bool = False) -> list[Any]:
        if at_all:
            return list(self.runners.values())
        # Who has lent its turn has none. That may leave too many, for a moment: then the latest have the turns.
        latest = (each for each in reversed(self.runners.copy().values()) if not each.has_lent)
        return [] if self.has_turn else list(islice(latest, self.concurrency))


class LoopAhead(Ahead):
    """What a map has read that a task iterates."""

    def __init__(self, engine: LoopEngine, constants: Mapping[str, Any], *, returns_errors: bool) -> None:
        self.bell, self.room = asyncio.Event(), asyncio.Event()
        super().__init__(engine, constants, self.bell.set, returns_errors=returns_errors)

    async def read(self, items: AsyncIterable[Any]) -> None:
        """Read all items; in a task of its own."""
        async for item in items:
            if not self.more:
                return  # this was cancelled, and the items took no notice
            self.put((item,))
            del item
            while self.is_full:
                self.make_due()
                await self.room.wait()
                self.room.clear()

    def has_read(self, _: object) -> None:
        """Say that there are no more items, as read() has ended."""
        self.has_ended()
        self.bell.set()

    async def sleep(self) -> None:
        """Wait until there is an answer, or the settings have changed."""
        runner, call = here(), next(iter(self.calls), None)
        if runner is not None and call is not None:
            runner.note(self._engine, call, get_running_loop())
        try:
            await self.bell.wait()
            self.bell.clear()
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
        _live[self] = None

    def begin_anew(self) -> None:
        self.tally = Tally()
        self._engines: weakref.WeakKeyDictionary[AbstractEventLoop, LoopEngine] = weakref.WeakKeyDictionary()
        self._latest: LoopEngine | None = None

    def _of(self, loop: AbstractEventLoop) -> LoopEngine:
        if loop not in self._engines:
            self._all()  # forgets those of closed loops
            self._engines.setdefault(loop, LoopEngine(self, loop))
        self._latest = engine = self._engines[loop]
        return engine

    def _all(self) -> list[LoopEngine]:
        """Return the engines, and forget those of closed loops: they may hold futures, and these the loop for ever."""
        loops = [loop for reference in self._engines.keyrefs() if (loop := reference()) is not None]
        for loop in loops:
            if loop.is_closed() and loop in self._engines:
                with self.tally:  # else its calls would be nowhere for a moment
                    engine = self._engines.pop(loop, None)
                    self._latest = None
                    if engine is not None:
                        engine.forget()
        return [engine for loop in loops if (engine := self._engines.get(loop)) is not None]

    def flush(self) -> None:
        """Make due what waits, in all loops; any thread may call."""
        for engine in self._all():
            engine.flush()

    # What callers do

    def submit(
        self, item: Any, owner: object, constants: Mapping[str, Any] = NO_CONSTANTS, kind: type[LoopCall] = SubmitCall
    ) -> LoopCall:
        """Pass an item to the running event loop."""
        loop = _get_running_loop()
        if loop is None:
            raise no_loop_error(self.name)
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
        constants: Mapping[str, Any],
        *,
        returns_errors: bool,
    ) -> AsyncGenerator[Any, None]:
        """Yield the results of the items in order, reading at most two batches of items ahead."""
        read = aiter(items) if isinstance(items, AsyncIterable) else iter(items)
        return self._map(read, owner, constants, returns_errors)

    async def _map(
        self, items: Any, _owner: object, constants: Mapping[str, Any], returns_errors: bool
    ) -> AsyncGenerator[Any, None]:
        """`_owner`: kept alive, as its method must answer."""
        loop, reader = get_running_loop(), None
        ahead = LoopAhead(self._of(loop), constants, returns_errors=returns_errors)
        if hasattr(items, "__anext__"):
            # One task reads all items, while this waits for results: a result must not wait for the next item to come,
            # and a generator must not find itself in another task at each of its steps (timeouts and cancel scopes
            # forbid it).
            reader = loop.create_task(ahead.read(items))
            reader.set_name(f"batchify reader of a map of {self.name}()")  # afterwards: a task factory may know no name
            reader._log_destroy_pending = False  # type: ignore[attr-defined]  # as for a batch
            reader.add_done_callback(ahead.has_read)
        try:
            while ahead.reads(items) if reader is None else ahead.calls or not reader.done():
                results = ahead.take() if reader is None else ahead.take(1)
                ahead.room.set()
                if not results:
                    await ahead.sleep()
                while results:
                    yield results.popleft()
            if reader is not None:
                await reader  # raises what the items raised
        finally:
            ahead.end()
            if reader is not None:
                reader.cancel()
                await asyncio.wait([reader])

    @property
    def stats(self) -> Stats:
        return self.tally.read(self._waiting)

    def _waiting(self) -> tuple[int, int]:
        waiting = [engine.waiting() for engine in self._all()]
        return sum(pending for pending, _ in waiting), sum(left for _, left in waiting)


begin_anew_in_children(_live)
