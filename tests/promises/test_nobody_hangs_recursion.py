"""Nobody hangs where the recursion limit is reached in the midst of a call: that call alone fails, and others go on."""

import asyncio
import gc
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from typing import Any

import pytest

from ..kit import Threads, anegate, batched, move, run, settle
from ..tools import until

pytestmark = [
    pytest.mark.thread_unsafe(reason="changes the recursion limit of all"),
    pytest.mark.usefixtures("no_collector"),  # as for what others do at each collection there may be no room
]


@contextmanager
def recursion_limit(limit: int) -> Iterator[None]:
    """Reach it soon, and so at many places."""
    before = sys.getrecursionlimit()
    frame, depth = sys._getframe(), 0
    while frame.f_back is not None:
        frame, depth = frame.f_back, depth + 1
    sys.setrecursionlimit(depth + limit)
    try:
        yield
    finally:
        sys.setrecursionlimit(before)


def until_it_fails(call: Callable[[int], object], depth: int = 0) -> None:
    call(depth)
    until_it_fails(call, depth + 1)


def fails_in_a_thread(call: Callable[[int], object]) -> None:
    """Not on the main thread, where the watchdog would need some frames too."""

    def fail() -> None:
        with suppress(RecursionError):
            until_it_fails(call)

    thread = threading.Thread(target=fail, daemon=True)
    thread.start()
    until(lambda: not thread.is_alive())


@pytest.mark.parametrize("how", ["call", "submit", "cancel", "flush", "map"])
def test_recursion_limit_in_the_midst_of_a_call_hurts_no_other_call(threads: Threads, how: str) -> None:
    for limit in range(60, 90):  # so that it is reached at one place after the other
        f = threads(batch_size=8)
        f(0)
        calls: dict[str, Callable[[int], object]] = {
            "call": f,
            "submit": f.submit,
            "cancel": lambda item: f.submit(item).cancel(),  # noqa: B023 - run at once
            "flush": lambda _: f.flush(),  # noqa: B023
            "map": lambda item: list(f.map([item])),  # noqa: B023
        }
        with recursion_limit(limit):
            fails_in_a_thread(calls[how])
        assert threads.outcomes(threads.starts(f, [1, 2, 3])) == [-1, -2, -3]


def test_recursion_limit_in_the_midst_of_a_cancel_on_a_loop_hurts_no_other_call() -> None:
    async def main(limit: int) -> None:
        f = batched(batch_size=9, timeout=1.0)(anegate)
        future = f.submit(1)
        with recursion_limit(limit), pytest.raises(RecursionError):
            cancel_at_the_bottom(future)
        following = f.submit(2)
        await settle()
        for _ in range(3):
            await move(1.0)
        assert following.result() == -2

    def cancel_at_the_bottom(future: Any) -> None:
        try:
            cancel_at_the_bottom(future)
        except RecursionError:
            future.cancel()  # in the deepest frames there is no room for all that belongs to it
            raise

    for limit in range(60, 90):
        run(main(limit))


@pytest.mark.parametrize("how", ["submit", "cancel", "flush"])
def test_recursion_limit_in_the_midst_of_a_call_on_a_loop_hurts_no_other_call(how: str) -> None:
    async def main(limit: int) -> None:
        f = batched(batch_size=8)(anegate)
        await f(0)
        calls: dict[str, Callable[[int], object]] = {
            "submit": f.submit,
            "cancel": lambda item: f.submit(item).cancel(),
            "flush": lambda _: f.flush(),
        }
        with recursion_limit(limit), pytest.raises(RecursionError):
            until_it_fails(calls[how])
        assert await asyncio.gather(*map(f, (1, 2, 3))) == [-1, -2, -3]

    for limit in range(60, 90):
        run(main(limit))


# In the deepest frames there is no room to close a coroutine that was just made, and Python tells of it.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore:coroutine:RuntimeWarning")
def test_recursion_limit_in_the_midst_of_a_call_on_a_loop_leaves_a_waiting_item_its_time() -> None:
    async def main(limit: int) -> None:
        f = batched(batch_size=2, timeout=1.0)(anegate)
        waits = f.submit(-1)
        with recursion_limit(limit), pytest.raises(RecursionError):
            submit_at_the_bottom(f)
        await settle()
        for _ in range(3):
            await move(1.0)
        assert waits.result() == 1

    def submit_at_the_bottom(f: Any) -> None:
        try:
            submit_at_the_bottom(f)
        except RecursionError:
            f.submit(2)  # in the deepest frames there is no room for all that belongs to it
            raise

    for limit in range(60, 90):
        run(main(limit))


def at_depth(depth: int, call: Callable[[], object]) -> None:
    if depth:
        at_depth(depth - 1, call)
    else:
        call()


def complete_near_the_limit(engine: "Future[list[int]]", room: int) -> None:
    """Complete a future on a thread that has room for so many more frames."""

    def complete() -> None:
        depth = 0
        with suppress(RecursionError):
            while True:
                at_depth(depth, int)
                depth += 1
        with suppress(RecursionError):
            at_depth(depth - room, lambda: engine.set_result([-1]))

    thread = threading.Thread(target=complete, daemon=True)
    thread.start()
    until(lambda: not thread.is_alive())


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_recursion_limit_as_an_engine_completes_its_future_spares_the_next_call(threads: Threads) -> None:
    def function(items: list[int]) -> Any:
        return engines.pop() if engines else items

    for room in range(2, 40):
        engines: list[Future[list[int]]] = [Future()]
        engine = engines[0]
        f = threads(function, batch_size=1)
        f.submit(1)
        until(lambda: not engines and f.stats.in_flight == 1)  # noqa: B023 - run at once
        with recursion_limit(100):
            complete_near_the_limit(engine, room)
        if not engine.done():
            engine.set_result([-1])  # there was no room for that
        del engine
        gc.collect()
        assert threads.outcome(f.submit(2)) == 2, room
