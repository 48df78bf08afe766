"""What happened: every figure, by hand."""

from batchify._stats import Tally


def test_before_the_first_batch_all_is_zero() -> None:
    stats = Tally().snapshot(0, 0)
    assert (stats.accepted, stats.pending, stats.running, stats.in_flight) == (0, 0, 0, 0)
    assert (stats.answered, stats.failed, stats.cancelled, stats.batches) == (0, 0, 0, 0)
    assert (stats.sizes, stats.reasons, stats.sizes_by_reason, stats.blocked) == ({}, {}, {}, 0)
    assert (stats.waited, stats.longest_wait, stats.mean_size, stats.mean_wait) == (0.0, 0.0, 0.0, 0.0)


def test_every_figure_is_right() -> None:
    tally = Tally()
    tally.begin("full", [1.0, 3.0, 4.0], 9.0)
    tally.begin("timeout", [2.0], 8.0)
    tally.begin("full", [7.0, 8.0, 8.0], 9.0)
    tally.begin("full", [8.0, 8.0, 9.0], 9.0)
    tally.answer(1, 0, None)
    tally.answer(2, 1, 10.0)
    tally.answer(1, 1, 10.0)
    tally.answer(1, 0, None)
    tally.cancelled += 4
    stats = tally.snapshot(2, 5)
    assert (stats.pending, stats.blocked, stats.running, stats.in_flight) == (2, 5, 5, 2)
    assert (stats.answered, stats.failed, stats.cancelled) == (3, 2, 4)
    assert stats.accepted == 16
    assert (stats.batches, stats.mean_size) == (4, 2.5)
    assert list(stats.sizes.items()) == [(1, 1), (3, 3)]
    assert stats.reasons == {"full": 3, "timeout": 1}
    assert stats.sizes_by_reason == {"full": {3: 3}, "timeout": {1: 1}}
    assert (stats.waited, stats.longest_wait) == (19.0 + 6.0 + 4.0 + 2.0, 8.0)
    assert stats.mean_wait == 31.0 / 10


def test_a_snapshot_stays_as_it_is() -> None:
    tally = Tally()
    tally.begin("flush", [1.0], 1.0)
    stats = tally.snapshot(0, 0)
    tally.answer(1, 0, 1.0)
    tally.begin("flush", [1.0], 1.0)
    assert (stats.running, stats.answered, stats.sizes, stats.reasons) == (1, 0, {1: 1}, {"flush": 1})
