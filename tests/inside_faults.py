"""Faults for `slow/schedules/`: the library as it would be with a bug; and what a scheduler of threads must replace.

Beside `inside.py` the only file that may touch a private name. A fault is behaviour that is replaced from outside, as
long as its block lasts: something is left out, or looks different, or is done without the lock, while a thread is in a
certain function. Another construction of the library needs other bodies here, and may drop faults that it cannot have.
"""

import functools
import sys
from _thread import get_ident
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from math import inf
from typing import Any
from unittest.mock import patch
from weakref import WeakKeyDictionary, ref

from batchify import _batch, _buffer, _threads
from batchify._buffer import Buffer
from batchify._threads import ItemFuture, ThreadBatch, ThreadBatcher

Block = AbstractContextManager[Any]
Fault = Callable[[], Block]
Function = tuple[Any, str]  # a class or a module, and a name in it


# What a scheduler of threads replaces


@contextmanager
def other_threading(*, complain: Callable[..., object], **names: Any) -> Iterator[None]:
    """Let the library use these in place of what it imported from `threading`, `_thread` and `time`.

    It logs errors by `complain()`, and knows nothing of the threads and functions of before.
    """
    fresh: dict[str, Any] = {"_flushing": {}, "_waits_for": {}, "_passed": {}, "_delivering": {}, "_dropped": set()}
    with (
        patch.multiple(_threads, **fresh, **names, complain=complain, _lock=None, _live=WeakKeyDictionary()),
        patch.object(_batch, "complain", complain),
    ):
        yield


def begin_anew(lock: Any) -> None:
    """Forget all threads and functions, and use that re-entrant lock; at the beginning of each schedule."""
    _threads._lock = _make_lock(lock)
    _threads._live = WeakKeyDictionary()
    for table in _tables_of_threads():
        table.clear()


def remembers_a_thread() -> bool:
    """Whether anything is left of a thread; when all have ended, nothing should be."""
    return any(_tables_of_threads())


def close_what_is_left() -> None:
    """Let the functions of a schedule that failed not close themselves when they are garbage."""
    for batcher in _threads._all_batchers():
        batcher._buffer.close()


def _tables_of_threads() -> tuple[Any, ...]:
    return _threads._flushing, _threads._waits_for, _threads._passed, _threads._delivering, _threads._dropped


# Ways to replace behaviour


