"""What happened: every figure, by hand."""

import threading

import pytest

from batchify import Stats

from ..inside import Tally
from ..intruder import at_each_line


def read(tally: Tally, pending: int = 0, left: int = 0) -> Stats:
    """Return the figures while so many wait, and so many stand there that have left."""
    return tally.read(lambda: (pending, left))


def test_stats_are_zero_before_the_first_batch() -> None:
    stats = read(Tally())
    assert (stats.accepted, stats.pending, stats.running, stats.in_flight) == (0, 0, 0, 0)
    assert (stats.answered, stats.failed, stats.cancelled, stats.refused, stats.batches) == (0, 0, 0, 0, 0)
    assert (stats.sizes, stats.reasons, stats.sizes_by_reason) == ({}, {}, {})
    assert (stats.waited, stats.longest_wait, stats.mean_size, stats.mean_wait) == (0.0, 0.0, 0.0, 0.0)


def test_stats_add_up() -> None:
    tally = Tally()
    tally.begin("full", 3, [1.0, 3.0, 4.0], 9.0)
    tally.begin("timeout", 1, [2.0], 8.0)
    tally.begin("full", 3, [7.0, 8.0, 8.0], 9.0)
    tally.begin("full", 3, [8.0, 8.0, 9.0], 9.0)
    tally.answer(1, 0, False)
    tally.answer(2, 1, True)
    tally.answer(1, 1, True)
    tally.answer(1, 0, False)
    tally.cancelled += 4
    for _ in range(7):
        tally.refuse()
    stats = read(tally, 2, 1)
    assert (stats.pending, stats.running, stats.in_flight) == (2, 5, 2)
    assert (stats.answered, stats.failed, stats.cancelled, stats.refused) == (3, 2, 5, 7)
    assert stats.accepted == 17
    assert (stats.batches, stats.mean_size) == (4, 2.5)
    assert list(stats.sizes.items()) == [(1, 1), (3, 3)]
    assert stats.reasons == {"full": 3, "timeout": 1}
    assert stats.sizes_by_reason == {"full": {3: 3}, "timeout": {1: 1}}
    assert (stats.waited, stats.longest_wait) == (19.0 + 6.0 + 4.0 + 2.0, 8.0)
    assert stats.mean_wait == 31.0 / 10


def test_longest_wait_is_that_of_the_first_item_of_a_batch() -> None:
    tally = Tally()
    tally.begin("full", 2, [0.0, 2.0], 3.0)
    tally.begin("full", 2, [0.0, 5.0], 6.0)
    assert read(tally).longest_wait == 6.0


def test_stats_once_read_do_not_change() -> None:
    tally = Tally()
    tally.begin("flush", 1, [1.0], 1.0)
    stats = read(tally)
    tally.answer(1, 0, True)
    tally.begin("flush", 1, [1.0], 1.0)
    assert (stats.running, stats.answered, stats.sizes, stats.reasons) == (1, 0, {1: 1}, {"flush": 1})


def test_part_of_a_batch_that_failed_counts_as_a_batch_and_its_items_once() -> None:
    tally = Tally()
    tally.begin("full", 2, [0.0, 0.0], 1.0)
    tally.answer(0, 0, True)
    assert (read(tally).running, read(tally).in_flight) == (2, 0)
    for _ in range(2):
        tally.begin("isolate", 1, [0.0], 3.0)
        tally.answer(1, 0, True)
    stats = read(tally)
    assert (stats.accepted, stats.answered, stats.running, stats.batches) == (2, 2, 0, 3)
    assert (stats.waited, stats.reasons) == (2.0, {"full": 1, "isolate": 2})


def test_equal_items_are_one_in_the_size_of_a_batch_and_several_that_wait() -> None:
    tally = Tally()
    tally.begin("full", 1, [0.0, 1.0, 2.0], 3.0)
    stats = read(tally)
    assert (stats.sizes, stats.running, stats.waited, stats.longest_wait) == ({1: 1}, 3, 6.0, 3.0)


