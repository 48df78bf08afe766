"""Under random load the answers, the batches and the figures are right. `chaos.py` does it for longer."""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from random import Random
from typing import Any

import pytest

from .history import History, check, check_stats, verdict
from .load import Caller, Function, LoopCaller, Options, run_loop

HARMLESS = ("list", "generator", "mapping", "entries", "inside")
HARMFUL = (*HARMLESS, "raising", "exiting", "wrong_length", "wrong_type")
TIMEOUTS = (0.0, 0.0002, 0.002)  # always some: nobody may have to be rescued by a flush


def at_once(works: Sequence[Callable[[], object]]) -> None:
    """Run each in a thread of its own."""
    with ThreadPoolExecutor(len(works)) as threads:
        for done in [threads.submit(work) for work in works]:
            done.result()


@contextmanager
def judged(history: History, **functions: Any) -> Iterator[None]:
    """Say what was wrong, once the load has ended."""
    yield
    found = check(history)
    for name, f in functions.items():
        found += check_stats(history, name, f.stats)
    assert not verdict(found)
    assert len(history.calls) > 300, len(history.calls)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("ways", [HARMLESS, HARMFUL], ids=["harmless", "harmful"])
def test_random_load_from_threads(ways: tuple[str, ...], seed: int) -> None:
    rng, history = Random(seed), History()
    function = Function(history, "f", rng, ways)
    f = function.decorated(size=4, timeout=0.0)
    callers = [Caller(f"thread {n}", function, f, Random(rng.random()), TIMEOUTS) for n in range(8)]
    with judged(history, f=f), f:
        at_once([partial(caller.work, 150) for caller in callers])


@pytest.mark.parametrize("seed", range(3))
def test_random_load_on_a_function_that_returns_futures(seed: int) -> None:
    rng, history = Random(seed), History()
    with ThreadPoolExecutor(2) as engine:
        function = Function(history, "f", rng, ("future", "future", "dropped_future", "list"), engine)
        f = function.decorated(size=4, timeout=0.0)
        callers = [Caller(f"thread {n}", function, f, Random(rng.random()), TIMEOUTS) for n in range(6)]
        with judged(history, f=f), f:
            at_once([partial(caller.work, 150) for caller in callers])


@pytest.mark.parametrize("seed", range(3))
def test_random_load_while_the_function_is_closed(seed: int) -> None:
    rng, history = Random(seed), History()
    function = Function(history, "f", rng, HARMFUL)
    f = function.decorated(size=4, timeout=0.0)
    callers = [Caller(f"thread {n}", function, f, Random(rng.random()), TIMEOUTS) for n in range(6)]
    enough = threading.Barrier(len(callers) + 1)

    def work(caller: Caller) -> None:
        caller.work(60)
        enough.wait()
        caller.work(60)

    def close() -> None:
        enough.wait()
        Options(function, f, rng, TIMEOUTS).close()

    with judged(history, f=f):
        at_once([close, *(partial(work, caller) for caller in callers)])


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", ["aio", "coroutine"])
def test_random_load_from_several_loops(kind: str, seed: int) -> None:
    rng, history = Random(seed), History()
    function = Function(history, "f", rng, HARMFUL)
    f = function.decorated(size=4, timeout=0.0, on_loop=kind == "coroutine")
    seeds = [rng.random() for _ in range(3)]

    def loop(number: int) -> None:
        async def main() -> None:
            aio = kind == "aio"
            await LoopCaller(f"loop {number}", function, f, Random(seeds[number]), TIMEOUTS, aio=aio).work(600)

        run_loop(main)

    with judged(history, f=f):
        at_once([partial(loop, number) for number in range(3)])
        if kind == "aio":
            f.close()


@pytest.mark.parametrize("seed", range(3))
def test_random_load_from_threads_and_loops(seed: int) -> None:
    rng, history = Random(seed), History()
    function, coroutine = Function(history, "f", rng, HARMFUL), Function(history, "g", rng, HARMFUL)
    f = function.decorated(size=4, timeout=0.0)
    g = coroutine.decorated(size=4, timeout=0.0, on_loop=True)
    seeds = [rng.random() for _ in range(6)]

    def thread(number: int) -> None:
        Caller(f"thread {number}", function, f, Random(seeds[number]), TIMEOUTS).work(200)

    def loop(number: int) -> None:
        async def main() -> None:
            rng = Random(seeds[number])
            first = LoopCaller(f"loop {number}", function, f, rng, TIMEOUTS, aio=True)
            second = LoopCaller(f"loop {number}", coroutine, g, rng, TIMEOUTS, aio=False)
            for _ in range(40):
                await first.work(5)
                await second.work(5)
            await second.options.aclose(second.buffer)  # the others may be in the middle

        run_loop(main)

    with judged(history, f=f, g=g), f:
        at_once([partial(thread if number < 3 else loop, number) for number in range(6)])
