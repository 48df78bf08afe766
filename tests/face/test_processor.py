"""The class form, and the example of the batch processor this library grew from."""

import asyncio
import copy
import gc
import inspect
import pickle
import threading
from typing import Any

import pytest

from batchify import BatchError, BatchProcessor, ClosedError, ResultCountError

from .. import inside
from ..tools import Gated, in_threads, run_script, until

# As it always was, but for the line that imports it.
ORIGINAL = """
from threading import Thread
from batchify import BatchProcessor

class TestBP(BatchProcessor):
    def process(self, batch_input: tuple) -> tuple | list:
        return [10. * item['input'] for item in batch_input]

batch_processor = TestBP(batch_size=2, timeout=0.1)

def worker(input: int) -> None:
    response = batch_processor.request(input=input)
    print(f'input: {input},\\tresponse: {response}')

threads = tuple(Thread(target=worker, kwargs={'input': i}) for i in range(5))
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(batch_processor.stats.sizes, batch_processor.stats.reasons, batch_processor.stats.longest_wait >= 0.1)
"""


def test_processor_runs_the_example_of_the_library_it_grew_from() -> None:
    # print() writes text and line end apart, so lines may mix; words do not.
    text = run_script(ORIGINAL).stdout
    for number in range(5):
        assert text.count(f"input: {number},\tresponse: {10.0 * number}") == 1
    assert "{1: 1, 2: 2} {'full': 2, 'timeout': 1} True" in text


class Processor(BatchProcessor[int]):
    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.batches: list[tuple[dict[str, Any], ...]] = []

    def process(self, batch_input: tuple[dict[str, Any], ...]) -> list[int]:
        assert type(batch_input) is tuple
        self.batches.append(batch_input)
        if any(request["x"] == 0 for request in batch_input):
            raise ValueError("zero")
        return [request["x"] + request.get("y", 0) for request in batch_input if request["x"] != 7]


def test_process_gets_a_tuple_of_keyword_dictionaries() -> None:
    with Processor(batch_size=2, timeout=None) as processor:
        assert sorted(in_threads(lambda request: processor.request(**request), [{"x": 1, "y": 2}, {"x": 3}])) == [3, 3]
    assert sorted(map(len, processor.batches[0])) == [1, 2]


@pytest.mark.parametrize(("bad", "error"), [(0, ValueError), (7, ResultCountError)])
def test_error_of_process_reaches_every_caller(bad: int, error: type[Exception]) -> None:
    with Processor(batch_size=3, timeout=None) as processor:
        outcomes = in_threads(lambda x: processor.request(x=x), [1, bad, 3])
        assert [type(outcome) for outcome in outcomes] == [error] * 3
        assert len({id(outcome) for outcome in outcomes}) == 3


def test_process_is_called_once_though_it_fails() -> None:
    class Failing(BatchProcessor[int]):
        calls = 0

        def process(self, batch_input: tuple[dict[str, Any], ...]) -> list[int]:
            self.calls += 1
            raise ValueError("no")

    processor = Failing(2, None)
    outcomes = in_threads(lambda n: processor.request(n=n), range(2))
    assert ([type(each) for each in outcomes], processor.calls) == ([ValueError, ValueError], 1)


def test_process_is_always_called_on_the_same_thread() -> None:
    gate = Gated()

    class Slow(BatchProcessor[int]):
        def process(self, batch_input: tuple[dict[str, Any], ...]) -> Any:
            return gate([each["x"] for each in batch_input])

    with Slow(batch_size=1) as processor:
        callers = [threading.Thread(target=lambda x=x: processor.request(x=x)) for x in range(2)]
        callers[0].start()
        gate.entered.acquire()
        callers[1].start()
        until(lambda: processor.stats.accepted == 2)
        gate.open()
        for caller in callers:
            caller.join()
        assert len(inside.threads_of(processor)) == 1
    assert gate.batches == [[0], [1]]
    assert len(set(gate.threads)) == 1


def test_process_must_be_overridden() -> None:
    class Forgotten(BatchProcessor[int]):
        pass

    with Forgotten(2, 0.0) as processor:
        outcomes = in_threads(lambda x: processor.request(x=x), range(3))
    assert [(type(outcome), str(outcome)) for outcome in outcomes] == [
        (NotImplementedError, "Forgotten must override process(batch_input)")
    ] * 3


def test_wrong_options_are_refused_and_name_the_class() -> None:
    with pytest.raises(ValueError, match=r"Processor\.process\(\): batch_size must be at least 1, got 0"):
        Processor(batch_size=0, timeout=0.1)
    with pytest.raises(TypeError, match=r"Processor\.process\(\): timeout must be a number"):
        Processor(batch_size=1, timeout="0.1")


def test_timeout_is_zero_by_default() -> None:
    assert inspect.signature(BatchProcessor).parameters["timeout"].default == 0.0
    with Processor(batch_size=2) as processor:
        assert processor.request(x=1) == 1


def test_flush_answers_and_close_refuses() -> None:
    processor = Processor(batch_size=9, timeout=None)
    caller = threading.Thread(target=lambda: processor.request(x=1))
    caller.start()
    until(lambda: processor.stats.pending == 1)
    processor.flush()
    caller.join()
    assert processor.stats.answered == 1
    processor.close()
    with pytest.raises(ClosedError):
        processor.request(x=1)


def test_with_block_closes() -> None:
    with Processor(batch_size=1) as processor:
        assert processor.request(x=1) == 1
    with pytest.raises(ClosedError):
        processor.request(x=1)


def test_two_processors_never_share_a_batch() -> None:
    first, second = Processor(batch_size=2, timeout=0.0), Processor(batch_size=2, timeout=0.0)
    assert in_threads(lambda p: p.request(x=1), [first, second]) == [1, 1]
    assert (first.stats.accepted, second.stats.accepted) == (1, 1)
    assert issubclass(ResultCountError, BatchError)


def test_copy_has_a_buffer_of_its_own() -> None:
    original = Processor(batch_size=1, timeout=0.0)
    original.request(x=1)
    for duplicate in (copy.copy(original), pickle.loads(pickle.dumps(original))):
        assert duplicate.request(x=2) == 2
        assert duplicate.stats.accepted == 1
    assert original.stats.accepted == 1


@pytest.mark.thread_unsafe(reason="stops the garbage collector")
def test_dropped_processor_ends_its_thread() -> None:
    processor = Processor(batch_size=1, timeout=0.0)
    assert processor.request(x=1) == 1
    (thread,) = inside.threads_of(processor)
    gc.disable()
    try:
        del processor
        thread.join()
    finally:
        gc.enable()


def test_batch_of_a_dead_processor_raises_reference_error() -> None:
    processor = Processor(batch_size=1)
    process = inside.list_function_of(processor)
    del processor
    with pytest.raises(ReferenceError, match=r"^the Processor\.process that was to answer is gone$"):
        process([{"x": 1}])


def test_request_on_a_running_loop_warns_and_says_what_to_await() -> None:
    async def main() -> int:
        with pytest.warns(RuntimeWarning, match=r"use `await asyncio\.to_thread\(processor\.request, \.\.\.\)`$"):
            return processor.request(x=1)

    with Processor(batch_size=1) as processor:
        assert asyncio.run(main()) == 1
