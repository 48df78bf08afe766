"""The first parameter, and those by position without a default, are columns, with one entry per item.

All others are constants of a whole batch.

Wrong arguments raise what Python itself would say of the user's function.
"""

import asyncio
import inspect
import re
from collections.abc import Iterator
from typing import Any

import pytest

from batchify import batched as typed_batched

from ..kit import Coroutines, Kit, batched, echo


def pairs(xs: list[int], ys: list[int]) -> list[tuple[int, int]]:
    return list(zip(xs, ys, strict=True))


def scaled(xs: list[int], ys: list[int], *, model: str = "small") -> list[str]:
    return [f"{model} {x} {y}" for x, y in zip(xs, ys, strict=True)]


def embed(texts: list[Any], *, model: Any = "small") -> list[Any]:
    return [(model, text) for text in texts]


def test_columns_are_lists_of_one_entry_per_item(kit: Kit) -> None:
    f = kit(pairs, batch_size=2, timeout=None)
    assert kit.outcomes([kit.submit(f, 1, 2), kit.submit(f, 3, ys=4)]) == [(1, 2), (3, 4)]
    assert kit.outcomes([kit.start(f, 5, 6), kit.start(f, ys=8, xs=7)]) == [(5, 6), (7, 8)]
    assert kit.calls == [(([1, 3], [2, 4]), {}), (([5, 7], [6, 8]), {})]


def test_default_of_the_first_column_is_one_item(kit: Kit) -> None:
    g = kit(lambda xs=5: xs, batch_size=1)
    assert kit.outcomes([kit.submit(g), kit.start(g), kit.submit(g, 4), kit.start(g, 4)]) == [5, 5, 4, 4]


def test_columns_may_be_changed_by_the_function(kit: Kit) -> None:
    def change(xs: list[int], ys: list[int]) -> list[int]:
        sums = [x + y for x, y in zip(xs, ys, strict=True)]
        xs.clear()
        ys.append(0)
        return sums

    f = kit(change, batch_size=2, timeout=None)
    assert kit.outcomes([kit.submit(f, 1, 2), kit.submit(f, 3, 4)]) == [3, 7]


def test_columns_and_constants_may_be_passed_by_name(kit: Kit) -> None:
    f, g, h = (kit(function, batch_size=1) for function in (echo, embed, scaled))
    assert kit.outcome(kit.start(g, model="large", texts=1)) == ("large", 1)
    assert kit.outcome(kit.start(h, model="m", ys=2, xs=1)) == "m 1 2"
    assert kit.outcomes([kit.start(f, xs=1), kit.submit(f, xs=2)]) == [1, 2]  # as FastAPI and other injectors do
    assert list(kit.map(h, [1, 2], ys=[3, 4])) == ["small 1 3", "small 2 4"]


def test_positional_only_columns_cannot_be_passed_by_name(kit: Kit) -> None:
    def f(xs: Any, /, ys: Any, *, z: int = 3) -> list[Any]:
        return [(x, y, z) for x, y in zip(xs, ys, strict=True)]

    f.__qualname__ = "f"
    g = kit(f, batch_size=1)
    assert kit.outcome(kit.start(g, 1, ys=5, z=6)) == (1, 5, 6)
    with pytest.raises(TypeError) as expected:
        f(xs=1, ys=2)  # type: ignore[call-arg]
    assert str(kit.outcome(kit.start(g, xs=1, ys=2))) == str(expected.value)


def test_columns_and_constants_may_have_any_name(kit: Kit) -> None:
    def f(items: Any, self: Any, item: Any, *, of: Any = 4, args: Any = 5, bind: Any = 6, _item_: Any = 7) -> Any:
        return [(*each, of, args, bind, _item_) for each in zip(items, self, item, strict=True)]

    g = kit(f, batch_size=1)
    everything = {"items": 1, "self": 2, "item": 0, "of": 0, "args": 0, "bind": 0, "_item_": 0}
    assert kit.outcome(kit.start(g, 1, 2, 3)) == (1, 2, 3, 4, 5, 6, 7)
    with asyncio.Runner() as runner:
        assert runner.run(g.aio(**everything)) == (1, 2, 0, 0, 0, 0, 0)
    if kit.kind == "threads":
        assert g(**everything) == g.submit(**everything).result() == (1, 2, 0, 0, 0, 0, 0)
    else:
        assert kit.outcome(kit.loop.create_task(g(**everything))) == (1, 2, 0, 0, 0, 0, 0)  # type: ignore[attr-defined]


