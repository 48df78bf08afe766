"""Calls made from inside the function are answered: by the function itself, by another one, and by a ring of functions
that call each other. They keep to the limits, as all calls do: who waits lends its turn, and nothing else.
"""

import asyncio
import concurrent.futures
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from contextlib import nullcontext
from functools import partial
from itertools import permutations
from typing import Any

import pytest

from batchify import BatchReport, BufferFullError, ClosedError, WaitsForItselfError

from ..kit import Kit, Steps, Threads

WAYS = ["call", "submit", "map", "wait", "as completed"]


async def completed(futures: Sequence[Any]) -> None:
    for each in asyncio.as_completed(futures):
        await each


WAITS: dict[tuple[str, str], Callable[..., Any]] = {
    ("threads", "wait"): concurrent.futures.wait,
    ("threads", "as completed"): concurrent.futures.as_completed,
    ("coroutines", "wait"): asyncio.wait,
    ("coroutines", "as completed"): completed,
}


def ask(kit: Kit, f: Any, way: str, items: list[Any]) -> Steps:
    """Pass items from inside, in one of these ways, and wait for their results."""
    if way == "map":
        results: list[Any] = yield f.map, items
        return results
    waiting = [(f, item) if way == "call" else f.submit(item) for item in items]
    if (kit.kind, way) in WAITS:
        yield WAITS[kit.kind, way], waiting
    return (yield from wait_for_all(waiting))


def by_item(step: Callable[[Any], Generator[Any, Any, Any]]) -> Callable[[list[Any]], Steps]:
    """Make the function for a list of one for an item."""

    def function(xs: list[Any]) -> Steps:
        results = []
        for x in xs:
            results.append((yield from step(x)))  # noqa: PERF401 - no `yield` in a comprehension
        return results

    function.__name__ = step.__name__
    return function


def wait_for(awaited: Any) -> Generator[Any, Any, Any]:
    return (yield awaited)


wait_for_all = by_item(wait_for)


def inside(kit: Kit, f: Any, what: str, **options: Any) -> Any:
    """To be yielded: close or drain from inside."""
    return (partial(getattr(f, what if kit.kind == "threads" else f"a{what}"), **options),)


def until_waits_inside(kit: Kit, f: Any) -> None:
    """Wait until the function, which runs, waits for an answer of a batched function."""
    if isinstance(kit, Threads):
        kit.while_it_waits(f)
    kit.settle()


def submitted_inside(kit: Kit, f: Any, *items: Any) -> list[Any]:
    """Submit in a function that does not wait, and return the futures. On loops only such ones are heard."""
    passes = kit(lambda _: [[f.submit(item) for item in items]], batch_size=1)
    found: list[Any] = kit.outcome(kit.start(passes, 0))
    return found


def never_two_at_once(kit: Kit) -> bool:
    """Whether at most one batch of each function of `kit.steps()` did not wait, and each ran in one thread."""
    return {*kit.most_awake.values()} | {len(idents) for idents in kit.idents_of.values()} == {1}


# Passing an item runs nothing


def test_item_passed_inside_waits_its_turn_and_joins_full_batches(kit: Kit) -> None:
    def function(xs: list[int]) -> list[int]:
        if xs == [0]:
            futures.extend(f.submit(x) for x in range(1, 6))
            assert (kit.batches, f.stats.pending, f.stats.running) == ([[0]], 5, 1)
        return xs

    futures: list[Any] = []
    f = kit(function, batch_size=2)
    assert kit.outcome(kit.start(f, 0)) == 0
    assert kit.outcomes(futures) == [1, 2, 3, 4, 5]
    assert kit.batches == [[0], [1, 2], [3, 4], [5]]
    assert (kit.most, f.stats.reasons) == (1, {"full": 2, "free": 2})


@pytest.mark.parametrize("way", ["call", "submit", "map"])
def test_item_passed_inside_counts_against_max_pending(kit: Kit, way: str) -> None:
    def function(xs: list[int]) -> Steps:
        if xs != [0]:
            return xs
        futures.extend(f.submit(x) for x in (1, 2))
        try:
            return (yield from ask(kit, f, way, [3]))
        except BufferFullError:
            return ["refused"]

    futures: list[Any] = []
    f = kit.steps(function, batch_size=9, max_pending=2)
    assert kit.outcome(kit.start(f, 0)) == (3 if way == "map" else "refused")  # a map is never refused
    assert kit.outcomes(futures) == [1, 2]
    assert kit.batches == [[0], [1, 2, 3] if way == "map" else [1, 2]]
    assert f.stats.refused == (way != "map")
    kit.until_idle(f)
    kit.consistent(f)


