"""`f.map()` over threads, whose items may come from an iterator that blocks: a socket, a queue.

So it reads them one at a time, and no item or result that is there waits for the next one to come.
"""

import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any

import pytest

from .. import inside
from ..tools import Gated, batched, until

# Iterators that block


def test_map_passes_on_each_item_as_soon_as_it_is_read() -> None:
    def slow() -> Iterator[int]:
        for number in range(3):
            until(lambda: f.stats.answered == number)  # noqa: B023 - run at once
            yield number

    with batched(batch_size=8, timeout=0.0)(lambda items: items) as f:
        assert list(f.map(slow())) == [0, 1, 2]


def test_map_result_does_not_wait_for_the_next_item() -> None:
    function = Gated()

    def items() -> Iterator[int]:
        yield 0
        function.let_on.release()
        until(lambda: f.stats.answered == 1)
        yield 1
        read_too_far.append(True)

    read_too_far: list[bool] = []
    with batched(batch_size=4)(function) as f:
        results = f.map(items())
        assert next(results) == 0
        assert not read_too_far
        results.close()
        function.open()


def test_map_first_result_does_not_wait_for_the_next_item_though_later_results_are_not_there() -> None:
    function = Gated()

    def items() -> Iterator[int]:
        yield 0
        function.entered.acquire()
        others.append(f.submit(9))
        function.let_on.release()
        function.entered.acquire()  # by the other item: the first one is answered
        yield 1
        read_too_far.append(True)

    others: list[Future[Any]] = []
    read_too_far: list[bool] = []
    with batched(batch_size=2)(function) as f:
        results = f.map(items())
        assert next(results) == 0
        assert not read_too_far
        function.open()
        assert list(results) == [1]
        assert others[0].result() == 9


# Nothing without a reason


@pytest.mark.parametrize("from_inside", [False, True])
def test_map_sleeps_until_its_result_is_there(from_inside: bool) -> None:
    bells: list[inside.CountedLock] = []
    read_on = threading.Event()

    def read(_: Any) -> list[Any]:
        read_on.wait()
        with nullcontext() if from_inside else inside.locks_made(bells):
            results = f.map([1, 2])
            first = next(results)
        return [[first, *results]]

    function = Gated()
    with inside.locks_made(bells) if from_inside else nullcontext():
        g = batched(batch_size=1)(read)
    with batched(batch_size=2)(function) as f, g, ThreadPoolExecutor(1) as pool:
        other = f.submit(0)  # its flush thread is there
        function.entered.acquire()
        outcome = g.submit(0) if from_inside else pool.submit(read, 0)
        until(lambda: not from_inside or g.stats.running == 1)
        before = bells[0].acquired if from_inside else 0  # inside, it sleeps on the bell of the flush thread
        read_on.set()
        until(lambda: bool(bells) and bells[0].acquired > (before if from_inside else 1))  # a lock is open at first
        function.open()
        assert outcome.result() == ([1, 2] if from_inside else [[1, 2]])
        assert bells[0].acquired - before in (1, 2, 3) if from_inside else bells[0].acquired == 2
        assert other.result() == 0
    if not from_inside:
        watched = weakref.ref(bells.pop(0))
        assert watched() is None  # the map has ended, so nobody keeps it to ring it


@pytest.mark.thread_unsafe(reason="looks for threads by name")
def test_map_of_no_items_starts_no_thread() -> None:
    def nothing(items: list[int]) -> list[int]:
        return items

    with batched(batch_size=4)(nothing) as f:
        assert list(f.map([])) == []
        assert "batchify flush thread of nothing()" not in [thread.name for thread in threading.enumerate()]
