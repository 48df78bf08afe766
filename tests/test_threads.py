"""How do threads wait, and who runs a batch?"""

import asyncio
import concurrent.futures
import contextlib
import ctypes
import gc
import itertools
import random
import signal
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from types import FrameType
from typing import Any, cast

import pytest

from batchify import BatchError, ClosedError
from batchify import _threads as threads_module
from batchify._buffer import Buffer
from batchify._stats import Tally

from .tools import Gated, batched, call_with, flush_thread, in_threads, run_script, until


def flush_threads(name: str) -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == f"batchify flush thread of {name}()"]


# Forming batches


def test_threads_share_a_batch() -> None:
    batches: list[list[int]] = []

    def function(items: list[int]) -> list[int]:
        batches.append(items)
        return items

    with batched(batch_size=8, timeout=None)(function) as f:
        assert in_threads(f, range(32)) == list(range(32))
    assert [len(batch) for batch in batches] == [8] * 4


def test_full_batch_does_not_wait() -> None:
    with batched(batch_size=2, timeout=10**9)(lambda items: items) as f:
        assert in_threads(f, [1, 2]) == [1, 2]
        assert f.stats.reasons == {"full": 1}


def test_a_lone_item_waits_out_its_timeout() -> None:
    with batched(batch_size=2, timeout=0.05)(lambda items: items) as f:
        before = time.monotonic()
        assert f(1) == 1
        assert time.monotonic() - before >= 0.05
        assert f.stats.reasons == {"timeout": 1}


def test_the_second_timeout_is_armed_like_the_first() -> None:
    with batched(batch_size=2, timeout=0.01)(lambda items: items) as f:
        assert [f(number) for number in range(5)] == list(range(5))
        assert f.stats.reasons == {"timeout": 5}


def test_items_join_until_the_function_is_free() -> None:
    function = Gated()
    with batched(batch_size=19)(function) as f:
        futures = [f.submit(0)]
        function.entered.acquire()
        futures += [f.submit(number) for number in range(1, 20)]
        function.open()
        assert [future.result() for future in futures] == list(range(20))
    assert [len(batch) for batch in function.batches] == [1, 19]


def test_the_function_never_runs_twice_at_once_and_always_in_one_thread() -> None:
    running = threading.Semaphore(1)
    idents: set[int] = set()

    def function(items: list[int]) -> list[int]:
        assert running.acquire(blocking=False)
        idents.add(threading.get_ident())
        running.release()
        return items

    with batched(batch_size=3)(function) as f:
        assert in_threads(f, range(50)) == list(range(50))
    assert len(idents) == 1
    assert threading.get_ident() not in idents


def test_a_random_crowd_gets_its_own_results() -> None:
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

    with batched(batch_size=5, timeout=0.001)(function) as f:
        assert in_threads(caller, range(24)) == [True] * 24
        stats = f.stats
    assert stats.accepted == stats.answered + stats.cancelled
    assert stats.pending == stats.running == 0


# While it runs


def test_flush_makes_what_waits_due() -> None:
    with batched(batch_size=9, timeout=None)(lambda items: items) as f:
        futures = [f.submit(number) for number in range(3)]
        f.flush()
        assert [future.result() for future in futures] == [0, 1, 2]
        assert f.stats.reasons == {"flush": 1}


@pytest.mark.thread_unsafe(reason="looks for threads by name")
def test_flush_of_nothing_is_nothing() -> None:
    def unflushed(items: list[int]) -> list[int]:
        return items

    with batched(batch_size=9)(unflushed) as f:
        f.flush()
        assert f.stats.batches == 0
        assert not flush_threads("unflushed")


def test_a_smaller_batch_size_is_for_what_waits_too() -> None:
    with batched(batch_size=9, timeout=None)(lambda items: items) as f:
        futures = [f.submit(number) for number in range(4)]
        f.batch_size = 2
        assert [future.result() for future in futures] == [0, 1, 2, 3]
        assert f.batch_size == 2
        assert f.stats.sizes == {2: 2}


def test_a_shorter_timeout_is_for_what_waits_too() -> None:
    with batched(batch_size=9, timeout=10**9)(lambda items: items) as f:
        future = f.submit(1)
        f.timeout = 0.001
        assert future.result() == 1
        assert f.timeout == 0.001


def test_a_timeout_set_while_idle_is_heeded() -> None:
    with batched(batch_size=9, timeout=10**9)(lambda items: items) as f:
        f.submit(0)
        f.flush()
        until(lambda: f.stats.answered == 1)
        f.timeout = 0.001
        assert f(1) == 1


def test_a_wrong_option_changes_nothing() -> None:
    with batched(batch_size=9, timeout=1)(lambda items: items) as f:
        with pytest.raises(ValueError, match="batch_size must be at least 1"):
            f.batch_size = 0
        with pytest.raises(ValueError, match="timeout must be"):
            f.timeout = -1
        assert (f.batch_size, f.timeout) == (9, 1.0)


def test_stats_are_right_when_the_caller_goes_on() -> None:
    def function(items: list[int]) -> list[Any]:
        if 13 in items:
            raise ValueError
        return [KeyError() if item == 7 else item for item in items]

    with batched(batch_size=1)(function) as f:
        for count, item in enumerate([1, 7, 13, 2], 1):
            with contextlib.suppress(KeyError, ValueError):
                f(item)
            stats = f.stats
            assert (stats.accepted, stats.pending, stats.running, stats.in_flight) == (count, 0, 0, 0)
        assert (stats.answered, stats.failed, stats.cancelled, stats.batches) == (2, 2, 0, 4)
        assert stats.sizes == {1: 4}
        assert stats.mean_size == 1.0
        assert 0 <= stats.mean_wait <= stats.longest_wait <= stats.waited


def test_stats_say_what_waits_and_what_runs() -> None:
    function = Gated()
    with batched(batch_size=2)(function) as f:
        assert f.stats.mean_size == f.stats.mean_wait == 0.0
        first = f.submit(0)
        function.entered.acquire()
        others = [f.submit(number) for number in range(3)]
        assert others[0].cancel()
        stats = f.stats
        assert (stats.accepted, stats.running, stats.in_flight, stats.pending, stats.cancelled) == (4, 1, 1, 2, 1)
        function.open()
        first.result()


def test_time_waited_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(threads_module, "monotonic", lambda: now[0])
    with batched(batch_size=9, timeout=None)(lambda items: items) as f:
        futures = []
        for number in range(3):
            futures.append(f.submit(number))
            now[0] += 1.0
        f.flush()
        concurrent.futures.wait(futures)
        assert (f.stats.waited, f.stats.longest_wait, f.stats.mean_wait) == (6.0, 3.0, 2.0)


def test_deadlines_go_by_the_monotonic_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> float:
        raise AssertionError("the wall clock may be set back")

    monkeypatch.setattr(time, "time", refuse)
    with batched(batch_size=9, timeout=0.001)(lambda items: items) as f:
        assert f(1) == 1


# Waking up


def test_an_idle_flush_thread_sleeps_without_end() -> None:
    """Neither polling, nor a timer that is armed again and again."""
    function = Gated()
    function.open()
    sleeps: list[float] = []
    f = batched(batch_size=2, timeout=0.01)(function)
    batcher = f._self_batcher
    step = batcher._next

    def spy(*, flushed: bool) -> Any:
        what = step(flushed=flushed)
        if isinstance(what, float):
            sleeps.append(what)
        return what

    batcher._next = spy  # type: ignore[method-assign]
    f(1)
    until(lambda: sleeps[-1:] == [float("inf")])
    count = len(sleeps)
    # until() itself takes longer than the timeout, many times
    assert count <= 4
    # Once it slept for as long as an item may wait, so that the next one need not wake it to be timed.
    assert sleeps[-2:] == [pytest.approx(0.01), float("inf")]
    f.close()
    assert len(sleeps) == count


def test_a_flush_thread_that_waits_for_no_deadline_sets_no_timer(monkeypatch: pytest.MonkeyPatch) -> None:
    timeouts: list[float] = []

    class Lock:
        def __init__(self) -> None:
            self.lock = threading.Lock()
            self.release = self.lock.release

        def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
            timeouts.append(timeout)
            return self.lock.acquire(blocking, timeout)

    monkeypatch.setattr(threads_module, "allocate_lock", Lock)
    with batched(batch_size=1)(lambda items: items) as f:
        assert [f(1), f(2)] == [1, 2]
    assert set(timeouts) == {-1}


@pytest.mark.parametrize("how", ["call", "submit", "aio"])
@pytest.mark.parametrize("timeout", [10**9, None])
def test_an_item_that_is_due_later_wakes_nobody(how: str, timeout: float | None) -> None:
    f = batched(batch_size=9, timeout=timeout)(lambda items: items)
    batcher = f._self_batcher
    step, wake = batcher._next, batcher._wake_locked
    sleeps: list[Any] = []
    woken: list[int] = []

    def spy(*, flushed: bool) -> Any:
        sleeps.append(step(flushed=flushed))
        return sleeps[-1]

    def count() -> None:
        woken.append(len(batcher._buffer))
        wake()

    batcher._next, batcher._wake_locked = spy, count  # type: ignore[method-assign]
    with ThreadPoolExecutor(1) as pool:
        calls: dict[str, Callable[[], Future[Any]]] = {
            "call": lambda: pool.submit(f, 2),
            "submit": lambda: f.submit(2),
            "aio": lambda: pool.submit(lambda: asyncio.run(f.aio(2))),
        }
        futures = [f.submit(1)]
        if timeout is not None:  # the first one sets the timer
            until(lambda: len(sleeps) == 1)
        futures += [calls[how](), f.submit(3)]
        until(lambda: f.stats.pending == 3)
        assert woken == ([1] if timeout is not None else [])
        f.close()
    assert [future.result() for future in futures] == [1, 2, 3]


@pytest.mark.parametrize("how", ["runs", "has returned a future"])
def test_what_comes_while_the_function_is_busy_wakes_nobody(how: str) -> None:
    engine: Future[Any] = Future()
    function = Gated(lambda items: engine if items == [0] and how == "has returned a future" else items)
    with batched(batch_size=1)(function) as f:
        futures = [f.submit(0)]
        function.entered.acquire()
        if how == "has returned a future":
            function.let_on.release()
            until(lambda: f._self_batcher._has_no_room and bool(f._self_batcher._asleep))
        batcher = f._self_batcher
        wake = batcher._wake_locked
        woken: list[str] = []
        batcher._wake_locked = lambda: woken.append("")  # type: ignore[method-assign]
        futures += [f.submit(1), f.submit(2)]
        assert woken == []
        batcher._wake_locked = wake  # type: ignore[method-assign]
        engine.set_result([0])
        function.open()
        assert [future.result() for future in futures] == [0, 1, 2]


def test_what_changes_nothing_wakes_nobody() -> None:
    with batched(batch_size=1, timeout=10**6)(lambda items: items) as f:
        assert f(1) == 1
        batcher = f._self_batcher
        until(lambda: batcher._wakes_at > 0)  # it sleeps
        wake = batcher._wake_locked
        woken: list[str] = []
        batcher._wake_locked = lambda: woken.append("")  # type: ignore[method-assign]
        f.flush()
        f.batch_size = 3
        f.timeout = 10**7
        futures = [f.submit(2), f.submit(3)]
        assert futures[0].cancel()  # the other one still waits
        assert woken == []
        batcher._wake_locked = wake  # type: ignore[method-assign]
    assert futures[1].result() == 3


