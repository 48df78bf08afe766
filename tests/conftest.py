"""What holds for all tests."""

import gc
import logging
import signal
import threading
from collections.abc import Callable, Iterator

import pytest

from .kit import KINDS, Coroutines, Kit, Threads

# What keeps a test from running in several threads at once, by pytest-run-parallel. Such a test runs alone.
SHARED = {
    "caplog": "hears what others log",
    "kit": "has one event loop, and the functions of one test",
    "threads": "has the functions of one test",
    "coroutines": "has one event loop, and the functions of one test",
}


def pytest_configure() -> None:
    # A job in the background of a shell ignores Ctrl-C, and so would the programs that tests start and interrupt.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for fixture, reason in SHARED.items():
            if fixture in getattr(item, "fixturenames", ()):
                item.add_marker(pytest.mark.thread_unsafe(reason=reason))


def pytest_collection_finish() -> None:
    # What stands now stands to the end: the many tests that call the garbage collector need not walk over it each time.
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    gc.unfreeze()


@pytest.fixture(params=KINDS)
def kit(request: pytest.FixtureRequest) -> Iterator[Kit]:
    kit = KINDS[request.param]()
    yield kit
    kit.end()


@pytest.fixture
def threads() -> Iterator[Threads]:
    kit = Threads()
    yield kit
    kit.end()


@pytest.fixture
def coroutines() -> Iterator[Coroutines]:
    kit = Coroutines()
    yield kit
    kit.end()


@pytest.fixture
def no_noise(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """No "never retrieved", no "was destroyed", no slow callback: asyncio logs nothing."""
    yield
    gc.collect()
    logged = caplog.get_records("call") + caplog.get_records("teardown")
    assert [record for record in logged if record.name == "asyncio" and record.levelno >= logging.WARNING] == []


@pytest.fixture
def ctrl_c() -> Iterator[Callable[[], None]]:
    """Something that presses Ctrl-C from another thread until it is heard, once.

    Again and again, since a signal that comes just before a thread falls asleep does not wake it.
    """
    main = threading.main_thread().ident or 0
    heard = threading.Event()

    def handler(*_: object) -> None:
        if not heard.is_set():
            heard.set()
            raise KeyboardInterrupt

    def press() -> None:
        while not heard.wait(0.001):
            signal.pthread_kill(main, signal.SIGINT)

    before = signal.signal(signal.SIGINT, handler)
    yield press
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def no_collector() -> Iterator[None]:
    """What garbage of another run does would make each run at the next line a different one."""
    gc.collect()
    gc.disable()
    gc.freeze()  # so that the collections below are short
    yield
    gc.enable()
