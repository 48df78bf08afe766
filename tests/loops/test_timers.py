"""Nothing waits and nothing runs without a reason, on event loops: one timer while a batch is open, none otherwise.

And what depends on the turns of a loop: who shares a batch, and what comes first.
"""

import asyncio
import threading
from typing import Any

import pytest

from ..kit import AsyncGated, HandLoop, anegate, batched, here, move, our_tasks, run, settle, together

pytestmark = pytest.mark.usefixtures("no_noise")


# Timers


@pytest.mark.thread_unsafe(reason="counts threads")
def test_timer_is_set_once_for_an_open_batch_and_not_without() -> None:
    async def main() -> None:
        for item in range(3):
            for task in (futures := [f.submit(each) for each in range(5)]):
                assert not task.done()
            await settle()
            assert here().timers() == 1
            await move(0.5)
            futures += [f.submit(each) for each in range(5, 10 + item)]
            await settle()
            assert (here().timers(), len(f.stats.sizes)) == (item > 0, 1 + bool(item > 1))
            await move(1.0)
            assert all(future.done() for future in futures)
            assert here().timers() == 0

    f = batched(batch_size=10, timeout=1.0)(anegate)
    threads = threading.active_count()
    run(main())
    assert threading.active_count() == threads


def test_timer_is_set_neither_with_timeout_none_nor_by_a_change_where_nothing_waits() -> None:
    async def main() -> None:
        first = f.submit(1)
        await settle()
        assert here().timers() == 0
        f.flush()
        assert await first == -1
        f.timeout = 2.0
        await settle()
        assert here().timers() == 0

    f = batched(batch_size=2, timeout=None)(anegate)
    run(main())


@pytest.mark.parametrize("options", [{"group_by": str}, {"group_by": str, "max_pending": 9}])
def test_no_task_is_started_while_many_wait_of_whom_no_group_is_full(options: dict[str, Any]) -> None:
    async def main() -> None:
        futures = [f.submit(each) for each in range(5)]
        await settle()
        assert (our_tasks(), here().timers()) == ([], 1)
        await move(1.0)
        assert [future.result() for future in futures] == [0, -1, -2, -3, -4]

    f = batched(batch_size=2, timeout=1.0, **options)(anegate)
    run(main())


def test_timer_of_a_changed_timeout_replaces_the_old_one() -> None:
    async def main() -> None:
        future = f.submit(1)
        await move(0.5)
        for timeout in (2.0, 0.75, 3.0):
            f.timeout = timeout
            assert here().timers() <= 1
            await settle()
            assert here().timers() == 1
        await move(2.25)
        assert not future.done()
        await move(0.25)
        assert (future.result(), here().timers()) == (-1, 0)

    f = batched(batch_size=9, timeout=1e6)(anegate)
    run(main())


def test_timer_is_not_set_while_a_batch_runs() -> None:
    async def main() -> None:
        futures = [f.submit(1), f.submit(2)]
        await settle()
        futures.append(f.submit(3))
        f.timeout = 2.0
        assert here().timers() == 0
        futures.pop().cancel()
        futures.append(f.submit(3))
        assert here().timers() == 0
        await gated.go_on(1)
        assert here().timers() == 1
        await move(2.0)
        await gated.go_on(1)
        assert await together(*futures) == [-1, -2, -3]

    gated = AsyncGated()
    f = batched(batch_size=2, timeout=1.0)(gated)
    run(main())


def test_timer_and_second_task_are_not_needed_by_items_that_join_until_the_function_is_free() -> None:
    async def main() -> None:
        futures = []
        for item in range(20):
            futures.append(f.submit(item))
            await move(0.01)
            assert (here().timers(), len(our_tasks())) == (0, 1)
        assert gated.batches == [[0]]
        await gated.go_on(2)
        assert gated.batches == [[0], list(range(1, 20))]
        assert await together(*futures) == [-item for item in range(20)]

    gated = AsyncGated()
    f = batched(batch_size=64)(gated)
    run(main())


def test_timer_is_not_set_by_a_batch_from_inside_while_the_outer_one_runs() -> None:
    async def function(items: list[int]) -> list[int]:
        if items == [0, 1]:
            go_on.set()
            await settle()
            assert f.stats.pending == 1
            assert await f(2) == 2
            assert (f.stats.pending, here().timers()) == (0, 0)  # it filled the batch of the other one
        return items

    async def main() -> None:
        waiting = [f.submit(0), f.submit(1)]
        await go_on.wait()
        waiting.append(f.submit(3))
        assert await together(*waiting[:2]) == [0, 1]
        await move(1.0)
        assert waiting[2].result() == 3

    go_on = asyncio.Event()
    f = batched(batch_size=2, timeout=1.0)(function)
    run(main())
    assert f.stats.reasons == {"full": 2}


