"""Which items form the next batch, and when is it due? No thread, no sleep: the clock is moved by hand."""

import math
from typing import Any

import pytest

from .. import inside
from ..inside import Call, HandBatch, HandEngine, Options

Step = tuple[list[Call], str] | float | None

# The second one counts groups, weights, items of maps, and equal ones, none of which makes a difference.
ALL_OPTIONS: dict[str, Any] = {"keys": "a" * 9, "weights": [0] * 9, "max_weight": 9, "max_pending": 9, "dedupe": True}
PLAIN_AND_ALL = pytest.mark.parametrize("options", [{}, ALL_OPTIONS], ids=["plain", "all"])


class Item:
    """One of its own, in a group and of a weight."""

    def __init__(self, group: str = "", weight: float = 1.0) -> None:
        self.group, self.weight = group, weight


def engine_with(
    *, batch_size: int = 3, timeout: float | None = 1.0, ended_by_news: bool = False, **options: Any
) -> HandEngine:
    """Return an engine whose clock stands at 0, and of which any number of batches may run."""
    options = {"concurrency": 99, **options}
    engine = HandEngine(Options(batch_size, timeout, **options), ended_by_news=ended_by_news)
    engine.moment = 0.0
    return engine


def filled(*arrivals: float, keys: str = "", weights: Any = (), **options: Any) -> tuple[HandEngine, list[Call]]:
    """Return an engine in which items wait since then, in the groups that the letters name, of these weights."""
    if keys:
        options["group_by"] = lambda item: item.group
    if weights:
        options["weight"] = lambda item: item.weight
    engine = engine_with(**options)
    calls = []
    for number, arrival in enumerate(arrivals):
        item = Item(keys[number : number + 1], weights[number] if weights else 1.0)
        calls.append(engine.post(engine.call(item, arrival=arrival)))
    return engine, calls


def look(engine: HandEngine, at: float) -> Step:
    """Let the owner look at that moment; return the calls of the batch and why it is due, or what else it does."""
    step = engine.look(at)
    inside.check(engine.buffer)
    return (step.callers, step.reason) if isinstance(step, HandBatch) else step


@PLAIN_AND_ALL
def test_batches_keep_the_order_of_arrival(options: dict[str, Any]) -> None:
    engine, calls = filled(*[0.0] * 7, **options)
    assert [look(engine, 0.0) for _ in range(2)] == [(calls[:3], "full"), (calls[3:6], "full")]


@PLAIN_AND_ALL
def test_full_batch_does_not_wait(options: dict[str, Any]) -> None:
    engine, calls = filled(5.0, 5.0, 5.0, timeout=100.0, **options)
    assert look(engine, 5.0) == (calls, "full")


@PLAIN_AND_ALL
def test_oldest_item_never_waits_past_its_deadline(options: dict[str, Any]) -> None:
    engine, calls = filled(0.0, 0.75, **options)
    assert look(engine, 0.75) == 0.25
    assert look(engine, 1.0) == (calls, "timeout")


@PLAIN_AND_ALL
def test_later_arrivals_do_not_restart_the_timeout(options: dict[str, Any]) -> None:
    engine, _ = filled(0.0, 0.5, timeout=1.0, batch_size=10, **options)
    assert look(engine, 0.5) == 0.5


@PLAIN_AND_ALL
def test_items_left_over_by_a_batch_keep_their_own_arrival(options: dict[str, Any]) -> None:
    engine, calls = filled(0.0, 0.125, 0.25, 0.5, **options)
    assert look(engine, 0.75) == (calls[:3], "full")
    assert look(engine, 0.75) == 0.75
    assert look(engine, 1.5) == ([calls[3]], "timeout")


@PLAIN_AND_ALL
def test_items_join_until_the_batch_is_taken(options: dict[str, Any]) -> None:
    engine, calls = filled(0.0, 7.0, 8.0, batch_size=4, **options)
    assert look(engine, 9.0) == (calls, "timeout")


