"""Coroutines that leave: cancelled tasks, timeouts, task groups, coroutines that are dropped, a loop that shuts down.

And the task of a batch itself, which somebody else may cancel: its callers hear of it, and the next batch runs.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from batchify import BatchError

from ..kit import AsyncGated, anegate, batched, here, move, outcomes, run, settle, tasks, together

pytestmark = pytest.mark.usefixtures("no_noise")


def tasks_of_batches() -> list["asyncio.Task[Any]"]:
    return [task for task in asyncio.all_tasks() if task.get_name().startswith("batchify")]


# Callers that leave


def test_task_cancelled_in_the_turn_of_its_answer_disturbs_nobody() -> None:
    async def main() -> None:
        one, two = tasks(map(f, [1, 2]))
        await settle()
        gated.let_on.release()
        while not f.stats.answered:
            await asyncio.sleep(0)
        one.cancel()
        assert [str(outcome) for outcome in await outcomes([one, two])] == ["", "-2"]

    gated = AsyncGated()
    f = batched(batch_size=2, timeout=None)(gated)
    run(main())


def test_oldest_item_cancelled_at_its_deadline_leaves_the_next_one_its_own_deadline() -> None:
    async def main() -> None:
        first = f.submit(1)
        await move(0.5)
        second = f.submit(2)
        here().moment = 1.0
        while not tasks_of_batches():
            await asyncio.sleep(0)
        first.cancel()
        await move(0.25)
        assert not second.done()
        await move(0.25)
        assert second.result() == -2

    f = batched(batch_size=9, timeout=1.0)(anegate)
    run(main())


@pytest.mark.parametrize("how", ["task", "future", "both"])
@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("options", [{}, {"dedupe": True}])
def test_running_batch_is_cancelled_once_all_callers_have_left(how: str, order: int, options: dict[str, Any]) -> None:
    async def main() -> None:
        ways = {"task": [True] * 3, "future": [False] * 3, "both": [False, True, False]}[how]
        waiting = [tasks([f(item)])[0] if way else f.submit(item) for item, way in enumerate(ways)]
        await settle()
        for caller in waiting[::order]:
            assert gated.running == 1
            caller.cancel()
            await settle()
        assert gated.running == 0
        for outcome in await outcomes(waiting):
            assert isinstance(outcome, asyncio.CancelledError)
        await gated.go_on()
        assert await f(3) == -3

    gated = AsyncGated()
    f = batched(batch_size=3, **options)(gated)
    run(main())
    assert f.stats.in_flight == 0


def test_running_batch_goes_on_for_a_caller_that_was_shielded() -> None:
    async def main() -> None:
        waiting = tasks([wait_shielded(), f(2)])
        await settle()
        for caller in waiting:
            caller.cancel()
        await settle()
        await gated.go_on()
        for outcome in await outcomes(waiting):
            assert isinstance(outcome, asyncio.CancelledError)

    async def wait_shielded() -> None:
        await asyncio.shield(f.submit(1))

    gated = AsyncGated()
    f = batched(batch_size=2, timeout=None)(gated)
    run(main())
    assert f.stats.answered == 2


def test_generator_goes_on_behind_its_last_result_though_all_callers_have_theirs() -> None:
    ended: list[bool] = []

    async def function(items: list[int]) -> AsyncIterator[int]:
        for item in items:
            yield -item
        await settle()
        ended.append(True)

    async def main() -> None:
        assert await together(*map(f.submit, (1, 2))) == [-1, -2]
        await settle()
        await settle()

    f = batched(batch_size=2, timeout=None)(function)
    run(main())
    assert ended == [True]


def test_timeouts_task_groups_shields_and_waits_take_calls_and_futures() -> None:
    async def main() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await f(1)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(f(1), 0)
        assert f.stats.pending == 0
        f.batch_size = 1
        async with asyncio.TaskGroup() as group:
            task = group.create_task(f(2))
        assert task.result() == -2
        assert await asyncio.wait_for(f.submit(3), 5) == -3
        assert await asyncio.shield(f(4)) == -4
        done, _ = await asyncio.wait([f.submit(5)])
        assert [future.result() for future in done] == [-5]

    f = batched(batch_size=9, timeout=None)(anegate)
    run(main())


def test_task_group_that_fails_takes_its_items_out() -> None:
    async def fail() -> None:
        raise ValueError

    async def main() -> None:
        async def group_that_fails() -> None:
            async with asyncio.TaskGroup() as group:
                for item in (2, 3):
                    group.create_task(f(item))
                group.create_task(fail())

        other = f.submit(1)
        with pytest.raises(ExceptionGroup):
            await group_that_fails()
        assert f.stats.pending == 1
        f.flush()
        assert await other == -1

    f = batched(batch_size=9, timeout=None)(anegate)
    run(main())
    assert f.stats.sizes == {1: 1}


def test_dropped_coroutine_leaves_no_item_and_no_timer() -> None:
    async def main() -> None:
        coroutine = f(1)
        coroutine.send(None)
        assert f.stats.pending == 1
        coroutine.close()
        assert f.stats.pending == 0
        await settle()
        assert here().timers() == 0
        f(2).close()

    f = batched(batch_size=9, timeout=1.0)(anegate)
    run(main())


# The task of a batch is cancelled


@pytest.mark.parametrize("begun", [False, True])
def test_cancelled_task_of_a_batch_fails_its_callers_and_the_next_batch_runs(begun: bool) -> None:
    async def main() -> None:
        waiting = tasks(map(f, [1, 2, 3]))
        await asyncio.sleep(0)
        if begun:
            await settle()
        (task,) = tasks_of_batches()
        assert task.get_name() == "batchify task of AsyncGated()"
        task.cancel()
        await settle()
        await gated.go_on(9)
        found = await outcomes(waiting)
        if begun:
            assert [type(outcome) for outcome in found[:2]] == [BatchError] * 2
            assert isinstance(found[0].__cause__, asyncio.CancelledError)
        else:
            assert found[:2] == [-1, -2]
        assert found[2] == -3

    gated = AsyncGated()
    f = batched(batch_size=2)(gated)
    run(main())


def test_function_may_refuse_to_be_cancelled() -> None:
    async def function(items: list[int]) -> list[int]:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return items
        raise AssertionError

    async def main() -> None:
        future = f.submit(1)
        await settle()
        tasks_of_batches()[0].cancel()
        assert await future == 1

    f = batched(batch_size=2)(function)
    run(main())


@pytest.mark.parametrize("how", ["call", "submit"])
def test_cleanup_that_calls_while_the_loop_shuts_down_is_answered(how: str) -> None:
    answers: list[int] = []

    async def cleanup() -> None:
        try:
            await f(1)
        finally:
            answers.append(await (f(2) if how == "call" else f.submit(2)))

    async def main() -> None:
        tasks([cleanup(), cleanup()])
        await settle()  # asyncio.run() now cancels all tasks, that of the batch among them

    calls = 0

    async def function(items: list[int]) -> list[int]:
        nonlocal calls
        calls += 1
        if calls == 1:
            await asyncio.Event().wait()
        return [-item for item in items]

    f = batched(batch_size=2)(function)
    run(main())
    assert answers == [-2, -2]
