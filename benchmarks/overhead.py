"""What does a call cost, over the least that is possible?

CPU time per item; the function does next to nothing, so what is measured is the batching. It is compared with

    threads, await, aio, submit   the least that handing an item over and back can cost: no timer, no limit, no safety
    map                           slicing the list by hand and calling the function: the difference, not the ratio
    option, groups                batchify without that option, and as many items in one group

Beside batchify stands what one would write by hand: `original`, the batch processor that batchify grew from, where a
caller runs the batch; `queue`, a queue of futures and a thread or task that collects; and in place of `f.aio(x)`
`wrap_future`, `asyncio.wrap_future(f.submit(x))`, and `to_thread`, `asyncio.to_thread(f, x)`.

A measurement is many rounds, each of some milliseconds, in a process of its own, pinned to one core where the system
can do that. Those that are compared take turns, several times. Kept is the cheapest round of each: what else the
machine does can only add to it, so it repeats within some percent where a mean of all rounds does not.

    python -m benchmarks.overhead [--quick] [--unpinned] [--other PATH] [NAME ...]

A name stands for all that begin with it: `threads`, or 'await 256/8', which is 256 callers and batches of 8.
"""

import argparse
import asyncio
import gc
import inspect
import json
import math
import os
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import batchify
from batchify import batched

from . import adapters

TURNS, ROUNDS = 3, 20
QUICK_TURNS, QUICK_ROUNDS = 1, 5
LONGEST = 2.0  # seconds of CPU time of one process, unless it needs more for three rounds
LONG = 5.0  # seconds; with this timeout every batch is full, as those of the floor are
# The main program of a process: first the checkout that is measured, since this one may hold another batchify.
WORKER = """
import sys
sys.path.insert(0, sys.argv[1])
import batchify
sys.path.insert(0, sys.argv[2])
from benchmarks import overhead
overhead.work(*sys.argv[3:])
"""
HERE, MEASURED = (str(Path(file).resolve().parents[1]) for file in (__file__, batchify.__file__))


class Figures(NamedTuple):
    """What a round cost: microseconds of CPU time per item; and the mean size of its batches."""

    cpu: float
    size: float


class Case(NamedTuple):
    """One line: what `floor` is, in the words of the table; and what is compared, each given the number of rounds."""

    base: str
    schemes: dict[str, Callable[[int], Figures]]


class Rounds:
    """The function that gets the batches, and cuts what passes through it into rounds.

    With `items`, a round ends whenever so many have passed, so it lies in a steady state: starting the callers and
    waiting for the last one is no part of it. `enough` is called when it is over: after so many `rounds`, or fewer if
    they are long.
    """

    def __init__(self, rounds: int, items: float = math.inf, enough: Callable[[], object] = int) -> None:
        self.items, self.rounds, self.enough = items, rounds, enough
        self.found: list[Figures] = []
        self.lock = threading.Lock()  # a scheme may run batches side by side
        self.begin()

    def double(self, items: list[int]) -> list[int]:
        with self.lock:
            self.batches += 1
            self.passed += len(items)
            if self.passed >= self.items:
                self.end(self.passed)
        return [2 * item for item in items]

    async def double_async(self, items: list[int]) -> list[int]:
        return self.double(items)

    def begin(self) -> None:
        self.passed = self.batches = 0
        self.began = time.process_time()

    def end(self, items: int) -> None:
        """Note a round of so many items, of which fewer may have passed through the function."""
        spent = time.process_time() - self.began
        self.found.append(Figures(spent / items * 1e6, self.passed / self.batches))
        if self.over:
            self.enough()
        self.begin()

    @property
    def over(self) -> bool:
        return len(self.found) > self.rounds or (len(self.found) > 3 and time.process_time() > LONGEST)

    def cheapest(self) -> Figures:
        return min(self.found[1:])  # without the first, which was to warm up


# Callers that go round: each passes an item, waits for its result, and passes the next one


THREADS = {
    "floor": adapters.Floor,
    "batchify": adapters.Batchify,
    "original": adapters.Original,
    "queue": adapters.Queue,
}
AWAIT = {"floor": adapters.LoopFloor, "batchify": adapters.BatchifyAwait, "queue": adapters.LoopQueue}
AIO = {
    "floor": adapters.AioFloor,
    "batchify": adapters.BatchifyAio,
    "wrap_future": adapters.BatchifyWrapFuture,
    "to_thread": adapters.BatchifyToThread,
}


