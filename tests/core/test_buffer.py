"""Which items form the next batch, and when is it due? No thread, no sleep: time is an argument."""

import gc
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from .. import inside
from ..inside import Buffer, Options


class Entry:
    """Stands in for a call."""

    arrival: float

    def __init__(self, number: int, group: Any = None, weight: float = 1.0, *, limited: bool = True) -> None:
        self.limited = limited
        self.number = number
        self.group = group
        self.weight = weight

    def __repr__(self) -> str:
        return f"Entry({self.number})"


class BufferAgainstList(RuleBasedStateMachine):
    """The buffer, with any options together, beside a plain list, and a sleeper that believes what add() tells it."""

    @initialize(
        grouped=st.booleans(),
        max_weight=st.none() | st.integers(1, 9),
        max_pending=st.none() | st.integers(1, 12),
    )
    def begin(self, grouped: bool, max_weight: float | None, max_pending: int | None) -> None:
        self.options = Options(3, 1.0, max_weight=max_weight, max_pending=max_pending)
        self.buffer: Buffer[Entry] = Buffer(self.options, grouped=grouped)
        self.grouped = grouped
        self.waiting: list[Entry] = []
        self.flushed_at = -math.inf
        self.closed = False
        self.now = 0.0
        self.number = 0
        self.sleeps_until = math.inf

    def of_group(self, group: object) -> list[Entry]:
        return [entry for entry in self.waiting if entry.group is group]

    def batch(self, group: object) -> list[Entry]:
        """The batch that the group would have now."""
        batch: list[Entry] = []
        most = self.options.max_weight or math.inf
        for entry in self.of_group(group)[: self.options.batch_size]:
            if batch and sum(each.weight for each in batch) + entry.weight > most:
                break
            batch.append(entry)
        return batch

    def is_full(self, group: object) -> bool:
        entries = self.of_group(group)
        heavy = sum(entry.weight for entry in entries) >= (self.options.max_weight or math.inf)
        return len(entries) >= self.options.batch_size or heavy

    def refuses(self) -> bool:
        return sum(entry.limited for entry in self.waiting) >= (self.options.max_pending or math.inf)

    def full(self) -> list[Entry]:
        """The oldest entries of full groups, the oldest first."""
        firsts = {id(entry.group): entry for entry in reversed(self.waiting)}
        return [entry for entry in self.waiting if firsts[id(entry.group)] is entry and self.is_full(entry.group)]

    def due_at(self) -> float:
        if not self.waiting:
            return math.inf
        arrival = self.waiting[0].arrival
        if self.full() or self.refuses() or self.closed or arrival <= self.flushed_at:
            return -math.inf
        return math.inf if self.options.timeout is None else arrival + self.options.timeout

    @rule(seconds=st.just(0.5) | st.floats(0.0, 2.0))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(
        calls=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5)), min_size=1, max_size=5),
        limited=st.booleans(),  # else they are those of a map
    )
    def add(self, calls: list[tuple[int, int]], limited: bool) -> None:
        for key, weight in calls:
            assert self.buffer.is_full == self.refuses()
            if self.closed or (limited and self.refuses()):
                return
            group = self.buffer.group_of(key, {})
            assert (group is not None) == self.grouped
            assert group is self.buffer.group_of(float(key), {})  # an equal key
            entry = Entry(self.number, group, weight, limited=limited)
            self.number += 1
            due_at = self.buffer.add(entry, self.now)
            assert entry.arrival == self.now
            self.waiting.append(entry)
            at_once = self.is_full(group) or self.refuses() or self.now <= self.flushed_at
            timeout = math.inf if self.options.timeout is None else self.options.timeout
            assert due_at == (-math.inf if at_once else self.now + timeout)
            self.sleeps_until = min(self.sleeps_until, due_at)

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        entry = data.draw(st.sampled_from(self.waiting))
        self.waiting.remove(entry)
        assert self.buffer.remove(entry)
        assert not self.buffer.remove(entry)
        self.sleeps_until = min(self.sleeps_until, self.buffer.due_at)

    @rule()
    def flush(self) -> None:
        self.buffer.flush(self.now)
        if self.waiting:
            self.flushed_at = self.now
        self.sleeps_until = self.buffer.due_at

    @precondition(lambda self: self.number > 20)
    @rule()
    def close(self) -> None:
        self.buffer.close()
        self.closed = True
        self.sleeps_until = self.buffer.due_at

    @rule(batch_size=st.integers(1, 6), timeout=st.none() | st.floats(0.0, 3.0))
    def set_options(self, batch_size: int, timeout: float | None) -> None:
        self.options.batch_size, self.options.timeout = batch_size, timeout
        self.buffer.adapt()
        self.sleeps_until = self.buffer.due_at

    @precondition(lambda self: self.waiting)
    @rule()
    def put_back(self) -> None:
        """What was handed out is put back, as where there was no memory for a batch."""
        taken = self.buffer.take(self.now)
        if taken is not None:
            self.buffer.put_back(taken[0])
            self.waiting = [entry for entry in self.waiting if entry not in taken[0]]
            self.waiting = sorted(taken[0] + self.waiting, key=lambda entry: entry.arrival)
        self.sleeps_until = self.buffer.due_at

    @rule()
    def take(self) -> None:
        taken = self.buffer.take(self.now)
        due_at = self.due_at()
        if due_at > self.now or due_at == math.inf:
            assert taken is None
        else:
            assert taken is not None
            calls, reason = taken
            oldest, full = self.waiting[0], self.full()
            if self.refuses() or full[:1] == [oldest]:
                assert reason == "full"
            elif oldest.arrival <= self.flushed_at or self.closed:
                assert reason == ("close" if self.closed else "flush")
            elif self.options.timeout is not None and oldest.arrival + self.options.timeout <= self.now:
                assert reason == "timeout"
            else:
                assert reason == "full"
                # Of two that came at the same moment either may be first.
                assert calls[0].arrival == full[0].arrival
                assert calls[0] in full
                oldest = calls[0]
            assert calls == self.batch(oldest.group)
            self.waiting = [entry for entry in self.waiting if entry not in calls]
        self.sleeps_until = self.buffer.due_at

    @invariant()
    def agrees_with_the_list(self) -> None:
        inside.check(self.buffer)
        assert len(self.buffer) == len(self.waiting)
        assert self.buffer.due_at == self.due_at()

    @invariant()
    def owner_that_believes_add_never_oversleeps(self) -> None:
        assert self.sleeps_until <= self.due_at()

    @invariant()
    def an_empty_group_leaves_nothing_behind(self) -> None:
        self.buffer.let_go()
        keys = {id(entry.group) for entry in self.waiting}
        gc.collect(0)
        assert inside.groups_in(self.buffer) <= len(keys) + inside.full_groups_listed(self.buffer)


