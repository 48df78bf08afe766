"""The owner's step beside a plain list, with any options together. No thread, no sleep: the clock is moved by hand."""

import math
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from batchify import BufferFullError, ClosedError

from .. import inside
from ..inside import Call, HandBatch, HandEngine, Options

if TYPE_CHECKING:
    from collections.abc import Callable

# All times are multiples of this, so that sums of them are exact.
TICK = 0.25
TICKS = st.integers(0, 8).map(lambda ticks: ticks * TICK)
TIMEOUTS = st.none() | TICKS


class Item(NamedTuple):
    value: int
    group: int
    weight: int


ITEMS = st.builds(Item, st.integers(0, 1), st.integers(0, 2), st.integers(0, 4))


class Entry:
    """What stands in the list: a call, or with `dedupe` all calls of one item that wait."""

    def __init__(self, call: Call, arrival: float) -> None:
        self.callers = [call]
        self.item: Item = call.item
        self.arrival = arrival

    @property
    def present(self) -> list[Call]:
        """The calls whose callers have not left."""
        return [call for call in self.callers if not call.has_left()]


class Drain:
    """Somebody who wants to hear when what was accepted before is answered."""

    def __init__(self, covered: list[Call], until: float) -> None:
        self.covered = covered
        self.until = until  # these arrived until then, and perhaps others
        self.is_heard = False
        self.told = 0

    def tell(self) -> None:
        assert all(call.is_over() for call in self.covered), "told too early"
        self.told += 1


