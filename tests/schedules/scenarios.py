"""Short lives of a batched function: each is run under many schedules.

A scenario asserts what its callers see. `Watched.end()` asserts the rest: each item is in exactly one batch, and the
figures are right.
"""

from collections.abc import Callable, Iterable
from concurrent.futures import CancelledError, Future
from typing import Any

import interleave_test as tool

from batchify import BatchedFunction, ClosedError

from ..tools import batched
from .controlled import Thread, pass_time, switch


class Watched:
    """A batched function whose items are numbers, all different, and what a scenario knows of it."""

    def __init__(self, batch_size: int, timeout: float | None = 0.0, work: "Work | None" = None) -> None:
        self.largest = batch_size
        self.accepted: list[int] = []
        self.batches: list[list[int]] = []
        self.wrong: list[str] = []
        work = work or times_ten

        # Must not know self, which knows the function: it would never be dropped.
        batches, wrong = self.batches, self.wrong
        runs: list[list[int]] = []

        def function(items: list[int]) -> Any:
            if runs:
                wrong.append("runs twice at the same time")
            batches.append(list(items))
            runs.append(items)
            try:
                switch()
                return work(items)
            finally:
                runs.pop()

        with tool.no_interleave():
            self.f: BatchedFunction[Any, Any] = batched(batch_size=batch_size, timeout=timeout)(function)

    def call(self, item: int) -> None:
        """Call; a closed function may refuse it."""
        try:
            result = self.f(item)
        except ClosedError:
            return
        self.accepted.append(item)
        assert result == 10 * item

    def submit(self, item: int) -> "Future[Any]":
        future = self.f.submit(item)
        self.accepted.append(item)
        return future

    def end(self) -> None:
        """Close, and check what must be true at the end of every life."""
        self.f._self_batcher._check()
        self.f.close()
        self.check()

    def check(self) -> None:
        stats = self.f.stats
        in_batches = [item for batch in self.batches for item in batch]
        assert not self.wrong, self.wrong
        assert len(set(in_batches)) == len(in_batches), f"an item is in two batches: {self.batches}"
        assert set(in_batches) <= set(self.accepted), "a refused item is in a batch"
        assert all(0 < len(batch) <= self.largest for batch in self.batches)
        assert (stats.pending, stats.running, stats.in_flight) == (0, 0, 0), stats
        assert stats.accepted == len(self.accepted), stats
        assert stats.answered + stats.failed == len(in_batches), stats
        assert stats.cancelled == len(self.accepted) - len(in_batches), stats
        assert stats.batches == len(self.batches), stats


Work = Callable[[list[int]], Any]


def times_ten(items: list[int]) -> list[int]:
    return [10 * item for item in items]


def at_once(*actions: Callable[[], object]) -> None:
    """Do each on a thread of its own, and wait for all."""
    tasks = [tool.spawn(action, name=f"action {number}") for number, action in enumerate(actions)]
    for task in tasks:
        task.join()


def lone_call() -> None:
    """One call, on the thread that closes the function."""
    f = Watched(1)
    f.call(1)
    f.end()


def calls() -> None:
    """Three callers, batches of two."""
    f = Watched(2)
    at_once(lambda: f.call(1), lambda: f.call(2), lambda: f.call(3))
    f.end()
    assert len(f.accepted) == 3


def first_calls() -> None:
    """Two callers both find that there is no flush thread."""
    f = Watched(1)
    at_once(lambda: f.call(1), lambda: f.call(2))
    f.end()
    assert len(f.accepted) == 2
    assert len(Thread.started) <= 2


def first_call_and_close() -> None:
    """The function is closed while its flush thread starts."""
    f = Watched(2)
    at_once(lambda: f.call(1), f.f.close)
    f.end()


