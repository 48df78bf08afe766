"""What does batching cost, beside other libraries and beside the least possible?

The same work goes through batchify and through each library of `adapters.py` that is installed (the group `peers` has
them all). Within each round they run one after the other, so that the machine's moods hit all of them; each has a
process of its own, and one that hangs is ended and called HUNG. Every result is checked.

    python -m benchmarks.peers [--quick] [--only batchify,dike] [--workloads closed,bulk] [--json FILE]
"""

import argparse
import json
import math
import multiprocessing
import os
import platform
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from .adapters import PATHS, versions
from .workloads import serve

Figures = dict[str, Any]

TIMEOUT = 0.005  # seconds that an item may wait for others: what most of them have as a default
# The model: 2 ms, and 0.05 ms for each item.
FIXED, EACH, MODEL_BATCH = 0.002, 0.00005, 16
HANGS_AFTER = 45.0  # seconds beyond what a run takes
TOO_LONG = 4.0  # seconds; what takes longer is run once
NOT_BATCHING = ("floor", "no batching")
TITLES = {
    "threads": "threads that call a `def` function",
    "asyncio": "tasks that await an `async def` function",
    "aio": "tasks that await a `def` function, which runs in a thread",
}


class Entry(NamedTuple):
    """One line of a table: a library, with a timeout of its own or that of all."""

    label: str
    adapter: str
    timeout: float | None = None


class Cell(NamedTuple):
    """One table: a workload with its parameters."""

    workload: str
    path: str
    label: str  # what tells it from other cells of the workload
    batch_size: int
    options: dict[str, Any]
    timeout: float = TIMEOUT
    rounds: int = 4
    seconds: float = 1.0  # that a run takes, about
    also: tuple[Entry, ...] = ()  # beside all libraries


class Table(NamedTuple):
    """How a workload is explained, and which figures are shown: name, heading and format of each."""

    title: str
    text: str
    columns: tuple[tuple[str, str, str], ...]
    by: tuple[str, ...]  # by which figures one is ahead of another; the less, the better


