"""Dropping a function ends its flush threads, however they sleep, and never waits for them."""

import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from .. import inside
from ..kit import Threads
from ..tools import Gated, batched, until


def flush_thread(f: Any) -> threading.Thread:
    (thread,) = inside.threads_of(f)
    return thread


# The flush thread ends


@pytest.mark.parametrize("refers_to_itself", [False, True])
def test_flush_thread_ends_when_its_idle_function_is_dropped(refers_to_itself: bool) -> None:
    def dropped(items: list[int]) -> list[int]:
        return items if f else []

    f: Any = batched(batch_size=1)(dropped)
    assert f(1) == 1
    thread = flush_thread(f)
    until(lambda: inside.sleeps_without_end(f))
    function = weakref.ref(dropped)
    if not refers_to_itself:
        g, f = f, None
        del g
    del dropped
    if refers_to_itself:
        del f
    gc.collect()
    thread.join()
    assert function() is None


def test_flush_thread_ends_though_it_sleeps_for_the_timeout_after_a_batch() -> None:
    """That sleep is to save wake-ups; it is not for the function's sake."""
    f: Any = batched(batch_size=2, timeout=10**6)(lambda items: items)
    future = f.submit(1)
    thread = flush_thread(f)
    until(lambda: inside.sleeps(f))
    assert f(2) == 2
    assert future.result() == 1
    until(lambda: inside.sleeps(f))
    f = None
    thread.join()


def test_flush_thread_ends_before_the_timeout_of_a_cancelled_item() -> None:
    f: Any = batched(batch_size=2, timeout=10**6)(lambda items: items)
    future = f.submit(1)
    thread = flush_thread(f)
    until(lambda: inside.sleeps_until_an_item_is_due(f))
    assert future.cancel()
    f = None
    thread.join()


@pytest.mark.thread_unsafe(reason="counts the threads of the whole process")
@pytest.mark.parametrize("how", ["dropped", "closed", "dropped while it runs"])
def test_all_flush_threads_of_a_function_end_with_it(threads: Threads, how: str) -> None:
    f = threads(gated=True, batch_size=1, concurrency=4)
    handles = threads.submits(f, range(4))
    threads.until(lambda: threads.running == 4)
    mine = inside.threads_of(f)
    assert len(mine) == 1 + 4  # the first one gives them to the others
    gone = inside.reference_to_the_engine(f)
    if how != "dropped while it runs":
        threads.go_on(4)
        assert threads.outcomes(handles) == [0, -1, -2, -3]
    if how == "closed":
        f.close()
        assert not any(thread.is_alive() for thread in mine)
    del f
    threads.made.clear()
    threads.go_on(4)
    assert threads.outcomes(handles) == [0, -1, -2, -3]

    def all_gone() -> bool:
        gc.collect()
        return gone() is None and not any(thread.is_alive() for thread in mine)

    threads.until(all_gone)


# What waits without a timeout is answered when nobody can fill its batch any more


def test_items_without_timeout_of_a_dropped_function_are_answered() -> None:
    for _ in range(20):
        futures = [batched(batch_size=2, timeout=None)(lambda items: items).submit(number) for number in range(3)]
        gc.collect()
        assert [future.result() for future in futures] == [0, 1, 2]


@pytest.mark.parametrize("started", [False, True])
def test_dropped_function_is_collected_when_all_is_answered(started: bool) -> None:
    f: Any = batched(batch_size=2, timeout=None)(lambda items: items)
    futures = [f.submit(1)]
    if started:  # its thread has seen what is left over
        futures += [f.submit(2), f.submit(3)]
        until(lambda: inside.sleeps_without_end(f) and f.stats.answered == 2)
    thread, function = flush_thread(f), weakref.ref(f.__wrapped__)
    f = None
    assert [future.result() for future in futures] == list(range(1, len(futures) + 1))
    thread.join()
    del futures
    until(lambda: function() is None)


@pytest.mark.parametrize("inside_of_a_function", [False, True])
def test_dropped_function_answers_a_future_that_is_being_waited_for(inside_of_a_function: bool) -> None:
    def wait(items: list[Any]) -> list[Any]:
        return [future.result() for future in items]

    f: Any = batched(batch_size=2, timeout=None)(lambda items: [-item for item in items])
    with batched(batch_size=1)(wait) as g, ThreadPoolExecutor(1) as threads:
        future = f.submit(1)
        answer = g.submit(future) if inside_of_a_function else threads.submit(future.result)
        until(lambda: inside.is_waited_for(future))
        del f
        assert answer.result() == -1


def test_dropping_a_function_does_not_wait_for_its_answers() -> None:
    let_on = threading.Event()
    f: Any = batched(batch_size=2, timeout=None)(lambda items: items)
    future = f.submit(1)
    future.add_done_callback(lambda _: let_on.wait())
    thread = flush_thread(f)
    del f
    let_on.set()
    thread.join()
    assert future.result() == 1


# It is collected at once, by counting references alone


@pytest.mark.parametrize("used", ["", "call", "flush", "set", "close"])
@pytest.mark.thread_unsafe(reason="stops the garbage collector")
def test_closed_or_unused_function_is_freed_at_once(used: str) -> None:
    gc.collect()
    gc.disable()
    try:
        f = batched(batch_size=1)(lambda items: items)
        if used == "call":
            assert f(1) == 1
            f.close()
        if used == "flush":
            f.flush()
        if used == "set":
            f.timeout = f.batch_size = 2
        if used:
            f.close()
            f.close()
            f.flush()
        watched = weakref.ref(f.__wrapped__)
        del f
        assert watched() is None
    finally:
        gc.enable()


@pytest.mark.thread_unsafe(reason="stops the garbage collector")
def test_function_that_was_closed_while_it_ran_is_freed_at_once() -> None:
    gc.collect()
    gc.disable()
    try:
        function = Gated()
        f = batched(batch_size=1)(function)
        future = f.submit(1)
        function.entered.acquire()
        inside.begin_to_close(f)
        function.open()
        assert future.result() == 1
        f.close()
        watched = inside.reference_to_the_engine(f)
        del f, future
        assert watched() is None
    finally:
        gc.enable()


# What is kept keeps no function


@pytest.mark.parametrize("how", ["dropped", "closed"])
@pytest.mark.parametrize("what", ["future", "error"])
def test_answer_that_is_kept_keeps_neither_function_nor_thread(how: str, what: str) -> None:
    def raises_it(xs: list[int]) -> list[int]:
        raise ValueError

    f: Any = batched(batch_size=1)(raises_it)
    kept = f.submit(1)
    error = kept.exception()
    if what == "error":
        kept = error
    thread = flush_thread(f)
    if how == "closed":
        f.close()
    gone = inside.reference_to_the_engine(f)
    del f, error
    gc.collect()
    thread.join()
    gc.collect()
    assert gone() is None
    assert type(kept.exception() if what == "future" else kept) is ValueError
