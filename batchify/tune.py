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
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from functools import cache, cached_property, partial
from heapq import heappop, heappush
from importlib import import_module
from itertools import accumulate, chain, count, cycle
from operator import attrgetter, itemgetter
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any, NamedTuple

import numpy
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from ._batch import Batch, Call
from ._decorator import BatchedCoroutineFunction, BatchedFunction, BatchedMethod, batched
from ._engine import Engine
from ._options import Options, check_count
from ._stats import BatchReport, Stats, Tally

_logger = logging.getLogger("batchify")
_WHERE = "not found: "
_SHORT = 5e-5  # seconds: one cannot sleep for less
_FEW, _ENOUGH, _MANY = 2_000, 10_000, 40_000  # calls, for a figure that is compared, told, said to keep up


class Run(NamedTuple):
    """One measured batch.

    Attributes:
        size: Items in it.
        seconds: How long it took, with what batchify does for it.
        cpu: CPU time of this process meanwhile, in seconds, of all its threads.
        total: What its items weigh together; 0 where all items weigh the same.
        most: What the heaviest of them weighs.
        alike: Whether items were chosen that weigh about the same.
    """

    size: int
    seconds: float
    cpu: float = 0.0
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
        calls: What callers pass, each as a tuple of arguments; what it was measured with.
        weights: What each of these weighs: by `weight`, else by `group_by`, else its length. Empty where all weigh the
            same, or groups are no numbers.
        runs: All batches that were measured.
        options: Those of the function as it is decorated; of `@batched(batch_size=1)` if it is not.
        slowdown: How many times as long a batch takes where so many are in flight.
        late: By how many seconds calls come too late while the function runs, since it keeps the interpreter.
        stopped: Why larger batches, more at once, or more of one size were not measured: what the function raised, or
            that it takes too long; else empty.
    """

    name: str
    calls: Sequence[tuple[Any, ...]] = field(repr=False)
    weights: Sequence[float] = field(repr=False)
    runs: Sequence[Run] = field(repr=False)
    options: Options = field(default_factory=lambda: Options(1))
    slowdown: Mapping[int, float] = field(default_factory=lambda: {1: 1.0})
    late: Sequence[float] = field(default=(0.0,), repr=False)
    stopped: str = ""

    @classmethod
    def of_line(cls, fixed: float, each: float, largest: int) -> "Curve":
        """Return the curve of a function that takes exactly `fixed + each * size` seconds."""
        return cls("line", [(None,)], (), [Run(size, fixed + each * size) for size in {1, largest}])

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
            fixed, each = _fit([(1, point.size) for point in points], [point.seconds for point in points])
            error = math.sqrt(fmean([((fixed + each * point.size) / point.seconds - 1) ** 2 for point in points]))
            if error <= 0.2:  # as that of one point is
                return Line(fixed, each, error, points[-1].size)
            points = points[:-1]

    @cached_property
    def saved_by_likeness(self) -> float:
        """Which share of its time a batch saves whose items weigh about the same; 0 where that is not worth a word."""
        saved = 1 - fmean([point.alike / point.seconds for point in self.points if point.alike] or [1.0])
        return saved if saved > 0.1 else 0.0

    def pays_up_to(self, *, alike: bool = False) -> int:
        """Return up to which size each doubling makes an item cheaper by a tenth at least. `alike`: if items are."""
        costs = [(point.alike if alike and point.alike else point.seconds) / point.size for point in self.points]
        at = next((at for at in range(1, len(costs)) if costs[at] > 0.9 * costs[at - 1]), len(costs))
        return self.points[at - 1].size

    @cached_property
    def _terms(self) -> list[float]:
        rows = [(1.0, size, total, size * most, size * most**2) for size, _, _, total, most, _ in self.runs]
        return _fit(rows, [run.seconds for run in self.runs])

    def _expected(self, size: int, total: float, most: float) -> float:
        """What a batch costs, each item, each unit of weight, and if all are as heavy as the heaviest; squared, too."""
        fixed, each, by_weight, padded, squared = self._terms
        return max(1e-9, fixed + by_weight * total + size * (each + most * (padded + squared * most)))

    @cached_property
    def _ratios(self) -> dict[int, list[float]]:
        """How many times as long as expected each run took, by size."""
        ratios: dict[int, list[float]] = {point.size: [] for point in self.points}
        for run in self.runs:
            ratios[run.size].append(run.seconds / self._expected(run.size, run.total, run.most))
        return ratios

    def draw(self, numbers: Sequence[int], chance: random.Random) -> float:
        """Return how long a batch of the calls of these numbers might take: as one of its size or a near one did."""
        size, sizes = len(numbers), list(self._ratios)
        at = bisect_right(sizes, size)
        near, above = sizes[max(0, at - 1)], sizes[min(at, len(sizes) - 1)]
        if above > near and chance.random() < math.log(size / near) / math.log(above / near):
            near = above
        return self._expected(size, *_weigh(self.weights, numbers)) * chance.choice(self._ratios[near])

    def by_number(self, options: Options) -> Options:
        """Return options that ask for the numbers of calls in place of the items, each of which is asked for once."""
        asks = {name: ask for name in ("weight", "group_by") if (ask := getattr(options, name)) is not None}
        found: Any = {name: [ask(*call) for call in self.calls].__getitem__ for name, ask in asks.items()}
        return replace(options, on_batch=None, **found)

    @cached_property
    def own(self) -> Options:
        """The options of the function, by number."""
        return self.by_number(self.options)

    @property
    def today(self) -> "Setting":
        """The settings that the function has."""
        return Setting(self.options.batch_size, self.options.timeout, self.options.concurrency)

    def plot(self, path: str | Path) -> None:
        """Draw run time against size, with the line, into a file: SVG, PNG or PDF, by its name."""
        _save(path, self._plot)

    def _plot(self, axes: Any) -> None:
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


def _weigh(weights: Sequence[float], numbers: Sequence[int]) -> tuple[float, float]:
    """Return what the calls of these numbers weigh together, and what the heaviest of them does."""
    found = [weights[number] for number in numbers] if weights else [0.0]
    return sum(found), max(found)


def _fit(rows: Sequence[Sequence[float]], values: Sequence[float]) -> list[float]:
    """Return the least-squares solution, of relative errors, without the terms that would be negative."""
    table = numpy.array(rows) / numpy.array(values)[:, None]
    terms, kept = numpy.zeros(table.shape[1]), list(range(table.shape[1]))
    while True:
        found = numpy.linalg.lstsq(table[:, kept], numpy.ones(len(table)), rcond=None)[0]
        if found.min() >= 0:
            terms[kept] = found
            return [float(term) for term in terms]
        del kept[found.argmin()]


def _save(path: str | Path, *pictures: Callable[[Any], None]) -> None:
    """Draw pictures side by side into a file."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"svg.fonttype": "none"}):  # text stays text
        figure = Figure(figsize=(6 * len(pictures), 4), layout="constrained")
        for picture, axes in zip(pictures, figure.subplots(1, len(pictures), squeeze=False)[0], strict=True):
            picture(axes)
        figure.savefig(path)


