"""What does batching cost per item, when the callers are threads?

Closed loop: each caller passes an item, waits for its result, and passes the next one. The function does next to
nothing, so what is measured is the batching. Schemes, run in turn within each round, so that the machine's moods hit
all of them:

    floor       each caller sleeps on a lock of its own, one thread releases them: no buffer, no timer, no safety
    batchify    @batched
    original    the batch processor that batchify grew from: the caller that fills a batch runs it
    queue       the usual home-made one: queue.Queue, a collector thread, a concurrent.futures.Future per item

Printed: microseconds per item (median over the rounds) of wall time and of CPU time of the whole process, the median
of the ratios to the floor of the same round, the mean size of the batches, and context switches per item.

    python benchmarks/threads.py [--seconds 0.25] [--rounds 7]
"""

import argparse
import itertools
import queue
import resource
import sys
import threading
import time
from _thread import allocate_lock
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from statistics import median
from typing import Any, NamedTuple, Protocol

from batchify import ClosedError, batched

LONG = 5.0  # seconds; with this timeout every batch is full, as those of the floor are
Function = Callable[[list[int]], list[int]]
Caller = Callable[[int], int]


class Floor:
    """What cannot be avoided: a hand-over to a thread and back."""

    def __init__(self, function: Function, batch_size: int, _: float) -> None:
        self.function, self.batch_size = function, batch_size
        self.cells: list[list[Any]] = []
        self.waiting: list[list[Any]] = []
        self.stopped = False
        self.bell = allocate_lock()
        self.bell.acquire()
        self.server = threading.Thread(target=self.serve, daemon=True)
        self.server.start()

    def serve(self) -> None:
        waiting, batch_size, function = self.waiting, self.batch_size, self.function
        while True:
            while len(waiting) < batch_size:
                self.bell.acquire()
                if self.stopped:
                    return
            batch = waiting[:batch_size]
            del waiting[:batch_size]
            for cell, result in zip(batch, function([cell[1] for cell in batch]), strict=True):
                cell[1] = result
                with suppress(RuntimeError):  # close() was faster
                    cell[0].release()

    def caller(self) -> Caller:
        lock = allocate_lock()
        lock.acquire()
        cell: list[Any] = [lock, None]
        self.cells.append(cell)
        waiting, batch_size, bell = self.waiting, self.batch_size, self.bell

        def call(item: int) -> int:
            cell[1] = item
            waiting.append(cell)
            if len(waiting) >= batch_size and bell.locked():
                with suppress(RuntimeError):
                    bell.release()
            lock.acquire()
            result: int = cell[1]
            return result

        return call

    def close(self) -> None:
        self.stopped = True
        for lock in [self.bell, *(cell[0] for cell in self.cells)]:
            if lock.locked():
                lock.release()


class Batchify:
    """This library."""

    def __init__(self, function: Function, batch_size: int, timeout: float) -> None:
        self.function = batched(batch_size=batch_size, timeout=timeout)(function)

    def caller(self) -> Caller:
        return self.function

    def close(self) -> None:
        self.function.close()


class Original:
    """A waiter runs the batch: the one that fills it, or the first to see that it is late."""

    def __init__(self, function: Function, batch_size: int, timeout: float) -> None:
        self.function, self.batch_size, self.timeout = function, batch_size, timeout
        self.condition = threading.Condition()
        self.waiting: list[tuple[int, int]] = []
        self.results: dict[int, int] = {}
        self.numbers = itertools.count()

    def caller(self) -> Caller:
        return self.call

    def call(self, item: int) -> int:
        with self.condition:
            number = next(self.numbers)
            self.waiting.append((number, item))
            if len(self.waiting) < self.batch_size:
                self.condition.wait_for(lambda: number in self.results, self.timeout)
            if not self.waiting or number < self.waiting[0][0]:  # another caller has taken it
                self.condition.wait_for(lambda: number in self.results)
            if number in self.results:
                return self.results.pop(number)
            batch, self.waiting = self.waiting[: self.batch_size], self.waiting[self.batch_size :]
        results = self.function([item for _, item in batch])
        with self.condition:
            self.results.update((number, result) for (number, _), result in zip(batch, results, strict=True))
            self.condition.notify_all()
            return self.results.pop(number)

    def close(self) -> None:
        with self.condition:
            for number, item in self.waiting:
                self.results[number] = item
            self.condition.notify_all()


class Queue:
    """A queue, a future per item, and a thread that collects."""

    def __init__(self, function: Function, batch_size: int, timeout: float) -> None:
        self.function, self.batch_size, self.timeout = function, batch_size, timeout
        self.queue: queue.Queue[tuple[int, Future[int]] | None] = queue.Queue()
        self.collector = threading.Thread(target=self.collect, daemon=True)
        self.collector.start()

    def collect(self) -> None:
        entry = self.queue.get()
        while entry is not None:
            batch = [entry]
            deadline = time.monotonic() + self.timeout
            while len(batch) < self.batch_size:
                try:
                    entry = self.queue.get(timeout=max(0.0, deadline - time.monotonic()))
                except queue.Empty:
                    break
                if entry is None:
                    break
                batch.append(entry)
            for (_, future), result in zip(batch, self.function([item for item, _ in batch]), strict=True):
                future.set_result(result)
            if entry is not None:
                entry = self.queue.get()

    def caller(self) -> Caller:
        return self.call

    def submit(self, item: int) -> Future[int]:
        future: Future[int] = Future()
        self.queue.put((item, future))
        return future

    def call(self, item: int) -> int:
        return self.submit(item).result()

    def close(self) -> None:
        self.queue.put(None)


