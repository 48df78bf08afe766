"""How far from the best possible is the rule by which the buffer forms batches?

Items come at random (Poisson), one worker runs one batch after the other, and a batch of n items takes a + b * n.
Whenever the worker is free one may run what waits, some of it, or wait for more. Which is best for the mean latency is
solved as a semi-Markov decision process, by policy iteration: no rule that does not know the future can do better.

Beside it, in virtual time, on the same arrivals:

    timeout=0, 5 ms, 100 ms     batchify's own rule (`batchify.tune.simulate`)
    cut early, 0, 5 ms, 100 ms  a batch is cut when it is full or its window is over, though the worker is busy; then it
                                waits in a queue of batches. So do several libraries: see `python -m benchmarks.peers`

Printed: the best mean latency in milliseconds, and how many times as long the others take; "-" where more comes in than
the rule can work off. Load is in percent of what full batches could do.

    python -m benchmarks.optimal [--quick] [--json FILE]
"""

import argparse
import json
import math
import random
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy
from numpy.typing import NDArray

from batchify.tune import Curve, simulate

Vector = NDArray[numpy.float64]
Policy = NDArray[numpy.int64]  # for each state
LOADS = (5, 20, 35, 50, 65, 80, 90, 95)


class Costs(NamedTuple):
    """How long a batch takes, in seconds: fixed, and for each item; and how many items it has at most."""

    name: str
    fixed: float
    each: float
    batch_size: int

    def __call__(self, items: int) -> float:
        return self.fixed + self.each * items

    def rate(self, load: float) -> float:
        """Return how many items per second are that load (1: all that full batches can do)."""
        return load * self.batch_size / self(self.batch_size)


CURVES = (
    Costs("a model: 2 ms + 0.05 ms per item, batches of 16", 0.002, 0.00005, 16),  # that of peers.py
    Costs("a large model: 10 ms + 1 ms per item, batches of 64", 0.010, 0.001, 64),
    Costs("a database: 1 ms + 0.01 ms per item, batches of 100", 0.001, 0.00001, 100),
    Costs("a remote service: 50 ms whatever it gets, batches of 16", 0.050, 0.0, 16),
)


# The best there is


class Optimum(NamedTuple):
    """What to do with n items waiting and the worker free: run so many, 0 to wait for another one."""

    runs: Policy
    latency: float  # the mean, in seconds

    def size(self, waiting: int) -> int:
        return int(self.runs[min(waiting, len(self.runs) - 1)])


class Decisions:
    """The semi-Markov decision process.

    A state is how many wait when the worker is free; a decision, how many of them to run, or 0 to wait for another one.
    What is paid is the number of items in the system, those in the batch included, for as long as they are there: by
    Little's law its mean is latency times rate. What lies beyond the last state counts as the last one, which is so far
    out that it hardly ever happens.
    """

    def __init__(self, costs: Costs, rate: float, states: int | None = None) -> None:
        most = costs.batch_size
        self.rate, self.states = rate, states or max(200, 8 * most)
        waiting = numpy.arange(self.states, dtype=float)
        self.serve_all = numpy.minimum(numpy.arange(self.states), most)
        self.allowed = numpy.array([waiting >= size for size in range(most + 1)])
        # For each decision: how long until the next one, what is paid until then in each state, and where it goes.
        self.times = numpy.array([1 / rate] + [costs(size) for size in range(1, most + 1)])
        self.paid = [waiting / rate]
        self.goes = [numpy.eye(self.states, k=1)]
        self.goes[0][-1, -1] = 1.0
        for size in range(1, most + 1):
            seconds = self.times[size]
            arriving = poisson(rate * seconds, self.states)
            left = numpy.zeros((self.states, self.states))
            for state in range(self.states):
                left[state, state:] = arriving[: self.states - state]
                left[state, -1] += max(0.0, 1.0 - left[state].sum())
            moves = numpy.zeros((self.states, self.states))
            moves[size:] = left[: self.states - size]
            self.goes.append(moves)
            self.paid.append(waiting * seconds + rate * seconds**2 / 2)

    def evaluate(self, runs: Policy) -> tuple[float, Vector]:
        """Return the mean latency of a policy, and what it is worth to be in each state, against being in the first."""
        # value + mean * time = paid + expected value afterwards, in each state; and the value of the first is 0.
        equations = numpy.eye(self.states) - numpy.stack([self.goes[size][state] for state, size in enumerate(runs)])
        equations[:, 0] = self.times[runs]
        found = numpy.linalg.solve(equations, numpy.array([self.paid[size][state] for state, size in enumerate(runs)]))
        mean = float(found[0])
        found[0] = 0.0
        return mean / self.rate, found

    def solve(self) -> Optimum:
        """Find the policy with the lowest mean latency (Howard's policy iteration)."""
        runs, everywhere = self.serve_all, numpy.arange(self.states)
        while True:
            latency, values = self.evaluate(runs)
            mean = latency * self.rate
            worth = numpy.stack(
                [
                    paid - mean * time + goes @ values
                    for paid, time, goes in zip(self.paid, self.times, self.goes, strict=True)
                ]
            )
            worth[~self.allowed] = math.inf
            better = worth.argmin(axis=0)
            # Only where it really is better, or rounding would let it go round for ever.
            gain = worth[runs, everywhere] - worth[better, everywhere]
            better = numpy.where(gain > 1e-9 * (1 + mean), better, runs)
            if (better == runs).all():
                return Optimum(runs, latency)
            runs = better


