"""How do coroutines wait? `async def` batch functions, on a loop whose clock is moved by hand."""

import asyncio
import contextvars
import gc
import inspect
import sys
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator
from contextlib import suppress
from types import FrameType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchify import BatchedCoroutineFunction, BatchError, ClosedError, MissingResultError, ResultCountError
from batchify._asyncio import LoopBatch, LoopFlusher
from batchify._buffer import Buffer
from batchify._stats import Tally

from .tools import batched as batched_untyped
from .tools import in_threads, run_script

batched: Callable[..., Callable[[Any], BatchedCoroutineFunction[Any, Any]]] = batched_untyped  # type: ignore[assignment]


class HandLoop(asyncio.SelectorEventLoop):
    """A loop on whose clock only `move()` lets time go by."""

    moment = 0.0

    def time(self) -> float:
        return self.moment

    def timers(self) -> int:
        return sum(not handle.cancelled() for handle in self._scheduled)  # type: ignore[attr-defined]


def run(main: Coroutine[Any, Any, Any]) -> Any:
    with asyncio.Runner(loop_factory=HandLoop) as runner:
        return runner.run(main)


def here() -> HandLoop:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, HandLoop)
    return loop


async def settle() -> None:
    """Let the loop turn until all that can happen now has happened."""
    for _ in range(20):
        await asyncio.sleep(0)


async def move(seconds: float) -> None:
    here().moment += seconds
    await settle()


def tasks(calls: Iterable[Coroutine[Any, Any, Any]]) -> list["asyncio.Task[Any]"]:
    return [asyncio.get_running_loop().create_task(call) for call in calls]


async def outcomes(awaitables: Iterable[Any]) -> list[Any]:
    return list(await asyncio.gather(*awaitables, return_exceptions=True))


async def together(*awaitables: Any) -> list[Any]:
    return list(await asyncio.gather(*awaitables))


class Gated:
    """An `async def` list function that stops in each call until it is let on, and remembers its batches."""

    def __init__(self) -> None:
        self.batches: list[list[Any]] = []
        self.let_on = asyncio.Semaphore(0)
        self.running = self.most = 0

    async def __call__(self, items: list[Any]) -> Any:
        self.batches.append(list(items))
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await self.let_on.acquire()
            return [-item for item in items]
        finally:
            self.running -= 1

    async def go_on(self, batches: int = 1) -> None:
        for _ in range(batches):
            self.let_on.release()
        await settle()


async def negate(items: list[int]) -> list[int]:
    return [-item for item in items]


@pytest.fixture(autouse=True)
def no_noise(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """No "never retrieved", no "was destroyed", no slow callback: asyncio logs nothing."""
    yield
    gc.collect()
    logged = caplog.get_records("call") + caplog.get_records("teardown")
    assert [record for record in logged if record.name == "asyncio"] == []


# Which items form a batch, and when


def test_a_full_batch_does_not_wait() -> None:
    async def main() -> None:
        assert await together(*map(f, range(8))) == [-item for item in range(8)]

    f = batched(batch_size=4, timeout=None)(negate)
    run(main())
    assert (f.stats.sizes, f.stats.reasons) == ({4: 2}, {"full": 2})


@pytest.mark.parametrize("submitted", [False, True], ids=["called", "submitted"])
def test_the_oldest_item_never_waits_past_its_deadline(submitted: bool) -> None:
    async def passed(item: int) -> Any:
        future: Any = f.submit(item) if submitted else asyncio.ensure_future(f(item))
        await settle()
        return future

    async def main() -> None:
        first = await passed(1)
        await move(0.75)
        second = await passed(2)
        await move(0.125)
        assert gated.batches == []
        await move(0.125)
        assert gated.batches == [[1, 2]]
        await gated.go_on()
        assert await together(first, second) == [-1, -2]

    gated = Gated()
    f = batched(batch_size=9, timeout=1.0)(gated)
    run(main())
    assert (f.stats.reasons, f.stats.waited, f.stats.longest_wait) == ({"timeout": 1}, 1.25, 1.0)


def test_what_is_left_over_keeps_its_time_of_arrival() -> None:
    async def main() -> None:
        futures = [f.submit(item) for item in (1, 2)]
        await settle()
        futures.append(f.submit(3))
        await move(0.5)
        futures.append(f.submit(4))
        futures.append(f.submit(5))
        await gated.go_on()
        assert gated.batches == [[1, 2], [3, 4]]
        await gated.go_on()
        await move(0.75)
        assert gated.batches == [[1, 2], [3, 4]]
        await move(0.25)
        assert gated.batches == [[1, 2], [3, 4], [5]]
        await gated.go_on()
        assert await together(*futures) == [-1, -2, -3, -4, -5]

    gated = Gated()
    f = batched(batch_size=2, timeout=1.0)(gated)
    run(main())


def test_a_timer_of_an_earlier_batch_does_not_cut_the_next_one() -> None:
    async def main() -> None:
        first = f.submit(1)
        await move(0.5)
        second = f.submit(2)
        await settle()
        assert await together(first, second) == [-1, -2]
        third = f.submit(3)
        await move(0.75)
        assert not third.done()
        await move(0.25)
        assert third.result() == -3

    run(main())


def test_a_timer_may_be_a_little_early() -> None:
    async def main() -> None:
        here()._clock_resolution = 0.01  # type: ignore[attr-defined]  # as uvloop, which counts in milliseconds
        future = f.submit(1)
        await move(0.995)
        assert future.result() == -1

    run(main())


f = batched(batch_size=2, timeout=1.0)(negate)  # used by several tests, in as many loops


def test_with_timeout_0_those_of_one_turn_share_a_batch() -> None:
    async def main() -> None:
        assert await together(*map(f, range(20))) == [-item for item in range(20)]

    f = batched(batch_size=64)(negate)
    run(main())
    assert f.stats.sizes == {20: 1}


def test_a_batch_is_cut_as_late_as_can_be() -> None:
    async def main() -> None:
        futures = []
        for item in range(20):
            futures.append(f.submit(item))
            await move(0.01)
            assert (here().timers(), len(our_tasks())) == (0, 1)
        assert gated.batches == [[0]]
        await gated.go_on(2)
        assert gated.batches == [[0], list(range(1, 20))]
        assert await together(*futures) == [-item for item in range(20)]

    gated = Gated()
    f = batched(batch_size=64)(gated)
    run(main())


def test_callers_just_answered_join_the_next_batch() -> None:
    async def caller(items: list[int]) -> None:
        for item in items:
            assert await f(item) == -item

    async def main() -> None:
        await together(*(caller([caller_, -caller_, 7]) for caller_ in range(6)))

    f = batched(batch_size=4)(negate)
    run(main())
    assert set(f.stats.sizes) <= {2, 4}
    assert f.stats.sizes[4] >= 3


def test_the_function_never_runs_twice_at_once() -> None:
    async def main() -> None:
        futures = [f.submit(item) for item in range(20)]
        await settle()
        for _ in range(10):
            assert gated.running == 1
            await gated.go_on()
        assert await together(*futures) == [-item for item in range(20)]

    gated = Gated()
    f = batched(batch_size=2)(gated)
    run(main())
    assert gated.most == 1


@pytest.mark.thread_unsafe(reason="counts threads")
def test_one_timer_for_an_open_batch_and_none_without() -> None:
    async def main() -> None:
        for item in range(3):
            for task in (futures := [f.submit(each) for each in range(5)]):
                assert not task.done()
            await settle()
            assert here().timers() == 1
            await move(0.5)
            futures += [f.submit(each) for each in range(5, 10 + item)]
            await settle()
            assert (here().timers(), len(f.stats.sizes)) == (item > 0, 1 + bool(item > 1))
            await move(1.0)
            assert all(future.done() for future in futures)
            assert here().timers() == 0

    f = batched(batch_size=10, timeout=1.0)(negate)
    threads = threading.active_count()
    run(main())
    assert threading.active_count() == threads


def test_a_change_sets_no_timer_where_nothing_waits() -> None:
    async def main() -> None:
        assert await f(1) == -1
        f.timeout = 2.0
        await settle()
        assert here().timers() == 0

    f = batched(batch_size=2)(negate)
    run(main())


def test_while_a_batch_runs_no_timer_is_set() -> None:
    async def main() -> None:
        futures = [f.submit(1), f.submit(2)]
        await settle()
        futures.append(f.submit(3))
        f.timeout = 2.0
        assert here().timers() == 0
        futures.pop().cancel()
        futures.append(f.submit(3))
        assert here().timers() == 0
        await gated.go_on(1)
        assert here().timers() == 1
        await move(2.0)
        await gated.go_on(1)
        assert await together(*futures) == [-1, -2, -3]

    gated = Gated()
    f = batched(batch_size=2, timeout=1.0)(gated)
    run(main())


def test_a_batch_from_inside_sets_no_timer_while_the_outer_one_runs() -> None:
    async def function(items: list[int]) -> list[int]:
        if items == [0, 1]:
            go_on.set()
            await settle()
            assert f.stats.pending == 1
            assert await f(2) == 2
            assert (f.stats.pending, here().timers()) == (1, 0)
        return items

    async def main() -> None:
        waiting = [f.submit(0), f.submit(1)]
        await go_on.wait()
        waiting.append(f.submit(3))
        assert await together(*waiting[:2]) == [0, 1]
        await move(1.0)
        assert waiting[2].result() == 3

    go_on = asyncio.Event()
    f = batched(batch_size=2, timeout=1.0)(function)
    run(main())
    assert f.stats.reasons == {"full": 1, "nested": 1, "timeout": 1}


def test_who_leaves_a_full_batch_before_it_is_taken_leaves_the_others_their_time() -> None:
    async def main() -> None:
        first, second = f.submit(1), f.submit(2)
        second.cancel()
        await settle()
        assert not first.done()
        await move(1.0)
        assert first.result() == -1

    f = batched(batch_size=2, timeout=1.0)(negate)
    run(main())
    assert f.stats.reasons == {"timeout": 1}


def test_timeout_none_waits_for_a_full_batch_or_flush() -> None:
    async def main() -> None:
        first = f.submit(1)
        await move(1e9)
        assert here().timers() == 0
        f.flush()
        await move(1.0)
        second = f.submit(2)
        await settle()
        assert (first.result(), second.done()) == (-1, False)
        second.cancel()

    f = batched(batch_size=2, timeout=None)(negate)
    run(main())
    assert f.stats.reasons == {"flush": 1}


@pytest.mark.parametrize("from_a_thread", [False, True])
@pytest.mark.parametrize("change", ["batch_size", "timeout", "flush"])
def test_what_waits_heeds_a_change_at_once(change: str, from_a_thread: bool) -> None:
    def alter() -> None:
        if change == "batch_size":
            f.batch_size = 3
        elif change == "timeout":
            f.timeout = 0.75
        else:
            f.flush()

    async def main() -> None:
        futures = [f.submit(item) for item in range(3)]
        await move(0.5)
        if from_a_thread:
            await asyncio.to_thread(alter)
        else:
            alter()
            assert here().timers() <= 1
        await move(0.25)
        assert await together(*futures) == [0, -1, -2]

    f = batched(batch_size=9, timeout=1e6)(negate)
    run(main())
    assert (f.batch_size, f.timeout) == (3 if change == "batch_size" else 9, 0.75 if change == "timeout" else 1e6)


def test_a_bad_option_is_refused_and_changes_nothing() -> None:
    f = batched(batch_size=2)(negate)
    with pytest.raises(ValueError, match=r"^negate\(\): batch_size must be at least 1, got 0$"):
        f.batch_size = 0
    with pytest.raises(ValueError, match=r"^negate\(\): timeout must be at least 0 and finite"):
        f.timeout = float("nan")
    assert (f.batch_size, f.timeout) == (2, 0.0)


# What each caller gets


@settings(deadline=None)
@given(
    st.lists(st.integers()), st.integers(1, 5), st.sampled_from([0.0, None]), st.sampled_from(["call", "submit", "map"])
)
def test_every_caller_gets_its_own_result_in_order(
    items: list[int], size: int, timeout: float | None, how: str
) -> None:
    async def main() -> Any:
        if how == "map":
            return [result async for result in f.map(items)]
        awaitables = [f(item) if how == "call" else f.submit(item) for item in items]
        (done,) = tasks([together(*awaitables)])
        await settle()
        f.flush()
        return await done

    f = batched(batch_size=size, timeout=timeout)(negate)
    assert run(main()) == [-item for item in items]
    assert all(each <= size for each in f.stats.sizes)
    assert f.stats.answered == f.stats.accepted == len(items)


def returns(value: Any) -> BatchedCoroutineFunction[Any, Any]:
    async def function(items: list[Any]) -> Any:
        return value(items) if callable(value) else value

    return batched(batch_size=2, timeout=None)(function)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (lambda items: tuple(items), [1, 2]),
        (lambda items: {2: "two", 1: "one"}, ["one", "two"]),
        (lambda items: map(str, items), ["1", "2"]),
        (lambda items: dict.fromkeys(items).keys(), [1, 2]),
    ],
)
def test_the_function_may_return_what_has_an_order(value: Any, expected: list[Any]) -> None:
    assert run(outcomes(map(returns(value), [1, 2]))) == expected


