"""Two decorated functions are two; methods are bound again as Python's are; and a test may replace what it uses."""

import inspect
import weakref
from typing import Any
from unittest import mock

import pytest

from ..kit import Kit, batched, echo, negate
from ..tools import collect


def test_functions_that_batch_the_same_list_function_are_different(kit: Kit) -> None:
    function = kit.wrap(negate)
    interactive, bulk = batched(batch_size=1)(function), batched(batch_size=64)(function)
    assert interactive != bulk
    assert interactive != function
    assert function != bulk
    assert interactive == interactive
    assert len({interactive, bulk, function}) == 3
    kit.made += [interactive, bulk]


def class_with_a_method(kit: Kit) -> Any:
    def times(self: Any, xs: list[int]) -> list[int]:
        return [self.factor * x for x in xs]

    times.__name__, times.__qualname__ = "scale", "Scaler.scale"  # as if it were written there

    class Scaler:
        scale = batched(batch_size=2)(kit.wrap(times))
        of_class = batched(batch_size=2)(classmethod(kit.wrap(lambda cls, xs: [(cls, x) for x in xs])))

        def __init__(self, factor: int) -> None:
            self.factor = factor

    return Scaler


def test_methods_are_equal_if_they_are_of_one_instance(kit: Kit) -> None:
    kind = class_with_a_method(kit)
    one, other = kind(2), kind(3)
    assert one.scale == one.scale
    assert hash(one.scale) == hash(one.scale)
    assert one.scale != other.scale
    assert one.scale not in (kind.scale, None)
    assert kind.of_class == one.of_class


def test_weak_method_calls_as_the_method_does(kit: Kit) -> None:
    kind = class_with_a_method(kit)
    one = kind(10)
    reference: Any = weakref.WeakMethod(one.scale)
    assert reference() == one.scale
    assert kit.outcome(kit.start(reference(), 3)) == kit.outcome(kit.submit(reference(), 3)) == 30
    assert kit.outcome(kit.start(weakref.WeakMethod(kind.of_class)(), 3)) == (kind, 3)
    assert one.scale.stats.accepted == 2
    del one
    collect()
    assert reference() is None


def test_what_is_not_bound_is_bound_to_nothing(kit: Kit) -> None:
    f = kit(class_with_a_method(kit)(10).scale.__wrapped__, batch_size=2)  # whatever it batches
    with pytest.raises(TypeError, match="argument should be a bound method"):
        weakref.WeakMethod(f)
    with pytest.raises(AttributeError, match=r"scale\(\), .* is no bound method, and has no __self__$"):
        f.__self__  # noqa: B018


# Mocks


def test_list_function_cannot_be_replaced(kit: Kit) -> None:
    f = kit(negate, batch_size=2)
    with pytest.raises(AttributeError) as raised:
        f.__wrapped__ = echo
    assert str(raised.value).endswith(
        "(): the list function (__wrapped__) is fixed; for a test, replace what it uses, or what is decorated"
    )


def test_attribute_that_does_not_exist_cannot_be_set(kit: Kit) -> None:
    f = kit(negate, batch_size=2)
    with pytest.raises(AttributeError) as raised:
        f.timeot = 5
    assert str(raised.value).endswith("(): it has no timeot; what may be set is batch_size and timeout")
    with pytest.raises(AttributeError, match="it has no timeot"):
        class_with_a_method(kit).scale.timeot = 5
    f.__wrapped__.calls = 1
    f.calls = 2  # it has that of the list function
    assert f.__wrapped__.calls == 2


def test_attribute_of_a_method_cannot_be_set(kit: Kit) -> None:
    one = class_with_a_method(kit)(10)
    for name in ("submit", "aio", "timeot", "__doc__"):
        with pytest.raises(AttributeError) as raised:
            setattr(one.scale, name, echo)
        assert str(raised.value).endswith(
            f"(): a method is made anew at each access, so {name} would be lost; replace the method as a whole"
        )
    one.scale.batch_size = 5
    assert one.scale.batch_size == 5
    with mock.patch.object(one, "scale", echo):
        assert one.scale(3) == 3
    assert kit.outcome(kit.start(one.scale, 3)) == 30


def test_test_may_replace_how_a_function_is_called_and_put_it_back(kit: Kit) -> None:
    f = kit(negate, batch_size=2)
    for name in ("submit", "aio", "map", "flush"):
        with mock.patch.object(f, name, mock.Mock(return_value="replaced")) as double:
            assert getattr(f, name)(1) == "replaced"
            assert kit.outcome(kit.start(f, 1)) == -1  # a call is no `aio`
        double.assert_called_once_with(1)
    assert list(kit.map(f, [1, 2])) == [-1, -2]
    assert [kit.outcome(kit.submit(f, 3)), kit.outcome(kit.submit(f, xs=4))] == [-3, -4]
    assert inspect.iscoroutinefunction(f.aio)


def test_double_made_of_a_function_has_all_that_it_has(kit: Kit) -> None:
    double = mock.create_autospec(kit(negate, batch_size=2))
    double.submit.return_value.result.return_value = 5
    assert double.submit(1).result() == 5
    assert isinstance(double.aio, mock.AsyncMock)
    with pytest.raises(AttributeError):
        double.sumbit  # noqa: B018


def test_dir_names_what_there_is(kit: Kit) -> None:
    f = kit(negate, batch_size=2)
    public = {name for name in dir(f) if not name.startswith("_")}
    assert {"aio", "submit", "map", "flush", "stats", "batch_size", "timeout", "group_by"} <= public
    assert not [name for name in dir(f) if name.startswith("_self_")]
    method = {name for name in dir(class_with_a_method(kit)(1).scale) if not name.startswith("_")}
    assert public - {"calls"} <= method


@pytest.mark.parametrize("bind", [False, True])
def test_options_can_be_read(kit: Kit, bind: bool) -> None:
    options: dict[str, Any] = {
        "batch_size": 3,
        "timeout": 2.0,
        "weight": float,
        "max_weight": 5.0,
        "group_by": abs,
        "dedupe": True,
    }
    options |= {"isolate": True, "concurrency": 2, "max_pending": 9, "on_batch": print}
    if bind:

        class Model:
            scale = batched(**options)(kit.wrap(lambda self, xs: xs))

        assert Model.scale.concurrency == 2
        f = Model().scale
    else:
        f = kit(negate, **options)
    assert {name: getattr(f, name) for name in options} == options
