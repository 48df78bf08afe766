"""Calls made from inside the function are answered: by the function itself, by another one, and by a ring of functions
that call each other. They keep to the limits, as all calls do.
"""

from collections.abc import Callable, Generator
from typing import Any

import pytest

from batchify import ClosedError

from ..kit import Kit, Steps

WAYS = ["call", "submit", "map"]


def ask(f: Any, way: str, item: Any) -> Generator[Any, Any, Any]:
    """Pass an item from inside, in one of these ways, and wait for its result."""
    if way == "call":
        return (yield f, item)
    if way == "submit":
        return (yield f.submit(item))
    (result,) = yield f.map, [item]
    return result


def by_item(step: Callable[[Any], Generator[Any, Any, Any]]) -> Callable[[list[Any]], Steps]:
    """Make the function for a list of one for an item."""

    def function(xs: list[Any]) -> Steps:
        results = []
        for x in xs:
            results.append((yield from step(x)))  # noqa: PERF401 - no `yield` in a comprehension
        return results

    return function


def wait_for(future: Any) -> Generator[Any, Any, Any]:
    return (yield future)


wait_for_all = by_item(wait_for)


def close_inside(kit: Kit, f: Any) -> Any:
    return (f.close if kit.kind == "threads" else f.aclose,)


# A function that calls itself


@pytest.mark.parametrize("way", WAYS)
def test_function_that_calls_itself_is_answered(kit: Kit, way: str) -> None:
    def factorial(x: int) -> Generator[Any, Any, int]:
        return x * (yield from ask(f, way, x - 1)) if x else 1

    f = kit.steps(by_item(factorial), batch_size=3, timeout=None)
    assert kit.outcomes(kit.submits(f, [3, 4, 5])) == [6, 24, 120]
    f.timeout = 0.0
    assert kit.outcomes(kit.starts(f, [3, 4, 5])) == [6, 24, 120]
    kit.until_idle(f)
    kit.consistent(f)


def test_function_that_maps_and_submits_to_itself_is_answered(kit: Kit) -> None:
    def power_of_two(x: int) -> Generator[Any, Any, int]:
        return sum((yield f.map, range(x))) + (yield f.submit(0)) if x else 1

    f = kit.steps(by_item(power_of_two), batch_size=4)
    assert kit.outcome(kit.start(f, 3)) == 8


def test_function_that_calls_itself_is_answered_for_any_concurrency(kit: Kit) -> None:
    def fibonacci(x: int) -> Generator[Any, Any, int]:
        return x if x < 2 else (yield f, x - 1) + (yield f, x - 2)

    f = kit.steps(by_item(fibonacci), batch_size=2, concurrency=3, isolate=True, dedupe=True, max_pending=1000)
    assert kit.outcomes(kit.starts(f, range(10))) == [0, 1, 1, 2, 3, 5, 8, 13, 21, 34]
    kit.until_idle(f)
    kit.consistent(f)


def test_map_from_inside_makes_full_batches(kit: Kit) -> None:
    def function(xs: list[int]) -> Steps:
        if xs != [8]:
            return xs
        return [sum((yield f.map, [1] * 8))]

    f = kit.steps(function, batch_size=4)
    assert kit.outcome(kit.start(f, 8)) == 8
    assert f.stats.sizes == {1: 1, 4: 2}


def test_map_from_inside_keeps_to_weight_and_groups(kit: Kit) -> None:
    def function(xs: list[int]) -> Steps:
        return [(yield f.map, [1, 2, 3, 4])] if xs == [0] else xs

    f = kit.steps(function, batch_size=4, weight=lambda x: x, max_weight=5, group_by=lambda x: x % 2)
    assert kit.outcome(kit.start(f, 0)) == [1, 2, 3, 4]
    assert kit.batches == [[0], [1, 3], [2], [4]]


