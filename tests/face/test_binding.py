"""A method has a buffer for each instance, a class method one for each class, a static method one.

The same for `def` and for `async def`.
"""

import abc
import asyncio
import copy
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest

import batchify

from .. import inside
from ..tools import in_threads

batched: Callable[..., Callable[[Any], Any]] = batchify.batched  # untyped: for types see typing_api.py


class Scaler:
    """Its batches say whose they are."""

    def __init__(self, factor: int) -> None:
        self.factor = factor
        self.batches: list[list[int]] = []

    @batched(batch_size=2)
    def scale(self, xs: list[int]) -> list[int]:
        self.batches.append(list(xs))
        return [self.factor * x for x in xs]

    @batched(batch_size=2)
    async def fetch(self, xs: list[int]) -> list[int]:
        self.batches.append(list(xs))
        return [self.factor * x for x in xs]

    @batched(batch_size=2)
    async def stream(self, xs: list[int]) -> Any:
        for x in xs:
            yield self.factor * x


def answer(method: Any, item: Any) -> Any:
    """Call either kind."""
    result = method(item)
    return asyncio.run(awaited(result)) if inspect.iscoroutine(result) else result


async def awaited(coroutine: Any) -> Any:
    return await coroutine


METHODS = pytest.mark.parametrize("method", ["scale", "fetch", "stream"])


@METHODS
def test_method_takes_one_item(method: str) -> None:
    one = Scaler(10)
    assert answer(getattr(one, method), 3) == 30
    assert answer(getattr(Scaler, method).__get__(one), 4) == 40
    assert getattr(one, method) == getattr(one, method)
    assert getattr(one, method).stats.batches == 2


@METHODS
def test_two_instances_never_share_a_batch(method: str) -> None:
    @dataclass  # equal, and unhashable
    class Equal(Scaler):
        factor: int

        def __post_init__(self) -> None:
            super().__init__(self.factor)

    one, two, three = Equal(10), Equal(10), copy.copy(Equal(10))
    three.factor = 30
    methods = [getattr(each, method) for each in (one, two, three)]
    for each in methods:
        each.timeout = None
    if method == "scale":
        futures = [each.submit(x) for x in (1, 2) for each in methods]
        assert [future.result() for future in futures] == [10, 10, 30, 20, 20, 60]
    else:

        async def main() -> list[Any]:
            return await asyncio.gather(*[each.submit(x) for x in (1, 2) for each in methods])

        assert asyncio.run(main()) == [10, 10, 30, 20, 20, 60]
    assert [each.stats.sizes for each in methods] == [{2: 1}] * 3


def test_first_callers_of_several_threads_share_one_buffer() -> None:
    for _ in range(20):
        one = Scaler(10)
        call = partial(lambda one, x: one.scale(x), one)  # each finds the method by itself
        assert in_threads(call, range(8)) == [10 * x for x in range(8)]
        assert one.scale.stats.accepted == 8
        assert sum(len(batch) for batch in one.batches) == 8


def test_buffer_that_another_thread_made_first_is_used() -> None:
    class Model:
        @batched(batch_size=2)
        def encode(self, texts: list[str]) -> list[str]:
            return texts

    inside.always_find_that_another_thread_made_the_buffer(Model.encode)
    model = Model()
    assert (model.encode("a"), model.encode("b")) == ("a", "b")
    assert model.encode.stats.accepted == 2


def test_slots_without_a_weak_reference_are_refused_with_the_remedy() -> None:
    class Slotted:
        __slots__ = ()

        @batched(batch_size=2)
        def scale(self, xs: list[int]) -> list[int]:
            return [10 * x for x in xs]

    class Open(Slotted):
        __slots__ = ("__weakref__",)

    with pytest.raises(TypeError) as raised:
        _ = Slotted().scale
    assert str(raised.value) == (
        "Slotted.scale() needs an instance that can be weakly referenced, since its buffer goes with it: "
        "add '__weakref__' to the __slots__ of Slotted"
    )
    one = Open()
    assert one.scale(3) == 30


def test_self_may_have_any_name() -> None:
    class Odd:
        factor = 10

        @batched(batch_size=2)
        def scale(xs, me: Any) -> list[int]:  # noqa: N805
            return [xs.factor * x for x in me]

        @batched(batch_size=2)
        def positional(this, xs: list[int], /) -> list[int]:  # noqa: N805
            return [this.factor * x for x in xs]

    assert (Odd().scale(3), Odd().positional(4)) == (30, 40)


@METHODS
def test_super_method_has_a_buffer_of_its_own(method: str) -> None:
    class Negative(Scaler):
        @batched(batch_size=2)
        def scale(self, xs: list[int]) -> list[int]:
            return [-super(Negative, self).scale(x) for x in xs]

        @batched(batch_size=2)
        async def fetch(self, xs: list[int]) -> list[int]:
            return [-(await super(Negative, self).fetch(x)) for x in xs]

    one = Negative(10)
    assert answer(getattr(one, method), 3) == (30 if method == "stream" else -30)
    assert answer(getattr(super(Negative, one), method), 3) == 30


