"""What does batching cost per item, when the callers are coroutines?

The function does next to nothing, so what is measured is the batching. Two ways to call: `tasks` that await one item
after the other, each a new one as soon as it has its answer; and `gather` over n items at once, again and again.
Schemes, run in turn within each round, so that the machine's moods hit all of them. On an `async def` function:

    floor       a future per item, set by hand in a task per batch: no buffer, no timer, no limit, no safety
    f(x)        @batched, `await f(x)`
    f.submit    @batched, the future of `f.submit(x)`

and on a `def` function, which runs in a thread of its own:

    floor       a future per item; the thread sends the results of a batch home in one call_soon_threadsafe()
    f.aio       @batched, `await f.aio(x)`
    wrap_future `await asyncio.wrap_future(f.submit(x))`: a message to the loop per item
    to_thread   `await asyncio.to_thread(f, x)`: a thread per call

Printed: microseconds per item (median over the rounds) of wall time and of CPU time of the whole process, the median of
the ratios to the floor of the same round, and the mean size of the batches.

    python benchmarks/coroutines.py [--items 20000] [--rounds 7] [--quick]
"""

import argparse
import asyncio
import gc
import sys
import threading
import time
from _thread import allocate_lock
from collections.abc import Awaitable, Callable
from contextlib import suppress
from statistics import median
from typing import Any, NamedTuple

from batchify import batched

LONG = 5.0  # seconds; with this timeout every batch is full, as those of the floor are
Call = Callable[[int], Awaitable[int]]
Entry = tuple[int, "asyncio.Future[int]"]
Function = Callable[[list[int]], Any]  # of a list; a coroutine function where the scheme runs it on the loop


class Scheme:
    """Something to await per item. Made on the event loop that uses it."""

    on_the_loop = True  # the function is a coroutine function

    def __init__(self, function: Function, batch_size: int, timeout: float) -> None:
        self.function, self.batch_size, self.timeout = function, batch_size, timeout
        self.call: Call = self.start()

    def start(self) -> Call:
        raise NotImplementedError

    async def stop(self) -> None:
        pass


class CoroutineFloor(Scheme):
    def start(self) -> Call:
        self.waiting: list[Entry] = []
        self.tasks: set[asyncio.Task[None]] = set()
        return self.wait

    async def wait(self, item: int) -> int:
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.waiting.append((item, future))
        if len(self.waiting) >= self.batch_size:
            batch, self.waiting = self.waiting, []
            task = asyncio.create_task(self.answer(batch))
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)
        return await future

    async def answer(self, batch: list[Entry]) -> None:
        results = await self.function([item for item, _ in batch])
        for (_, future), result in zip(batch, results, strict=True):
            future.set_result(result)


class Await(Scheme):
    def start(self) -> Call:
        return batched(batch_size=self.batch_size, timeout=self.timeout)(self.function)


class Submit(Scheme):
    def start(self) -> Call:
        function: Any = batched(batch_size=self.batch_size, timeout=self.timeout)(self.function)
        call: Call = function.submit
        return call


class ThreadFloor(Scheme):
    on_the_loop = False

    def start(self) -> Call:
        self.loop = asyncio.get_running_loop()
        self.waiting: list[Entry] = []
        self.stopped = False
        self.bell = allocate_lock()
        self.bell.acquire()
        threading.Thread(target=self.serve, daemon=True).start()
        return self.wait

    async def wait(self, item: int) -> int:
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.waiting.append((item, future))
        if len(self.waiting) >= self.batch_size and self.bell.locked():
            self.ring()
        return await future

    def serve(self) -> None:
        while True:
            while len(self.waiting) < self.batch_size:
                self.bell.acquire()
                if self.stopped:
                    return
            batch = self.waiting[: self.batch_size]
            del self.waiting[: self.batch_size]
            self.loop.call_soon_threadsafe(self.answer, batch, self.function([item for item, _ in batch]))

    def ring(self) -> None:
        with suppress(RuntimeError):  # the thread was faster
            self.bell.release()

    @staticmethod
    def answer(batch: list[Entry], results: list[int]) -> None:
        for (_, future), result in zip(batch, results, strict=True):
            future.set_result(result)

    async def stop(self) -> None:
        self.stopped = True
        self.ring()