def test_an_exception_among_the_results_is_its_callers_alone() -> None:
    one, two = run(outcomes(map(returns([KeyError("one"), 2]), [1, 2])))
    assert (repr(one), two) == ("KeyError('one')", 2)


def test_a_key_that_is_missing_is_its_callers_alone() -> None:
    one, two = run(outcomes(map(returns({2: "two"}), [1, 2])))
    assert (type(one), two) == (MissingResultError, "two")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([1], "function() returned 1 result for 2 items; it must return one result per item, in the same order"),
        (
            None,
            "function() returned None; it must return one result per item, in the same order: "
            "a list or other sequence, a mapping from item to result, or an iterator, asynchronous or not",
        ),
    ],
)
def test_what_cannot_be_results_fails_every_caller(value: Any, message: str) -> None:
    one, two = run(outcomes(map(returns(value), [1, 2])))
    assert type(one) is type(two) is (TypeError if value is None else ResultCountError)
    assert str(one) == str(two) == message


def test_a_yielded_result_is_delivered_at_once() -> None:
    ended = []

    async def main() -> None:
        go_on = asyncio.Event()

        @batched(batch_size=2, timeout=None)
        async def f(items: list[int]) -> AsyncIterator[int]:
            yield -items[0]
            await go_on.wait()
            yield -items[1]
            ended.append(True)

        one, two = f.submit(1), f.submit(2)
        await settle()
        assert (one.done(), two.done(), f.stats.running, f.stats.in_flight) == (True, False, 1, 1)
        go_on.set()
        assert [await one, await two] == [-1, -2]

    run(main())
    assert ended == [True]


def test_a_batch_that_yields_makes_room_for_the_next_one_after_its_last_result() -> None:
    calls: list[list[int]] = []
    go_on = asyncio.Event()

    async def function(items: list[int]) -> AsyncIterator[int]:
        calls.append(items)
        yield -items[0]
        await go_on.wait()
        yield -items[1]

    async def main() -> None:
        futures = [f.submit(item) for item in range(4)]
        assert await futures[0] == 0
        await settle()
        assert calls == [[0, 1]]
        go_on.set()
        assert await together(*futures) == [0, -1, -2, -3]

    f = batched(batch_size=2)(function)
    run(main())
    assert calls == [[0, 1], [2, 3]]


def test_a_yielded_result_is_not_kept_until_the_next_one() -> None:
    class Thing:
        pass

    async def function(items: list[int]) -> AsyncIterator[Thing]:
        yield Thing()
        await go_on.wait()
        yield Thing()

    async def main() -> None:
        one, two = f.submit(1), f.submit(2)
        kept = weakref.ref(await one)
        del one
        await settle()
        assert kept() is None
        go_on.set()
        await two

    go_on = asyncio.Event()
    f = batched(batch_size=2, timeout=None)(function)
    run(main())


def test_a_generator_that_ends_early_fails_those_still_waiting() -> None:
    @batched(batch_size=3, timeout=None)
    async def f(items: list[int]) -> AsyncIterator[int]:
        yield 1

    one, *others = run(outcomes(map(f, range(3))))
    assert one == 1
    assert {str(error) for error in others} == {
        "f() returned 1 result for 3 items; it must return one result per item, in the same order"
    }


def test_a_generator_that_raises_fails_those_still_waiting() -> None:
    @batched(batch_size=3, timeout=None)
    async def f(items: list[int]) -> AsyncIterator[int]:
        yield 1
        raise ValueError("no")

    assert list(map(repr, run(outcomes(map(f, range(3)))))) == ["1", "ValueError('no')", "ValueError('no')"]


@pytest.mark.parametrize("then", ["yield", "raise"])
def test_what_a_generator_does_after_its_last_result_is_logged(then: str, caplog: pytest.LogCaptureFixture) -> None:
    closed = []

    @batched(batch_size=2, timeout=None)
    async def f(items: list[int]) -> AsyncIterator[int]:
        try:
            for item in items:
                yield item
            if then == "raise":
                raise ValueError("no")
            yield 3
        finally:
            closed.append(True)

    async def main() -> None:
        assert await outcomes(map(f, [1, 2])) == [1, 2]
        await settle()
        assert closed == [True]

    run(main())
    (record,) = caplog.records
    assert record.name == "batchify"
    assert record.getMessage() == (
        "f() yielded more results than the 2 items it was given"
        if then == "yield"
        else "f() raised after its last result"
    )


# Errors


@pytest.mark.parametrize("error", [ValueError("no"), ExceptionGroup("no", [ValueError("one")])])
def test_each_caller_gets_its_own_copy_of_an_error(error: Exception) -> None:
    async def function(items: list[int]) -> list[int]:
        raise error

    f = batched(batch_size=3, timeout=None)(function)
    errors = run(outcomes(call(1) for call in (f, f.submit, f.aio)))
    assert [type(each) for each in errors] == [type(error)] * 3
    assert [each.__cause__ for each in errors] == [error] * 3
    assert len({id(each) for each in errors}) == 3


@pytest.mark.parametrize("error", [asyncio.CancelledError, KeyboardInterrupt, SystemExit, GeneratorExit, BaseException])
def test_what_is_no_exception_becomes_a_batch_error_and_the_loop_lives_on(error: type[BaseException]) -> None:
    async def function(items: list[int]) -> list[int]:
        if items[0] == 0:
            raise error
        return items

    async def main() -> None:
        errors = await outcomes(call(0) for call in (f, f.submit))
        assert [(type(each), type(each.__cause__)) for each in errors] == [(BatchError, error)] * 2
        assert await together(f(2), f(3)) == [2, 3]

    f = batched(batch_size=2, timeout=None)(function)
    run(main())


def test_stop_iteration_is_a_runtime_error_as_in_any_coroutine() -> None:
    async def function(items: list[int]) -> list[int]:
        raise StopIteration

    f = batched(batch_size=2, timeout=None)(function)
    errors = run(outcomes(call(1) for call in (f, f.submit)))
    assert list(map(repr, errors)) == ["RuntimeError('coroutine raised StopIteration')"] * 2


@pytest.mark.parametrize("how", ["raise", "return", "yield"])
def test_an_error_with_a_hostile_class_reaches_its_callers(how: str) -> None:
    class Hostile(Exception):
        @property  # type: ignore[misc]
        def __class__(self) -> type:
            raise SystemExit

    async def function(items: list[int]) -> list[Any]:
        if how == "raise":
            raise Hostile
        return [Hostile() for _ in items]

    async def generator(items: list[int]) -> AsyncIterator[Any]:
        for _ in items:
            yield Hostile()

    f = batched(batch_size=2, timeout=None)(generator if how == "yield" else function)

    async def main() -> None:
        waiting = tasks(map(f, [1, 2]))
        await settle()
        assert [type(task.exception()) for task in waiting] == [Hostile] * 2

    run(main())


def test_an_error_that_nobody_asks_for_makes_no_noise() -> None:
    async def function(items: list[int]) -> list[int]:
        raise ValueError("no")

    async def main() -> None:
        f.submit(1)
        f.submit(2)
        await settle()

    f = batched(batch_size=2, timeout=None)(function)
    run(main())
    assert f.stats.failed == 2


# Leaving


@pytest.mark.parametrize("how", ["task", "future"])
@pytest.mark.parametrize("who", [[0], [1], [2], [0, 1, 2]])
def test_who_leaves_while_waiting_is_taken_out(who: list[int], how: str) -> None:
    async def main() -> None:
        waiting = tasks(map(f, range(3))) if how == "task" else [f.submit(item) for item in range(3)]
        await settle()
        for number in who:
            waiting[number].cancel()
        await settle()
        assert (f.stats.pending, f.stats.cancelled) == (3 - len(who), len(who))
        assert here().timers() == bool(f.stats.pending)
        await move(1.0)
        for number, outcome in enumerate(await outcomes(waiting)):
            assert isinstance(outcome, asyncio.CancelledError) if number in who else outcome == -number

    batches: list[list[int]] = []

    async def function(items: list[int]) -> list[int]:
        batches.append(list(items))
        return [-item for item in items]

    f = batched(batch_size=9, timeout=1.0)(function)
    run(main())
    left = [number for number in range(3) if number not in who]
    assert batches == ([left] if left else [])


