"""Coroutines that call from inside the function are answered, and nothing is kept of such calls."""

import asyncio
import gc
import logging
import weakref
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any

import pytest

from batchify import BatchError, BatchReport, ClosedError

from ..kit import Coroutines, anegate, batched, here, our_tasks, run, settle, tasks, together

pytestmark = pytest.mark.usefixtures("no_noise")

Function = Callable[[list[int]], Coroutine[Any, Any, list[int]]]


def counts_down(way: str, own: list[Any]) -> Function:
    """Make a function that counts down to 0 by calls of itself, which it finds in `own`."""

    async def some(items: list[int]) -> AsyncIterator[int]:
        for item in items:
            yield item

    async def function(items: list[int]) -> list[int]:
        (f,) = own
        if not items[0]:
            return [0] * len(items)
        less = [item - 1 for item in items]
        if way == "call":
            return [1 + await f(item) for item in less]
        if way == "submit":
            return [1 + await f.submit(item) for item in less]
        if way == "gather":
            return [1 + result for result in await together(*map(f, less))]
        if way == "task":
            return [1 + await task for task in tasks(map(f, less))]
        return [1 + result async for result in f.map(less if way == "map" else some(less))]

    return function


def test_item_that_is_waited_for_inside_is_in_one_batch_alone(coroutines: Coroutines) -> None:
    """It stands in the buffer between others, and runs past it while they are taken."""
    gate = asyncio.Event()
    batches: list[list[int]] = []
    passed: list[asyncio.Future[int]] = []

    async def function(items: list[int]) -> list[int]:
        batches.append(items)
        if items == [0]:
            passed.extend(f.submit(item) for item in (1, 2, 3))
            passed[1].add_done_callback(lambda _: None)  # as whoever waits for it does
        if items == [2]:
            await gate.wait()
        return [-item for item in items]

    async def main() -> None:
        assert await f(0) == 0
        await asyncio.gather(passed[0], passed[2])
        gate.set()
        assert await asyncio.gather(*passed) == [-1, -2, -3]

    f = batched(batch_size=8)(function)
    run(main())
    assert sorted(batches) == [[0], [1, 3], [2]]
    coroutines.consistent(f)


class Items:
    """Makes items that negate() takes, and knows which of them are still kept."""

    class Item:
        def __neg__(self) -> "Items.Item":
            return self

    def __init__(self) -> None:
        self.made: list[weakref.ref[Any]] = []

    def make(self) -> "Items.Item":
        item = Items.Item()
        self.made.append(weakref.ref(item))
        return item

    def kept(self, latest: int = 0) -> int:
        """How many of those made so far, or of the latest ones, are kept."""
        return sum(each() is not None for each in self.made[-latest:])


# Calls from inside the function


@pytest.mark.parametrize("way", ["gather", "task", "async map"])
def test_function_that_calls_itself_at_once_for_all_items_is_answered(way: str) -> None:
    async def main() -> None:
        assert await together(f(3), f(3)) == [3, 3]

    own: list[Any] = []
    f = batched(batch_size=2, timeout=None)(counts_down(way, own))
    own.append(f)
    run(main())


def test_item_that_runs_alone_is_answered_though_closing_refuses_what_waits() -> None:
    async def main() -> None:
        gate = asyncio.Event()

        async def function(items: list[int]) -> list[int]:
            if items == [0]:
                *waits, last = [f.submit(item) for item in (1, 2, 3)]
                is_awaited = asyncio.gather(last)
                await settle()
                (closing,) = tasks([f.aclose(cancel_pending=True)])
                await settle()
                assert [type(future.exception()) for future in waits] == [ClosedError, ClosedError]
                gate.set()
                closing.cancel()
                return list(await is_awaited)
            await gate.wait()
            return [-item for item in items]

        f = batched(batch_size=1, timeout=None)(function)
        assert await f(0) == -3
        assert (f.stats.answered, f.stats.failed) == (2, 2)

    run(main())


def test_functions_that_call_each_other_by_tasks_are_answered() -> None:
    async def first(items: list[int]) -> list[int]:
        return [item and 1 + await g(item - 1) for item in items]

    async def second(items: list[int]) -> list[int]:
        return await together(*(third(item) for item in items))

    async def third(item: int) -> int:
        return item and 1 + await f(item - 1)

    f = batched(batch_size=4)(first)
    g = batched(batch_size=4)(second)

    async def main() -> None:
        assert await together(f(6), g(5), f(4)) == [6, 5, 4]

    run(main())