TestBufferAgainstList = pytest.mark.thread_unsafe(reason="ast.parse() of CPython 3.11")(BufferAgainstList.TestCase)
TestBufferAgainstList.settings = settings(max_examples=170, stateful_step_count=60, deadline=None)


def filled(
    *arrivals: float, batch_size: int = 3, timeout: float | None = 1.0, keys: str = "", **options: Any
) -> tuple[Buffer[Entry], list[Entry]]:
    """A buffer in which items wait since then, in the groups that the letters name."""
    buffer: Buffer[Entry] = Buffer(Options(batch_size, timeout, **options), grouped=keys != "")
    entries = [Entry(number) for number in range(len(arrivals))]
    for number, (entry, arrival) in enumerate(zip(entries, arrivals, strict=True)):
        entry.group = buffer.group_of(keys[number], {}) if keys else None
        buffer.add(entry, arrival)
    return buffer, entries


def test_batches_keep_the_order_of_arrival() -> None:
    buffer, entries = filled(*[0.0] * 7)
    batches = [buffer.take(0.0) for _ in range(2)]
    assert batches == [(entries[:3], "full"), (entries[3:6], "full")]


def test_full_batch_does_not_wait() -> None:
    buffer, entries = filled(5.0, 5.0, 5.0, timeout=100.0)
    assert buffer.take(5.0) == (entries, "full")


