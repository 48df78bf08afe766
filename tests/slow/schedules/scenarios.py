"""Short lives of a batched function: each is run under many schedules.

A scenario asserts what its callers see. `Watched.end()` asserts the rest: each item is in exactly one batch (with
`isolate`: in one that was not run again), no more batches are in flight than may, those aside that wait inside, and
the figures are right.
"""

from _thread import get_ident
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError, Future, wait
from contextlib import contextmanager, suppress
from typing import Any
from unittest.mock import patch

import interleave_test as tool

from batchify import BatchedFunction, BatchReport, BufferFullError, ClosedError, WaitsForItselfError

from ... import inside
from ...tools import batched
from .controlled import Thread, pass_time, switch


class Watched:
    """A batched function whose items are numbers, all different, and what a scenario knows of it."""

    def __init__(
        self, batch_size: int, timeout: float | None = 0.0, work: "Work | None" = None, **options: Any
    ) -> None:
        self.largest = batch_size
        self.isolates = "isolate" in options
        most = options.get("concurrency", 1)
        self.accepted: list[int] = []
        self.batches: list[list[int]] = []
        self.wrong: list[str] = []
        self.lending: list[int] = []  # the threads of the batches that wait inside
        work = work or times_ten

        # Must not know self, which knows the function: it would never be dropped.
        batches, wrong, lending = self.batches, self.wrong, self.lending
        runs: list[list[int]] = []

        def function(items: list[int]) -> Any:
            if len(runs) - len(lending) >= most:
                wrong.append("runs too often at the same time")
            if most == 1 and not {*lending} <= {get_ident()}:
                wrong.append("runs on two threads")
            batches.append(list(items))
            runs.append(items)
            try:
                switch()
                return work(items)
            finally:
                runs.pop()

        with tool.no_interleave():
            self.f: BatchedFunction[Any, Any] = batched(batch_size=batch_size, timeout=timeout, **options)(function)

    @contextmanager
    def waits(self) -> Iterator[None]:
        """Its function waits here for an answer, and may lend its turn."""
        self.lending.append(get_ident())
        try:
            yield
        finally:
            self.lending.remove(get_ident())

    def inside(self, caller: "Watched", item: int) -> None:
        """Call from inside the function of another one."""
        with caller.waits():
            self.call(item)

    def call(self, item: int) -> None:
        """Call; it may be refused, as the function is closed or `max_pending` items wait."""
        try:
            result = self.f(item)
        except (ClosedError, BufferFullError):
            return
        self.accepted.append(item)
        assert result == 10 * item

    def submit(self, item: int) -> "Future[Any]":
        future = self.f.submit(item)
        self.accepted.append(item)
        return future

    def end(self) -> None:
        """Close, and check what must be true at the end of every life."""
        self.f.close()
        inside.check(self.f)
        self.check()

    def check(self) -> None:
        stats = self.f.stats
        in_batches = [item for batch in self.batches for item in batch]
        if self.isolates:
            in_batches = sorted(set(in_batches))
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
    """Two close while two call: what was accepted before is answered before either returns, and all in the end."""
    f = Watched(2, None)
    first = f.submit(3)

    def close() -> None:
        f.f.close()
        assert first.done()

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
            assert stats.waited >= 0.0, stats

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
    _ring((1, 0))


def ring_that_closes_late() -> None:
    """A third caller waits for what the ring needs: each function is called again from what it waits for itself."""
    _ring((1, 0, 0), depth=2)


def ring_of_three() -> None:
    """The third of three functions calls the first one."""
    _ring((0, 1, 2), functions=3, depth=3)


def ring_of_larger_batches() -> None:
    """Who waits in a ring shares a batch with what others wait for."""
    _ring((0, 1, 0), depth=2, batch_size=2)


def ring_with_room() -> None:
    """Of two functions that call each other, one runs two batches at once."""
    _ring((0, 1, 0, 1), depth=2, concurrency=2)


def _ring(called: tuple[int, ...], *, functions: int = 2, depth: int = 1, batch_size: int = 1, **options: Any) -> None:
    """Each function calls the next one, so often; these are called from outside. `options`: of the first one."""
    ring: list[Watched] = []

    def member(number: int) -> Watched:
        def work(items: list[int]) -> list[int]:
            for item in items:
                if item < 100 * depth:
                    ring[(number + 1) % functions].inside(ring[number], item + 100)
            return times_ten(items)

        return Watched(batch_size, work=work, **(options if number == 0 else {}))

    ring += [member(number) for number in range(functions)]
    at_once(*(lambda of=of, item=item: ring[of].call(item) for item, of in enumerate(called)))
    for f in ring:
        f.f.close()
    for f in ring:
        f.check()
    assert sum(len(f.accepted) for f in ring) == len(called) * (depth + 1)
    ring.clear()


def ring_of_shared_futures() -> None:
    """Each of two batches waits for a future of the other one: no lending helps, so one is told, or both are."""
    told: list[str] = []
    futures: list[Future[Any]] = []
    there = tool.Semaphore(0)

    def waits_for(other: int) -> Work:
        def work(items: list[int]) -> list[int]:
            there.acquire()
            with functions[1 - other].waits():
                try:
                    futures[other].result()
                except WaitsForItselfError:
                    told.append("told")
            return times_ten(items)

        return work

    functions = [Watched(1, work=waits_for(1)), Watched(1, work=waits_for(0))]
    futures += [f.submit(item) for item, f in enumerate(functions)]
    at_once(there.release, there.release, *(lambda n=n: _own_or_cancelled(futures[n], n) for n in range(2)))
    for f in functions:
        f.end()
    assert 1 <= len(told) <= 2
    functions.clear()


