"""What does each option cost per item, when it is not used and when it is?

On an event loop, where an item costs least, so that an option shows most: each round passes 16,000 items by
`f.submit()` and awaits them all. The function does next to nothing. The schemes run in turn within each round, so that
the machine's moods hit all of them.

Printed: microseconds per item (median over the rounds), the median of the ratios to no option of the same round, and
the mean size of the batches. Then the same for 1 to 10,000 groups that all wait at once, each for full batches of 8;
and for threads, where an item costs several times as much.

    python benchmarks/options.py [--rounds 7]
"""

import argparse
import asyncio
import gc
import sys
import threading
import time
from collections.abc import Callable
from statistics import median
from typing import Any

from batchify import batched

ITEMS = 16_000
BATCH = 32

# Options, and what the items are.
SCHEMES: dict[str, tuple[dict[str, Any], Callable[[int], Any]]] = {
    "no option": ({}, int),
    "no option, again": ({}, int),  # how much of a ratio is noise
    "timeout=1": ({"timeout": 1.0}, int),
    "group_by, 1 group": ({"group_by": lambda _: "all"}, int),
    "weight=1": ({"weight": lambda _: 1, "max_weight": BATCH}, int),
    "weight=1 to 5": ({"weight": lambda item: item % 5 + 1, "max_weight": 3 * BATCH}, int),
    "dedupe, all different": ({"dedupe": True}, int),
    "dedupe, half the same": ({"dedupe": True}, lambda item: item // 2),
    "isolate": ({"isolate": True}, int),
    "concurrency=4": ({"concurrency": 4}, int),
    "max_pending=32,000": ({"max_pending": 2 * ITEMS}, int),
    "on_batch": ({"on_batch": lambda _: None}, int),
    "all of these": (
        {
            "group_by": lambda _: "all",
            "weight": lambda _: 1,
            "max_weight": BATCH,
            "dedupe": True,
            "isolate": True,
            "concurrency": 4,
            "max_pending": 2 * ITEMS,
            "on_batch": lambda _: None,
        },
        int,
    ),
}


async def bulk(options: dict[str, Any], items: list[Any], batch_size: int) -> tuple[float, float]:
    """Pass all items at once; return microseconds per item, and the mean size of the batches."""

    @batched(batch_size=batch_size, **options)
    async def same(items: list[Any]) -> list[Any]:
        return items

    async with same:
        gc.collect()
        start = time.perf_counter()
        results = await asyncio.gather(*map(same.submit, items))
        seconds = time.perf_counter() - start
        if results != items:
            sys.exit(f"wrong results with {options}")
        return seconds / len(items) * 1e6, same.stats.mean_size


def closed_loop(options: dict[str, Any], callers: int, batch_size: int, each: int = 600) -> tuple[float, float]:
    """Let threads pass one item after the other; return microseconds per item, and the mean size of the batches."""

    @batched(batch_size=batch_size, **{"timeout": 0.005, **options})
    def same(items: list[Any]) -> list[Any]:
        return items

    def go_round() -> None:
        barrier.wait()
        wrong.extend(item for item in range(each) if same(item) != item)

    wrong: list[int] = []
    barrier = threading.Barrier(callers + 1)
    threads = [threading.Thread(target=go_round, daemon=True) for _ in range(callers)]
    for thread in threads:
        thread.start()
    barrier.wait()
    start = time.perf_counter()
    for thread in threads:
        thread.join(60)
    seconds = time.perf_counter() - start
    if wrong or any(thread.is_alive() for thread in threads):
        sys.exit(f"wrong results, or HUNG, with {options}")
    same.close()
    return seconds / (each * callers) * 1e6, same.stats.mean_size


def compare(runs: dict[str, Callable[[], tuple[float, float]]], rounds: int) -> None:
    """Print a line for each, with its ratio to the first."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            found[name].append(run())
    base = next(iter(found.values()))
    for name, figures in found.items():
        ratio = median(mine[0] / other[0] for mine, other in zip(figures, base, strict=True))
        micros, size = (median(column) for column in zip(*figures, strict=True))
        print(f"{name:<24} {micros:>8.2f} {ratio:>6.2f} {size:>6.1f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="runs of each scheme")
    rounds: int = parser.parse_args().rounds
    print(f"Python {sys.version.split()[0]}, {rounds} rounds, {ITEMS:,} items at once, batches of {BATCH}")
    print("option                    us/item  ratio   size")
    compare(
        {
            name: lambda options=options, item=item: asyncio.run(bulk(options, [*map(item, range(ITEMS))], BATCH))  # type: ignore[misc]
            for name, (options, item) in SCHEMES.items()
        },
        rounds,
    )
    print("\n80,000 items at once, in so many groups by turns; batches of 8")
    compare(
        {
            f"{groups:,}": lambda groups=groups: asyncio.run(  # type: ignore[misc]
                bulk({"timeout": None, "group_by": lambda item: item % groups}, [*range(80_000)], 8)
            )
            for groups in (1, 10, 100, 1_000, 10_000)
        },
        min(rounds, 5),
    )
    print("\n32 threads, each one item after the other; batches of 8")
    compare(
        {
            name: lambda options=options: closed_loop(options, 32, 8)  # type: ignore[misc]
            for name, (options, _) in SCHEMES.items()
            if name not in ("timeout=1", "dedupe, half the same")
        },
        rounds,
    )


if __name__ == "__main__":
    main()
