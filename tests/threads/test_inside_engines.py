"""A function may return a future that an engine completes on a thread of its own: a callback there may use batched
functions, and a future that is never completed is noticed.
"""

import threading
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

import pytest

from batchify import BatchError

from .. import inside
from ..kit import Threads
from ..tools import batched, in_threads, until

# Callbacks on the thread of an engine


def test_callback_on_the_thread_of_an_engine_may_call_another_function() -> None:
    outcome: list[int] = []
    with ThreadPoolExecutor(1) as pool, batched(batch_size=2, timeout=None)(lambda xs: pool.submit(list, xs)) as f:
        # f(5) from the pool's only thread needs that thread itself: run there, it would still wait for it. A function
        # that answers at once does not.
        g = batched(batch_size=1)(lambda xs: xs)
        f.submit(1).add_done_callback(lambda _: outcome.append(g(5)))
        f.submit(2).add_done_callback(lambda _: f.close())
    g.close()
    assert outcome == [5]


@pytest.mark.parametrize("how", ["call", "submit", "close"])
def test_callback_on_the_thread_of_an_engine_may_use_the_function_whose_batch_it_answers(how: str) -> None:
    def use(_: object) -> None:
        if how == "close":
            f.close()
        else:
            outcome.append(f(2) if how == "call" else f.submit(2).result())

    engine: Future[Any] = Future()
    outcome: list[int] = []
    with batched(batch_size=1)(lambda items: engine if items == [1] else items) as f:
        future = f.submit(1)
        future.add_done_callback(use)
        until(lambda: inside.waits_for_room(f))
        in_threads(engine.set_result, [[1]])
        assert future.result() == 1
    assert outcome == ([] if how == "close" else [2])


def test_nothing_is_remembered_of_the_thread_of_an_engine_after_a_callback_that_calls() -> None:
    engine: Future[Any] = Future()
    outcome: list[int] = []
    g = batched(batch_size=1)(lambda items: items)
    with g, batched(batch_size=1)(lambda items: engine) as f:
        future = f.submit(1)
        future.add_done_callback(lambda _: outcome.extend(g.map([2])))
        until(lambda: inside.waits_for_room(f))
        engine.set_result([1])
        assert (future.result(), outcome) == (1, [2])
        assert not inside.is_known(threading.get_ident())


def test_function_that_waits_for_the_pool_of_another_is_answered_after_a_callback_there() -> None:
    outcome: list[Any] = []
    with ThreadPoolExecutor(1) as pool:
        inner = batched(batch_size=1)(lambda xs: [many(x) for x in xs])
        many = batched(batch_size=1)(lambda xs: pool.submit(list, xs))
        outer = batched(batch_size=1)(lambda xs: pool.submit(list, xs))
        many.submit(1).add_done_callback(lambda _: outcome.append(outer.submit(2)))
        until(lambda: bool(outcome))
        assert outcome[0].result() == 2
        assert inner(3) == 3
        inner.close()
        many.close()
        outer.close()


def test_function_may_return_a_future_of_another_batched_function() -> None:
    outcome: list[int] = []
    first = batched(batch_size=2, timeout=0.0)(lambda xs: xs)
    second = batched(batch_size=1)(lambda xs: first.submit(xs))
    future = second.submit(1)
    future.add_done_callback(lambda _: outcome.append(first(5)))
    assert future.result() == 1
    assert [second(2), first(3)] == [2, 3]
    second.close()
    first.close()
    assert outcome == [5]


# Engines that answer a call from inside


def test_engine_has_one_lent_batch_at_a_time(threads: Threads) -> None:
    def function(items: list[int]) -> Any:
        if items == [0]:
            begin.wait()
            return [f(1)]
        engines.append(Future())
        return engines[-1]

    begin = threading.Event()
    engines: list[Future[list[int]]] = []
    f = threads(function, batch_size=1)
    futures = [threads.busy(f, 0), f.submit(2)]
    begin.set()
    for batch in ([2], [1], [3]):
        until(lambda: [*threads.batches[1:]][-1:] == [batch] and len(engines) == len(threads.batches) - 1)  # noqa: B023
        if batch == [1]:
            futures.append(f.submit(3))
        threads.settle(f)
        assert threads.batches[-1] == batch
        engines[-1].set_result(batch)
    assert threads.outcomes(futures) == [1, 2, 3]
    assert threads.batches == [[0], [2], [1], [3]]


