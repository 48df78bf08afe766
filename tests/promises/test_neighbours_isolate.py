"""With `isolate` a batch that fails is halved and run again, so that only the caller of a bad item gets its error."""

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from batchify import BatchError

from ..kit import Coroutines, Kit, Threads


def refuses_bad(bad: set[int]) -> Callable[[list[int]], list[int]]:
    def function(xs: list[int]) -> list[int]:
        found = [x for x in xs if x in bad]
        if found:
            raise ValueError(found)
        return [-x for x in xs]

    return function


@pytest.mark.parametrize("bad", [{0}, {7}, {3}, {0, 7}, {2, 3, 4}, set(), set(range(8))], ids=str)
def test_isolate_gives_the_error_to_the_caller_of_a_bad_item_only(kit: Kit, bad: set[int]) -> None:
    f = kit(refuses_bad(bad), batch_size=8, timeout=None, isolate=True)
    outcomes = kit.outcomes(kit.submits(f, range(8)))
    for item, outcome in enumerate(outcomes):
        if item in bad:
            assert (type(outcome), outcome.args) == (ValueError, ([item],))
        else:
            assert outcome == -item
    assert len(kit.batches) <= 2 * 8 - 1
    assert len(kit.batches) == 1 or len(bad) > 0
    if bad == set(range(8)):
        assert len(kit.batches) == 15
    kit.until_idle(f)
    kit.consistent(f)
    assert f.stats.reasons.get("isolate", 0) == len(kit.batches) - 1
    assert (f.stats.failed, f.stats.answered) == (len(bad), 8 - len(bad))


@pytest.mark.parametrize("isolate", [LookupError, (ValueError, LookupError), KeyError])
def test_isolate_of_some_types_lets_others_alone(kit: Kit, isolate: Any) -> None:
    def function(xs: list[Any]) -> list[Any]:
        if "busy" in xs:
            raise ConnectionError("429")
        return [{}[x] if x == "bad" else x for x in xs]

    f = kit(function, batch_size=4, timeout=None, isolate=isolate)
    *good, bad = kit.outcomes(kit.submits(f, [1, 2, 3, "bad"]))
    assert (good, type(bad)) == ([1, 2, 3], KeyError)
    before = len(kit.batches)
    assert {type(error) for error in kit.outcomes(kit.submits(f, [1, 2, 3, "busy"]))} == {ConnectionError}
    assert len(kit.batches) == before + 1


@pytest.mark.parametrize("size", [1, 2, 3, 8, 13])
def test_isolate_costs_2n_minus_1_calls_at_most(kit: Kit, size: int) -> None:
    def refuse(xs: list[int]) -> list[int]:
        raise ValueError

    f = kit(refuse, batch_size=size, timeout=None, isolate=True)
    assert {type(error) for error in kit.outcomes(kit.submits(f, range(size)))} == {ValueError}
    assert len(kit.calls) == 2 * size - 1


def test_isolate_runs_the_parts_before_all_waiting_items(kit: Kit) -> None:
    f = kit(refuses_bad({1}), gated=True, batch_size=4, timeout=0.0, isolate=True)
    handles = [kit.busy(f, 9), *kit.submits(f, [1, 2, 3, 4, 5, 6, 7, 8])]
    kit.go_on(20)
    kit.outcomes(handles)
    assert kit.batches == [[9], [1, 2, 3, 4], [1, 2], [1], [2], [3, 4], [5, 6, 7, 8]]


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, GeneratorExit, asyncio.CancelledError])
def test_isolate_does_not_split_after_an_exit_or_cancellation(kit: Kit, error: type[BaseException]) -> None:
    def function(xs: list[int]) -> list[int]:
        raise error

    f = kit(function, batch_size=4, timeout=None, isolate=True)
    handles = kit.submits(f, range(4))
    if isinstance(kit, Coroutines) and error in (SystemExit, KeyboardInterrupt):
        kit.turn()
    assert [type(each) for each in kit.outcomes(handles)] == [BatchError] * 4
    assert len(kit.batches) == 1
    kit.until_idle(f)
    kit.consistent(f)


@pytest.mark.parametrize("returned", [[1], None, iter([1]), {}], ids=["few", "None", "early", "missing"])
def test_isolate_does_not_split_wrong_results(kit: Kit, returned: Any) -> None:
    f = kit(lambda xs: returned, batch_size=4, timeout=None, isolate=True)
    kit.outcomes(kit.submits(f, range(4)))
    assert len(kit.batches) == 1
    kit.until_idle(f)
    kit.consistent(f)


