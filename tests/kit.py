"""One set of words for `def` and `async def` functions, so that a promise that both keep has one test.

A test takes the fixture `kit` and runs twice: over threads, and over coroutines on an event loop. `threads` and
`coroutines` are the two alone.
"""

import asyncio
import functools
import threading
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Iterable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

from . import inside
from .tools import batched as batched_untyped
from .tools import until as until_thread

batched: Callable[..., Any] = batched_untyped
STOP: Any = object()  # what a generator function of `Kit.stream()` yields where it is to wait for `go_on()`
Steps = Generator[Any, Any, list[Any]]  # of a function of `Kit.steps()`


def negate(xs: list[int]) -> list[int]:
    return [-x for x in xs]


def echo(xs: list[Any]) -> list[Any]:
    return xs


class Kit:
    """The words that tests of both kinds of functions use. Remembers how the function was called."""

    kind = ""

    def __init__(self) -> None:
        self.calls: list[tuple[tuple[list[Any], ...], dict[str, Any]]] = []
        self.idents: set[int] = set()
        self.running = self.most = 0
        # By the names of functions of `steps()`: how many of their batches run and do not wait, and the most so far.
        self.awake: Counter[str] = Counter()
        self.most_awake: Counter[str] = Counter()
        self.idents_of: defaultdict[str, set[int]] = defaultdict(set)
        self.made: list[Any] = []
        self.events: list[Any] = []
        self._counts = threading.Lock()

    @property
    def batches(self) -> list[list[Any]]:
        """The first column of each call of the function."""
        return [args[0] for args, _ in self.calls]

    def __call__(self, function: Callable[..., Any] = negate, *, gated: bool = False, **options: Any) -> Any:
        """Decorate a function, as a coroutine function if need be. If `gated` it stops in each call until `go_on()`."""
        made = batched(**options)(self.wrap(function, gated=gated))
        self.made.append(made)
        return made

    def stream(self, function: Callable[..., Iterator[Any]], **options: Any) -> Any:
        """Decorate a generator function, asynchronous if need be. Where it yields `STOP` it waits for `go_on()`."""
        made = batched(**options)(self.wrap_stream(function))
        self.made.append(made)
        return made

    def answers(self, function: Callable[..., Any], *items: Any, **options: Any) -> list[Any]:
        """Let the function run one batch of these items, and close it; return each one's result, or its error."""
        f = self(function, **{"batch_size": len(items), "timeout": None, **options})
        found = self.outcomes(self.submits(f, items))
        self.close(f)
        return found

    def wrap(self, function: Callable[..., Any], *, gated: bool = False) -> Callable[..., Any]:
        """Return the function as one of this kind that is remembered here, to be decorated by the test itself."""
        raise NotImplementedError

    def wrap_stream(self, function: Callable[..., Iterator[Any]]) -> Callable[..., Any]:
        """As wrap(), of a generator function, for `stream()`."""
        raise NotImplementedError

    def steps(self, function: Callable[..., Steps], **options: Any) -> Any:
        """Decorate a function that waits inside: a generator, in which `yield f, x` is `f(x)`, or `await f(x)`.

        `yield future` waits for a future, `yield f.map, xs` for all its results, `yield kit.anext, results` for one.
        """
        made = batched(**options)(self.wrap_steps(function))
        self.made.append(made)
        return made

    def wrap_steps(self, function: Callable[..., Steps]) -> Callable[..., Any]:
        raise NotImplementedError

    def wakes(self, name: str) -> None:
        with self._counts:
            self.idents_of[name].add(threading.get_ident())
            self.awake[name] += 1
            self.most_awake[name] = max(self.most_awake[name], self.awake[name])

    def sleeps(self, name: str) -> None:
        with self._counts:
            self.awake[name] -= 1

    @contextmanager
    def waits(self, name: str, awaited: Any) -> Iterator[None]:
        """In this block the function waits, which the library sees unless it waits for an event of the test's own."""
        own = [self.while_it_waits, *(event.wait for event in self.events)]
        seen = not (isinstance(awaited, tuple) and awaited[0] in own)
        if seen:
            self.sleeps(name)
        try:
            yield
        finally:
            if seen:
                self.wakes(name)

    async def follow(self, name: str, steps: Steps, wait: Callable[[Any], Coroutine[Any, Any, Any]]) -> Any:
        """Run a function of `steps()` of that name, and return its result; `wait` for each thing that it yields."""
        self.wakes(name)
        try:
            step: Callable[[], Any] = functools.partial(next, steps)
            while True:
                try:
                    awaited = step()
                except StopIteration as end:
                    return end.value
                try:
                    step = functools.partial(steps.send, await wait(awaited))
                except BaseException as error:
                    step = functools.partial(steps.throw, error)
        finally:
            self.sleeps(name)

    def event(self) -> Any:
        """Make an event, which is set at the end. The function waits for it by `yield (event.wait,)`."""
        event = threading.Event() if self.kind == "threads" else asyncio.Event()
        self.events.append(event)
        return event

    def enter(self, args: Any, constants: dict[str, Any]) -> None:
        with self._counts:
            self.calls.append((tuple(arg.copy() for arg in args if isinstance(arg, list)), constants))
            self.idents.add(threading.get_ident())
            self.running += 1
            self.most = max(self.most, self.running)

    def leave(self) -> None:
        with self._counts:
            self.running -= 1

    def outcomes(self, handles: Any) -> list[Any]:
        return [self.outcome(handle) for handle in handles]

    def submits(self, f: Any, items: Any) -> list[Any]:
        return [self.submit(f, item) for item in items]

    def starts(self, f: Any, items: Any) -> list[Any]:
        return [self.start(f, item) for item in items]

    def until_runs(self, batches: int) -> None:
        """Wait until the function has been called so often."""
        self.until(lambda: len(self.calls) >= batches)

    def busy(self, f: Any, item: Any) -> Any:
        """Let the gated function be busy with that item."""
        begun = len(self.calls)
        handle = self.submit(f, item)
        self.flush(f)
        self.until_runs(begun + 1)
        return handle

    def until_waits(self, f: Any, *, pending: int) -> None:
        self.until(lambda: f.stats.pending == pending)

    def until_idle(self, f: Any) -> None:
        """Wait until all batches have ended, and so all is counted."""
        self.until(lambda: f.stats.in_flight == 0)

    def consistent(self, f: Any) -> None:
        """All that was accepted is at its end, and counted once."""
        stats = f.stats
        assert stats.accepted == stats.answered + stats.failed + stats.cancelled
        assert (stats.pending, stats.running, stats.in_flight) == (0, 0, 0)
        assert sum(stats.sizes.values()) == sum(stats.reasons.values()) == stats.batches
        assert {reason: sum(sizes.values()) for reason, sizes in stats.sizes_by_reason.items()} == stats.reasons

    # Each kind in its own way:

    def anext(self, results: Any) -> Any:
        """To be yielded: get the next result of a map from inside."""

    def while_it_waits(self, f: Any) -> Any:
        """To be yielded: go on once the function of `f` waits for an answer from another function."""

    def submit(self, f: Any, *args: Any, **constants: Any) -> Any:
        """Return the future of `f.submit()`, made where this kind's callers are."""

    def start(self, f: Any, *args: Any, **constants: Any) -> Any:
        """Call, and return a handle of that call. Returns when the call waits, or has ended."""

    def outcome(self, handle: Any) -> Any:
        """Wait for a handle or future; return its result or its error."""

    def map(self, f: Any, *args: Any, **constants: Any) -> Iterator[Any]:
        """Iterate over `f.map()`."""
        raise NotImplementedError

    def until(self, condition: Callable[[], bool]) -> None:
        """Wait until that is so. The watchdog ends it if that never happens."""

    def settle(self, *functions: Any) -> None:
        """Wait until nothing will happen by itself before time goes by or somebody acts.

        What has not happened to these functions by now does not happen: a test may say so without waiting.
        """

    def stop_the_clock(self) -> None:
        """From now on time goes by in `move()` only, for functions that are decorated after this."""

    def move(self, seconds: float) -> None:
        """Let time go by, after `stop_the_clock()`."""

    def go_on(self, batches: int = 1) -> None:
        """Let so many calls of gated functions go on."""

    def flush(self, f: Any) -> None: ...
    def close(self, f: Any) -> None: ...

    def start_close(self, f: Any, **options: Any) -> Any:
        """Close in the background, and return a handle of that. Returns when calls are refused."""

    def end(self) -> None: ...


