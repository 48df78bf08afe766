"""Which items form the next batch, and when is it due?

A plain data structure. It reads no clock (`now` is an argument), takes no lock and calls nobody: whoever owns it guards
it.

Only calls of one group share a batch: the oldest of the group, as many as `batch_size` and `max_weight` allow. A batch
is due when it is full, when its oldest item has waited `timeout` seconds, when somebody said so with `flush()` or
`close()`, or when `max_pending` items wait, not counting those of maps, so that nobody else may join. Of those that are
due, the one whose oldest item has waited longest is taken first; and it is taken only when its owner has a worker free
for it, until when items go on joining. Source: TensorFlow's `shared_batch_scheduler.h`, which also takes a batch as
late as it can.
"""

import math
from _weakref import _remove_dead_weakref as remove_if_dead  # type: ignore[attr-defined]  # as in weakref.py
from collections import OrderedDict
from collections.abc import Hashable, Iterable, Mapping
from contextlib import suppress
from heapq import heappop, heappush
from itertools import count
from operator import attrgetter
from typing import Any, Generic, Protocol, TypeVar
from weakref import ref

from ._options import Options
from ._stats import Reason


class Waits(Protocol):
    """What the buffer must know of a call; of its group and weight only where there are any."""

    arrival: float
    group: "Group"
    weight: float
    limited: bool  # whether it counts against max_pending


C = TypeVar("C", bound=Waits)
# In place of comprehensions, in whose loop Ctrl-C makes CPython 3.13.0 leave a `with` block without leaving its lock.
arrival_of = attrgetter("arrival")


class Group:
    """Calls that may share a batch, in order of arrival. Lives as long as any call of it."""

    __slots__ = ("__weakref__", "calls", "constants", "key", "listed", "weight")

    def __init__(self, key: Hashable = None, constants: Mapping[str, Any] | None = None) -> None:
        self.key = key  # what reports call it
        self.constants: Mapping[str, Any] = constants or {}  # keyword arguments of the function for these items
        self.calls: OrderedDict[Any, None] = OrderedDict()
        # Of all calls together, or of the first ones, if these make it full; NaN if that must be counted anew. Too much
        # after two entered each other: then a batch is cut early.
        self.weight = math.nan
        self.listed = False  # among those that are full


