"""Called back, or interrupted, at any line: what finalizers, weak-reference callbacks, signal handlers and Ctrl-C do.

A tracer lets it happen at the first line of the package that a thread executes, then in another run at the second, and
so on until there are no more.
"""

import asyncio
import dis
import gc
import linecache
import sys
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import Future
from contextlib import aclosing, contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import batchify
from batchify import BatchError, BufferFullError, ClosedError
from batchify import _asyncio as asyncio_module
from batchify import _threads as threads_module

from .tools import batched, until

pytestmark = pytest.mark.thread_unsafe(reason="traces its thread")

# What is known of threads while they work for a batcher: nothing may be left of it on this one.
THREADS = (threads_module._flushing, threads_module._delivering, threads_module._passed)


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    yield
    assert not threads_module._lock._is_owned()  # type: ignore[attr-defined]
    assert not asyncio_module._lock._is_owned()  # type: ignore[attr-defined]
    assert not any(threading.get_ident() in table for table in THREADS)
    assert not threads_module._waits_for


PACKAGE = str(Path(batchify.__file__).parent)


class Intruder:
    """Does something when its thread comes to the n-th line of the package."""

    def __init__(self, at: int, action: Callable[[], object]) -> None:
        self.at, self.action, self.line = at, action, 0
        self.where = ""  # at which it happened
        self.error: BaseException | None = None  # that the action raised, where it should not

    def trace(self, frame: FrameType, event: str, _: object) -> Any:
        if not frame.f_code.co_filename.startswith(PACKAGE) or self.where:
            return None
        if event == "line" and not _nothing_happens(frame):
            self.line += 1
            if self.line == self.at:
                sys.settrace(None)
                self.where = f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
                try:
                    self.action()
                except KeyboardInterrupt:
                    raise
                except BaseException as error:
                    self.error = error
        return self.trace

    @contextmanager
    def on_this_thread(self) -> Iterator[None]:
        sys.settrace(self.trace)
        try:
            yield
        finally:
            sys.settrace(None)


_nothing_happens_at: dict[tuple[int, int], bool] = {}  # by the id of the code, which the package keeps


def _nothing_happens(frame: FrameType) -> bool:
    """Whether this is no line to stop at: a mere `try:`, or the end of a `with _lock:` or the like.

    Before that, Python lets nothing happen (bpo-29988).
    """
    code, at = frame.f_code, frame.f_lasti
    found = _nothing_happens_at.get((id(code), at))
    if found is None:
        opcode = dis.opname[code.co_code[at]]
        text = linecache.getline(code.co_filename, frame.f_lineno)
        found = opcode == "NOP" or ("lock:" in text and not opcode.startswith(("LOAD_GLOBAL", "LOAD_FAST")))
        _nothing_happens_at[id(code), at] = found
    return found


def ctrl_c() -> None:
    raise KeyboardInterrupt


# What a thread does when it is called back. Each gets a function, a neighbour's future that waits in it, and a place to
# leave futures that must be answered.
Scenario = Callable[[Any, "Future[Any]"], object]


def submit_and_wait(f: Any, _: "Future[Any]") -> None:
    f.submit(1).result()


def submit_and_cancel(f: Any, _: "Future[Any]") -> None:
    f.submit(1).cancel()


def cancel_the_neighbour(_: Any, neighbour: "Future[Any]") -> None:
    neighbour.cancel()


def run_through_a_map(f: Any, _: "Future[Any]") -> None:
    assert list(f.map([1, 2, 3, 4, 5])) == [-1, -2, -3, -4, -5]


def drop_a_map(f: Any, _: "Future[Any]") -> None:
    results = f.map(iter([1, 2, 3, 4, 5]))
    assert next(results) == -1
    results.close()


def set_options(f: Any, _: "Future[Any]") -> None:
    f.timeout = 0.0
    f.batch_size = 1


def look(f: Any, _: "Future[Any]") -> None:
    assert f.stats.accepted >= 1


def await_it(f: Any, _: "Future[Any]") -> None:
    async def main() -> None:
        assert await f.aio(1) == -1

    loop = asyncio.new_event_loop()
    try:
        loop.run_until_complete(main())
    finally:
        for task in asyncio.all_tasks(loop):
            task.cancel()
            with suppress(asyncio.CancelledError):
                loop.run_until_complete(task)
        loop.close()


SCENARIOS: dict[str, Scenario] = {
    "call": lambda f, _: f(1),
    "submit": submit_and_wait,
    "cancel": submit_and_cancel,
    "cancel another's": cancel_the_neighbour,
    "map": run_through_a_map,
    "drop a map": drop_a_map,
    "flush": lambda f, _: f.flush(),
    "set options": set_options,
    "stats": look,
    "aio": await_it,
    "close": lambda f, _: f.close(),
}