def poisson(mean: float, size: int) -> Vector:
    """Return the chances of 0, 1, 2, ... arrivals."""
    number = numpy.arange(size)
    logs = numpy.concatenate([[0.0], numpy.cumsum(numpy.log(numpy.arange(1, size)))])
    chances: Vector = numpy.exp(number * math.log(mean) - mean - logs)
    return chances


# Virtual time


Latencies = list[float]


def by_buffer(arrivals: Sequence[float], costs: Costs, timeout: float) -> Latencies:
    """Let batchify's own rule form the batches."""
    curve = Curve.of_line(costs.fixed, costs.each, costs.batch_size)
    return list(simulate(curve, batch_size=costs.batch_size, timeout=timeout, arrivals=arrivals).latencies)


def by_optimum(arrivals: Sequence[float], costs: Costs, best: Optimum) -> Latencies:
    """Follow the best policy."""
    waiting: deque[float] = deque()
    latencies: Latencies = []
    free_at, number = 0.0, 0
    while len(latencies) < len(arrivals):
        if number < len(arrivals) and arrivals[number] <= free_at:
            waiting.append(arrivals[number])
            number += 1
            continue
        size = best.size(len(waiting))
        if size == 0 and number < len(arrivals):
            free_at = arrivals[number]
            continue
        size = size or min(len(waiting), costs.batch_size)  # nobody comes any more
        free_at += costs(size)
        latencies += [free_at - waiting.popleft() for _ in range(size)]
    return latencies


def by_early_cut(arrivals: Sequence[float], costs: Costs, window: float) -> Latencies | None:
    """Cut a batch when it is full or `window` seconds after its first item; batches queue for the worker.

    None if that is more work than the worker can do: the queue would grow for ever.
    """
    latencies: Latencies = []
    free_at, first, busy = 0.0, 0, 0.0
    while first < len(arrivals):
        cut_at = arrivals[first] + window
        end = first + 1
        while end < len(arrivals) and end - first < costs.batch_size and arrivals[end] <= cut_at:
            end += 1
        if end - first == costs.batch_size:
            cut_at = arrivals[end - 1]
        seconds = costs(end - first)
        busy += seconds
        free_at = max(free_at, cut_at) + seconds
        latencies += [free_at - arrival for arrival in arrivals[first:end]]
        first = end
    return latencies if busy < arrivals[-1] else None


RULES: dict[str, Callable[[Sequence[float], Costs], Latencies | None]] = {
    "timeout=0": lambda arrivals, costs: by_buffer(arrivals, costs, 0.0),
    "timeout=5ms": lambda arrivals, costs: by_buffer(arrivals, costs, 0.005),
    "timeout=100ms": lambda arrivals, costs: by_buffer(arrivals, costs, 0.1),
    "cut early, 0": lambda arrivals, costs: by_early_cut(arrivals, costs, 0.0),
    "cut early, 5ms": lambda arrivals, costs: by_early_cut(arrivals, costs, 0.005),
    "cut early, 100ms": lambda arrivals, costs: by_early_cut(arrivals, costs, 0.1),
}


def poisson_arrivals(rate: float, items: int, seed: int = 1) -> list[float]:
    chance = random.Random(seed)
    moment = 0.0
    return [moment := moment + chance.expovariate(rate) for _ in range(items)]


def percentiles(latencies: Latencies) -> dict[str, float]:
    ordered = sorted(latencies)
    last = len(ordered) - 1
    return {
        "mean": sum(ordered) / len(ordered) * 1e3,
        "p50": ordered[last // 2] * 1e3,
        "p99": ordered[round(last * 0.99)] * 1e3,
    }


def point(costs: Costs, load: float, items: int) -> dict[str, Any]:
    """Return figures of all rules at a load."""
    rate = costs.rate(load / 100)
    decisions = Decisions(costs, rate)
    best = decisions.solve()
    arrivals = poisson_arrivals(rate, items)
    simulated = by_optimum(arrivals, costs, best)
    found: dict[str, Any] = {
        "curve": costs.name,
        "load": load,
        "best": best.latency * 1e3,
        "serve_all": decisions.evaluate(decisions.serve_all)[0] * 1e3,  # what timeout=0 does, without chance
        "waits_for": int(numpy.argmax(best.runs > 0)),  # so many items are worth a batch
        "optimum": percentiles(simulated),
    }
    for name, rule in RULES.items():
        latencies = rule(arrivals, costs)
        if latencies is None:
            found[name] = None
        else:
            found[name] = {**percentiles(latencies), "ratio": sum(latencies) / sum(simulated)}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer items and loads")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to record the figures")
    options = parser.parse_args()
    found = measure(quick=options.quick)
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(found, separators=(",", ":")) + "\n")


def measure(*, quick: bool) -> list[dict[str, Any]]:
    """Print it all; return what is to be recorded."""
    points = []
    for costs in CURVES:
        print(f"\n{costs.name}")
        print(f"{'load':>6} {'best ms':>8} {'from':>5} " + " ".join(f"{name:>16}" for name in RULES))
        for load in LOADS[::3] if quick else LOADS:
            found = point(costs, load, 5_000 if quick else 30_000)
            points.append(found)
            ratios = " ".join(f"{found[name]['ratio']:>16.3f}" if found[name] else f"{'-':>16}" for name in RULES)
            print(f"{load:>5}% {found['best']:>8.3f} {found['waits_for']:>5} {ratios}", flush=True)
    worst = max(found["serve_all"] / found["best"] for found in points)
    print("\n'from': with so many items waiting, the best policy runs a batch.")
    print(f"timeout=0 takes {worst:.4f} times as long as the best policy, at worst (calculated, not simulated).")
    return points


if __name__ == "__main__":
    main()