@PLAIN_AND_ALL
def test_items_join_as_long_as_no_turn_is_free(options: dict[str, Any]) -> None:
    engine, _ = filled(0.0, timeout=0.0, concurrency=1, **options)
    batch = engine.look(0.0)
    more = [engine.post(engine.call(Item("a"))) for _ in range(2)]
    assert look(engine, 5.0) == math.inf
    more.append(engine.post(engine.call(Item("a"))))
    batch.settle([0])
    assert look(engine, 5.0) == (more, "full")


@PLAIN_AND_ALL
def test_timeout_0_makes_all_that_waits_due(options: dict[str, Any]) -> None:
    engine, calls = filled(3.0, timeout=0.0, **options)
    assert look(engine, 3.0) == (calls, "free")


@PLAIN_AND_ALL
def test_timeout_0_makes_due_whatever_the_clock_says(options: dict[str, Any]) -> None:
    engine, calls = filled(1000.0, timeout=0.0, **options)
    assert look(engine, 3.0) == (calls, "free")


@PLAIN_AND_ALL
def test_arrival_that_is_later_than_the_clock_counts_as_now(options: dict[str, Any]) -> None:
    engine, calls = filled(1000.0, **options)
    assert look(engine, 3.0) == 1.0
    assert look(engine, 4.0) == (calls, "timeout")


@PLAIN_AND_ALL
def test_arrival_that_is_later_than_the_clock_makes_no_flush_last_until_then(options: dict[str, Any]) -> None:
    engine, calls = filled(0.0, 1000.0, timeout=None, **options)
    engine.flush()
    assert look(engine, 3.0) == (calls, "flush")
    engine.post(engine.call(Item("a"), arrival=4.0))
    assert look(engine, 5.0) == math.inf


@PLAIN_AND_ALL
def test_item_posted_late_by_an_interrupted_caller_waits_no_longer_than_if_it_came_then(
    options: dict[str, Any],
) -> None:
    engine, _ = filled(3.0, **options)
    assert look(engine, 3.0) == 1.0
    engine.post(engine.call(Item("a"), arrival=2.0))  # since it looked at the clock its caller was interrupted
    assert engine.alarm_at == 4.0
    taken = look(engine, 4.0)
    assert isinstance(taken, tuple)
    assert len(taken[0]) == 2


@PLAIN_AND_ALL
def test_drain_includes_an_item_posted_late_when_who_stood_before_it_has_left(options: dict[str, Any]) -> None:
    engine, calls = filled(3.0, timeout=None, **options)
    engine.moment = 2.0
    engine.when_answered(lambda: None)
    second = engine.post(engine.call(Item("a"), arrival=2.0))  # since it looked at the clock its caller was interrupted
    calls[0].leave()
    assert look(engine, 4.0) == ([second], "flush")


def test_item_posted_late_by_an_interrupted_caller_stands_where_it_belongs() -> None:
    engine, calls = filled(3.0, 2.0, 4.0, 2.0, keys="bbaa", timeout=None)
    assert look(engine, 5.0) == math.inf
    engine.flush()
    assert [look(engine, 5.0) for _ in range(2)] == [
        ([calls[1], calls[0]], "flush"),
        ([calls[3], calls[2]], "flush"),
    ]


@PLAIN_AND_ALL
def test_timeout_none_leaves_only_a_full_batch_or_a_flush_due(options: dict[str, Any]) -> None:
    engine, calls = filled(0.0, timeout=None, **options)
    assert look(engine, 10.0**9) == math.inf
    engine.flush()
    assert look(engine, 10.0**9) == (calls, "flush")


@PLAIN_AND_ALL
def test_flush_is_for_items_that_wait_now(options: dict[str, Any]) -> None:
    engine, calls = filled(0.0, 0.125, **options)
    engine.flush()
    assert look(engine, 0.25) == (calls, "flush")
    engine.post(engine.call(Item("a"), arrival=0.25))
    assert look(engine, 0.25) == 1.0


@PLAIN_AND_ALL
def test_flush_includes_what_the_owner_has_not_seen_yet(options: dict[str, Any]) -> None:
    engine, _ = filled(0.0, timeout=None, **options)
    assert look(engine, 0.0) == math.inf
    second = engine.post(engine.call(Item("a"), arrival=1.0))
    engine.flush()
    taken = look(engine, 1.0)
    assert isinstance(taken, tuple)
    assert second in taken[0]


