"""Nobody hurts a neighbour: a caller that leaves touches no other call.

While its item waits the item is taken out and never computed; in a running batch the others hear their results as ever.
"""

import asyncio
import concurrent.futures
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ..kit import Coroutines, Kit, Threads, echo

pytestmark = pytest.mark.usefixtures("no_noise")

CANCELLED = (asyncio.CancelledError, concurrent.futures.CancelledError)


class Callers:
    """Callers that can leave: futures of `f.submit()`, or tasks that call."""

    def __init__(self, kit: Kit, call: Callable[..., Any]) -> None:
        self.kit = kit
        self._call = call

    def call(self, f: Any, items: Any) -> list[Any]:
        """Return what can be cancelled, one for each item, when all of them wait or run."""
        return [self._call(f, item) for item in items]


CALLERS: dict[str, Callable[[], Callers]] = {
    "futures of threads": lambda: Callers(kit := Threads(), kit.submit),
    "futures of coroutines": lambda: Callers(kit := Coroutines(), kit.submit),
    "tasks": lambda: Callers(kit := Coroutines(), kit.start),
}


@pytest.fixture(params=CALLERS)
def callers(request: pytest.FixtureRequest) -> Iterator[Callers]:
    callers = CALLERS[request.param]()
    yield callers
    callers.kit.end()


# While the item waits


@pytest.mark.parametrize("leaving", [[0], [1], [2], [0, 1, 2]])
def test_item_of_a_caller_that_left_is_taken_out(callers: Callers, leaving: list[int]) -> None:
    kit = callers.kit
    kit.stop_the_clock()
    f = kit(batch_size=9, timeout=1.0)
    waiting = callers.call(f, range(3))
    for number in leaving:
        assert waiting[number].cancel()
    kit.settle()
    assert (f.stats.pending, f.stats.cancelled) == (3 - len(leaving), len(leaving))
    if isinstance(kit, Coroutines):
        assert kit.loop.timers() == bool(f.stats.pending)
    kit.move(1.0)
    for number, outcome in enumerate(kit.outcomes(waiting)):
        assert isinstance(outcome, CANCELLED) if number in leaving else outcome == -number
    staying = [number for number in range(3) if number not in leaving]
    assert kit.batches == ([staying] if staying else [])
    kit.until_idle(f)
    kit.consistent(f)


def test_cancelled_item_is_never_computed_and_leaves_its_place_to_others(callers: Callers) -> None:
    kit = callers.kit
    f = kit(echo, batch_size=3, timeout=None)
    first, second = callers.call(f, [1, 2])
    assert first.cancel()
    kit.settle()
    assert first.cancelled()
    others = callers.call(f, [3, 4])
    assert kit.outcomes([second, *others]) == [2, 3, 4]
    assert f.stats.cancelled == 1
    assert kit.batches == [[2, 3, 4]]


def test_function_is_not_called_if_all_callers_left(callers: Callers) -> None:
    kit = callers.kit
    f = kit(batch_size=3, timeout=None)
    for caller in callers.call(f, [1, 2]):
        assert caller.cancel()
    kit.flush(f)
    kit.close(f)
    assert kit.batches == []
    assert f.stats.cancelled == 2


def test_timeout_starts_anew_with_the_first_item_after_all_have_left(callers: Callers) -> None:
    kit = callers.kit
    kit.stop_the_clock()
    f = kit(batch_size=9, timeout=1.0)
    (first,) = callers.call(f, [1])
    kit.settle()
    kit.move(0.5)
    assert first.cancel()
    kit.settle()
    (second,) = callers.call(f, [2])
    kit.settle()
    kit.move(1.0)
    assert kit.outcome(second) == -2
    assert kit.batches == [[2]]


# In a running batch


@pytest.mark.parametrize("leaving", [[0], [1], [2], [0, 2]])
def test_caller_that_leaves_a_running_batch_does_not_disturb_the_others(callers: Callers, leaving: list[int]) -> None:
    kit = callers.kit
    f = kit(batch_size=3, timeout=None, gated=True)
    waiting = callers.call(f, range(3))
    kit.until_runs(1)
    left = [number for number in leaving if waiting[number].cancel()]
    assert left == leaving or kit.kind == "threads"  # tests/threads/test_futures.py says what theirs answer
    kit.go_on()
    for number, outcome in enumerate(kit.outcomes(waiting)):
        assert isinstance(outcome, CANCELLED) if number in left else outcome == -number
    kit.until_idle(f)
    assert f.stats.answered == 3
    kit.consistent(f)


def test_result_of_a_caller_that_left_a_running_batch_is_still_looked_up_by_its_item(callers: Callers) -> None:
    kit = callers.kit
    f = kit(lambda items: {item: -item for item in items}, batch_size=2, timeout=None, gated=True)
    first, second = callers.call(f, range(2))
    kit.until_runs(1)
    first.cancel()
    kit.go_on()
    assert kit.outcome(second) == -1
    kit.until_idle(f)
    assert (f.stats.answered, f.stats.failed) == (2, 0)


# After the answer


def test_answered_call_cannot_be_cancelled_and_keeps_its_answer(callers: Callers) -> None:
    kit = callers.kit
    f = kit(batch_size=1)
    (caller,) = callers.call(f, [1])
    assert kit.outcome(caller) == -1
    assert caller.cancel() is False
    assert kit.outcome(caller) == -1
    assert f.stats.cancelled == 0
