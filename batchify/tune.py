"""Which settings? Measures a list function, plays the library's own rule against that, and says what to set.

    python -m batchify.tune package.module:function --items package.module:items --rate 200

Needs the extra `tune`. It is imported by whoever uses it, never by the rest of batchify.
"""

import argparse
import asyncio
import json
import logging
import math
import random
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, fields, replace
from functools import cache, cached_property
from heapq import heappop, heappush
from importlib import import_module
from itertools import combinations, count, cycle
from operator import attrgetter, itemgetter
from pathlib import Path
from statistics import fmean, median, stdev
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from ._batch import Batch, Call
from ._decorator import BatchedCoroutineFunction, BatchedFunction, batched
from ._engine import Engine
from ._options import Options, check_count
from ._stats import BatchReport, Observer, Stats, Tally

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_logger = logging.getLogger("batchify")
_ENOUGH = 10_000  # items, for a figure that is told
_FEW = 2_000  # for one that is compared
_SHORT = 5e-5  # seconds: one cannot sleep for less


class Run(NamedTuple):
    """One measured batch.

    Attributes:
        size: Items in it.
        seconds: How long the function took.
        cpu: CPU time of this process meanwhile, in seconds, of all its threads.
        beside: Seconds from its end until the next batch begins.
        total: What its items weigh together; 0 where all items weigh the same.
        most: What the heaviest of them weighs.
        alike: Whether items were chosen that weigh about the same.
    """

    size: int
    seconds: float
    cpu: float = 0.0
    beside: float = 0.0
    total: float = 0.0
    most: float = 0.0
    alike: bool = False


class Point(NamedTuple):
    """What was measured of batches of one size, drawn at random from the items.

    Attributes:
        size: Items in a batch.
        seconds: The median of the run times.
        spread: How far the first and the third quartile of these are apart, in seconds.
        cpu: The median of the CPU times, in seconds.
        alike: The median run time of batches of items that weigh about the same; None where all do.
        runs: How many batches were measured.
    """

    size: int
    seconds: float
    spread: float
    cpu: float
    alike: float | None
    runs: int


class Line(NamedTuple):
    """The least-squares line through the run times: `fixed + each * size` seconds.

    Attributes:
        fixed: What a batch costs, in seconds.
        each: What each of its items costs, in seconds.
        error: How far the points are off the line, relative to it (root of the mean square).
        until: The largest size up to which they follow it: beyond, a cache, a limit of memory or padding shows.
    """

    fixed: float
    each: float
    error: float
    until: int