@PLAIN_AND_ALL
def test_flush_of_nothing_makes_nothing_due(options: dict[str, Any]) -> None:
    engine, _ = filled(**options)
    engine.flush()
    look(engine, 0.0)
    engine.post(engine.call(Item("a")))  # some clocks stand still for long
    assert look(engine, 0.0) == 1.0


@PLAIN_AND_ALL
def test_flush_for_a_lonely_item_is_only_for_one_that_others_of_its_group_must_make_due(
    options: dict[str, Any],
) -> None:
    engine, calls = filled(0.0, 0.0, 0.0, timeout=None, **{**options, "keys": "aab" if options else ""})
    engine.options.batch_size = 4
    engine.flush(calls[2])  # which the owner has not seen yet
    step = look(engine, 0.0)
    assert isinstance(step, tuple) == bool(options)  # else all are of one group


def test_flush_for_a_lonely_item_is_none_if_its_group_is_full_or_it_is_taken() -> None:
    engine, calls = filled(0.0, 0.0, 0.0, 0.0, keys="abbb", timeout=None)
    engine.flush(calls[1])
    assert look(engine, 0.0) == (calls[1:], "full")
    engine.flush(calls[1])
    assert look(engine, 0.0) == math.inf


def test_batch_is_never_empty() -> None:
    engine, calls = filled(0.0, 0.0)
    calls[0].leave()  # without a word
    engine.flush()
    engine.withdraw(calls[1])
    assert look(engine, 10.0) == math.inf


# Groups


def test_group_whose_oldest_item_has_waited_longest_goes_first() -> None:
    engine, calls = filled(2.0, 1.0, 3.0, 1.5, 0.5, keys="ababc", timeout=0.0)
    taken = [look(engine, 9.0) for _ in range(4)]
    assert taken == [
        ([calls[4]], "free"),
        ([calls[1], calls[3]], "free"),
        ([calls[0], calls[2]], "free"),
        math.inf,
    ]


def test_group_that_is_full_goes_while_an_older_one_waits() -> None:
    engine, calls = filled(0.0, 1.0, 1.0, 1.0, keys="abbb", timeout=None)
    assert look(engine, 9.0) == (calls[1:], "full")
    assert look(engine, 9.0) == math.inf


def test_group_that_is_due_goes_before_a_younger_one_that_is_full() -> None:
    engine, calls = filled(0.0, 1.0, 1.0, 1.0, keys="abbb")
    assert look(engine, 1.0) == ([calls[0]], "timeout")
    assert look(engine, 1.0) == (calls[1:], "full")


def test_group_that_is_full_again_goes_by_its_oldest_item() -> None:
    engine, calls = filled(0.0, 5.0, 5.0, 3.0, 3.0, keys="caabb", batch_size=2, timeout=None, concurrency=1)
    running = engine.look(5.0)
    assert running.callers == calls[3:]
    calls[3:] = [engine.post(engine.call(Item("b"), arrival=3.0)) for _ in range(2)]
    assert look(engine, 5.0) == math.inf
    engine.options.batch_size = 4
    calls.append(engine.post(engine.call(Item("a"), arrival=1.0)))  # by a caller who was interrupted
    assert look(engine, 5.0) == math.inf
    engine.options.batch_size = 2
    engine.post_news(engine.settings_changed)
    running.settle([0, 0])
    assert look(engine, 5.0) == ([calls[5], calls[1]], "full")


@pytest.mark.parametrize("keys", ["", "abb"])
def test_smaller_batch_size_makes_due_what_is_full_then(keys: str) -> None:
    engine, calls = filled(0.0, 0.0, 0.0, keys=keys, batch_size=9, timeout=None)
    assert look(engine, 0.0) == math.inf
    engine.options.batch_size = 2
    engine.post_news(engine.settings_changed)
    assert look(engine, 0.0) == (calls[1:] if keys else calls[:2], "full")