def test_who_comes_after_the_last_one_left_waits_no_longer_than_its_timeout() -> None:
    async def main() -> None:
        first = f.submit(1)
        await move(0.5)
        first.cancel()
        second = f.submit(2)
        await move(1.0)
        assert second.result() == -2

    f = batched(batch_size=9, timeout=1.0)(negate)
    run(main())


def test_if_the_oldest_leaves_at_its_deadline_the_next_one_is_still_answered_at_its_own() -> None:
    async def main() -> None:
        first = f.submit(1)
        await move(0.5)
        second = f.submit(2)
        here().moment = 1.0
        while not our_tasks():
            await asyncio.sleep(0)
        first.cancel()
        await move(0.25)
        assert not second.done()
        await move(0.25)
        assert second.result() == -2

    f = batched(batch_size=9, timeout=1.0)(negate)
    run(main())


@pytest.mark.parametrize("how", ["task", "future"])
@pytest.mark.parametrize("who", [[0], [2], [0, 1, 2]])
def test_who_leaves_a_running_batch_does_not_disturb_it(who: list[int], how: str) -> None:
    async def main() -> None:
        waiting = tasks(map(f, range(3))) if how == "task" else [f.submit(item) for item in range(3)]
        await settle()
        for number in who:
            waiting[number].cancel()
        await gated.go_on()
        for number, outcome in enumerate(await outcomes(waiting)):
            assert isinstance(outcome, asyncio.CancelledError) if number in who else outcome == -number
        assert f.stats.answered == 3

    gated = Gated()
    f = batched(batch_size=3, timeout=None)(gated)
    run(main())


def test_a_future_cancelled_in_a_running_batch_is_still_looked_up_by_its_item() -> None:
    async def main() -> None:
        futures = [f.submit(item) for item in range(2)]
        await settle()
        futures[0].cancel()
        await gated.go_on()
        assert await futures[1] == -1
        assert (f.stats.answered, f.stats.failed) == (2, 0)

    gated = Gated()

    async def function(items: list[int]) -> dict[int, int]:
        return dict(zip(items, await gated(items), strict=True))

    f = batched(batch_size=2, timeout=None)(function)
    run(main())


def test_a_future_cancelled_after_its_answer_keeps_it() -> None:
    async def main() -> None:
        future = f.submit(1)
        await move(1.0)
        assert future.cancel() is False
        assert await future == -1

    run(main())


def test_a_caller_cancelled_in_the_turn_of_its_answer_disturbs_nobody() -> None:
    async def main() -> None:
        one, two = tasks(map(f, [1, 2]))
        await settle()
        gated.let_on.release()
        while not f.stats.answered:
            await asyncio.sleep(0)
        one.cancel()
        assert [str(outcome) for outcome in await outcomes([one, two])] == ["", "-2"]

    gated = Gated()
    f = batched(batch_size=2, timeout=None)(gated)
    run(main())


def test_the_ways_to_await_take_it() -> None:
    async def main() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await f(1)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(f(1), 0)
        assert f.stats.pending == 0
        f.batch_size = 1
        async with asyncio.TaskGroup() as group:
            task = group.create_task(f(2))
        assert task.result() == -2
        assert await asyncio.wait_for(f.submit(3), 5) == -3
        assert await asyncio.shield(f(4)) == -4
        done, _ = await asyncio.wait([f.submit(5)])
        assert [future.result() for future in done] == [-5]

    f = batched(batch_size=9, timeout=None)(negate)
    run(main())


def test_a_task_group_that_fails_takes_its_items_along() -> None:
    async def fail() -> None:
        raise ValueError

    async def main() -> None:
        async def group_that_fails() -> None:
            async with asyncio.TaskGroup() as group:
                for item in (2, 3):
                    group.create_task(f(item))
                group.create_task(fail())

        stranger = f.submit(1)
        with pytest.raises(ExceptionGroup):
            await group_that_fails()
        assert f.stats.pending == 1
        f.flush()
        assert await stranger == -1

    f = batched(batch_size=9, timeout=None)(negate)
    run(main())
    assert f.stats.sizes == {1: 1}


def test_a_coroutine_that_is_dropped_leaves_nothing_behind() -> None:
    async def main() -> None:
        coroutine = f(1)
        coroutine.send(None)
        assert f.stats.pending == 1
        coroutine.close()
        assert (f.stats.pending, here().timers()) == (0, 0)
        f(2).close()

    f = batched(batch_size=9, timeout=1.0)(negate)
    run(main())


# Our own task is cancelled


def our_tasks() -> list["asyncio.Task[Any]"]:
    return [task for task in asyncio.all_tasks() if task.get_name().startswith("batchify")]


@pytest.mark.parametrize("begun", [False, True])
def test_a_batch_whose_task_is_cancelled_fails_and_the_next_one_works(begun: bool) -> None:
    async def main() -> None:
        waiting = tasks(map(f, [1, 2, 3]))
        await asyncio.sleep(0)
        if begun:
            await settle()
        (ours,) = our_tasks()
        assert ours.get_name() == "batchify task of Gated()"
        ours.cancel()
        await settle()
        await gated.go_on(9)
        found = await outcomes(waiting)
        if begun:
            assert [type(outcome) for outcome in found[:2]] == [BatchError] * 2
            assert isinstance(found[0].__cause__, asyncio.CancelledError)
        else:
            assert found[:2] == [-1, -2]
        assert found[2] == -3

    gated = Gated()
    f = batched(batch_size=2)(gated)
    run(main())


def test_a_function_may_refuse_to_be_cancelled() -> None:
    async def function(items: list[int]) -> list[int]:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return items
        raise AssertionError

    async def main() -> None:
        future = f.submit(1)
        await settle()
        our_tasks()[0].cancel()
        assert await future == 1

    f = batched(batch_size=2)(function)
    run(main())


@pytest.mark.parametrize("how", ["call", "submit"])
def test_a_cleanup_that_calls_while_the_loop_shuts_down_is_answered(how: str) -> None:
    answers = []

    async def cleanup() -> None:
        try:
            await f(1)
        finally:
            answers.append(await (f(2) if how == "call" else f.submit(2)))

    async def main() -> None:
        tasks([cleanup(), cleanup()])
        await settle()  # asyncio.run() now cancels all tasks, ours among them

    calls = 0

    async def function(items: list[int]) -> list[int]:
        nonlocal calls
        calls += 1
        if calls == 1:
            await asyncio.Event().wait()
        return [-item for item in items]

    f = batched(batch_size=2)(function)
    run(main())
    assert answers == [-2, -2]


# Loops


def test_one_loop_after_the_other() -> None:
    f = batched(batch_size=4)(negate)
    for item in range(5):
        assert asyncio.run(f(item)) == -item
    assert f.stats.answered == 5


def test_many_loops_at_once() -> None:
    async def main(start: int) -> list[int]:
        found = await together(*map(f, range(start, start + 50)))
        return found + [result async for result in f.map(range(start, start + 50))]

    f = batched(batch_size=8)(negate)
    found = in_threads(lambda start: asyncio.run(main(start)), range(0, 400, 50))
    assert found == [[-item for item in range(start, start + 50)] * 2 for start in range(0, 400, 50)]
    assert (f.stats.answered, f.stats.pending, f.stats.in_flight) == (800, 0, 0)


def test_loops_do_not_share_batches() -> None:
    loops: set[int] = set()

    async def function(items: list[int]) -> list[int]:
        assert set(items) == {id(asyncio.get_running_loop())}
        loops.update(items)
        return items

    async def main(_: int) -> None:
        item = id(asyncio.get_running_loop())
        barrier.wait()
        assert await together(*(f(item) for _ in range(5))) == [item] * 5
        barrier.wait()  # else the address may be used again

    barrier = threading.Barrier(4)
    f = batched(batch_size=5, timeout=None)(function)
    assert in_threads(lambda number: asyncio.run(main(number)), range(4)) == [None] * 4
    assert len(loops) == 4


def test_a_loop_is_not_kept() -> None:
    f = batched(batch_size=4, timeout=60.0)(negate)
    loops = []

    async def main() -> None:
        loops.append(weakref.ref(asyncio.get_running_loop()))
        f.submit(1)
        await f.submit(2) if len(loops) % 2 else f.flush()

    for _ in range(3):
        f.batch_size = 2
        asyncio.run(main())
    asyncio.run(f(3)) if f.timeout == 0 else None
    gc.collect()
    assert [loop() for loop in loops] == [None] * 3


def test_what_waits_in_a_loop_that_is_closed_is_forgotten_with_it() -> None:
    f = batched(batch_size=4, timeout=60.0)(negate)
    loop = asyncio.new_event_loop()

    async def start() -> Any:
        return f.submit(1)

    future = loop.run_until_complete(start())
    assert f.stats.pending == 1
    loop.close()
    assert (f.stats.pending, f.stats.cancelled) == (0, 1)
    f.timeout = 0.0
    f.flush()
    assert asyncio.run(f(2)) == -2
    assert (f.stats.pending, f.stats.cancelled, f.stats.answered) == (0, 1, 1)
    loop_reference = weakref.ref(loop)
    del loop, future
    gc.collect()
    assert loop_reference() is None


def test_the_parts_of_a_batch_that_wait_in_a_loop_that_is_closed_have_failed() -> None:
    calls: list[list[int]] = []

    async def function(items: list[int]) -> list[int]:
        calls.append(items)
        if len(calls) == 1:
            raise ValueError
        if len(calls) == 2:
            await asyncio.Event().wait()
        return items

    async def start() -> None:
        for item in range(4):
            f.submit(item)
        await settle()

    f = batched(batch_size=4, isolate=True)(function)
    loop = asyncio.new_event_loop()
    loop.run_until_complete(start())
    assert calls == [[0, 1, 2, 3], [0, 1]]
    loop.close()
    assert (f.stats.accepted, f.stats.failed, f.stats.running) == (4, 2, 2)
    del loop
    gc.collect()
    assert (f.stats.accepted, f.stats.failed, f.stats.running, f.stats.in_flight) == (4, 4, 0, 0)
    assert asyncio.run(f(5)) == 5


def test_what_waits_in_a_loop_that_is_closed_is_not_kept_by_a_future_of_another_item() -> None:
    class Item:
        pass

    calls: list[int] = []

    async def function(items: list[Item]) -> list[Item]:
        calls.append(len(items))
        if len(calls) == 1:
            raise ValueError
        await asyncio.Event().wait()
        return items

    async def start() -> Any:
        items = [Item() for _ in range(5)]
        kept.extend(map(weakref.ref, items))
        future, *_ = [f.submit(item) for item in items]
        await settle()
        return future

    kept: list[weakref.ref[Item]] = []
    f = batched(batch_size=4, isolate=True)(function)
    loop = asyncio.new_event_loop()
    future = loop.run_until_complete(start())
    assert calls == [4, 2]
    loop.close()
    assert (f.stats.failed, f.stats.running, f.stats.cancelled) == (2, 2, 1)
    gc.collect()
    assert not future.done()
    assert [item() is not None for item in kept] == [True, True, False, False, False]


