"""What is measured, and the process that measures it.

Each library has a process of its own, so that one that hangs can be ended, and leaves nothing behind that disturbs the
next one. They do as they are told through a pipe, one at a time: see serve(). A workload makes a scheme, checks every
result, and returns figures:

    wall, cpu       microseconds per item, of wall time and of CPU time of the whole process
    size            mean size of the batches
    mean, p50, p99  latency in milliseconds
"""

import asyncio
import gc
import itertools
import logging
import math
import os
import random
import resource
import sys
import threading
import time
import tracemalloc
import warnings
from collections.abc import Awaitable, Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing.connection import Connection
from statistics import fmean, median
from typing import Any

from . import adapters
from .adapters import Call, Caller

Figures = dict[str, Any]
WARM_UP = 64  # calls; BentoML learns from its first 26 or so


class Failed(Exception):  # noqa: N818
    """Raised when a workload did not come to its end."""


class Function:
    """The function that gets the batches: doubles its items, notes how many they are, and takes its time."""

    def __init__(self, seconds: Callable[[int], float] | None = None) -> None:
        self.sizes: list[int] = []
        self.seconds = seconds  # of which the GIL is free
        # One engine, which runs one batch after the other, however many are sent to it at once.
        self.engine = ThreadPoolExecutor(1)
        self.busy = threading.Lock()
        self.closing = False  # what is still sent costs no time

    def function(self, *, on_the_loop: bool) -> Callable[[Sequence[int]], Any]:
        """Return it as `async def` or `def`."""

        def double(items: Sequence[int]) -> list[int]:
            self.sizes.append(len(items))
            if self.seconds is not None:
                with self.busy:
                    self.work(len(items))
            return [2 * item for item in items]

        async def double_async(items: Sequence[int]) -> list[int]:
            self.sizes.append(len(items))
            if self.seconds is not None:
                # In a thread, since the timers of an event loop know only whole milliseconds.
                await asyncio.get_running_loop().run_in_executor(self.engine, self.work, len(items))
            return [2 * item for item in items]

        return double_async if on_the_loop else double

    @contextmanager
    def quick(self) -> Generator[None, None, None]:
        """For a warm-up: if it takes long, let it take no time until then; and do not count the batches."""
        self.closing = self.seconds is not None and self.seconds(1) > 0.05
        yield
        self.closing = False
        self.sizes.clear()

    def work(self, size: int) -> None:
        if self.seconds is not None and not self.closing:
            time.sleep(self.seconds(size))


def model(fixed: float, each: float) -> Callable[[int], float]:
    return lambda size: fixed + each * size


