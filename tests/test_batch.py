"""Who gets which result, where Ctrl-C comes in between? A batch by itself, without a thread."""

import asyncio
import itertools
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from operator import call as call_directly
from threading import Lock
from typing import Any

import pytest

from batchify import BatchError
from batchify._batch import Batch, Call, advise, complain, refuse
from batchify._errors import ClosedError
from batchify._options import Options

from .tools import call_with


class Direct(Batch):
    """Writes down what it is told to do. `interrupted` names the step in which Ctrl-C comes, once."""

    name = "f"
    asks = False

    def __init__(self, *items: Any, interrupted: str = "", **options: Any) -> None:
        self.options = Options(9, None, **options)
        self.told: list[int] = []  # the items of callers that were told, once for each time
        self.calls = [call_with(item, partial(self.told.append, item)) for item in items]
        self.counted: list[tuple[int, int, bool]] = []  # answers, and errors among them, and whether it was the end
        self.parts: list[Sequence[Any]] = []
        self.finished = 0
        self.interrupted = interrupted
        super().__init__(self, self.calls, call_directly, "full", 0.0)

    def interrupt(self, step: str) -> None:
        if self.interrupted == step:
            self.interrupted = ""
            raise KeyboardInterrupt

    def answer(self, calls: Sequence[Any], failed: int, *, done: bool) -> None:
        self.counted.append((len(calls), failed, done))
        self.interrupt("deliver none")
        self.deliver(calls)
        self.interrupt("deliver all")

    def again(self, parts: Sequence[Sequence[Any]]) -> None:
        self.interrupt("again")
        self.parts += parts

    def finish(self) -> None:
        self.finished += 1

    def _store(self, call: Call, result: Any) -> bool:
        if call is self.calls[1]:
            self.interrupt("store")
        return super()._store(call, result)

    def outcomes(self) -> list[Any]:
        return [call.value if call.error is None else call.error for call in self.calls]


@pytest.mark.parametrize("step", ["deliver none", "deliver all"])
def test_ctrl_c_while_callers_are_told_leaves_nobody_untold_and_counts_them_once(step: str) -> None:
    batch = Direct(1, 2, interrupted=step)
    with pytest.raises(KeyboardInterrupt):
        batch.settle(["a", "b"])
    assert batch.outcomes() == ["a", "b"]
    assert set(batch.told) == {1, 2}
    assert batch.counted == [(2, 0, True)]
    assert batch.finished == 1


def test_ctrl_c_while_results_are_stored_spares_those_that_are() -> None:
    batch = Direct(1, 2, 3, interrupted="store")
    with pytest.raises(KeyboardInterrupt):
        batch.settle(["a", ValueError(), "c"])
    first, *others = batch.outcomes()
    assert first == "a"
    assert [type(error) for error in others] == [BatchError, BatchError]
    assert isinstance(others[0].__cause__, KeyboardInterrupt)
    assert batch.told == [1, 2, 3]
    assert batch.counted == [(3, 2, True)]
    assert batch.finished == 1


@pytest.mark.parametrize("step", ["store", "deliver none", "deliver all"])
def test_ctrl_c_while_a_yielded_result_is_answered_leaves_nobody_unanswered(step: str) -> None:
    batch = Direct(0, 1, 2, interrupted=step)
    batch.settle(iter("abc"))
    outcomes = batch.outcomes()
    assert set(batch.told) == {0, 1, 2}
    # Who has its result keeps it; it goes no further, as Ctrl-C ends the function.
    results = [outcome for outcome in outcomes if not isinstance(outcome, BatchError)]
    assert results == ["a"]
    assert batch.counted[-1][2]
    assert batch.finished == 1


def test_ctrl_c_while_a_batch_is_halved_gives_everybody_its_error() -> None:
    batch = Direct(1, 2, interrupted="again", isolate=True)
    with pytest.raises(KeyboardInterrupt):
        batch.fail(ValueError())
    assert [type(error) for error in batch.outcomes()] == [ValueError, ValueError]
    assert (batch.told, batch.counted, batch.finished) == ([1, 2], [(2, 2, True)], 1)


@pytest.mark.parametrize("isolate", [False, True])
def test_a_future_that_calls_back_twice_at_once_is_heard_once(isolate: bool) -> None:
    class Raced(list[Any]):
        """While one thread is about to take the calls, another one does."""

        def pop(self, *args: Any) -> Any:
            if not batch.counted:
                calls = super().pop(*args)
                self.append(calls)
                batch._unanswered = [calls]
                batch.fail(ValueError())
                batch._unanswered = self
                self.clear()
            return super().pop(*args)

    batch = Direct(1, 2, isolate=isolate)
    batch._unanswered = Raced(batch._unanswered)
    batch.fail(KeyError())
    assert batch.finished == 1
    assert batch.told == ([] if isolate else [1, 2])
    assert len(batch.parts) == (2 if isolate else 0)


def test_a_generator_that_raises_after_its_last_result_is_not_run_again() -> None:
    def results() -> Any:
        yield from "ab"
        raise ValueError

    batch = Direct(1, 2, isolate=True)
    batch.settle(results())
    assert batch.outcomes() == ["a", "b"]
    assert (batch.told, batch.parts, batch.finished) == ([1, 2], [], 1)


def test_a_generator_that_never_ends_is_left_when_everybody_is_answered(caplog: pytest.LogCaptureFixture) -> None:
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
def test_a_log_handler_that_raises_disturbs_nobody(say: Callable[[], None]) -> None:
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
def test_a_batch_forgets_its_error(isolate: bool) -> None:
    batch = Direct(1, 2, isolate=isolate)
    batch.fail(ValueError())
    assert batch.error is None


def test_a_call_may_be_refused_twice() -> None:
    lock = Lock()
    lock.acquire()
    call = call_with(1, lock.release)
    for _ in range(2):  # as by two threads that close at once
        refuse(call, ClosedError("closed"))
    assert lock.acquire(blocking=False)
    assert isinstance(call.error, ClosedError)


def test_who_has_gone_on_may_be_told_again() -> None:
    locks = [Lock(), Lock()]
    batch = Direct(1, 2, interrupted="deliver all")
    for call, lock in zip(batch.calls, locks, strict=True):
        lock.acquire()
        call.deliver = lock.release
    with pytest.raises(KeyboardInterrupt):
        batch.settle(["a", "b"])
    assert all(lock.acquire(blocking=False) for lock in locks)
