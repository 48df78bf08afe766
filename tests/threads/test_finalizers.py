"""A finalizer or weak-reference callback may use a function on the flush thread itself, in the midst of its step.

At every single line the same is tried in `test_reentered.py`.
"""

import gc
import weakref
from typing import Any

import pytest

from batchify import WaitsForItselfError

from .. import inside
from ..kit import Threads, echo
from ..tools import batched, until


@pytest.mark.parametrize(
    "how", ["call", "result", "map", "flush", "drain", "close", "a call of a function that calls it"]
)
def test_finalizer_that_waits_on_the_flush_thread_does_not_deadlock(threads: Threads, how: str) -> None:
    f = threads(echo, batch_size=3, timeout=None)
    calls_f = threads(lambda items: [f(item) for item in items], batch_size=1)
    actions: dict[str, Any] = {
        "call": lambda: f(2),
        "result": lambda: f.submit(2).result(),
        "map": lambda: list(f.map([2])),
        "flush": f.flush,
        "drain": f.drain,
        "close": f.close,
        "a call of a function that calls it": lambda: calls_f(2),
    }
    outcomes: list[Any] = []
    first = [True]

    def finalize() -> None:
        if first:
            first.clear()
            try:
                outcomes.append(actions[how]())
            except WaitsForItselfError as error:
                outcomes.append(error)

    waiting = f.submit(1)
    inside.as_it_falls_asleep(f, finalize)
    f.timeout = 10**6  # so that it looks, and falls asleep again
    threads.until(lambda: len(outcomes) == 1)
    f.close()
    assert waiting.result() == 1
    # In the midst of its step it cannot take what waits, so it cannot lend a turn either.
    waits_for_itself = how in ("result", "a call of a function that calls it")
    assert isinstance(outcomes[0], WaitsForItselfError) if waits_for_itself else outcomes[0] in (2, [2], None)


def test_finalizer_of_the_flush_thread_that_submits_waits_for_its_turn() -> None:
    futures: list[Any] = []
    with batched(batch_size=2, timeout=None)(echo) as f:
        inside.as_it_falls_asleep(f, lambda: None if futures else futures.append(f.submit(1)))
        waiting = f.submit(0)
        assert waiting.result() == 0
        assert futures[0].result() == 1
        assert f.stats.reasons == {"full": 1}


class Key:
    """One of a group, that can be watched."""


@pytest.mark.thread_unsafe(reason="stops the garbage collector")
def test_group_key_goes_when_all_its_items_are_cancelled() -> None:
    def cancel_both() -> None:
        key = Key()
        keys.append(weakref.ref(key))
        for future in [f.submit(key), f.submit(key)]:
            assert future.cancel()

    keys: list[weakref.ref[Key]] = []
    gc.collect()
    gc.disable()  # by counting alone
    try:
        with batched(batch_size=3, timeout=None, group_by=lambda item: item)(echo) as f:
            cancel_both()
            until(lambda: keys[0]() is None)
    finally:
        gc.enable()