def summary(latencies: Sequence[float]) -> Figures:
    """Return figures for latencies in seconds, in milliseconds."""
    latencies = sorted(latencies) or [math.nan]
    last = len(latencies) - 1
    return {
        "mean": fmean(latencies) * 1e3,
        "p50": latencies[last // 2] * 1e3,
        "p99": latencies[round(last * 0.99)] * 1e3,
    }


def check(items: Sequence[int], results: Sequence[Any]) -> None:
    if list(results) != [2 * item for item in items]:
        raise Failed("WRONG results")


def switches() -> int:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_nvcsw + usage.ru_nivcsw


class Meter:
    """What has been used since it was made."""

    def __init__(self, sizes: list[int]) -> None:
        self.sizes, self.batches = sizes, len(sizes)
        self.wall, self.cpu, self.switches = time.perf_counter(), time.process_time(), switches()

    def read(self, items: int) -> Figures:
        """Return figures for so many items."""
        wall, cpu = time.perf_counter() - self.wall, time.process_time() - self.cpu
        sizes = self.sizes[self.batches :]
        per = items or 1
        return {
            "items": items,
            "wall": wall / per * 1e6,
            "cpu": cpu / per * 1e6,
            "size": fmean(sizes) if sizes else 0.0,
            "batches": len(sizes),
            "switches": (switches() - self.switches) / per,
        }


class Arrivals:
    """When calls are to be made, whatever becomes of those before; and when they were, and were answered."""

    def __init__(self, times: Sequence[float], skip: float = 0.0) -> None:
        self.times = times
        self.skipped = sum(moment < skip for moment in times)  # until it runs steadily
        self.lags = [math.nan] * len(times)
        self.latencies = [math.nan] * len(times)
        self.wrong = 0
        self.errors: list[str] = []
        self.start = time.perf_counter() + 0.01

    def due(self, number: int) -> float:
        """Return how many seconds are left until call `number`."""
        return self.start + self.times[number] - time.perf_counter()

    def began(self, number: int) -> None:
        self.lags[number] = -self.due(number)

    def answered(self, number: int, result: object) -> None:
        # From when it was to be made: who is late because all are waiting must count that.
        self.latencies[number] = -self.due(number)
        self.wrong += result != 2 * number

    def read(self) -> Figures:
        if self.wrong or self.errors:
            raise Failed(self.errors[0] if self.errors else "WRONG results")
        answered = [each for each in self.latencies[self.skipped :] if not math.isnan(each)]
        lags = sorted(each for each in self.lags[self.skipped :] if not math.isnan(each))
        unanswered = 1 - len(answered) / max(1, len(self.times) - self.skipped)
        return {
            **summary(answered if unanswered < 0.01 else ()),  # else it says nothing
            "lag": lags[round((len(lags) - 1) * 0.95)] * 1e3 if lags else math.nan,
            "unanswered": unanswered,
        }


class ThreadLoad:
    """Callers that are threads."""

    def __init__(self, make: Callable[..., Any], batch_size: int, timeout: float) -> None:
        self.make, self.batch_size, self.timeout = make, batch_size, timeout

    def scheme(self, function: Function) -> Any:
        return self.make(function.function(on_the_loop=False), self.batch_size, self.timeout)

    def warm_up(self, scheme: Any) -> None:
        with ThreadPoolExecutor(8) as pool:
            check(range(WARM_UP), list(pool.map(scheme.caller(), range(WARM_UP))))

    def go_round(self, callers: int, seconds: float, function: Function, wrap: Callable[[Caller], Caller]) -> Figures:
        """Let threads go round for so many seconds, after a fifth of that to warm up."""
        scheme = self.scheme(function)
        counts = [0] * callers
        stopped = False
        errors: list[str] = []
        go = threading.Event()  # not before all are there: who goes round leaves the GIL to nobody who starts threads

        def caller(position: int, call: Caller) -> None:
            go.wait()
            number = 0
            while not stopped:
                item = number * callers + position
                try:
                    if call(item) != 2 * item and not stopped:
                        errors.append("WRONG results")
                except Exception as error:  # noqa: BLE001
                    errors.append(repr(error))
                if errors:
                    return
                number += 1
                counts[position] = number

        calls = [wrap(scheme.caller()) for _ in range(callers)]
        pool = [threading.Thread(target=caller, args=each, daemon=True) for each in enumerate(calls)]
        for thread in pool:
            thread.start()
        go.set()
        time.sleep(seconds / 5)
        meter, before = Meter(function.sizes), sum(counts)
        time.sleep(seconds)
        figures = meter.read(sum(counts) - before)
        stopped = True
        if not scheme.close_last:
            scheme.close()
        for thread in pool:
            thread.join(10)
        if scheme.close_last:
            scheme.close()
        if errors or any(thread.is_alive() for thread in pool):
            raise Failed(errors[0] if errors else "HUNG")
        return figures

    def closed(self, callers: int, seconds: float) -> Figures:
        return self.go_round(callers, seconds, Function(), lambda call: call)

    def closed_timed(self, callers: int, seconds: float, costs: Callable[[int], float]) -> Figures:
        latencies: list[float] = []

        def timed(call: Caller) -> Caller:
            def call_timed(item: int) -> int:
                start = time.perf_counter()
                result = call(item)
                latencies.append(time.perf_counter() - start)
                return result

            return call_timed

        figures = self.go_round(callers, seconds, Function(costs), timed)
        return {**figures, **summary(latencies[len(latencies) // 6 :])}

    def bulk(self, items: int) -> Figures:
        function = Function()
        scheme = self.scheme(function)
        numbers = list(range(items))
        gc.collect()
        meter = Meter(function.sizes)
        results = scheme.bulk(numbers)
        figures = meter.read(items)
        check(numbers, results)
        scheme.close()
        return figures

    def at(self, arrivals: Arrivals, function: Function, callers: int, patience: float) -> Figures:
        """Call at these times, from so many threads at most; wait so long for answers after the last one."""
        scheme = self.scheme(function)
        with function.quick():
            self.warm_up(scheme)
        numbers = itertools.count()
        given_up = threading.Event()
        all_calls = len(arrivals.times)

        def go_round(call: Caller) -> None:
            while (number := next(numbers)) < all_calls and not given_up.is_set():
                if (seconds := arrivals.due(number)) > 0:
                    time.sleep(seconds)
                arrivals.began(number)
                try:
                    arrivals.answered(number, call(number))
                except Exception as error:  # noqa: BLE001
                    arrivals.errors.append(repr(error))
                    return

        pool = [
            threading.Thread(target=go_round, args=(scheme.caller(),), daemon=True)
            for _ in range(min(callers, all_calls))
        ]
        meter = Meter(function.sizes)
        arrivals.start = time.perf_counter() + 0.05
        for thread in pool:
            thread.start()
        end = time.perf_counter() + arrivals.due(all_calls - 1) + patience
        for thread in pool:
            thread.join(max(0.0, end - time.perf_counter()))
        figures = {**meter.read(all_calls), **arrivals.read()}
        given_up.set()
        function.closing = True
        for thread in pool:
            thread.join(30)
        if any(thread.is_alive() for thread in pool):
            raise Failed("HUNG")
        scheme.close()
        return figures

    def idle(self, seconds: float) -> Figures:
        scheme = self.scheme(Function())
        self.warm_up(scheme)
        time.sleep(0.3)
        before = (time.process_time(), switches())
        time.sleep(seconds)
        cpu, woken = time.process_time() - before[0], switches() - before[1]
        scheme.close()
        return {"idle_cpu": cpu / seconds * 1e6, "wake_ups": max(0, woken - 1) / seconds}

    def memory(self, items: int) -> Figures:
        gate = threading.Event()

        def double(numbers: Sequence[int]) -> list[int]:
            gate.wait()
            return [2 * number for number in numbers]

        scheme = self.make(double, self.batch_size, self.timeout)
        wrong: list[int] = []

        def call(number: int, caller: Caller) -> None:
            if caller(number) != 2 * number:
                wrong.append(number)

        callers = [scheme.caller() for _ in range(items)]
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        pool = [threading.Thread(target=call, args=(n, caller), daemon=True) for n, caller in enumerate(callers)]
        for thread in pool:
            thread.start()
        time.sleep(0.5)
        held = tracemalloc.get_traced_memory()[0] - before
        tracemalloc.stop()
        gate.set()
        for thread in pool:
            thread.join(30)
        if wrong or any(thread.is_alive() for thread in pool):
            raise Failed("WRONG results" if wrong else "HUNG")
        scheme.close()
        return {"memory": held / items}


class LoopLoad:
    """Callers that are tasks."""

    def __init__(self, make: Callable[..., Any], batch_size: int, timeout: float) -> None:
        self.make, self.batch_size, self.timeout = make, batch_size, timeout

    def scheme(self, function: Function) -> Any:
        on_the_loop = self.make.on_the_loop  # type: ignore[attr-defined]
        return self.make(function.function(on_the_loop=on_the_loop), self.batch_size, self.timeout)

    def run(self, load: Callable[[Any], Awaitable[Figures]], function: Function) -> Figures:
        async def main() -> Figures:
            scheme = self.scheme(function)
            figures = await load(scheme)
            await scheme.stop()
            return figures

        return asyncio.run(main())

    async def warm_up(self, scheme: Any) -> None:
        async def call(first: int) -> None:
            for item in range(first, WARM_UP, 8):
                check([item], [await scheme.call(item)])

        await asyncio.gather(*map(call, range(8)))

    async def go_round(self, call: Call, function: Function, tasks: int, seconds: float) -> Figures:
        counts = [0] * tasks
        stopped = False

        async def caller(position: int) -> None:
            number = 0
            while not stopped:
                item = number * tasks + position
                if await call(item) != 2 * item:
                    raise Failed("WRONG results")
                number += 1
                counts[position] = number
                if number % 64 == 0:  # else nobody could end calls that never wait
                    await asyncio.sleep(0)

        running = [asyncio.create_task(caller(position)) for position in range(tasks)]
        await asyncio.sleep(seconds / 5)
        gc.collect()
        meter, before = Meter(function.sizes), sum(counts)
        await asyncio.sleep(seconds)
        figures = meter.read(sum(counts) - before)
        stopped = function.closing = True
        done, left = await asyncio.wait(running, timeout=0.5)
        if len(left) >= self.batch_size:  # fewer: the floor, which has no timer
            _, left = await asyncio.wait(left, timeout=10)
            if left:
                raise Failed("HUNG")
        for task in left:
            task.cancel()
        for task in done:
            task.result()
        return figures

    def closed(self, callers: int, seconds: float) -> Figures:
        function = Function()
        return self.run(lambda scheme: self.go_round(scheme.call, function, callers, seconds), function)

    def closed_timed(self, callers: int, seconds: float, costs: Callable[[int], float]) -> Figures:
        function = Function(costs)
        latencies: list[float] = []

        async def load(scheme: Any) -> Figures:
            async def timed(item: int) -> int:
                start = time.perf_counter()
                result: int = await scheme.call(item)
                latencies.append(time.perf_counter() - start)
                return result

            return await self.go_round(timed, function, callers, seconds)

        figures = self.run(load, function)
        return {**figures, **summary(latencies[len(latencies) // 6 :])}

    def bulk(self, items: int) -> Figures:
        function = Function()
        numbers = list(range(items))

        async def load(scheme: Any) -> Figures:
            gc.collect()
            meter = Meter(function.sizes)
            results = await scheme.bulk(numbers)
            figures = meter.read(items)
            check(numbers, results)
            return figures

        return self.run(load, function)

    def at(self, arrivals: Arrivals, function: Function, callers: int, patience: float) -> Figures:  # noqa: ARG002
        """Call at these times, each in a task of its own; wait so long for answers after the last one."""
        all_calls = len(arrivals.times)

        async def load(scheme: Any) -> Figures:
            with function.quick():
                await self.warm_up(scheme)
            loop = asyncio.get_running_loop()
            running: set[asyncio.Task[None]] = set()
            last = loop.create_future()

            async def call(number: int) -> None:
                arrivals.began(number)
                try:
                    arrivals.answered(number, await scheme.call(number))
                except Exception as error:  # noqa: BLE001
                    arrivals.errors.append(repr(error))

            def begin(first: int, end: int) -> None:
                for number in range(first, end):
                    task = loop.create_task(call(number))
                    running.add(task)
                    task.add_done_callback(running.discard)
                if end == all_calls:
                    last.set_result(None)

            def feed() -> None:
                # Requests come from elsewhere; and the timers of an event loop know only whole milliseconds.
                number = 0
                while number < all_calls:
                    if (seconds := arrivals.due(number)) > 0:
                        time.sleep(seconds)
                    first = number
                    while number < all_calls and arrivals.due(number) <= 0:
                        number += 1
                    if number > first:
                        loop.call_soon_threadsafe(begin, first, number)

            meter = Meter(function.sizes)
            arrivals.start = time.perf_counter() + 0.02
            feeder = threading.Thread(target=feed, daemon=True)
            feeder.start()
            await last
            if running:
                await asyncio.wait(running, timeout=patience)
            figures = {**meter.read(all_calls), **arrivals.read()}
            function.closing = True
            feeder.join()
            if running and (await asyncio.wait(running, timeout=30))[1]:
                raise Failed("HUNG")
            return figures

        return self.run(load, function)

    def idle(self, seconds: float) -> Figures:
        async def load(scheme: Any) -> Figures:
            await self.warm_up(scheme)
            await asyncio.sleep(0.3)
            before = (time.process_time(), switches())
            await asyncio.sleep(seconds)
            cpu, woken = time.process_time() - before[0], switches() - before[1]
            return {"idle_cpu": cpu / seconds * 1e6, "wake_ups": max(0, woken - 1) / seconds}

        return self.run(load, Function())

    def memory(self, items: int) -> Figures:
        function = Function()
        gate = threading.Event()
        function.engine.submit(gate.wait)  # so that the first batch waits, and those behind it
        function.seconds = lambda _: 0.0
        function.busy.acquire()

        async def load(scheme: Any) -> Figures:
            tracemalloc.start()
            before = tracemalloc.get_traced_memory()[0]
            calls = [asyncio.ensure_future(scheme.call(number)) for number in range(items)]
            await asyncio.sleep(0.5)
            held = tracemalloc.get_traced_memory()[0] - before
            tracemalloc.stop()
            gate.set()
            function.busy.release()
            if (await asyncio.wait(calls, timeout=20))[1]:
                raise Failed("HUNG")
            check(range(items), [call.result() for call in calls])
            return {"memory": held / items}

        return self.run(load, function)


Load = ThreadLoad | LoopLoad


def closed(load: Load, *, callers: int, seconds: float) -> Figures:
    """Callers that do nothing but call, on a function that does next to nothing."""
    return load.closed(callers, seconds)


def serving(load: Load, *, callers: int, seconds: float, fixed: float, each: float) -> Figures:
    """Callers that do nothing but call, on a model."""
    return load.closed_timed(callers, seconds, model(fixed, each))


def bulk(load: Load, *, items: int) -> Figures:
    """Many items from one place."""
    return load.bulk(items)


def lone(load: Load, *, rate: float, seconds: float) -> Figures:
    """One caller that calls now and then."""
    arrivals = Arrivals([number / rate for number in range(round(rate * seconds))])
    return load.at(arrivals, Function(), 1, 5.0)


def arriving(load: Load, *, rate: float, seconds: float, fixed: float, each: float, seed: int, callers: int) -> Figures:
    """Calls at random times (Poisson) on a model."""
    chance = random.Random(seed)
    gaps = (chance.expovariate(rate) for _ in range(round(2 * rate * seconds)))
    times = list(itertools.takewhile(lambda moment: moment < seconds, itertools.accumulate(gaps)))
    return load.at(Arrivals(times, skip=seconds / 6), Function(model(fixed, each)), callers, 0.5)


def early(load: Load, *, calls: int, apart: float, takes: float) -> Figures:
    """Calls one shortly after the other, on a function that takes so long, whatever the batch."""
    function = Function(lambda _: takes)
    arrivals = Arrivals([number * apart for number in range(calls)])
    figures = load.at(arrivals, function, calls, 5.0)
    last = max(moment + latency for moment, latency in zip(arrivals.times, arrivals.latencies, strict=True))
    return {**figures, "sizes": function.sizes, "all_after": last}


def idle(load: Load, *, seconds: float) -> Figures:
    """It has run and has nothing to do."""
    return load.idle(seconds)


def memory(load: Load, *, items: int) -> Figures:
    """Items that wait while the function is busy: bytes of Python objects, with those of their caller."""
    return load.memory(items)


def measured(load: Load, *, size: int, fixed: float, each: float) -> Figures:
    """How long the model really takes for so many items, without any batching."""
    function = Function(model(fixed, each))
    times: list[float] = []
    if isinstance(load, ThreadLoad):
        plain = function.function(on_the_loop=False)
        for _ in range(50):
            start = time.perf_counter()
            plain([0] * size)
            times.append(time.perf_counter() - start)
    else:

        async def run() -> None:
            awaited = function.function(on_the_loop=load.make.on_the_loop)  # type: ignore[attr-defined]
            for _ in range(50):
                start = time.perf_counter()
                if load.make.on_the_loop:  # type: ignore[attr-defined]
                    await awaited([0] * size)
                else:
                    await asyncio.to_thread(awaited, [0] * size)
                times.append(time.perf_counter() - start)

        asyncio.run(run())
    return {"seconds": median(times)}


WORKLOADS: dict[str, Callable[..., Figures]] = {
    each.__name__: each for each in (closed, serving, bulk, lone, arriving, early, idle, memory, measured)
}


def serve(pipe: Connection, path: str, name: str) -> None:
    """Run workloads of one library, as the pipe says; the main function of a process."""
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - as long as the process; some complain much as a run ends
    try:
        make = adapters.load(path, name)
    except Exception as error:  # noqa: BLE001 - whatever stands in the way of its import
        pipe.send(("not installed", f"{type(error).__name__}: {error}"))
        return
    pipe.send(("ready", None))
    load_type = ThreadLoad if path == "threads" else LoopLoad
    while True:
        try:
            workload, batch_size, timeout, options = pipe.recv()
        except EOFError:
            return
        try:
            reply = ("done", WORKLOADS[workload](load_type(make, batch_size, timeout), **options))
        except adapters.Unsupported as error:
            reply = ("cannot", str(error))  # type: ignore[assignment]
        except (Failed, SystemExit) as error:
            reply = (str(error), None)  # type: ignore[assignment]
        except Exception as error:  # noqa: BLE001 - one of the library
            reply = (f"{type(error).__name__}: {error}", None)  # type: ignore[assignment]
        pipe.send(reply)