def negate(items: list[int]) -> list[int]:
    return [-item for item in items]


@pytest.fixture(autouse=True)
def no_collector() -> Iterator[None]:
    """What garbage of another run does would make each run a different one."""
    gc.collect()
    gc.disable()
    gc.freeze()  # so that the collections below are short
    yield
    gc.enable()


def check(f: Any, futures: list["Future[Any]"], where: str) -> None:
    """What must hold afterwards: all is answered that was accepted, and the function goes on."""
    f.timeout = 0.0
    with suppress(ClosedError):
        assert f(7) == -7, where
    f.close()
    for future in futures:
        assert future.cancelled() or isinstance(future.result(), int), where
    stats = f.stats
    assert (stats.pending, stats.running, stats.in_flight) == (0, 0, 0), where
    assert stats.accepted == stats.answered + stats.cancelled, where
    f._self_batcher._check()
    assert not any(thread.is_alive() for thread in f._self_batcher._threads.values()), where


ALL_OPTIONS: dict[str, Any] = {
    "group_by": lambda _: "all",
    "weight": lambda _: 1,
    "max_weight": 2,
    "dedupe": True,
    "isolate": True,
    "concurrency": 2,
    "max_pending": 3,
    "on_batch": lambda _: None,
}
PLAIN_AND_ALL = pytest.mark.parametrize("options", [{}, ALL_OPTIONS], ids=["plain", "all"])


def function_and_neighbour(scenario: str, options: dict[str, Any], *, started: bool) -> tuple[Any, "Future[Any]"]:
    """A function in which an item of somebody else's waits, for company or, where the scenario does not bring any, for
    its timeout.
    """
    f = batched(batch_size=2, timeout=0.0, **options)(negate)
    if started:
        f(0)
    f.timeout = None
    neighbour = f.submit(5)
    f.timeout = 0.0 if scenario in ("call", "submit", "aio") else None
    return f, neighbour


# In the callback of a weak reference, by which a group is forgotten, Python swallows it, and tells.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@PLAIN_AND_ALL
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_ctrl_c_at_any_line_loses_nothing(scenario: str, options: dict[str, Any]) -> None:
    at, where = 0, "start"
    while where:
        at += 1
        f, neighbour = function_and_neighbour(scenario, options, started=at % 2 == 0)
        intruder = Intruder(at, ctrl_c)
        with suppress(KeyboardInterrupt), intruder.on_this_thread():
            SCENARIOS[scenario](f, neighbour)
        where = intruder.where
        check(f, [neighbour], where)
    assert at > 15


def test_ctrl_c_at_any_line_of_the_first_call_loses_nothing() -> None:
    at, where = 0, "start"
    while where:
        at += 1
        f = batched(batch_size=2, timeout=0.0)(negate)
        intruder = Intruder(at, ctrl_c)
        with suppress(KeyboardInterrupt), intruder.on_this_thread():
            f(1)
        where = intruder.where
        check(f, [], where)
    assert at > 15


ACTIONS = ["submit", "call", "close"]


@pytest.mark.filterwarnings("ignore:.*running event loop:RuntimeWarning")
@pytest.mark.parametrize(
    ("action", "options"),
    [*((action, {}) for action in ACTIONS), ("submit", ALL_OPTIONS)],
    ids=[*ACTIONS, "submit with all options"],
)
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_call_at_any_line_is_answered(scenario: str, action: str, options: dict[str, Any]) -> None:
    at, where = 0, "start"
    while where:
        at += 1
        f, neighbour = function_and_neighbour(scenario, options, started=at % 2 == 0)
        futures = [neighbour]
        intruder = Intruder(at, intrusion(action, f, futures))
        with suppress(ClosedError) if action == "close" else nullcontext(), intruder.on_this_thread():
            SCENARIOS[scenario](f, neighbour)
        where = intruder.where
        refusals = [ClosedError] * (scenario == "close") + [BufferFullError] * ("max_pending" in options)
        assert intruder.error is None or type(intruder.error) in refusals, where
        check(f, futures, where)
    assert at > 15


def intrusion(action: str, f: Any, futures: list["Future[Any]"]) -> Callable[[], object]:
    def call() -> None:
        f.flush()
        f.timeout = 0.0  # no company comes while this waits
        assert f(9) == -9

    def submit_and_close() -> None:
        futures.append(f.submit(9))
        f.close()

    actions: dict[str, Callable[[], object]] = {
        "submit": lambda: futures.append(f.submit(9)),
        "call": call,
        "close": f.close,
        "submit and close": submit_and_close,
    }
    return actions[action]


