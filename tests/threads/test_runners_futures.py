"""A function that returns futures needs no runners: `concurrency` limits how many of its futures are unfinished.

From its first future on the flush thread alone runs it. Until then it is not known, and a runner does.
"""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from .. import inside
from ..kit import Threads
from ..tools import HAS_GIL, in_threads


def finished(xs: list[int]) -> Future[list[int]]:
    future: Future[list[int]] = Future()
    future.set_result(xs)
    return future


def test_concurrency_of_returned_futures_needs_one_runner_at_most(threads: Threads) -> None:
    pending: list[tuple[list[int], Future[list[int]]]] = []

    def function(xs: list[int]) -> Any:
        pending.append((xs, Future()))
        return pending[-1][1]

    f = threads(function, batch_size=1, concurrency=3)
    handles = []
    for number in range(3):
        handles.append(f.submit(number))
        threads.until_runs(number + 1)
        threads.settle(f)
    assert f.stats.in_flight == 3
    handles += threads.submits(f, [3, 4])
    for number in range(5):
        xs, future = pending[number]
        future.set_result([-x for x in xs])
        threads.until_runs(min(number + 4, 5))
    assert threads.outcomes(handles) == [0, -1, -2, -3, -4]
    # Without a GIL the second item may come before the function has returned its first future.
    assert len(inside.threads_of(f)) <= 1 + (1 if HAS_GIL else 2)
    threads.until_idle(f)
    threads.consistent(f)


def test_function_that_returns_futures_after_it_blocked_needs_one_thread(threads: Threads) -> None:
    gate = threading.Event()

    def function(xs: list[int]) -> Any:
        if xs[0] < 2:
            gate.wait(100)
            return xs
        return finished(xs)

    f = threads(function, batch_size=1, concurrency=2)
    handles = threads.submits(f, [0, 1])
    threads.until(lambda: threads.running == 2)
    gate.set()
    assert threads.outcomes(handles) == [0, 1]
    assert f(2) == 2
    threads.idents.clear()
    for item in range(3, 7):
        assert f(item) == item
    assert len(threads.idents) == 1


def test_finished_future_starts_no_thread_where_nothing_waits(threads: Threads) -> None:
    unfinished: Future[list[int]] = Future()
    gate = threading.Event()

    def function(xs: list[int]) -> Any:
        if xs == [2]:
            gate.wait(100)
        return unfinished if xs == [0] else xs

    f = threads(function, batch_size=1, concurrency=3)
    handles = [f.submit(0)]
    threads.settle(f)
    handles.append(f.submit(2))
    threads.until_runs(2)
    unfinished.set_result([0])
    assert len(inside.threads_of(f)) == 1 + 1
    gate.set()
    assert threads.outcomes(handles) == [0, 2]


def test_halves_of_a_failed_future_are_run_though_another_batch_might_have_run_before(threads: Threads) -> None:
    unfinished: Future[list[int]] = Future()
    f = threads(lambda xs: unfinished if len(xs) == 2 else xs, batch_size=2, timeout=None, isolate=True, concurrency=2)
    handles = threads.submits(f, [0, 1])
    threads.until(lambda: f.stats.in_flight == 1 and inside.sleeping(f) > 0)
    unfinished.set_exception(ValueError())
    assert threads.outcomes(handles) == [0, 1]


def test_item_that_comes_while_a_future_is_returned_starts_no_thread(threads: Threads) -> None:
    counted: list[int] = []
    handles: list[Any] = []
    first = [True]

    class Submits(Future[Any]):
        """Submits an item when the library asks it to tell of its end, which is before the batch is over."""

        def add_done_callback(self, callback: Callable[[Any], Any]) -> None:
            if first:
                first.clear()
                handles.extend(in_threads(f.submit, [1]))
                counted.append(len(inside.threads_of(f)))
            super().add_done_callback(callback)

    def function(xs: list[int]) -> Any:
        future = Submits()
        future.set_result(xs)
        return future

    f = threads(function, batch_size=1, concurrency=2)
    assert threads.outcome(f.submit(0)) == 0
    assert counted == [1 + 1]
    assert threads.outcomes(handles) == [1]


def test_timeout_holds_for_what_came_while_all_turns_were_taken_by_futures(threads: Threads) -> None:
    """The flush thread, which slept without end, must wake up when there is a turn, and sleep until then."""
    threads.stop_the_clock()
    unfinished: dict[int, Future[list[int]]] = {0: Future(), 1: Future()}
    gate = threading.Event()

    def function(xs: list[int]) -> Any:
        gate.wait(100)
        return unfinished.get(xs[0], xs)

    f = threads(function, batch_size=2, timeout=0.2, concurrency=2)
    handles = [threads.busy(f, 0), threads.busy(f, 1)]
    threads.move(1.0)  # what comes at the very moment of a flush is flushed too
    gate.set()
    threads.until(lambda: f.stats.in_flight == 2 and inside.waits_for_room(f))
    handles.append(f.submit(2))
    unfinished[0].set_result([0])
    assert threads.outcome(handles[0]) == 0
    threads.settle(f)
    assert not handles[2].done()
    threads.move(0.2)
    assert threads.outcome(handles[2]) == 2
    unfinished[1].set_result([1])
    assert threads.outcome(handles[1]) == 1


def test_close_waits_for_a_future_though_another_batch_might_run_beside_it(threads: Threads) -> None:
    future: Future[list[int]] = Future()
    f = threads(lambda xs: future, batch_size=1, concurrency=2)
    handle = f.submit(1)
    threads.until_runs(1)
    closer = threading.Thread(target=f.close)
    closer.start()
    threads.until(lambda: inside.is_closed(f))
    threads.settle(f)
    assert closer.is_alive()
    future.set_result([2])
    closer.join()
    assert handle.result() == 2
