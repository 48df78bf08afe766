"""How do threads wait, and who runs a batch?

The flush thread of a function is the owner of its buffer, and runs its batches:
  - it starts with the first item; with `concurrency` above 1 it starts further threads, the runners, when a batch is
    due and no runner is idle, and runs one itself only if none can be started, or if the function returns futures;
  - it ends after `close()`, when all that was accepted is answered, or when the function is garbage; the runners
    with it;
  - it keeps the function's engine alive while items wait or run, and only bell and inbox while idle;
  - after a fork: the child has none and an empty buffer, and starts its own with its first item; the items that waited
    stay the parent's;
  - at interpreter exit: when the main thread has ended, what was accepted by then is answered, and nothing is refused,
    so that the user's own `atexit` functions find it done; then, at `atexit`, what is accepted meanwhile is answered,
    and what comes later is refused. They are daemon threads, so that they do not hold up the exit when they are idle.
"""

import atexit
import concurrent.futures.thread  # noqa: F401 - before we register: at exit Python goes from the last one to the first
import sys
import threading
import warnings
import weakref
from _thread import LockType, allocate_lock, get_ident
from collections.abc import Callable, Collection, Coroutine, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, InvalidStateError, wait
from contextlib import suppress
from contextvars import Context, Token
from functools import partial
from math import inf
from queue import SimpleQueue
from threading import TIMEOUT_MAX, Thread, current_thread, main_thread
from time import monotonic
from typing import Any

from ._batch import Batch, Call, complain, is_future
from ._engine import Ahead, Controls, Engine, begin_anew_in_children, is_on_trio
from ._errors import BatchError, ClosedError, WaitsForItselfError
from ._inside import Runner, here, waits_for_itself
from ._inside import current as current_runner
from ._options import NO_CONSTANTS, Options, Takes
from ._stats import Stats, Tally

get_runner = current_runner.get
_live: "weakref.WeakKeyDictionary[ThreadEngine, None]" = weakref.WeakKeyDictionary()  # in order
# Most batches that are run on one stack, oldest first, on the way to an awaited call. Deeper, only the one that begins
# with that call is run. Else many callers that wait side by side would come to the recursion limit.
_DEPTH = 16
_ending = False  # whether the main thread has ended
_exiting = False  # whether the interpreter calls what stands in `atexit`


def _ring(bell: LockType) -> None:
    try:
        bell.release()
    except RecursionError:  # a RuntimeError too; it did not ring
        raise
    except RuntimeError:  # it is rung already
        pass


class FutureCall(Call):
    """A call that answers a future. Keeps engine and owner, whose method must answer it, alive until it is answered."""

    __slots__ = ("engine", "future", "owner")

    engine: "ThreadEngine"
    future: "ItemFuture"
    owner: object
    calls_back = True

    def has_left(self) -> bool:
        return self.future.cancelled()

    def is_over(self) -> bool:
        return self.future.done()

    def claim(self) -> bool:
        """Take hold of the answer; from here on it cannot be cancelled. False if it was."""
        with self.future._condition:
            if self.future._state == "PENDING":
                self.future._state = "RUNNING"
            return not self.future.cancelled()  # else a stranger has claimed it, or has even completed it

    def unclaim(self) -> None:
        with self.future._condition:
            if self.future._state == "RUNNING":
                self.future._state = "PENDING"

    @staticmethod
    def tell(calls: Sequence["FutureCall"], results: Sequence[Any], failed: int) -> None:
        # First the answers and then the callbacks, which may take long, and may wait for a neighbour's answer.
        for call, result in zip(calls, results, strict=True):
            try:
                if failed and issubclass(type(result), BaseException):
                    call.future.set_exception(result)
                else:
                    call.future.set_result(result)
            except InvalidStateError:  # by a stranger, or told before
                pass
        for call in calls:
            call.future.call_back()


