"""Every message says the rule, the value and whose function; what the decorated object says of itself is true."""

import collections
import functools
import inspect
import operator
import pydoc
import typing
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterator
from concurrent.futures import Future  # noqa: TC003 - get_type_hints() looks for it
from typing import Any

import pytest

from batchify import (
    BatchedCoroutineFunction,
    BatchedFunction,
    BatchedMethod,
    BatchError,
    ClosedError,
    MissingResultError,
    ResultCountError,
    WaitsForItselfError,
)
from batchify import batched as typed_batched

from ..kit import AsyncGated, Coroutines, Kit, Steps, anegate, run
from ..tools import batched, run_script


def embed(texts: list[str]) -> list[float]:
    """Embed texts."""
    return [float(len(text)) for text in texts]


decorated = typed_batched(batch_size=2)(embed)


async def fetch(xs: list[int]) -> list[int]:
    return xs


def two(xs: list[int], ys: list[int]) -> list[int]:
    return xs


def many(*xs: int) -> list[int]:
    return list(xs)


def named(*, model: str = "small") -> list[int]:
    return []


ALLOWED = (
    " or more by position, each a list with one entry per item, and may take others that have a default or are "
    "keyword-only, each the same for a whole batch; it takes"
)


def nothing() -> list[int]:
    return []


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (many, f"many() must take one parameter{ALLOWED} (*xs)"),
        (named, f"named() must take one parameter{ALLOWED} (*, model='small')"),
        (nothing, f"nothing() must take one parameter{ALLOWED} ()"),
        (3, "batched() decorates a function of one list, got 3"),
        (dict, "batched() decorates a function of one list, got <class 'dict'>"),
    ],
    ids=["many", "named", "nothing", "number", "class"],
)
def test_message_of_a_function_that_cannot_be_batched(function: Any, message: str) -> None:
    with pytest.raises(TypeError) as raised:
        batched(batch_size=2)(function)
    assert str(raised.value).startswith(message)


def test_message_of_a_function_that_is_batched_already() -> None:
    for function in (fetch, len):
        once = batched(batch_size=2)(function)
        with pytest.raises(
            TypeError, match=rf"^<Batched\w+ {function.__name__}\(\), batch_size=2, .*> is batched already$"
        ):
            batched(batch_size=2)(once)


COUNT = "; it must return one result per item, in the same order"
# With what each kind of function might have returned in place of the dots.
RETURNED = f"{COUNT}: a list or other sequence, a mapping from item to result, ..."
ACCEPTED = {
    "threads": "an iterator, or a thread-safe future of one of these",
    "coroutines": "or an iterator, asynchronous or not",
}


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
    ],
    ids=["None", "str", "set", "int", "none", "two", "early", "missing", "exit"],
)
def test_message_of_wrong_results(
    kit: Kit, function: Callable[[list[Any]], Any], error: type[Exception], message: str
) -> None:
    function.__name__ = "f"
    f = kit(function, batch_size=1)
    handle = kit.submit(f, "item")
    if isinstance(kit, Coroutines):
        kit.turn()
    raised = kit.outcome(handle)
    assert (type(raised), str(raised)) == (error, message.replace("...", ACCEPTED[kit.kind]))


def test_message_of_a_table(kit: Kit) -> None:
    class DataFrame(list[Any]):
        columns = ()

    (raised,) = kit.answers(DataFrame, 1)
    assert type(raised) is TypeError
    assert str(raised).endswith(
        "; the entries of a table are its columns, so return its rows: .to_numpy(), or a list of them"
    )


def test_message_of_a_result_without_a_length(kit: Kit) -> None:
    class Scalar:  # as an array without dimensions
        def __len__(self) -> int:
            raise TypeError("len() of unsized object")

    (raised,) = kit.answers(lambda _: Scalar(), 1)
    said = f"{kit.made[-1].__name__}() returned Scalar without a length{RETURNED}"
    assert (type(raised), str(raised)) == (TypeError, said.replace("...", ACCEPTED[kit.kind]))