def go_round_threads(make: Callable[..., Any], callers: int, size: int, timeout: float, rounds: int) -> Figures:
    """Let threads call, whose end is that of the process."""
    enough = threading.Event()
    function = Rounds(rounds, max(2_000, 4 * callers), enough.set)
    scheme = make(function.double, size, timeout)
    wrong: list[int] = []
    go = threading.Event()  # not before all are there: who goes round leaves the GIL to nobody who starts threads

    def caller(call: adapters.Caller) -> None:
        item = 0
        go.wait()
        try:
            while call(item) == 2 * item:
                item += 1
        finally:
            wrong.append(item)
            enough.set()

    for _ in range(callers):
        threading.Thread(target=caller, args=(scheme.caller(),), daemon=True).start()
    go.set()
    enough.wait()
    if wrong:
        sys.exit("a call went wrong")
    return function.cheapest()


def go_round_tasks(make: Callable[..., Any], callers: int, size: int, timeout: float, rounds: int) -> Figures:
    """Let tasks call."""

    async def caller(call: adapters.Call, enough: asyncio.Event) -> None:
        item = 0
        try:
            while not enough.is_set():
                if await call(item) != 2 * item:
                    sys.exit("a wrong result")
                item += 1
        finally:
            enough.set()

    async def main() -> Figures:
        loop, enough = asyncio.get_running_loop(), asyncio.Event()
        function = Rounds(rounds, max(2_000, 4 * callers), lambda: loop.call_soon_threadsafe(enough.set))
        scheme = make(function.double_async if make.on_the_loop else function.double, size, timeout)  # type: ignore[attr-defined]
        running = [loop.create_task(caller(scheme.call, enough)) for _ in range(callers)]
        await enough.wait()
        done, _ = await asyncio.wait(running, timeout=0.2)  # the rest waits for others, and is cancelled at the end
        for task in done:
            task.result()
        return function.cheapest()

    return asyncio.run(main())


def going_round(schemes: dict[str, Any], callers: int, size: int) -> Case:
    """Return the case of so many callers; a lone one waits for nobody, and its floor for a batch of one."""
    go = go_round_threads if schemes is THREADS else go_round_tasks
    timeout = LONG if callers > 1 else 0.0
    sizes = {name: min(size, callers) if name == "floor" else size for name in schemes}
    return Case("least", {name: partial(go, make, callers, sizes[name], timeout) for name, make in schemes.items()})


# Many items at once, from one place

BULK, GROUPED = range(6_400), range(80_000)  # items at once; so many that each of 10,000 groups has a full batch
HALVES = [item // 2 for item in BULK]
Way = Callable[[Rounds, list[int]], list[int] | Coroutine[Any, Any, list[int]]]


def at_once(way: Way, items: list[int], rounds: int) -> Figures:
    """Pass all items at once, again and again."""
    function = Rounds(rounds)
    with asyncio.Runner() as runner:
        while not function.over:
            gc.collect()
            function.begin()
            found = way(function, items)
            results = runner.run(found) if inspect.iscoroutine(found) else found
            function.end(len(items))
            if results != [2 * item for item in items]:
                sys.exit("wrong results")
    return function.cheapest()


async def submit_floor(function: Rounds, items: list[int]) -> list[int]:
    submit = adapters.LoopFloor(function.double_async, 64, LONG).submit
    return [await future for future in [submit(item) for item in items]]


async def submit(function: Rounds, items: list[int], size: int = 64, **options: Any) -> list[int]:
    submit = batched(batch_size=size, **options)(function.double_async).submit
    return [await future for future in [submit(item) for item in items]]


async def submit_grouped(groups: int, function: Rounds, items: list[int]) -> list[int]:
    return await submit(function, items, 8, timeout=None, group_by=lambda item: item % groups)


def slices(items: list[int]) -> list[list[int]]:
    return [items[start : start + 64] for start in range(0, len(items), 64)]


def by_hand(function: Rounds, items: list[int]) -> list[int]:
    return [result for each in slices(items) for result in function.double(each)]


async def by_hand_async(function: Rounds, items: list[int]) -> list[int]:
    return [result for each in slices(items) for result in await function.double_async(each)]


def map_def(function: Rounds, items: list[int]) -> list[int]:
    with batched(batch_size=64)(function.double) as f:
        return list(f.map(items))


async def map_async(function: Rounds, items: list[int]) -> list[int]:
    return [result async for result in batched(batch_size=64)(function.double_async).map(items)]


OPTIONS: dict[str, dict[str, Any]] = {
    "group_by": {"group_by": lambda _: "all"},
    "weight": {"weight": lambda _: 1, "max_weight": 64},
    "dedupe": {"dedupe": True},  # half the items are the same as others
    "isolate": {"isolate": True},
    "concurrency": {"concurrency": 4},
    "max_pending": {"max_pending": len(BULK)},
    "on_batch": {"on_batch": lambda _: None},
}
OPTIONS["all"] = {name: value for options in OPTIONS.values() for name, value in options.items()}


def all_at_once(base: str, floor: Way, way: Way, items: range | list[int] = BULK) -> Case:
    """Return the case of a way to pass many items."""
    schemes = {"floor": floor, "batchify": way}
    return Case(base, {name: partial(at_once, each, list(items)) for name, each in schemes.items()})


CASES = {
    "threads lone": going_round(THREADS, 1, 32),
    **{
        f"threads {n}/{size}": going_round(THREADS, n, size)
        for n, size in ((8, 8), (32, 32), (128, 32), (32, 8), (1000, 32))
    },
    "await lone": going_round(AWAIT, 1, 32),
    **{f"await {n}/{size}": going_round(AWAIT, n, size) for n, size in ((256, 8), (256, 64), (32, 32))},
    **{f"aio {n}/{size}": going_round(AIO, n, size) for n, size in ((256, 8), (256, 64))},
    "submit": all_at_once("least", submit_floor, submit),
    "map def": all_at_once("by hand", by_hand, map_def),
    "map async def": all_at_once("by hand", by_hand_async, map_async),
    **{
        f"option {name}": all_at_once("none", submit, partial(submit, **options), HALVES if name == "dedupe" else BULK)
        for name, options in OPTIONS.items()
    },
    **{
        f"groups {n}": all_at_once("one group", partial(submit_grouped, 1), partial(submit_grouped, n), GROUPED)
        for n in (10, 100, 1_000, 10_000)
    },
}


# Processes, and the table


def core() -> int:
    """Return the core that processes are pinned to."""
    return max(os.sched_getaffinity(0))


def work(name: str, scheme: str, rounds: str, pinned: str) -> None:
    """Measure one scheme of a case and print its figures: the main function of a process."""
    if pinned == "True":
        os.sched_setaffinity(0, {core()})
    print(json.dumps(CASES[name].schemes[scheme](int(rounds))), flush=True)
    os._exit(0)  # some callers go round still, or wait


def measure(name: str, scheme: str, rounds: int, *, pinned: bool, checkout: str = MEASURED) -> Figures:
    """Let a process measure one scheme of a case, with the batchify of that checkout."""
    command = [sys.executable, "-c", WORKER, checkout, HERE, name, scheme, str(rounds), str(pinned)]
    return Figures(*json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=300).stdout))


