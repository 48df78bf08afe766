"""How do threads wait, and who runs a batch?

The flush threads of a batcher, one, or with `concurrency` as many as are needed:
  - the first starts with the first item, another one when a batch may run and all others are inside the function;
  - end after `close()`, when all that was accepted is answered, or when its batcher is garbage;
  - keep their batcher alive while items wait or run, and nothing of it while idle;
  - after a fork: the child has none and an empty buffer, and starts its own with its first item; the items that waited
    stay the parent's;
  - at interpreter exit: what was accepted is answered before `atexit` is through, what comes later is refused. They are
    daemon threads, so that they do not hold up the exit when they are idle.
"""

import atexit
import os
import sys
import warnings
import weakref
from _thread import LockType, allocate_lock, get_ident
from collections import deque
from collections.abc import Callable, Coroutine, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from contextvars import Context
from functools import partial
from math import inf
from threading import TIMEOUT_MAX, RLock, Thread, main_thread
from time import monotonic
from typing import Any, TypeVar

from ._batch import NO_CONSTANTS, Ahead, Batch, Call, advise, complain
from ._buffer import Buffer, arrival_of, batches_at_once
from ._errors import BatchError, ClosedError
from ._options import Options, Takes, check_count, check_timeout
from ._stats import Reason, Stats, Tally

T = TypeVar("T")

# One lock for all batchers, held for about a microsecond at a time. It is re-entrant, since a finalizer or a signal
# handler may call in while its own thread holds it; and it is one, since it may then call another batcher, which in
# another thread is just calling this one.
# Never done while holding it, but for such a call: calling the function, delivering, logging, starting or joining a
# thread.
_lock = RLock()

# A call made on a thread that runs or answers a batch may have to wait for that very thread:
#   1. f's function runs on f's flush thread: _flushing says that this thread works for f.
#   2. It calls g, and will wait: _waits_for says that this thread waits for g. Or it passes g an item whose answer it
#      may wait for later: that stands in _passed until its function has ended.
#   3. g's function, on g's flush thread, calls f. A thread that works for f waits for g, and this one works for g: it
#      would wait for itself, so the call is run at once, right there (see NestedBatch).
# Each thread has entries of its own, since several may work for f at once: what one of them waits for must not go when
# another one's wait ends.
# A batcher stands in these by its `_life`, a token that is new after a fork and does not keep the batcher alive.
# A flush thread stands in _flushing as long as it lives; the thread of an engine, while it answers our batch.
_flushing: dict[int, tuple[object, ...]] = {}
_waits_for: dict[int, object] = {}
_passed: dict[int, list[tuple[object, Sequence[Call]]]] = {}
# Whether a thread is completing futures.
_delivering: dict[int, bool] = {}

# An ordered weak set, for fork and exit; and a strong one, of those that only their own last items keep alive.
_live: "weakref.WeakKeyDictionary[ThreadBatcher, None]" = weakref.WeakKeyDictionary()
_dropped: "set[ThreadBatcher]" = set()
_exiting = False


class FutureCall(Call):
    """A call that answers a future. Keeps its owner alive, whose method must answer it, until it is answered."""

    __slots__ = ("future", "owner")

    home = "futures"

    def __init__(self, item: Any, future: "ItemFuture", owner: object) -> None:
        self.item = item
        self.future = future
        self.owner = owner

    @staticmethod
    def deliver_all(calls: Sequence["FutureCall"]) -> None:
        # Callbacks of the futures run in here. What they submit must wait its turn, or a chain of them, each submitting
        # the next, would become a recursion.
        with _for_now(_delivering, True):
            for call in calls:
                try:
                    call.deliver()
                except BaseException:  # noqa: BLE001 - by a callback; the neighbours must hear all the same
                    complain("a callback of a future raised")
                    call.deliver()  # if it was not that, but the recursion limit of who completes an engine's future

    # A method in place of the slot, since a bound method stored in it would be a cycle.
    def deliver(self) -> None:
        future = self.future
        future.call = None  # a cycle
        if future.done() and not future.cancelled():
            return  # by answer_now(), or by a stranger
        # False means cancelled. True means that it no longer can be: no gap between the look and the answer.
        if future.running() or future.set_running_or_notify_cancel():
            if self.error is None:
                future.set_result(self.value)
            else:
                future.set_exception(self.error)