@contextmanager
def _threads_in(function: Function) -> Iterator[Callable[[], bool]]:
    """Yield what says whether this thread is in the function."""
    depth: Counter[int] = Counter()

    def counted(original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def run(*args: Any, **kwargs: Any) -> Any:
            ident = get_ident()
            depth[ident] += 1
            try:
                return original(*args, **kwargs)
            finally:
                depth[ident] -= 1

        return run

    with _replaced(*function, counted):
        yield lambda: depth[get_ident()] > 0


def _replaced(owner: Any, name: str, make: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Block:
    """Replace a function by what is made of it."""
    return patch.object(owner, name, make(getattr(owner, name)))


@contextmanager
def _left_out(owner: Any, name: str, *, within: Function, result: Any = None) -> Iterator[None]:
    """A call of a function is left out in another one; `result` stands for what it would have returned."""

    def left_out(original: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **kwargs: result if inside() else original(*args, **kwargs)

    with _threads_in(within) as inside, _replaced(owner, name, left_out):
        yield


@contextmanager
def _looks_like(
    owner: type, attribute: str, value: Any, *, within: Function, when: Callable[[], bool] = lambda: True
) -> Iterator[None]:
    """A look at an attribute is left out in a function, which finds `value` in its place."""

    class Look:
        def __get__(self, it: Any, _: type) -> Any:
            return value if inside() and when() else it.__dict__[attribute]

        def __set__(self, it: Any, new: Any) -> None:
            it.__dict__[attribute] = new

    with _threads_in(within) as inside, patch.object(owner, attribute, Look(), create=True):
        yield


def _made_with(attribute: str, make: Callable[[], Any]) -> Block:
    """Each batcher has a table that somebody else made."""

    def made(start_clean: Callable[..., Any]) -> Callable[..., Any]:
        def start(it: Any) -> None:
            start_clean(it)
            setattr(it, attribute, make())

        return start

    return _replaced(ThreadBatcher, "_start_clean", made)


def _holds_the_lock() -> bool:
    return bool(_threads._lock._is_owned())  # type: ignore[attr-defined]


class _NoLock:
    """A lock that is no lock for a thread in a certain function."""

    def __init__(self, lock: Any, inside: Callable[[], bool]) -> None:
        self._lock = lock
        self._inside = inside

    def __enter__(self) -> None:
        if not self._inside():
            self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        if not self._inside():
            self._lock.release()

    def _is_owned(self) -> bool:
        return bool(self._lock._is_owned())


def _make_lock(lock: Any) -> Any:
    """Return what is used for a lock; a fault replaces this."""
    return lock


@contextmanager
def _no_lock(*, within: Function) -> Iterator[None]:
    with (
        _threads_in(within) as inside,
        patch.object(sys.modules[__name__], "_make_lock", lambda lock: _NoLock(lock, inside)),
    ):
        yield


# Faults: one flush thread


def bell_that_does_not_ring() -> Block:
    """Who wakes a flush thread does all that belongs to it, but does not ring."""
    return _left_out(_threads, "_ring", within=(ThreadBatcher, "_wake_locked"))


def call_that_asks_too_early() -> Block:
    """A call looks whether the function is closed, and only then takes the lock."""
    return _asks_too_early("call")


def submit_that_asks_too_early() -> Block:
    """As before, of a future."""
    return _asks_too_early("_put")


@contextmanager
def _asks_too_early(method: str) -> Iterator[None]:
    def too_early(original: Callable[..., Any]) -> Callable[..., Any]:
        def run(it: Any, *args: Any, **kwargs: Any) -> Any:
            if it._buffer.closed:
                raise it._closed_error()
            return original(it, *args, **kwargs)

        return run

    with (
        _left_out(ThreadBatcher, "_check_open_locked", within=(ThreadBatcher, method)),
        _replaced(ThreadBatcher, method, too_early),
    ):
        yield


def sleeper_that_says_too_late_when_to_wake_it() -> Block:
    """A flush thread that looks, lets the lock go, and only then says from when on it must be woken."""

    def too_late(look: Callable[..., Any]) -> Callable[..., Any]:
        def run(it: Any, *, flushed: bool) -> Any:
            with _threads._lock:
                before = it._wakes_at
                found = look(it, flushed=flushed)
                after, it._wakes_at = it._wakes_at, before
            with _threads._lock:
                it._wakes_at = after
            return found

        return run

    return _replaced(ThreadBatcher, "_next", too_late)


def look_without_the_lock() -> Block:
    """A flush thread looks at what waits, and takes a batch, without the lock."""
    return _no_lock(within=(ThreadBatcher, "_next"))


def figures_without_the_lock() -> Block:
    """What was answered is counted without the lock."""
    return _no_lock(within=(ThreadBatch, "answer"))


def flush_that_wakes_nobody() -> Block:
    return _left_out(ThreadBatcher, "_wake_if_due_locked", within=(ThreadBatcher, "flush"))


def cancel_that_counts_an_item_in_a_batch() -> Block:
    """An item counts as cancelled whether it waited or was taken already."""

    def counted(withdraw: Callable[..., Any]) -> Callable[..., Any]:
        def run(it: Any, call: Any) -> bool:
            waited: bool = withdraw(it, call)
            if not waited:
                with _threads._lock:
                    it._tally.cancelled += 1
            return waited

        return run

    return _replaced(ThreadBatcher, "withdraw", counted)


def cancel_that_does_not_ask() -> Block:
    """A future says that it is cancelled, though it may be answered."""
    return _replaced(ItemFuture, "cancel", lambda cancel: lambda future: cancel(future) or True)


@contextmanager
def second_thread_that_is_kept() -> Iterator[None]:
    """Of two callers who both start the first flush thread, the second one does not find that of the first."""

    class LooksEmpty(dict[Any, Any]):
        def __bool__(self) -> bool:
            return len(self) > 0 and not inside()

    with _threads_in((ThreadBatcher, "_start_thread")) as inside, _made_with("_threads", LooksEmpty):
        yield


def thread_that_is_kept_after_close() -> Block:
    """A flush thread stays that was started before the function was closed, and is there only afterwards."""
    return _looks_like(Buffer, "closed", False, within=(ThreadBatcher, "_start_thread"), when=_holds_the_lock)


def map_that_does_not_hear_of_a_batch_size() -> Block:
    """A map does not read on when `batch_size` grows."""

    class Forgets(set[Any]):
        def add(self, _: Any) -> None:
            """Do nothing."""

    return _made_with("_bells", Forgets)


def lock_that_is_let_go_before_the_note() -> Block:
    """Of two threads that look whether the other one waits for them, and note that they wait, neither may see it."""

    def let_go(needs: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            found = needs(*args)
            _threads._lock.release()
            _threads._lock.acquire()
            return found

        return run

    return _replaced(_threads, "_needs", let_go)


def function_that_is_dropped_with_its_items() -> Block:
    """When nobody holds a function any more, what waits in it is forgotten."""
    return patch.object(ThreadBatcher, "__del__", lambda _: None)


def sleeping_thread_that_keeps_its_function() -> Block:
    """An idle flush thread holds its function, so that nobody can drop it."""

    def keeping(flush_forever: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any) -> None:
            kept = [arg() for arg in args if isinstance(arg, ref)]
            flush_forever(*args)
            kept.clear()

        return run

    return _replaced(_threads, "_flush_forever", keeping)


# Faults: batches that run elsewhere


def batch_that_ends_unheard() -> Block:
    """Nobody is woken when a batch ends at an engine, for which others had to wait."""
    return _left_out(ThreadBatcher, "_wake_locked", within=(ThreadBatch, "finish"))


def batch_that_ends_without_the_lock() -> Block:
    return _no_lock(within=(ThreadBatch, "finish"))


# Faults: several flush threads


def lack_of_a_thread_that_is_overlooked() -> Block:
    """No second thread is started for what the first one cannot take, as it is in the function."""
    return _looks_like(ThreadBatcher, "_short", False, within=(ThreadBatcher, "_after_the_lock"))


def lack_of_a_thread_that_is_overlooked_before_a_batch() -> Block:
    """As before, by who takes a batch and leaves another one."""
    return _left_out(ThreadBatcher, "_after_the_lock", within=(ThreadBatcher, "_before_a_batch"))


def sleeper_that_counts_as_asleep_for_ever() -> Block:
    """A thread that is awake is still taken for one that can be woken."""

    class Forgets(dict[Any, Any]):
        def pop(self, *_: Any) -> None:
            """Do nothing."""

    return _made_with("_asleep", Forgets)


@contextmanager
def rest_that_is_left_to_nobody() -> Iterator[None]:
    """Who takes a batch lets no other thread look after what waits, and comes."""

    def alone(look: Callable[..., Any]) -> Callable[..., Any]:
        def run(it: Any, *, flushed: bool) -> Any:
            with _threads._lock:
                found = look(it, flushed=flushed)
                if isinstance(found, ThreadBatch):
                    it._wakes_at = -inf
            return found

        return run

    with (
        _left_out(ThreadBatcher, "_wake_if_due_locked", within=(ThreadBatcher, "_next")),
        _replaced(ThreadBatcher, "_next", alone),
    ):
        yield


def second_batch_that_is_left_to_nobody() -> Block:
    """Who takes a batch does not look whether another one is due."""
    return _left_out(ThreadBatcher, "_wake_if_due_locked", within=(ThreadBatcher, "_next"))


def one_thread_too_many() -> Block:
    """A thread is started for an item though there are as many as may be."""

    def wakes(wake: Callable[..., Any]) -> Callable[..., Any]:
        def run(it: Any) -> None:
            wake(it)
            it._short = it._short or not it._asleep

        return run

    return _replaced(ThreadBatcher, "_wake_locked", wakes)


def one_batch_too_many() -> Block:
    """One of the batches in flight is not counted."""

    class OneLess(set[Any]):
        def __len__(self) -> int:
            return max(0, super().__len__() - 1)

    return _made_with("_unfinished", OneLess)


@contextmanager
def thread_that_ends_unheard() -> Iterator[None]:
    """A flush thread that ends does not wake the next one."""

    def silent(ring: Callable[..., Any]) -> Callable[..., Any]:
        return lambda bell: None if inside() and get_ident() not in _threads._flushing else ring(bell)

    with _threads_in((_threads, "_flush_forever")) as inside, _replaced(_threads, "_ring", silent):
        yield


def thread_that_ends_while_a_batch_runs() -> Block:
    """After `close()` a flush thread ends as soon as nothing waits, though a batch may yet fail, and be run again."""

    def hasty(look: Callable[..., Any]) -> Callable[..., Any]:
        def run(it: Any, *, flushed: bool) -> Any:
            with _threads._lock:
                if it._buffer.closed and not len(it._buffer) and not it._parts:
                    it._asleep.pop(get_ident(), None)
                    return None
                return look(it, flushed=flushed)

        return run

    return _replaced(ThreadBatcher, "_next", hasty)


# Faults: halves of batches that failed


def halves_that_wake_nobody() -> Block:
    """Halves are left to whoever comes, if there was room while their batch ran."""
    return _looks_like(ThreadBatcher, "_parts", (), within=(ThreadBatch, "finish"))


def halves_that_are_not_seen() -> Block:
    """A flush thread that looks for a batch does not see that there are halves."""
    return _looks_like(ThreadBatcher, "_parts", (), within=(ThreadBatcher, "_next"))


def halves_that_are_not_due() -> Block:
    """Halves are due only when something else is."""
    return patch.object(ThreadBatcher, "_due_at", lambda it: it._buffer.due_at)


# Faults: what is due


def limit_that_makes_nothing_due() -> Block:
    """The last item that `max_pending` lets in does not make all due, as far as those know who pass items."""

    def added(add: Callable[..., Any]) -> Callable[..., Any]:
        def run(it: Any, *args: Any) -> Any:
            due_at = add(it, *args)
            return due_at if len(it) >= it._options.batch_size else inf

        return run

    return _replaced(Buffer, "add", added)


def full_group_that_makes_nothing_due() -> Block:
    return patch.object(_buffer, "heappush", lambda *_: None)


def group_that_stays_full() -> Block:
    """A group that was full is taken for full, though one of it left."""
    return _left_out(Buffer, "_is_full", within=(Buffer, "_oldest_full"), result=True)
