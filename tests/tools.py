"""What several test files need."""

import gc
import itertools
import re
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import batchify

# Without types, since the functions of the tests take and return whatever they like.
batched: Callable[..., Callable[[Callable[[list[Any]], Any]], batchify.BatchedFunction[Any, Any]]] = batchify.batched

HAS_GIL: bool = getattr(sys, "_is_gil_enabled", lambda: True)()


_collections = itertools.count()


def collect() -> None:
    """Free what is garbage; where there is no GIL, and this takes long, not each time."""
    if HAS_GIL or not next(_collections) % 16:
        gc.collect()


def until(condition: Callable[[], bool]) -> None:
    """Wait for a state that another thread brings about. The watchdog ends it if that never happens."""
    pause = threading.Event()
    turns = 0
    while not condition():
        turns += 1
        if not HAS_GIL and turns % 100 == 0:  # what a thread that sleeps has let go of, a collection frees
            gc.collect()
        pause.wait(0.0005)


def in_threads(call: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
    """Call with each item in a thread of its own, all at once; return the results, or the exceptions, in order."""
    items = list(items)
    outcomes: list[Any] = [None] * len(items)
    start = threading.Barrier(len(items))

    def run(position: int, item: Any) -> None:
        start.wait()
        try:
            outcomes[position] = call(item)
        except BaseException as error:
            outcomes[position] = error

    threads = [threading.Thread(target=run, args=pair) for pair in enumerate(items)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes


class Gated:
    """A list function that stops in each call until it is let on, and remembers its batches."""

    def __init__(self, function: Callable[[list[Any]], Any] = lambda items: list(items)) -> None:
        self.function = function
        self.batches: list[list[Any]] = []
        self.threads: list[int] = []
        self.entered = threading.Semaphore(0)
        self.let_on = threading.Semaphore(0)

    def __call__(self, items: list[Any]) -> Any:
        self.batches.append(list(items))
        self.threads.append(threading.get_ident())
        self.entered.release()
        self.let_on.acquire(timeout=150)  # if the watchdog ended the test, close() must not wait for ever
        return self.function(items)

    def open(self) -> None:
        """Let this and all later calls on."""
        self.let_on.release(10**4)  # on Python 3.11 it takes a microsecond for each


def run_script(script: str, *options: str, status: int = 0) -> subprocess.CompletedProcess[str]:
    """Run a script in a fresh interpreter; fail if it does not end by itself with that status and a silent stderr."""
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", *options, "-c", script],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    # asyncio's debug mode tells which callbacks were slow, which on a busy machine any may be.
    said = re.sub(r"(?m)^Executing <.*> took [\d.]+ seconds\n", "", done.stderr)
    assert (done.returncode, said) == (status, ""), said
    return done


# The beginning of a script that forks; it may import from `tests`.
FORKING = f"""
import os, signal, sys, threading, traceback
from batchify import ClosedError, batched
sys.path.append({str(Path(__file__).parents[1])!r})

def fork(do):
    child = os.fork()
    if child:
        return child
    signal.alarm(100)  # else it could hang for ever
    try:
        do()
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)

def wait_for(child):
    assert os.waitpid(child, 0)[1] == 0
"""


def run_forking(script: str) -> subprocess.CompletedProcess[str]:
    """Run a script in which `fork(do)` calls that in a child, and `wait_for(child)` fails if that failed."""
    return run_script(FORKING + textwrap.dedent(script), "-W", "ignore::DeprecationWarning")


def said_until(process: "subprocess.Popen[str]", pattern: str) -> tuple[str, str]:
    """Read what a program says on stderr until the pattern is in it; return its first group, and all that was said."""
    assert process.stderr is not None
    said = ""
    while (found := re.search(pattern, said)) is None:
        line = process.stderr.readline()
        assert line, said
        said += line
    return found[1], said
