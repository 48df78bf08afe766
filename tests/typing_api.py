"""The public types, checked by mypy and pyright, never run."""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from typing import assert_type

from batchify import BatchedFunction, BatchProcessor, Stats, batched


@batched(batch_size=2, timeout=0.1)
def from_list(xs: list[int]) -> list[float]:
    return [10.0 * x for x in xs]


assert_type(from_list, BatchedFunction[int, float])
assert_type(from_list(3), float)
assert_type(from_list.submit(3), Future[float])
assert_type(from_list.map([1, 2]), Iterator[float])

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
