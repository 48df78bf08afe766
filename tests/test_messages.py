"""Every message in full: the rule, the value, and whose function."""

import asyncio
import collections
import copy
import functools
import inspect
import pickle
import typing
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterator
from concurrent.futures import Future  # noqa: TC003 - get_type_hints() looks for it
from typing import Any

import pytest

from batchify import BatchedFunction, BatchError, ClosedError, MissingResultError, ResultCountError
from batchify import batched as typed_batched

from .tools import batched


def embed(texts: list[str]) -> list[float]:
    """Embed texts."""
    return [float(len(text)) for text in texts]


decorated = typed_batched(batch_size=2)(embed)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"batch_size": 0}, ValueError, "embed(): batch_size must be at least 1, got 0"),
        ({"batch_size": -3}, ValueError, "embed(): batch_size must be at least 1, got -3"),
        ({"batch_size": True}, TypeError, "embed(): batch_size must be an int of at least 1, got True"),
        ({"batch_size": 2.0}, TypeError, "embed(): batch_size must be an int of at least 1, got 2.0"),
        ({"batch_size": "2"}, TypeError, "embed(): batch_size must be an int of at least 1, got '2'"),
        ({"batch_size": None}, TypeError, "embed(): batch_size must be an int of at least 1, got None"),
        (
            {"timeout": -1},
            ValueError,
            "embed(): timeout must be at least 0 and finite (None waits without end), got -1",
        ),
        (
            {"timeout": float("inf")},
            ValueError,
            "embed(): timeout must be at least 0 and finite (None waits without end), got inf",
        ),
        (
            {"timeout": float("nan")},
            ValueError,
            "embed(): timeout must be at least 0 and finite (None waits without end), got nan",
        ),
        ({"timeout": True}, TypeError, "embed(): timeout must be a number of seconds or None, got True"),
        ({"timeout": "1"}, TypeError, "embed(): timeout must be a number of seconds or None, got '1'"),
    ],
    ids=lambda value: repr(value) if isinstance(value, dict) else "",
)
def test_options(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error) as raised:
        batched(**{"batch_size": 2, **options})(embed)
    assert str(raised.value) == message


def two(xs: list[int], ys: list[int]) -> list[int]:
    return xs


def many(*xs: int) -> list[int]:
    return list(xs)


def keywords(xs: list[int], **options: int) -> list[int]:
    return xs


def named(*, model: str = "small") -> list[int]:
    return []


ALLOWED = (
    " or more by position, each a list with one entry per item, and may take keyword-only ones, each the same for a "
    "whole batch; it takes"
)


def nothing() -> list[int]:
    return []


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (many, f"many() must take one parameter{ALLOWED} (*xs)"),
        (keywords, f"keywords() must take one parameter{ALLOWED} (xs, **options)"),
        (named, f"named() must take one parameter{ALLOWED} (*, model='small')"),
        (nothing, f"nothing() must take one parameter{ALLOWED} ()"),
        (3, "batched() decorates a function of one list, got 3"),
        (dict, "batched() decorates a function of one list, got <class 'dict'>"),
    ],
    ids=["many", "keywords", "named", "nothing", "number", "class"],
)
def test_functions(function: Any, message: str) -> None:
    with pytest.raises(TypeError) as raised:
        batched(batch_size=2)(function)
    assert str(raised.value).startswith(message)


RETURNED = (
    "; it must return one result per item, in the same order: a list or other sequence, a mapping from item to result, "
    "an iterator, or a thread-safe future of one of these"
)
COUNT = "; it must return one result per item, in the same order"


@pytest.mark.parametrize(
    ("function", "error", "message"),
    [
        (lambda _: None, TypeError, "f() returned None" + RETURNED),
        (lambda _: "x", TypeError, "f() returned str" + RETURNED),
        (lambda _: {"x"}, TypeError, "f() returned set" + RETURNED),
        (lambda _: 1, TypeError, "f() returned int" + RETURNED),
        (lambda _: [], ResultCountError, "f() returned 0 results for 1 item" + COUNT),
        (lambda _: [1, 2], ResultCountError, "f() returned 2 results for 1 item" + COUNT),
        (lambda _: iter([]), ResultCountError, "f() returned 0 results for 1 item" + COUNT),
        (lambda _: {}, MissingResultError, "f() returned a mapping without a value for this item"),
        (lambda _: exit(), BatchError, "f() raised SystemExit"),
        (lambda _: next(iter([])), BatchError, "f() raised StopIteration"),
    ],
    ids=["None", "str", "set", "int", "none", "two", "early", "missing", "exit", "stop"],
)
def test_results(function: Callable[[list[Any]], Any], error: type[Exception], message: str) -> None:
    function.__name__ = "f"
    with batched(batch_size=1)(function) as f, pytest.raises(error) as raised:
        f("item")
    assert type(raised.value) is error
    assert str(raised.value) == message