class Buffer(Generic[C]):
    """Calls that wait and are in no batch yet.

    A finalizer or a signal handler may enter any method while the same thread is at any line of another. So every
    method changes the fields by single atomic steps, and looks again after each.
    """

    # True at every line:
    #   1. _waiting stands in order of arrival, so the first call has the earliest deadline.
    #   2. A call waits if it is in _waiting. Then it is in its group too; what is only in a group is passed over.
    #   3. If there are groups, each that is full is in _full, under an arrival that is not later than that of its
    #      oldest call. What else is in there, or under an earlier arrival, is mended when it comes first.
    #   4. closed goes from False to True once and never back; then _flushed_at is inf.
    #   5. What arrived until _flushed_at is due.
    #   6. _limited has those of the calls that wait which count against max_pending, if there is such a limit.
    # Dicts rather than deques because a call that leaves must be found among thousands; OrderedDicts because a plain
    # dict walks over the holes of all it has given away to find its first key.

    def __init__(self, options: Options, *, grouped: bool = False) -> None:
        self._options = options
        self._waiting: OrderedDict[C, None] = OrderedDict()
        self._only = None if grouped or options.group_by is not None else Group()
        if self._only is not None:
            self._only.calls = self._waiting
        self._groups: dict[Hashable, ref[Group]] = {}
        self._full: list[tuple[float, int, Group]] = []  # a heap
        self._popped: list[Group] = []  # see let_go()
        self._tickets = count()  # so that no two entries of the heap are equal, and no groups are compared
        self._limited: set[C] = set()
        self._room = math.inf if options.max_pending is None else options.max_pending
        self._simple = self._only is not None and options.max_weight is None and options.max_pending is None
        self._flushed_at = -math.inf
        self.closed = False

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def is_full(self) -> bool:
        """Whether `max_pending` items wait."""
        return len(self._limited) >= self._room

    def group_of(self, key: Hashable, constants: Mapping[str, Any]) -> Group | None:
        """Return the one group of all calls with an equal key and these constants; None if there are no groups.

        Compares keys, and so calls what is the user's: not to be called under a lock. Without one, any thread may call
        it at any time, as each step is atomic, and none takes away what another has just put there.
        """
        if self._only is not None:
            return None
        whole: Hashable = key
        if constants:
            # With their types, since 1, 1.0 and True are equal, but not the same to the function.
            values = tuple(constants.values())
            whole = (key, values, tuple(map(type, values)))
            key = (key, *values)
        groups, found = self._groups, self._groups.get(whole)
        while found is None or (group := found()) is None:
            remove_if_dead(groups, whole)
            fresh = Group(key, constants)
            found = groups.setdefault(whole, ref(fresh, lambda _: remove_if_dead(groups, whole)))
        return group

    def add(self, call: C, now: float) -> float:
        """Let a call wait. `now` must not be smaller than at any earlier call.

        Returns the latest moment at which a batch with this call is due: -inf for now, inf if something must happen
        first.
        """
        call.arrival = now
        if self._simple:  # what follows, written out for it: most are, and everybody pays for each step
            self._waiting[call] = None
            if len(self._waiting) >= self._options.batch_size or now <= self._flushed_at:
                return -math.inf
            timeout = self._options.timeout
            return math.inf if timeout is None else now + timeout
        group = self._only
        if group is None:
            group = call.group
            group.calls[call] = None
        self._waiting[call] = None
        if call.limited and self._room != math.inf:
            self._limited.add(call)
        if self._options.max_weight is not None:
            group.weight += call.weight  # NaN stays NaN
        if self._note_if_full(group) or self.is_full or now <= self._flushed_at:
            return -math.inf
        timeout = self._options.timeout
        return math.inf if timeout is None else now + timeout

    def remove(self, call: C) -> bool:
        """Take out a call whose caller left. False if it does not wait here (any more)."""
        self._limited.discard(call)
        # pop() with a default: a finalizer may take it out between a look and a `del`.
        if self._waiting.pop(call, _GONE) is _GONE:
            return False
        if self._only is None:
            call.group.calls.pop(call, None)
        (self._only or call.group).weight = math.nan
        return True

    def waits_for_company(self, call: C) -> bool:
        """Whether a call waits here that only others of its group will make due, or a timeout, or a flush."""
        return call in self._waiting and call.arrival > self._flushed_at and not self._is_full(self._only or call.group)

    def flush(self, now: float) -> None:
        """Make all that arrived until now due."""
        if self._waiting:  # else only what comes at this very moment would be, as some clocks stand still for long
            self._flushed_at = max(now, self._flushed_at)

    def close(self) -> None:
        """Make all that waits due, and all that may still come."""
        self._flushed_at = math.inf
        self.closed = True

    def adapt(self) -> None:
        """Take notice that options have changed."""
        groups: dict[Group, None] = {}  # in order
        for call in _listed(self._waiting):
            groups[self._only or call.group] = None
        for group in groups:
            self._note_if_full(group)

    def let_go(self) -> None:
        """Forget groups that are not full any more, if nobody else has them: calls destructors that are the user's."""
        self._popped.clear()

    @property
    def due_at(self) -> float:
        """The moment at which take() will have a batch: -inf if it has one now, inf if something must happen first."""
        oldest, full = _first(self._waiting), self._oldest_full()
        if oldest is None:
            return math.inf
        if full is not None or self.is_full or oldest.arrival <= self._flushed_at:
            return -math.inf
        timeout = self._options.timeout
        return math.inf if timeout is None else oldest.arrival + timeout

    def take(self, now: float) -> tuple[list[C], Reason] | None:
        """Hand out the next batch, oldest first, and why it is due; None if none is due yet."""
        group, reason = self._next(now)
        if group is None:
            return None
        calls: list[C] = []
        try:
            if self._simple:
                # Until it is empty. Counted beforehand it could be wrong: a finalizer may cancel meanwhile.
                try:  # suppress() takes three calls
                    for _ in range(self._options.batch_size):
                        calls.append(self._waiting.popitem(False)[0])  # noqa: PERF401 - what was popped must not be lost
                except KeyError:
                    pass
            else:
                self._pick(group, calls)
                group.weight = math.nan
                self._oldest_full()  # mends the list of those that are, which would grow where nobody asks for due_at
            return (calls, reason) if calls else None
        except BaseException:  # no memory, or an exception that another thread threw into this one
            self.put_back(calls)
            raise

    def _pick(self, group: Group, calls: list[C]) -> None:
        """Move the calls of the group's next batch into the list."""
        most, weight = self._options.max_weight, 0.0
        while len(calls) < self._options.batch_size:
            call: C | None = _first(group.calls)
            if call is None:
                break
            if most is not None and calls and weight + call.weight > most:
                break
            calls.append(call)  # first, or it could be lost
            self._limited.discard(call)
            if self._waiting.pop(call, _GONE) is _GONE:
                calls.pop()  # it has left
            elif most is not None:
                weight += call.weight
            if self._only is None:
                group.calls.pop(call, None)

    def put_back(self, calls: list[C]) -> None:
        """Let calls that take() handed out wait again, in their old order."""
        for call in reversed(calls):
            group = self._only or call.group
            for place in (group.calls, self._waiting):
                place[call] = None
                place.move_to_end(call, last=False)
            if call.limited and self._room != math.inf:
                self._limited.add(call)
            group.weight = math.nan
            group.listed = False  # it may be listed under a later arrival
            self._note_if_full(group)
        if self._only is None:
            for call in sorted(_listed(self._waiting), key=arrival_of):
                self._waiting.move_to_end(call)

    def _next(self, now: float) -> tuple[Group | None, Reason]:
        """Return the group of the batch to be taken, if any is due, and why."""
        oldest = _first(self._waiting)
        if oldest is None:
            return None, "full"
        of_oldest = self._only or oldest.group
        if self._is_full(of_oldest) or self.is_full:
            return of_oldest, "full"
        if oldest.arrival <= self._flushed_at:
            return of_oldest, "close" if self.closed else "flush"
        if self._options.timeout is not None and oldest.arrival + self._options.timeout <= now:
            return of_oldest, "timeout"
        return self._oldest_full(), "full"

    # What is full

    def _is_full(self, group: Group) -> bool:
        if len(group.calls) >= self._options.batch_size:
            return True
        if self._options.max_weight is None:
            return False
        while group.weight != group.weight:
            size, weight = len(group.calls), 0.0
            with suppress(RuntimeError):  # a finalizer changed it meanwhile
                for call in group.calls:
                    weight += call.weight
                    if weight >= self._options.max_weight:
                        break  # there may be very many
                group.weight = weight
            if len(group.calls) != size:
                group.weight = math.nan
        return group.weight >= self._options.max_weight

    def _note_if_full(self, group: Group) -> bool:
        if not self._is_full(group):
            return False
        if not group.listed and group is not self._only:
            oldest = _first(group.calls)
            if oldest is not None:
                # In this order: interrupted in between, it is listed twice, which does no harm.
                heappush(self._full, (oldest.arrival, next(self._tickets), group))
                group.listed = True
        return True

    def _oldest_full(self) -> Group | None:
        """Return the full group whose oldest call has waited longest."""
        if self._only is not None:
            return self._only if self._is_full(self._only) else None
        while self._full:
            try:
                arrival, _, group = self._full[0]
                group.listed = False  # first: a finalizer that fills it from here on lists it once more
                oldest = _first(group.calls)
                if oldest is not None and oldest.arrival <= arrival and self._is_full(group):
                    group.listed = True
                    return group
                self._note_if_full(group)
                popped = heappop(self._full)[2]
                self._popped.append(popped)
            except IndexError:  # a finalizer has just emptied it
                continue
            if popped is not group:  # a finalizer put it there meanwhile
                popped.listed = False
                self._note_if_full(popped)
        return None

    def _check(self) -> None:
        """Assert lines 1 to 4 and 6 above. For tests, which know what was handed out."""
        arrivals = [call.arrival for call in self._waiting]
        assert arrivals == sorted(arrivals)
        assert not self.closed or self._flushed_at == math.inf
        assert self._limited == {call for call in self._waiting if call.limited and self._room != math.inf}
        listed = {id(group) for _, _, group in self._full}
        for call in self._waiting:
            group = self._only or call.group
            assert call in group.calls
            weights = (call.weight for call in group.calls)
            most = self._options.max_weight
            assert most is None or math.isnan(group.weight) or group.weight >= min(sum(weights), most)
            assert id(group) in listed or group is self._only or not self._is_full(group)


_GONE = object()


def batches_at_once(calls: Iterable[Any], options: Options) -> list[list[Any]]:
    """Divide calls that are not to wait into batches, by the same rules."""
    by_group: dict[Group | None, list[Any]] = {}
    batches: list[list[Any]] = []
    weights: dict[Group | None, float] = {}
    for call in calls:
        batch = by_group.setdefault(call.group, [])
        weight = 0.0 if options.max_weight is None else call.weight
        weights[call.group] = weights.get(call.group, 0.0) + weight
        if len(batch) >= options.batch_size or weights[call.group] > (options.max_weight or 0.0):
            batch = by_group[call.group] = []
            weights[call.group] = weight
        if not batch:
            batches.append(batch)
        batch.append(call)
    return batches


def _first(calls: "OrderedDict[C, None]") -> C | None:
    while True:
        try:
            return next(iter(calls), None)
        except RuntimeError:  # a finalizer changed it between iter() and next()
            continue


def _listed(calls: Iterable[C]) -> list[C]:
    while True:
        try:
            return list(calls)
        except RuntimeError:
            continue
