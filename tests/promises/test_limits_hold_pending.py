"""The limits hold for everybody, `max_pending`: who finds so many items waiting is refused at once, and nobody else is.

So many items are due. The items of a map neither count nor are refused: it reads no more than two batches ahead.
"""

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import pytest

from batchify import BufferFullError

from ..kit import Coroutines, Kit, Threads, batched, echo, negate
from ..tools import HAS_GIL, in_threads


@pytest.mark.parametrize("how", ["call", "submit"])
def test_item_beyond_max_pending_is_refused(kit: Kit, how: str) -> None:
    f = kit(gated=True, batch_size=2, timeout=0.0, max_pending=2)
    handles = [kit.busy(f, 0), *kit.submits(f, [1, 2])]
    error: Any
    if how == "call":
        error = kit.outcome(kit.start(f, 3))
    else:
        with pytest.raises(BufferFullError) as raised:
            kit.submit(f, 3)
        error = raised.value
    assert (type(error), str(error)) == (BufferFullError, "negate() is full: max_pending=2 items wait")
    assert (f.stats.pending, f.stats.accepted, f.stats.refused) == (2, 3, 1)
    kit.go_on(2)
    assert kit.outcomes(handles) == [0, -1, -2]
    handle = kit.submit(f, 4)
    kit.go_on(1)
    assert kit.outcome(handle) == -4
    assert kit.batches == [[0], [1, 2], [4]]
    kit.until_idle(f)
    assert f.stats.accepted == 4
    kit.consistent(f)


def test_aio_beyond_max_pending_is_refused(threads: Threads) -> None:
    f = threads(gated=True, batch_size=1, timeout=0.0, max_pending=1)
    handles = [threads.busy(f, 0), threads.submit(f, 1)]
    with pytest.raises(BufferFullError, match=r"^negate\(\) is full: max_pending=1 items wait$"):
        asyncio.run(f.aio(2))
    assert (f.stats.accepted, f.stats.refused) == (2, 1)
    threads.go_on(2)
    assert threads.outcomes(handles) == [0, -1]
    threads.until_idle(f)
    threads.consistent(f)


@pytest.mark.parametrize(
    "call",
    [lambda f, x: f(x), lambda f, x: asyncio.run(f.aio(x)), lambda f, x: f.submit(x)],
    ids=["call", "aio", "submit"],
)
def test_item_beyond_max_pending_is_refused_inside_another_function(
    threads: Threads, call: Callable[[Any, int], Any]
) -> None:
    f = threads(gated=True, batch_size=1, timeout=0.0, max_pending=1)
    handles = [threads.busy(f, 0), threads.submit(f, 1)]
    outer = threads(lambda xs: [call(f, x) for x in xs], batch_size=1)
    with pytest.raises(BufferFullError):
        outer(2)
    threads.go_on(2)
    assert threads.outcomes(handles) == [0, -1]
    assert f.stats.accepted == 2


@pytest.mark.parametrize("call", [lambda f, x: f(x), lambda f, x: f.submit(x)], ids=["call", "submit"])
def test_item_beyond_max_pending_is_refused_inside_another_coroutine_function(
    coroutines: Coroutines, call: Callable[[Any, int], Awaitable[Any]]
) -> None:
    async def outer(xs: list[int]) -> list[Any]:
        return [await call(f, x) for x in xs]

    f = coroutines(gated=True, batch_size=1, timeout=0.0, max_pending=1)
    handles = [coroutines.busy(f, 0), coroutines.submit(f, 1)]
    assert type(coroutines.outcome(coroutines.start(batched(batch_size=1)(outer), 2))) is BufferFullError
    coroutines.go_on(2)
    assert coroutines.outcomes(handles) == [0, -1]
    assert f.stats.accepted == 2