def two_that_wait_for_their_own() -> None:
    """Two batches of a function run at once, and each waits for a further one: its turn is lent to that."""
    _waiting_for_own(2, 1)


def three_that_wait_for_their_own() -> None:
    """As before, one more than may run; and what they wait for waits as well."""
    _waiting_for_own(3, 2)


def _waiting_for_own(callers: int, depth: int) -> None:
    f: Watched

    def work(items: list[int]) -> list[int]:
        for item in items:
            if item < 100 * depth:
                f.inside(f, item + 100)
        return times_ten(items)

    f = Watched(1, work=work, concurrency=2)
    at_once(*(lambda item=item: f.call(item) for item in range(callers)))
    f.end()
    assert len(f.accepted) == callers * (depth + 1)


def lent_turn_leaves_room() -> None:
    """Two may run at once: beside one that runs while the one beneath it waits, and lends it its turn, another may."""
    two_run, third_may_come, lent = tool.Semaphore(0), tool.Semaphore(0), tool.Semaphore(0)
    meet = gather(2)
    f: Watched

    def work(items: list[int]) -> list[int]:
        if items == [1]:
            two_run.acquire()
            f.inside(f, 101)
        elif items == [2]:
            two_run.release()
            lent.acquire()
        elif items == [101]:
            lent.release()
            third_may_come.release()
            meet()
        else:
            meet()
        return times_ten(items)

    f = Watched(1, work=work, concurrency=2)
    first = f.submit(1)

    def third() -> None:
        third_may_come.acquire()
        f.call(3)

    at_once(lambda: f.call(2), third)
    assert first.result() == 10
    f.end()


def lending_to_an_engine() -> None:
    """What runs on a lent turn is on an engine: the next one begins when it is done, though nobody waits for it."""
    _lending_to_an_engine(1)


def lending_to_an_engine_with_two() -> None:
    """As before; of two that wait each lends its turn to its own, and neither may keep the other one awake."""
    _lending_to_an_engine(2)


def _lending_to_an_engine(most: int) -> None:
    f: Watched
    send = sending(most)

    def work(items: list[int]) -> Any:
        if items[0] >= 100:
            return send(items)
        futures = [f.submit(items[0] + more) for more in (100, 200, 300)]
        with f.waits():
            assert futures.pop().result() == 10 * (items[0] + 300)
            assert [future.result() for future in futures] == [10 * (items[0] + more) for more in (100, 200)]
        return times_ten(items)

    f = Watched(1, work=work, concurrency=most)
    at_once(lambda: f.call(1), lambda: f.call(2))
    f.end()


def giving_up_inside() -> None:
    """A wait with a time limit ends as another one asks for its turn."""
    _giving_up_inside()


def giving_up_inside_with_two() -> None:
    """As before, where the one who gives turns is another thread than those who wait."""
    _giving_up_inside(concurrency=2)


def _giving_up_inside(**options: Any) -> None:
    f: Watched
    g: Watched

    def asks_g(items: list[int]) -> list[int]:
        for item in items:
            if item < 100:
                future = g.submit(item + 100)
                with f.waits(), suppress(TimeoutError):
                    assert future.result(timeout=0.5) == 10 * (item + 100)
        return times_ten(items)

    def asks_f(items: list[int]) -> list[int]:
        for item in items:
            f.inside(g, item + 100)
        return times_ten(items)

    f, g = Watched(1, work=asks_g, **options), Watched(1, work=asks_f)
    at_once(lambda: f.call(1), lambda: f.call(2), lambda: pass_time(0.3), lambda: pass_time(0.4))
    g.end()
    f.end()
    assert len(f.accepted) == 2 * len(g.accepted) == 4


def giving_up_its_own() -> None:
    """A wait for its own function ends by its time limit, perhaps when a turn was lent to it already."""
    f: Watched

    def work(items: list[int]) -> list[int]:
        if items[0] < 100:
            future = f.submit(items[0] + 100)
            with f.waits():
                try:
                    assert future.result(timeout=0.5) == 10 * (items[0] + 100)
                except TimeoutError:
                    future.cancel()
        return times_ten(items)

    f = Watched(1, work=work, concurrency=2)
    at_once(lambda: f.call(1), lambda: f.call(2), lambda: f.call(3), lambda: pass_time(0.7))
    f.end()


def callbacks() -> None:
    """A callback of a future submits the next item, and waits for one that waits itself."""
    f = Watched(1)
    submitted: list[Future[Any]] = []
    called_back = tool.Event()

    def submit_next(_: object) -> None:
        submitted.append(f.submit(3))
        assert second.result() == 20
        called_back.set()

    second = f.submit(2)
    first = f.submit(1)
    first.add_done_callback(submit_next)
    at_once(lambda: f.call(4), lambda: _own_or_cancelled(second, 2))
    called_back.wait()
    assert submitted[0].result() == 30
    f.end()


def gather(number: int) -> Callable[[], None]:
    """Return what lets nobody through before so many are there."""
    there: list[None] = []
    let_on = tool.Semaphore(0)

    def wait() -> None:
        there.append(None)
        if len(there) == number:
            for _ in range(number):
                let_on.release()
        let_on.acquire()

    return wait