def test_group_is_one_again_after_some_of_its_batch_have_left_without_a_word() -> None:
    engine, calls = filled(0.0, 0.0, keys="aa", batch_size=2, timeout=None)
    calls[0].leave()
    assert look(engine, 0.0) == math.inf
    assert engine.waiting() == (1, 0)
    late = engine.post(engine.call(Item("a")))
    assert engine.rung == 3  # for the first, and for each that filled the batch as far as its caller could know
    assert look(engine, 0.0) == ([calls[1], late], "full")


def test_put_back_items_of_a_group_stand_where_they_stood() -> None:
    engine, calls = filled(0.0, 1.0, 1.0, 2.0, 2.0, 3.0, 3.0, keys="caabbaa", batch_size=2, timeout=None)
    engine.fails = True
    with pytest.raises(MemoryError):
        engine.look(9.0)
    inside.check(engine.buffer)
    taken = [look(engine, 9.0) for _ in range(4)]
    assert taken == [(calls[1:3], "full"), (calls[3:5], "full"), (calls[5:], "full"), math.inf]
    engine.post_news(engine.closed_or_opened)
    assert look(engine, 9.0) == (calls[:1], "close")


def test_groups_are_forgotten_with_their_last_item_also_while_an_older_one_waits() -> None:
    engine, _ = filled(0.0, keys="a", timeout=None, concurrency=10**6)
    for number in range(200):
        for _ in range(3):
            engine.post(engine.call(Item(str(number))))
        assert isinstance(look(engine, 1.0), tuple)
        left = engine.post(engine.call(Item(f"left {number}")))
        look(engine, 1.0)
        engine.withdraw(left)
        look(engine, 1.0)
    assert inside.groups_in(engine.buffer) < 20
    assert inside.groups_listed(engine.buffer) < 20
    engine.flush()
    assert isinstance(look(engine, 1.0), tuple)
    assert look(engine, 1.0) == math.inf
    assert inside.groups_in(engine.buffer) == inside.groups_listed(engine.buffer) == 0


def test_group_that_never_empties_is_listed_a_few_times_at_most() -> None:
    engine, _ = filled(0.0, keys="a", timeout=None, concurrency=10**6)
    for number in range(200):
        gone = engine.post(engine.call(Item("a")))
        engine.post(engine.call(Item("a"), arrival=-1.0 - number))  # so it is the oldest
        gone.leave()
        look(engine, 1.0)
        for _ in range(2):
            engine.post(engine.call(Item("a")))
        assert isinstance(look(engine, 1.0), tuple)
    assert inside.groups_listed(engine.buffer) < 20
    assert inside.full_groups_listed(engine.buffer) < 20


def test_group_by_lists_a_group_no_more_often_than_it_becomes_full() -> None:
    engine, _ = filled(*[0.0] * 7, 1.0, 1.0, keys="aaabbbcaa", concurrency=1, timeout=None)
    batch = engine.look(1.0)
    for _ in range(3):
        engine.post(engine.call(Item("a")))
        engine.look(1.0)
        assert inside.full_groups_listed(engine.buffer) <= 3
    batch.settle([0] * 3)
    assert isinstance(look(engine, 1.0), tuple)
    assert inside.full_groups_listed(engine.buffer) <= 3


# Weights


def test_batch_is_full_at_its_weight_and_never_heavier() -> None:
    engine, calls = filled(0.0, 0.0, 0.0, weights=[2, 1, 2], max_weight=4, batch_size=9)
    assert look(engine, 0.0) == (calls[:2], "full")
    assert look(engine, 0.0) == 1.0


def test_item_heavier_than_a_batch_may_be_goes_alone() -> None:
    engine, calls = filled(0.0, 0.0, weights=[1, 9], max_weight=4, batch_size=9)
    assert [look(engine, 0.0) for _ in range(2)] == [(calls[:1], "full"), (calls[1:], "full")]


