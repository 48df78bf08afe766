"""A finalizer or a signal handler may post while the owner, on the same thread, is at any line: nothing is lost."""

import math
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from .. import inside
from ..inside import Call, HandBatch, HandEngine
from ..intruder import at_each_line, ctrl_c
from .test_buffer import ALL_OPTIONS, Item, filled

pytestmark = pytest.mark.thread_unsafe(reason="traces its thread")

PLAIN_AND_ALL = pytest.mark.parametrize("options", [{}, ALL_OPTIONS], ids=["plain", "all"])


def late_call(engine: HandEngine) -> Call:
    return engine.call(Item("a", 0.0), arrival=1.0)


Act = Callable[[HandEngine, list[Call], Call], None]


def posts(engine: HandEngine, _: list[Call], late: Call) -> None:
    engine.post(late)


def posts_and_flushes(engine: HandEngine, _: list[Call], late: Call) -> None:
    engine.post(late)
    engine.flush()


def posts_and_flushes_if_it_is_lonely(engine: HandEngine, _: list[Call], late: Call) -> None:
    engine.post(late)
    engine.flush(late)


def posts_and_leaves(engine: HandEngine, _: list[Call], late: Call) -> None:
    engine.post(late)
    engine.withdraw(late)


def leaves(engine: HandEngine, calls: list[Call], _: Call) -> None:
    engine.withdraw(calls[1])


def leaves_without_a_word(_: HandEngine, calls: list[Call], __: Call) -> None:
    calls[0].leave()


def flushes(engine: HandEngine, _: list[Call], __: Call) -> None:
    engine.flush()


def closes(engine: HandEngine, _: list[Call], __: Call) -> None:
    engine.post_news(engine.closed_or_opened)


ACTS: list[Act] = [posts, posts_and_flushes, posts_and_flushes_if_it_is_lonely, posts_and_leaves]
ACTS += [leaves, leaves_without_a_word, flushes, closes]


def look_first(engine: HandEngine) -> Any:
    """Let the owner look that was woken by those before."""
    engine.rung = 0
    return engine.look(1.0)


def until_it_sleeps(engine: HandEngine, step: Any) -> None:
    """Do what a driver does that has just heard that of the owner: it looks again as long as somebody rings."""
    if step is None:
        engine.say_what_is_answered()
    while isinstance(step, HandBatch) or engine.rung:
        if isinstance(step, HandBatch):
            step.settle([0] * len(step.entries))
        engine.rung = 0
        step = engine.look()
        if step is None:
            engine.say_what_is_answered()
    # What nobody rang for is not due.
    assert not isinstance(engine.look(), HandBatch)


@PLAIN_AND_ALL
@pytest.mark.parametrize("waiting", [0, 2, 3, 4])
@pytest.mark.parametrize("act", ACTS, ids=lambda act: act.__name__)
def test_intruder_at_any_line_of_the_owners_step_loses_nothing_and_wakes_it(
    act: Act, waiting: int, options: dict[str, Any]
) -> None:
    if waiting < 2 and act in (leaves, leaves_without_a_word):
        return
    for lines in at_each_line(at_least=15):
        engine, calls = filled(*[0.0] * waiting, timeout=None, concurrency=1, **options)
        late = late_call(engine)
        told: list[str] = []
        engine.when_answered(lambda: told.append("answered"))  # noqa: B023 - run at once
        with lines.intruder_doing(lambda: act(engine, calls, late)).on_this_thread():  # noqa: B023
            step = look_first(engine)
        assert lines.intruder is not None
        assert lines.intruder.error is None, lines.where
        until_it_sleeps(engine, step)
        assert told == ["answered"], lines.where
        engine.flush()
        until_it_sleeps(engine, engine.look())
        posted = [*calls, late] if lines.where and act.__name__.startswith("posts") else calls
        stats = engine.tally.read(engine.waiting)
        assert all(call.is_over() for call in posted), lines.where
        assert all(call.bell.told <= 1 for call in posted), lines.where
        assert (stats.accepted, stats.pending, stats.running) == (len(posted), 0, 0), lines.where
        assert stats.answered + stats.cancelled == len(posted)


@PLAIN_AND_ALL
def test_full_batch_that_an_intruder_completes_at_any_line_does_not_wait(options: dict[str, Any]) -> None:
    for lines in at_each_line(at_least=15):
        engine, calls = filled(0.0, 0.0, timeout=None, concurrency=1, **options)
        late = late_call(engine)
        with lines.intruder_doing(lambda: engine.post(late)).on_this_thread():  # noqa: B023 - run at once
            step = look_first(engine)
        until_it_sleeps(engine, step)
        assert all(call.is_over() for call in calls) == bool(lines.where), lines.where


@pytest.mark.parametrize("batch_size", [2, 3, 9])
@PLAIN_AND_ALL
def test_exception_at_any_line_of_the_buffer_loses_nothing_and_doubles_nothing(
    batch_size: int, options: dict[str, Any]
) -> None:
    for lines in at_each_line(at_least=15):
        engine, calls = filled(0.0, 0.0, 0.5, 0.0, batch_size=batch_size, timeout=0.5, concurrency=1, **options)
        calls.append(engine.post(engine.call(calls[0].item, arrival=0.0)))  # perhaps equal
        engine.withdraw(calls[1])
        calls[2].leave()
        engine.flush(calls[3])
        engine.post_news(engine.settings_changed)
        step: Any = math.inf
        with suppress(KeyboardInterrupt), lines.intruder_doing(ctrl_c, inside.BUFFER).on_this_thread():
            step = engine.look(1.0)
        engine.rung = 1
        until_it_sleeps(engine, step)
        inside.check(engine.buffer)
        if lines.text != "return taken, reason":  # else nobody but its caller knows them
            assert all(call.is_over() for call in calls), lines.where
            stats = engine.tally.read(engine.waiting)
            assert (stats.pending, stats.running) == (0, 0), lines.where
            assert stats.answered + stats.failed == 3, lines.where
        assert all(call.bell.told <= 1 for call in calls), lines.where