def together(number: int) -> Work:
    """Return a function that ends only when it runs so often at once."""
    wait = gather(number)

    def work(items: list[int]) -> list[int]:
        wait()
        return times_ten(items)

    return work


def sending(most: int, before: Callable[[], object] = switch, work: Work = times_ten) -> Work:
    """Return a function that lets another thread, of which there may be so many, do the work."""
    sent: list[list[int]] = []

    def send(items: list[int]) -> "Future[Any]":
        future: Future[Any] = Future()
        sent.append(items)
        assert len(sent) <= most, "too many are in flight"

        def run() -> None:
            before()
            try:
                value, error = work(items), None
            except ValueError as raised:
                value, error = None, raised
            sent.remove(items)
            if error is None:
                future.set_result(value)
            else:
                future.set_exception(error)

        Thread(target=run, name="engine").start()
        switch()
        return future

    return send


def two_at_once() -> None:
    """The second thread is hired for what the first one cannot take, as it is in the function."""
    f = Watched(1, work=together(2), concurrency=2)
    at_once(lambda: f.call(1), lambda: f.call(2))
    f.end()
    assert len(f.accepted) == 2
    assert len(Thread.started) <= 4  # one for each of them may be sent home


def two_in_one_step() -> None:
    """One thread adds both, and nothing wakes anybody afterwards."""
    f = Watched(1, work=together(2), concurrency=2)
    f.accepted += (1, 2)
    assert list(f.f.map([1, 2])) == [10, 20]
    f.end()


def two_at_once_again() -> None:
    """Both threads are there, and asleep or about to be."""
    waits = gather(2)
    f = Watched(1, work=lambda items: waits() or times_ten(items), concurrency=2)
    at_once(lambda: f.call(1), lambda: f.call(2))
    waits = gather(2)
    at_once(lambda: f.call(3), lambda: f.call(4))
    f.end()
    assert len(f.accepted) == 4


def three_for_two() -> None:
    """Two run at once, and whoever is first takes the third."""
    f = Watched(1, concurrency=2)
    at_once(lambda: f.call(1), lambda: f.call(2), lambda: f.call(3))
    f.end()
    assert len(f.accepted) == 3


def timing_for_two() -> None:
    """One thread sleeps until an item is due, while the other one takes the last room."""
    f = Watched(2, 0.5, concurrency=2)

    def twice(first: int) -> None:
        f.call(first)
        f.call(first + 1)

    at_once(lambda: twice(1), lambda: twice(3), lambda: f.call(5), lambda: pass_time(0.7), lambda: pass_time(0.7))
    f.end()
    assert len(f.accepted) == 5


def timing_while_one_runs() -> None:
    """What comes while one thread is in the function is timed by the other one."""
    entered, go_on = tool.Semaphore(0), tool.Semaphore(0)
    f = Watched(2, 0.5, _stopping_at_one(entered, go_on), concurrency=2)
    first = f.submit(1)
    f.f.flush()
    entered.acquire()

    def late() -> None:
        f.call(2)  # is answered although 1 is not
        go_on.release()

    at_once(late, lambda: pass_time(0.7), lambda: pass_time(0.7))
    assert first.result() == 10
    f.end()


def _stopping_at_one(entered: Any, go_on: Any) -> Work:
    def work(items: list[int]) -> list[int]:
        if items == [1]:
            entered.release()
            go_on.acquire()
        return times_ten(items)

    return work


def closing_two() -> None:
    """It is closed while both threads are hired, run or sleep."""
    f = Watched(1, concurrency=2)
    first = f.submit(3)

    def close() -> None:
        f.f.close()
        assert first.done()

    at_once(lambda: f.call(1), lambda: f.call(2), close, close)
    f.end()


def closing_while_both_run() -> None:
    """It is closed when both threads are in the function, and a third item waits."""
    both = gather(3)
    f = Watched(1, work=lambda items: (items != [3] and both()) or times_ten(items), concurrency=2)
    futures = [f.submit(1), f.submit(2), f.submit(3)]

    def close() -> None:
        both()
        f.f.close()
        assert all(future.done() for future in futures)

    at_once(close, lambda: _own_or_cancelled(futures[2], 3))
    f.end()


def dropping_two() -> None:
    """Nobody holds the function any more, and each item needs a thread: both are answered, and the threads end."""
    f = Watched(1, work=together(2), concurrency=2)
    futures: list[Future[Any]] = []
    held = [f.f, f.f]
    del f.f

    def submit(item: int) -> None:
        futures.append(held.pop().submit(item))  # as in dropping()

    at_once(lambda: submit(1), lambda: submit(2))
    assert sorted(future.result() for future in futures) == [10, 20]
    assert sorted(f.batches) == [[1], [2]]


def dropping_idle_two() -> None:
    """It is dropped just when its two threads go to sleep: both end."""
    f = Watched(1, work=together(2), concurrency=2)
    at_once(lambda: f.call(1), lambda: f.call(2))
    del f.f


def two_on_an_engine() -> None:
    """Two batches are in flight, though one thread sends them; both are done at the same time."""
    f = Watched(1, work=sending(2, gather(2)), concurrency=2)
    at_once(lambda: f.call(1), lambda: f.call(2))
    f.end()
    assert len(f.accepted) == 2


def three_for_two_on_an_engine() -> None:
    f = Watched(1, work=sending(2), concurrency=2)
    at_once(lambda: f.call(1), lambda: f.call(2), lambda: f.call(3))
    f.end()
    assert len(f.accepted) == 3