def test_oldest_item_never_waits_past_its_deadline() -> None:
    buffer, entries = filled(0.0, 0.9)
    assert buffer.take(0.999) is None
    assert buffer.due_at == 1.0
    assert buffer.take(1.0) == (entries, "timeout")


def test_later_arrivals_do_not_restart_the_timeout() -> None:
    buffer, _ = filled(0.0, 0.5, timeout=1.0, batch_size=10)
    assert buffer.due_at == 1.0


def test_items_left_over_by_a_batch_keep_their_own_arrival() -> None:
    buffer, entries = filled(0.0, 0.1, 0.2, 0.3)
    buffer.take(0.9)
    assert buffer.due_at == 0.3 + 1.0
    assert buffer.take(1.3) == ([entries[3]], "timeout")


def test_items_join_until_the_batch_is_taken() -> None:
    buffer, entries = filled(0.0, 7.0, 8.0, batch_size=4)
    assert buffer.take(9.0) == (entries, "timeout")


def test_timeout_0_makes_all_that_waits_due() -> None:
    buffer, entries = filled(3.0, timeout=0.0)
    assert buffer.take(3.0) == (entries, "timeout")


def test_timeout_none_leaves_only_a_full_batch_or_a_flush_due() -> None:
    buffer, entries = filled(0.0, timeout=None)
    assert buffer.due_at == math.inf
    assert buffer.take(10**9) is None
    buffer.flush(10**9)
    assert buffer.take(10**9) == (entries, "flush")


def test_flush_is_for_items_that_wait_now() -> None:
    buffer, _ = filled(0.0, 0.1)
    buffer.flush(0.2)
    buffer.take(0.2)
    buffer.add(Entry(9), 0.3)
    assert buffer.take(0.3) is None


@pytest.mark.parametrize("options", [{}, {"max_pending": 9}], ids=["plain", "limited"])
def test_flush_includes_items_that_arrive_at_the_same_clock_reading(options: dict[str, Any]) -> None:
    buffer, entries = filled(0.0, timeout=None, **options)
    buffer.flush(1.0)
    assert buffer.take(1.0) == (entries, "flush")
    assert buffer.add(entries[0], 1.0) == -math.inf
    assert buffer.take(1.0) == (entries, "flush")


def test_put_back_items_count_against_max_pending() -> None:
    buffer, entries = filled(0.0, 0.0, batch_size=2, max_pending=2)
    taken = buffer.take(0.0)
    assert taken is not None
    assert not buffer.is_full
    buffer.put_back(taken[0])
    assert buffer.is_full
    assert buffer.take(0.0) == (entries, "full")


@pytest.mark.parametrize("options", [{}, {"keys": "aab", "max_weight": 9.0}], ids=["plain", "grouped and weighed"])
def test_max_pending_counts_neither_items_of_map_nor_those_taken_or_left(options: dict[str, Any]) -> None:
    buffer, entries = filled(0.0, 0.0, 0.0, batch_size=9, max_pending=3, **options)
    assert buffer.is_full
    assert buffer.due_at == -math.inf
    buffer.remove(entries[0])
    assert not buffer.is_full
    assert buffer.due_at == 1.0
    buffer.add(Entry(9, entries[0].group, limited=False), 0.5)
    assert not buffer.is_full
    assert buffer.due_at == 1.0
    buffer.add(Entry(10, entries[0].group), 0.5)
    assert buffer.is_full
    assert buffer.take(0.5) is not None
    assert not buffer.is_full