@dataclass(frozen=True)
class Curve:
    """How long a list function takes for batches of each size.

    Attributes:
        name: The function's name.
        items: What it was measured with.
        weights: What each of these weighs: by `weight`, by `group_by` where that returns numbers, else its length.
            Empty where all weigh the same.
        runs: All batches that were measured.
        several: Whether the function takes several lists, so that items are tuples.
        options: Those of the function as it is decorated; of `@batched(batch_size=1)` if it is not.
        lone: Seconds that a call takes beside the function, where nobody else calls.
        slowdown: How many times as long a batch takes where so many are in flight.
        stopped: At what size, and by what the function raised there, larger batches were not measured; else empty.
    """

    name: str
    items: Sequence[Any]
    weights: Sequence[float]
    runs: Sequence[Run]
    several: bool = False
    options: Options = field(default_factory=lambda: Options(1))
    lone: float = 0.0
    slowdown: Mapping[int, float] = field(default_factory=lambda: {1: 1.0})
    stopped: str = ""

    @classmethod
    def of_line(cls, fixed: float, each: float, largest: int) -> "Curve":
        """Return the curve of a function that takes exactly `fixed + each * size` seconds."""
        return cls("line", (None,), (), [Run(size, fixed + each * size) for size in {1, largest}])

    @cached_property
    def points(self) -> list[Point]:
        """What was measured, by size."""
        points = []
        for size in sorted({run.size for run in self.runs}):
            runs = [run for run in self.runs if run.size == size and not run.alike]
            alike = [run.seconds for run in self.runs if run.size == size and run.alike]
            first, middle, third = numpy.percentile([run.seconds for run in runs], [25, 50, 75]).tolist()
            cpu = median([run.cpu for run in runs])
            points.append(Point(size, middle, third - first, cpu, median(alike) if alike else None, len(runs)))
        return points

    @cached_property
    def line(self) -> Line:
        """The line on which the points lie, or as many of the smaller sizes as lie on one, within a fifth."""
        points = self.points
        while True:
            fixed, each = _non_negative([(1, point.size) for point in points], [point.seconds for point in points])
            error = math.sqrt(fmean([((fixed + each * point.size) / point.seconds - 1) ** 2 for point in points]))
            if error <= 0.2:  # as that of one point is
                return Line(fixed, each, error, points[-1].size)
            points = points[:-1]

    @cached_property
    def by_number(self) -> Options:
        """The options of the function, but they ask for the numbers of items."""
        return _by_number(self, self.options)

    @cached_property
    def saved_by_likeness(self) -> float:
        """Which share of its time a batch saves whose items weigh about the same; 0 where that is not worth a word."""
        both = [point.alike / point.seconds for point in self.points if point.alike is not None]
        saved = 1 - fmean(both or [1.0])
        return saved if saved > 0.1 else 0.0

    @cached_property
    def overhead(self) -> tuple[float, float]:
        """Seconds between two batches: for each batch, and for each item that it had."""
        runs = [run for run in self.runs if run.beside > 0]
        if not runs:
            return 0.0, 0.0
        each_batch, each_item = _non_negative([(1, run.size) for run in runs], [run.beside for run in runs])
        return each_batch, each_item

    def pays_up_to(self, *, alike: bool = False) -> int:
        """Return up to which size each doubling makes an item cheaper by a tenth at least. `alike`: if items are."""
        costs = [(point.alike if alike and point.alike else point.seconds) / point.size for point in self.points]
        at = next((at for at in range(1, len(costs)) if costs[at] > 0.9 * costs[at - 1]), len(costs))
        return self.points[at - 1].size

    @cached_property
    def _ratios(self) -> dict[int, list[float]]:
        """How many times as long as expected each run took, by size."""
        ratios: dict[int, list[float]] = {point.size: [] for point in self.points}
        for run in self.runs:
            ratios[run.size].append(run.seconds / self._expected(run.size, run.total, run.most))
        return ratios

    @cached_property
    def _terms(self) -> list[float]:
        rows = [[1.0, run.size, run.total, run.size * run.most] for run in self.runs]
        return _non_negative(rows, [run.seconds for run in self.runs])

    def _expected(self, size: int, total: float, most: float) -> float:
        """What a batch costs, each item, each unit of weight, and if all are padded to the heaviest, each of these."""
        fixed, each, by_weight, padded = self._terms
        return fixed + each * size + by_weight * total + padded * size * most

    def draw(self, items: Sequence[int], chance: random.Random) -> float:
        """Return how long a batch of these items, by number, might take: as one of its size or a near one did."""
        size, sizes = len(items), list(self._ratios)
        weights = [self.weights[item] for item in items] if self.weights else [0.0]
        at = bisect_right(sizes, size)
        near, above = sizes[max(0, at - 1)], sizes[min(at, len(sizes) - 1)]
        if above > near and chance.random() < math.log(size / near) / math.log(above / near):
            near = above
        return self._expected(size, sum(weights), max(weights)) * chance.choice(self._ratios[near])

    def plot(self, path: str | Path) -> None:
        """Draw run time against size, with the line, into a file: SVG, PNG or PDF, by its name."""
        with _figure(path, 1) as (axes,):
            self._plot(axes)

    def _plot(self, axes: "Axes") -> None:
        points, line = self.points, self.line
        sizes = [point.size for point in points]
        axes.plot(sizes, [point.seconds * 1e3 for point in points], "ko-", label="measured")
        axes.plot(sizes, [(line.fixed + line.each * size) * 1e3 for size in sizes], "k--", label="line")
        alike = [(point.size, point.alike * 1e3) for point in points if point.alike is not None]
        if alike:
            axes.plot(*zip(*alike, strict=True), "ks:", fillstyle="none", label="of items that are alike")
        axes.set(xscale="log", yscale="log", xlabel="items in a batch", ylabel="run time in ms", title=self.name)
        axes.set_xticks(sizes, [str(size) for size in sizes])
        axes.legend()


def _non_negative(rows: Sequence[Sequence[float]], values: Sequence[float]) -> list[float]:
    """Return the least-squares solution, of relative errors, of which no term is negative."""
    table = numpy.array(rows) / numpy.array(values)[:, None]
    columns, least, best = range(table.shape[1]), math.inf, list[float]()
    for number in columns:
        for chosen in map(list, combinations(columns, number + 1)):  # there are few
            terms = numpy.zeros(len(columns))
            terms[chosen] = numpy.linalg.lstsq(table[:, chosen], numpy.ones(len(table)))[0]
            error = float(((table @ terms - 1) ** 2).sum())
            if (terms >= 0).all() and error < least * 0.999:  # the simpler one where they are as good
                best, least = terms.tolist(), error
    return best


# Measuring


