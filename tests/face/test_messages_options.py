"""A wrong option is refused where the function is decorated, or set, with the rule, the value, and whose function."""

import inspect
import math
from itertools import count
from typing import Any

import pytest

import batchify

from ..kit import Kit, batched, echo

COUNT = "must be an int of at least 1, got"
FUNCTION = "must be a function, and no coroutine function, got"
ISOLATE = "True, False, a type of Exception, or a tuple of such types"


async def later(x: object) -> int:
    return 1


class Later:
    async def __call__(self, x: object) -> int:
        return 1


LATER = Later()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1, got 0"),
        ({"batch_size": -3}, ValueError, "batch_size must be at least 1, got -3"),
        ({"batch_size": True}, TypeError, f"batch_size {COUNT} True"),
        ({"batch_size": 2.0}, TypeError, f"batch_size {COUNT} 2.0"),
        ({"batch_size": "2"}, TypeError, f"batch_size {COUNT} '2'"),
        ({"batch_size": None}, TypeError, f"batch_size {COUNT} None"),
        (
            {"timeout": -1},
            ValueError,
            "timeout must be at least 0 and finite (None waits without end), got -1",
        ),
        (
            {"timeout": float("inf")},
            ValueError,
            "timeout must be at least 0 and finite (None waits without end), got inf",
        ),
        (
            {"timeout": float("nan")},
            ValueError,
            "timeout must be at least 0 and finite (None waits without end), got nan",
        ),
        ({"timeout": True}, TypeError, "timeout must be a number of seconds or None, got True"),
        ({"timeout": "1"}, TypeError, "timeout must be a number of seconds or None, got '1'"),
        ({"concurrency": 0}, ValueError, "concurrency must be at least 1, got 0"),
        ({"concurrency": 2.0}, TypeError, f"concurrency {COUNT} 2.0"),
        ({"concurrency": True}, TypeError, f"concurrency {COUNT} True"),
        ({"concurrency": None}, TypeError, f"concurrency {COUNT} None"),
        ({"max_pending": 0}, ValueError, "max_pending must be at least 1, got 0"),
        ({"max_pending": "9"}, TypeError, f"max_pending {COUNT} '9'"),
        ({"max_pending": math.inf}, TypeError, f"max_pending {COUNT} inf"),
        ({"dedupe": 1}, TypeError, "dedupe must be True or False, got 1"),
        *[
            ({"isolate": wrong}, TypeError, f"isolate must be {ISOLATE}, got {wrong!r}")
            for wrong in (None, 1, "yes", [ValueError], SystemExit, BaseException, int, (ValueError, 1), ValueError())
        ],
        ({"group_by": "size"}, TypeError, f"group_by {FUNCTION} 'size'"),
        ({"group_by": later}, TypeError, f"group_by {FUNCTION} {later!r}"),
        ({"on_batch": later}, TypeError, f"on_batch {FUNCTION} {later!r}"),
        ({"on_batch": LATER}, TypeError, f"on_batch {FUNCTION} {LATER!r}"),
        ({"on_batch": 5}, TypeError, f"on_batch {FUNCTION} 5"),
        ({"weight": 5, "max_weight": 1}, TypeError, f"weight {FUNCTION} 5"),
        ({"weight": later, "max_weight": 1}, TypeError, f"weight {FUNCTION} {later!r}"),
        (
            {"weight": len},
            TypeError,
            "weight needs max_weight: what an item weighs, and the most that a batch may weigh",
        ),
        (
            {"max_weight": 1},
            TypeError,
            "max_weight needs weight: what an item weighs, and the most that a batch may weigh",
        ),
        ({"weight": len, "max_weight": "5"}, TypeError, "max_weight must be a number, got '5'"),
        ({"weight": len, "max_weight": True}, TypeError, "max_weight must be a number, got True"),
        ({"weight": len, "max_weight": 0}, ValueError, "max_weight must be above 0 and finite, got 0"),
        ({"weight": len, "max_weight": -1.5}, ValueError, "max_weight must be above 0 and finite, got -1.5"),
        ({"weight": len, "max_weight": math.inf}, ValueError, "max_weight must be above 0 and finite, got inf"),
        ({"weight": len, "max_weight": math.nan}, ValueError, "max_weight must be above 0 and finite, got nan"),
    ],
    ids=map(str, count()),
)
def test_wrong_option_is_refused_in_full(
    kit: Kit, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as raised:
        kit(**{"batch_size": 2, **options})
    assert str(raised.value) == f"negate(): {message}"

    class C:
        def m(self, xs: Any) -> Any: ...

    with pytest.raises(error) as raised:
        batched(**{"batch_size": 2, **options})(C.m)
    assert str(raised.value) == f"C.m(): {message}"


class Written:
    def run(self, xs: list[int]) -> list[int]:
        return xs


def test_options_cannot_be_set_on_the_method_of_a_class(kit: Kit) -> None:
    class Model:
        run = batched(batch_size=2)(kit.wrap(Written.run))

    for name in ("batch_size", "timeout"):
        with pytest.raises(
            AttributeError, match=rf"^Written.run\(\) has a buffer for each instance, so {name} must be set"
        ):
            setattr(Model.run, name, 3)
    one, other = Model(), Model()
    one.run.batch_size = 3
    assert (one.run.batch_size, other.run.batch_size) == (3, 2)


@pytest.mark.parametrize("option", ["concurrency", "max_pending", "weight", "isolate"])
def test_fixed_options_cannot_be_set(kit: Kit, option: str) -> None:
    f = kit(echo, batch_size=2)
    with pytest.raises(AttributeError, match=rf"^echo\(\): {option} is fixed when the function is decorated$"):
        setattr(f, option, 3)


def test_options_have_the_defaults_that_the_readme_says() -> None:
    defaults = {name: each.default for name, each in inspect.signature(batchify.batched).parameters.items()}
    assert defaults.pop("batch_size") is inspect.Parameter.empty
    assert defaults == {
        "timeout": 0.0,
        "weight": None,
        "max_weight": None,
        "group_by": None,
        "dedupe": False,
        "isolate": False,
        "concurrency": 1,
        "max_pending": None,
        "on_batch": None,
    }
