"""Annotations are those of one item, on every Python, and evaluated as far as they can be, when they are asked for."""

import functools
import inspect
import sys
import typing
from collections.abc import Iterator
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest

from batchify import BatchedCoroutineFunction, BatchedFunction, BatchedMethod, batched

from ..kit import run

DEFERRED = sys.version_info >= (3, 14)  # what is no text is evaluated at once before
MODULES = ["from __future__ import annotations", *([""] if DEFERRED else [])]


def module(*source: str, **names: Any) -> dict[str, Any]:
    """Run source that is not legal, or not the same, in a file that also older Pythons and type checkers read."""
    space = {"__name__": __name__, "batched": batched, "Future": Future, **names}
    exec(compile("\n".join(source), "<test>", "exec", dont_inherit=True), space)
    return space


def asked(f: Any) -> Iterator[dict[str, Any]]:
    """Ask for annotations in every way that does not insist on types; what is no type is to be text."""
    signature = inspect.signature(f)
    parameters = {name: each.annotation for name, each in signature.parameters.items()}
    found = [{**parameters, "return": signature.return_annotation}, f.__annotations__, inspect.get_annotations(f)]
    found.append(inspect.get_annotations(functools.wraps(f)(lambda: None)))
    if sys.version_info >= (3, 14):
        from annotationlib import Format, call_annotate_function, get_annotations

        for form in Format.VALUE, Format.FORWARDREF:
            found += get_annotations(f, format=form), call_annotate_function(f.__annotate__, form)
    for each in found:
        yield {name: getattr(annotation, "__forward_arg__", annotation) for name, annotation in each.items()}


@pytest.mark.parametrize("imports", MODULES)
def test_what_cannot_be_evaluated_is_the_text_of_an_entry_and_costs_the_others_nothing(imports: str) -> None:
    source = """
@batched(batch_size=2)
def f(xs: list[np.ndarray], ys: list[int], *, mode: Later) -> Future[dict[int, np.ndarray]]:
    return [x + y for x, y in zip(xs, ys)]
"""
    space = module(imports, source)
    f = space["f"]
    with f:
        assert f(1, 2, mode=None) == 3
    for annotations in asked(f):
        assert annotations == {"xs": "np.ndarray", "ys": int, "mode": "Later", "return": "np.ndarray"}
    with pytest.raises(NameError):
        typing.get_type_hints(f)
    later = space["Later"] = type("Later", (), {})
    space["np"] = SimpleNamespace()  # there, but without what is asked of it
    for annotations in asked(f):
        assert annotations == {"xs": "np.ndarray", "ys": int, "mode": later, "return": "np.ndarray"}
    space["np"].ndarray = bytes
    for annotations in (*asked(f), typing.get_type_hints(f)):
        assert annotations == {"xs": bytes, "ys": int, "mode": later, "return": bytes}


@pytest.mark.parametrize("imports", MODULES)
def test_method_may_name_its_own_class(imports: str) -> None:
    source = """
class Model:
    @batched(batch_size=2)
    def predict(self, xs: list[Model]) -> list[Model]:
        return xs

    @batched(batch_size=2)
    async def stream(self, xs: list[Model]) -> AsyncIterator[Model]:
        for x in xs:
            yield x
"""
    model = module(imports, "from collections.abc import AsyncIterator", source)["Model"]
    one = model()
    with one.predict as predict:
        assert predict(one) is one
    assert run(one.stream(one)) is one
    for f in (one.predict, model.predict, one.stream, model.stream):
        for annotations in (*asked(f), typing.get_type_hints(f)):
            assert {name: each for name, each in annotations.items() if name != "self"} in (
                {"xs": model, "return": model},
                {"xs": model, "return": model, "self": inspect.Parameter.empty},
            )


