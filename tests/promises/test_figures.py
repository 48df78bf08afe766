"""What `stats` says is right: each item is counted once, and before its caller goes on."""

import random
from contextlib import suppress
from typing import Any

from ..kit import Coroutines, Kit, Threads, echo
from ..tools import in_threads


def call_and_look(kit: Kit, f: Any, item: int) -> Any:
    """Return what the caller itself sees in `stats` as soon as it goes on."""

    async def on_the_loop() -> Any:
        with suppress(KeyError, ValueError):
            await f(item)
        return f.stats

    if isinstance(kit, Coroutines):
        return kit.run(on_the_loop())
    with suppress(KeyError, ValueError):
        f(item)
    return f.stats


def test_figures_are_right_when_the_caller_goes_on(kit: Kit) -> None:
    def function(items: list[int]) -> list[Any]:
        if 13 in items:
            raise ValueError
        return [KeyError() if item == 7 else item for item in items]

    f = kit(function, batch_size=1)
    for count, item in enumerate([1, 7, 13, 2], 1):
        stats = call_and_look(kit, f, item)
        assert (stats.accepted, stats.pending, stats.running, stats.in_flight) == (count, 0, 0, 0)
        assert (stats.answered + stats.failed, stats.batches) == (count, count)
    assert (stats.answered, stats.failed, stats.cancelled, stats.batches) == (2, 2, 0, 4)
    assert stats.sizes == {1: 4}
    assert stats.mean_size == 1.0
    assert 0 <= stats.mean_wait <= stats.longest_wait <= stats.waited
    kit.consistent(f)


def test_figures_say_what_waits_and_what_runs(kit: Kit) -> None:
    f = kit(gated=True, batch_size=2)
    assert f.stats.mean_size == f.stats.mean_wait == 0.0
    first = kit.busy(f, 0)
    others = kit.submits(f, range(3))
    assert others[0].cancel()
    stats = f.stats
    assert (stats.accepted, stats.running, stats.in_flight, stats.pending, stats.cancelled) == (4, 1, 1, 2, 1)
    kit.go_on(2)
    assert kit.outcomes([first, *others[1:]]) == [0, -1, -2]
    kit.consistent(f)


def test_figures_of_the_time_waited(kit: Kit) -> None:
    kit.stop_the_clock()
    f = kit(batch_size=9, timeout=None)
    futures = []
    for number in range(3):
        futures.append(kit.submit(f, number))
        kit.move(1.0)
    kit.flush(f)
    kit.outcomes(futures)
    assert (f.stats.waited, f.stats.longest_wait, f.stats.mean_wait) == (6.0, 3.0, 2.0)


def test_figures_count_each_item_of_a_random_crowd_once_and_each_gets_its_own_result(threads: Threads) -> None:
    def function(items: list[tuple[int, int]]) -> list[tuple[int, int]]:
        return [(who, -what) for who, what in items]

    def caller(who: int) -> bool:
        luck = random.Random(who)
        for what in range(60):
            if luck.random() < 0.2:
                future = f.submit((who, what))
                if luck.random() < 0.5 and future.cancel():
                    continue
                answer = future.result()
            else:
                answer = f((who, what))
            if answer != (who, -what):
                return False
        return True

    f = threads(function, batch_size=5, timeout=0.001)
    assert in_threads(caller, range(24)) == [True] * 24
    f.close()
    threads.consistent(f)
    assert (f.stats.accepted, f.stats.failed) == (24 * 60, 0)


def test_figures_of_sizes_and_reasons_add_up(kit: Kit) -> None:
    kit.stop_the_clock()
    f = kit(echo, batch_size=2, timeout=1.0)
    handles = kit.submits(f, range(5))
    kit.outcomes(handles[:4])
    kit.move(1.0)
    assert kit.outcome(handles[4]) == 4
    handles = kit.submits(f, [5])
    kit.flush(f)
    kit.outcomes(handles)
    stats = f.stats
    assert (stats.sizes, stats.reasons) == ({2: 2, 1: 2}, {"full": 2, "timeout": 1, "flush": 1})
    assert stats.sizes_by_reason == {"full": {2: 2}, "timeout": {1: 1}, "flush": {1: 1}}
    assert (stats.batches, stats.mean_size) == (4, 1.5)
    kit.consistent(f)
