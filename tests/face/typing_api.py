"""The public types, checked by mypy and pyright, never run."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any, assert_type

from batchify import (
    BatchedCoroutineFunction,
    BatchedFunction,
    BatchedMethod,
    BatchProcessor,
    BatchReport,
    Stats,
    batched,
)


@batched(batch_size=2, timeout=0.1)
def from_list(xs: list[int]) -> list[float]:
    return [10.0 * x for x in xs]


assert_type(from_list, BatchedFunction[int, float])
assert_type(from_list(3), float)
assert_type(from_list.submit(3), Future[float])
assert_type(from_list.map([1, 2]), Generator[float, None, None])

assert_type(from_list.stats, Stats)
assert_type(from_list.batch_size, int)
assert_type(from_list.timeout, float | None)
from_list.batch_size = 3
from_list.timeout = None
from_list.drain(1.0)
from_list.close(timeout=None, cancel_pending=True)
with from_list as opened:
    assert_type(opened, BatchedFunction[int, float])

from_list("3")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
from_list.sumbit(3)  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
batched(batch_size="2")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


@batched(batch_size=2)
def from_sequence(xs: Sequence[str]) -> tuple[int, ...]:
    return tuple(len(x) for x in xs)


assert_type(from_sequence("a"), int)


@batched(batch_size=2)
def from_mapping(keys: list[int]) -> dict[int, str]:
    return {key: str(key) for key in keys}


assert_type(from_mapping(1), str)


@batched(batch_size=2)
def from_generator(xs: list[int]) -> Iterator[str]:
    yield from map(str, xs)


assert_type(from_generator(1), str)


@batched(batch_size=2)
def from_future(xs: list[int]) -> Future[list[str]]:
    raise NotImplementedError


assert_type(from_future(1), str)


@batched(batch_size=2)
def from_future_of_mapping(xs: list[int]) -> Future[dict[int, str]]:
    raise NotImplementedError


assert_type(from_future_of_mapping(1), str)


@batched(batch_size=2)
def with_errors(xs: list[int]) -> list[float | Exception]:
    return [1.0 / x if x else ZeroDivisionError() for x in xs]


assert_type(with_errors(1), float)


class Doubler(BatchProcessor[int]):
    def process(self, batch_input: tuple[dict[str, int], ...]) -> list[int]:
        return [2 * keywords["x"] for keywords in batch_input]


assert_type(Doubler(batch_size=2, timeout=0.1).request(x=1), int)


async def from_a_coroutine() -> None:
    assert_type(await from_list.aio(3), float)
    assert_type(await from_mapping.aio(3), str)
    await from_list.adrain(1.0)
    await from_list.aclose(1.0, cancel_pending=True)
    async with from_list as opened:
        assert_type(opened, BatchedFunction[int, float])
    await from_list.aio("3")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


@batched(batch_size=2, timeout=0.1)
async def coroutine(xs: list[int]) -> list[float]:
    return [10.0 * x for x in xs]


@batched(batch_size=2)
async def coroutine_of_mapping(keys: list[int]) -> dict[int, str]:
    return {key: str(key) for key in keys}


@batched(batch_size=2)
async def coroutine_with_errors(xs: list[int]) -> list[float | Exception]:
    return [1.0 / x if x else ZeroDivisionError() for x in xs]


@batched(batch_size=2)
async def from_async_generator(xs: list[int]) -> AsyncIterator[str]:
    for x in xs:
        yield str(x)


assert_type(coroutine, BatchedCoroutineFunction[int, float])


async def from_coroutines() -> None:
    assert_type(await coroutine(3), float)
    assert_type(await coroutine.aio(3), float)
    assert_type(coroutine.submit(3), asyncio.Future[float])
    assert_type(await asyncio.gather(coroutine.submit(3), coroutine(4)), tuple[float, float])
    assert_type(await asyncio.create_task(coroutine(3)), float)
    assert_type(await asyncio.wait_for(coroutine(3), 1.0), float)
    created: Coroutine[Any, Any, float] = coroutine(3)
    await created
    assert_type(coroutine.map([1, 2]), AsyncGenerator[float, None])
    assert_type(coroutine.map([1, 2], return_exceptions=True), AsyncGenerator[float | Exception, None])
    assert_type([result async for result in coroutine.map(from_async_iterable())], list[float])
    async with coroutine as opened:
        assert_type(opened, BatchedCoroutineFunction[int, float])
    await coroutine.adrain(timeout=1.0)
    await coroutine.aclose()
    assert_type(coroutine.stats, Stats)
    assert_type(await coroutine_of_mapping(3), str)
    assert_type(await coroutine_with_errors(3), float)
    assert_type(await from_async_generator(3), str)

    coroutine(3)  # type: ignore[unused-coroutine]  # pyright: ignore[reportUnusedCoroutine]
    await coroutine("3")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    coroutine.close()  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
    coroutine.drain()  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]


async def from_async_iterable() -> AsyncIterator[int]:
    yield 1


@batched(batch_size=2)  # type: ignore[untyped-decorator, arg-type, unused-ignore]
def untyped(xs):  # type: ignore[no-untyped-def]
    return xs


with untyped:  # not taken for a coroutine function
    untyped.close()


# Methods: instance.method is what a function would be; so is Class.method of a class method and of a static one.


class Embedder:
    @batched(batch_size=2)
    def embed(self, xs: list[str]) -> list[float]:
        raise NotImplementedError

    @batched(batch_size=2)
    def find(self, xs: list[str]) -> dict[str, float]:
        raise NotImplementedError

    @batched(batch_size=2)
    def later(self, xs: list[str]) -> Future[list[float]]:
        raise NotImplementedError

    @batched(batch_size=2)
    async def fetch(self, xs: list[str]) -> list[float]:
        raise NotImplementedError

    @batched(batch_size=2)
    async def stream(self, xs: list[str]) -> AsyncIterator[float]:
        raise NotImplementedError
        yield

    @batched(batch_size=2)
    @classmethod
    def of_class(cls, xs: list[str]) -> list[float]:
        raise NotImplementedError

    @classmethod
    @batched(batch_size=2)
    def of_class_too(cls, xs: list[str]) -> list[float]:
        raise NotImplementedError

    @batched(batch_size=2)
    @staticmethod
    def static(xs: list[str]) -> list[float]:
        raise NotImplementedError

    @staticmethod
    @batched(batch_size=2)
    def static_too(xs: list[str]) -> list[float]:
        raise NotImplementedError


class Heir(Embedder):
    @batched(batch_size=2)
    def embed(self, xs: list[str]) -> list[float]:
        return [super(Heir, self).embed(x) for x in xs]


async def methods(one: Embedder, heir: Heir) -> None:
    assert_type(one.embed, BatchedFunction[str, float])
    assert_type(one.embed("x"), float)
    assert_type(one.embed.submit("x"), Future[float])
    assert_type(heir.embed("x"), float)
    assert_type(one.find("x"), float)
    assert_type(one.later("x"), float)
    assert_type(one.fetch, BatchedCoroutineFunction[str, float])
    assert_type(await one.fetch("x"), float)
    assert_type(await one.stream("x"), float)
    assert_type(Embedder.embed, BatchedMethod[Embedder, BatchedFunction[str, float]])
    assert_type(Embedder.embed(one, "x"), float)
    assert_type(await Embedder.fetch(one, "x"), float)
    assert_type(Embedder.of_class("x"), float)
    assert_type(one.of_class.submit("x"), Future[float])
    assert_type(Embedder.of_class_too("x"), float)
    assert_type(Embedder.static("x"), float)
    assert_type(one.static_too.submit("x"), Future[float])
    one.embed(3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    one.embed.sumbit("x")  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
    Embedder.embed.submit("x")  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]


# Columns and keywords: `P` is what follows the item.


@batched(batch_size=2)
def two(xs: list[int], ys: list[str]) -> list[float]:
    raise NotImplementedError


@batched(batch_size=2)
def alike(xs: list[int], ys: list[int]) -> dict[tuple[int, int], float]:
    raise NotImplementedError


@batched(batch_size=2)
def of_any_kind(xs: Sequence[int], ys: Iterable[str]) -> Iterator[float]:
    raise NotImplementedError


@batched(batch_size=2)
def three(xs: list[int], ys: list[str], zs: list[bytes]) -> list[float]:
    raise NotImplementedError


@batched(batch_size=2)
def four(
    xs: list[int], ys: list[str], zs: list[bytes], vs: list[bool], *, model: str
) -> dict[tuple[int, str, bytes, bool], float]:
    raise NotImplementedError


@batched(batch_size=2)
def keyword(xs: list[int], *, model: str) -> list[float]:
    raise NotImplementedError


@batched(batch_size=2)
def keyword_with_default(xs: list[int], *, model: str = "m") -> dict[int, float]:
    raise NotImplementedError


@batched(batch_size=2)
def both(xs: list[int], ys: list[str], *, model: str = "m", size: int) -> Future[dict[tuple[int, str], float]]:
    raise NotImplementedError


@batched(batch_size=2)
def any_keywords(xs: list[int], /, **more: int) -> list[float]:
    raise NotImplementedError


@batched(batch_size=2)
def option_by_position(xs: list[int], raw_score: bool = False) -> list[float]:
    raise NotImplementedError


# Not by assert_type(): to pyright a column's parameter has a name of its own.
of_two: BatchedFunction[int, float, [str]] = two
assert_type(two(1, "a"), float)
assert_type(two.submit(1, "a"), Future[float])
assert_type(two.map([1], ["a"]), Generator[float, None, None])
assert_type(alike(1, 2), float)
assert_type(of_any_kind(1, "a"), float)
of_three: BatchedFunction[int, float, [str, bytes]] = three
assert_type(three(1, "a", b"b"), float)
assert_type(four(1, "a", b"b", True, model="k"), Any)  # of four and more columns nothing is checked
assert_type(keyword(1, model="k"), float)
assert_type(keyword.submit(1, model="k"), Future[float])
assert_type(keyword.map([1], model="k"), Generator[float, None, None])
assert_type(keyword_with_default(1), float)
assert_type(keyword_with_default(1, model="k"), float)
assert_type(both(1, "a", size=1), float)
assert_type(both(1, "a", model="k", size=1), float)
assert_type(both.submit(1, "a", size=1), Future[float])
assert_type(both.map([1], ["a"], size=1), Generator[float, None, None])
assert_type(any_keywords(1, threads=2), float)  # mypy finds it only where no keyword can be the column's name
assert_type(option_by_position(1), float)
assert_type(option_by_position(1, True), float)
assert_type(option_by_position.map([1], raw_score=True), Generator[float, None, None])
assert_type(from_list.map([1], return_exceptions=True), Generator[float | Exception, None, None])
assert_type(from_list.map([1], return_exceptions=False), Generator[float, None, None])

from_list(1, 2)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
from_list(1, model="k")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
two(1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
two(1, 2)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
two("1", "a")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
two(1, "a", "b")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
two(1, "a", model="k")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
two.submit(1, 2)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
two.map(["1"], ["a"])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]
two.sumbit(1, "a")  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
alike(1, [2])  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
three(1, "a")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
three(1, "a", "b")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
three(1, "a", b"b", modle="k")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
keyword(1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
keyword(1, "k")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
keyword(1, model=2)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
keyword(1, model="k", modle="k")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
keyword.submit(1, modle="k")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
both(1, "a")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
both(1, "a", size="k")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
both(1, 2, size=1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]

option_by_position(1, "a")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]

# What types cannot say yet: that these are right (a column may be passed by its name).
from_list(xs=1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
two(1, ys="a")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
# And that these are wrong.
two.map([1], [2])
keyword.map([1], modle="k")


@batched(batch_size=2)
async def coroutine_of_two(xs: list[int], ys: list[str], *, model: str = "m") -> dict[tuple[int, str], float]:
    raise NotImplementedError


@batched(batch_size=2)
async def coroutine_of_three(xs: list[int], ys: list[str], zs: list[bytes]) -> list[float]:
    raise NotImplementedError


@batched(batch_size=2)
async def async_generator_with_keyword(xs: list[int], *, model: str) -> AsyncIterator[float]:
    raise NotImplementedError
    yield


async def columns_and_keywords() -> None:
    assert_type(await two.aio(1, "a"), float)
    assert_type(await keyword.aio(1, model="k"), float)
    assert_type(await both.aio(1, "a", size=1), float)
    await two.aio(1, 2)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await keyword.aio(1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await keyword.aio(1, modle="k")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]

    assert_type(await coroutine_of_two(1, "a"), float)
    assert_type(await coroutine_of_two(1, "a", model="k"), float)
    assert_type(await coroutine_of_two.aio(1, "a", model="k"), float)
    assert_type(coroutine_of_two.submit(1, "a", model="k"), asyncio.Future[float])
    assert_type(coroutine_of_two.map([1], ["a"], model="k"), AsyncGenerator[float, None])
    assert_type(await coroutine_of_three(1, "a", b"b"), float)
    assert_type(await async_generator_with_keyword(1, model="k"), float)
    await coroutine_of_two(1, 2)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await coroutine_of_two(1, "a", modle="k")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await coroutine_of_three(1, "a", "b")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await async_generator_with_keyword(1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


class Ranker:
    @batched(batch_size=2)
    def rank(self, xs: list[int], ys: list[str], *, model: str = "m") -> list[float]:
        raise NotImplementedError

    @batched(batch_size=2)
    def alike(self, xs: list[int], ys: list[int]) -> dict[tuple[int, int], float]:
        raise NotImplementedError

    @batched(batch_size=2)
    def three(self, xs: list[int], ys: list[str], zs: list[bytes]) -> list[float]:
        raise NotImplementedError

    @batched(batch_size=2)
    def keyword(self, xs: list[int], *, model: str) -> Future[list[float]]:
        raise NotImplementedError

    @batched(batch_size=2)
    async def fetch(self, xs: list[int], ys: list[str], *, model: str = "m") -> list[float]:
        raise NotImplementedError

    @batched(batch_size=2)
    async def find(self, xs: list[int], *, model: str) -> dict[int, float]:
        raise NotImplementedError

    @batched(batch_size=2)
    @classmethod
    def of_class(cls, xs: list[int], ys: list[str], *, model: str = "m") -> list[float]:
        raise NotImplementedError

    @batched(batch_size=2)
    @staticmethod
    def static(xs: list[int], ys: list[str], *, model: str = "m") -> list[float]:
        raise NotImplementedError


class Items(list[int]):
    @batched(batch_size=2)
    def find(self, xs: list[str]) -> list[float]:  # neither does a list as `self` become a column
        raise NotImplementedError


async def methods_of_columns(one: Ranker) -> None:
    assert_type(one.rank(1, "a"), float)
    assert_type(one.rank(1, "a", model="k"), float)
    assert_type(one.rank.submit(1, "a", model="k"), Future[float])
    assert_type(one.rank.map([1], ["a"], model="k"), Generator[float, None, None])
    assert_type(await one.rank.aio(1, "a", model="k"), float)
    assert_type(Ranker.rank(one, 1, "a", model="k"), float)
    assert_type(one.alike(1, 2), float)
    assert_type(Ranker.alike(one, 1, 2), float)
    assert_type(one.three(1, "a", b"b"), float)
    assert_type(one.keyword(1, model="k"), float)
    assert_type(await one.fetch(1, "a", model="k"), float)
    assert_type(await Ranker.fetch(one, 1, "a"), float)
    assert_type(await one.find(1, model="k"), float)
    assert_type(Ranker.of_class(1, "a", model="k"), float)
    assert_type(one.static.submit(1, "a"), Future[float])
    assert_type(Items().find("a"), float)
    one.rank(1, 2)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    one.rank(1, "a", modle="k")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    one.alike(1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    one.three(1, "a", "b")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    one.keyword(1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await one.fetch(1, 2)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await one.find(1, modle="k")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    Ranker.rank(one, 1, 2)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    one.rank.sumbit(1, "a")  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]


# Without annotations: whatever is not known is Any.

from_lambda = batched(batch_size=2)(lambda xs: [1.0 for _ in xs])
assert_type(from_lambda(3), float)


@batched(batch_size=2)
def of_anything(xs: list[int]) -> Any:
    raise NotImplementedError


@batched(batch_size=2)
def from_anything(xs: Any) -> list[float]:
    raise NotImplementedError


@batched(batch_size=2)  # type: ignore[untyped-decorator, unused-ignore]
def two_untyped(xs, ys):  # type: ignore[no-untyped-def]
    return xs


def of_unknown(function: Callable[..., list[float]]) -> None:
    batched(batch_size=2)(function)(3)
    batched(batch_size=2)(partial(function, model="k"))(3)


assert_type(of_anything(3), Any)
assert_type(from_anything(3), float)
assert_type(from_anything("a"), float)
two_untyped(1, "a")


class Untyped:
    @batched(batch_size=2)  # type: ignore[untyped-decorator, unused-ignore]
    def method(self, xs):  # type: ignore[no-untyped-def]
        return xs


Untyped().method(1)


# No functions of lists.

batched(batch_size=2)(3)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]


@batched(batch_size=2)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType, reportCallIssue]
def of_no_list(x: int) -> list[float]:
    raise NotImplementedError


@batched(batch_size=2)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType, reportCallIssue]
def to_no_list(xs: list[int]) -> float:
    raise NotImplementedError


# Options


def weight(x: int) -> int:
    return x


def group(x: int, y: str) -> tuple[int, str]:
    return x, y


def on_batch(report: BatchReport) -> None:
    assert_type(report.waits, tuple[float, ...])
    assert_type(report.error, BaseException | None)


@batched(
    batch_size=2,
    timeout=None,
    weight=weight,
    max_weight=10,
    group_by=group,
    dedupe=True,
    isolate=True,
    concurrency=2,
    max_pending=10,
    on_batch=on_batch,
)
def with_options(xs: list[int]) -> list[float]:
    raise NotImplementedError


assert_type(with_options, BatchedFunction[int, float])
batched(batch_size=2, weight=len, max_weight=1.5, group_by=lambda x: x, on_batch=print, max_pending=None)

batched()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
batched(2)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
batched(batch_size=2, size=3)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
batched(batch_size=2, timeout="1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
batched(batch_size=2, weight=1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
batched(batch_size=2, weight=str)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
batched(batch_size=2, max_weight="1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
batched(batch_size=2, group_by=list)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
batched(batch_size=2, dedupe="yes")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
batched(batch_size=2, isolate=(ValueError, KeyError))
batched(batch_size=2, isolate=SystemExit)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
batched(batch_size=2, isolate=None)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
batched(batch_size=2, concurrency=1.5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
batched(batch_size=2, max_pending=1.5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
batched(batch_size=2, on_batch=group)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
