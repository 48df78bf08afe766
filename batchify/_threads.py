"""How do threads wait, and who runs a batch?

The flush thread of a batcher:
  - starts with the first item;
  - ends after `close()`, when all that was accepted is answered, or when its batcher is garbage;
  - keeps its batcher alive while items wait or run, and nothing of it while idle;
  - after a fork: the child has none and an empty buffer, and starts its own with its first item; the items that waited
    stay the parent's;
  - at interpreter exit: what was accepted is answered before `atexit` is through, what comes later is refused. It is a
    daemon thread, so that it does not hold up the exit when it is idle.
"""

import atexit
import os
import sys
import warnings
import weakref
from _thread import LockType, allocate_lock, get_ident
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import suppress
from contextvars import Context
from functools import partial
from itertools import islice
from math import inf
from threading import TIMEOUT_MAX, RLock, Thread
from time import monotonic
from typing import Any

from ._batch import Batch, Call, log
from ._buffer import Buffer, check_batch_size, check_timeout
from ._errors import ClosedError
from ._stats import Stats, Tally

# Threads that run or answer a batch, each with the lock of its batcher (which does not keep the batcher alive). A
# blocking call made on one of them may have to wait for that very thread. _waiting_for says for which other batcher
# such a thread waits, so that functions that call each other in a ring are found as well.
_flushing: dict[int, Any] = {}
_waiting_for: dict[int, "ThreadBatcher"] = {}
# Looking around the ring and joining it is one step, or two threads would close it at the same time.
_nesting = RLock()
_exiting = False
# Threads that are completing a future.
_delivering: set[int] = set()

# For fork and exit. In order of creation.
_live: "weakref.WeakKeyDictionary[ThreadBatcher, None]" = weakref.WeakKeyDictionary()


class FutureCall(Call):
    """A call that answers a future."""

    __slots__ = ("future",)

    def __init__(self, item: Any, future: "ItemFuture") -> None:
        self.item = item
        self.future = future

    def deliver(self) -> None:
        future = self.future
        future.withdraw = None  # knows this call: a cycle
        # Callbacks of the future run in here. What they submit must wait its turn, or a chain of them, each submitting
        # the next, would become a recursion.
        ident = get_ident()
        _delivering.add(ident)
        try:
            # False means cancelled. True means that it no longer can be: no gap between the look and the answer.
            if future.set_running_or_notify_cancel():
                if self.error is None:
                    future.set_result(self.result)
                else:
                    future.set_exception(self.error)
        finally:
            _delivering.discard(ident)


class ItemFuture(Future[Any]):
    """The future of one item. Cancelling it takes the item out of the buffer, or else drops the answer."""

    withdraw: Callable[[], bool] | None = None

    def cancel(self) -> bool:
        """Cancel the call. False if it is answered already."""
        withdraw, self.withdraw = self.withdraw, None
        # First this: interrupted here, the item is computed for nobody. The other way round, nobody would answer it.
        if not super().cancel():
            return False
        if withdraw is not None and withdraw():
            self.set_running_or_notify_cancel()  # for concurrent.futures.wait(); else deliver() does it
        return True


class ThreadBatch(Batch):
    """A batch that is run on a thread."""

    __slots__ = ("_batcher", "_lock")

    def __init__(self, batcher: "ThreadBatcher", calls: Sequence[Call]) -> None:
        super().__init__(batcher.name, calls)
        self._batcher = batcher
        self._lock = batcher._lock

    def answer(self, calls: Sequence[Call], failed: int, *, done: bool) -> None:
        if self._lock is not self._batcher._lock:
            return  # The function forked, and this is the child: the callers are the parent's.
        with self._lock:
            self._batcher._tally.answer(len(calls), failed, done=done)
        for call in calls:
            try:
                call.deliver()
            except BaseException:  # noqa: BLE001 - by a callback of a future; the neighbours must hear all the same
                log.exception("a callback of a future of %s() raised", self.name)

    def finish(self) -> None:
        batcher = self._batcher
        if self._lock is batcher._lock:
            with self._lock:
                batcher._in_flight -= 1
                if batcher._crowded:
                    batcher._wake_locked()

    def settle_future(self, future: Any) -> None:
        # The engine's thread is one of ours for the moment: what it calls back could wait for this very batch.
        ident = get_ident()
        before = _flushing.get(ident)
        _flushing[ident] = self._lock
        try:
            super().settle_future(future)
        finally:
            if before is None:
                del _flushing[ident]
            else:
                _flushing[ident] = before