@pytest.mark.parametrize("how", ["sleeps without end", "runs"])
def test_the_last_who_leaves_wakes_nobody_who_does_not_sleep_until_it_is_due(how: str) -> None:
    function = Gated()
    with batched(batch_size=2, timeout=None)(function) as f:
        futures = [f.submit(0), f.submit(1)]
        function.entered.acquire()
        batcher = f._self_batcher
        if how == "sleeps without end":
            function.let_on.release()
            until(lambda: bool(batcher._asleep))
        wake = batcher._wake_locked
        woken: list[str] = []
        batcher._wake_locked = lambda: woken.append("")  # type: ignore[method-assign]
        assert f.submit(2).cancel()
        assert woken == []
        batcher._wake_locked = wake  # type: ignore[method-assign]
        function.open()
        assert [future.result() for future in futures] == [0, 1]


def test_a_flush_thread_does_not_wake_itself() -> None:
    looks = 0
    f = batched(batch_size=1, timeout=None)(lambda items: items)
    step = f._self_batcher._next

    def count(*, flushed: bool) -> Any:
        nonlocal looks
        looks += 1
        return step(flushed=flushed)

    f._self_batcher._next = count  # type: ignore[method-assign]
    with f:
        for number in range(20):
            assert f(number) == number
            until(lambda: bool(f._self_batcher._asleep))
    # For each, one that finds it, and one that finds that there are no more. At the start it may look for nothing.
    assert looks <= 2 * 20 + 2


