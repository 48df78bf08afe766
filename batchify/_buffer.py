"""Which items form the next batch, and when is it due?

A plain data structure. It reads no clock (`now` is an argument), takes no lock and calls nobody: whoever owns it guards
it.

A batch is due when it is full, when its oldest item has waited `timeout` seconds, or when somebody said so with
`flush()` or `close()`. It is taken only when its owner has a worker free for it; until then items go on joining.
Source: TensorFlow's `shared_batch_scheduler.h`, which also takes a batch as late as it can.
"""

import math
from collections import OrderedDict
from contextlib import suppress
from operator import attrgetter
from typing import Generic, Protocol, TypeVar

from ._stats import Reason


class Arrival(Protocol):
    """What the buffer must know of a call."""

    arrival: float


C = TypeVar("C", bound=Arrival)
# In place of a comprehension, in whose loop Ctrl-C makes CPython 3.13.0 leave a `with` block without leaving its lock.
arrival_of = attrgetter("arrival")


class Buffer(Generic[C]):
    """Calls that wait and are in no batch yet, in order of arrival.

    A finalizer or a signal handler may enter any method while the same thread is at any line of another. So every
    method changes the fields by single atomic steps, and looks again after each.
    """

    # True at every line:
    #   1. _waiting stands in order of arrival, so the first call has the earliest deadline.
    #   2. A call is here or was handed out by take() or remove(), never both.
    #   3. closed goes from False to True once and never back; then _flushed_at is inf.
    #   4. What arrived until _flushed_at is due.
    # A dict rather than a deque because a call that leaves must be found among thousands; an OrderedDict because a
    # plain dict walks over the holes of all it has given away to find its first key.

    def __init__(self, name: str, batch_size: int, timeout: float | None) -> None:
        self.batch_size = check_batch_size(name, batch_size)
        self.timeout = check_timeout(name, timeout)
        self._waiting: OrderedDict[C, None] = OrderedDict()
        self._flushed_at = -math.inf
        self.closed = False

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, call: C, now: float) -> float:
        """Let a call wait. `now` must not be smaller than at any earlier call.

        Returns the latest moment at which a batch with this call is due: -inf for now, inf if something must happen
        first.
        """
        call.arrival = now
        self._waiting[call] = None
        if len(self._waiting) >= self.batch_size or now <= self._flushed_at:
            return -math.inf
        return math.inf if self.timeout is None else now + self.timeout

    def remove(self, call: C) -> bool:
        """Take out a call whose caller left. False if it is not here (any more)."""
        # pop() with a default: a finalizer may take it out between a look and a `del`.
        return self._waiting.pop(call, _GONE) is not _GONE

    def flush(self, now: float) -> None:
        """Make all that arrived until now due."""
        if self._waiting:  # else only what comes at this very moment would be, as some clocks stand still for long
            self._flushed_at = max(now, self._flushed_at)

    def close(self) -> None:
        """Make all that waits due, and all that may still come."""
        self._flushed_at = math.inf
        self.closed = True

    @property
    def due_at(self) -> float:
        """The moment at which take() will have a batch: -inf if it has one now, inf if something must happen first."""
        if len(self._waiting) >= self.batch_size:
            return -math.inf
        oldest = self._oldest()
        if oldest is None:
            return math.inf
        if oldest.arrival <= self._flushed_at:
            return -math.inf
        return math.inf if self.timeout is None else oldest.arrival + self.timeout

    def take(self, now: float) -> tuple[list[C], Reason] | None:
        """Hand out the next batch, oldest first, and why it is due; None if none is due yet."""
        waiting, reason = self._waiting, self._reason(now)
        if reason is None:
            return None
        calls: list[C] = []
        try:
            with suppress(KeyError):  # Empty. Counted beforehand it could be wrong: a finalizer may cancel meanwhile.
                for _ in range(self.batch_size):
                    calls.append(waiting.popitem(False)[0])  # noqa: PERF401 - what was popped must not be lost
            return (calls, reason) if calls else None
        except BaseException:  # Ctrl-C
            self.put_back(calls)
            raise

    def put_back(self, calls: list[C]) -> None:
        """Let calls that take() handed out wait again, before all others."""
        for call in reversed(calls):
            self._waiting[call] = None
            self._waiting.move_to_end(call, last=False)

    def _reason(self, now: float) -> Reason | None:
        if len(self._waiting) >= self.batch_size:
            return "full"
        due_at = self.due_at
        if due_at == -math.inf:
            return "close" if self.closed else "flush"
        return "timeout" if due_at <= now else None

    def _oldest(self) -> C | None:
        while True:
            try:
                return next(iter(self._waiting), None)
            except RuntimeError:  # a finalizer changed it between iter() and next()
                continue

    def _check(self) -> None:
        """Assert lines 1 and 3 above. For tests, which know what was handed out."""
        arrivals = [call.arrival for call in self._waiting]
        assert arrivals == sorted(arrivals)
        assert not self.closed or self._flushed_at == math.inf


_GONE = object()


def check_batch_size(name: str, value: int) -> int:
    """Return `value` if it can be the batch size of the function of that name, else raise what says why not."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name}(): batch_size must be an int of at least 1, got {value!r}")
    if value < 1:
        raise ValueError(f"{name}(): batch_size must be at least 1, got {value}")
    return value


def check_timeout(name: str, value: float | None) -> float | None:
    """Return `value` in seconds if it can be the timeout of the function of that name, else raise what says why not."""
    if value is None:
        return None
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise TypeError(f"{name}(): timeout must be a number of seconds or None, got {value!r}")
    if not 0 <= value < math.inf:
        raise ValueError(f"{name}(): timeout must be at least 0 and finite (None waits without end), got {value}")
    return float(value)