class ItemFuture(Future[Any]):
    """The future of one item. Cancelling it takes the item out of the buffer; in a batch it cannot be cancelled."""

    call: FutureCall | None = None  # until it is answered, and may call back

    def _invoke_callbacks(self) -> None:
        if self.call is None:  # else call_back() will do so, when all futures of the batch have their answers
            super()._invoke_callbacks()  # type: ignore[misc]

    def call_back(self) -> None:
        """Let its callbacks run, if it is the first to do so."""
        if self.__dict__.pop("call", None) is not None:  # also a cycle
            try:
                self._invoke_callbacks()
            except BaseException:  # noqa: BLE001 - the neighbours must hear all the same
                complain("a callback of a future raised")

    def cancel(self) -> bool:
        """Cancel the call. False if it is answered already, or its batch runs."""
        if not super().cancel():
            return False
        call: FutureCall | None = self.__dict__.pop("call", None)
        if call is not None:
            try:  # before its callbacks, which may take long, or wait for it
                self.set_running_or_notify_cancel()  # for concurrent.futures.wait()
                call.engine.withdraw(call)
            finally:
                self._invoke_callbacks()
        return True

    def result(self, timeout: float | None = None) -> Any:
        """Return the result, or raise the error, once it is there; waits at most `timeout` seconds for that."""
        return super().result(self._waited_inside(timeout))

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Return the error or None, once the answer is there; waits at most `timeout` seconds for that."""
        return super().exception(self._waited_inside(timeout))

    def _waited_inside(self, timeout: float | None) -> float | None:
        """Wait, if this is inside a function. Return for how many seconds there is to wait yet."""
        if self.done() or runner_here() is None:
            return timeout
        self.hear_waiters()
        wait([self], timeout)
        return 0

    def hear_waiters(self) -> None:
        """Hear of it when somebody inside a function waits for this."""
        with self._condition:
            self._waiters = _Waiters(self._waiters)
            self._waiters.future = weakref.ref(self)


class _Waiters(list[Any]):
    """Those who wait for a future, by wait() or as_completed()."""

    future: Callable[[], ItemFuture | None]

    def append(self, waiter: Any) -> None:
        if type(waiter.event) is not _Event:
            waiter.event = _Event()  # nobody sleeps on it yet, or has set it
        waiter.event.futures.append(self.future)
        super().append(waiter)


class _Event(threading.Event):
    """What they sleep on. If that is inside a function, it lends its turn meanwhile."""

    runner: "ThreadRunner | None" = None

    def __init__(self) -> None:
        super().__init__()
        self.futures: list[Callable[[], ItemFuture | None]] = []

    def set(self) -> None:
        super().set()
        runner = self.runner
        if runner is not None:
            runner.wake()

    def wait(self, timeout: float | None = None) -> bool:
        self.runner = runner = runner_here()
        if runner is None:
            return super().wait(timeout)
        calls = [call for future in self.futures if (call := getattr(future(), "call", None)) is not None]
        return runner.wait([(call.engine, call) for call in calls], self.is_set, timeout)


class ThreadRunner(Runner):
    """A thread that runs batches, or settles one whose function returned a future."""

    flush_thread: Thread  # to be joined; of those that `engine` has started
    batch: "ThreadBatch | None" = None  # the latest of those that run here
    depth = 0  # how many run here on a lent turn, each called by the function of the one before

    def __init__(self, engine: "ThreadEngine") -> None:
        self.awaits, self.noted = [], []
        self.engine = weakref.ref(engine)  # for which it works
        self.bell = allocate_lock()  # rung by what is awaited here
        self.context = Context()
        self.context.run(current_runner.set, self)

    def enter(self) -> Token[Runner | None]:
        """Say that it is this thread."""
        self.thread = get_ident()
        return current_runner.set(self)

    def leave(self) -> None:
        """Say that it is no thread any more."""
        self.thread = None
        self.context.run(current_runner.set, None)  # a cycle

    @property
    def has_lent(self) -> bool:
        batch = self.batch
        return batch is not None and batch.has_lent

    def take_room(self) -> None:
        _take_frames(50)

    def wake(self) -> None:
        _ring(self.bell)
        super().wake()

    def wait(self, awaited: list[tuple[Any, Any]], is_over: Callable[[], object], timeout: float | None = None) -> bool:
        """Wait until it `is_over`, and lend a turn meanwhile if that needs it. False if it takes too long.

        What is awaited rings the bell when it is answered.
        """
        deadline = inf if timeout is None else monotonic() + timeout
        own, before = self.engine(), (self.awaits, self.cannot_lend)
        self.awaits = awaited.copy()
        # True in a finalizer that interrupts the owner's step: the buffer is half changed, so nothing can be taken
        # here.
        self.cannot_lend = own is not None and own.is_looking and own.owner is self
        try:
            while not is_over():
                seconds = deadline - monotonic()
                if seconds <= 0:
                    return False
                if not self.lend():
                    for engine, _ in self.hopeless(awaited):
                        raise waits_for_itself(engine)
                    self.bell.acquire(True, -1 if seconds == inf else min(seconds, TIMEOUT_MAX))
            return True
        finally:
            self.awaits, self.cannot_lend = before
            _ring(self.bell)  # it may have rung for who waits beneath, or for the owner

    def lend(self) -> bool:
        mine = None
        for lender, engine, call in self.to_lend():
            if lender is self:
                mine = mine or (engine, call)
            elif not lender.has_lent:  # else it looks again when it has its turn back
                lender.wake()
        if mine is not None and (mine[0].has_turn or not self.has_lent):
            engine, call = mine
            _take_frames(40)  # or what is taken might be cut short
            batch = engine.lend(call, self)
            if batch is not None:
                self.depth += 1
                try:
                    batch.lender = self
                    if self.batch is not None and id(batch) in engine._lent:
                        self.batch.turn = batch.turn = self.batch.turn or [id(self.batch)]
                        batch.turn.append(id(batch))
                    batch.run(engine.function, self)
                except BaseException as error:  # a recursion limit, before it began
                    batch.fail(error)
                    engine.ended(batch)  # once more, if it struck just there
                    raise
                finally:
                    self.depth -= 1
                return True
        own = self.engine()
        if own is not None and own.owner is self and own.news:
            own.look_inside(lambda _: None)  # only hear the news: another thread may ask for a lent batch
        return False


class ThreadBatch(Batch):
    """A batch that is run on a thread of ours."""

    engine: "ThreadEngine"
    lender: ThreadRunner | None = None  # on whose turn it runs

    def run(self, function: Callable[[list[Any]], Any], runner: ThreadRunner) -> None:
        """Call the function with a list of its own, and settle every call by what it does."""
        before = runner.awaits, runner.noted, runner.batch
        try:
            runner.awaits, runner.noted, runner.batch = [], [], self
            # A context of its own, and not that of whoever called first, whose variables (a user, a transaction) are
            # not those of the others.
            self.enter = runner.context.copy().run
            self.runner = runner
            if self._hook is not None:
                self.say_that_it_begins()
            value = self.enter(function, [entry.item for entry in self.to_answer[0]], **self._constants)
            if type(value) is not list and is_future(value):
                # From now on the future alone holds this, so that it goes with it.
                self.engine.returns_futures = True
                self.runner = None
                value.add_done_callback(self.settle_future)
                return
        except BaseException as error:  # noqa: BLE001 - SystemExit would end the thread, and leave all behind it waiting
            self.fail(error)
        else:
            self.settle(value)
        finally:
            runner.awaits, runner.noted, runner.batch = before

    def settle_future(self, future: Any) -> None:
        """Spread over the calls what a future holds that is done."""
        engine = self.engine
        if engine is None:
            return  # it has called back before
        try:
            _take_frames(40)
        except RecursionError:  # whoever completed it has no room for what follows
            _take_frames(5)  # or post_news() might be cut short
            engine.post_news(self.settle_future, future)
            return
        # Done-callbacks of our calls run here, on a thread of somebody else. One that waits for this very batch is to
        # get an error, and not to hang.
        before = runner_here()
        runner = ThreadRunner(engine) if before is None else before
        beneath, runner.batch = runner.batch, self
        engine.runners[id(self)] = self.runner = runner
        self.enter = runner.context.copy().run  # for what an iterator calls as its results are read
        token = runner.enter()
        try:
            value = future.result()
        except BaseException as error:  # noqa: BLE001 - as in run(); a cancelled future raises too
            self.fail(error)
        else:
            self.settle(value)
        finally:
            current_runner.reset(token)
            engine.runners.pop(id(self), None)
            runner.batch = beneath
            if runner is not before:
                runner.leave()

    def __del__(self) -> None:
        if self.to_answer:
            # The function's future is garbage; or the runner that took this was disturbed at this very moment.
            what = "returned a future and dropped it unfinished" if self.engine.returns_futures else "was not run"
            self.fail(BatchError(f"{self.engine.name}() {what}"))


class ThreadEngine(Controls, Engine):
    """Gathers the items of callers in any number of threads, and runs the function in threads of its own."""

    make_batch = ThreadBatch
    now = staticmethod(monotonic)  # pyright: ignore[reportAssignmentType]
    # The threads of this engine: 0 is the flush thread, which enters itself by one atomic setdefault(); 1, 2, ... are
    # those that `concurrency` asks for. A flush thread that ends leaves an empty dict here: who stands in an older one
    # is the owner no more.
    _own_runners: dict[int, ThreadRunner]
    _batches: "SimpleQueue[ThreadBatch | None]"  # for the runners; None: to end, and to tell the next one

    awaitable: str | None = None  # what to await instead of a call that blocks; None: `aio`
    aio: Callable[..., Coroutine[Any, Any, Any]] | None = None  # once somebody asked for it
    _warned = False

    def __init__(self, function: Callable[..., Any], name: str, options: Options, takes: Takes | None = None) -> None:
        self.blocks: list[None] = []  # `with` blocks that are open
        self.closed = _exiting
        super().__init__(function, name, options, takes)
        _live[self] = None

    def begin_anew(self) -> None:
        self.tally = Tally()
        super().begin_anew()
        self._bell = allocate_lock()  # held while nobody has rung; the flush thread alone acquires it
        self.returns_futures = False  # the function has done so, and so does not block
        self._complained = False  # that no further thread could be started
        self.make_room()

    def make_room(self) -> None:
        """Make room for a flush thread: at the beginning, and when the last one is about to end."""
        self._batches, self._drains = SimpleQueue(), []
        self._own_runners = {}  # last, as from here on a new thread may be the owner and use the others

    # What callers do

    def post(self, calls: Sequence[Call]) -> None:
        """Let calls wait. See `Engine` for the steps."""
        if not self._own_runners:
            self._start()
        now = monotonic()
        for call in calls:
            call.arrival = now
        self.inbox.extend(calls)
        if len(self.inbox) >= self.wake_at:
            _ring(self._bell)
        if not self._own_runners:  # the thread has just ended
            self._start(calls)

    def ring(self) -> None:
        _ring(self._bell)

    def __del__(self, ring: Callable[[LockType], None] = _ring) -> None:  # at exit that name may be gone
        ring(self._bell)  # so that the flush thread finds this gone
        self._batches.put(None)

    def post_news(self, act: Callable[..., object], *args: Any) -> bool:
        # Without an owner nothing waits. If it has just ended, all that it is to know of is answered; but there may be
        # a next one, so it is told all the same.
        if not self._own_runners:
            return False
        super().post_news(act, *args)
        return bool(self._own_runners)

    def call(self, item: Any, constants: Mapping[str, Any] = NO_CONSTANTS) -> Any:
        """Block until the item is answered; return its result or raise its error."""
        if not self._warned and _is_on_a_loop():
            self._warn(self.awaitable or f"{self.name}.aio(item)", stacklevel=4)  # who called what called this
        bell = allocate_lock()
        bell.acquire()
        call = Call()
        call.item, call.bell = item, bell
        try:
            if self.asks:
                self.ask(call, constants)
            if get_runner() is None and not self.bounded and not self.closed:  # as most are: a step less
                self.post((call,))
                bell.acquire()
            else:
                runner = runner_here()
                if runner is None:
                    self.put((call,), waits=True)
                    bell.acquire()
                else:
                    call.bell = runner.bell
                    self.put((call,), waits=True)
                    runner.wait([(self, call)], call.is_over)
        except BaseException:  # refused, or Ctrl-C
            self.withdraw(call)
            raise
        return call.value if call.error is None else call.outcome()

    def _warn(self, instead: str, *, stacklevel: int) -> None:
        if not _is_in_a_notebook():  # whose every cell runs on a loop
            if _running_loop() is None:
                instead = f"trio.to_thread.run_sync({self.name}, item)"
            warnings.warn(
                f"{self.name}() was called on the thread of a running event loop. That stops the loop until the result "
                f"is there, so that nobody on it can join the batch: use `await {instead}`",
                RuntimeWarning,
                stacklevel=stacklevel,  # of the user
            )
        self._warned = True  # if that has not raised: else the next call is refused as well

    def submit(self, item: Any, owner: object, constants: Mapping[str, Any] = NO_CONSTANTS) -> ItemFuture:
        """Return a future of the item's result, without blocking."""
        future = ItemFuture()
        call = future.call = FutureCall()
        call.item, call.future, call.engine, call.owner = item, future, self, owner
        if get_runner() is not None:
            future.hear_waiters()
        try:
            if self.asks:
                self.ask(call, constants)
            self.tracks = True  # before it waits; and not before a function of the user's is asked, who may fork
            self.put((call,), waits=False)
        except BaseException:
            Future.cancel(future)
            future.call = None
            raise
        return future

    def is_full(self) -> bool:
        if not self._own_runners:
            self._start()  # which takes long, and so comes before the look
        return super().is_full()

    def is_at_work(self) -> bool:
        return bool(self._own_runners)

    @property
    def owner(self) -> ThreadRunner | None:
        """The flush thread, if there is one."""
        return self._own_runners.get(0)

    def held_up_by(self, *, at_all: bool = False) -> Collection[Runner]:
        if at_all or not self.has_turn:
            return [*self._own_runners.copy().values(), *self.runners.copy().values()]
        return [] if self.owner is None else [self.owner]

    def runs_alone(self, runner: Runner) -> bool:
        ends = (_ending or _exiting) and not self._own_runners  # in Python 3.12 no thread can be started then
        # A finalizer may interrupt this thread while that has the tally's lock, or looks for a batch. Others would have
        # to wait for that, so it must not wait for them.
        own = runner.engine() if type(runner) is ThreadRunner else None
        holds_up_others = own is not None and own.tally.is_mine
        return ends or holds_up_others or (self.is_looking and runner is self.owner)

    def run_alone(self, call: Call) -> None:
        self.batch_of_one(call).run(self.function, runner_here() or ThreadRunner(self))

    def lend(self, call: Call, runner: ThreadRunner) -> ThreadBatch | None:
        """Return a batch that this runner is to run on its own turn, on the way to that call. None if there is none."""
        skips = runner.depth >= _DEPTH
        if runner is self.owner:
            return self.look_inside(partial(self._take, awaited=call, skips=skips))  # type: ignore[no-any-return]
        answer: SimpleQueue[Any] = SimpleQueue()
        if not self.post_news(self.take_lent_for, [call], answer, skips):
            return None
        if self.owner is not None:
            self.owner.wake()  # it may wait in a loop that a function runs there
        return answer.get()  # type: ignore[no-any-return]

    def take_lent_for(self, asked: list[Call], answer: "SimpleQueue[Any]", skips: bool) -> None:
        batch = None
        while asked:  # once, also if this is done twice
            try:
                batch = self._take(self.now(), asked.pop(), skips=skips)
            finally:
                answer.put(batch)

    def look_inside(self, take: Callable[[float], Any]) -> Any:
        """Hear the news, and return what `take` does: a batch for a lent turn; for the owner while it waits itself."""
        if self.is_looking:
            return None  # it waits in the midst of its step
        self.is_looking = True
        try:
            batch = self._take_due(self.now(), take, lent=True)
            self._must_repair = False
        finally:
            self.is_looking = False
        return batch

    def map(
        self,
        items: Iterator[Any],
        _owner: object,
        constants: Mapping[str, Any],
        *,
        chunked: bool,
        returns_errors: bool,
    ) -> Generator[Any, None, None]:
        """Yield the results of the items in order, reading at most two batches of items ahead.

        `_owner`, whose method must answer, is kept alive meanwhile.
        Not `chunked`: one at a time, since reading on may block (a socket, a queue).
        """
        if not self._warned and _is_on_a_loop():
            self._warn(f"asyncio.gather(*map({self.name}.aio, items))", stacklevel=3)  # who called next() of this
        bell = allocate_lock()  # free, so the first sleep ends at once, and there is one look more
        ring = partial(_ring, bell)
        ahead = Ahead(self, constants, ring, returns_errors=returns_errors)
        try:
            while ahead.reads(items, one_by_one=not chunked):
                results = ahead.take()
                if not results:
                    # It says what wakes it, then looks whether that has rung; Ahead.ring() does the two the other way
                    # round. So one of them sees the other.
                    runner = runner_here()
                    ahead.wake = ring if runner is None else runner.wake
                    if runner is not None:
                        runner.wait([(self, ahead.calls[0])], lambda: ahead.has_rung)
                    elif not ahead.has_rung:
                        bell.acquire()
                while results:
                    yield results.popleft()
        finally:
            ahead.end()

    def closed_error(self) -> ClosedError:
        return ClosedError(f"{self.name}() is closed{' (the interpreter is exiting)' if _exiting else ''}")

    def _all(self) -> "list[ThreadEngine]":
        return [self]

    @property
    def stats(self) -> Stats:
        return self.tally.read(self.waiting)

    # Closing

    def close(self, timeout: float | None = None, *, cancel_pending: bool = False, ends_block: bool = False) -> None:
        """Refuse what comes, and wait until what was accepted is answered, and the threads have ended.

        `ends_block`: at the end of a `with` block, and only if it is the last one.
        """
        deadline = inf if timeout is None else monotonic() + timeout
        runners = self._own_runners  # of now, as the flush thread makes room for others before it ends
        if not ends_block:
            self.begin_to_close(cancel_pending=cancel_pending)
        elif not self.ends_block():
            return
        if self.drain(timeout):
            for runner in runners.copy().values():
                if runner not in self._own_runners.copy().values():  # somebody may have opened it again
                    runner.flush_thread.join(min(max(0.0, deadline - monotonic()), TIMEOUT_MAX))

    def drain(self, timeout: float | None = None) -> bool:
        """Wait until what was accepted so far is answered. False if this must not wait for it here."""
        runner = runner_here() or ThreadRunner(self)  # outside: one that nobody waits for
        call = Call()  # as whoever looks for a ring must see this
        call.bell = runner.bell
        waits = not (self.runs_alone(runner) or runner.would_wait_for_itself(self, call))
        if not self.when_answered(partial(Call.tell, (call,), (None,), 0)):
            return True
        try:
            if waits and not runner.wait([(self, call)], call.is_over, timeout):
                raise TimeoutError(self.late_message(timeout))
        except WaitsForItselfError:  # somebody else has closed a ring meanwhile
            return False
        return waits

    # The flush thread

    def _start(self, posted: Sequence[Call] = ()) -> None:
        """Start a flush thread, before anything of a call is accepted: where none can be started it just fails.

        Or to answer calls that were `posted` as the last one ended, closed or not.
        """
        begun = allocate_lock()
        begun.acquire()
        try:
            self._start_thread(ThreadRunner(self), _own, begun)
        except RuntimeError as error:  # too many; or at exit, or in a subinterpreter, where none may be started
            for call in posted:  # nobody may take them out again, as there may be an owner by now
                self.withdraw(call)
            raise RuntimeError(f"{self.name}() cannot start its flush thread: {error}") from error
        begun.acquire()
        if self.closed and not posted:  # by somebody who found no flush thread to wait for
            raise self.closed_error()

    def _start_thread(self, runner: ThreadRunner, target: Callable[..., None], *args: Any) -> None:
        name = f"batchify flush thread of {self.name}()"
        runner.flush_thread = Thread(target=_keep, args=(target, runner, *args), name=name, daemon=True)
        Context().run(runner.flush_thread.start)  # on a free-threaded build it would inherit that of its first caller

    def become_owner(self, runner: ThreadRunner) -> bool:
        """Let a thread be the flush thread. False if there is one."""
        if self._own_runners.setdefault(0, runner) is not runner:
            return False
        runner.bell = self._bell  # not before, as another one may sleep on it
        self.buffer.ends = self.closed
        return True

    def claim(self, calls: list[Any]) -> list[Any]:
        # Who leaves says so by news, which set has_leavers; they may have come since the owner heard the last ones. Who
        # leaves at this very moment gets an answer that nobody reads.
        return super().claim(calls) if self.tracks or self.has_leavers or self.news else calls

    def give_to_a_runner(self, batch: ThreadBatch) -> bool:
        """Let a runner run a batch. False if the owner is to do so."""
        if self.returns_futures:
            return False
        number = len(self._own_runners)
        if len(self._running) >= number:  # the batches that have a turn keep one runner busy each
            # Entered before it starts: it may begin at once with an earlier batch, and must be known by then.
            runner = self._own_runners[number] = ThreadRunner(self)
            try:
                self._start_thread(runner, _run, self._batches)
            except BaseException as error:
                del self._own_runners[number]
                if not isinstance(error, RuntimeError):  # no memory
                    raise
                if not self._complained and main_thread().is_alive():  # else, from Python 3.12 on, none can be started
                    self._complained = True
                    complain("%s() runs fewer batches at once than it might", self.name)
                return False
        self._batches.put(batch)
        return True

    def ended(self, batch: Any) -> None:
        turn = batch.leave_turn()
        if batch.runner is not None and batch.runner is self.owner and id(batch) not in self.runners:
            self.turn_ended(batch, turn)  # the owner has called the function, and so is not about to sleep
        else:
            self.post_news(self.turn_ended, batch, turn)
        if batch.lender is not None:
            batch.lender.wake()
        for each in self.held_up_by(at_all=True) if turn else ():  # the one that has the turn back now may be another
            each.wake()