WALL, CPU, SIZE = ("wall", "wall us", ".2f"), ("cpu", "cpu us", ".2f"), ("size", "batch", ".1f")
LATENCY = (("mean", "mean ms", ".2f"), ("p50", "p50 ms", ".2f"), ("p99", "p99 ms", ".2f"))
TABLES = {
    "closed": Table(
        "Saturated",
        "Each caller passes an item, waits for its result, and passes the next one; the function does next to\n"
        "nothing, so what is measured is the batching. us: microseconds per item, of wall time and of CPU time of the\n"
        "whole process. The floor is the least that handing items over and back can cost: it has no timer, no limits,\n"
        "no safety. An item waits 5 ms at most for others, with timeout=0 not at all; data loaders know no timeout.",
        (WALL, CPU, SIZE),
        ("wall", "cpu"),
    ),
    "bulk": Table(
        "Bulk",
        "100,000 items at once from one place, each library by the best way that it has (a call that takes a list, an\n"
        "iterator, or else a task or a future for each). The floor cuts the list and calls the function by hand.",
        (WALL, CPU, SIZE),
        ("wall", "cpu"),
    ),
    "lone": Table(
        "A lone caller",
        "50 calls per second from one caller, so that nobody can share a batch: what waiting for others costs when\n"
        "there are none. Latency from the call to its result, and CPU time per call.",
        (*LATENCY, CPU),
        ("mean", "cpu"),
    ),
    "serving": Table(
        "A model, saturated",
        "64 callers as above, on a model that takes 2 ms and 0.05 ms per item, of which the GIL is free, one batch\n"
        "at a time; batches of 16 at most. wall: microseconds per item; 175 are the model's own, if all are full.",
        (WALL, CPU, *LATENCY, SIZE),
        ("wall", "mean"),
    ),
    "arriving": Table(
        "A model, by load",
        "The same model, and calls that come at random (Poisson), whether or not those before are answered; load is\n"
        "their rate in percent of what the model can do with full batches. Latency from when a call was to be made.\n"
        "'lag' is by how much the load generator was late (the 95th percentile): if it is not far below the latency,\n"
        "the line says more about the generator, or about a process that cannot keep up. 'left' is the part of the\n"
        "calls that was not answered half a second after the last one: that library cannot carry this load.",
        (*LATENCY, CPU, SIZE, ("lag", "lag ms", ".2f"), ("unanswered", "left", ".0%")),
        ("mean", "p99"),
    ),
    "early": Table(
        "Cut early or late?",
        "20 calls, 10 ms apart, on a function that takes 200 ms. Who cuts a batch before the function is free makes\n"
        "20 batches of 1, one after the other: 4 s. Who cuts as late as possible makes 2.",
        (("batches", "batches", ".0f"), ("all_after", "all answered after s", ".2f"), ("p50", "p50 ms", ".0f")),
        ("all_after",),
    ),
    "window": Table(
        "A timeout of 200 ms",
        "20 calls, 10 ms apart, with a timeout of 200 ms and a function that takes no time: one batch, as all come\n"
        "within 200 ms of the first. (The data loaders have no timeout.)",
        (("batches", "batches", ".0f"), ("all_after", "all answered after s", ".2f")),
        ("batches",),
    ),
    "idle": Table(
        "Idle",
        "After some calls, nothing to do for 5 s: microseconds of CPU time and context switches per second.",
        (("idle_cpu", "cpu us/s", ".0f"), ("wake_ups", "wake-ups/s", ".1f")),
        ("wake_ups",),
    ),
    "memory": Table(
        "Memory",
        "Items that wait while the function is busy: bytes of Python objects for each, with its task or thread (not\n"
        "the stack of the thread).",
        (("memory", "bytes", ".0f"),),
        ("memory",),
    ),
}


class Hung(Exception):  # noqa: N818
    """Raised when a process gives no answer."""


class Worker:
    """A process that runs workloads of one library."""

    def __init__(self, path: str, name: str) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, path, name), daemon=True)
        self.process.start()
        theirs.close()
        self.state, self.why = self.answer(120)

    def answer(self, patience: float) -> tuple[str, Any]:
        try:
            if self.pipe.poll(patience):
                reply: tuple[str, Any] = self.pipe.recv()
                return reply
        except (EOFError, ConnectionError):
            return "died", None
        return "HUNG", None

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()