# Who waits lends its turn


@pytest.mark.parametrize("way", ["submit", "map", "wait", "as completed"])
def test_function_that_waits_for_what_it_submits_gets_full_batches_level_by_level(kit: Kit, way: str) -> None:
    def tree(xs: list[int]) -> Steps:
        f.timeout = None
        children = [child for x in xs for child in (2 * x, 2 * x + 1) if child < 16]
        sizes = (yield from ask(kit, f, way, children)) if children else [0] * 2 * len(xs)
        return [1 + left + right for left, right in zip(sizes[::2], sizes[1::2], strict=True)]

    f = kit.steps(tree, batch_size=4)
    assert kit.outcome(kit.start(f, 1)) == 15
    assert kit.batches == [[1], [2, 3], [4, 5, 6, 7], [8, 9, 10, 11], [12, 13, 14, 15]]
    # A map that has no more items makes due what it has read.
    assert f.stats.reasons == {"free": 1, "full": 3, "flush" if way == "map" else "nested": 1}
    assert never_two_at_once(kit)
    kit.until_idle(f)
    kit.consistent(f)


def test_lent_turn_goes_to_what_stands_before_the_awaited_item_in_its_group_and_no_further(kit: Kit) -> None:
    def function(xs: list[str]) -> Steps:
        if xs == ["waits"]:
            yield (begin.wait,)
            passed.append(f.submit("a4"))
            passed.append(f.submit("a5"))
            yield passed[0]
            answered.append(kit.batches)
            yield (end.wait,)
        return xs

    begin, end = kit.event(), kit.event()
    passed: list[Any] = []
    answered: list[Any] = []
    f = kit.steps(function, batch_size=2, timeout=None, group_by=lambda x: x[0])
    waits = kit.submit(f, "waits")
    kit.flush(f)
    kit.until_runs(1)
    strangers = kit.submits(f, ["b1", "b2", "a1", "a2", "a3", "c1"])  # those of group b are full, and the oldest
    begin.set()
    kit.until(lambda: bool(answered))
    kit.settle(f)
    assert kit.batches == answered[0] == [["waits"], ["a1", "a2"], ["a3", "a4"]]
    end.set()
    assert kit.outcomes([waits, *strangers[:2]]) == ["waits", "b1", "b2"]
    kit.flush(f)
    assert kit.outcomes([strangers[5], passed[1]]) == ["c1", "a5"]
    assert f.stats.reasons == {"flush": 3, "full": 3}
    assert never_two_at_once(kit)


@pytest.mark.parametrize("reason", ["full", "free", "flush", "close", "nested"])
def test_lent_batch_is_reported_by_the_reason_for_which_it_was_due_or_else_as_nested(kit: Kit, reason: str) -> None:
    def function(xs: list[int]) -> Steps:
        if xs != [0]:
            return xs
        f.timeout = 0.0 if reason == "free" else None
        if reason == "close":
            yield (begin.wait,)
            return [(yield f, 1)]
        future = f.submit(1)
        if reason == "full":
            f.submit(2)
        if reason == "flush":
            f.flush()
        return [(yield future)]

    begin = kit.event()
    reports: list[BatchReport] = []
    f = kit.steps(function, batch_size=2, on_batch=reports.append)
    first = kit.start(f, 0)
    kit.until_runs(1)
    closing = kit.start_close(f) if reason == "close" else None
    begin.set()
    assert kit.outcome(first) == 1
    assert closing is None or kit.outcome(closing) is None
    kit.until_idle(f)
    assert (reports[0].reason, reports[0].size) == (reason, 1 + (reason == "full"))
    assert f.stats.reasons == Counter(report.reason for report in reports)
    kit.consistent(f)


def test_turn_is_not_lent_where_another_one_is_free(kit: Kit) -> None:
    """The item waits for company, as from outside."""

    def function(xs: list[int]) -> Steps:
        f.timeout = None
        return [(yield f, 1)] if xs == [0] else xs

    f = kit.steps(function, batch_size=2, concurrency=2)
    first = kit.start(f, 0)
    kit.until_runs(1)
    kit.until_waits(f, pending=1)
    kit.settle(f)
    assert kit.batches == [[0]]
    assert kit.outcomes([kit.submit(f, 2), first]) == [2, 1]
    assert f.stats.reasons == {"free": 1, "full": 1}


