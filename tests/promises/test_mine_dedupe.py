"""With `dedupe` equal items that wait at once are given to the function once, and each of their callers is answered."""

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


def flushed(kit: Kit, f: Any, items: Any) -> list[Any]:
    """Submit items, make them due, and return their outcomes."""
    handles = kit.submits(f, items)
    kit.flush(f)
    return kit.outcomes(handles)


class Hostile:
    """All hash alike, and to compare one raises."""

    def __init__(self, error: type[BaseException] = ZeroDivisionError) -> None:
        self.error = error

    def __hash__(self) -> int:
        return 1

    def __eq__(self, other: object) -> bool:
        raise self.error


def test_dedupe_sends_equal_items_of_a_batch_once(kit: Kit) -> None:
    kit.stop_the_clock()
    f = kit(echo, batch_size=5, timeout=None, dedupe=True)
    assert flushed(kit, f, [1, 2, 1, 1, 2]) == [1, 2, 1, 1, 2]
    kit.move(1.0)
    assert flushed(kit, f, [1, 3, 3, 4, 4]) == [1, 3, 3, 4, 4]
    assert kit.batches == [[1, 2], [1, 3, 4]]  # nothing is cached
    assert f.stats.sizes == {2: 1, 3: 1}
    assert f.stats.answered == 10
    kit.consistent(f)


def test_dedupe_callers_of_equal_items_do_not_fill_a_batch(kit: Kit) -> None:
    f = kit(echo, batch_size=2, timeout=None, dedupe=True, max_pending=200)
    handles = kit.submits(f, [7] * 100)
    kit.settle(f)
    assert f.stats.pending == 100
    handles.append(kit.submit(f, 8))
    assert kit.outcomes(handles) == [7] * 100 + [8]
    assert kit.batches == [[7, 8]]
    assert f.stats.sizes_by_reason == {"full": {2: 1}}
    kit.consistent(f)


def test_dedupe_sends_equal_items_of_different_types_each(kit: Kit) -> None:
    f = kit(echo, batch_size=4, timeout=None, dedupe=True)
    found = kit.outcomes(kit.submits(f, [1, True, 1.0, 1, 0]))
    assert list(map(type, found)) == [int, bool, float, int, int]
    assert list(map(repr, kit.batches[0])) == ["1", "True", "1.0", "0"]


def test_dedupe_sends_equal_rows_of_different_types_each(kit: Kit) -> None:
    f = kit(pairs, batch_size=2, timeout=None, dedupe=True)
    kit.outcomes([kit.submit(f, 1, 2), kit.submit(f, 1, 2), kit.submit(f, 1, 2.0)])
    assert kit.calls == [(([1, 1], [2, 2.0]), {})]


def test_dedupe_counts_the_weight_of_equal_items_once(kit: Kit) -> None:
    f = kit(echo, batch_size=9, timeout=None, dedupe=True, weight=lambda x: x, max_weight=10)
    handles = kit.submits(f, [4, 4, 4])
    kit.settle(f)
    assert f.stats.pending == 3
    assert kit.outcomes([*handles, kit.submit(f, 6)]) == [4, 4, 4, 6]
    assert kit.batches == [[4, 6]]


def test_dedupe_reports_items_and_callers(kit: Kit) -> None:
    reports: list[Any] = []
    f = kit(echo, batch_size=9, timeout=None, dedupe=True, on_batch=reports.append)
    flushed(kit, f, [1, 2, 1])
    (report,) = reports
    assert (report.size, len(report.waits), len(report.contexts)) == (2, 3, 3)


def test_dedupe_gives_callers_of_equal_items_the_same_object(kit: Kit) -> None:
    f = kit(lambda xs: [[x] for x in xs], batch_size=3, timeout=None, dedupe=True)
    first, other, second = flushed(kit, f, [1, 2, 1])
    assert (first, other) == ([1], [2])
    assert second is first


