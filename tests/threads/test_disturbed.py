"""A flush thread that is disturbed, by want of memory or by an exception thrown into it, goes on: no caller hangs."""

import ctypes

import pytest

from batchify import BatchError

from .. import inside
from ..kit import echo
from ..tools import batched, in_threads, until

DISTURBED = "batchify flush thread of echo() was disturbed"


def test_batch_that_could_not_be_run_fails_at_once(caplog: pytest.LogCaptureFixture) -> None:
    with inside.no_memory_for_a_batch(runs=True), batched(batch_size=1)(echo) as f:
        with pytest.raises(MemoryError):
            f(1)
        assert f(2) == 2
    assert caplog.messages == [DISTURBED]


@pytest.mark.parametrize("at_the_buffer", [False, True])
def test_flush_thread_without_memory_to_look_for_a_batch_looks_again(
    at_the_buffer: bool, caplog: pytest.LogCaptureFixture
) -> None:
    batches: list[list[int]] = []

    def function(items: list[int]) -> list[int]:
        batches.append(items)
        return items

    with batched(batch_size=1)(function) as f:
        inside.no_memory_for_a_look(f, at_the_buffer=at_the_buffer)
        assert f(1) == 1
        assert f(2) == 2
    assert batches == [[1], [2]]
    assert caplog.messages == [DISTURBED.replace("echo", "function")]


@pytest.mark.thread_unsafe(reason="replaces the locks of all")
def test_flush_thread_without_memory_to_sleep_tries_again(caplog: pytest.LogCaptureFixture) -> None:
    with inside.no_memory_to_fall_asleep() as errors, batched(batch_size=2, timeout=None)(echo) as f:
        first = f.submit(1)
        until(lambda: not errors)
        assert in_threads(f, [2]) == [2]
        assert first.result() == 1
    assert len(caplog.messages) == 1


@pytest.mark.parametrize("concurrency", [1, 2])
def test_exception_thrown_into_the_flush_thread_or_a_runner_kills_nobody(
    concurrency: int, caplog: pytest.LogCaptureFixture
) -> None:
    causes: list[type] = []
    with batched(batch_size=1, concurrency=concurrency)(echo) as f:
        assert f(0) == 0
        thread = inside.threads_of(f)[concurrency - 1]  # one that runs batches
        assert thread.ident is not None
        for number in range(40):
            if number % 2:  # it may strike later, as another one runs this batch
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(SystemExit))
            try:
                assert f(number) == number
            except BatchError as error:
                causes.append(type(error.__cause__))
        assert thread.is_alive()
    assert set(causes) <= {SystemExit, type(None)}  # None: it struck just as a runner took its batch