@pytest.mark.parametrize("how", ["stats", "flush", "call"])
def test_a_closed_loop_is_let_go_when_the_function_is_looked_at(how: str) -> None:
    async def start() -> None:
        f.submit(1)

    f = batched(batch_size=4, timeout=60.0)(negate)
    loop = asyncio.new_event_loop()
    loop.run_until_complete(start())
    loop.close()
    reference = weakref.ref(loop)
    del loop
    if how == "stats":
        assert f.stats.cancelled == 1
    elif how == "flush":
        f.flush()
    else:

        async def call() -> None:
            f.submit(2).cancel()

        asyncio.run(call())
    gc.collect()
    assert reference() is None


def test_a_loop_that_closes_just_now_disturbs_no_flush() -> None:
    class LyingLoop(HandLoop):
        lies = False

        def is_closed(self) -> bool:
            return not self.lies and super().is_closed()

    async def start() -> None:
        f.submit(1)

    f = batched(batch_size=4, timeout=60.0)(negate)
    loop = LyingLoop()
    loop.run_until_complete(start())
    loop.close()
    loop.lies = True
    f.flush()
    loop.lies = False


def test_a_loop_closed_in_the_middle_of_a_batch_is_silent_and_the_next_one_works() -> None:
    script = """if True:
        import asyncio, gc
        from batchify import batched

        @batched(batch_size=2)
        async def f(items):
            if items[0] == 1:
                await asyncio.Event().wait()
            return items

        @batched(batch_size=2)
        async def g(items):
            for item in items:
                yield item
                await asyncio.Event().wait()

        async def items():
            yield 0
            await asyncio.Event().wait()

        async def start():
            results = f.map(items())
            assert await anext(results) == 0
            futures.append(results)
            futures.extend([f.submit(1), f.submit(2), f.submit(3), g.submit(1), g.submit(2)])
            for future in futures[1:]:
                future.add_done_callback(print)
            for _ in range(10):
                await asyncio.sleep(0)

        futures = []
        loop = asyncio.new_event_loop()
        loop.run_until_complete(start())
        loop.close()
        futures.clear()
        gc.collect()
        assert asyncio.run(f(4)) == 4
        gc.collect()
        stats = f.stats
        assert (stats.pending, stats.cancelled, stats.answered, stats.failed) == (0, 1, 2, 2), stats
    """
    run_script(script, "-X", "dev", "-W", "error")


def test_a_batch_that_ends_when_its_loop_is_closed_begins_no_other_one() -> None:
    async def start() -> Any:
        futures.extend(f.submit(item) for item in range(3))
        await settle()
        return our_tasks()[0].get_coro()

    futures: list[Any] = []
    gated = Gated()
    f = batched(batch_size=2)(gated)
    loop = HandLoop()
    batch = loop.run_until_complete(start())
    loop.close()
    batch.close()
    assert gated.batches == [[0, 1]]
    assert [future.done() for future in futures] == [True, True, False]


@pytest.mark.parametrize("awaits", [0, 1, 2, 3])
def test_items_left_behind_by_asyncio_run_make_no_noise(awaits: int) -> None:
    script = f"""if True:
        import asyncio, gc
        from batchify import batched

        async def f(items):
            for _ in range({awaits}):
                await asyncio.sleep(0)
            return items

        async def main(function, number):
            for item in range(number):
                function.submit(item)
            for _ in range(number % 4):
                await asyncio.sleep(0)

        for number in range(1, 15):
            asyncio.run(main(batched(batch_size=1)(f), number))
            loop = asyncio.new_event_loop()
            loop.run_until_complete(main(batched(batch_size=1)(f), number))
            loop.close()
            gc.collect()
    """
    run_script(script, "-X", "dev", "-W", "error")


def test_a_generator_cancelled_after_its_last_result_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def function(items: list[int]) -> AsyncIterator[int]:
        for item in items:
            yield item
        await asyncio.Event().wait()

    assert run(batched(batch_size=1)(function)(1)) == 1
    assert caplog.records == []


def test_a_caller_destroyed_with_its_loop_takes_its_item_out() -> None:
    script = """if True:
        import asyncio, gc
        from batchify import batched

        @batched(batch_size=2, timeout=None)
        async def f(items):
            return items

        async def main():
            task = asyncio.create_task(f(1))
            task._log_destroy_pending = False
            await asyncio.sleep(0)
            assert f.stats.pending == 1

        loop = asyncio.new_event_loop()
        loop.run_until_complete(main())
        loop.close()
        del loop
        assert (f.stats.pending, f.stats.cancelled) == (0, 1)
        gc.collect()
        assert (f.stats.pending, f.stats.cancelled) == (0, 1)
    """
    run_script(script, "-X", "dev", "-W", "error")


# Calls from inside the function


@pytest.mark.parametrize("way", ["call", "submit", "gather", "task", "map", "async map"])
def test_a_call_from_inside_does_not_wait_for_itself(way: str) -> None:
    async def some(items: list[int]) -> AsyncIterator[int]:
        for item in items:
            yield item

    async def function(items: list[int]) -> list[int]:
        if not items[0]:
            return [0] * len(items)
        less = [item - 1 for item in items]
        if way == "call":
            return [1 + await f(item) for item in less]
        if way == "submit":
            return [1 + await f.submit(item) for item in less]
        if way == "gather":
            return [1 + result for result in await together(*map(f, less))]
        if way == "task":
            return [1 + await task for task in tasks(map(f, less))]
        return [1 + result async for result in f.map(less if way == "map" else some(less))]

    async def main() -> None:
        assert await together(f(3), f(3)) == [3, 3]

    f = batched(batch_size=2, timeout=None)(function)
    run(main())
    assert f.stats.reasons["nested"] >= 3
    assert f.stats.reasons["full"] == 1
    assert (f.stats.waited, f.stats.longest_wait) == (0.0, 0.0)


def test_functions_that_call_each_other_in_a_ring_do_not_wait_for_each_other() -> None:
    async def first(items: list[int]) -> list[int]:
        return [item and 1 + await g(item - 1) for item in items]

    async def second(items: list[int]) -> list[int]:
        return await together(*(third(item) for item in items))

    async def third(item: int) -> int:
        return item and 1 + await f(item - 1)

    f = batched(batch_size=4)(first)
    g = batched(batch_size=4)(second)

    async def main() -> None:
        assert await together(f(6), g(5), f(4)) == [6, 5, 4]

    run(main())


@pytest.mark.parametrize("to", ["another", "the same"])
def test_a_ring_is_seen_however_much_is_passed_on_meanwhile(to: str) -> None:
    passed = asyncio.Event()

    async def first(items: list[int]) -> list[int]:
        if items == [0]:
            return items
        future = g.submit(1)
        for item in range(200):
            await (other if to == "another" else g)(-item)
        passed.set()
        return [await future]

    async def second(items: list[int]) -> list[int]:
        if items != [1]:
            return items
        await passed.wait()
        return [await f(0) + items[0]]

    f, g = batched(batch_size=1)(first), batched(batch_size=1, concurrency=2)(second)
    other = batched(batch_size=1)(negate)
    assert run(f(9)) == 1


def test_a_call_into_a_ring_of_others_is_answered() -> None:
    go_on = asyncio.Event()

    async def one(items: list[int]) -> list[int]:
        if items == [0]:
            return await together(second(1))
        if items == [2]:
            await go_on.wait()
        return items

    async def two(items: list[int]) -> list[int]:
        return await together(first(2))

    async def three(items: list[int]) -> list[int]:
        return await together(first(3))

    async def main() -> None:
        ring, *_ = tasks([first(0)])
        await settle()
        outside, *_ = tasks([third(9)])
        await settle()
        go_on.set()
        assert await together(ring, outside) == [2, 3]

    first, second, third = (batched(batch_size=1)(each) for each in (one, two, three))
    run(main())


def test_closing_each_other_from_inside_ends() -> None:
    closes = asyncio.Event()

    async def first(items: list[int]) -> list[int]:
        closes.set()
        await g.aclose()
        return items

    async def second(items: list[int]) -> list[int]:
        await closes.wait()
        await settle()
        return [await f(item) for item in items]

    f = batched(batch_size=1)(first)
    g = batched(batch_size=1)(second)

    async def main() -> None:
        assert await together(f(1), g(2)) == [1, 2]

    run(main())


def test_calls_made_from_inside_are_not_kept() -> None:
    inner = batched(batch_size=1)(negate)
    kept: list[weakref.ref[Any]] = []

    class Item:
        def __neg__(self) -> "Item":
            return self

    async def function(items: list[int]) -> list[int]:
        for _ in range(500):
            item = Item()
            kept.append(weakref.ref(item))
            await inner(item)
            del item
            assert sum(each() is not None for each in kept[-200:]) < 100
        return items

    run(batched(batch_size=1)(function)(1))


def test_calls_made_from_inside_are_not_kept_after_many_had_to_wait() -> None:
    inner = batched(batch_size=200, timeout=None)(negate)
    kept: list[weakref.ref[Any]] = []

    class Item:
        def __neg__(self) -> "Item":
            return self

    def item() -> Item:
        made = Item()
        kept.append(weakref.ref(made))
        return made

    async def function(items: list[int]) -> list[int]:
        await together(*(inner.submit(item()) for _ in range(200)))
        inner.batch_size = 1
        for _ in range(500):
            await inner(item())
        assert sum(each() is not None for each in kept) < 300
        return items

    run(batched(batch_size=1)(function)(1))


def test_a_call_of_another_function_from_inside_joins_its_batch() -> None:
    inner = batched(batch_size=3, timeout=None)(negate)

    async def function(items: list[int]) -> list[int]:
        return await together(*map(inner, items))

    outer = batched(batch_size=2, timeout=None)(function)

    async def main() -> None:
        assert await together(outer(1), outer(2), inner(3)) == [-1, -2, -3]

    run(main())
    assert inner.stats.reasons == {"full": 1}


def test_a_call_from_inside_sets_no_timer_where_there_is_no_timeout() -> None:
    inner = batched(batch_size=9, timeout=None)(negate)

    async def function(items: list[int]) -> list[int]:
        future = inner.submit(1)
        assert here().timers() == 0
        inner.flush()
        return [await future]

    assert run(batched(batch_size=1)(function)(1)) == -1