def test_gathered_calls_of_another_function_from_inside_join_its_batch() -> None:
    inner = batched(batch_size=3, timeout=None)(anegate)

    async def function(items: list[int]) -> list[int]:
        return await together(*map(inner, items))

    outer = batched(batch_size=2, timeout=None)(function)

    async def main() -> None:
        assert await together(outer(1), outer(2), inner(3)) == [-1, -2, -3]

    run(main())
    assert inner.stats.reasons == {"full": 1}


def test_call_from_inside_sets_no_timer_where_there_is_no_timeout() -> None:
    inner = batched(batch_size=9, timeout=None)(anegate)

    async def function(items: list[int]) -> list[int]:
        future = inner.submit(1)
        assert here().timers() == 0
        inner.flush()
        return [await future]

    assert run(batched(batch_size=1)(function)(1)) == -1


def test_hook_may_submit_to_the_function_itself(coroutines: Coroutines) -> None:
    futures: list[Any] = []

    def hook(report: BatchReport) -> None:
        if len(futures) < 3:
            futures.append(f.submit(10 + len(futures)))

    f = coroutines(batch_size=2, timeout=0.0, on_batch=hook)
    assert coroutines.outcomes(coroutines.submits(f, [1, 2])) == [-1, -2]
    coroutines.turn()
    assert coroutines.outcomes(futures) == [-10, -11, -12]
    coroutines.consistent(f)


# Calls from inside whose caller left


def test_call_from_inside_whose_task_was_cancelled_makes_no_ring() -> None:
    go_on = asyncio.Event()

    async def first(items: list[int]) -> list[int]:
        if items == [1]:
            (task,) = tasks([g(0)])
            await settle()
            task.cancel()
            await settle()
            await go_on.wait()
        return items

    async def second(items: list[int]) -> list[int]:
        return [await f(item) for item in items]

    f = batched(batch_size=1)(first)
    g = batched(batch_size=2, timeout=None)(second)

    async def main() -> None:
        waiting = tasks([f(1)])
        for _ in range(4):
            await settle()
        g.batch_size = 1
        waiting += tasks([g(2)])
        await settle()
        assert (f.stats.pending, f.stats.running) == (1, 1)
        go_on.set()
        assert await together(*waiting) == [1, 2]

    run(main())
    assert f.stats.reasons == {"full": 2}


def test_close_from_inside_whose_task_was_cancelled_makes_no_ring() -> None:
    given_up, go_on = asyncio.Event(), asyncio.Event()

    async def first(items: list[int]) -> list[int]:
        if items == [1]:
            (task,) = tasks([g.aclose()])
            await settle()
            task.cancel()
            await settle()
            given_up.set()
            await go_on.wait()
        return items

    async def second(items: list[int]) -> list[int]:
        await given_up.wait()
        return [await f(item) for item in items]

    f = batched(batch_size=1)(first)
    g = batched(batch_size=1)(second)

    async def main() -> None:
        waiting = tasks([g(2), f(1)])
        await given_up.wait()
        await settle()
        assert f.stats.pending == 1
        go_on.set()
        assert await together(*waiting) == [2, 1]

    run(main())
    assert f.stats.reasons == {"full": 2}


# Tasks that outlive their batch


def test_task_that_outlives_its_batch_calls_as_from_outside() -> None:
    left_behind: list[asyncio.Task[Any]] = []

    async def function(items: list[int]) -> list[int]:
        if items == [1]:
            f.batch_size = 2
            left_behind.extend(tasks([later()]))
        return items

    async def later() -> Any:
        await settle()
        return await f(2)

    async def main() -> None:
        assert await f(1) == 1
        while not f.stats.pending:
            await asyncio.sleep(0)
        assert await f(3) == 3
        assert await left_behind[0] == 2

    f = batched(batch_size=1, timeout=None)(function)
    run(main())
    assert f.stats.reasons == {"full": 2}


def test_task_that_outlives_its_batch_keeps_no_items_of_its_calls() -> None:
    made = Items()
    left_behind: list[asyncio.Task[Any]] = []

    async def function(items: list[Any]) -> list[Any]:
        if not left_behind:
            left_behind.extend(tasks([work()]))
        return [None for _ in items]

    async def work() -> None:
        await settle()
        for _ in range(100):
            item = made.make()
            await f(item)
        item = made.make()
        assert not any(each() for each in made.made[:-1])

    async def main() -> None:
        await f(None)
        await left_behind[0]

    f = batched(batch_size=1)(function)
    run(main())