def test_what_is_left_over_keeps_its_time_of_arrival(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    timeouts: list[float] = []

    class Lock:
        def __init__(self) -> None:
            self.lock = threading.Lock()
            self.release = self.lock.release

        def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
            timeouts.append(timeout)
            return self.lock.acquire(blocking, timeout)

    monkeypatch.setattr(threads_module, "allocate_lock", Lock)
    monkeypatch.setattr(threads_module, "monotonic", lambda: now[0])
    function = Gated()
    with batched(batch_size=2, timeout=1000)(function) as f:
        futures = [f.submit(0), f.submit(1)]
        function.entered.acquire()
        now[0] += 300.0
        futures.append(f.submit(2))
        now[0] += 200.0
        function.let_on.release()
        until(lambda: max(timeouts) > 0)
        assert timeouts[-1] == 800.0
        now[0] += 799.5  # a part of a second is left, and not rounded up
        f.timeout = 999.75
        until(lambda: timeouts[-1] < 1.0)
        function.open()
        f.flush()
        assert [future.result() for future in futures] == [0, 1, 2]


def test_a_huge_timeout_is_no_overflow() -> None:
    with batched(batch_size=2, timeout=1e300)(lambda items: items) as f:
        future = f.submit(1)
        assert not future.done()
        assert f.submit(2).result() == 2


def at_line_of_the_flush_thread(f: Any, number: int, intrude: Callable[[], object]) -> Callable[[], bool]:
    """Start its thread, and let it do something at that one line, as a finalizer would.

    Returns what says whether it has done so, or sleeps until it is woken.
    """
    passed = 0

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal passed
        if frame.f_code.co_filename != threads_module.__file__:
            return None
        if event == "line" and frame.f_code.co_name in ("_next", "_flush_forever"):
            passed += 1  # first, since another thread may be started, which is traced as well
            if passed == number:
                intrude()
        return trace

    threading.settrace(trace)
    try:
        f._self_batcher._start_thread()
    finally:
        threading.settrace(None)
    return lambda: passed >= number or f._self_batcher._wakes_at == float("inf")


@pytest.mark.thread_unsafe(reason="traces threads")
def test_an_item_added_by_a_finalizer_of_the_flush_thread_is_not_forgotten() -> None:
    """At any one line it passes, also between its last look at the buffer and its sleep: a condition misses that."""
    for number in range(1, 101):
        late: list[Future[Any]] = []

        def submit() -> None:
            with contextlib.suppress(ClosedError):  # it never came so far before the end
                late.append(f.submit("late"))  # noqa: B023 - run at once

        with batched(batch_size=2, timeout=0.0)(lambda items: items) as f:
            is_through = at_line_of_the_flush_thread(f, number, submit)
            assert f(0) == 0
            until(is_through)
            assert [future.result() for future in late] == ["late"] * len(late)


@pytest.mark.thread_unsafe(reason="traces threads")
def test_the_halves_of_a_batch_that_fails_as_a_finalizer_of_the_flush_thread_closes_are_run() -> None:
    for number in range(1, 101):
        engine: Future[Any] = Future()
        once = [True]

        def fail_and_close() -> None:
            with contextlib.suppress(IndexError):
                once.pop()  # noqa: B023 - run at once
                engine.set_exception(ValueError())  # noqa: B023
                f.close()  # noqa: B023

        f = batched(batch_size=2, timeout=None, isolate=True, concurrency=2)(
            lambda items: engine if len(items) == 2 else items  # noqa: B023
        )
        is_through = at_line_of_the_flush_thread(f, number, fail_and_close)
        futures: list[Future[Any]] = []
        with contextlib.suppress(ClosedError):  # by then
            futures += [f.submit(0)]
            futures += [f.submit(1)]
        until(is_through)
        fail_and_close()
        assert [future.result() for future in futures] == [0, 1][: len(futures)]


def test_every_shared_field_is_changed_under_its_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a build without a GIL needs, seen on any build."""
    locked: set[str] = set()
    unlocked: set[str] = set()

    def note(what: str) -> None:
        (locked if threads_module._lock._is_owned() else unlocked).add(what)  # type: ignore[attr-defined]

    def watch(kind: type, *methods: str) -> None:
        def field_is_set(self: Any, name: str, value: Any) -> None:
            if name in vars(self):  # not while it is made
                note(f"{kind.__name__}.{name}")
            object.__setattr__(self, name, value)

        def noted(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
            def called(*args: Any, **options: Any) -> Any:
                note(f"{kind.__name__}.{name}()")
                return method(*args, **options)

            return called

        monkeypatch.setattr(kind, "__setattr__", field_is_set)
        for name in methods:
            monkeypatch.setattr(kind, name, noted(name, getattr(kind, name)))

    async def awaited() -> Any:
        return await f.aio(1)

    watch(threads_module.ThreadBatcher)
    watch(Buffer, "add", "remove", "take", "flush", "close")
    watch(Tally, "begin", "answer", "snapshot")
    f = batched(batch_size=2, timeout=0.0)(lambda items: items)
    assert in_threads(f, range(8)) == list(range(8))
    assert list(f.map(range(5))) == [0, 1, 2, 3, 4]
    assert asyncio.run(awaited()) == 1
    f.batch_size, f.timeout = 3, None
    assert f.submit(1).cancel()
    future = f.submit(2)
    f._self_batcher._check()
    f.flush()
    assert future.result() == 2
    f.close()
    assert f.stats.cancelled == 1
    assert len(locked) > 20, locked
    assert unlocked == {"ThreadBatcher.aio"}  # it only saves making the same once more


# submit and cancel


def test_a_cancelled_item_is_never_computed() -> None:
    function = Gated()
    function.open()
    with batched(batch_size=3, timeout=None)(function) as f:
        first, second = f.submit(1), f.submit(2)
        assert first.cancel()
        assert first.cancelled()
        others = [f.submit(3), f.submit(4)]
        assert [future.result() for future in (second, *others)] == [2, 3, 4]
        assert f.stats.cancelled == 1
    assert function.batches == [[2, 3, 4]]


def test_if_all_are_cancelled_the_function_is_not_called() -> None:
    function = Gated()
    with batched(batch_size=3, timeout=None)(function) as f:
        for future in [f.submit(1), f.submit(2)]:
            assert future.cancel()
        f.flush()
    assert function.batches == []


def test_cancelled_caller_does_not_disturb_its_batch() -> None:
    function = Gated()
    with batched(batch_size=3, timeout=None)(function) as f:
        first, second, third = [f.submit(number) for number in range(3)]
        function.entered.acquire()
        assert second.cancel()
        function.open()
        assert (first.result(), third.result()) == (0, 2)
        with pytest.raises(CancelledError):
            second.result()


def test_whoever_waits_for_a_cancelled_future_is_told(caplog: pytest.LogCaptureFixture) -> None:
    function = Gated()
    with batched(batch_size=2, timeout=None)(function) as f:
        buffered = f.submit(0)
        buffered.cancel()
        running = [f.submit(1), f.submit(2)]
        function.entered.acquire()
        running[0].cancel()
        function.open()
        done, _ = concurrent.futures.wait([buffered, *running])
        assert len(done) == 3
    assert not caplog.records


def test_an_answered_future_cannot_be_cancelled() -> None:
    with batched(batch_size=1)(lambda items: items) as f:
        future = f.submit(1)
        assert future.result() == 1
        assert future.cancel() is False


def test_cancelling_at_the_moment_of_the_answer_harms_nobody() -> None:
    for _ in range(200):
        f = batched(batch_size=8, timeout=None)(lambda items: items)
        futures = [f.submit(number) for number in range(8)]
        for future in futures[::2]:
            future.cancel()
        f.close()
        assert [future.result() for future in futures[1::2]] == [1, 3, 5, 7]
        assert all(future.done() for future in futures)


def test_a_future_that_somebody_else_completed_harms_nobody(caplog: pytest.LogCaptureFixture) -> None:
    with batched(batch_size=2, timeout=None)(lambda items: items) as f:
        first = f.submit(1)
        first.set_result("not ours")
        assert f.submit(2).result() == 2
        assert first.result() == "not ours"
    assert not caplog.records


def test_a_future_that_somebody_else_began_is_answered() -> None:
    """As an executor does before it runs what is in it; then it can be cancelled no more."""
    with batched(batch_size=2, timeout=None)(lambda items: items) as f:
        first = f.submit(1)
        assert first.set_running_or_notify_cancel()
        assert not first.cancel()
        assert f.submit(2).result() == 2
        assert first.result() == 1


@pytest.mark.thread_unsafe(reason="stops the garbage collector")
def test_nothing_is_kept_of_what_is_refused() -> None:
    class Thing:
        pass

    gc.collect()
    gc.disable()  # by counting alone
    try:
        f = batched(batch_size=1)(lambda items: items)
        f.close()
        thing = Thing()
        watched = weakref.ref(thing)
        with contextlib.suppress(ClosedError):
            f.submit(thing)
        del thing
        assert watched() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("error", [ValueError, SystemExit])
def test_a_callback_that_raises_harms_nobody(error: type[BaseException], caplog: pytest.LogCaptureFixture) -> None:
    def refuse(_: object) -> None:
        raise error

    with batched(batch_size=2, timeout=None)(lambda items: items) as f:
        f.submit(1).add_done_callback(refuse)
        assert f.submit(2).result() == 2
        assert in_threads(f, [3, 4]) == [3, 4]
    if not issubclass(error, Exception):  # else the future tells of it
        assert caplog.messages == ["a callback of a future raised"]


def test_a_chain_of_callbacks_is_no_recursion() -> None:
    ended = threading.Event()
    with batched(batch_size=1)(lambda items: items) as f:

        def go_on(future: "Future[int]") -> None:
            if future.result() == 3000:
                ended.set()
            else:
                f.submit(future.result() + 1).add_done_callback(go_on)

        f.submit(0).add_done_callback(go_on)
        ended.wait()


# map


def test_map_keeps_order_and_fills_batches() -> None:
    function = Gated()
    function.open()
    with batched(batch_size=4, timeout=None)(function) as f:
        assert list(f.map(range(10))) == list(range(10))
        assert list(f.map([])) == []
        assert list(f.map(iter(range(6)))) == list(range(6))
    assert [len(batch) for batch in function.batches] == [4, 4, 2, 4, 2]


def test_map_reads_a_bounded_number_of_items_ahead() -> None:
    read: list[int] = []

    def endless() -> Iterator[int]:
        while True:
            read.append(len(read))
            yield len(read) - 1

    with batched(batch_size=4)(lambda items: items) as f:
        results = f.map(endless())
        assert read == []
        for number in range(50):
            assert next(results) == number
            assert len(read) <= number + 8
        results.close()


def test_map_passes_on_each_item_as_soon_as_it_is_read() -> None:
    def slow() -> Iterator[int]:
        for number in range(3):
            until(lambda: f.stats.answered == number)  # noqa: B023 - run at once
            yield number

    with batched(batch_size=8, timeout=0.0)(lambda items: items) as f:
        assert list(f.map(slow())) == [0, 1, 2]


def test_a_result_of_map_does_not_wait_for_the_next_item_to_come() -> None:
    function = Gated()

    def items() -> Iterator[int]:
        yield 0
        function.let_on.release()
        until(lambda: f.stats.answered == 1)
        yield 1
        read_too_far.append(True)

    read_too_far: list[bool] = []
    with batched(batch_size=4)(function) as f:
        results = f.map(items())
        assert next(results) == 0
        assert not read_too_far
        results.close()
        function.open()


def test_the_first_result_of_map_does_not_wait_for_the_next_item_though_others_are_not_there_yet() -> None:
    function = Gated()

    def items() -> Iterator[int]:
        yield 0
        function.entered.acquire()
        stranger.append(f.submit(9))
        function.let_on.release()
        function.entered.acquire()  # by the stranger: the first one is answered
        yield 1
        read_too_far.append(True)

    stranger: list[Future[Any]] = []
    read_too_far: list[bool] = []
    with batched(batch_size=2)(function) as f:
        results = f.map(items())
        assert next(results) == 0
        assert not read_too_far
        function.open()
        assert list(results) == [1]
        assert stranger[0].result() == 9


def test_map_reads_on_before_the_last_of_its_results_is_asked_for() -> None:
    """So that the function runs while the caller is busy with what it has got."""
    function = Gated()
    function.open()
    with batched(batch_size=4)(function) as f:
        results = f.map(list(range(16)))
        assert [next(results) for _ in range(4)] == [0, 1, 2, 3]
        until(lambda: f.stats.answered == 8)
        assert next(results) == 4
        until(lambda: f.stats.answered == 12)
        assert list(results) == list(range(5, 16))


@pytest.mark.parametrize("inside", [False, True])
def test_map_sleeps_until_there_is_a_result(inside: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    bells: list[Any] = []

    class Lock:
        def __init__(self) -> None:
            self.lock = threading.Lock()
            self.acquired = 0
            self.release = self.lock.release
            bells.append(self)

        def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
            self.acquired += 1
            return self.lock.acquire(blocking, timeout)

    def read(_: Any) -> list[Any]:
        with monkeypatch.context() as patch:
            patch.setattr(threads_module, "allocate_lock", Lock)
            results = f.map([1, 2])
            first = next(results)
        return [[first, *results]]

    function = Gated()
    with batched(batch_size=2)(function) as f, batched(batch_size=1)(read) as g, ThreadPoolExecutor(1) as pool:
        other = f.submit(0)  # its flush thread is there
        function.entered.acquire()
        outcome = g.submit(0) if inside else pool.submit(read, 0)
        until(lambda: bool(bells) and bells[0].acquired > 1)  # it was open at first
        function.open()
        assert outcome.result() == ([1, 2] if inside else [[1, 2]])
        assert other.result() == 0
    assert bells[0].acquired == 2
    watched = weakref.ref(bells.pop(0))
    assert watched() is None  # what has ended is rung no more


def test_a_dropped_map_takes_its_items_out() -> None:
    function = Gated()
    with batched(batch_size=2, timeout=None)(function) as f:
        results = f.map(range(10))
        function.let_on.release()
        assert next(results) == 0
        function.entered.acquire()
        del results
        assert f.stats.pending == 0
        function.open()


@pytest.mark.parametrize("sized", [False, True])
def test_map_yields_what_it_read_before_its_items_raised(sized: bool) -> None:
    class Items:
        def __iter__(self) -> Iterator[int]:
            yield from range(6)
            raise ValueError("of the items")

    class SizedItems(Items):
        def __len__(self) -> int:
            return 9

    with batched(batch_size=4, timeout=None)(lambda items: items) as f:
        results = f.map(SizedItems() if sized else Items())
        assert [next(results) for _ in range(6)] == list(range(6))
        with pytest.raises(ValueError, match="of the items"):
            next(results)


@pytest.mark.thread_unsafe(reason="looks for threads by name")
def test_map_of_nothing_does_nothing() -> None:
    def nothing(items: list[int]) -> list[int]:
        return items

    with batched(batch_size=4)(nothing) as f:
        assert list(f.map([])) == []
        assert not flush_threads("nothing")


def test_map_raises_an_error_in_its_place() -> None:
    with batched(batch_size=1)(lambda items: [1 // items[0]]) as f:
        results = f.map([1, -1, 0, 1])
        assert [next(results), next(results)] == [1, -1]
        with pytest.raises(ZeroDivisionError):
            next(results)
        assert list(results) == []
        with pytest.raises(TypeError, match="not iterable"):
            list(f.map(cast("Any", 3)))


def test_map_cuts_no_batch_before_its_items_end() -> None:
    with batched(batch_size=4, timeout=None)(lambda items: items) as f:
        other = f.submit(0)
        assert list(f.map(range(1, 24))) == list(range(1, 24))
        assert other.result() == 0
        assert f.stats.reasons == {"full": 6}


def test_map_joins_the_batches_of_others() -> None:
    with batched(batch_size=4, timeout=None)(lambda items: items) as f:
        other = f.submit("x")
        assert list(f.map([1, 2, 3])) == [1, 2, 3]
        assert other.result() == "x"
        assert f.stats.sizes == {4: 1}


# A call from inside


def test_a_function_that_calls_itself_is_answered() -> None:
    def function(items: list[int]) -> list[int]:
        return [1 if item == 0 else item * f(item - 1) for item in items]

    with batched(batch_size=4, timeout=None)(function) as f:
        f.timeout = 0.0
        assert in_threads(f, [3, 4, 5]) == [6, 24, 120]
        assert f.stats.reasons["nested"] >= 12


def test_a_function_that_calls_itself_waits_for_nobody() -> None:
    """The call is run on the spot: who looks for a ring through this thread finds none."""

    def function(items: list[int]) -> list[bool]:
        if items == [0]:
            return [f(1)]
        return [threading.get_ident() in threads_module._waits_for]

    with batched(batch_size=1)(function) as f:
        assert f(0) is False


def test_a_call_of_itself_counts_as_no_time_waited() -> None:
    def function(items: list[int]) -> list[int]:
        if items == [0]:
            before = f.stats
            assert f(1) == 1
            assert (f.stats.waited, f.stats.longest_wait) == (before.waited, before.longest_wait)
        return items

    with batched(batch_size=1)(function) as f:
        assert f(0) == 0


def test_a_function_that_submits_to_itself_is_answered() -> None:
    def function(items: list[int]) -> list[int]:
        return [sum(f.map(range(item))) + f.submit(0).result() if item else 0 for item in items]

    with batched(batch_size=4)(function) as f:
        assert f(3) == 3 * 0 + sum(f(item) for item in range(3))


def test_a_function_may_wait_for_what_it_submits_to_itself_in_any_way() -> None:
    def function(items: list[int]) -> list[int]:
        if items[0] == 0:
            return items
        futures = [f.submit(0), f.submit(0)]
        concurrent.futures.wait(futures)
        assert futures[0].exception() is None
        return [items[0] + sum(future.result() for future in futures)]

    with batched(batch_size=1)(function) as f:
        assert f(3) == 3
        future = f.submit(4)
        # On the flush thread, and in a batch of its own there: what that one submits is not a callback's.
        outcome: list[int] = []
        future.add_done_callback(lambda _: outcome.append(f(5)))
        assert future.result() == 4
    assert outcome == [5]


@pytest.mark.parametrize("ask", ["result", "exception"])
def test_a_function_may_wait_for_what_waits_for_it(ask: str) -> None:
    def function(items: list[int]) -> list[Any]:
        if items == [1]:
            return items
        begun.wait()
        return [getattr(later, ask)()]

    begun = threading.Event()
    with batched(batch_size=1)(function) as f:
        first, later = f.submit(0), f.submit(1)
        begun.set()
        assert first.result() == (1 if ask == "result" else None)
        assert later.result() == 1


def test_a_function_that_asks_for_its_own_answer_is_told_that_it_is_not_there() -> None:
    told: list[Any] = []

    def function(items: list[int]) -> list[int]:
        begun.wait()
        with pytest.raises(TimeoutError):
            told.append(future.result(timeout=0))
        return items

    begun = threading.Event()
    with batched(batch_size=1)(function) as f:
        future = f.submit(1)
        begun.set()
        assert future.result() == 1
    assert not told


def test_a_map_from_inside_is_one_batch_per_chunk() -> None:
    def function(items: list[int]) -> list[int]:
        return [sum(f.map([0] * item)) + item if item else 0 for item in items]

    with batched(batch_size=4)(function) as f:
        assert f(8) == 8
        assert f.stats.sizes == {1: 1, 4: 2}


@pytest.mark.parametrize("how", ["call", "submit", "error", "map", "aio"])
def test_a_call_of_another_function_from_inside_joins_its_batch(how: str) -> None:
    calls: dict[str, Callable[[int], Any]] = {
        "call": lambda item: inner(item),
        "submit": lambda item: inner.submit(item).result(),
        "error": lambda item: inner.submit(-1).exception() or inner(item),
        "map": lambda item: next(inner.map([item])),
        "aio": lambda item: asyncio.run(inner.aio(item)),
    }
    names: list[str] = []

    def function(items: list[int]) -> list[int]:
        names.append(threading.current_thread().name)
        return items

    with batched(batch_size=9, timeout=None)(function) as inner:
        stranger = inner.submit(0)
        with batched(batch_size=1)(lambda items: [calls[how](items[0])]) as outer:
            future = outer.submit(1)
            until(lambda: inner.stats.pending == 2 or future.done())
            inner.flush()
            if how == "error":
                until(lambda: inner.stats.pending == 1)
                inner.flush()
            assert (future.result(), stranger.result()) == (1, 0)
    assert set(names) == {"batchify flush thread of function()"}
    assert "nested" not in inner.stats.reasons


def test_functions_in_a_chain_each_run_in_their_own_thread() -> None:
    """The second calls the third, while the first waits for it: no ring, so nothing is run on the spot."""
    third = batched(batch_size=1)(lambda items: [threading.get_ident()])
    second = batched(batch_size=1)(lambda items: [[threading.get_ident(), third(0)]])
    first = batched(batch_size=1)(lambda items: [[threading.get_ident(), *second(0)]])
    with third, second, first:
        assert len(set(first(0))) == 3
        assert (first.stats.reasons, second.stats.reasons, third.stats.reasons) == ({"full": 1},) * 3


@pytest.mark.parametrize("how", ["call", "submit", "map", "aio"])
def test_a_closed_function_refuses_calls_from_inside_another_one(how: str) -> None:
    calls: dict[str, Callable[[], Any]] = {
        "call": lambda: closed(1),
        "submit": lambda: closed.submit(1),
        "map": lambda: next(closed.map([1])),
        "aio": lambda: asyncio.run(closed.aio(1)),
    }
    closed = batched(batch_size=1)(lambda items: items)
    assert closed(0) == 0
    closed.close()
    with batched(batch_size=1)(lambda items: [calls[how]()]) as f, pytest.raises(ClosedError):
        f(1)


def test_functions_that_call_each_other_are_answered() -> None:
    def even(items: list[int]) -> list[bool]:
        return [item == 0 or is_odd(item - 1) for item in items]

    def odd(items: list[int]) -> list[bool]:
        return [item != 0 and is_even(item - 1) for item in items]

    is_even, is_odd = batched(batch_size=2)(even), batched(batch_size=2)(odd)
    assert in_threads(is_even, range(20)) == [number % 2 == 0 for number in range(20)]
    assert in_threads(lambda pair: pair[0](pair[1]), [(is_even, 7), (is_odd, 7)] * 10) == [False, True] * 10
    is_odd.close()
    is_even.close()


def test_a_callback_that_calls_is_answered() -> None:
    outcome: list[int] = []
    with batched(batch_size=2, timeout=None)(lambda items: items) as f:
        f.submit(1).add_done_callback(lambda _: outcome.append(f(5)))
        f.submit(2).result()
    assert outcome == [5]


def test_a_callback_on_the_thread_of_an_engine_is_answered() -> None:
    outcome: list[int] = []
    with ThreadPoolExecutor(1) as pool, batched(batch_size=2, timeout=None)(lambda xs: pool.submit(list, xs)) as f:
        # f(5) from the pool's only thread needs that thread itself: nested, it would still wait for it. A function that
        # answers at once does not.
        g = batched(batch_size=1)(lambda xs: xs)
        f.submit(1).add_done_callback(lambda _: outcome.append(g(5)))
        f.submit(2).add_done_callback(lambda _: f.close())
    g.close()
    assert outcome == [5]


@pytest.mark.parametrize("how", ["call", "submit", "close"])
def test_a_callback_on_the_thread_of_an_engine_may_use_the_function_whose_batch_it_answers(how: str) -> None:
    def use(_: object) -> None:
        if how == "close":
            f.close()
        else:
            outcome.append(f(2) if how == "call" else f.submit(2).result())

    engine: Future[Any] = Future()
    outcome: list[int] = []
    with batched(batch_size=1)(lambda items: engine if items == [1] else items) as f:
        future = f.submit(1)
        future.add_done_callback(use)
        until(lambda: f._self_batcher._has_no_room and bool(f._self_batcher._asleep))
        in_threads(engine.set_result, [[1]])
        assert future.result() == 1
    assert outcome == ([] if how == "close" else [2])


def test_nothing_is_kept_of_what_a_callback_on_the_thread_of_an_engine_passed_on() -> None:
    engine: Future[Any] = Future()
    outcome: list[int] = []
    g = batched(batch_size=1)(lambda items: items)
    with g, batched(batch_size=1)(lambda items: engine) as f:
        future = f.submit(1)
        future.add_done_callback(lambda _: outcome.extend(g.map([2])))
        until(lambda: f._self_batcher._has_no_room and bool(f._self_batcher._asleep))
        engine.set_result([1])
        assert (future.result(), outcome) == (1, [2])
        assert threading.get_ident() not in threads_module._passed


def test_a_ring_through_an_engine_is_answered() -> None:
    outcome: list[Any] = []
    with ThreadPoolExecutor(1) as pool:
        inner = batched(batch_size=1)(lambda xs: [many(x) for x in xs])
        many = batched(batch_size=1)(lambda xs: pool.submit(list, xs))
        outer = batched(batch_size=1)(lambda xs: pool.submit(list, xs))
        many.submit(1).add_done_callback(lambda _: outcome.append(outer.submit(2)))
        until(lambda: bool(outcome))
        assert outcome[0].result() == 2
        assert inner(3) == 3
        inner.close()
        many.close()
        outer.close()


@pytest.mark.parametrize("how", ["submit", "map", "aio"])
def test_a_ring_through_an_answer_that_is_waited_for_later_is_seen(how: str) -> None:
    passed, called = threading.Event(), threading.Event()

    def first_function(items: list[int]) -> list[int]:
        if items == [0]:
            return items

        async def later() -> int:
            task = asyncio.create_task(second.aio(1))
            await asyncio.sleep(0)
            meet()
            result: int = await task
            return result

        def meet() -> None:
            passed.set()
            called.wait()

        if how == "aio":
            return [asyncio.run(later())]
        if how == "submit":
            future = second.submit(1)
            meet()
            return [future.result()]
        results = second.map(iter([1, 2]))  # one item at a time
        found = [next(results)]
        meet()
        return [*found, *results][:1]

    def second_function(items: list[int]) -> list[int]:
        if how != "map" or items == [2]:
            passed.wait()
        # By now it is not blocked, but will be: this call must not wait for its thread.
        future = first.submit(0)
        called.set()
        return [future.result() + items[0]]

    first, second = batched(batch_size=1)(first_function), batched(batch_size=1)(second_function)
    assert first(9) == 1
    first.close()
    second.close()


def test_a_ring_is_seen_however_much_is_passed_on_meanwhile_of_which_nothing_is_kept() -> None:
    passed = threading.Event()
    kept: list[weakref.ref[Any]] = []

    class Item:
        pass

    def first_function(items: list[Any]) -> list[Any]:
        if items == [0]:
            return items
        future = second.submit(1)
        others = [fourth.submit(number) for number in range(100)]
        for _ in range(300):
            item = Item()
            kept.append(weakref.ref(item))
            third.submit(item).result()
            del item
        assert sum(each() is not None for each in kept) < 200
        passed.set()
        concurrent.futures.wait([future])  # nobody knows that this waits
        assert not any(each.done() for each in others)
        return [future.result()]

    def second_function(items: list[int]) -> list[int]:
        passed.wait()
        return [first(0) + items[0]]

    first, second = batched(batch_size=1)(first_function), batched(batch_size=1)(second_function)
    third = batched(batch_size=1)(lambda items: [None for _ in items])
    fourth = batched(batch_size=200, timeout=None)(lambda items: items)
    assert first(9) == 1
    for f in (first, second, third, fourth):
        f.close()


def test_a_ring_is_seen_though_its_thread_answers_the_batch_of_another_meanwhile() -> None:
    engine: Future[list[int]] = Future()
    passed = threading.Event()

    def first_function(items: list[int]) -> list[int]:
        if items == [0]:
            return items
        future = second.submit(1)
        engine.set_result([2])
        passed.set()
        concurrent.futures.wait([future])  # nobody knows that this waits
        return [future.result()]

    def second_function(items: list[int]) -> list[int]:
        passed.wait()
        return [first(0) + items[0]]

    first, second = batched(batch_size=1)(first_function), batched(batch_size=1)(second_function)
    third = batched(batch_size=1)(lambda items: engine)
    answer = third.submit(2)
    until(lambda: bool(third._self_batcher._asleep) and third._self_batcher._has_no_room)
    assert first(9) == 1
    assert answer.result() == 2
    for f in (first, second, third):
        f.close()


@pytest.mark.parametrize("what", ["answered", "cancelled"])
def test_what_was_passed_on_and_needs_no_answer_any_more_makes_no_ring(what: str) -> None:
    passed, go_on = threading.Event(), threading.Event()

    def function(items: list[int]) -> list[int]:
        if items == [9]:
            future = second.submit(1)
            if what == "answered":
                second.flush()
                assert future.result() == 1
            else:
                assert future.cancel()
            passed.set()
            go_on.wait()
        return items

    first = batched(batch_size=1)(function)
    second = batched(batch_size=2, timeout=None)(lambda items: [first(0) if item == 2 else item for item in items])
    future = first.submit(9)
    passed.wait()
    caller = second.submit(2)
    second.flush()
    until(lambda: first.stats.pending == 1 or caller.done())
    go_on.set()
    assert (future.result(), caller.result()) == (9, 0)
    assert "nested" not in first.stats.reasons
    second.close()
    first.close()


def test_what_was_passed_on_makes_no_ring_once_its_function_has_ended() -> None:
    def function(items: list[int]) -> list[int]:
        if items == [9]:
            second.submit(1)
        return items

    first = batched(batch_size=1)(function)
    second = batched(batch_size=2, timeout=None)(lambda items: [first(0) if item == 2 else item for item in items])
    assert first(9) == 9
    until(lambda: bool(first._self_batcher._asleep))
    assert second(2) == 0
    assert "nested" not in first.stats.reasons
    second.close()
    first.close()


@pytest.mark.thread_unsafe(reason="changes the module")
def test_a_ring_of_others_is_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    one, two, three = object(), object(), object()
    ident = threading.get_ident()
    monkeypatch.setattr(threads_module, "_waits_for", {-1: two, -2: one})
    monkeypatch.setattr(threads_module, "_flushing", {-1: (one,), -2: (two,), ident: (three,)})
    with threads_module._blocked_on(one) as for_itself:
        assert not for_itself


def test_the_end_of_one_wait_leaves_that_of_another_thread_for_the_same_function() -> None:
    """Two threads work for `even`: its own, and that of `odd`, in a batch run on the spot."""
    even, odd = object(), object()
    waits, ended = threading.Event(), threading.Event()

    def flush_thread_of_even() -> None:
        with threads_module._for_now(threads_module._flushing, (even,)), threads_module._blocked_on(odd) as for_itself:
            assert not for_itself
            waits.set()
            ended.wait()

    thread = threading.Thread(target=flush_thread_of_even)
    with threads_module._for_now(threads_module._flushing, (odd, even)), threads_module._blocked_on(odd):
        thread.start()
        waits.wait()
    with threads_module._for_now(threads_module._flushing, (odd,)), threads_module._blocked_on(even) as for_itself:
        assert for_itself
    ended.set()
    thread.join()


def test_a_function_that_answers_with_a_future_of_another() -> None:
    outcome: list[int] = []
    first = batched(batch_size=2, timeout=0.0)(lambda xs: xs)
    second = batched(batch_size=1)(lambda xs: first.submit(xs))
    future = second.submit(1)
    future.add_done_callback(lambda _: outcome.append(first(5)))
    assert future.result() == 1
    assert [second(2), first(3)] == [2, 3]
    second.close()
    first.close()
    assert outcome == [5]


@pytest.mark.parametrize("how", ["submit", "map", "close"])
def test_a_ring_is_found_whatever_the_first_one_waits_with(how: str) -> None:
    entered = threading.Event()

    def one(items: list[int]) -> list[int]:
        if how == "submit":
            entered.set()
            return [two.submit(item).result() for item in items]
        if how == "map":
            entered.set()
            return list(two.map(items))
        two.submit(items[0])
        entered.set()
        two.close()
        return items

    def other(items: list[int]) -> list[int]:
        entered.wait()
        until(lambda: flush_thread(first).ident in threads_module._waits_for)
        return [first(0) + item for item in items]

    first = batched(batch_size=1)(lambda items: items if items == [0] else one(items))
    two = batched(batch_size=1)(other)
    assert first(1) == 1
    two.close()
    first.close()


def test_closing_each_other_from_inside_ends() -> None:
    entered = threading.Event()

    def one(items: list[int]) -> list[int]:
        if items == [0]:
            entered.wait()
            until(lambda: flush_thread(second).ident in threads_module._waits_for)
            second.close()
        return items

    def other(items: list[int]) -> list[int]:
        entered.set()
        return [first(1)]

    first, second = batched(batch_size=1)(one), batched(batch_size=1)(other)
    futures = [first.submit(0), second.submit(0)]
    assert [future.result() for future in futures] == [0, 1]
    second.close()
    first.close()


@pytest.mark.parametrize("timeout", [0.0, None])
def test_a_callback_that_waits_is_answered(timeout: float | None) -> None:
    outcome: list[int] = []
    f = batched(batch_size=3, timeout=timeout)(lambda items: items)
    futures = [f.submit(1), f.submit(2)]
    futures[0].add_done_callback(lambda _: outcome.append(f.submit(9).result()))  # it may be closed by then
    futures[0].add_done_callback(lambda _: outcome.append(futures[1].result()))
    f.close()
    assert outcome in ([2], [9, 2])
    outcome.clear()
    f = batched(batch_size=2, timeout=timeout)(lambda items: items)
    futures = [f.submit(1), f.submit(2)]
    futures[0].add_done_callback(lambda _: outcome.append(futures[1].result()))
    futures[0].add_done_callback(lambda _: outcome.append(f.submit(9).result()))
    assert [future.result() for future in futures] == [1, 2]
    f.close()
    assert outcome in ([2], [2, 9])


def test_a_callback_holds_up_no_blocking_neighbour() -> None:
    let_on = threading.Event()
    with batched(batch_size=2, timeout=None)(lambda items: items) as f:
        f.submit(1).add_done_callback(lambda _: let_on.wait())
        assert f(2) == 2
        let_on.set()


def test_a_future_that_is_never_done_is_noticed_when_it_is_dropped() -> None:
    with batched(batch_size=1)(lambda items: Future()) as f:
        with pytest.raises(BatchError, match="dropped it unfinished"):
            f(1)
        with pytest.raises(BatchError, match="dropped it unfinished"):
            f(2)


def test_a_future_that_is_dropped_just_as_the_thread_falls_asleep_makes_room() -> None:
    engines: list[Future[Any]] = []

    class Asleep(dict[int, float]):
        def __setitem__(self, ident: int, wakes_at: float) -> None:
            super().__setitem__(ident, wakes_at)
            engines.clear()

    def function(items: list[int]) -> Any:
        if items != [0]:
            return items
        engines.append(Future())
        other.extend(in_threads(f.submit, [1]))
        return engines[0]

    other: list[Future[int]] = []
    f = batched(batch_size=1)(function)
    f._self_batcher._asleep = Asleep()
    with f:
        assert type(f.submit(0).exception()) is BatchError
        assert other[0].result() == 1


def test_a_batch_from_inside_is_split_also_if_its_future_fails_later() -> None:
    engine: Future[Any] = Future()

    class Items(list[int]):
        def __iter__(self) -> Iterator[int]:
            yield from (0, 1)
            engine.set_exception(ValueError())

    def function(items: list[int]) -> Any:
        if items == [9]:
            return [list(f.map(Items([0, 1])))]
        return engine if len(items) == 2 else items

    with batched(batch_size=2, isolate=True)(function) as f:
        assert f(9) == [0, 1]


def test_an_engine_may_answer_a_call_from_inside() -> None:
    engine: concurrent.futures.Future[list[int]] = concurrent.futures.Future()

    def function(items: list[int]) -> Any:
        if items == [0]:
            return [f(1)]
        threading.Thread(target=engine.set_result, args=([-1],)).start()
        return engine

    with batched(batch_size=1)(function) as f:
        assert f(0) == -1


def test_a_future_that_is_never_done_is_noticed_in_a_call_from_inside() -> None:
    def function(items: list[int]) -> Any:
        return [f(1)] if items == [0] else Future()

    with batched(batch_size=1)(function) as f, pytest.raises(BatchError, match="dropped it unfinished"):
        f(0)


@pytest.mark.parametrize("depth", range(0, 40, 2))
def test_an_endless_recursion_is_an_error_and_no_end(depth: int) -> None:
    def deepen(levels: int, items: list[int]) -> list[Any]:
        return deepen(levels - 1, items) if levels else [f(item) if item else 0 for item in items]

    with batched(batch_size=1)(lambda items: deepen(depth, items)) as f:
        with pytest.raises(RecursionError):
            f(1)
        assert f(0) == 0
        assert f.stats.in_flight <= 1


def test_a_logging_handler_that_raises_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise SystemExit

    monkeypatch.setattr("logging.Logger.error", refuse)
    with batched(batch_size=1)(lambda items: iter([*items, "one too many"])) as f:
        assert [f(1), f(2)] == [1, 2]


def test_a_logging_handler_that_raises_when_a_callback_did_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise SystemExit

    monkeypatch.setattr("logging.Logger.error", refuse)
    with batched(batch_size=2, timeout=None)(lambda items: items) as f:
        f.submit(1).add_done_callback(refuse)
        assert f.submit(2).result() == 2
        assert in_threads(f, [3, 4]) == [3, 4]


# close


@pytest.mark.thread_unsafe(reason="looks for threads by name")
def test_close_answers_everyone_who_waits() -> None:
    function = Gated()
    f = batched(batch_size=2, timeout=None)(function)
    futures = [f.submit(number) for number in range(5)]
    function.open()
    f.close()
    assert all(future.done() for future in futures)
    assert [future.result() for future in futures] == list(range(5))
    assert f.stats.reasons == {"full": 2, "close": 1}
    assert not flush_thread(f).is_alive()


def test_close_waits_for_a_future() -> None:
    engine: list[Future[Any]] = []

    def function(items: list[int]) -> Future[Any]:
        engine.append(Future())
        return engine[-1]

    f = batched(batch_size=1)(function)
    future = f.submit(1)
    until(lambda: len(engine) == 1)
    closer = threading.Thread(target=f.close)
    closer.start()
    until(lambda: f._self_batcher._buffer.closed)
    assert closer.is_alive()
    engine[0].set_result(["x"])
    closer.join()
    assert future.result() == "x"


def test_two_closers_both_wait() -> None:
    function = Gated()
    f = batched(batch_size=2)(function)
    future = f.submit(1)
    function.entered.acquire()
    closers = [threading.Thread(target=f.close) for _ in range(2)]
    for closer in closers:
        closer.start()
    until(lambda: f._self_batcher._buffer.closed)
    assert [closer.is_alive() for closer in closers] == [True, True]
    function.open()
    for closer in closers:
        closer.join()
        assert future.done()


def cannot_start(_: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")


CALLS: dict[str, Callable[[Any], Any]] = {
    "call": lambda f: f(1),
    "submit": lambda f: f.submit(1).result(),
    "map": lambda f: next(f.map([1])),
    "aio": lambda f: asyncio.run(f.aio(1)),
}


@pytest.mark.parametrize("how", CALLS)
def test_after_close_calls_are_refused(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refusing(items: list[int]) -> list[int]:
        return items

    f = batched(batch_size=2)(refusing)
    f.close()
    f.close()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", cannot_start)  # nor does it try
        with pytest.raises(ClosedError, match=r"^refusing\(\) is closed$"):
            CALLS[how](f)
    assert f.stats.accepted == 0


@pytest.mark.parametrize("used", ["", "call", "flush", "set", "close"])
@pytest.mark.thread_unsafe(reason="stops the garbage collector")
def test_a_function_goes_when_it_is_dropped(used: str) -> None:
    gc.collect()
    gc.disable()  # by counting alone
    try:
        f = batched(batch_size=1)(lambda items: items)
        if used == "call":
            assert f(1) == 1
            f.close()
        if used == "flush":
            f.flush()
        if used == "set":
            f.timeout = f.batch_size = 2
        if used:
            f.close()
            f.close()
            f.flush()
        watched = weakref.ref(f.__wrapped__)
        del f
        assert watched() is None
    finally:
        gc.enable()


@pytest.mark.thread_unsafe(reason="stops the garbage collector")
def test_a_function_that_was_closed_while_it_ran_goes_when_it_is_dropped() -> None:
    gc.collect()
    gc.disable()  # by counting alone
    try:
        function = Gated()
        f = batched(batch_size=1)(function)
        future = f.submit(1)
        function.entered.acquire()
        f._self_batcher.close(wait=False)
        function.open()
        assert future.result() == 1
        f.close()
        watched = weakref.ref(f._self_batcher)
        del f, future
        assert watched() is None
    finally:
        gc.enable()


def test_close_from_inside_the_function_does_not_wait_for_itself() -> None:
    def function(items: list[int]) -> list[int]:
        f.close()
        return items

    f = batched(batch_size=1)(function)
    futures = [f.submit(1)]
    assert futures[0].result() == 1
    f.close()


def test_while_it_drains_the_function_may_call_itself() -> None:
    def function(items: list[int]) -> list[int]:
        return [item if item == 0 else f(item - 1) for item in items]

    f = batched(batch_size=9, timeout=None)(function)
    future = f.submit(3)
    f.close()
    assert future.result() == 0


def test_calls_that_race_with_close_are_answered_or_refused() -> None:
    for _ in range(50):
        f = batched(batch_size=4, timeout=0.0)(lambda items: items)

        def call(item: int) -> Any:
            return f.close() if item == 5 else f(item)  # noqa: B023 - run at once

        for item, outcome in enumerate(in_threads(call, range(12))):
            assert outcome == (None if item == 5 else item) or isinstance(outcome, ClosedError)
        assert f.stats.accepted == f.stats.answered


def test_with_closes() -> None:
    with batched(batch_size=2)(lambda items: items) as f:
        assert f(1) == 1
    with pytest.raises(ClosedError):
        f(1)


# The thread's life


@pytest.mark.thread_unsafe(reason="looks for threads by name")
def test_unused_function_leaves_no_thread() -> None:
    def unused(items: list[int]) -> list[int]:
        return items

    f = batched(batch_size=2)(unused)
    assert not flush_threads("unused")
    f.close()
    assert not flush_threads("unused")


@pytest.mark.thread_unsafe(reason="looks for threads by name")
def test_the_thread_carries_the_name_of_the_function() -> None:
    def look_up(items: list[int]) -> list[str]:
        return [threading.current_thread().name] * len(items)

    with batched(batch_size=1)(look_up) as f:
        assert f(1) == "batchify flush thread of look_up()"
        assert len(flush_threads("look_up")) == 1


@pytest.mark.thread_unsafe(reason="looks for threads by name")
def test_many_first_callers_start_one_thread() -> None:
    def eager(items: list[int]) -> list[int]:
        return items

    for _ in range(20):
        with batched(batch_size=1)(eager) as f:
            assert in_threads(f, range(16)) == list(range(16))
            until(lambda: len(flush_threads("eager")) == 1)
        until(lambda: not flush_threads("eager"))


@pytest.mark.parametrize("how", CALLS)
def test_the_thread_is_started_once(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with batched(batch_size=1)(lambda items: items) as f:
        assert f(0) == 0
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", cannot_start)
            assert CALLS[how](f) == 1


@pytest.mark.parametrize("meanwhile", ["another one starts it", "it is closed"])
@pytest.mark.thread_unsafe(reason="looks for threads by name")
def test_a_thread_that_comes_too_late_is_sent_home(meanwhile: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def late(items: list[int]) -> list[int]:
        return items

    start = threading.Thread.start

    def start_late(thread: threading.Thread) -> None:
        monkeypatch.setattr(threading.Thread, "start", start)
        if meanwhile == "it is closed":
            f.close()
        else:
            assert f(0) == 0
        thread.start()

    f = batched(batch_size=1)(late)
    monkeypatch.setattr(threading.Thread, "start", start_late)
    if meanwhile == "it is closed":
        with pytest.raises(ClosedError):
            f(1)
        until(lambda: not flush_threads("late"))
    else:
        assert f(1) == 1
        until(lambda: len(flush_threads("late")) == 1)
        f.close()


@pytest.mark.thread_unsafe(reason="changes the module")
def test_a_finalizer_on_a_flush_thread_that_has_hardly_begun_does_not_wait_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    starter_waits = threading.Event()
    outcome: list[int] = []

    class Lock:
        def __init__(self) -> None:
            self.lock = threading.Lock()
            self.release = self.lock.release

        def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
            if self.lock.locked():  # for the thread to begin, or if it need not, for its answer
                starter_waits.set()
            return self.lock.acquire(blocking, timeout)

    class Early(threading.Thread):
        def run(self) -> None:
            if not started:
                started.append(self)
                starter_waits.wait()
                outcome.append(f(9))
            super().run()

    started: list[threading.Thread] = []
    monkeypatch.setattr(threads_module, "Thread", Early)
    monkeypatch.setattr(threads_module, "allocate_lock", Lock)
    with batched(batch_size=1)(lambda items: items) as f:
        assert f(0) == 0
        started[0].join()
    assert outcome == [9]


def test_nothing_is_known_of_a_flush_thread_that_has_ended() -> None:
    """Another thread may get its number."""
    with batched(batch_size=1)(lambda items: [threading.get_ident()]) as f:
        ident = f(1)
        assert ident in threads_module._flushing
    assert ident not in threads_module._flushing


@pytest.mark.parametrize("refers_to_itself", [False, True])
@pytest.mark.thread_unsafe(reason="looks for threads by name")
def test_a_dropped_function_is_collected_and_its_thread_ends(refers_to_itself: bool) -> None:
    def dropped(items: list[int]) -> list[int]:
        return items if f else []

    f: Any = batched(batch_size=1)(dropped)
    assert f(1) == 1
    thread = flush_thread(f)
    until(lambda: f._self_batcher._wakes_at == float("inf"))  # it sleeps
    function = weakref.ref(dropped)
    if not refers_to_itself:
        g, f = f, None
        del g
    del dropped
    if refers_to_itself:
        del f
    gc.collect()
    thread.join()
    assert function() is None


def test_a_dropped_function_is_collected_while_its_thread_waits_for_nothing_but_a_timeout() -> None:
    """After each batch it sleeps for as long as an item may wait; that is not for the function's sake."""
    f: Any = batched(batch_size=2, timeout=10**6)(lambda items: items)
    future = f.submit(1)
    thread = flush_thread(f)
    until(lambda: f._self_batcher._wakes_at > 0)
    assert f(2) == 2
    assert future.result() == 1
    until(lambda: f._self_batcher._wakes_at > 0)
    f = None
    thread.join()


@pytest.mark.parametrize("started", [False, True])
def test_a_dropped_function_is_collected_when_all_is_answered(started: bool) -> None:
    f: Any = batched(batch_size=2, timeout=None)(lambda items: items)
    futures = [f.submit(1)]
    if started:  # its thread has seen what is left over
        futures += [f.submit(2), f.submit(3)]
        until(lambda: f._self_batcher._wakes_at == float("inf") and f.stats.answered == 2)
    thread, function = flush_thread(f), weakref.ref(f.__wrapped__)
    f = None
    assert [future.result() for future in futures] == list(range(1, len(futures) + 1))
    thread.join()
    del futures
    until(lambda: function() is None)


def test_a_dropped_function_whose_only_item_was_cancelled_is_collected_before_its_timeout() -> None:
    f: Any = batched(batch_size=2, timeout=10**6)(lambda items: items)
    future = f.submit(1)
    thread = flush_thread(f)
    until(lambda: 0 < f._self_batcher._wakes_at < float("inf"))  # it sleeps until the item is due
    assert future.cancel()
    f = None
    thread.join()


def test_dropping_a_function_does_not_wait() -> None:
    let_on = threading.Event()
    f: Any = batched(batch_size=2, timeout=None)(lambda items: items)
    future = f.submit(1)
    future.add_done_callback(lambda _: let_on.wait())
    thread = flush_thread(f)
    del f
    let_on.set()
    thread.join()
    assert future.result() == 1


def test_what_waits_in_a_dropped_function_still_has_its_time() -> None:
    before = time.monotonic()
    future = batched(batch_size=2, timeout=0.05)(lambda items: items).submit(1)
    assert future.result() == 1
    assert time.monotonic() - before >= 0.05


def test_an_error_that_is_kept_does_not_keep_a_dropped_function_alive() -> None:
    def dropped(items: list[int]) -> list[int]:
        raise ValueError

    f: Any = batched(batch_size=1)(dropped)
    error = f.submit(1).exception()
    thread = flush_thread(f)
    del f
    gc.collect()
    thread.join()
    assert type(error) is ValueError


@pytest.mark.parametrize("inside", [False, True])
def test_what_a_function_accepted_is_answered_if_it_is_dropped_while_somebody_waits_for_it(inside: bool) -> None:
    def wait(items: list[Any]) -> list[Any]:
        return [future.result() for future in items]

    f: Any = batched(batch_size=2, timeout=None)(lambda items: [-item for item in items])
    with batched(batch_size=1)(wait) as inside_of_g, ThreadPoolExecutor(1) as threads:
        future = f.submit(1)
        answer = inside_of_g.submit(future) if inside else threads.submit(future.result)
        until(lambda: bool(future._condition._waiters))
        del f
        assert answer.result() == -1


@pytest.mark.parametrize("timeout", [0.0, 0.01, None])
def test_what_a_dropped_function_accepted_is_answered(timeout: float | None) -> None:
    for _ in range(20):
        futures = [batched(batch_size=2, timeout=timeout)(lambda items: items).submit(number) for number in range(3)]
        gc.collect()
        assert [future.result() for future in futures] == [0, 1, 2]


@contextlib.contextmanager
def pestered(handler: Callable[..., None]) -> Iterator[None]:
    """Have the main thread handle a signal again and again. Not SIGALRM, which is the watchdog's."""
    main = threading.main_thread().ident
    assert main is not None
    stop = threading.Event()
    luck = random.Random(1)

    def pester() -> None:
        while not stop.wait(luck.random() * 0.0005):
            signal.pthread_kill(main, signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, handler)
    thread = threading.Thread(target=pester)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        signal.signal(signal.SIGUSR1, before)


@pytest.mark.thread_unsafe(reason="signals")
def test_a_signal_handler_that_raises_at_any_time_ends_nothing() -> None:
    class Interrupt(BaseException):
        pass

    armed = False

    def handler(*_: object) -> None:
        nonlocal armed
        if armed:
            armed = False
            raise Interrupt

    interrupts = 0
    with batched(batch_size=3, timeout=0.0001)(lambda items: items) as f:
        f(0)
        with pestered(handler):
            while interrupts < 300:
                try:
                    armed = True
                    while True:
                        f(1)
                        f.submit(2)
                except Interrupt:
                    interrupts += 1
        assert in_threads(f, range(20)) == list(range(20))


def test_a_batch_that_the_thread_could_not_run_fails_at_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def run(*_: object) -> None:
        raise MemoryError

    with batched(batch_size=1)(lambda items: items) as f:
        with monkeypatch.context() as patch:
            patch.setattr(threads_module.ThreadBatch, "run", run)
            with pytest.raises(MemoryError):
                f(1)
        assert f(2) == 2
    assert [record.getMessage() for record in caplog.records] == ["the flush thread of <lambda>() was disturbed"]


def test_a_batch_that_could_not_be_made_is_made_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    errors = [MemoryError()]

    class FailsOnce(threads_module.ThreadBatch):
        def __new__(cls, *_: Any) -> "FailsOnce":
            if errors:
                raise errors.pop()
            return super().__new__(cls)

    with batched(batch_size=2, timeout=None)(lambda items: items) as f:
        futures = [f.submit(1)]
        monkeypatch.setattr(threads_module, "ThreadBatch", FailsOnce)
        futures.append(f.submit(2))
        assert [future.result() for future in futures] == [1, 2]
        assert f.stats.sizes_by_reason == {"full": {2: 1}}
    assert not errors


def test_a_half_that_could_not_be_made_is_made_again_and_shares_no_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    errors = [MemoryError()]
    batches: list[list[int]] = []

    class FailsOnce(threads_module.ThreadBatch):
        def __new__(cls, _: Any, calls: Any, *__: Any) -> "FailsOnce":
            if len(calls) == 1 and errors:
                raise errors.pop()
            return super().__new__(cls)

    def function(items: list[int]) -> list[int]:
        batches.append(items)
        if len(batches) == 1:
            others.extend(in_threads(f.submit, [3]))
            raise ValueError
        return items

    monkeypatch.setattr(threads_module, "ThreadBatch", FailsOnce)
    others: list[Future[int]] = []
    with batched(batch_size=2, timeout=None, isolate=True)(function) as f:
        assert [future.result() for future in [f.submit(1), f.submit(2)]] == [1, 2]
        f.flush()
        assert others[0].result() == 3
    assert batches == [[1, 2], [1], [2], [3]]
    assert not errors


def test_where_no_batch_could_be_taken_the_function_is_not_called_with_nothing() -> None:
    errors = [MemoryError()]
    batches: list[list[int]] = []

    def take(now: float) -> Any:
        if errors:
            raise errors.pop()
        return taken(now)

    def function(items: list[int]) -> list[int]:
        batches.append(items)
        return items

    with batched(batch_size=1)(function) as f:
        buffer = f._self_batcher._buffer
        taken = buffer.take
        buffer.take = take  # type: ignore[method-assign]
        assert f(1) == 1
    assert batches == [[1]]


def flush_forever(bell: Any, handed: list[Any], hired: dict[int, threading.Thread] | None = None) -> None:
    """Be a flush thread, with what stands in for its bell and for its batcher."""
    begun, go = threading.Lock(), threading.Lock()
    begun.acquire()
    hired = {} if hired is None else hired
    hired[threading.get_ident()] = threading.current_thread()
    bell.release = lambda _: None
    threads_module._flush_forever(bell(), begun, go, hired, handed, lambda: None, object())


@pytest.mark.thread_unsafe(reason="looks for threads by name")
def test_a_flush_thread_that_is_disturbed_before_its_first_item_sleeps_on(caplog: pytest.LogCaptureFixture) -> None:
    sleeps: list[float] = []

    class Bell:
        def acquire(self, _: bool, seconds: float) -> None:
            sleeps.append(seconds)
            if len(sleeps) == 1:
                raise MemoryError

    flush_forever(Bell, [])
    assert sleeps == [-1, -1]
    assert caplog.messages == ["the flush thread of ?() was disturbed"]


def test_a_flush_thread_that_is_disturbed_as_it_wakes_up_looks_at_once(caplog: pytest.LogCaptureFixture) -> None:
    sleeps: list[float] = []

    class Batcher:
        def _next(self, *, flushed: bool) -> None:
            assert not flushed

    class Bell:
        def acquire(self, _: bool, seconds: float) -> None:
            sleeps.append(seconds)
            if len(sleeps) == 1:
                raise MemoryError

    flush_forever(Bell, [Batcher()])
    assert sleeps == [-1, 0.0]


def test_a_flush_thread_that_is_disturbed_at_work_goes_on_at_once(caplog: pytest.LogCaptureFixture) -> None:
    sleeps: list[float] = []

    class Batcher:
        name = "f"
        looks = 0

        def _next(self, *, flushed: bool) -> None:
            self.looks += 1
            if self.looks == 1:
                raise MemoryError

    class Bell:
        def acquire(self, _: bool, seconds: float) -> None:
            sleeps.append(seconds)

    batcher = Batcher()
    flush_forever(Bell, [batcher])
    assert sleeps == [-1, 0.0]
    assert batcher.looks == 2


def test_what_a_finalizer_of_a_flush_thread_passed_on_is_forgotten_as_that_ends() -> None:
    class Batcher:
        def _next(self, *, flushed: bool) -> None:
            futures.append(f.submit(1))

    class Bell:
        def acquire(self, _: bool, seconds: float) -> None: ...

    futures: list[Future[int]] = []
    with batched(batch_size=1)(lambda items: items) as f:
        flush_forever(Bell, [Batcher()])
        assert threading.get_ident() not in threads_module._passed
        assert futures[0].result() == 1


@pytest.mark.parametrize("others", ["go on", "end too"])
def test_who_was_handed_over_meanwhile_is_left_to_those_threads_that_go_on(others: str) -> None:
    class Batcher:
        def _next(self, *, flushed: bool) -> None:
            if others == "go on":
                hired.clear()
            handed.append(self)

    class Bell:
        def acquire(self, _: bool, seconds: float) -> None: ...

    handed: list[Any] = [Batcher()]
    hired: dict[int, threading.Thread] = {}
    flush_forever(Bell, handed, hired)
    assert len(handed) == (others == "go on")


def test_an_exception_thrown_into_the_flush_thread_kills_nobody(caplog: pytest.LogCaptureFixture) -> None:
    causes: list[type] = []

    def disturbed(items: list[int]) -> list[int]:
        return items

    with batched(batch_size=1)(disturbed) as f:
        for number in range(20):
            assert f(number) == number
            thread = flush_thread(f)
            assert thread.ident is not None
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(SystemExit))
            try:
                assert f(number) == number
            except BatchError as error:
                causes.append(type(error.__cause__))
    assert set(causes) <= {SystemExit}


