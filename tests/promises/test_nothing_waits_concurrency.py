"""Nothing waits without a reason: a batch that is due runs at once, beside at most `concurrency - 1` others.

More never run at once; meanwhile items go on joining the batches that wait.
"""

from typing import Any

import pytest

from ..kit import Kit, echo


@pytest.mark.parametrize("n", [1, 2, 3])
def test_concurrency_lets_that_many_batches_run_at_once_and_no_more(kit: Kit, n: int) -> None:
    f = kit(gated=True, batch_size=2, timeout=0.0, concurrency=n)
    handles = []
    for number in range(n):
        handles.append(kit.submit(f, number))
        kit.until_runs(number + 1)
    assert f.stats.in_flight == n
    handles += kit.submits(f, range(10, 13))  # late cutting: they go on joining
    kit.settle(f)
    assert (f.stats.pending, len(kit.calls)) == (3, n)
    kit.go_on(1)
    kit.until_runs(n + 1)
    assert kit.batches[n] == [10, 11]
    kit.go_on(10)
    assert kit.outcomes(handles) == [-item for item in (*range(n), 10, 11, 12)]
    assert kit.most == n
    kit.until_idle(f)
    kit.consistent(f)


@pytest.mark.parametrize("n", [2, 4])
def test_full_batches_that_come_together_run_together(kit: Kit, n: int) -> None:
    f = kit(gated=True, batch_size=2, timeout=None, concurrency=n)
    handles = kit.submits(f, range(2 * n + 4))
    kit.until(lambda: kit.running == n)
    kit.go_on(n + 2)
    assert kit.outcomes(handles) == [-item for item in range(2 * n + 4)]
    assert sorted(kit.batches) == [[item, item + 1] for item in range(0, 2 * n + 4, 2)]
    assert kit.most == n


@pytest.mark.parametrize("how", ["call", "submit"])
def test_due_item_runs_beside_a_batch_that_runs(kit: Kit, how: str) -> None:
    f = kit(gated=True, batch_size=1, concurrency=2)
    handles = [kit.busy(f, 0), kit.start(f, 1) if how == "call" else kit.submit(f, 1)]
    kit.until(lambda: kit.running == 2)
    kit.go_on(2)
    assert kit.outcomes(handles) == [0, -1]


@pytest.mark.parametrize("how", ["flush", "batch_size", "timeout"])
def test_item_that_is_made_due_runs_beside_a_batch_that_runs(kit: Kit, how: str) -> None:
    kit.stop_the_clock()
    f = kit(gated=True, batch_size=2, timeout=None, concurrency=2)
    handles = [kit.busy(f, 0)]
    kit.move(1.0)  # what comes at the very moment of a flush is flushed too
    handles.append(kit.submit(f, 1))
    kit.settle(f)
    assert kit.running == 1
    if how == "flush":
        kit.flush(f)
    else:
        setattr(f, how, {"batch_size": 1, "timeout": 0.0}[how])
    kit.until(lambda: kit.running == 2)
    kit.go_on(2)
    assert kit.outcomes(handles) == [0, -1]


def test_smaller_batch_size_makes_a_group_due_that_is_not_the_oldest(kit: Kit) -> None:
    f = kit(echo, batch_size=3, timeout=None, group_by=lambda x: x % 2)
    handles = kit.submits(f, [1, 2, 4])
    f.batch_size = 2
    assert kit.outcomes(handles[1:]) == [2, 4]
    kit.settle(f)
    assert not handles[0].done()
    kit.flush(f)
    assert kit.outcome(handles[0]) == 1


def test_halves_of_a_failed_batch_run_at_once(kit: Kit) -> None:
    def refuses_two(xs: list[Any]) -> list[Any]:
        if len(xs) == 2:
            raise ValueError
        return xs

    f = kit(refuses_two, gated=True, batch_size=2, timeout=None, concurrency=2, isolate=True)
    handles = kit.submits(f, [1, 2])
    kit.until_runs(1)
    kit.go_on(1)
    kit.until(lambda: kit.running == 2)
    kit.go_on(2)
    assert kit.outcomes(handles) == [1, 2]
    assert sorted(kit.batches) == [[1], [1, 2], [2]]