class ItemFuture(Future[Any]):
    """The future of one item. Cancelling it takes the item out of the buffer, or else drops the answer."""

    call: FutureCall | None = None  # until it is delivered

    def __init__(self, batcher: "ThreadBatcher") -> None:
        super().__init__()
        # Weakly: a future that waits must not hide from a batcher that nobody can fill its batch any more.
        self._batcher = weakref.ref(batcher)

    def cancel(self) -> bool:
        """Cancel the call. False if it is answered already."""
        call, batcher = self.call, self._batcher()
        # First this: interrupted here, the item is computed for nobody. The other way round, nobody would answer it.
        if not super().cancel():
            return False
        if call is not None and batcher is not None and batcher.withdraw(call):
            self.call = None
            self.set_running_or_notify_cancel()  # for concurrent.futures.wait(); else deliver() does it
        return True

    def result(self, timeout: float | None = None) -> Any:
        """Return the result, or raise the error, once it is there; waits at most `timeout` seconds for that."""
        self.exception(timeout)  # first: a type may forbid contextlib to note its traceback
        return super().result()

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Return the error or None, once the answer is there; waits at most `timeout` seconds for that."""
        with self._blocked():
            return super().exception(timeout)

    @contextmanager
    def _blocked(self) -> Generator[None, None, None]:
        call = self.call
        batcher = self._batcher() if call is not None and get_ident() in _flushing else None
        if call is None or batcher is None:
            yield
            return
        with _blocked_on(batcher._life) as for_itself:
            if for_itself:
                batcher.answer_now(call)
            del batcher  # see __init__()
            yield


class ThreadBatch(Batch):
    """A batch that is run on a flush thread."""

    __slots__ = ("__weakref__", "_batcher", "_expects", "_life")

    def __init__(self, batcher: "ThreadBatcher", calls: Sequence[Call], reason: Reason, now: float) -> None:
        super().__init__(batcher, calls, Context().run, reason, now)
        self._batcher = batcher
        self._life = batcher._life
        self._expects = False  # the function returned a future

    def answer(self, calls: Sequence[Any], failed: int, *, done: bool) -> None:
        batcher = self._batcher
        if self._life is not batcher._life:
            return  # The function forked, and this is the child: the callers are the parent's.
        now = monotonic() if done else None
        with _lock:
            batcher._tally.answer(len(calls), failed, now)
        if self.tell is not None and now is not None:
            with _lock:
                pending, in_flight = len(batcher._buffer), batcher._tally.in_flight
            self.report(now, pending, in_flight)
        self.deliver(calls)

    def again(self, parts: Sequence[Sequence[Any]]) -> None:
        if self._life is self._batcher._life:
            self._batcher._parts.extendleft(reversed(parts))  # finish() wakes whoever is to run them

    def expect(self, future: Any) -> None:
        self._expects = True
        with _lock:
            self._batcher._blocks = False
        super().expect(future)

    def finish(self) -> None:
        batcher = self._batcher
        if self._life is batcher._life:
            ident = get_ident()
            with _lock:
                # A flush thread looks for the next batch by itself, unless it has just looked, and dropped this one as
                # it goes to sleep.
                looks = ident in batcher._threads and ident not in batcher._asleep
                if (batcher._has_no_room or batcher._parts) and not looks:
                    batcher._wake_locked()
                batcher._blocks = not self._expects
                batcher._unfinished.discard(id(self))
            if not looks:
                batcher._after_the_lock()
        # An error that the function raised knows this by the frames that called the function; who keeps the error must
        # not keep the batcher.
        self._batcher = _nobody

    def settle_future(self, future: Any) -> None:
        # The engine's thread is one of ours for the moment: what it calls back could wait for this very batch.
        with _for_now(_flushing, (*_flushing.get(get_ident(), ()), self._life)):
            super().settle_future(future)
        if get_ident() not in _flushing:
            _passed.pop(get_ident(), None)

    def __del__(self) -> None:
        if self._unanswered:  # the function's future is garbage, so it will never be done
            self.fail(BatchError(f"{self.name}() returned a future and dropped it unfinished"))
        elif self._batcher is not _nobody and id(self) in self._batcher._unfinished:  # finish() was cut short
            self.finish()


_nobody: Any = None  # the batcher of a batch that has finished


class NestedBatch(ThreadBatch):
    """A batch that the caller runs on its own thread, from inside a function, or as a finalizer inside our lock."""

    __slots__ = ("_parts",)

    def __init__(self, batcher: "ThreadBatcher", calls: Sequence[Call], reason: Reason, now: float) -> None:
        super().__init__(batcher, calls, reason, now)
        self._parts: list[Callable[[], None]] = []

    def again(self, parts: Sequence[Sequence[Any]]) -> None:
        # Later: here the error of the whole is being handled, and would become the context of theirs.
        self._parts = [partial(self._batcher._run_nested, part, "isolate") for part in parts]

    def run_parts(self) -> None:
        parts, self._parts = self._parts, []
        for run in parts:
            run()

    def settle_future(self, future: Any) -> None:
        super().settle_future(future)
        self.run_parts()

    def expect(self, future: Any) -> None:
        if _lock._is_owned():  # type: ignore[attr-defined]
            self.settle_future(future)  # waits for it here: whoever completed it would need the lock to answer
        else:
            super().expect(future)

    def finish(self) -> None:
        """It took no room."""
        self._batcher = _nobody


class ThreadBatcher:
    """Gathers the items of callers in any number of threads, and runs the function in its flush threads."""

    # _lock guards every field that _start_clean() sets. True whenever nobody holds it:
    #   1. _asleep says of each flush thread that sleeps when it wakes by itself (inf: never). Nothing is due before
    #      _wakes_at, the earliest of these; so an item that is not need not wake anybody. While there is one awake who
    #      will look, or no room for another batch, _wakes_at is -inf.
    #   2. _unfinished has the id() of each batch that was taken and has not finished, as when the function returned a
    #      future; not the batch, which nobody but that future may keep alive. While _has_no_room, whoever finishes one
    #      looks for the next, or wakes somebody who does.
    #   3. _threads are the flush threads. Those that sleep do so on _bell, which wakes one of them; it finds in _handed
    #      the batcher that it is woken for. Nothing waits before there is one.
    #   4. _short if a batch may run, and only another thread could run it now. Whoever sees it hires one.
    #   5. _parts are those of batches that failed and are to be run again, before all that waits. Their calls are in
    #      nothing else.
    # What is read without the lock, such as `_threads` or `closed`, is a hint: whoever acts on it asks again.
    # The flush thread does not wait with threading.Condition: an item that a finalizer on this very thread adds between
    # its last look at the buffer and the wait would notify nobody. _bell is a condition that cannot be missed: a lock
    # that the flush threads alone acquire and whoever wants one awake releases, early or late.

    def __init__(
        self,
        function: Callable[..., Any],
        name: str,
        options: Options,
        takes: Takes | None = None,  # None: one list
        awaitable: str | None = None,
    ) -> None:
        self.function = function
        self.name = name
        self.options = options
        # None only if no decorated function asks.
        self.takes: Takes = takes  # type: ignore[assignment]
        self.awaitable = awaitable or f"{name}.aio(item)"  # what to await instead of a call that blocks
        self.aio: Callable[..., Coroutine[Any, Any, Any]] | None = None  # once somebody asked for it
        self._grouped = takes is not None and takes.constants
        self.asks = options.ask_items or self._grouped
        self._bounded = options.max_pending is not None
        self._warned = False
        self._start_clean()
        _live[self] = None
        if _exiting:
            self._buffer.close()

    def _start_clean(self) -> None:
        self._life = object()
        self._buffer: Buffer[Call] = Buffer(self.options, grouped=self._grouped)
        self._tally = Tally()
        self._parts: deque[Sequence[Call]] = deque()
        self._unfinished: set[int] = set()
        self._has_no_room = False
        self._wakes_at = inf
        self._asleep: dict[int, float] = {}
        self._threads: dict[int, Thread] = {}
        self._short = False
        self._blocks = True  # the function did so the last time, and did not return a future
        self._bell = allocate_lock()
        self._bell.acquire()
        self._handed: list[ThreadBatcher] = []
        self._told = False  # that no further thread could be started
        self._hint = 0  # the size of batches, if it is to be said that they are never full
        self._bells: set[LockType] = set()  # of maps, which may have to read on, or to flush, when settings change

    def __del__(self) -> None:
        # Nobody can call any more. If items wait, waking the flush thread makes it keep this until they are answered.
        if not self._buffer.closed:
            if len(self._buffer):
                _dropped.add(self)
            self.close(wait=False)

    # What callers do

    def call(self, item: Any, constants: Mapping[str, Any] = NO_CONSTANTS) -> Any:
        """Block until the item is answered; return its result or raise its error."""
        if get_ident() in _flushing or _lock._is_owned():  # type: ignore[attr-defined]
            return self._call_inside(item, constants)
        if _running_loop() is not None and not self._warned:
            self._warn_on_event_loop()
        lock = allocate_lock()
        lock.acquire()
        call = Call()
        call.item, call.deliver = item, lock.release
        try:
            if self.asks:
                self._ask(call, constants)
            # _put() for one call, written out here and in put(): every caller pays for each step, 4 % for sharing it.
            if not self._threads:
                self._start_thread()
            with _lock:
                if self._buffer.closed or self._bounded:
                    self._check_open_locked(call)
                if self._buffer.add(call, monotonic()) < self._wakes_at:
                    self._wake_locked()
            if self._short:
                self._after_the_lock()
            lock.acquire()
        except BaseException:  # Ctrl-C
            self.withdraw(call)
            raise
        return call.value if call.error is None else call.outcome()

    def submit(self, item: Any, owner: object, constants: Mapping[str, Any] = NO_CONSTANTS) -> ItemFuture:
        """Return a future of the item's result, without blocking."""
        future = ItemFuture(self)
        call = future.call = FutureCall(item, future, owner)
        try:
            if self.asks:
                self._ask(call, constants)
            ident = get_ident()
            if ident in _flushing and not _delivering.get(ident):
                self._put_inside((call,))
            else:
                self._put((call,))
        except BaseException:
            future.call = None
            self.withdraw(call)
            raise
        return future

    def put(self, call: Call, constants: Mapping[str, Any] = NO_CONSTANTS) -> None:
        """Let a call wait whose caller waits in a way of its own."""
        if self.asks:
            self._ask(call, constants)
        if get_ident() in _flushing:
            self._put_inside((call,))
            return
        if not self._threads:
            self._start_thread()
        with _lock:
            if self._buffer.closed or self._bounded:
                self._check_open_locked(call)
            if self._buffer.add(call, monotonic()) < self._wakes_at:
                self._wake_locked()
        if self._short:
            self._after_the_lock()

    def map(
        self, items: Iterable[Any], owner: object, constants: Mapping[str, Any], *, chunked: bool
    ) -> Generator[Any, None, None]:
        """Yield the results of the items in order, reading at most two batches of items ahead.

        Not `chunked`: one at a time, since reading on may block (a socket, a queue).
        """
        return self._map(iter(items), owner, constants, chunked=chunked)

    def _map(
        self,
        items: Iterator[Any],
        owner: object,  # noqa: ARG002 - kept alive, as its method must answer
        constants: Mapping[str, Any],
        *,
        chunked: bool,
    ) -> Generator[Any, None, None]:
        bell = allocate_lock()
        ahead = Ahead(items, partial(_ring, bell), partial(self._ask, constants=constants) if self.asks else None)
        calls, options = ahead.calls, self.options
        with _lock:
            self._bells.add(bell)
        try:
            while True:
                while ahead.more and len(calls) <= options.batch_size:
                    if calls and not chunked and hasattr(calls[0], "error"):
                        break  # its result is there, so it does not wait for the next item to come
                    self._put_inside(ahead.read(options.batch_size if chunked else 1))
                    if not ahead.more:
                        self.flush()  # nothing of this map will join what is left
                if not calls:
                    break
                if hasattr(calls[0], "error"):
                    yield calls.popleft().outcome()
                else:
                    if options.fills_by_groups:
                        with _lock:
                            lonely = self._buffer.waits_for_company(calls[0])
                        if lonely:
                            self.flush()
                    self._acquire(bell)
            ahead.raise_error()
        finally:
            with _lock:
                self._bells.discard(bell)
            for call in calls:
                self.withdraw(call)

    def withdraw(self, call: Call) -> bool:
        """Take out a call whose caller left. False if it is in a batch already."""
        try:
            with _lock:
                waited = self._buffer.remove(call)
                if waited:
                    self._tally.cancelled += 1
                    call.error = None  # nobody waits for it any more, says _needs()
                self._look_after_leaving_locked()
        except BaseException:  # Ctrl-C
            with _lock:
                self._look_after_leaving_locked()
            raise
        finally:
            self._after_the_lock()
        return waited

    def _look_after_leaving_locked(self) -> None:
        # A caller may have been interrupted between adding its call and waking the thread, and others, who came second,
        # rely on that.
        self._wake_if_due_locked()
        if not len(self._buffer) and -inf < self._wakes_at < inf:
            self._wake_locked()  # who sleeps until it is due keeps this alive, for nothing now

    def flush(self) -> None:
        """Make what waits due now. Does not wait for the answers."""
        with _lock:
            self._buffer.flush(monotonic())
            self._wake_if_due_locked()
        self._after_the_lock()

    def close(self, *, wait: bool = True) -> None:
        """Refuse what comes, and wait until what was accepted is answered."""
        inside = _lock._is_owned()  # type: ignore[attr-defined]
        with _lock:
            threads = list(self._threads.values())
            if not self._buffer.closed:
                if threads:
                    self._wake_locked()
                self._buffer.close()  # last: if this thread is interrupted before, closing again does it all
        self._after_the_lock()
        # A finalizer inside our lock would keep the flush threads from ending.
        if wait and not inside and get_ident() not in self._threads:
            with _blocked_on(self._life) as for_itself:
                joined: list[Thread] = []
                while threads and not for_itself:
                    for thread in threads:
                        thread.join()
                    joined += threads  # meanwhile they may have hired others
                    threads = [thread for thread in self._threads.copy().values() if thread not in joined]

    @property
    def batch_size(self) -> int:
        return self.options.batch_size

    @batch_size.setter
    def batch_size(self, value: int) -> None:
        with _lock:
            self.options.batch_size = check_count(self.name, "batch_size", value)
            self._buffer.adapt()
            self._wake_if_due_locked()
            for bell in self._bells:
                _ring(bell)
        self._after_the_lock()

    @property
    def timeout(self) -> float | None:
        return self.options.timeout

    @timeout.setter
    def timeout(self, value: float | None) -> None:
        with _lock:
            self.options.timeout = check_timeout(self.name, value)
            self._wake_if_due_locked()
            for bell in self._bells:
                _ring(bell)
        self._after_the_lock()

    @property
    def stats(self) -> Stats:
        with _lock:
            return self._tally.snapshot(len(self._buffer))

    def _check(self) -> None:
        """Assert the lines above, as far as they can be seen from outside. For tests."""
        with _lock:
            self._buffer._check()
            assert self._wakes_at <= self._due_at()
            assert self._wakes_at <= self._others_wake_at()
            assert set(self._asleep) <= set(self._threads)
            assert len(self._threads) <= self.options.concurrency
            assert self._threads or not len(self._buffer)

    # How items get in

    def _ask(self, call: Call, constants: Mapping[str, Any]) -> None:
        """Find out what options want to know of a call."""
        call.group = self._buffer.group_of(self.options.ask(self.name, call, self.takes), constants)

    def _put(self, calls: Sequence[Call]) -> None:
        if not self._threads:
            self._start_thread()
        with _lock:
            now = monotonic()
            for call in calls:
                self._check_open_locked(call)
                if self._buffer.add(call, now) < self._wakes_at:
                    self._wake_locked()
        self._after_the_lock()

    def _check_open_locked(self, call: Call) -> None:
        if self._buffer.closed:
            raise self._closed_error()
        if call.limited and self._buffer.is_full:
            self._tally.refused += 1
            call.error = None  # as in withdraw()
            raise self.options.full_error(self.name)

    def _closed_error(self) -> ClosedError:
        return ClosedError(f"{self.name}() is closed{' (the interpreter is exiting)' if _exiting else ''}")

    def _start_thread(self) -> None:
        if self._buffer.closed and not self._short:
            return
        # Before the item is accepted, so that where no thread can be started nobody waits for one. Not under the lock,
        # since start() waits; so two callers may both come here, and the second one's thread is sent home.
        begun, go = allocate_lock(), allocate_lock()
        begun.acquire()
        go.acquire()
        try:
            try:
                thread = Thread(
                    target=_flush_forever,
                    args=(self._bell, begun, go, self._threads, self._handed, weakref.ref(self), self._life),
                    name=f"batchify flush thread of {self.name}()",
                    daemon=True,
                )
                Context().run(thread.start)  # on a free-threaded build it would inherit that of its first caller
            except RuntimeError as error:  # too many; or at exit, or in a subinterpreter, where none may be started
                raise RuntimeError(f"{self.name}() cannot start its flush thread: {error}") from error
            begun.acquire()  # it stands in _flushing: until then a finalizer that it runs must not wait for it
            with _lock:
                if self._short or not (self._threads or self._buffer.closed):
                    ident: Any = thread.ident
                    self._threads[ident] = thread
                    self._asleep[ident] = inf  # as good as: it finds the bell rung
                    self._short = False
                _ring(go)  # also if it is not hired
        finally:
            _ring(go)  # again, in case that Ctrl-C came first

    def _after_the_lock(self) -> None:
        """Do what must not be done while holding the lock: start another thread where a batch could run at once."""
        if _lock._is_owned():  # type: ignore[attr-defined]
            return
        self._buffer.let_go()
        # The latter two: from Python 3.12 on, no thread can be started then.
        if not self._short or _exiting or not main_thread().is_alive():
            return
        try:
            self._start_thread()
        except RuntimeError:  # those that there are will do it
            with _lock:
                self._short = False
                told, self._told = self._told, True
            if not told:
                complain("%s() runs fewer batches at once than it might", self.name)

    def _due_at(self) -> float:
        return -inf if self._parts else self._buffer.due_at

    def _wake_if_due_locked(self) -> None:
        if self._due_at() < self._wakes_at:
            self._wake_locked()

    def _wake_locked(self) -> None:
        # _wakes_at last: if this thread is interrupted before, the next caller still rings.
        self._handed.append(self)
        _ring(self._bell)
        if not self._asleep and self._blocks:
            self._short = len(self._threads) < self.options.concurrency
        self._wakes_at = -inf

    # Calls from inside the function

    def _call_inside(self, item: Any, constants: Mapping[str, Any]) -> Any:
        inside_lock = _lock._is_owned()  # type: ignore[attr-defined]
        call, lock = _blocking_call(item)
        if self.asks:
            self._ask(call, constants)
        with _blocked_on(self._life) as for_itself:
            # Run at once, here, what would wait for this very thread: for the batch it runs, or for the lock it holds;
            # and at exit what a function still needs, whose flush thread has ended.
            if for_itself or inside_lock or (_exiting and self._buffer.closed):
                self._run_nested((call,))
            else:
                self._put((call,))
            try:
                lock.acquire()
            except BaseException:  # Ctrl-C in a signal handler
                self.withdraw(call)
                raise
        return call.outcome()

    def _put_inside(self, calls: Sequence[Call]) -> None:
        if not calls:
            return
        # Not if it is a finalizer inside our lock that does not wait for the answer.
        ident = get_ident()
        if ident in _flushing and not _lock._is_owned():  # type: ignore[attr-defined]
            with _blocked_on(self._life) as for_itself:
                if for_itself:
                    for batch in batches_at_once(calls, self.options) if self.asks else (calls,):
                        self._run_nested(batch)
                    return
                passed = _passed.setdefault(ident, [])
                passed.append((self._life, calls))
                if len(passed) >= 64 and len(passed) & (len(passed) - 1) == 0:  # so it is done seldom
                    passed[:] = [each for each in passed if not _answered(each[1])]
        self._put(calls)

    def _run_nested(self, calls: Sequence[Call], reason: Reason = "nested") -> None:
        ident = get_ident()
        now = monotonic()
        with _lock:
            if self._buffer.closed and ident not in _flushing:
                raise self._closed_error()
            for call in calls:
                call.arrival = now
            self._tally.begin(reason, [now] * len(calls), now)
        # What this function submits and waits for is not a callback's.
        with _for_now(_delivering, False), _for_now(_flushing, (*_flushing.get(ident, ()), self._life)):
            batch = NestedBatch(self, calls, reason, now)
            batch.run(self.function)
            batch.run_parts()

    def answer_now(self, call: Call) -> None:
        """Answer a call for whose answer this very thread is needed, if that can be done."""
        with _lock:
            waits = self._buffer.remove(call)
        if waits:
            self._run_nested((call,))
        elif hasattr(call, "error"):  # a callback of a neighbour's future waits for it
            call.deliver_all((call,))

    def _acquire(self, lock: LockType) -> None:
        if get_ident() not in _flushing:
            lock.acquire()
        else:
            with _blocked_on(self._life):
                lock.acquire()

    def _warn_on_event_loop(self) -> None:
        self._warned = True
        warnings.warn(
            f"{self.name}() was called on the thread of a running event loop. That stops the loop until the result is "
            f"there, so that nobody on it can join the batch: use `await {self.awaitable}`",
            RuntimeWarning,
            stacklevel=4,  # the line of the user, who called __call__() or request(), which called call()
        )

    # What the flush thread does

    def _next(self, *, flushed: bool) -> ThreadBatch | float | None:
        """Return the batch to run now, or for how many seconds to sleep (inf: until woken), or None: to end."""
        ident = get_ident()
        with _lock:
            if self._life not in _flushing.get(ident, ()):
                return None  # The function forked, and this is the child.
            self._asleep.pop(ident, None)
            self._short = False
            waits = len(self._buffer) > 0 or len(self._parts) > 0
            running = len(self._unfinished)
            ends = self._buffer.closed and not waits
            self._has_no_room = running >= self.options.concurrency or (ends and running > 0)
            if self._has_no_room:
                self._wakes_at = -inf
                self._asleep[ident] = inf
                return inf
            # From here on whatever is added rings the bell, also by a finalizer on this thread.
            self._wakes_at = inf
            now = monotonic()
            batch = self._take_locked(now) if waits else None
            if batch is not None:
                self._wakes_at = -inf
                self._has_no_room = running + 1 >= self.options.concurrency
                if not self._has_no_room and self._blocks:
                    # Another batch may run beside this one: somebody else must look after what waits, and what comes.
                    self._wakes_at = self._others_wake_at()
                    self._wake_if_due_locked()
                return batch
            # Asked again: a finalizer may have submitted and closed since it was asked whether anything waits.
            if self._buffer.closed and not len(self._buffer) and not self._parts:
                return None
            wakes_at = self._buffer.due_at
            if wakes_at == inf and flushed and self.options.timeout:
                # Once after each batch it sleeps for as long as an item may wait. An item that comes meanwhile is due
                # later than that, so need not wake it to be timed: one wake-up per batch instead of two.
                wakes_at = now + self.options.timeout
            others = self._others_wake_at()
            if self._asleep and not self._blocks:
                self._threads.pop(ident)  # one thread is enough for a function that returns futures
                self._wakes_at = others
                return None  # as it ends it rings for another one, which sees to what waits
            if others <= wakes_at:
                wakes_at = inf  # one who wakes is enough
            self._wakes_at = min(wakes_at, others)
            self._asleep[ident] = wakes_at
            return max(0.0, wakes_at - now)

    def _others_wake_at(self) -> float:
        return min(self._asleep.values()) if self._asleep else inf

    def _before_a_batch(self) -> None:
        self._after_the_lock()
        if self._hint:
            with _lock:
                size, self._hint = self._hint, 0
            advise(self.name, size, self.options.batch_size, self.options.timeout)

    def _take_locked(self, now: float) -> ThreadBatch | None:
        calls: Sequence[Call] = ()
        reason: Reason = "isolate"
        try:
            if self._parts:
                calls = self._parts.popleft()
            else:
                taken = self._buffer.take(now)
                if taken is None:
                    return None
                calls, reason = taken
            batch = ThreadBatch(self, calls, reason, now)
        except BaseException:  # no memory, or from outside (PyThreadState_SetAsyncExc)
            if reason != "isolate":
                self._buffer.put_back(list(calls))
            elif calls:
                self._parts.appendleft(calls)
            raise
        arrivals = list(map(arrival_of, calls))
        self._tally.begin(reason, arrivals, now)
        if self._tally.too_few_callers(reason, arrivals, self.options.timeout):
            self._hint = len(calls)
        self._unfinished.add(id(batch))
        return batch


