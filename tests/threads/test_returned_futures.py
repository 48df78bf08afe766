"""A function may return a thread-safe future of its results.

So a batch leaves the flush thread for an executor or an engine, and is answered when the future is done.
"""

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pytest

from batchify import BatchError, ClosedError, ResultCountError

from ..kit import Threads
from ..tools import in_threads


class Sized:
    """Has a length and iterates, and cannot be indexed."""

    def __init__(self, *entries: Any) -> None:
        self.entries = entries

    def __len__(self) -> int:
        return len(self.entries)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.entries)


class Engine:
    """What an engine gives for a batch: not the standard `Future`, and it calls back when the test says so."""

    def __init__(self, results: Any) -> None:
        self.results = results
        self.callbacks: list[Callable[[Any], None]] = []

    def result(self) -> Any:
        return self.results

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        self.callbacks.append(callback)

    def call_back(self) -> None:
        self.callbacks[0](self)


def done(value: Any) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(value)
    return future


# Results


@pytest.mark.parametrize(
    "results", [lambda: ["x", "y"], lambda: {1: "x", 2: "y"}, lambda: iter("xy")], ids=["list", "mapping", "iterator"]
)
def test_returned_future_gives_each_caller_its_own_result(threads: Threads, results: Callable[[], Any]) -> None:
    assert threads.answers(lambda _: done(results()), 1, 2) == ["x", "y"]


def test_returned_future_of_an_iterator_may_call_the_function_as_its_results_are_read(threads: Threads) -> None:
    engine: Future[Any] = Future()
    f = threads(lambda items: items if items == [-1] else engine, batch_size=1)
    future = f.submit(1)
    threads.until(lambda: f.stats.in_flight == 1)
    engine.set_result(f(-item) for item in [1])
    assert future.result() == -1


@pytest.mark.parametrize("count", [0, 1, 3])
def test_returned_future_of_a_wrong_number_of_results_fails_every_caller(threads: Threads, count: int) -> None:
    outcomes = threads.answers(lambda _: done(list(range(count))), 1, 2)
    assert [type(outcome) for outcome in outcomes] == [ResultCountError, ResultCountError]


def test_returned_future_holds_up_the_next_batch_until_it_is_done(threads: Threads) -> None:
    made: list[Future[Any]] = []

    def function(items: list[int]) -> Future[Any]:
        made.append(Future())
        return made[-1]

    f = threads(function, batch_size=2, timeout=None)
    futures = threads.submits(f, range(4))
    threads.until(lambda: len(made) == 1)
    f.flush()
    threads.settle(f)
    assert threads.running == 0
    assert f.stats.in_flight == 1
    assert len(made) == 1
    made[0].set_result(["a", "b"])
    assert threads.outcomes(futures[:2]) == ["a", "b"]
    threads.until(lambda: len(made) == 2)
    made[1].set_exception(ValueError("no"))
    assert [type(outcome) for outcome in threads.outcomes(futures[2:])] == [ValueError, ValueError]


def test_returned_futures_of_a_pool_answer_callers_in_many_threads(threads: Threads) -> None:
    with ThreadPoolExecutor(2) as pool:
        f = threads(lambda items: pool.submit(list, items), batch_size=4)
        assert in_threads(f, range(32)) == list(range(32))
        f.close()


def test_returned_future_that_is_cancelled_fails_its_callers(threads: Threads) -> None:
    def function(_: list[int]) -> Future[Any]:
        future: Future[Any] = Future()
        future.cancel()
        return future

    assert [type(outcome) for outcome in threads.answers(function, 1, 2)] == [BatchError] * 2


def test_returned_future_that_is_dropped_is_noticed_whatever_a_callback_has_kept(threads: Threads) -> None:
    def function(items: list[int]) -> Any:
        if items == [3]:
            return Future()
        started.set()
        go_on.wait()
        return items

    def keep(future: Future[Any]) -> None:
        with suppress(ClosedError):
            future.result()  # the error, which is kept, knows this frame, and so all those beneath it

    started, go_on = threading.Event(), threading.Event()
    f = threads(function, batch_size=1)
    first = f.submit(1)
    started.wait()
    refused = f.submit(2)
    refused.add_done_callback(keep)
    with pytest.raises(TimeoutError):
        f.close(timeout=0.0, cancel_pending=True)
    with f:
        dropped = f.submit(3)
        go_on.set()
        assert first.result() == 1
        with pytest.raises(BatchError, match="dropped it unfinished"):
            dropped.result()
    assert type(refused.exception()) is ClosedError


# Engines that call back more than once


def test_returned_future_that_calls_back_twice_at_once_is_heard_once(threads: Threads) -> None:
    class Twice(Engine):
        def add_done_callback(self, callback: Callable[[Any], None]) -> None:
            callback(self)
            callback(self)
            raise ValueError

    assert threads.answers(lambda _: Twice(["x", "y"]), 1, 2) == ["x", "y"]


def test_returned_future_that_calls_back_again_later_is_heard_once_and_told_no_error(threads: Threads) -> None:
    engine = Engine(["x"])
    f = threads(lambda _: engine, batch_size=1)
    future = f.submit(1)
    threads.until(lambda: len(engine.callbacks) == 1)
    for _ in range(2):
        engine.call_back()
    assert future.result() == "x"
    assert (f.stats.answered, f.stats.in_flight) == (1, 0)


def test_returned_future_that_calls_back_while_its_results_are_read_is_heard_once(threads: Threads) -> None:
    class CallsBack(Sized):
        iterations = 0

        def __iter__(self) -> Iterator[Any]:
            self.iterations += 1
            if self.iterations == 1:
                engine.call_back()
            return super().__iter__()

    engine = Engine(CallsBack("x"))
    f = threads(lambda _: engine, batch_size=1)
    future = f.submit(1)
    threads.until(lambda: len(engine.callbacks) == 1)
    engine.call_back()
    assert future.result() == "x"
    assert (f.stats.answered, f.stats.in_flight) == (1, 0)


# What is refused, and what is no future


def test_returned_future_of_a_future_is_refused(threads: Threads) -> None:
    endless: Future[Any] = Future()
    endless.set_result(endless)
    assert [type(outcome) for outcome in threads.answers(lambda _: endless, 1, 2)] == [TypeError] * 2


def test_returned_future_of_asyncio_is_refused(threads: Threads) -> None:
    loop = asyncio.new_event_loop()
    future = loop.create_future()
    loop.close()
    assert [type(outcome) for outcome in threads.answers(lambda _: future, 1, 2)] == [TypeError] * 2


def test_returned_container_that_has_every_attribute_is_no_future(threads: Threads) -> None:
    class Proxy(Sized):
        def __getattr__(self, name: str) -> Any:
            if name == "columns":
                raise AttributeError
            return lambda *_: None

    assert threads.answers(lambda _: Proxy("x", "y"), 1, 2) == ["x", "y"]


@pytest.mark.parametrize("name", ["result", "add_done_callback"])
def test_returned_container_with_only_result_or_add_done_callback_is_no_future(threads: Threads, name: str) -> None:
    half = type("Half", (Sized,), {name: lambda *_: None})
    assert threads.answers(lambda _: half("x", "y"), 1, 2) == ["x", "y"]