def test_isolate_splits_batches_from_inside(kit: Kit) -> None:
    def function(xs: list[Any]) -> Steps:
        if xs != ["all"]:
            return [x + 0 * (1 // (x - 7)) for x in xs]
        futures = [f.submit(x) for x in range(4)]
        mapped = f.map([5, 6, 7, 8])
        results = [(yield kit.anext, mapped), (yield kit.anext, mapped)]
        with pytest.raises(ZeroDivisionError):
            yield kit.anext, mapped
        with pytest.raises(ZeroDivisionError):
            yield f, 7
        return [results + (yield from wait_for_all(futures))]

    f = kit.steps(function, batch_size=4, isolate=True)
    assert kit.outcome(kit.start(f, "all")) == [5, 6, 0, 1, 2, 3]
    assert [5, 6, 7, 8] in kit.batches
    kit.until_idle(f)
    kit.consistent(f)


def test_isolate_inside_gives_no_item_the_error_of_the_whole_batch_as_context(kit: Kit) -> None:
    def function(xs: list[Any]) -> Steps:
        if xs != ["outer"]:
            if 2 in xs:
                raise ValueError("two")
            return xs
        found: list[Any] = []
        for future in [f.submit(1), f.submit(2)]:
            try:
                found.append((yield future))
            except ValueError as error:
                found.append(error)
        return [found + (yield f.map, [3])]

    f = kit.steps(function, batch_size=2, isolate=True)
    first, error, last = kit.outcome(kit.start(f, "outer"))
    assert (first, last) == (1, 3)
    assert type(error) is ValueError
    assert error.__context__ is None or error.__context__ is error.__cause__
    assert error.__cause__ is not None
    assert error.__cause__.__context__ is None


# Calls of another function


@pytest.mark.parametrize("way", WAYS)
def test_call_of_another_function_from_inside_joins_its_batch(kit: Kit, way: str) -> None:
    def function(xs: list[int]) -> Steps:
        return [(yield from ask(inner, way, xs[0]))]

    inner = kit(batch_size=2, timeout=None)
    outer = kit.steps(function, batch_size=1)
    outside = kit.submit(inner, 0)
    assert kit.outcomes([kit.submit(outer, 1), outside]) == [-1, 0]
    assert inner.stats.sizes_by_reason == {"full": {2: 1}}


def test_calls_of_another_function_from_inside_fill_its_batch_together(kit: Kit) -> None:
    def function(xs: list[int]) -> Steps:
        return (yield from wait_for_all([inner.submit(x) for x in xs]))

    inner = kit(batch_size=3, timeout=None)
    outer = kit.steps(function, batch_size=2, timeout=None)
    handles = [*kit.submits(outer, [1, 2]), kit.submit(inner, 3)]
    assert kit.outcomes(handles) == [-1, -2, -3]
    assert inner.stats.sizes_by_reason == {"full": {3: 1}}


def test_calls_from_inside_do_not_wait_past_the_deadline_of_the_first(kit: Kit) -> None:
    def function(xs: list[int]) -> Steps:
        futures.append(inner.submit(1))
        yield (between.wait,)
        futures.append(inner.submit(2))
        yield (end.wait,)
        return [future.done() for future in futures]

    kit.stop_the_clock()
    futures: list[Any] = []
    between, end = kit.event(), kit.event()
    inner = kit(batch_size=9, timeout=1.0)
    outer = kit.steps(function, batch_size=2, timeout=None)
    outcomes = kit.submits(outer, [0, 0])
    kit.until(lambda: len(futures) == 1)
    kit.move(0.5)
    between.set()
    kit.until(lambda: len(futures) == 2)
    kit.settle()
    assert not any(future.done() for future in futures)
    kit.move(0.5)
    kit.until(lambda: all(future.done() for future in futures))
    end.set()
    assert kit.outcomes(outcomes) == [True, True]
    assert inner.stats.sizes_by_reason == {"timeout": {2: 1}}


@pytest.mark.parametrize("way", WAYS)
def test_closed_function_refuses_calls_from_inside_another_one(kit: Kit, way: str) -> None:
    def function(xs: list[int]) -> Steps:
        return [(yield from ask(closed, way, xs[0]))]

    closed = kit(batch_size=1)
    assert kit.outcome(kit.start(closed, 0)) == 0
    kit.close(closed)
    f = kit.steps(function, batch_size=1)
    assert type(kit.outcome(kit.start(f, 1))) is ClosedError


@pytest.mark.parametrize("links", [lambda x: [x + 1], lambda x: [2 * x + 1, 2 * x + 2]], ids=["chain", "tree"])
def test_crawler_that_submits_what_it_finds_gets_full_batches_and_no_deeper(
    kit: Kit, links: Callable[[int], list[int]]
) -> None:
    def crawl(xs: list[int]) -> list[int]:
        pages.extend(f.submit(link) for x in xs for link in links(x) if link < 1000)
        return xs

    pages: list[Any] = []
    f = kit(crawl, batch_size=10)
    pages.append(kit.submit(f, 0))
    kit.until(lambda: f.stats.answered == 1000)
    assert sorted(kit.outcomes(pages)) == list(range(1000))
    assert kit.most == 1
    assert "nested" not in f.stats.reasons
    assert len(links(0)) == 1 or f.stats.sizes[10] >= 98
    kit.consistent(f)


# Rings: functions that call each other


def test_functions_that_call_each_other_are_answered(kit: Kit) -> None:
    def even(x: int) -> Generator[Any, Any, bool]:
        return x == 0 or (yield is_odd, x - 1)

    def odd(x: int) -> Generator[Any, Any, bool]:
        return x != 0 and (yield is_even, x - 1)

    is_even, is_odd = kit.steps(by_item(even), batch_size=2), kit.steps(by_item(odd), batch_size=2)
    assert kit.outcomes(kit.starts(is_even, range(20))) == [x % 2 == 0 for x in range(20)]
    handles = [kit.start(f, 7) for f in [is_even, is_odd] * 10]
    assert kit.outcomes(handles) == [False, True] * 10
    kit.close(is_odd)
    kit.close(is_even)


@pytest.mark.parametrize("way", ["submit", "map", "close"])
def test_ring_is_found_whatever_the_first_function_waits_with(kit: Kit, way: str) -> None:
    def first_function(xs: list[int]) -> Steps:
        if xs == [0]:
            return xs
        if way == "close":
            second.submit(xs[0])
            entered.set()
            yield close_inside(kit, second)
            return xs
        entered.set()
        return [(yield from ask(second, way, xs[0]))]

    def second_function(xs: list[int]) -> Steps:
        yield (entered.wait,)
        yield kit.while_it_waits, first
        return [(yield first, 0) + xs[0]]

    entered = kit.event()
    first, second = kit.steps(first_function, batch_size=1), kit.steps(second_function, batch_size=1)
    assert kit.outcome(kit.start(first, 1)) == 1
    kit.close(second)
    kit.close(first)


def test_function_that_closes_the_one_that_waits_for_it_is_not_held_up(kit: Kit) -> None:
    def first_function(xs: list[int]) -> Steps:
        if xs == [0]:
            yield (entered.wait,)
            yield kit.while_it_waits, second
            yield close_inside(kit, second)
        return xs

    def second_function(xs: list[int]) -> Steps:
        entered.set()
        return [(yield first, 1)]

    entered = kit.event()
    first, second = kit.steps(first_function, batch_size=1), kit.steps(second_function, batch_size=1)
    assert kit.outcomes([kit.submit(first, 0), kit.submit(second, 0)]) == [0, 1]
    kit.close(second)
    kit.close(first)


def test_functions_that_close_and_call_each_other_end(kit: Kit) -> None:
    def first_function(xs: list[int]) -> Steps:
        if xs == [1]:
            closes.set()
            yield close_inside(kit, second)
        return xs

    def second_function(xs: list[int]) -> Steps:
        yield (closes.wait,)
        yield kit.while_it_waits, first
        return [(yield first, xs[0])]

    closes = kit.event()
    first, second = kit.steps(first_function, batch_size=1), kit.steps(second_function, batch_size=1)
    other = kit.submit(second, 2)
    assert kit.outcomes([kit.submit(first, 1), other]) == [1, 2]
    kit.close(second)
    kit.close(first)


def test_calls_from_inside_both_ways_are_answered_though_one_waits_later(kit: Kit) -> None:
    def first_function(xs: list[int]) -> Steps:
        if xs == [0]:
            return xs
        future = second.submit(1)
        passed.set()
        yield (called.wait,)
        return [(yield future)]

    def second_function(xs: list[int]) -> Steps:
        yield (passed.wait,)
        # The first function does not wait by now, but will.
        future = first.submit(0)
        called.set()
        return [(yield future) + xs[0]]

    passed, called = kit.event(), kit.event()
    first, second = kit.steps(first_function, batch_size=1), kit.steps(second_function, batch_size=1)
    assert kit.outcome(kit.start(first, 9)) == 1
    kit.close(first)
    kit.close(second)


@pytest.mark.parametrize("to", ["another function", "the same function"])
def test_ring_is_found_however_many_calls_are_made_meanwhile(kit: Kit, to: str) -> None:
    def first_function(xs: list[int]) -> Steps:
        if xs == [0]:
            return xs
        future = second.submit(1)
        for x in range(200):
            yield (other if to == "another function" else second), -x
        passed.set()
        return [(yield future)]

    def second_function(xs: list[int]) -> Steps:
        if xs != [1]:
            return xs
        yield (passed.wait,)
        return [(yield first, 0) + xs[0]]

    passed = kit.event()
    first = kit.steps(first_function, batch_size=1)
    second = kit.steps(second_function, batch_size=1, concurrency=2)
    other = kit(batch_size=1)
    assert kit.outcome(kit.start(first, 9)) == 1


def test_ring_is_found_again_when_a_wait_in_it_has_ended(kit: Kit) -> None:
    """While `even` waits for `odd`, and `odd` for `even`, a batch of `even` waits for a third function."""

    def even_function(xs: list[int]) -> Steps:
        return [(yield (odd if xs == [0] else third), xs[0])]

    def odd_function(xs: list[int]) -> Steps:
        return [[(yield even, 1), (yield even, 2)]]

    even, odd = kit.steps(even_function, batch_size=1), kit.steps(odd_function, batch_size=1)
    third = kit(batch_size=1)
    assert kit.outcome(kit.start(even, 0)) == [-1, -2]


def test_call_into_a_ring_of_other_functions_is_answered(kit: Kit) -> None:
    def first_function(xs: list[int]) -> Steps:
        if xs == [0]:
            return [(yield second, 1)]
        if xs == [2]:
            yield (go_on.wait,)
        return xs

    def second_function(xs: list[int]) -> Steps:
        return [(yield first, 2)]

    def third_function(xs: list[int]) -> Steps:
        return [(yield first, 3)]

    go_on = kit.event()
    first, second, third = (kit.steps(each, batch_size=1) for each in (first_function, second_function, third_function))
    ring = kit.start(first, 0)
    kit.until(lambda: [2] in kit.batches)
    outside = kit.start(third, 9)
    kit.until_waits(first, pending=1)
    go_on.set()
    assert kit.outcomes([ring, outside]) == [2, 3]


# No ring: such a call waits its turn


@pytest.mark.parametrize("what", ["answered", "cancelled"])
def test_call_from_inside_that_needs_no_answer_any_more_makes_no_ring(kit: Kit, what: str) -> None:
    def first_function(xs: list[int]) -> Steps:
        if xs == [9]:
            future = second.submit(1)
            if what == "answered":
                second.flush()
                assert (yield future) == 1
            else:
                assert future.cancel()
            passed.set()
            yield (go_on.wait,)
        return xs

    def second_function(x: int) -> Generator[Any, Any, int]:
        return (yield first, 0) if x == 2 else x

    passed, go_on = kit.event(), kit.event()
    first = kit.steps(first_function, batch_size=1)
    second = kit.steps(by_item(second_function), batch_size=2, timeout=None)
    future = kit.submit(first, 9)
    kit.until(passed.is_set)
    caller = kit.submit(second, 2)
    kit.flush(second)
    kit.until(lambda: first.stats.pending == 1 or caller.done())
    assert (first.stats.pending, first.stats.running) == (1, 1)
    go_on.set()
    assert kit.outcomes([future, caller]) == [9, 0]
    assert first.stats.reasons == {"full": 2}
    kit.close(second)
    kit.close(first)


def test_call_from_inside_makes_no_ring_once_its_function_has_ended(kit: Kit) -> None:
    def first_function(xs: list[int]) -> list[int]:
        if xs == [9]:
            kept.append(second.submit(1))
        return xs

    def second_function(x: int) -> Generator[Any, Any, int]:
        return (yield first, 0) if x == 2 else x

    kept: list[Any] = []
    first = kit(first_function, batch_size=1)
    second = kit.steps(by_item(second_function), batch_size=2, timeout=None)
    assert kit.outcome(kit.start(first, 9)) == 9
    kit.settle(first)
    assert kit.outcomes([kit.submit(second, 2), *kept]) == [0, 1]
    assert first.stats.reasons == {"full": 2}
    kit.close(second)
    kit.close(first)
