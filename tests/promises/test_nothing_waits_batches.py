"""Nothing waits without a reason. A full batch never waits; an item is due `timeout` seconds after its own arrival.

A batch is cut late: items go on joining until the function is free. Those that are left over keep their arrival.
"""

import threading
import time
from typing import Any

import pytest

from ..kit import Kit, Threads
from ..tools import in_threads


def negatives(items: Any) -> list[int]:
    return [-item for item in items]


def put(kit: Kit, f: Any, item: int, how: str) -> Any:
    return kit.start(f, item) if how == "call" else kit.submit(f, item)


# Full batches


@pytest.mark.parametrize("timeout", [10**9, None])
@pytest.mark.parametrize("how", ["call", "submit"])
def test_full_batch_does_not_wait(kit: Kit, how: str, timeout: float | None) -> None:
    kit.stop_the_clock()
    f = kit(batch_size=4, timeout=timeout)
    assert kit.outcomes([put(kit, f, item, how) for item in range(8)]) == negatives(range(8))
    assert kit.batches == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert (f.stats.sizes, f.stats.reasons) == ({4: 2}, {"full": 2})


def test_full_batches_are_shared_by_threads_that_call_at_once(threads: Threads) -> None:
    f = threads(batch_size=8, timeout=None)
    assert in_threads(f, range(32)) == negatives(range(32))
    assert [len(batch) for batch in threads.batches] == [8] * 4


def test_full_batches_that_gather_while_the_function_runs_follow_it_at_once(kit: Kit) -> None:
    kit.stop_the_clock()
    f = kit(gated=True, batch_size=3, timeout=None)
    handles = [kit.busy(f, 0)]
    kit.move(0.125)  # what comes at the very moment of a flush is flushed too
    handles += kit.submits(f, range(1, 8))
    kit.go_on(3)
    assert kit.outcomes(handles[:7]) == negatives(range(7))
    assert kit.batches == [[0], [1, 2, 3], [4, 5, 6]]
    assert (f.stats.pending, f.stats.reasons) == (1, {"flush": 1, "full": 2})


def test_item_that_leaves_a_full_batch_leaves_the_others_their_time(kit: Kit) -> None:
    kit.stop_the_clock()
    f = kit(gated=True, batch_size=2, timeout=1.0)
    busy = kit.busy(f, 0)
    kit.move(0.125)
    first, second = kit.submits(f, [1, 2])
    assert second.cancel()
    kit.go_on()
    assert kit.outcome(busy) == 0
    kit.move(0.75)
    assert f.stats.pending == 1
    kit.move(0.25)
    kit.go_on()
    assert kit.outcome(first) == -1
    assert (kit.batches, f.stats.reasons) == ([[0], [1]], {"flush": 1, "timeout": 1})


# Deadlines


@pytest.mark.parametrize("how", ["call", "submit"])
def test_lone_item_waits_just_as_long_as_timeout_each_time(kit: Kit, how: str) -> None:
    kit.stop_the_clock()
    f = kit(batch_size=2, timeout=1.0)
    for item in range(5):
        handle = put(kit, f, item, how)
        kit.move(0.75)
        assert not handle.done()
        assert f.stats.pending == 1
        kit.move(0.25)
        assert kit.outcome(handle) == -item
    assert f.stats.reasons == {"timeout": 5}


@pytest.mark.parametrize("how", ["call", "submit"])
def test_oldest_item_never_waits_past_its_deadline(kit: Kit, how: str) -> None:
    kit.stop_the_clock()
    f = kit(gated=True, batch_size=9, timeout=1.0)
    handles = [put(kit, f, 1, how)]
    kit.move(0.75)
    handles.append(put(kit, f, 2, how))
    kit.move(0.125)
    assert (kit.batches, f.stats.pending) == ([], 2)
    kit.move(0.125)
    kit.until_runs(1)
    assert kit.batches == [[1, 2]]
    kit.go_on()
    assert kit.outcomes(handles) == [-1, -2]
    assert (f.stats.reasons, f.stats.waited, f.stats.longest_wait) == ({"timeout": 1}, 1.25, 1.0)