def test_wrong_count_of_many() -> None:
    with batched(batch_size=4, timeout=None)(lambda _: [1, 2, 3]) as f:
        error = [f.submit(number) for number in range(4)].pop().exception()
    assert str(error) == "<lambda>() returned 3 results for 4 items" + COUNT


def test_closed() -> None:
    f = batched(batch_size=1)(embed)
    f.close()
    with pytest.raises(ClosedError) as raised:
        f("x")
    assert str(raised.value) == "embed() is closed"


# What the decorated object says of itself


def test_it_says_of_itself_what_is_true() -> None:
    assert (decorated.__name__, decorated.__doc__, decorated.__module__) == ("embed", "Embed texts.", __name__)
    assert decorated.__wrapped__ is embed
    assert embed(["abc", "d"]) == [3.0, 1.0]
    assert decorated.__wrapped__(["abc"]) == [3.0]
    assert str(inspect.signature(decorated)) == "(texts: str, /) -> float"
    assert typing.get_type_hints(decorated) == {"texts": str, "return": float}
    assert isinstance(decorated, BatchedFunction)
    assert decorated.__class__ is BatchedFunction
    assert callable(decorated)


def mapping(keys: "list[int]") -> "dict[int, str]":
    return {}


def generator(xs: typing.Sequence[int]) -> Iterator[str]:
    yield ""


def future(xs: typing.Iterable[int]) -> "Future[list[str]]":
    raise NotImplementedError


def unknown(xs: "NotDefined") -> int:  # type: ignore[name-defined]  # noqa: F821
    return 0


def bare(xs, /):  # type: ignore[no-untyped-def]
    return xs


def future_of_a_mapping(xs: list[int] = []) -> "Future[dict[int, str]]":  # noqa: B006 - never changed
    raise NotImplementedError


def collection(xs: typing.Collection[int]) -> tuple[str, ...]:
    return ()


def unsaid(xs: list) -> typing.Any:  # type: ignore[type-arg]
    return xs


Shape = typing.TypeVar("Shape")


class Array(typing.Generic[Shape]):
    """As numpy's: what stands in brackets first is not the type of an entry."""


def array(xs: Array[int]) -> Array[int]:
    return xs


K = typing.TypeVar("K")
V = typing.TypeVar("V")
More = typing.TypeVar("More")


class Tagged(dict[V, K], typing.Generic[K, V, More]):
    """Which of its arguments is the value is not known."""


def tagged(xs: list[str]) -> Tagged[int, str, bool]:
    return Tagged()


def literal(xs: typing.Literal["all"]) -> tuple[()]:
    return ()


def counter(xs: list[str]) -> collections.Counter[str]:
    return collections.Counter(xs)


async def asynchronous(xs: list[int]) -> AsyncIterator[str]:
    yield ""


async def asynchronous_iterable(xs: list[int]) -> AsyncIterable[str]:
    yield ""


class Model:
    def encode(self, texts: list[str]) -> list[int]:
        return []


@pytest.mark.parametrize(
    ("function", "signature"),
    [
        (mapping, "(keys: int, /) -> str"),
        (generator, "(xs: int, /) -> str"),
        (future, "(xs: int, /) -> str"),
        (unknown, "(xs, /)"),
        (bare, "(xs, /)"),
        (future_of_a_mapping, "(xs: int = [], /) -> str"),
        (collection, "(xs: int, /) -> str"),
        (unsaid, "(xs, /)"),
        (array, "(xs, /)"),
        (literal, "(xs, /)"),
        (counter, "(xs: str, /)"),
        (tagged, "(xs: str, /)"),
        (asynchronous, "(xs: int, /) -> str"),
        (asynchronous_iterable, "(xs: int, /) -> str"),
        (Model.encode, "(self, texts: str, /) -> int"),
        (functools.partial(two, [1]), None),
        ([].extend, "(iterable, /)"),
    ],
    ids=lambda value: getattr(value, "__name__", type(value).__name__),
)
def test_signature_is_that_of_one_item(function: Any, signature: str | None) -> None:
    assert signature is None or str(inspect.signature(batched(batch_size=1)(function))) == signature