def test_dedupe_sends_equal_rows_of_columns_once(kit: Kit) -> None:
    f = kit(pairs, batch_size=2, timeout=None, dedupe=True)
    handles = [kit.submit(f, 1, 2), kit.submit(f, 1, ys=2), kit.submit(f, 1, 3)]
    assert kit.outcomes(handles) == [(1, 2), (1, 2), (1, 3)]
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
    leaves = when == "waiting" or kit.kind == "coroutines"  # on threads a batch that runs is not left
    if when == "running":
        assert handles[position].cancel() == leaves
    kit.go_on()
    outcomes = kit.outcomes(handles)
    assert outcomes[:position] + outcomes[position + 1 :] == [1, 1]
    assert handles[position].cancelled() == leaves
    kit.until_idle(f)
    kit.consistent(f)


def test_dedupe_unhashable_item_fails_its_own_call_only(kit: Kit) -> None:
    f = kit(echo, batch_size=2, timeout=None, dedupe=True)
    first = kit.submit(f, 1)
    second = kit.submit(f, 1)
    error = kit.outcome(kit.start(f, []))
    assert type(error) is TypeError
    assert "unhashable type: 'list'" in str(error)  # newer Pythons say more
    with pytest.raises(TypeError, match="unhashable"):
        kit.submit(f, {})
    assert kit.outcomes([first, second, kit.submit(f, 2)]) == [1, 1, 2]
    assert kit.batches == [[1, 2]]


def test_items_need_not_be_hashable_without_dedupe(kit: Kit) -> None:
    f = kit(echo, batch_size=2, timeout=None, group_by=len)
    assert kit.outcomes(kit.submits(f, [[], []])) == [[], []]


@pytest.mark.parametrize(("error", "raised"), [(ZeroDivisionError, ZeroDivisionError), (SystemExit, BatchError)])
def test_dedupe_item_that_cannot_be_compared_fails_its_own_call_only(
    kit: Kit, error: type[BaseException], raised: type[Exception]
) -> None:
    f = kit(echo, batch_size=3, timeout=None, dedupe=True)
    first, second = Hostile(error), Hostile(error)
    handles = kit.submits(f, [first, 5, second, first, 6])
    outcomes = kit.outcomes(handles)
    assert outcomes[0] is outcomes[3] is first
    assert [outcomes[1], outcomes[4]] == [5, 6]
    assert type(outcomes[2]) is raised
    assert flushed(kit, f, [1, 2]) == [1, 2]
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
    outcomes = flushed(kit, f, [1, 2, 1, 3, 2])
    assert [type(each) if isinstance(each, Exception) else each for each in outcomes] == expected
    errors = [each for each in outcomes if isinstance(each, Exception)]
    assert len({id(error) for error in errors}) == len(errors)  # each caller has its own
    assert kit.batches == [[1, 2, 3]]
    kit.consistent(f)


def test_dedupe_counts_results_against_the_items_sent(kit: Kit) -> None:
    f = kit(lambda xs: [0] * 3, batch_size=3, timeout=None, dedupe=True)
    errors = flushed(kit, f, [1, 1, 1])
    assert {str(error) for error in errors} == {
        "<lambda>() returned 3 results for 1 item; it must return one result per item, in the same order"
    }


def test_dedupe_sends_equal_items_once_to_an_executor(threads: Threads) -> None:
    with ThreadPoolExecutor(1) as pool:
        for work, expected in ((negate, [-1, -1, -2]), (raises, [ValueError] * 3)):

            def function(xs: list[int], /) -> Future[list[int]]:
                return pool.submit(work, xs)  # noqa: B023 - all is answered before the next turn

            f = threads(function, batch_size=2, timeout=None, dedupe=True, isolate=True)
            outcomes = threads.outcomes(threads.submits(f, [1, 1, 2]))
            assert [type(each) if isinstance(each, Exception) else each for each in outcomes] == expected
            threads.until_idle(f)
            threads.consistent(f)
    assert threads.batches == [[1, 2], [1, 2], [1], [2]]