def test_put_back_items_of_a_group_stand_where_they_stood() -> None:
    buffer, entries = filled(0.0, 1.0, 1.0, 2.0, 2.0, 3.0, 3.0, keys="caabbaa", batch_size=2, timeout=None)
    batch = buffer.take(9.0)
    assert batch == (entries[1:3], "full")
    buffer.put_back(entries[1:3])
    inside.check(buffer)
    assert [buffer.take(9.0) for _ in range(4)] == [batch, (entries[3:5], "full"), (entries[5:], "full"), None]
    buffer.close()
    assert buffer.take(9.0) == (entries[:1], "close")


def test_group_by_lists_each_full_group_once() -> None:
    buffer, _ = filled(*[0.0] * 7, 1.0, 1.0, keys="aaabbbcaa")
    for number in range(3):
        assert buffer.due_at == -math.inf
        buffer.add(Entry(9, buffer.group_of("a", {})), 1.0 + number)
        assert inside.full_groups_listed(buffer) == 2
    assert buffer.take(0.0) is not None
    assert buffer.due_at == -math.inf
    assert inside.full_groups_listed(buffer) == 2
    buffer, _ = filled(*[0.0] * 9, max_weight=99.0)
    assert buffer.due_at == -math.inf
    assert inside.full_groups_listed(buffer) == 0  # there is but one group


def test_group_key_is_let_go_only_outside_the_lock() -> None:
    dropped: list[bool] = []

    class Key:
        def __del__(self) -> None:
            dropped.append(True)

    buffer, (first,) = filled(0.0, keys="a", batch_size=1)
    entry = Entry(1, buffer.group_of(Key(), {}))
    buffer.add(entry, 1.0)
    buffer.remove(first)
    buffer.remove(entry)
    del entry
    gc.collect()
    assert buffer.due_at == math.inf
    assert dropped == []
    buffer.let_go()
    assert dropped == [True]


def test_flush_of_nothing_makes_nothing_due() -> None:
    buffer: Buffer[Entry] = Buffer(Options(9, 1.0))
    buffer.flush(0.0)
    buffer.add(Entry(1), 0.0)  # some clocks stand still for long
    assert buffer.take(0.0) is None


def test_batch_is_never_empty() -> None:
    buffer, entries = filled(0.0)
    buffer.flush(0.0)
    buffer.close()
    buffer.remove(entries[0])
    assert buffer.take(10.0) is None


def test_weights_cost_the_same_however_many_items_wait() -> None:
    looks = 0

    class Weighed(Entry):
        @property
        def weight(self) -> float:
            nonlocal looks
            looks += 1
            return 1.0

        @weight.setter
        def weight(self, _: float) -> None:
            pass

    buffer: Buffer[Entry] = Buffer(Options(10**6, None, max_weight=10))
    for number in range(1000):
        buffer.add(Weighed(number), 0.0)
    while batch := buffer.take(0.0):
        assert len(batch[0]) == 10
    assert looks < 1000 * 10


@given(
    calls=st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 5)), max_size=12),
    batch_size=st.integers(1, 4),
    max_weight=st.none() | st.integers(1, 9),
    grouped=st.booleans(),
)
def test_calls_from_inside_at_once_form_batches_by_the_same_rules(
    calls: list[tuple[str, int]], batch_size: int, max_weight: float | None, grouped: bool
) -> None:
    buffer: Buffer[Entry] = Buffer(Options(batch_size, None, max_weight=max_weight), grouped=grouped)
    entries = [Entry(number, buffer.group_of(key, {}), weight) for number, (key, weight) in enumerate(calls)]
    at_once = inside.batches_at_once(entries, inside.options_of(buffer))
    for entry in entries:
        buffer.add(entry, 0.0)
    buffer.close()
    waited: list[list[Entry]] = []
    while taken := buffer.take(0.0):
        waited.append(taken[0])
    assert at_once == sorted(waited, key=lambda batch: batch[0].number)