def test_arrival_is_told_by_the_clock_that_a_loop_of_pythons_own_was_given() -> None:
    """Tools for tests set `time` on the loop itself."""

    async def main() -> None:
        loop: Any = asyncio.get_running_loop()
        now = loop.time() + 1000.0
        loop.time = lambda: now
        first = f.submit(1)
        await settle()
        now += 5.0
        second = f.submit(2)
        await settle()
        assert [first.done(), second.done()] == [False, False]
        now += 5.0
        await settle()
        assert (first.result(), second.result()) == (-1, -2)

    f = batched(batch_size=3, timeout=10.0)(anegate)
    asyncio.run(main())
    assert f.stats.reasons == {"timeout": 1}


def test_timeout_is_met_though_the_loop_wakes_slightly_early() -> None:
    async def main() -> None:
        here()._clock_resolution = 0.01  # type: ignore[attr-defined]  # as uvloop, which counts in milliseconds
        future = f.submit(1)
        await move(0.995)
        assert future.result() == -1

    f = batched(batch_size=2, timeout=1.0)(anegate)
    run(main())


# Turns of the loop


def test_timeout_0_lets_all_callers_of_one_turn_share_a_batch() -> None:
    async def main() -> None:
        assert await together(*map(f, range(20))) == [-item for item in range(20)]

    f = batched(batch_size=64)(anegate)
    run(main())
    assert f.stats.sizes == {20: 1}


def test_full_batches_are_shared_by_callers_of_one_turn() -> None:
    async def main() -> None:
        assert await together(*map(f, range(8))) == [-item for item in range(8)]

    f = batched(batch_size=4, timeout=None)(anegate)
    run(main())
    assert (f.stats.sizes, f.stats.reasons) == ({4: 2}, {"full": 2})


def test_full_batch_begins_once_the_callers_of_the_last_one_have_gone_on() -> None:
    events: list[object] = []

    async def function(items: list[int]) -> list[int]:
        events.append(items)
        return items

    async def caller(item: int) -> None:
        events.append(await f(item))

    async def main() -> None:
        await asyncio.gather(*map(caller, range(4)))

    f = batched(batch_size=2, timeout=None)(function)
    run(main())
    assert events == [[0, 1], 0, 1, [2, 3], 2, 3]


def test_callers_that_were_just_answered_join_the_next_batch() -> None:
    async def caller(items: list[int]) -> None:
        for item in items:
            assert await f(item) == -item

    async def main() -> None:
        await together(*(caller([caller_, -caller_, 7]) for caller_ in range(6)))

    f = batched(batch_size=4)(anegate)
    run(main())
    assert set(f.stats.sizes) <= {2, 4}
    assert f.stats.sizes[4] >= 3


def test_item_that_leaves_a_full_batch_before_it_is_taken_leaves_the_others_their_time() -> None:
    async def main() -> None:
        first, second = f.submit(1), f.submit(2)
        second.cancel()
        await settle()
        assert not first.done()
        await move(1.0)
        assert first.result() == -1

    f = batched(batch_size=2, timeout=1.0)(anegate)
    run(main())
    assert f.stats.reasons == {"timeout": 1}


@pytest.mark.parametrize("from_a_thread", [False, True])
@pytest.mark.parametrize("change", ["batch_size", "timeout", "flush"])
def test_change_is_heeded_at_once_by_a_loop_that_runs(change: str, from_a_thread: bool) -> None:
    def alter() -> None:
        if change == "batch_size":
            f.batch_size = 3
        elif change == "timeout":
            f.timeout = 0.75
        else:
            f.flush()

    async def main() -> None:
        futures = [f.submit(item) for item in range(3)]
        await move(0.5)
        if from_a_thread:
            await asyncio.to_thread(alter)
        else:
            alter()
            assert here().timers() <= 1
        if change == "timeout":
            await move(0.125)
            assert here().timers() == 1
            await move(0.125)
        assert await together(*futures) == [0, -1, -2]
        assert here().timers() == 0

    f = batched(batch_size=9, timeout=1e6)(anegate)
    run(main())
    assert (f.batch_size, f.timeout) == (3 if change == "batch_size" else 9, 0.75 if change == "timeout" else 1e6)


def test_timer_that_the_loop_refuses_is_that_callers_error_and_spares_the_others() -> None:
    class LoopThatRefusesOnce(HandLoop):
        refuses = True

        def call_at(self, *args: Any, **context: Any) -> asyncio.TimerHandle:  # type: ignore[override]
            if self.refuses:
                self.refuses = False
                raise OSError("no timers")
            return super().call_at(*args, **context)

    async def main() -> None:
        with pytest.raises(OSError, match="no timers"):
            f.submit(1)
        future = f.submit(2)
        assert f.stats.pending == 1
        await move(1.0)
        assert future.result() == -2

    f = batched(batch_size=3, timeout=1.0)(anegate)
    with asyncio.Runner(loop_factory=LoopThatRefusesOnce) as runner:
        runner.run(main())
    assert f.stats.sizes == {1: 1}