def test_constants_of_a_bound_method_may_have_any_name(kit: Kit) -> None:
    class Model:
        def run(self, xs: list[int], *, items: int, function: int = 0) -> list[int]:
            return [x + items + function for x in xs]

    model = Model()
    f = kit(model.run, batch_size=1)
    assert kit.outcome(kit.submit(f, 1, items=2, function=3)) == 6
    columns = kit(lambda xs, ys, *, items=1: [x + y + items for x, y in zip(xs, ys, strict=True)], batch_size=1)
    assert kit.outcome(kit.submit(columns, 1, 2, items=3)) == 6


def test_columns_of_a_generator_function(kit: Kit) -> None:
    def sums(xs: list[int], ys: list[int], *, plus: int = 0) -> Iterator[int]:
        for x, y in zip(xs, ys, strict=True):
            yield x + y + plus

    f = kit(sums, batch_size=2, timeout=None)
    assert kit.outcomes([kit.submit(f, 1, 2, plus=5), kit.submit(f, 3, 4, plus=5)]) == [8, 12]


def test_map_takes_an_iterable_for_each_column(kit: Kit) -> None:
    f = kit(scaled, batch_size=3)
    assert list(kit.map(f, range(5), iter("abcd"), model="m")) == ["m 0 a", "m 1 b", "m 2 c", "m 3 d"]
    with pytest.raises(TypeError, match=r"not iterable|must support iteration"):
        list(kit.map(f, [1], 2))
    with pytest.raises(TypeError, match="is not iterable"):
        list(kit.map(kit(embed, batch_size=3), 1))


def test_map_of_an_async_iterable_takes_constants(coroutines: Coroutines) -> None:
    async def numbers() -> Any:
        for number in range(4):
            yield number

    async def main() -> list[Any]:
        return [each async for each in f.map(numbers(), model="m")]

    f = coroutines(embed, batch_size=3)
    assert coroutines.run(main()) == [("m", number) for number in range(4)]


# Constants


def test_constants_that_differ_never_share_a_batch(kit: Kit) -> None:
    f = kit(embed, batch_size=2, timeout=None)
    models: list[Any] = ["large", None, 1, 1.0, True, "large", None, 1, 1.0, True]
    handles = [kit.submit(f, number, model=model) for number, model in enumerate(models)]
    default = [kit.submit(f, 10), kit.submit(f, 11, model="small")]
    outcomes = kit.outcomes([*handles, *default])
    assert [number for _, number in outcomes] == list(range(12))
    assert [(type(model), model) for model, _ in outcomes] == [
        (type(each), each) for each in [*models, "small", "small"]
    ]
    assert kit.batches == [[0, 5], [1, 6], [2, 7], [3, 8], [4, 9], [10, 11]]


def test_constant_equal_to_its_default_shares_the_batch(kit: Kit) -> None:
    f = kit(embed, batch_size=3, timeout=None)
    handles = [kit.submit(f, 1), kit.submit(f, 2, model="small"), kit.submit(f, 3)]
    assert kit.outcomes(handles) == [("small", 1), ("small", 2), ("small", 3)]


def test_unhashable_constant_fails_its_own_call_only(kit: Kit) -> None:
    f = kit(embed, batch_size=2, timeout=None)
    first = kit.submit(f, 1)
    error = kit.outcome(kit.start(f, 2, model=[]))
    assert type(error) is TypeError
    said = r"^embed\(\): model must be hashable, since only calls with an equal one share a batch: .*unhashable type: "
    assert re.search(f"{said}'list'", str(error))
    with pytest.raises(TypeError, match=f"{said}'dict'"):
        kit.submit(f, 2, model={})
    assert kit.outcomes([first, kit.submit(f, 3)]) == [("small", 1), ("small", 3)]
    assert f.stats.accepted == 2


