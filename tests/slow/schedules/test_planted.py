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
    Planted("the flush thread is not woken", faults.bell_that_does_not_ring, scenarios.full_batch),
    Planted(
        "call() asks outside the lock whether it is closed",
        faults.call_that_asks_too_early,
        scenarios.first_call_and_close,
    ),
    Planted(
        "submit() asks outside the lock whether it is closed",
        faults.submit_that_asks_too_early,
        scenarios.submitting_and_closing,
    ),
    Planted(
        "a sleeper says too late when it must be woken",
        faults.sleeper_that_says_too_late_when_to_wake_it,
        scenarios.calls,
    ),
    Planted("the flush thread looks without the lock", faults.look_without_the_lock, scenarios.calls),
    Planted("figures are changed without the lock", faults.figures_without_the_lock, scenarios.reading_stats),
    Planted("flush() wakes nobody", faults.flush_that_wakes_nobody, scenarios.flushing),
    Planted(
        "an item in a batch is counted as cancelled",
        faults.cancel_that_counts_an_item_in_a_batch,
        scenarios.cancelling,
    ),
    Planted("cancel() does not ask whether it is answered", faults.cancel_that_does_not_ask, scenarios.cancelling),
    Planted("two first callers start two threads", faults.second_thread_that_is_kept, scenarios.first_calls),
    Planted(
        "a thread that starts while it is closed is kept",
        faults.thread_that_is_kept_after_close,
        scenarios.first_call_and_close,
    ),
    Planted(
        "a map does not hear that batch_size has changed",
        faults.map_that_does_not_hear_of_a_batch_size,
        scenarios.map_and_settings,
    ),
    Planted(
        "who waits for whom: the look and the note under two holds",
        faults.lock_that_is_let_go_before_the_note,
        scenarios.calling_each_other,
    ),
    Planted(
        "what a dropped function holds is forgotten",
        faults.function_that_is_dropped_with_its_items,
        scenarios.dropping,
    ),
    Planted(
        "the idle flush thread keeps its function alive",
        faults.sleeping_thread_that_keeps_its_function,
        scenarios.dropping_idle,
    ),
    # Batches that run elsewhere
    Planted("a batch that ends wakes nobody", faults.batch_that_ends_unheard, scenarios.on_an_engine),
    Planted("a batch ends without the lock", faults.batch_that_ends_without_the_lock, scenarios.on_an_engine),
    # Several flush threads
    Planted(
        "that a thread is lacking is overlooked",
        faults.lack_of_a_thread_that_is_overlooked,
        scenarios.two_at_once,
    ),
    Planted(
        "that a thread is lacking is overlooked before a batch",
        faults.lack_of_a_thread_that_is_overlooked_before_a_batch,
        scenarios.two_in_one_step,
    ),
    Planted(
        "a thread that is awake counts as asleep",
        faults.sleeper_that_counts_as_asleep_for_ever,
        scenarios.two_at_once,
    ),
    Planted(
        "who takes a batch leaves the rest to nobody",
        faults.rest_that_is_left_to_nobody,
        scenarios.two_in_one_step,
    ),
    Planted(
        "what comes while a thread runs is timed by nobody",
        faults.rest_that_is_left_to_nobody,
        scenarios.timing_while_one_runs,
    ),
    Planted(
        "who takes a batch does not look for another one",
        faults.second_batch_that_is_left_to_nobody,
        scenarios.two_in_one_step,
    ),
    Planted("more threads are started than may be", faults.one_thread_too_many, scenarios.two_at_once_again),
    Planted("more batches run than may", faults.one_batch_too_many, scenarios.three_for_two_on_an_engine),
    Planted("a thread that ends does not wake the next one", faults.thread_that_ends_unheard, scenarios.closing_two),
    Planted(
        "a thread that ends with its function does not wake the next one",
        faults.thread_that_ends_unheard,
        scenarios.dropping_idle_two,
    ),
    Planted(
        "a thread that is no longer needed leaves what it timed to nobody",
        faults.thread_that_ends_unheard,
        scenarios.timing_for_an_engine,
    ),
    Planted(
        "a thread ends while a batch may still be run again",
        faults.thread_that_ends_while_a_batch_runs,
        scenarios.isolating_and_closing,
    ),
    # Halves of batches that failed
    Planted(
        "halves are left to whoever comes, if there was room",
        faults.halves_that_wake_nobody,
        scenarios.isolating_with_room_on_an_engine,
    ),
    Planted("halves are not seen", faults.halves_that_are_not_seen, scenarios.isolating_on_an_engine),
    Planted(
        "halves are due only when something else is",
        faults.halves_that_are_not_due,
        scenarios.isolating_with_two_that_wait,
    ),
    # What is due
    Planted(
        "that nobody else may join makes nothing due",
        faults.limit_that_makes_nothing_due,
        scenarios.full_by_pending,
    ),
    Planted(
        "a full group does not make a batch due",
        faults.full_group_that_makes_nothing_due,
        scenarios.two_groups_and_one_full,
    ),
    Planted("a group that was full is taken for full", faults.group_that_stays_full, scenarios.two_groups_and_leaving),
]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("planted", PLANTED, ids=lambda planted: planted.what)
def test_planted_fault_is_found(planted: Planted, table: Table) -> None:
    strategies = (Seldom(), tool.PCTStrategy())
    count = 0
    with planted.fault():
        for turn in range(40):
            result = explore(planted.scenario, schedules=50, seed=turn // 2, strategy=strategies[turn % 2])
            count += result.schedules_run
            failure = result.failure
            if failure is not None:
                found = "deadlock" if failure.exception is None else type(failure.exception).__name__
                table.append((planted.what, planted.scenario.__name__, count, found))
                assert failure.kind != "hang", "it is not under the control of the scheduler"
                return
    pytest.fail(f"not found under {count} schedules")
