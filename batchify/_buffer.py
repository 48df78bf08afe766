"""Which calls form the next batch, and when is it due?

An ordinary data structure, which its owner alone touches. It reads no clock: `now` is an argument, and each caller
stamps the `arrival` of its call.

A batch is due when it is full, when its oldest item has waited `timeout` seconds, when somebody said so with `flush()`,
`drain()` or `close()`, or when `max_pending` items wait, not counting those of maps. Of the batches that are due, the
one whose oldest item has waited longest is taken first. It is taken only when its owner has a turn free for it; until
then items go on joining. Source: TensorFlow's `shared_batch_scheduler.h`, which also takes a batch as late as it can.
"""

from collections import Counter, deque
from collections.abc import Callable
from heapq import heappop, heappush, heapreplace
from itertools import count
from math import inf
from operator import attrgetter
from typing import Any

from ._options import GroupKey, ItemKey, Options
from ._stats import Reason

arrival_of = attrgetter("arrival")

# A call as this file sees it: `item`, `arrival`, has_left(), `limited`, and where options ask for them `key`,
# `item_key`, `weight`. A GroupedBuffer sets `group`, and `waits`: True from when the call is admitted until it is
# taken, or is known to have left.
Call = Any


class Buffer:
    """Calls that wait and are in no batch yet, in order of arrival: the plain buffer, where all calls are alike.

    It is the inbox itself: callers append at its right end while the owner takes from the left.
    """

    def __init__(self, options: Options, inbox: deque[Call], left: Callable[[Call], object]) -> None:
        self._options = options
        self._left = left  # is told of each call whose caller has left, when that is taken out
        self._calls = inbox
        self.gone = 0  # how many have left since these were last sorted out
        self._flushed_at = -inf  # what arrived until then is due
        self.ends = False  # closed, or dropped: all is due

    size = 0  # how many entries wait that are not in the inbox any more

    @property
    def known(self) -> int:
        """How many entries wait of which the owner has taken notice."""
        return len(self._calls)

    def __len__(self) -> int:
        return len(self._calls)

    def calls(self) -> list[Call]:
        """Return the calls that wait, and perhaps some that have left. Any thread may ask."""
        return list(self._calls.copy())

    def head(self) -> Any:
        """Return the entry that has waited longest, or None. Those before it have left, and are forgotten."""
        calls = self._calls
        while calls and calls[0].has_left():
            self._left(calls[0])
            calls.popleft()
        return calls[0] if calls else None

    @property
    def oldest(self) -> float:
        """The arrival of the call that has waited longest; inf if none waits."""
        head = self.head()
        return inf if head is None else head.arrival

    @property
    def due_at(self) -> float:
        """The moment at which take() will have a batch, if it has none now: inf if something must happen first."""
        return inf if self._options.timeout is None else self.oldest + self._options.timeout

    @property
    def wake_at(self) -> float:
        """How long the inbox must be for a batch to be due before `due_at`."""
        return self._options.batch_size

    def admit(self, now: float) -> None:
        """Take notice of what stands in the inbox."""
        calls = self._calls
        if calls and calls[0].arrival > now:
            calls[0].arrival = now  # by a clock that jumped

    def leave(self, call: Call) -> None:
        """Take notice that the caller of a call has left."""
        self.gone += call.has_left()
        if self.gone * 2 > len(self._calls):
            calls: list[Call] = []
            left: list[Call] = []
            try:
                for _ in range(len(self._calls)):
                    (left if self._calls[0].has_left() else calls).append(self._calls[0])
                    self._calls.popleft()
            finally:  # at the left end, since others append at the right
                self.put_back(calls)
                for call in left:
                    self._left(call)
            self.gone = 0

    def adapt(self) -> None:
        """Take notice that options have changed."""

    def flush(self, until: float) -> None:
        """Make due what arrived until then."""
        self._flushed_at = max(self._flushed_at, until)

    def is_lonely(self, call: Call) -> bool:  # noqa: ARG002
        """Whether a call waits that only others of its group will make due, or a timeout, or a flush."""
        return False  # all are of one group

    def is_due(self, now: float) -> bool:
        """Whether take() will have a batch."""
        return self._next(now) is not None

    def take(self, now: float) -> tuple[list[Any], Reason] | None:
        """Hand out the next batch, oldest first, and why it is due; None if none is due yet.

        Some of its callers may have left.
        """
        found = self._next(now)
        if found is None:
            return None
        group, reason = found
        taken: list[Any] = []
        try:
            self._pick(group, taken)
        except BaseException:  # no memory, or an exception from elsewhere
            self._take_back(taken)
            raise
        return taken, reason

    def _take_back(self, taken: list[Any]) -> None:
        """Let entries wait again, where taking them was cut short."""
        self.put_back(taken)

    def repair(self) -> None:
        """Count anew, after an exception at any line."""

    def put_back(self, calls: list[Any]) -> None:
        """Let entries wait again that take() handed out."""
        if calls and self._calls and calls[-1] is self._calls[0]:
            calls = calls[:-1]  # it was cut short between its two steps
        self._calls.extendleft(reversed(calls))

    # The rest differs where calls are not alike

    def _next(self, now: float) -> tuple[Any, Reason] | None:
        """Return the group of the batch to be taken, if any is due, and why."""
        calls = self._calls
        if len(calls) >= self._options.batch_size:
            return None, "full"  # unless some have left, which shows when they are taken
        reason = self._why(self.oldest, now) if calls else None
        return None if reason is None else (None, reason)

    def _why(self, oldest: float, now: float) -> Reason | None:
        """Say why a batch that is not full is due; None if it is not."""
        if oldest == inf:
            return None
        if self.ends:
            return "close"
        if oldest <= self._flushed_at:
            return "flush"
        timeout = self._options.timeout
        return "timeout" if timeout is not None and oldest + timeout <= now else None

    def _pick(self, group: Any, taken: list[Any]) -> None:  # noqa: ARG002
        """Move the calls of the next batch into the list."""
        calls = self._calls
        for _ in range(min(len(calls), self._options.batch_size)):
            taken.append(calls[0])
            calls.popleft()

    def _check(self) -> None:
        """Assert what is true between any two steps of the owner."""
        assert self.gone >= 0


