"""Mine, for `f.map()`: the results come in the order of the items, and an error comes in its place.

It reads at most two batches of items ahead, joins the batches of other callers, and takes its items out when it is
left.
"""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterable, Iterator
from concurrent.futures import Future
from typing import Any

import pytest

from .. import inside
from ..kit import Coroutines, Kit, Threads, echo

pytestmark = pytest.mark.usefixtures("no_noise")


async def asynchronous(items: Iterable[Any]) -> AsyncIterator[Any]:
    for item in items:
        yield item


class Results:
    """The results of a map of an `async def` function, read one by one from outside of its loop."""

    def __init__(self, kit: Coroutines, results: Any) -> None:
        self._kit = kit
        self._results = results

    def __iter__(self) -> "Results":
        return self

    def __next__(self) -> Any:
        try:
            return self._kit.run(self._next())
        except StopAsyncIteration:
            raise StopIteration from None

    async def _next(self) -> Any:
        return await anext(self._results)  # begun in the loop, which then ends a generator that is dropped

    def close(self) -> None:
        self._kit.run(self._results.aclose())


class Way:
    """A way to map: over threads, over coroutines, or over coroutines with an asynchronous iterable."""

    def __init__(self, kit: Kit, *, asynchronous: bool = False) -> None:
        self.kit = kit
        self.asynchronous = asynchronous

    def map(self, f: Any, items: Iterable[Any], **options: Any) -> Any:
        """Return an iterator over `f.map()`, which can be closed."""
        results = f.map(asynchronous(items) if self.asynchronous else items, **options)
        return Results(self.kit, results) if isinstance(self.kit, Coroutines) else results

    def collect(self, f: Any, items: Iterable[Any]) -> Any:
        """Read all results in the background; return a handle of their list, for `kit.outcome()`."""
        if isinstance(self.kit, Coroutines):
            return self.kit.loop.create_task(self._collect(f, items))
        handle: Future[list[Any]] = Future()

        def collect() -> None:
            try:
                handle.set_result(list(f.map(items)))
            except BaseException as error:
                handle.set_exception(error)

        threading.Thread(target=collect, daemon=True).start()
        return handle

    async def _collect(self, f: Any, items: Iterable[Any]) -> list[Any]:
        return [result async for result in f.map(asynchronous(items) if self.asynchronous else items)]

    def nothing_is_left(self, f: Any) -> None:
        """Assert that nothing of a map that has ended waits, runs, or is remembered."""
        self.kit.until_idle(f)
        self.kit.settle(f)
        self.kit.consistent(f)
        assert inside.maps_remembered(f) == 0
        if isinstance(self.kit, Coroutines):
            assert not asyncio.all_tasks(self.kit.loop)


WAYS = {
    "threads": lambda: Way(Threads()),
    "coroutines": lambda: Way(Coroutines()),
    "coroutines, asynchronous items": lambda: Way(Coroutines(), asynchronous=True),
}


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> Iterator[Way]:
    way = WAYS[request.param]()
    yield way
    way.kit.end()


# Order and batches


def test_map_keeps_the_order_and_fills_batches(way: Way) -> None:
    f = way.kit(echo, batch_size=4, timeout=None)
    assert list(way.map(f, range(10))) == list(range(10))
    assert list(way.map(f, [])) == []
    assert list(way.map(f, iter(range(6)))) == list(range(6))
    assert [len(batch) for batch in way.kit.batches] == [4, 4, 2, 4, 2]
    way.nothing_is_left(f)


def test_map_flushes_what_is_left_when_its_items_end(way: Way) -> None:
    f = way.kit(batch_size=4, timeout=None)
    assert list(way.map(f, range(6))) == [-item for item in range(6)]
    assert f.stats.sizes == {2: 1, 4: 1}