# Interrupted callers


@pytest.fixture
def ctrl_c() -> Iterator[Callable[[], None]]:
    """Something that presses Ctrl-C from another thread until it is heard, once.

    Again and again, since a signal that comes just before a thread falls asleep does not wake it.
    """
    main = threading.main_thread().ident or 0
    heard = threading.Event()

    def handler(*_: object) -> None:
        if not heard.is_set():
            heard.set()
            raise KeyboardInterrupt

    def press() -> None:
        while not heard.wait(0.001):
            signal.pthread_kill(main, signal.SIGINT)

    before = signal.signal(signal.SIGINT, handler)
    yield press
    signal.signal(signal.SIGINT, before)


@pytest.mark.thread_unsafe(reason="signals")
def test_ctrl_c_takes_the_item_out(ctrl_c: Callable[[], None]) -> None:
    function = Gated()
    function.open()
    with batched(batch_size=2, timeout=None)(function) as f:

        def interrupt() -> None:
            until(lambda: f.stats.pending == 1)
            ctrl_c()

        thread = threading.Thread(target=interrupt)
        thread.start()
        with pytest.raises(KeyboardInterrupt):
            f(1)
        thread.join()
        assert f.stats.pending == 0
        assert in_threads(f, [2, 3]) == [2, 3]
    assert [sorted(batch) for batch in function.batches] == [[2, 3]]


