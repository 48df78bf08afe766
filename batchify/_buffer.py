"""Which calls form the next batch, and when is it due?

An ordinary data structure, which its owner alone touches. It reads no clock: `now` is an argument, and each caller
stamps the `arrival` of its call.

A batch is due when it is full, when its oldest item has waited `timeout` seconds, when somebody said so with `flush()`,
`drain()` or `close()`, or when `max_pending` items wait, not counting those of maps. Of the batches that are due, the
one whose oldest item has waited longest is taken first. It is taken only when its owner has a turn free for it; until
then items go on joining. Source: TensorFlow's `shared_batch_scheduler.h`, which also takes a batch as late as it can.
"""

from bisect import bisect_left, insort
from collections import defaultdict, deque
from collections.abc import Collection
from contextlib import suppress
from heapq import heappop, heappush, heapreplace
from itertools import accumulate, chain, count, islice, repeat, takewhile
from math import inf
from operator import attrgetter, delitem
from typing import Any

from ._options import Options
from ._stats import Reason, Tally

arrival_of = attrgetter("arrival")
order_of = attrgetter("arrival", "number")
weight_of = attrgetter("weight")
limited_of = attrgetter("limited")

# A call as this file sees it: `item`, `arrival`, has_left(), `limited`, and where options ask for them `key`,
# `item_key`, `weight`. A GroupedBuffer sets `group` and `number`, or with `dedupe` the `entry` that stands for it.
Call = Any


