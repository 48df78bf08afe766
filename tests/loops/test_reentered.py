"""On event loops: a finalizer at each line of the library is answered; after Ctrl-C the next call works.

Ctrl-C that strikes a loop which is run by hand is promised no more than asyncio promises: the calls of that very batch
may hear nothing, the next call works. `asyncio.run` turns the first Ctrl-C into a cancellation, which is safe.
"""

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, suppress
from typing import Any

import pytest

from batchify import BatchError, ClosedError

from ..intruder import ALL_OPTIONS, Lines, at_each_line, ctrl_c
from ..kit import HandLoop, anegate, move, run, settle
from ..tools import batched as batched_untyped
from ..tools import collect, run_script

pytestmark = [pytest.mark.thread_unsafe(reason="traces its thread"), pytest.mark.usefixtures("no_collector")]
batched: Callable[..., Any] = batched_untyped


MOST_OPTIONS = {**ALL_OPTIONS, "max_pending": 9}  # so that nobody is refused


def test_finalizer_at_any_line_is_answered(no_noise: None) -> None:
    running: list[list[int]] = []

    async def function(items: list[int]) -> list[int]:
        if items == [99]:
            return [-99]  # it was passed from inside the other batch, so it runs beside it
        assert not running
        running.append(items)
        await asyncio.sleep(0)
        running.clear()
        return [-item for item in items]

    async def main(f: Any) -> None:
        passed: list[asyncio.Future[int]] = []
        with lines.intruder_doing(lambda: passed.append(f.submit(99))).on_this_thread():
            waiting = [f.submit(1), f.submit(2), f.submit(3)]
            waiting[1].cancel()
            task = asyncio.create_task(f(4))
            await settle()
            task.cancel()
            await settle()
        f.flush()
        await settle()
        assert [waiting[0].result(), waiting[2].result()] == [-1, -3]
        assert len(passed) == bool(lines.where)
        for future in passed:
            assert future.done(), lines.where
            assert future.result() == -99
        await f.aclose()

    for lines in at_each_line(at_least=100):
        f = batched(batch_size=2, timeout=1.0)(function)
        run(main(f))
        assert f.stats.accepted == f.stats.answered + f.stats.cancelled == 4 + bool(lines.where), lines.where


def submit_and_cancel_the_only_item(f: Any) -> None:
    f.submit(1).cancel()


def submit_two_and_cancel_both(f: Any) -> None:
    for future in [f.submit(1), f.submit(2)]:
        future.cancel()


def change_the_timeout_while_an_item_waits(f: Any) -> None:
    f.submit(1)
    f.timeout = 3.0
    f.timeout = 2.0


@pytest.mark.parametrize("action", ["submit", "cancel", "cancel and submit"])
@pytest.mark.parametrize(
    "scenario", [submit_and_cancel_the_only_item, submit_two_and_cancel_both, change_the_timeout_while_an_item_waits]
)
def test_finalizer_at_any_line_leaves_nobody_without_a_timer(
    no_noise: None, scenario: Callable[[Any], None], action: str
) -> None:
    """Nobody makes anything due: what waits must be answered when its time has come, and so must the next item."""

    async def main(f: Any, lines: Lines) -> None:
        passed: list[asyncio.Future[int]] = []
        waits = [f.submit(98)] if action.startswith("cancel") else []

        def intrude() -> None:
            for future in waits:
                future.cancel()
            if action.endswith("submit"):
                passed.append(f.submit(99))

        with lines.intruder_doing(intrude).on_this_thread():
            scenario(f)
            await settle()
        for _ in range(4):
            await move(1.0)
        assert f.stats.pending == 0, lines.where
        assert [future.result() for future in passed] == [-99] * len(passed), lines.where
        following = f.submit(5)
        for _ in range(4):
            await move(1.0)
        assert following.done(), lines.where

    for lines in at_each_line(at_least=10):
        run(main(batched(batch_size=4, timeout=2.0)(anegate), lines))


@pytest.mark.parametrize("options", [{}, MOST_OPTIONS], ids=["plain", "with all options"])
def test_recursion_limit_reached_as_an_item_is_passed_spares_those_who_wait(options: dict[str, Any]) -> None:
    """Nobody passes another item: what waits must be answered when its time has come."""

    def deeply(f: Any, depth: int) -> "asyncio.Future[int]":
        return deeply(f, depth - 1) if depth else f.submit(2)

    async def main(f: Any, depth: int) -> bool:
        waits = [f.submit(1)]
        with suppress(RecursionError):
            waits.append(deeply(f, depth))
        for _ in range(3):
            await move(1.0)
        assert [future.done() and future.result() for future in waits] == [-1, -2][: len(waits)], depth
        return len(waits) == 2

    limit = sys.getrecursionlimit()
    passed = [
        run(main(batched(**{**options, "batch_size": 3, "timeout": 1.0})(anegate), depth))
        for depth in range(limit - 80, limit)
    ]
    assert passed[0]
    assert not passed[-1]