@pytest.mark.parametrize("where", ["inside", "in the pool"])
def test_function_that_returns_futures_may_call_itself(threads: Threads, where: str) -> None:
    """In the pool it is outside, and needs a free turn."""

    def less(items: list[int]) -> list[int]:
        return [1 + f(item - 1) if item else 0 for item in items]

    with ThreadPoolExecutor(3) as pool:
        ways: dict[str, Any] = {
            "inside": lambda items: pool.submit(list, less(items)),
            "in the pool": lambda items: pool.submit(less, items),
        }
        f = threads(ways[where], batch_size=2, concurrency=1 if where == "inside" else 3)
        assert f(2) == 2
        assert where == "in the pool" or threads.outcomes(threads.starts(f, [7, 8, 9])) == [7, 8, 9]
        threads.until_idle(f)
        threads.consistent(f)


def test_isolate_splits_a_map_from_inside_that_an_engine_answers(threads: Threads) -> None:
    def in_the_pool(xs: list[int]) -> list[int]:
        if 2 in xs:
            raise ValueError([2])
        return [-x for x in xs]

    def function(xs: list[Any]) -> Any:
        if xs != ["all"]:
            return pool.submit(in_the_pool, xs)
        results = f.map([0, 1, 2, 3])
        got = [next(results), next(results)]
        with pytest.raises(ValueError, match="2"):
            next(results)
        return [got]

    with ThreadPoolExecutor(1) as pool:
        f = threads(function, batch_size=4, isolate=True)
        assert threads.outcome(threads.start(f, "all")) == [0, -1]
        threads.until_idle(f)
        threads.consistent(f)
    assert threads.batches[:5] == [["all"], [0, 1, 2, 3], [0, 1], [2, 3], [2]]  # nobody waits for 3 any more


# Futures that are never done


def test_future_that_is_never_done_fails_its_batch_when_it_is_dropped() -> None:
    with batched(batch_size=1)(lambda items: Future()) as f:
        with pytest.raises(BatchError, match="dropped it unfinished"):
            f(1)
        with pytest.raises(BatchError, match="dropped it unfinished"):
            f(2)


def test_future_that_is_never_done_fails_a_call_from_inside() -> None:
    def function(items: list[int]) -> Any:
        return [f(1)] if items == [0] else Future()

    with batched(batch_size=1)(function) as f, pytest.raises(BatchError, match="dropped it unfinished"):
        f(0)


def test_future_that_is_dropped_just_as_the_flush_thread_falls_asleep_makes_room() -> None:
    engines: list[Future[Any]] = []

    def function(items: list[int]) -> Any:
        if items != [0]:
            return items
        engines.append(Future())
        other.extend(in_threads(f.submit, [1]))
        return engines[0]

    other: list[Future[int]] = []
    f = batched(batch_size=1)(function)
    inside.as_it_falls_asleep(f, engines.clear)
    with f:
        assert type(f.submit(0).exception()) is BatchError
        assert other[0].result() == 1


def test_turn_that_a_returned_future_has_is_not_lent_again_when_the_batch_beneath_ends() -> None:
    engine: Future[Any] = Future()
    done_as_next_began: list[bool] = []

    def complete() -> None:
        until(lambda: f.stats.pending == 1 or bool(done_as_next_began))
        engine.set_result(["future"])

    def function(items: list[str]) -> Any:
        if items == ["outer"]:
            f("middle")
            threading.Thread(target=complete).start()
            f("next")
        elif items == ["middle"]:
            with pytest.raises(TimeoutError):
                f.submit("future").result(0.01)  # runs that on the turn that this was lent
        elif items == ["future"]:
            return engine
        else:
            done_as_next_began.append(engine.done())
        return items

    with batched(batch_size=1)(function) as f:
        assert f("outer") == "outer"
    assert done_as_next_began == [True]


