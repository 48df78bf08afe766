"""Nothing runs without a reason: an idle function sets no timer and wakes nobody, and an unused one starts no thread.

How often threads are woken is counted in `tests/threads/test_waking.py`, timers in `tests/loops/test_timers.py`.
"""

import threading

import pytest

from .. import inside
from ..kit import Kit, Threads


def flush_threads(name: str) -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == f"batchify flush thread of {name}()"]


# Unused functions


@pytest.mark.thread_unsafe(reason="looks for threads by name")
def test_unused_function_starts_no_thread(kit: Kit) -> None:
    def unused(xs: list[int]) -> list[int]:
        return xs

    f = kit(unused, batch_size=9)
    kit.flush(f)
    f.batch_size = 3
    f.timeout = 1.0
    assert f.stats.batches == f.stats.accepted == 0
    kit.close(f)
    assert not flush_threads("unused")


@pytest.mark.thread_unsafe(reason="looks for threads by name")
def test_function_of_threads_starts_one_thread_with_its_first_item(threads: Threads) -> None:
    def used(xs: list[int]) -> list[int]:
        return xs

    f = threads(used, batch_size=9, timeout=None)
    future = f.submit(1)
    f.submit(2)
    assert len(flush_threads("used")) == 1
    f.close()
    assert future.result() == 1
    assert not flush_threads("used")


def test_flush_of_nothing_runs_nothing(kit: Kit) -> None:
    f = kit(batch_size=9)
    kit.flush(f)
    assert f.stats.batches == 0
    assert kit.outcome(kit.submit(f, 1)) == -1
    kit.flush(f)
    kit.settle()
    assert (kit.batches, f.stats.batches) == ([[1]], 1)


# Timers


@pytest.mark.parametrize("timeout", [0.0, 1.0, None])
def test_idle_function_sets_no_timer(kit: Kit, timeout: float | None) -> None:
    kit.stop_the_clock()
    f = kit(batch_size=2, timeout=timeout)
    for _ in range(3):
        assert kit.outcomes(kit.submits(f, [1, 2])) == [-1, -2]
        kit.settle()
        kit.move(1.0)  # a flush thread may sleep once for as long as the next item may wait
        assert not inside.has_a_timer(f)


def test_item_that_waits_sets_a_timer_only_if_time_makes_it_due(kit: Kit) -> None:
    kit.stop_the_clock()
    f, endless = kit(batch_size=9, timeout=1.0), kit(batch_size=9, timeout=None)
    kit.submit(f, 1)
    kit.submit(endless, 1)
    kit.settle()
    assert inside.has_a_timer(f)
    assert not inside.has_a_timer(endless)


def test_item_that_leaves_takes_its_timer_along(kit: Kit) -> None:
    kit.stop_the_clock()
    f = kit(batch_size=9, timeout=1.0)
    future = kit.submit(f, 1)
    kit.settle()
    assert inside.has_a_timer(f)
    assert future.cancel()
    kit.settle()
    assert not inside.has_a_timer(f)


def test_no_timer_is_set_while_the_function_runs(kit: Kit) -> None:
    kit.stop_the_clock()
    f = kit(gated=True, batch_size=2, timeout=1.0)
    handles = kit.submits(f, [1, 2])
    kit.until_runs(1)
    handles.append(kit.submit(f, 3))
    f.timeout = 2.0
    kit.settle()
    assert not inside.has_a_timer(f)
    kit.go_on()
    assert kit.outcomes(handles[:2]) == [-1, -2]
    kit.settle()
    assert inside.has_a_timer(f)
    kit.move(2.0)
    kit.go_on()
    assert kit.outcome(handles[2]) == -3


def test_change_of_settings_sets_no_timer_where_nothing_waits(kit: Kit) -> None:
    kit.stop_the_clock()
    f = kit(batch_size=2, timeout=1.0)
    assert kit.outcomes(kit.submits(f, [1, 2])) == [-1, -2]
    kit.settle()
    kit.move(1.0)
    f.timeout = 2.0
    f.batch_size = 3
    kit.flush(f)
    kit.settle()
    assert not inside.has_a_timer(f)