class ThreadBatcher:
    """Gathers the items of callers in any number of threads, and runs the function in its flush thread."""

    # _lock guards every field that _start_clean() sets, and _tally. True whenever nobody holds it:
    #   1. _buffer keeps what it promises.
    #   2. While the flush thread sleeps, it wakes by itself at _wakes_at (inf: never); so an item that is not due
    #      before that need not wake it. While it is awake _wakes_at is -inf.
    #   3. _in_flight batches have been taken and have not finished. While _crowded, the flush thread sleeps until one
    #      has, and items do not wake it.
    #   4. _thread is the only flush thread, _bell and _kept are those that it sleeps on.
    # Re-entrant, since a finalizer or a signal handler may call in while its own thread holds it. For the same reason
    # the flush thread does not wait with threading.Condition: an item that a finalizer on this very thread adds between
    # its last look at the buffer and the wait would notify nobody. _bell is a condition of one waiter that cannot be
    # missed: a lock that the flush thread alone acquires and whoever wants it awake releases, early or late.
    # Never done while holding it: calling the function, delivering, logging, starting or joining a thread.

    def __init__(self, function: Callable[[list[Any]], Any], name: str, buffer: Buffer[Call]) -> None:
        self.function = function
        self.name = name
        self._warned = False
        self._start_clean(buffer)
        _live[self] = None

    def _start_clean(self, buffer: Buffer[Call]) -> None:
        self._lock = RLock()
        self._buffer = buffer
        self._tally = Tally()
        self._wakes_at = inf
        self._in_flight = 0
        self._crowded = False
        self._thread: Thread | None = None
        self._bell = allocate_lock()
        self._kept: list[ThreadBatcher | None] = []

    def __del__(self) -> None:
        # Only the owner's reference is gone: if items wait, waking the flush thread makes it keep this until the end.
        if not self._buffer.closed:
            self.close(wait=False)

    # What callers do

    def call(self, item: Any) -> Any:
        """Block until the item is answered; return its result or raise its error."""
        if get_ident() in _flushing or self._lock._is_owned():  # type: ignore[attr-defined]
            return self._call_nested(item)
        if _running_loop() is not None and not self._warned:
            self._warn_on_event_loop()
        call, lock = _blocking_call(item)
        try:
            if self._thread is None:
                self._start_thread()
            # _put() for one item, written out, since everybody pays for each step here.
            with self._lock:
                if self._buffer.closed:
                    raise self._closed_error()
                if self._buffer.add(call, monotonic()) < self._wakes_at:
                    self._wake_locked()
            lock.acquire()
        except BaseException:  # Ctrl-C
            self.withdraw(call)
            raise
        return call.result if call.error is None else call.outcome()

    def submit(self, item: Any) -> ItemFuture:
        """Return a future of the item's result, without blocking."""
        future = ItemFuture()
        call = FutureCall(item, future)
        # Weakly: a future that nobody will ever complete must not keep the batcher from noticing that.
        future.withdraw = partial(_withdraw, weakref.ref(self), call)
        ident = get_ident()
        inside = ident in _flushing and ident not in _delivering and not self._lock._is_owned()  # type: ignore[attr-defined]
        if inside and self._would_wait_for(ident):
            self._run_nested([call])
        else:
            self._put((call,))
        return future

    def map(self, items: Iterable[Any]) -> Iterator[Any]:
        """Yield the results of the items in order, reading at most two batches of items ahead."""
        # Reading on may block where there is no length (a socket, a queue), so that is done one item at a time.
        return self._map(iter(items), chunked=hasattr(items, "__len__"))

    def _map(self, items: Iterator[Any], *, chunked: bool) -> Iterator[Any]:
        ahead: deque[tuple[Call, LockType]] = deque()
        more = True
        try:
            while True:
                while more and len(ahead) <= self._buffer.batch_size:
                    length = self._buffer.batch_size if chunked else 1
                    read = [_blocking_call(item) for item in islice(items, length)]
                    ahead.extend(read)
                    self._put_or_run_nested([call for call, _ in read])
                    more = len(read) == length
                    if not more:
                        self.flush()  # nothing of this map will join what is left
                if not ahead:
                    return
                call, lock = ahead[0]
                lock.acquire()
                ahead.popleft()
                yield call.result if call.error is None else call.outcome()
        finally:
            for call, _ in ahead:
                self.withdraw(call)

    def withdraw(self, call: Call) -> bool:
        """Take out a call whose caller left. False if it is in a batch already."""
        with self._lock:
            # Also where it is not there: its caller may have been interrupted between adding it and waking the thread,
            # and others, who came second, rely on that.
            self._wake_if_due_locked()
            if not self._buffer.remove(call):
                return False
            self._tally.cancelled += 1
            return True

    def flush(self) -> None:
        """Make what waits due now. Does not wait for the answers."""
        with self._lock:
            self._buffer.flush(monotonic())
            self._wake_if_due_locked()

    def close(self, *, wait: bool = True) -> None:
        """Refuse what comes, and wait until what was accepted is answered."""
        with self._lock:
            thread = self._thread
            if thread is not None and not self._buffer.closed:
                self._wake_locked()
            self._buffer.close()
        ident = get_ident()
        # Called from inside the function, or by a finalizer inside our lock, it would wait for itself.
        inside = self._lock._is_owned() or (ident in _flushing and self._would_wait_for(ident))  # type: ignore[attr-defined]
        if wait and thread is not None and not inside:
            thread.join()

    @property
    def batch_size(self) -> int:
        return self._buffer.batch_size

    @batch_size.setter
    def batch_size(self, value: int) -> None:
        with self._lock:
            self._buffer.batch_size = check_batch_size(self.name, value)
            self._wake_if_due_locked()

    @property
    def timeout(self) -> float | None:
        return self._buffer.timeout

    @timeout.setter
    def timeout(self, value: float | None) -> None:
        with self._lock:
            self._buffer.timeout = check_timeout(self.name, value)
            self._wake_if_due_locked()

    @property
    def stats(self) -> Stats:
        with self._lock:
            return self._tally.snapshot(len(self._buffer))

    # How items get in

    def _put(self, calls: Sequence[Call]) -> None:
        if self._thread is None:
            self._start_thread()
        with self._lock:
            if self._buffer.closed:
                raise self._closed_error()
            now = monotonic()
            for call in calls:
                if self._buffer.add(call, now) < self._wakes_at:
                    self._wake_locked()

    def _closed_error(self) -> ClosedError:
        return ClosedError(f"{self.name}() is closed")

    def _start_thread(self) -> None:
        if self._buffer.closed:
            return
        # Before the item is accepted, so that where no thread can be started nobody waits for one. Not under the lock,
        # since start() waits; so two callers may both come here, and the second one's thread is sent home.
        bell = allocate_lock()
        bell.acquire()
        kept: list[ThreadBatcher | None] = []
        thread = Thread(
            target=_flush_forever, args=(bell, kept), name=f"batchify flush thread of {self.name}()", daemon=True
        )
        try:
            Context().run(thread.start)  # on a free-threaded build it would inherit the context of its first caller
            with self._lock:
                if self._thread is None and not self._buffer.closed:
                    self._thread, self._bell, self._kept = thread, bell, kept
        finally:
            if self._thread is not thread:
                kept.append(None)
                _ring(bell)

    def _wake_if_due_locked(self) -> None:
        if self._buffer.due_at < self._wakes_at:
            self._wake_locked()

    def _wake_locked(self) -> None:
        self._wakes_at = -inf
        self._kept.append(self)
        _ring(self._bell)

    # Calls from inside the function

    def _call_nested(self, item: Any) -> Any:
        call, lock = _blocking_call(item)
        ident = get_ident()
        with _nesting:
            # No flush thread, but here all the same: a finalizer or signal handler inside our lock.
            nested = ident not in _flushing or self._would_wait_for(ident) or (_exiting and self._buffer.closed)
            if not nested:
                _waiting_for[ident] = self
        try:
            if nested:
                self._run_nested([call])
            else:
                self._put((call,))
            lock.acquire()
        finally:
            _waiting_for.pop(ident, None)
        return call.outcome()

    def _put_or_run_nested(self, calls: Sequence[Call]) -> None:
        ident = get_ident()
        if calls and ident in _flushing and self._would_wait_for(ident):
            self._run_nested(calls)
        else:
            self._put(calls)

    def _run_nested(self, calls: Sequence[Call]) -> None:
        with self._lock:
            if self._buffer.closed and get_ident() not in _flushing:
                raise self._closed_error()
            self._tally.begin("nested", [0.0] * len(calls), 0.0)
            self._in_flight += 1
        ThreadBatch(self, calls).run(self.function)

    def _would_wait_for(self, ident: int) -> bool:
        """Whether an answer of this batcher needs that flush thread, which is busy, to go on."""
        batcher: ThreadBatcher | None = self
        while batcher is not None and batcher._lock is not _flushing[ident]:
            thread = batcher._thread
            batcher = _waiting_for.get(thread.ident) if thread is not None and thread.ident is not None else None
        return batcher is not None

    def _warn_on_event_loop(self) -> None:
        self._warned = True
        warnings.warn(
            f"{self.name}() was called on the thread of a running event loop. That stops the loop until the result is "
            f"there, so that nobody on it can join the batch: use `await {self.name}.aio(item)`",
            RuntimeWarning,
            stacklevel=4,
        )

    # What the flush thread does

    def _next(self, *, flushed: bool) -> ThreadBatch | float | None:
        """Return the batch to run now, or for how many seconds to sleep (inf: until woken), or None: to end."""
        if _flushing.get(get_ident()) is not self._lock:
            return None  # The function forked, and this is the child.
        with self._lock:
            # From here on whatever is added rings the bell, also by a finalizer on this thread.
            self._wakes_at = inf
            self._crowded = self._in_flight > 0
            if self._crowded:
                self._wakes_at = -inf
                return inf
            now = monotonic()
            taken = self._buffer.take(now)
            if taken is not None:
                self._wakes_at = -inf
                self._in_flight += 1
                calls, reason = taken
                self._tally.begin(reason, [call.arrival for call in calls], now)
                return ThreadBatch(self, calls)
            if self._buffer.closed:
                return None
            wakes_at = self._buffer.due_at
            if wakes_at == inf and flushed and self._buffer.timeout:
                # Whoever comes while this sleeps as long as an item may wait, need not wake it to be told when to wake:
                # one wake-up per batch instead of two. It does so once and then sleeps until the next item.
                wakes_at = now + self._buffer.timeout
            self._wakes_at = wakes_at
            return max(0.0, wakes_at - now)