def test_weight_of_who_has_left_counts_no_more() -> None:
    engine, calls = filled(0.0, 0.0, weights=[2, 2], max_weight=5, batch_size=9)
    assert look(engine, 0.0) == 1.0
    engine.withdraw(calls[0])
    engine.post(engine.call(Item(weight=2)))
    assert look(engine, 0.0) == 1.0
    engine.post(engine.call(Item(weight=1)))
    step = look(engine, 0.0)
    assert isinstance(step, tuple)
    assert step[1] == "full"


def test_weights_cost_the_same_however_many_items_wait() -> None:
    engine = HandEngine(Options(10**6, None, weight=lambda _: 1.0, max_weight=10, concurrency=10**6))
    looks = 0

    class Weighed(Call):
        __slots__ = ()

        @property
        def weight(self) -> float:
            nonlocal looks
            looks += 1
            return 1.0

        @weight.setter
        def weight(self, _: float) -> None:
            """Nothing."""

    for _ in range(1000):
        call = Weighed()
        call.item, call.bell, call.arrival, call.key = 0, None, 0.0, None
        engine.post(call)
    taken = 0
    while isinstance(step := engine.look(), HandBatch):
        assert len(step.callers) == 10
        taken += 10
    assert taken == 1000
    assert looks < 1000 * 10


# max_pending


def test_put_back_items_count_against_max_pending() -> None:
    engine, calls = filled(0.0, 0.0, batch_size=2, max_pending=2)
    engine.fails = True
    with pytest.raises(MemoryError):
        engine.look(0.0)
    assert engine.is_full()
    assert look(engine, 0.0) == (calls, "full")
    assert not engine.is_full()


def test_items_are_due_when_max_pending_of_them_wait() -> None:
    engine, calls = filled(0.0, 0.0, 1.0, keys="aba", batch_size=9, max_pending=3)
    assert look(engine, 0.5) == ([calls[0], calls[2]], "full")
    assert look(engine, 0.5) == 0.5
    for number in range(2):  # it is three anew, and not one more
        engine.post(engine.call(Item("c")))
        assert isinstance(look(engine, 0.5), tuple) == (number == 1)


@pytest.mark.parametrize("options", [{}, {"keys": "aab", "weights": [1, 1, 1], "max_weight": 9}], ids=["plain", "all"])
def test_max_pending_counts_neither_items_of_map_nor_those_taken_or_left(options: dict[str, Any]) -> None:
    engine, calls = filled(0.0, 0.0, 0.0, batch_size=9, max_pending=3, concurrency=1, **options)
    assert engine.is_full()
    engine.withdraw(calls[0])
    assert not engine.is_full()
    engine.post(engine.call(Item("a"), limited=False))
    assert not engine.is_full()
    assert look(engine, 0.0) == 1.0
    engine.post(engine.call(Item("a"), arrival=0.5))
    assert engine.is_full()
    batch = engine.look(0.5)
    assert batch.reason == "full"
    assert not engine.is_full()
    batch.settle([0] * len(batch.callers))
    assert look(engine, 0.5) in (0.5, math.inf)


def test_max_pending_does_not_count_who_left_before_the_owner_saw_the_call() -> None:
    engine, calls = filled(0.0, 0.0, batch_size=9, max_pending=2)
    engine.withdraw(calls[1])
    assert look(engine, 0.0) == 1.0
    engine.post(engine.call(Item()))
    assert isinstance(look(engine, 0.0), tuple)


# No memory, and who leaves


@pytest.mark.parametrize("nth", [1, 2, 3])
@pytest.mark.thread_unsafe(reason="patches the library")
def test_failed_take_puts_all_items_back_in_order(nth: int) -> None:
    engine, calls = filled(0.0, 0.0, 0.0, 0.0, batch_size=9, timeout=None, **ALL_OPTIONS)
    assert look(engine, 0.0) == math.inf
    engine.options.batch_size = 3
    engine.post_news(engine.settings_changed)
    with inside.fails_as_it_hands_out(nth=nth):
        with pytest.raises(MemoryError):
            engine.look(1.0)
        engine.options.batch_size = 4
        assert look(engine, 1.0) == (calls, "full")


