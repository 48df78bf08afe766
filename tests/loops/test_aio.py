"""`await f.aio(item)`: coroutines call a `def` function, which runs in its flush thread, and their loop goes on.

They share its batches with threads and with other loops, and may leave as from any await.
"""

import asyncio
import gc
import inspect
import logging
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from batchify import ClosedError

from ..kit import anegate
from ..tools import Gated, batched, in_threads, run_script

pytestmark = pytest.mark.usefixtures("no_noise")


@pytest.fixture
def no_noise(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Nobody logs a warning: neither asyncio nor the library."""
    yield
    gc.collect()
    logged = caplog.get_records("call") + caplog.get_records("teardown")
    assert [record for record in logged if record.levelno >= logging.WARNING] == []


async def gather(f: Any, items: Any) -> list[Any]:
    return list(await asyncio.gather(*map(f.aio, items), return_exceptions=True))


# Calling


def test_aio_tasks_share_a_batch() -> None:
    with batched(batch_size=8, timeout=None)(lambda items: [-item for item in items]) as f:
        assert asyncio.run(gather(f, range(32))) == [-item for item in range(32)]
        assert f.stats.sizes == {8: 4}


def test_aio_threads_and_loops_share_a_batch() -> None:
    with batched(batch_size=6, timeout=None)(lambda items: [-item for item in items]) as f:

        def call(item: int) -> Any:
            return asyncio.run(f.aio(item)) if item % 2 else f(item)

        assert in_threads(call, range(6)) == [-item for item in range(6)]
        assert f.stats.sizes == {6: 1}


def test_aio_many_loops_one_after_the_other_and_at_once() -> None:
    with batched(batch_size=4, timeout=0.0)(lambda items: items) as f:
        for number in range(5):
            assert asyncio.run(f.aio(number)) == number
        outcomes = in_threads(lambda start: asyncio.run(gather(f, range(start, start + 50))), range(4))
    assert outcomes == [list(range(start, start + 50)) for start in range(4)]


def test_aio_coroutine_is_named_after_the_function() -> None:
    @batched(batch_size=1)
    def f(items: list[int]) -> list[int]:
        return items

    assert inspect.iscoroutinefunction(f.aio)
    coroutine: Any = f.aio(1)
    assert (coroutine.__name__, coroutine.__qualname__) == ("f.aio", "f.aio")
    coroutine.close()


def test_aio_lets_the_loop_go_on_meanwhile() -> None:
    function = Gated()

    async def main() -> Any:
        task = asyncio.create_task(f.aio(1))
        await asyncio.to_thread(function.entered.acquire)
        assert not task.done()
        function.open()
        return await task

    with batched(batch_size=1)(function) as f:
        assert asyncio.run(main()) == 1


def test_aio_answers_go_home_in_one_message_per_batch_and_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    messages: list[int] = []

    async def main() -> list[Any]:
        loop = asyncio.get_running_loop()
        send = loop.call_soon_threadsafe

        def count(*args: Any, **options: Any) -> Any:
            messages.append(len(args[1]))
            return send(*args, **options)

        monkeypatch.setattr(loop, "call_soon_threadsafe", count)
        return await gather(f, range(32))

    with batched(batch_size=16, timeout=None)(lambda items: items) as f:
        assert asyncio.run(main()) == list(range(32))
    assert messages == [16, 16]


def test_aio_yielded_result_is_delivered_at_once() -> None:
    go_on = threading.Event()

    def function(items: list[int]) -> Iterator[int]:
        yield -1
        go_on.wait()
        yield -2

    async def main() -> Any:
        one, two = asyncio.create_task(f.aio(1)), asyncio.create_task(f.aio(2))
        assert await one == -1
        assert not two.done()
        go_on.set()
        return [await two]

    with batched(batch_size=2, timeout=None)(function) as f:
        assert asyncio.run(main()) == [-2]


def test_aio_of_itself_in_a_loop_of_its_own_is_answered() -> None:
    def function(items: list[int]) -> list[int]:
        return [item and 1 + asyncio.run(f.aio(0)) for item in items]

    with batched(batch_size=2)(function) as f:
        assert asyncio.run(f.aio(1)) == 1
    assert f.stats.reasons == {"free": 2}


def test_aio_works_with_eager_tasks_and_in_debug_mode() -> None:
    script = """if True:
        import asyncio
        from batchify import batched

        async def main():
            factory = getattr(asyncio, "eager_task_factory", None)
            if factory is not None:
                asyncio.get_running_loop().set_task_factory(factory)
            return await asyncio.gather(*map(f.aio, range(8)))

        f = batched(batch_size=4, timeout=None)(lambda items: items)
        assert asyncio.run(main(), debug=True) == list(range(8))
    """
    run_script(script, "-X", "dev", "-W", "error")


# Leaving


@pytest.mark.parametrize("leaving", [[0], [2], [1], [0, 1, 2]])
def test_aio_caller_cancelled_while_it_waits_is_taken_out(leaving: list[int]) -> None:
    function = Gated()
    function.open()

    async def main() -> list[Any]:
        tasks = [asyncio.create_task(f.aio(number)) for number in range(3)]
        await asyncio.sleep(0)
        assert f.stats.pending == 3
        for number in leaving:
            tasks[number].cancel()
        await asyncio.sleep(0)
        assert f.stats.pending == 3 - len(leaving)
        f.flush()
        return await asyncio.gather(*tasks, return_exceptions=True)

    with batched(batch_size=9, timeout=None)(function) as f:
        outcomes = asyncio.run(main())
    staying = [number for number in range(3) if number not in leaving]
    assert function.batches == ([staying] if staying else [])
    assert [outcomes[number] for number in staying] == staying
    assert all(isinstance(outcomes[number], asyncio.CancelledError) for number in leaving)


@pytest.mark.parametrize("leaving", [[0], [2], [0, 1, 2]])
def test_aio_caller_cancelled_in_a_running_batch_does_not_disturb_it(leaving: list[int]) -> None:
    function = Gated()

    async def main() -> list[Any]:
        tasks = [asyncio.create_task(f.aio(number)) for number in range(3)]
        await asyncio.to_thread(function.entered.acquire)
        for number in leaving:
            tasks[number].cancel()
        await asyncio.sleep(0)
        function.open()
        return await asyncio.gather(*tasks, return_exceptions=True)

    with batched(batch_size=3, timeout=None)(function) as f:
        outcomes = asyncio.run(main())
    for number, outcome in enumerate(outcomes):
        assert isinstance(outcome, asyncio.CancelledError) if number in leaving else outcome == number


def test_aio_takes_timeouts_and_task_groups() -> None:
    async def main() -> Any:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.001):
                await f.aio(1)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(f.aio(1), 0.001)
        assert f.stats.pending == 0
        f.batch_size = 1
        async with asyncio.TaskGroup() as group:
            task = group.create_task(f.aio(2))
        return task.result()

    with batched(batch_size=9, timeout=None)(lambda items: items) as f:
        assert asyncio.run(main()) == 2


def test_aio_loop_that_closed_before_the_answer_disturbs_nobody() -> None:
    function = Gated()
    with batched(batch_size=2, timeout=None)(function) as f:
        loop = asyncio.new_event_loop()
        other = f.submit("other")
        task = loop.create_task(f.aio("closed"))
        loop.run_until_complete(asyncio.sleep(0))
        function.entered.acquire()
        task.cancel()
        loop.run_until_complete(asyncio.gather(task, return_exceptions=True))
        loop.close()
        function.open()
        assert other.result() == "other"
        assert in_threads(f, [1, 2]) == [1, 2]


def test_aio_dropped_coroutine_leaves_no_item() -> None:
    with batched(batch_size=9, timeout=None)(lambda items: items) as f:
        loop = asyncio.new_event_loop()

        async def start() -> Any:
            coroutine = f.aio(1)
            coroutine.send(None)
            return coroutine

        coroutine = loop.run_until_complete(start())
        assert f.stats.pending == 1
        coroutine.close()
        assert f.stats.pending == 0
        loop.close()


# Closing


def test_aio_is_refused_after_close() -> None:
    f = batched(batch_size=2)(lambda items: items)
    f.close()
    with pytest.raises(ClosedError):
        asyncio.run(f.aio(1))


def test_aio_callers_that_wait_are_answered_by_close() -> None:
    async def main() -> Any:
        tasks = [asyncio.create_task(f.aio(number)) for number in range(3)]
        await asyncio.sleep(0)
        await asyncio.to_thread(f.close)
        return await asyncio.gather(*tasks)

    f = batched(batch_size=9, timeout=None)(lambda items: items)
    assert asyncio.run(main()) == [0, 1, 2]


def test_aio_callers_that_left_are_counted_so_though_closing_refuses_what_waits() -> None:
    async def main() -> None:
        tasks = [asyncio.create_task(f.aio(item)) for item in range(5)]
        await asyncio.to_thread(function.entered.acquire)
        tasks[-1].cancel()
        await asyncio.wait(tasks[-1:])
        with pytest.raises(TimeoutError):
            await f.aclose(timeout=0, cancel_pending=True)
        function.open()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(each) for each in outcomes] == [int, *[ClosedError] * 3, asyncio.CancelledError]

    function = Gated()
    f = batched(batch_size=1)(function)
    asyncio.run(main())
    f.close()
    assert (f.stats.answered, f.stats.failed, f.stats.cancelled) == (1, 3, 1)


def test_aio_that_is_kept_alone_gathers_batches_as_before() -> None:
    async def main() -> None:
        f = batched(batch_size=2, timeout=None)(anegate)
        aio = f.aio
        assert list(await asyncio.gather(aio(1), aio(2))) == [-1, -2]
        del f
        gc.collect()
        first = asyncio.create_task(aio(3))
        for _ in range(20):
            await asyncio.sleep(0)
        assert not first.done()
        assert list(await asyncio.gather(first, aio(4))) == [-3, -4]

    asyncio.run(main())


def test_aio_of_an_async_def_function_is_the_same_as_a_call() -> None:
    async def main() -> list[int]:
        results: list[int] = await asyncio.gather(f(1), f.aio(2), f.aio(3))
        return results

    f: Any = batched(batch_size=3, timeout=None)(anegate)
    assert asyncio.run(main()) == [-1, -2, -3]
    assert f.stats.sizes == {3: 1}
