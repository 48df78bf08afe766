"""Nothing runs without a reason: how often a flush thread is woken, looks at what waits, and sets a timer.

And no wake-up is lost, whatever a finalizer does on the flush thread itself.
"""

import asyncio
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from math import inf
from typing import Any

import pytest

from batchify import ClosedError

from .. import inside
from ..kit import Threads
from ..tools import Gated, batched, until

# Sleeps


def test_idle_flush_thread_sleeps_without_end(threads: Threads) -> None:
    """Neither polling, nor a timer that is armed again and again."""
    threads.stop_the_clock()
    f = threads(batch_size=2, timeout=0.5)
    looks = inside.looks(f)

    def sleeps() -> list[float]:
        return [look for look in looks if isinstance(look, float)]

    future = f.submit(1)
    threads.move(0.5)
    assert future.result() == -1
    for _ in range(3):
        threads.move(0.5)
    count = len(sleeps())
    assert count <= 4
    # Once it slept for as long as an item may wait, so that the next one need not wake it to be timed.
    assert sleeps()[-2:] == [0.5, inf]
    for _ in range(10):
        threads.move(1000.0)
    assert len(sleeps()) == count
    f.close()
    assert len(sleeps()) == count


@pytest.mark.parametrize("timeout", [0.0, None])
def test_flush_thread_that_waits_for_no_deadline_sets_no_timer(timeout: float | None) -> None:
    with (
        inside.seconds_slept() as seconds,
        batched(batch_size=1, timeout=timeout)(lambda items: items) as f,
    ):
        assert [f(1), f(2)] == [1, 2]
        f.close()
        assert set(seconds) == {-1}


# Rings


@pytest.mark.parametrize("how", ["call", "submit", "aio"])
@pytest.mark.parametrize("timeout", [10**9, None])
def test_item_that_is_due_later_wakes_nobody(how: str, timeout: float | None) -> None:
    f = batched(batch_size=9, timeout=timeout)(lambda items: items)
    with ThreadPoolExecutor(1) as pool:
        calls: dict[str, Any] = {
            "call": lambda: pool.submit(f, 2),
            "submit": lambda: f.submit(2),
            "aio": lambda: pool.submit(lambda: asyncio.run(f.aio(2))),
        }
        with inside.rings(f) as rung:
            futures = [f.submit(1)]  # the first one sets the timer
            until(lambda: inside.sleeps(f))
            futures += [calls[how](), f.submit(3)]
            until(lambda: f.stats.pending == 3)
            assert rung in ([], [1])  # the latter, but if the new thread is awake yet
        f.close()
    assert [future.result() for future in futures] == [1, 2, 3]


@pytest.mark.parametrize("how", ["runs", "has returned a future"])
def test_item_that_comes_while_the_function_is_busy_wakes_nobody(how: str) -> None:
    engine: Future[Any] = Future()
    function = Gated(lambda items: engine if items == [0] and how == "has returned a future" else items)
    with batched(batch_size=1)(function) as f:
        futures = [f.submit(0)]
        function.entered.acquire()
        if how == "has returned a future":
            function.let_on.release()
            until(lambda: inside.waits_for_room(f))
        with inside.rings(f) as rung:
            futures += [f.submit(1), f.submit(2)]
            assert rung == []
        engine.set_result([0])
        function.open()
        assert [future.result() for future in futures] == [0, 1, 2]


def test_flush_of_nothing_wakes_nobody() -> None:
    with batched(batch_size=1, timeout=10**6)(lambda items: items) as f:
        assert f(1) == 1
        until(lambda: inside.sleeps_until_an_item_is_due(f))  # when one would be that comes now
        with inside.rings(f) as rung:
            f.flush()
            assert rung == []


def test_flush_thread_does_not_wake_itself() -> None:
    f = batched(batch_size=1, timeout=None)(lambda items: items)
    looks = inside.looks(f)
    with f:
        for number in range(20):
            assert f(number) == number
            until(lambda: inside.sleeping(f) == 1)
    # For each, one that finds it, and one that finds that there are no more. At the start it may look for nothing.
    assert len(looks) <= 2 * 20 + 2


# No wake-up is lost


@pytest.mark.thread_unsafe(reason="traces threads")
def test_item_added_by_a_finalizer_at_any_line_of_the_flush_thread_is_answered() -> None:
    """Also between its last look at the buffer and its sleep: a condition misses that."""
    for number in range(1, 101):
        late: list[Future[Any]] = []

        def submit() -> None:
            with suppress(ClosedError):  # it never came so far before the end
                late.append(f.submit("late"))  # noqa: B023 - run at once

        with batched(batch_size=2, timeout=0.0)(lambda items: items) as f:
            is_through = inside.at_line_of_the_flush_thread(f, number, submit)
            assert f(0) == 0
            until(is_through)
            assert [future.result() for future in late] == ["late"] * len(late)


@pytest.mark.thread_unsafe(reason="traces threads")
def test_batch_that_fails_while_a_finalizer_at_any_line_of_the_flush_thread_closes_is_isolated() -> None:
    for number in range(1, 101):
        engine: Future[Any] = Future()
        once = [True]

        def fail_and_close() -> None:
            with suppress(IndexError):
                once.pop()  # noqa: B023 - run at once
                engine.set_exception(ValueError())  # noqa: B023
                f.close()  # noqa: B023

        f = batched(batch_size=2, timeout=None, isolate=True, concurrency=2)(
            lambda items: engine if len(items) == 2 else items  # noqa: B023
        )
        is_through = inside.at_line_of_the_flush_thread(f, number, fail_and_close)
        futures: list[Future[Any]] = []
        with suppress(ClosedError):  # by then
            futures += [f.submit(0)]
            futures += [f.submit(1)]
        until(is_through)
        fail_and_close()
        assert [future.result() for future in futures] == [0, 1][: len(futures)]
