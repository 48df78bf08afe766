"""When does a caller ring, and what does the owner do next? Case by case, beside the list of `test_engine_model`."""

import math
from types import SimpleNamespace
from typing import Any

import pytest

from batchify import ClosedError

from ..inside import Call, HandBatch, HandEngine, Options
from .test_buffer import PLAIN_AND_ALL, Item, engine_with, filled, look

UNWEIGHED: dict[str, Any] = {"keys": "a" * 9, "max_pending": 9}  # with weights every caller rings
PLAIN_AND_UNWEIGHED = pytest.mark.parametrize("options", [{}, UNWEIGHED], ids=["plain", "unweighed"])


def post(engine: HandEngine, count: int = 1, *, group: str = "a", weight: float = 0.0) -> list[Call]:
    return [engine.post(engine.call(Item(group, weight))) for _ in range(count)]


def rings(engine: HandEngine, count: int = 1, *, group: str = "a", weight: float = 0.0) -> int:
    """Post so many calls; return how often their callers rang."""
    before = engine.rung
    post(engine, count, group=group, weight=weight)
    return engine.rung - before


def rests_after_a_batch(engine: HandEngine) -> float:
    """Let the owner run a batch, and fall asleep right after it; return for how many seconds."""
    batch = engine.look()
    batch.settle([0] * len(batch.entries))
    seconds: Any = engine.next(engine.moment, rested=False)
    return float(seconds)


# Who rings


@PLAIN_AND_ALL
def test_first_caller_rings(options: dict[str, Any]) -> None:
    engine, _ = filled(**options)
    assert rings(engine) == 1
    engine, _ = filled(**options)
    assert look(engine, 0.0) == math.inf
    assert rings(engine) == 1


@PLAIN_AND_UNWEIGHED
def test_callers_do_not_ring_before_the_batch_is_full_where_others_wait(options: dict[str, Any]) -> None:
    engine, _ = filled(0.0, batch_size=4, **options)
    assert look(engine, 0.0) == 1.0
    assert [rings(engine) for _ in range(3)] == [0, 0, 1]


def test_callers_do_not_ring_before_any_group_can_be_full() -> None:
    engine, _ = filled(0.0, 0.0, 0.0, keys="aab", batch_size=4)
    assert look(engine, 0.0) == 1.0
    assert [rings(engine, group="c"), rings(engine, group="a")] == [0, 1]


def test_callers_ring_when_max_pending_of_them_wait() -> None:
    engine, _ = filled(0.0, max_pending=3, batch_size=9)
    assert look(engine, 0.0) == 1.0
    assert [rings(engine), rings(engine)] == [0, 1]


def test_each_caller_rings_where_items_have_weights() -> None:
    engine, _ = filled(0.0, weights=[1], max_weight=9, batch_size=9)
    assert look(engine, 0.0) == 1.0
    assert rings(engine, 1, weight=1.0) == 1


@PLAIN_AND_ALL
def test_no_caller_rings_where_no_turn_is_free(options: dict[str, Any]) -> None:
    engine, _ = filled(0.0, timeout=0.0, concurrency=1, **options)
    batch = engine.look()
    assert look(engine, 0.0) == math.inf
    assert rings(engine, 8) == 0
    engine.ended_by_news = True
    batch.settle([0])
    assert engine.rung == 2  # for the first item, and for the turn that is free now


@PLAIN_AND_ALL
def test_news_always_ring(options: dict[str, Any]) -> None:
    engine, (call, _) = filled(0.0, 0.0, timeout=None, **options)
    assert look(engine, 0.0) == math.inf
    rung = []
    for act in (
        engine.flush,
        lambda: engine.withdraw(call),
        lambda: engine.when_answered(lambda: None),
        lambda: engine.post_news(engine.settings_changed),
        lambda: engine.post_news(engine.closed_or_opened),
    ):
        before = engine.rung
        act()
        rung.append(engine.rung - before)
    assert rung == [1] * 5


@PLAIN_AND_UNWEIGHED
def test_right_after_a_batch_one_who_comes_does_not_ring_and_is_due_all_the_same(options: dict[str, Any]) -> None:
    engine, _ = filled(0.0, 0.0, 0.0, **options)
    assert rests_after_a_batch(engine) == 1.0
    engine.moment = 0.5
    assert [rings(engine) for _ in range(2)] == [0, 0]
    assert look(engine, 1.0) == 0.5
    assert rings(engine) == 1


@PLAIN_AND_UNWEIGHED
def test_right_after_a_batch_a_full_one_rings(options: dict[str, Any]) -> None:
    engine, _ = filled(0.0, 0.0, 0.0, timeout=None, **options)
    assert rests_after_a_batch(engine) == math.inf
    assert [rings(engine) for _ in range(3)] == [0, 0, 1]