@pytest.mark.parametrize("action", [*ACTIONS, "submit and close"])
@pytest.mark.parametrize("form", ["list", "generator", "error"])
def test_a_call_at_any_line_of_the_flush_thread_is_answered(form: str, action: str) -> None:
    def function(items: list[int]) -> Any:
        if form == "error" and 1 in items:
            raise ValueError("one")
        return map(int.__neg__, items) if form == "generator" else negate(items)

    at, where = 0, "start"
    while where:
        at += 1
        f = batched(batch_size=2, timeout=0.0)(function)
        futures: list[Future[Any]] = []
        intruder = Intruder(at, intrusion(action, f, futures))
        threading.settrace(intruder.trace)
        with suppress(ClosedError):
            futures.append(f.submit(0))
        threading.settrace(None)
        for future in tuple(futures):
            assert future.result() in (0, -9), where
        with suppress(ValueError, ClosedError):
            f(1)
        f.close()
        assert not any(thread.is_alive() for thread in f._self_batcher._threads.values())
        where = intruder.where
        assert intruder.error is None or type(intruder.error) is ClosedError, where
        for future in futures:
            future.exception()
        stats = f.stats
        assert (stats.pending, stats.running, stats.in_flight) == (0, 0, 0), where
        assert stats.accepted == stats.answered + stats.failed, where
    assert at > 30


def test_ctrl_c_at_any_line_while_it_completes_an_engines_future_answers_everybody() -> None:
    uncounted: set[str] = set()
    at, where = 0, "start"
    while where:
        at += 1
        engines: list[Future[list[int]]] = [Future()]
        engine = engines[0]
        f = batched(batch_size=2, timeout=None)(partial(lambda engines, items: engines.pop(), engines))
        futures = [f.submit(1), f.submit(2)]
        until(lambda: f.stats.in_flight == 1)  # noqa: B023 - run at once
        intruder = Intruder(at, ctrl_c)
        try:
            with intruder.on_this_thread():
                engine.set_result([-1, -2])
        except KeyboardInterrupt:
            pass
        where = intruder.where
        del engine
        gc.collect()
        for future in futures:
            assert future.exception() is not None or future.result() in (-1, -2), where
        f.close()
        if (f.stats.running, f.stats.in_flight) != (0, 0):
            uncounted.add(where)
    assert at > 15
    assert len(uncounted) < 10  # only in the very lines that count


def test_ctrl_c_at_any_line_while_answers_come_home_to_a_loop_spares_the_neighbours() -> None:
    at, where = 0, "start"
    while where:
        at += 1
        f = batched(batch_size=3, timeout=None)(negate)
        loop = asyncio.new_event_loop()
        tasks = [loop.create_task(f.aio(item)) for item in (1, 2, 3)]
        intruder = Intruder(at, ctrl_c)
        with suppress(KeyboardInterrupt), intruder.on_this_thread():
            loop.run_until_complete(asyncio.wait(tasks))
        where = intruder.where
        f.timeout = 0.0  # the one it came to may have left before the batch was full
        for task in tasks:
            while not task.done():
                with suppress(KeyboardInterrupt):
                    loop.run_until_complete(asyncio.wait([task]))
        interrupted = [task for task in tasks if task.exception() is not None]
        assert len(interrupted) <= 1, where
        assert all(task in interrupted or task.result() == -item for item, task in enumerate(tasks, 1)), where
        loop.close()
        f.close()
    assert at > 15


# On an event loop, where one thread does both


async def answer(items: list[int]) -> list[int]:
    await asyncio.sleep(0)
    return negate(items)


def answer_behind(gate: asyncio.Event) -> Callable[[list[int]], Coroutine[Any, Any, list[int]]]:
    async def function(items: list[int]) -> list[int]:
        await gate.wait()
        return negate(items)

    return function


async def answer_one_by_one(items: list[int]) -> AsyncIterator[int]:
    for item in items:
        await asyncio.sleep(0)
        yield -item


async def submit_and_cancel_there(f: Any) -> None:
    futures = [f.submit(1), f.submit(2), f.submit(3)]
    futures[1].cancel()
    await asyncio.gather(futures[0], futures[2])


async def call_and_cancel_there(f: Any) -> None:
    tasks = [asyncio.create_task(f(item)) for item in (1, 2, 3)]
    await asyncio.sleep(0)
    tasks[1].cancel()
    await asyncio.gather(tasks[0], tasks[2])


async def items() -> AsyncIterator[int]:
    yield 1
    yield 2
    yield 3


async def map_there(f: Any) -> None:
    async with aclosing(f.map([1, 2, 3])) as results:
        assert [result async for result in results] == [-1, -2, -3]


async def map_items_that_come_there(f: Any) -> None:
    async with aclosing(f.map(items())) as results:
        assert [result async for result in results] == [-1, -2, -3]


async def drop_a_map_there(f: Any) -> None:
    async with aclosing(f.map(items())) as results:
        assert await anext(results) == -1