class Buffer:
    """Calls that wait and are in no batch yet, in order of arrival: the plain buffer, where all calls are alike.

    It is the inbox itself: callers append at its right end while the owner takes from the left.
    """

    is_inbox = True
    limited = 0  # calls outside of the inbox that count against max_pending; for a moment it may be too many

    def __init__(self, options: Options, inbox: deque[Call], tally: Tally) -> None:
        self._options = options
        self._calls = inbox
        self._tally = tally  # where those are counted who have left
        self.waiting: set[Any] = set()  # the entries that are not in the inbox any more
        self.refused: list[tuple[Collection[Call], BaseException]] = []  # calls that are to get an error
        self._gone = 0  # how many have left since these were last sorted out
        self._flushed_at = -inf  # what arrived until then is due
        self.ends = False  # closed, or dropped: all is due

    def __len__(self) -> int:
        return len(self._calls) + len(self.waiting)

    def calls(self) -> set[Call]:
        """Return the calls that wait, or are to get an error, and perhaps some that have left. Any thread may ask."""
        try:
            posted = list(self._calls.copy())
        except RuntimeError:  # on a build without a GIL Python notices that somebody posts
            posted = []
            with suppress(IndexError):  # what the owner takes out at this moment counts in the next batch
                for number in range(len(self._calls)):
                    posted.append(self._calls[number])
        return set(posted).union(*(refused for refused, _ in self.refused.copy()))

    def calls_of(self, entries: Collection[Any]) -> Collection[Call]:
        """Return the calls that these entries stand for: with `dedupe` several for one, else themselves."""
        return list(chain.from_iterable(entries)) if self._options.dedupe else entries

    def head(self) -> Any:
        """Return what has waited longest, of which the owner has taken notice, or None.

        What stood before that has left, and is forgotten.
        """
        calls = self._calls
        while calls and calls[0].has_left():
            with self._tally:
                calls.popleft()
                self._tally.leave(1)
        return calls[0] if calls else None

    def wake_at(self) -> float:
        """How long the inbox must be for a batch to be due before the timeout of the head."""
        return self._options.batch_size

    def admit(self, now: float) -> None:
        """Take notice of what stands in the inbox."""
        calls = self._calls
        if calls and calls[0].arrival > now:
            calls[0].arrival = now  # posted after the owner's look at the clock, or by a clock that jumped

    def leave(self, call: Call) -> None:  # noqa: ARG002
        """Take notice that the caller of a call has left."""
        self._gone += 1
        if self._gone * 2 > len(self._calls):
            self._gone, calls = 0, list(map(deque.popleft, repeat(self._calls, len(self._calls))))
            try:
                calls.sort(key=lambda each: not each.has_left())  # to the front, where head() forgets them
            finally:
                self.put_back(calls)

    def repair(self) -> None:
        """Find out anew all that can be: after an exception at any line, and when options have changed."""

    def flush(self, until: float) -> None:
        """Make due what arrived until then."""
        self._flushed_at = max(self._flushed_at, until)

    def is_lonely(self, call: Call) -> bool:  # noqa: ARG002
        """Whether a call waits that only others of its group will make due, or a timeout, or a flush."""
        return False  # all are of one group

    def take(self, now: float, awaited: Call = None, *, skips: bool = False) -> tuple[list[Any], Reason] | None:
        """Hand out the next batch, oldest first, and why it is due; None if none is due yet.

        Or the next one of the group of a call that waits and is `awaited` inside a function, due or not; with `skips`
        the one that begins with that call. Some of its callers, or all, may have left.
        """
        calls = self._calls
        if skips:
            size = len(calls)
            at = next((at for at in range(size - 1, -1, -1) if calls[at] is awaited), size)
            taken = [calls[number] for number in range(at, min(at + self._options.batch_size, size))]
            reason = self._why(taken[0].arrival, now, awaited) if taken else None
            # In one step of C, so that no exception from elsewhere can cut it short.
            deque(map(delitem, repeat(calls, len(taken)), repeat(at)), 0)
            return None if reason is None else (taken, reason)
        due = self.due(now, awaited)
        return None if due is None else (list(map(deque.popleft, repeat(calls, due[0]))), due[1])  # as above

    def put_back(self, entries: list[Any], *, skipped: bool = False) -> None:
        """Let entries wait again that take() handed out, when it `skipped` those that stood before."""
        calls = self._calls
        if skipped:
            entries = sorted([*entries, *map(deque.popleft, repeat(calls, len(calls)))], key=arrival_of)
        calls.extendleft(reversed(entries))

    def due(self, now: float, awaited: Call = None) -> tuple[Any, Reason] | None:
        """Say whether take() will have a batch: of what, and why it is due; None if it will not."""
        size = len(self._calls)
        if size >= self._options.batch_size:
            return self._options.batch_size, "full"
        if not size:
            return None
        first = self._calls[0]
        reason = self._why(first.arrival, now, awaited)
        if reason is None and self.head() is not first:
            return self.due(now)  # who stood first has left; the next one may be older, if it was posted late
        return None if reason is None else (size, reason)

    def _why(self, oldest: float, now: float, awaited: Call) -> Reason | None:
        """Say why a batch that is not full is due; None if it is not."""
        if self.ends:
            return "close"
        if oldest <= self._flushed_at:
            return "flush"
        timeout = self._options.timeout
        if timeout is not None and oldest + timeout <= now:
            return "timeout" if timeout else "free"
        return None if awaited is None else "nested"


class EqualCalls(list[Call]):
    """The calls of one item, where equal items that wait are one: this stands for them in the buffer and in batches."""

    __slots__ = ("arrival", "group", "item", "item_key", "key", "number", "weight")
    __eq__ = object.__eq__
    __hash__ = object.__hash__  # type: ignore[assignment]

    def __init__(self, call: Call) -> None:
        self.arrival, self.item, self.weight = call.arrival, call.item, call.weight
        self.key, self.item_key = call.key, call.item_key
        self.append(call)


class Group(list[Any]):
    """Entries, calls or `EqualCalls`, that may share a batch, in order."""

    __slots__ = ("equals", "weight")

    def __init__(self) -> None:
        self.equals: dict[Any, EqualCalls] = {}  # by item
        self.weight = 0.0  # of all together, or of some if these make a batch full


