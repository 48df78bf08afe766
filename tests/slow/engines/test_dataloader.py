"""What docs/dataloader.md shows: how many queries GraphQL requests make; and what it says of loaders and caches."""

import ast
import asyncio
import contextlib
import io
import re
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest

from batchify import batched

from .components import component
from .pages import examples
from .postgres import Server, server

PAGE = "dataloader.md"


@pytest.fixture
def reached(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """An empty database, to which clients find by themselves."""
    component("psycopg")
    with server() as found:
        for name, value in found.where.items():
            monkeypatch.setenv(name, value)
        yield found


def test_page_prints_what_it_shows_and_the_server_has_seen_as_many_queries(
    reached: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("strawberry", "sqlalchemy.ext.asyncio", "greenlet", "async_lru"):
        component(name)
    page = ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", page)  # where strawberry looks for the types of annotations

    async def run() -> None:
        compared = 0
        for code, expected in examples(PAGE):
            compiled = compile(code, PAGE, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                steps = eval(compiled, page.__dict__)
                if steps is not None:
                    await steps
            assert printed.getvalue() == expected, code
            compared += expected != ""
        assert compared == 9
        await _requests_share_the_queries_that_come_while_one_is_on_its_way(page)

    asyncio.run(run())
    seen = re.findall(r"(?m)^\s*FROM (?:authors|books)\b", reached.log.read_text())
    assert len(seen) == len(page.queries) > 0


async def _requests_share_the_queries_that_come_while_one_is_on_its_way(page: Any) -> None:
    page.made()
    async with await component("psycopg").AsyncConnection.connect() as holding:
        await holding.execute("LOCK TABLE authors IN ACCESS EXCLUSIVE MODE")
        accepted = page.author_of.stats.accepted
        requests = asyncio.gather(*(page.request(page.books, page.author_of) for _ in range(20)))
        while page.author_of.stats.accepted < accepted + 20 * 20:
            await asyncio.sleep(0.001)
        await holding.rollback()
        assert await requests == [page.data] * 20
    assert page.made() in (21, 22)  # one for the books of each, and for all authors one or two
    await page.engine.dispose()


class Loaded:
    """A list function that can be told to fail, and remembers its batches."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.error: Exception | None = None

    async def __call__(self, keys: list[int]) -> list[int]:
        self.batches.append(list(keys))
        await asyncio.sleep(0)
        if self.error is not None:
            raise self.error
        return [10 * key for key in keys]


def _of_strawberry(function: Any, **options: Any) -> Any:
    return component("strawberry.dataloader").DataLoader(load_fn=function, **options)


def _of_aiodataloader(function: Loaded, **options: Any) -> Any:
    async def load(keys: list[int]) -> list[int]:
        return await function(keys)

    return component("aiodataloader").DataLoader(load, **options)


each_loader = pytest.mark.parametrize("make", [_of_strawberry, _of_aiodataloader])


@each_loader
def test_loaders_without_a_cache_send_equal_keys_twice(make: Callable[..., Any]) -> None:
    async def run() -> None:
        loaded = Loaded()
        assert await make(loaded, cache=False).load_many([1, 1]) == [10, 10]
        assert loaded.batches == [[1, 1]]
        loaded = Loaded()
        assert await make(loaded).load_many([1, 1]) == [10, 10]
        assert loaded.batches == [[1]]

    asyncio.run(run())


@each_loader
def test_loaders_run_all_batches_at_once(make: Callable[..., Any]) -> None:
    async def run() -> int:
        running = asyncio.Barrier(3)  # passes nobody until three are there

        async def load(keys: list[int]) -> list[int]:
            await running.wait()
            return keys

        return len(await make(load, max_batch_size=2).load_many(range(6)))

    assert asyncio.run(run()) == 6


@each_loader
def test_loaders_gather_for_two_turns_of_the_loop_and_a_batched_function_for_one(make: Callable[..., Any]) -> None:
    async def after(turns: int, load: Callable[[int], Any]) -> Any:
        for _ in range(turns):
            await asyncio.sleep(0)
        return await load(turns)

    async def run() -> None:
        loaded, ours = Loaded(), Loaded()
        loader = make(loaded)
        await asyncio.gather(*(after(turns, loader.load) for turns in range(3)))
        assert loaded.batches == [[0, 1], [2]]
        f = batched(batch_size=500)(ours)
        await asyncio.gather(*(after(turns, f) for turns in range(3)))
        assert ours.batches[0] == [0]

    asyncio.run(run())


@pytest.mark.parametrize(("make", "remembers"), [(_of_strawberry, True), (_of_aiodataloader, False)])
def test_an_error_of_a_batch_stays_in_the_cache_of_one_loader_only(make: Callable[..., Any], remembers: bool) -> None:
    async def run() -> None:
        loaded = Loaded()
        loaded.error = ConnectionError()
        loader = make(loaded)
        with pytest.raises(ConnectionError):
            await loader.load(1)
        loaded.error = None
        if remembers:
            with pytest.raises(ConnectionError):
                await loader.load(1)
        else:
            assert await loader.load(1) == 10

    asyncio.run(run())


@each_loader
def test_callers_of_a_loader_hold_one_future(make: Callable[..., Any]) -> None:
    async def run() -> None:
        loader = make(Loaded())
        one, other = (asyncio.ensure_future(loader.load(1)) for _ in range(2))
        assert one is other

    asyncio.run(run())


def test_cache_above_forgets_errors_and_who_is_cancelled_takes_the_answer_from_nobody() -> None:
    alru_cache = component("async_lru").alru_cache

    async def run() -> None:
        loaded = Loaded()
        cached = alru_cache(maxsize=None)(batched(batch_size=500)(loaded))
        loaded.error = ConnectionError()
        with pytest.raises(ConnectionError):
            await cached(1)
        loaded.error = None
        one, other = (asyncio.create_task(cached(1)) for _ in range(2))
        await asyncio.sleep(0)
        one.cancel()
        assert await other == 10
        assert one.cancelled()
        assert await cached(1) == 10
        assert loaded.batches == [[1], [1]]
        cached.cache_invalidate(1)
        assert await cached(1) == 10
        assert loaded.batches == [[1], [1], [1]]

    asyncio.run(run())