class EngineAgainstList(RuleBasedStateMachine):
    """Does `next()` say what somebody says who looks through a list of all that waits?

    The driver looks when it was rung, when its sleep ends, and now and then for no reason.
    """

    @initialize(
        batch_size=st.integers(1, 4),
        timeout=TIMEOUTS,
        grouped=st.booleans(),
        max_weight=st.none() | st.integers(1, 9),
        max_pending=st.none() | st.integers(1, 6),
        dedupe=st.booleans(),
        plain=st.booleans(),
        isolate=st.booleans(),
        concurrency=st.integers(1, 3),
        ended_by_news=st.booleans(),
        clock_jumps=st.booleans(),
    )
    def begin(
        self,
        batch_size: int,
        timeout: float | None,
        grouped: bool,
        max_weight: float | None,
        max_pending: int | None,
        dedupe: bool,
        plain: bool,
        isolate: bool,
        concurrency: int,
        ended_by_news: bool,
        clock_jumps: bool,
    ) -> None:
        self.options = Options(batch_size, timeout, isolate=isolate, concurrency=concurrency)
        if not plain:
            self.options.group_by = (lambda item: item.group) if grouped else None
            self.options.weight = (lambda item: item.weight) if max_weight else None
            self.options.max_weight, self.options.max_pending, self.options.dedupe = max_weight, max_pending, dedupe
        more = (self.options.group_by, max_weight, max_pending, dedupe or None)
        self.plain = plain or more == (None, None, None, None)
        self.engine = HandEngine(self.options, ended_by_news=ended_by_news)
        # Of a call that stands behind one whose caller has left the plain buffer learns late that its arrival lies in
        # the future. So one of the two.
        self.clock_jumps = clock_jumps
        self.posted: list[Call] = []
        self.posted_at: dict[Call, float] = {}
        self.inbox: list[Call] = []
        self.waiting: list[Entry] = []
        self.news: list[Callable[[], object]] = []
        self.parts: list[list[Entry]] = []
        self.running: list[tuple[HandBatch, list[Entry]]] = []
        self.turns_taken: list[list[Entry]] = []
        self.drains: list[Drain] = []
        self.refused: list[Call] = []
        self.load_shed = 0
        self.flushed_at = -math.inf
        self.ends = False
        self.sleeps_until, self.rung_before = math.inf, 0
        self.rested = True

    @property
    def now(self) -> float:
        return self.engine.moment

    # The list

    def key(self, item: Item) -> int:
        return item.group if self.options.group_by is not None else 0

    def admit(self, calls: list[Call], waiting: list[Entry]) -> None:
        """Let calls stand in the list where they belong."""
        for call in calls:
            arrival = call.arrival if self.plain else min(call.arrival, self.now)
            equal = [entry for entry in waiting if entry.item == call.item] if self.options.dedupe else []
            if equal:
                equal[0].callers.append(call)
                continue
            position = len(waiting)
            while not self.plain and position and waiting[position - 1].arrival > arrival:
                position -= 1
            waiting.insert(position, Entry(call, arrival))

    @staticmethod
    def present(waiting: list[Entry]) -> list[Entry]:
        return [entry for entry in waiting if entry.present]

    def groups(self, waiting: list[Entry]) -> list[list[Entry]]:
        """Those that may share a batch; the one whose oldest has waited longest first."""
        keys = dict.fromkeys(self.key(entry.item) for entry in waiting)
        return [[entry for entry in waiting if self.key(entry.item) == key] for key in keys]

    def is_full(self, group: list[Entry]) -> bool:
        weight = sum(entry.item.weight for entry in group)
        return len(group) >= self.options.batch_size or weight >= (self.options.max_weight or math.inf)

    def batch(self, group: list[Entry]) -> list[Entry]:
        chosen: list[Entry] = []
        for entry in group[: self.options.batch_size]:
            weight = sum(each.item.weight for each in [*chosen, entry])
            if chosen and weight > (self.options.max_weight or math.inf):
                break
            chosen.append(entry)
        return chosen

    def limit_is_reached(self, waiting: list[Entry]) -> bool:
        limited = sum(call.limited for entry in waiting for call in entry.present)
        return limited >= (self.options.max_pending or math.inf)

    def due_at(self, arrival: float) -> float:
        return math.inf if self.options.timeout is None else arrival + self.options.timeout

    def reason(self, group: list[Entry], *, is_oldest: bool, waiting: list[Entry]) -> str:
        """Why the group is due; empty if it is not."""
        arrival = group[0].arrival
        if self.is_full(group) or (is_oldest and self.limit_is_reached(waiting)):
            return "full"
        if self.ends:
            return "close"
        if arrival <= self.flushed_at:
            return "flush"
        why = "timeout" if self.options.timeout else "free"
        return why if self.due_at(arrival) <= self.now else ""

    def expected(self) -> list[tuple[list[Entry], str]]:
        """The batch that is to come, and why; one of them, if there are two that came at the same moment."""
        waiting = self.present(self.waiting)
        groups = self.groups(waiting)
        oldest = min((group[0].arrival for group in groups), default=math.inf)
        reasons = [self.reason(each, is_oldest=each[0].arrival == oldest, waiting=waiting) for each in groups]
        due = [(group, reason) for group, reason in zip(groups, reasons, strict=True) if reason]
        first = min((group[0].arrival for group, _ in due), default=math.inf)
        return [(self.batch(group), reason) for group, reason in due if group[0].arrival == first]

    @property
    def some_have_left(self) -> bool:
        """Whether calls stand in the list whose callers have left: it may be that the owner does not know yet."""
        return any(call.has_left() for entry in self.waiting for call in entry.callers)

    # What anybody does

    @rule(item=ITEMS, limited=st.booleans(), late=st.sampled_from([0.0] * 6 + [TICK, 2 * TICK, -TICK, -100.0]))
    def post(self, item: Item, limited: bool, late: float) -> None:
        """Post a call. Its caller may have been interrupted after its look at the clock, or that may be wrong."""
        if late < 0 and not self.clock_jumps:
            late = 0.0
        call = self.engine.call(item, limited=limited, arrival=self.now - late)
        everybody = self.copy_of_all()
        if limited and self.limit_is_reached(everybody):
            with pytest.raises(BufferFullError):
                self.engine.put((call,), waits=False)
            self.load_shed += 1
            return
        self.engine.put((call,), waits=False)
        self.posted.append(call)
        self.inbox.append(call)
        self.posted_at[call] = self.now

    @rule(ticks=st.sampled_from([TICK, TICK, 4 * TICK]))
    def time_passes(self, ticks: float) -> None:
        self.engine.moment += ticks

    @precondition(lambda self: len(self.posted) > 0 and not (self.plain and self.clock_jumps))
    @rule(data=st.data(), says_so=st.booleans())
    def leave(self, data: st.DataObject, says_so: bool) -> None:
        """A caller leaves. It says so, but for one whose future is cancelled on a loop."""
        here = [call for call in self.posted if not call.is_over()]
        if not here:
            return
        call = here[data.draw(st.integers(0, len(here) - 1))]
        # One who leaves without a word counts until it is noticed, so with these others may be due a little early.
        options = self.options
        if says_so or options.dedupe or options.max_pending is not None or options.max_weight is not None:
            self.engine.withdraw(call)
            self.news.append(lambda: self.hear_that_it_left(call))
        else:
            call.leave()

    def hear_that_it_left(self, call: Call) -> None:
        for entry in self.waiting.copy():
            if call in entry.callers:
                entry.callers.remove(call)
                if not entry.callers:
                    self.waiting.remove(entry)

    @precondition(lambda self: not self.clock_jumps)
    @rule()
    def flush(self) -> None:
        """Flush what arrived until now. Nothing, if nothing waits: some clocks stand still for long."""
        until = self.now
        some_wait = len(self.copy_of_all()) > 0
        if len(self.engine.buffer) > 0 and not some_wait:
            return  # only such as have left: the owner may know that, or not
        self.engine.flush()
        if some_wait:
            self.news.append(lambda: self.hear_flush(until))

    def hear_flush(self, until: float) -> None:
        self.flushed_at = max(self.flushed_at, until)

    @precondition(lambda self: len(self.inbox) + len(self.waiting) > 0 and not self.clock_jumps)
    @rule(data=st.data())
    def flush_if_lonely(self, data: st.DataObject) -> None:
        here = [*self.inbox, *(call for entry in self.waiting for call in entry.callers)]
        call, until = here[data.draw(st.integers(0, len(here) - 1))], self.now
        self.engine.flush(call)
        self.news.append(lambda: self.hear_lonely(call, until))

    def hear_lonely(self, call: Call, until: float) -> None:
        """Only others of its group make it due: not if its group is full, nor where all are of one group."""
        for group in self.groups(self.waiting):
            is_mine = any(call in entry.callers for entry in group) and not self.plain
            if is_mine and min(call.arrival, self.now) > self.flushed_at and not self.is_full(group):
                self.hear_flush(until)
                return

    @precondition(lambda self: not self.clock_jumps)
    @rule()
    def drain(self) -> None:
        drain = Drain([call for call in self.posted if not call.is_over()], self.now)
        self.drains.append(drain)
        self.engine.when_answered(drain.tell)
        self.news.append(lambda: self.hear_drain(drain))

    def hear_drain(self, drain: Drain) -> None:
        self.hear_flush(drain.until)
        if self.ends:
            drain.until = math.inf
        drain.is_heard = True

    @rule(batch_size=st.integers(1, 5), timeout=TIMEOUTS)
    def change_settings(self, batch_size: int, timeout: float | None) -> None:
        self.options.batch_size, self.options.timeout = batch_size, timeout
        self.engine.post_news(self.engine.settings_changed)
        self.news.append(lambda: None)

    @precondition(lambda self: len(self.posted) > 15)
    @rule(cancel_pending=st.booleans())
    def close(self, cancel_pending: bool) -> None:
        self.engine.post_news(self.engine.closed_or_opened)
        self.news.append(lambda: setattr(self, "ends", True))
        if cancel_pending and not self.clock_jumps:
            until = self.now
            self.engine.post_news(self.engine.refuse_waiting, until)
            self.news.append(lambda: self.hear_refuse_waiting(until))

    def hear_refuse_waiting(self, until: float) -> None:
        self.flushed_at = max(self.flushed_at, until)
        refused = [entry for entry in self.waiting if entry.arrival <= until]
        self.refused += [call for entry in refused for call in entry.callers]
        self.waiting = [entry for entry in self.waiting if entry not in refused]

    @precondition(lambda self: self.ends)
    @rule()
    def open_again(self) -> None:
        self.engine.post_news(self.engine.closed_or_opened, SimpleNamespace(closed=False))
        self.news.append(lambda: setattr(self, "ends", False))

    # What whoever runs a batch does

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def answer(self, data: st.DataObject) -> None:
        batch, entries = self.running.pop(data.draw(st.integers(0, len(self.running) - 1)))
        batch.settle([f"{item} answered" for item in [entry.item for entry in entries]])
        for call in (call for entry in entries for call in entry.present):
            assert call.outcome() == f"{call.item} answered"
            assert call.bell.told == 1
        self.end_turn(entries)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def fail(self, data: st.DataObject) -> None:
        batch, entries = self.running.pop(data.draw(st.integers(0, len(self.running) - 1)))
        batch.fail(ValueError())
        if self.options.isolate and len(entries) > 1:
            middle = len(entries) // 2
            self.parts[:0] = [entries[:middle], entries[middle:]]
        else:
            for call in (call for entry in entries for call in entry.present):
                assert type(call.error) is ValueError
                assert call.bell.told == 1
        self.end_turn(entries)

    def end_turn(self, entries: list[Entry]) -> None:
        if self.engine.ended_by_news:
            self.news.append(lambda: self.turns_taken.remove(entries))
        else:  # the owner has run it, so it is awake
            self.turns_taken.remove(entries)
            self.engine.rung += 1

    # What the owner does

    def is_awake(self) -> bool:
        return self.engine.rung > self.rung_before

    @precondition(lambda self: self.is_awake() or self.now >= self.sleeps_until)
    @rule(fails=st.sampled_from([False] * 5 + [True]))
    def wake(self, fails: bool) -> None:
        self.look(fails=fails)

    @rule(fails=st.sampled_from([False] * 5 + [True]))
    def wake_without_a_reason(self, fails: bool) -> None:
        self.look(fails=fails)

    def look(self, *, fails: bool = False) -> Any:
        self.admit(self.inbox, self.waiting)
        self.inbox.clear()
        while self.news:
            self.news.pop(0)()
        self.waiting = [entry for entry in self.waiting if entry.callers]
        for entry in self.present(self.waiting)[:1]:
            entry.arrival = min(entry.arrival, self.now)
        self.engine.fails = fails
        try:
            step = self.engine.next(self.now, rested=self.rested)
        except MemoryError:
            assert fails
            self.engine.rung += 1  # so its driver looks again
            return None
        self.engine.fails = False
        if isinstance(step, HandBatch):
            self.begins(step)
        elif step is None:
            self.ended()
        else:
            assert isinstance(step, float)
            self.sleeps(step)
        self.rested = not isinstance(step, HandBatch)
        self.drains = [drain for drain in self.drains if not drain.told]
        return step

    def begins(self, batch: HandBatch) -> None:
        assert len(self.turns_taken) < self.options.concurrency
        found = [call for call in batch.callers if not call.has_left()]
        if self.parts:
            assert batch.reason == "isolate"
            entries = self.parts.pop(0)
            while not any(call in batch.callers for entry in entries for call in entry.callers):
                assert not self.present(entries)  # so that it need not run
                entries = self.parts.pop(0)
            assert found == [call for entry in entries for call in entry.present]
        else:
            expected = [([call for entry in each for call in entry.present], why) for each, why in self.expected()]
            assert (found, batch.reason) in expected
            assert batch.callers == found, "callers that have left are in it"
            entries = next(each for each, _ in self.expected() if found[0] in each[0].callers)
            for entry in entries:
                entry.callers = entry.present
            # Those who left without a word and stood before or between these are passed over.
            self.waiting = [entry for entry in self.waiting if entry not in entries]
        self.running.append((batch, entries))
        self.turns_taken.append(entries)

    def ended(self) -> None:
        assert self.ends
        assert not self.present(self.waiting)
        assert not self.turns_taken
        assert not any(self.present(part) for part in self.parts)
        self.nothing_is_refused_any_more()
        self.engine.say_what_is_answered()
        assert all(drain.told for drain in self.drains)
        self.sleeps_until, self.rung_before = math.inf, self.engine.rung

    def sleeps(self, seconds: float) -> None:
        until = self.now + seconds
        waiting = self.present(self.waiting)
        free = len(self.turns_taken) < self.options.concurrency
        if not free:
            assert until == math.inf
        else:
            assert not any(self.present(part) for part in self.parts)
            assert self.expected() == []
            assert waiting or not self.ends or self.turns_taken or self.some_have_left
            expected = self.due_at(waiting[0].arrival) if waiting else math.inf
            if not (waiting or self.rested or self.ends) and self.options.timeout != 0.0:
                expected = self.due_at(self.now)  # it sleeps for as long as one that comes may wait
            assert until == expected or (until < expected and self.some_have_left)
        self.nothing_is_refused_any_more()
        if free or not self.some_have_left:
            for drain in self.drains:
                assert drain.told or self.waits_for_something(drain), "told too late"
        self.sleeps_until, self.rung_before = until, self.engine.rung

    def waits_for_something(self, drain: Drain) -> bool:
        if self.ends:
            return True  # it is told at the end
        entries = [*self.waiting, *(entry for part in [*self.parts, *self.turns_taken] for entry in part)]
        return any(entry.arrival <= drain.until for entry in entries)

    def nothing_is_refused_any_more(self) -> None:
        for call in self.refused:
            assert call.has_left() or type(call.error) is ClosedError
        self.refused.clear()

    # What is always true

    def copy_of_all(self) -> list[Entry]:
        """All that waits, as if the owner had looked just now."""
        waiting = []
        for entry in self.waiting:
            waiting.append(Entry(entry.callers[0], entry.arrival))
            waiting[-1].callers = entry.callers.copy()
        self.admit(self.inbox, waiting)
        return self.present(waiting)

    @invariant()
    def buffer_is_sound(self) -> None:
        if not self.news:  # else it may not know yet of a smaller batch_size
            inside.check(self.engine.buffer)

    @invariant()
    def owner_that_was_not_rung_oversleeps_nothing(self) -> None:
        if self.is_awake() or self.now >= self.sleeps_until or len(self.turns_taken) >= self.options.concurrency:
            return
        waiting = self.copy_of_all()
        assert not any(map(self.is_full, self.groups(waiting)))
        assert not (self.limit_is_reached(waiting) and waiting)
        assert not (self.ends and waiting)
        for call in self.inbox:
            if not call.has_left():
                assert self.sleeps_until <= self.due_at(self.posted_at[call])

    @invariant()
    def figures_add_up(self) -> None:
        stats = self.engine.tally.read(self.engine.waiting)
        if not self.refused:  # else there was no memory to give them their error
            assert stats.accepted == len(self.posted)
        assert stats.refused == self.load_shed
        assert stats.pending == sum(len(entry.present) for entry in self.copy_of_all())
        assert stats.in_flight == len(self.running)
        runs = [*(entries for _, entries in self.running), *self.parts]
        assert stats.running == sum(len(entry.callers) for entries in runs for entry in entries)
        assert self.engine.is_full() == self.limit_is_reached(self.copy_of_all())

    def teardown(self) -> None:
        """Close it: everybody who has not left is answered."""
        if not hasattr(self, "engine"):
            return
        self.close(cancel_pending=False)
        for _ in range(1000):
            step = self.look()
            while self.running:
                batch, entries = self.running.pop()
                batch.settle([entry.item for entry in entries])
                self.end_turn(entries)
            if step is None:
                break
        else:
            pytest.fail("it does not end")
        assert all(call.is_over() for call in self.posted)
        assert not (self.waiting and self.present(self.waiting))
        self.figures_add_up()
        stats = self.engine.tally.read(self.engine.waiting)
        assert (stats.pending, stats.running, stats.in_flight) == (0, 0, 0)
        assert len(self.posted) == stats.answered + stats.failed + stats.cancelled


TestEngineAgainstList = pytest.mark.thread_unsafe(reason="ast.parse() of CPython 3.11")(EngineAgainstList.TestCase)
TestEngineAgainstList.settings = settings(max_examples=200, stateful_step_count=60, deadline=None)