def _own(runner: ThreadRunner, begun: LockType) -> None:
    """Be the owner of an engine."""
    runner.enter()
    engine = runner.engine()
    if engine is None or not engine.become_owner(runner):
        _ring(begun)
        return  # two callers have each started one
    # While it sleeps this thread keeps bell and inbox alive, and not the engine. But calls in the inbox do: so an item
    # is answered though nobody has kept its future.
    bell, inbox = engine._bell, engine.inbox
    _ring(begun)
    step: Any = inf  # seconds to sleep, a batch to run, or None: to end
    while True:
        try:
            bell.acquire(True, -1 if step == inf else min(step, TIMEOUT_MAX))
            engine = engine or runner.engine()
            if engine is None:
                break  # it is garbage
            rested = True
            while isinstance(step := engine.next(monotonic(), rested=rested), ThreadBatch):
                if engine.options.concurrency == 1 or not engine.give_to_a_runner(step):
                    step.run(engine.function, runner)
                if engine.owner is not runner:
                    return  # the function forked, and this is the child
                step, rested = 0.0, False
            if step is None:
                drains, batches = engine._drains, engine._batches
                engine.make_room()  # from here on who posts starts another thread
                batches.put(None)
                _ring(bell)  # for the next owner
                # Who posted before that relies on this thread. If it ends, only now is all answered for those who close
                # or drain, as they join it.
                if not (inbox or engine.news) or not engine.become_owner(runner):
                    for _, done in drains:
                        done()
                    break
                step, engine._drains = 0.0, drains
            if not (inbox or engine.buffer.waiting or engine._drains):
                engine = None  # who drops the function must not find it kept alive by its own thread
        except BaseException as error:  # noqa: BLE001 - from outside (PyThreadState_SetAsyncExc), or no memory
            _disturbed(runner, step, error)
            step = 0.0  # look again at once, as it may have struck just after the bell
    runner.leave()
    engine = None  # an error that the function raised knows this frame, and may be kept


