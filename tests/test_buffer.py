"""Which items form the next batch, and when is it due? No thread, no sleep: time is an argument."""

import gc
import math
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from batchify import _buffer as buffer_module
from batchify._buffer import Buffer, batches_at_once
from batchify._options import Options


class Entry:
    arrival: float

    def __init__(self, number: int, group: Any = None, weight: float = 1.0) -> None:
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
        self.line: list[Entry] = []
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

    def has_room(self) -> bool:
        return len(self.waiting) < (self.options.max_pending or math.inf)

    def full(self) -> list[Entry]:
        """The oldest entries of full groups, the oldest first."""
        firsts = {id(entry.group): entry for entry in reversed(self.waiting)}
        return [entry for entry in self.waiting if firsts[id(entry.group)] is entry and self.is_full(entry.group)]

    def due_at(self) -> float:
        if not self.waiting:
            return math.inf
        arrival = self.waiting[0].arrival
        if self.full() or not self.has_room() or self.closed or arrival <= self.flushed_at:
            return -math.inf
        return math.inf if self.options.timeout is None else arrival + self.options.timeout

    def fill(self) -> None:
        while self.line and self.has_room() and not self.closed:
            self.waiting.append(self.line.pop(0))

    @rule(seconds=st.just(0.5) | st.floats(0.0, 2.0))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(calls=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5)), min_size=1, max_size=5))
    def add(self, calls: list[tuple[int, int]]) -> None:
        for key, weight in calls:
            if self.closed:
                return
            group = self.buffer.group_of(key, {})
            assert (group is not None) == self.grouped
            assert group is self.buffer.group_of(float(key), {})  # an equal key
            entry = Entry(self.number, group, weight)
            self.number += 1
            assert self.buffer.has_room == self.has_room()
            due_at = self.buffer.add(entry, self.now)
            assert entry.arrival == self.now
            if self.has_room():
                self.waiting.append(entry)
                at_once = self.is_full(group) or not self.has_room() or self.now <= self.flushed_at
                timeout = math.inf if self.options.timeout is None else self.options.timeout
                assert due_at == (-math.inf if at_once else self.now + timeout)
                self.sleeps_until = min(self.sleeps_until, due_at)
            else:
                assert due_at == math.inf
                self.line.append(entry)

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        entry = data.draw(st.sampled_from(self.waiting))
        self.waiting.remove(entry)
        self.fill()
        assert self.buffer.remove(entry)
        assert not self.buffer.remove(entry)
        self.sleeps_until = min(self.sleeps_until, self.buffer.due_at)

    @precondition(lambda self: self.line)
    @rule(data=st.data())
    def leave_the_line(self, data: st.DataObject) -> None:
        entry = data.draw(st.sampled_from(self.line))
        self.line.remove(entry)
        assert not self.buffer.remove(entry)

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
    @rule(count=st.integers(1, 5))
    def interrupted(self, count: int) -> None:
        """What was handed out is put back, as after Ctrl-C."""
        taken = self.buffer.take(self.now)
        if taken is not None:
            kept = self.buffer.blocked_calls()
            self.buffer.put_back(taken[0])
            entered = [entry for entry in self.line if entry not in kept]
            self.waiting = [entry for entry in self.waiting if entry not in taken[0]] + entered
            self.waiting = sorted(taken[0] + self.waiting, key=lambda entry: entry.arrival)
            self.line = kept
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
            if not self.has_room() or full[:1] == [oldest]:
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
            self.fill()
        self.sleeps_until = self.buffer.due_at

    @invariant()
    def agrees_with_the_list(self) -> None:
        self.buffer._check()
        assert len(self.buffer) == len(self.waiting)
        assert self.buffer.blocked_calls() == self.line
        assert self.buffer.blocked == len(self.line)
        assert self.buffer.due_at == self.due_at()

    @invariant()
    def who_believes_add_never_oversleeps(self) -> None:
        assert self.sleeps_until <= self.due_at()

    @invariant()
    def an_empty_group_leaves_nothing_behind(self) -> None:
        self.buffer.let_go()
        keys = {id(entry.group) for entry in (*self.waiting, *self.line)}
        gc.collect(0)
        assert len(self.buffer._groups) <= len(keys) + len(self.buffer._full)


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