class Equal:
    """What stands in the buffer, and in a batch, for all calls of one item, where equal items that wait are one."""

    __slots__ = ("arrival", "callers", "group", "item", "item_key", "key", "number", "waits", "weight")

    def __init__(self, call: Call) -> None:
        self.arrival = call.arrival
        self.item = call.item
        self.key = call.key
        self.item_key = call.item_key
        self.weight = getattr(call, "weight", 0.0)
        self.callers: list[Call] = []
        self.waits = False


class Group:
    """Entries, calls or `Equal`, that may share a batch, in order of arrival. It goes with the last of them."""

    __slots__ = ("by_item", "entries", "is_listed", "is_listed_full", "key", "size", "weight")

    def __init__(self, key: GroupKey | None) -> None:
        self.key = key
        self.forget()

    def forget(self) -> None:
        """Let it be empty."""
        self.entries: deque[Any] = deque()
        self.size = 0  # how many of these wait
        # Of those that wait together, or of the first ones if these make a batch full; None: to be counted.
        self.weight: float | None = None
        self.by_item: dict[ItemKey, Equal] = {}  # with `dedupe`
        self.is_listed = self.is_listed_full = False

    def head(self) -> Any:
        """Return the oldest entry that waits, or None."""
        while self.entries and not self.entries[0].waits:
            self.entries.popleft()
        return self.entries[0] if self.entries else None