class Threads(Kit):
    kind = "threads"

    def __init__(self) -> None:
        super().__init__()
        self.let_on = threading.Semaphore(0)
        self._clock: inside.HandClock | None = None
        self._stack = ExitStack()

    def wrap(self, function: Callable[..., Any], *, gated: bool = False) -> Callable[..., Any]:
        @functools.wraps(function)
        def run(*args: Any, **constants: Any) -> Any:
            self.enter(args, constants)
            try:
                if gated:
                    self.let_on.acquire(timeout=150)
                return function(*args, **constants)
            finally:
                self.leave()

        return run

    def wrap_stream(self, function: Callable[..., Iterator[Any]]) -> Callable[..., Any]:
        @functools.wraps(function)
        def run(*args: Any, **constants: Any) -> Iterator[Any]:
            self.enter(args, constants)
            try:
                for result in function(*args, **constants):
                    if result is STOP:
                        self.let_on.acquire(timeout=150)
                    else:
                        yield result
                    del result  # or it would be kept until the next one
            finally:
                self.leave()

        return run

    def wrap_steps(self, function: Callable[..., Steps]) -> Callable[..., Any]:
        name = function.__name__

        async def wait(awaited: Any) -> Any:
            with self.waits(name, awaited):
                if isinstance(awaited, Future):
                    return awaited.result()
                value = awaited[0](*awaited[1:])
                return list(value) if isinstance(value, Iterator) else value

        @functools.wraps(function)
        def run(*args: Any, **constants: Any) -> Any:
            try:
                self.follow(name, function(*args, **constants), wait).send(None)
            except StopIteration as end:  # always, as what it awaits blocks
                return end.value

        return self.wrap(run)

    def anext(self, results: Any) -> Any:
        return next(results)

    def while_it_waits(self, f: Any) -> Any:
        until_thread(lambda: all(inside.waits_inside(thread.ident or 0) for thread in inside.threads_of(f)))

    def submit(self, f: Any, *args: Any, **constants: Any) -> Any:
        return f.submit(*args, **constants)

    def start(self, f: Any, *args: Any, **constants: Any) -> Any:
        handle: Future[Any] = Future()
        handle.set_running_or_notify_cancel()  # a thread cannot leave
        before = f.stats.accepted

        def call() -> None:
            try:
                handle.set_result(f(*args, **constants))
            except BaseException as error:
                handle.set_exception(error)

        threading.Thread(target=call, daemon=True).start()
        until_thread(lambda: handle.done() or f.stats.accepted > before)
        return handle

    def outcome(self, handle: Any) -> Any:
        try:
            return handle.result()
        except BaseException as error:
            if not handle.done():
                raise  # the watchdog
            return error

    def map(self, f: Any, *args: Any, **constants: Any) -> Iterator[Any]:
        yield from f.map(*args, **constants)

    def until(self, condition: Callable[[], bool]) -> None:
        until_thread(condition)

    def settle(self, *functions: Any) -> None:
        for f in functions or self.made:
            until_thread(functools.partial(inside.is_at_rest, f))

    def stop_the_clock(self) -> None:
        if self._clock is None:
            self._clock = inside.HandClock()
            self._stack.enter_context(self._clock.in_place())

    def move(self, seconds: float) -> None:
        assert self._clock is not None
        self.settle()  # else a thread that is about to sleep would do so until later
        self._clock.move(seconds)
        self.settle()

    def go_on(self, batches: int = 1) -> None:
        self.let_on.release(batches)

    def flush(self, f: Any) -> None:
        f.flush()

    def close(self, f: Any) -> None:
        f.close()

    def start_close(self, f: Any, **options: Any) -> Any:
        handle: Future[Any] = Future()
        handle.set_running_or_notify_cancel()

        def close() -> None:
            try:
                handle.set_result(f.close(**options))
            except BaseException as error:
                handle.set_exception(error)

        threading.Thread(target=close, daemon=True).start()
        until_thread(lambda: inside.is_closed(f))
        return handle

    def end(self) -> None:
        self.go_on(500)
        for event in self.events:
            event.set()
        for f in self.made:
            inside.begin_to_close(f)
            for thread in inside.threads_of(f):
                thread.join(20)  # after a failure it may never end
        self._stack.close()