@pytest.mark.parametrize(
    ("option", "rule"),
    [
        ({"dedupe": True}, "dedupe needs items that are hashable"),
        ({"group_by": lambda item: item}, "group_by must return something hashable"),
    ],
)
def test_message_of_what_cannot_be_hashed(kit: Kit, option: dict[str, Any], rule: str) -> None:
    f = kit(batch_size=2, timeout=None, **option)
    with pytest.raises(TypeError, match=rf"^negate\(\): {rule}: .*unhashable type: 'list'"):
        kit.submit(f, [])


@pytest.mark.parametrize("args", [(embed,), (8,), (8, 0.1)], ids=["function", "one", "two"])
def test_message_of_options_by_position(args: tuple[Any, ...]) -> None:
    with pytest.raises(TypeError) as raised:
        batched(*args)
    assert str(raised.value) == (
        "batched() takes its options by name, and what it returns takes the function: write "
        f"@batched(batch_size=8) above it; got batched({', '.join(map(repr, args))})"
    )


def test_message_of_a_method_that_is_called_without_an_instance() -> None:
    function: Any = Model.encode

    class Encoder:
        encode = batched(batch_size=2)(function)

    for args in (("hi",), ("hi", 1)):
        with pytest.raises(TypeError) as raised:
            Encoder.encode(*args)
        assert str(raised.value) == (
            f"Model.encode() is a method: call it of an instance, or with one as its first argument, got {args[0]!r}"
        )


def test_message_of_a_method_that_is_written_outside_of_a_class() -> None:
    def hides(method: Any) -> Any:
        def wrapper(self: Any, xs: list[int]) -> Any:
            return method(self, xs)

        return wrapper

    functions: list[Any] = [hides(len), lambda self, xs: xs]
    for function in functions:
        with pytest.raises(TypeError) as raised:
            batched(batch_size=2)(function)
        assert str(raised.value) == (
            f"{function.__name__}() takes `self`, but is not written in a class, where batched() would know that each "
            "instance has a buffer: decorate it in the class; if another decorator hides that, it lacks "
            "functools.wraps()"
        )


def test_message_of_a_stop_iteration(kit: Kit) -> None:
    def f(xs: list[Any]) -> list[Any]:
        return [next(iter([]))]

    f.__qualname__ = "f"
    g = kit(f, batch_size=1)
    raised = kit.outcome(kit.submit(g, "item"))
    if kit.kind == "threads":
        assert (type(raised), str(raised)) == (BatchError, "f() raised StopIteration")
    else:  # as of any coroutine
        assert (type(raised), str(raised)) == (RuntimeError, "coroutine raised StopIteration")


def test_message_of_a_wrong_count_of_results(kit: Kit) -> None:
    f = kit(lambda _: [1, 2, 3], batch_size=4, timeout=None)
    for error in kit.outcomes(kit.submits(f, range(4))):
        assert str(error) == "<lambda>() returned 3 results for 4 items" + COUNT


def test_message_of_a_coroutine_that_the_function_returned() -> None:
    with batched(batch_size=2)(lambda xs: fetch(xs)) as f, pytest.raises(TypeError) as raised:
        f(1)
    assert str(raised.value) == (
        "<lambda>() returned coroutine; it must return one result per item, in the same order: a list or other "
        "sequence, a mapping from item to result, an iterator, or a thread-safe future of one of these; a plain "
        "function around an `async def` one hides that it must be awaited: put @batched beneath it, or mark it with "
        "inspect.markcoroutinefunction()"
    )


def test_message_of_a_closed_function(kit: Kit) -> None:
    f = kit(embed, batch_size=1)
    kit.close(f)
    raised = kit.outcome(kit.start(f, "x"))
    assert (type(raised), str(raised)) == (ClosedError, "embed() is closed")


def test_message_of_a_wait_for_its_own_batch(kit: Kit) -> None:
    def function(xs: list[int]) -> Steps:
        if xs == [0]:
            futures.append(f.submit(1))
        yield futures[0]
        return xs

    function.__name__ = "f"
    futures: list[Any] = []
    f = kit.steps(function, batch_size=1)
    raised = kit.outcome(kit.start(f, 0))
    assert type(raised) is WaitsForItselfError
    assert str(raised) == (
        "a call of f() is waited for inside a batch that must end before f() can answer it; "
        "let the batch end, and wait outside"
    )


