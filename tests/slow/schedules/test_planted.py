"""A fault that is put into the library is found, so that finding none means something."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest

tool = pytest.importorskip("interleave_test")  # needs Python 3.12

from ... import inside as faults  # noqa: E402
from . import scenarios  # noqa: E402
from .conftest import Table  # noqa: E402
from .controlled import Seldom, explore  # noqa: E402


@dataclass
class Planted:
    """A fault, and the scenario that must find it."""

    what: str
    fault: faults.Fault
    scenario: Callable[[], None]


PLANTED = [
    Planted(
        "step 2: it says when to ring when it has looked for the last time",
        faults.step_2_too_late,
        scenarios.full_batch,
    ),
    Planted("step 3: it does not look again", faults.step_3_left_out, scenarios.full_batch),
    Planted("step 4: a caller does not ring", faults.step_4_left_out, scenarios.full_batch),
    Planted("step 4: a map does not ring", faults.step_4_left_out_by_maps, scenarios.mapping_only),
    Planted("step 4: a caller asks whether to ring before it posts", faults.step_4_reversed, scenarios.full_batch),
    Planted("news do not ring: flush()", faults.step_4_left_out_for_news, scenarios.flushing),
    Planted("news do not ring: a setting", faults.step_4_left_out_for_news, scenarios.settings),
    Planted("news do not ring: close()", faults.step_4_left_out_for_news, scenarios.closing),
    Planted("news do not ring: drain()", faults.drain_that_does_not_ring, scenarios.draining),
    Planted("it is not rung for a full group", faults.wake_at_that_knows_no_groups, scenarios.two_groups_and_one_full),
    Planted("it is not rung when max_pending wait", faults.wake_at_that_knows_no_limit, scenarios.full_by_pending),
    Planted(
        "it is not rung for the first, which it is to time",
        faults.owner_that_is_not_rung_for_the_first,
        scenarios.lone_timeout,
    ),
    Planted("of several news one is heard", faults.news_of_which_only_the_first_is_heard, scenarios.closing),
    Planted("who ends does not look again", faults.owner_that_does_not_look_again, scenarios.reopening),
    Planted("who posts does not look again", faults.poster_that_does_not_look_again, scenarios.reopening),
    Planted("two first callers start two owners", faults.second_owner_that_stays, scenarios.first_calls),
    Planted("an owner that ended is remembered", faults.owner_that_is_remembered, scenarios.reopening),
    Planted(
        "an owner does not know that it is closed", faults.owner_that_does_not_know_that_it_is_closed, scenarios.closing
    ),
    Planted(
        "a cancelled future is answered",
        faults.future_that_is_answered_though_cancelled,
        scenarios.cancelling_before_it_is_taken,
    ),
    Planted("a call that left is answered", faults.call_that_is_answered_though_it_left, scenarios.leaving_a_map),
    Planted("who leaves is counted twice", faults.call_that_leaves_twice, scenarios.cancelling),
    Planted("the neighbours of who left are lost", faults.neighbours_that_are_lost, scenarios.cancelling),
    Planted(
        "a future in a batch says that it is cancelled", faults.future_that_says_it_is_cancelled, scenarios.cancelling
    ),
    Planted("a batch that ends is not heard of: runners", faults.batch_that_ends_unheard, scenarios.three_for_two),
    Planted("a batch that ends is not heard of: an engine", faults.batch_that_ends_unheard, scenarios.on_an_engine),
    Planted("a turn is lost", faults.turn_that_is_lost, scenarios.three_for_two),
    Planted("more batches run than may: runners", faults.one_turn_too_many, scenarios.three_for_two_slowly),
    Planted("more batches run than may: an engine", faults.one_turn_too_many, scenarios.three_for_two_on_an_engine),
    Planted("a runner is taken for idle", faults.runner_that_is_not_started, scenarios.two_at_once),
    Planted(
        "a runner that ends does not send home the next one", faults.runner_that_ends_unheard, scenarios.closing_two
    ),
    Planted("close() makes nothing due", faults.close_that_makes_nothing_due, scenarios.closing),
    Planted("close() does not wait", faults.close_that_does_not_wait, scenarios.closing),
    Planted("the end is not told", faults.end_that_is_not_told, scenarios.closing),
    Planted("opening again is not heard", faults.opening_that_is_not_heard, scenarios.reopening_while_it_runs),
    Planted("drain() forgets what runs", faults.drain_that_forgets_what_runs, scenarios.draining_an_engine),
    Planted(
        "a dropped function is forgotten with its items",
        faults.function_that_is_dropped_with_its_items,
        scenarios.dropping,
    ),
    Planted(
        "a dropped function that is idle is not heard of",
        faults.dropped_function_of_which_nobody_hears,
        scenarios.dropping_idle,
    ),
    Planted("halves are forgotten", faults.halves_that_are_forgotten, scenarios.isolating),
    Planted(
        "halves come when their batch has ended", faults.halves_that_come_too_late, scenarios.isolating_and_closing
    ),
    Planted("halves are forgotten on a lent turn", faults.halves_that_are_forgotten_inside, scenarios.isolating_inside),
    Planted(
        "a map does not hear that batch_size has changed",
        faults.map_that_does_not_hear_of_a_batch_size,
        scenarios.map_and_settings,
    ),
    Planted("flush() comes too late", faults.flush_that_comes_too_late, scenarios.flushing),
    Planted("who waits for whom is not noted", faults.calls_inside_that_nobody_notes, scenarios.calling_each_other),
    Planted("a look wakes no other", faults.look_that_wakes_no_other, scenarios.ring_that_closes_late),
    Planted(
        "it looks before it notes what it awaits",
        faults.runner_that_looks_before_it_notes,
        scenarios.calling_each_other,
    ),
    Planted(
        "it looks before it notes what it awaits: three functions",
        faults.runner_that_looks_before_it_notes,
        scenarios.ring_of_three,
    ),
    Planted("a lent turn counts twice", faults.lent_turn_that_counts_twice, scenarios.lent_turn_leaves_room),
    Planted("a turn is asked for twice", faults.turn_that_is_asked_for_twice, scenarios.two_that_wait_for_their_own),
    Planted(
        "a batch on a lent turn ends unheard",
        faults.lent_turn_that_ends_unheard,
        scenarios.lending_to_an_engine_with_two,
    ),
    Planted(
        "a batch on a lent turn ends when that was heard",
        faults.lent_turn_that_ends_too_late,
        scenarios.lending_to_an_engine,
    ),
    Planted("a turn is lent to two", faults.turn_that_is_lent_to_two, scenarios.lending_to_an_engine),
    Planted("figures are read as they change", faults.figures_that_are_read_as_they_change, scenarios.reading_stats),
    Planted("figures are changed by two at once", faults.figures_without_the_lock, scenarios.three_for_two),
    Planted(
        "a full group does not make a batch due",
        faults.full_group_that_makes_nothing_due,
        scenarios.two_groups_and_one_full,
    ),
    Planted("a group that was full is taken for full", faults.group_that_stays_full, scenarios.two_groups_and_leaving),
    Planted(
        "a future is known of too late", faults.futures_that_are_known_too_late, scenarios.cancelling_the_first_of_all
    ),
    Planted("it is not asked who left", faults.leavers_that_are_not_heard, scenarios.leaving_before_it_is_taken),
    Planted("callbacks come too early", faults.callbacks_that_come_too_early, scenarios.callbacks_of_neighbours),
    Planted(
        "who comes has not heard the news",
        faults.news_of_which_an_owner_that_comes_does_not_hear,
        scenarios.first_call_and_close,
    ),
    Planted("a batch is taken without a word", faults.batch_that_is_taken_without_a_word, scenarios.reading_stats),
    Planted("a batch is answered without a word", faults.answers_without_a_word, scenarios.reading_stats),
    Planted("one leaves without a word", faults.changes_without_a_word, scenarios.reading_stats_as_one_leaves),
    Planted(
        "refused items are nowhere",
        faults.refused_items_that_are_nowhere,
        scenarios.reading_stats_as_items_are_refused,
    ),
    Planted("of equal items one is answered", faults.equal_items_of_which_one_is_answered, scenarios.deduping),
]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("planted", PLANTED, ids=lambda planted: planted.what)
def test_planted_fault_is_found(planted: Planted, table: Table) -> None:
    ways = (tool.PCTStrategy(), "shared"), (Seldom(), "shared"), (tool.PCTStrategy(), "line"), (Seldom(), "line")
    count = 0
    with planted.fault():
        for turn in range(40):
            strategy, granularity = ways[turn % 4]
            result = explore(planted.scenario, schedules=50, seed=turn // 4, strategy=strategy, granularity=granularity)
            count += result.schedules_run
            failure = result.failure
            if failure is not None:
                found = "deadlock" if failure.exception is None else type(failure.exception).__name__
                table.append((planted.what, planted.scenario.__name__, count, found))
                assert failure.kind != "hang", "it is not under the control of the scheduler"
                return
    pytest.fail(f"not found under {count} schedules")