def test_annotations_hold_only_what_is_known() -> None:
    assert batched(batch_size=1)(bare).__annotations__ == {}
    assert batched(batch_size=1)(future).__annotations__ == {"xs": int, "return": str}


def test_a_function_without_a_signature_is_taken_at_its_word() -> None:
    with pytest.raises(ValueError, match="signature"):
        inspect.signature(max)
    with batched(batch_size=1)(max) as f:
        assert f([5]) == 5


def test_a_method_without_a_signature_is_taken_at_its_word() -> None:
    update: Any = dict.update
    with pytest.raises(ValueError, match="signature"):
        inspect.signature(update)

    class Settings(dict[str, int]):
        put: Any = batched(batch_size=1)(update)

    settings = Settings()
    with pytest.raises(TypeError, match=r"^Settings.put\(\) returned None"):
        settings.put(("a", 1))
    assert settings == {"a": 1}


def test_only_what_is_written_in_a_class_and_not_bound_is_named_after_it() -> None:
    functions: list[Any] = [Model.encode, Model().encode, [].extend]
    names = [repr(batched(batch_size=1)(function)) for function in functions]
    assert [name.partition("(")[0] for name in names] == ["<batched Model.encode", "<batched encode", "<batched extend"]


def test_it_is_copied_and_pickled_by_reference() -> None:
    assert copy.copy(decorated) is decorated
    assert copy.deepcopy(decorated) is decorated
    assert pickle.loads(pickle.dumps(later)) is later


@typed_batched(batch_size=1)
def later(xs: list[int]) -> list[int]:
    return xs


def test_a_misspelt_method_is_an_error() -> None:
    with pytest.raises(AttributeError):
        decorated.sumbit("x")  # type: ignore[attr-defined]


async def fetch(xs: list[int]) -> list[int]:
    return xs


def test_the_wrong_way_to_close_says_the_right_one() -> None:
    plain, coroutine = batched(batch_size=2)(lambda xs: xs), batched(batch_size=2)(fetch)

    async def enter() -> None:
        async with plain:  # type: ignore[attr-defined]
            pass

    message = r"^<lambda>\(\) is a `def` function: close it by `with` or close\(\)$"
    with pytest.raises(TypeError, match=message):
        asyncio.run(enter())
    with pytest.raises(TypeError, match=message):
        plain.aclose()  # type: ignore[attr-defined]
    message = r"^fetch\(\) is `async def`: close it by `async with` or `await` aclose\(\)$"
    with pytest.raises(TypeError, match=message), coroutine:
        pass
    with pytest.raises(TypeError, match=message):
        coroutine.close()


def test_a_function_is_batched_once() -> None:
    for function in (fetch, len):
        once = batched(batch_size=2)(function)
        with pytest.raises(
            TypeError, match=rf"^<batched {function.__name__}\(\), batch_size=2, .*> is batched already$"
        ):
            batched(batch_size=2)(once)


def test_a_coroutine_that_nobody_awaited_is_named_after_the_function() -> None:
    for call, name in ((batched(batch_size=2)(fetch), "fetch"), (batched(batch_size=2)(embed).aio, "embed.aio")):
        with pytest.warns(RuntimeWarning, match=rf"^coroutine '{name}' was never awaited"):
            call(1)


def test_what_should_have_been_awaited_says_so() -> None:
    with batched(batch_size=2)(lambda xs: fetch(xs)) as f, pytest.raises(TypeError) as raised:
        f(1)
    assert str(raised.value) == (
        "<lambda>() returned coroutine; it must return one result per item, in the same order: a list or other "
        "sequence, a mapping from item to result, an iterator, or a thread-safe future of one of these; await it first"
    )