class Aio(Scheme):
    on_the_loop = False

    def start(self) -> Call:
        self.batched = batched(batch_size=self.batch_size, timeout=self.timeout)(self.function)
        return self.batched.aio

    async def stop(self) -> None:
        await asyncio.to_thread(self.batched.close)


class WrapFuture(Aio):
    def start(self) -> Call:
        super().start()
        return self.wait

    async def wait(self, item: int) -> int:
        return await asyncio.wrap_future(self.batched.submit(item))


class ToThread(Aio):
    def start(self) -> Call:
        super().start()
        return self.wait

    async def wait(self, item: int) -> int:
        return await asyncio.to_thread(self.batched, item)


ON_THE_LOOP: dict[str, type[Scheme]] = {"floor": CoroutineFloor, "f(x)": Await}
GATHERED: dict[str, type[Scheme]] = {"floor": CoroutineFloor, "f(x)": Await, "f.submit": Submit}
IN_A_THREAD: dict[str, type[Scheme]] = {
    "floor": ThreadFloor,
    "f.aio": Aio,
    "wrap_future": WrapFuture,
    "to_thread": ToThread,
}


class Figures(NamedTuple):
    """What one run cost, per item."""

    wall: float
    cpu: float
    size: float


async def in_turn(call: Call, tasks: int, rounds: int) -> None:
    async def caller() -> None:
        for item in range(rounds):
            if await call(item) != 2 * item:
                sys.exit("a wrong result")

    await asyncio.gather(*(caller() for _ in range(tasks)))


async def at_once(call: Call, tasks: int, rounds: int) -> None:
    for _ in range(rounds):
        if await asyncio.gather(*map(call, range(tasks))) != list(range(0, 2 * tasks, 2)):
            sys.exit("wrong results")


Load = Callable[[Call, int, int], Awaitable[None]]