@pytest.mark.thread_unsafe(reason="signals")
def test_ctrl_c_in_a_batch_does_not_disturb_it(ctrl_c: Callable[[], None]) -> None:
    function = Gated()
    with batched(batch_size=2, timeout=None)(function) as f:
        other = f.submit("other")

        def interrupt() -> None:
            function.entered.acquire()
            ctrl_c()

        thread = threading.Thread(target=interrupt)
        thread.start()
        with pytest.raises(KeyboardInterrupt):
            f("main")
        thread.join()
        function.open()
        assert other.result() == "other"
        assert in_threads(f, [2, 3]) == [2, 3]


def test_ctrl_c_in_submit_takes_the_item_out() -> None:
    with batched(batch_size=2, timeout=1)(lambda items: items) as f:
        batcher = f._self_batcher
        wake = batcher._wake_locked

        def interrupted() -> None:
            batcher._wake_locked = wake  # type: ignore[method-assign]
            raise KeyboardInterrupt

        batcher._wake_locked = interrupted  # type: ignore[method-assign]
        with pytest.raises(KeyboardInterrupt):
            f.submit(1)
        assert (f.stats.pending, f.stats.cancelled) == (0, 1)


def test_ctrl_c_as_an_item_is_taken_out_is_heard_and_the_others_are_looked_after() -> None:
    with batched(batch_size=2, timeout=None)(lambda items: items) as f:
        batcher = f._self_batcher
        look = batcher._look_after_leaving_locked
        looks: list[str] = []

        def interrupted_once() -> None:
            looks.append("")
            if len(looks) == 1:
                raise KeyboardInterrupt
            look()

        future = f.submit(1)
        batcher._look_after_leaving_locked = interrupted_once  # type: ignore[method-assign]
        with pytest.raises(KeyboardInterrupt):
            future.cancel()
        assert len(looks) == 2