def _flush_forever(
    bell: LockType,
    begun: LockType,
    go: LockType,
    hired: dict[int, Thread],
    handed: list[ThreadBatcher],
    known: Callable[[], ThreadBatcher | None],
    life: object,
) -> None:
    """Sleep on `bell`, and flush the batcher, `known` weakly; if hired, once it may `go`.

    Whoever rings leaves the batcher in `handed`, which keeps it alive until a thread has looked.
    """
    ident = get_ident()
    _flushing[ident] = (life,)
    begun.release()
    batcher: ThreadBatcher | None = None
    batch: ThreadBatch | None = None
    seconds = inf
    go.acquire()
    was_hired = ident in hired
    while was_hired:
        try:
            bell.acquire(True, -1 if seconds == inf else min(seconds, TIMEOUT_MAX))
            if batcher is None:
                try:
                    batcher = handed.pop()
                except IndexError:  # nobody was handed over, or another thread has just looked after it
                    batcher = known()
                if batcher is None:
                    break  # it is garbage
            handed.clear()
            flushed = False
            while isinstance(step := batcher._next(flushed=flushed), ThreadBatch):
                batch = step
                batcher._before_a_batch()
                batch.run(batcher.function)
                batch = step = None
                _passed.pop(ident, None)
                flushed = True
            if step is None:
                break
            batcher._after_the_lock()
            seconds = step
            if seconds == inf or not len(batcher._buffer):
                # Idle: who drops the function must not find it kept alive by its own thread. An item that comes just
                # now keeps it alive by ringing, or by __del__.
                batcher = None
        except BaseException as error:  # noqa: BLE001 - from outside (PyThreadState_SetAsyncExc), or no memory
            complain("the flush thread of %s() was disturbed", batcher.name if batcher is not None else "?")
            if batch is not None:
                batch.fail(error)
            # Look again at once; but without a batcher there is nothing to look at until somebody hands one over.
            seconds = 0.0 if batcher is not None or handed else inf
    _flushing.pop(ident, None)
    _passed.pop(ident, None)
    if ident in hired:  # else others go on, and one of them may just have been handed the batcher
        handed.clear()
    _ring(bell)  # for the next one to end, or to look after what waits
    if batcher is not None:
        _dropped.discard(batcher)
        batcher = None  # an error that the function raised knows this frame, and may be kept