def run(make: type[Scheme], load: Load, tasks: int, batch_size: int, timeout: float, items: int) -> Figures:
    batches = 0

    def double(items: list[int]) -> list[int]:
        nonlocal batches
        batches += 1
        return [2 * item for item in items]

    async def double_async(items: list[int]) -> list[int]:
        return double(items)

    async def main() -> Figures:
        scheme = make(double_async if make.on_the_loop else double, batch_size, timeout)
        rounds = max(1, items // tasks)
        await load(scheme.call, tasks, -(-rounds // 5))  # to warm up
        gc.collect()
        before, wall, cpu = batches, time.perf_counter(), time.process_time()
        await load(scheme.call, tasks, rounds)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        figures = Figures(
            wall / (rounds * tasks) * 1e6,
            cpu / (rounds * tasks) * 1e6,
            rounds * tasks / (batches - before),
        )
        await scheme.stop()
        return figures

    return asyncio.run(main())


def compare(
    title: str, schemes: dict[str, type[Scheme]], load: Load, cells: list[tuple[int, int]], options: argparse.Namespace
) -> None:
    """Print a line per cell and scheme."""
    print(f"\n{title}\n  tasks batch  scheme       wall us ratio   cpu us ratio   size")
    for tasks, batch_size in cells:
        # Every batch is full, so their number must come out even.
        tasks -= tasks % batch_size
        runs: dict[str, list[Figures]] = {name: [] for name in schemes}
        for _ in range(options.rounds):
            for name, scheme in schemes.items():
                # What takes some ten times longer gets fewer items; to_thread has too few threads to fill a batch.
                items = options.items // 5 if name in ("wrap_future", "to_thread") else options.items
                timeout = 0.0 if name == "to_thread" or batch_size == 1 else LONG
                runs[name].append(run(scheme, load, tasks, batch_size, timeout, items))
        for name in schemes:
            wall, cpu, size = (median(column) for column in zip(*runs[name], strict=True))
            pairs = list(zip(runs[name], runs["floor"], strict=True))
            wall_ratio = median(mine.wall / floor.wall for mine, floor in pairs)
            cpu_ratio = median(mine.cpu / floor.cpu for mine, floor in pairs)
            print(
                f"{tasks:>7} {batch_size:>5}  {name:<12} {wall:>7.2f} {wall_ratio:>5.2f} {cpu:>8.2f} {cpu_ratio:>5.2f} "
                f"{size:>6.1f}",
                flush=True,
            )


def bulk(items: int, batch_size: int, rounds: int) -> None:
    """Print what it costs to pass many items from one place, above slicing the list by hand."""
    numbers = list(range(items))

    def double(items: list[int]) -> list[int]:
        return [2 * item for item in items]

    async def double_async(items: list[int]) -> list[int]:
        return [2 * item for item in items]

    def slices() -> list[list[int]]:
        return [numbers[start : start + batch_size] for start in range(0, items, batch_size)]

    async def by_hand() -> list[int]:
        return [result for each in slices() for result in await double_async(each)]

    async def by_map() -> list[int]:
        return [result async for result in batched(batch_size=batch_size)(double_async).map(numbers)]

    async def by_submit() -> list[int]:
        return await asyncio.gather(*map(batched(batch_size=batch_size)(double_async).submit, numbers))

    async def by_call() -> list[int]:
        return await asyncio.gather(*map(batched(batch_size=batch_size)(double_async), numbers))

    def map_of_threads() -> list[int]:
        with batched(batch_size=batch_size)(double) as function:
            return list(function.map(numbers))

    ways: dict[str, Callable[[], Any]] = {
        "async def, sliced by hand": lambda: asyncio.run(by_hand()),
        "async def, f.map": lambda: asyncio.run(by_map()),
        "async def, gather over f.submit": lambda: asyncio.run(by_submit()),
        "async def, gather over f(x)": lambda: asyncio.run(by_call()),
        "def, sliced by hand": lambda: [result for each in slices() for result in double(each)],
        "def, f.map": map_of_threads,
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            gc.collect()
            start = time.perf_counter()
            results = way()
            times[name].append((time.perf_counter() - start) / items * 1e6)
            if results != [2 * number for number in numbers]:
                sys.exit(f"{name}: wrong results")
    print(f"\n{items} items at once, batches of {batch_size}: us per item, and over slicing by hand")
    for name, found in times.items():
        hand = times["async def, sliced by hand" if name.startswith("async") else "def, sliced by hand"]
        over = median(mine - floor for mine, floor in zip(found, hand, strict=True))
        print(f"  {name:<32} {median(found):>6.2f} {over:>6.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=20_000, help="items per run")
    parser.add_argument("--rounds", type=int, default=7, help="runs of each scheme in each cell")
    parser.add_argument("--quick", action="store_true", help="256 tasks only")
    options = parser.parse_args()
    print(f"Python {sys.version.split()[0]}, runs of {options.items} items, {options.rounds} rounds")
    grid = [(tasks, size) for tasks in ((256,) if options.quick else (32, 256, 2000)) for size in (8, 32, 64)]
    cells = [(tasks, size) for tasks, size in grid if size <= tasks]
    compare("async def, tasks in turn", ON_THE_LOOP, in_turn, [(1, 1), *cells], options)
    compare("async def, gather", GATHERED, at_once, cells, options)
    compare("def, tasks in turn", IN_A_THREAD, in_turn, [(1, 1), *cells], options)
    bulk(100_000, 64, max(3, options.rounds // 2))


if __name__ == "__main__":
    main()