def sometimes_on_an_engine() -> None:
    """Some batches return futures and some block, so what the last one did is no guide."""
    send = sending(2)
    f = Watched(1, work=lambda items: send(items) if items[0] % 2 else times_ten(items), concurrency=2)
    at_once(lambda: f.call(1), lambda: f.call(2), lambda: f.call(3), lambda: f.call(4))
    f.end()
    assert len(f.accepted) == 4


def sometimes_and_closing() -> None:
    send = sending(2)
    f = Watched(1, work=lambda items: send(items) if items[0] % 2 else times_ten(items), concurrency=2)
    at_once(lambda: f.call(1), lambda: f.call(2), lambda: f.call(3), f.f.close)
    f.end()


def timing_for_an_engine() -> None:
    """Two threads were needed; now one is enough, and of these one ends, perhaps the one that timed what waits."""
    meet, send = together(2), sending(2)
    f = Watched(1, 0.5, lambda items: meet(items) if items[0] < 3 else send(items), concurrency=2)
    at_once(lambda: f.call(1), lambda: f.call(2))
    f.largest = f.f.batch_size = 2
    future = f.submit(3)
    at_once(f.f.flush, lambda: f.call(4), lambda: _own_or_cancelled(future, 3), lambda: f.call(5))
    f.end()
    assert len(f.accepted) == 5


def full_by_pending() -> None:
    """No timeout: that nobody else may join is what makes a batch due."""
    f = Watched(3, None, max_pending=2)
    at_once(lambda: f.call(1), lambda: f.call(2))
    at_once(lambda: f.call(3), lambda: f.call(4))
    f.end()
    assert len(f.accepted) == 4


def refused() -> None:
    """One may wait in the buffer; who finds it there is refused at once, the others are answered."""
    f = Watched(1, max_pending=1)
    at_once(lambda: f.call(1), lambda: f.call(2), lambda: f.call(3), lambda: f.call(4))
    f.end()
    assert f.accepted


def refused_with_two() -> None:
    """As before, and two batches may run at once."""
    f = Watched(1, concurrency=2, max_pending=1)
    at_once(lambda: f.call(1), lambda: f.call(2), lambda: f.call(3), lambda: f.call(4))
    f.end()
    assert f.accepted


def refused_and_cancelling() -> None:
    """What has left does not count: there is room for another one."""
    entered, go_on = tool.Semaphore(0), tool.Semaphore(0)
    f = Watched(1, work=_stopping_at_one(entered, go_on), max_pending=1)
    first = f.submit(1)
    entered.acquire()
    second = f.submit(2)

    def cancel() -> None:
        assert second.cancel()
        go_on.release()
        f.call(4)

    at_once(cancel, lambda: f.call(3), lambda: _own_or_cancelled(first, 1))
    f.end()
    assert {3, 4} & set(f.accepted)


def refused_and_closing() -> None:
    f = Watched(1, max_pending=1)
    at_once(lambda: f.call(1), lambda: f.call(2), lambda: f.call(3), f.f.close)
    f.end()


def mapping_past_the_limit() -> None:
    """A map is never refused, however many items wait; a caller may be."""
    f = Watched(2, max_pending=1)

    def read() -> None:
        f.accepted.extend((1, 2, 3))
        assert list(f.f.map([1, 2, 3])) == [10, 20, 30]

    at_once(read, lambda: f.call(4))
    f.end()


def _without_two(items: list[int]) -> list[int]:
    if 2 in items:
        raise ValueError
    return times_ten(items)


def _isolate(f: Watched, *others: Callable[[], object], may_refuse: bool = False) -> None:
    def call(item: int) -> None:
        try:
            result = f.f(item)
        except ValueError:
            assert item == 2
        except (ClosedError, BufferFullError):
            assert may_refuse
            return
        else:
            assert result == 10 * item != 20
        f.accepted.append(item)

    at_once(lambda: call(1), lambda: call(2), lambda: call(3), *others)
    f.end()
    assert may_refuse or len(f.accepted) == 3


def isolating() -> None:
    """What shares a batch with the bad item is run again, by the thread that ran it."""
    _isolate(Watched(3, 0.5, _without_two, isolate=True), lambda: pass_time(0.7))


def isolating_with_two() -> None:
    """The halves may be run at once."""
    _isolate(Watched(3, 0.5, _without_two, isolate=True, concurrency=2), lambda: pass_time(0.7))


def isolating_with_two_that_wait() -> None:
    """Each half needs the other one to run, and nothing else is due: a second thread is hired, or woken, for it."""
    wait = gather(2)

    def work(items: list[int]) -> list[int]:
        if len(items) > 1:
            raise ValueError
        wait()
        return times_ten(items)

    f = Watched(2, None, work, isolate=True, concurrency=2)
    at_once(lambda: f.call(1), lambda: f.call(2))
    f.end()
    assert len(f.accepted) == 2


def isolating_on_an_engine() -> None:
    """It fails on another thread, which wakes the one that sends the halves."""
    _isolate(Watched(3, None, sending(1, work=_without_two), isolate=True))


def isolating_with_room_on_an_engine() -> None:
    """As before, and there was room all the time, so nobody waits for it."""
    _isolate(Watched(3, None, sending(2, work=_without_two), isolate=True, concurrency=2))


def isolating_and_closing() -> None:
    """It is closed while the batch is on the engine: the halves are run all the same."""
    work = sending(2, work=_without_two)
    f = Watched(3, None, work, isolate=True, concurrency=2)
    _isolate(f, f.f.close, may_refuse=True)