def test_right_after_a_batch_max_pending_items_ring() -> None:
    engine, _ = filled(0.0, 0.0, timeout=None, batch_size=9, max_pending=2)
    assert rests_after_a_batch(engine) == math.inf
    assert [rings(engine) for _ in range(2)] == [0, 1]


def test_right_after_a_batch_a_heavy_item_rings() -> None:
    engine, _ = filled(0.0, weights=[9], timeout=None, batch_size=9, max_weight=9)
    assert rests_after_a_batch(engine) == math.inf
    assert rings(engine, weight=9.0) == 1


@PLAIN_AND_ALL
def test_right_after_a_batch_one_who_comes_rings_if_timeout_is_0(options: dict[str, Any]) -> None:
    engine, _ = filled(0.0, timeout=0.0, **options)
    assert rests_after_a_batch(engine) == math.inf
    assert rings(engine) == 1


@PLAIN_AND_ALL
def test_while_it_closes_one_who_comes_rings_also_right_after_a_batch(options: dict[str, Any]) -> None:
    engine, _ = filled(0.0, 0.0, 0.0, 0.0, timeout=None, concurrency=2, **options)
    engine.post_news(engine.closed_or_opened)
    first, second = engine.look(), engine.look()
    second.settle([0])
    assert engine.next(0.0, rested=False) == math.inf  # it is not at its end, as the first one runs
    assert rings(engine) == 1  # from inside the first one, which waits for this
    assert look(engine, 0.0) != math.inf
    first.settle([0] * 3)


@PLAIN_AND_ALL
def test_one_who_left_without_a_word_keeps_nobody_from_ringing_for_a_full_batch(options: dict[str, Any]) -> None:
    engine, calls = filled(0.0, 0.0, batch_size=2, timeout=None, **options)
    calls[0].leave()
    assert look(engine, 0.0) == math.inf
    assert rings(engine) == 1
    assert look(engine, 0.0) != math.inf


@PLAIN_AND_UNWEIGHED
def test_one_who_left_without_a_word_keeps_nobody_from_ringing_where_nobody_else_waits(options: dict[str, Any]) -> None:
    engine, (call,) = filled(0.0, **options)
    assert look(engine, 0.0) == 1.0
    call.leave()
    assert look(engine, 0.5) == math.inf
    assert rings(engine) == 1
    assert look(engine, 0.5) == 1.0


@PLAIN_AND_ALL
def test_item_that_comes_as_the_owner_falls_asleep_is_seen(options: dict[str, Any]) -> None:
    engine, calls = filled(0.0, 0.0, timeout=None, **options)
    late: list[Call] = []

    def sleep_until(*_: object) -> None:
        if not late:
            late.extend(post(engine))

    engine.sleep_until = sleep_until  # type: ignore[method-assign, assignment]
    assert look(engine, 0.0) == ([*calls, *late], "full")


@PLAIN_AND_ALL
def test_news_that_come_as_the_owner_falls_asleep_are_heard(options: dict[str, Any]) -> None:
    engine, calls = filled(0.0, 0.0, timeout=None, **options)

    def sleep_until(*_: object) -> None:
        if not engine.news:
            engine.flush()

    engine.sleep_until = sleep_until  # type: ignore[method-assign, assignment]
    assert look(engine, 0.0) == (calls, "flush")


def test_flush_is_heard_that_comes_as_the_owner_sorts_out_who_has_left() -> None:
    class Flushes(Call):
        def has_left(self) -> bool:
            if not len(engine.buffer):
                engine.flush()
            return super().has_left()

    engine, (first, *calls) = filled(0.0, 0.0, 0.0, timeout=None, batch_size=9)
    last = Flushes()
    last.item, last.arrival = Item("a", 0.0), 0.0
    engine.post(last)
    assert look(engine, 0.0) == math.inf
    for call in (*calls, *post(engine)):
        engine.withdraw(call)
    assert look(engine, 0.0) == ([first, last], "flush")


# Turns and parts


def test_as_many_batches_run_as_there_are_turns() -> None:
    engine, calls = filled(*[0.0] * 9, concurrency=2)
    first, second = engine.look(), engine.look()
    assert look(engine, 0.0) == math.inf
    second.fail(ValueError())
    assert look(engine, 0.0) == (calls[6:], "full")
    assert look(engine, 0.0) == math.inf
    first.settle([0] * 3)
    assert look(engine, 0.0) == math.inf