async def close_there(f: Any) -> None:
    await f.aclose()


THERE = {
    "submit": submit_and_cancel_there,
    "call": call_and_cancel_there,
    "map": map_there,
    "map items that come": map_items_that_come_there,
    "drop a map": drop_a_map_there,
    "close": close_there,
}


async def turns(number: int, enough: Callable[[], bool] = lambda: False) -> None:
    for _ in range(number):
        if enough():
            break
        await asyncio.sleep(0)


# Interrupted before its first step, a task leaves a coroutine that nobody awaited, of which Python tells.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore:coroutine:RuntimeWarning")
@pytest.mark.parametrize(
    ("function", "options"),
    [(answer, {}), (answer_one_by_one, {}), (answer, ALL_OPTIONS)],
    ids=["at once", "one by one", "with all options"],
)
@pytest.mark.parametrize("scenario", THERE)
def test_ctrl_c_at_any_line_on_a_loop_loses_nothing(
    scenario: str, function: Callable[..., Any], options: dict[str, Any]
) -> None:
    at, where = 0, "start"
    while where:
        at += 1
        f: Any = batched(batch_size=2, timeout=None, **options)(function)
        intruder = Intruder(at, ctrl_c)
        loop = asyncio.new_event_loop()
        loop.set_exception_handler(lambda *_: None)  # what it would log of Ctrl-C in each task takes long to write

        async def neighbour(f: Any = f) -> list[Any]:
            return [f.submit(5)]

        (other,) = loop.run_until_complete(neighbour())
        f.timeout = 0.0
        loop.run_until_complete(turns(1))
        main = loop.create_task(THERE[scenario](f))
        with suppress(KeyboardInterrupt, ClosedError, BatchError), intruder.on_this_thread():
            loop.run_until_complete(main)
        where = intruder.where
        # Whoever wants to go on after Ctrl-C: nobody is left waiting. It comes again through each task that waits for
        # the one it came to.
        for _ in range(5):
            with suppress(KeyboardInterrupt):
                loop.run_until_complete(turns(20, lambda: other.done() and len(asyncio.all_tasks()) == 1))  # noqa: B023
        assert main.done(), where
        if not main.cancelled():
            main.exception()
        assert other.done(), where
        assert isinstance(other.exception(), BatchError) or other.result() == -5, where

        async def afterwards(f: Any = f) -> None:
            with suppress(ClosedError):
                assert await f(7) == -7
            await f.aclose()

        loop.run_until_complete(afterwards())
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()
        gc.collect()  # the tasks, among which asyncio looks for those of the next loop
    assert at > 30


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore:coroutine:RuntimeWarning")
@PLAIN_AND_ALL
def test_ctrl_c_at_any_line_as_the_only_caller_on_a_loop_leaves_spares_the_next_one(options: dict[str, Any]) -> None:
    at, where = 0, "start"
    while where:
        at += 1
        f: Any = batched(batch_size=2, timeout=0.001, **options)(answer)
        intruder = Intruder(at, ctrl_c)

        async def leave(f: Any = f, intruder: Intruder = intruder) -> None:
            await f(0)
            with suppress(KeyboardInterrupt), intruder.on_this_thread():
                f.submit(1).cancel()

        async def come(f: Any = f) -> int:
            result: int = await f(2)
            return result

        with asyncio.Runner() as runner:
            with suppress(KeyboardInterrupt):
                runner.run(leave())
            assert runner.run(come()) == -2
        where = intruder.where
    assert at > 15


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore:coroutine:RuntimeWarning")
def test_ctrl_c_at_any_line_as_a_caller_on_a_loop_leaves_lets_in_who_waits_for_room() -> None:
    at, where = 0, "start"
    while where:
        at += 1
        gate = asyncio.Event()

        f: Any = batched(batch_size=2, max_pending=1)(answer_behind(gate))
        intruder = Intruder(at, ctrl_c)

        async def leave(f: Any = f, intruder: Intruder = intruder) -> "tuple[asyncio.Task[int], asyncio.Task[int]]":
            runs = asyncio.create_task(f(1))
            await turns(5)
            waits = f.submit(2)
            blocked = asyncio.create_task(f(3))
            await turns(5)
            assert f.stats.blocked == 1
            with suppress(KeyboardInterrupt), intruder.on_this_thread():
                waits.cancel()
            return runs, blocked

        async def come(tasks: "tuple[asyncio.Task[int], asyncio.Task[int]]", gate: asyncio.Event = gate) -> list[int]:
            gate.set()
            return list(await asyncio.gather(*tasks))

        with asyncio.Runner() as runner:
            assert runner.run(come(runner.run(leave()))) == [-1, -3]
        where = intruder.where
    assert at > 15