def isolating_past_the_limit() -> None:
    """Halves are run however many items wait, and count as none of these."""
    _isolate(Watched(2, 0.0, _without_two, isolate=True, max_pending=2), may_refuse=True)


def two_groups() -> None:
    """Odd and even items share no batch, and both batches fill up."""
    f = Watched(2, None, group_by=lambda item: item % 2)
    at_once(lambda: f.call(1), lambda: f.call(2), lambda: f.call(3), lambda: f.call(4))
    f.end()
    assert sorted(map(sorted, f.batches)) == [[1, 3], [2, 4]]


def two_groups_at_once() -> None:
    """Both groups are full, and each batch needs the other one to run."""
    f = Watched(2, None, together(2), group_by=lambda item: item % 2, concurrency=2)
    at_once(lambda: f.call(1), lambda: f.call(2), lambda: f.call(3), lambda: f.call(4))
    f.end()
    assert sorted(map(sorted, f.batches)) == [[1, 3], [2, 4]]


def two_groups_and_one_full() -> None:
    """A full group does not wait for the other one, though that is older."""
    f = Watched(2, None, group_by=lambda item: item % 2)
    f.submit(1)
    at_once(lambda: f.call(2), lambda: f.call(4))
    f.end()
    assert [1] in f.batches


def two_groups_and_leaving() -> None:
    """A group that was full is not when it would be taken."""
    f = Watched(2, None, group_by=lambda item: item % 2)
    futures = [f.submit(2), f.submit(1)]
    at_once(futures[1].cancel, lambda: futures.append(f.submit(3)))
    f.end()
    for future, item in zip(futures, (2, 1, 3), strict=True):
        _own_or_cancelled(future, item)
    assert sorted(f.batches) in ([[1, 3], [2]], [[2], [3]])
    assert set(f.f.stats.sizes_by_reason.get("full", {})) <= {2}


def weighing() -> None:
    """Two fit into a batch, or the heavy one alone."""
    f = Watched(5, None, weight=lambda item: item, max_weight=3)
    at_once(lambda: f.call(1), lambda: f.call(2), lambda: f.call(3), f.f.close)
    f.end()
    assert all(sum(batch) <= 3 for batch in f.batches)


def reporting() -> None:
    """Each batch is reported once, by whichever thread, before anybody hears of its answer."""
    reports: list[BatchReport] = []
    f = Watched(1, concurrency=2, on_batch=reports.append)

    def call(item: int) -> None:
        f.call(item)
        assert len(reports) >= 1

    at_once(lambda: call(1), lambda: call(2), lambda: call(3))
    f.end()
    assert len(reports) == 3
    assert all(0 <= report.in_flight <= 1 for report in reports)
    assert all(min(report.waits) >= 0.0 for report in reports)


def cancelling_before_it_is_taken() -> None:
    """What was cancelled while another batch ran is not computed."""
    entered, go_on = tool.Semaphore(0), tool.Semaphore(0)
    f = Watched(2, work=_stopping_at_one(entered, go_on))
    f.submit(1)
    entered.acquire()
    futures = [f.submit(item) for item in (2, 3, 4, 5)]
    assert futures[0].cancel()
    go_on.release()
    assert [future.result() for future in futures[1:]] == [30, 40, 50]
    f.end()
    assert f.batches == [[1], [3, 4], [5]]


def cancelling_in_groups() -> None:
    """As cancelling(), where the owner keeps groups, and one item more would be due."""
    f = Watched(2, None, group_by=lambda item: item % 2)
    first, second = f.submit(1), f.submit(2)
    gone: list[bool] = []
    at_once(lambda: gone.append(first.cancel()), lambda: f.call(4), f.f.close)
    _own_or_cancelled(first, 1)
    _own_or_cancelled(second, 2)
    f.end()
    assert gone[0] == first.cancelled()


def many_leave() -> None:
    """More leave than stay, so what waits is sorted out while others post."""
    f = Watched(3, 1.0)
    futures = [f.submit(item) for item in (1, 2)]
    at_once(futures[0].cancel, futures[1].cancel, lambda: f.call(3), lambda: f.call(4), lambda: f.call(5))
    for item, future in enumerate(futures, 1):
        _own_or_cancelled(future, item)
    f.end()
    assert {3, 4, 5} <= set(f.accepted)


def deduping() -> None:
    """Equal items that wait at once are one; they are full by two others."""
    f = Watched(2, None, dedupe=True)
    results: list[int] = []

    def call(item: int) -> None:
        with suppress(ClosedError):
            results.append(f.f(item))
            assert results[-1] == 10 * item

    at_once(lambda: call(1), lambda: call(1), lambda: call(2), f.f.close)
    stats = f.f.stats
    assert (stats.pending, stats.running, stats.cancelled) == (0, 0, 0), stats
    assert stats.accepted == stats.answered == len(results), stats


def deduping_and_cancelling() -> None:
    """One of two callers of the same item leaves: the other one is answered."""
    f = Watched(2, None, dedupe=True)
    futures = [f.submit(1), f.f.submit(1)]
    at_once(futures[0].cancel, lambda: f.call(2))
    _own_or_cancelled(futures[0], 1)
    assert futures[1].result() == 10
    f.f.close()
    inside.check(f.f)
    stats = f.f.stats
    assert (stats.accepted, stats.cancelled) == (3, futures[0].cancelled()), stats