def test_calls_from_inside_do_not_wait_past_the_deadline_of_the_first() -> None:
    inner = batched(batch_size=9, timeout=1.0)(negate)

    async def function(items: list[int]) -> list[Any]:
        first = inner.submit(1)
        await move(0.5)
        second = inner.submit(2)
        await move(0.5)
        return [(first.done(), second.done())]

    async def main() -> None:
        assert await batched(batch_size=1)(function)(1) == (True, True)

    run(main())


def test_a_task_that_outlives_its_batch_calls_like_any_other() -> None:
    left_behind: list[asyncio.Task[Any]] = []

    async def function(items: list[int]) -> list[int]:
        if items == [1]:
            f.batch_size = 2
            left_behind.extend(tasks([later()]))
        return items

    async def later() -> Any:
        await settle()
        return await f(2)

    async def main() -> None:
        assert await f(1) == 1
        while not f.stats.pending:
            await asyncio.sleep(0)
        assert await f(3) == 3
        assert await left_behind[0] == 2

    f = batched(batch_size=1, timeout=None)(function)
    run(main())
    assert f.stats.reasons == {"full": 2}


def test_a_call_that_was_given_up_inside_is_not_waited_for() -> None:
    go_on = asyncio.Event()

    async def first(items: list[int]) -> list[int]:
        if items == [1]:
            (task,) = tasks([g(0)])
            await settle()
            task.cancel()
            await settle()
            await go_on.wait()
        return items

    async def second(items: list[int]) -> list[int]:
        return [await f(item) for item in items]

    f = batched(batch_size=1)(first)
    g = batched(batch_size=2, timeout=None)(second)

    async def main() -> None:
        waiting = tasks([f(1)])
        for _ in range(4):
            await settle()
        g.batch_size = 1
        waiting += tasks([g(2)])
        await settle()
        assert (f.stats.pending, f.stats.running) == (1, 1)
        go_on.set()
        assert await together(*waiting) == [1, 2]

    run(main())
    assert f.stats.reasons == {"full": 2}


def test_a_close_that_was_given_up_inside_is_not_waited_for() -> None:
    given_up, go_on = asyncio.Event(), asyncio.Event()

    async def first(items: list[int]) -> list[int]:
        if items == [1]:
            (task,) = tasks([g.aclose()])
            await settle()
            task.cancel()
            await settle()
            given_up.set()
            await go_on.wait()
        return items

    async def second(items: list[int]) -> list[int]:
        await given_up.wait()
        return [await f(item) for item in items]

    f = batched(batch_size=1)(first)
    g = batched(batch_size=1)(second)

    async def main() -> None:
        waiting = tasks([g(2), f(1)])
        await given_up.wait()
        await settle()
        assert f.stats.pending == 1
        go_on.set()
        assert await together(*waiting) == [2, 1]

    run(main())
    assert f.stats.reasons == {"full": 2}


def test_a_task_that_outlives_its_batch_keeps_no_items() -> None:
    kept: list[weakref.ref[Any]] = []
    left_behind: list[asyncio.Task[Any]] = []

    class Item:
        pass

    async def function(items: list[Any]) -> list[Any]:
        if not left_behind:
            left_behind.extend(tasks([work()]))
        return [None for _ in items]

    async def work() -> None:
        await settle()
        for _ in range(100):
            item = Item()
            kept.append(weakref.ref(item))
            await f(item)
        item = Item()
        assert not any(each() for each in kept[:-1])

    async def main() -> None:
        await f(None)
        await left_behind[0]

    f = batched(batch_size=1)(function)
    run(main())


def test_a_task_that_outlives_its_batch_keeps_no_items_that_the_batch_passed_on() -> None:
    class Item:
        def __neg__(self) -> "Item":
            return self

    kept: list[weakref.ref[Any]] = []
    left_behind: list[asyncio.Task[Any]] = []
    inner = batched(batch_size=1)(negate)

    async def function(items: list[int]) -> list[int]:
        left_behind.extend(tasks([asyncio.Event().wait()]))
        item = Item()
        kept.append(weakref.ref(item))
        await inner(item)
        return items

    async def main() -> None:
        assert await batched(batch_size=1)(function)(1) == 1
        await settle()
        gc.collect()
        assert kept[0]() is None
        left_behind[0].cancel()

    run(main())


def test_a_nested_batch_whose_task_is_cancelled_before_it_begins_fails() -> None:
    async def function(items: list[int]) -> list[int]:
        if items == [1]:
            future = f.submit(2)
            for task in our_tasks():
                if task is not asyncio.current_task():
                    task.cancel()
            with pytest.raises(BatchError):
                await future
        return items

    f = batched(batch_size=1)(function)
    assert run(f(1)) == 1
    assert f.stats.reasons["nested"] == 1


# Ctrl-C