def test_map_cuts_no_batch_before_its_items_end(way: Way) -> None:
    f = way.kit(batch_size=4, timeout=None)
    other = way.kit.submit(f, 0)
    results = way.map(f, range(1, 24))
    assert next(results) == -1
    way.kit.settle(f)
    assert f.stats.pending == (2 if way.asynchronous else 1)
    assert list(results) == [-item for item in range(2, 24)]
    assert way.kit.outcome(other) == 0
    assert f.stats.reasons == {"full": 6}


def test_map_joins_the_batches_of_others(way: Way) -> None:
    f = way.kit(echo, batch_size=4, timeout=None)
    other = way.kit.submit(f, "x")
    assert list(way.map(f, [1, 2, 3])) == [1, 2, 3]
    assert way.kit.outcome(other) == "x"
    assert f.stats.sizes == {4: 1}


def test_map_takes_any_batch_size(way: Way) -> None:
    f = way.kit(batch_size=2**70)
    assert list(way.map(f, range(3))) == [0, -1, -2]


@pytest.mark.parametrize("max_pending", [None, 4])
def test_map_ends_though_its_items_are_of_more_groups_than_it_reads_ahead(way: Way, max_pending: int | None) -> None:
    f = way.kit(echo, batch_size=4, timeout=None, group_by=lambda x: x, max_pending=max_pending)
    assert list(way.map(f, range(20))) == list(range(20))
    assert way.kit.batches == [[item] for item in range(20)]


def test_map_ends_though_its_items_are_equal(way: Way) -> None:
    f = way.kit(echo, batch_size=4, timeout=None, dedupe=True)
    assert list(way.map(f, [7] * 50)) == [7] * 50
    assert f.stats.sizes.keys() == {1}
    way.kit.consistent(f)


@pytest.mark.parametrize("as_iterator", [False, True])
def test_map_fills_the_batches_of_a_group_without_a_timeout(way: Way, as_iterator: bool) -> None:
    f = way.kit(echo, batch_size=5, timeout=None, group_by=lambda x: "all")
    results = way.map(f, iter(range(50)) if as_iterator else range(50))
    for number, result in enumerate(results):
        assert result == number
        way.kit.settle(f)  # however slowly the results are asked for
    assert {len(batch) for batch in way.kit.batches} == {5}


def test_map_that_waits_for_a_timeout_ends_though_that_is_taken_away(threads: Threads) -> None:
    f = threads(echo, batch_size=4, timeout=10**6, group_by=lambda x: x)
    results: Future[list[int]] = Future()
    threading.Thread(target=lambda: results.set_result(list(f.map(range(20)))), daemon=True).start()
    threads.until_waits(f, pending=8)
    f.timeout = None
    assert threads.outcome(results) == list(range(20))


def test_map_refuses_what_is_not_iterable(kit: Kit) -> None:
    f = kit(batch_size=2)
    with pytest.raises(TypeError, match="'int' object is not iterable"):
        f.map(3)


# Reading ahead


def test_map_is_lazy_and_reads_two_batches_ahead_at_most(way: Way) -> None:
    read: list[int] = []

    def endless() -> Iterator[int]:
        while True:
            read.append(len(read))
            yield len(read) - 1

    f = way.kit(batch_size=4, timeout=None)
    results = way.map(f, endless())
    way.kit.settle(f)
    assert read == []
    for expected in range(50):
        assert next(results) == -expected
        way.kit.settle(f)
        # The reader of asynchronous items goes on meanwhile.
        assert len(read) <= expected + (9 if way.asynchronous else 8)
    results.close()
    assert f.stats.pending == 0
    way.nothing_is_left(f)


def test_map_reads_a_batch_ahead_of_the_running_one(way: Way) -> None:
    kit = way.kit
    f = kit(batch_size=5, timeout=None, gated=True)
    collected = way.collect(f, range(100))
    kit.until(lambda: (f.stats.running, f.stats.pending) == (5, 5))
    kit.settle(f)
    assert (f.stats.running, f.stats.pending) == (5, 5)
    kit.go_on(20)
    assert kit.outcome(collected) == [-item for item in range(100)]
    assert f.stats.sizes == {5: 20}