def _run(runner: ThreadRunner, batches: "SimpleQueue[ThreadBatch | None]") -> None:
    """Be one of several that run batches."""
    runner.enter()
    batch: ThreadBatch | None = None
    # Until it leaves; or the function has forked, and this is the child.
    while runner.thread is not None:
        try:
            batch = batches.get()
            if batch is not None:
                batch.run(batch.engine.function, runner)
                batch, engine = None, runner.engine()  # not to keep alive what this ran last
                if engine is not None and engine.returns_futures:
                    engine.ring()  # without a GIL a batch whose future was dropped goes when who made the batch wakes
                del engine
            else:
                batches.put(None)
                runner.leave()
        except BaseException as error:  # noqa: BLE001 - as in _own()
            _disturbed(runner, batch, error)
            batch = None
            if getattr(runner.engine(), "_batches", None) is not batches:
                batches.put(None)  # once more, as it may have struck just after that was taken


def _keep(run: Callable[..., None], runner: ThreadRunner, *args: Any) -> None:
    """Let a thread of ours go on after what strikes outside of its `try`: for Python, where a loop begins anew is."""
    while True:
        try:
            return run(runner, *args)
        except BaseException as error:  # noqa: BLE001 - as in _own()
            _disturbed(runner, None, error)


def _disturbed(runner: ThreadRunner, batch: Any, error: BaseException) -> None:
    """Go on after an error on a thread of ours that nobody made there but ourselves, or another thread."""
    complain("%s was disturbed", current_thread().name)
    engine = runner.engine()
    if isinstance(batch, ThreadBatch):
        batch.fail(error)
        if engine is not None:
            engine.ended(batch)  # once more, if it struck just there
    elif engine is not None:
        # It may have struck as a batch was handed over. Without a GIL that batch goes, and so fails, when the thread
        # that made it wakes.
        engine.ring()