def draining() -> None:
    """What was accepted before is answered when drain() returns; it stays open."""
    _drain(Watched(3, None))


def draining_two() -> None:
    """As before: the batch of the one item may run while that of the other one is told."""
    _drain(Watched(1, concurrency=2))


def draining_an_engine() -> None:
    """As before: it runs elsewhere."""
    _drain(Watched(1, work=sending(2), concurrency=2))


def draining_halves() -> None:
    """A batch that failed is answered when its halves are."""
    f = Watched(2, None, _without_two, isolate=True)

    def drain(item: int) -> None:
        future = f.submit(item)
        f.f.drain()
        assert future.done()

    at_once(lambda: drain(1), lambda: drain(2))
    f.end()


def _drain(f: Watched) -> None:
    def drain(item: int) -> None:
        future = f.submit(item)
        f.f.drain()
        assert future.done()
        assert future.result() == 10 * item

    at_once(lambda: drain(1), lambda: drain(2))
    f.end()
    assert len(f.accepted) == 2


def draining_and_closing() -> None:
    """Whoever drains hears of the end, whichever owner it is that tells."""
    f = Watched(2, None)
    at_once(lambda: f.call(1), f.f.drain, f.f.close, lambda: f.call(2))
    f.end()


def reopening() -> None:
    """It is opened again while it closes: what is accepted is answered, by one owner at a time."""
    f = Watched(2)

    def again() -> None:
        with f.f:
            f.call(2)

    at_once(lambda: f.call(1), f.f.close, again, lambda: f.call(3))
    f.end()


def reopening_with_two() -> None:
    """Each time it starts its own threads, and leaves none."""
    f = Watched(1, concurrency=2)

    def again(item: int) -> None:
        with f.f:
            f.call(item)

    f.call(1)
    f.f.close()
    at_once(lambda: again(2), lambda: again(3))
    at_once(lambda: again(4), lambda: f.call(5))
    f.end()
    assert f.f.stats.accepted >= 2


def reopened() -> None:
    """Once it is open again, items wait for each other again."""
    f = Watched(2, None)
    f.f.close()
    with f.f:
        at_once(lambda: f.call(1), lambda: f.call(2))
    assert sorted(f.batches[0]) == [1, 2]
    f.end()


def closed_while_posting() -> None:
    """It is open for an instant, again and again: who is accepted is answered, who is refused is not computed."""
    f = Watched(1)

    def twice() -> None:
        for _ in range(2):
            with f.f:
                pass

    at_once(lambda: f.call(1), twice, lambda: f.call(2))
    f.end()


def refusing_what_waits() -> None:
    """close(cancel_pending=True): each has its result or an error."""
    f = Watched(2, None)
    ends: list[str] = []

    def call(item: int) -> None:
        try:
            assert f.f(item) == 10 * item
        except ClosedError:
            ends.append("refused")
        else:
            ends.append("answered")

    at_once(lambda: call(1), lambda: call(2), lambda: call(3), lambda: f.f.close(cancel_pending=True))
    stats = f.f.stats
    assert len(ends) == 3
    assert (stats.pending, stats.running, stats.in_flight) == (0, 0, 0), stats
    assert stats.answered == ends.count("answered") == sum(map(len, f.batches)), stats
    assert stats.accepted == stats.answered + stats.failed, stats


def waiting_inside() -> None:
    """The function waits for a future of its own: its turn is lent to that, which is counted once."""
    f: Watched

    def work(items: list[int]) -> list[int]:
        if items[0] < 100:
            future = f.submit(items[0] + 100)
            with f.waits():
                assert future.result() == 10 * (items[0] + 100)
        return times_ten(items)

    f = Watched(1, work=work)

    def read() -> None:
        accepted = 0
        for _ in range(3):
            stats = f.f.stats
            assert stats.cancelled == 0, stats
            assert accepted <= stats.accepted <= 4, stats
            accepted = stats.accepted
            assert stats.accepted == stats.pending + stats.running + stats.answered + stats.failed, stats
            assert stats.in_flight <= stats.batches == stats.in_flight + stats.answered, stats

    at_once(lambda: f.call(1), lambda: f.call(2), read)
    f.end()


def waiting_inside_for_many() -> None:
    """As before, by wait()."""
    f: Watched

    def work(items: list[int]) -> list[int]:
        if items[0] < 100:
            futures = [f.submit(items[0] + 100), f.submit(items[0] + 200)]
            with f.waits():
                wait(futures)
            assert all(future.done() for future in futures)
        return times_ten(items)

    f = Watched(1, work=work)
    at_once(lambda: f.call(1), lambda: f.call(2))
    f.end()


def isolating_inside() -> None:
    """A batch to which a turn was lent is run again in halves."""
    f: Watched

    def work(items: list[int]) -> list[int]:
        if items == [100]:
            f.accepted += (1, 2, 3)
            with f.waits():
                assert next(f.f.map([1, 2, 3])) == 10
        return _without_two(items)

    f = Watched(3, None, work, isolate=True)
    at_once(lambda: f.call(100), f.f.flush, f.f.close)
    f.f.close()  # the other one may have come before
    stats = f.f.stats
    assert (stats.pending, stats.running, stats.in_flight) == (0, 0, 0), stats
    assert not f.wrong