def test_what_is_left_over_keeps_its_own_arrival() -> None:
    buffer, entries = filled(0.0, 0.1, 0.2, 0.3)
    buffer.take(0.9)
    assert buffer.due_at == 0.3 + 1.0
    assert buffer.take(1.3) == ([entries[3]], "timeout")


def test_items_join_until_the_batch_is_taken() -> None:
    buffer, entries = filled(0.0, 7.0, 8.0, batch_size=4)
    assert buffer.take(9.0) == (entries, "timeout")


def test_with_timeout_0_whatever_waits_is_due() -> None:
    buffer, entries = filled(3.0, timeout=0.0)
    assert buffer.take(3.0) == (entries, "timeout")


def test_without_timeout_only_a_full_batch_or_a_flush_is_due() -> None:
    buffer, entries = filled(0.0, timeout=None)
    assert buffer.due_at == math.inf
    assert buffer.take(10**9) is None
    buffer.flush(10**9)
    assert buffer.take(10**9) == (entries, "flush")


def test_flush_is_for_what_waits_now() -> None:
    buffer, _ = filled(0.0, 0.1)
    buffer.flush(0.2)
    buffer.take(0.2)
    buffer.add(Entry(9), 0.3)
    assert buffer.take(0.3) is None


@pytest.mark.parametrize("options", [{}, {"max_pending": 9}], ids=["plain", "limited"])
def test_who_comes_at_the_very_moment_of_a_flush_is_due_with_those_before(options: dict[str, Any]) -> None:
    buffer, entries = filled(0.0, timeout=None, **options)
    buffer.flush(1.0)
    assert buffer.take(1.0) == (entries, "flush")
    assert buffer.add(entries[0], 1.0) == -math.inf
    assert buffer.take(1.0) == (entries, "flush")


def test_what_is_put_back_leaves_no_room() -> None:
    buffer, entries = filled(0.0, 0.0, batch_size=2, max_pending=2)
    taken = buffer.take(0.0)
    assert taken is not None
    for number in range(2):
        buffer.add(Entry(number), 1.0)
    buffer.put_back(taken[0])
    buffer._options.batch_size = 9
    late = Entry(9)
    assert len(buffer) == 4
    assert not buffer.has_room
    assert buffer.due_at == -math.inf
    assert buffer.add(late, 2.0) == math.inf
    assert buffer.blocked_calls() == [late]
    calls, reason = buffer.take(2.0) or ([], "")
    assert (calls[:2], len(calls), reason) == (entries, 4, "full")


def ctrl_c() -> None:
    raise KeyboardInterrupt


def remove_and_let_nobody_in(buffer: Buffer[Entry], entry: Entry, monkeypatch: pytest.MonkeyPatch) -> None:
    """Take an entry out, with Ctrl-C just before those enter who wait for its room."""
    with monkeypatch.context() as patch:
        patch.setattr(buffer, "_fill", ctrl_c)
        with pytest.raises(KeyboardInterrupt):
            buffer.remove(entry)


def test_nobody_passes_those_who_wait_for_room_that_ctrl_c_kept_from_entering(monkeypatch: pytest.MonkeyPatch) -> None:
    buffer, entries = filled(0.0, 0.0, 1.0, max_pending=2)

    remove_and_let_nobody_in(buffer, entries[0], monkeypatch)
    late = [Entry(8), Entry(9)]
    assert buffer.add(late[0], 2.0) == math.inf  # there is room for one, who came before
    assert buffer.blocked_calls() == [late[0]]
    remove_and_let_nobody_in(buffer, entries[1], monkeypatch)
    remove_and_let_nobody_in(buffer, entries[2], monkeypatch)
    assert buffer.add(late[1], 3.0) == -math.inf  # it may be due, by now or with the one that entered before it
    assert buffer.take(3.0) == (late, "full")


