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
from itertools import chain, combinations, count, cycle
from operator import attrgetter, itemgetter
from pathlib import Path
from statistics import fmean, median, stdev
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from ._batch import Batch, Call
from ._decorator import BatchedCoroutineFunction, BatchedFunction, BatchedMethod, batched
from ._engine import Engine
from ._options import Options, check_count
from ._stats import BatchReport, Observer, Stats, Tally

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_logger = logging.getLogger("batchify")
_ENOUGH = 10_000  # items, for a figure that is told
_FEW = 2_000  # for one that is compared
_MANY = 40_000  # to see whether it keeps up
_WHERE = "not found: "
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
        stopped: Why larger batches, or more at once, were not measured: what the function raised, or that it takes too
            long; else empty.
    """

    name: str
    items: Sequence[Any] = field(repr=False)
    weights: Sequence[float] = field(repr=False)
    runs: Sequence[Run] = field(repr=False)
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
        self._failed: list[BaseException] = []  # of each batch of which every item failed, one
        self._batched: dict[int, Any] = {}
        self.several = self._decorated(1)._self_engine.takes.columns > 1
        self.weights = _weights(items, options, self.several)
        self._chance = random.Random(0)
        everything = range(len(items))
        self._sorted = sorted(everything, key=self.weights.__getitem__) if self.weights else []
        groups: dict[Any, list[int]] = {}
        keys = [_ask(options.group_by, item, self.several) for item in items] if options.group_by else []
        for number, key in enumerate(keys):
            groups.setdefault(key, []).append(number)
        self._groups = [groups[key] for key in keys]  # of each item, the numbers of its group
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

    def kinds(self, size: int) -> list[bool]:
        """Return which kinds of batches there are: of any items, and of items that are alike."""
        return [False, True] if self.weights and size > 1 and not self._groups else [False]

    def _pick(self, size: int, alike: bool) -> list[int]:
        """Return the numbers of so many items, drawn at random, of one group; or of those that weigh about the same."""
        numbers: Sequence[int] = range(len(self._items))
        if alike:
            start = self._chance.randrange(max(1, len(numbers) - size + 1))
            return [self._sorted[number % len(numbers)] for number in range(start, start + size)]
        if self._groups:  # a large one more often
            numbers = self._groups[self._chance.choice(numbers)]
        return self._chance.choices(numbers, k=size)

    async def _pass_in(self, probe: Any, batches: Sequence[Sequence[int]], pause: float) -> list[float]:
        """Pass items in, those of a batch while the one before runs, and wait for the answers; return when that was."""
        on_loop, posted = isinstance(probe, BatchedCoroutineFunction), []
        before: list[Any] = []
        for numbers in (*batches, ()):
            answers, began = [], time.perf_counter()
            for number in numbers:
                answers.append(probe.submit(*(self._items[number] if self.several else (self._items[number],))))
                left = began + pause * len(answers) - time.perf_counter()
                if left > _SHORT:
                    await asyncio.sleep(left) if on_loop else time.sleep(left)
            posted.append(time.perf_counter())
            if on_loop:
                await asyncio.gather(*before, return_exceptions=True)
            errors = [answer.exception() for answer in before]
            if errors and all(errors):
                self._failed.append(errors[0])
            before = answers
        return [*posted, time.perf_counter()]

    def _run(self, size: int, numbers: Sequence[Sequence[int]], pause: float = 0.0, at_once: int = 1) -> list[float]:
        probe = self._decorated(at_once)
        probe.batch_size = size
        for heard in (self._begun, self._ended, self._failed):
            heard.clear()
        posted = self.runner.run(self._pass_in(probe, numbers, pause))
        if self._failed:
            raise self._failed[0]
        return posted

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
            weights = [self.weights[item] for item in numbers[number]] if self.weights else [0.0]
            beside = max(0.0, self._begun[number + 1] - max(ended, posted[number + 1]))
            runs.append(Run(size, max(report.duration, 1e-9), cpu, beside, sum(weights), max(weights), alike))
        return runs

    def lone(self) -> float:
        """Return how many seconds a lone call takes beside the function."""
        posted = self._run(1, [self._pick(1, False)])
        return posted[-1] - posted[0] - self._ended[-1][0].duration

    def slowdown(self, size: int, at_once: int, seconds: float) -> float:
        """Return how many times as long a batch of so many seconds takes where so many are in flight.

        The very same items are run so, and one batch after the other, for a tenth of a second at least.
        """
        numbers = [self._pick(size * max(8, math.ceil(0.1 / seconds)), False)]
        times = dict[int, list[float]]({1: [], at_once: []})
        for number in (1, at_once) * 3:
            began = time.perf_counter()
            self._run(size, numbers, at_once=number)
            times[number].append(time.perf_counter() - began)
        share = median(times[at_once]) / median(times[1])
        return max(1.0, at_once * share) if share < 0.85 else at_once  # less than that is nothing


def measure(
    f: Callable[..., Any],
    items: Sequence[Any],
    *,
    seconds: float = 20.0,
    sizes: Sequence[int] | None = None,
    concurrency: int | None = None,
) -> Curve:
    """Call a list function with batches of 1, 2, 4, ... of these items, and note how long it takes.

    Batches of all sizes take turns, each with items drawn at random, after a first one that does not count; of one
    group, if `f` has a `group_by`; else, where the items do not weigh the same, also with items that are alike. What
    the function raises at a size larger than the first (no memory, say) ends the curve there, and is told. Shows a bar
    meanwhile, if standard error is a terminal.

    Args:
        f: The list function, or what `batched` made of it; also a method of an instance, an `async def` function, and
            one that returns futures. It is called for real: what it does with the items is done.
        items: What callers pass, as it comes in production; tuples where the function takes several lists. If they are
            fewer than the largest size, they are repeated, and the logger `batchify` says so.
        seconds: About how long it may take, at most; but each of `sizes` is measured.
        sizes: Sizes of batches; None doubles them until an item gets hardly cheaper, half of `seconds` is over, or a
            batch has 1,024 items or all there are, or weighs `max_weight`.
        concurrency: Most batches at once that the function bears, which are tried; None: as it is decorated, else 1.

    Returns:
        Curve: How long batches of each size take.

    Raises:
        TypeError: `items` is no sequence, `f` cannot be decorated, or an event loop runs in this thread.
        ValueError: `items` is empty, a size or `concurrency` is below 1, or `seconds` is not positive.
        Exception: Whatever `f` raises, or returns for every item, at the first size.
    """
    if not (hasattr(items, "__getitem__") and hasattr(items, "__len__")) or isinstance(items, (Mapping, str)):
        raise TypeError(f"measure(): items must be a sequence of what callers pass, got {type(items).__name__}")
    if hasattr(items, "columns"):
        raise TypeError(
            "measure(): the entries of a table are its columns; pass its rows: .to_numpy(), or a list of them"
        )
    if not len(items):
        raise ValueError("measure(): items must hold one item at least, better hundreds, as they come; it is empty")
    if not seconds > 0:
        raise ValueError(f"measure(): seconds must be positive, got {seconds}")
    if sizes is not None and (not sizes or min(sizes) < 1):
        raise ValueError(f"measure(): sizes must be ints of at least 1, got {sizes!r}")
    if isinstance(f, BatchedMethod):
        raise TypeError(f"measure(): {f!r} is of no instance: measure the method of one")
    with suppress(RuntimeError):
        asyncio.get_running_loop()
        raise TypeError("measure(): an event loop runs in this thread: await asyncio.to_thread(measure, f, items)")
    function, options, name = f, Options(1), str(getattr(f, "__qualname__", f))
    if isinstance(f, (BatchedFunction, BatchedCoroutineFunction)):
        function, options = f.__wrapped__, f._self_options
    most = check_count("measure", "concurrency", options.concurrency if concurrency is None else concurrency)
    probe = _Probe(function, items, options)
    began, console = time.monotonic(), Console(stderr=True)
    progress = Progress(console=console, transient=True, disable=not console.is_terminal)
    bar = progress.add_task("measuring", total=seconds)

    def elapsed() -> float:
        passed = time.monotonic() - began
        progress.update(bar, completed=passed)
        return passed

    runs: list[Run] = []
    stopped = ""
    with probe.runner, progress:
        costs: list[float] = []  # of an item, in a batch of each size
        largest = min(1024, max(64, len(items)))
        for size in sorted(set(sizes or [2**power for power in range(11) if 2**power <= largest])):
            if options.max_weight and probe.weights and size * fmean(probe.weights) > options.max_weight:
                break
            start = elapsed()
            try:
                if elapsed() < seconds / 10:
                    probe.run(size)  # what comes first is slow in many ways
                batches = 3 if elapsed() < seconds / 10 else 1
                both = [probe.run(size, alike, batches=batches) for alike in probe.kinds(size)]
            except Exception as error:  # whatever it raises
                if not runs:
                    raise
                stopped = f"with {size} items it raised {type(error).__name__}: {error}"
                break
            runs += chain(*both)
            costs.append(min(median([run.seconds for run in found]) for found in both) / size)
            if not sizes and len(costs) > 2 and costs[-1] > 0.95 * costs[-2] > 0.95**2 * costs[-3]:
                break
            if not sizes and elapsed() + 2 * (elapsed() - start) > seconds / 2:  # as the next one takes
                stopped = f"a batch of {size} takes {runs[-1].seconds:.2g} s, and there were {seconds:g} s to measure"
                break
        if runs[-1].size > len(items):
            message = "measure(): %d items are too few for batches of %d: they are repeated"
            _logger.warning(message, len(items), runs[-1].size)
        last = {(run.size, run.alike): run.seconds for run in runs}
        spent = dict.fromkeys(last, 0.0)
        while spent and elapsed() < (0.8 if most == 1 else 0.6) * seconds and len(runs) < 300 * len(spent):
            turn = min(spent, key=spent.__getitem__)  # each gets as much time
            batches = max(1, min(4, int(0.02 * seconds / last[turn])))
            try:
                runs += probe.run(*turn, seconds=last[turn], batches=batches)
            except Exception as error:  # noqa: BLE001 - now and then
                stopped = stopped or f"with {turn[0]} items it raised {type(error).__name__}: {error}"
                del spent[turn]
                continue
            last[turn] = runs[-1].seconds
            spent[turn] += (batches + 1) * last[turn]
        lone = median([probe.lone() for _ in range(max(1, min(20, int(0.05 * seconds / runs[0].seconds))))])
        slowdown, size = {1: 1.0}, runs[len(runs) // 2].size
        for at_once in (2, 4, 8, 16):
            brings_nothing = at_once > 2 and slowdown[at_once // 2] == at_once // 2
            if at_once > most or brings_nothing:
                break
            if elapsed() > seconds:
                stopped = stopped or f"there was no time left for {at_once} batches at once"
                break
            try:
                slowdown[at_once] = probe.slowdown(size, at_once, last[size, False])
            except Exception as error:  # noqa: BLE001 - it does not bear that
                stopped = f"with {at_once} batches at once it raised {type(error).__name__}: {error}"
                break
    return Curve(name, items, probe.weights, runs, probe.several, options, lone, slowdown, stopped)


def _ask(about: Any, item: Any, several: bool) -> Any:
    return about(*item) if several and about is not len else about(item)


def _weights(items: Sequence[Any], options: Options, several: bool) -> tuple[float, ...]:
    """Return what items weigh, in which they may differ; nothing if they do not."""
    ask: Any = options.weight or options.group_by or len
    with suppress(Exception):  # items without a length, groups that are no numbers
        weights = tuple([float(_ask(ask, item, several)) for item in items])
        return weights if len(set(weights)) > 1 else ()
    return ()


def _draws(numbers: Sequence[int], chance: random.Random) -> Iterator[int]:
    """Yield one of the numbers, again and again."""
    while True:
        yield chance.choice(numbers)


# Playing


class _Player(Engine):
    """The library's own engine, whose clock is moved by hand, and whose batches take as long as they are said to."""

    make_batch = Batch

    def __init__(self, options: Options, overhead: float) -> None:
        self.overhead = overhead
        self.moment, self.busy, self.tally = 0.0, 0.0, Tally()
        self.latencies: list[float] = []
        super().__init__(list, "simulate", options, None)

    def now(self) -> float:
        return self.moment

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
        keeps_up: Whether all that comes is answered, without a backlog that grows, and hardly any is refused.
        stats: The figures of the function, as `f.stats` would show them.
    """

    latencies: Sequence[float]
    throughput: float
    utilisation: float
    keeps_up: bool
    stats: Stats

    @property
    def mean(self) -> float:
        """The mean latency in seconds; inf if nothing is answered."""
        return fmean(self.latencies or [math.inf])

    def percentile(self, percent: float) -> float:
        """Return the latency in seconds that so many percent of the calls do not exceed."""
        return float(numpy.percentile(self.latencies or [math.inf], percent))

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
        arrivals: The moments at which calls come, in seconds; as recorded, say.
        items: How many calls; of `arrivals` all, and five of each caller at least.
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
    return _simulate(curve, _by_number(curve, chosen), _Load(rate, callers, arrivals).check(), items, seed)


def _by_number(curve: Curve, options: Options) -> Options:
    """Return options that ask for the numbers of items in place of the items, each of which is asked for once."""
    options = replace(options, on_batch=None)
    for name in ("weight", "group_by"):
        ask = getattr(options, name)
        if ask is not None:
            found = [_ask(ask, item, curve.several) for item in curve.items]
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
        if self.arrivals is not None and not len(self.arrivals):
            raise ValueError("arrivals must hold one moment at least, it is empty")
        return self

    def moments(self, items: int, chance: random.Random, spread: float) -> list[float]:
        if self.arrivals is not None:
            return [moment - min(self.arrivals) for moment in sorted(self.arrivals)]
        if self.callers is not None:  # not all at the same moment, as they would stay together for ever
            return sorted([chance.uniform(0.0, spread) for _ in range(self.callers)])
        moment = 0.0
        return [moment := moment + chance.expovariate(self.rate or 0.0) for _ in range(items)]


def _simulate(curve: Curve, options: Options, load: _Load, items: int, seed: int = 0) -> Simulation:
    each_batch, each_item = curve.overhead
    chance, player = random.Random(seed), _Player(options, max(0.0, curve.lone - each_batch - each_item))
    moments = load.moments(items, chance, 2 * curve.draw([0] * min(options.batch_size, load.callers or 1), chance))
    last = max(moments)
    flights = sorted(curve.slowdown)

    def seconds(batch: list[int], in_flight: int) -> float:
        slower = curve.slowdown[flights[bisect_right(flights, in_flight) - 1]]
        return curve.draw(batch, chance) * slower + each_batch + each_item * len(batch)

    numbers: Sequence[int] = range(len(curve.items))
    if options.dedupe:  # equal items get one number
        first: dict[Any, int] = {}
        numbers = [first.setdefault((type(item), item), number) for number, item in enumerate(curve.items)]
    again = 0 if load.callers is None else max(items, 5 * load.callers) - load.callers
    coming = cycle(numbers) if load.arrivals is not None else _draws(numbers, random.Random(seed))
    player.play(moments, coming, seconds, again)
    whole = player.moment or math.inf  # if nothing is ever due
    stats = player.tally.read(player.waiting)
    # What is left when the last one has come is worked off soon, or else it has grown all the time.
    slack = 0.01 * last + (options.timeout or 0.0) + 2 * seconds([0] * options.batch_size, 1)
    keeps_up = (load.callers is not None or whole - last <= slack) and not stats.pending
    return Simulation(
        player.latencies,
        len(player.latencies) / whole,
        player.busy / whole / options.concurrency,
        keeps_up and stats.refused <= 0.01 * stats.accepted,
        stats,
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

    def line(self, options: Options, *, several: bool = False) -> str:
        """Return the line of Python that decorates the function so; of its `options` the others are to stay."""
        parts = {"batch_size": self.batch_size, "timeout": self.timeout, "concurrency": self.concurrency}
        shown = [f"{name}={value}" for name, value in parts.items() if value not in (0.0, 1) or name == "batch_size"]
        if self.width is not None:
            name = getattr(options.weight, "__name__", "")
            of = "len" if options.weight is None else name if name.isidentifier() else "weight"
            star = "*" * (several and of != "len")
            shown.append(f"group_by=lambda {star}item: {of}({star}item) // {self.width}")
        kept = [each.name for each in fields(options) if each.name not in parts and getattr(options, each.name)]
        return f"@batched({', '.join(shown)})" + f"  # and as it is: {', '.join(kept)}" * bool(kept)

    def options(self, curve: Curve) -> Options:
        """Return the options of the function with these in their place, which ask for numbers of items."""
        size, timeout, concurrency, width = self
        chosen = replace(curve.by_number, batch_size=size, timeout=timeout, concurrency=concurrency)
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
    load = _check(rate, callers, p99)
    copies = 1
    while True:
        share = load if rate is None else _Load(rate / copies)
        best, *others = [
            choice._replace(expected=_simulate(curve, choice.setting.options(curve), share, _MANY))
            for choice in _search(curve, share, p99)
        ]
        expected = best.expected
        if expected.keeps_up or rate is None:
            break
        copies = max(copies + 1, math.ceil(rate / expected.throughput))
    today = _simulate(curve, curve.by_number, share, _MANY)
    line = best.setting.line(curve.options, several=curve.several)
    why = _why(curve, share, best.setting, expected)
    if rate is not None:
        busy = _Load(callers=8 * best.setting.batch_size)
        most = _simulate(curve, best.setting.options(curve), busy, max(_FEW, 40 * best.setting.batch_size)).throughput
        if copies > 1:
            why += (
                f" One cannot keep up with {rate:g} calls/s: it takes {copies} copies (processes), each decorated so."
            )
        elif rate > 0.85 * most:
            why += f" It can answer {most:.0f} calls/s at most, so at {rate:g} the figures are rough: leave some room,"
            why += " or let more run at once (--concurrency)." if len(curve.slowdown) == 1 else " or run copies."
    if p99 is not None and expected.percentile(99) > p99:
        why += f" No setting keeps 99 of 100 calls below {p99:g} s: the nearest is {expected.percentile(99):.2g} s."
    return Recommendation(curve, line, best.setting, expected, others, today, copies, why)


def _check(rate: float | None, callers: int | None, p99: float | None) -> _Load:
    if (rate is None) == (callers is None):
        raise TypeError(f"recommend(): either rate or callers must be given, got {rate} and {callers}")
    for name, value in (("rate", rate), ("callers", callers), ("p99", p99)):
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"recommend(): {name} must be positive and finite, got {value}")
    return _Load(rate, callers)


def _search(curve: Curve, load: _Load, p99: float | None) -> list[Choice]:
    """Return the best setting, and then those that are nearly as good, without those that differ in size alone."""
    if len(curve.points) < 2:
        why = f": {curve.stopped}" * bool(curve.stopped)
        raise ValueError(f"recommend(): the curve of {curve.name} must have two sizes at least, it has one{why}")
    lone, widths = curve.points[0].seconds, list[int | None]([None])
    if curve.saved_by_likeness and curve.options.group_by is None:
        spread = max(curve.weights) - min(curve.weights)
        widths += sorted({2 ** max(0, round(math.log2(spread / parts))) for parts in (2, 4, 8, 16, 32)})
    sizes = {point.size for point in curve.points}
    size_limit = max(sizes)
    if load.callers is not None:  # no more can wait
        sizes |= {share for flights in curve.slowdown if (share := math.ceil(load.callers / flights)) < size_limit}
    choices: dict[str, list[Any]] = {
        "width": widths,
        "batch_size": sorted(sizes),
        "concurrency": list(curve.slowdown),
        "timeout": [0.0, *(float(f"{lone * 2**power:.1g}") for power in range(-1, 6) if lone * 2**power > 0.0005)],
    }

    @cache
    def cost(setting: Setting) -> tuple[int, float]:
        return _cost(_simulate(curve, setting.options(curve), load, _FEW), setting.concurrency, p99)

    def order(setting: Setting, known: tuple[int, float] | None = None) -> tuple[int, float]:
        """What is simpler comes first if it costs at most 3 % more; so does the size up to which it pays to grow."""
        tier, value = known or cost(setting)
        size, timeout, concurrency, width = setting
        most = size_limit if load.callers is None else math.ceil(load.callers / concurrency)
        pays = min(curve.pays_up_to(alike=width is not None), most)
        more = [size != pays, timeout, concurrency > 1, width]
        return tier, value * 1.03 ** sum(map(bool, more))

    best, before, seen = Setting(min(load.callers or size_limit, size_limit)), None, set[Setting]()
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
        tiers, costs = zip(*(_cost(play, setting.concurrency, p99) for play in plays), strict=True)
        final.append((order(setting, (max(tiers), fmean(costs))), fmean(costs), stdev(costs), setting, plays[0]))
    final.sort(key=itemgetter(0))
    # A timeout that never ends makes no other batches than a longer one.
    final = [each for at, each in enumerate(final) if not any(each[1] == other[1] for other in final[:at])]
    (lowest, _), least, error, *_ = final[0]
    limit = least + max(0.03 * least, 2 * error)
    return [Choice(setting, play, tier == lowest and mean <= limit) for (tier, _), mean, _, setting, play in final]


def _cost(expected: Simulation, concurrency: int, p99: float | None) -> tuple[int, float]:
    """Return what is to be as little as possible: how bad in kind, then in degree."""
    if not expected.keeps_up:
        return 2, 1 / (expected.throughput or 1e-9)
    if p99 is None:
        return 0, expected.mean
    reached = expected.percentile(99)
    return (1, reached) if reached > p99 else (0, expected.utilisation * concurrency / expected.throughput)


def _why(curve: Curve, load: _Load, setting: Setting, expected: Simulation) -> str:
    """Say it in two sentences that a newcomer understands."""
    points, size = curve.points, expected.stats.mean_size
    point = max(
        (point for point in points if point.size <= setting.batch_size), key=attrgetter("size"), default=points[0]
    )
    if load.callers == 1:
        return "A single caller waits for each answer before the next call. So no batch can form."
    if setting.width is not None:
        mixed = _simulate(curve, setting._replace(width=None).options(curve), load, _FEW)
        than = f"{_milliseconds(mixed.mean)[0]} ms" if mixed.keeps_up else "without end"
        first = f"In a batch of mixed lengths short ones wait for long ones: then calls would wait {than}"
    elif setting.batch_size == 1:
        first = "Batches do not pay here: more at once bring less than they cost"
    elif load.callers is not None and load.callers < points[-1].size:
        first = f"With {load.callers} callers a batch of {points[-1].size} never fills"
    else:
        one = "a single item" if points[0].size == 1 else f"one of {points[0].size}"
        first = f"A batch of {point.size} takes {point.seconds / points[0].seconds:.1f} times as long as {one}"
    if setting.concurrency > 1:
        slower = curve.slowdown[setting.concurrency]
        first += f". {setting.concurrency} at once take {slower:.1f} times as long each"
    busy = f"It is busy {expected.utilisation:.0%} of the time, and batches have {size:.1f} items"
    if setting.timeout:
        without = _simulate(curve, setting._replace(timeout=0.0).options(curve), load, _FEW)
        return f"{first}. {busy}: without the wait they would have {without.stats.mean_size:.1f}, and be more work."
    if size < 1.1:
        return f"{first}. {busy}: calls come one by one, and larger batches form when more come."
    return f"{first}. {busy}: they form while it is busy, so to wait for more would only take time."


# The command


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
        raise ValueError(f"{_WHERE}write package.module:name, got {place!r}")
    try:
        return attrgetter(name)(import_module(module))
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise  # one that the module imports
        raise ValueError(f"{_WHERE}{place}: {error}; it is looked for in this folder, and in sys.path") from error
    except AttributeError as error:
        raise ValueError(f"{_WHERE}{place}: {error}") from error


def _milliseconds(*seconds: float) -> list[str]:
    return [f"{each * 1e3:.3g}" if each < 0.9995 else f"{each * 1e3:,.0f}" for each in seconds]


def _print(found: Recommendation) -> None:
    """Print one screen."""
    curve, console = found.curve, Console(highlight=False, markup=False, soft_wrap=True)
    console.width = max(80, console.width)
    table = Table("items in a batch", "ms", "ms per item", "CPU ms per item", box=None)
    if curve.weights:
        table.add_column("ms if alike")
    for point in curve.points:
        times = _milliseconds(point.seconds, point.seconds / point.size, point.cpu / point.size, point.alike or 0.0)
        table.add_row(str(point.size), *times[: 3 + (point.alike is not None)])
    console.print(table)
    line = curve.line
    if line.until > curve.points[0].size:
        fixed, each = _milliseconds(line.fixed, line.each)
        until = "" if line.until == curve.points[-1].size else f" up to {line.until} items, then not"
        console.print(f"\n{curve.name}() takes {fixed} ms + {each} ms per item{until} (give or take {line.error:.0%}).")
    if curve.stopped:
        console.print(f"More was not measured: {curve.stopped}.")
    console.print(f"\n    {found.line}\n\n{found.why}\n", style="bold")
    columns = "", "size", "timeout", "at once", "group", "mean ms", "p50", "p99", "calls/s", "items", "busy"
    table = Table(*columns, box=None, padding=(0, 1, 0, 0))
    kept = "as it is" if curve.options.group_by else ""
    today = Setting(curve.options.batch_size, curve.options.timeout, curve.options.concurrency)
    rows = [("this", found.setting, found.expected), ("today", today, found.today)]
    for setting, expected, is_as_good in found.alternatives[:4]:
        rows.append(("as good" if is_as_good else "next", setting, expected))
    for name, (size, timeout, concurrency, width), expected in rows:
        shown = expected.figures()
        latencies = _milliseconds(shown["mean"], shown["p50"], shown["p99"]) if expected.keeps_up else ["grows"] * 3
        rest = (
            f"{shown['throughput']:,.{shown['throughput'] < 100:d}f}",
            f"{shown['batch']:.1f}",
            f"{shown['busy']:.0%}",
        )
        options = (
            str(size),
            "None" if timeout is None else f"{timeout:g}",
            str(concurrency),
            f"//{width}" if width else kept,
        )
        table.add_row(name, *options, *latencies, *rest)
    console.print(table)
    copies = f"; of one of {found.copies} copies" * (found.copies > 1)
    console.print(
        f"\nthis: as recommended; today: as it is now; next: the next best{copies}.\n"
        "size, timeout, at once, group: batch_size, timeout in seconds, concurrency,\n"
        "group_by. items: in a batch, the mean. busy: how much of the time the function\n"
        "runs (of as many as may run at once), also if its batches are small.\n"
        "grows: it does not keep up with the calls."
    )


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
        _check(options.rate, options.callers, options.p99)  # before it measures
        given: Any = _find(options.items)
        items: Any = given() if callable(given) else given
        curve = measure(_find(options.function), items, seconds=options.seconds, concurrency=options.concurrency)
        found = recommend(curve, rate=options.rate, callers=options.callers, p99=options.p99)
    except (TypeError, ValueError) as error:
        if not str(error).startswith(("measure()", "recommend()", _WHERE)):
            raise  # it is the user's
        parser.error(str(error))
    print(_as_json(found)) if options.json else _print(found)
    if options.plot:
        found.plot(options.plot)


if __name__ == "__main__":
    main()