def runner_here() -> ThreadRunner | None:
    """Return the runner that this is inside of, if it may block here."""
    runner = here()
    return runner if type(runner) is ThreadRunner else None


def _take_frames(number: int) -> None:
    """Raise a RecursionError unless so many more frames fit on this stack."""
    if number:
        _take_frames(number - 1)


def _running_loop() -> object:
    """Return the event loop that runs on this thread, or None. Does not import asyncio: without it no loop can run."""
    global _running_loop
    find = getattr(sys.modules.get("asyncio"), "_get_running_loop", None)  # None as well: it is being imported now
    if find is None:
        return None
    _running_loop = find  # from now on every call asks asyncio at once
    return find()


def _is_on_a_loop() -> bool:
    return _running_loop() is not None or is_on_trio()


def _is_in_a_notebook() -> bool:
    kernel = getattr(sys.modules.get("ipykernel.kernelapp"), "IPKernelApp", None)
    return kernel is not None and kernel.initialized()


def _all() -> list[ThreadEngine]:
    return [engine for reference in _live.keyrefs() if (engine := reference()) is not None]


def _drain_all() -> None:
    """Answer what was accepted until the main thread has ended. Twice, as functions pass items to each other."""
    global _ending
    _ending = True
    for _ in range(2):
        # The latest first, since it is likelier that it calls an earlier one than the other way round.
        for engine in reversed(_all()):
            engine.drain()


def _close_all() -> None:
    """Answer at exit what was accepted. A function that has items to answer may still call another one."""
    global _exiting
    _exiting = True
    for engine in reversed(_all()):
        engine.close()


begin_anew_in_children(_live)
atexit.register(_close_all)
with suppress(RuntimeError):  # it is too late, or this is a subinterpreter
    threading._register_atexit(_drain_all)  # type: ignore[attr-defined]
