"""The package under a deterministic scheduler: before each step `interleave_test` decides which thread goes on.

While it runs a scenario, that tool replaces what `threading` and `time` hold. The package took these names when it was
imported, so they are replaced in its modules too. What the tool lacks is added here:
  - It does not know `_thread.allocate_lock`. Its Lock follows the same rules: any thread may release it.
  - Its RLock has no `_is_owned()`, the `ident` of its Thread is not the one that `get_ident()` returns, and
    `current_thread()` does not know it.
  - Its sleep() goes on at once, so who looks again and again could do so for ever. Here it lasts until somebody lets a
    lock go.
  - Its clock stands still until all threads are blocked. Here every look at it is a little later, and `pass_time()`
    lets a timeout end at any moment that the scheduler picks.
It switches threads at each use of a lock and of what threads share (see `inside.other_threading()`), and as the
granularity says: "shared", nowhere else; "line" or "opcode", at each line or instruction of the package too. A
scenario's own lines are no such places.
"""

import gc
import random
import sys
from _thread import get_ident
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, ClassVar
from unittest.mock import patch

import interleave_test as tool
from interleave_test import _scheduler as internals

import batchify

from ... import inside

PACKAGE = str(Path(batchify.__file__).parent)
TICK = 2.0**-20


_sleeping = internals.WaitSet("sleep")


class OwnedRLock(tool.RLock):
    def _is_owned(self) -> bool:
        return self._owner is not None and self._owner is internals.current_scheduler().me()

    def release(self) -> None:
        scheduler = internals.current_scheduler()
        with scheduler._cv:
            scheduler._wake_all(_sleeping)
        super().release()


def sleep(seconds: float) -> None:
    """Let others go on: until one of them lets a lock go, or nobody else can."""
    scheduler = internals.current_scheduler()
    with scheduler._cv:
        scheduler._handoff(scheduler.me(), _sleeping, seconds, "sleep")


class Queue:
    """As `queue.SimpleQueue`."""

    def __init__(self) -> None:
        self._items: deque[Any] = deque()
        self._there = tool.Semaphore(0)

    def put(self, item: Any) -> None:
        self._items.append(item)
        with suppress(RuntimeError):  # it is a finalizer, and the schedule has ended
            self._there.release()

    def get(self) -> Any:
        self._there.acquire()
        return self._items.popleft()

    def empty(self) -> bool:
        return not self._items


class Thread(tool.Thread):
    started: "list[Thread]"  # of this schedule
    running: ClassVar[dict[int, "Thread"]] = {}

    def join(self, _: float | None = None) -> None:
        super().join()

    _ident: int | None = None

    def start(self) -> None:
        Thread.started.append(self)
        with tool.no_interleave():
            super().start()  # else it would run before this one knows that it is started
        switch()

    def run(self) -> None:
        self._ident = get_ident()
        Thread.running[self._ident] = self
        super().run()

    @property
    def ident(self) -> int | None:
        return self._ident


def current_thread() -> Thread:
    return Thread.running[get_ident()]


def monotonic() -> float:
    """Return the time, which is later at each look."""
    scheduler = internals.current_scheduler()
    scheduler._vnow += TICK
    return float(scheduler._vnow)


def pass_time(seconds: float) -> None:
    """Let time pass: who waits no longer than that wakes up, though other threads could go on."""
    scheduler = internals.current_scheduler()
    with scheduler._cv:
        scheduler._vnow += seconds
        for thread in scheduler._recs:
            if thread.deadline is not None and thread.deadline <= scheduler._vnow:  # as its _pick_next() does it
                thread.blocked_on.waiters.remove(thread)
                thread.blocked_on = thread.deadline = None
                thread.woke_by_timeout = True
                thread.status = internals.Status.READY
    switch()


def switch() -> None:
    """Let the scheduler pick another thread here, in a line that is not the package's."""
    scheduler = internals.current_scheduler()
    if scheduler is not None:
        scheduler.yield_point()


class Seldom(tool.Strategy):
    """Goes on with the current thread, and seldom switches to another; how seldom is drawn for each schedule.

    The tool's own "random" switches at almost each step, so that no thread gets far while another one stands.
    """

    def begin(self, iteration: int, seed: int) -> None:
        self._random = random.Random(seed)
        self._share = self._random.choice((0.02, 0.1, 0.3))

    def pick(self, runnable: list[Any], current: Any, index: int) -> Any:
        if current is not None and self._random.random() >= self._share:
            return current
        return self._random.choice(runnable)


@contextmanager
def _controlled() -> Iterator[list[str]]:
    """Replace what the package took from `threading` and `time`; yields what nobody was told of but a log."""
    complaints: list[str] = []

    def complain(message: str, *values: object) -> None:
        error = sys.exc_info()[1]
        if isinstance(error, internals._Abort):
            raise error  # the schedule has failed, and this thread is to end
        complaints.append(f"{message % values}: {error!r}")

    with (
        inside.other_threading(
            allocate_lock=tool.Lock,
            RLock=OwnedRLock,
            SimpleQueue=Queue,
            Thread=Thread,
            current_thread=current_thread,
            monotonic=monotonic,
            sleep=sleep,
            complain=complain,
            switch=switch,
        ),
        patch("concurrent.futures._base.LOGGER.critical", complain),  # a logger asks for the current thread
        patch.object(sys, "unraisablehook", lambda lost: complaints.append(repr(lost.exc_value))),
    ):
        yield complaints


def explore(
    scenario: Callable[[], object],
    *,
    schedules: int,
    seed: int,
    strategy: tool.Strategy,
    granularity: str = "line",
) -> tool.Result:
    """Run the scenario under so many schedules, or until one of them fails.

    It fails when a thread raises, when all threads are blocked, when a thread is left over at the end that never
    ends, when something was logged as an error, and when what is known of threads is not empty at the end.
    """
    gc.collect()  # what schedules before left
    with _controlled() as complaints:

        def run() -> None:
            inside.begin_anew()  # what a schedule left behind that was given up must not reach it
            _sleeping.waiters.clear()
            Thread.running.clear()
            Thread.started = []  # the last to know what a schedule before left behind, which may complain as it goes
            complaints.clear()
            scenario()
            for thread in Thread.started:
                thread.join()
            assert not inside.remembers_a_thread(), "something is left of a thread that ended"
            assert not complaints, complaints

        run.__name__ = "main"
        before = gc.isenabled()
        gc.disable()  # finalizers would run at places that no seed repeats
        events = patch.object(internals.Scheduler, "_events_on", lambda _: None)
        try:
            with events if granularity == "shared" else nullcontext():
                result = tool.explore(
                    run,
                    iterations=schedules,
                    seed=seed,
                    strategy=strategy,
                    granularity="line" if granularity == "shared" else granularity,
                    include=[PACKAGE],
                    timeout=20.0,
                    raise_on_failure=False,
                )
        finally:
            inside.close_what_is_left()
            if before:
                gc.enable()
    return result
