"""What holds for all tests."""

import gc
import signal

import pytest


def pytest_configure() -> None:
    # A job in the background of a shell ignores Ctrl-C, and so would the programs that tests start and interrupt.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "caplog" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.thread_unsafe(reason="hears what others log"))


def pytest_collection_finish() -> None:
    # What stands now stands to the end: the many tests that call the garbage collector need not walk over it each time.
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    gc.unfreeze()
