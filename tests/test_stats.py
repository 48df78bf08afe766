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


def test_the_longest_wait_is_that_of_the_first_of_a_batch() -> None:
    tally = Tally()
    tally.begin("full", [0.0, 2.0], 3.0)
    tally.begin("full", [0.0, 5.0], 6.0)
    assert tally.snapshot(0, 0).longest_wait == 6.0


def test_a_snapshot_stays_as_it_is() -> None:
    tally = Tally()
    tally.begin("flush", [1.0], 1.0)
    stats = tally.snapshot(0, 0)
    tally.answer(1, 0, 1.0)
    tally.begin("flush", [1.0], 1.0)
    assert (stats.running, stats.answered, stats.sizes, stats.reasons) == (1, 0, {1: 1}, {"flush": 1})


def alike(tally: Tally, *arrivals: float, batches: int, timeout: float = 1.0) -> list[bool]:
    """Let so many batches wait out their timeout, each `arrivals` after the one before; return what is said of each."""
    told = []
    for _ in range(batches):
        came = [max(tally._ended_at, 0.0) + arrival for arrival in arrivals]
        tally.begin("timeout", came, came[0] + timeout)
        told.append(tally.too_few_callers("timeout", came, timeout))
        tally.answer(len(came), 0, came[0] + timeout)
    return told


def test_too_few_callers_are_told_of_at_the_fiftieth_batch_like_the_one_before() -> None:
    assert alike(Tally(), 0.0, 0.5, batches=120) == [number == 50 for number in range(120)]


def test_callers_come_soon_if_the_first_of_them_comes_within_the_timeout() -> None:
    assert any(alike(Tally(), 1.0, 1.5, batches=60))
    assert not any(alike(Tally(), 1.25, 1.5, batches=60))


def test_callers_who_come_before_the_first_batch_has_ended_did_not_wait_for_its_answers() -> None:
    tally = Tally()
    assert not any(tally.too_few_callers("timeout", [0.0], 1.0) for _ in range(60))


def test_a_batch_that_did_not_wait_out_its_timeout_shows_that_there_are_callers() -> None:
    tally = Tally()
    alike(tally, 0.0, batches=40)
    assert not tally.too_few_callers("full", [100.0], 1.0)
    assert alike(tally, 0.0, batches=60) == [number == 49 for number in range(60)]


def test_a_call_from_inside_says_nothing_of_how_many_callers_there_are() -> None:
    tally = Tally()
    alike(tally, 0.0, batches=40)
    tally.begin("nested", [tally._ended_at], tally._ended_at)
    assert alike(tally, 0.0, batches=20) == [number == 10 for number in range(20)]


def test_a_batch_of_another_size_shows_that_there_are_others() -> None:
    tally = Tally()
    alike(tally, 0.0, batches=40)
    assert not any(alike(tally, 0.0, 0.0, batches=50))
    assert not any(alike(tally, 0.0, batches=50))


def test_answers_before_the_end_of_a_batch_say_nothing_of_when_it_ended() -> None:
    tally = Tally()
    for _ in range(60):
        tally.begin("timeout", [0.0, 0.0], 1.0)
        assert not tally.too_few_callers("timeout", [0.0, 0.0], 1.0)
        tally.answer(1, 0, None)
    assert tally.snapshot(0, 0).in_flight == 60
