"""The public types, checked by mypy and pyright, never run."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Generator, Iterator, Sequence
from concurrent.futures import Future
from typing import Any, assert_type

from batchify import BatchedCoroutineFunction, BatchedFunction, BatchedMethod, BatchProcessor, Stats, batched


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
    assert_type([result async for result in coroutine.map(from_async_iterable())], list[float])
    async with coroutine as opened:
        assert_type(opened, BatchedCoroutineFunction[int, float])
    await coroutine.aclose()
    assert_type(coroutine.stats, Stats)
    assert_type(await coroutine_of_mapping(3), str)
    assert_type(await coroutine_with_errors(3), float)
    assert_type(await from_async_generator(3), str)

    coroutine(3)  # type: ignore[unused-coroutine]  # pyright: ignore[reportUnusedCoroutine]
    await coroutine("3")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    coroutine.close()  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]


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