class HandLoop(asyncio.SelectorEventLoop):
    """A loop on whose clock only `move()` lets time go by."""

    moment = 0.0

    def time(self) -> float:
        return self.moment

    def timers(self) -> int:
        return sum(not handle.cancelled() for handle in self._scheduled)  # type: ignore[attr-defined]


class Coroutines(Kit):
    kind = "coroutines"

    def __init__(self) -> None:
        super().__init__()
        self.loop = HandLoop()
        self.let_on = asyncio.Semaphore(0)

    def run(self, steps: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(steps)

    def wrap(self, function: Callable[..., Any], *, gated: bool = False) -> Callable[..., Any]:
        @functools.wraps(function)
        async def run(*args: Any, **constants: Any) -> Any:
            self.enter(args, constants)
            try:
                if gated:
                    await self.let_on.acquire()
                return function(*args, **constants)
            finally:
                self.leave()

        return run

    def wrap_stream(self, function: Callable[..., Iterator[Any]]) -> Callable[..., Any]:
        @functools.wraps(function)
        async def run(*args: Any, **constants: Any) -> AsyncIterator[Any]:
            self.enter(args, constants)
            try:
                for result in function(*args, **constants):
                    if result is STOP:
                        await self.let_on.acquire()
                    else:
                        yield result
                    del result  # or it would be kept until the next one
            finally:
                self.leave()

        return run

    def wrap_steps(self, function: Callable[..., Steps]) -> Callable[..., Any]:
        name = function.__name__

        async def wait(awaited: Any) -> Any:
            with self.waits(name, awaited):
                value = awaited if isinstance(awaited, asyncio.Future) else awaited[0](*awaited[1:])
                return [each async for each in value] if hasattr(value, "__aiter__") else await value

        @functools.wraps(function)
        async def run(*args: Any, **constants: Any) -> Any:
            self.enter(args, constants)
            try:
                return await self.follow(name, function(*args, **constants), wait)
            finally:
                self.leave()

        return run

    def anext(self, results: Any) -> Any:
        return anext(results)

    def while_it_waits(self, f: Any) -> Any:
        return settle()

    def submit(self, f: Any, *args: Any, **constants: Any) -> Any:
        async def submit() -> list[Any]:
            return [f.submit(*args, **constants)]

        return self.run(submit())[0]

    def start(self, f: Any, *args: Any, **constants: Any) -> Any:
        task = self.loop.create_task(f(*args, **constants))
        self.turn(3)
        return task

    def turn(self, turns: int = 20) -> None:
        async def turn() -> None:
            for _ in range(turns):
                await asyncio.sleep(0)

        self.run(turn())

    def outcome(self, handle: Any) -> Any:
        try:
            return self.loop.run_until_complete(handle)
        except BaseException as error:
            if not handle.done():
                raise  # the watchdog
            return error

    def map(self, f: Any, *args: Any, **constants: Any) -> Iterator[Any]:
        results = f.map(*args, **constants)
        try:
            while True:
                with suppress(StopAsyncIteration):
                    yield self.run(anext(results))
                    continue
                return
        finally:
            self.run(results.aclose())

    def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self.turn(1)

    def settle(self, *functions: Any) -> None:
        self.turn()

    def move(self, seconds: float) -> None:
        self.loop.moment += seconds
        self.turn()

    def go_on(self, batches: int = 1) -> None:
        for _ in range(batches):
            self.let_on.release()
        self.turn()

    def flush(self, f: Any) -> None:
        async def flush() -> None:
            f.flush()

        self.run(flush())
        self.turn(3)

    def close(self, f: Any) -> None:
        self.run(f.aclose())

    def start_close(self, f: Any, **options: Any) -> Any:
        task = self.loop.create_task(f.aclose(**options))
        self.turn(3)
        return task

    def end(self) -> None:
        self.let_on._value = 10**6
        self.let_on.release()
        self.let_on = asyncio.Semaphore(10**6)
        for event in self.events:
            event.set()
        for f in self.made:
            self.close(f)
        self.turn(3)
        self.loop.close()


KINDS: dict[str, type[Kit]] = {"threads": Threads, "coroutines": Coroutines}


@contextmanager
def new_kit(kind: str) -> Iterator[Kit]:
    """A kit for one example of Hypothesis, which gives all examples of a test the same fixture."""
    kit = KINDS[kind]()
    try:
        yield kit
    finally:
        kit.end()


# What tests of `async def` functions alone need, which are coroutines themselves: `run(main())`.


def run(main: Coroutine[Any, Any, Any]) -> Any:
    with asyncio.Runner(loop_factory=HandLoop) as runner:
        return runner.run(main)


def here() -> HandLoop:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, HandLoop)
    return loop