class _Probe(Observer):
    """The list function behind the library itself, so that whatever it is and returns is run as ever."""

    def __init__(self, function: Callable[..., Any], items: Sequence[Any], options: Options) -> None:
        self._function, self._items = function, items
        self._begun: list[float] = []
        self._ended: list[tuple[BatchReport, float]] = []
        self._batched: dict[int, Any] = {}
        self.several = self._decorated(1)._self_engine.takes.columns > 1
        self.weights = _weights(items, options, self.several)
        self._chance = random.Random(0)
        self._draws = _draws(range(len(items)), self._chance)
        self._sorted = sorted(range(len(items)), key=self.weights.__getitem__) if self.weights else []
        self.runner = asyncio.Runner()

    def begin(self, name: str, size: int, reason: Any, contexts: Any) -> Any:  # noqa: ARG002
        self._begun.append(time.perf_counter())
        return self

    def __call__(self, report: BatchReport) -> None:
        self._ended.append((report, time.perf_counter()))

    def _decorated(self, at_once: int) -> Any:
        if at_once not in self._batched:
            decorate = batched(batch_size=1, timeout=None, concurrency=at_once, on_batch=self)
            self._batched[at_once] = decorate(self._function)
        return self._batched[at_once]

    def _pick(self, size: int, alike: bool) -> list[int]:
        """Return the numbers of so many items, drawn at random, or of those that weigh about the same."""
        if not alike:
            return [next(self._draws) for _ in range(size)]
        start = self._chance.randrange(max(1, len(self._items) - size + 1))
        return [self._sorted[number % len(self._items)] for number in range(start, start + size)]

    async def _pass_in(self, probe: Any, batches: Sequence[Sequence[int]], pause: float) -> list[float]:
        """Pass items in, those of a batch while the one before runs, and wait for the answers; return when that was."""
        on_loop, posted = isinstance(probe, BatchedCoroutineFunction), []
        before: list[Any] = []
        for numbers in (*batches, ()):
            answers = []
            for number in numbers:
                answers.append(probe.submit(*(self._items[number] if self.several else (self._items[number],))))
                if pause > _SHORT:
                    await asyncio.sleep(pause) if on_loop else time.sleep(pause)
            posted.append(time.perf_counter())
            if on_loop:
                await asyncio.gather(*before, return_exceptions=True)
            else:
                for answer in before:
                    answer.exception()
            before = answers
        return [*posted, time.perf_counter()]

    def run(self, size: int, alike: bool = False, *, seconds: float = 0.0, batches: int = 1) -> list[Run]:
        """Run batches, of about so many seconds, and while each runs pass in the items of the next one, as callers do.

        A function that needs the interpreter takes longer while callers need it too; so one more batch is run that does
        not count, as nobody calls meanwhile.
        """
        numbers = [self._pick(size, alike) for _ in range(batches + 1)]
        cpu = time.process_time()
        posted = self._run(size, numbers, seconds / size)
        cpu = (time.process_time() - cpu) / len(numbers)
        runs = []
        for number, (report, ended) in enumerate(self._ended[:batches]):
            if report.error is not None:
                raise report.error
            weights = [self.weights[item] for item in numbers[number]] if self.weights else [0.0]
            beside = max(0.0, self._begun[number + 1] - max(ended, posted[number + 1]))
            runs.append(Run(size, max(report.duration, 1e-9), cpu, beside, sum(weights), max(weights), alike))
        return runs

    def _run(self, size: int, numbers: Sequence[Sequence[int]], pause: float = 0.0, at_once: int = 1) -> list[float]:
        probe = self._decorated(at_once)
        probe.batch_size = size
        self._begun.clear()
        self._ended.clear()
        return self.runner.run(self._pass_in(probe, numbers, pause))

    def lone(self) -> float:
        """Return how many seconds a lone call takes beside the function."""
        posted = self._run(1, [self._pick(1, False)])
        return posted[-1] - posted[0] - self._ended[-1][0].duration

    def slowdown(self, size: int, at_once: int, seconds: float) -> float:
        """Return how many times as long a batch of so many seconds takes where so many are in flight.

        The very same items are run so, and one batch after the other, for a tenth of a second at least.
        """
        numbers = [self._pick(size * max(8, math.ceil(0.1 / seconds)), False)]
        pause, times = seconds / size, dict[int, list[float]]({1: [], at_once: []})
        for number in (1, at_once) * 3:
            began = time.perf_counter()
            self._run(size, numbers, pause / number, number)
            times[number].append(time.perf_counter() - began)
        share = median(times[at_once]) / median(times[1])
        return at_once * share if share < 0.85 else at_once  # less than that is nothing