def test_message_of_the_wrong_way_to_close() -> None:
    coroutine = batched(batch_size=2)(fetch)
    message = r"^fetch\(\) is `async def`: use `async with`, or `await` aclose\(\) or adrain\(\)$"
    with pytest.raises(TypeError, match=message), coroutine:
        pass
    for wrong in (coroutine.close, coroutine.drain):
        with pytest.raises(TypeError, match=message):
            wrong()
        with pytest.raises(TypeError, match=message):
            wrong(timeout=1.0)


@pytest.mark.usefixtures("no_noise")
def test_message_of_a_call_without_a_running_loop() -> None:
    f: Any = batched(batch_size=2)(anegate)
    message = r"^anegate\(\) is a coroutine function: call it where an event loop runs$"
    with pytest.raises(RuntimeError, match=message):
        f.submit(1)
    with pytest.raises(RuntimeError, match=message):
        f(1).send(None)  # as by another library's loop
    f.flush()
    assert f.stats.accepted == 0


def test_message_of_a_coroutine_never_awaited_names_the_function() -> None:
    for call, name in ((batched(batch_size=2)(fetch), "fetch"), (batched(batch_size=2)(embed).aio, "embed.aio")):
        with pytest.warns(RuntimeWarning, match=rf"^coroutine '{name}' was never awaited"):
            call(1)


def test_misspelt_method_is_an_error() -> None:
    with pytest.raises(AttributeError):
        decorated.sumbit("x")  # type: ignore[attr-defined]


# What the decorated object says of itself


def test_decorated_function_tells_its_name_doc_signature_and_class() -> None:
    assert (decorated.__name__, decorated.__doc__, decorated.__module__) == ("embed", "Embed texts.", __name__)
    assert decorated.__wrapped__ is embed
    assert embed(["abc", "d"]) == [3.0, 1.0]
    assert decorated.__wrapped__(["abc"]) == [3.0]
    assert str(inspect.signature(decorated)) == "(texts: str) -> float"
    assert typing.get_type_hints(decorated) == {"texts": str, "return": float}
    assert isinstance(decorated, BatchedFunction)
    assert decorated.__class__ is BatchedFunction
    assert callable(decorated)
    assert decorated.submit.__doc__ == BatchedFunction.submit.__doc__
    assert str(inspect.signature(decorated.submit)) == "(texts)"


@pytest.mark.parametrize("kind", [BatchedFunction, BatchedCoroutineFunction, BatchedMethod])
def test_every_public_attribute_says_what_it_is(kind: type) -> None:
    docs = {name: getattr(kind, name).__doc__ for name in dir(kind) if not name.startswith("_")}
    assert len(docs) >= 8
    assert [name for name, doc in docs.items() if not doc] == []
    assert [name for name, doc in docs.items() if doc == operator.attrgetter.__doc__] == []
    assert docs["weight"].startswith("`weight`, as given")


def test_help_of_what_is_made_for_one_function() -> None:
    for made in (decorated, batched(batch_size=2)(fetch)):
        assert "Await an item's result" in pydoc.plain(pydoc.render_doc(made.aio))
        text = pydoc.plain(pydoc.render_doc(made.submit))
        assert text.startswith("Python Library Documentation: function submit")
        assert "Pass an item" in text