# Measuring

_Kind = tuple[int, bool, int]  # of batches: how large, whether of items that are alike, and how many at once


class _Probe:
    """Runs batches of the function behind the library itself, so that whatever it is and returns is run as ever."""

    def __init__(self, function: Callable[..., Any], items: Sequence[Any], options: Options) -> None:
        self.ran: list[tuple[float, float]] = []  # of each batch, when it began and ended
        self.runner = asyncio.Runner()
        decorate: Any = partial(batched, batch_size=1, timeout=None, on_batch=self._note)
        self.decorated: Any = cache(lambda at_once: decorate(concurrency=at_once)(function))
        if isinstance(function, BatchedMethod) or isinstance(self.decorated(1), BatchedMethod):
            raise TypeError(f"measure(): {function!r} is of no instance: measure the method of one")
        columns = self.decorated(1)._self_engine.takes.columns
        if columns > 1 and not all(isinstance(item, (tuple, list)) and len(item) == columns for item in items):
            raise TypeError(f"measure(): the function takes {columns} lists, so each item must be a tuple of {columns}")
        self.calls: list[tuple[Any, ...]] = [tuple(item) if columns > 1 else (item,) for item in items]
        self.weights = _weights(self.calls, options)
        self.most = options.max_weight or math.inf
        self.mean = fmean([float(options.weight(*call)) for call in self.calls]) if options.weight else 0.0
        self.by_weight = sorted(range(len(self.calls)), key=(self.weights or range(len(self.calls))).__getitem__)
        self.groups: dict[Any, list[int]] = {}
        self.keys = [options.group_by(*call) if options.group_by else None for call in self.calls]
        for number, key in enumerate(self.keys):
            self.groups.setdefault(key, []).append(number)
        self.measured: dict[_Kind, list[Run]] = {}
        self.spent: dict[_Kind, float] = {}  # seconds; those that are measured on
        self.stopped = ""
        self.late: list[float] = []  # how long after the moment at which it was to, each call was there
        self.chance = random.Random(0)

    def _note(self, report: BatchReport) -> None:
        self.failed |= report.error is not None
        self.ran.append((time.monotonic() - report.duration, time.monotonic()))

    def turns(self, sizes: Sequence[int] | None, most: int, seconds: float) -> Iterator[_Kind]:
        """Yield the kinds of batches, of which one each is to be measured now, for about so many seconds."""
        costs, largest = list[float](), min(1024, max(64, len(self.calls)))
        todo = sorted(set(sizes or [2**power for power in range(11) if 2**power <= largest]))
        yield todo[0], False, 1  # loads models, opens connections: that time is not counted
        began = time.monotonic()
        for size in todo:
            if costs and size * self.mean > self.most:
                break
            both = self.weights and size > 1 and len(self.groups) == 1
            kinds: list[_Kind] = [(size, alike, 1) for alike in ([False, True] if both else [False])]
            start = time.monotonic()
            yield from kinds * (2 if start < began + seconds / 10 else 1)
            if not all(kind in self.measured for kind in kinds):  # it has raised
                for measured in (self.measured, self.spent):
                    measured.pop((size, True, 1), None)
                break
            costs.append(min(self.measured[kind][-1].seconds for kind in kinds) / size)
            if not sizes and len(costs) > 2 and costs[-1] > 0.95 * costs[-2] > 0.95**2 * costs[-3]:
                break
            if not sizes and 3 * time.monotonic() - 2 * start - began > seconds / 2:  # as the next one takes twice that
                seen = self.measured[size, False, 1][-1].seconds
                self.stopped = f"a batch of {size} takes {seen:.2g} s, and there were {seconds:g} s to measure"
                break
        middle = sorted(self.measured)[len(self.measured) // 2][0]
        for at_once in (2, 4, 8, 16):
            if at_once <= most and (middle, False, at_once // 2) in self.measured:
                yield middle, False, at_once
        while self.spent and time.monotonic() < began + seconds:
            yield min(self.spent, key=self.spent.__getitem__)

    def measure(self, kind: _Kind, longest: float) -> None:
        """Measure some batches, for so many seconds at most, or one."""
        size, _, at_once = kind
        known, began = self.measured.setdefault(kind, []), time.monotonic()
        seconds = median([run.seconds for run in known[-99:]]) if known else 0.0
        batches = max(at_once, min(32, int(longest / seconds))) if known else at_once
        try:
            known += self.runner.run(self._run(kind, batches, seconds / size / at_once))
            self.spent[kind] = self.spent.get(kind, 0.0) + time.monotonic() - began
        except Exception as error:  # whatever it raises
            for other in [other for other in self.measured if other == kind or 1 < at_once <= other[2]]:
                self.spent.pop(other, None)
                if at_once > 1 or not known:
                    del self.measured[other]
            if not self.measured:
                raise
            what = f"{size} item{'s' * (size > 1)}" if at_once == 1 else f"{at_once} batches at once"
            self.stopped = self.stopped or f"with {what} it raised {type(error).__name__}: {error}"

    async def _run(self, kind: _Kind, batches: int, pause: float) -> list[Run]:
        """Run batches of items that come one by one, so that those of each come while the one before runs."""
        size, alike, at_once = kind
        f, picked = self.decorated(at_once), [self._pick(size, alike) for _ in range(batches + 1)]
        f.batch_size = size
        self.ran.clear()
        self.failed = False
        answers, came, cpu = list[Any](), list[float](), time.process_time()
        try:
            # One item short of another batch, so that that never begins.
            await self._pass_in(f, list(chain(*picked))[:-1], pause, answers, came)
            for answer in answers[batches * size :]:
                answer.cancel()
            await f.adrain()  # not only until all are answered: a generator goes on behind its last `yield`
        finally:
            for answer in answers:  # after an exception; else all are done
                answer.cancel()
        cpu = (time.process_time() - cpu) / batches
        errors = [answer.exception() for answer in answers[: batches * size]]
        if self.failed or all(errors):  # not: an item that has no answer
            raise next(error for error in errors if error is not None)
        begun, free, runs = sorted(self.ran), [0.0] * at_once + sorted([ended for _, ended in self.ran]), list[Run]()
        for at, (numbers, (began, ended)) in enumerate(zip(picked, begun, strict=False)):
            could_begin = min(began, max(free[at], came[(at + 1) * size - 1]))
            runs.append(Run(size, max(1e-9, ended - could_begin), cpu, *_weigh(self.weights, numbers), alike))
        return runs[min(at_once, batches - 1) :]  # the first ones come after a rest

    async def _pass_in(
        self, f: Any, numbers: Sequence[int], pause: float, answers: list[Any], came: list[float]
    ) -> None:
        """Let calls come at random, those of the first batch at once; note their answers, and when they came.

        As callers do: a function that needs the interpreter is slower meanwhile, and keeps them from calling.
        """
        on_loop, size, moment = isinstance(f, BatchedCoroutineFunction), f.batch_size, time.monotonic()
        for at, number in enumerate(numbers):
            moment += pause * self.chance.expovariate(1.0) * (at > size)
            left = moment - time.monotonic()
            if on_loop and (left > _SHORT or at % size == 0):
                await asyncio.sleep(max(0.0, left - 0.001))  # its timers are late by a millisecond at most
            elif left > _SHORT:
                time.sleep(left)
            if left > _SHORT:
                self.late.append(max(0.0, time.monotonic() - moment))
            answers.append(f.submit(*self.calls[number]))
            came.append(time.monotonic())

    def _pick(self, size: int, alike: bool) -> list[int]:
        """Return the numbers of so many calls that weigh no more than they may, if that is found soon."""
        numbers = self._draw(size, alike)
        for _ in range(50):
            if _weigh(self.weights, numbers)[0] <= self.most:
                break
            numbers = self._draw(size, alike)
        return numbers

    def _draw(self, size: int, alike: bool) -> list[int]:
        """Draw calls at random, of one group; or of those that weigh about the same."""
        numbers, start = self.by_weight, self.chance.randrange(len(self.calls))
        if alike:
            start = max(0, min(start - size // 2, len(numbers) - size))
            return [numbers[at % len(numbers)] for at in range(start, start + size)]
        return self.chance.choices(self.groups[self.keys[start]], k=size)


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
        seconds: About how long it may take, at most, after the first batch; but each of `sizes` is measured.
        sizes: Sizes of batches; None doubles them until an item gets hardly cheaper, half of `seconds` is over, or a
            batch has 1,024 items or all there are (if these are more than 64), or would weigh more than `max_weight`.
        concurrency: Most batches at once that the function bears, which are tried; None: as it is decorated, else 1.

    Returns:
        Curve: How long batches of each size take.

    Raises:
        TypeError: `items` is no sequence, `f` cannot be decorated, or an event loop runs in this thread.
        ValueError: `items` is empty, a size or `concurrency` is below 1, or `seconds` is not positive.
        Exception: Whatever `f` raises, or returns for every item, at the first size.
    """
    if isinstance(items, (Mapping, str)) or hasattr(items, "columns") or not hasattr(items, "__getitem__"):
        what = "a sequence of what callers pass (a table: a list of its rows)"
        raise TypeError(f"measure(): items must be {what}, got {type(items).__name__}")
    if not len(items):
        raise ValueError("measure(): items must hold one item at least, better hundreds, as they come; it is empty")
    if not 0 < seconds < math.inf:
        raise ValueError(f"measure(): seconds must be positive and finite, got {seconds}")
    if sizes is not None and not (sizes and all(isinstance(size, int) and size >= 1 for size in sizes)):
        raise ValueError(f"measure(): sizes must be ints of at least 1, got {sizes!r}")
    with suppress(RuntimeError):
        asyncio.get_running_loop()
        raise TypeError("measure(): an event loop runs in this thread: await asyncio.to_thread(measure, f, items)")
    function, options = f, Options(1)
    if isinstance(f, (BatchedFunction, BatchedCoroutineFunction)):
        function, options = f.__wrapped__, f._self_options
    most = check_count("measure", "concurrency", options.concurrency if concurrency is None else concurrency)
    probe, console = _Probe(function, items, options), Console(stderr=True)
    with (
        probe.runner,
        Progress(console=console, auto_refresh=False, transient=True, disable=not console.is_terminal) as progress,
    ):
        bar, began = progress.add_task("measuring", total=seconds), time.monotonic()
        for kind in probe.turns(sizes, most, seconds):
            probe.measure(kind, seconds / 50)
            progress.update(bar, completed=time.monotonic() - began, refresh=True)
    found = {kind: runs[len(runs) > 2 :] for kind, runs in probe.measured.items()}  # the first one is slow in many ways
    largest = max(found)[0]
    if largest > len(items):
        message = "measure(): %d items are too few for batches of %d: they are repeated"
        _logger.warning(message, len(items), largest)
    medians = {kind: median([run.seconds for run in runs]) for kind, runs in found.items()}
    ratios = {kind[2]: medians[kind] / medians[kind[0], False, 1] for kind in found if not kind[1]}
    slowdown = {at_once: max(1.0, ratio) for at_once, ratio in ratios.items()}
    alone = [run for kind, runs in found.items() if kind[2] == 1 for run in runs]
    name = str(getattr(f, "__qualname__", f))
    late = probe.chance.choices(probe.late or [0.0], k=_ENOUGH)
    return Curve(name, probe.calls, probe.weights, alone, options, slowdown, late, probe.stopped)


def _weights(calls: Sequence[tuple[Any, ...]], options: Options) -> tuple[float, ...]:
    """Return what calls weigh, in which they may differ; nothing if they do not."""
    ask: Any = options.weight or options.group_by or len
    with suppress(Exception):  # items without a length, groups that are no numbers
        weights = tuple([float(ask(*call)) for call in calls])
        return weights if len(set(weights)) > 1 else ()
    return ()


# Playing


class _PlayedCall(Call):
    planned: float  # when it would have come, had the interpreter been free


class _Player(Engine):
    """The library's own engine, whose clock is moved by hand, and whose batches take as long as they are said to."""

    make_batch = Batch

    def __init__(self, options: Options, pick: Any, seconds: Any, lateness: Any) -> None:
        self.pick, self.seconds, self.lateness = pick, seconds, lateness
        self.moment, self.busy, self.longest = 0.0, 0.0, 0.0
        self.tally, self.latencies = Tally(), list[float]()
        super().__init__(list, "simulate", options, None)

    def now(self) -> float:
        return self.moment

    def play(self, moments: Sequence[float], again: int) -> int:
        """Let calls come at these moments, and `again` many more, each as soon as one is answered.

        Return how many of these never came. What happens is a call (None), that late ones come (), or a batch ends.
        """
        order, late_until, late = count(), 0.0, deque[float]()  # calls that are kept from coming
        to_come: list[tuple[float, int, Any]] = [(moment, next(order), None) for moment in sorted(moments)]
        while True:
            step = self.next(self.moment)
            if isinstance(step, Batch):
                entries = step.to_answer.pop()
                seconds = self.seconds([entry.item for entry in entries], len(self._running))
                self.busy += seconds
                self.longest = max(self.longest, seconds)
                heappush(to_come, (self.moment + seconds, next(order), (step, self.buffer.calls_of(entries))))
                continue
            while len(self.inbox) < self.wake_at:  # else the owner wakes
                if late and (not self._running or self.moment >= late_until):
                    while late:  # all at once
                        self._arrive(late.popleft())
                elif to_come and to_come[0][0] <= self.alarm_at:
                    self.moment, _, ended = heappop(to_come)
                    if ended is None:
                        late.append(self.moment)
                        if self._running and len(late) == 1:
                            late_until = self.moment + self.lateness()
                            if late_until > self.moment:
                                heappush(to_come, (late_until, next(order), ()))
                    elif ended:
                        batch, calls = ended
                        self.turn_ended(batch)
                        self.tally.answer(len(calls), 0, True)
                        self.latencies += [self.moment - call.planned for call in calls]
                        for _ in calls[:again]:
                            heappush(to_come, (self.moment, next(order), None))
                        again -= min(again, len(calls))
                        break
                elif self.alarm_at < math.inf:
                    self.moment = self.alarm_at
                    break
                else:
                    return again

    def _arrive(self, planned: float) -> None:
        call = _PlayedCall()
        call.item, call.arrival, call.planned = self.pick(), self.moment, planned
        if self.bounded and self.is_full():
            self.tally.refuse()
        else:
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

    Exactly one of `rate`, `callers` and `arrivals` says how calls come. Left out are errors, callers that leave, and
    calls from inside.

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
    load = {"rate": rate, "callers": callers, "arrivals": arrivals}
    _check("simulate", load)
    return _simulate(curve, curve.by_number(chosen), load, items, seed)


def _check(name: str, load: Mapping[str, Any], p99: float | None = None) -> None:
    """Raise what says why, if this is not exactly one load."""
    given = [amount for amount in load if load[amount] is not None]
    if len(given) != 1:
        raise TypeError(f"{name}(): exactly one of {', '.join(load)} must be given, got {', '.join(given) or 'none'}")
    for amount, value in {**load, "p99": p99}.items():
        if amount == "arrivals" and value is not None and not len(value):
            raise ValueError(f"{name}(): arrivals must hold one moment at least, it is empty")
        if amount != "arrivals" and value is not None and not 0 < value < math.inf:
            raise ValueError(f"{name}(): {amount} must be positive and finite, got {value}")


def _simulate(curve: Curve, options: Options, load: Mapping[str, Any], items: int, seed: int = 0) -> Simulation:
    rate, callers, arrivals = [load.get(name) for name in ("rate", "callers", "arrivals")]
    chance, flights, again = random.Random(seed), sorted(curve.slowdown), 0

    def seconds(batch: list[int], in_flight: int = 1) -> float:
        known = flights[bisect_right(flights, in_flight) - 1]
        beyond = in_flight / known if known == flights[-1] else 1.0  # more than was measured bring nothing
        return curve.draw(batch, chance) * curve.slowdown[known] * beyond

    first: dict[Any, int] = {}
    numbers: Sequence[int] = range(len(curve.calls))
    if options.dedupe:  # equal items get one number
        numbers = [first.setdefault(tuple((type(item), item) for item in curve.calls[at]), at) for at in numbers]
    pick: Any = partial(random.Random(seed).choice, numbers)
    if arrivals is not None:
        start = min(arrivals)
        moments, pick = [moment - start for moment in arrivals], cycle(numbers).__next__
    elif callers is not None:  # not all at the same moment, as they would stay together for ever
        spread, again = 2 * seconds([0] * min(options.batch_size, callers)), max(items, 5 * callers) - callers
        moments = [chance.uniform(0.0, spread) for _ in range(callers)]
    else:
        moments = list(accumulate(chance.expovariate(rate or 1.0) for _ in range(items)))
    player = _Player(options, pick, seconds, partial(chance.choice, curve.late))
    uncalled = player.play(moments, again)
    whole, stats = player.moment or math.inf, player.tally.read(player.waiting)  # inf if nothing is ever due
    # What is left when the last one has come is worked off soon, or else it has grown all the time.
    slack = 0.01 * max(moments) + (options.timeout or 0.0) + 2 * player.longest
    keeps_up = whole - max(moments) <= slack if callers is None else not uncalled
    keeps_up &= bool(player.latencies) and stats.refused <= (0.01 * stats.accepted if callers is None else 0)
    throughput, busy = len(player.latencies) / whole, player.busy / whole / options.concurrency
    return Simulation(player.latencies, throughput, busy, keeps_up, stats)


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

    def line(self, curve: Curve) -> str:
        """Return the line of Python that decorates the function so; its other options are to stay."""
        options, parts = curve.options, self._asdict()
        width = parts.pop("width")
        shown = [f"{name}={value}" for name, value in parts.items() if value != self._field_defaults.get(name)]
        if width is not None:
            name = getattr(options.weight, "__name__", "")
            of = "len" if options.weight is None else name if name.isidentifier() else "weight"
            star = "*" * (len(curve.calls[0]) > 1)
            shown.append(f"group_by=lambda {star}item: {of}({star}item) // {width}")
        kept = [each.name for each in fields(options) if each.name not in parts and getattr(options, each.name)]
        return f"@batched({', '.join(shown)})" + f"  # and as it is: {', '.join(kept)}" * bool(kept)

    def options(self, curve: Curve) -> Options:
        """Return the options of the function with these in their place, which ask for numbers of calls."""
        size, timeout, concurrency, width = self
        chosen = replace(curve.own, batch_size=size, timeout=timeout, concurrency=concurrency)
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
        why: The reason, in a few sentences.
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
        _save(path, self.curve._plot, self._plot)

    def _plot(self, axes: Any) -> None:
        curve, setting, today = self.curve, self.setting, self.curve.today
        most = _play(curve, {"callers": 4 * setting.batch_size}, setting).throughput
        rates = [most * percent / 100 for percent in (5, 20, 35, 50, 65, 80, 90, 95)]
        for label, style, each in (
            ("recommended", "ko-", setting),
            ("the same, timeout=0", "ks--", setting._replace(timeout=0.0)),
            (f"today: batch_size={today.batch_size}, timeout={today.timeout}", "k^:", today),
        ):
            plays = [_play(curve, {"rate": rate}, each) for rate in rates]
            means = [play.mean * 1e3 if play.keeps_up else math.nan for play in plays]
            axes.plot(rates, means, style, fillstyle="none", label=label)
        axes.set(yscale="log", xlabel="calls per second", ylabel="mean latency in ms", title="as far as it keeps up")
        axes.legend()


_Play = Callable[..., Simulation]  # of a setting, so many calls, and a seed


def _play(curve: Curve, load: Mapping[str, Any], setting: Setting, items: int = _FEW, seed: int = 0) -> Simulation:
    return _simulate(curve, setting.options(curve), load, items, seed)


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
    _check("recommend", {"rate": rate, "callers": callers}, p99)
    if len(curve.points) < 2:
        why = f": {curve.stopped}" * bool(curve.stopped)
        raise ValueError(f"recommend(): the curve of {curve.name} must have two sizes at least, it has one{why}")
    copies = 1
    while True:
        play = cache(partial(_play, curve, {"rate": rate and rate / copies, "callers": callers}))
        best, *others = _search(curve, play, callers, p99)
        setting, expected = best.setting, play(best.setting, _MANY)
        if expected.keeps_up or rate is None:
            break
        copies = max(copies + 1, math.ceil(1.05 * copies), math.ceil(rate / expected.throughput))
    why = _why(curve, play, callers, setting)
    if copies > 1:
        why += f" One cannot keep up with {rate:g} calls/s: it takes {copies} copies (processes), each decorated so."
    elif rate and not _play(curve, {"rate": rate / 0.85}, setting, _ENOUGH).keeps_up:
        why += " It can do little more than that, so the figures are rough: leave some room,"
        why += " or let more run at once (--concurrency)." if len(curve.slowdown) == 1 else " or run copies."
    if p99 is not None and expected.percentile(99) > p99:
        why += f" No setting keeps 99 of 100 calls below {p99:g} s: the nearest is {expected.percentile(99):.2g} s."
    return Recommendation(
        curve, setting.line(curve), setting, expected, others, play(curve.today, _ENOUGH), copies, why
    )


def _search(curve: Curve, play: _Play, callers: int | None, p99: float | None) -> list[Choice]:
    """Return the best setting, and then those that are nearly as good, without those that differ in size alone."""
    largest, lone, widths = curve.points[-1].size, curve.points[0].seconds, list[int | None]([None])
    if curve.saved_by_likeness and curve.options.group_by is None:
        spread = max(curve.weights) - min(curve.weights)
        widths += sorted({2 ** max(0, round(math.log2(spread / parts))) for parts in (2, 4, 8, 16, 32)})
    shares = [math.ceil(callers / flights) for flights in curve.slowdown] if callers else []  # more cannot wait
    values: dict[str, Sequence[Any]] = {
        "width": widths,
        "batch_size": sorted({size for size in [*shares, *(point.size for point in curve.points)] if size <= largest}),
        "concurrency": list(curve.slowdown),
        "timeout": [0.0, *(float(f"{lone * 2**power:.1g}") for power in range(-1, 6) if lone * 2**power > 0.0005)],
    }

    @cache
    def cost(setting: Setting, items: int = _FEW, seed: int = 0) -> tuple[int, float]:
        """What is to be as little as possible: how bad in kind, then in degree."""
        expected = play(setting, items, seed)
        if not expected.keeps_up:
            return 2, 1 / (expected.throughput or 1e-9)
        if p99 is None:
            return 0, expected.mean
        reached = expected.percentile(99)
        return (1, reached) if reached > p99 else (0, expected.utilisation * setting.concurrency / expected.throughput)

    def order(setting: Setting, *costs: tuple[int, float]) -> tuple[int, float]:
        """What is simpler comes first if it costs little more; so does the size up to which it pays to grow."""
        size, timeout, concurrency, width = setting
        most = largest if callers is None else math.ceil(callers / concurrency)
        more = [size != min(curve.pays_up_to(alike=width is not None), most), timeout, concurrency > 1, width]
        tiers, degrees = zip(*costs or [cost(setting)], strict=True)
        return max(tiers), fmean(degrees) * 1.1 ** sum(map(bool, more))

    best, before = Setting(min(callers or largest, largest)), None
    seen = {best: None}
    while best != before:
        before = best
        for name in values:
            tried = [best._replace(**{name: value}) for value in values[name]]
            tried = [each for each in tried if each.batch_size > 1 or (each.timeout, each.width) == (0.0, None)]
            seen |= dict.fromkeys(tried)
            best = min([best, *tried], key=order)  # the first of equal ones, or it would go round for ever
    distinct = {setting[1:]: setting for setting in sorted(seen, key=order, reverse=True)}
    final = []
    for setting in sorted(distinct.values(), key=order)[:5]:
        costs = [cost(setting, _ENOUGH // 2, seed) for seed in (1, 2, 3)]
        degrees = [degree for _, degree in costs]
        final.append((order(setting, *costs), fmean(degrees), stdev(degrees), setting))
    final.sort(key=itemgetter(0))
    (tier, _), least, error, _ = final[0]
    limit = least + max(0.03 * least, 2 * error)
    return [
        Choice(setting, play(setting, _ENOUGH), rank[0] == tier and mean <= limit) for rank, mean, _, setting in final
    ]


def _why(curve: Curve, play: _Play, callers: int | None, setting: Setting) -> str:
    """Say it in a few sentences that a newcomer understands."""
    if callers == 1:
        return "A single caller waits for each answer before the next call. So no batch can form."
    points, expected = curve.points, play(setting, _MANY)
    size = expected.stats.mean_size
    if setting.width is not None:
        mixed = play(setting._replace(width=None))
        than = f"{_milliseconds(mixed.mean)[0]} ms" if mixed.keeps_up else "without end"
        first = f"In a batch of mixed lengths short ones wait for long ones: then calls would wait {than}"
    elif setting.batch_size == 1:
        first = "Batches do not pay here: more at once bring less than they cost"
    elif callers is not None and callers < points[-1].size:
        first = f"With {callers} callers a batch of {points[-1].size} never fills"
    else:
        point = max([point for point in points if point.size <= setting.batch_size] or points[:1])
        one = "a single item" if points[0].size == 1 else f"one of {points[0].size}"
        first = f"A batch of {point.size} takes {point.seconds / points[0].seconds:.1f} times as long as {one}"
    if setting.concurrency > 1:
        slower = curve.slowdown[setting.concurrency]
        first += f". {setting.concurrency} at once take {slower:.1f} times as long each"
    then = "they form while it is busy, so to wait for more would only take time"
    if setting.timeout:
        without = play(setting._replace(timeout=0.0)).stats.mean_size
        then = f"without the wait they would have {without:.1f}, and be more work"
    elif size < 1.1:
        then = "calls come one by one, and larger batches form when more come"
    return f"{first}. It is busy {expected.utilisation:.0%} of the time, and batches have {size:.1f} items: {then}."


# The command


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
    console.width, line, options = max(80, console.width), curve.line, curve.options
    table = Table("items in a batch", "ms", "ms per item", "CPU ms per item", box=None)
    if curve.weights:
        table.add_column("ms if alike")
    for point in curve.points:
        times = _milliseconds(point.seconds, point.seconds / point.size, point.cpu / point.size, point.alike or 0.0)
        table.add_row(str(point.size), *times[: 3 + (point.alike is not None)])
    console.print(table)
    if line.until > curve.points[0].size:
        fixed, each = _milliseconds(line.fixed, line.each)
        until = "" if line.until == curve.points[-1].size else f" up to {line.until} items, then not"
        console.print(f"\n{curve.name}() takes {fixed} ms + {each} ms per item{until} (give or take {line.error:.0%}).")
    if curve.stopped:
        console.print(f"More was not measured: {curve.stopped}.")
    console.print(f"\n    {found.line}\n\n{found.why}\n", style="bold")
    columns = "", "size", "timeout", "at once", "group", "mean ms", "p50", "p99", "calls/s", "items", "busy"
    table = Table(*columns, box=None, padding=(0, 1, 0, 0))
    rows = [("this", found.setting, found.expected), ("today", curve.today, found.today)]
    rows += [("as good" if same else "next", setting, expected) for setting, expected, same in found.alternatives]
    for name, (size, timeout, concurrency, width), expected in rows:
        latencies = expected.mean, expected.percentile(50), expected.percentile(99)
        table.add_row(
            *(name, str(size), "None" if timeout is None else f"{timeout:g}", str(concurrency)),
            f"//{width}" if width else "as it is" * (options.group_by is not None),
            *(_milliseconds(*latencies) if expected.keeps_up else ["grows"] * 3),
            f"{expected.throughput:,.{expected.throughput < 100:d}f}",
            *(f"{expected.stats.mean_size:.1f}", f"{expected.utilisation:.0%}"),
        )
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
    return json.dumps(
        {**texts, **found.setting._asdict(), **figures, "points": [p._asdict() for p in found.curve.points]}
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; see its `--help`."""
    parser = argparse.ArgumentParser(prog="python -m batchify.tune", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("function", help="package.module:function, batched or not; it is called for real")
    parser.add_argument("--items", required=True, help="package.module:items: what callers pass, or a function of that")
    loads = parser.add_mutually_exclusive_group(required=True)
    loads.add_argument("--rate", type=float, help="calls per second, that come at random")
    loads.add_argument("--callers", type=int, help="so many callers, each with one call at a time")
    parser.add_argument("--p99", type=float, help="seconds that 99 of 100 calls may not exceed")
    parser.add_argument("--seconds", type=float, default=20.0, help="how long to measure (20)")
    parser.add_argument("--concurrency", type=int, help="most batches at once that the function bears (2, 4, 8, 16)")
    parser.add_argument("--plot", metavar="FILE", help="draw two pictures, as SVG, PNG or PDF")
    parser.add_argument("--json", action="store_true", help="print JSON, for scripts")
    options = parser.parse_args(arguments)
    try:
        load = {"rate": options.rate, "callers": options.callers}
        _check("recommend", load, options.p99)  # before it measures
        given: Any = _find(options.items)
        items: Any = given() if callable(given) else given
        curve = measure(_find(options.function), items, seconds=options.seconds, concurrency=options.concurrency)
        found = recommend(curve, **load, p99=options.p99)
    except (TypeError, ValueError) as error:
        if not str(error).startswith(("measure()", "recommend()", _WHERE)):
            raise  # it is the user's
        parser.error(str(error))
    print(_as_json(found)) if options.json else _print(found)
    if options.plot:
        found.plot(options.plot)


if __name__ == "__main__":
    main()
