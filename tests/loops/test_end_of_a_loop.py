"""What waits on a loop that ends is forgotten with it, in silence, and the function works on the next loop."""

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator
from typing import Any

import pytest

from batchify import ClosedError

from ..kit import AsyncGated, HandLoop, anegate, batched, our_tasks, run, settle, tasks
from ..tools import batched as batched_threads
from ..tools import run_script

pytestmark = pytest.mark.usefixtures("no_noise")


# The loop is not kept


def test_loop_that_has_ended_is_not_kept() -> None:
    f = batched(batch_size=2, timeout=60.0)(anegate)
    loops = []

    async def main() -> None:
        loops.append(weakref.ref(asyncio.get_running_loop()))
        f.submit(1)
        await f.submit(2) if len(loops) % 2 else f.flush()

    for _ in range(3):
        asyncio.run(main())
    gc.collect()
    assert [loop() for loop in loops] == [None] * 3


@pytest.mark.parametrize("how", ["stats", "flush", "set", "call"])
def test_closed_loop_is_let_go_when_the_function_is_looked_at(how: str) -> None:
    async def start() -> None:
        f.submit(1)

    f = batched(batch_size=4, timeout=60.0)(anegate)
    loop = asyncio.new_event_loop()
    loop.run_until_complete(start())
    loop.close()
    reference = weakref.ref(loop)
    del loop
    if how == "stats":
        assert f.stats.cancelled == 1
    elif how == "flush":
        f.flush()
    elif how == "set":
        f.batch_size = 2
    else:

        async def call() -> None:
            f.submit(2).cancel()

        asyncio.run(call())
    gc.collect()
    assert reference() is None


def test_loop_that_closes_just_now_disturbs_no_flush() -> None:
    class LyingLoop(HandLoop):
        lies = False

        def is_closed(self) -> bool:
            return not self.lies and super().is_closed()

    async def start() -> None:
        f.submit(1)

    f = batched(batch_size=4, timeout=60.0)(anegate)
    loop = LyingLoop()
    loop.run_until_complete(start())
    loop.close()
    loop.lies = True
    f.flush()
    loop.lies = False


# What waits or runs on it


def test_items_that_wait_on_a_closed_loop_count_as_cancelled() -> None:
    f = batched(batch_size=4, timeout=60.0)(anegate)
    loop = asyncio.new_event_loop()

    async def start() -> Any:
        return f.submit(1)

    future = loop.run_until_complete(start())
    assert f.stats.pending == 1
    loop.close()
    assert (f.stats.pending, f.stats.cancelled) == (0, 1)
    f.timeout = 0.0
    f.flush()
    assert asyncio.run(f(2)) == -2
    assert (f.stats.pending, f.stats.cancelled, f.stats.answered) == (0, 1, 1)
    loop_reference = weakref.ref(loop)
    del loop, future
    gc.collect()
    assert loop_reference() is None


def test_halves_of_a_failed_batch_on_a_closed_loop_count_as_failed() -> None:
    calls: list[list[int]] = []

    async def function(items: list[int]) -> list[int]:
        calls.append(items)
        if len(calls) == 1:
            raise ValueError
        if len(calls) == 2:
            await asyncio.Event().wait()
        return items

    async def start() -> None:
        for item in range(4):
            f.submit(item)
        await settle()

    f = batched(batch_size=4, isolate=True)(function)
    loop = asyncio.new_event_loop()
    loop.run_until_complete(start())
    assert calls == [[0, 1, 2, 3], [0, 1]]
    loop.close()
    assert (f.stats.accepted, f.stats.failed, f.stats.running) == (4, 2, 2)
    del loop
    gc.collect()
    assert (f.stats.accepted, f.stats.failed, f.stats.running, f.stats.in_flight) == (4, 4, 0, 0)
    assert asyncio.run(f(5)) == 5


def test_items_on_a_closed_loop_are_not_kept_by_the_future_of_another_item() -> None:
    class Item:
        pass

    calls: list[int] = []

    async def function(items: list[Item]) -> list[Item]:
        calls.append(len(items))
        if len(calls) == 1:
            raise ValueError
        await asyncio.Event().wait()
        return items

    async def start() -> Any:
        items = [Item() for _ in range(5)]
        kept.extend(map(weakref.ref, items))
        future, *_ = [f.submit(item) for item in items]
        await settle()
        return future

    kept: list[weakref.ref[Item]] = []
    f = batched(batch_size=4, isolate=True)(function)
    loop = asyncio.new_event_loop()
    future = loop.run_until_complete(start())
    assert calls == [4, 2]
    tasks = asyncio.all_tasks(loop)  # else the batch that runs would be garbage, and end by that
    loop.close()
    assert (f.stats.failed, f.stats.running, f.stats.cancelled) == (2, 2, 1)
    gc.collect()
    assert len(tasks) == 1
    assert not future.done()
    assert [item() is not None for item in kept] == [True, True, False, False, False]


def test_batch_that_ends_after_its_loop_was_closed_begins_no_other_batch() -> None:
    async def start() -> Any:
        futures.extend(f.submit(item) for item in range(3))
        await settle()
        return our_tasks()[0].get_coro()

    futures: list[Any] = []
    gated = AsyncGated()
    f = batched(batch_size=2)(gated)
    loop = HandLoop()
    batch = loop.run_until_complete(start())
    loop.close()
    batch.close()
    assert gated.batches == [[0, 1]]
    assert [future.done() for future in futures] == [True, True, False]


# In silence


