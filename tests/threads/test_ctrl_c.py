"""Ctrl-C, and signal handlers, in callers that block on the main thread: they hurt nobody else."""

import asyncio
import itertools
import random
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from .. import inside
from ..intruder import ctrl_c as raise_ctrl_c
from ..kit import echo
from ..tools import Gated, batched, in_threads, until

pytestmark = pytest.mark.thread_unsafe(reason="signals")


@contextmanager
def pestered(handler: Callable[..., None]) -> Iterator[None]:
    """Have the main thread handle a signal again and again. Not SIGALRM, which is the watchdog's."""
    main = threading.main_thread().ident
    assert main is not None
    stop = threading.Event()
    luck = random.Random(1)

    def pester() -> None:
        while not stop.wait(luck.random() * 0.0005):
            signal.pthread_kill(main, signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, handler)
    thread = threading.Thread(target=pester)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        signal.signal(signal.SIGUSR1, before)


def test_ctrl_c_takes_an_item_out_that_waits(ctrl_c: Callable[[], None]) -> None:
    function = Gated()
    function.open()
    with batched(batch_size=2, timeout=None)(function) as f:

        def interrupt() -> None:
            until(lambda: f.stats.pending == 1)
            ctrl_c()

        thread = threading.Thread(target=interrupt)
        thread.start()
        with pytest.raises(KeyboardInterrupt):
            f(1)
        thread.join()
        assert f.stats.pending == 0
        assert in_threads(f, [2, 3]) == [2, 3]
    assert [sorted(batch) for batch in function.batches] == [[2, 3]]


def test_ctrl_c_in_a_caller_leaves_its_running_batch_alone(ctrl_c: Callable[[], None]) -> None:
    function = Gated()
    with batched(batch_size=2, timeout=None)(function) as f:
        other = f.submit("other")

        def interrupt() -> None:
            function.entered.acquire()
            ctrl_c()

        thread = threading.Thread(target=interrupt)
        thread.start()
        with pytest.raises(KeyboardInterrupt):
            f("main")
        thread.join()
        function.open()
        assert other.result() == "other"
        assert in_threads(f, [2, 3]) == [2, 3]


def test_ctrl_c_in_submit_takes_the_item_out() -> None:
    with batched(batch_size=1)(echo) as f:
        assert f(0) == 0
        until(lambda: inside.sleeps(f))
        with inside.rings(f, instead=raise_ctrl_c), pytest.raises(KeyboardInterrupt):
            f.submit(1)
        assert (f.stats.pending, f.stats.cancelled) == (0, 1)


def test_ctrl_c_in_a_call_from_inside_takes_the_item_out() -> None:
    def function(items: list[int]) -> list[int]:
        with pytest.raises(KeyboardInterrupt):
            inner(1)
        return items

    with batched(batch_size=3, timeout=None)(echo) as inner:
        waiting = inner.submit(0)
        with inside.ctrl_c_in_calls_made_inside(), batched(batch_size=1)(function) as f:
            assert f(0) == 0
        assert (inner.stats.pending, inner.stats.cancelled) == (1, 1)
    assert waiting.result() == 0


def test_signal_handler_may_call_at_any_time() -> None:
    numbers = itertools.count()
    wrong: list[int] = []
    with batched(batch_size=3)(echo) as f:

        def handler(*_: object) -> None:
            number = next(numbers)
            if f(number) != number:
                wrong.append(number)
            f.submit(0)
            f.flush()

        with pestered(handler):
            while (number := next(numbers)) < 3000:
                assert f(number) == number
    assert not wrong


WAYS: dict[str, Callable[[Any], object]] = {
    "call": lambda f: f(1),
    "submit": lambda f: (f.submit(2), f(1)),
    "map": lambda f: list(f.map(range(5))),
    "flush": lambda f: (f.submit(4), f.flush(), f(1)),
    "drain": lambda f: (f.submit(5), f.drain()),
    "stats": lambda f: f.stats,
}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("way", WAYS)
def test_ctrl_c_at_any_moment_in_a_caller_spares_the_others(way: str) -> None:
    class Interrupt(KeyboardInterrupt):
        pass

    armed = False

    def handler(*_: object) -> None:
        nonlocal armed
        if armed:
            armed = False
            raise Interrupt

    interrupts = 0
    with batched(batch_size=3, timeout=0.0001)(echo) as f:
        f(0)
        with pestered(handler):
            while interrupts < 500:
                try:
                    while True:
                        armed = True  # again, as Python swallows what is raised in a finalizer
                        WAYS[way](f)
                except Interrupt:
                    interrupts += 1
                if interrupts % 50 == 0:
                    armed = False
                    assert in_threads(f, range(20)) == list(range(20))


def test_ctrl_c_at_any_moment_under_asyncio_run_spares_the_others() -> None:
    luck = random.Random(1)
    pause = threading.Event()

    async def main() -> None:
        threading.Thread(target=strike, args=(threading.get_ident(),)).start()
        while True:
            await f.aio(1)

    def strike(thread: int) -> None:
        pause.wait(luck.random() * 0.001)
        signal.pthread_kill(thread, signal.SIGINT)

    with batched(batch_size=3, timeout=0.0001)(echo) as f:
        for _ in range(200):
            with pytest.raises(KeyboardInterrupt):
                asyncio.run(main())
        assert in_threads(f, range(20)) == list(range(20))