class Bench:
    """Runs cells, and keeps what was found."""

    def __init__(self, only: Sequence[str], rounds: int | None, *, quick: bool) -> None:
        self.only, self.rounds, self.quick = only, rounds, quick
        self.workers: dict[tuple[str, str], Worker] = {}
        self.cells: list[Figures] = []
        self.missing: dict[str, str] = {}

    def entries(self, cell: Cell) -> list[Entry]:
        workload, left_out = cell.workload, set()
        if workload in ("arriving", "lone", "early", "window", "idle"):
            left_out.add("floor")  # it has no timer, and answers full batches only
        if workload not in ("closed", "bulk", "memory"):
            left_out.add("batchify submit")
        if workload == "arriving":
            left_out.add("no batching")  # it can do some 480 per second, less than the least of the loads
        if cell.path == "threads" and cell.options.get("callers", 0) > 64:
            left_out.add("no batching")  # its callers never sleep, and leave nothing to whoever would end it
        names = [
            name
            for name in PATHS[cell.path]
            if name not in left_out and (not self.only or name in (*self.only, "floor", "batchify"))
        ]
        return [*(Entry(name, name) for name in names if name == "floor"), *cell.also] + [
            Entry(name, name) for name in names if name != "floor"
        ]

    def worker(self, path: str, name: str) -> Worker:
        if (path, name) not in self.workers:
            self.workers[path, name] = Worker(path, name)
        return self.workers[path, name]

    def tell(self, cell: Cell, entry: Entry, options: Figures) -> bool:
        """Let a process begin. False if it cannot."""
        worker = self.worker(cell.path, entry.adapter)
        if worker.state != "ready":
            self.missing[f"{entry.adapter} ({cell.path})"] = str(worker.why)
            return False
        timeout = cell.timeout if entry.timeout is None else entry.timeout
        worker.pipe.send((cell.workload.replace("window", "early"), cell.batch_size, timeout, options))
        return True

    def hear(self, cell: Cell, entry: Entry) -> tuple[str, Any]:
        worker = self.worker(cell.path, entry.adapter)
        status, figures = worker.answer(cell.seconds + HANGS_AFTER)
        if status not in ("done", "cannot"):
            worker.end()
            del self.workers[cell.path, entry.adapter]
        return status, figures

    def run(self, cell: Cell) -> Figures:
        """Run a cell for all libraries; return its record."""
        entries = self.entries(cell)
        runs: dict[str, list[Figures | None]] = {entry.label: [] for entry in entries}
        states = {entry.label: "done" for entry in entries}
        took: dict[str, float] = {}
        rounds = 1 if self.quick else self.rounds or cell.rounds
        for number in range(rounds):
            options = {**cell.options, "seed": number} if cell.workload == "arriving" else cell.options
            if cell.workload == "idle":  # all at once, as they disturb nobody
                begun = [entry for entry in entries if self.tell(cell, entry, options)]
            for entry in entries:
                if states[entry.label] == "done" and took.get(entry.label, 0.0) < TOO_LONG:
                    told = entry in begun if cell.workload == "idle" else self.tell(cell, entry, options)
                    start = time.monotonic()
                    status, figures = self.hear(cell, entry) if told else ("not installed", None)
                    states[entry.label] = f"cannot: {figures}" if status == "cannot" else status
                    runs[entry.label].append(figures if status == "done" else None)
                    took[entry.label] = time.monotonic() - start
                else:
                    runs[entry.label].append(None)
        record = {
            "workload": cell.workload,
            "path": cell.path,
            "label": cell.label,
            "batch_size": cell.batch_size,
            "rounds": rounds,
            "lines": [
                {"peer": label, "status": states[label], **self.summary(label, runs, TABLES[cell.workload].by)}
                if states[label] == "done"
                else {"peer": label, "status": states[label]}
                for label in runs
            ],
        }
        self.cells.append(record)
        return record

    @staticmethod
    def summary(label: str, runs: dict[str, list[Figures | None]], compared: Iterable[str]) -> Figures:
        """Return medians over the rounds, and medians of ratios to others of the same round."""
        mine = [figures for figures in runs[label] if figures is not None]
        shown: Figures = {}
        for name in mine[0]:
            if isinstance(mine[0][name], int | float):
                shown[name] = middle([figures[name] for figures in mine])
        if "sizes" in mine[0]:
            shown["sizes"] = mine[0]["sizes"]
        for other in [each for each in runs if each == "floor" or each.startswith("batchify")]:
            ratios = {}
            for name in compared:
                pairs = [
                    (one[name], two[name])
                    for one, two in zip(runs[label], runs[other], strict=True)
                    if one is not None and two is not None
                ]
                if pairs and all(two for _, two in pairs):
                    ratios[name] = middle([one / two for one, two in pairs])
            shown[f"over {other}"] = ratios
        return shown

    def end(self) -> None:
        for worker in self.workers.values():
            worker.end()


def middle(numbers: Sequence[float]) -> float | None:
    """Return the median; None if there was none in one of the rounds."""
    return None if any(map(math.isnan, numbers)) else float(f"{median(numbers):.4g}")