# Parameters by position that have a default: as models have them


class Booster:
    """Like those of LightGBM and XGBoost."""

    def predict(
        self,
        rows: Any,
        raw_score: bool = False,
        leaves: Any = (),
        options: dict[str, int] = {},  # noqa: B006
        **more: Any,
    ) -> list[Any]:
        return [(row, raw_score, leaves, options, more) for row in rows]


class Encoder:
    """Like that of sentence-transformers."""

    def encode(
        self, sentences: Any, prompt: str | None = None, batch_size: int = 32, *, truncate: int = 9
    ) -> list[Any]:
        return [(sentence, prompt, batch_size, truncate) for sentence in sentences]


def test_positional_parameters_with_a_default_are_no_columns(kit: Kit) -> None:
    predict, encode = kit(Booster().predict, batch_size=2), kit(Encoder().encode, batch_size=2)
    assert list(kit.map(predict, [1, 2])) == Booster().predict([1, 2])
    assert list(kit.map(encode, "ab")) == Encoder().encode("ab")
    assert list(kit.map(predict, [1, 2], True, leaves=3, threads=4)) == Booster().predict([1, 2], True, 3, threads=4)
    assert kit.outcome(kit.start(encode, "a", "query: ", truncate=1)) == ("a", "query: ", 32, 1)
    assert kit.outcome(kit.submit(encode, sentences="a", batch_size=2)) == ("a", None, 2, 9)


def test_positional_parameters_with_a_default_are_the_same_for_a_whole_batch(kit: Kit) -> None:
    f = kit(Encoder().encode, batch_size=2, timeout=None)
    calls = [kit.submit(f, 1), kit.submit(f, 2, "query: "), kit.submit(f, 3, None), kit.submit(f, 4, prompt="query: ")]
    assert [prompt for _, prompt, _, _ in kit.outcomes(calls)] == [None, "query: ", None, "query: "]
    assert kit.batches == [[1, 3], [2, 4]]


def test_default_that_is_unhashable_is_no_error_if_it_is_left_alone(kit: Kit) -> None:
    f = kit(Booster().predict, batch_size=2, timeout=None)
    assert kit.outcomes([kit.submit(f, 1), kit.submit(f, 2)]) == [(1, False, (), {}, {}), (2, False, (), {}, {})]
    with pytest.raises(TypeError, match=r"^Booster\.predict\(\): options must be hashable"):
        kit.submit(f, 3, options={"a": 1})


def test_positional_only_parameters_with_a_default_are_passed_by_position(kit: Kit) -> None:
    def f(xs: Any, y: Any = [], z: Any = 2, /, *, w: Any = 3) -> list[Any]:  # noqa: B006
        return [(x, y, z, w) for x in xs]

    g = kit(f, batch_size=1)
    assert kit.outcomes([kit.start(g, 1), kit.submit(g, 1, (), 4, w=5)]) == [(1, [], 2, 3), (1, (), 4, 5)]


def test_options_in_another_order_are_equal(kit: Kit) -> None:
    def f(xs: Any, **options: Any) -> list[Any]:
        return [(x, *options.values()) for x in xs]

    g = kit(f, batch_size=2, timeout=None)
    assert kit.outcomes([kit.submit(g, 1, a=2, b=3), kit.submit(g, 4, b=3, a=2)]) == [(1, 2, 3), (4, 2, 3)]


