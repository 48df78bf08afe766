"""Draining answers what was accepted, closing may have an end or refuse what waits, and a block opens again."""

import asyncio
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from batchify import BatchProcessor, BatchReport, ClosedError

from .. import inside
from ..intruder import at_each_line
from ..kit import Coroutines, Kit, Steps, Threads, negate, new_kit

LATE = r"^negate\(\) has not answered within (0|0\.0|-0\.5) s all that it accepted; it goes on with it$"


class Way:
    """How a function is closed and drained: by a thread that blocks, or by a coroutine."""

    def __init__(self, kit: Kit, *, awaited: bool) -> None:
        self.kit: Any = kit
        self.awaited = awaited

    def close(self, f: Any, **options: Any) -> None:
        self.run(f.aclose(**options)) if self.awaited else f.close(**options)

    def drain(self, f: Any, *args: Any) -> None:
        self.run(f.adrain(*args)) if self.awaited else f.drain(*args)

    def enter(self, f: Any) -> Any:
        return self.run(f.__aenter__()) if self.awaited else f.__enter__()

    def leave(self, f: Any) -> None:
        self.run(f.__aexit__(None, None, None)) if self.awaited else f.__exit__(None, None, None)

    def run(self, steps: Any) -> Any:
        return self.kit.run(steps) if isinstance(self.kit, Coroutines) else asyncio.run(steps)


@pytest.fixture(params=["threads", "threads, awaited", "coroutines"])
def way(request: pytest.FixtureRequest) -> Iterator[Way]:
    with new_kit(request.param.partition(",")[0]) as kit:
        yield Way(kit, awaited=request.param != "threads")


def test_drain_answers_what_waits_and_stays_open(way: Way) -> None:
    f = way.kit(batch_size=4, timeout=None)
    futures = way.kit.submits(f, range(6))
    way.drain(f)
    assert [future.result() for future in futures] == [0, -1, -2, -3, -4, -5]
    assert f.stats.reasons == {"full": 1, "flush": 1}
    last = way.kit.submit(f, 6)
    way.close(f)
    assert last.result() == -6
    way.kit.consistent(f)


def test_drain_of_what_is_unused_or_answered_or_closed_returns(way: Way) -> None:
    f = way.kit(batch_size=2)
    way.drain(f)
    assert way.kit.outcome(way.kit.start(f, 1)) == -1
    way.drain(f)
    way.close(f)
    way.drain(f)
    way.close(f)
    assert f.stats.answered == 1


def test_drain_does_not_wait_for_what_comes_later(way: Way) -> None:
    f = way.kit(batch_size=2, timeout=None)
    first = way.kit.submit(f, 1)
    way.drain(f)
    second = way.kit.submit(f, 2)
    way.drain(f)
    assert (first.result(), second.result()) == (-1, -2)
    assert f.stats.sizes == {1: 2}


@pytest.mark.parametrize("timeout", [0, -0.5])  # what is left until a moment may be less than nothing
@pytest.mark.parametrize("what", ["drain", "close"])
def test_end_that_takes_too_long_is_said_and_nothing_is_lost(way: Way, what: str, timeout: float) -> None:
    f = way.kit(negate, gated=True, batch_size=2, timeout=None)
    futures = [way.kit.busy(f, 1), way.kit.submit(f, 2)]
    with pytest.raises(TimeoutError, match=LATE):
        way.drain(f, timeout) if what == "drain" else way.close(f, timeout=timeout)
    if what == "close":
        with pytest.raises(ClosedError):
            way.kit.submit(f, 3)
    way.kit.go_on(2)
    assert way.kit.outcomes(futures) == [-1, -2]
    way.close(f)
    way.kit.consistent(f)


@pytest.mark.parametrize("dedupe", [False, True])
def test_close_may_refuse_what_waits_and_answers_what_runs(way: Way, dedupe: bool) -> None:
    reports: list[BatchReport] = []
    f = way.kit(negate, gated=True, batch_size=2, timeout=None, dedupe=dedupe, on_batch=reports.append)
    runs = way.kit.busy(f, 1)
    left, *waits = way.kit.submits(f, [2, 2, 3, 4])
    call = way.kit.start(f, 3)
    assert left.cancel()
    with pytest.raises(TimeoutError, match=LATE):
        way.close(f, timeout=0.0, cancel_pending=True)
    way.kit.go_on()
    assert way.kit.outcome(runs) == -1
    for refused in (*waits, call):
        error = way.kit.outcome(refused)
        assert (type(error), str(error)) == (ClosedError, "negate() is closed")
    way.close(f)
    assert way.kit.batches == [[1]]
    assert [report.size for report in reports] == [1]
    assert (f.stats.answered, f.stats.failed, f.stats.cancelled) == (1, 4, 1)
    way.kit.consistent(f)