def test_turn_of_a_batch_ends_once() -> None:
    engine, _ = filled(0.0, timeout=0.0, concurrency=1)
    batch = engine.look()
    for _ in range(3):
        engine.post_news(engine.turn_ended, batch)
    assert look(engine, 0.0) == math.inf
    assert engine.turns == 1


@PLAIN_AND_ALL
def test_isolate_runs_the_parts_of_a_batch_before_all_that_waits(options: dict[str, Any]) -> None:
    engine, calls = filled(*[0.0] * 5, isolate=True, concurrency=1, **options)
    engine.look().fail(ValueError())
    part = engine.look()
    assert (part.callers, part.reason) == (calls[:1], "isolate")
    part.settle([0])
    part = engine.look()
    assert (part.callers, part.reason) == (calls[1:3], "isolate")
    part.fail(ValueError())
    for call in calls[1:3]:
        part = engine.look()
        assert part.callers == [call]
        part.settle([0])
    assert look(engine, 1.0) == (calls[3:], "timeout")


@PLAIN_AND_ALL
@pytest.mark.parametrize("says_so", [True, False])
def test_isolate_survives_that_all_callers_of_a_part_have_left(options: dict[str, Any], says_so: bool) -> None:
    engine, calls = filled(*[0.0] * 3, isolate=True, concurrency=1, **options)
    batch = engine.look()
    engine.withdraw(calls[0]) if says_so else calls[0].leave()
    batch.fail(ValueError())
    while not isinstance(step := engine.look(), float):
        step.settle([0] * len(step.entries))
    assert [call.outcome() for call in calls[1:]] == [0, 0]
    stats = engine.tally.read(engine.waiting)
    assert (stats.accepted, stats.pending, stats.running, stats.in_flight) == (3, 0, 0, 0)


@PLAIN_AND_ALL
def test_isolate_loses_no_part_if_another_batch_fails_as_one_is_taken(options: dict[str, Any]) -> None:
    engine, calls = filled(*[0.0] * 6, isolate=True, concurrency=3, ended_by_news=True, **options)
    first, second = engine.look(), engine.look()

    class Raced(HandBatch):
        __slots__ = ()

        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            if second.engine is not None:  # on another thread
                second.fail(ValueError())

    engine.make_batch = Raced
    first.fail(ValueError())
    while not isinstance(step := engine.look(), float):
        step.settle([0] * len(step.entries))
    assert [call.bell.told for call in calls] == [1] * 6


def test_isolate_gives_a_part_a_second_try_if_there_is_no_memory() -> None:
    engine, calls = filled(*[0.0] * 2, isolate=True, concurrency=1, batch_size=2)
    engine.look().fail(ValueError())
    engine.fails = True
    with pytest.raises(MemoryError):
        engine.look()
    assert look(engine, 0.0) == (calls[:1], "isolate")


# Drains


def drained(engine: HandEngine) -> list[str]:
    """Ask when all is answered that was accepted; return the list that is not empty once it is."""
    told: list[str] = []
    engine.when_answered(lambda: told.append("answered"))
    return told


@PLAIN_AND_ALL
def test_drain_of_nothing_is_told_at_once(options: dict[str, Any]) -> None:
    engine, _ = filled(**options)
    told = drained(engine)
    assert look(engine, 0.0) == math.inf
    assert told == ["answered"]


@PLAIN_AND_ALL
def test_drain_makes_due_what_waits_and_is_told_when_it_is_answered(options: dict[str, Any]) -> None:
    engine, _ = filled(*[0.0] * 4, timeout=None, concurrency=1, **options)
    told = drained(engine)
    for size in (3, 1):
        batch = engine.look()
        assert told == []
        batch.settle([0] * size)
    assert look(engine, 0.0) == math.inf
    assert told == ["answered"]


@PLAIN_AND_ALL
@pytest.mark.parametrize("concurrency", [1, 2])
def test_drain_waits_for_batches_that_run_also_if_nothing_waits(options: dict[str, Any], concurrency: int) -> None:
    engine, _ = filled(0.0, timeout=0.0, concurrency=concurrency, **options)
    batch = engine.look()
    told = drained(engine)
    assert look(engine, 0.0) == math.inf
    assert told == []
    batch.settle([0])
    assert look(engine, 0.0) == math.inf
    assert told == ["answered"]


def test_drain_waits_for_a_younger_batch_that_runs_while_an_older_item_waits() -> None:
    engine, _ = filled(0.0, 1.0, 1.0, 1.0, keys="abbb", concurrency=2, timeout=None)
    engine.moment = 1.0
    full = engine.look()
    told = drained(engine)
    engine.look().settle([0])
    assert look(engine, 1.0) == math.inf
    assert told == []
    full.settle([0] * 3)
    look(engine, 1.0)
    assert told == ["answered"]


