"""Who gets which result? A batch by itself, without a thread."""

import asyncio
import itertools
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from threading import Lock
from typing import Any

import pytest

from .. import inside
from ..inside import Options, complain, warn_of_few_callers


class Counted(inside.Tally):
    """Writes down what is counted."""

    def __init__(self, fail_at: Callable[[str], None]) -> None:
        super().__init__()
        self.fail_at = fail_at
        self.counted: list[tuple[int, int, bool]] = []  # answers, and errors among them, and whether it was the end

    def answer(self, items: int, failed: int, ended: bool) -> None:
        self.fail_at("as it is counted")
        self.counted.append((items, failed, ended))
        super().answer(items, failed, ended)


class Direct(inside.HandEngine):
    """Makes one batch of these items, and writes down what becomes of it.

    `fails_at` names the step at which there is no memory, once.
    """

    def __init__(self, *items: Any, fails_at: str = "", **options: Any) -> None:
        super().__init__(Options(9, None, **options))
        self.tally: Counted = Counted(self.fail_at)
        self.fails_at = fails_at
        self.told: list[int] = []  # the items of callers that were told, once for each time
        self.finished = 0
        self.calls = [self.call(item) for item in items]
        of = self

        class Told(inside.Call):
            __slots__ = ()

            @staticmethod
            def tell(calls: Sequence[Any], results: Sequence[Any], failed: int) -> None:
                of.fail_at("before anyone is told")
                inside.Call.tell(calls, results, failed)
                of.fail_at("after all are told")

        for call in self.calls:
            call.__class__ = Told
            call.bell = self.Bell(self, call.item)
            self.post(call)
        self.flush()
        self.make_batch = self.Batch
        self.batch = self.look()
        self.settle, self.fail = self.batch.settle, self.batch.fail

    class Bell:
        def __init__(self, of: "Direct", item: int) -> None:
            self.of, self.item = of, item

        def release(self) -> None:
            self.of.told.append(self.item)

    class Batch(inside.HandBatch):
        __slots__ = ()

        engine: "Direct"

        def calls(self, entries: Sequence[Any]) -> Sequence[Any]:
            if entries and hasattr(self.engine, "batch"):
                self.engine.fail_at("before it is counted")
            return super().calls(entries)

    def fail_at(self, step: str) -> None:
        if self.fails_at == step:
            self.fails_at = ""
            raise MemoryError

    def again(self, parts: Sequence[Sequence[Any]]) -> None:
        self.fail_at("again")
        super().again(parts)

    def ended(self, batch: inside.Batch) -> None:
        self.finished += 1
        super().ended(batch)

    @property
    def counted(self) -> list[tuple[int, int, bool]]:
        return self.tally.counted

    def parts(self) -> list[list[Any]]:
        """Take the parts that are to run again; return their items."""
        found = []
        while isinstance(batch := self.look(), inside.HandBatch):
            found.append([call.item for call in batch.callers])
            batch.settle([0] * len(batch.entries))
        return found

    def outcomes(self) -> list[Any]:
        return [call.value if call.error is None else call.error for call in self.calls]


STEPS = pytest.mark.parametrize("step", ["as it is counted", "before anyone is told", "after all are told"])


@STEPS
def test_batch_disturbed_as_it_answers_tells_every_caller_its_result(step: str) -> None:
    batch = Direct(1, 2, fails_at=step)
    with pytest.raises(MemoryError):
        batch.settle(["a", "b"])
    assert batch.outcomes() == ["a", "b"]
    assert set(batch.told) == {1, 2}
    assert batch.counted == ([] if step == "as it is counted" else [(2, 0, True)])  # never twice
    assert batch.finished == 1


def test_batch_disturbed_before_it_answers_gives_its_callers_an_error_that_is_counted() -> None:
    batch = Direct(1, 2, 1, dedupe=True, fails_at="before it is counted")
    with pytest.raises(MemoryError):
        batch.settle([ValueError(), 20])
    assert [type(error) for error in batch.outcomes()] == [MemoryError] * 3
    assert batch.told == [1, 1, 2]
    assert batch.counted == [(3, 3, True)]
    assert batch.finished == 1