@pytest.mark.usefixtures("no_noise")
def test_coroutine_function_tells_inspect_that_it_is_one() -> None:
    class Embedder:
        async def embed(self, items: list[str]) -> list[float]:
            """Embed."""
            return [float(len(item)) for item in items]

        async def stream(self, items: list[str]) -> AsyncIterator[float]:
            for item in items:
                yield float(len(item))

    embedder = Embedder()
    functions = [embedder.embed, embedder.stream, Embedder.stream.__get__(embedder)]
    for function in functions:
        f: Any = batched(batch_size=2)(function)
        assert inspect.iscoroutinefunction(f)
        assert inspect.iscoroutinefunction(f.aio)
        assert not inspect.isasyncgenfunction(f)
        assert not inspect.isgeneratorfunction(f)
        assert str(inspect.signature(f)) == "(items: str) -> float"
        assert run(f("abc")) == 3.0
        assert "items" in inspect.getsource(f)
    assert f.__name__ == "stream"
    assert repr(f) == "<BatchedCoroutineFunction stream(), batch_size=2, timeout=0.0>"
    assert inspect.iscoroutinefunction(batched(batch_size=2)(AsyncGated()))


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
        (mapping, "(keys: int) -> str"),
        (generator, "(xs: int) -> str"),
        (future, "(xs: int) -> str"),
        (unknown, "(xs)"),
        (bare, "(xs, /)"),
        (future_of_a_mapping, "(xs: int = []) -> str"),
        (collection, "(xs: int) -> str"),
        (unsaid, "(xs)"),
        (array, "(xs)"),
        (literal, "(xs)"),
        (counter, "(xs: str)"),
        (tagged, "(xs: str)"),
        (asynchronous, "(xs: int) -> str"),
        (asynchronous_iterable, "(xs: int) -> str"),
        (Model.encode, "(self, texts: str) -> int"),
        (functools.partial(two, [1]), None),
        ([].extend, "(iterable, /)"),
    ],
    ids=lambda value: getattr(value, "__name__", type(value).__name__),
)
def test_signature_is_that_of_one_item(function: Any, signature: str | None) -> None:
    assert signature is None or str(inspect.signature(batched(batch_size=1)(function))) == signature


def test_annotations_hold_only_known_types() -> None:
    assert batched(batch_size=1)(bare).__annotations__ == {}
    assert batched(batch_size=1)(future).__annotations__ == {"xs": int, "return": str}


def test_function_without_a_signature_takes_one_list() -> None:
    with pytest.raises(ValueError, match="signature"):
        inspect.signature(max)
    with batched(batch_size=1)(max) as f:
        assert f([5]) == 5


def test_method_without_a_signature_takes_one_list() -> None:
    update: Any = dict.update
    with pytest.raises(ValueError, match="signature"):
        inspect.signature(update)

    class Settings(dict[str, int]):
        put: Any = batched(batch_size=1)(update)

    settings = Settings()
    with pytest.raises(TypeError, match=r"^Settings.put\(\) returned None"):
        settings.put(("a", 1))
    assert settings == {"a": 1}


def test_name_holds_the_class_only_of_a_method_that_is_not_bound() -> None:
    functions: list[Any] = [Model.encode, Model().encode, [].extend]
    names = [repr(batched(batch_size=1)(function)).partition("(")[0].split() for function in functions]
    assert [name for _, name in names] == ["Model.encode", "encode", "extend"]


# Warnings


def test_no_module_and_no_way_to_call_warns() -> None:
    """Every module is imported, not only those that the tests import before warnings are errors."""
    run_script(
        """if True:
        import asyncio, importlib, pkgutil
        import batchify
        from batchify import BatchProcessor, batched

        for module in pkgutil.iter_modules(batchify.__path__):
            importlib.import_module(f"batchify.{module.name}")

        class Processor(BatchProcessor):
            def process(self, batch_input):
                return [each["x"] for each in batch_input]

        class C:
            @batched(batch_size=2)
            def m(self, xs: list[int], *, scale: int = 1) -> list[int]:
                return [scale * x for x in xs]

            @batched(batch_size=2, timeout=0.001, dedupe=True, group_by=abs, on_batch=lambda report: None)
            async def a(self, xs):
                for x in xs:
                    yield x

        async def items():
            for x in range(3):
                yield x

        async def main():
            async with c.m, c.a:
                assert await asyncio.gather(c.m.aio(1), c.a(2), c.a.submit(2)) == [1, 2, 2]
                assert [x async for x in c.a.map(items())] == [0, 1, 2]
                left = asyncio.ensure_future(c.a(3))
                await asyncio.sleep(0)
                left.cancel()

        c = C()
        with c.m as m, Processor(2) as processor:
            assert (m(1, scale=2), m.submit(2).result(), processor.request(x=3)) == (2, 2, 3)
            assert list(m.map([1, 2])) == [1, 2]
        asyncio.run(main())
    """,
        "-X",
        "dev",
        "-W",
        "error",
    )