def test_parameters_that_could_not_be_told_apart_are_refused() -> None:
    def both(xs: Any, a: Any = 1, /, **options: Any) -> Any: ...
    def taken(xs: Any, *, return_exceptions: bool = False) -> Any: ...

    for function, message in (
        (both, "cannot have both positional-only parameters with a default and **options"),
        (taken, "cannot have a parameter return_exceptions, which is one of its map()"),
    ):
        function.__qualname__ = "f"
        with pytest.raises(TypeError) as raised:
            batched(batch_size=2)(function)
        assert str(raised.value) == f"{function.__name__}() {message}"


def test_method_is_told_by_the_parameters_that_must_be_passed(kit: Kit) -> None:
    class C:
        @typed_batched(batch_size=2)
        def of_an_instance(this, xs: list[int], plus: int = 1) -> list[int]:  # noqa: N805
            return [x + plus for x in xs]

        @typed_batched(batch_size=2)
        def static(xs: list[int], plus: int = 1) -> list[int]:  # noqa: N805
            return [x + plus for x in xs]

        @typed_batched(batch_size=2)
        def with_default(self, xs: list[int] = 3) -> list[int]:  # type: ignore[assignment]
            return xs

    c: Any = C()
    assert [c.of_an_instance(1), c.of_an_instance(1, 2)] == [2, 3]
    assert [c.static(1, 3), c.static(1), c.with_default()] == [4, 2, 3]


# Wrong arguments


@pytest.mark.parametrize(
    ("args", "constants"),
    [
        ((), {}),
        ((1,), {}),
        ((1, 2, 3), {}),
        ((1, 2), {"zs": 3}),
        ((1, 2), {"xs": 3}),
        ((), {"model": "large"}),
        ((1, 2, 3), {"model": "large"}),
        ((1, 2), {"modle": "large"}),
    ],
)
def test_wrong_arguments_of_two_columns_raise_what_python_would_say(
    kit: Kit, args: tuple[Any, ...], constants: dict[str, Any]
) -> None:
    def f(xs: Any, ys: Any, *, model: str = "small") -> Any:
        return xs

    f.__qualname__ = "f"
    with pytest.raises(TypeError) as expected:
        f(*args, **constants)
    g = kit(f, batch_size=1)
    errors = [kit.outcome(kit.start(g, *args, **constants))]
    for call in (kit.submit, kit.map):
        with pytest.raises(TypeError) as raised:
            list(call(g, *args, **constants) or ())
        if call != kit.map or args:  # else it misses the `items` of its own
            errors.append(raised.value)
    with asyncio.Runner() as runner, pytest.raises(TypeError) as raised:
        runner.run(g.aio(*args, **constants))
    errors.append(raised.value)
    assert {str(error) for error in errors} == {str(expected.value)}
    assert g.stats.accepted == 0


@pytest.mark.parametrize(
    ("args", "constants"),
    [((), {}), ((1, 2), {}), ((1, 2, 3), {}), ((1,), {"xs": 2}), ((1,), {"model": 2}), ((), {"ys": 1})],
)
def test_wrong_arguments_of_one_column_raise_what_python_would_say(
    kit: Kit, args: tuple[Any, ...], constants: dict[str, Any]
) -> None:
    def f(xs: Any) -> Any:
        return xs

    f.__qualname__ = "f"
    with pytest.raises(TypeError) as expected:
        f(*args, **constants)
    g = kit(f, batch_size=1)
    errors = [kit.outcome(kit.start(g, *args, **constants))]
    with pytest.raises(TypeError) as raised:
        kit.submit(g, *args, **constants)
    errors.append(raised.value)
    with asyncio.Runner() as runner, pytest.raises(TypeError) as raised:
        runner.run(g.aio(*args, **constants))
    errors.append(raised.value)
    assert {str(error) for error in errors} == {str(expected.value)}
    assert g.stats.accepted == 0


def test_wrong_arguments_of_a_method_raise_what_python_would_say(kit: Kit) -> None:
    class C:
        m = batched(batch_size=1)(kit.wrap(lambda self, xs, ys: xs))

        def plain(self, xs: Any, ys: Any) -> Any: ...

    for args in ((), (1,), (1, 2, 3)):
        with pytest.raises(TypeError) as expected:
            C().plain(*args)
        error = kit.outcome(kit.start(C().m, *args))
        assert str(error).partition("()")[2] == str(expected.value).partition("()")[2]