# Ctrl-C on a loop that is run by hand


async def answer(items: list[int]) -> list[int]:
    await asyncio.sleep(0)
    return [-item for item in items]


async def answer_one_by_one(items: list[int]) -> AsyncIterator[int]:
    for item in items:
        await asyncio.sleep(0)
        yield -item


async def submit_and_cancel(f: Any) -> None:
    futures = [f.submit(1), f.submit(2), f.submit(3)]
    futures[1].cancel()
    await asyncio.gather(futures[0], futures[2])


async def call_and_cancel(f: Any) -> None:
    tasks = [asyncio.create_task(f(item)) for item in (1, 2, 3)]
    await asyncio.sleep(0)
    tasks[1].cancel()
    await asyncio.gather(tasks[0], tasks[2])


async def some_items() -> AsyncIterator[int]:
    yield 1
    yield 2
    yield 3


async def map_items(f: Any) -> None:
    async with aclosing(f.map([1, 2, 3])) as results:
        assert [result async for result in results] == [-1, -2, -3]


async def map_items_that_come(f: Any) -> None:
    async with aclosing(f.map(some_items())) as results:
        assert [result async for result in results] == [-1, -2, -3]


async def drop_a_map(f: Any) -> None:
    async with aclosing(f.map(some_items())) as results:
        assert await anext(results) == -1


async def let_the_only_caller_leave(f: Any) -> None:
    f.timeout = 10**6
    f.submit(1).cancel()


SCENARIOS = [
    submit_and_cancel,
    call_and_cancel,
    map_items,
    map_items_that_come,
    drop_a_map,
    let_the_only_caller_leave,
]


async def turns(number: int) -> None:
    for _ in range(number):
        await asyncio.sleep(0)


def go_on_after_ctrl_c(loop: asyncio.AbstractEventLoop, f: Any, where: str) -> None:
    """Whoever runs the loop by hand goes on: the next call works, and closing ends."""

    async def afterwards() -> None:
        futures = [f.submit(item) for item in (7, 8, 9)]
        assert [await future for future in futures] == [-7, -8, -9], where

    f.timeout = 0.0
    for _ in range(3):  # Ctrl-C comes once more through each task that waits for the one it came to
        with suppress(KeyboardInterrupt, RuntimeError):  # the latter if it came to a loop that was about to stop
            loop.run_until_complete(turns(10))
    loop.run_until_complete(afterwards())
    for task in asyncio.all_tasks(loop):
        task.cancel()
    loop.run_until_complete(turns(10))
    loop.run_until_complete(f.aclose())
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.close()
    collect()  # the tasks, among which asyncio looks for those of the next loop


# Interrupted before its first step, a task leaves a coroutine that nobody awaited, of which Python tells.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore:coroutine:RuntimeWarning")
@pytest.mark.parametrize(
    ("scenario", "function", "options"),
    [
        *[(scenario, answer, {}) for scenario in SCENARIOS],
        *[(scenario, answer_one_by_one, {}) for scenario in (submit_and_cancel, map_items)],
        *[(scenario, answer, MOST_OPTIONS) for scenario in (call_and_cancel, drop_a_map, let_the_only_caller_leave)],
    ],
    ids=lambda value: {id(MOST_OPTIONS): "with all options"}.get(id(value), getattr(value, "__name__", "plain")),
)
def test_ctrl_c_at_any_line_of_a_loop_run_by_hand_spares_the_next_call(
    scenario: Callable[[Any], Any], function: Callable[..., Any], options: dict[str, Any]
) -> None:
    for lines in at_each_line(at_least=30):
        f = batched(batch_size=2, timeout=0.0, **options)(function)
        loop: asyncio.AbstractEventLoop = asyncio.new_event_loop()
        loop.set_exception_handler(lambda *_: None)  # what it would log of Ctrl-C in each task takes long to write
        main = loop.create_task(scenario(f))
        with suppress(KeyboardInterrupt, ClosedError, BatchError), lines.intruder_doing(ctrl_c).on_this_thread():
            loop.run_until_complete(main)
        go_on_after_ctrl_c(loop, f, lines.where)
        if main.done() and not main.cancelled():
            main.exception()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore:coroutine:RuntimeWarning")
