"""Coroutines that call from inside the function are answered, and nothing is kept of such calls."""

import asyncio
import gc
import logging
import sys
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from batchify import BatchError, BatchReport, WaitsForItselfError

from ..kit import (
    AsyncGated,
    Coroutines,
    anegate,
    batched,
    here,
    move,
    our_tasks,
    outcomes,
    run,
    settle,
    tasks,
    together,
)

pytestmark = pytest.mark.usefixtures("no_noise")


async def task_by_task(f: Any, items: list[int]) -> list[int]:
    return [await task for task in tasks(map(f, items))]


async def shielded(f: Any, items: list[int]) -> list[int]:
    return await together(*[asyncio.shield(future) for future in [f.submit(item) for item in items]])


async def mapped(f: Any, items: Any) -> list[int]:
    return [result async for result in f.map(items)]


async def some(items: list[int]) -> AsyncIterator[int]:
    for item in items:
        yield item


WAYS: dict[str, Callable[[Any, list[int]], Any]] = {
    "gather": lambda f, items: together(*map(f, items)),
    "gather futures": lambda f, items: together(*map(f.submit, items)),
    "tasks": task_by_task,
    "shield": shielded,
    "map": mapped,
    "async map": lambda f, items: mapped(f, some(items)),
}


async def first_of(futures: list[Any]) -> None:
    await next(iter(asyncio.as_completed(futures)))


ASKS: dict[str, Callable[[Any], Any]] = {
    "gather": asyncio.gather,
    "shield": asyncio.shield,
    "wait": lambda future: here().create_task(asyncio.wait([future])),
    "wait_for": lambda future: here().create_task(asyncio.wait_for(future, 100.0)),
    "as completed": lambda future: here().create_task(first_of([future])),
}


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


@pytest.mark.parametrize("way", WAYS)
def test_function_that_asks_itself_for_several_items_at_once_gets_full_batches(way: str) -> None:
    async def function(items: list[int]) -> list[int]:
        return [1 + x for x in await WAYS[way](f, [x - 1 for x in items])] if items[0] else items

    async def main() -> None:
        assert await together(f(3), f(3)) == [3, 3]

    f = batched(batch_size=2, timeout=None)(function)
    run(main())
    assert f.stats.reasons == {"full": 4}


@pytest.mark.parametrize("way", [*ASKS, "callback"])
def test_turn_is_lent_from_when_somebody_inside_asks_for_an_answer(way: str) -> None:
    """That is when a callback is put on the future, whatever the function itself waits for."""

    async def function(items: list[int]) -> list[int]:
        f.timeout = None
        if items != [0]:
            runs.set()
            return items
        future = f.submit(1)
        await settle()
        assert f.stats.pending == 1
        asks = future.add_done_callback(lambda _: None) if way == "callback" else ASKS[way](future)
        await runs.wait()
        await (asks or future)
        return [await future]

    runs = asyncio.Event()
    f = batched(batch_size=2)(function)
    assert run(f(0)) == 1
    assert f.stats.reasons == {"free": 1, "nested": 1}


@pytest.mark.parametrize("way", ["await", *ASKS])
def test_wait_for_its_own_batch_fails_at_once_whatever_its_time_limit(way: str) -> None:
    async def ask(future: Any) -> None:
        await (future if way == "await" else ASKS[way](future))
        await future  # as wait() does not raise

    async def function(items: list[int]) -> list[int]:
        with pytest.raises(WaitsForItselfError):
            await ask(futures[0])
        heard.append(way)
        return items

    async def passes(items: list[int]) -> list[Any]:
        futures.append(f.submit(0))
        return items

    async def main() -> None:
        await batched(batch_size=1)(passes)(0)
        neighbour = f.submit(1)
        assert [type(each) for each in await outcomes(futures)] == [WaitsForItselfError]
        assert await neighbour == 1

    futures: list[asyncio.Future[int]] = []
    heard: list[str] = []
    f = batched(batch_size=2, timeout=None)(function)
    run(main())
    assert heard == [way]


def test_coroutines_that_call_themselves_go_deeper_than_any_stack() -> None:
    async def function(items: list[int]) -> list[int]:
        return [item and 1 + await f(item - 1) for item in items]

    f = batched(batch_size=1)(function)
    assert run(f(sys.getrecursionlimit() + 200)) == sys.getrecursionlimit() + 200
    assert f.stats.in_flight == 0


def test_function_may_call_another_one_in_another_thread() -> None:
    """That thread is outside."""

    async def function(items: list[int]) -> list[int]:
        return [await asyncio.to_thread(inner, item) for item in items]

    with batched(batch_size=2)(lambda items: items) as inner:
        assert run(batched(batch_size=1)(function)(1)) == 1


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


def test_turn_that_was_lent_to_who_waits_no_more_is_taken_until_its_batch_has_ended() -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()
    batches: list[list[int]] = []

    async def function(items: list[int]) -> list[int]:
        batches.append(items)
        if items == [0]:
            begun.set()
            await settle()
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(f(1), 1.0)
        if 1 in items:
            await go_on.wait()
        return items

    async def main() -> None:
        futures = [f.submit(0)]
        f.flush()
        await begun.wait()
        futures.append(f.submit(2))
        for _ in range(3):
            await settle()
        await move(1.0)
        futures += [f.submit(3), f.submit(4)]
        await settle()
        assert (futures[0].done(), batches) == (True, [[0], [2, 1]])
        go_on.set()
        assert await together(*futures) == [0, 2, 3, 4]

    f = batched(batch_size=2, timeout=None)(function)
    run(main())
    assert batches == [[0], [2, 1], [3, 4]]


def test_item_whose_caller_inside_waits_no_longer_is_taken_out() -> None:
    async def function(items: list[int]) -> list[int]:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(busy(items[0]), 1.0)
        return items

    async def main() -> None:
        calls = tasks([busy(0)])
        await settle()
        calls += tasks([batched(batch_size=1)(function)(1), busy(2)])
        await settle()
        await move(1.0)
        await gated.go_on(2)
        assert await together(*calls) == [0, 1, -2]

    gated = AsyncGated()
    busy = batched(batch_size=2)(gated)
    run(main())
    assert (gated.batches, busy.stats.cancelled) == ([[0], [2]], 1)


@pytest.mark.parametrize("way", ["call", "wait", "close", "drain"])
def test_wait_inside_whose_task_was_cancelled_makes_no_ring(way: str) -> None:
    given_up, go_on = asyncio.Event(), asyncio.Event()
    futures: list[Any] = []

    async def first(items: list[int]) -> list[int]:
        if items == [1]:
            if way == "wait":
                futures.append(g.submit(0))  # and so the item goes on
            waits = {"call": lambda: g(0), "close": g.aclose, "drain": g.adrain, "wait": lambda: asyncio.wait(futures)}
            (task,) = tasks([waits[way]()])
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
        assert (f.stats.pending, f.stats.running) == (1, 1)
        go_on.set()
        assert await together(*waiting, *futures) == [2, 1, *[0] * len(futures)]

    run(main())
    assert f.stats.reasons == {"full": 2 + len(futures)}


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


def test_call_from_inside_is_answered_though_the_task_of_its_batch_is_cancelled_before_it_begins() -> None:
    async def function(items: list[int]) -> list[int]:
        if items == [1]:
            (call,) = tasks([f(2)])
            await asyncio.sleep(0)
            for task in our_tasks():
                if task is not asyncio.current_task():
                    task.cancel()
            (outcome,) = await outcomes([call])
            assert outcome == 2 or type(outcome) is BatchError
        return items

    f = batched(batch_size=1)(function)
    assert run(f(1)) == 1


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