def closing_inside() -> None:
    """The function closes itself, while others call and close."""
    f: Watched

    def work(items: list[int]) -> list[int]:
        f.f.close()
        return times_ten(items)

    f = Watched(1, work=work)
    at_once(lambda: f.call(1), lambda: f.call(2), f.f.close)
    f.end()


def mapping_by_groups() -> None:
    """No timeout: a map asks for what waits for nobody but itself."""
    f = Watched(2, None, group_by=lambda item: item % 2)
    f.accepted += (1, 2, 3)
    at_once(lambda: _equal(f.f.map([1, 2, 3]), [10, 20, 30]), lambda: f.submit(4))
    f.end()


def _equal(results: Iterable[Any], expected: list[Any]) -> None:
    assert list(results) == expected


def mapping_only() -> None:
    """No timeout: a map fills its batches itself, and nobody else rings."""
    f = Watched(2, None)
    f.accepted += (1, 2, 3, 4)
    _equal(f.f.map([1, 2, 3, 4]), [10, 20, 30, 40])
    f.end()


def lone_timeout() -> None:
    """Nobody else comes: the owner must time the first item that it finds."""
    f = Watched(2, 0.5)
    f.call(1)
    f.call(2)
    f.end()


def limited_groups() -> None:
    """`max_pending` items wait, in two groups: the older one is due, the other one when its time has come."""
    f = Watched(2, 1.0, group_by=lambda item: item % 2, max_pending=2)
    at_once(lambda: f.call(1), lambda: f.call(2))
    f.end()
    assert len(f.accepted) == 2


def leaving_a_map() -> None:
    """What a map has read ahead when it is interrupted is not computed."""
    entered, go_on = tool.Semaphore(0), tool.Semaphore(0)
    f = Watched(2, work=_stopping_at_one(entered, go_on))
    f.submit(1)
    entered.acquire()
    others = [f.submit(item) for item in (4, 5)]

    def items() -> Iterator[int]:
        yield from (2, 3)
        raise KeyboardInterrupt

    with suppress(KeyboardInterrupt):
        list(f.f.map(items()))
    others.append(f.submit(6))
    go_on.release()
    assert [future.result() for future in others] == [40, 50, 60]
    f.accepted += (2, 3)
    f.end()
    assert f.batches == [[1], [4, 5], [6]]


def reopening_while_it_runs() -> None:
    """It is opened again while its last batch runs: what comes then waits for its neighbour again."""
    entered, go_on = tool.Semaphore(0), tool.Semaphore(0)
    f = Watched(2, None, _stopping_at_one(entered, go_on))
    first = f.submit(1)
    f.f.flush()
    entered.acquire()
    inside.begin_to_close(f.f)
    with f.f:
        at_once(go_on.release, lambda: f.call(2), lambda: f.call(3))
    assert first.result() == 10
    assert sorted(f.batches[1]) == [2, 3]
    f.end()


def three_for_two_slowly() -> None:
    """Each batch lasts, so that a third one would be seen."""

    def work(items: list[int]) -> list[int]:
        for _ in range(20):
            switch()
        return times_ten(items)

    f = Watched(1, work=work, concurrency=2)
    at_once(lambda: f.call(1), lambda: f.call(2), lambda: f.call(3))
    f.end()


def draining_halves_of_two() -> None:
    """Halves are put back by one thread while another one drains."""
    f = Watched(2, 0.5, _without_two, isolate=True, concurrency=2)

    def drain(item: int) -> None:
        future = f.submit(item)
        f.f.drain()
        assert future.done()

    at_once(*(lambda item=item: drain(item) for item in (1, 2, 3)))
    f.end()


def dropping_an_instance() -> None:
    """An instance is dropped just when the flush thread of its method goes to sleep."""
    with tool.no_interleave():

        class Model:
            @batched(batch_size=1)  # type: ignore[arg-type]  # without types, so that it is not known as a method
            def method(self, items: list[int]) -> list[int]:
                return times_ten(items)

        model = Model()
        method = model.method
    assert method(1) == 10
    del model, method


def cancelling_the_first_of_all() -> None:
    """The first future of all comes, and is cancelled, as a batch is taken of which nobody has asked who left."""
    f = Watched(2)
    gone: list[bool] = []

    def submit_and_cancel() -> None:
        future = f.submit(2)
        gone.append(future.cancel())
        assert gone[0] == future.cancelled()
        _own_or_cancelled(future, 2)

    at_once(lambda: f.call(1), submit_and_cancel, lambda: f.call(3))
    f.end()
    assert gone[0] != any(2 in batch for batch in f.batches)


def _reading(f: Watched, items: Iterable[int]) -> Iterator[int]:
    """Yield items, and note that they are read."""
    for item in items:
        f.accepted.append(item)
        yield item


def leaving_a_map_as_it_is_taken() -> None:
    """A map is closed as its batches are taken, run and end; it is the only one who leaves, and nobody has a future."""
    f = Watched(2)

    def read() -> None:
        results = f.f.map(_reading(f, range(1, 7)))
        assert next(results) == 10
        results.close()

    at_once(read, lambda: f.call(8), lambda: f.call(9))
    f.end()


def leaving_a_map_as_groups_are_taken() -> None:
    """As before, where the owner keeps groups."""
    f = Watched(2, group_by=lambda item: item % 2)

    def read() -> None:
        results = f.f.map(_reading(f, range(1, 6)))
        assert next(results) == 10
        results.close()

    at_once(read, lambda: f.call(8), lambda: f.call(9))
    f.end()


