"""A finalizer or weak-reference callback may use a function while its own thread holds the lock of all: no deadlock.

These tests are about the lock that callers take; at every single line the same is tried in `test_reentered.py`.
"""

import contextlib
import gc
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from batchify import ClosedError

from .. import inside
from ..kit import echo
from ..tools import Gated, batched, until


@pytest.mark.parametrize("how", ["call", "submit", "flush", "close"])
def test_finalizer_that_runs_while_its_thread_holds_our_lock_does_not_deadlock(how: str) -> None:
    f = batched(batch_size=2, timeout=None)(echo)
    first = f.submit(1)
    futures: list[Any] = []
    actions: dict[str, Callable[[], Any]] = {
        "call": lambda: f(2),
        "submit": lambda: futures.append(f.submit(2)),
        "flush": f.flush,
        "close": f.close,
    }
    with inside.inside_the_lock(f):
        actions[how]()
    f.close()
    assert first.result() == 1
    assert [future.result() for future in futures] == [2] * len(futures)


def test_finalizer_inside_the_lock_starts_no_thread() -> None:
    function = Gated()
    with batched(batch_size=1, concurrency=2)(function) as f:
        futures = [f.submit(0)]
        function.entered.acquire()
        with inside.inside_the_lock(f):
            futures.append(f.submit(1))
            assert len(inside.threads_of(f)) == 1
        f.flush()  # the next thread that comes along starts it
        function.entered.acquire()
        function.open()
        assert [future.result() for future in futures] == [0, 1]


def test_finalizer_inside_the_lock_may_call_a_function_that_returns_futures() -> None:
    class Engine:
        def result(self) -> list[int]:
            return [1]

        def add_done_callback(self, callback: Callable[[Any], None]) -> None:
            threading.Thread(target=callback, args=(self,)).start()

    with batched(batch_size=1)(lambda items: Engine()) as f:
        with inside.inside_the_lock(f):
            assert f(0) == 1
        assert f(0) == 1


def test_finalizer_inside_the_lock_is_refused_by_a_closed_function() -> None:
    f = batched(batch_size=1)(echo)
    assert f(1) == 1
    f.close()
    with inside.inside_the_lock(f), pytest.raises(ClosedError):
        f(2)


def test_finalizer_of_the_flush_thread_that_submits_waits_for_its_turn() -> None:
    futures: list[Any] = []

    def function(items: list[int]) -> list[int]:
        if items == [0]:
            with inside.inside_the_lock(f):
                futures.append(f.submit(1))
            assert not futures[0].done()
        return items

    with batched(batch_size=1)(function) as f:
        assert f(0) == 0
        assert futures[0].result() == 1
        assert "nested" not in f.stats.reasons


class Key:
    """One of a group, that can be watched."""


@pytest.mark.thread_unsafe(reason="stops the garbage collector")
@pytest.mark.parametrize("where", ["anywhere", "inside the lock"])
def test_group_key_goes_when_all_its_items_are_cancelled(where: str) -> None:
    def cancel_both() -> None:
        key = Key()
        keys.append(weakref.ref(key))
        with inside.inside_the_lock(f) if where == "inside the lock" else contextlib.nullcontext():
            for future in [f.submit(key), f.submit(key)]:
                assert future.cancel()

    function = Gated()
    keys: list[weakref.ref[Key]] = []
    gc.collect()
    gc.disable()  # by counting alone
    try:
        with batched(batch_size=2, timeout=None, group_by=lambda item: item)(function) as f:
            if where == "anywhere":
                futures = [f.submit(0), f.submit(0)]
                function.entered.acquire()
                cancel_both()
                assert keys[0]() is None
                function.open()
                assert [future.result() for future in futures] == [0, 0]
            else:  # there a destructor that is the user's must not run: the flush thread, which was rung for, does it
                cancel_both()
                until(lambda: keys[0]() is None)
    finally:
        gc.enable()
