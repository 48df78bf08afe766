"""Nothing of a caller stays behind: neither its context in a batch, nor its item, result or error after the answer."""

import asyncio
import gc
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Any

import pytest

from ..kit import Coroutines, Kit, Threads, echo
from ..tools import batched, until

pytestmark = pytest.mark.usefixtures("no_noise")


class Thing:
    """Can be watched."""


class Failure(Exception):
    """Can be watched."""


class Watched:
    """What should be gone in the end."""

    def __init__(self) -> None:
        self.references: list[weakref.ref[Any]] = []

    def watch(self, *things: Any) -> None:
        self.references += map(weakref.ref, things)

    def thing(self) -> Thing:
        made = Thing()
        self.watch(made)
        return made

    def error(self) -> Failure:
        made = Failure()
        self.watch(made)
        return made

    def fail(self) -> None:
        error = self.error()
        try:
            raise error
        finally:
            del error  # a cycle of our own making

    def are_gone(self) -> bool:
        assert self.references
        return not any(reference() for reference in self.references)


@pytest.fixture
def watched() -> Watched:
    return Watched()


@contextmanager
def no_collector() -> Iterator[None]:
    """All that is let go of must go by counting alone."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def call(kit: Kit, f: Any, item: Any) -> Any:
    """Call here, in this context, as callers of this kind do; return the result, or None if it failed."""
    if isinstance(kit, Coroutines):
        return kit.run(call_async(f, item))
    with suppress(Failure):
        return f(item)
    return None


async def call_async(f: Any, item: Any) -> Any:
    with suppress(Failure):
        return await f(item)


def iterate(kit: Kit, f: Any, items: Any) -> int:
    """Iterate over a map as callers of this kind do, to its end or its error; return how many results came."""
    if isinstance(kit, Coroutines):
        count: int = kit.run(iterate_async(f, items))
        return count
    count = 0
    with suppress(Failure):
        for _ in f.map(items):
            count += 1
    return count


async def iterate_async(f: Any, items: Any) -> int:
    count = 0
    with suppress(Failure):
        async for _ in f.map(items):
            count += 1
    return count


# Contexts

user: ContextVar[Any] = ContextVar("user", default="nobody")


@pytest.fixture
def as_a_user() -> Iterator[None]:
    token = user.set("the first caller")
    yield
    user.reset(token)


def returns(items: list[int]) -> list[str]:
    found = user.get()
    user.set("an earlier batch")
    return [found] * len(items)


def yields(items: list[int]) -> Iterator[str]:
    for _ in items:
        yield user.get()
        user.set("an earlier item")


FORMS: dict[str, Callable[[Kit], Any]] = {
    "returns": lambda kit: kit(returns, batch_size=1),
    "iterator": lambda kit: kit(yields, batch_size=1),
    "generator": lambda kit: kit.stream(yields, batch_size=1),
}


@pytest.mark.parametrize("form", FORMS)
def test_context_of_a_batch_is_empty(kit: Kit, as_a_user: None, form: str) -> None:
    f = FORMS[form](kit)
    assert [call(kit, f, 1) for _ in range(2)] == ["nobody"] * 2
    assert kit.outcomes(kit.submits(f, [1, 1])) == ["nobody"] * 2
    assert list(kit.map(f, [1, 1])) == ["nobody"] * 2
    assert user.get() == "the first caller"


def test_context_of_a_batch_that_a_timer_began_is_empty(kit: Kit, as_a_user: None) -> None:
    kit.stop_the_clock()
    f = kit(returns, batch_size=2, timeout=1.0)
    for _ in range(2):
        future = kit.submit(f, 1)
        kit.settle(f)
        assert not future.done()
        kit.move(1.0)
        assert kit.outcome(future) == "nobody"
    assert user.get() == "the first caller"


def test_context_of_a_batch_is_empty_for_callers_of_aio(as_a_user: None, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> list[Any]:
        assert user.get() == "the first caller"
        return [await f.aio(1), await f.aio(2)]

    with batched(batch_size=1)(returns) as f:
        assert asyncio.run(main()) == ["nobody", "nobody"]
    assert not caplog.records


@pytest.mark.parametrize("batch_size", [1, 9], ids=["running", "waiting"])
def test_context_of_a_caller_is_not_kept_by_a_batch_or_a_timer(coroutines: Coroutines, batch_size: int) -> None:
    async def caller() -> Any:
        thing = Thing()
        user.set(thing)
        f.submit(1)
        return weakref.ref(thing)

    f = coroutines(gated=True, batch_size=batch_size, timeout=60.0)
    reference = coroutines.run(caller())
    coroutines.settle()
    gc.collect()
    assert reference() is None
    assert (f.stats.running, f.stats.pending) == ((1, 0) if batch_size == 1 else (0, 1))


# Items, results and errors


@pytest.mark.parametrize(
    "how", ["call", "submit", "map", "raise", "return an error", "cancel", "iterator", "generator"]
)
@pytest.mark.thread_unsafe(reason="stops the garbage collector")
def test_nothing_of_a_batch_is_kept_after_the_answer(kit: Kit, watched: Watched, how: str) -> None:
    def function(items: list[Thing]) -> Any:
        kit.calls.clear()
        watched.watch(*items)
        results = [watched.thing() for _ in items]
        if how == "raise":
            watched.fail()
        if how == "return an error":
            return [watched.error() for _ in items]
        return iter(results) if how == "iterator" else results

    def generator(items: list[Thing]) -> Iterator[Thing]:
        kit.calls.clear()
        watched.watch(*items)
        for _ in items:
            yield watched.thing()

    with no_collector():
        f = kit.stream(generator, batch_size=1) if how == "generator" else kit(function, batch_size=1)
        if how == "map":
            assert iterate(kit, f, [Thing(), Thing()]) == 2
        elif how == "submit":
            assert isinstance(kit.outcome(kit.submit(f, Thing())), Thing)
        elif how == "cancel":
            f.batch_size, f.timeout = 9, None
            assert kit.submit(f, watched.thing()).cancel()
            f.batch_size = 1
        else:
            assert (call(kit, f, Thing()) is None) == (how in ("raise", "return an error"))
        kit.until(watched.are_gone)  # by a flush thread neither, which sleeps by now


@pytest.mark.thread_unsafe(reason="stops the garbage collector")
def test_nothing_of_a_stream_that_raised_is_kept_after_the_answer(threads: Threads, watched: Watched) -> None:
    def generator(items: list[Thing]) -> Iterator[Thing]:
        watched.watch(*items)
        yield watched.thing()
        raise ValueError

    with no_collector():
        f = batched(batch_size=2, timeout=None)(generator)
        futures = [f.submit(Thing()), f.submit(Thing())]
        assert type(futures[1].exception()) is ValueError
        futures.clear()
        f.close()
        threads.until(watched.are_gone)


@pytest.mark.thread_unsafe(reason="stops the garbage collector")
def test_nothing_of_a_batch_that_returned_a_future_is_kept_after_the_answer(threads: Threads, watched: Watched) -> None:
    def function(items: list[Thing]) -> Future[list[Thing]]:
        threads.calls.clear()
        watched.watch(*items)
        future: Future[list[Thing]] = Future()
        future.set_result([watched.thing() for _ in items])
        return future

    with no_collector():
        call(threads, threads(function, batch_size=1), Thing())
        threads.until(watched.are_gone)


@pytest.mark.thread_unsafe(reason="stops the garbage collector")
def test_nothing_is_kept_of_an_item_that_is_its_own_result(kit: Kit, watched: Watched) -> None:
    def function(items: list[Any]) -> list[Any]:
        kit.calls.clear()
        return items

    with no_collector():
        f = kit(function, batch_size=2)
        thing, error = watched.thing(), watched.error()
        future = kit.submit(f, thing)
        assert kit.outcome(kit.start(f, thing)) is thing
        assert kit.outcome(future) is thing
        assert iterate(kit, f, [thing]) == 1
        call(kit, f, error)
        del thing, error, future
        kit.until(watched.are_gone)
        future = kit.submit(f, Thing())
        watched.watch(kit.outcome(future))
        kit.settle(f)
        assert not watched.are_gone()  # it is the future's
        del future
        kit.until(watched.are_gone)


def test_nothing_is_kept_after_the_answer_of_aio(watched: Watched, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        thing = watched.thing()
        assert await f.aio(thing) is thing
        del thing
        with pytest.raises(ValueError, match="no"):
            await f.aio(ValueError("no"))
        await f.aio(None)
        until(watched.are_gone)

    with batched(batch_size=1)(echo) as f:
        asyncio.run(main())
    assert not caplog.records


@pytest.mark.thread_unsafe(reason="stops the garbage collector")
def test_error_of_the_items_of_a_map_is_not_kept(kit: Kit, watched: Watched) -> None:
    def items() -> Iterator[int]:
        yield 1
        watched.fail()

    f = kit(echo, batch_size=1)
    with no_collector():
        assert iterate(kit, f, items()) == 1
        assert watched.are_gone()


# Futures and tasks


@pytest.mark.parametrize("when", ["answered", "cancelled"])
def test_future_does_not_keep_its_item(kit: Kit, watched: Watched, when: str) -> None:
    def function(items: list[Thing]) -> list[str]:
        kit.calls.clear()
        return ["result"]

    f = kit(function, batch_size=2, timeout=None)
    with no_collector():
        future = kit.submit(f, watched.thing())
        if when == "cancelled":
            assert future.cancel()
        kit.flush(f)
        kit.until(future.done)
        kit.until(watched.are_gone)
        assert future.cancelled() or kit.outcome(future) == "result"


@pytest.mark.parametrize("when", ["answered", "cancelled"])
def test_future_does_not_keep_a_result_that_came_after_it_was_cancelled(
    coroutines: Coroutines, watched: Watched, when: str
) -> None:
    def function(items: list[Thing]) -> list[Thing | None]:
        coroutines.calls.clear()
        return [watched.thing(), None]

    f = coroutines(function, gated=True, batch_size=2, timeout=None)
    with no_collector():
        future, neighbour = coroutines.submit(f, watched.thing()), coroutines.submit(f, None)
        coroutines.until_runs(1)
        if when == "cancelled":
            assert future.cancel()
        coroutines.go_on()
        coroutines.until_idle(f)
        assert future.done()
        assert neighbour.result() is None
        item, result = watched.references
        assert item() is None
        assert (result() is None) == (when == "cancelled")


def test_task_of_a_batch_is_not_kept_when_it_has_ended(coroutines: Coroutines) -> None:
    f = coroutines(gated=True, batch_size=1)
    future = coroutines.submit(f, 1)
    coroutines.until_runs(1)
    (ours,) = [
        weakref.ref(task) for task in asyncio.all_tasks(coroutines.loop) if task.get_name().startswith("batchify")
    ]
    coroutines.go_on()
    assert coroutines.outcome(future) == -1
    gc.collect()
    assert ours() is None
