"""Mine: of a function that yields its results, each caller gets its own one as soon as it is yielded."""

import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from batchify import BatchError, ResultCountError, batched

from ..kit import STOP, Coroutines, Kit

pytestmark = pytest.mark.usefixtures("no_noise")


class Thing:
    """Can be watched."""


# What the function is: a generator function (of an `async def` kind an asynchronous one), or a function that returns an
# iterator.
FORMS: dict[str, Callable[[Kit], Callable[..., Any]]] = {
    "generator": lambda kit: kit.stream,
    "iterator": lambda kit: kit,
}


@pytest.fixture(params=FORMS)
def decorate(request: pytest.FixtureRequest, kit: Kit) -> Callable[..., Any]:
    """Decorate a generator function of each form."""
    return FORMS[request.param](kit)


def answers(kit: Kit, f: Any, *items: Any) -> list[Any]:
    """Run one batch of these items and close; return each one's result, or its error."""
    found = kit.outcomes(kit.submits(f, items))
    kit.close(f)
    return found


# Delivered at once


def test_yielded_result_is_delivered_at_once(kit: Kit) -> None:
    def function(items: list[int]) -> Iterator[Any]:
        for item in items:
            yield -item
            yield STOP

    f = kit.stream(function, batch_size=2, timeout=None)
    one, two = kit.submits(f, [1, 2])
    assert kit.outcome(one) == -1
    kit.settle(f)
    assert not two.done()
    assert (f.stats.answered, f.stats.running, f.stats.in_flight) == (1, 1, 1)
    kit.go_on()
    assert kit.outcome(two) == -2
    assert f.stats.answered == 2


def test_yielding_batch_ends_after_its_last_result_and_the_next_one_begins(kit: Kit) -> None:
    def function(items: list[int]) -> Iterator[Any]:
        yield -items[0]
        yield STOP
        yield -items[1]

    f = kit.stream(function, batch_size=2, timeout=None)
    futures = kit.submits(f, range(4))
    assert kit.outcome(futures[0]) == 0
    kit.settle(f)
    assert kit.batches == [[0, 1]]
    kit.go_on(2)
    assert kit.outcomes(futures) == [0, -1, -2, -3]
    assert kit.batches == [[0, 1], [2, 3]]


def test_yielded_result_is_not_kept_until_the_next_one(kit: Kit) -> None:
    watched: list[weakref.ref[Thing]] = []

    def thing() -> Thing:
        made = Thing()
        watched.append(weakref.ref(made))
        return made

    def function(items: list[int]) -> Iterator[Any]:
        yield thing()
        yield STOP
        yield thing()

    f = kit.stream(function, batch_size=2, timeout=None)
    one, two = kit.submits(f, [1, 2])
    kit.outcome(one)
    del one
    kit.until(lambda: watched[0]() is None)
    assert not two.done()
    kit.go_on()
    assert kit.outcome(two) is watched[1]()


def test_code_behind_the_last_yield_runs(kit: Kit, decorate: Callable[..., Any]) -> None:
    ended: list[bool] = []

    def function(items: list[int]) -> Iterator[int]:
        yield from items
        ended.append(True)

    assert answers(kit, decorate(function, batch_size=2, timeout=None), 1, 2) == [1, 2]
    assert ended == [True]  # since answers() closes, which waits for it


# Too few


def test_generator_that_ends_early_fails_the_callers_that_still_wait(kit: Kit, decorate: Callable[..., Any]) -> None:
    def function(items: list[int]) -> Iterator[str]:
        yield "x"

    one, two, three = answers(kit, decorate(function, batch_size=3, timeout=None), 1, 2, 3)
    assert one == "x"
    assert type(two) is type(three) is ResultCountError
    expected = "function() returned 1 result for 3 items; it must return one result per item, in the same order"
    assert str(two) == str(three) == expected


@pytest.mark.parametrize("error", [ValueError, SystemExit, GeneratorExit])
def test_generator_that_raises_fails_the_callers_that_still_wait(
    kit: Kit, decorate: Callable[..., Any], error: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    def function(_: list[int]) -> Iterator[str]:
        yield "x"
        raise error("no")

    one, two, three = answers(kit, decorate(function, batch_size=3, timeout=None), 1, 2, 3)
    assert one == "x"
    if error is ValueError:
        assert repr(two) == repr(three) == "ValueError('no')"
    else:
        assert type(two) is type(three) is BatchError
    assert not caplog.records  # since they were told


# Too many, and too late


def test_one_result_too_many_is_logged_and_no_more_are_asked_for(kit: Kit, caplog: pytest.LogCaptureFixture) -> None:
    results = iter("uvwxyz")
    assert kit.answers(lambda _: results, 1, 2) == ["u", "v"]
    assert [record.getMessage() for record in caplog.records] == [
        "<lambda>() yielded more results than the 2 items it was given"
    ]
    assert caplog.records[0].name == "batchify"
    assert not caplog.records[0].exc_info  # else it would end in "NoneType: None"
    assert list(results) == ["x", "y", "z"]


def test_generator_that_yields_one_result_too_many_is_closed(
    kit: Kit, decorate: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    ended: list[bool] = []

    def function(items: list[int]) -> Iterator[int]:
        try:
            yield from items
            yield 3
        finally:
            ended.append(True)

    assert answers(kit, decorate(function, batch_size=2, timeout=None), 1, 2) == [1, 2]
    kit.until(lambda: ended == [True])
    (record,) = caplog.records
    assert record.name == "batchify"
    assert record.getMessage() == "function() yielded more results than the 2 items it was given"


def test_error_behind_the_last_yield_is_logged(
    kit: Kit, decorate: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    ended: list[bool] = []

    def function(items: list[int]) -> Iterator[int]:
        try:
            yield from items
            raise ValueError("no")
        finally:
            ended.append(True)

    assert answers(kit, decorate(function, batch_size=2, timeout=None), 1, 2) == [1, 2]
    assert ended == [True]
    (record,) = caplog.records
    assert record.name == "batchify"
    assert record.getMessage() == "function() raised after its last result"
    assert record.exc_info is not None
    assert record.exc_info[0] is ValueError


def test_exit_behind_the_last_yield_is_logged(kit: Kit, caplog: pytest.LogCaptureFixture) -> None:
    def function(items: list[int]) -> Iterator[int]:
        yield from items
        raise SystemExit

    assert kit.answers(function, 1, 2) == [1, 2]
    (record,) = caplog.records
    assert record.getMessage() == "function() raised after its last result"
    assert record.exc_info is not None
    assert record.exc_info[0] is SystemExit


@pytest.mark.parametrize("is_asynchronous", [False, True])
def test_generator_that_a_coroutine_returns_is_read(is_asynchronous: bool) -> None:
    async def asynchronous(items: list[int]) -> AsyncIterator[int]:
        for item in items:
            yield item * 2

    @batched(batch_size=2, timeout=None)
    async def function(items: list[int]) -> Any:
        return asynchronous(items) if is_asynchronous else (item * 2 for item in items)

    kit = Coroutines()
    assert answers(kit, function, 1, 2) == [2, 4]
    kit.end()