@PLAIN_AND_ALL
def test_who_left_without_a_word_is_counted_once_though_there_is_no_memory(options: dict[str, Any]) -> None:
    engine, calls = filled(0.0, 0.0, timeout=0.0, **options)
    calls[0].leave()
    engine.fails = True
    for _ in range(2):
        try:
            step = engine.look(0.0)
        except MemoryError:
            continue
        assert step.callers == [calls[1]]
    assert engine.tally.read(engine.waiting).cancelled == 1


@PLAIN_AND_ALL
def test_few_are_kept_of_those_who_have_left(options: dict[str, Any]) -> None:
    options = {**options, "keys": "a" * 1000 if options else "", "weights": [], "max_weight": None}
    options["max_pending"] = None
    engine, calls = filled(*[0.0] * 1000, batch_size=10**6, timeout=None, **options)
    engine.look(0.0)
    for call in calls[1:-1]:
        engine.withdraw(call)
    engine.look(0.0)
    pending, left = engine.waiting()
    assert pending == 2
    assert left <= 3
    assert engine.tally.cancelled + left == 998
    engine.flush()
    assert look(engine, 0.0) == ([calls[0], calls[-1]], "flush")
    assert engine.tally.cancelled == 998


def test_who_leaves_as_those_who_left_are_sorted_out_is_counted_once() -> None:
    class Leaves(Call):
        __slots__ = ("asked",)

        def has_left(self) -> bool:
            self.asked = getattr(self, "asked", 0) + 1
            return self.asked > 1

    engine, calls = filled(0.0, 0.0, timeout=None)
    leaves = Leaves()
    leaves.item, leaves.bell, leaves.arrival = Item(), None, 0.0
    engine.post(leaves)
    for call in calls:
        engine.withdraw(call)
    look(engine, 0.0)
    leaves.leave()
    engine.flush()
    assert look(engine, 0.0) == math.inf
    assert engine.tally.cancelled == 3


# Equal items


def values(engine: HandEngine, *items: Any) -> list[Call]:
    return [engine.post(engine.call(item)) for item in items]


def test_dedupe_knows_items_by_type_and_value() -> None:
    engine = engine_with(dedupe=True, batch_size=9, timeout=0.0)
    calls = values(engine, 1, True, 1.0, 1, "1", 1.0)
    batch = engine.look()
    assert [entry.item for entry in batch.entries] == [1, True, 1.0, "1"]
    batch.settle(["int", "bool", "float", "str"])
    assert [call.outcome() for call in calls] == ["int", "bool", "float", "int", "str", "float"]


def test_dedupe_counts_equal_items_that_wait_as_one() -> None:
    engine = engine_with(dedupe=True, batch_size=2, timeout=1.0)
    values(engine, *[7] * 100)
    assert look(engine, 0.0) == 1.0
    values(engine, 8, 7)
    batch = engine.look()
    assert (batch.reason, len(batch.entries), len(batch.callers)) == ("full", 2, 102)
    assert values(engine, 7)  # those run, and wait no more
    assert look(engine, 0.0) == 1.0


def test_dedupe_counts_the_weight_of_equal_items_once() -> None:
    engine = engine_with(dedupe=True, batch_size=9, weight=float, max_weight=5)
    values(engine, 2, 2, 2, 1)
    assert look(engine, 0.0) == 1.0
    values(engine, 2, 3)
    batch = engine.look()
    assert [entry.item for entry in batch.entries] == [2, 1]


def test_dedupe_keeps_equal_items_of_two_groups_apart() -> None:
    groups = iter("ab")
    engine = engine_with(dedupe=True, batch_size=9, timeout=0.0, group_by=lambda _: next(groups))
    calls = values(engine, 1, 1)
    assert [look(engine, 0.0) for _ in range(2)] == [([calls[0]], "free"), ([calls[1]], "free")]


