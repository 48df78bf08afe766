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
from collections.abc import Callable, Coroutine, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from contextvars import Context
from functools import partial
from math import inf
from threading import TIMEOUT_MAX, RLock, Thread
from time import monotonic
from typing import Any, TypeVar

from ._batch import Ahead, Batch, Call, complain
from ._buffer import Buffer, arrival_of, check_batch_size, check_timeout
from ._errors import BatchError, ClosedError
from ._stats import Stats, Tally

T = TypeVar("T")

# One lock for all batchers, held for about a microsecond at a time. It is re-entrant, since a finalizer or a signal
# handler may call in while its own thread holds it; and it is one, since it may then call another batcher, which in
# another thread is just calling this one.
# Never done while holding it, but for such a call: calling the function, delivering, logging, starting or joining a
# thread.
_lock = RLock()

# A call made on a thread that runs or answers a batch may have to wait for that very thread:
#   1. f's function runs on f's flush thread: _flushing says that this thread works for f.
#   2. It calls g, and will wait: _waits_for says that this thread waits for g.
#   3. g's function, on g's flush thread, calls f. A thread that works for f waits for g, and this one works for g: it
#      would wait for itself, so the call is run at once, right there (see NestedBatch).
# Each thread has entries of its own, since several may work for f at once: what one of them waits for must not go when
# another one's wait ends.
# A batcher stands in both by its `_life`, a token that is new after a fork and does not keep the batcher alive. A flush
# thread stands in _flushing as long as it lives; the thread of an engine, while it answers our batch.
_flushing: dict[int, tuple[object, ...]] = {}
_waits_for: dict[int, object] = {}
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
                    call.deliver()  # if it was Ctrl-C, in a main thread that completes the future of an engine

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
        with self._blocked():
            return super().result(timeout)

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

    __slots__ = ("__weakref__", "_batcher", "_life")

    def __init__(self, batcher: "ThreadBatcher", calls: Sequence[Call]) -> None:
        super().__init__(batcher.name, calls, Context().run)
        self._batcher = batcher
        self._life = batcher._life

    def answer(self, calls: Sequence[Any], failed: int, *, done: bool) -> None:
        if self._life is not self._batcher._life:
            return  # The function forked, and this is the child: the callers are the parent's.
        with _lock:
            self._batcher._tally.answer(len(calls), failed, done=done)
        self.deliver(calls)

    def finish(self) -> None:
        batcher = self._batcher
        if self._life is batcher._life:
            with _lock:
                if batcher._sleeps_until_finish:
                    batcher._wake_locked()
                batcher._unfinished.discard(id(self))
        self._let_go()

    def _let_go(self) -> None:
        # An error that the function raised knows this by the frames that called the function; who keeps the error must
        # not keep the batcher.
        self._batcher = _nobody

    def settle_future(self, future: Any) -> None:
        # The engine's thread is one of ours for the moment: what it calls back could wait for this very batch.
        with _for_now(_flushing, (*_flushing.get(get_ident(), ()), self._life)):
            super().settle_future(future)

    def __del__(self) -> None:
        if self._unanswered:  # the function's future is garbage, so it will never be done
            self.fail(BatchError(f"{self.name}() returned a future and dropped it unfinished"))
        elif self._batcher is not _nobody and id(self) in self._batcher._unfinished:  # Ctrl-C
            self.finish()


_nobody: Any = None  # the batcher of a batch that has finished


class NestedBatch(ThreadBatch):
    """A batch that the caller runs on its own thread, from inside a function, or as a finalizer inside our lock."""

    __slots__ = ()

    def expect(self, future: Any) -> None:
        if _lock._is_owned():  # type: ignore[attr-defined]
            self.settle_future(future)  # waits for it here: whoever completed it would need the lock to answer
        else:
            super().expect(future)

    def finish(self) -> None:
        """It took no room."""
        self._let_go()