def leaving_before_it_is_taken() -> None:
    """A map that has left is not computed, also if nobody has a future."""
    entered, go_on = tool.Semaphore(0), tool.Semaphore(0)
    f = Watched(2, work=_stopping_at_one(entered, go_on))

    def items() -> Iterator[int]:
        yield from _reading(f, (2, 3))
        raise KeyboardInterrupt

    def leave() -> None:
        entered.acquire()
        with suppress(KeyboardInterrupt):
            list(f.f.map(items()))
        go_on.release()
        f.call(4)

    at_once(lambda: f.call(1), leave)
    f.end()
    assert f.batches == [[1], [4]]


def reading_stats_as_one_leaves() -> None:
    """Who leaves is in one place as well: first it waits, then it is cancelled."""
    f = Watched(3, None)
    futures = [f.submit(1), f.submit(2)]

    def read() -> None:
        for _ in range(4):
            stats = f.f.stats
            assert stats.accepted == 2, stats
            assert stats.cancelled <= 1, stats

    at_once(futures[0].cancel, read, f.f.flush)
    f.end()


def reading_stats_as_items_are_refused() -> None:
    """What gets an error in place of a result is in one place as well."""
    f = Watched(3, None)
    futures = [f.submit(1), f.submit(2)]

    def read() -> None:
        for _ in range(4):
            stats = f.f.stats
            assert stats.accepted == 2, stats

    at_once(lambda: f.f.close(cancel_pending=True), read)
    assert {type(future.exception()) for future in futures} <= {ClosedError, type(None)}


def callbacks_of_neighbours() -> None:
    """Callbacks wait for a neighbour of the same batch, and others for both."""
    go_on = tool.Semaphore(0)
    f = Watched(2, None, lambda items: go_on.acquire() and times_ten(items))
    heard: list[int] = []
    first, second = f.submit(1), f.submit(2)
    first.add_done_callback(lambda _: heard.append(second.result()))
    at_once(
        go_on.release,
        lambda: second.add_done_callback(lambda _: heard.append(first.result())),
        lambda: wait([first, second]),
        lambda: _own_or_cancelled(second, 2),
    )
    f.end()
    assert sorted(heard) == [10, 20]


def starting_in_vain() -> None:
    """No thread can be started at times: who hears of that is alone with it, and nobody hangs."""
    f = Watched(1)
    start, starts = Thread.start, [None] * 2
    answered: list[int] = []

    def start_or_not(thread: Thread) -> None:
        if thread.name.startswith("batchify") and len(starts) > 0:
            starts.pop()
            if not starts:
                raise RuntimeError
        start(thread)

    def call(item: int) -> None:
        with suppress(ClosedError, RuntimeError):
            assert f.f(item) == 10 * item
            answered.append(item)

    def again() -> None:
        with f.f:
            call(2)

    with patch.object(Thread, "start", start_or_not):
        at_once(lambda: call(1), f.f.close, again, lambda: call(3))
    f.f.close()
    stats = f.f.stats
    assert {*answered} <= {item for batch in f.batches for item in batch}
    assert (stats.pending, stats.running, stats.in_flight) == (0, 0, 0), stats
    assert stats.answered + stats.failed == len(f.batches), stats


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
    ring_that_closes_late,
    ring_of_three,
    ring_of_larger_batches,
    ring_with_room,
    ring_of_shared_futures,
    two_that_wait_for_their_own,
    three_that_wait_for_their_own,
    lent_turn_leaves_room,
    lending_to_an_engine,
    lending_to_an_engine_with_two,
    giving_up_inside,
    giving_up_inside_with_two,
    giving_up_its_own,
    callbacks,
    two_at_once,
    two_in_one_step,
    two_at_once_again,
    three_for_two,
    timing_for_two,
    timing_while_one_runs,
    closing_two,
    closing_while_both_run,
    dropping_two,
    dropping_idle_two,
    two_on_an_engine,
    three_for_two_on_an_engine,
    sometimes_on_an_engine,
    sometimes_and_closing,
    timing_for_an_engine,
    full_by_pending,
    refused,
    refused_with_two,
    refused_and_cancelling,
    refused_and_closing,
    mapping_past_the_limit,
    isolating,
    isolating_with_two,
    isolating_with_two_that_wait,
    isolating_on_an_engine,
    isolating_with_room_on_an_engine,
    isolating_and_closing,
    isolating_past_the_limit,
    two_groups,
    two_groups_at_once,
    two_groups_and_one_full,
    two_groups_and_leaving,
    weighing,
    reporting,
    cancelling_before_it_is_taken,
    cancelling_in_groups,
    many_leave,
    deduping,
    deduping_and_cancelling,
    draining,
    draining_two,
    draining_an_engine,
    draining_halves,
    draining_and_closing,
    reopening,
    reopening_with_two,
    reopened,
    closed_while_posting,
    refusing_what_waits,
    waiting_inside,
    waiting_inside_for_many,
    isolating_inside,
    closing_inside,
    mapping_by_groups,
    mapping_only,
    lone_timeout,
    limited_groups,
    leaving_a_map,
    reopening_while_it_runs,
    three_for_two_slowly,
    draining_halves_of_two,
    dropping_an_instance,
    cancelling_the_first_of_all,
    leaving_a_map_as_it_is_taken,
    leaving_a_map_as_groups_are_taken,
    leaving_before_it_is_taken,
    reading_stats_as_one_leaves,
    reading_stats_as_items_are_refused,
    callbacks_of_neighbours,
    starting_in_vain,
]
