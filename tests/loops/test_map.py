"""`f.map()` of an `async def` function: one task reads asynchronous items, while the caller waits for results.

So no result waits for the next item, the items see a single task, and a map that is left ends with its reader.
"""

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import pytest

from batchify import ClosedError

from ..kit import AsyncGated, anegate, batched, run, settle, tasks

pytestmark = pytest.mark.usefixtures("no_noise")


# Reading


def test_map_result_does_not_wait_for_the_next_item() -> None:
    async def main() -> None:
        come = asyncio.Event()

        async def items() -> AsyncIterator[int]:
            yield 1
            await come.wait()
            yield 2

        results = f.map(items())
        assert await anext(results) == -1
        come.set()
        assert [result async for result in results] == [-2]

    f = batched(batch_size=4)(anegate)
    run(main())


def test_map_result_does_not_wait_for_the_results_of_later_items() -> None:
    async def items() -> AsyncIterator[int]:
        for item in (1, 2, 3):
            yield item
        await asyncio.Event().wait()

    async def main() -> None:
        results = f.map(items())
        await settle()
        assert [await anext(results), await anext(results)] == [-1, -2]
        assert f.stats.pending == 1
        await results.aclose()

    f = batched(batch_size=2, timeout=None)(anegate)
    run(main())


def test_map_error_does_not_wait_for_the_next_item() -> None:
    async def items() -> AsyncIterator[int]:
        yield 0
        await asyncio.Event().wait()

    async def main() -> None:
        results = f.map(items())
        with pytest.raises(ZeroDivisionError):
            await anext(results)

    f = batched(batch_size=1, group_by=lambda x: 1 // x)(anegate)
    run(main())


def test_map_reads_a_generator_in_one_task() -> None:
    async def items() -> AsyncIterator[int]:
        async with asyncio.timeout(1e6):
            for item in range(20):
                yield item
                await asyncio.sleep(0)

    async def main() -> None:
        assert [result async for result in f.map(items())] == [-item for item in range(20)]

    f = batched(batch_size=4, timeout=None)(anegate)
    run(main())


def test_map_reader_is_named_after_the_function() -> None:
    names: set[str] = set()

    async def items() -> AsyncIterator[int]:
        names.update(task.get_name() for task in asyncio.all_tasks())
        yield 1

    async def main() -> None:
        assert [result async for result in batched(batch_size=1)(anegate).map(items())] == [-1]

    run(main())
    assert "batchify reader of a map of anegate()" in names


@pytest.mark.thread_unsafe(reason="stops the garbage collector")
def test_map_keeps_no_item_while_it_waits_for_the_next_one() -> None:
    class Thing:
        pass

    kept: list[weakref.ref[Thing]] = []

    class Things:
        def __aiter__(self) -> "Things":
            return self

        async def __anext__(self) -> Thing:
            if kept:
                await asyncio.Event().wait()
            thing = Thing()
            kept.append(weakref.ref(thing))
            return thing

    async def function(things: list[Thing]) -> list[int]:
        return [1 for _ in things]

    async def main() -> None:
        results = f.map(Things())
        assert await anext(results) == 1
        await settle()
        assert kept[0]() is None
        await results.aclose()

    f = batched(batch_size=5)(function)
    gc.disable()  # by counting alone
    try:
        run(main())
    finally:
        gc.enable()


def test_map_from_inside_fills_batches() -> None:
    async def function(items: list[int]) -> list[int]:
        return [sum([result async for result in f.map(range(item))]) if item == 8 else item for item in items]

    f = batched(batch_size=4)(function)
    assert run(f(8)) == 28
    assert f.stats.sizes == {1: 1, 4: 2}


# Leaving


@pytest.mark.parametrize("asynchronous", [False, True])
def test_cancelled_map_takes_its_items_out(asynchronous: bool) -> None:
    async def some() -> AsyncIterator[int]:
        for item in range(3):
            yield item
        await asyncio.Event().wait()

    async def consume() -> None:
        items: Any = some() if asynchronous else iter(range(3))
        async for _ in f.map(items):
            pass

    async def main() -> None:
        (task,) = tasks([consume()])
        await settle()
        task.cancel()
        await settle()
        assert task.cancelled()
        assert f.stats.pending == 0
        assert f.stats.cancelled == 1

    gated = AsyncGated()
    f = batched(batch_size=2, timeout=None)(gated)
    run(main())


def test_cancelled_map_cuts_no_batch_of_others() -> None:
    async def items() -> AsyncIterator[int]:
        yield 1
        await asyncio.Event().wait()

    async def main() -> None:
        other = f.submit(0)
        (task,) = tasks([anext(f.map(items()))])
        await settle()
        assert f.stats.pending == 2
        task.cancel()
        await settle()
        assert (f.stats.pending, f.stats.cancelled, other.done()) == (1, 1, False)
        other.cancel()

    f = batched(batch_size=4, timeout=None)(anegate)
    run(main())


def test_map_cancelled_again_while_its_items_clean_up_takes_its_items_out() -> None:
    async def items() -> AsyncIterator[int]:
        yield 1
        try:
            await asyncio.Event().wait()
        finally:
            await settle()

    async def main() -> None:
        (task,) = tasks([anext(f.map(items()))])
        await settle()
        for _ in range(2):
            task.cancel()
            for _ in range(4):
                await asyncio.sleep(0)
        await settle()
        assert (f.stats.pending, f.stats.cancelled) == (0, 1)

    f = batched(batch_size=4, timeout=None)(anegate)
    run(main())


def test_map_ends_where_its_function_was_closed_meanwhile() -> None:
    async def main() -> None:
        come = asyncio.Event()

        async def items() -> AsyncIterator[int]:
            yield 1
            await come.wait()
            yield 2

        results = f.map(items())
        assert await anext(results) == -1
        await f.aclose()
        come.set()
        with pytest.raises(ClosedError):
            await anext(results)

    f = batched(batch_size=1)(anegate)
    run(main())


def test_closed_map_is_silent_about_an_error_of_its_items() -> None:
    async def items() -> AsyncIterator[int]:
        yield 1
        raise ValueError("no")

    async def main() -> None:
        results = f.map(items())
        assert await anext(results) == -1
        await settle()
        await results.aclose()

    f = batched(batch_size=4)(anegate)
    run(main())


def test_map_can_be_closed_though_its_items_suppress_cancellation() -> None:
    async def items() -> AsyncIterator[int]:
        for item in range(1000):
            with suppress(asyncio.CancelledError):
                for _ in range(3):
                    await asyncio.sleep(0)
            yield item

    async def main() -> None:
        results = f.map(items())
        assert await anext(results) == 0
        await results.aclose()
        assert f.stats.pending == 0

    f = batched(batch_size=4)(anegate)
    run(main())


def test_closed_map_reads_no_more_though_its_items_suppress_cancellation() -> None:
    read: list[int] = []

    async def items() -> AsyncIterator[int]:
        yield 0
        with suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        while True:
            read.append(1)
            yield 1

    async def main() -> None:
        results = f.map(items())
        assert await anext(results) == 0
        await results.aclose()
        assert read == [1]
        assert f.stats.accepted == 1

    f = batched(batch_size=4)(anegate)
    run(main())
