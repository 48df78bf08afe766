"""The same question to another tool: `frontrun` finds out which steps touch the same data, and tries their orders.

It controls a fixed set of threads, so the flush threads are workers of its own, which wait for what to run. Callers and
flush threads sleep by waiting for a lock that they acquired themselves; its Lock takes that for a deadlock, so its
Semaphore, which has no owner, stands in. Its Condition gets an RLock, as that of Python has. Its strategy "random" is
of no use here: it cannot tell threads that are all blocked from a run that takes longer. The other one tries the orders
at the end of a run first, and of the planted faults found within minutes only those below.
"""

import time
from _thread import get_ident
from collections.abc import Callable
from concurrent.futures import CancelledError
from typing import Any
from unittest.mock import patch

import pytest

frontrun = pytest.importorskip("frontrun")

from frontrun import _cooperative as modelled  # noqa: E402
from frontrun._deadlock import SchedulerAbort  # noqa: E402

from batchify import ClosedError  # noqa: E402

from ... import inside as faults  # noqa: E402
from ...tools import batched  # noqa: E402
from .conftest import FACTOR, Table  # noqa: E402


class Lock:
    """Like that of `_thread`: any thread may release it."""

    def __init__(self) -> None:
        self._free = modelled.CooperativeBoundedSemaphore(1)

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        acquired: bool = self._free.acquire(blocking, None if timeout < 0 else timeout)
        if not acquired and timeout < 0:
            raise SchedulerAbort("this schedule has failed")
        return acquired

    def release(self) -> None:
        try:
            self._free.release()
        except ValueError:
            raise RuntimeError from None


class State:
    """A batched function, the threads that it started, and what became of its items."""

    def __init__(self, callers: int) -> None:
        State.current = self
        faults.begin_anew()
        self.started: list[Thread | None] = []
        self.more = modelled.CooperativeSemaphore(0)
        self.callers = callers
        self.ended: list[int] = []
        self.accepted: list[int] = []
        batches = self.batches = list[list[int]]()

        def times_ten(items: list[int]) -> list[int]:
            batches.append(list(items))
            return [10 * item for item in items]

        self.f: Any = batched(batch_size=2)(times_ten)

    current: "State"

    def end(self, caller: int) -> None:
        """Close after the last caller, and send home the workers that nobody started."""
        self.ended.append(caller)
        if len(self.ended) == self.callers:
            self.f.close()
            for _ in range(self.callers):
                self.started.append(None)
                self.more.release()

    def holds(self) -> bool:
        stats = self.f.stats
        in_batches = [item for batch in self.batches for item in batch]
        assert len(self.ended) == self.callers
        assert len(set(in_batches)) == len(in_batches)
        assert stats.accepted == len(self.accepted)
        assert stats.cancelled == len(self.accepted) - len(in_batches)
        assert stats.answered == len(in_batches)
        return True


class Thread:
    """Runs on a worker."""

    ident: int | None = None

    def __init__(self, target: Callable[..., None], args: tuple[Any, ...], name: str, daemon: bool) -> None:
        self.run: Callable[[], None] = lambda: target(*args)
        self.ended = modelled.CooperativeEvent()

    def start(self) -> None:
        State.current.started.append(self)
        State.current.more.release()

    def join(self, _: float | None = None) -> None:
        self.ended.wait()


def work(state: State) -> None:
    """Run a flush thread."""
    if not state.more.acquire():
        raise SchedulerAbort("this schedule has failed")
    thread = state.started.pop(0)
    if thread is not None:
        thread.ident = get_ident()
        thread.run()
        thread.ended.set()


def complain(*_: object) -> None:
    raise SchedulerAbort("this schedule has failed")  # else the flush thread would go on


Action = Callable[[State, int], None]


def call(state: State, item: int) -> None:
    try:
        result = state.f(item)
    except ClosedError:
        return
    state.accepted.append(item)
    assert result == 10 * item


def cancel(state: State, item: int) -> None:
    try:
        future = state.f.submit(item)
    except ClosedError:
        return
    state.accepted.append(item)
    cancelled = future.cancel()
    try:
        assert future.result() == 10 * item
        assert not cancelled
    except CancelledError:
        assert cancelled


def close(state: State, _: int) -> None:
    state.f.close()


def explore(*actions: Action, executions: int) -> Any:
    def worker(number: int) -> Callable[[State], None]:
        def act(state: State) -> None:
            actions[number](state, number)
            state.end(number)

        return act

    def begin(it: Any, lock: Any = None) -> None:
        begin_with_a_lock(it, lock or modelled.CooperativeRLock())

    begin_with_a_lock = modelled.CooperativeCondition.__init__
    with (
        faults.other_threading(
            allocate_lock=Lock,
            Thread=Thread,
            monotonic=lambda: time.monotonic(),
            complain=complain,
            switch=lambda: None,
        ),
        patch.object(modelled.CooperativeCondition, "__init__", begin),
    ):
        result = frontrun.explore(
            setup=lambda: State(len(actions)),
            workers=[worker(number) for number in range(len(actions))] + [work] * len(actions),
            invariant=State.holds,
            max_executions=executions,
            preemption_bound=2,
            clock="virtual",
            detect_io=False,
            timeout_per_run=10.0,
            reproduce_on_failure=0,
        )
        faults.close_what_is_left()
    return result


@pytest.fixture(autouse=True)
def _without_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    # It skips unless its command ran pytest, whose other work is to watch input and output.
    monkeypatch.setenv("FRONTRUN_ACTIVE", "1")


SETS: list[tuple[Action, ...]] = [(call, call), (call, close), (call, cancel), (cancel, close)]


@pytest.mark.timeout(600 * max(1.0, FACTOR))
@pytest.mark.parametrize("actions", SETS, ids=lambda actions: " and ".join(action.__name__ for action in actions))
def test_second_tool_finds_no_broken_promise(actions: tuple[Action, ...], table: Table) -> None:
    result = explore(*actions, executions=round(60 * FACTOR))
    table.append((" and ".join(action.__name__ for action in actions), "frontrun", result.num_explored, ""))
    assert result.property_holds, result.explanation


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("fault", "actions"),
    [
        (faults.step_4_left_out, (call, call)),
        (faults.end_that_is_not_told, (call, close)),
    ],
    ids=lambda parameter: getattr(parameter, "__name__", ""),
)
def test_second_tool_finds_a_planted_fault(fault: faults.Fault, actions: tuple[Action, ...], table: Table) -> None:
    with fault():
        result = explore(*actions, executions=100)
    table.append((fault.__name__, "frontrun", result.num_explored, str(result.explanation).splitlines()[0]))
    assert result.property_holds is False
