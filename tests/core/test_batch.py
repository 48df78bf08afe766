"""Who gets which result? A batch by itself, without a thread."""

import asyncio
import itertools
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from operator import call as call_directly
from threading import Lock
from typing import Any

import pytest

from .. import inside
from ..inside import Options, advise, complain


class Direct(inside.Batch):
    """Writes down what it is told to do. `fails_at` names the step at which there is no memory, once."""

    name = "f"
    asks = False

    def __init__(self, *items: Any, fails_at: str = "", **options: Any) -> None:
        self.options = Options(9, None, **options)
        self.told: list[int] = []  # the items of callers that were told, once for each time
        self.calls = [inside.call_with(item, partial(self.told.append, item)) for item in items]
        self.counted: list[tuple[int, int, bool]] = []  # answers, and errors among them, and whether it was the end
        self.parts: list[Sequence[Any]] = []
        self.finished = 0
        self.fails_at = fails_at
        super().__init__(self, self.calls, call_directly, "full", 0.0)

    def fail_at(self, step: str) -> None:
        if self.fails_at == step:
            self.fails_at = ""
            raise MemoryError

    def answer(self, calls: Sequence[Any], failed: int, *, done: bool) -> None:
        self.fail_at("before it is counted")
        self.counted.append((len(calls), failed, done))
        self.fail_at("before anyone is told")
        self.deliver(calls)
        self.fail_at("after all are told")

    def again(self, parts: Sequence[Sequence[Any]]) -> None:
        self.fail_at("again")
        self.parts += parts

    def finish(self) -> None:
        self.finished += 1

    def outcomes(self) -> list[Any]:
        return [call.value if call.error is None else call.error for call in self.calls]


STEPS = pytest.mark.parametrize("step", ["before it is counted", "before anyone is told", "after all are told"])


@STEPS
def test_batch_disturbed_as_it_answers_tells_every_caller_its_result(step: str) -> None:
    batch = Direct(1, 2, fails_at=step)
    with pytest.raises(MemoryError):
        batch.settle(["a", "b"])
    assert batch.outcomes() == ["a", "b"]
    assert set(batch.told) == {1, 2}
    assert batch.counted == ([] if step == "before it is counted" else [(2, 0, True)])  # never twice
    assert batch.finished == 1


def test_batch_disturbed_before_it_answers_gives_its_callers_an_error_that_is_counted() -> None:
    batch = Direct(1, 2, 1, dedupe=True)
    with inside.no_memory_to_store_a_result(batch), pytest.raises(MemoryError):
        batch.run(lambda items: [ValueError(), 20])
    assert [type(error) for error in batch.outcomes()] == [MemoryError] * 3
    assert batch.told == [1, 1, 2]
    assert batch.counted == [(3, 3, True)]
    assert batch.finished == 1


def test_batch_disturbed_as_it_is_halved_gives_its_callers_an_error_that_is_counted() -> None:
    batch = Direct(1, 2, isolate=True, fails_at="again")
    with pytest.raises(MemoryError):
        batch.fail(ValueError())
    assert [type(error) for error in batch.outcomes()] == [MemoryError, MemoryError]
    assert (batch.told, batch.counted, batch.finished) == ([1, 2], [(2, 2, True)], 1)


@STEPS
def test_batch_disturbed_as_it_answers_tells_the_callers_of_equal_items_too(step: str) -> None:
    batch = Direct(1, 2, 1, fails_at=step, dedupe=True)
    with pytest.raises(MemoryError):
        batch.run(lambda items: [item * 10 for item in items])
    assert batch.outcomes() == [10, 20, 10]
    assert set(batch.told) == {1, 2}
    assert batch.told.count(1) >= 2


@STEPS
def test_batch_disturbed_as_a_yielded_result_is_answered_leaves_no_caller_unanswered(step: str) -> None:
    batch = Direct(0, 1, 2, fails_at=step)
    batch.settle(iter("abc"))
    first, *others = batch.outcomes()
    assert first == "a"  # its caller keeps it; it goes no further, as the error is that of the function
    assert [type(error) for error in others] == [MemoryError, MemoryError]
    assert set(batch.told) == {0, 1, 2}
    assert batch.counted[-1] == (2, 2, True)
    assert batch.finished == 1


@pytest.mark.parametrize("isolate", [False, True])
def test_future_that_calls_back_twice_at_once_is_heard_once(isolate: bool) -> None:
    batch = Direct(1, 2, isolate=isolate)
    inside.another_thread_takes_the_calls_first(batch, lambda: batch.fail(ValueError()))
    batch.fail(KeyError())
    assert batch.finished == 1
    assert batch.told == ([] if isolate else [1, 2])
    assert len(batch.parts) == (2 if isolate else 0)


def test_generator_that_raises_after_its_last_result_is_not_run_again() -> None:
    def results() -> Any:
        yield from "ab"
        raise ValueError

    batch = Direct(1, 2, isolate=True)
    batch.settle(results())
    assert batch.outcomes() == ["a", "b"]
    assert (batch.told, batch.parts, batch.finished) == ([1, 2], [], 1)


def test_generator_that_never_ends_is_left_when_every_item_is_answered(caplog: pytest.LogCaptureFixture) -> None:
    async def counted(items: list[int]) -> AsyncIterator[int]:
        for number in itertools.count():
            yield number

    batch, asynchronous = Direct(1, 2), Direct(1, 2)
    batch.settle(itertools.count())
    asyncio.run(asynchronous.run_async(counted))
    assert batch.outcomes() == asynchronous.outcomes() == [0, 1]
    assert sum("yielded more results" in record.message for record in caplog.records) == 2


@pytest.mark.parametrize(
    "say", [partial(advise, "f", 1, 2, 0.1), partial(complain, "f() raised")], ids=["advise", "complain"]
)
def test_log_handler_that_raises_disturbs_nobody(say: Callable[[], None]) -> None:
    said: list[str] = []

    class Raising(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())
            raise KeyboardInterrupt

    handler = Raising()
    logger = logging.getLogger("batchify")
    logger.addHandler(handler)
    try:
        say()
    finally:
        logger.removeHandler(handler)
    assert len(said) == 1


@pytest.mark.parametrize("isolate", [False, True])
def test_batch_forgets_its_error(isolate: bool) -> None:
    batch = Direct(1, 2, isolate=isolate)
    batch.fail(ValueError())
    assert batch.error is None


def test_answer_delivered_twice_does_no_harm() -> None:
    locks = [Lock(), Lock()]
    batch = Direct(1, 2, fails_at="after all are told")
    for call, lock in zip(batch.calls, locks, strict=True):
        lock.acquire()
        call.deliver = lock.release
    with pytest.raises(MemoryError):
        batch.settle(["a", "b"])
    assert all(lock.acquire(blocking=False) for lock in locks)