def compare(name: str, turns: int, rounds: int, *, pinned: bool, other: str | None = None) -> str:
    """Measure all schemes of a case, by turns; return its line of the table."""
    base, schemes = CASES[name]
    entrants = {each: (each, MEASURED) for each in schemes}
    if other is not None:
        entrants["other"] = ("batchify", other)
    found: dict[str, list[Figures]] = {each: [] for each in entrants}
    for _ in range(turns):
        for each, (scheme, checkout) in entrants.items():
            found[each].append(measure(name, scheme, rounds, pinned=pinned, checkout=checkout))
    least = {each: min(figures) for each, figures in found.items()}
    floor, mine = least.pop("floor"), least["batchify"]
    over = {
        each: f"{cpu - floor.cpu:+.2f}" if base == "by hand" else f"{cpu / floor.cpu:.2f}"
        for each, (cpu, _) in least.items()
    }
    others = ", ".join(f"{each} {over[each]} ({least[each].size:.3g})" for each in over if each != "batchify")
    return f"| {name} | {floor.cpu:.2f} | {mine.cpu:.2f} | {over['batchify']} | {mine.size:.3g} | {others} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(CASES)}, or how some begin")
    parser.add_argument("--quick", action="store_true", help="fewer rounds, to see whether it works")
    parser.add_argument("--unpinned", action="store_true", help="use all cores: nearer to life, and noisier")
    parser.add_argument("--other", metavar="PATH", type=Path, help="the root of another checkout, measured as well")
    options = parser.parse_args()
    names = [name for name in CASES if name.startswith(tuple(options.names or [""]))]
    if not names:
        parser.error("no such name")
    if options.other and not (options.other / "batchify/__init__.py").exists():
        parser.error(f"there is no batchify in {options.other}")
    other = str(options.other.resolve()) if options.other else None
    turns, rounds = (QUICK_TURNS, QUICK_ROUNDS) if options.quick else (TURNS, ROUNDS)
    pinned = hasattr(os, "sched_setaffinity") and not options.unpinned
    where = f"pinned to core {core()} of {os.cpu_count()}" if pinned else f"on {os.cpu_count()} cores, unpinned"
    print(f"Python {platform.python_version()}, {where}; the cheapest of {turns} times {rounds} rounds")
    print(f"batchify: {MEASURED}{f', other: {other}' if other else ''}")
    base = ""
    for name in names:
        if CASES[name].base != base:
            base = CASES[name].base
            more = "more" if base == "by hand" else "ratio"
            print(f"\n| CPU us per item | {base} | batchify | {more} | batch | others (batch) |\n|{'---|' * 6}")
        print(compare(name, turns, rounds, pinned=pinned, other=other), flush=True)


if __name__ == "__main__":
    main()