@pytest.mark.parametrize("says_so", [True, False])
@pytest.mark.parametrize("leaving", [0, 1, 2])
def test_dedupe_leaves_the_others_when_one_of_equal_items_leaves(leaving: int, says_so: bool) -> None:
    engine = engine_with(dedupe=True, timeout=None)
    calls = values(engine, 7, 7, 7)
    look(engine, 0.0)
    gone = calls.pop(leaving)
    engine.withdraw(gone) if says_so else gone.leave()
    engine.flush()
    batch = engine.look()
    assert batch.callers == calls
    batch.settle(["seven"])
    assert [call.outcome() for call in calls] == ["seven", "seven"]
    assert engine.tally.read(engine.waiting).cancelled == 1


def test_dedupe_forgets_an_item_that_all_have_left() -> None:
    engine = engine_with(dedupe=True, batch_size=2, timeout=None)
    calls = values(engine, 7, 7)
    look(engine, 0.0)
    for call in calls:
        engine.withdraw(call)
    (other,) = values(engine, 8)
    assert look(engine, 0.0) == math.inf
    (again,) = values(engine, 7)
    assert look(engine, 0.0) == ([other, again], "full")


class Moody:
    """An item that can be compared as long as it is in the mood."""

    mood = True

    def __hash__(self) -> int:
        return 1

    def __eq__(self, other: object) -> bool:
        if not self.mood:
            raise ArithmeticError("not today")
        return type(self) is type(other)


class Bad(Moody):
    """One that cannot be compared."""

    mood = False
    __hash__ = Moody.__hash__


@pytest.mark.parametrize("busy", [False, True])
def test_dedupe_fails_alone_the_call_of_an_item_that_cannot_be_compared(busy: bool) -> None:
    engine = engine_with(dedupe=True, batch_size=2, timeout=None)
    first, bad, other = values(engine, Bad(), Bad(), 5)
    if busy:  # so that something is due at each look
        values(engine, *range(100, 120))
    batch = engine.look()
    assert isinstance(bad.error, ArithmeticError)
    assert bad.bell.told == 1
    assert (batch.callers, batch.reason) == ([first, other], "full")
    batch.settle(["bad", "five"])
    assert (first.outcome(), other.outcome()) == ("bad", "five")
    stats = engine.tally.read(engine.waiting)
    assert (stats.answered, stats.failed, stats.running) == (2, 1, 0)
    inside.check(engine.buffer)


def test_group_by_fails_alone_the_call_of_a_key_that_cannot_be_compared() -> None:
    keys = iter([Bad(), Bad(), "sound"])
    engine = engine_with(group_by=lambda _: next(keys), timeout=None)
    first, bad, sound = (engine.post(engine.call(number)) for number in range(3))
    assert look(engine, 0.0) == math.inf
    assert isinstance(bad.error, ArithmeticError)
    engine.flush()
    assert [look(engine, 0.0) for _ in range(2)] == [([first], "flush"), ([sound], "flush")]


def test_dedupe_survives_an_item_that_cannot_be_compared_any_more_when_its_caller_leaves() -> None:
    class Once(Moody):
        __hash__ = Moody.__hash__

    engine = engine_with(dedupe=True, timeout=None)
    first, second, other = values(engine, Once(), Once(), 5)
    look(engine, 0.0)
    Once.mood = False
    engine.withdraw(second)
    engine.flush()
    assert look(engine, 0.0) == ([first, other], "flush")


def test_dedupe_reports_no_batch_for_an_item_that_cannot_be_compared() -> None:
    reports: list[Any] = []
    engine = engine_with(dedupe=True, timeout=None, on_batch=reports.append)
    _, bad = values(engine, Bad(), Bad())
    look(engine, 0.0)
    assert isinstance(bad.error, ArithmeticError)
    assert reports == []  # since the function was not called


def test_items_and_keys_are_hashed_once_in_their_caller() -> None:
    class Counted:
        hashed = 0

        def __hash__(self) -> int:
            Counted.hashed += 1
            return 1

        def __eq__(self, other: object) -> bool:
            return type(self) is type(other)

    engine = engine_with(dedupe=True, group_by=lambda _: Counted(), batch_size=9, timeout=0.0)
    calls = values(engine, Counted(), Counted(), 5)
    assert Counted.hashed == 2 + 3
    assert look(engine, 0.0) == (calls, "free")
    assert Counted.hashed == 2 + 3
