"""Methods in classes that are more than a class: they work, or the message says what is possible there."""

import dataclasses
import enum
from typing import Any, NamedTuple, Protocol

import pytest

from batchify import BatchedMethod, batched

try:
    import pydantic
    import pydantic.dataclasses
except ImportError:  # it cannot be built for every Python
    HAS_PYDANTIC = False
else:
    HAS_PYDANTIC = True

with_pydantic = pytest.mark.skipif(not HAS_PYDANTIC, reason="needs pydantic")
NEEDS = "needs an instance that can be weakly referenced, since its buffer goes with it: "


@pytest.mark.parametrize("options", [{}, {"frozen": True}, {"slots": True, "weakref_slot": True}], ids=str)
def test_dataclass(options: dict[str, bool]) -> None:
    class Scaler:
        factor: int

        @batched(batch_size=2)
        def scale(self, xs: list[int]) -> list[int]:
            return [self.factor * x for x in xs]

    kind: Any = dataclasses.dataclass(**options)(Scaler)
    assert kind(10).scale(3) == 30
    assert kind(10) == kind(10)


def test_dataclass_with_slots() -> None:
    @dataclasses.dataclass(slots=True)
    class Scaler:
        factor: int

        @batched(batch_size=2)
        def scale(self, xs: list[int]) -> list[int]:
            return [self.factor * x for x in xs]

    with pytest.raises(TypeError) as raised:
        Scaler(10).scale(3)
    assert str(raised.value) == f"Scaler.scale() {NEEDS}write @dataclass(slots=True, weakref_slot=True)"


def test_named_tuple() -> None:
    class Factor(NamedTuple):
        factor: int

        @batched(batch_size=2)
        def scale(self, xs: list[int]) -> list[int]:
            return [self.factor * x for x in xs]

    with pytest.raises(TypeError) as raised:
        Factor(10).scale(3)
    assert str(raised.value) == (f"Factor.scale() {NEEDS}no tuple can, so use a @dataclass(frozen=True)")


def test_enum() -> None:
    class Scaler(enum.Enum):
        TENS = 10

        @batched(batch_size=2)
        def scale(self, xs: list[int]) -> list[int]:
            return [self.value * x for x in xs]

    assert list(Scaler) == [Scaler.TENS]
    assert Scaler.TENS.scale(3) == 30


@with_pydantic
def test_pydantic_model() -> None:
    class Scaler(pydantic.BaseModel):
        model_config = pydantic.ConfigDict(ignored_types=(BatchedMethod,))
        factor: int

        @batched(batch_size=2)
        def scale(self, xs: list[int]) -> list[int]:
            return [self.factor * x for x in xs]

    assert Scaler(factor=10).scale(3) == 30
    assert Scaler(factor=10).model_dump() == {"factor": 10}


@with_pydantic
def test_pydantic_dataclass() -> None:
    @pydantic.dataclasses.dataclass
    class Scaler:
        factor: int

        @batched(batch_size=2)
        def scale(self, xs: list[int]) -> list[int]:
            return [self.factor * x for x in xs]

    assert Scaler(factor=10).scale(3) == 30


@with_pydantic
def test_pydantic_says_what_to_do() -> None:
    with pytest.raises(pydantic.errors.PydanticUserError, match="ignored_types"):

        class Scaler(pydantic.BaseModel):
            @batched(batch_size=2)
            def scale(self, xs: list[int]) -> list[int]:
                return xs


def test_protocol() -> None:
    class Scales(Protocol):
        def scale(self, x: int, /) -> int: ...

    class Scaler:
        @batched(batch_size=2)
        def scale(self, xs: list[int]) -> list[int]:
            return [10 * x for x in xs]

    one: Scales = Scaler()
    assert one.scale(3) == 30