@contextmanager
def _for_now(table: dict[int, T], entry: T) -> Generator[None, None, None]:
    """Set this thread's entry for the time being."""
    with _put_back(table):
        table[get_ident()] = entry
        yield


@contextmanager
def _blocked_on(awaited: object) -> Generator[bool, None, None]:
    """Tell others that this thread waits for the batcher of that life; yields whether it would wait for itself."""
    ident = get_ident()
    held = _flushing.get(ident)
    if held is None:
        yield False
        return
    with _put_back(_waits_for):
        with _lock:
            for_itself = _needs(awaited, held)
            if not for_itself:
                _waits_for[ident] = awaited
        yield for_itself


def _needs(awaited: object, held: tuple[object, ...]) -> bool:
    """Whether what is awaited can be answered only when one of the held ones goes on."""
    seen: set[object] = set()
    todo = [awaited]
    while todo:
        life = todo.pop()
        if life in held:
            return True
        if life not in seen:
            seen.add(life)
            for ident, lives in _flushing.copy().items():
                if life in lives:
                    todo += [passed_to for passed_to, calls in tuple(_passed.get(ident, ())) if not _answered(calls)]
                    if ident in _waits_for:
                        todo.append(_waits_for[ident])
    return False


def _answered(calls: Sequence[Call]) -> bool:
    return all(hasattr(call, "error") for call in calls)