# Methods, and options that are called with the columns


def test_signature_and_annotations_of_columns(kit: Kit) -> None:
    f = kit(scaled, batch_size=2)
    assert str(inspect.signature(f)) == "(xs: int, ys: int, *, model: str = 'small') -> str"
    assert f.__annotations__ == {"xs": int, "ys": int, "model": str, "return": str}
    f = kit(embed, batch_size=2)
    assert str(inspect.signature(f)).startswith("(texts: Any, *, model: Any = 'small')")

    class C:
        def m(self, xs: list[int], ys: list[str], *, z: list[int]) -> list[bytes]:
            return []

        m = batched(batch_size=2)(m)

    assert str(inspect.signature(C.m)) == "(self, xs: int, ys: str, *, z: list[int]) -> bytes"
    assert str(inspect.signature(C().m)) == "(xs: int, ys: str, *, z: list[int]) -> bytes"


def test_methods_take_columns_and_constants(kit: Kit) -> None:
    def m(self: Any, xs: list[int], ys: list[int], *, factor: int = 1) -> list[int]:
        return [factor * (x + y) for x, y in zip(xs, ys, strict=True)]

    def times(xs: list[int], ys: list[int]) -> list[int]:
        return [x * y for x, y in zip(xs, ys, strict=True)]

    m.__qualname__ = "C.m"

    class C:
        plain = batched(batch_size=2)(kit.wrap(m))
        of_class = batched(batch_size=2)(classmethod(kit.wrap(m)))
        static = batched(batch_size=2)(staticmethod(kit.wrap(times)))

    c = C()
    for method in (c.plain, c.of_class, C.of_class):
        assert kit.outcome(kit.start(method, 1, 2, factor=10)) == 30
        assert kit.outcome(kit.submit(method, 1, ys=5)) == 6
        assert list(kit.map(method, [1, 2], [3, 4, 5], factor=2)) == [8, 12]
    for function in (C.static, c.static):
        assert kit.outcome(kit.start(function, 3, 4)) == 12
    error = kit.outcome(kit.start(c.plain, 1))
    assert str(error).endswith("m() missing 1 required positional argument: 'ys'")


def test_static_method_of_two_columns_has_no_instance(kit: Kit) -> None:
    def function(xs: list[Any], ys: list[Any]) -> list[Any]:
        return pairs(xs, ys)

    function.__qualname__ = "C.f"  # as if it were written in a class
    f = batched(batch_size=1)(staticmethod(kit.wrap(function)))
    kit.made.append(f)
    assert kit.outcome(kit.start(f, 1, 2)) == (1, 2)


def test_weight_and_group_by_get_an_entry_of_each_column(kit: Kit) -> None:
    asked: list[Any] = []

    def weigh(x: int, y: int) -> float:
        asked.append((x, y))
        return y

    f = kit(scaled, batch_size=9, timeout=None, weight=weigh, max_weight=8, group_by=lambda x, y: x % 2)
    handles = [kit.submit(f, 1, 7), kit.submit(f, 2, 7), kit.submit(f, 3, 1), kit.submit(f, 4, ys=1)]
    kit.outcomes(handles)
    assert asked == [(1, 7), (2, 7), (3, 1), (4, 1)]
    assert kit.batches == [[1, 3], [2, 4]]


def test_weight_may_be_a_bound_method(kit: Kit) -> None:
    class Scale:
        def __init__(self, factor: float) -> None:
            self.factor = factor

        def weigh(self, x: int) -> float:
            return self.factor * x

    f = kit(batch_size=9, timeout=None, weight=Scale(0.5).weigh, max_weight=1.0)
    handles = kit.submits(f, [1, 1, 2])
    kit.close(f)
    assert kit.outcomes(handles) == [-1, -1, -2]
    assert kit.batches == [[1, 1], [2]]