def test_item_refused_inside_another_function_is_not_kept(threads: Threads) -> None:
    class Item:
        """Something that can be watched."""

    def outer(items: list[int]) -> list[int]:
        for _ in range(200):
            item = Item()
            kept.append(weakref.ref(item))
            with pytest.raises(BufferFullError):
                inner.submit(item)
        del item
        gc.collect()
        alive.append(sum(reference() is not None for reference in kept))
        return items

    kept: list[weakref.ref[Item]] = []
    alive: list[int] = []
    inner = threads(echo, gated=True, batch_size=1, max_pending=1)
    handles = [threads.busy(inner, 0), threads.submit(inner, 1)]
    with batched(batch_size=1)(outer) as f:
        assert f(1) == 1
    assert alive[0] < 64  # those refused are looked through now and then
    threads.go_on(2)
    assert threads.outcomes(handles) == [0, 1]


def test_cancelled_item_makes_room(kit: Kit) -> None:
    f = kit(gated=True, batch_size=4, timeout=0.0, max_pending=2)
    handles = [kit.busy(f, 0), *kit.submits(f, [1, 2])]
    assert handles[1].cancel()
    handles.append(kit.start(f, 3))
    assert f.stats.pending == 2
    with pytest.raises(BufferFullError):
        kit.submit(f, 4)
    kit.go_on(2)
    assert kit.outcomes([handles[0], handles[2], handles[3]]) == [0, -2, -3]
    assert kit.batches == [[0], [2, 3]]
    kit.until_idle(f)
    assert f.stats.cancelled == 1
    kit.consistent(f)


def test_cancelled_task_makes_room(coroutines: Coroutines) -> None:
    f = coroutines(gated=True, batch_size=1, timeout=0.0, max_pending=1)
    handles = [coroutines.busy(f, 0)]
    leaving = coroutines.start(f, 1)
    leaving.cancel()
    coroutines.turn()
    handles.append(coroutines.start(f, 2))
    coroutines.go_on(2)
    assert coroutines.outcomes(handles) == [0, -2]
    assert coroutines.batches == [[0], [2]]
    assert f.stats.cancelled == 1
    coroutines.consistent(f)


def test_cancelled_aio_makes_room(threads: Threads) -> None:
    async def main() -> None:
        leaving = asyncio.create_task(f.aio(1))
        await asyncio.sleep(0)
        assert f.stats.pending == 1
        leaving.cancel()
        await asyncio.wait([leaving])
        staying = asyncio.create_task(f.aio(2))
        await asyncio.sleep(0)
        with pytest.raises(BufferFullError):
            await f.aio(3)
        threads.go_on(2)
        assert await staying == -2

    f = threads(gated=True, batch_size=1, timeout=0.0, max_pending=1)
    busy = threads.busy(f, 0)
    asyncio.run(main())
    assert threads.outcome(busy) == 0
    assert threads.batches == [[0], [2]]
    threads.until_idle(f)
    assert f.stats.cancelled == 1
    threads.consistent(f)


def test_crowd_is_answered_or_refused(threads: Threads) -> None:
    waiting: list[int] = []

    def function(xs: list[int]) -> list[int]:
        waiting.append(f.stats.pending)
        return negate(xs)

    f = threads(function, batch_size=3, max_pending=2, concurrency=2, group_by=lambda x: x % 3)
    outcomes = in_threads(f, range(40))
    answered = [item for item in range(40) if outcomes[item] == -item]
    refused = [item for item in range(40) if type(outcomes[item]) is BufferFullError]
    assert sorted(answered + refused) == list(range(40))
    assert sorted(item for batch in threads.batches for item in batch) == answered
    assert max(waiting) <= 2 or not HAS_GIL  # of calls in the same instant each may find the last free place
    threads.until_idle(f)
    assert f.stats.accepted == f.stats.answered == len(answered)
    threads.consistent(f)


# So many are due


def test_max_pending_reached_makes_the_batch_run_before_it_is_full(kit: Kit) -> None:
    f = kit(echo, batch_size=9, timeout=None, max_pending=2, weight=lambda x: 1, max_weight=5)
    assert kit.outcomes([kit.start(f, 1), kit.start(f, 2)]) == [1, 2]
    kit.until_idle(f)
    assert f.stats.sizes_by_reason == {"full": {2: 1}}