def cells(*, quick: bool) -> Iterable[Cell]:
    """Return what is measured, but for the loads of the model, which depend on the machine."""
    no_wait = {path: (Entry("batchify timeout=0", "batchify", 0.0),) for path in PATHS}
    grid = {
        "threads": [(1, 1), (8, 8), (32, 8), (32, 32), (128, 32), (128, 64), (1000, 32)],
        "asyncio": [(1, 1), (8, 8), (32, 32), (256, 8), (256, 32), (256, 64), (2000, 32)],
        "aio": [(1, 1), (256, 8), (256, 64)],
    }
    for path in PATHS:
        for callers, size in [(32, 8), (256, 64)][path != "threads" :][:1] if quick else grid[path]:
            label = f"{callers:,} {'threads' if path == 'threads' else 'tasks'}, batches of {size}"
            seconds = 0.4 if callers == 1000 else 0.15
            options = {"callers": callers, "seconds": seconds}
            yield Cell("closed", path, label, size, options, seconds=2.0, also=no_wait[path])
    for path in PATHS:
        yield Cell("bulk", path, "batches of 64", 64, {"items": 100_000}, rounds=2, seconds=30.0)
    for path in PATHS:
        yield Cell("lone", path, "50/s", 32, {"rate": 50.0, "seconds": 0.8}, rounds=2, also=no_wait[path])
    for path in PATHS:
        options = {"callers": 64, "seconds": 0.5, "fixed": FIXED, "each": EACH}
        yield Cell("serving", path, "64 callers", MODEL_BATCH, options, rounds=3, also=no_wait[path])
    for path in ("threads", "asyncio"):
        options = {"calls": 20, "apart": 0.01, "takes": 0.2}
        yield Cell("early", path, "", 32, options, rounds=1, seconds=5.0, also=no_wait[path])
        yield Cell("window", path, "", 32, {**options, "takes": 0.0}, timeout=0.2, rounds=1)
    for path in PATHS:
        yield Cell("idle", path, "", 32, {"seconds": 1.0 if quick else 5.0}, rounds=1, seconds=6.0)
    for path in PATHS:
        items = (6 if path == "threads" else 300) * 32
        yield Cell("memory", path, f"{items:,} items", 32, {"items": items}, rounds=1, seconds=5.0)


def loads(bench: Bench, *, quick: bool) -> Iterable[Cell]:
    """Return cells of the model at fixed loads, by what it can do here."""
    waits = (
        Entry("batchify timeout=0", "batchify", 0.0),
        Entry("batchify timeout=100ms", "batchify", 0.1),
    )
    for path in PATHS:
        worker = bench.worker(path, "floor")
        worker.pipe.send(("measured", MODEL_BATCH, 0.0, {"size": MODEL_BATCH, "fixed": FIXED, "each": EACH}))
        status, found = worker.answer(60)
        if status != "done":
            sys.exit(f"the model itself: {status}")
        full = found["seconds"]
        for load in (80,) if quick or path == "aio" else (20, 50, 80, 95):
            options = {
                "rate": load / 100 * MODEL_BATCH / full,
                "seconds": 0.6,
                "fixed": FIXED,
                "each": EACH,
                "callers": 400,
            }
            also = waits[:1] if path == "aio" else waits
            yield Cell("arriving", path, f"load {load} %", MODEL_BATCH, options, rounds=3, seconds=3.0, also=also)