def test_leftover_items_keep_their_time_of_arrival(kit: Kit) -> None:
    kit.stop_the_clock()
    f = kit(gated=True, batch_size=2, timeout=1.0)
    handles = kit.submits(f, [1, 2])
    kit.until_runs(1)
    handles.append(kit.submit(f, 3))
    kit.move(0.5)
    handles += kit.submits(f, [4, 5])
    kit.go_on()
    kit.until_runs(2)
    assert kit.batches == [[1, 2], [3, 4]]
    kit.move(0.125)
    kit.go_on()
    assert kit.outcomes(handles[:4]) == [-1, -2, -3, -4]
    kit.move(0.75)
    assert (kit.batches, f.stats.pending) == ([[1, 2], [3, 4]], 1)
    kit.move(0.125)
    kit.until_runs(3)
    assert kit.batches == [[1, 2], [3, 4], [5]]
    kit.go_on()
    assert kit.outcome(handles[4]) == -5


def test_leftover_items_past_their_deadline_are_due_once_the_function_is_free(kit: Kit) -> None:
    kit.stop_the_clock()
    f = kit(gated=True, batch_size=9, timeout=1.0)
    handles = [kit.busy(f, 0)]
    kit.move(0.125)
    handles.append(kit.submit(f, 1))
    kit.move(5.0)
    handles.append(kit.submit(f, 2))
    kit.go_on(2)
    assert kit.outcomes(handles) == [0, -1, -2]
    assert (kit.batches, f.stats.reasons) == ([[0], [1, 2]], {"flush": 1, "timeout": 1})


def test_deadline_of_an_earlier_batch_does_not_cut_the_next_one(kit: Kit) -> None:
    kit.stop_the_clock()
    f = kit(batch_size=2, timeout=1.0)
    first = kit.submit(f, 1)
    kit.move(0.5)
    assert kit.outcomes([first, kit.submit(f, 2)]) == [-1, -2]
    third = kit.submit(f, 3)
    kit.move(0.75)
    assert not third.done()
    assert f.stats.pending == 1
    kit.move(0.25)
    assert kit.outcome(third) == -3
    assert f.stats.reasons == {"full": 1, "timeout": 1}


def test_deadlines_go_by_the_monotonic_clock(threads: Threads, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> float:
        raise AssertionError("the wall clock may be set back")

    monkeypatch.setattr(time, "time", refuse)
    f = threads(batch_size=9, timeout=0.05)
    before = time.monotonic()
    assert f(1) == -1
    assert time.monotonic() - before >= 0.05
    assert f.stats.reasons == {"timeout": 1}


def test_timeout_none_waits_for_a_full_batch_or_flush(kit: Kit) -> None:
    kit.stop_the_clock()
    f = kit(batch_size=9, timeout=None)
    first = kit.submit(f, 1)
    kit.move(1e9)
    assert not first.done()
    assert f.stats.pending == 1
    kit.flush(f)
    assert kit.outcome(first) == -1
    kit.move(1.0)
    second = kit.submit(f, 2)
    kit.move(1e9)
    assert not second.done()
    assert second.cancel()
    assert f.stats.reasons == {"flush": 1}


def test_timeout_that_is_huge_is_no_overflow(kit: Kit) -> None:
    f = kit(batch_size=2, timeout=1e300)
    first = kit.submit(f, 1)
    kit.settle()
    assert not first.done()
    assert kit.outcomes([kit.submit(f, 2), first]) == [-2, -1]


# Cut late


@pytest.mark.parametrize("batch_size", [19, 64])
def test_items_join_until_the_function_is_free(kit: Kit, batch_size: int) -> None:
    kit.stop_the_clock()
    f = kit(gated=True, batch_size=batch_size)
    handles = [kit.submit(f, 0)]
    kit.until_runs(1)
    for item in range(1, 20):
        handles.append(kit.submit(f, item))
        kit.move(0.01)
    assert kit.batches == [[0]]
    kit.go_on(2)
    assert kit.outcomes(handles) == negatives(range(20))
    assert kit.batches == [[0], list(range(1, 20))]


def test_function_never_runs_twice_at_once(kit: Kit) -> None:
    f = kit(gated=True, batch_size=2)
    handles = kit.submits(f, range(20))
    for batches in range(1, 11):
        kit.until_runs(batches)
        assert kit.running == 1
        kit.go_on()
    kit.go_on(20)  # on threads the first batches may be smaller
    assert kit.outcomes(handles) == negatives(range(20))
    assert kit.most == 1
    assert len(kit.idents) == 1


def test_function_runs_on_one_thread_of_its_own_whoever_calls(threads: Threads) -> None:
    callers: set[int] = set()

    def call(item: int) -> Any:
        callers.add(threading.get_ident())
        return f(item)

    f = threads(batch_size=3)
    assert in_threads(call, range(50)) == negatives(range(50))
    assert threads.most == 1
    assert len(threads.idents) == 1
    assert threads.idents.isdisjoint(callers | {threading.get_ident()})