class GroupedBuffer(Buffer):
    """The same, where only calls of one group share a batch, items have weights, or equal ones are one entry."""

    def __init__(
        self,
        options: Options,
        inbox: deque[Call],
        left: Callable[[Call], object],
        refuse: Callable[[tuple[list[Call], BaseException]], object],
    ) -> None:
        super().__init__(options, inbox, left)
        self._refuse = refuse  # is told of calls that are to get an error
        self._rescued: list[Any] = []
        self._forget()

    def _forget(self) -> None:
        self._groups: dict[GroupKey | None, Group] = {}
        self.size = 0  # entries that wait
        self._limited = 0  # calls that wait and count against max_pending
        self._sizes: Counter[int] = Counter()  # how many groups there are of each size
        # Heaps of groups by the arrival of their oldest entry: of all groups, and of those that are full. What is not
        # true any more is mended when it comes first. The number keeps groups from being compared.
        self._listed: list[tuple[float, int, Group]] = []
        self._listed_full: list[tuple[float, int, Group]] = []
        self._numbers = count()

    @property
    def known(self) -> int:
        return self.size

    def __len__(self) -> int:
        return self.size + len(self._calls)

    def calls(self) -> list[Call]:
        # The inbox first, as calls move from there to the groups.
        found = dict.fromkeys(self._calls.copy())
        for group in list(self._groups.values()):
            for entry in group.entries.copy():
                if entry.waits:
                    found.update(dict.fromkeys(self._callers(entry).copy()))
        return list(found)

    def head(self) -> Any:
        while (group := self._top()) is not None:
            head = group.entries[0]
            if not all(call.has_left() for call in self._callers(head)):
                return head
            for call in self._callers(head).copy():
                self.leave(call)
        return None

    @property
    def wake_at(self) -> float:
        if self._options.max_weight is not None:
            return 1
        room = inf if self._options.max_pending is None else self._options.max_pending - self._limited
        return max(1, min(self._options.batch_size - max(self._sizes, default=0), room))

    def admit(self, now: float) -> None:
        inbox = self._calls
        while inbox:
            call = inbox[0]
            try:
                if not getattr(call, "waits", False):  # else this was cut short before it took it out
                    call.waits = False
                    call.arrival = min(call.arrival, now)
                    self._add(call)
            except BaseException as error:  # noqa: BLE001 - an item or a key that cannot be compared, or no memory
                call.waits = False
                self.repair()
                if not call.waits:
                    self._refuse(([call], error))
            inbox.popleft()

    def leave(self, call: Call) -> None:
        if getattr(call, "waits", False):
            group: Group = call.group
            entry = call
            if self._options.dedupe:
                entry = call.entry
                if call in entry.callers:  # else it was interrupted here before
                    entry.callers.remove(call)
                self._count(call, waits=False)
            if not self._options.dedupe or not entry.callers:
                self._release(entry)
            self._left(call)
            if group.size * 2 < len(group.entries):
                group.entries = deque(entry for entry in group.entries if entry.waits)
            self._forget_old()

    def adapt(self) -> None:
        self._listed, self._listed_full = [], []
        for group in self._groups.values():
            group.is_listed = group.is_listed_full = False
            if group.head() is not None:
                self._list(group)

    def _forget_old(self) -> None:
        """Forget what the heaps have of groups that are no more, if it is much: it may stand behind an old one."""
        if len(self._listed) + len(self._listed_full) > 4 * len(self._groups):
            self.adapt()

    def is_lonely(self, call: Call) -> bool:
        return call.waits and call.arrival > self._flushed_at and not self._is_full(call.group)

    def put_back(self, calls: list[Any]) -> None:
        for entry in reversed(calls):
            self._enter(entry, entry.group, in_front=True)

    def _take_back(self, taken: list[Any]) -> None:
        for entry in reversed(taken):
            entry.waits = True
            self._groups[entry.group.key] = entry.group
            if entry not in entry.group.entries:
                entry.group.entries.appendleft(entry)
        self.repair()

    def repair(self) -> None:
        entries = dict.fromkeys(self._rescued)
        entries.update((entry, None) for group in self._groups.values() for entry in group.entries if entry.waits)
        self._rescued = list(entries)  # until this has come to its end, as it may be cut short too
        self._forget()
        for entry in entries:
            for call in self._callers(entry):
                call.waits = False
            entry.group.forget()
        for entry in entries:
            self._enter(entry, entry.group, in_front=False)
        self._rescued = []

    def _add(self, call: Call) -> None:
        group = self._groups.get(call.key)
        if group is None:
            group = Group(call.key)
        entry = call
        if self._options.dedupe:
            entry = group.by_item.get(call.item_key)
            if entry is None:
                entry = Equal(call)
            entry.callers.append(call)
            call.group, call.entry = group, entry
            if len(entry.callers) > 1:
                self._count(call, waits=True)
                return
        self._enter(entry, group, in_front=False)

    def _enter(self, entry: Any, group: Group, *, in_front: bool) -> None:
        self._groups[group.key] = group
        entry.group = group
        if in_front:
            group.entries.appendleft(entry)
        else:
            entry.number = next(self._numbers)
            in_front = _insert(group.entries, entry) == 0
        self._resize(group, 1)
        for call in self._callers(entry):
            self._count(call, waits=True)
        entry.waits = True
        if self._options.dedupe:
            group.by_item[entry.item_key] = entry
        if group.weight is not None:
            group.weight += entry.weight
        self._list(group, anew=in_front)

    def _resize(self, group: Group, by: int) -> None:
        sizes = self._sizes
        if group.size:
            sizes[group.size] -= 1
            if not sizes[group.size]:
                del sizes[group.size]
        group.size += by
        self.size += by
        if group.size:
            sizes[group.size] += 1

    def _count(self, call: Call, *, waits: bool) -> None:
        if call.limited and call.waits is not waits:
            self._limited += 1 if waits else -1
        call.waits = waits

    def _callers(self, entry: Any) -> list[Call]:
        return entry.callers if self._options.dedupe else [entry]

    def _list(self, group: Group, *, anew: bool = False) -> None:
        """See to it that the group stands in the heaps where it belongs; anew, if its oldest entry is another one."""
        head = group.entries[0]
        entry = (head.arrival, head.number, group)
        if anew or not group.is_listed:
            group.is_listed = True
            heappush(self._listed, entry)
        if anew if group.is_listed_full else self._is_full(group):
            group.is_listed_full = True
            heappush(self._listed_full, entry)

    def _top(self, *, full: bool = False) -> Group | None:
        """Return the group, or the full group, whose oldest entry has waited longest."""
        heap = self._listed_full if full else self._listed
        while heap:
            _, number, group = heap[0]
            head = group.head()
            if head is None or (full and not self._is_full(group)):
                heappop(heap)
                if full:
                    group.is_listed_full = False
                else:
                    group.is_listed = False
            elif head.number != number:
                heapreplace(heap, (head.arrival, head.number, group))
            else:
                return group
        return None

    def _is_full(self, group: Group) -> bool:
        most = self._options.max_weight
        if group.size >= self._options.batch_size or most is None:
            return group.size >= self._options.batch_size
        weight = group.weight
        if weight is None:
            weight = 0.0
            for entry in group.entries:
                weight += entry.weight if entry.waits else 0.0
                if weight >= most:
                    break  # there may be very many
            group.weight = weight
        return weight >= most

    def _next(self, now: float) -> tuple[Group, Reason] | None:
        head = self.head()
        if head is None:
            return None
        group = head.group
        max_pending = self._options.max_pending
        if self._is_full(group) or (max_pending is not None and self._limited >= max_pending):
            return group, "full"
        reason = self._why(head.arrival, now)
        if reason is not None:
            return group, reason
        full = self._top(full=True)
        return None if full is None else (full, "full")

    def _pick(self, group: Group, taken: list[Any]) -> None:
        options, weight = self._options, 0.0
        while group.entries and len(taken) < options.batch_size:
            entry = group.entries[0]
            if entry.waits:
                if options.max_weight is not None:
                    if taken and weight + entry.weight > options.max_weight:
                        break
                    weight += entry.weight
                taken.append(entry)
                self._release(entry)
            group.entries.popleft()
        self._forget_old()

    def _release(self, entry: Any) -> None:
        """Let an entry wait no more."""
        group = entry.group
        for call in self._callers(entry):
            self._count(call, waits=False)
        entry.waits = False
        self._resize(group, -1)
        group.weight = None
        if self._options.dedupe:
            group.by_item.pop(entry.item_key, None)
        if not group.size:
            del self._groups[group.key]

    def _check(self) -> None:
        options = self._options
        limited, sizes = 0, Counter[int]()
        listed = [(arrival, group) for arrival, _, group in self._listed]
        listed_full = [(arrival, group) for arrival, _, group in self._listed_full]
        assert {id(group) for _, group in listed if group.size} <= set(map(id, self._groups.values()))
        for key, group in self._groups.items():
            entries = [entry for entry in group.entries if entry.waits]
            assert group.key is key
            assert all(entry.group is group for entry in entries)
            assert [entry.arrival for entry in entries] == sorted(entry.arrival for entry in entries)
            calls = [call for entry in entries for call in self._callers(entry)]
            assert all(call.waits for call in calls)
            limited += sum(call.limited for call in calls)
            assert group.size == len(entries)
            if entries:
                sizes[group.size] += 1
                # They are found by these no later than by their oldest entry.
                assert any(each is group and arrival <= entries[0].arrival for arrival, each in listed)
                if self._is_full(group):
                    assert any(each is group and arrival <= entries[0].arrival for arrival, each in listed_full)
            if group.weight is not None:
                weight = sum(entry.weight for entry in entries)
                assert (
                    group.weight == weight or options.max_weight is None or options.max_weight <= group.weight <= weight
                )
            if options.dedupe:
                assert {id(entry) for entry in group.by_item.values()} == {id(entry) for entry in entries}
                assert all(entry.callers for entry in entries)
        assert (self.size, self._sizes, self._limited) == (sum(size * sizes[size] for size in sizes), sizes, limited)


def _insert(calls: deque[Any], call: Any) -> int:
    """Put a call in its place, by its arrival: some are interrupted after they have looked at the clock."""
    position = len(calls)
    while position and calls[position - 1].arrival > call.arrival:
        position -= 1
    calls.insert(position, call)
    return position
