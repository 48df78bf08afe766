"""The futures of `f.submit()` are those of `concurrent.futures`, with all that strangers may do to them.

Whoever cancels or completes one, or puts a callback on it that raises, disturbs no other call.
"""

import concurrent.futures
import contextlib
import gc
import threading
import weakref
from concurrent.futures import CancelledError, Future

import pytest

from batchify import ClosedError

from ..inside import sleeping
from ..tools import Gated, batched, in_threads, until

# Cancelling


def test_future_can_be_cancelled_until_its_batch_runs() -> None:
    """As with every executor: who hears True knows that the function has not got the item, and never will."""
    function = Gated()
    with batched(batch_size=2, timeout=None)(function) as f:
        waiting = f.submit(0)
        assert not waiting.running()
        assert waiting.cancel()
        running = [f.submit(number) for number in (1, 2)]
        function.entered.acquire()
        for future in running:
            assert future.running()
            assert not future.cancel()
        function.open()
        assert [future.result() for future in running] == [1, 2]
        assert function.batches == [[1, 2]]
        with pytest.raises(CancelledError):
            waiting.result()


def test_future_can_be_cancelled_that_waits_on_as_a_neighbour_left_their_full_batch() -> None:
    with batched(batch_size=3, timeout=None)(lambda items: items) as f:
        first, leaves = f.submit(1), f.submit(2)
        leaves.cancel()
        last = f.submit(3)
        until(lambda: sleeping(f) == 1)
        assert not first.running()
        assert last.cancel()
        f.flush()
        assert first.result() == 1


def test_wait_is_told_of_cancelled_futures(caplog: pytest.LogCaptureFixture) -> None:
    with batched(batch_size=2, timeout=None)(lambda items: items) as f:
        futures = [f.submit(0)]
        futures[0].cancel()
        futures += [f.submit(1), f.submit(2)]
        done, _ = concurrent.futures.wait(futures)
        assert len(done) == 3
    assert not caplog.records


def test_callback_of_a_cancelled_future_may_wait_for_it() -> None:
    heard = []
    with batched(batch_size=2, timeout=None)(lambda items: items) as f:
        future = f.submit(1)
        future.add_done_callback(lambda each: heard.append((concurrent.futures.wait([each]).done, f.stats.pending)))
        assert future.cancel()
    assert heard == [({future}, 0)]


def test_cancel_at_the_moment_of_the_answer_disturbs_nobody() -> None:
    for _ in range(200):
        f = batched(batch_size=8, timeout=None)(lambda items: items)
        futures = [f.submit(number) for number in range(8)]
        for future in futures[::2]:
            future.cancel()
        f.close()
        assert [future.result() for future in futures[1::2]] == [1, 3, 5, 7]
        assert all(future.done() for future in futures)


# Completed by strangers


def test_future_that_a_stranger_completed_keeps_that_result_and_disturbs_nobody(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with batched(batch_size=2, timeout=None)(lambda items: items) as f:
        first = f.submit(1)
        first.set_result("not ours")
        assert f.submit(2).result() == 2
        assert first.result() == "not ours"
    assert not caplog.records


def test_future_that_a_stranger_marked_as_running_is_answered() -> None:
    """As an executor does before it runs what is in it; then it can be cancelled no more."""
    with batched(batch_size=2, timeout=None)(lambda items: items) as f:
        first = f.submit(1)
        assert first.set_running_or_notify_cancel()
        assert not first.cancel()
        assert f.submit(2).result() == 2
        assert first.result() == 1


# Callbacks


@pytest.mark.parametrize("error", [ValueError, SystemExit])
def test_callback_that_raises_disturbs_nobody(error: type[BaseException], caplog: pytest.LogCaptureFixture) -> None:
    def fail(_: object) -> None:
        raise error

    with batched(batch_size=2, timeout=None)(lambda items: items) as f:
        f.submit(1).add_done_callback(fail)
        assert f.submit(2).result() == 2
        assert in_threads(f, [3, 4]) == [3, 4]
    if not issubclass(error, Exception):  # else the future tells of it
        assert caplog.messages == ["a callback of a future raised"]


def test_callback_that_takes_long_holds_up_nobody_else_of_its_batch() -> None:
    let_on = threading.Event()
    with batched(batch_size=2, timeout=None)(lambda items: items) as f:
        f.submit(1).add_done_callback(lambda _: let_on.wait())
        assert f.submit(2).result() == 2
        let_on.set()


def test_chain_of_callbacks_that_submit_is_no_recursion() -> None:
    ended = threading.Event()
    with batched(batch_size=1)(lambda items: items) as f:

        def go_on(future: "Future[int]") -> None:
            if future.result() == 3000:
                ended.set()
            else:
                f.submit(future.result() + 1).add_done_callback(go_on)

        f.submit(0).add_done_callback(go_on)
        ended.wait()


# Refused


@pytest.mark.thread_unsafe(reason="stops the garbage collector")
def test_refused_item_is_not_kept() -> None:
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