async def settle() -> None:
    """Let the loop turn until all that can happen now has happened."""
    for _ in range(20):
        await asyncio.sleep(0)


async def move(seconds: float) -> None:
    here().moment += seconds
    await settle()


def tasks(calls: Iterable[Coroutine[Any, Any, Any]]) -> list["asyncio.Task[Any]"]:
    return [asyncio.get_running_loop().create_task(call) for call in calls]


def our_tasks() -> list["asyncio.Task[Any]"]:
    return [task for task in asyncio.all_tasks() if task.get_name().startswith("batchify")]


async def outcomes(awaitables: Iterable[Any]) -> list[Any]:
    return list(await asyncio.gather(*awaitables, return_exceptions=True))


async def together(*awaitables: Any) -> list[Any]:
    return list(await asyncio.gather(*awaitables))


async def anegate(items: list[int]) -> list[int]:
    return [-item for item in items]


class AsyncGated:
    """An `async def` list function that stops in each call until it is let on, and remembers its batches."""

    def __init__(self) -> None:
        self.batches: list[list[Any]] = []
        self.let_on = asyncio.Semaphore(0)
        self.running = self.most = 0

    async def __call__(self, items: list[Any]) -> Any:
        self.batches.append(list(items))
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await self.let_on.acquire()
            return [-item for item in items]
        finally:
            self.running -= 1

    async def go_on(self, batches: int = 1) -> None:
        for _ in range(batches):
            self.let_on.release()
        await settle()