@pytest.mark.parametrize("nested", [False, True])
def test_ctrl_c_as_a_batch_begins_fails_it_and_is_not_lost(
    nested: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def interrupted(*_: object) -> None:
        monkeypatch.undo()
        raise KeyboardInterrupt

    async def function(items: list[int]) -> list[int]:
        if items == [1]:
            monkeypatch.setattr(LoopBatch, "run_async", interrupted)
            with pytest.raises(BatchError):
                await f(2)
        return items

    f = batched(batch_size=1)(function)
    if not nested:
        monkeypatch.setattr(LoopBatch, "run_async", interrupted)
    loop = HandLoop()
    caller = loop.create_task(f(1) if nested else f(2))
    with pytest.raises(KeyboardInterrupt):
        loop.run_until_complete(caller)
    if nested:
        assert loop.run_until_complete(caller) == 1
    else:
        with pytest.raises(BatchError):
            loop.run_until_complete(caller)
    assert loop.run_until_complete(f(3)) == 3
    loop.close()
    assert (f.stats.answered, f.stats.failed, f.stats.in_flight) == (1 + nested, 1, 0)
    del caller
    gc.collect()
    caplog.clear()  # asyncio tells of any task that Ctrl-C ended


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("method", ["report", "finish"])
def test_ctrl_c_as_a_batch_ends_leaves_nothing_of_it(
    method: str, nested: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    flushers: list[LoopFlusher] = []

    def interrupted(batch: LoopBatch, *_: object) -> None:
        monkeypatch.undo()
        flushers.append(batch._flusher)
        raise KeyboardInterrupt

    async def function(items: list[int]) -> list[int]:
        if items == [1]:
            monkeypatch.setattr(LoopBatch, method, interrupted)
            assert await f(2) == 2
        return items

    f = batched(batch_size=1, on_batch=lambda report: None)(function)
    if not nested:
        monkeypatch.setattr(LoopBatch, method, interrupted)
    loop = HandLoop()
    caller = loop.create_task(f(1) if nested else f(2))
    with pytest.raises(KeyboardInterrupt):
        loop.run_until_complete(caller)
    assert loop.run_until_complete(caller) == (1 if nested else 2)
    assert not flushers[0].batches
    loop.close()
    gc.collect()
    caplog.clear()  # asyncio tells of any task that Ctrl-C ended


def ctrl_c_once(monkeypatch: pytest.MonkeyPatch, kind: type, method: str) -> None:
    """Let Ctrl-C come in place of the next call of this method."""

    def interrupted(*_: object) -> None:
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr(kind, method, interrupted)


TAKING = [(Buffer, "take"), (LoopBatch, "__init__"), (Tally, "begin")]


@pytest.mark.parametrize("reason", ["full", "timeout"])
@pytest.mark.parametrize(("kind", "method"), TAKING)
def test_ctrl_c_as_a_batch_is_taken_is_not_lost(
    kind: type, method: str, reason: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def function(items: list[int]) -> list[int]:
        calls.append(items)
        if reason == "timeout" and len(calls) == 1:
            ctrl_c_once(monkeypatch, kind, method)
        return [-item for item in items]

    calls: list[list[int]] = []
    f = batched(batch_size=2)(function)
    if reason == "full":
        ctrl_c_once(monkeypatch, kind, method)
    loop = HandLoop()
    callers = [loop.create_task(f(item)) for item in range(3)]
    with pytest.raises(KeyboardInterrupt):
        loop.run_until_complete(callers[2])
    assert loop.run_until_complete(together(*callers)) == [0, -1, -2]
    loop.close()
    assert calls == [[0, 1], [2]]
    assert (f.stats.accepted, f.stats.answered, f.stats.in_flight) == (3, 3, 0)
    assert f.stats.reasons == {"full": 1, "timeout": 1}
    gc.collect()
    caplog.clear()  # asyncio tells of any task that Ctrl-C ended


@pytest.mark.parametrize(("kind", "method"), TAKING[1:])
def test_ctrl_c_as_a_part_is_taken_leaves_it_before_all_that_waits(
    kind: type, method: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def function(items: list[int]) -> list[int]:
        calls.append(items)
        if len(calls) == 1:
            ctrl_c_once(monkeypatch, kind, method)
            raise ValueError
        return [-item for item in items]

    calls: list[list[int]] = []
    f = batched(batch_size=4, isolate=True)(function)
    loop = HandLoop()
    callers = [loop.create_task(f(item)) for item in range(5)]
    with pytest.raises(KeyboardInterrupt):
        loop.run_until_complete(callers[4])
    assert loop.run_until_complete(together(*callers)) == [0, -1, -2, -3, -4]
    loop.close()
    assert calls == [[0, 1, 2, 3], [0, 1], [2, 3], [4]]
    assert (f.stats.accepted, f.stats.answered, f.stats.in_flight) == (5, 5, 0)
    assert f.stats.reasons == {"full": 1, "isolate": 2, "timeout": 1}
    gc.collect()
    caplog.clear()  # asyncio tells of any task that Ctrl-C ended


@pytest.mark.parametrize(("kind", "method"), [(Buffer, "let_go"), (LoopFlusher, "look")])
def test_ctrl_c_when_a_batch_has_been_taken_is_not_lost_and_counts_nothing_twice(
    kind: type, method: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    f = batched(batch_size=1, concurrency=2)(negate)
    loop = HandLoop()
    ctrl_c_once(monkeypatch, kind, method)
    callers = [loop.create_task(f(item)) for item in range(2)]
    with pytest.raises(KeyboardInterrupt):
        loop.run_until_complete(callers[1])
    first, second = loop.run_until_complete(outcomes(callers))
    assert first == 0 or isinstance(first.__cause__, KeyboardInterrupt)
    assert second == -1
    del callers, first
    loop.close()
    assert (f.stats.accepted, f.stats.answered + f.stats.failed, f.stats.in_flight, f.stats.batches) == (2, 2, 0, 2)
    gc.collect()
    caplog.clear()  # asyncio tells of any task that Ctrl-C ended


def test_a_full_batch_begins_before_the_callers_of_the_last_one_go_on() -> None:
    events: list[object] = []

    @batched(batch_size=2, timeout=None)
    async def function(items: list[int]) -> list[int]:
        events.append(items)
        return items

    async def caller(item: int) -> None:
        events.append(await function(item))

    async def main() -> None:
        await asyncio.gather(*map(caller, range(4)))

    run(main())
    assert events == [[0, 1], [2, 3], 0, 1, 2, 3]


def test_ctrl_c_in_submit_takes_the_item_out(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        with pytest.raises(KeyboardInterrupt):
            f.submit(1)
        assert (f.stats.pending, f.stats.cancelled) == (0, 1)

    f = batched(batch_size=2, timeout=1.0)(negate)
    ctrl_c_once(monkeypatch, LoopFlusher, "look_at")
    run(main())


@pytest.mark.parametrize("again", [False, True])
def test_ctrl_c_in_submit_leaves_the_others_their_time(again: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted_after_it(flusher: LoopFlusher) -> None:
        monkeypatch.undo()
        flusher._stop_timer()
        if again:
            ctrl_c_once(monkeypatch, Buffer, "remove")
        raise KeyboardInterrupt

    async def main() -> None:
        first = f.submit(1)
        monkeypatch.setattr(LoopFlusher, "_stop_timer", interrupted_after_it)
        with pytest.raises(KeyboardInterrupt):
            f.submit(2)
        await move(1.0)
        assert first.result() == -1

    f = batched(batch_size=2, timeout=1.0)(negate)
    run(main())


def test_an_error_of_the_loop_is_told_to_whom_it_happened_and_not_repeated() -> None:
    class LoopWithoutTimers(HandLoop):
        asked = 0

        def call_at(self, *_: Any, **__: Any) -> asyncio.TimerHandle:  # type: ignore[override]
            self.asked += 1
            raise OSError("no timers")

    async def main() -> int:
        future = f.submit(1)
        with pytest.raises(OSError, match="no timers"):
            f.timeout = 1.0
        await settle()
        f.flush()
        assert await future == -1
        loop = asyncio.get_running_loop()
        assert isinstance(loop, LoopWithoutTimers)
        return loop.asked

    f = batched(batch_size=2, timeout=None)(negate)
    with asyncio.Runner(loop_factory=LoopWithoutTimers) as runner:
        assert runner.run(main()) == 1


def test_ctrl_c_as_what_it_interrupted_is_mended_leaves_nobody_waiting(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def interrupted(*_: object) -> None:
        monkeypatch.undo()
        raise KeyboardInterrupt

    f = batched(batch_size=2, timeout=1.0)(negate)
    loop = HandLoop()
    caller = loop.create_task(f(1))
    loop.run_until_complete(settle())
    loop.moment = 1.0
    monkeypatch.setattr(LoopFlusher, "_stop_timer", interrupted)
    with pytest.raises(KeyboardInterrupt):
        loop.run_until_complete(caller)
    monkeypatch.setattr(Buffer, "due_at", property(interrupted))
    with suppress(KeyboardInterrupt):  # if it looks there at all
        loop.run_until_complete(caller)
    assert loop.run_until_complete(caller) == -1
    loop.close()
    gc.collect()
    caplog.clear()  # asyncio tells of any task that Ctrl-C ended


def test_ctrl_c_as_the_items_of_a_map_end_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        monkeypatch.undo()
        raise KeyboardInterrupt

    async def items() -> AsyncIterator[int]:
        yield 1

    async def results() -> list[int]:
        return [result async for result in f.map(items())]

    f = batched(batch_size=2, timeout=None)(negate)
    monkeypatch.setattr(LoopFlusher, "flush", interrupted)
    loop = HandLoop()
    caller = loop.create_task(results())
    with pytest.raises(KeyboardInterrupt):
        loop.run_until_complete(caller)
    assert loop.run_until_complete(caller) == [-1]
    loop.close()


# Contexts


def test_context_variables_do_not_leak() -> None:
    user: contextvars.ContextVar[str] = contextvars.ContextVar("user", default="nobody")

    async def function(items: list[int]) -> list[str]:
        found = user.get()
        user.set("an earlier batch")
        await asyncio.sleep(0)
        return [found] * len(items)

    async def main() -> None:
        user.set("the first caller")
        for f in (batched(batch_size=1)(function), batched(batch_size=2, timeout=1.0)(function)):
            for _ in range(2):
                future = f.submit(1)
                await move(1.0)
                assert await future == "nobody"
        assert user.get() == "the first caller"

    run(main())


@pytest.mark.parametrize("batch_size", [1, 9])
def test_neither_a_timer_nor_a_batch_keeps_its_callers_context(batch_size: int) -> None:
    class Thing:
        pass

    variable: contextvars.ContextVar[Any] = contextvars.ContextVar("thing")

    async def caller() -> Any:
        thing = Thing()
        variable.set(thing)
        f.submit(1)
        return weakref.ref(thing)

    async def main() -> None:
        reference = await asyncio.create_task(caller())
        await settle()
        gc.collect()
        assert reference() is None
        await gated.go_on()

    gated = Gated()
    f = batched(batch_size=batch_size, timeout=60.0)(gated)
    run(main())


# map


def test_map_reads_two_batches_ahead_at_most_and_is_lazy() -> None:
    read: list[int] = []

    def items() -> Iterator[int]:
        for item in range(100):
            read.append(item)
            yield item

    async def main() -> None:
        results = f.map(items())
        assert read == []
        for expected in range(50):
            assert await anext(results) == -expected
            assert len(read) <= expected + 8
        await results.aclose()
        assert f.stats.pending == 0

    f = batched(batch_size=4, timeout=None)(negate)
    run(main())


def test_map_of_an_async_iterable_reads_two_batches_ahead_at_most() -> None:
    read: list[int] = []

    async def items() -> AsyncIterator[int]:
        for item in range(100):
            read.append(item)
            yield item

    async def main() -> None:
        results = f.map(items())
        for expected in range(50):
            assert await anext(results) == -expected
            await settle()
            assert len(read) <= expected + 9
        await results.aclose()
        assert f.stats.pending == 0
        assert len(asyncio.all_tasks()) == 1

    f = batched(batch_size=4, timeout=None)(negate)
    run(main())


def test_a_result_of_map_does_not_wait_for_the_next_item_to_come() -> None:
    async def main() -> None:
        come = asyncio.Event()

        async def items() -> AsyncIterator[int]:
            yield 1
            await come.wait()
            yield 2

        results = f.map(items())
        assert await anext(results) == -1
        come.set()
        assert [result async for result in results] == [-2]

    f = batched(batch_size=4)(negate)
    run(main())


def test_a_result_of_map_does_not_wait_for_those_of_later_items() -> None:
    async def items() -> AsyncIterator[int]:
        for item in (1, 2, 3):
            yield item
        await asyncio.Event().wait()

    async def main() -> None:
        results = f.map(items())
        await settle()
        assert [await anext(results), await anext(results)] == [-1, -2]
        assert f.stats.pending == 1
        await results.aclose()

    f = batched(batch_size=2, timeout=None)(negate)
    run(main())


@pytest.mark.parametrize("asynchronous", [False, True])
def test_map_reads_a_batch_ahead_of_the_one_that_runs(asynchronous: bool) -> None:
    async def some() -> AsyncIterator[int]:
        for item in range(100):
            yield item

    async def main() -> None:
        (task,) = tasks([anext(f.map(some() if asynchronous else range(100)))])
        await settle()
        assert (f.stats.running, f.stats.pending) == (5, 5)
        await gated.go_on(20)
        assert task.result() == 0

    gated = Gated()
    f = batched(batch_size=5, timeout=None)(gated)
    run(main())


def test_map_of_an_async_iterable_reads_no_more_when_batches_become_smaller() -> None:
    read: list[int] = []

    async def items() -> AsyncIterator[int]:
        for item in range(100):
            read.append(item)
            yield item

    async def main() -> None:
        results = f.map(items())
        assert await anext(results) == 0
        await settle()
        f.batch_size = 2
        for expected in range(1, 50):
            assert await anext(results) == -expected
            await settle()
            assert len(read) <= max(17, expected + 5)
        await results.aclose()

    f = batched(batch_size=8, timeout=None)(negate)
    run(main())


@pytest.mark.parametrize("asynchronous", [False, True])
def test_nothing_is_kept_of_a_map_that_has_ended(asynchronous: bool) -> None:
    async def some() -> AsyncIterator[int]:
        yield 1

    async def main() -> None:
        assert [result async for result in f.map(some() if asynchronous else [1])] == [-1]
        assert not f._self_batcher.here()[1].bells

    f = batched(batch_size=5)(negate)
    run(main())


@pytest.mark.thread_unsafe(reason="stops the garbage collector")
def test_map_keeps_no_item_while_it_waits_for_the_next_one() -> None:
    class Thing:
        pass

    kept: list[weakref.ref[Thing]] = []

    class Things:
        def __aiter__(self) -> "Things":
            return self

        async def __anext__(self) -> Thing:
            if kept:
                await asyncio.Event().wait()
            thing = Thing()
            kept.append(weakref.ref(thing))
            return thing

    async def function(things: list[Thing]) -> list[int]:
        return [1 for _ in things]

    async def main() -> None:
        results = f.map(Things())
        assert await anext(results) == 1
        await settle()
        assert kept[0]() is None
        await results.aclose()

    f = batched(batch_size=5)(function)
    gc.disable()  # by counting alone
    try:
        run(main())
    finally:
        gc.enable()


def test_map_lets_a_generator_run_in_one_task() -> None:
    async def items() -> AsyncIterator[int]:
        async with asyncio.timeout(1e6):
            for item in range(20):
                yield item
                await asyncio.sleep(0)

    async def main() -> None:
        assert [result async for result in f.map(items())] == [-item for item in range(20)]

    f = batched(batch_size=4, timeout=None)(negate)
    run(main())


@pytest.mark.parametrize("asynchronous", [False, True])
def test_map_flushes_what_is_left_when_the_items_end(asynchronous: bool) -> None:
    async def some() -> AsyncIterator[int]:
        for item in range(6):
            yield item

    async def main() -> None:
        assert [result async for result in f.map(some() if asynchronous else range(6))] == [-item for item in range(6)]

    f = batched(batch_size=4, timeout=None)(negate)
    run(main())
    assert f.stats.sizes == {2: 1, 4: 1}


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("who", ["function", "items"])
def test_map_raises_an_error_where_its_result_would_stand(asynchronous: bool, who: str) -> None:
    def some() -> Iterator[int]:
        yield from (1, 2, 3)
        if who == "items":
            raise ValueError("no")
        yield from range(0, -50, -1)

    async def some_async() -> AsyncIterator[int]:
        for item in some():
            yield item

    async def function(items: list[int]) -> list[Any]:
        return [item if item > 0 else ValueError("no") for item in items]

    async def main() -> None:
        results = f.map(some_async() if asynchronous else some())
        assert [await anext(results) for _ in range(3)] == [1, 2, 3]
        with pytest.raises(ValueError, match=r"^no$"):
            await anext(results)
        await settle()
        assert f.stats.pending == 0
        assert len(asyncio.all_tasks()) == 1

    f = batched(batch_size=2, timeout=None)(function)
    run(main())


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_map_that_is_cancelled_takes_its_items_out(asynchronous: bool) -> None:
    async def some() -> AsyncIterator[int]:
        for item in range(3):
            yield item
        await asyncio.Event().wait()

    async def consume() -> None:
        async for _ in f.map(some() if asynchronous else iter(range(3))):
            pass

    async def main() -> None:
        (task,) = tasks([consume()])
        await settle()
        task.cancel()
        await settle()
        assert task.cancelled()
        assert f.stats.pending == 0
        assert f.stats.cancelled == 1

    gated = Gated()
    f = batched(batch_size=2, timeout=None)(gated)
    run(main())


def test_map_cuts_no_batch_before_its_items_end() -> None:
    async def main() -> None:
        other = f.submit(0)
        results = f.map(range(1, 24))
        assert await anext(results) == -1
        await settle()
        assert f.stats.pending == 1
        assert [result async for result in results] == [-item for item in range(2, 24)]
        assert await other == 0

    f = batched(batch_size=4, timeout=None)(negate)
    run(main())
    assert f.stats.reasons == {"full": 6}


def test_the_reader_of_a_map_is_named_after_the_function() -> None:
    names: set[str] = set()

    async def items() -> AsyncIterator[int]:
        names.update(task.get_name() for task in asyncio.all_tasks())
        yield 1

    async def main() -> None:
        assert [result async for result in batched(batch_size=1)(negate).map(items())] == [-1]

    run(main())
    assert "batchify reader of a map of negate()" in names


def test_map_refuses_what_is_not_iterable() -> None:
    f = batched(batch_size=2)(negate)
    with pytest.raises(TypeError, match="'int' object is not iterable"):
        f.map(3)  # type: ignore[arg-type]


@pytest.mark.parametrize("asynchronous", [False, True])
def test_map_heeds_a_change_of_batch_size_while_it_reads_or_waits(asynchronous: bool) -> None:
    def some() -> Iterator[int]:
        for item in range(40):
            if item == 2:
                f.batch_size = 5
            yield item

    async def some_async() -> AsyncIterator[int]:
        for item in some():
            yield item

    async def collect() -> list[int]:
        return [result async for result in f.map(some_async() if asynchronous else some())]

    async def main() -> None:
        stranger = f.submit(99)
        f.flush()
        await move(1.0)
        (task,) = tasks([collect()])
        await settle()
        assert f.stats.pending >= 5
        f.batch_size = 30  # more than it has read ahead
        await gated.go_on(9)
        assert stranger.done()
        assert task.result() == [-item for item in range(40)]

    gated = Gated()
    f = batched(batch_size=3, timeout=None)(gated)
    run(main())


def test_leaving_a_map_cuts_nobodys_batch() -> None:
    async def items() -> AsyncIterator[int]:
        yield 1
        await asyncio.Event().wait()

    async def main() -> None:
        stranger = f.submit(0)
        (task,) = tasks([anext(f.map(items()))])
        await settle()
        assert f.stats.pending == 2
        task.cancel()
        await settle()
        assert (f.stats.pending, f.stats.cancelled, stranger.done()) == (1, 1, False)
        stranger.cancel()

    f = batched(batch_size=4, timeout=None)(negate)
    run(main())


def test_an_error_of_the_items_of_a_map_that_was_left_makes_no_noise() -> None:
    async def items() -> AsyncIterator[int]:
        yield 1
        raise ValueError("no")

    async def main() -> None:
        results = f.map(items())
        assert await anext(results) == -1
        await settle()
        await results.aclose()

    f = batched(batch_size=4)(negate)
    run(main())


def test_a_map_can_be_left_though_its_items_take_no_notice() -> None:
    async def items() -> AsyncIterator[int]:
        for item in range(1000):
            with suppress(asyncio.CancelledError):
                for _ in range(3):
                    await asyncio.sleep(0)
            yield item

    async def main() -> None:
        results = f.map(items())
        assert await anext(results) == 0
        await results.aclose()
        assert f.stats.pending == 0

    f = batched(batch_size=4)(negate)
    run(main())


def test_a_map_that_was_left_reads_no_more_though_its_items_take_no_notice() -> None:
    read: list[int] = []

    async def items() -> AsyncIterator[int]:
        yield 0
        with suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        while True:
            read.append(1)
            yield 1

    async def main() -> None:
        results = f.map(items())
        assert await anext(results) == 0
        await results.aclose()
        assert read == [1]
        assert f.stats.accepted == 1

    f = batched(batch_size=4)(negate)
    run(main())


def test_a_map_cancelled_again_while_its_items_clean_up_has_taken_its_items_out() -> None:
    async def items() -> AsyncIterator[int]:
        yield 1
        try:
            await asyncio.Event().wait()
        finally:
            await settle()

    async def main() -> None:
        (task,) = tasks([anext(f.map(items()))])
        await settle()
        for _ in range(2):
            task.cancel()
            for _ in range(4):
                await asyncio.sleep(0)
        await settle()
        assert (f.stats.pending, f.stats.cancelled) == (0, 1)

    f = batched(batch_size=4, timeout=None)(negate)
    run(main())


def test_a_map_from_inside_is_one_batch_per_chunk() -> None:
    async def function(items: list[int]) -> list[int]:
        return [sum([result async for result in f.map(range(item))]) if item == 8 else item for item in items]

    f = batched(batch_size=4)(function)
    assert run(f(8)) == 28
    assert f.stats.sizes == {1: 1, 4: 2}


def test_map_takes_any_batch_size() -> None:
    async def main() -> None:
        assert [result async for result in f.map(range(3))] == [0, -1, -2]

    f = batched(batch_size=2**70)(negate)
    run(main())


# Closing


def test_close_answers_everyone_who_waits_and_refuses_who_comes() -> None:
    async def main() -> None:
        waiting = [f.submit(item) for item in range(5)]
        closers = tasks([f.aclose(), f.aclose()])
        await settle()
        assert not any(closer.done() for closer in closers)
        closers[0].cancel()
        for call in (f, f.submit):
            with pytest.raises(ClosedError, match=r"^Gated\(\) is closed$"):
                await call(9)
        with pytest.raises(ClosedError):
            await anext(f.map([9]))
        await gated.go_on(3)
        assert [future.result() for future in waiting] == [0, -1, -2, -3, -4]
        assert [closer.cancelled() for closer in closers] == [True, False]
        await f.aclose()
        assert len(asyncio.all_tasks()) == 1

    gated = Gated()
    f = batched(batch_size=2, timeout=None)(gated)
    run(main())
    assert f.stats.reasons == {"full": 2, "close": 1}
    with pytest.raises(ClosedError):
        run(f(1))


def test_async_with_closes() -> None:
    async def main() -> None:
        async with f as same:
            assert same is f
            future = f.submit(1)
        assert future.result() == -1
        with pytest.raises(ClosedError):
            f.submit(2)

    f = batched(batch_size=2, timeout=None)(negate)
    run(main())


def test_close_when_the_last_item_is_cancelled_ends() -> None:
    async def main() -> None:
        f.submit(1)
        await settle()
        second = f.submit(2)
        (closer,) = tasks([f.aclose()])
        await asyncio.sleep(0)
        second.cancel()
        await gated.go_on()
        await closer

    gated = Gated()
    f = batched(batch_size=1, timeout=None)(gated)
    run(main())


def test_close_ends_though_ctrl_c_came_when_the_loop_was_told_that_a_task_had_ended() -> None:
    class DeafLoop(HandLoop):
        def call_soon(self, callback: Any, *args: Any, context: contextvars.Context | None = None) -> asyncio.Handle:  # type: ignore[override]
            if getattr(callback, "__name__", "") == "discard":
                callback = {"nothing"}.discard
            return super().call_soon(callback, *args, context=context)

    async def main() -> None:
        assert await f(1) == -1
        await f.aclose()

    f = batched(batch_size=1)(negate)
    with asyncio.Runner(loop_factory=DeafLoop) as runner:
        runner.run(main())


@pytest.mark.parametrize("how", ["call", "submit", "map"])
def test_while_it_drains_the_function_may_call_itself(how: str) -> None:
    async def function(items: list[int]) -> list[int]:
        if items == [0]:
            return items
        await closes.wait()
        if how == "map":
            return [item async for item in f.map([0])]
        return [await (f(0) if how == "call" else f.submit(0))]

    async def main() -> None:
        (caller,) = tasks([f(1)])
        await settle()
        (closer,) = tasks([f.aclose()])
        await settle()
        closes.set()
        await closer
        assert caller.result() == 0

    closes = asyncio.Event()
    f = batched(batch_size=1)(function)
    run(main())


def test_close_from_inside_does_not_wait_for_itself() -> None:
    async def function(items: list[int]) -> list[int]:
        await f.aclose()
        return items

    f = batched(batch_size=2)(function)

    async def main() -> None:
        assert await f(1) == 1
        with pytest.raises(ClosedError):
            await f(2)

    run(main())


def test_close_of_another_function_from_inside_waits_for_it() -> None:
    waiting: list[Any] = []
    other = batched(batch_size=9, timeout=None)(negate)

    async def function(items: list[int]) -> list[bool]:
        await other.aclose()
        return [waiting[0].done()]

    async def main() -> None:
        waiting.append(other.submit(1))
        assert await batched(batch_size=1)(function)(1) is True

    run(main())


def test_close_reaches_other_loops() -> None:
    async def wait() -> Any:
        task = asyncio.create_task(f(1))
        await asyncio.sleep(0)
        accepted.set()
        return await task

    accepted = threading.Event()
    f = batched(batch_size=2, timeout=None)(negate)

    def close() -> None:
        accepted.wait()
        asyncio.run(f.aclose())

    closer = threading.Thread(target=close)
    closer.start()
    assert asyncio.run(wait()) == -1
    closer.join()


def test_what_is_closed_is_closed_in_loops_that_come_later_too() -> None:
    f = batched(batch_size=1)(negate)
    run(f.aclose())
    with pytest.raises(ClosedError):
        run(f(1))
    assert f.stats.accepted == 0


# What it is


def test_it_is_a_coroutine_function_of_one_item() -> None:
    class Embedder:
        async def embed(self, items: list[str]) -> list[float]:
            """Embed."""
            return [float(len(item)) for item in items]

        async def stream(self, items: list[str]) -> AsyncIterator[float]:
            for item in items:
                yield float(len(item))

    async def scaled(items: list[str], factor: float) -> list[float]:
        return [factor * len(item) for item in items]

    embedder = Embedder()
    functions = [embedder.embed, embedder.stream, Embedder.stream.__get__(embedder)]
    for function in functions:
        f = batched(batch_size=2)(function)
        assert inspect.iscoroutinefunction(f)
        assert inspect.iscoroutinefunction(f.aio)
        assert not inspect.isasyncgenfunction(f)
        assert not inspect.isgeneratorfunction(f)
        assert str(inspect.signature(f)) == "(items: str, /) -> float"
        assert run(f("abc")) == 3.0
        assert "items" in inspect.getsource(f)
    assert f.__name__ == "stream"
    assert repr(f) == "<batched stream(), batch_size=2, timeout=0.0>"
    assert inspect.iscoroutinefunction(batched(batch_size=2)(Gated()))


def test_without_a_running_loop_the_message_says_so() -> None:
    f = batched(batch_size=2)(negate)
    message = r"^negate\(\) is a coroutine function: call it where an event loop runs$"
    with pytest.raises(RuntimeError, match=message):
        f.submit(1)
    with pytest.raises(RuntimeError, match=message):
        f(1).send(None)  # as by another library's loop
    f.flush()
    assert f.stats.accepted == 0


# What is kept


@pytest.mark.thread_unsafe(reason="stops the garbage collector")
def test_nothing_of_a_batch_is_kept_after_the_answer() -> None:
    class Thing:
        pass

    class Failure(Exception):
        pass

    async def echo(items: list[Any]) -> list[Any]:
        return items

    async def main() -> None:
        thing = Thing()
        reference = weakref.ref(thing)
        future = f.submit(thing)
        assert await f(thing) is thing
        assert await future is thing
        assert [each async for each in f.map([thing])] == [thing]
        del future
        error = Failure()
        with pytest.raises(Failure):
            await f(error)
        error_reference = weakref.ref(error)
        kept = f.submit(Thing())
        kept_item = weakref.ref(await kept)
        del thing, error
        await settle()
        assert reference() is None
        assert error_reference() is None
        del kept
        assert kept_item() is None

    f = batched(batch_size=2)(echo)
    gc.disable()
    try:
        run(main())
    finally:
        gc.enable()


def test_the_task_of_a_batch_is_not_kept_when_it_has_ended() -> None:
    async def main() -> None:
        future = f.submit(1)
        await settle()
        ours = weakref.ref(our_tasks()[0])
        await gated.go_on()
        assert await future == -1
        gc.collect()
        assert ours() is None

    gated = Gated()
    f = batched(batch_size=1)(gated)
    run(main())


@pytest.mark.parametrize("when", ["answered", "cancelled waiting", "cancelled running"])
def test_a_future_keeps_neither_its_item_nor_a_result_that_came_too_late(when: str) -> None:
    class Thing:
        pass

    async def main() -> None:
        thing, result = Thing(), Thing()
        results.append(result)
        kept = [weakref.ref(thing), weakref.ref(result)]
        future = f.submit(thing)
        if when == "cancelled waiting":
            future.cancel()
        await settle()
        if when == "cancelled running":
            future.cancel()
        go_on.set()
        await settle()
        assert future.done()
        results.clear()
        del thing, result
        assert kept[0]() is None
        assert (kept[1]() is None) == (when != "answered")

    async def function(items: list[Thing]) -> list[Thing]:
        items.clear()
        await go_on.wait()
        return list(results)

    go_on = asyncio.Event()
    results: list[Thing] = []
    f = batched(batch_size=1)(function)
    run(main())


def test_a_dropped_function_is_collected_with_what_it_holds() -> None:
    class Model:
        async def run(self, items: list[int]) -> list[int]:
            return items

    async def main() -> None:
        model = Model()
        reference = weakref.ref(model)
        f = batched(batch_size=2, timeout=1e6)(model.run)
        assert await together(f(1), f(2)) == [1, 2]
        (task,) = tasks([f(3)])
        await settle()
        task.cancel()
        await settle()
        del f, model, task
        gc.collect()
        assert reference() is None

    run(main())


def test_a_forked_child_starts_clean() -> None:
    script = """if True:
        import asyncio, os
        from batchify import batched

        @batched(batch_size=2)
        async def f(items):
            return items

        @batched(batch_size=2)
        async def forking(items):
            return [os.fork() for _ in items]

        child = asyncio.run(forking(1))
        assert (forking.stats.in_flight, forking.stats.running) == (0, 0)
        if not child:
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0

        if asyncio.run(f(0)) == 0 and os.fork() == 0:
            assert f.stats.accepted == 0
            assert asyncio.run(f(5)) == 5
            assert f.stats.accepted == 1
            os._exit(0)
        assert os.wait()[1] == 0
    """
    run_script(script)


def test_a_fork_while_another_thread_is_inside_the_lock_leaves_the_child_a_free_one() -> None:
    script = """if True:
        import asyncio, os, signal, threading
        from batchify import _asyncio, batched

        @batched(batch_size=2)
        async def f(items):
            return items

        def hold():
            with _asyncio._lock:
                held.set()
                let_go.wait()

        held, let_go = threading.Event(), threading.Event()
        threading.Thread(target=hold).start()
        held.wait()
        child = os.fork()
        if not child:
            signal.alarm(60)  # else it could hang for ever
            assert asyncio.run(f(1)) == 1
            os._exit(0)
        let_go.set()
        assert os.waitpid(child, 0)[1] == 0
    """
    run_script(script, "-W", "ignore")


def test_who_leaves_in_a_forked_child_is_not_computed_there() -> None:
    script = """if True:
        import asyncio, os
        from batchify import batched

        @batched(batch_size=2, timeout=None)
        async def f(items):
            ran.append(items)
            return items

        async def turn():
            for _ in range(20):
                await asyncio.sleep(0)

        ran = []
        loop = asyncio.new_event_loop()
        task = loop.create_task(f(1))
        loop.run_until_complete(turn())
        old = f._self_batcher._latest
        child = os.fork()
        if not child:
            task.cancel()
            loop.run_until_complete(turn())
            old.flush()
            loop.run_until_complete(turn())
            os._exit(len(ran))
        assert os.waitpid(child, 0)[1] == 0
        f.flush()
        assert loop.run_until_complete(task) == 1
    """
    run_script(script, "-W", "ignore")


# The other kinds of loops and tasks


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_debug_mode_factories_and_eager_tasks_are_silent(loop: str) -> None:
    if loop == "uvloop":
        pytest.importorskip("uvloop")
    script = f"""if True:
        import asyncio
        from {loop} import new_event_loop
        from batchify import batched

        @batched(batch_size=4, timeout=0.01)
        async def f(items):
            await asyncio.sleep(0.001)
            return [-item for item in items]

        @batched(batch_size=4, timeout=0.01)
        def g(items):
            return [-item for item in items]

        class OwnTask(asyncio.Task):
            pass

        def old_factory(loop, coroutine):
            return OwnTask(coroutine, loop=loop)

        def factory(loop, coroutine, **options):
            return OwnTask(coroutine, loop=loop, **options)

        async def main(factory):
            asyncio.get_running_loop().set_task_factory(factory)
            for call in (f, f.submit, g.aio):
                assert await asyncio.gather(*map(call, range(10))) == [-item for item in range(10)]
            assert [result async for result in f.map(range(10))] == [-item for item in range(10)]
            async def items():
                for item in range(10):
                    yield item
            assert [result async for result in f.map(items())] == [-item for item in range(10)]
            futures = [f.submit(1), f.submit(2)]
            futures[0].cancel()
            assert await futures[1] == -2

        eager = getattr(asyncio, "eager_task_factory", None)
        # uvloop itself passes to factories what these two do not take.
        for each in (None, factory) if "{loop}" == "uvloop" else (None, old_factory, factory, eager):
            with asyncio.Runner(loop_factory=new_event_loop, debug=True) as runner:
                runner.run(main(each))
    """
    run_script(script, "-X", "dev", "-W", "error")


# Called back at any line


class Intruder:
    """Submits an item when its thread comes to the n-th line of the package that it executes, as a finalizer may."""

    def __init__(self, f: BatchedCoroutineFunction[Any, Any], at: int) -> None:
        self.f, self.at, self.line = f, at, 0
        self.where = ""
        self.future: asyncio.Future[Any] | None = None

    def trace(self, frame: FrameType, event: str, _: object) -> Any:
        if not frame.f_code.co_filename.endswith(("_asyncio.py", "_buffer.py", "_batch.py")):
            return None
        if event == "line":
            self.line += 1
            if self.line == self.at:
                sys.settrace(None)
                self.where = f"{frame.f_code.co_filename}:{frame.f_lineno}"
                self.future = self.f.submit(99)
        return self.trace


@pytest.mark.thread_unsafe(reason="traces its thread")
def test_an_item_passed_at_any_line_is_answered() -> None:
    running: list[list[int]] = []

    async def function(items: list[int]) -> list[int]:
        if items == [99]:
            return [-99]  # it was passed from inside the other batch, so it runs beside it
        assert not running
        running.append(items)
        await asyncio.sleep(0)
        running.clear()
        return [-item for item in items]

    async def main(f: BatchedCoroutineFunction[Any, Any], intruder: Intruder) -> None:
        sys.settrace(intruder.trace)
        try:
            waiting = [f.submit(1), f.submit(2), f.submit(3)]
            waiting[1].cancel()
            task = asyncio.create_task(f(4))
            await settle()
            task.cancel()
            await settle()
        finally:
            sys.settrace(None)
        f.flush()
        await settle()
        assert [waiting[0].result(), waiting[2].result()] == [-1, -3]
        if intruder.future is not None:
            assert intruder.future.done(), intruder.where
            assert intruder.future.result() == -99
        await f.aclose()

    at = 0
    while True:
        at += 1
        f = batched(batch_size=2, timeout=1.0)(function)
        intruder = Intruder(f, at)
        run(main(f, intruder))
        assert f.stats.accepted == f.stats.answered + f.stats.cancelled == 4 + bool(intruder.where), intruder.where
        if not intruder.where:
            break
    assert at > 100


def test_what_a_map_from_inside_has_yielded_is_not_kept() -> None:
    class Item:
        pass

    kept: list[weakref.ref[Item]] = []

    def items() -> Iterator[Item]:
        for _ in range(600):
            item = Item()
            kept.append(weakref.ref(item))
            yield item
            del item

    @batched(batch_size=3)
    async def inner(items: list[Item]) -> list[int]:
        return [0 for _ in items]

    @batched(batch_size=1)
    async def outer(numbers: list[int]) -> list[int]:
        async for _ in inner.map(items()):
            pass
        return [sum(reference() is not None for reference in kept)]

    async def main() -> int:
        result: int = await outer(0)
        return result

    assert asyncio.run(main()) < 200