class ThreadBatcher:
    """Gathers the items of callers in any number of threads, and runs the function in its flush thread."""

    # _lock guards every field that _start_clean() sets. True whenever nobody holds it:
    #   1. While the flush thread sleeps, it wakes by itself at _wakes_at (inf: never), and nothing is due before; so an
    #      item that is not need not wake it. While it is awake _wakes_at is -inf.
    #   2. _unfinished has the id() of each batch that was taken and has not finished, as when the function returned a
    #      future; not the batch, which nobody but that future may keep alive. While _sleeps_until_finish, the flush
    #      thread sleeps until one has, and items do not wake it.
    #   3. _thread is the only flush thread. It sleeps on _bell, and finds in _handed the batcher that it is woken for.
    #      Nothing waits before it is there.
    # What is read without the lock, such as `_thread is None` or `closed`, is a hint: whoever acts on it asks again.
    # The flush thread does not wait with threading.Condition: an item that a finalizer on this very thread adds between
    # its last look at the buffer and the wait would notify nobody. _bell is a condition of one waiter that cannot be
    # missed: a lock that the flush thread alone acquires and whoever wants it awake releases, early or late.

    def __init__(
        self, function: Callable[[list[Any]], Any], name: str, buffer: Buffer[Call], awaitable: str | None = None
    ) -> None:
        self.function = function
        self.name = name
        self.awaitable = awaitable or f"{name}.aio(item)"  # what to await instead of a call that blocks
        self.aio: Callable[[Any, Any], Coroutine[Any, Any, Any]] | None = None  # once somebody asked for it
        self._warned = False
        self._start_clean(buffer)
        _live[self] = None
        if _exiting:
            buffer.close()

    def _start_clean(self, buffer: Buffer[Call]) -> None:
        self._life = object()
        self._buffer = buffer
        self._tally = Tally()
        self._wakes_at = inf
        self._unfinished: set[int] = set()
        self._sleeps_until_finish = False
        self._thread: Thread | None = None
        self._bell = allocate_lock()
        self._handed: list[ThreadBatcher] = []
        self._bells: set[LockType] = set()  # of maps, which may have to read on when batch_size changes

    def __del__(self) -> None:
        # Nobody can call any more. If items wait, waking the flush thread makes it keep this until they are answered.
        if not self._buffer.closed:
            if len(self._buffer):
                _dropped.add(self)
            self.close(wait=False)

    # What callers do

    def call(self, item: Any) -> Any:
        """Block until the item is answered; return its result or raise its error."""
        if get_ident() in _flushing or _lock._is_owned():  # type: ignore[attr-defined]
            return self._call_inside(item)
        if _running_loop() is not None and not self._warned:
            self._warn_on_event_loop()
        lock = allocate_lock()
        lock.acquire()
        call = Call(item, lock.release)
        try:
            # _put() for one call, written out here and in put(): every caller pays for each step, 4 % for sharing it.
            if self._thread is None:
                self._start_thread()
            with _lock:
                if self._buffer.closed:
                    raise self._closed_error()
                if self._buffer.add(call, monotonic()) < self._wakes_at:
                    self._wake_locked()
            lock.acquire()
        except BaseException:  # Ctrl-C
            self.withdraw(call)
            raise
        return call.value if call.error is None else call.outcome()

    def submit(self, item: Any, owner: object) -> ItemFuture:
        """Return a future of the item's result, without blocking."""
        future = ItemFuture(self)
        call = future.call = FutureCall(item, future, owner)
        try:
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

    def put(self, call: Call) -> None:
        """Let a call wait whose caller waits in a way of its own."""
        if get_ident() in _flushing:
            self._put_inside((call,))
            return
        if self._thread is None:
            self._start_thread()
        with _lock:
            if self._buffer.closed:
                raise self._closed_error()
            if self._buffer.add(call, monotonic()) < self._wakes_at:
                self._wake_locked()

    def map(self, items: Iterable[Any], owner: object) -> Generator[Any, None, None]:
        """Yield the results of the items in order, reading at most two batches of items ahead."""
        # Reading on may block where there is no length (a socket, a queue), so that is done one item at a time.
        return self._map(iter(items), owner, chunked=hasattr(items, "__len__"))

    def _map(self, items: Iterator[Any], owner: object, *, chunked: bool) -> Generator[Any, None, None]:  # noqa: ARG002
        bell = allocate_lock()
        ahead = Ahead(items, partial(_ring, bell))
        calls, buffer = ahead.calls, self._buffer
        with _lock:
            self._bells.add(bell)
        try:
            while True:
                while ahead.more and len(calls) <= buffer.batch_size:
                    if calls and not chunked and hasattr(calls[0], "error"):
                        break  # its result is there, so it does not wait for the next item to come
                    self._put_inside(ahead.read(buffer.batch_size if chunked else 1))
                    if not ahead.more:
                        self.flush()  # nothing of this map will join what is left
                if not calls:
                    break
                if hasattr(calls[0], "error"):
                    yield calls.popleft().outcome()
                else:
                    self._acquire(bell)
            ahead.raise_error()
        finally:
            with _lock:
                self._bells.discard(bell)
            for call in calls:
                self.withdraw(call)

    def withdraw(self, call: Call) -> bool:
        """Take out a call whose caller left. False if it is in a batch already."""
        with _lock:
            # Also where it is not there: its caller may have been interrupted between adding it and waking the thread,
            # and others, who came second, rely on that.
            self._wake_if_due_locked()
            if not self._buffer.remove(call):
                return False
            self._tally.cancelled += 1
            return True

    def flush(self) -> None:
        """Make what waits due now. Does not wait for the answers."""
        with _lock:
            self._buffer.flush(monotonic())
            self._wake_if_due_locked()

    def close(self, *, wait: bool = True) -> None:
        """Refuse what comes, and wait until what was accepted is answered."""
        inside = _lock._is_owned()  # type: ignore[attr-defined]
        with _lock:
            thread = self._thread
            if not self._buffer.closed:
                if thread is not None:
                    self._wake_locked()
                self._buffer.close()  # last: if this thread is interrupted before, closing again does it all
        # A finalizer inside our lock would keep the flush thread from ending.
        if wait and thread is not None and not inside and thread.ident != get_ident():
            with _blocked_on(self._life) as for_itself:
                if not for_itself:
                    thread.join()

    @property
    def batch_size(self) -> int:
        return self._buffer.batch_size

    @batch_size.setter
    def batch_size(self, value: int) -> None:
        with _lock:
            self._buffer.batch_size = check_batch_size(self.name, value)
            self._wake_if_due_locked()
            for bell in self._bells:
                _ring(bell)

    @property
    def timeout(self) -> float | None:
        return self._buffer.timeout

    @timeout.setter
    def timeout(self, value: float | None) -> None:
        with _lock:
            self._buffer.timeout = check_timeout(self.name, value)
            self._wake_if_due_locked()

    @property
    def stats(self) -> Stats:
        with _lock:
            return self._tally.snapshot(len(self._buffer))

    def _check(self) -> None:
        """Assert the lines above, as far as they can be seen from outside. For tests."""
        with _lock:
            self._buffer._check()
            assert self._wakes_at <= self._buffer.due_at
            assert not self._sleeps_until_finish or self._wakes_at == -inf
            assert self._thread is not None or not len(self._buffer)

    # How items get in

    def _put(self, calls: Sequence[Call]) -> None:
        if self._thread is None:
            self._start_thread()
        with _lock:
            if self._buffer.closed:
                raise self._closed_error()
            now = monotonic()
            for call in calls:
                if self._buffer.add(call, now) < self._wakes_at:
                    self._wake_locked()

    def _closed_error(self) -> ClosedError:
        return ClosedError(f"{self.name}() is closed{' (the interpreter is exiting)' if _exiting else ''}")

    def _start_thread(self) -> None:
        if self._buffer.closed:
            return
        # Before the item is accepted, so that where no thread can be started nobody waits for one. Not under the lock,
        # since start() waits; so two callers may both come here, and the second one's thread is sent home.
        bell, begun = allocate_lock(), allocate_lock()
        bell.acquire()
        begun.acquire()
        handed: list[ThreadBatcher] = []
        thread: Thread | None = None
        try:
            try:
                thread = Thread(
                    target=_flush_forever,
                    args=(bell, begun, handed, self._life),
                    name=f"batchify flush thread of {self.name}()",
                    daemon=True,
                )
                Context().run(thread.start)  # on a free-threaded build it would inherit that of its first caller
            except RuntimeError as error:  # too many; or at exit, or in a subinterpreter, where none may be started
                raise RuntimeError(f"{self.name}() cannot start its flush thread: {error}") from error
            begun.acquire()  # it stands in _flushing: until then a finalizer that it runs must not wait for it
            with _lock:
                if self._thread is None and not self._buffer.closed:
                    self._bell, self._handed = bell, handed
                    self._thread = thread
        finally:
            if self._thread is not thread:
                _ring(bell)

    def _wake_if_due_locked(self) -> None:
        if self._buffer.due_at < self._wakes_at:
            self._wake_locked()

    def _wake_locked(self) -> None:
        # _wakes_at last: if this thread is interrupted before, the next caller still rings.
        self._handed.append(self)
        _ring(self._bell)
        self._wakes_at = -inf

    # Calls from inside the function

    def _call_inside(self, item: Any) -> Any:
        inside_lock = _lock._is_owned()  # type: ignore[attr-defined]
        call, lock = _blocking_call(item)
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
        if get_ident() in _flushing and not _lock._is_owned():  # type: ignore[attr-defined]
            with _blocked_on(self._life) as for_itself:
                if for_itself:
                    self._run_nested(calls)
                    return
        self._put(calls)

    def _run_nested(self, calls: Sequence[Call]) -> None:
        ident = get_ident()
        with _lock:
            if self._buffer.closed and ident not in _flushing:
                raise self._closed_error()
            self._tally.begin("nested", [0.0] * len(calls), 0.0)
        # What this function submits and waits for is not a callback's.
        with _for_now(_delivering, False), _for_now(_flushing, (*_flushing.get(ident, ()), self._life)):
            NestedBatch(self, calls).run(self.function)

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
        with _lock:
            if self._life not in _flushing.get(get_ident(), ()):
                return None  # The function forked, and this is the child.
            self._sleeps_until_finish = len(self._unfinished) > 0
            if self._sleeps_until_finish:
                self._wakes_at = -inf
                return inf
            # From here on whatever is added rings the bell, also by a finalizer on this thread.
            self._wakes_at = inf
            now = monotonic()
            taken = self._buffer.take(now) if len(self._buffer) else None
            if taken is not None:
                self._wakes_at = -inf
                calls, reason = taken
                try:
                    batch = ThreadBatch(self, calls)
                except BaseException:  # no memory, or from outside (PyThreadState_SetAsyncExc)
                    self._buffer.put_back(calls)
                    raise
                self._tally.begin(reason, list(map(arrival_of, calls)), now)
                self._unfinished.add(id(batch))
                return batch
            if self._buffer.closed and not len(self._buffer):
                return None
            wakes_at = self._buffer.due_at
            if wakes_at == inf and flushed and self._buffer.timeout:
                # Once after each batch it sleeps for as long as an item may wait. An item that comes meanwhile is due
                # later than that, so need not wake it to be timed: one wake-up per batch instead of two.
                wakes_at = now + self._buffer.timeout
            self._wakes_at = wakes_at
            return max(0.0, wakes_at - now)