def test_block_opens_a_closed_function_again(way: Way) -> None:
    f = way.kit(batch_size=2, timeout=None)
    for item in range(3):
        assert way.enter(f) is f
        future = way.kit.submit(f, item)
        way.leave(f)
        assert future.result() == -item
        with pytest.raises(ClosedError):
            way.kit.submit(f, item)
    way.kit.consistent(f)


def test_items_that_come_when_it_was_opened_again_are_not_refused(way: Way) -> None:
    f = way.kit(negate, gated=True, batch_size=3, timeout=None)
    runs = way.kit.busy(f, 1)
    before = way.kit.submit(f, 2)
    with pytest.raises(TimeoutError):
        way.close(f, timeout=0.0, cancel_pending=True)
    way.enter(f)
    after = way.kit.submit(f, 3)
    way.kit.go_on(2)
    way.leave(f)
    assert way.kit.outcomes([runs, after]) == [-1, -3]
    assert type(way.kit.outcome(before)) is ClosedError


def test_last_of_several_blocks_closes(way: Way) -> None:
    f = way.kit(batch_size=2, timeout=None)
    way.enter(f)
    way.enter(f)
    first = way.kit.submit(f, 1)
    way.leave(f)
    assert not first.done()
    second = way.kit.submit(f, 2)
    assert way.kit.outcomes([first, second]) == [-1, -2]
    way.leave(f)
    with pytest.raises(ClosedError):
        way.kit.submit(f, 3)


def test_block_that_begins_while_the_last_one_ends_is_open(way: Way) -> None:
    for lines in at_each_line(at_least=5):
        f = way.kit(batch_size=2, timeout=None)
        way.enter(f)
        begin = partial(inside.begin_block, f)
        with lines.intruder_doing(begin).on_this_thread():
            way.leave(f)
        if lines.where:
            waits = way.kit.submit(f, 1)
            way.kit.settle(f)
            assert not waits.done(), lines.where  # else it is still closing
            way.leave(f)
            assert waits.result() == -1
        way.kit.consistent(f)


def test_close_in_the_midst_of_a_block_closes_and_its_end_does_no_harm(way: Way) -> None:
    f = way.kit(batch_size=2)
    way.enter(f)
    way.close(f)
    with pytest.raises(ClosedError):
        way.kit.submit(f, 1)
    way.leave(f)
    way.enter(f)
    assert way.kit.outcome(way.kit.start(f, 2)) == -2
    way.leave(f)


def test_awaited_closing_lets_the_event_loop_go_on(threads: Threads) -> None:
    f = threads(negate, gated=True, batch_size=1)

    async def main() -> None:
        async with f:
            answer = asyncio.ensure_future(f.aio(1))
            await asyncio.to_thread(threads.until_runs, 1)
            asyncio.get_running_loop().call_soon(threads.go_on)
        assert await answer == -1

    asyncio.run(main())
    assert threads.batches == [[1]]


def test_cancelled_drain_leaves_the_others_waiting(way: Way) -> None:
    if not way.awaited:
        return
    f = way.kit(negate, gated=True, batch_size=1)
    future = way.kit.busy(f, 1)

    async def main() -> None:
        first, second = (asyncio.ensure_future(f.adrain()) for _ in range(2))
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.wait([first])
        assert first.cancelled()
        assert not second.done()
        way.kit.let_on.release()
        await second

    way.run(main())
    assert way.kit.outcome(future) == -1


def test_drain_from_inside_does_not_wait_for_itself(kit: Kit) -> None:
    def drains(items: list[int]) -> Steps:
        futures.append(f.submit(items[0] + 1))
        yield (f.drain if kit.kind == "threads" else f.adrain,)
        return [futures[0].done()]

    futures: list[Any] = []
    f = kit.steps(drains, batch_size=2, timeout=None)
    first = kit.submit(f, 1)
    kit.flush(f)
    assert kit.outcome(first) is False
    kit.close(f)


def test_drain_of_another_function_from_inside_waits_for_it(kit: Kit) -> None:
    def drains(items: list[int]) -> Steps:
        future = other.submit(items[0])
        yield (other.drain if kit.kind == "threads" else other.adrain,)
        return [future.done()]

    other = kit(batch_size=9, timeout=None)
    f = kit.steps(drains, batch_size=1)
    assert kit.outcome(kit.submit(f, 1)) is True


def test_processor_drains_and_opens_again() -> None:
    class Doubler(BatchProcessor[int]):
        def process(self, batch_input: tuple[dict[str, Any], ...]) -> list[int]:
            return [2 * request["x"] for request in batch_input]

    processor = Doubler(batch_size=2)
    for _ in range(2):
        with processor:
            assert processor.request(x=1) == 2
            processor.drain()
            assert processor.request(x=2) == 4
        with pytest.raises(ClosedError):
            processor.request(x=3)
    assert processor.stats.answered == 4