def test_isolate_keeps_the_results_that_a_generator_yielded_before_it_raised(kit: Kit) -> None:
    def function(xs: list[int]) -> Iterator[int]:
        for x in xs:
            if x in (2, 6):
                raise ValueError(x)
            yield -x

    f = kit(function, batch_size=8, timeout=None, isolate=True)
    outcomes = kit.outcomes(kit.submits(f, range(8)))
    assert [each.args[0] if isinstance(each, ValueError) else each for each in outcomes] == [
        0,
        -1,
        2,
        -3,
        -4,
        -5,
        6,
        -7,
    ]
    assert kit.batches[0] == list(range(8))
    assert len(kit.batches) <= 15
    assert not any(set(batch) & {0, 1} for batch in kit.batches[1:])
    kit.until_idle(f)
    kit.consistent(f)


def test_isolate_keeps_columns_constants_and_equal_items(kit: Kit) -> None:
    def function(xs: list[int], ys: list[int], *, plus: int) -> list[int]:
        return [plus + x // y for x, y in zip(xs, ys, strict=True)]

    f = kit(function, batch_size=4, timeout=None, isolate=True, dedupe=True)
    rows = [(6, 3), (1, 0), (6, 3), (8, 2), (1, 0)]
    handles = [kit.submit(f, *row, plus=10) for row in rows]
    kit.flush(f)
    outcomes = kit.outcomes(handles)
    assert [type(each) if isinstance(each, Exception) else each for each in outcomes] == [
        12,
        ZeroDivisionError,
        12,
        14,
        ZeroDivisionError,
    ]
    assert all(constants == {"plus": 10} for _, constants in kit.calls)
    assert len(kit.calls) <= 2 * 3 - 1
    kit.until_idle(f)
    kit.consistent(f)


@pytest.mark.parametrize("engine", ["pool", "at once", "dropped"])
def test_isolate_splits_a_batch_whose_future_fails(threads: Threads, engine: str) -> None:
    pool = ThreadPoolExecutor(2)

    def function(xs: list[int]) -> Any:
        if engine == "pool":
            return pool.submit(refuses_bad({2}), xs)
        future: Future[list[int]] = Future()
        if 2 not in xs:
            future.set_result([-x for x in xs])
        elif engine == "at once":
            future.set_exception(ValueError([2]))
        return future

    f = threads(function, batch_size=5, timeout=None, isolate=True)
    with pool:
        outcomes = threads.outcomes(threads.submits(f, range(5)))
    assert [type(each) if isinstance(each, Exception) else each for each in outcomes] == [
        0,
        -1,
        BatchError if engine == "dropped" else ValueError,
        -3,
        -4,
    ]
    assert len(threads.batches) <= 9
    threads.until_idle(f)
    threads.consistent(f)


def test_isolate_cancelled_item_leaves_the_other_parts(kit: Kit) -> None:
    f = kit(refuses_bad({0}), gated=True, batch_size=4, timeout=None, isolate=True)
    handles = kit.submits(f, range(4))
    kit.until_runs(1)
    kit.go_on()
    kit.until_runs(2)
    assert handles[3].cancel() == (kit.kind == "coroutines")  # on threads a batch that runs is not left
    assert f.stats.running == 4
    kit.go_on(10)
    assert kit.outcomes(handles[1:3]) == [-1, -2]
    assert type(kit.outcome(handles[0])) is ValueError
    kit.until_idle(f)
    kit.consistent(f)


def test_isolate_part_that_nobody_waits_for_any_more_leaves_the_other_parts(coroutines: Coroutines) -> None:
    kit = coroutines
    f = kit(refuses_bad({0}), gated=True, batch_size=4, timeout=None, isolate=True)
    handles = kit.submits(f, range(4))
    kit.go_on()
    kit.until_runs(2)
    assert handles[2].cancel()
    assert handles[3].cancel()
    kit.go_on(10)
    assert type(kit.outcome(handles[0])) is ValueError
    assert kit.outcomes([handles[1], *kit.submits(f, range(4, 8))]) == [-1, -4, -5, -6, -7]
    kit.until_idle(f)
    kit.consistent(f)


def test_isolate_close_waits_for_all_parts(kit: Kit) -> None:
    f = kit(refuses_bad({0, 1, 2, 3}), batch_size=4, timeout=None, isolate=True)
    handles = kit.submits(f, range(4))
    kit.close(f)
    assert all(handle.done() for handle in handles)
    assert [type(each) for each in kit.outcomes(handles)] == [ValueError] * 4
    kit.consistent(f)


def test_dropped_future_fails_its_batch_and_those_behind_it_are_run(threads: Threads) -> None:
    f = threads(lambda xs: Future(), batch_size=1)
    assert [type(error) for error in threads.outcomes(threads.submits(f, range(3)))] == [BatchError] * 3