def test_max_pending_items_of_many_groups_are_due(kit: Kit) -> None:
    f = kit(echo, batch_size=4, timeout=None, max_pending=3, group_by=lambda x: x % 5)
    handles = [kit.start(f, number) for number in range(3)]
    assert kit.outcome(handles[0]) == 0
    handles.append(kit.start(f, 3))
    assert kit.outcome(handles[1]) == 1
    kit.flush(f)
    assert kit.outcomes(handles) == [0, 1, 2, 3]
    kit.until_idle(f)
    kit.consistent(f)


# map


@pytest.mark.parametrize(
    "options", [{}, {"timeout": None}, {"group_by": lambda x: x % 7}], ids=["", "no timeout", "groups"]
)
@pytest.mark.parametrize("sized", [True, False], ids=["sized", "unsized"])
def test_map_is_never_refused_and_reads_two_batches_ahead(kit: Kit, options: dict[str, Any], sized: bool) -> None:
    waiting: list[int] = []

    def function(xs: list[int]) -> list[int]:
        waiting.append(f.stats.pending)
        return negate(xs)

    f = kit(function, batch_size=8, max_pending=3, **options)
    items = range(50) if sized else iter(range(50))
    assert list(kit.map(f, items)) == [-item for item in range(50)]
    assert max(waiting) <= 16
    assert all(len(batch) <= 8 for batch in kit.batches)
    kit.until_idle(f)
    assert f.stats.accepted == 50
    kit.consistent(f)


def test_map_of_an_async_iterable_is_never_refused(coroutines: Coroutines) -> None:
    async def numbers() -> AsyncIterator[int]:
        for number in range(30):
            yield number

    async def main() -> list[int]:
        return [each async for each in f.map(numbers())]

    def function(xs: list[int]) -> list[int]:
        waiting.append(f.stats.pending)
        return negate(xs)

    waiting: list[int] = []
    f = coroutines(function, batch_size=8, timeout=None, max_pending=3)
    assert coroutines.run(main()) == [-item for item in range(30)]
    assert max(waiting) <= 16
    coroutines.consistent(f)


def test_map_may_fill_the_buffer_and_takes_no_room_of_others(kit: Kit) -> None:
    f = kit(gated=True, batch_size=4, timeout=0.0, max_pending=1, group_by=lambda x: x)  # each item is a batch
    busy = kit.busy(f, 0)
    kit.go_on(2)
    results = kit.map(f, range(1, 20))
    assert next(results) == -1
    kit.until_runs(3)
    assert f.stats.pending == 6  # the map has read 1 to 8
    handle = kit.submit(f, 100)
    assert f.stats.pending == 7
    with pytest.raises(BufferFullError):
        kit.submit(f, 101)
    kit.go_on(30)
    assert list(results) == [-item for item in range(2, 20)]
    assert kit.outcomes([busy, handle]) == [0, -100]
    kit.until_idle(f)
    kit.consistent(f)


def test_map_is_not_refused_where_max_pending_items_wait(kit: Kit) -> None:
    f = kit(gated=True, batch_size=1, timeout=0.0, max_pending=1)
    handles = [kit.busy(f, 0), kit.submit(f, 1)]

    def numbers() -> Iterator[int]:
        assert f.stats.pending == 1
        yield 2
        assert f.stats.pending == 2
        for _ in range(4):
            kit.let_on.release()  # type: ignore[attr-defined]
        yield 3

    assert list(kit.map(f, numbers())) == [-2, -3]
    assert kit.outcomes(handles) == [0, -1]
    kit.until_idle(f)
    kit.consistent(f)


def test_map_that_is_dropped_leaves_nothing_that_waits(kit: Kit) -> None:
    f = kit(gated=True, batch_size=4, timeout=0.0, max_pending=2)
    busy = kit.busy(f, 0)
    kit.go_on(1)
    results = kit.map(f, range(1, 20))
    kit.outcome(busy)
    kit.go_on(1)
    assert next(results) == -1
    results.close()  # type: ignore[attr-defined]
    kit.go_on(10)
    kit.until_idle(f)
    assert f.stats.pending == 0
    kit.consistent(f)