@pytest.mark.parametrize("looks", ["due_at", "take"])
def test_who_looks_lets_in_those_whom_ctrl_c_kept_from_entering(monkeypatch: pytest.MonkeyPatch, looks: str) -> None:
    buffer, entries = filled(0.0, 1.0, max_pending=1)

    remove_and_let_nobody_in(buffer, entries[0], monkeypatch)
    if looks == "due_at":
        assert buffer.due_at == -math.inf
    else:
        assert buffer.take(1.0) == ([entries[1]], "full")


@pytest.mark.parametrize("step", ["remove", "take"])
@pytest.mark.parametrize("weight", [None, 9.0])
def test_who_makes_room_lets_in_those_who_wait_for_it(step: str, weight: float | None) -> None:
    buffer, entries = filled(0.0, 1.0, batch_size=1, max_pending=1, max_weight=weight)
    assert buffer.remove(entries[0]) if step == "remove" else buffer.take(1.0)
    assert buffer.blocked == 0
    assert len(buffer) == 1


def test_a_batch_of_another_group_that_is_put_back_stands_where_it_stood() -> None:
    buffer, entries = filled(0.0, 1.0, 1.0, 2.0, 2.0, 3.0, 3.0, keys="caabbaa", batch_size=2, timeout=None)
    batch = buffer.take(9.0)
    assert batch == (entries[1:3], "full")
    buffer.put_back(entries[1:3])
    buffer._check()
    assert [buffer.take(9.0) for _ in range(4)] == [batch, (entries[3:5], "full"), (entries[5:], "full"), None]
    buffer.close()
    assert buffer.take(9.0) == (entries[:1], "close")


def test_a_full_group_is_listed_once() -> None:
    buffer, _ = filled(*[0.0] * 7, 1.0, 1.0, keys="aaabbbcaa")
    for number in range(3):
        assert buffer.due_at == -math.inf
        buffer.add(Entry(9, buffer.group_of("a", {})), 1.0 + number)
        assert len(buffer._full) == 2
    assert buffer.take(0.0) is not None
    assert buffer.due_at == -math.inf
    assert len(buffer._full) == 2
    buffer, _ = filled(*[0.0] * 9, max_weight=99.0)
    assert buffer.due_at == -math.inf
    assert buffer._full == []  # there is but one group


def test_a_group_that_a_finalizer_fills_while_the_oldest_full_one_is_looked_for_is_noted() -> None:
    for number in range(80):
        buffer, entries = filled(0.0, 1.0, 1.0, keys="abb", batch_size=2, timeout=None)
        buffer.remove(entries[1])  # so it is listed, and not full any more
        late = Entry(9, entries[0].group)
        lines = at_line(number, lambda: buffer.add(late, 1.0), lambda: buffer.due_at)  # noqa: B023 - run at once
        buffer._check()
        if lines > number:
            assert buffer.take(1.0) == ([entries[0], late], "full")
    assert lines < 80, "not every line was tried"


def test_a_group_may_be_emptied_while_it_is_noted_that_it_is_full() -> None:
    for number in range(50):
        buffer, entries = filled(0.0, 0.0, keys="aa", batch_size=3)
        buffer._options.batch_size = 2
        lines = at_line(number, lambda: [buffer.remove(entry) for entry in entries], buffer.adapt)  # noqa: B023
        buffer._check()
        assert (buffer.due_at == math.inf) == (lines > number)
    assert lines < 50, "not every line was tried"


def test_what_a_group_is_called_is_let_go_only_when_that_is_said() -> None:
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


def test_a_flush_of_nothing_makes_nothing_due() -> None:
    buffer: Buffer[Entry] = Buffer(Options(9, 1.0))
    buffer.flush(0.0)
    buffer.add(Entry(1), 0.0)  # some clocks stand still for long
    assert buffer.take(0.0) is None


def test_no_batch_is_empty() -> None:
    buffer, entries = filled(0.0)
    buffer.flush(0.0)
    buffer.close()
    buffer.remove(entries[0])
    assert buffer.take(10.0) is None


