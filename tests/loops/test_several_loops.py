"""A function may be used on many event loops, one after the other or at once: each has batches of its own."""

import asyncio
import threading

import pytest

from batchify import ClosedError

from ..kit import anegate, batched, run, together
from ..tools import in_threads

pytestmark = pytest.mark.usefixtures("no_noise")


def test_loops_one_after_the_other() -> None:
    f = batched(batch_size=4)(anegate)
    for item in range(5):
        assert asyncio.run(f(item)) == -item
    assert f.stats.answered == 5


def test_loops_at_once() -> None:
    async def main(start: int) -> list[int]:
        found = await together(*map(f, range(start, start + 50)))
        return found + [result async for result in f.map(range(start, start + 50))]

    f = batched(batch_size=8)(anegate)
    found = in_threads(lambda start: asyncio.run(main(start)), range(0, 400, 50))
    assert found == [[-item for item in range(start, start + 50)] * 2 for start in range(0, 400, 50)]
    assert (f.stats.answered, f.stats.pending, f.stats.in_flight) == (800, 0, 0)


def test_loops_do_not_share_batches() -> None:
    loops: set[int] = set()

    async def function(items: list[int]) -> list[int]:
        assert set(items) == {id(asyncio.get_running_loop())}
        loops.update(items)
        return items

    async def main(_: int) -> None:
        item = id(asyncio.get_running_loop())
        barrier.wait()
        assert await together(*(f(item) for _ in range(5))) == [item] * 5
        barrier.wait()  # else the address may be used again

    barrier = threading.Barrier(4)
    f = batched(batch_size=5, timeout=None)(function)
    assert in_threads(lambda number: asyncio.run(main(number)), range(4)) == [None] * 4
    assert len(loops) == 4


def test_stats_and_settings_are_those_of_all_loops_together() -> None:
    f = batched(batch_size=9, timeout=None)(anegate)
    loops = [asyncio.new_event_loop() for _ in range(2)]

    async def submit(item: int) -> "list[asyncio.Future[int]]":
        return [f.submit(item), f.submit(item)]

    async def change(name: str, value: float) -> None:
        setattr(f, name, value)

    for name, value in (("batch_size", 2), ("timeout", 0.0)):
        f.batch_size, f.timeout = 9, None
        waiting = [(loop, future) for loop in loops for future in loop.run_until_complete(submit(1))]
        assert f.stats.pending == 4
        loops[1].run_until_complete(change(name, value))
        for loop, future in waiting:
            assert loop.run_until_complete(asyncio.wait_for(future, 60)) == -1
    assert (f.stats.answered, f.stats.pending) == (8, 0)
    for loop in loops:
        loop.close()


def test_close_on_one_loop_makes_due_what_waits_on_another() -> None:
    async def wait() -> int:
        task = asyncio.create_task(f(1))
        await asyncio.sleep(0)
        accepted.set()
        found: int = await task
        return found

    accepted = threading.Event()
    f = batched(batch_size=2, timeout=None)(anegate)

    def close() -> None:
        accepted.wait()
        asyncio.run(f.aclose())

    closer = threading.Thread(target=close)
    closer.start()
    assert asyncio.run(wait()) == -1
    closer.join()


def test_closed_function_refuses_calls_on_loops_that_come_later() -> None:
    f = batched(batch_size=1)(anegate)
    run(f.aclose())
    with pytest.raises(ClosedError):
        run(f(1))
    assert f.stats.accepted == 0


def test_flush_reaches_all_loops() -> None:
    async def main(item: int) -> list[int]:
        futures = [f.submit(item), f.submit(item + 1)]
        barrier.wait()
        return await together(*futures)

    def flush(_: int) -> None:
        barrier.wait()
        f.flush()

    barrier = threading.Barrier(4)
    f = batched(batch_size=3, timeout=None)(anegate)
    found = in_threads(lambda item: flush(item) if item == 6 else asyncio.run(main(item)), [0, 2, 4, 6])
    assert found == [[0, -1], [-2, -3], [-4, -5], None]
    assert (f.stats.sizes, f.stats.reasons) == ({2: 3}, {"flush": 3})