def measure(
    f: Callable[..., Any],
    items: Sequence[Any],
    *,
    seconds: float = 20.0,
    sizes: Sequence[int] | None = None,
    concurrency: int | None = None,
) -> Curve:
    """Call a list function with batches of 1, 2, 4, ... of these items, and note how long it takes.

    Batches of all sizes take turns, each with items drawn at random, after a first one that does not count; where the
    items do not weigh the same, also with items that are alike. What the function raises at a size larger than 1 (no
    memory, say) ends the curve there, and is told. Shows a bar meanwhile, if standard error is a terminal.

    Args:
        f: The list function, or what `batched` made of it; also a method of an instance, an `async def` function, and
            one that returns futures. It is called for real: what it does with the items is done.
        items: What callers pass, as it comes in production; tuples where the function takes several lists. If they are
            fewer than the largest size, they are repeated, and the logger `batchify` says so.
        seconds: About how long it may take; but each size is measured twice at least.
        sizes: Sizes of batches; None doubles them until an item gets no cheaper, a batch takes a 20th of `seconds`, or
            it has 1,024 items.
        concurrency: Most batches at once that the function bears, which are tried; None: as it is decorated, else 1.

    Returns:
        Curve: How long batches of each size take.

    Raises:
        TypeError: `items` is no sequence, or `f` cannot be decorated.
        ValueError: `items` is empty, a size or `concurrency` is below 1, or `seconds` is not positive.
        Exception: Whatever `f` raises for a single item.
    """
    if not (hasattr(items, "__getitem__") and hasattr(items, "__len__")) or isinstance(items, (Mapping, str)):
        raise TypeError(f"measure(): items must be a sequence of what callers pass, got {type(items).__name__}")
    if not len(items):
        raise ValueError("measure(): items must hold one item at least, better hundreds, as they come; it is empty")
    if not seconds > 0:
        raise ValueError(f"measure(): seconds must be positive, got {seconds}")
    if sizes is not None and (not sizes or min(sizes) < 1):
        raise ValueError(f"measure(): sizes must be ints of at least 1, got {sizes!r}")
    function, options, name = f, Options(1), str(getattr(f, "__qualname__", f))
    if isinstance(f, (BatchedFunction, BatchedCoroutineFunction)):
        function, options = f.__wrapped__, f._self_options
    most = check_count("measure", "concurrency", concurrency or options.concurrency)
    probe = _Probe(function, items, options)
    found: list[int] = []
    runs: list[Run] = []
    stopped = ""

    def kinds(size: int) -> list[bool]:
        return [False, True] if probe.weights and size > 1 else [False]

    began, console = time.monotonic(), Console(stderr=True)
    progress = Progress(console=console, transient=True, disable=not console.is_terminal)
    bar = progress.add_task("measuring", total=seconds)

    def elapsed() -> float:
        passed = time.monotonic() - began
        progress.update(bar, completed=passed)
        return passed

    with probe.runner, progress:
        costs: list[float] = []  # of an item, in a batch of each size
        for size in sorted(set(sizes or [2**power for power in range(11)])):
            try:
                probe.run(size)  # what comes first is slow in many ways
                both = [run for alike in kinds(size) for run in probe.run(size, alike)]
            except Exception as error:  # whatever it raises
                if not found:
                    raise
                stopped = f"with {size} items it raised {type(error).__name__}: {error}"
                break
            runs += both
            found.append(size)
            costs.append(min(run.seconds for run in both) / size)
            is_flat = len(costs) > 2 and min(costs[-2:]) > 0.97 * costs[-3]
            if not sizes and len(found) > 1 and (is_flat or both[0].seconds > seconds / 20 or elapsed() > seconds / 3):
                break
        if found[-1] > len(items):
            _logger.warning(
                "measure(): %d items are too few for batches of %d: they are repeated", len(items), found[-1]
            )
        last = {(run.size, run.alike): run for run in runs}
        spent = dict.fromkeys(last, 0.0)
        while min(spent.values()) == 0.0 or (elapsed() < 0.8 * seconds and len(runs) < 300 * len(spent)):
            turn = min(spent, key=spent.__getitem__)  # each gets as much time
            runs += probe.run(*turn, seconds=last[turn].seconds, batches=4)
            last[turn] = runs[-1]
            spent[turn] += 5 * runs[-1].seconds
        lone = median([probe.lone() for _ in range(20)])
        slowdown = {1: 1.0}
        for at_once in (2, 4, 8, 16):  # as long as that brings anything
            if at_once > most or elapsed() > seconds or (at_once > 2 and slowdown[at_once // 2] == at_once // 2):
                break
            size = found[len(found) // 2]
            slowdown[at_once] = max(1.0, probe.slowdown(size, at_once, last[size, False].seconds))
    return Curve(name, items, probe.weights, runs, probe.several, options, lone, slowdown, stopped)


def _weights(items: Sequence[Any], options: Options, several: bool) -> tuple[float, ...]:
    """Return what items weigh, in which they may differ; nothing if they do not."""
    ask: Any = options.weight or options.group_by or len
    with suppress(Exception):  # items without a length, groups that are no numbers
        weights = tuple([float(ask(*item) if several and ask is not len else ask(item)) for item in items])
        return weights if len(set(weights)) > 1 else ()
    return ()


def _draws(numbers: Sequence[int], chance: random.Random) -> Iterator[int]:
    """Yield the numbers again and again, each time in another order."""
    while True:
        yield from chance.sample(numbers, len(numbers))


# Playing


class _Player(Engine):
    """The library's own engine, whose clock is moved by hand, and whose batches take as long as they are said to."""

    make_batch = Batch
    closed = False

    def __init__(self, options: Options, overhead: float) -> None:
        self.overhead = overhead
        self.moment, self.busy, self.tally = 0.0, 0.0, Tally()
        self.latencies: list[float] = []
        super().__init__(list, "simulate", options, None)

    def now(self) -> float:
        return self.moment

    def ended(self, batch: Batch) -> None:
        self.turn_ended(batch)

    def play(
        self, coming: list[float], items: Iterator[Any], seconds_of: Callable[[list[Any], int], float], again: int
    ) -> None:
        """Let items come at these moments, a heap, and `again` many more, each as soon as one is answered."""
        ends: list[tuple[float, int, Batch, Any]] = []
        for number in count():
            step = self.next(self.moment)
            if isinstance(step, Batch):
                entries = step.to_answer.pop()
                seconds = seconds_of([entry.item for entry in entries], len(self._running))
                self.busy += seconds
                heappush(ends, (self.moment + seconds, number, step, self.buffer.calls_of(entries)))
                continue
            while True:  # until the owner wakes
                end = ends[0][0] if ends else math.inf
                if coming and coming[0] <= min(end, self.alarm_at):
                    self.moment = heappop(coming)
                    self._arrive(next(items))
                    if len(self.inbox) < self.wake_at:
                        continue
                elif ends and end <= self.alarm_at:
                    self.moment, _, batch, calls = heappop(ends)
                    self.turn_ended(batch)
                    self.tally.answer(len(calls), 0, True)
                    self.latencies += [self.moment + self.overhead - call.arrival for call in calls]
                    for _ in calls[:again]:
                        heappush(coming, self.moment + self.overhead)
                    again -= min(again, len(calls))
                elif self.alarm_at < math.inf:
                    self.moment = self.alarm_at
                else:
                    return
                break

    def _arrive(self, item: Any) -> None:
        call = Call()
        call.item, call.arrival = item, self.moment
        if self.bounded and self.is_full():
            self.tally.refuse()
            return
        self.ask(call)
        self.inbox.append(call)


@dataclass(frozen=True)
class Simulation:
    """What calls would see, in virtual time.

    Attributes:
        latencies: Seconds from each call to its answer, in the order of the answers.
        throughput: Items answered per second.
        utilisation: The share of the time in which the function runs; of `concurrency` batches that may, the mean.
        keeps_up: Whether all that comes is answered, without a backlog that grows.
        stats: The figures of the function, as `f.stats` would show them.
    """

    latencies: Sequence[float]
    throughput: float
    utilisation: float
    keeps_up: bool
    stats: Stats

    @property
    def mean(self) -> float:
        """The mean latency in seconds."""
        return fmean(self.latencies)

    def percentile(self, percent: float) -> float:
        """Return the latency in seconds that so many percent of the calls do not exceed."""
        return float(numpy.percentile(self.latencies, percent))

    def figures(self) -> dict[str, float]:
        """Return what matters most: latencies in seconds, items per second, items in a batch, share of the time."""
        latencies = {f"p{percent}": self.percentile(percent) for percent in (50, 95, 99)}
        rest = {"batch": self.stats.mean_size, "busy": self.utilisation, "keeps_up": self.keeps_up}
        return {"mean": self.mean, **latencies, "throughput": self.throughput, **rest}


def simulate(
    curve: Curve,
    *,
    rate: float | None = None,
    callers: int | None = None,
    arrivals: Sequence[float] | None = None,
    items: int = _ENOUGH,
    seed: int = 0,
    **options: Any,
) -> Simulation:
    """Play in virtual time what calls would see: the library's own rule, on batches that take as long as measured.

    Exactly one of `rate`, `callers` and `arrivals` says how calls come. All that does not change the times is left out:
    errors, callers that leave, calls from inside.

    Args:
        curve: How long batches take. What calls pass are its items, drawn at random; of `arrivals` in their order.
        rate: Calls per second, that come at random (Poisson).
        callers: So many callers, each of whom calls again as soon as it is answered.
        arrivals: The moments at which calls come, in seconds, in order; as recorded, say.
        items: How many calls; of `arrivals` all.
        seed: Of the random numbers.
        **options: `batch_size`, and whatever else `batched` takes.

    Returns:
        Simulation: Latencies, throughput, and the function's figures.

    Raises:
        TypeError: An option is of the wrong type, or not exactly one of the three is given.
        ValueError: An option is out of its range, or a rate or a number of callers not positive.
    """
    chosen = Options(**options)
    chosen.check("simulate")
    return _simulate(curve, _by_number(curve, chosen), _Load(rate, callers, arrivals), items, seed)


def _by_number(curve: Curve, options: Options) -> Options:
    """Return options that ask for the numbers of items in place of the items, each of which is asked for once."""
    options = replace(options, on_batch=None)
    for name in ("weight", "group_by"):
        ask = getattr(options, name)
        if ask is not None:
            found = [ask(*item) if curve.several else ask(item) for item in curve.items]
            setattr(options, name, found.__getitem__)
    return options


class _Load(NamedTuple):
    """How calls come; as of simulate()."""

    rate: float | None = None
    callers: int | None = None
    arrivals: Sequence[float] | None = None

    def check(self) -> "_Load":
        amounts = [value for value in (self.rate, self.callers) if value is not None]
        if len(amounts) + (self.arrivals is not None) != 1:
            raise TypeError(f"exactly one of rate, callers and arrivals must be given, got {self}")
        if amounts and not 0 < amounts[0] < math.inf:
            raise ValueError(f"rate and callers must be positive and finite, got {amounts[0]}")
        return self

    def moments(self, items: int, chance: random.Random) -> list[float]:
        if self.arrivals is not None:
            return list(self.arrivals)
        if self.callers is not None:
            return [0.0] * min(items, self.callers)
        moment = 0.0
        return [moment := moment + chance.expovariate(self.rate or 0.0) for _ in range(items)]


def _simulate(curve: Curve, options: Options, load: _Load, items: int, seed: int = 0) -> Simulation:
    each_batch, each_item = curve.overhead
    chance, player = random.Random(seed), _Player(options, max(0.0, curve.lone - each_batch - each_item))
    moments = load.check().moments(items, chance)
    last = max(moments)
    flights = sorted(curve.slowdown)

    def seconds(batch: list[int], in_flight: int) -> float:
        slower = curve.slowdown[flights[bisect_right(flights, in_flight) - 1]]
        return curve.draw(batch, chance) * slower + each_batch + each_item * len(batch)

    first: dict[Any, int] = {}  # equal items get one number
    numbers = [first.setdefault(item, number) if options.dedupe else number for number, item in enumerate(curve.items)]
    again = 0 if load.callers is None else items - len(moments)
    coming = cycle(numbers) if load.arrivals is not None else _draws(numbers, random.Random(seed))
    player.play(moments, coming, seconds, again)
    whole = player.moment
    # What is left when the last one has come is worked off soon, or else it has grown all the time.
    slack = 0.02 * last + (options.timeout or 0.0) + 2 * seconds([0] * options.batch_size, 1)
    return Simulation(
        player.latencies,
        len(player.latencies) / whole,
        player.busy / whole / options.concurrency,
        load.callers is not None or whole - last <= slack,
        player.tally.read(player.waiting),
    )


# Recommending


class Setting(NamedTuple):
    """What `recommend` chooses: options of `batched`.

    Attributes:
        batch_size: See `batched`.
        timeout: See `batched`.
        concurrency: See `batched`.
        width: Items share a batch whose weights (or lengths) divided by this are equal; None leaves `group_by` alone.
    """

    batch_size: int
    timeout: float | None = 0.0
    concurrency: int = 1
    width: int | None = None

    def line(self, options: Options) -> str:
        """Return the line of Python that decorates the function so; of its `options` the others stay."""
        parts = {each.name: _name(getattr(options, each.name)) for each in fields(options)}
        parts |= {name: str(value) for name, value in self._asdict().items() if name != "width"}
        if self.width is not None:
            of = "len" if options.weight is None else parts["weight"]
            parts["group_by"] = f"lambda item: {of}(item) // {self.width}"
        defaults = {each.name: str(each.default) for each in fields(options)}
        return f"@batched({', '.join(f'{name}={part}' for name, part in parts.items() if part != defaults[name])})"

    def options(self, curve: Curve) -> Options:
        """Return the options of the function with these in their place, which ask for numbers of items."""
        size, timeout, concurrency, width = self
        chosen = replace(curve.by_number, batch_size=size, timeout=timeout, concurrency=concurrency, max_pending=None)
        if width is not None:
            chosen.group_by = [weight // width for weight in curve.weights].__getitem__
        return chosen


class Choice(NamedTuple):
    """A setting, and what it would give.

    Attributes:
        setting: The setting.
        expected: What calls would see.
        is_as_good: Whether it cannot be told apart from the best one.
    """

    setting: Setting
    expected: Simulation
    is_as_good: bool


@dataclass(frozen=True)
class Recommendation:
    """What to set, what that would give, and why.

    Attributes:
        curve: What it rests on.
        line: The line of Python to decorate the function with.
        setting: The same as figures.
        expected: What calls would see.
        alternatives: The next best ones, best first.
        today: What calls see with the options that the function has.
        copies: How many copies of the function it takes to keep up with the rate; the figures are of one of them.
        why: The reason, in two sentences.
    """

    curve: Curve
    line: str
    setting: Setting
    expected: Simulation
    alternatives: Sequence[Choice]
    today: Simulation
    copies: int
    why: str

    def plot(self, path: str | Path) -> None:
        """Draw two pictures into a file: the curve, and latency against rate, beside `timeout=0` and today's."""
        with _figure(path, 2) as (left, right):
            self.curve._plot(left)
            self._plot(right)

    def _plot(self, axes: "Axes") -> None:
        curve, setting, today = self.curve, self.setting, self.curve.by_number
        most = _simulate(curve, setting.options(curve), _Load(callers=4 * setting.batch_size), _FEW).throughput
        for label, style, options in (
            ("recommended", "ko-", setting.options(curve)),
            ("the same, timeout=0", "ks--", setting._replace(timeout=0.0).options(curve)),
            (f"today: batch_size={today.batch_size}, timeout={today.timeout}", "k^:", today),
        ):
            rates = [most * percent / 100 for percent in (5, 20, 35, 50, 65, 80, 90, 95)]
            plays = [(rate, _simulate(curve, options, _Load(rate), _FEW)) for rate in rates]
            shown = [(rate, expected.mean * 1e3) for rate, expected in plays if expected.keeps_up]
            axes.plot(*zip(*shown, strict=True) if shown else ((), ()), style, fillstyle="none", label=label)
        axes.set(yscale="log", xlabel="calls per second", ylabel="mean latency in ms", title="as far as it keeps up")
        axes.legend()


def recommend(
    curve: Curve, *, rate: float | None = None, callers: int | None = None, p99: float | None = None
) -> Recommendation:
    """Find the settings that suit a function and its load best.

    Best is the lowest mean latency; with `p99` the least work for the function, of those that keep to that. Of settings
    that cannot be told apart the simplest is taken. It chooses `batch_size`, `timeout`, `concurrency`, and where like
    items together are cheaper a `group_by`, unless the function has one; its other options stay.

    Args:
        curve: How long batches take.
        rate: Calls per second, that come at random.
        callers: Or so many callers, each of whom calls again as soon as it is answered.
        p99: The latency in seconds that 99 of 100 calls may not exceed.

    Returns:
        Recommendation: The line to write, what it would give, and why.

    Raises:
        TypeError: Both or none of `rate` and `callers` are given.
        ValueError: One of these, or `p99`, is not positive, or the curve has one size only.
    """
    if (rate is None) == (callers is None):
        raise TypeError(f"recommend(): either rate or callers must be given, got {rate} and {callers}")
    load = _Load(rate, callers).check()
    if p99 is not None and not p99 > 0:
        raise ValueError(f"recommend(): p99 must be positive, got {p99}")
    if len(curve.points) < 2:
        raise ValueError(f"recommend(): the curve of {curve.name} must have two sizes at least, it has one")
    copies = 1
    while True:
        share = load if rate is None else _Load(rate / copies)
        best, *others = _search(curve, share, p99)
        if best.expected.keeps_up or rate is None:
            break
        copies = max(copies + 1, math.ceil(rate / best.expected.throughput))
    today = _simulate(curve, curve.by_number, share, _ENOUGH)
    why = _why(curve, share, best) + (f" It takes {copies} copies of it to keep up with that rate." * (copies > 1))
    return Recommendation(
        curve, best.setting.line(curve.options), best.setting, best.expected, others, today, copies, why
    )


def _search(curve: Curve, load: _Load, p99: float | None) -> list[Choice]:
    """Return the best setting, and then those that are nearly as good, without those that differ in size alone."""
    lone, widths = curve.points[0].seconds, list[int | None]([None])
    if curve.saved_by_likeness and curve.options.group_by is None:
        spread = max(curve.weights) - min(curve.weights)
        widths += sorted({2 ** max(0, round(math.log2(spread / parts))) for parts in (2, 4, 8, 16, 32)})
    choices: dict[str, list[Any]] = {
        "width": widths,
        "batch_size": [point.size for point in curve.points],
        "concurrency": list(curve.slowdown),
        "timeout": [0.0, *(float(f"{lone * 2**power:.1g}") for power in range(-1, 6) if lone * 2**power > 0.0005)],
    }

    @cache
    def cost(setting: Setting) -> tuple[int, float]:
        return _cost(_simulate(curve, setting.options(curve), load, _FEW), p99)

    def order(setting: Setting, known: tuple[int, float] | None = None) -> tuple[int, float]:
        """What is simpler comes first if it costs at most 3 % more; so does the size up to which it pays to grow."""
        tier, value = known or cost(setting)
        size, timeout, concurrency, width = setting
        more = [size != curve.pays_up_to(alike=width is not None), timeout, concurrency > 1, width]
        return tier, value * 1.03 ** sum(map(bool, more))

    best, before, seen = Setting(curve.points[-1].size), None, set[Setting]()
    while best != before:
        before = best
        for name, values in choices.items():
            tried = {best._replace(**{name: value}) for value in values}
            seen |= {each for each in tried if each.batch_size > 1 or each[1::2] == (0.0, None)}  # else they do nothing
            best = min(tried & seen, key=order)
    distinct = {setting[1:]: setting for setting in sorted(seen, key=order, reverse=True)}
    final = []
    for setting in sorted(distinct.values(), key=order)[:6]:
        plays = [_simulate(curve, setting.options(curve), load, _ENOUGH // 2, seed) for seed in (1, 2, 3)]
        tiers, costs = zip(*(_cost(play, p99) for play in plays), strict=True)
        final.append((order(setting, (max(tiers), fmean(costs))), fmean(costs), stdev(costs), setting, plays[0]))
    final.sort(key=itemgetter(0))
    (lowest, _), least, error, *_ = final[0]
    limit = least + max(0.03 * least, 2 * error)
    return [Choice(setting, play, tier == lowest and mean <= limit) for (tier, _), mean, _, setting, play in final]


def _cost(expected: Simulation, p99: float | None) -> tuple[int, float]:
    """Return what is to be as little as possible: how bad in kind, then in degree."""
    if not expected.keeps_up:
        return 2, 1 / expected.throughput
    if p99 is None:
        return 0, expected.mean
    reached = expected.percentile(99)
    return (1, reached) if reached > p99 else (0, expected.utilisation / expected.throughput)


def _why(curve: Curve, load: _Load, best: Choice) -> str:
    """Say it in two sentences that a newcomer understands."""
    setting, expected = best.setting, best.expected
    point = max((point for point in curve.points if point.size <= setting.batch_size), key=attrgetter("size"))
    times = point.seconds / curve.points[0].seconds
    if setting.width is not None:
        first = f"Batches of like items take {curve.saved_by_likeness:.0%} less time: no short one waits for a long one"
    elif setting.batch_size == 1:
        first = "Batches do not pay here: more at once bring less than they cost"
    elif load.callers is not None and load.callers < curve.points[-1].size:
        first = f"With {load.callers} callers a batch of {curve.points[-1].size} never fills"
    else:
        first = f"A batch of {point.size} takes {times:.1f} times as long as a single item"
    busy = f"It is busy {expected.utilisation:.0%} of the time, and batches have {expected.stats.mean_size:.1f} items"
    if not setting.timeout:
        return f"{first}. {busy}: they form while it is busy, so to wait for more would only take time."
    without = _simulate(curve, setting._replace(timeout=0.0).options(curve), load, _FEW)
    return f"{first}. {busy}: without the wait they would have {without.stats.mean_size:.1f}, and cost more in all."


# The command


def _name(value: object) -> str:
    return str(getattr(value, "__name__", value))


@contextmanager
def _figure(path: str | Path, pictures: int) -> Iterator[Sequence["Axes"]]:
    """Yield the axes of pictures side by side, and save them."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"svg.fonttype": "none"}):  # text stays text
        figure = Figure(figsize=(6 * pictures, 4), layout="constrained")
        yield figure.subplots(1, pictures, squeeze=False)[0]
        figure.savefig(path)


def _find(place: str) -> Any:
    """Return what stands at `package.module:name.of.it`."""
    module, _, name = place.partition(":")
    if not (module and name):
        raise ValueError(f"write package.module:name, got {place!r}")
    try:
        return attrgetter(name)(import_module(module))
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{place}: {error}; it is looked for in this folder, and where Python finds modules"
        ) from error
    except AttributeError as error:
        raise ValueError(f"{place}: {error}") from error


def _milliseconds(*seconds: float) -> list[str]:
    return [f"{each * 1e3:.3g}" if each < 1 else f"{each * 1e3:.0f}" for each in seconds]


def _print(found: Recommendation) -> None:
    """Print one screen."""
    curve, console = found.curve, Console(highlight=False, markup=False, soft_wrap=True)
    table = Table("items in a batch", "ms", "ms per item", "CPU ms per item", box=None)
    if curve.weights:
        table.add_column("ms if alike")
    for point in curve.points:
        times = _milliseconds(point.seconds, point.seconds / point.size, point.cpu / point.size, point.alike or 0.0)
        table.add_row(str(point.size), *times[: 3 + (point.alike is not None)])
    console.print(table)
    fixed, each = _milliseconds(curve.line.fixed, curve.line.each)
    until = "" if curve.line.until == curve.points[-1].size else f" up to {curve.line.until} items, then not"
    console.print(f"\n{curve.name}() takes {fixed} ms + {each} ms per item{until} (within {curve.line.error:.0%}).")
    if curve.stopped:
        console.print(f"Larger batches were not measured: {curve.stopped}.")
    console.print(f"\n    {found.line}\n\n{found.why}\n", style="bold")
    columns = "", "size", "timeout", "at once", "group", "mean ms", "p50", "p99", "calls/s", "items", "busy"
    table = Table(*columns, box=None, padding=(0, 1, 0, 0))
    today = Setting(curve.options.batch_size, curve.options.timeout, curve.options.concurrency)
    rows = [("this", found.setting, found.expected), ("today", today, found.today)]
    for setting, expected, is_as_good in found.alternatives[:4]:
        rows.append(("as good" if is_as_good else "next", setting, expected))
    for name, (size, timeout, concurrency, width), expected in rows:
        shown = expected.figures()
        latencies = _milliseconds(shown["mean"], shown["p50"], shown["p99"]) if expected.keeps_up else ["grows"] * 3
        rest = f"{shown['throughput']:.4g}", f"{shown['batch']:.1f}", f"{shown['busy']:.0%}"
        options = str(size), "None" if timeout is None else f"{timeout:g}", str(concurrency), f"//{width}" * bool(width)
        table.add_row(name, *options, *latencies, *rest)
    console.print(table)


def _as_json(found: Recommendation) -> str:
    figures = {"expected": found.expected.figures(), "today": found.today.figures()}
    texts = {name: getattr(found, name) for name in ("line", "why", "copies")}
    points = [point._asdict() for point in found.curve.points]
    return json.dumps({**texts, **found.setting._asdict(), **figures, "points": points})


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; see its `--help`."""
    parser = argparse.ArgumentParser(prog="python -m batchify.tune", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("function", help="package.module:function, batched or not; it is called for real")
    parser.add_argument("--items", required=True, help="package.module:items: what callers pass, or a function of that")
    load = parser.add_mutually_exclusive_group(required=True)
    load.add_argument("--rate", type=float, help="calls per second, that come at random")
    load.add_argument("--callers", type=int, help="so many callers, each with one call at a time")
    parser.add_argument("--p99", type=float, help="seconds that 99 of 100 calls may not exceed")
    parser.add_argument("--seconds", type=float, default=20.0, help="how long to measure (20)")
    parser.add_argument("--concurrency", type=int, help="most batches at once that the function bears")
    parser.add_argument("--plot", metavar="FILE", help="draw two pictures, as SVG, PNG or PDF")
    parser.add_argument("--json", action="store_true", help="print JSON, for scripts")
    options = parser.parse_args(arguments)
    try:
        _Load(options.rate, options.callers).check()  # before it measures
        given: Any = _find(options.items)
        items: Any = given() if callable(given) else given
        curve = measure(_find(options.function), items, seconds=options.seconds, concurrency=options.concurrency)
        found = recommend(curve, rate=options.rate, callers=options.callers, p99=options.p99)
    except (TypeError, ValueError) as error:
        parser.error(str(error))
    if options.plot:
        found.plot(options.plot)
    print(_as_json(found)) if options.json else _print(found)


if __name__ == "__main__":
    main()