def test_turns_are_lent_where_all_of_them_wait(kit: Kit) -> None:
    def function(xs: list[int]) -> Steps:
        if xs[0] >= 30:
            yield (all_run.wait,)
        return [xs[0] % 10 if xs[0] < 10 else (yield f, xs[0] - 10)]

    all_run = kit.event()
    f = kit.steps(function, batch_size=1, timeout=None, concurrency=3)
    handles = kit.submits(f, [31, 32, 33])
    kit.until(lambda: kit.running == 3)
    all_run.set()
    assert kit.outcomes(handles) == [1, 2, 3]
    assert (kit.most_awake["function"], f.stats.sizes_by_reason) == (3, {"full": {1: 12}})
    assert len(kit.idents) <= 3


def test_error_of_a_lent_batch_reaches_its_callers_and_who_waits_goes_on(kit: Kit) -> None:
    def function(xs: list[Any]) -> Steps:
        if "bad" in xs:
            raise ValueError("bad")
        if xs == ["waits"]:
            yield (begin.wait,)
            with pytest.raises(ValueError, match="bad"):
                yield f, "bad"
        return xs

    begin = kit.event()
    f = kit.steps(function, batch_size=2, timeout=None)
    waits = kit.submit(f, "waits")
    kit.flush(f)
    kit.until_runs(1)
    neighbour = kit.submit(f, 1)
    begin.set()
    assert kit.outcome(waits) == "waits"
    assert type(kit.outcome(neighbour)) is ValueError
    kit.until_idle(f)
    kit.consistent(f)


def test_item_that_is_cancelled_inside_is_taken_out_and_the_others_go_on(kit: Kit) -> None:
    def function(xs: list[int]) -> Steps:
        if xs != [0]:
            return xs
        futures = [f.submit(x) for x in (1, 2, 3)]
        assert futures[1].cancel()
        return [(yield futures[2])]

    f = kit.steps(function, batch_size=1)
    assert kit.outcome(kit.start(f, 0)) == 3
    kit.until_idle(f)
    assert (kit.batches, f.stats.cancelled) == ([[0], [1], [3]], 1)
    kit.consistent(f)


@pytest.mark.parametrize("what", ["close", "drain"])
def test_closing_and_draining_wait_for_what_is_passed_inside_meanwhile(kit: Kit, what: str) -> None:
    def function(xs: list[int]) -> Steps:
        if xs != [0]:
            return xs
        future = f.submit(1)
        yield (begin.wait,)
        return [(yield f, 2) + (yield future)]

    def ends(xs: list[int]) -> Steps:
        yield inside(kit, f, what)
        return [f.stats.answered]

    begin = kit.event()
    f = kit.steps(function, batch_size=9, timeout=None)
    first = kit.submit(f, 0)
    kit.flush(f)
    kit.until_runs(1)
    end = kit.submit(kit.steps(ends, batch_size=1), 0)
    until_waits_inside(kit, kit.made[-1])
    begin.set()
    assert kit.outcomes([first, end]) == [3, 3]


def test_closing_that_refuses_what_waits_refuses_what_is_awaited_inside(kit: Kit) -> None:
    def function(xs: list[int]) -> Steps:
        if xs == [0]:
            f.submit(1)
            with pytest.raises(ClosedError):
                yield f, 2
        if xs == [1]:
            yield inside(kit, f, "close", cancel_pending=True)
        return xs

    f = kit.steps(function, batch_size=1)
    assert kit.outcome(kit.start(f, 0)) == 0
    kit.close(f)
    assert (kit.batches, f.stats.failed) == ([[0], [1]], 1)
    kit.consistent(f)


# A function that calls itself


@pytest.mark.parametrize("way", WAYS)
def test_function_that_calls_itself_is_answered(kit: Kit, way: str) -> None:
    def factorial(x: int) -> Generator[Any, Any, int]:
        return x * (yield from ask(kit, f, way, [x - 1]))[0] if x else 1

    f = kit.steps(by_item(factorial), batch_size=3, timeout=None)
    assert kit.outcomes(kit.submits(f, [3, 4, 5])) == [6, 24, 120]
    f.timeout = 0.0
    assert kit.outcomes(kit.starts(f, [3, 4, 5])) == [6, 24, 120]
    assert never_two_at_once(kit)
    kit.until_idle(f)
    kit.consistent(f)