def test_turn_that_was_lent_is_taken_until_a_returned_future_is_done_though_who_lent_it_has_ended() -> None:
    engine: Future[Any] = Future()
    done_as_next_began: list[bool] = []

    def function(items: list[str]) -> Any:
        if items == ["future"]:
            return engine
        if items == ["lends"]:
            with pytest.raises(TimeoutError):
                f.submit("future").result(0.01)
        else:
            done_as_next_began.append(engine.done())
        return items

    with batched(batch_size=1)(function) as f:
        assert f("lends") == "lends"
        following = f.submit("next")
        until(lambda: inside.waits_for_room(f) or bool(done_as_next_began))
        engine.set_result(["future"])
        assert following.result() == "next"
    assert done_as_next_began == [True]


def test_batch_lends_its_turn_though_a_returned_future_still_has_the_one_that_was_lent_before() -> None:
    engine: Future[Any] = Future()

    def function(items: list[str]) -> Any:
        if items == ["slow"]:
            return engine
        if items == ["impatient"]:
            with pytest.raises(TimeoutError):
                f.submit("slow").result(0.01)
        answered: Future[Any] = Future()
        answered.set_result([f("leaf")] if items == ["waits"] else items)
        return answered

    with batched(batch_size=1, concurrency=2)(function) as f:
        assert f("one that returns a future, so that a single thread runs all") is not None
        assert f("impatient") == "impatient"
        assert f("waits") == "leaf"
        engine.set_result(["slow"])


def test_callback_of_a_returned_future_lends_one_turn_however_often_it_gives_up() -> None:
    engines: dict[int, Future[list[int]]] = {}

    def function(items: list[int]) -> "Future[list[int]]":
        engines[items[0]] = Future()
        return engines[items[0]]

    def give_up_often(_: object) -> None:
        for item in (1, 2, 3):
            wait([f.submit(item)], timeout=0.01)

    f = batched(batch_size=1)(function)
    first = f.submit(0)
    first.add_done_callback(give_up_often)
    until(lambda: 0 in engines)
    in_threads(engines[0].set_result, [[0]])
    assert engines.keys() == {0, 1}
    for item in (1, 2, 3):
        until(lambda: item in engines)  # noqa: B023 - run at once
        engines[item].set_result([item])
    f.close()
    assert f.stats.in_flight == 0


def test_callback_that_lends_the_turn_of_another_function_takes_none_of_the_one_beneath() -> None:
    engines: list[Future[list[int]]] = []

    def engine_of(_: list[int]) -> "Future[list[int]]":
        engines.append(Future())
        return engines[-1]

    def function(items: list[int]) -> list[int]:
        if items == [0]:
            engines[0].set_result([0])  # here the callback gives up
            assert f(1) == 1
            engines[1].set_result([1])
        return items

    with batched(batch_size=1)(engine_of) as g, batched(batch_size=1)(function) as f:
        first = g.submit(0)
        first.add_done_callback(lambda _: wait([g.submit(1)], timeout=0.01))
        until(lambda: len(engines) == 1)
        assert f(0) == 0


def test_function_that_returns_futures_takes_turns_that_are_free_while_it_waits_inside() -> None:
    engines: dict[int, Future[list[int]]] = {}

    def function(items: list[int]) -> "Future[list[int]]":
        future: Future[list[int]] = Future()
        if items == [0]:
            wait([f.submit(1), f.submit(2)])
        if items[0] in (1, 2):
            engines[items[0]] = future
            if len(engines) == 2:  # an engine that answers the one only when it has the other
                for item, each in engines.items():
                    each.set_result([item])
        else:
            future.set_result(items)
        return future

    with batched(batch_size=1, concurrency=3)(function) as f:
        assert f(-1) == -1  # from now on one thread runs all
        assert f(0) == 0
