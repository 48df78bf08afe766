"""`batchify.testing`: calls that wait for nobody, and which batches there were."""

import asyncio
import contextvars
import threading
import weakref
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

from batchify import BatchProcessor, ClosedError
from batchify import batched as typed_batched
from batchify.otel import OpenTelemetryObserver
from batchify.testing import BatchRecord, immediate, recorded

from ..kit import Coroutines, Kit, Threads, batched, echo
from ..tools import HAS_GIL, in_threads, run_script, until

who: contextvars.ContextVar[str] = contextvars.ContextVar("who", default="nobody")


def where(xs: list[Any]) -> list[Any]:
    return [(x, threading.current_thread(), who.get()) for x in xs]


@pytest.fixture
def here() -> Iterator[Any]:
    """What `where` returns for an item that the test's own thread and context runs."""
    token = who.set("me")
    yield lambda x: (x, threading.current_thread(), "me")
    who.reset(token)


# Immediate


def test_immediate_call_runs_at_once_on_its_caller(threads: Threads, here: Any) -> None:
    f = threads(where, batch_size=9, timeout=None)
    with immediate(f):
        assert f(1) == here(1)
        assert f.submit(2).result(0) == here(2)
        assert list(f.map([3, 4])) == [here(3), here(4)]
        with asyncio.Runner() as runner:
            assert runner.run(f.aio(5)) == here(5)
    assert threads.batches == [[1], [2], [3], [4], [5]]
    assert f.stats.reasons == {"nested": 5}
    threads.consistent(f)


def test_immediate_call_runs_at_once_in_the_task_of_its_caller() -> None:
    @typed_batched(batch_size=9, timeout=None)
    async def f(xs: list[Any]) -> list[Any]:
        return [(x, asyncio.current_task(), who.get()) for x in xs]

    async def main() -> None:
        who.set("me")
        assert await f(1) == (1, asyncio.current_task(), "me")
        assert await f.aio(2) == (2, asyncio.current_task(), "me")
        assert (await f.submit(3))[::2] == (3, "me")  # it cannot be awaited by whoever called
        assert [each[::2] async for each in f.map([4, 5])] == [(4, "me"), (5, "me")]
        assert f.stats.accepted == f.stats.answered == 5

    with immediate(f):
        asyncio.run(main())


def test_immediate_ends_with_its_block(kit: Kit) -> None:
    f = kit(echo, batch_size=2, timeout=None)
    with immediate(f), immediate(f):  # blocks may be nested
        assert kit.outcome(kit.start(f, 1)) == 1
    assert kit.outcomes([kit.submit(f, 2), kit.submit(f, 3)]) == [2, 3]
    assert kit.batches == [[1], [2, 3]]


def test_immediate_blocks_may_overlap(kit: Kit) -> None:
    f = kit(echo, batch_size=2, timeout=None)
    one, other = immediate(f), immediate(f)
    with one:
        other.__enter__()
    assert kit.outcome(kit.start(f, 1)) == 1
    other.__exit__(None, None, None)
    assert kit.outcomes([kit.submit(f, 2), kit.submit(f, 3)]) == [2, 3]


def test_immediate_leaves_what_waits_to_be_answered_as_ever(kit: Kit) -> None:
    f = kit(echo, batch_size=2, timeout=None)
    waits = kit.submit(f, 1)
    with immediate(f):
        assert kit.outcome(kit.start(f, 2)) == 2
        kit.flush(f)
        assert kit.outcome(waits) == 1
    assert f.stats.reasons == {"nested": 1, "flush": 1}


def test_immediate_serves_other_threads_too(threads: Threads) -> None:
    f = threads(where, batch_size=9, timeout=None)
    with immediate(f):
        found = in_threads(lambda _: [(f(x)[1], threading.current_thread()) for x in range(50)], range(4))
    assert all(ran is called for each in found for ran, called in each)
    threads.consistent(f)


@pytest.mark.parametrize("of_class", [False, True])
def test_immediate_methods(kit: Kit, of_class: bool) -> None:
    class Model:
        run = batched(batch_size=9, timeout=None)(kit.wrap(lambda self, xs: xs))

    known, other = Model(), Model()
    assert kit.kind == "threads" or known.run.stats.accepted == 0
    with immediate(Model.run if of_class else known.run):
        assert kit.outcome(kit.start(known.run, 1)) == 1
        if of_class:
            assert kit.outcome(kit.start(other.run, 2)) == kit.outcome(kit.start(Model().run, 2)) == 2
        else:
            waits = kit.submit(other.run, 2)
            assert not waits.done()
            kit.flush(other.run)
            assert kit.outcome(waits) == 2


