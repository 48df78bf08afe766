"""Random load in rounds, with everything that may come between: python -m tests.slow.stress.chaos --minutes 10 --seed 1

Each round is of one kind, and takes all it does from its own seed, so that `--kind` and `--first` repeat it as far as
threads allow; where it takes luck, `--kind` for some minutes finds more. A round that hangs prints the stacks of all
threads, and what waits for an answer, and ends the run. Ends with what was done, and with status 1 if a rule of
`history.py` was broken. From the root of a working tree: PYTHONPATH=$PWD python -m tests.slow.stress.chaos ... | tail
"""

import _thread
import argparse
import asyncio
import faulthandler
import gc
import logging
import os
import signal
import sys
import threading
import time
import traceback
import warnings
import weakref
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import fields
from functools import partial
from math import inf
from random import Random
from types import FrameType
from typing import Any

import batchify

from ... import inside
from ...tools import HAS_GIL, until
from .equal import Equal
from .history import CallRecord, History, Planned, Rules, Violation, check, check_stats, owner_of, verdict
from .load import Caller, Function, LoopCaller, run_loop, settle

WAYS = (
    *("list", "slow", "raising", "exiting", "wrong_length", "wrong_type", "mapping", "entries", "generator"),
    *("future", "future", "dropped_future", "inside", "sharing"),
)
WAYS_THERE = tuple(way for way in WAYS if "future" not in way and way != "sharing")
# Where loops end in the middle: a nested batch that is cancelled before its first step counts, but calls no function;
# and a loop that is closed cannot end a generator.
# What passes items is not asked where nobody waits for these.
WAYS_CUT_OFF = tuple(way for way in WAYS_THERE if way not in ("inside", "generator"))


ISOLATE: tuple[bool | type[Exception], ...] = (True, True, Planned)


class World:
    """What one round works with."""

    def __init__(self, seed: str, engine: Executor) -> None:
        self.rng = Random(seed)
        self.history = History()
        self.engine = engine
        self.functions: dict[str, tuple[Function, Any]] = {}
        self.ring: list[Function] = []  # functions that call each other
        self.violations: list[Violation] = []
        # Ctrl-C may come in the very lines that count what the main thread answers, for an engine or as a finalizer.
        self.figures_may_be_off = False
        # None only now and then: what waits is then flushed again and again, and that would hide a lost wake-up.
        self.timeouts: tuple[float | None, ...] = (0.0, 0.0, 0.0005, 0.003, 0.02)
        if self.rng.random() < 0.2:
            self.timeouts += (None,)

    def seeded(self) -> Random:
        return Random(self.rng.random())

    def function(self, name: str, *, on_loop: bool = False, cut_off: bool = False) -> tuple[Function, Any]:
        every = WAYS_CUT_OFF if cut_off else (*(WAYS_THERE if on_loop else WAYS), "passing")
        ways = self.rng.choice((every, ("list",), self.rng.sample(every, 3)))
        function = Function(self.history, name, self.seeded(), ways, self.engine)
        f = function.decorated(
            size=self.rng.choice((1, 2, 4, 8, 50)),
            timeout=self.rng.choice(self.timeouts),
            on_loop=on_loop,
            rules=self.rules(),
        )
        if not on_loop:
            self.ring.append(function)
            function.ring = self.ring
        self.functions[name] = function, f
        return function, f

    def rules(self) -> Rules | None:
        """Draw options; often none, since others are then not in the way of what is special."""
        if self.rng.random() < 0.4:
            return None
        choice = self.rng.choice
        drawn: dict[str, Any] = {
            "concurrency": choice((2, 3, 8)),
            "groups": choice((2, 5)),
            "max_weight": choice((3.0, 10.0)),
            "isolate": choice(ISOLATE),
            "dedupe": True,
            "max_pending": choice((1, 3, 20)),
            "reports": True,
        }
        names = self.rng.sample(sorted(drawn), self.rng.randint(1, 4))
        return Rules(**{name: drawn[name] for name in names})

    def caller(self, name: str, function: str) -> Caller:
        return Caller(name, *self.functions[function], self.seeded(), self.timeouts)

    def complain(self, rule: str, facts: str) -> None:
        self.violations.append(Violation(rule, facts))

    def start(self, works: Sequence[Callable[[], object]]) -> list[threading.Thread]:
        def run(work: Callable[[], object]) -> None:
            try:
                work()
            except BaseException:
                self.complain("raised", traceback.format_exc())

        threads = [threading.Thread(target=run, args=(work,), daemon=True) for work in works]
        for thread in threads:
            thread.start()
        return threads

    def together(self, works: Sequence[Callable[[], object]]) -> None:
        """Run each in a thread of its own, and wait for all."""
        self.join(self.start(works))

    def join(self, threads: Sequence[threading.Thread]) -> None:
        for thread in threads:
            while thread.is_alive():
                thread.join(0.02 if None in self.timeouts or not HAS_GIL else None)
                self.flush_if_needed()
                if not HAS_GIL:  # then a future that was dropped may go with the next collection only
                    gc.collect()

    def flush_if_needed(self) -> None:
        if None in self.timeouts:
            for _, f in self.functions.values():
                f.flush()

    def end(self) -> None:
        """Close everything, and judge."""
        for _, f in self.functions.values():
            assert f.stats.batches >= 0  # who is asked for figures forgets loops that are closed
        for name, (_, f) in self.functions.items():
            if isinstance(f, batchify.BatchedFunction):
                with self.history.act("close", name):
                    f.close()
        gc.collect()  # ends what was left behind in them; now, as it does nothing while another thread collects
        for name, (_, f) in self.functions.items():
            if wrong := check_stats(self.history, name, f.stats):
                if self.figures_may_be_off:
                    self.history.events.append("figures off")
                else:
                    self.violations += wrong
        self.functions.clear()
        self.violations += check(self.history)
        gc.collect()
        for thread in threading.enumerate():
            if "batchify flush thread" in thread.name:
                until(lambda: not thread.is_alive())  # noqa: B023 - Python forgets none in whose start() Ctrl-C struck


