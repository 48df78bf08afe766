"""Nothing waits without a reason: `flush()` and a changed `batch_size` or `timeout` hold at once for what waits."""

import threading
from collections.abc import Callable

import pytest

from ..kit import Coroutines, Kit


def do(kit: Kit, action: Callable[[], object], *, from_a_thread: bool) -> None:
    """Do something in another thread; or else here, which for coroutines is on their loop."""
    if from_a_thread:
        thread = threading.Thread(target=action)
        thread.start()
        thread.join()
    elif isinstance(kit, Coroutines):

        async def on_the_loop() -> None:
            action()

        kit.run(on_the_loop())
    else:
        action()


# flush()


def test_flush_makes_what_waits_due(kit: Kit) -> None:
    kit.stop_the_clock()
    f = kit(batch_size=9, timeout=None)
    handles = kit.submits(f, range(3))
    kit.flush(f)
    assert kit.outcomes(handles) == [0, -1, -2]
    assert (kit.batches, f.stats.reasons) == ([[0, 1, 2]], {"flush": 1})


def test_flush_does_not_cut_what_comes_later(kit: Kit) -> None:
    kit.stop_the_clock()
    f = kit(batch_size=2, timeout=None)
    kit.outcome(kit.busy(f, 0))
    kit.move(0.125)
    kit.flush(f)  # nothing waits
    later = kit.submit(f, 1)  # at the same moment, as some clocks stand still for long
    kit.move(1e9)
    assert not later.done()
    assert kit.outcomes([kit.submit(f, 2), later]) == [-2, -1]
    assert f.stats.reasons == {"flush": 1, "full": 1}


# batch_size and timeout


@pytest.mark.parametrize("from_a_thread", [False, True])
@pytest.mark.parametrize("change", ["batch_size", "timeout", "flush"])
def test_change_is_heeded_at_once_by_what_waits(kit: Kit, change: str, from_a_thread: bool) -> None:
    def alter() -> None:
        if change == "batch_size":
            f.batch_size = 3
        elif change == "timeout":
            f.timeout = 0.75
        else:
            f.flush()

    kit.stop_the_clock()
    f = kit(batch_size=9, timeout=1e6)
    handles = kit.submits(f, range(3))
    kit.move(0.5)
    do(kit, alter, from_a_thread=from_a_thread)
    if change == "timeout":
        kit.move(0.125)
        assert f.stats.pending == 3
        kit.move(0.125)
    assert kit.outcomes(handles) == [0, -1, -2]
    assert (f.batch_size, f.timeout) == (3 if change == "batch_size" else 9, 0.75 if change == "timeout" else 1e6)
    assert f.stats.reasons == {{"batch_size": "full"}.get(change, change): 1}


def test_smaller_batch_size_cuts_what_waits_into_more_batches(kit: Kit) -> None:
    f = kit(batch_size=9, timeout=None)
    handles = kit.submits(f, range(4))
    f.batch_size = 2
    assert kit.outcomes(handles) == [0, -1, -2, -3]
    assert (f.batch_size, f.stats.sizes) == (2, {2: 2})


def test_larger_batch_size_lets_more_items_join(kit: Kit) -> None:
    kit.stop_the_clock()
    f = kit(batch_size=2, timeout=None)
    first = kit.submit(f, 1)
    f.batch_size = 3
    second = kit.submit(f, 2)
    kit.move(1e9)
    assert f.stats.pending == 2
    assert kit.outcomes([first, second, kit.submit(f, 3)]) == [-1, -2, -3]
    assert (kit.batches, f.stats.reasons) == ([[1, 2, 3]], {"full": 1})


def test_shorter_timeout_counts_from_the_arrival_of_the_item(kit: Kit) -> None:
    """To the part of a second that is left: it is not rounded up."""
    kit.stop_the_clock()
    f = kit(batch_size=2, timeout=1000)
    handle = kit.submit(f, 1)
    kit.move(999.5)
    f.timeout = 999.75
    assert f.timeout == 999.75
    kit.move(0.125)
    assert f.stats.pending == 1
    kit.move(0.125)
    assert kit.outcome(handle) == -1
    assert f.stats.reasons == {"timeout": 1}


def test_longer_timeout_is_heeded_by_what_waits(kit: Kit) -> None:
    kit.stop_the_clock()
    f = kit(batch_size=2, timeout=1.0)
    handle = kit.submit(f, 1)
    kit.move(0.5)
    f.timeout = 2.0
    kit.move(1.25)
    assert f.stats.pending == 1
    kit.move(0.25)
    assert kit.outcome(handle) == -1


def test_timeout_set_while_idle_is_heeded(kit: Kit) -> None:
    kit.stop_the_clock()
    f = kit(batch_size=9, timeout=10**9)
    assert kit.outcome(kit.busy(f, 0)) == 0
    kit.move(0.125)  # what comes at the very moment of a flush is flushed too
    f.timeout = 0.25
    handle = kit.submit(f, 1)
    kit.move(0.25)
    assert kit.outcome(handle) == -1
    assert f.stats.reasons == {"flush": 1, "timeout": 1}


def test_wrong_setting_is_refused_and_changes_nothing(kit: Kit) -> None:
    f = kit(batch_size=9, timeout=1)
    with pytest.raises(ValueError, match=r"^negate\(\): batch_size must be at least 1, got 0$"):
        f.batch_size = 0
    for timeout in (-1, float("nan")):
        with pytest.raises(ValueError, match=r"^negate\(\): timeout must be at least 0 and finite"):
            f.timeout = timeout
    assert (f.batch_size, f.timeout) == (9, 1.0)