def timeouts() -> None:
    """Timeouts end before, while and after others call."""
    f = Watched(3, 1.0)
    at_once(lambda: f.call(1), lambda: f.call(2), lambda: pass_time(0.6), lambda: pass_time(0.6))
    f.end()
    assert len(f.accepted) == 2


def repeated_calls() -> None:
    """After each batch the flush thread decides anew how long to sleep."""
    f = Watched(2, 0.5)

    def twice(first: int) -> None:
        f.call(first)
        f.call(first + 1)

    at_once(lambda: twice(1), lambda: twice(3), lambda: pass_time(1.0))
    f.end()
    assert len(f.accepted) == 4


def full_batch() -> None:
    """No timeout: only that the batch is full wakes the flush thread."""
    f = Watched(2, None)
    at_once(lambda: f.call(1), lambda: f.call(2))
    at_once(lambda: f.call(3), lambda: f.call(4))
    assert f.batches in ([[1, 2], [3, 4]], [[2, 1], [3, 4]], [[1, 2], [4, 3]], [[2, 1], [4, 3]])
    f.end()


def cancelling() -> None:
    """A future is cancelled while its batch is taken, run and answered."""
    f = Watched(2)
    first, second = f.submit(1), f.submit(2)
    gone: list[bool] = []
    at_once(lambda: gone.append(first.cancel()), lambda: f.call(3), lambda: _own_or_cancelled(second, 2, gone))
    f.end()
    assert gone[0] == first.cancelled()
    assert gone[0] or first.result() == 10


def _own_or_cancelled(future: "Future[Any]", item: int, _: object = None) -> None:
    try:
        assert future.result() == 10 * item
    except CancelledError:
        assert future.cancelled()


def cancelling_twice() -> None:
    """Two threads cancel the same future while a third waits for it; nothing but these could flush it."""
    f = Watched(2, None)
    future = f.submit(1)
    gone: list[bool] = []
    at_once(
        lambda: gone.append(future.cancel()),
        lambda: gone.append(future.cancel()),
        lambda: _own_or_cancelled(future, 1),
        f.f.flush,
    )
    f.end()
    assert len(set(gone)) == 1
    assert gone[0] == future.cancelled()


def giving_up() -> None:
    """A caller waits for a limited time, then cancels."""
    f = Watched(2, 1.0)

    def impatient() -> None:
        future = f.submit(1)
        try:
            assert future.result(timeout=0.5) == 10
        except TimeoutError:
            if not future.cancel():
                assert future.result() == 10

    at_once(impatient, lambda: f.call(2), lambda: pass_time(0.7))
    f.end()


def closing() -> None:
    """Two close while two call: who is accepted is answered, before either close returns."""
    f = Watched(2, None)

    def close() -> None:
        f.f.close()
        stats = f.f.stats
        assert (stats.pending, stats.running) == (0, 0)

    at_once(lambda: f.call(1), lambda: f.call(2), close, close)
    f.end()


def submitting_and_closing() -> None:
    """What submit() accepts is answered, whenever the function is closed."""
    f = Watched(2)

    def submit(item: int) -> None:
        try:
            future = f.submit(item)
        except ClosedError:
            return
        assert future.result() == 10 * item

    at_once(lambda: submit(1), lambda: submit(2), f.f.close)
    f.end()


def closing_while_running() -> None:
    """The flush thread is awake, or about to sleep, when the function is closed."""
    f = Watched(1)
    f.call(1)
    at_once(lambda: f.call(2), lambda: f.call(3), f.f.close)
    f.end()


def flushing() -> None:
    """No timeout: only flush() makes the items due."""
    f = Watched(3, None)

    def submit_and_flush(item: int) -> None:
        future = f.submit(item)
        f.f.flush()
        assert future.result() == 10 * item

    at_once(lambda: submit_and_flush(1), lambda: submit_and_flush(2))
    f.end()
    assert len(f.accepted) == 2