def test_map_reads_on_before_the_last_of_its_results_is_asked_for(kit: Kit) -> None:
    """So that the function runs while the caller is busy with what it has got."""
    f = kit(echo, batch_size=4)
    results = kit.map(f, list(range(16)))
    assert [next(results) for _ in range(4)] == [0, 1, 2, 3]
    kit.until(lambda: f.stats.answered == 8)
    assert next(results) == 4
    kit.until(lambda: f.stats.answered == 12)
    assert list(results) == list(range(5, 16))


def test_map_reads_no_more_when_batches_become_smaller(way: Way) -> None:
    read: list[int] = []

    def items() -> Iterator[int]:
        for item in range(100):
            read.append(item)
            yield item

    f = way.kit(batch_size=8, timeout=None)
    results = way.map(f, items())
    assert next(results) == 0
    way.kit.settle(f)
    f.batch_size = 2
    for expected in range(1, 50):
        assert next(results) == -expected
        way.kit.settle(f)
        assert len(read) <= max(17, expected + 5)
    results.close()
    way.nothing_is_left(f)


def test_map_heeds_a_change_of_batch_size_while_it_reads_and_while_it_waits(way: Way) -> None:
    kit = way.kit

    def items() -> Iterator[int]:
        for item in range(40):
            if item == 2:
                f.batch_size = 5
            yield item

    kit.stop_the_clock()
    f = kit(batch_size=3, timeout=None, gated=True)
    other = kit.busy(f, 99)
    kit.move(1.0)  # what arrives later is not flushed with it
    collected = way.collect(f, items())
    kit.until(lambda: f.stats.pending > 5)  # it has read ahead as far as it may
    f.batch_size = 30  # more than it has read
    kit.go_on(9)
    assert kit.outcome(collected) == [-item for item in range(40)]
    assert kit.outcome(other) == -99


# Errors in their place