def show(record: Figures) -> None:
    """Print a table."""
    table = TABLES[record["workload"]]
    with_floor = any(line["peer"] == "floor" for line in record["lines"])
    print(f"\n{TITLES[record['path']]}; {record['label']}" if record["label"] else f"\n{TITLES[record['path']]}")
    headings = [f"{heading:>9}" for _, heading, _ in table.columns]
    compared = [name for name in table.by if with_floor and record["workload"] in ("closed", "bulk")]
    headings += [f"{name + '/floor':>11}" for name in compared]
    headings += [f"{name + '/batchify':>14}" for name in table.by]
    print(f"  {'':<24}{' '.join(headings)}")
    for line in record["lines"]:
        if line["status"] != "done":
            print(f"  {line['peer']:<24}{line['status'][:100]:>9}")
            continue
        figures = [
            f"{format(line[name], form) if line.get(name) is not None else '-':>{max(9, len(heading))}}"
            for name, heading, form in table.columns
        ]
        figures += [f"{ratio(line, 'floor', name):>11}" for name in compared]
        figures += [f"{ratio(line, 'batchify', name):>14}" for name in table.by]
        notes = f"  sizes {line['sizes']}" if len(line.get("sizes", ())) in range(1, 9) else ""
        print(f"  {line['peer']:<24}{' '.join(figures)}{notes}", flush=True)


def ratio(line: Figures, other: str, name: str) -> str:
    found = line.get(f"over {other}", {}).get(name)
    return "-" if found is None else f"{found:.2f}"


def ahead(record: Figures) -> str:
    """Return which libraries that batch are more than 5 % ahead of each way of batchify, and by what; or nothing."""
    found = []
    for line in record["lines"]:
        if line["status"] != "done" or line["peer"] in NOT_BATCHING or line["peer"].startswith("batchify"):
            continue
        better = []
        for name in TABLES[record["workload"]].by:
            ratios = [
                others[name]
                for key, others in line.items()
                if key.startswith("over batchify") and others.get(name) is not None
            ]
            if ratios and max(ratios) < 0.95:
                better.append(f"{name} {max(ratios):.2f}")
        if better:
            found.append(f"{line['peer']} ({', '.join(better)})")
    where = ", ".join(part for part in (TABLES[record["workload"]].title, record["path"], record["label"]) if part)
    return f"{where}: {', '.join(found)}" if found else ""


def machine() -> dict[str, Any]:
    return {"python": platform.python_version(), "system": platform.system(), "cores": os.cpu_count()}


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Run it all; return what is to be recorded."""
    start = time.monotonic()
    bench = Bench([each for each in options.only.split(",") if each], options.rounds, quick=options.quick)
    chosen = [each for each in options.workloads.split(",") if each] or list(TABLES)
    if unknown := set(chosen) - set(TABLES):
        sys.exit(f"no such workload: {', '.join(unknown)}; there are {', '.join(TABLES)}")
    behind: list[str] = []
    try:
        for workload in TABLES:
            if workload not in chosen:
                continue
            table = TABLES[workload]
            print(f"\n{table.title}\n{'=' * len(table.title)}\n{table.text}")
            some = loads(bench, quick=options.quick) if workload == "arriving" else cells(quick=options.quick)
            for cell in some:
                if cell.workload == workload:
                    record = bench.run(cell)
                    show(record)
                    behind.append(ahead(record))
    finally:
        bench.end()
    if bench.missing:
        print("\nNot installed:")
        for name, why in bench.missing.items():
            print(f"  {name}: {why[:120]}")
    print("\nMore than 5 % ahead of batchify, whichever way that is called, of those that batch;")
    print("of each figure, the part that they need of batchify's:")
    print("\n".join(f"  {line}" for line in behind if line) or "  nobody")
    seconds = time.monotonic() - start
    print(f"\n{seconds:.0f} s")
    return {
        "machine": machine(),
        "versions": versions(),
        "seconds": round(seconds),
        "cells": bench.cells,
    }


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round of a few cells, to see whether it works")
    parser.add_argument("--only", default="", help="libraries to compare batchify with, by their names in the tables")
    parser.add_argument("--workloads", default="", help=f"some of {', '.join(TABLES)}")
    parser.add_argument("--rounds", type=int, help="how often each is run, in place of 1 to 5")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to record the figures")
    return parser


def main() -> None:
    options = arguments().parse_args()
    print(f"Python {platform.python_version()}, {os.cpu_count()} cores")
    found = measure(options)
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(found, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