class Scheme(Protocol):
    """Something to call with an item, from any thread."""

    def __init__(self, function: Function, batch_size: int, timeout: float, /) -> None: ...
    def caller(self) -> Caller: ...
    def close(self) -> None: ...


SCHEMES: dict[str, type[Scheme]] = {"floor": Floor, "batchify": Batchify, "original": Original, "queue": Queue}


class Figures(NamedTuple):
    """What one run cost, per item."""

    wall: float
    cpu: float
    size: float
    switches: float


def run(
    scheme: str,
    make: Callable[[Function, int, float], Scheme],
    callers: int,
    batch_size: int,
    timeout: float,
    seconds: float,
    work: Callable[[int], None] | None = None,
) -> Figures:
    """Let `callers` threads go round for so many seconds, after a fifth of that to warm up.

    `work` is what the function does for so many items; without it, next to nothing.
    """
    batches: list[int] = []

    def double(items: list[int]) -> list[int]:
        batches.append(len(items))
        if work is not None:
            work(len(items))
        return [2 * item for item in items]

    batching = make(double, batch_size, timeout)
    counts = [0] * callers
    stopped = False
    wrong: list[str] = []
    go = threading.Event()  # not before all are there: who goes round would leave the GIL to nobody who starts threads

    def go_round(position: int, call: Caller) -> None:
        go.wait()
        number = 0
        while not stopped:
            item = number * callers + position
            try:
                result = call(item)
            except ClosedError:
                return
            except Exception as error:  # noqa: BLE001
                wrong.append(f"{scheme}: {error!r}")
                return
            if result != 2 * item and not stopped:
                wrong.append(f"{scheme}: a wrong result")
                return
            number += 1
            counts[position] = number

    threads = [
        threading.Thread(target=go_round, args=(position, batching.caller()), daemon=True)
        for position in range(callers)
    ]
    for thread in threads:
        thread.start()
    go.set()
    time.sleep(seconds / 5)
    before = (time.perf_counter(), time.process_time(), sum(counts), len(batches), switches())
    time.sleep(seconds)
    after = (time.perf_counter(), time.process_time(), sum(counts), len(batches), switches())
    stopped = True
    if not getattr(batching, "close_last", False):
        batching.close()
    for thread in threads:
        thread.join(10)
    if getattr(batching, "close_last", False):
        batching.close()
    if wrong or any(thread.is_alive() for thread in threads):
        sys.exit(wrong[0] if wrong else f"{scheme}: HUNG with {callers} callers, batch {batch_size}")
    wall, cpu, items, flushes, switched = (b - a for a, b in zip(before, after, strict=True))
    items = items or 1
    return Figures(wall / items * 1e6, cpu / items * 1e6, items / max(1, flushes), switched / items)


def switches() -> int:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_nvcsw + usage.ru_nivcsw


def compare(callers: int, batch_size: int, timeout: float, schemes: list[str], seconds: float, rounds: int) -> None:
    """Print a line per scheme for one cell."""
    runs: dict[str, list[Figures]] = {scheme: [] for scheme in schemes}
    for _ in range(rounds):
        for scheme in schemes:
            runs[scheme].append(run(scheme, SCHEMES[scheme], callers, batch_size, timeout, seconds))
    for scheme in schemes:
        wall, cpu, size, switched = (median(column) for column in zip(*runs[scheme], strict=True))
        pairs = list(zip(runs[scheme], runs["floor"], strict=True))
        wall_ratio = median(mine.wall / floor.wall for mine, floor in pairs)
        cpu_ratio = median(mine.cpu / floor.cpu for mine, floor in pairs)
        print(
            f"{callers:>7} {batch_size:>5} {timeout:>7g}  {scheme:<9} {wall:>8.2f} {wall_ratio:>5.2f} "
            f"{cpu:>8.2f} {cpu_ratio:>5.2f} {size:>6.1f} {switched:>8.2f}",
            flush=True,
        )


def idle(seconds: float) -> None:
    """Print what a batcher costs that has run and has nothing to do."""

    def double(items: list[int]) -> list[int]:
        return [2 * item for item in items]

    function = batched(batch_size=8, timeout=0.01)(double)
    for item in range(100):
        function(item)
    time.sleep(0.1)
    before = (time.process_time(), switches())
    time.sleep(seconds)
    cpu, switched = time.process_time() - before[0], switches() - before[1]
    # The one switch is that of this thread, which sleeps and wakes.
    print(f"idle for {seconds:g} s: {cpu * 1e6:.0f} us of CPU, {max(0, switched - 1)} wake-ups")
    function.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=0.25, help="length of one run")
    parser.add_argument("--rounds", type=int, default=7, help="runs of each scheme in each cell")
    parser.add_argument("--quick", action="store_true", help="only the cells of the goals")
    options = parser.parse_args()
    print(f"Python {sys.version.split()[0]}, runs of {options.seconds:g} s, {options.rounds} rounds")
    print("callers batch timeout  scheme     wall us ratio   cpu us ratio   size switches")
    goals = [(8, 8), (32, 32), (32, 8), (128, 32)]
    grid = goals if options.quick else [(n, b) for n in (1, 8, 32, 128) for b in (1, 8, 32) if b <= n]
    for callers, batch_size in grid:
        compare(callers, batch_size, LONG, list(SCHEMES), options.seconds, options.rounds)
    print("a lone caller, timeout 0")
    compare(1, 1, 0.0, list(SCHEMES), options.seconds, options.rounds)
    print("threads that wait (batches of 10)")
    for callers in (10, 100, 1000):
        compare(callers, 10, LONG, ["floor", "batchify"], 4 * options.seconds, options.rounds)
    idle(5.0)


if __name__ == "__main__":
    main()