def test_map_raises_the_error_of_a_batch_in_its_place_and_ends(way: Way) -> None:
    f = way.kit(lambda items: [1 // items[0]], batch_size=1)
    results = way.map(f, [1, -1, 0, 1])
    assert [next(results), next(results)] == [1, -1]
    with pytest.raises(ZeroDivisionError):
        next(results)
    assert list(results) == []
    way.nothing_is_left(f)


def test_map_raises_an_error_that_is_a_result_in_its_place(way: Way) -> None:
    f = way.kit(lambda items: [item if item > 0 else ValueError("no") for item in items], batch_size=2, timeout=None)
    results = way.map(f, iter([1, 2, 3, *range(0, -50, -1)]))
    assert [next(results) for _ in range(3)] == [1, 2, 3]
    with pytest.raises(ValueError, match=r"^no\n"):
        next(results)
    way.kit.settle(f)
    assert f.stats.pending == 0
    way.nothing_is_left(f)


def test_error_that_a_map_raises_says_of_which_item_it_is(way: Way) -> None:
    f = way.kit(lambda items: [1 // items[0]], batch_size=1)
    with pytest.raises(ZeroDivisionError) as raised:
        list(way.map(f, [1, -1, 0, 1]))
    assert raised.value.__notes__ == ["<lambda>() was mapped: this is of item 2, counted from 0"]


def test_map_that_returns_exceptions_goes_on_behind_them(way: Way) -> None:
    f = way.kit(lambda items: [item if item % 5 else ValueError(item) for item in items], batch_size=4, timeout=None)
    results = list(way.map(f, range(50), return_exceptions=True))
    assert [result for result in results if isinstance(result, int)] == [item for item in range(50) if item % 5]
    errors = {place: result for place, result in enumerate(results) if not isinstance(result, int)}
    assert {place: (type(error), error.args) for place, error in errors.items()} == {
        place: (ValueError, (place,)) for place in range(0, 50, 5)
    }
    assert all(not hasattr(error, "__notes__") for error in errors.values())
    way.nothing_is_left(f)


def test_map_that_returns_exceptions_gives_each_item_of_a_failed_batch_its_own(way: Way) -> None:
    f = way.kit(lambda items: [1 // item for item in items], batch_size=2, timeout=None)
    first, second, *rest = way.map(f, [1, 0, 1, -1], return_exceptions=True)
    assert [type(first), type(second), rest] == [ZeroDivisionError, ZeroDivisionError, [1, -1]]
    assert first is not second


def test_map_that_returns_exceptions_returns_those_of_options(way: Way) -> None:
    f = way.kit(echo, batch_size=2, group_by=lambda x: 1 // (x - 3))
    *results, last = way.map(f, [1, 2, 4, 3], return_exceptions=True)
    assert (results, type(last)) == ([1, 2, 4], ZeroDivisionError)


def test_map_that_returns_exceptions_raises_what_its_items_raise(way: Way) -> None:
    def items() -> Iterator[int]:
        yield 1
        raise ValueError("of the items")

    f = way.kit(batch_size=2)
    results = way.map(f, items(), return_exceptions=True)
    assert next(results) == -1
    with pytest.raises(ValueError, match=r"^of the items$") as raised:
        next(results)
    assert not hasattr(raised.value, "__notes__")
    way.nothing_is_left(f)


@pytest.mark.parametrize("option", ["group_by", "weight", "dedupe"])
def test_map_raises_the_error_of_an_option_in_its_place(way: Way, option: str) -> None:
    def fails_at_3(x: Any) -> Any:
        return 1 // (x - 3)

    options: dict[str, dict[str, Any]] = {
        "group_by": {"group_by": fails_at_3},
        "weight": {"weight": lambda x: abs(fails_at_3(x)), "max_weight": 9},
        "dedupe": {"dedupe": True},
    }
    f = way.kit(echo, batch_size=2, **options[option])
    results = way.map(f, [1, 2, [] if option == "dedupe" else 3, 4, 5])
    assert [next(results), next(results)] == [1, 2]
    with pytest.raises(TypeError if option == "dedupe" else ZeroDivisionError):
        next(results)
    results.close()
    way.nothing_is_left(f)


@pytest.mark.parametrize("sized", [False, True])
def test_map_yields_what_it_read_before_its_items_raised(way: Way, sized: bool) -> None:
    class Items:
        def __iter__(self) -> Iterator[int]:
            yield from range(6)
            raise ValueError("of the items")

    class SizedItems(Items):
        def __len__(self) -> int:
            return 9

    f = way.kit(batch_size=4, timeout=None)
    results = way.map(f, SizedItems() if sized else Items())
    assert [next(results) for _ in range(6)] == [-item for item in range(6)]
    with pytest.raises(ValueError, match=r"^of the items$"):
        next(results)
    way.kit.settle(f)
    assert f.stats.pending == 0
    way.nothing_is_left(f)


# Leaving


def test_dropped_map_takes_its_items_out(way: Way) -> None:
    kit = way.kit
    f = kit(batch_size=2, timeout=None, gated=True)
    other = kit.submit(f, 99)
    kit.go_on()
    results = way.map(f, range(10))
    assert next(results) == 0  # so the batches are [99, 0], [1, 2], and what is left of the items read ahead
    kit.until_runs(2)
    kit.settle(f)
    waited = f.stats.pending
    assert waited > 0
    del results
    kit.settle(f)
    assert (f.stats.pending, f.stats.cancelled) == (0, waited)
    kit.go_on()
    assert kit.outcome(other) == -99
    assert kit.batches == [[99, 0], [1, 2]]
    way.nothing_is_left(f)


def test_nothing_is_kept_of_a_map_that_has_ended(way: Way) -> None:
    f = way.kit(batch_size=5)
    results = way.map(f, [1, 2])
    assert next(results) == -1
    assert inside.maps_remembered(f) == 1
    assert list(results) == [-2]
    assert inside.maps_remembered(f) == 0
    way.nothing_is_left(f)