@pytest.mark.parametrize(
    "made", ["function", "coroutine", "method", "class", "static", "bound", "partial", "object", "wrapped"]
)
def test_decorating_evaluates_nothing(made: str) -> None:
    evaluated: list[str] = []
    source = """
def function(xs: list[evaluate()]) -> list[evaluate()]: return xs
async def coroutine(xs: list[evaluate()]) -> list[evaluate()]: return xs
class C:
    def method(self, xs: list[evaluate()]) -> list[evaluate()]: return xs
    def __call__(self, xs: list[evaluate()]) -> list[evaluate()]: return xs
    bound = method
wrapped = functools.wraps(function)(lambda *args: function(*args))
"""

    def evaluate() -> type:
        evaluated.append(made)
        return int

    found = SimpleNamespace(**module("import functools", source, evaluate=evaluate))
    evaluated.clear()  # before Python 3.14 it is evaluated at once
    function = {
        "method": found.C.method,
        "class": classmethod(found.C.method),
        "static": staticmethod(found.function),
        "bound": found.C().method,
        "partial": functools.partial(found.C.method, None),
        "object": found.C(),
    }.get(made) or getattr(found, made)
    f: Any = batched(batch_size=2)(function)
    assert evaluated == []
    assert typing.get_type_hints(f) == {"xs": int, "return": int}


@pytest.mark.skipif(sys.version_info < (3, 12), reason="the syntax came with Python 3.12")
@pytest.mark.parametrize("imports", ["", MODULES[0]])
def test_generic_functions_keep_their_type_parameters(imports: str) -> None:
    f = module(imports, "@batched(batch_size=2)", "def f[T](xs: list[T]) -> list[list[T]]: return [[x] for x in xs]")[
        "f"
    ]
    t: Any = f.__type_params__[0]
    for annotations in (*asked(f), typing.get_type_hints(f)):
        assert annotations == {"xs": t, "return": list.__class_getitem__(t)}


@pytest.mark.skipif(not DEFERRED, reason="formats came with Python 3.14")
def test_annotations_as_text_are_those_of_one_item() -> None:
    if sys.version_info >= (3, 14):
        from annotationlib import Format, call_annotate_function, get_annotations

        f = module("@batched(batch_size=2)", "def f(xs: list[Unknown], ys: list[int]) -> list[list[str]]: ...")["f"]
        expected = {"xs": "Unknown", "ys": "int", "return": "list[str]"}
        assert get_annotations(f, format=Format.STRING) == expected
        assert call_annotate_function(f.__annotate__, Format.STRING) == expected


def test_annotations_are_those_of_the_function_also_when_its_class_was_asked_before() -> None:
    @batched(batch_size=2)
    def f(xs: list[int]) -> list[str]:
        return []

    @batched(batch_size=2)
    async def g(xs: list[int]) -> list[str]:
        return []

    class C:
        @batched(batch_size=2)
        def m(self, xs: list[int]) -> list[str]:
            return []

    for kind in (BatchedFunction, BatchedCoroutineFunction, BatchedMethod):
        assert kind.__annotations__ is not None
    for each in (f, g, C.m, C().m):
        assert each.__annotations__ == {"xs": int, "return": str}


def double(xs: list[int]) -> list[str]:
    return [f"{2 * x}" for x in xs]


class Doubles:
    def twice(self, xs: list[int]) -> list[str]:
        return double(xs)

    __call__ = twice
    given = functools.partialmethod(twice)

    @functools.wraps(twice)
    def wrapped(self, *args: Any) -> Any:
        return self.twice(*args)


class Says:
    __signature__ = inspect.signature(Doubles().twice)

    def __call__(self, *args: Any) -> Any:
        return Doubles().twice(*args)


@pytest.mark.parametrize(
    "function",
    [
        Doubles().twice,
        Doubles(),
        Doubles().wrapped,
        Doubles().given,
        Says(),
        functools.partial(staticmethod(double)),
        functools.partial(Doubles.twice, Doubles()),
    ],
    ids=["method", "object", "wrapped", "partialmethod", "says", "static", "partial"],
)
def test_whatever_can_be_called_is_known_by_its_signature(function: Any) -> None:
    with batched(batch_size=2)(function) as f:
        assert f(4) == "8"
    assert str(inspect.signature(f)) == "(xs: int) -> str"
