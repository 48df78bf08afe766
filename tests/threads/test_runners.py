"""Nothing runs without a reason: with `concurrency` a runner is started when a batch is due and all others are busy.

The flush thread gives them their batches. Where no runner can be started it runs a batch itself.
"""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from .. import inside
from ..kit import Threads
from ..tools import in_threads, run_script


def test_concurrency_1_runs_all_batches_on_the_same_thread(threads: Threads) -> None:
    f = threads(batch_size=2, concurrency=1, isolate=True)
    assert sorted(in_threads(f, range(40))) == sorted(-item for item in range(40))
    assert (threads.most, len(threads.idents)) == (1, 1)


def test_thread_is_started_only_when_all_others_are_busy(threads: Threads) -> None:
    f = threads(batch_size=2, concurrency=8)
    for number in range(20):
        assert f(number) == -number
        threads.settle(f)
    assert len(inside.threads_of(f)) == 2
    assert len(threads.idents) == 1


@pytest.mark.parametrize("how", ["aio", "map"])
def test_thread_is_started_for_a_call_while_the_function_is_busy(threads: Threads, how: str) -> None:
    """Calls and `submit` do as much: test_due_item_runs_beside_a_batch_that_runs."""
    f = threads(gated=True, batch_size=1, concurrency=2)
    busy = threads.busy(f, 0)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(lambda: asyncio.run(f.aio(1)) if how == "aio" else next(f.map([1])))
        threads.until(lambda: threads.running == 2)
        threads.go_on(2)
        assert answer.result() == -1
    assert threads.outcome(busy) == 0


def test_concurrency_has_at_most_one_idle_thread_that_wakes_by_itself(threads: Threads) -> None:
    f = threads(gated=True, batch_size=1, timeout=10**6, concurrency=3)
    handles = threads.submits(f, range(3))
    threads.until(lambda: threads.running == 3)
    threads.go_on(3)
    assert threads.outcomes(handles) == [0, -1, -2]
    threads.until(lambda: inside.sleeping(f) == 1 + 3)
    assert inside.wake_by_themselves(f) <= 1


def test_concurrency_starts_no_second_thread_while_one_is_starting(threads: Threads) -> None:
    f = threads(gated=True, batch_size=1, concurrency=3)
    handles = [threads.busy(f, 0)]
    looked, look = threading.Event(), threading.Event()

    def late() -> None:
        looked.set()
        look.wait(100)

    inside.before_looks(f, late)
    handles.append(f.submit(1))
    looked.wait(100)
    f.flush()
    assert len(inside.threads_of(f)) == 2
    look.set()
    threads.go_on(2)
    assert threads.outcomes(handles) == [0, -1]


def test_thread_that_cannot_be_started_at_exit_is_nothing_to_complain_of(
    threads: Threads, caplog: pytest.LogCaptureFixture
) -> None:
    """From Python 3.12 on, none can be started then."""
    f = threads(gated=True, batch_size=1, concurrency=2)
    handles = [threads.busy(f, 0)]
    with inside.after_the_main_thread():
        handles.append(f.submit(1))
        threads.go_on(2)
        assert threads.outcomes(handles) == [0, -1]
        assert len(inside.threads_of(f)) == 2
    assert not caplog.records


@pytest.mark.parametrize("concurrency", [2, 4])
def test_concurrency_falls_back_to_running_threads_where_none_can_start(
    threads: Threads, concurrency: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    f = threads(gated=True, batch_size=1, concurrency=concurrency)
    handles = [threads.busy(f, 0)]

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    handles += threads.submits(f, [1, 2, 3])
    threads.until(lambda: threads.running == 2)
    threads.go_on(4)
    assert threads.outcomes(handles) == [0, -1, -2, -3]
    assert threads.most == 2
    assert [record.message for record in caplog.records] == ["negate() runs fewer batches at once than it might"]
    monkeypatch.undo()
    handles = threads.submits(f, [4, 5])
    threads.until(lambda: threads.running == 2)
    threads.go_on(2)
    assert threads.outcomes(handles) == [-4, -5]


def test_close_joins_the_threads_that_are_started_meanwhile(threads: Threads, monkeypatch: pytest.MonkeyPatch) -> None:
    joined: list[threading.Thread] = []
    join = threading.Thread.join

    def noted(thread: threading.Thread, timeout: float | None = None) -> None:
        joined.append(thread)
        join(thread, timeout)

    f = threads(gated=True, batch_size=2, timeout=None, concurrency=2)
    handles = [threads.busy(f, 0), threads.submit(f, 1)]
    closer = threading.Thread(target=f.close)
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "join", noted)
        closer.start()
        threads.until(lambda: threads.running == 2)
        threads.go_on(2)
        join(closer)
    assert threads.outcomes(handles) == [0, -1]
    assert {thread.ident for thread in joined} > threads.idents
    assert len(joined) == 1 + 2
    assert not any(thread.is_alive() for thread in joined)


def test_function_that_is_opened_again_has_as_many_runners_again(threads: Threads) -> None:
    f = threads(gated=True, batch_size=1, concurrency=2)
    for _ in range(3):
        with f:
            runs = len(threads.calls)
            handles = threads.submits(f, [1, 2])
            threads.until_runs(runs + 2)
            threads.go_on(2)
            assert threads.outcomes(handles) == [-1, -2]
            assert len(inside.threads_of(f)) == 1 + 2
        assert not inside.threads_of(f)
    assert threads.most == 2


def test_close_starts_no_thread_beyond_concurrency(threads: Threads, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[threading.Thread] = []
    start = threading.Thread.start

    def noted(thread: threading.Thread) -> None:
        started.append(thread)
        start(thread)

    f = threads(gated=True, batch_size=1, concurrency=1)
    handles = [threads.busy(f, 0), threads.submit(f, 1)]
    closer = threading.Thread(target=f.close)
    monkeypatch.setattr(threading.Thread, "start", noted)
    closer.start()
    threads.until(lambda: inside.is_closed(f))
    threads.go_on(2)
    closer.join()
    assert threads.outcomes(handles) == [0, -1]
    assert started == [closer]


def test_forked_child_of_a_concurrent_function_starts_clean() -> None:
    script = """
import os, threading
from batchify import BufferFullError, batched

gate, entered = threading.Event(), threading.Semaphore(0)

@batched(batch_size=1, concurrency=3, max_pending=2, isolate=True, group_by=lambda x: x % 2, dedupe=True)
def f(xs):
    if os.getpid() == parent:
        entered.release()
        gate.wait()
    elif xs == [13]:
        raise ValueError
    return [-x for x in xs]

parent = os.getpid()
running = [f.submit(x) for x in range(2)]
for _ in running: entered.acquire()
running.append(f.submit(2)); entered.acquire()
waiting = [f.submit(x) for x in (3, 4)]
try:
    f.submit(5)
except BufferFullError:
    pass
else:
    raise SystemExit("not full")
pid = os.fork()
if pid == 0:
    stats = f.stats
    assert (stats.accepted, stats.pending, stats.in_flight) == (0, 0, 0), stats
    try:
        f(13)
    except ValueError:
        pass
    assert list(f.map(range(10))) == [-x for x in range(10)]
    assert threading.active_count() <= 4
    f.close()
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
gate.set()
assert [future.result() for future in running + waiting] == [0, -1, -2, -3, -4]
f.close()
"""
    run_script(script, "-W", "ignore::DeprecationWarning")