@PLAIN_AND_ALL
def test_drain_waits_for_the_parts_of_a_batch_that_failed(options: dict[str, Any]) -> None:
    engine, _ = filled(0.0, 1.0, 2.0, isolate=True, concurrency=1, **options)
    engine.moment = 2.0
    batch = engine.look()
    told = drained(engine)
    batch.fail(ValueError())
    engine.look().settle([0])
    part = engine.look()
    assert told == []
    part.settle([0, 0])
    look(engine, 2.0)
    assert told == ["answered"]


@PLAIN_AND_ALL
def test_drain_does_not_wait_for_what_comes_later(options: dict[str, Any]) -> None:
    engine, _ = filled(0.0, timeout=None, concurrency=1, **options)
    told = drained(engine)
    batch = engine.look()
    engine.moment = 1.0
    post(engine)
    batch.settle([0])
    assert look(engine, 1.0) == math.inf
    assert told == ["answered"]


@PLAIN_AND_ALL
def test_drain_does_not_wait_for_who_has_left(options: dict[str, Any]) -> None:
    engine, calls = filled(0.0, 0.0, timeout=None, **options)
    told = drained(engine)
    engine.withdraw(calls[0])
    calls[1].leave()
    assert look(engine, 0.0) == math.inf
    assert told == ["answered"]


# The end


@PLAIN_AND_ALL
def test_close_makes_all_due_and_ends_when_it_is_answered(options: dict[str, Any]) -> None:
    engine, calls = filled(*[0.0] * 4, timeout=None, concurrency=1, **options)
    told = drained(engine)
    engine.post_news(engine.closed_or_opened)
    late = drained(engine)
    batch = engine.look()
    assert (batch.callers, batch.reason) == (calls[:3], "full")
    assert look(engine, 0.0) == math.inf  # it runs
    batch.settle([0] * 3)
    batch = engine.look()
    batch.settle([0])
    assert look(engine, 0.0) is None
    engine.say_what_is_answered()
    assert (told, late) == (["answered"], ["answered"])
    assert rings(engine) == 1  # for the next owner


@PLAIN_AND_ALL
def test_close_can_refuse_what_waits_also_what_the_owner_has_not_seen_yet(options: dict[str, Any]) -> None:
    engine, calls = filled(0.0, 0.0, timeout=None, **options)
    look(engine, 0.0)
    calls += post(engine, 2)
    engine.post_news(engine.closed_or_opened)
    engine.post_news(engine.refuse_waiting, 0.0)
    assert look(engine, 0.0) is None
    assert [type(call.error) for call in calls] == [ClosedError] * 4
    stats = engine.tally.read(engine.waiting)
    assert (stats.accepted, stats.failed, stats.batches) == (4, 4, 0)


@PLAIN_AND_ALL
def test_close_that_refuses_counts_those_who_had_left_as_such(options: dict[str, Any]) -> None:
    engine, calls = filled(0.0, 0.0, timeout=None, **options)
    look(engine, 0.0)
    engine.withdraw(calls[0])
    engine.post_news(engine.closed_or_opened)
    engine.post_news(engine.refuse_waiting, 0.0)
    assert look(engine, 0.0) is None
    stats = engine.tally.read(engine.waiting)
    assert (stats.accepted, stats.failed, stats.cancelled) == (2, 1, 1)


@PLAIN_AND_ALL
def test_opened_again_it_waits_for_full_batches_as_before(options: dict[str, Any]) -> None:
    engine, _ = filled(**options)
    engine.post_news(engine.closed_or_opened)
    assert look(engine, 0.0) is None
    engine.post_news(engine.closed_or_opened, SimpleNamespace(closed=False))
    post(engine)
    assert look(engine, 0.0) == 1.0


def test_plain_engine_lets_items_wait_where_they_were_posted_and_others_take_them_in() -> None:
    plain, grouped = engine_with(), engine_with(max_pending=9)
    for engine in (plain, grouped):
        post(engine, 2)
        assert (len(engine.inbox), len(engine.buffer)) == (2, 2)
        look(engine, 0.0)
        assert len(engine.buffer) == 2
    assert (len(plain.inbox), len(grouped.inbox)) == (2, 0)


def test_too_few_callers_are_told_of_once(caplog: pytest.LogCaptureFixture) -> None:
    engine = HandEngine(Options(2, 1.0))
    for _ in range(120):
        post(engine)
        engine.look()
        engine.look(engine.moment + 1.0).settle([0])
    assert len(caplog.records) == 1