def test_immediate_processor() -> None:
    class Processor(BatchProcessor[int]):
        def process(self, batch_input: tuple[dict[str, Any], ...]) -> list[int]:
            return [each["x"] + len(batch_input) for each in batch_input]

    with immediate(processor := Processor(9, None)), recorded(processor) as records:
        assert processor.request(x=1) == 2
    assert records == [([{"x": 1}], "nested")]


def test_immediate_call_raises_what_the_function_raises(kit: Kit) -> None:
    f = kit(lambda xs: [1 // x for x in xs], batch_size=9, timeout=None, isolate=True, dedupe=True)
    with immediate(f):
        assert type(kit.outcome(kit.start(f, 0))) is ZeroDivisionError
        assert kit.outcome(kit.start(f, 1)) == 1
        kit.close(f)
        assert type(kit.outcome(kit.start(f, 1))) is ClosedError
    assert (f.stats.failed, f.stats.answered) == (1, 1)


def test_immediate_call_leaves_its_caller_its_own_span() -> None:
    provider = TracerProvider(shutdown_on_exit=False)

    @typed_batched(batch_size=9, on_batch=OpenTelemetryObserver(provider))
    async def f(xs: list[Any]) -> list[Any]:
        return [trace.get_current_span() for _ in xs]

    async def main() -> None:
        before = trace.get_current_span()
        assert await f(1) is not before
        assert trace.get_current_span() is before
        with provider.get_tracer("test").start_as_current_span("request") as request:
            assert await f(1) is not request
            assert trace.get_current_span() is request

    with immediate(f):
        asyncio.run(main())


def test_immediate_error_keeps_no_instance_alive() -> None:
    class Model:
        @typed_batched(batch_size=2)
        async def run(self, xs: list[int]) -> list[int]:
            raise ValueError(xs)

    async def main(model: Model) -> None:
        with immediate(model.run), suppress(ValueError):
            await model.run(1)

    model = Model()
    gone = weakref.ref(model)
    asyncio.run(main(model))
    del model
    if not HAS_GIL:  # what it frees later
        until(lambda: gone() is None)
    assert gone() is None


def test_immediate_call_that_takes_too_long_is_cancelled(coroutines: Coroutines) -> None:
    cancelled: list[Any] = []

    @typed_batched(batch_size=9)
    async def f(xs: list[Any]) -> list[Any]:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.extend(xs)
        return xs

    async def main() -> None:
        with immediate(f), pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await f(1)

    coroutines.run(main())
    assert cancelled == [1]


def test_immediate_starts_no_thread() -> None:
    run_script(
        """
import threading
from batchify import batched
from batchify.testing import immediate

f = batched(batch_size=9, timeout=None)(lambda xs: xs)
with immediate(f):
    assert [f(1), *f.map([2, 3])] == [1, 2, 3]
    assert threading.active_count() == 1
"""
    )


def test_immediate_keeps_no_function_alive(kit: Kit) -> None:
    f = batched(batch_size=2, timeout=None)(kit.wrap(echo))
    waits = kit.submit(f, 1)
    with immediate(f):
        pass
    del f
    assert kit.outcome(waits) == 1


# Recorded


def test_recorded_lists_the_batches_that_form(kit: Kit) -> None:
    f = kit(echo, batch_size=2, timeout=None)
    before = kit.submits(f, [8, 9])
    kit.outcomes(before)
    with recorded(f) as records, recorded(f) as same:
        handles = kit.submits(f, [1, 2, 3])
        kit.flush(f)
        kit.outcomes(handles)
    kit.outcomes(kit.submits(f, [4, 5]))
    assert records == same == [([1, 2], "full"), ([3], "flush")]
    assert records[0] == BatchRecord(items=[1, 2], reason="full")


def test_recorded_lists_the_batches_of_all_instances(kit: Kit) -> None:
    class Model:
        run = batched(batch_size=2, timeout=None)(kit.wrap(lambda self, xs, ys: xs))

    one = Model()
    with recorded(Model.run) as records, recorded(one.run) as of_one:
        for model in (one, Model()):
            kit.outcomes([kit.submit(model.run, 1, 2), kit.submit(model.run, 3, 4)])
    assert records == [([(1, 2), (3, 4)], "full")] * 2
    assert of_one == records[:1]


def test_what_is_no_batched_function_is_refused() -> None:
    for block in (immediate, recorded):
        with pytest.raises(TypeError) as raised, block(len):  # type: ignore[arg-type]
            pass
        assert str(raised.value) == (
            "this is for what batched() has made, and for a BatchProcessor, got <built-in function len>"
        )