def test_batch_disturbed_as_it_is_halved_gives_its_callers_an_error_that_is_counted() -> None:
    batch = Direct(1, 2, isolate=True, fails_at="again")
    with pytest.raises(MemoryError):
        batch.fail(ValueError())
    assert [type(error) for error in batch.outcomes()] == [MemoryError, MemoryError]
    assert (batch.told, batch.finished) == ([1, 2], 1)
    assert [sum(each) for each in zip(*batch.counted, strict=True)] == [2, 2, 1]


def test_batch_without_memory_for_its_halves_keeps_its_calls_until_it_is_told_again() -> None:
    batch = Direct(1, 2, isolate=True)
    inside.no_memory_to_copy_the_calls_of(batch.batch)
    with pytest.raises(MemoryError):
        batch.fail(ValueError())
    assert (batch.told, batch.finished) == ([], 0)
    batch.fail(MemoryError())  # as whoever runs it does then
    assert (batch.parts(), batch.counted[0]) == ([[1], [2]], (0, 0, True))


@STEPS
def test_batch_disturbed_as_it_answers_tells_the_callers_of_equal_items_too(step: str) -> None:
    batch = Direct(1, 2, 1, fails_at=step, dedupe=True)
    with pytest.raises(MemoryError):
        batch.settle([10, 20])
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
    inside.another_thread_takes_the_calls_first(batch.batch, lambda: batch.fail(ValueError()))
    batch.fail(KeyError())
    assert batch.finished == 1
    assert batch.told == ([] if isolate else [1, 2])
    assert batch.parts() == ([[1], [2]] if isolate else [])


def test_error_reaches_each_caller_as_its_own_copy() -> None:
    batch = Direct(1, 2)
    original = ValueError("wrong")
    batch.fail(original)
    first, second = batch.outcomes()
    assert [type(first), first.args, type(second), second.args] == [ValueError, ("wrong",)] * 2
    assert len({id(original), id(first), id(second)}) == 3


def test_call_gives_its_error_once_and_keeps_nothing_of_it() -> None:
    batch = Direct(1)
    batch.fail(ValueError())
    (call,) = batch.calls
    with pytest.raises(ValueError, match=r"^$"):
        call.outcome()
    assert call.error is None


def test_calls_of_several_kinds_get_the_answers_of_their_own_items() -> None:
    engine = inside.HandEngine(Options(4, None))
    calls = [engine.post(engine.call(number, limited=number % 2 == 0)) for number in range(4)]
    engine.look().settle([0, 10, ValueError(), 30])
    assert [calls[0].outcome(), calls[1].outcome(), calls[3].outcome()] == [0, 10, 30]
    assert type(calls[2].error) is ValueError
    assert [call.bell.told for call in calls] == [1] * 4


def test_generator_that_raises_after_its_last_result_is_not_run_again() -> None:
    def results() -> Any:
        yield from "ab"
        raise ValueError

    batch = Direct(1, 2, isolate=True)
    batch.settle(results())
    assert batch.outcomes() == ["a", "b"]
    assert (batch.told, batch.parts(), batch.finished) == ([1, 2], [], 1)


def test_generator_that_never_ends_is_left_when_every_item_is_answered(caplog: pytest.LogCaptureFixture) -> None:
    async def counted(items: list[int]) -> AsyncIterator[int]:
        for number in itertools.count():
            yield number

    batch, asynchronous = Direct(1, 2), Direct(1, 2)
    batch.settle(itertools.count())
    asyncio.run(asynchronous.batch.run_async(counted))
    assert batch.outcomes() == asynchronous.outcomes() == [0, 1]
    assert sum("yielded more results" in record.message for record in caplog.records) == 2


@pytest.mark.thread_unsafe(reason="hears what others log")
@pytest.mark.parametrize(
    "say",
    [partial(warn_of_few_callers, "f", 1, 2, 0.1), partial(complain, "f() raised")],
    ids=["warn_of_few_callers", "complain"],
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
    assert batch.batch.error is None


def test_answer_delivered_twice_does_no_harm() -> None:
    locks = [Lock(), Lock()]
    batch = Direct(1, 2, fails_at="after all are told")
    for call, lock in zip(batch.calls, locks, strict=True):
        lock.acquire()
        call.bell = lock
    with pytest.raises(MemoryError):
        batch.settle(["a", "b"])
    assert all(lock.acquire(blocking=False) for lock in locks)