def test_inherited_method_has_a_buffer_for_each_instance() -> None:
    class Heir(Scaler):
        pass

    one, two = Heir(10), Heir(20)
    assert (one.scale(1), two.scale(1)) == (10, 20)
    assert one.batches == two.batches == [[1]]


def test_abstract_methods_stay_abstract() -> None:
    class Base(abc.ABC):
        @batched(batch_size=2)
        @abc.abstractmethod
        def scale(self, xs: list[int]) -> list[int]: ...

        @abc.abstractmethod
        @batched(batch_size=2)
        def fetch(self, xs: list[int]) -> list[int]: ...

    class Half(Base):
        @batched(batch_size=2)
        def scale(self, xs: list[int]) -> list[int]:
            return [10 * x for x in xs]

    class Whole(Half):
        fetch = Half.scale

    assert Base.__abstractmethods__ == {"scale", "fetch"}
    for kind in (Base, Half):
        with pytest.raises(TypeError, match="abstract"):
            kind()  # type: ignore[abstract]
    whole = Whole()
    assert (whole.scale(3), whole.fetch(4)) == (30, 40)


# Class methods and static methods


class Registry:
    factor = 10

    @batched(batch_size=2)
    @classmethod
    def of_class(cls, xs: list[int]) -> list[int]:
        return [cls.factor * x for x in xs]

    @classmethod
    @batched(batch_size=2)
    def of_class_too(cls, xs: list[int]) -> list[int]:
        return [cls.factor * x for x in xs]

    @batched(batch_size=2)
    @classmethod
    async def fetch(cls, xs: list[int]) -> list[int]:
        return [cls.factor * x for x in xs]

    @batched(batch_size=2)
    @staticmethod
    def static(xs: list[int]) -> list[int]:
        return [10 * x for x in xs]

    @staticmethod
    @batched(batch_size=2)
    def static_too(xs: list[int]) -> list[int]:
        return [10 * x for x in xs]

    @staticmethod
    @batched(batch_size=2)
    async def static_fetch(xs: list[int]) -> list[int]:
        return [10 * x for x in xs]


class OtherRegistry(Registry):
    factor = 20


@pytest.mark.parametrize("method", ["of_class", "of_class_too", "fetch"])
@pytest.mark.thread_unsafe(reason="the class is shared")
def test_class_method_has_a_buffer_for_each_class(method: str) -> None:
    known = method != "of_class_too"  # of which Python 3.13 makes a method that does not know its figures
    kinds = Registry, OtherRegistry
    before = [getattr(kind, method).stats.accepted if known else 0 for kind in kinds]  # by other tests
    assert answer(getattr(Registry, method), 1) == 10
    assert answer(getattr(Registry(), method), 2) == 20
    assert answer(getattr(OtherRegistry, method), 3) == 60
    assert answer(getattr(OtherRegistry(), method), 4) == 80
    accepted = [getattr(kind, method).stats.accepted if known else 2 for kind in kinds]
    assert [now - was for now, was in zip(accepted, before, strict=True)] == [2, 2]


def test_class_method_is_named_after_its_class() -> None:
    assert repr(OtherRegistry.of_class) == "<BatchedFunction OtherRegistry.of_class(), batch_size=2, timeout=0.0>"


def test_class_method_may_be_made_of_a_function_from_elsewhere() -> None:
    def of_class(cls: type, xs: list[int]) -> list[str]:
        return [f"{cls.__name__} {x}" for x in xs]

    kind: Any = type("Kind", (), {"of_class": batched(batch_size=2)(classmethod(of_class))})
    assert kind.of_class(1) == "Kind 1"


@pytest.mark.parametrize("method", ["static", "static_too", "static_fetch"])
@pytest.mark.thread_unsafe(reason="the class is shared")
def test_static_method_has_one_buffer(method: str) -> None:
    for place in (Registry, Registry(), OtherRegistry, OtherRegistry()):
        assert answer(getattr(place, method), 3) == 30
    assert getattr(Registry, method).stats.accepted == 4
    assert getattr(Registry(), method) is getattr(OtherRegistry, method)


def test_batched_function_in_a_class_is_static() -> None:
    class Static:
        scale = batched(batch_size=2)(lambda xs: [10 * x for x in xs])

    assert Static().scale(3) == 30
    assert Static.scale(3) == 30


# As functions