def test_loop_closed_in_the_middle_of_a_batch_is_silent_and_the_next_one_works() -> None:
    script = """if True:
        import asyncio, gc
        from batchify import batched

        @batched(batch_size=2)
        async def f(items):
            if items[0] == 1:
                await asyncio.Event().wait()
            return items

        @batched(batch_size=2)
        async def g(items):
            for item in items:
                yield item
                await asyncio.Event().wait()

        async def items():
            yield 0
            await asyncio.Event().wait()

        async def start():
            results = f.map(items())
            assert await anext(results) == 0
            futures.append(results)
            futures.extend([f.submit(1), f.submit(2), f.submit(3), g.submit(1), g.submit(2)])
            for future in futures[1:]:
                future.add_done_callback(print)
            for _ in range(10):
                await asyncio.sleep(0)

        futures = []
        loop = asyncio.new_event_loop()
        loop.run_until_complete(start())
        loop.close()
        futures.clear()
        gc.collect()
        assert asyncio.run(f(4)) == 4
        gc.collect()
        stats = f.stats
        assert (stats.pending, stats.cancelled, stats.answered, stats.failed) == (0, 1, 2, 2), stats
    """
    run_script(script, "-X", "dev", "-W", "error")


def test_loop_closed_while_a_turn_is_lent_is_silent() -> None:
    script = """if True:
        import asyncio, gc
        from batchify import batched

        def close_after(turns):
            async def function(items):
                if items == [0]:
                    return [await f(1)]
                await asyncio.Event().wait()

            async def start():
                f.submit(0)
                for _ in range(turns):
                    await asyncio.sleep(0)

            f = batched(batch_size=1)(function)
            loop = asyncio.new_event_loop()
            loop.run_until_complete(start())
            loop.close()

        for turns in range(8):
            close_after(turns)
            gc.collect()
    """
    run_script(script, "-X", "dev", "-W", "error")


def test_items_left_behind_by_asyncio_run_make_no_noise() -> None:
    script = """if True:
        import asyncio, gc
        from batchify import batched

        async def f(items):
            for _ in range(awaits):
                await asyncio.sleep(0)
            return items

        async def main(function, number):
            for item in range(number):
                function.submit(item)
            for _ in range(number % 4):
                await asyncio.sleep(0)

        for awaits in range(4):
            for number in range(1, 15):
                asyncio.run(main(batched(batch_size=1)(f), number))
                loop = asyncio.new_event_loop()
                loop.run_until_complete(main(batched(batch_size=1)(f), number))
                loop.close()
                gc.collect()
    """
    run_script(script, "-X", "dev", "-W", "error")


def test_caller_destroyed_with_its_loop_takes_its_item_out() -> None:
    script = """if True:
        import asyncio, gc
        from batchify import batched

        @batched(batch_size=2, timeout=None)
        async def f(items):
            return items

        async def main():
            task = asyncio.create_task(f(1))
            task._log_destroy_pending = False
            await asyncio.sleep(0)
            assert f.stats.pending == 1

        loop = asyncio.new_event_loop()
        loop.run_until_complete(main())
        loop.close()
        del loop
        assert (f.stats.pending, f.stats.cancelled) == (0, 1)
        gc.collect()
        assert (f.stats.pending, f.stats.cancelled) == (0, 1)
    """
    run_script(script, "-X", "dev", "-W", "error")


def test_generator_cancelled_after_its_last_result_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def function(items: list[int]) -> AsyncIterator[int]:
        for item in items:
            yield item
        await asyncio.Event().wait()

    assert run(batched(batch_size=1)(function)(1)) == 1
    assert caplog.records == []


def test_task_left_behind_that_is_collected_inside_another_function_leaves_that_inside() -> None:
    """Its last lines run in the midst of whatever this thread does."""

    def function(items: list[int]) -> list[int]:
        if items == [0]:
            assert len(closed) == 0
            loops.clear()
            assert sleeps.stats.batches == 1  # who asks lets closed loops go
            gc.collect()
            return [f.submit(1).result()]
        return items

    async def sleep(items: list[int]) -> list[int]:
        try:
            await asyncio.Event().wait()
        finally:
            closed.append(None)
        return items

    async def main() -> None:
        sleeps.submit(1)
        await settle()

    closed: list[None] = []
    sleeps = batched(batch_size=1)(sleep)
    loops = [asyncio.new_event_loop()]
    loops[0].run_until_complete(main())
    loops[0].close()
    with batched_threads(batch_size=1)(function) as f:
        assert f.submit(0).result(timeout=10) == 1
    assert len(closed) == 1


# Closing the function on a loop


def test_cancelled_aclose_still_closes_and_the_other_one_waits() -> None:
    async def main() -> None:
        waiting = [f.submit(item) for item in range(5)]
        closers = tasks([f.aclose(), f.aclose()])
        await settle()
        assert not any(closer.done() for closer in closers)
        closers[0].cancel()
        for call in (f, f.submit):
            with pytest.raises(ClosedError, match=r"^AsyncGated\(\) is closed$"):
                await call(9)
        with pytest.raises(ClosedError):
            await anext(f.map([9]))
        await gated.go_on(3)
        assert [future.result() for future in waiting] == [0, -1, -2, -3, -4]
        assert [closer.cancelled() for closer in closers] == [True, False]
        await f.aclose()
        assert len(asyncio.all_tasks()) == 1

    gated = AsyncGated()
    f = batched(batch_size=2, timeout=None)(gated)
    run(main())
    assert f.stats.reasons == {"full": 2, "close": 1}
    with pytest.raises(ClosedError):
        run(f(1))