@pytest.mark.thread_unsafe(reason="changes the module")
def test_ctrl_c_in_a_call_from_inside_takes_the_item_out(monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupted:
        def acquire(self) -> None:
            raise KeyboardInterrupt

    def function(items: list[int]) -> list[int]:
        with pytest.raises(KeyboardInterrupt):
            inner(1)
        return items

    monkeypatch.setattr(threads_module, "_blocking_call", lambda item: (call_with(item, int), Interrupted()))
    inner = batched(batch_size=2, timeout=None)(lambda items: items)
    with batched(batch_size=1)(function) as f:
        assert f(0) == 0
    assert (inner.stats.pending, inner.stats.cancelled) == (0, 1)


@pytest.mark.thread_unsafe(reason="signals")
def test_a_signal_handler_may_call_at_any_time() -> None:
    numbers = itertools.count()
    wrong: list[int] = []
    with batched(batch_size=3)(lambda items: items) as f:

        def handler(*_: object) -> None:
            number = next(numbers)
            if f(number) != number:
                wrong.append(number)
            f.submit(0)
            f.flush()

        with pestered(handler):
            while (number := next(numbers)) < 3000:
                assert f(number) == number
    assert not wrong


@pytest.mark.parametrize("how", ["call", "submit", "flush", "close", "map"])
def test_a_finalizer_inside_the_lock_may_call(how: str) -> None:
    f = batched(batch_size=2, timeout=None)(lambda items: items)
    first = f.submit(1)
    futures: list[Future[Any]] = []
    actions: dict[str, Callable[[], Any]] = {
        "call": lambda: f(2),
        "submit": lambda: futures.append(f.submit(2)),
        "flush": f.flush,
        "close": f.close,
        "map": lambda: None,
    }
    with threads_module._lock:
        actions[how]()
    f.close()
    assert first.result() == 1
    assert [future.result() for future in futures] == [2] * len(futures)


def test_a_finalizer_inside_the_lock_starts_no_thread() -> None:
    function = Gated()
    with batched(batch_size=1, concurrency=2)(function) as f:
        futures = [f.submit(0)]
        function.entered.acquire()
        with threads_module._lock:
            futures.append(f.submit(1))
            assert len(f._self_batcher._threads) == 1
        f.flush()  # whoever comes next does
        function.entered.acquire()
        function.open()
        assert [future.result() for future in futures] == [0, 1]


class Key:
    """One of a group, that can be watched."""


@pytest.mark.thread_unsafe(reason="stops the garbage collector")
@pytest.mark.parametrize("where", ["anywhere", "inside the lock"])
def test_a_key_goes_when_all_of_its_group_are_cancelled(where: str) -> None:
    def cancel_both() -> None:
        key = Key()
        keys.append(weakref.ref(key))
        with threads_module._lock if where == "inside the lock" else contextlib.nullcontext():
            for future in [f.submit(key), f.submit(key)]:
                assert future.cancel()

    function = Gated()
    keys: list[weakref.ref[Key]] = []
    gc.collect()
    gc.disable()  # by counting alone
    try:
        with batched(batch_size=2, timeout=None, group_by=lambda item: item)(function) as f:
            if where == "anywhere":
                futures = [f.submit(0), f.submit(0)]
                function.entered.acquire()
                cancel_both()
                assert keys[0]() is None
                function.open()
                assert [future.result() for future in futures] == [0, 0]
            else:  # there a destructor that is the user's must not run: the flush thread, which was rung for, does it
                cancel_both()
                until(lambda: keys[0]() is None)
    finally:
        gc.enable()


def test_a_finalizer_inside_the_lock_may_call_a_function_that_leaves_the_process() -> None:
    class Engine:
        def result(self) -> list[int]:
            return [1]

        def add_done_callback(self, callback: Callable[[Any], None]) -> None:
            threading.Thread(target=callback, args=(self,)).start()

    with batched(batch_size=1)(lambda items: Engine()) as f:
        with threads_module._lock:
            assert f(0) == 1
        assert f(0) == 1


def test_a_finalizer_inside_the_lock_is_refused_by_a_closed_function() -> None:
    f = batched(batch_size=1)(lambda items: items)
    assert f(1) == 1
    f.close()
    with threads_module._lock, pytest.raises(ClosedError):
        f(2)


def test_what_a_finalizer_of_the_flush_thread_submits_inside_the_lock_waits_for_its_turn() -> None:
    futures: list[Future[Any]] = []

    def function(items: list[int]) -> list[int]:
        if items == [0]:
            with threads_module._lock:
                futures.append(f.submit(1))
            assert not futures[0].done()
        return items

    with batched(batch_size=1)(function) as f:
        assert f(0) == 0
        assert futures[0].result() == 1
        assert "nested" not in f.stats.reasons


# The event loop


def test_a_blocking_call_on_a_running_loop_warns_once_and_works() -> None:
    async def main() -> list[int]:
        return [f(1), f(2)]

    with batched(batch_size=1)(lambda items: items) as f:
        with pytest.warns(RuntimeWarning, match=r"running event loop.* use `await <lambda>\.aio\(item\)`$") as warned:
            assert asyncio.run(main()) == [1, 2]
        assert len(warned) == 1
        assert warned[0].filename == __file__


def test_the_very_first_call_warns_as_well() -> None:
    done = run_script("""if True:
        import asyncio, warnings
        from batchify import batched
        warnings.simplefilter("error")

        async def main():
            try:
                f(1)
            except RuntimeWarning:
                print("warned")

        f = batched(batch_size=1)(lambda items: items)
        asyncio.run(main())
    """)
    assert done.stdout.split() == ["warned"]


def test_where_nobody_has_imported_asyncio_calls_are_answered() -> None:
    run_script("""if True:
        import sys
        from batchify import batched
        sys.modules.pop("asyncio", None)
        assert [f(1) for f in [batched(batch_size=1)(lambda items: items)] * 2] == [1, 1]
    """)


def test_no_warning_elsewhere() -> None:
    async def main() -> Any:
        future = f.submit(1)
        return await asyncio.to_thread(f, 2) + await asyncio.wrap_future(future)

    with warnings.catch_warnings(), batched(batch_size=1)(lambda items: items) as f:
        warnings.simplefilter("error")
        assert asyncio.run(main()) == 3
        assert f(1) == 1


# Fork and exit, each in an interpreter of its own

FORK = """if True:
    import os, sys, threading, warnings
    from batchify import _threads, batched
    warnings.simplefilter("ignore")
    entered, let_on = threading.Event(), threading.Event()

    @batched(batch_size=2, timeout=0.01)
    def function(items):
        if os.getpid() == parent:
            entered.set()
            let_on.wait()
        return [(os.getpid(), item) for item in items]

    parent = os.getpid()
    """


def in_child(body: str) -> str:
    return (
        FORK
        + f"""
    child = os.fork()
    if child == 0:
        {body}
        sys.stdout.flush()
        os._exit(0)
    let_on.set()
    assert os.waitpid(child, 0)[1] == 0
    assert [future.result()[1] for future in futures] == list(range(len(futures)))
    function.close()
    """
    )


def test_a_forked_child_starts_clean() -> None:
    run_script(
        in_child("""
        assert function.stats.accepted == 0, function.stats
        assert function(7) == (os.getpid(), 7)
        assert list(function.map(range(5))) == [(os.getpid(), item) for item in range(5)]
        assert function.stats.accepted == 6
        function.close()
        """).replace(
            "child = os.fork()",
            "futures = [function.submit(n) for n in range(5)]; entered.wait()\n    child = os.fork()",
        )
    )


def test_a_future_of_the_parent_outlives_its_function_in_a_forked_child() -> None:
    script = """if True:
        import gc, os
        from batchify import batched

        f = batched(batch_size=2, timeout=None)(lambda items: items)
        future = f.submit(1)
        child = os.fork()
        if not child:
            del f
            gc.collect()
            assert future.cancel()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
    """
    run_script(script, "-W", "ignore")


def test_what_was_closed_is_closed_in_a_forked_child_too() -> None:
    run_script(
        in_child("""
        assert function._self_batcher._buffer.closed
        try:
            function(7)
        except ClosedError:
            pass
        else:
            raise AssertionError
        """)
        .replace("import _threads, batched", "import ClosedError, _threads, batched")
        .replace("child = os.fork()", "futures = []; function.close()\n    child = os.fork()")
    )


def test_a_fork_while_another_thread_holds_the_lock() -> None:
    script = in_child("assert function(7) == (os.getpid(), 7)").replace(
        "child = os.fork()",
        """futures = [function.submit(n) for n in range(3)]
    holds, release = threading.Event(), threading.Event()
    def hold():
        with _threads._lock:
            holds.set()
            release.wait()
    threading.Thread(target=hold).start()
    holds.wait()
    child = os.fork()
    release.set()""",
    )
    run_script(script.replace("if child == 0:", "if child == 0:", 1))


def test_a_fork_inside_the_function() -> None:
    run_script("""if True:
        import os, warnings
        from batchify import batched
        warnings.simplefilter("ignore")

        @batched(batch_size=2, timeout=0.0)
        def function(items):
            child = os.fork()
            if child == 0:
                if items == [1]:
                    assert inner(3) == 6
                if items == [1]:
                    os._exit(0)
                return items  # to nobody: the callers are the parent's
            assert os.waitpid(child, 0)[1] == 0
            return items

        @batched(batch_size=2, timeout=0.0)
        def inner(items):
            return [2 * item for item in items]

        assert inner(1) == 2
        assert function(1) == 1
        assert function(2) == 2
    """)


def test_a_fork_inside_the_function_answers_nobody_twice() -> None:
    done = run_script("""if True:
        import os, threading, warnings
        from batchify import batched
        warnings.simplefilter("ignore")
        begun = threading.Event()

        @batched(batch_size=1)
        def function(items):
            begun.wait()
            child = os.fork()
            if child:
                assert os.waitpid(child, 0)[1] == 0
            return items

        future = function.submit(1)
        future.add_done_callback(lambda _: os.write(1, b"answered"))
        begun.set()
        future.result()
        function.close()
    """)
    assert done.stdout == "answered"


def test_what_failed_in_a_forked_child_is_not_split_there() -> None:
    run_script("""if True:
        import os, threading, warnings
        from batchify import batched
        warnings.simplefilter("ignore")
        parent = os.getpid()

        class Last(ValueError):
            def __del__(self):
                if os.getpid() != parent:  # all that the child does with the batch it has done by now
                    os._exit(0 if not function._self_batcher._parts else 1)

        @batched(batch_size=2, timeout=None, isolate=True)
        def function(items):
            child = os.fork()
            if child == 0:
                raise Last
            statuses.append(os.waitpid(child, 0)[1])
            return items

        statuses = []
        futures = [function.submit(n) for n in range(2)]
        assert [future.result() for future in futures] == [0, 1]
        assert statuses == [0]
    """)


@pytest.mark.parametrize("which", ["flush thread", "thread"])
def test_a_forked_child_knows_nothing_of_its_parents_threads(which: str) -> None:
    """Its own get their numbers."""
    run_script(
        f"which = {which!r}"
        + """
import asyncio, concurrent.futures, os, signal, threading, warnings
from batchify import batched
warnings.simplefilter("ignore")

def function(items):
    if items[0] == 1:
        concurrent.futures.wait([function.submit(0)])
    return items

async def main():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        function(0)
    warned.append(len(caught))

warned = []
entered, let_on = threading.Event(), threading.Event()
delivering = batched(batch_size=1)(lambda items: items)
delivering.submit(1).add_done_callback(lambda _: (entered.set(), let_on.wait()))
entered.wait()
child = os.fork()
if not child:
    signal.alarm(100)
    function = batched(batch_size=1)(function)
    if which == "flush thread":
        assert function(1) == 1
    else:
        thread = threading.Thread(target=lambda: asyncio.run(main()))
        thread.start()
        thread.join()
        assert warned == [1]
    os._exit(0)
let_on.set()
assert os.waitpid(child, 0)[1] == 0
    """
    )


def test_an_idle_function_does_not_hold_up_the_exit() -> None:
    run_script("from batchify import batched; f = batched(batch_size=2)(lambda xs: xs); f(1)")


def test_what_a_dropped_function_accepted_is_answered_at_exit() -> None:
    done = run_script("""if True:
        import gc
        from batchify import batched

        def make():
            def function(items):
                return [f is None or item for item in items]
            f = batched(batch_size=9, timeout=None)(function)
            f.submit(7).add_done_callback(lambda future: print(future.result()))

        make()
        gc.collect()
    """)
    assert done.stdout.split() == ["7"]


def test_a_batch_of_a_dropped_function_is_answered_at_exit() -> None:
    done = run_script("""if True:
        import threading
        from batchify import batched

        def function(items):
            threading.main_thread().join()
            return items

        f = batched(batch_size=9, timeout=None)(function)
        f.submit(7).add_done_callback(lambda future: print(future.result()))
        del f
    """)
    assert done.stdout.split() == ["7"]


def test_what_was_accepted_is_answered_at_exit() -> None:
    done = run_script("""if True:
        from batchify import batched

        @batched(batch_size=100, timeout=None)
        def function(items):
            return [helper(item) for item in items]

        @batched(batch_size=100)
        def helper(items):
            return items

        for number in range(3):
            function.submit(number).add_done_callback(lambda future: print(future.result()))
    """)
    assert done.stdout.split() == ["0", "1", "2"]


def test_a_batch_that_runs_is_answered_at_exit() -> None:
    done = run_script("""if True:
        import threading
        from batchify import batched
        entered = threading.Event()

        @batched(batch_size=1)
        def function(items):
            entered.set()
            threading.main_thread().join()
            return items

        function.submit(7).add_done_callback(lambda future: print(future.result()))
        entered.wait()
    """)
    assert done.stdout.split() == ["7"]


def test_threads_that_outlive_the_main_thread_are_answered() -> None:
    done = run_script("""if True:
        import threading
        from batchify import batched
        function = batched(batch_size=2, timeout=0.001)(lambda items: items)
        unused = batched(batch_size=2, timeout=0.001)(lambda items: items)
        function(0)

        def work():
            threading.main_thread().join()
            print(sum(function(number) for number in range(40)))
            try:
                print(unused(1))
            except RuntimeError:  # from 3.12 on, no thread can be started then
                print(1)

        threading.Thread(target=work).start()
    """)
    assert done.stdout.split() == ["780", "1"]


def test_calls_at_exit_are_answered_or_refused() -> None:
    done = run_script("""if True:
        import atexit
        def late(which):
            try:
                print(which(1))
            except RuntimeError as error:
                print(type(error).__name__)
        atexit.register(lambda: late(used))
        from batchify import batched
        used = batched(batch_size=1)(lambda items: items)
        unused = batched(batch_size=1)(lambda items: items)
        used(0)
        atexit.register(lambda: late(used))
        atexit.register(lambda: late(unused))
    """)
    unused, used_before_drain, used_after_drain = done.stdout.split()
    assert unused in ("1", "RuntimeError")
    assert used_before_drain == "1"
    assert used_after_drain == "ClosedError"


def test_a_function_that_is_made_at_exit_refuses() -> None:
    done = run_script("""if True:
        import atexit

        def late():
            try:
                print(batched(batch_size=1)(lambda items: items)(1))
            except RuntimeError as error:
                print(error)

        atexit.register(late)
        from batchify import batched
    """)
    assert done.stdout == "<lambda>() is closed (the interpreter is exiting)\n"


def test_at_exit_a_function_that_is_open_yet_runs_in_its_own_thread() -> None:
    done = run_script("""if True:
        import threading
        from batchify import batched

        @batched(batch_size=1)
        def inner(items):
            return [threading.current_thread().name]

        @batched(batch_size=2, timeout=None)
        def outer(items):
            return [inner(item) for item in items]

        inner(0)
        outer.submit(1).add_done_callback(lambda future: print(future.result()))
    """)
    assert done.stdout == "batchify flush thread of inner()\n"


def test_map_heeds_a_change_of_batch_size_while_it_waits() -> None:
    function = Gated()
    with batched(batch_size=3, timeout=None)(function) as f:
        stranger = f.submit(99)
        f.flush()
        function.entered.acquire()
        found: list[int] = []
        reader = threading.Thread(target=lambda: found.extend(f.map(iter(range(40)))))
        reader.start()
        until(lambda: f.stats.pending == 4)  # it has read ahead as far as it may
        f.batch_size = 30
        function.open()
        reader.join()
        assert found == list(range(40))
        assert stranger.done()


def test_map_takes_any_batch_size() -> None:
    with batched(batch_size=2**70)(lambda items: items) as f:
        assert list(f.map(range(3))) == [0, 1, 2]
