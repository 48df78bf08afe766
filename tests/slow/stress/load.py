"""Random load for stress runs: functions that record their batches, and callers that record their calls."""

import asyncio
import threading
import time
import weakref
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from concurrent.futures import CancelledError, Executor, Future
from contextlib import aclosing, asynccontextmanager, closing, contextmanager, suppress
from contextvars import Context
from functools import partial
from itertools import count
from random import Random
from typing import Any

from batchify import (
    BatchError,
    BatchReport,
    BufferFullError,
    ClosedError,
    MissingResultError,
    ResultCountError,
    WaitsForItselfError,
    batched,
)

from ... import inside
from .history import BatchRecord, CallRecord, History, Planned, Rules, Violation, Wait, answer, moment

# Which event loop runs on this thread. The function runs in an empty context, so a context variable would not tell.
_here = threading.local()
_loops = count(1)


def run_loop(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a coroutine in an event loop of its own, and end it as asyncio.run() does."""
    _here.loop = next(_loops)
    asyncio.run(main())


def buffer_here(name: str) -> str:
    return f"{name}/{_here.loop}"


# What a function may do with a batch. What its callers must get is noted beforehand.


def _results(batch: BatchRecord) -> list[Any]:
    return list(map(answer, batch.tokens))


class Function:
    """A list function that behaves in one of several ways in each batch."""

    def __init__(
        self, history: History, name: str, rng: Random, ways: Sequence[str], engine: Executor | None = None
    ) -> None:
        self.history, self.name, self.rng, self.ways, self.engine = history, name, rng, tuple(ways), engine
        self.again: Callable[[], Any] = lambda: None  # the decorated function, weakly, to call it from inside
        self.shares = "sharing" in ways
        self.ring: list[Function] = [self]  # whose functions this one may call from inside
        self.shared: list[tuple[CallRecord, Future[Any]]] = []  # for which functions of the ring may wait
        self._depth: dict[int, int] = {}  # of items that are awaited inside, how many batches wait above each other
        # What it passed to itself and did not wait for, by buffer.
        self.passed: defaultdict[str, list[CallRecord]] = defaultdict(list)

    def decorated(self, *, size: int, timeout: float | None, on_loop: bool = False, rules: Rules | None = None) -> Any:
        options: dict[str, Any] = {}
        if rules is not None:
            self.history.rules[self.name] = rules
            options = {name: getattr(rules, name) for name in ("concurrency", "isolate", "dedupe", "max_pending")}
            options["on_batch"] = self._report if rules.reports else None
            options["group_by"] = rules.group if rules.groups > 1 else None
            if rules.max_weight is not None:
                options |= {"weight": rules.weight, "max_weight": rules.max_weight}
        with self.history.limit(self.name, size):
            f: Any = batched(batch_size=size, timeout=timeout, **options)(self.run_there if on_loop else self.run)
        self.again = weakref.ref(f)
        return f

    def _report(self, report: BatchReport) -> None:
        # Not the report itself: its error and its contexts know whom they came from.
        self.history.reports[self.name].append(report.size)

    def run(self, items: list[int]) -> Any:
        batch = self.history.batch(self.name, items)
        batch.way = self._way(items)
        outcome: Any = getattr(self, f"_{batch.way}")(batch)
        return outcome

    def _way(self, items: list[int]) -> str:
        way = self.rng.choice(self.ways)
        return "list" if way == "inside" and self._depth_of(items) >= 3 else way

    def _depth_of(self, items: Sequence[int]) -> int:
        return max(self._depth.get(item, 0) for item in items)

    def _list(self, batch: BatchRecord) -> Any:
        batch.end()
        return _results(batch)

    def _slow(self, batch: BatchRecord) -> Any:
        time.sleep(self.rng.random() * 0.004)  # this is what it is: slow
        batch.end()
        return tuple(_results(batch))

    def _raising(self, batch: BatchRecord) -> Any:
        batch.raised = Planned
        batch.fail(Planned)
        batch.end()
        raise Planned(batch.number)

    def _exiting(self, batch: BatchRecord) -> Any:
        kinds = (SystemExit, KeyboardInterrupt, GeneratorExit, StopIteration, CancelledError, asyncio.CancelledError)
        kind = self.rng.choice(kinds)
        batch.raised = kind
        batch.fail(BatchError)
        batch.end()
        raise kind(batch.number)

    def _wrong_length(self, batch: BatchRecord) -> Any:
        batch.fail(ResultCountError)
        batch.end()
        return self.rng.choice(([], _results(batch)[1:], [*_results(batch), 0]))

    def _wrong_type(self, batch: BatchRecord) -> Any:
        batch.fail(TypeError)
        batch.end()
        return self.rng.choice((None, "results", {1}, 5))

    def _mapping(self, batch: BatchRecord) -> Any:
        missing = self._some(batch)
        batch.fail(MissingResultError, missing)
        batch.end()
        return {token: answer(token) for token in reversed(batch.tokens) if token not in missing}

    def _entries(self, batch: BatchRecord) -> Any:
        bad = self._some(batch)
        batch.fail(Planned, bad)
        batch.end()
        return [Planned(batch.number) if token in bad else answer(token) for token in batch.tokens]

    def _some(self, batch: BatchRecord) -> list[int]:
        return self.rng.sample(batch.tokens, self.rng.randint(0, len(batch.tokens)))

    def _generator(self, batch: BatchRecord) -> Iterator[int]:
        """Yields all results; or raises, or ends, before that."""
        end = self.rng.choice(("all", "all", "raise", "short"))
        try:
            for token in batch.tokens if end == "all" else batch.tokens[: self.rng.randrange(len(batch.tokens))]:
                batch.give(token)
                yield answer(token)
            if end == "raise":
                batch.raised = Planned
                batch.fail(Planned)
                raise Planned(batch.number)
            if end == "short":
                batch.fail(ResultCountError)
        finally:
            batch.end()

    def _future(self, batch: BatchRecord) -> Any:
        raising = self.rng.random() < 0.3

        def work() -> list[int]:
            if raising:
                batch.raised = Planned
                batch.fail(Planned)
            batch.end()
            if raising:
                raise Planned(batch.number)
            return _results(batch)

        assert self.engine is not None
        return self.engine.submit(work)

    def _dropped_future(self, batch: BatchRecord) -> Any:
        batch.raised = BatchError
        batch.fail(BatchError)
        batch.end()
        return Future[Any]()

    def _nested_call(self, batch: BatchRecord, of: "Function", buffer: str) -> CallRecord:
        call = self.history.call(f"batch {batch.number} of {self.name}", buffer, "nested", inside=batch.number)
        of._depth[call.token] = self._depth_of(batch.tokens) + 1
        return call

    def _inside(self, batch: BatchRecord) -> Any:
        of = self.rng.choice(self.ring)
        f = of.again()
        if f is not None:
            called = self._nested_call(batch, of, of.name)
            settle(called, lambda: f(called.token))
            submitted = self._nested_call(batch, of, of.name)
            settle(submitted, lambda: f.submit(submitted.token).result())
        return self._list(batch)

    def _sharing(self, batch: BatchRecord) -> Any:
        """Wait for what others have passed, which may wait for this."""
        for call, future in [each for of in self.ring for each in self.rng.sample(of.shared, min(2, len(of.shared)))]:
            wait = Wait(batch.number, call.token, moment())
            self.history.waits.append(wait)
            try:
                future.exception()
            except WaitsForItselfError:
                wait.told = True
                self.history.events.append("rings")
            except CancelledError:
                pass
            wait.ended = moment()
        return self._list(batch)

    def share(self, call: CallRecord, future: "Future[Any]") -> None:
        """Let functions of the ring wait for what was passed, as long as it is one of the latest."""
        self.shared = [*self.shared, (call, future)][-4:]

    def _passing(self, batch: BatchRecord) -> Any:
        """Pass an item that nobody inside waits for: it waits its turn."""
        f = self.again()
        if f is not None:
            call = self.history.call(f"batch {batch.number} of {self.name}", batch.buffer, "passed")
            self.passed[batch.buffer].append(call)
            try:
                future = f.submit(call.token)
            except (ClosedError, BufferFullError) as error:
                call.end("refused", error)
            else:
                call.accepted = moment()
                watch = partial(future.add_done_callback, lambda future: settle(call, future.result))
                if batch.buffer == self.name:
                    self.share(call, future)
                    watch()
                else:  # not here: it would count as a wait of this batch
                    asyncio.get_running_loop().call_soon(watch, context=Context())
        return self._list(batch)

    # The same on an event loop

    async def run_there(self, items: list[int]) -> Any:
        batch = self.history.batch(buffer_here(self.name), items)
        batch.way = way = self._way(items)
        if way == "generator":
            return self._generator_there(batch)
        try:
            for _ in range(self.rng.randrange(3)):
                await asyncio.sleep(0)
            if way == "slow":
                await asyncio.sleep(self.rng.random() * 0.004)
            if way == "inside":
                await self._inside_there(batch)
                way = "list"
            if way == "exiting":
                batch.fail(BatchError)
                raise self.rng.choice((SystemExit, asyncio.CancelledError))(batch.number)
            return getattr(self, f"_{way}")(batch)
        except (asyncio.CancelledError, GeneratorExit):  # from outside
            batch.fail(BatchError)
            raise
        finally:
            batch.end()

    async def _generator_there(self, batch: BatchRecord) -> AsyncIterator[int]:
        results = self._generator(batch)
        try:
            for result in results:
                yield result
                await asyncio.sleep(0)
        except (asyncio.CancelledError, GeneratorExit):
            batch.fail(BatchError)
            raise
        finally:
            batch.end()

    async def _inside_there(self, batch: BatchRecord) -> None:
        f = self.again()
        if f is not None:
            called = self._nested_call(batch, self, batch.buffer)
            try:
                await settle_there(called, f(called.token))
                submitted = self._nested_call(batch, self, batch.buffer)
                await settle_there(submitted, self._submitted_inside(f, submitted))
            finally:
                self.history.leave(called.submitter)  # the batch was cancelled

    @staticmethod
    async def _submitted_inside(f: Any, call: CallRecord) -> Any:
        return await f.submit(call.token)  # it may be refused, which is not to be what the function raises


# Callers


def settle(call: CallRecord, result: Callable[[], object]) -> None:
    """Record how a call ends that blocks."""
    try:
        value = result()
    except (ClosedError, BufferFullError) as error:
        call.end("refused", error)
    except CancelledError:
        call.end("cancelled")
    except Exception as error:
        call.end("error", error)
    else:
        call.end("result", value)


async def settle_there(call: CallRecord, result: Any) -> None:
    """Record how a call ends that is awaited."""
    try:
        value = await result
    except (ClosedError, BufferFullError) as error:
        call.end("refused", error)
    except asyncio.CancelledError:
        call.end("cancelled")
        raise
    except Exception as error:
        call.end("error", error)
    else:
        call.end("result", value)


class Options:
    """Changes the options of a function."""

    def __init__(self, function: Function, f: Any, rng: Random, timeouts: Sequence[float | None]) -> None:
        self.function, self.f, self.rng, self.timeouts = function, f, rng, timeouts

    def change(self) -> None:
        history = self.function.history
        history.events.append("option changes")
        if self.rng.random() < 0.5:
            size = self.rng.choice((1, 2, 3, 5, 8, 100))
            with history.limit(self.function.name, size):
                self.f.batch_size = size
        else:
            self.f.timeout = self.rng.choice(self.timeouts)

    def flush(self) -> None:
        self.function.history.events.append("flushes")
        self.f.flush()

    def _how_to_close(self) -> dict[str, Any]:
        return self.rng.choice(({}, {}, {"timeout": 0.001}, {"cancel_pending": True}))

    @contextmanager
    def block(self) -> Iterator[None]:
        """Open it for a block, as `with` does."""
        history, name = self.function.history, self.function.name
        with history.act("enter", name) as entered:
            self.f.__enter__()
        try:
            yield
        finally:
            with history.act("exit", name, entered=entered):
                self.f.__exit__(None, None, None)

    @asynccontextmanager
    async def block_there(self) -> AsyncIterator[None]:
        history, name = self.function.history, self.function.name
        with history.act("enter", name) as entered:
            await self.f.__aenter__()
        try:
            yield
        finally:
            with history.act("exit", name, entered=entered):
                await self.f.__aexit__(None, None, None)

    def close(self) -> None:
        how = self._how_to_close()
        with (
            suppress(TimeoutError),
            self.function.history.act("close", self.function.name, cancels="cancel_pending" in how),
        ):
            self.f.close(**how)

    async def aclose(self, buffer: str) -> None:
        how = self._how_to_close()
        with suppress(TimeoutError), self.function.history.act("close", buffer, cancels="cancel_pending" in how):
            await self.f.aclose(**how)

    def _timeout(self) -> float | None:
        return self.rng.choice((None, None, 0.0, 0.001))

    def drain(self) -> None:
        with suppress(TimeoutError), self.function.history.act("drain", self.function.name):
            self.f.drain(self._timeout())

    async def adrain(self, buffer: str) -> None:
        with suppress(TimeoutError), self.function.history.act("drain", buffer):
            await self.f.adrain(self._timeout())


class Caller:
    """A thread that calls a function in all ways there are. Ends with waiting for all its answers."""

    OPS = ("call", "submit", "submit", "submit", "cancel", "collect", "map", "chain", "flush", "change", "drain")

    def __init__(self, name: str, function: Function, f: Any, rng: Random, timeouts: Sequence[float | None]) -> None:
        self.name, self.function, self.f, self.rng = name, function, f, rng
        self.history = function.history
        self.options = Options(function, f, rng, timeouts)
        self.waiting: dict[CallRecord, Future[Any]] = {}
        self._others = count(1)  # submitters that this one begins: their items may wait apart from its own

    def work(self, steps: int, ops: Sequence[str] = OPS) -> None:
        for _ in range(steps):
            self.do(self.rng.choice(ops))
        self.collect()

    def do(self, op: str) -> None:
        getattr(self, op)()

    def call(self) -> None:
        call = self.history.call(self.name, self.function.name, "call")
        settle(call, lambda: self.f(call.token))

    def submit(self) -> None:
        self._submit(self.history.call(self.name, self.function.name, "submit"))

    def _submit(self, call: CallRecord) -> "Future[Any] | None":
        try:
            future: Future[Any] = self.f.submit(call.token)
        except (ClosedError, BufferFullError) as error:
            call.end("refused", error)
            return None
        call.accepted = moment()
        self.waiting[call] = future
        if call.how == "submit" and self.function.shares:
            self.function.share(call, future)
        return future

    def cancel(self) -> None:
        for call in self.rng.sample(list(self.waiting), min(len(self.waiting), 2)):
            future = self.waiting[call]
            if future.cancel():
                call.end("cancelled")
                del self.waiting[call]
            elif not (isinstance(future, _Chained) or future.running() or future.done()):
                self.history.seen.append(Violation("running", f"{call} cannot be cancelled, and does not run"))

    def collect(self) -> None:
        while self.waiting:  # a chain may add some meanwhile
            for call, future in list(self.waiting.items()):
                settle(call, future.result)
                self.waiting.pop(call, None)

    def chain(self) -> None:
        """Submit another item when the first one is answered: in a callback, so mostly on the flush thread."""
        submitter = f"{self.name} chain {next(self._others)}"
        first = self._submit(self.history.call(submitter, self.function.name, "chain"))
        second = self.history.call(submitter, self.function.name, "chain")
        submitted: Future[Future[Any]] = Future()

        def submit_second(_: object) -> None:
            try:
                future = self.f.submit(second.token)
            except (ClosedError, BufferFullError) as error:
                submitted.set_exception(error)
            else:
                second.accepted = moment()
                submitted.set_result(future)

        if first is None:
            second.end("refused")
            return
        first.add_done_callback(submit_second)
        self.waiting[second] = _Chained(submitted)

    def map(self) -> None:
        """Run through a map, or drop it on the way."""
        submitter = f"{self.name} map {next(self._others)}"
        size, stop = self.rng.randint(0, 30), self.rng.choice((40, 40, 3))
        read: list[CallRecord] = []

        def items() -> Iterator[int]:
            for _ in range(size):
                read.append(self.history.call(submitter, self.function.name, "map"))
                yield read[-1].token

        with closing(self.f.map(list(items()) if self.rng.random() < 0.5 else items())) as results:
            try:
                for position, result in enumerate(results):
                    read[position].end("result", result)
                    if position >= stop:
                        break
            except ClosedError:
                pass
            except Exception as error:
                next(call for call in read if call.outcome is None).end("error", error)
        self.history.leave(submitter)

    def flush(self) -> None:
        self.options.flush()

    def change(self) -> None:
        self.options.change()

    def drain(self) -> None:
        self.options.drain()


class _Chained(Future[Any]):
    """What becomes of an item that a callback submits."""

    def __init__(self, submitted: "Future[Future[Any]]") -> None:
        super().__init__()
        self._submitted = submitted

    def result(self, timeout: float | None = None) -> Any:
        return self._submitted.result(timeout).result(timeout)

    def cancel(self) -> bool:
        return self._submitted.done() and self._submitted.exception() is None and self._submitted.result().cancel()


class LoopCaller:
    """A coroutine that calls a function in all ways there are: an `async def` one, or with `aio` a `def` one."""

    def __init__(
        self, name: str, function: Function, f: Any, rng: Random, timeouts: Sequence[float | None], *, aio: bool
    ) -> None:
        self.name, self.function, self.f, self.rng, self.aio = name, function, f, rng, aio
        self.history = function.history
        self.buffer = function.name if aio else buffer_here(function.name)
        self.options = Options(function, f, rng, timeouts)
        self.tasks: list[asyncio.Task[None]] = []
        self.waiting: dict[CallRecord, asyncio.Future[Any]] = {}
        self._others = count(1)

    async def work(self, steps: int) -> None:
        common = ("ask", "ask", "cancel", "flush", "change", "turn", "turn", "drain")
        for _ in range(steps):
            op = self.rng.choice(common if self.aio else (*common, "submit", "submit", "cancel_future", "map"))
            if op == "turn":
                await asyncio.sleep(0)
            else:
                getattr(self, op)()
        await self.collect()

    async def collect(self) -> None:
        await asyncio.gather(*self.tasks, return_exceptions=True)
        for call, future in self.waiting.items():
            await settle_there(call, future)
        self.waiting.clear()
        if not self.aio:
            # Also what runs for callers that have all left: asyncio.run() would cut it off, and a batch from inside
            # that is cancelled before its first step counts, but calls no function.
            await inside.all_on_this_loop_is_answered(self.f)
            while any(call.outcome is None for call in self.function.passed[self.buffer]):  # by one of the last
                await inside.all_on_this_loop_is_answered(self.f)

    def ask(self) -> None:
        for _ in range(self.rng.randint(1, 4)):
            self.tasks.append(asyncio.create_task(self._ask()))

    async def _ask(self) -> None:
        call = self.history.call(self.name, self.buffer, "aio" if self.aio else "coroutine")
        await settle_there(call, self.f.aio(call.token))

    def cancel(self) -> None:
        if self.tasks:
            self.rng.choice(self.tasks).cancel()

    def submit(self) -> None:
        call = self.history.call(self.name, self.buffer, "loop submit")
        try:
            self.waiting[call] = self.f.submit(call.token)
        except (ClosedError, BufferFullError) as error:
            call.end("refused", error)
        else:
            call.accepted = moment()

    def cancel_future(self) -> None:
        if self.waiting:
            call = self.rng.choice(list(self.waiting))
            if self.waiting[call].cancel():
                call.end("cancelled")
                del self.waiting[call]

    def map(self) -> None:
        self.tasks.append(asyncio.create_task(self._map(f"{self.name} map {next(self._others)}")))

    async def _map(self, submitter: str) -> None:
        size, stop = self.rng.randint(0, 30), self.rng.choice((40, 40, 3))
        read: list[CallRecord] = []

        def items() -> Iterator[int]:
            for _ in range(size):
                read.append(self.history.call(submitter, self.buffer, "loop map"))
                yield read[-1].token

        async def items_there() -> AsyncIterator[int]:
            for token in items():
                yield token
                await asyncio.sleep(0)

        position = 0
        try:
            async with aclosing(self.f.map(self.rng.choice((items, items_there))())) as results:
                async for result in results:
                    read[position].end("result", result)
                    position += 1
                    if position > stop:
                        break
        except ClosedError:
            pass
        except Exception as error:
            read[position].end("error", error)
        finally:
            self.history.leave(submitter)

    def flush(self) -> None:
        self.options.flush()

    def change(self) -> None:
        self.options.change()

    def drain(self) -> None:
        self.tasks.append(asyncio.create_task(self.options.adrain(self.buffer)))