def at_line(number: int, intrude: Callable[[], object], action: Callable[[], object]) -> int:
    """Run an action, and in the midst of it, at that line of the buffer's, something else: as a finalizer would.

    Returns the number of lines passed.
    """
    passed = 0

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal passed
        if frame.f_code.co_filename != buffer_module.__file__:
            return None
        if event == "line":
            if passed == number:
                sys.settrace(None)
                frame.f_trace = None
                intrude()
                sys.settrace(trace)
                frame.f_trace = trace
            passed += 1
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        action()
    finally:
        sys.settrace(before)
    return passed


ALL_OPTIONS: dict[str, Any] = {"keys": "aba", "max_weight": 2.0, "max_pending": 3}


@pytest.mark.parametrize("step", ["add", "remove", "take", "due_at", "adapt"])
@pytest.mark.parametrize("entering", ["add", "remove", "leave the line", "take", "flush", "close", "due_at"])
@pytest.mark.parametrize("options", [{}, ALL_OPTIONS], ids=["plain", "all"])
def test_every_line_survives_being_entered(step: str, entering: str, options: dict[str, Any]) -> None:
    for number in range(150):
        buffer, (first, second, third) = filled(0.0, 0.0, 0.0, **options)
        waits, late, other = Entry(7, first.group), Entry(8, first.group), Entry(9, second.group)
        buffer.add(waits, 0.0)
        taken: list[Entry] = []
        gone: list[bool] = []
        steps: dict[str, Callable[[], object]] = {
            "add": lambda: buffer.add(other, 0.0),  # noqa: B023 - run at once
            "remove": lambda: gone.append(buffer.remove(second)),  # noqa: B023
            "take": lambda: taken.extend((buffer.take(0.0) or ([], "full"))[0]),  # noqa: B023
            "due_at": lambda: buffer.due_at,  # noqa: B023
            "adapt": buffer.adapt,
        }
        entries: dict[str, Callable[[], object]] = {
            "add": lambda: buffer.add(late, 0.0),  # noqa: B023
            "remove": lambda: buffer.remove(first),  # noqa: B023
            "leave the line": lambda: buffer.remove(waits),  # noqa: B023
            "take": lambda: taken.extend((buffer.take(0.0) or ([], "full"))[0]),  # noqa: B023
            "flush": lambda: buffer.flush(0.0),  # noqa: B023
            "close": buffer.close,
            "due_at": lambda: buffer.due_at,  # noqa: B023
        }
        lines = at_line(number, entries[entering], steps[step])
        buffer._check()
        buffer.close()
        while batch := buffer.take(0.0):
            taken += batch[0]
        taken += buffer.blocked_calls()
        expected = {first, second, third, waits}
        left = {"remove": first, "leave the line": waits}.get(entering)
        if lines > number and left is not None:
            taken, expected = [call for call in taken if call is not left], expected - {left}
        if lines > number and entering == "add":
            expected |= {late}
        if step == "add":
            expected |= {other}
        if gone == [True]:  # else it was taken just before
            expected -= {second}
        assert len(taken) == len(expected)
        assert set(taken) == expected
    assert lines < 150, "not every line was tried"


@pytest.mark.parametrize("options", [{}, ALL_OPTIONS], ids=["plain", "all"])
def test_a_call_that_leaves_at_any_line_of_a_take_leaves_no_empty_batch(options: dict[str, Any]) -> None:
    for number in range(80):
        buffer, (call,) = filled(0.0, **options)
        left: list[bool] = []
        taken: list[Any] = []
        lines = at_line(
            number,
            lambda: left.append(buffer.remove(call)),  # noqa: B023 - run at once
            lambda: taken.append(buffer.take(1.0)),  # noqa: B023
        )
        assert taken == [None if left == [True] else ([call], "timeout")]
    assert lines < 80, "not every line was tried"