def test_function_that_calls_itself_is_answered_for_any_concurrency(kit: Kit) -> None:
    def fibonacci(x: int) -> Generator[Any, Any, int]:
        return x if x < 2 else (yield f, x - 1) + (yield f, x - 2)

    f = kit.steps(by_item(fibonacci), batch_size=2, concurrency=3, isolate=True, dedupe=True, max_pending=1000)
    assert kit.outcomes(kit.starts(f, range(10))) == [0, 1, 1, 2, 3, 5, 8, 13, 21, 34]
    assert kit.most_awake["fibonacci"] <= 3
    kit.until_idle(f)
    kit.consistent(f)


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
        return (yield from ask(kit, inner, way, xs))

    inner = kit(batch_size=2, timeout=None)
    outer = kit.steps(function, batch_size=1)
    outside = kit.submit(inner, 0)
    assert kit.outcomes([kit.submit(outer, 1), outside]) == [-1, 0]
    assert inner.stats.sizes_by_reason == {"full": {2: 1}}


@pytest.mark.parametrize("way", WAYS)
def test_closed_function_refuses_calls_from_inside_another_one(kit: Kit, way: str) -> None:
    def function(xs: list[int]) -> Steps:
        return (yield from ask(kit, closed, way, xs))

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


@pytest.mark.parametrize("way", ["call", "submit", "map", "wait", "as completed", "close", "drain"])
def test_ring_is_found_whatever_the_first_function_waits_with(kit: Kit, way: str) -> None:
    def first_function(xs: list[int]) -> Steps:
        if xs == [0]:
            return xs
        if way in ("close", "drain"):
            second.submit(xs[0])
            entered.set()
            yield inside(kit, second, way)
            return xs
        entered.set()
        return (yield from ask(kit, second, way, xs))

    def second_function(xs: list[int]) -> Steps:
        yield (entered.wait,)
        yield kit.while_it_waits, first
        return [(yield first, 0) + xs[0]]

    entered = kit.event()
    first, second = kit.steps(first_function, batch_size=1), kit.steps(second_function, batch_size=1)
    assert kit.outcome(kit.start(first, 1)) == 1
    assert never_two_at_once(kit)


@pytest.mark.parametrize("what", ["close", "drain"])
def test_function_that_closes_or_drains_the_one_that_waits_for_it_is_not_held_up(kit: Kit, what: str) -> None:
    def first_function(xs: list[int]) -> Steps:
        if xs == [0]:
            yield (entered.wait,)
            yield kit.while_it_waits, second
            yield inside(kit, second, what)
        return xs

    def second_function(xs: list[int]) -> Steps:
        entered.set()
        return [(yield first, 1)]

    entered = kit.event()
    first, second = kit.steps(first_function, batch_size=1), kit.steps(second_function, batch_size=1)
    assert kit.outcomes([kit.submit(first, 0), kit.submit(second, 0)]) == [0, 1]
    kit.close(second)
    kit.close(first)


@pytest.mark.parametrize("order", [*permutations("01"), *permutations("012")], ids="".join)
def test_ring_is_found_whoever_waits_last(kit: Kit, order: tuple[str, ...]) -> None:
    """Each function passes an item to the next one, and all of them run before the first one waits."""

    def member(me: int) -> Callable[[list[int]], Steps]:
        def function(xs: list[int]) -> Steps:
            if xs == [0]:
                return xs
            future = ring[(me + 1) % len(order)].submit(xs[0] - 1)
            passed.append(me)
            yield (told[me].wait,)
            return [(yield future) + 1]

        function.__name__ = f"function {me}"
        return function

    passed: list[int] = []
    told = [kit.event() for _ in order]
    ring = [kit.steps(member(me), batch_size=1) for me in range(len(order))]
    handle = kit.submit(ring[0], len(order))
    kit.until(lambda: len(passed) == len(order))
    for me in map(int, order):
        told[me].set()
        if len(told) > 1 + order.index(str(me)):
            until_waits_inside(kit, ring[me])
    assert kit.outcome(handle) == len(order)
    assert [f.stats.reasons["full"] for f in ring] == [2, *[1] * (len(order) - 1)]
    assert never_two_at_once(kit)