def _flush_forever(bell: LockType, kept: list[ThreadBatcher | None]) -> None:
    """Sleep on `bell`, and flush the batcher that whoever rang it left in `kept`; None there means: end."""
    ident = get_ident()
    batcher: ThreadBatcher | None = None
    batch: ThreadBatch | None = None
    seconds = inf
    while True:
        try:
            bell.acquire(True, -1 if seconds == inf else min(seconds, TIMEOUT_MAX))
            if batcher is None:
                if not kept:
                    continue  # rung for what was done before it went to sleep
                batcher = kept.pop()
                if batcher is None:
                    break
                _flushing[ident] = batcher._lock
            kept.clear()
            flushed = False
            while isinstance(step := batcher._next(flushed=flushed), ThreadBatch):
                batch = step
                batch.run(batcher.function)
                flushed = True
            batch = None
            if step is None:
                break
            seconds = step
            if seconds == inf:
                batcher = None  # idle: who drops the function must not find it kept alive by its own thread
        except BaseException as error:  # noqa: BLE001 - from outside (PyThreadState_SetAsyncExc), or no memory
            log.exception("the flush thread of %s() was disturbed", batcher.name if batcher is not None else "?")
            if batch is not None:
                batch.fail(error)
            seconds = 0.0
    kept.clear()
    _flushing.pop(ident, None)


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
    return Call(item, lock.release), lock


def _ring(bell: LockType) -> None:
    with suppress(RuntimeError):  # it is rung already
        bell.release()


def _withdraw(reference: "weakref.ref[ThreadBatcher]", call: Call) -> bool:
    batcher = reference()
    return batcher is not None and batcher.withdraw(call)


def _forget_parent() -> None:
    """Begin anew in a forked child: a lock may be held by a thread that does not exist here."""
    global _nesting
    _flushing.clear()
    _waiting_for.clear()
    _delivering.clear()
    _nesting = RLock()
    for batcher in list(_live):
        old = batcher._buffer
        batcher._start_clean(Buffer(batcher.name, old.batch_size, old.timeout))
        batcher._buffer.closed = old.closed


def _close_all() -> None:
    """Answer at exit what was accepted. A function that has items to answer may still call another one."""
    global _exiting
    _exiting = True
    # The latest first, since it is likelier that it calls an earlier one than the other way round.
    for batcher in reversed(list(_live)):
        batcher.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_parent)
atexit.register(_close_all)