def test_ctrl_c_at_any_line_while_an_item_waits_out_its_timeout_spares_the_next_call() -> None:
    for lines in at_each_line(at_least=30):
        f = batched(batch_size=4, timeout=1.0)(answer)
        loop = HandLoop()
        loop.set_exception_handler(lambda *_: None)

        async def wait_it_out(f: Any = f) -> None:
            future = f.submit(1)
            await move(0.5)
            await move(0.5)
            await future

        async def next_call(f: Any = f) -> int:
            future = f.submit(2)
            await settle()
            await move(1.0)
            result: int = await future
            return result

        with suppress(KeyboardInterrupt, BatchError), lines.intruder_doing(ctrl_c).on_this_thread():
            loop.run_until_complete(wait_it_out())
        for _ in range(3):
            with suppress(KeyboardInterrupt):
                loop.run_until_complete(turns(10))
        assert loop.run_until_complete(next_call()) == -2, lines.where
        loop.close()
        collect()


def test_ctrl_c_at_any_line_as_answers_come_home_to_a_loop_spares_the_next_call() -> None:
    for lines in at_each_line(at_least=15):
        f = batched(batch_size=3, timeout=None)(lambda items: [-item for item in items])
        loop = asyncio.new_event_loop()
        loop.set_exception_handler(lambda *_: None)
        tasks = [loop.create_task(f.aio(item)) for item in (1, 2, 3)]
        with suppress(KeyboardInterrupt), lines.intruder_doing(ctrl_c).on_this_thread():
            loop.run_until_complete(asyncio.wait(tasks))
        f.timeout = 0.0

        async def afterwards(f: Any = f) -> None:
            assert await asyncio.gather(*map(f.aio, (4, 5))) == [-4, -5]

        loop.run_until_complete(afterwards())
        for task in tasks:
            task.cancel()
        with suppress(KeyboardInterrupt):
            loop.run_until_complete(asyncio.wait(tasks))
        assert all(task.done() for task in tasks)
        for task in tasks:
            if not task.cancelled():
                task.exception()
        loop.close()
        f.close()


def test_ctrl_c_in_on_batch_on_a_loop_run_by_hand_is_logged_and_spares_all_calls(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def interrupted(_: object) -> None:
        raise KeyboardInterrupt

    async def main() -> None:
        assert await asyncio.gather(*map(f, range(3))) == [0, -1, -2]

    f = batched(batch_size=3, on_batch=interrupted)(anegate)
    run(main())
    assert [record.getMessage() for record in caplog.records] == ["on_batch of anegate() raised"]


# Under asyncio.run


@pytest.mark.parametrize("kind", ["async def", "def"])
def test_ctrl_c_under_asyncio_run_answers_or_cancels_every_call(kind: str) -> None:
    """The signal comes while one batch runs and other items wait; all calls end, and the loop closes in silence."""
    script = f"""if True:
        import asyncio, signal, threading
        from contextlib import suppress
        from batchify import batched
        running = threading.Event()
        hold = threading.Event()

        @batched(batch_size=2)
        {"async def" if kind == "async def" else "def"} f(items):
            running.set()
            {"await asyncio.sleep(3600)" if kind == "async def" else "hold.wait()"}
            return items

        async def caller(item):
            started.append(item)
            try:
                return await f.aio(item)
            finally:
                ended.append(item)

        async def main():
            loops.append(asyncio.get_running_loop())
            try:
                await asyncio.gather(*map(caller, range(5)))
            except asyncio.CancelledError:
                print("cancelled")
                raise

        def strike():
            running.wait()
            while len(started) < 5:
                pass
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
            with suppress(RuntimeError):  # the loop has ended
                loops[0].call_soon_threadsafe(int)  # a signal just before the loop falls asleep does not wake it

        started, ended, loops = [], [], []
        threading.Thread(target=strike).start()
        try:
            asyncio.run(main())
        except KeyboardInterrupt:
            print("Ctrl-C", sorted(ended))
        hold.set()

        async def afterwards():
            {"f.timeout = 0.0" if kind == "async def" else "assert await f.aio(7) == 7"}

        asyncio.run(afterwards())
        print(f.stats.pending, f.stats.accepted - f.stats.cancelled - f.stats.answered - f.stats.failed)
    """
    done = run_script(script)
    assert done.stdout == "cancelled\nCtrl-C [0, 1, 2, 3, 4]\n0 0\n"


def test_ctrl_c_under_asyncio_run_leaves_the_function_usable_in_the_next_run() -> None:
    async def strike_and_wait() -> None:
        future = f.submit(1)
        signal.raise_signal(signal.SIGINT)
        await future

    async def next_run() -> int:
        result: int = await f(2)
        return result

    f = batched(batch_size=2, timeout=0.0)(anegate)
    with pytest.raises(KeyboardInterrupt):
        asyncio.run(strike_and_wait())
    assert asyncio.run(next_run()) == -2
