"""A finalizer or signal handler that uses a function, at each line of the library in turn, on threads: all is answered.

And Ctrl-C there, in callers on the main thread: it hurts nobody else.
"""

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from typing import Any

import pytest

from batchify import BufferFullError, ClosedError

from .. import inside
from ..intruder import ALL_OPTIONS, at_each_line, ctrl_c
from ..kit import negate
from ..tools import Gated, batched

pytestmark = [pytest.mark.thread_unsafe(reason="traces its thread"), pytest.mark.usefixtures("no_collector")]


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    yield
    assert not inside.holds_a_lock()
    assert not inside.is_known(threading.get_ident())
    assert not inside.threads_that_wait_inside()


# What a thread does when it is called back. Each gets a function, a neighbour's future that waits in it, and a place to
# leave futures that must be answered.
Scenario = Callable[[Any, Any], object]


def submit_and_wait(f: Any, _: Any) -> None:
    f.submit(1).result()


def submit_and_cancel(f: Any, _: Any) -> None:
    f.submit(1).cancel()


def cancel_the_neighbour(_: Any, neighbour: Any) -> None:
    neighbour.cancel()


def run_through_a_map(f: Any, _: Any) -> None:
    assert list(f.map([1, 2, 3, 4, 5])) == [-1, -2, -3, -4, -5]


def drop_a_map(f: Any, _: Any) -> None:
    results = f.map(iter([1, 2, 3, 4, 5]))
    assert next(results) == -1
    results.close()


def set_options(f: Any, _: Any) -> None:
    f.timeout = 0.0
    f.batch_size = 1


def look(f: Any, _: Any) -> None:
    assert f.stats.accepted >= 1


def await_it(f: Any, _: Any) -> None:
    async def main() -> None:
        assert await f.aio(1) == -1

    loop = asyncio.new_event_loop()
    try:
        loop.run_until_complete(main())
    finally:
        for task in asyncio.all_tasks(loop):
            task.cancel()
            with suppress(asyncio.CancelledError):
                loop.run_until_complete(task)
        loop.close()


SCENARIOS: dict[str, Scenario] = {
    "call": lambda f, _: f(1),
    "submit": submit_and_wait,
    "cancel": submit_and_cancel,
    "cancel another's": cancel_the_neighbour,
    "map": run_through_a_map,
    "drop a map": drop_a_map,
    "flush": lambda f, _: f.flush(),
    "set options": set_options,
    "stats": look,
    "aio": await_it,
    "close": lambda f, _: f.close(),
}
PLAIN_AND_ALL = pytest.mark.parametrize("options", [{}, ALL_OPTIONS], ids=["plain", "all"])


def check(f: Any, futures: list[Any], where: str) -> None:
    """What must hold afterwards: all is answered that was accepted, and the function goes on."""
    f.timeout = 0.0
    with suppress(ClosedError):
        assert f(7) == -7, where
    f.close()
    for future in futures:
        assert future.cancelled() or isinstance(future.result(), int), where
    stats = f.stats
    assert (stats.pending, stats.running, stats.in_flight) == (0, 0, 0), where
    assert stats.accepted == stats.answered + stats.cancelled, where
    inside.check(f)
    assert not any(thread.is_alive() for thread in inside.threads_of(f)), where


def function_and_neighbour(scenario: str, options: dict[str, Any], *, started: bool) -> tuple[Any, Any]:
    """A function in which an item of somebody else's waits, for company or, where the scenario does not bring any, for
    its timeout.
    """
    f = batched(batch_size=2, timeout=0.0, **options)(negate)
    if started:
        f(0)
    f.timeout = None
    neighbour = f.submit(5)
    f.timeout = 0.0 if scenario in ("call", "submit", "aio") else None
    return f, neighbour


# Ctrl-C in callers. In the callback of a weak reference, by which a group is forgotten, Python swallows it, and tells.


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@PLAIN_AND_ALL
@pytest.mark.parametrize("scenario", [name for name in SCENARIOS if name != "aio"])
def test_ctrl_c_at_any_line_of_a_caller_loses_nothing(scenario: str, options: dict[str, Any]) -> None:
    for lines in at_each_line(at_least=5):
        f, neighbour = function_and_neighbour(scenario, options, started=lines.tried % 2 == 0)
        with suppress(KeyboardInterrupt), lines.intruder_doing(ctrl_c).on_this_thread():
            SCENARIOS[scenario](f, neighbour)
        check(f, [neighbour], lines.where)