def _flush_forever(bell: LockType, begun: LockType, handed: list[ThreadBatcher], life: object) -> None:
    """Sleep on `bell`, and flush the batcher that whoever rang it left in `handed`."""
    ident = get_ident()
    _flushing[ident] = (life,)
    begun.release()
    batcher: ThreadBatcher | None = None
    batch: ThreadBatch | None = None
    known: Callable[[], ThreadBatcher | None] = lambda: None  # noqa: E731 - the batcher, weakly
    seconds = inf
    while True:
        try:
            bell.acquire(True, -1 if seconds == inf else min(seconds, TIMEOUT_MAX))
            if batcher is None:
                batcher = handed.pop() if handed else known()
                if batcher is None:
                    break  # sent home, or the batcher is garbage
            handed.clear()
            flushed = False
            while isinstance(step := batcher._next(flushed=flushed), ThreadBatch):
                batch = step
                batch.run(batcher.function)
                batch = None
                flushed = True
            if step is None:
                break
            seconds = step
            if seconds == inf or not len(batcher._buffer):
                # Idle: who drops the function must not find it kept alive by its own thread. An item that comes just
                # now keeps it alive by ringing, or by __del__.
                known = weakref.ref(batcher)
                batcher = None
        except BaseException as error:  # noqa: BLE001 - from outside (PyThreadState_SetAsyncExc), or no memory
            complain("the flush thread of %s() was disturbed", batcher.name if batcher is not None else "?")
            if batch is not None:
                batch.fail(error)
            # Look again at once; but without a batcher there is nothing to look at until somebody hands one over.
            seconds = 0.0 if batcher is not None or handed else inf
    handed.clear()
    _flushing.pop(ident, None)
    if batcher is not None:
        _dropped.discard(batcher)


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
            for ident, waited_for in _waits_for.copy().items():
                if life in _flushing.get(ident, ()):
                    todo.append(waited_for)
    return False


@contextmanager
def _put_back(table: dict[int, T]) -> Generator[None, None, None]:
    """At the end, put this thread's entry back as it was."""
    ident = get_ident()
    before = table.get(ident)
    try:
        yield
    finally:
        try:
            _set(table, ident, before)
        finally:  # again, in case that Ctrl-C came first
            _set(table, ident, before)


def _set(table: dict[int, T], ident: int, entry: T | None) -> None:
    if entry is None:
        table.pop(ident, None)
    else:
        table[ident] = entry


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


def _forget_parent() -> None:
    """Begin anew in a forked child: the lock may be held by a thread that does not exist here."""
    global _lock
    _lock = RLock()
    _flushing.clear()
    _waits_for.clear()
    _delivering.clear()
    for batcher in _all_batchers():
        old = batcher._buffer
        batcher._start_clean(Buffer(batcher.name, old.batch_size, old.timeout))
        if old.closed:
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