def test_task_that_outlives_its_batch_keeps_no_items_of_the_calls_of_the_batch() -> None:
    made = Items()
    left_behind: list[asyncio.Task[Any]] = []
    inner = batched(batch_size=1)(anegate)

    async def function(items: list[int]) -> list[int]:
        left_behind.extend(tasks([asyncio.Event().wait()]))
        item = made.make()
        await inner(item)
        return items

    async def main() -> None:
        assert await batched(batch_size=1)(function)(1) == 1
        await settle()
        gc.collect()
        assert made.kept() == 0
        left_behind[0].cancel()

    run(main())


# Nothing is kept of calls that were answered


def test_answered_calls_from_inside_are_not_kept() -> None:
    made = Items()
    inner = batched(batch_size=1)(anegate)

    async def function(items: list[int]) -> list[int]:
        for _ in range(500):
            item = made.make()
            await inner(item)
            del item
            assert made.kept(latest=200) < 100
        return items

    run(batched(batch_size=1)(function)(1))


def test_answered_calls_from_inside_are_not_kept_after_many_had_to_wait() -> None:
    made = Items()
    inner = batched(batch_size=200, timeout=None)(anegate)

    async def function(items: list[int]) -> list[int]:
        await together(*(inner.submit(made.make()) for _ in range(200)))
        inner.batch_size = 1
        for _ in range(500):
            await inner(made.make())
        assert made.kept() < 300
        return items

    run(batched(batch_size=1)(function)(1))


def test_map_from_inside_keeps_no_item_that_it_has_answered() -> None:
    made = Items()

    def items() -> Iterator[Items.Item]:
        for _ in range(600):
            item = made.make()
            yield item
            del item

    async def zero(items: list[Items.Item]) -> list[int]:
        return [0 for _ in items]

    async def function(numbers: list[int]) -> list[int]:
        async for _ in inner.map(items()):
            pass
        return [made.kept()]

    async def main() -> int:
        result: int = await outer(0)
        return result

    inner, outer = batched(batch_size=3)(zero), batched(batch_size=1)(function)

    assert asyncio.run(main()) < 200


# These hold for calls that run at once: calls from inside that would wait for their own batch are batches of their own,
# counted as "nested".


@pytest.mark.parametrize("way", ["call", "submit", "gather", "task", "map", "async map"])
def test_calls_from_inside_at_once_are_counted_as_nested_and_as_no_time_waited(way: str) -> None:
    async def main() -> None:
        assert await together(f(3), f(3)) == [3, 3]

    own: list[Any] = []
    f = batched(batch_size=2, timeout=None)(counts_down(way, own))
    own.append(f)
    run(main())
    assert f.stats.reasons["nested"] >= 3
    assert f.stats.reasons["full"] == 1
    assert (f.stats.waited, f.stats.longest_wait) == (0.0, 0.0)


def test_batch_from_inside_whose_task_is_cancelled_before_it_begins_fails() -> None:
    async def function(items: list[int]) -> list[int]:
        if items == [1]:
            (call,) = tasks([f(2)])
            await asyncio.sleep(0)
            for task in our_tasks():
                if task is not asyncio.current_task():
                    task.cancel()
            with pytest.raises(BatchError):
                await call
        return items

    f = batched(batch_size=1)(function)
    assert run(f(1)) == 1
    assert f.stats.reasons["nested"] == 1


def test_hint_at_too_few_callers_comes_though_the_function_calls_itself(
    coroutines: Coroutines, caplog: pytest.LogCaptureFixture
) -> None:
    async def negate(xs: list[Any]) -> list[Any]:
        if "inside" not in xs:
            assert await f("inside") == "inside"
        return [x if x == "inside" else -x for x in xs]

    f = batched(batch_size=5, timeout=1.0)(negate)
    for _ in range(60):
        handles = coroutines.submits(f, range(2))
        coroutines.loop.moment += 1.0
        assert coroutines.outcomes(handles) == [0, -1]
    hints = [(record.name, record.levelno, record.message) for record in caplog.records if record.name != "asyncio"]
    assert hints == [
        (
            "batchify",
            logging.WARNING,
            "negate() gets 2 of at most 5 items each time, after they waited out the timeout of 1.0 s: no more callers "
            "wait at once. They would wait less with a smaller batch_size or timeout=0; more of them would fill it",
        )
    ]
    assert f.stats.reasons == {"timeout": 60, "nested": 60}
