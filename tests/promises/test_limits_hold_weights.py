"""The limits hold: no batch has more than `batch_size` items, nor more than `max_weight` if it has more than one.

An item whose weight cannot be found out is the matter of its own call alone.
"""

import math
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest

from ..kit import Kit, echo


def test_weight_and_batch_size_limit_each_batch_and_order_is_kept(kit: Kit) -> None:
    f = kit(echo, batch_size=3, timeout=None, weight=lambda x: x, max_weight=10)
    items = [4, 4, 4, 1, 1, 1, 10, 11, 3, 7, 8, 1]
    handles = kit.submits(f, items)
    kit.flush(f)
    assert kit.outcomes(handles) == items
    assert [x for batch in kit.batches for x in batch] == items
    assert kit.batches[:5] == [[4, 4], [4, 1, 1], [1], [10], [11]]
    for batch in kit.batches:
        assert len(batch) <= 3
        assert len(batch) == 1 or sum(batch) <= 10
    kit.consistent(f)


def test_weight_above_max_weight_runs_alone(kit: Kit) -> None:
    f = kit(echo, batch_size=9, timeout=None, weight=lambda x: x, max_weight=5)
    handles = kit.submits(f, [1, 9, 2])
    kit.flush(f)
    assert kit.outcomes(handles) == [1, 9, 2]
    assert kit.batches == [[1], [9], [2]]


def test_weight_0_is_limited_by_batch_size(kit: Kit) -> None:
    f = kit(echo, batch_size=2, timeout=None, weight=lambda x: 0, max_weight=1)
    assert kit.outcomes(kit.submits(f, range(4))) == [0, 1, 2, 3]
    assert f.stats.sizes == {2: 2}


def test_weight_that_reaches_max_weight_makes_a_batch_full(kit: Kit) -> None:
    f = kit(echo, batch_size=9, timeout=None, weight=lambda x: x, max_weight=10)
    assert kit.outcomes(kit.submits(f, [3, 7])) == [3, 7]
    assert kit.outcome(kit.start(f, 12)) == 12
    assert f.stats.reasons == {"full": 2}


def test_weight_of_an_item_that_leaves_counts_no_more(kit: Kit) -> None:
    f = kit(echo, batch_size=9, timeout=None, weight=lambda x: x, max_weight=10)
    first, second = kit.submits(f, [3, 6])
    assert first.cancel()
    third = kit.submit(f, 3)
    kit.settle()
    assert not second.done()
    assert not third.done()
    assert kit.outcomes([kit.submit(f, 1), second, third]) == [1, 6, 3]
    assert kit.batches == [[6, 3, 1]]


@pytest.mark.parametrize("weight", [2, 2.0, Decimal(2), Fraction(2), 0])
def test_weight_may_be_any_number(kit: Kit, weight: Any) -> None:
    f = kit(echo, batch_size=5, timeout=None, weight=lambda x: weight, max_weight=Decimal(4))
    handles = kit.submits(f, range(2))
    kit.flush(f)
    assert kit.outcomes(handles) == [0, 1]


@pytest.mark.parametrize(
    ("weight", "error", "message"),
    [
        (math.nan, ValueError, "echo(): weight must return at least 0 and a finite number, got nan"),
        (math.inf, ValueError, "echo(): weight must return at least 0 and a finite number, got inf"),
        (-1, ValueError, "echo(): weight must return at least 0 and a finite number, got -1"),
        ("1", TypeError, "echo(): weight must return a number, got str"),
        (None, TypeError, "echo(): weight must return a number, got NoneType"),
        (True, TypeError, "echo(): weight must return a number, got bool"),
        (1j, TypeError, "echo(): weight must return a number, got complex"),
        (10**400, ValueError, "echo(): weight must return at least 0 and a finite number, got inf"),
        (Decimal("NaN"), ValueError, "echo(): weight must return at least 0 and a finite number, got nan"),
        (ZeroDivisionError("mine"), ZeroDivisionError, "mine"),
        (SystemExit("mine"), SystemExit, "mine"),
    ],
    ids=["nan", "inf", "negative", "str", "None", "bool", "complex", "huge", "Decimal", "raises", "exits"],
)
def test_weight_that_is_no_number_is_that_calls_error(
    kit: Kit, weight: Any, error: type[BaseException], message: str
) -> None:
    def weigh(x: int) -> Any:
        if x:
            return 1
        if isinstance(weight, BaseException):
            raise weight
        return weight

    f = kit(echo, batch_size=2, timeout=None, weight=weigh, max_weight=5)
    first = kit.submit(f, 1)
    with pytest.raises(error) as raised:
        kit.submit(f, 0)
    assert message in str(raised.value)
    if error is not SystemExit:
        assert isinstance(kit.outcome(kit.start(f, 0)), error)
    assert kit.outcomes([first, kit.submit(f, 2)]) == [1, 2]
    assert f.stats.accepted == 2