class GroupedBuffer(Buffer):
    """The same, where only calls of one group share a batch, items have weights, or equal ones are one entry.

    `waiting` is the truth: an entry waits from the moment it is put in there until it is taken out. All else is found
    out from that: by _enter() and _release() where entries come and go, and by repair() for all of them.
    """

    is_inbox = False

    def __init__(self, options: Options, inbox: deque[Call], tally: Tally) -> None:
        super().__init__(options, inbox, tally)
        self._limit = inf if options.max_pending is None else options.max_pending
        self._most = inf if options.max_weight is None else options.max_weight
        self._numbers = count()
        self.repair()

    def repair(self) -> None:
        if self._calls and self._entry(self._calls[0]) is not None:
            self._calls.popleft()  # admit() was cut short there
        # How many groups have so many entries, or more; up to `batch_size`.
        self._sizes: defaultdict[int, int] = defaultdict(int)
        # Where a call looks for its like. As these, and `equals`, ask a user's __eq__(), which may raise, they may lack
        # a group or an entry, which then nobody joins, or have one that does not wait.
        self._groups: defaultdict[Any, Group] = defaultdict(Group)
        # Heaps of groups by their oldest entry: of all groups, and of those that are full. A group's place may be too
        # early, never too late: _first() moves it, or drops it, when it comes first.
        self._listed: list[tuple[float, int, Group]] = []
        self._listed_full: list[tuple[float, int, Group]] = []
        self.limited = 0
        for entry in self.waiting:
            entry.group.clear()
            entry.group.equals.clear()
            entry.group.weight = 0.0
        self.put_back(sorted(self.waiting, key=order_of))

    def calls(self) -> set[Call]:
        # In the order in which calls move, so that none is missed.
        return super().calls().union(self.calls_of(self.waiting.copy()), super().calls())

    def head(self) -> Any:
        while (group := self._first(self._listed)) is not None:
            left = [call for call in self.calls_of(group[:1]) if call.has_left()]
            if not left:
                return group[0]
            for call in left:
                self.leave(call)
        return None

    def wake_at(self) -> float:
        if self._most < inf:
            return 1
        while self._sizes and not self._sizes[len(self._sizes)]:
            self._sizes.popitem()
        return max(1, min(self._options.batch_size - len(self._sizes), self._limit - self.limited))

    def admit(self, now: float) -> None:
        if len(self._listed) + len(self._listed_full) > 8 * (len(self.waiting) + 1):
            self.repair()  # most of what stands there is no more
        inbox, waiting, dedupe = self._calls, self.waiting, self._options.dedupe
        entered: list[Any] = []
        while inbox:
            entry = call = inbox[0]
            try:
                if call.arrival > now:
                    call.arrival = now
                # It looks for its like before it waits, as a user's __eq__() may raise.
                group: Any = self._groups[call.key]
                if dedupe:
                    entry = call.entry = group.equals.get(call.item_key)
                    if entry in waiting:
                        entry.append(call)
                    else:
                        entry = call.entry = group.equals[call.item_key] = EqualCalls(call)
                if entry not in waiting:
                    entry.group = group
                    entry.number = next(self._numbers)
                    waiting.add(entry)
                    entered.append(entry)
                self.limited += call.limited
                inbox.popleft()
            except BaseException as error:  # an item or a key that cannot be compared, or no memory
                if self._entry(call) is not None:
                    raise
                self.refused.append(([inbox.popleft()], error))
        self._enter(entered)

    def leave(self, call: Call) -> None:
        entry = self._entry(call)
        if entry is not None:
            with self._tally:
                if len(self.calls_of([entry])) > 1:
                    entry.remove(call)
                    self.limited -= call.limited
                else:
                    self._release(entry.group, [entry])
                self._tally.leave(1)

    def is_lonely(self, call: Call) -> bool:
        entry = self._entry(call)
        return entry is not None and call.arrival > self._flushed_at and not self._is_full(entry.group)

    def put_back(self, entries: list[Any], *, skipped: bool = False) -> None:  # noqa: ARG002 - all stand in order
        self.limited += sum(map(limited_of, self.calls_of(entries)))
        self.waiting.update(entries)
        for entry in entries:
            with suppress(Exception):  # by a user's __eq__()
                self._groups[entry.key] = entry.group
                if self._options.dedupe:
                    entry.group.equals[entry.item_key] = entry
        self._enter(entries)

    def take(self, now: float, awaited: Call = None, *, skips: bool = False) -> tuple[list[Any], Reason] | None:
        due = self.due(now, awaited)
        if due is None:
            return None
        group, reason = due
        start = bisect_left(group, order_of(self._entry(awaited)), key=order_of) if skips else 0
        taken = group[start : start + self._options.batch_size]
        if self._most < inf:
            fit = takewhile(lambda weight: weight <= self._most, accumulate(map(weight_of, taken)))
            del taken[max(1, len(list(fit))) :]
        self._release(group, taken)
        return taken, reason

    def due(self, now: float, awaited: Call = None) -> tuple[Group, Reason] | None:
        group = self._first(self._listed) if awaited is None else getattr(self._entry(awaited), "group", None)
        if group is None:
            return None
        if self._is_full(group) or (awaited is None and self.limited >= self._limit):
            return group, "full"
        reason = self._why(group[0].arrival, now, awaited)
        if reason is None:
            group, reason = self._first(self._listed_full), "full"
        return None if group is None else (group, reason)

    def _entry(self, call: Call) -> Any:
        """Return the entry that stands for a call, or None if that does not wait, or in the inbox only."""
        entry = getattr(call, "entry", None) if self._options.dedupe else call
        return entry if entry in self.waiting and call in self.calls_of([entry]) else None

    def _enter(self, entries: list[Any]) -> None:
        """Find out what there is to know of more entries that wait."""
        size, most = self._options.batch_size, self._most
        for entry in entries:
            group: Group = entry.group
            before = group.weight
            if group and (entry.arrival < group[-1].arrival or entry.number < group[-1].number):
                insort(group, entry, key=order_of)  # it was put back, or interrupted after it looked at the clock
            else:
                group.append(entry)
            group.weight += entry.weight
            if len(group) <= size:
                self._sizes[len(group)] += 1
            if group[0] is entry:
                heappush(self._listed, (*order_of(entry), group))
            if len(group) == size or before < most <= group.weight or (group[0] is entry and self._is_full(group)):
                heappush(self._listed_full, (*order_of(group[0]), group))

    def _release(self, group: Group, entries: list[Any]) -> None:
        """Let entries that stand side by side in a group wait no more."""
        start, before = bisect_left(group, order_of(entries[0]), key=order_of), len(group)
        del group[start : start + len(entries)]
        for size in range(len(group), min(before, self._options.batch_size)):
            self._sizes[size + 1] -= 1
        self.limited -= sum(map(limited_of, self.calls_of(entries)))
        if self._most < inf:
            weight = 0.0
            for entry in islice(group, self._options.batch_size):
                weight += entry.weight
                if weight >= self._most:
                    break
            group.weight = weight
        with suppress(Exception):  # by a user's __eq__(), or it was not there
            if not group:
                self._first(self._listed)  # forgets it, if it stands there first
                self._first(self._listed_full)
                del self._groups[entries[0].key]
            if self._options.dedupe:
                for entry in entries:
                    del group.equals[entry.item_key]
        self.waiting.difference_update(entries)  # one step, and the last, so that nothing can cut it short

    def _first(self, listed: list[tuple[float, int, Group]]) -> Group | None:
        """Return the group of a heap whose oldest entry has waited longest."""
        while listed:
            *_, number, group = listed[0]
            if not group or (listed is self._listed_full and not self._is_full(group)):
                heappop(listed)
            elif group[0].number != number:
                heapreplace(listed, (*order_of(group[0]), group))
            else:
                return group
        return None

    def _is_full(self, group: Group) -> bool:
        return len(group) >= self._options.batch_size or group.weight >= self._most
