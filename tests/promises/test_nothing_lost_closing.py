"""Closing a function answers everyone who waits, and refuses what comes after it."""

import asyncio
import threading
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from batchify import ClosedError

from ..kit import Coroutines, Kit, batched, echo, negate
from ..tools import in_threads

CALLS: dict[str, Callable[[Kit, Any], Any]] = {
    "call": lambda kit, f: kit.outcome(kit.start(f, 1)),
    "submit": lambda kit, f: kit.outcome(kit.submit(f, 1)),
    "map": lambda kit, f: list(kit.map(f, [1])),
}


def error_of(call: Callable[[], Any]) -> Any:
    """Return the error that a call raises, or returns."""
    try:
        return call()
    except Exception as error:
        return error


def decorate(kit: Kit, function: Callable[..., Any], coroutine_function: Callable[..., Any], **options: Any) -> Any:
    """Decorate the one or the other, for functions that wait for batched functions themselves."""
    made = batched(**options)(kit.wrap(function) if kit.kind == "threads" else coroutine_function)
    kit.made.append(made)
    return made


def at_once(kit: Kit, call: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
    """Call with all items at once, and return the results or errors."""
    if not isinstance(kit, Coroutines):
        return in_threads(call, items)

    async def main() -> list[Any]:
        return await asyncio.gather(*map(call, items), return_exceptions=True)

    found: list[Any] = kit.run(main())
    return found


# Everyone who waits is answered


def test_close_answers_everyone_who_waits(kit: Kit) -> None:
    f = kit(gated=True, batch_size=2, timeout=None)
    futures = kit.submits(f, range(5))
    kit.go_on(3)
    kit.close(f)
    assert all(future.done() for future in futures)
    assert kit.outcomes(futures) == [0, -1, -2, -3, -4]
    assert f.stats.reasons == {"full": 2, "close": 1}
    kit.consistent(f)


def test_close_answers_calls_that_began_before(kit: Kit) -> None:
    f = kit(gated=True, batch_size=2, timeout=None)
    handles = kit.starts(f, range(5))
    closer = kit.start_close(f)
    assert not closer.done()
    kit.go_on(3)
    assert kit.outcome(closer) is None
    assert sorted(kit.outcomes(handles)) == [-4, -3, -2, -1, 0]
    assert f.stats.reasons == {"full": 2, "close": 1}
    kit.consistent(f)


def test_close_waits_for_all_batches_that_run_at_once(kit: Kit) -> None:
    f = kit(gated=True, batch_size=1, timeout=0.0, concurrency=3)
    handles = kit.submits(f, range(5))
    kit.until(lambda: kit.running == 3)
    kit.go_on(5)
    kit.close(f)
    assert all(handle.done() for handle in handles)
    assert kit.outcomes(handles) == [0, -1, -2, -3, -4]
    kit.consistent(f)


def test_close_runs_as_many_batches_at_once_as_concurrency_allows(kit: Kit) -> None:
    f = kit(gated=True, batch_size=4, timeout=None, concurrency=3, group_by=lambda x: x)
    handles = kit.submits(f, range(3))
    closer = kit.start_close(f)
    kit.until(lambda: kit.running == 3)
    kit.go_on(3)
    assert kit.outcome(closer) is None
    assert kit.outcomes(handles) == [0, -1, -2]


def test_second_close_waits_as_well(kit: Kit) -> None:
    f = kit(gated=True, batch_size=2)
    future = kit.busy(f, 1)
    closers = [kit.start_close(f) for _ in range(2)]
    answered_at_its_end: list[bool] = []
    for closer in closers:
        assert not closer.done()
        closer.add_done_callback(lambda _: answered_at_its_end.append(future.done()))
    kit.go_on()
    assert kit.outcomes([future, *closers]) == [-1, None, None]
    kit.until(lambda: len(answered_at_its_end) == 2)
    assert answered_at_its_end == [True, True]


def test_close_ends_when_the_last_item_is_cancelled(kit: Kit) -> None:
    f = kit(gated=True, batch_size=1, timeout=None)
    first = kit.busy(f, 1)
    second = kit.submit(f, 2)
    closer = kit.start_close(f)
    assert second.cancel()
    kit.go_on()
    assert kit.outcome(closer) is None
    assert kit.outcome(first) == -1
    assert kit.batches == [[1]]
    kit.consistent(f)


def test_close_of_another_function_from_inside_waits_for_it(kit: Kit) -> None:
    other = kit(batch_size=9, timeout=None)

    def closes(items: list[int]) -> list[bool]:
        other.close()
        return [waiting.done()]

    async def acloses(items: list[int]) -> list[bool]:
        await other.aclose()
        return [waiting.done()]

    waiting = kit.submit(other, 1)
    f = decorate(kit, closes, acloses, batch_size=1)
    assert kit.outcome(kit.submit(f, 1)) is True
    assert kit.outcome(waiting) == -1


def test_close_from_inside_the_function_does_not_wait_for_itself(kit: Kit) -> None:
    def closes(items: list[int]) -> list[int]:
        f.close()
        return items

    async def acloses(items: list[int]) -> list[int]:
        await f.aclose()
        return items

    f = decorate(kit, closes, acloses, batch_size=2)
    assert kit.outcome(kit.start(f, 1)) == 1
    assert type(kit.outcome(kit.start(f, 2))) is ClosedError
    kit.close(f)
    assert f.stats.accepted == 1


# While it closes


def close_while_it_runs(kit: Kit, f: Any, item: int, closes: threading.Event, acloses: asyncio.Event) -> Any:
    """Pass an item, and let the function go on when closing has begun; return the item's handle when that has ended."""
    handle = kit.submit(f, item)
    closer = kit.start_close(f)
    closes.set()
    acloses.set()
    assert kit.outcome(closer) is None
    return handle


@pytest.mark.parametrize("how", ["call", "map"])
def test_function_that_is_being_closed_may_call_itself(kit: Kit, how: str) -> None:
    closes, acloses = threading.Event(), asyncio.Event()

    def function(items: list[int]) -> list[int]:
        if items == [0]:
            return items
        closes.wait()
        rest = [item - 1 for item in items]
        return list(f.map(rest)) if how == "map" else [f(item) for item in rest]

    async def coroutine_function(items: list[int]) -> list[int]:
        if items == [0]:
            return items
        await acloses.wait()
        rest = [item - 1 for item in items]
        if how == "map":
            return [item async for item in f.map(rest)]
        return [await f(item) for item in rest]

    f = decorate(kit, function, coroutine_function, batch_size=9, timeout=None)
    handle = close_while_it_runs(kit, f, 3, closes, acloses)
    assert handle.done()
    assert kit.outcome(handle) == 0
    kit.consistent(f)


def test_function_that_is_being_closed_cannot_submit_to_itself_or_it_would_never_end(kit: Kit) -> None:
    closes, acloses = threading.Event(), asyncio.Event()

    def function(items: list[int]) -> list[Any]:
        closes.wait()
        return [f.submit(item) for item in items]

    async def coroutine_function(items: list[int]) -> list[Any]:
        await acloses.wait()
        return [f.submit(item) for item in items]

    f = decorate(kit, function, coroutine_function, batch_size=9, timeout=None)
    handle = close_while_it_runs(kit, f, 3, closes, acloses)
    assert type(kit.outcome(handle)) is ClosedError
    kit.consistent(f)


@pytest.mark.parametrize("how", CALLS)
def test_calls_are_refused_while_it_closes(kit: Kit, how: str) -> None:
    f = kit(gated=True, batch_size=2, timeout=None)
    futures = kit.submits(f, range(5))
    closer = kit.start_close(f)
    error = error_of(lambda: CALLS[how](kit, f))
    assert (type(error), str(error)) == (ClosedError, "negate() is closed")
    assert not closer.done()
    kit.go_on(3)
    assert kit.outcome(closer) is None
    assert [kit.outcome(future) for future in futures] == [0, -1, -2, -3, -4]
    assert f.stats.accepted == 5


def test_calls_that_race_with_close_are_answered_or_refused(kit: Kit) -> None:
    for _ in range(50):
        f = kit(echo, batch_size=4, timeout=0.0)

        def call(item: int) -> Any:
            if item != 5:
                return f(item)  # noqa: B023 - run at once
            return f.close() if kit.kind == "threads" else f.aclose()  # noqa: B023

        for item, outcome in enumerate(at_once(kit, call, range(12))):
            assert outcome == (None if item == 5 else item) or isinstance(outcome, ClosedError)
        assert f.stats.accepted == f.stats.answered


# After it was closed


@pytest.mark.parametrize("how", CALLS)
def test_calls_after_close_are_refused(kit: Kit, how: str) -> None:
    f = kit(batch_size=2)
    kit.close(f)
    kit.close(f)
    error = error_of(lambda: CALLS[how](kit, f))
    assert (type(error), str(error)) == (ClosedError, "negate() is closed")
    assert f.stats.accepted == 0
    assert kit.calls == []


def test_with_block_closes_at_its_end(kit: Kit) -> None:
    f = kit(batch_size=2, timeout=None)
    if isinstance(kit, Coroutines):

        async def main() -> Any:
            async with f as same:
                assert same is f
                future = f.submit(1)
                assert not future.done()
            return future

        future = kit.run(main())
    else:
        with f as same:
            assert same is f
            future = f.submit(1)
            assert not future.done()
    assert future.done()
    assert kit.outcome(future) == -1
    with pytest.raises(ClosedError):
        kit.submit(f, 2)
    assert type(kit.outcome(kit.start(f, 2))) is ClosedError


def test_function_that_goes_well_from_first_call_to_close_logs_nothing(
    kit: Kit, caplog: pytest.LogCaptureFixture
) -> None:
    f = kit(negate, batch_size=3, on_batch=lambda report: None)
    handles = [kit.start(f, 1), *kit.submits(f, range(2, 5))]
    assert list(kit.map(f, range(5, 9))) == [-5, -6, -7, -8]
    assert kit.outcomes(handles) == [-1, -2, -3, -4]
    if kit.kind == "threads":
        assert in_threads(f, range(8)) == [-x for x in range(8)]
        assert asyncio.run(f.aio(9)) == -9
    kit.close(f)
    assert [record for record in caplog.records if record.name == "batchify"] == []