def test_ctrl_c_at_any_line_of_the_first_call_loses_nothing() -> None:
    for lines in at_each_line(at_least=5):
        f = batched(batch_size=2, timeout=0.0)(negate)
        with suppress(KeyboardInterrupt), lines.intruder_doing(ctrl_c).on_this_thread():
            f(1)
        check(f, [], lines.where)


# Finalizers and signal handlers

ACTIONS = ["submit", "call", "close"]


def intrusion(action: str, f: Any, futures: list[Any]) -> Callable[[], object]:
    def call() -> None:
        f.flush()
        f.timeout = 0.0  # no company comes while this waits
        assert f(9) == -9

    def submit_and_close() -> None:
        futures.append(f.submit(9))
        f.close()

    actions: dict[str, Callable[[], object]] = {
        "submit": lambda: futures.append(f.submit(9)),
        "call": call,
        "close": f.close,
        "submit and close": submit_and_close,
    }
    return actions[action]


@pytest.mark.filterwarnings("ignore:.*running event loop:RuntimeWarning")
@pytest.mark.parametrize(
    ("action", "options"),
    [*((action, {}) for action in ACTIONS), ("submit", ALL_OPTIONS)],
    ids=[*ACTIONS, "submit with all options"],
)
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_finalizer_at_any_line_of_a_caller_is_answered(scenario: str, action: str, options: dict[str, Any]) -> None:
    for lines in at_each_line(at_least=5):
        f, neighbour = function_and_neighbour(scenario, options, started=lines.tried % 2 == 0)
        futures = [neighbour]
        intruder = lines.intruder_doing(intrusion(action, f, futures))
        with suppress(ClosedError) if action == "close" else nullcontext(), intruder.on_this_thread():
            SCENARIOS[scenario](f, neighbour)
        refusals = [ClosedError] * (scenario == "close") + [BufferFullError] * ("max_pending" in options)
        assert intruder.error is None or type(intruder.error) in refusals, lines.where
        check(f, futures, lines.where)


@pytest.mark.parametrize("action", [*ACTIONS, "submit and close"])
@pytest.mark.parametrize("form", ["list", "generator", "error"])
def test_finalizer_at_any_line_of_the_flush_thread_is_answered(form: str, action: str) -> None:
    def function(items: list[int]) -> Any:
        if form == "error" and 1 in items:
            raise ValueError("one")
        return map(int.__neg__, items) if form == "generator" else negate(items)

    for lines in at_each_line(at_least=30):
        f = batched(batch_size=2, timeout=0.0)(function)
        futures: list[Any] = []
        intruder = lines.intruder_doing(intrusion(action, f, futures))
        trace = intruder.trace
        threading.settrace(trace)
        with suppress(ClosedError):
            futures.append(f.submit(0))
        threading.settrace(None)
        for future in tuple(futures):
            assert future.result() in (0, -9), lines.where
        with suppress(ValueError, ClosedError):
            f(1)
        f.close()
        for thread in inside.threads_of(f):
            thread.join()  # it may be about to end
        assert intruder.error is None or type(intruder.error) in (ClosedError, ValueError), (
            lines.where
        )  # it had company
        for future in futures:
            future.exception()
        stats = f.stats
        assert (stats.pending, stats.running, stats.in_flight) == (0, 0, 0), lines.where
        assert stats.accepted == stats.answered + stats.failed, lines.where


def test_who_left_takes_no_place_of_those_who_come_later_at_any_line_of_the_flush_thread() -> None:
    for lines in at_each_line(at_least=30):
        function = Gated()
        function.open()
        f = batched(batch_size=2, timeout=None)(function)
        first, *later = map(inside.blocked_call, range(3))

        def one_leaves_and_two_come(f: Any = f, first: Any = first, later: Any = later) -> None:
            inside.withdraw(f, first)
            for call in later:
                inside.post(f, call)

        trace = lines.intruder_doing(one_leaves_and_two_come).trace
        threading.settrace(trace)
        inside.post(f, first)
        threading.settrace(None)
        f.close()
        assert [0, 1] not in function.batches, lines.where