@pytest.mark.parametrize("taken", [1, 2, 3])
def test_ctrl_c_in_the_midst_of_a_take_puts_all_back_in_order(taken: int) -> None:
    class Interrupted(OrderedDict[Entry, None]):
        pops = 0

        def popitem(self, last: bool = True) -> tuple[Entry, None]:
            self.pops += 1
            if self.pops == taken:
                raise KeyboardInterrupt
            return super().popitem(last)

    buffer, entries = filled(0.0, 0.0, 0.0, 0.0)
    buffer._waiting = Interrupted(buffer._waiting)
    with pytest.raises(KeyboardInterrupt):
        buffer.take(1.0)
    buffer._options.batch_size = 4
    assert buffer.take(1.0) == (entries, "full")


@pytest.mark.parametrize("step", ["remove", "take"])
@pytest.mark.parametrize("max_weight", [None, 2.0, 9.0])
def test_ctrl_c_at_any_line_while_room_is_made_lets_nobody_in_twice(step: str, max_weight: float | None) -> None:
    lines, number = 1, -1
    while lines > number:
        number += 1
        buffer, entries = filled(0.0, 0.0, 0.0, **{**ALL_OPTIONS, "max_weight": max_weight})
        late = Entry(8, entries[0].group)
        buffer.add(late, 0.0)
        assert buffer.blocked_calls() == [late]
        taken: list[Entry] = []
        steps: dict[str, Callable[[], object]] = {
            "remove": lambda: buffer.remove(entries[1]),  # noqa: B023 - run at once
            "take": lambda: taken.extend((buffer.take(0.0) or ([], "full"))[0]),  # noqa: B023
        }
        lines = 0
        try:
            lines = at_line(number, ctrl_c, steps[step])
        except KeyboardInterrupt:
            lines = number + 1
        assert buffer.due_at < math.inf
        buffer._check()
        while batch := buffer.take(5.0):
            taken += batch[0]
        assert buffer.blocked_calls() == []
        assert len(set(taken)) == len(taken)
        assert late in taken
        assert {entries[0], entries[2]} <= set(taken)
    assert number > 20


def test_a_change_while_the_oldest_is_looked_for_is_survived() -> None:
    class ChangedOnce(OrderedDict[Entry, None]):
        looks = 0

        def __iter__(self) -> Iterator[Entry]:
            self.looks += 1
            if self.looks == 1:
                raise RuntimeError("OrderedDict mutated during iteration")
            return super().__iter__()

    buffer, _ = filled(5.0)
    buffer._waiting = ChangedOnce(buffer._waiting)
    assert buffer.due_at == 6.0
    buffer, entries = filled(5.0, 5.0, 5.0, max_pending=1)
    buffer._line = ChangedOnce(buffer._line)
    assert buffer.blocked_calls() == entries[1:]


def test_the_first_of_two_that_enter_each_other_arms_the_deadline() -> None:
    for number in range(10):
        buffer: Buffer[Entry] = Buffer(Options(9, 1.0))
        due: list[float] = []

        def add(call: Entry) -> None:
            due.append(buffer.add(call, 0.0))  # noqa: B023 - run at once

        at_line(number, lambda: add(Entry(1)), lambda: add(Entry(0)))
        assert min(due) == 1.0


def test_to_weigh_costs_the_same_however_many_wait() -> None:
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
def test_calls_that_do_not_wait_form_the_batches_that_they_would_form_if_they_did(
    calls: list[tuple[str, int]], batch_size: int, max_weight: float | None, grouped: bool
) -> None:
    buffer: Buffer[Entry] = Buffer(Options(batch_size, None, max_weight=max_weight), grouped=grouped)
    entries = [Entry(number, buffer.group_of(key, {}), weight) for number, (key, weight) in enumerate(calls)]
    at_once = batches_at_once(entries, buffer._options)
    for entry in entries:
        buffer.add(entry, 0.0)
    buffer.close()
    waited: list[list[Entry]] = []
    while taken := buffer.take(0.0):
        waited.append(taken[0])
    assert at_once == sorted(waited, key=lambda batch: batch[0].number)