def test_rings_that_share_a_function_are_answered(kit: Kit) -> None:
    def hub(pair: tuple[int, int]) -> Generator[Any, Any, int]:
        which, x = pair
        return 1 + (yield rims[which], x - 1) if x else 0

    def rim(which: int) -> Callable[[list[Any]], Steps]:
        def function(x: int) -> Generator[Any, Any, int]:
            return 1 + (yield shared, (which, x - 1)) if x else 0

        function.__name__ = f"rim {which}"
        return by_item(function)

    shared = kit.steps(by_item(hub), batch_size=2)
    rims = [kit.steps(rim(which), batch_size=2) for which in range(2)]
    handles = [kit.start(f, 7) for f in rims * 3] + kit.starts(shared, [(0, 7), (1, 7)] * 3)
    assert kit.outcomes(handles) == [7] * 12
    assert never_two_at_once(kit)


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


@pytest.mark.parametrize("what", ["answered", "cancelled", "not waited for"])
def test_item_passed_inside_makes_no_ring_where_nobody_waits_for_it(kit: Kit, what: str) -> None:
    def first_function(xs: list[int]) -> Steps:
        if xs == [9]:
            future = second.submit(1)
            if what == "answered":
                second.flush()
                assert (yield future) == 1
            elif what == "cancelled":
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


# A wait that nothing can end


@pytest.mark.parametrize("caught", [True, False])
def test_wait_for_an_item_of_its_own_batch_fails_at_once_and_everybody_is_answered(kit: Kit, caught: bool) -> None:
    def function(xs: list[Any]) -> Steps:
        if "waits" in xs:
            with pytest.raises(WaitsForItselfError) if caught else nullcontext():
                yield futures[0]
        return xs

    f = kit.steps(function, batch_size=3, timeout=None)
    futures = submitted_inside(kit, f, 0, "waits")
    futures += kit.submits(f, [1, 2])
    kit.flush(f)
    first, *others, last = kit.outcomes(futures)
    assert last == 2
    if caught:
        assert others == ["waits", 1]
        assert first == 0 or (kit.kind == "coroutines" and type(first) is WaitsForItselfError)
    else:
        assert [type(each) for each in (first, *others)] == [WaitsForItselfError] * 3
        assert len({id(each) for each in (first, *others)}) == 3
    kit.until_idle(f)
    assert f.stats.batches == 2


@pytest.mark.parametrize("of", ["the same function", "another function"])
def test_wait_for_an_item_of_a_batch_that_waits_for_this_one_fails_at_once(kit: Kit, of: str) -> None:
    """On threads, a batch of the same function lies beneath this one."""

    def function(xs: list[str]) -> Steps:
        if xs == ["waits"]:
            yield (begin.wait,)
            with pytest.raises(WaitsForItselfError):  # its own one, or that of the other batch
                yield other, "asks"
        if "asks" in xs:
            yield waits
        return xs

    begin = kit.event()
    f = kit.steps(function, batch_size=2, timeout=None)
    other = f if of == "the same function" else kit.steps(function, batch_size=2, timeout=None)
    (waits,) = submitted_inside(kit, f, "waits")
    kit.flush(f)
    kit.until(lambda: kit.running == 1)
    neighbour = kit.submit(other, "neighbour")
    begin.set()
    outcomes = kit.outcomes([waits, neighbour])
    assert kit.kind == "coroutines" or (outcomes[0], type(outcomes[1])) == ("waits", WaitsForItselfError)
    later = kit.submits(other, ["later", "last"])
    assert kit.outcomes(later) == ["later", "last"]
    kit.until_idle(other)


def test_of_batches_that_wait_for_each_other_one_fails_at_once(kit: Kit) -> None:
    """Those of one function, with a turn for each."""

    def function(xs: list[int]) -> Steps:
        if xs == [2]:
            return xs
        yield (begin.wait,)
        try:
            yield futures[1 - xs[0]]
        except WaitsForItselfError:
            failed.append(xs[0])
        return xs

    begin = kit.event()
    failed: list[int] = []
    f = kit.steps(function, batch_size=1, concurrency=2)
    futures = submitted_inside(kit, f, 0, 1)
    kit.until(lambda: kit.running == 2)
    outside = kit.submit(f, 2)
    begin.set()
    outcomes = kit.outcomes(futures)
    assert failed
    assert kit.kind == "coroutines" or outcomes == [0, 1]
    assert kit.outcome(outside) == 2
    kit.until_idle(f)