def mapping() -> None:
    """A map and a caller share batches."""
    f = Watched(2, 0.5)

    def read() -> None:
        f.accepted.extend((1, 2, 3))
        assert list(f.f.map([1, 2, 3])) == [10, 20, 30]

    at_once(read, lambda: f.call(4))
    f.end()


def mapping_and_leaving() -> None:
    """A map is closed after its first result."""
    f = Watched(1)

    def read() -> None:
        items = f.f.map([1, 2, 3])
        assert next(items) == 10
        items.close()

    at_once(read, lambda: f.call(4))
    f.f.close()
    assert f.f.stats.accepted == f.f.stats.answered + f.f.stats.cancelled


def settings() -> None:
    """What waits without end becomes due when a setting is changed."""
    f = Watched(4, None)

    def smaller() -> None:
        f.f.batch_size = 1

    at_once(lambda: f.call(1), lambda: f.call(2), smaller)
    f.end()
    assert len(f.accepted) == 2


def timeout_set() -> None:
    f = Watched(4, None)

    def shorter() -> None:
        f.f.timeout = 0.5

    at_once(lambda: f.call(1), lambda: f.call(2), shorter)
    f.end()
    assert len(f.accepted) == 2


def map_and_settings() -> None:
    """A map that fills its batches, while they grow: it must read on, or it waits for ever."""
    f = Watched(2, None)
    f.largest = 4

    def larger() -> None:
        f.f.batch_size = 4

    def read() -> None:
        f.accepted.extend(range(1, 8))
        assert list(f.f.map(iter(range(1, 8)))) == [10 * item for item in range(1, 8)]

    at_once(read, larger)
    f.end()


def dropping() -> None:
    """Nobody holds the function any more, and its items wait without end: they are answered, and its thread ends."""
    f = Watched(3, None)
    futures: list[Future[Any]] = []
    held = [f.f, f.f]
    del f.f

    def submit(item: int) -> None:
        # The last one drops it right here: at the end of its thread the scheduler would no longer know the thread.
        futures.append(held.pop().submit(item))

    at_once(lambda: submit(1), lambda: submit(2))
    assert sorted(future.result() for future in futures) == [10, 20]
    assert sorted(item for batch in f.batches for item in batch) == [1, 2]


def dropping_idle() -> None:
    """It is dropped just when its flush thread goes to sleep."""
    f = Watched(1)
    f.call(1)
    f.check()
    del f.f


def on_an_engine() -> None:
    """The function returns futures, done on other threads, maybe before it returned."""

    def send(items: list[int]) -> "Future[Any]":
        future: Future[Any] = Future()
        Thread(target=lambda: future.set_result(times_ten(items)), name="engine").start()
        switch()
        return future

    f = Watched(1, work=send)
    at_once(lambda: f.call(1), lambda: f.call(2), lambda: f.call(3))
    f.end()
    assert len(f.accepted) == 3


def engine_and_cancel() -> None:
    """Cancelling and closing while a batch is on an engine."""

    def send(items: list[int]) -> "Future[Any]":
        future: Future[Any] = Future()
        Thread(target=lambda: future.set_result(times_ten(items)), name="engine").start()
        return future

    f = Watched(1, work=send)
    first, second = f.submit(1), f.submit(2)
    at_once(second.cancel, lambda: _own_or_cancelled(first, 1), f.f.close)
    _own_or_cancelled(second, 2)
    f.end()


def engine_drops() -> None:
    """The engine forgets its future: the callers hear of it, and the next batch runs."""
    kept: list[Any] = []
    sent = tool.Semaphore(0)

    def send(items: list[int]) -> "Future[Any]":
        future: Future[Any] = Future()
        kept.append(future)
        sent.release()
        return future

    f = Watched(1, work=send)
    futures = [f.submit(1), f.submit(2)]

    def forget() -> None:
        for _ in futures:
            sent.acquire()
            kept.clear()

    def wait() -> None:
        assert [type(future.exception()).__name__ for future in futures] == ["BatchError"] * 2

    at_once(forget, wait)
    f.end()


