"""A function that nobody holds any more answers what it accepted, and is collected with all that it holds."""

import gc
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from .. import inside
from ..kit import Kit


def threads_named(name: str) -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == f"batchify flush thread of {name}()"]


def collected(reference: "weakref.ref[Any]") -> Callable[[], bool]:
    def is_collected() -> bool:
        gc.collect()
        return reference() is None

    return is_collected


# What it accepted is answered


@pytest.mark.parametrize("timeout", [0.0, 0.01])
def test_items_of_a_dropped_function_are_answered(kit: Kit, timeout: float) -> None:
    def submit_and_drop(number: int) -> Any:
        future = kit.submit(kit(batch_size=2, timeout=timeout), number)
        kit.made.clear()
        return future

    for _ in range(20):
        futures = [submit_and_drop(number) for number in range(3)]
        gc.collect()
        if kit.kind == "coroutines":  # the clock of threads is a real one here
            kit.move(timeout)
        assert kit.outcomes(futures) == [0, -1, -2]


@pytest.mark.parametrize("timeout", [5.0, None])
def test_items_of_a_dropped_function_do_not_wait_for_their_timeout(kit: Kit, timeout: float | None) -> None:
    reports: list[Any] = []
    kit.stop_the_clock()
    future = kit.submit(kit(batch_size=2, timeout=timeout, on_batch=reports.append), 1)
    kit.settle()
    assert not future.done()
    kit.made.clear()
    gc.collect()
    assert kit.outcome(future) == -1
    assert [(report.reason, report.waits) for report in reports] == [("close", (0.0,))]


def test_item_keeps_a_dropped_function_alive_until_it_is_answered(kit: Kit) -> None:
    class Model:
        def run(self, xs: list[int]) -> list[int]:
            return [-x for x in xs]

    model = Model()
    watched = weakref.ref(model)
    future = kit.busy(kit(model.run, gated=True, batch_size=1), 1)
    del model
    kit.made.clear()
    gc.collect()
    assert watched() is not None
    kit.go_on()
    assert kit.outcome(future) == -1
    del future
    kit.until(collected(watched))


# It is collected


@pytest.mark.parametrize("refers_to_itself", [False, True])
@pytest.mark.thread_unsafe(reason="looks for threads by name")
def test_dropped_function_is_collected_and_leaves_no_thread(kit: Kit, refers_to_itself: bool) -> None:
    def dropped(items: list[int]) -> list[int]:
        return items if f else []

    f: Any = kit(dropped, batch_size=1)
    assert kit.outcome(kit.submit(f, 1)) == 1
    assert len(threads_named("dropped")) == (kit.kind == "threads")
    kit.settle(f)
    watched = weakref.ref(dropped)
    kit.made.clear()
    if refers_to_itself:
        del f
    else:
        f = None
    del dropped
    gc.collect()
    kit.until(collected(watched))
    kit.until(lambda: threads_named("dropped") == [])


@pytest.mark.parametrize("used", ["no", "full batch", "flush", "set", "map", "close"])
def test_dropped_function_is_collected_however_it_was_used(kit: Kit, used: str) -> None:
    f = kit(batch_size=2, timeout=1e6)
    if used == "full batch":
        assert kit.outcomes(kit.submits(f, [1, 2])) == [-1, -2]
    if used == "flush":
        futures = kit.submits(f, [1])
        kit.flush(f)
        assert kit.outcome(futures.pop()) == -1
    if used == "set":
        f.timeout = f.batch_size = 3
    if used == "map":
        assert list(kit.map(f, [1, 2, 3])) == [-1, -2, -3]
    if used == "close":
        kit.close(f)
    watched, engine = weakref.ref(f.__wrapped__), inside.reference_to_the_engine(f)
    del f
    kit.made.clear()
    kit.until(collected(engine))
    kit.until(collected(watched))


def test_dropped_function_is_collected_before_its_timeout_when_its_last_items_were_cancelled(kit: Kit) -> None:
    class Model:
        def run(self, items: list[int]) -> list[int]:
            return items

    model = Model()
    watched = weakref.ref(model)
    f = kit(model.run, batch_size=3, timeout=1e6)
    assert kit.outcomes(kit.submits(f, [1, 2, 3])) == [1, 2, 3]
    leaving = [kit.submit(f, 4)]
    if kit.kind == "coroutines":  # a thread that calls cannot leave
        leaving.append(kit.start(f, 5))
    kit.settle(f)
    assert f.stats.pending == len(leaving)
    for handle in leaving:
        assert handle.cancel()
    kit.settle(f)
    assert f.stats.pending == 0
    kit.made.clear()
    del f, model, handle
    leaving.clear()
    kit.until(collected(watched))