# The kinds of rounds


def threads(world: World) -> None:
    world.function("f")
    world.function("g")
    works = [
        partial(world.caller(f"thread {n}", world.rng.choice("fg")).work, 60) for n in range(world.rng.randint(1, 12))
    ]
    world.together(works)


def on_loop(world: World, name: str, steps: int) -> Callable[[], None]:
    """Return what runs an event loop that calls f from outside and g."""
    rngs = world.seeded(), world.seeded()
    turns = world.rng.randint(1, 10)

    async def main() -> None:
        first = LoopCaller(name, *world.functions["f"], rngs[0], world.timeouts, aio=True)
        second = LoopCaller(name, *world.functions["g"], rngs[1], world.timeouts, aio=False)
        for _ in range(turns):
            await asyncio.gather(first.work(steps // turns), second.work(steps // turns))

    return partial(run_loop, main)


def loops(world: World) -> None:
    world.function("f")
    world.function("g", on_loop=True)
    world.together([on_loop(world, f"loop {n}", 200) for n in range(world.rng.randint(1, 4))])


def mixed(world: World) -> None:
    world.function("f")
    world.function("g", on_loop=True)
    works: list[Callable[[], object]] = [partial(world.caller(f"thread {n}", "f").work, 60) for n in range(4)]
    world.together(works + [on_loop(world, f"loop {n}", 100) for n in range(2)])


def close(world: World) -> None:
    world.function("f")
    world.function("g", on_loop=True)

    def close_f(caller: Caller, steps: int) -> None:
        caller.work(steps)
        caller.options.close()
        caller.work(20)

    def close_g() -> None:
        async def main() -> None:
            function, g = world.functions["g"]
            caller = LoopCaller("closing loop", function, g, world.seeded(), world.timeouts, aio=False)
            work = asyncio.create_task(caller.work(100))
            for _ in range(world.rng.randrange(50)):
                await asyncio.sleep(0)
            await caller.options.aclose(caller.buffer)
            await work

        run_loop(main)

    works: list[Callable[[], object]] = [partial(world.caller(f"thread {n}", "f").work, 60) for n in range(5)]
    works += [partial(close_f, world.caller(f"closing {n}", "f"), world.rng.randrange(60)) for n in range(2)]
    world.together([*works, close_g, on_loop(world, "loop", 100)])


def blocks(world: World) -> None:
    """Functions that are opened again and again by `with`; now and then they are closed by hand as well."""
    world.function("f")
    world.function("g", on_loop=True)
    by_hand = world.rng.random() < 0.4
    rngs = [world.seeded() for _ in range(6)]

    def thread(number: int) -> None:
        rng, caller = rngs[number], world.caller(f"thread {number}", "f")
        for _ in range(6):
            caller.work(rng.randrange(10))  # it may be open by others
            with caller.options.block():
                caller.work(rng.randrange(15))
                if by_hand and rng.random() < 0.2:
                    caller.options.close()
        caller.collect()

    def loop(number: int) -> None:
        async def main() -> None:
            rng, name = rngs[number], f"loop {number}"
            first = LoopCaller(name, *world.functions["f"], rng, world.timeouts, aio=True)
            second = LoopCaller(name, *world.functions["g"], rng, world.timeouts, aio=False)
            for _ in range(4):
                await second.work(rng.randrange(10))
                async with first.options.block_there(), second.options.block_there():
                    await asyncio.gather(first.work(rng.randrange(20)), second.work(rng.randrange(20)))
                    if by_hand and rng.random() < 0.2:
                        await second.options.aclose(second.buffer)

        run_loop(main)

    world.together([partial(thread if number < 4 else loop, number) for number in range(6)])


def equal(world: World) -> None:
    """Functions with `dedupe`, and items that are equal."""
    functions = [Equal(world.seeded(), on_loop=on_loop) for on_loop in (False, False, True)]
    decorated = [function.decorated() for function in functions]
    works: list[Callable[[], object]] = []
    for function, f in zip(functions, decorated, strict=True):
        if not function.on_loop:
            works += [partial(function.thread, f, world.seeded()) for _ in range(world.rng.randint(1, 4))]
        works.append(partial(function.loop, f, world.seeded()))
    world.together(works)
    for function, f in zip(functions, decorated, strict=True):
        if not function.on_loop:
            f.close()
        world.violations += function.check(f.stats)
        world.history.events += ["equal"] * len(function.calls)


class CtrlC:
    """Presses Ctrl-C while the main thread does what it may interrupt."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.armed = False
        self._end = threading.Event()
        self._rng = world.seeded()

    def _handle(self, _: int, __: FrameType | None) -> None:
        if self.armed:
            self.armed = False  # so that nothing outside of `interrupted` can be hit
            self.world.history.events.append("interrupts")
            raise KeyboardInterrupt

    def _press(self) -> None:
        main = threading.main_thread().ident
        assert main is not None
        while not self._end.wait(self._rng.random() * self._rng.choice((0.0001, 0.001, 0.01))):
            if self._rng.random() < 0.5:
                signal.pthread_kill(main, signal.SIGINT)  # also wakes a thread that waits
            else:
                _thread.interrupt_main()

    @contextmanager
    def pressed(self) -> Iterator[None]:
        before = signal.signal(signal.SIGINT, self._handle)
        thread = threading.Thread(target=self._press)
        thread.start()
        try:
            yield
        finally:
            self._end.set()
            thread.join()
            signal.signal(signal.SIGINT, before)

    def interrupted(self, action: Callable[[], object]) -> bool:
        """Do something, and return whether it was interrupted."""
        try:
            self.armed = True
            action()
            self.armed = False
        except KeyboardInterrupt:
            return True
        return False


def ctrl_c(world: World) -> None:
    world.figures_may_be_off = True
    world.function("f")
    neighbours = world.start(
        [partial(world.caller(f"thread {n}", "f").work, 60) for n in range(world.rng.randint(0, 4))]
    )
    caller, control = world.caller("main", "f"), CtrlC(world)
    end = threading.Event()

    def rescue() -> None:
        while not end.wait(0.02):
            world.flush_if_needed()

    rescuer = threading.Thread(target=rescue)
    rescuer.start()
    with control.pressed():
        for _ in range(100):
            if control.interrupted(partial(caller.do, world.rng.choice(Caller.OPS))):
                world.history.leave("main", but=list(caller.waiting))
        control.interrupted(caller.options.close)
    caller.collect()
    world.join(neighbours)
    end.set()
    rescuer.join()


def ctrl_c_of_a_runner(world: World) -> None:
    """As asyncio.run() takes it: the main task is cancelled, and the others after it."""
    world.function("f")
    world.function("g", on_loop=True, cut_off=True)
    neighbours = world.start([on_loop(world, "loop", 100)])
    for number in range(5):
        name = f"main {number}"
        work = on_loop(world, name, 100)
        pause = world.rng.random() * 0.02

        async def main(work: Any = work.args[0], pause: float = pause) -> None:  # type: ignore[attr-defined]
            world.history.events.append("interrupts")
            asyncio.get_running_loop().call_later(pause, signal.raise_signal, signal.SIGINT)
            await work()

        with suppress(KeyboardInterrupt):
            run_loop(main)
        world.history.leave(name)
    world.join(neighbours)


def reopen(world: World) -> None:
    """Event loops that come and go, and leave things behind."""
    world.function("f")
    world.function("g", on_loop=True, cut_off=True)

    def loops_one_by_one(name: str, rng: Random) -> None:
        for number in range(5):
            world.history.events.append("loops")

            callers: list[LoopCaller] = []

            async def main(name: str = f"{name}, {number}", callers: list[LoopCaller] = callers) -> None:
                first = LoopCaller(name, *world.functions["f"], rng, world.timeouts, aio=True)
                second = LoopCaller(name, *world.functions["g"], rng, world.timeouts, aio=False)
                await first.work(20)
                await second.work(20)
                for caller in (first, second):
                    caller.ask()
                    await asyncio.sleep(0)
                    caller.ask()
                for _ in range(rng.randrange(4)):
                    second.submit()
                callers.extend((first, second))

            run_loop(main)
            world.history.leave(f"{name}, {number}")
            for caller in callers:  # errors of cancelled tasks may keep them, and these a batch that was left behind
                caller.tasks.clear()
                caller.waiting.clear()

    works: list[Callable[[], object]] = [partial(loops_one_by_one, f"loops {n}", world.seeded()) for n in range(3)]
    world.together([*works, partial(world.caller("thread", "f").work, 60)])


def drop(world: World) -> None:
    """Functions that are dropped while items wait: all of these are answered."""

    def work(name: str, rng: Random) -> None:
        for number in range(10):
            function = Function(world.history, f"{name}, {number}", world.seeded(), WAYS, world.engine)
            f = function.decorated(
                size=rng.choice((2, 50)), timeout=rng.choice((0.0, 0.001, None)), rules=world.rules()
            )
            figures = inside.figures_of_what_may_be_dropped(f)
            caller = Caller(name, function, f, rng, world.timeouts)
            for _ in range(rng.randrange(8)):
                caller.do(rng.choice(("submit", "submit", "cancel")))
            world.history.events.append("drops")
            futures = caller.waiting
            del caller, f
            for call, future in futures.items():
                settle(call, future.result)
            # There is nobody left to ask for stats.
            world.violations += check_stats(world.history, function.name, figures())

    world.together([partial(work, f"dropper {n}", world.seeded()) for n in range(4)])


def methods(world: World) -> None:
    """Instances that are dropped while items wait: these are answered, and then the instance goes."""

    class Model:
        def __init__(self, name: str) -> None:
            self.function = Function(world.history, name, world.seeded(), WAYS, world.engine)

        @batchify.batched(batch_size=5, timeout=0.002)
        def run(self, items: list[int]) -> Any:
            return self.function.run(items)

    gone: list[weakref.ref[Model]] = []

    def use(name: str, number: int, rng: Random) -> "dict[CallRecord, Future[Any]]":
        with world.history.limit(f"{name}, {number}", 5):
            model = Model(f"{name}, {number}")
        gone.append(weakref.ref(model))
        caller = Caller(name, model.function, model.run, rng, (0.0, 0.002))
        for _ in range(rng.randrange(30)):
            caller.do(rng.choice(Caller.OPS))
        world.history.events.append("drops")
        return caller.waiting

    def work(name: str, rng: Random) -> None:
        for number in range(10):
            for call, future in use(name, number, rng).items():
                settle(call, future.result)

    def all_are_gone() -> bool:
        gc.collect()  # an error knows frames, and these may know the error
        return not any(reference() is not None for reference in gone)

    world.together([partial(work, f"user {n}", world.seeded()) for n in range(4)])
    until(all_are_gone)


def fork(world: World) -> None:
    world.function("f")
    world.function("g", on_loop=True, cut_off=True)

    def fork_now_and_then(caller: Caller, rng: Random) -> None:
        for _ in range(4):
            caller.work(rng.randrange(20))
            _fork(world, rng)

    works: list[Callable[[], object]] = [partial(world.caller(f"thread {n}", "f").work, 80) for n in range(4)]
    works += [partial(fork_now_and_then, world.caller(f"forking {n}", "f"), world.seeded()) for n in range(2)]
    threads = world.start([*works, on_loop(world, "loop", 100)])
    _fork(world, world.rng)
    world.join(threads)


def _fork(world: World, rng: Random) -> None:
    world.history.events.append("forks")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # that there are threads
        child = os.fork()
    if child == 0:
        status = 3
        try:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            faulthandler.register(signal.SIGALRM, chain=True)
            signal.alarm(60)
            status = _child(world, rng)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    if status != 0:
        world.complain("fork", f"the child ended with {os.waitstatus_to_exitcode(status)}")


def _child(world: World, rng: Random) -> int:
    """Use both functions in the child, for items of its own only."""
    rules = world.history.rules
    history = world.history = History()
    history.rules = rules
    with ThreadPoolExecutor(2) as engine:
        for name, (function, f) in world.functions.items():
            function.history, function.engine = history, engine
            function.shared = []  # of the parent's
            with history.limit(name, 3):
                f.batch_size = 3
            f.timeout = 0.0
        world.timeouts = (0.0, 0.001)
        callers = [world.caller(f"child {n}", "f") for n in range(2)]
        world.together([*(partial(caller.work, 15) for caller in callers), on_loop(world, "loop of the child", 30)])
        world.end()
    if world.violations:
        os.write(2, f"in the child: {verdict(world.violations)}\n".encode())
    return 1 if world.violations else 0


KINDS: dict[str, Callable[[World], None]] = {
    kind.__name__.replace("_", " "): kind
    for kind in (threads, loops, mixed, close, ctrl_c, ctrl_c_of_a_runner, reopen, drop, methods, fork, blocks, equal)
}


# The run

# asyncio.run() closes the generator of a batch that began while it cancelled the tasks, and so was not cancelled.
CUT_OFF = "aclose(): asynchronous generator is already running"


class Heard(logging.Handler):
    """Keeps what nobody else would hear of."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []
        for name in ("batchify", "asyncio"):
            logging.getLogger(name).addHandler(self)
            logging.getLogger(name).propagate = False
        sys.unraisablehook = self.unraisable
        threading.excepthook = self.died

    def emit(self, record: logging.LogRecord) -> None:
        if record.name != "batchify" or record.levelno >= logging.ERROR:  # else it is advice: that batches stay small
            self.messages.append(self.format(record))

    def unraisable(self, event: "sys.UnraisableHookArgs") -> None:
        lines = traceback.format_exception(event.exc_type, event.exc_value, event.exc_traceback)
        self.messages.append(f"{event.err_msg} {event.object!r}: {''.join(lines)}")

    def died(self, event: threading.ExceptHookArgs) -> None:
        lines = traceback.format_exception(event.exc_type, event.exc_value, event.exc_traceback)
        self.messages.append(f"thread {event.thread}: {''.join(lines)}")


@contextmanager
def watched(what: str, seconds: float, world: World) -> Iterator[None]:
    """End the run if this takes too long."""

    def hung() -> None:
        print(f"HUNG: {what}", flush=True)
        for name, (_, f) in tuple(world.functions.items()):
            print(f"{f!r}, {world.history.rules.get(name)}, {f.stats}", flush=True)
        for act in world.history.acts:
            if act.ended == inf or act.kind in ("close", "enter", "exit"):
                print(act, flush=True)
        print("\n".join(str(call) for call in tuple(world.history.calls) if call.outcome is None), flush=True)
        unanswered = {call.token for call in tuple(world.history.calls) if call.outcome is None}
        for batch in tuple(world.history.batches):
            if not unanswered.isdisjoint(batch.tokens):
                print(batch, flush=True)
        os._exit(1)

    timer = threading.Timer(seconds + 2, hung)
    timer.daemon = True
    timer.start()
    faulthandler.dump_traceback_later(seconds)
    try:
        yield
    finally:
        timer.cancel()
        faulthandler.cancel_dump_traceback_later()
        timer.join()


class Table:
    """Counts of what was done."""

    COLUMNS = ("calls", "result", "error", "cancelled", "left", "refused", "batches", "nested batches", "largest batch")

    def __init__(self) -> None:
        self.kinds: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self.calls: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self.ways: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self.options: defaultdict[str, Counter[str]] = defaultdict(Counter)

    def add(self, kind: str, history: History) -> None:
        row = self.kinds[kind]
        nested = {call.token for call in history.calls if call.nested}
        row["rounds"] += 1
        row["calls"] += len(history.calls)
        row["batches"] += len(history.batches)
        row.update(history.events)
        for call in history.calls:
            row[call.outcome or "none"] += 1
            self.calls[call.how]["calls"] += 1
            self.calls[call.how][call.outcome or "none"] += 1
        for batch in history.batches:
            row["nested batches"] += nested.issuperset(batch.tokens)
            row["largest batch"] = max(row["largest batch"], len(batch.tokens))
            way = self.ways[batch.way]
            way["batches"] += 1
            way["items"] += len(batch.tokens)
            way["items that fail"] += len(batch.errors)
        calls = Counter(owner_of(call.buffer) for call in history.calls)
        batches = Counter(owner_of(batch.buffer) for batch in history.batches)
        refused = Counter(owner_of(call.buffer) for call in history.calls if call.outcome == "refused")
        for owner, rules in history.rules.items():
            for option in fields(rules):
                value = getattr(rules, option.name)
                if value != option.default:
                    name = f"{option.name} {value}" if option.name in ("concurrency", "max_pending") else option.name
                    row = self.options[name]
                    row["functions"] += 1
                    row["calls"] += calls[owner]
                    row["refused"] += refused[owner]
                    row["batches"] += batches[owner]

    def __str__(self) -> str:
        events = (
            "flushes",
            "option changes",
            "drain",
            "close",
            "enter",
            "drops",
            "loops",
            "forks",
            "interrupts",
            "equal",
            "figures off",
            "rings",
        )
        outcomes = ("calls", "result", "error", "cancelled", "left", "refused")
        return "\n\n".join(
            (
                _table("round", ("rounds", *outcomes, "batches", "nested batches", "largest batch"), self.kinds),
                _table("round", events, self.kinds),
                _table("call", outcomes, self.calls),
                _table("function", ("batches", "items", "items that fail"), self.ways),
                _table("option", ("functions", "calls", "refused", "batches"), dict(sorted(self.options.items()))),
            )
        )


def _table(title: str, columns: Sequence[str], rows: dict[str, Counter[str]]) -> str:
    lines = [[title, *columns]]
    lines += [[name, *(str(row[column]) for column in columns)] for name, row in rows.items()]
    if title == "round" and rows:
        sums = [max if column == "largest batch" else sum for column in columns]
        lines.append(
            ["all", *(str(of(row[name] for row in rows.values())) for of, name in zip(sums, columns, strict=True))]
        )
    text = [f"| {' | '.join(line)} |" for line in lines]
    text.insert(1, "|---" * (len(columns) + 1) + "|")
    return "\n".join(text)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Random load in rounds, judged by the checker of history.py.")
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", default=str(time.time_ns()))
    parser.add_argument("--kind", choices=KINDS, action="append", help="only rounds of this kind; may be repeated")
    parser.add_argument("--first", type=int, default=0, help="the number of the first round")
    parser.add_argument("--rounds", type=int, default=sys.maxsize, help="at most so many")
    parser.add_argument("--patience", type=float, default=60.0, help="seconds after which a round hangs")
    options = parser.parse_args(arguments)
    print(f"seed {options.seed}, Python {sys.version.split()[0]}", flush=True)
    faulthandler.enable()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a job in the background would ignore
    warnings.simplefilter("error")
    heard, table, broken, kinds = Heard(), Table(), 0, list(KINDS)
    end = time.monotonic() + 60 * options.minutes
    with ThreadPoolExecutor(2, thread_name_prefix="engine") as engine:
        for number in range(options.first, sys.maxsize):
            if time.monotonic() >= end or number - options.first >= options.rounds:
                break
            kind = kinds[number % len(kinds)]
            if options.kind and kind not in options.kind:
                continue
            world = World(f"{options.seed}, {number}", engine)
            with watched(f"round {number}, {kind}", options.patience, world):
                KINDS[kind](world)
                world.end()
            if "ctrl c" not in kind:  # what it interrupts may be a finalizer, or a task before its first step
                world.violations += [Violation("heard", text) for text in heard.messages if CUT_OFF not in text]
            table.kinds[kind]["heard"] += len(heard.messages)
            heard.messages.clear()
            table.add(kind, world.history)
            if world.violations:
                broken += 1
                print(f"round {number}, {kind}: {verdict(world.violations)}", flush=True)
    print(f"\n{table}\n\n{'BROKEN: ' + str(broken) + ' rounds' if broken else 'no violation'}", flush=True)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