def test_refused_items_are_counted_on_any_number_of_threads_at_once() -> None:
    tally = Tally()

    def refuse() -> None:
        for _ in range(1000):
            tally.refuse()

    threads = [threading.Thread(target=refuse) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert read(tally).refused == 4000


def test_stats_are_read_in_the_midst_of_a_change_by_who_makes_it() -> None:
    tally = Tally()
    with tally:
        tally.cancelled += 1
        assert read(tally).cancelled == 1


def test_stats_are_read_anew_if_something_changes_meanwhile() -> None:
    tally = Tally()

    def waiting() -> tuple[int, int]:
        if not tally.answered:  # on another thread
            with tally:
                tally.running += 1
            tally.answer(1, 0, False)
            return 1, 0
        return 0, 0

    stats = tally.read(waiting)
    assert (stats.accepted, stats.pending, stats.answered) == (1, 0, 1)


@pytest.mark.thread_unsafe(reason="traces its thread")
def test_stats_are_of_one_moment_whatever_is_answered_as_they_are_read() -> None:
    for lines in at_each_line(at_least=8):
        tally = Tally()
        tally.begin("full", 3, [0.0, 0.0, 0.0], 1.0)
        with lines.intruder_doing(lambda: tally.answer(3, 1, True)).on_this_thread():  # noqa: B023 - run at once
            stats = read(tally)
        assert (stats.accepted, stats.running) in [(3, 3), (3, 0)], lines.where
        assert stats.in_flight == (stats.running > 0), lines.where


class Series:
    """Batches one after the other, each of which waits out its timeout of one second."""

    def __init__(self) -> None:
        self.tally = Tally()
        self.ended_at = 0.0

    def alike(self, *arrivals: float, batches: int) -> list[bool]:
        """Count so many, whose items come `arrivals` after the end of the one before; return what is said of each."""
        told = []
        for _ in range(batches):
            came = [self.ended_at + arrival for arrival in arrivals]
            self.ended_at = came[0] + 1.0
            told.append(self.tally.begin("timeout", len(came), came, self.ended_at, 1.0))
            self.tally.answer(len(came), 0, True)
            self.tally.ended_at = self.ended_at
        return told


def test_too_few_callers_are_told_of_at_the_fiftieth_batch_like_the_one_before() -> None:
    assert Series().alike(0.0, 0.5, batches=120) == [number == 50 for number in range(120)]


def test_too_few_callers_must_come_within_the_timeout_of_the_last_answer() -> None:
    assert any(Series().alike(1.0, 1.5, batches=60))
    assert not any(Series().alike(1.25, 1.5, batches=60))


def test_too_few_callers_are_not_told_of_before_the_first_batch_has_ended() -> None:
    tally = Tally()
    assert not any(tally.begin("timeout", 1, [0.0], 1.0, 1.0) for _ in range(60))


def test_too_few_callers_are_not_told_of_where_a_batch_was_full_meanwhile() -> None:
    series = Series()
    series.alike(0.0, batches=40)
    series.tally.begin("full", 1, [100.0], 100.0)
    assert series.alike(0.0, batches=60) == [number == 49 for number in range(60)]


def test_too_few_callers_are_told_of_whatever_calls_come_from_inside() -> None:
    series = Series()
    series.alike(0.0, batches=40)
    series.tally.begin("nested", 1, [series.ended_at], series.ended_at)
    assert series.alike(0.0, batches=20) == [number == 10 for number in range(20)]


def test_too_few_callers_are_told_of_whatever_parts_run_again() -> None:
    series = Series()
    series.alike(0.0, batches=40)
    series.tally.begin("isolate", 1, [series.ended_at], series.ended_at)
    assert series.alike(0.0, batches=20) == [number == 10 for number in range(20)]


def test_too_few_callers_are_not_told_of_where_nobody_waits_for_others() -> None:
    tally = Tally()
    assert not any(tally.begin("timeout", 1, [0.0], 1.0, timeout) for _ in range(60) for timeout in (0.0, None))


def test_too_few_callers_are_not_told_of_where_batches_differ_in_size() -> None:
    series = Series()
    series.alike(0.0, batches=40)
    assert not any(series.alike(0.0, 0.0, batches=50))
    assert not any(series.alike(0.0, batches=50))


def test_stats_count_a_batch_in_flight_until_its_last_answer() -> None:
    tally = Tally()
    for _ in range(60):
        assert not tally.begin("timeout", 2, [0.0, 0.0], 1.0, 1.0)
        tally.answer(1, 0, False)
    assert read(tally).in_flight == 60