def test_method_has_all_that_a_function_has() -> None:
    one = Scaler(10)
    assert one.scale.submit(1).result() == 10
    assert list(one.scale.map([1, 2, 3])) == [10, 20, 30]
    assert asyncio.run(awaited(one.scale.aio(2))) == 20
    assert Scaler.scale(one, 3) == 30
    assert asyncio.run(awaited(Scaler.fetch(one, 3))) == 30
    one.scale.batch_size = 7
    assert (one.scale.batch_size, Scaler(1).scale.batch_size) == (7, 2)
    assert repr(one.scale) == str(one.scale) == "<BatchedFunction Scaler.scale(), batch_size=7, timeout=0.0>"
    assert repr(Scaler.scale) == "<BatchedMethod Scaler.scale(), batch_size=2, timeout=0.0, a buffer per instance>"
    assert inspect.iscoroutinefunction(one.fetch)
    assert inspect.iscoroutinefunction(one.stream)
    assert str(inspect.signature(one.scale)) == "(xs: int) -> int"
    assert str(inspect.signature(Scaler.scale)) == "(self, xs: int) -> int"
    assert one.scale.__name__ == "scale"
    assert one.scale.__wrapped__([1, 2]) == [10, 20]

    async def main() -> tuple[Any, ...]:
        async with one.fetch as fetch:
            return await fetch.submit(1), [result async for result in fetch.map([1, 2])]

    assert asyncio.run(main()) == (10, [10, 20])


def test_aio_of_a_coroutine_method_is_the_same_as_a_call() -> None:
    assert asyncio.run(awaited(Scaler(10).fetch.aio(3))) == 30


def test_close_of_one_instance_leaves_the_others_open() -> None:
    one, two = Scaler(10), Scaler(20)
    one.scale.close()
    with pytest.raises(RuntimeError, match=r"^Scaler.scale\(\) is closed$"):
        one.scale(1)
    assert two.scale(1) == 20


def test_descriptor_can_be_asked_and_called_as_those_of_python() -> None:
    of_class = vars(Registry)["of_class"]
    assert of_class.__get__(Registry())(1) == 10
    assert of_class.__get__(None, OtherRegistry)(1) == 20
    assert of_class(OtherRegistry, 2) == 40
    assert vars(Scaler)["scale"].__get__(Scaler(3))(1) == 3
    assert Scaler.fetch.__code__ is Scaler.fetch.__wrapped__.__code__


def test_private_method_is_found_under_its_own_name() -> None:
    class Private:
        @batched(batch_size=2)
        def __scale(self, xs: list[int]) -> None: ...

        def scale(self, x: int) -> object:
            return self.__scale(x)

    with pytest.raises(TypeError, match=r"^Private._Private__scale\(\) returned None"):
        Private().scale(1)


def test_bound_method_can_be_batched() -> None:
    class One:
        def __init__(self, factor: int) -> None:
            self.factor = factor
            self.scale = batched(batch_size=2)(self._scale)

        def _scale(self, xs: list[int]) -> list[int]:
            return [self.factor * x for x in xs]

    one = One(10)
    other = copy.deepcopy(one)
    other.factor = 20
    assert (one.scale(1), other.scale(1)) == (10, 20)
    assert other.scale is not one.scale


# Messages


@pytest.mark.parametrize(
    "attribute", ["submit", "aio", "map", "flush", "drain", "close", "aclose", "stats", "batch_size"]
)
def test_method_of_the_class_says_that_an_instance_must_be_asked(attribute: str) -> None:
    with pytest.raises(AttributeError) as raised:
        getattr(Scaler.scale, attribute)
    assert str(raised.value) == (
        f"Scaler.scale() has a buffer for each instance, so {attribute} must be asked of the method of an instance "
        "(if it is a class method, put @batched above @classmethod)"
    )
    with pytest.raises(AttributeError, match=r"^'function' object has no attribute 'sumbit'$"):
        _ = Scaler.scale.sumbit


def test_method_of_several_classes_is_called_of_the_instances_of_each() -> None:
    class One:
        @batched(batch_size=2)
        def run(self, xs: list[int]) -> list[int]:
            return xs

    class Other:
        run = One.run

    class Overrides(One):
        def run(self, x: int) -> int:
            return -int(One.run(self, x))

    class Later:
        pass

    Later.run = One.run  # type: ignore[attr-defined]
    assert [One.run(kind(), 1) for kind in (One, Other, Later)] == [1, 1, 1]
    assert Overrides().run(1) == -1


def test_method_with_other_parameters_is_refused() -> None:
    for takes in ("", "self", "self, *, ys", "self, xs, *ys"):
        space: dict[str, Any] = {"batched": batched}
        with pytest.raises(TypeError) as raised:
            exec(f"class C:\n    @batched(batch_size=2)\n    def m({takes}): ...", space)
        assert str(raised.value) == (
            f"C.m() must take the instance and one parameter or more by position, each a list with one entry per item, "
            f"and may take others that have a default or are keyword-only, each the same for a whole batch; it takes "
            f"({takes})"
        )