def reading_stats() -> None:
    """Each snapshot is consistent: every accepted item is in exactly one place."""
    f = Watched(1)
    futures = [f.submit(1), f.submit(2)]

    def read() -> None:
        for _ in range(4):
            stats = f.f.stats
            assert stats.accepted == 2, stats
            assert stats.in_flight == stats.running <= 1, stats

    at_once(read, lambda: _own_or_cancelled(futures[1], 2))
    f.end()


def failing() -> None:
    """An error reaches the callers of its batch and no other."""

    def fail(items: list[int]) -> list[int]:
        if 2 in items:
            raise ValueError
        return times_ten(items)

    f = Watched(2, work=fail)

    def call(item: int) -> None:
        f.accepted.append(item)
        try:
            assert f.f(item) == 10 * item
        except ValueError:
            assert any(2 in batch and item in batch for batch in f.batches)
        else:
            assert not any(2 in batch and item in batch for batch in f.batches)

    at_once(lambda: call(1), lambda: call(2), lambda: call(3))
    f.end()


def yielding() -> None:
    """Each caller goes on as soon as its result is yielded; one is cancelled meanwhile."""

    def stream(items: list[int]) -> Iterable[int]:
        for item in items:
            switch()
            yield 10 * item

    f = Watched(3, work=stream)
    future = f.submit(1)
    at_once(lambda: f.call(2), lambda: f.call(3), future.cancel)
    _own_or_cancelled(future, 1)
    f.end()


def nested() -> None:
    """The function calls another one."""
    inner = Watched(2)

    def ask(items: list[int]) -> list[Any]:
        inner.accepted.extend(items)
        return list(inner.f.map(items))

    outer = Watched(1, work=ask)
    at_once(lambda: outer.call(1), lambda: outer.call(2), lambda: inner.call(3))
    outer.end()
    inner.end()


def calling_each_other() -> None:
    """Two functions that call each other at the same time must not wait for each other for ever."""
    functions: list[Watched] = []

    def ask(other: int, items: list[int]) -> list[Any]:
        if items[0] >= 100:
            return times_ten(items)
        item = items[0] + 100
        functions[other].accepted.append(item)
        assert functions[other].f(item) == 10 * item
        return times_ten(items)

    functions += [Watched(1, work=lambda items: ask(1, items)), Watched(1, work=lambda items: ask(0, items))]
    f, g = functions
    at_once(lambda: f.call(1), lambda: g.call(2))
    f.f.close()
    g.f.close()
    for each in functions:
        each.wrong.clear()  # a call that would wait for itself runs at once, inside the other
        each.check()
    functions.clear()


def callbacks() -> None:
    """A callback of a future submits the next item, and waits for its neighbour."""
    f = Watched(2)
    submitted: list[Future[Any]] = []
    called_back = tool.Event()

    def submit_next(_: object) -> None:
        submitted.append(f.submit(3))
        assert second.result() == 20
        called_back.set()

    first, second = f.submit(1), f.submit(2)
    first.add_done_callback(submit_next)
    at_once(lambda: f.call(4), lambda: _own_or_cancelled(second, 2))
    called_back.wait()
    assert submitted[0].result() == 30
    f.end()


SCENARIOS: list[Callable[[], None]] = [
    lone_call,
    calls,
    first_calls,
    first_call_and_close,
    timeouts,
    repeated_calls,
    full_batch,
    cancelling,
    cancelling_twice,
    giving_up,
    closing,
    submitting_and_closing,
    closing_while_running,
    flushing,
    mapping,
    mapping_and_leaving,
    settings,
    timeout_set,
    map_and_settings,
    dropping,
    dropping_idle,
    on_an_engine,
    engine_and_cancel,
    engine_drops,
    reading_stats,
    failing,
    yielding,
    nested,
    calling_each_other,
    callbacks,
]
