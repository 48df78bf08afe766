"""With `dedupe` equal items of a batch are given to the function once, and each of their callers is answered."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from batchify import BatchError, MissingResultError, ResultCountError

from ..kit import Kit, Threads, echo, negate


def pairs(xs: list[int], ys: list[int]) -> list[tuple[int, int]]:
    return list(zip(xs, ys, strict=True))


def raises(xs: list[int]) -> list[int]:
    raise ValueError(len(xs))


def test_dedupe_sends_equal_items_of_a_batch_once(kit: Kit) -> None:
    f = kit(echo, batch_size=5, timeout=None, dedupe=True)
    assert kit.outcomes(kit.submits(f, [1, 2, 1, 1, 2])) == [1, 2, 1, 1, 2]
    assert kit.outcomes(kit.submits(f, [1, 3, 3, 4, 4])) == [1, 3, 3, 4, 4]
    assert kit.batches == [[1, 2], [1, 3, 4]]  # nothing is cached
    assert f.stats.sizes == {5: 2}
    kit.consistent(f)


def test_dedupe_gives_callers_of_equal_items_the_same_object(kit: Kit) -> None:
    f = kit(lambda xs: [[x] for x in xs], batch_size=3, timeout=None, dedupe=True)
    first, other, second = kit.outcomes(kit.submits(f, [1, 2, 1]))
    assert (first, other) == ([1], [2])
    assert second is first


def test_dedupe_sends_equal_rows_of_columns_once(kit: Kit) -> None:
    f = kit(pairs, batch_size=3, timeout=None, dedupe=True)
    assert kit.outcomes([kit.submit(f, 1, 2), kit.submit(f, 1, 3), kit.submit(f, 1, ys=2)]) == [(1, 2), (1, 3), (1, 2)]
    assert kit.calls == [(([1, 1], [2, 3]), {})]


@pytest.mark.parametrize("position", [0, 1, 2])
@pytest.mark.parametrize("when", ["waiting", "running"])
def test_dedupe_cancelled_item_leaves_its_equals(kit: Kit, position: int, when: str) -> None:
    f = kit(echo, gated=True, batch_size=4, timeout=None, dedupe=True)
    handles = kit.submits(f, [1, 1, 1])
    if when == "waiting":
        assert handles[position].cancel()
    kit.flush(f)
    kit.until_runs(1)
    assert kit.batches == [[1]]
    if when == "running":
        assert handles[position].cancel()
    kit.go_on()
    outcomes = kit.outcomes(handles)
    assert outcomes[:position] + outcomes[position + 1 :] == [1, 1]
    assert handles[position].cancelled()
    kit.until_idle(f)
    kit.consistent(f)


def test_dedupe_unhashable_item_fails_its_own_call_only(kit: Kit) -> None:
    f = kit(echo, batch_size=2, timeout=None, dedupe=True)
    first = kit.submit(f, 1)
    error = kit.outcome(kit.start(f, []))
    assert (type(error), str(error)) == (TypeError, "unhashable type: 'list'")
    with pytest.raises(TypeError, match="unhashable"):
        kit.submit(f, {})
    assert kit.outcomes([first, kit.submit(f, 1)]) == [1, 1]
    assert kit.batches == [[1]]


def test_items_need_not_be_hashable_without_dedupe(kit: Kit) -> None:
    f = kit(echo, batch_size=2, timeout=None, group_by=len)
    assert kit.outcomes(kit.submits(f, [[], []])) == [[], []]


def test_dedupe_sends_each_item_that_cannot_be_compared(kit: Kit) -> None:
    class Hostile:
        def __hash__(self) -> int:
            return 1

        def __eq__(self, other: object) -> bool:
            raise ZeroDivisionError

    f = kit(echo, batch_size=3, timeout=None, dedupe=True)
    items = [Hostile(), Hostile(), 5]
    assert [x is y for x, y in zip(kit.outcomes(kit.submits(f, items)), items, strict=True)] == [True] * 3


def test_dedupe_comparison_that_exits_fails_its_batch_and_no_other(kit: Kit) -> None:
    class Hostile:
        def __hash__(self) -> int:
            return 1

        def __eq__(self, other: object) -> bool:
            raise SystemExit

    f = kit(echo, batch_size=3, timeout=None, dedupe=True)
    errors = kit.outcomes(kit.submits(f, [1, Hostile(), 2]))
    assert [type(error) for error in errors] == [BatchError] * 3
    assert kit.outcomes(kit.submits(f, [1, 2, 3])) == [1, 2, 3]
    kit.consistent(f)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda xs: {x: -x for x in xs}, [-1, -2, -1, -3, -2]),
        (lambda xs: {1: -1, 3: -3}, [-1, MissingResultError, -1, -3, MissingResultError]),
        (lambda xs: (-x for x in xs), [-1, -2, -1, -3, -2]),
        (lambda xs: iter(xs[:1]), [1, ResultCountError, 1, ResultCountError, ResultCountError]),
        (lambda xs: [*xs, 4, 5], [ResultCountError] * 5),
        (lambda xs: [KeyError(x) if x == 2 else -x for x in xs], [-1, KeyError, -1, -3, KeyError]),
        (lambda xs: None, [TypeError] * 5),
        (raises, [ValueError] * 5),
        (lambda xs: exit(), [BatchError] * 5),
    ],
    ids=["mapping", "missing", "generator", "early", "many", "exceptions", "None", "raises", "exits"],
)
def test_dedupe_equal_items_get_the_same_answer_whatever_the_function_does(
    kit: Kit, function: Callable[[list[int]], Any], expected: list[Any]
) -> None:
    f = kit(function, batch_size=5, timeout=None, dedupe=True)
    outcomes = kit.outcomes(kit.submits(f, [1, 2, 1, 3, 2]))
    assert [type(each) if isinstance(each, Exception) else each for each in outcomes] == expected
    errors = [each for each in outcomes if isinstance(each, Exception)]
    assert len({id(error) for error in errors}) == len(errors)  # each caller has its own
    assert kit.batches == [[1, 2, 3]]
    kit.consistent(f)


def test_dedupe_counts_results_against_the_items_sent(kit: Kit) -> None:
    f = kit(lambda xs: [0] * 3, batch_size=3, timeout=None, dedupe=True)
    errors = kit.outcomes(kit.submits(f, [1, 1, 1]))
    assert {str(error) for error in errors} == {
        "<lambda>() returned 3 results for 1 item; it must return one result per item, in the same order"
    }


def test_dedupe_sends_equal_items_once_to_an_executor(threads: Threads) -> None:
    with ThreadPoolExecutor(1) as pool:
        for work, expected in ((negate, [-1, -1, -2]), (raises, [ValueError] * 3)):

            def function(xs: list[int], /) -> Future[list[int]]:
                return pool.submit(work, xs)  # noqa: B023 - all is answered before the next turn

            f = threads(function, batch_size=3, timeout=None, dedupe=True, isolate=True)
            outcomes = threads.outcomes(threads.submits(f, [1, 1, 2]))
            assert [type(each) if isinstance(each, Exception) else each for each in outcomes] == expected
            threads.until_idle(f)
            threads.consistent(f)
    assert threads.batches == [[1, 2], [1, 2], [1], [2]]
