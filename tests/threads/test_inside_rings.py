"""Functions on threads that call each other in a ring are answered, in whatever way and whenever they wait."""

import asyncio
import concurrent.futures
import gc
import sys
import threading
import weakref
from concurrent.futures import Future
from typing import Any

import pytest

from .. import inside
from ..tools import batched, until


@pytest.mark.parametrize("how", ["map", "aio"])
def test_calls_from_inside_both_ways_are_answered_though_one_waits_later(how: str) -> None:
    passed, called = threading.Event(), threading.Event()

    def first_function(items: list[int]) -> list[int]:
        if items == [0]:
            return items

        async def later() -> int:
            task = asyncio.create_task(second.aio(1))
            await asyncio.sleep(0)
            meet()
            result: int = await task
            return result

        def meet() -> None:
            passed.set()
            called.wait()

        if how == "aio":
            return [asyncio.run(later())]
        results = second.map(iter([1, 2]))  # one item at a time
        found = [next(results)]
        meet()
        return [*found, *results][:1]

    def second_function(items: list[int]) -> list[int]:
        if how != "map" or items == [2]:
            passed.wait()
        # By now the first function is not blocked, but will be: this call must not wait for its thread.
        future = first.submit(0)
        called.set()
        return [future.result() + items[0]]

    first, second = batched(batch_size=1)(first_function), batched(batch_size=1)(second_function)
    assert first(9) == 1
    first.close()
    second.close()


def test_answered_calls_from_inside_are_not_kept() -> None:
    kept: list[weakref.ref[Any]] = []

    class Item:
        pass

    def function(items: list[int]) -> list[int]:
        for _ in range(300):
            item = Item()
            kept.append(weakref.ref(item))
            other.submit(item).result()
            del item
        return [sum(each() is not None for each in kept)]

    with batched(batch_size=1)(lambda items: [None]) as other, batched(batch_size=1)(function) as f:
        assert f(0) < 200


def test_ring_is_found_though_its_thread_answers_the_batch_of_another_function_meanwhile() -> None:
    engine: Future[list[int]] = Future()
    passed = threading.Event()

    def first_function(items: list[int]) -> list[int]:
        if items == [0]:
            return items
        future = second.submit(1)
        engine.set_result([2])
        passed.set()
        concurrent.futures.wait([future])  # nobody knows that this waits
        return [future.result()]

    def second_function(items: list[int]) -> list[int]:
        passed.wait()
        return [first(0) + items[0]]

    first, second = batched(batch_size=1)(first_function), batched(batch_size=1)(second_function)
    third = batched(batch_size=1)(lambda items: engine)
    answer = third.submit(2)
    until(lambda: inside.waits_for_room(third))
    assert first(9) == 1
    assert answer.result() == 2
    for f in (first, second, third):
        f.close()


def test_call_into_a_ring_that_goes_through_a_callback_is_answered() -> None:
    """The thread of `first` answers a batch of `ring`, and stops in its callback; `second` waits for `ring`.

    And `first` will wait for `second`. Whoever follows that must not do so for ever.
    """
    engine: Future[list[int]] = Future()
    called, go_on = threading.Event(), threading.Event()

    def first_function(items: list[int]) -> list[int]:
        future = second.submit(5)
        until(lambda: ring.stats.pending == 1)
        engine.set_result([2])
        return [future.result()]

    def stop(_: object) -> None:
        called.set()
        go_on.wait()

    ring = batched(batch_size=1)(lambda items: engine if items == [2] else items)
    second = batched(batch_size=1)(lambda items: [ring(items[0])])
    first = batched(batch_size=1)(first_function)
    outside = batched(batch_size=1)(lambda items: [ring(items[0])])
    answer = ring.submit(2)
    answer.add_done_callback(stop)
    until(lambda: inside.waits_for_room(ring))
    future = first.submit(0)
    called.wait()
    last = outside.submit(9)
    until(lambda: ring.stats.accepted == 3)
    go_on.set()
    assert [future.result(), answer.result(), last.result()] == [5, 2, 9]
    for f in (outside, first, second, ring):
        f.close()


# Where a wait ends badly


@pytest.mark.thread_unsafe(reason="changes the recursion limit of all")
@pytest.mark.parametrize("concurrency", [1, 2])
def test_ring_without_end_ends_at_the_recursion_limit(concurrency: int) -> None:
    with (
        batched(batch_size=1, concurrency=concurrency)(lambda items: [g(item + 1) for item in items]) as f,
        batched(batch_size=1)(lambda items: [f(item + 1) for item in items]) as g,
    ):
        before = sys.getrecursionlimit()
        sys.setrecursionlimit(500)
        try:
            assert isinstance(f.submit(0).exception(), RecursionError)
        finally:
            sys.setrecursionlimit(before)
        f.drain()
        g.drain()
        assert (f.stats.pending, f.stats.in_flight, g.stats.pending, g.stats.in_flight) == (0, 0, 0, 0)


def test_loop_that_is_closed_while_something_is_awaited_there_spares_the_next_one() -> None:
    tasks: list[Any] = []

    def function(items: list[Any]) -> list[Any]:
        if items == ["child"]:
            return items

        async def passes() -> int:
            tasks.append(asyncio.ensure_future(g.aio(1)))
            return 0

        async def waits() -> Any:
            return await f.aio("child")

        loop = asyncio.new_event_loop()
        loop.set_exception_handler(lambda *_: None)  # that nobody waits for the task any more
        try:
            return [loop.run_until_complete(passes() if items == [1] else waits())]
        finally:
            loop.close()

    with batched(batch_size=1)(lambda items: items) as g, batched(batch_size=1)(function) as f:
        assert (f(1), f(2)) == (0, "child")


def test_thread_keeps_nothing_of_what_was_awaited_there_on_a_loop() -> None:
    class Item:
        pass

    def function(items: list[Any]) -> list[Any]:
        item = Item()
        seen.append(weakref.ref(item))
        asyncio.run(g.aio(item))
        return items

    seen: list[Any] = []
    with batched(batch_size=1)(lambda items: [0 for _ in items]) as g, batched(batch_size=1)(function) as f:
        assert f(1) == 1
        until(lambda: gc.collect() >= 0 and seen[0]() is None)  # g's own thread may be leaving its batch yet


def test_no_more_threads_run_a_function_than_have_turns_though_many_turns_were_lent() -> None:
    def function(items: list[int]) -> list[int]:
        return [item and f(item - 1) for item in items]

    with batched(batch_size=1, concurrency=2)(function) as f:
        assert f(30) == 0
        assert [f(0) for _ in range(20)] == [0] * 20
        assert len(inside.threads_of(f)) <= 3  # the flush thread and two more


@pytest.mark.parametrize("options", [{}, {"group_by": lambda _: 0}], ids=["plain", "grouped"])
@pytest.mark.parametrize("concurrency", [1, 2])
def test_many_callers_whose_items_wait_for_others_come_to_no_recursion_limit(
    concurrency: int, options: dict[str, Any]
) -> None:
    """Each waits behind all the others, so all would stand on one stack."""
    begin = threading.Event()

    def function(items: list[int]) -> list[int]:
        begin.wait()
        return [item and f(0) for item in items]

    with batched(batch_size=1, concurrency=concurrency, **options)(function) as f:
        futures = [f.submit(1) for _ in range(400)]
        begin.set()
        assert [future.result() for future in futures] == [0] * 400