@contextmanager
def _put_back(table: dict[int, T]) -> Generator[None, None, None]:
    """At the end, put this thread's entry back as it was."""
    ident = get_ident()
    before = table.get(ident)
    try:
        yield
    finally:
        if before is None:
            table.pop(ident, None)
        else:
            table[ident] = before


def _running_loop() -> object:
    """Return the event loop that runs on this thread, or None. Does not import asyncio: without it no loop can run."""
    global _running_loop
    find = getattr(sys.modules.get("asyncio"), "_get_running_loop", None)  # None as well: it is being imported now
    if find is None:
        return None
    _running_loop = find  # from now on every call asks asyncio at once
    return find()


def _blocking_call(item: Any) -> tuple[Call, LockType]:
    """Make a call, and the lock that its caller sleeps on."""
    lock = allocate_lock()
    lock.acquire()
    call = Call()
    call.item, call.deliver = item, lock.release
    return call, lock


def _ring(bell: LockType) -> None:
    try:
        bell.release()
    except RecursionError:  # a RuntimeError too; it did not ring
        raise
    except RuntimeError:  # it is rung already
        pass


def _forget_parent() -> None:
    """Begin anew in a forked child: the lock may be held by a thread that does not exist here."""
    global _lock
    _lock = RLock()
    _flushing.clear()
    _waits_for.clear()
    _passed.clear()
    _delivering.clear()
    for batcher in _all_batchers():
        closed = batcher._buffer.closed
        batcher._start_clean()
        if closed:
            batcher._buffer.close()


def _close_all() -> None:
    """Answer at exit what was accepted. A function that has items to answer may still call another one."""
    global _exiting
    _exiting = True
    # The latest first, since it is likelier that it calls an earlier one than the other way round.
    for batcher in reversed(_all_batchers()):
        batcher.close()


def _all_batchers() -> list[ThreadBatcher]:
    return [batcher for reference in _live.keyrefs() if (batcher := reference()) is not None] + list(_dropped)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_parent)
atexit.register(_close_all)
