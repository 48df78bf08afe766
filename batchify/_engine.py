"""What does the owner of a buffer do next?

The rule of the house: `post()` may be called by anybody at any time, even in the midst of any other line of ours. All
else belongs to the owner: a function's flush thread, or its event loop. So what a finalizer or a signal handler posts
is harmless, and callers take no lock of ours.

What is the same for threads and event loops is written here once. They differ in how one waits.
"""

import os
import sys
import weakref
from _thread import allocate_lock
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import islice
from math import inf
from typing import Any

from ._batch import Batch, Call, MapCall, is_sound, warn_of_few_callers
from ._buffer import Buffer, EqualCalls, GroupedBuffer, arrival_of
from ._errors import ClosedError, own_copy
from ._inside import Runner, current, here
from ._options import CHECKS, NO_CONSTANTS, Options, Takes
from ._stats import Reason, Tally


class Controls:
    """What users do with a function beside calling it; the same for one engine and for many."""

    name: str
    options: Options
    closed: bool  # whoever closes or opens the function writes it, everybody reads it
    blocks: list[None]  # one entry for each `with` block that is open

    def _all(self) -> "Sequence[Engine]":
        """Return the engines."""
        raise NotImplementedError

    def everywhere(self, act: Callable[..., object], *args: Any) -> None:
        """Let the owner of each engine do that: a method of `Engine`."""
        for engine in self._all():
            engine.post_news(act, engine, *args)

    def change(self, option: str, value: Any) -> None:
        """Set `batch_size` or `timeout`."""
        setattr(self.options, option, CHECKS[option](self.name, option, value))
        self.everywhere(Engine.settings_changed)

    def drop(self) -> None:
        """Answer what waits, and end: nobody can call any more."""
        self.everywhere(Engine.closed_or_opened)

    def begin_to_close(self, *, cancel_pending: bool) -> None:
        """Refuse what comes, and make due what waits, or give it an error."""
        self.closed = True
        self.everywhere(Engine.closed_or_opened, self)
        if cancel_pending:
            for engine in self._all():
                engine.post_news(engine.refuse_waiting, engine.now())

    def open(self) -> None:
        """Begin a block, at whose end this is closed."""
        self.blocks.append(None)
        self._open_again()

    def _open_again(self) -> None:
        if self.closed:
            self.closed = False
            self.everywhere(Engine.closed_or_opened, self)

    def ends_block(self) -> bool:
        """End a block, and if it was the last one begin to close; return whether that is so."""
        with suppress(IndexError):
            self.blocks.pop()
        if self.blocks:
            return False
        self.begin_to_close(cancel_pending=False)
        if self.blocks:  # one has begun meanwhile, perhaps before this was closed
            self._open_again()
        return True


class Engine:
    """A buffer and what happens with it: who posts, who is next, who waits for the end.

    How no wake-up is lost:
      1. Awake, the owner sets wake_at = inf: nobody need ring.
      2. Before it sleeps it sets wake_at to how long the inbox must be for it to act before it wakes by itself. That is
         inf if no turn is free, as whoever ends a batch posts news.
      3. If the inbox is as long as that now, or there are news: back to 1.
      4. A caller appends to the inbox, then rings if len(inbox) >= wake_at. News go through a box of their own, and
         always ring. A ring in vain does no harm.
    So either the owner sees the entry in 3, or whoever posted it sees in 4 what was written in 2. Without a GIL this
    needs a full barrier on both sides. Assumed, and tested there: that the taking of a lock is one, which the owner
    does between 2 and 3, and the critical section in which deque.append() appends is one.
    """

    closed: bool  # as of its Controls
    tally: Tally  # there before __init__() ends; several engines may share it
    alarm_at: float = inf  # the moment at which the owner will wake by itself; it alone writes it

    def __init__(self, function: Callable[..., Any], name: str, options: Options, takes: Takes | None) -> None:
        self.function = function
        self.name = name
        self.options = options
        self.concurrency = options.concurrency
        self.takes: Takes = takes  # type: ignore[assignment]  # None: one list, and no decorated function asks
        self.grouped = takes is not None and takes.constants
        self.asks = options.ask_items or self.grouped or options.max_pending is not None
        self.bounded = options.max_pending is not None
        self.begin_anew()

    def begin_anew(self) -> None:
        """Forget all that waits and runs: at the beginning, and in a forked child, where nobody waits for that."""
        self.inbox: deque[Any] = deque()  # anybody appends; the owner alone takes out
        self.news: deque[Callable[[], object]] = deque()  # what the owner is to do; anybody appends
        self.wake_at: float = 1  # the owner alone writes it; callers read it
        # By id() of a batch, who runs it: on an event loop all of them, in order; on threads only who gives the answers
        # that a future brought. Whoever it is adds and takes away.
        self.runners: dict[int, Any] = {}
        self.maps: set[Ahead] = set()  # these may have to read on when settings change
        # The rest is the owner's, but where something else is said.
        # By id() of the batches that have taken a turn, the arrival of their oldest call. Not themselves: a batch whose
        # future is dropped must be garbage.
        self._running: dict[int, float] = {}
        self._lent: dict[int, float] = {}  # the same of those that run on a turn which another one lends
        self._halves: list[Any] = []  # halves of batches that failed; whoever ran these prepends, the owner takes
        self._drains: list[tuple[float, Callable[[], object]]] = []  # see until_answered()
        options = self.options
        alike = options.group_by is None and options.weight is None and options.max_pending is None
        kind = Buffer if alike and not (self.grouped or options.dedupe) else GroupedBuffer
        self.buffer = kind(options, self.inbox, self.tally)
        self.is_looking = False  # whether the owner is in the midst of its step
        self._must_repair = False  # whether an exception from elsewhere struck there; what ends a step well clears it
        self.tracks = False  # whether calls may be awaited inside a function; whoever passes such a one writes it
        # Whether calls may wait whose callers said that they left; else none need be asked. Where there is no owner,
        # who leaves writes it.
        self.has_leavers = False
        # The size to warn of. Not as the batch is taken, since a log handler may call in.
        self._hint = 0
        self._barrier = allocate_lock()  # taken by the owner alone

    # Anybody, at any time

    def ring(self) -> None:
        """Wake the owner."""

    def now(self) -> float:
        """Return the time by which all is measured here."""
        raise NotImplementedError

    def sleep_until(self, moment: float, head: Any) -> None:  # noqa: ARG002
        """Prepare to wake at that moment, or (inf) only when woken. Comes before anybody rings. `head`: who waits."""
        self.alarm_at = moment

    def post_news(self, act: Callable[..., object], *args: Any) -> bool:
        """Let the owner do that. False if there is none, and nothing to do."""
        self.news.append(partial(act, *args))
        self.ring()
        return True

    def post(self, calls: Sequence[Any]) -> None:
        """Let calls wait. See above for the steps."""

    def is_at_work(self) -> bool:
        """Whether, being closed, it has something to answer yet."""
        raise NotImplementedError

    @property
    def has_turn(self) -> bool:
        """Whether a batch may begin now."""
        return len(self._running) < self.concurrency

    def held_up_by(self, *, at_all: bool = False) -> Collection[Runner]:
        """Return those without whom nothing waiting is taken, or (`at_all`) not all is answered. Any thread may ask."""
        raise NotImplementedError

    def runs_alone(self, runner: Runner) -> bool:  # noqa: ARG002
        """Whether a call whose caller waits in that runner must run at once, past the buffer."""
        return False

    def run_alone(self, call: Any) -> None:
        """Run a call at once, past the buffer."""

    def batch_of_one(self, call: Any) -> Any:
        """Return a batch of a call that was never in the buffer."""
        now = call.arrival = self.now()
        entry = EqualCalls(call) if self.options.dedupe else call
        batch = self.make_batch(self, [entry], "nested", now)
        with self.tally:
            self.tally.begin("nested", 1, [now], now)
        return batch

    def ask(self, call: Call, constants: Mapping[str, Any] = NO_CONSTANTS) -> None:
        """Find out what options want to know of a call. Calls functions of the user's."""
        if self.asks:
            self.options.ask(self.name, call, self.takes, constants)

    def put(self, calls: Sequence[Any], *, waits: bool) -> None:
        """Let calls wait for an answer. `waits`: so does their caller."""
        runner = here()
        if runner is not None:
            self.tracks = True
            if waits:
                runner.take_room()
            if waits and self.runs_alone(runner):
                for call in calls:
                    self.run_alone(call)
                return
        # While it closes, a call is accepted that waits inside a function.
        if self.closed and not (waits and runner is not None and self.is_at_work()):
            raise self.closed_error()
        if self.bounded and calls[0].limited and self.is_full():
            self.tally.refuse()
            raise self.options.full_error(self.name)
        self.post(calls)

    def waiting(self) -> tuple[int, int]:
        """How many calls wait, and how many of those that stand there have left. Any thread may ask."""
        calls = self.buffer.calls()
        gone = [call for call in calls if call.has_left()]
        return len(calls) - len(gone), len(gone)

    def is_full(self) -> bool:
        """Whether `max_pending` calls wait that count."""
        most = self.options.max_pending or inf
        if len(self.inbox) + self.buffer.limited < most:
            return False  # a look is enough, as mostly
        return len([call for call in self.buffer.calls() if call.limited and not call.has_left()]) >= most

    def closed_error(self) -> ClosedError:
        """Return the error of a call that comes too late."""
        return ClosedError(f"{self.name}() is closed")

    def withdraw(self, call: Call) -> None:
        """Let a caller leave that waits for its answer no more."""
        call.leave()
        if hasattr(call, "arrival") and not self.post_news(self.left, call):  # else it was never posted
            self.has_leavers = True  # for the next owner, who may find this call

    def when_answered(self, done: Callable[[], object]) -> bool:
        """Call `done` when what was accepted so far is answered. False if it is, and `done` will not be called."""
        return self.post_news(self.until_answered, self.now(), done)

    def late_message(self, timeout: float | None) -> str:
        return f"{self.name}() has not answered within {timeout} s all that it accepted; it goes on with it"

    def flush(self, lonely: Call | None = None) -> None:
        """Make due what waits; or only if that call has nobody to wait for but others of its group."""
        version = self.tally.version
        # Not if nothing waits: some clocks stand still for long, so an item that comes now would be as old as this. But
        # what the owner just moves from inbox to buffer is seen in neither.
        if len(self.buffer) or self.tally.changing or self.tally.version is not version:
            self.post_news(self.make_due, self.now(), lonely)

    # What the owner does when news come

    def left(self, call: Call) -> None:
        self.has_leavers = True
        self.buffer.leave(call)

    def make_due(self, until: float, lonely: Call | None = None) -> None:
        if lonely is None or self.buffer.is_lonely(lonely):
            self.buffer.flush(until)

    def settings_changed(self) -> None:
        self.buffer.repair()
        for ahead in self.maps.copy():
            ahead.ring()

    def closed_or_opened(self, of: Controls | None = None) -> None:
        """Let all be due that waits, and comes, if the function is closed, or dropped (None); else no longer."""
        # Asked now, as one may close and another open it, and their news come in the other order.
        self.buffer.ends = of is None or of.closed

    def refuse_waiting(self, until: float) -> None:
        """Let what arrived until then have an error, and not what came later, when it was opened again."""
        self.buffer.flush(until)
        later: list[Any] = []
        try:
            while (taken := self.buffer.take(inf)) is not None:
                refused = [entry for entry in taken[0] if entry.arrival <= until]
                later += [entry for entry in taken[0] if entry.arrival > until]
                self.buffer.refused.append((self.buffer.calls_of(refused), self.closed_error()))
        finally:
            self.buffer.put_back(later)

    def until_answered(self, until: float, done: Callable[[], object]) -> None:
        """Make due what arrived until then, and call `done` when all of that is answered."""
        self.buffer.flush(until)
        self._drains.append((until, done))

    def turn_ended(self, batch: Batch | None, turn: list[int] | None = None) -> None:
        """Let a batch have no turn any more. `turn`: who goes on with that."""
        self._running.pop(id(batch), None)
        self._lent.pop(id(batch), None)
        for first in (turn or [])[:1]:  # a copy, as another thread may end that one now
            if first in self._lent:
                self._running[first] = self._lent.pop(first)

    # Batches

    make_batch: type[Batch]

    def claim(self, calls: list[Any]) -> list[Any]:
        """Return the calls whose callers have not left, and count the others."""
        # The first look claims nothing: if somebody has left, all others are put back, and may be cancelled.
        present = [call for call in calls if not call.has_left()]
        claimed = [call for call in present if call.claim()] if len(present) == len(calls) else present
        if len(claimed) < len(calls):
            self.tally.leave(len(calls) - len(claimed))
        return claimed

    def ended(self, batch: Batch) -> None:
        """Take notice that a batch has ended; whoever ran it calls this."""

    def again(self, parts: Sequence[Sequence[Any]]) -> None:
        """Let the halves of a batch that failed run before all that waits. It must not have ended() yet."""
        self._untrack([entry for part in parts for entry in part])
        self._halves[:0] = parts

    def _untrack(self, entries: Collection[Any]) -> None:
        """Say of calls that they wait, and are in no batch."""
        for call in self.buffer.calls_of(entries) if self.tracks else ():
            with suppress(AttributeError):  # it is in none, or this began before there were such calls
                del call.batch

    # The owner's step

    def next(self, now: float, *, rested: bool = True) -> Batch | float | None:
        """Return the batch to run now, or for how many seconds to sleep (inf: until woken), or None: it has ended.

        Not `rested`: it has just run a batch, so somebody is likely to come.
        """
        step: Batch | float | None = None
        self.is_looking = True
        try:
            while step is None:
                self.wake_at = self.alarm_at = inf  # 1.
                step = self._take_due(now, self._begin)
                if step is not None:
                    break
                head = self.buffer.head()
                if self.buffer.ends and head is None and not (self._running or self._lent or self._halves or self.news):
                    self.wake_at = 1  # for the next owner, if there will be one
                    break
                moment, wake_at = self._when_to_wake(head, now, rested=rested)
                self.sleep_until(moment, head)
                self.wake_at = wake_at  # 2.
                if self._barrier.acquire(False):  # never waits, also if Ctrl-C has left it held
                    self._barrier.release()
                if not self.news and len(self.inbox) < wake_at:  # 3.
                    step = max(0.0, moment - now)
            self._must_repair = False
            return step
        finally:
            self.is_looking = False
            del step  # a callback of a refused call may have kept this frame, and so the batch

    def _take_due(self, now: float, take: Callable[[float], Batch | None], *, lent: bool = False) -> Batch | None:
        """Hear the news, and return the batch that is due, if any is and may begin; or `take` one for a `lent` turn."""
        if self._must_repair:
            self.buffer.repair()
        self._must_repair = True  # until the owner's step has come to its end
        if self.news:
            self._hear(now)
        if self.inbox and (not self.buffer.is_inbox or self.inbox[0].arrival > now):  # else admit() would do nothing
            self.buffer.admit(now)
        while self.buffer.refused:
            self._refuse()
        if self._drains and not self.buffer.ends:  # else who notices the end says it
            self.say_what_is_answered()
        if self._hint:
            size, self._hint = self._hint, 0
            warn_of_few_callers(self.name, size, self.options.batch_size, self.options.timeout)
        is_free = lent or len(self._running) < self.concurrency
        if not is_free or not (self.inbox or self.buffer.waiting or self._halves):
            return None
        with self.tally:
            return take(now)

    def _when_to_wake(self, head: Any, now: float, *, rested: bool) -> tuple[float, float]:
        """Return the moment at which to wake, and how long the inbox must be to wake before."""
        timeout = inf if self.options.timeout is None else self.options.timeout
        if len(self._running) >= self.concurrency:
            return inf, inf
        if self.buffer.ends:
            return now if head is not None else inf, 1
        if head is None and (rested or timeout == 0.0):
            return inf, 1
        # Right after a batch it sleeps for as long as an item may wait. One that comes meanwhile is due later than
        # that, so it need not wake this to be timed: one wake-up for each batch instead of two.
        return (now if head is None else head.arrival) + timeout, self.buffer.wake_at()

    def _hear(self, now: float) -> None:
        with self.tally:
            while self.news:
                act = self.news[0]  # not lost if that fails; all of these may be done twice
                self.buffer.admit(now)  # what was posted before
                act()
                self.news.popleft()

    def _take(self, now: float, awaited: Any = None, *, skips: bool = False) -> Batch | None:
        """Return the batch that is due, if any is; or the next one of the group of a call that is `awaited` inside.

        That one need not hold the call, as others of the group come first. With `skips` it begins with the call, and
        those before wait on.
        """
        buffer = self.buffer
        if awaited is not None and (awaited.is_over() or hasattr(awaited, "batch")):
            return None  # meanwhile
        taken: tuple[list[Any], Reason] | None
        while True:
            taken = (self._halves.pop(0), "isolate") if self._halves else buffer.take(now, awaited, skips=skips)
            if taken is None:
                return None
            entries, reason = taken
            batch = None
            try:
                calls: Any = buffer.calls_of(entries) if self.options.dedupe else entries
                if reason != "isolate":  # else they are counted as running
                    claimed = self.claim(calls)
                    if self.has_leavers and not (len(buffer) or buffer.refused):
                        self.has_leavers = False  # all of them were met
                    if len(claimed) < len(calls):
                        for call in claimed:
                            call.unclaim()
                        if calls is not entries:
                            present = set(claimed)
                            for entry in entries:
                                entry[:] = filter(present.__contains__, entry)
                            claimed = [entry for entry in entries if entry]
                        # Without those who left they may not be due, or have room for more.
                        buffer.put_back(claimed, skipped=skips)
                        continue
                batch = self.make_batch(self, entries, reason, now)
                if self.tracks:
                    reference = weakref.ref(batch)
                    for call in calls:
                        call.batch = reference
                # Where functions return futures, one may wait inside while a turn is free for its thread alone.
                (self._running if awaited is None or self.has_turn else self._lent)[id(batch)] = entries[0].arrival
                arrivals = list(map(arrival_of, calls))
                # Last, since it is not undone.
                if self.tally.begin(reason, len(entries), arrivals, now, self.options.timeout):
                    self._hint = len(arrivals)
            except BaseException:  # no memory: nobody else knows these calls
                self._untrack(entries)
                self.turn_ended(batch)
                if batch is not None:
                    batch.to_answer.clear()  # else it would answer them as it is dropped
                if reason == "isolate":
                    self._halves.insert(0, entries)
                else:
                    buffer.put_back(entries, skipped=skips)
                raise
            return batch

    # How next() begins what is due: threads take the batch, event loops start a task, which takes it.
    _begin: Any = _take

    def _refuse(self) -> None:
        """Give calls an error, in place of an answer of the function's."""
        with self.tally, self.tally.lock:
            refused, error = self.buffer.refused.pop(0)
            calls = self.claim(list(refused))
            self.tally.failed += len(calls)
        for call in calls:
            call.tell((call,), (own_copy(error, self.name),), 1)

    def say_what_is_answered(self) -> None:
        """Say so to those who wait for it; at the end to all."""
        heads = [self.buffer.head(), *(part[0] for part in self._halves.copy())]
        waiting = [head.arrival for head in heads if head is not None]
        oldest = min((*waiting, *self._running.values(), *self._lent.values()), default=inf)
        for until, done in self._drains.copy():
            if oldest > until:
                done()
                self._drains.remove((until, done))


class Ahead:
    """What a map has read and not yielded yet: at most two batches of items."""

    def __init__(
        self, engine: Engine, constants: Mapping[str, Any], ring: Callable[[], object], *, returns_errors: bool
    ) -> None:
        self._engine = engine
        self._returns_errors = returns_errors  # in the place of their results
        self._taken = 0  # results
        self._broken: MapCall | None = None  # stands for an item that was not there, and is the last one
        self._ask = partial(engine.ask, constants=constants)
        self.wake = ring
        self.has_rung = False  # since it began to read on
        self.calls: deque[MapCall] = deque()
        self.more = True  # whether there may be further items
        engine.maps.add(self)

    def ring(self) -> None:
        """Wake the map: there is an answer, or the settings have changed. Any thread may call."""
        self.has_rung = True
        self.wake()

    def reads(self, items: Iterator[Any], *, one_by_one: bool = False) -> bool:
        """Read on. Return whether there is a further result."""
        self.has_rung = False  # before it looks at what may change
        size = self._engine.options.batch_size
        most = 1 if one_by_one else min(size, sys.maxsize)
        # One by one, it does not wait for the next item to come while a result is there.
        while self.more and len(self.calls) <= size and not (one_by_one and self.calls and self.calls[0].is_over()):
            if self.put(islice(items, most)) < most:
                self.has_ended()
        return bool(self.calls)

    def put(self, items: Iterable[Any]) -> int:
        """Let items wait. Return how many they were; what they raise is raised behind the results of those before."""
        calls: list[MapCall] = []
        try:
            for item in items:
                call = MapCall()
                call.item, call.bell = item, self
                calls.append(call)
        except Exception as error:  # noqa: BLE001 - whatever they raise
            self._broken = MapCall()
            self._broken.error = error
        sound = [call for call in calls if is_sound(call, self._ask)] if self._engine.asks else calls
        try:
            if sound:
                self._engine.put(sound, waits=True)
            self.calls.extend(calls if self._broken is None else (*calls, self._broken))
        except BaseException:  # it was closed, perhaps; what was read before is answered all the same
            for call in calls:
                self._engine.withdraw(call)
            raise
        if len(sound) < len(calls):
            self.ring()  # an error is there
        return len(calls)

    def take(self, most: int = sys.maxsize) -> deque[Any]:
        """Return the next results, or raise the next error; the map sleeps if none is there.

        Not all of them, if that would keep it from reading on.
        """
        results: deque[Any] = deque()
        calls = self.calls
        if self.more:
            most = min(most, max(1, len(calls) - self._engine.options.batch_size))
        for _ in range(min(most, len(calls))):
            if getattr(calls[0], "error", self) is not None:  # there is none yet, or it is an error
                break
            results.append(calls.popleft().value)
        if not results and calls and hasattr(calls[0], "error"):  # or a result that has come just now
            results.append(self._outcome(calls.popleft()))
        self._taken += len(results)
        if not results:
            self.make_due()
        return results

    def _outcome(self, call: MapCall) -> Any:
        if call.error is not None and call is not self._broken:
            if self._returns_errors:
                return call.error
            with suppress(Exception):  # its type may forbid that
                call.error.add_note(f"{self._engine.name}() was mapped: this is of item {self._taken}, counted from 0")
        return call.outcome()

    def make_due(self) -> None:
        """See to it that the next answer comes, as the map is going to sleep."""
        if self.calls and self._engine.options.fills_by_groups:
            self._engine.flush(self.calls[0])

    def has_ended(self) -> None:
        """Say that there are no more items."""
        if self.more:
            self.more = False
            self._engine.flush()  # nothing of this map will join what is left

    @property
    def is_full(self) -> bool:
        """Whether as much is read as may be."""
        return len(self.calls) >= 2 * self._engine.options.batch_size

    def end(self) -> None:
        """Let go of what has no answer yet."""
        self.more = False
        self._engine.maps.discard(self)
        for call in self.calls:
            self._engine.withdraw(call)


def is_on_trio() -> bool:
    """Whether an event loop of trio's runs on this thread."""
    runs = getattr(sys.modules.get("trio.lowlevel"), "in_trio_run", None)  # None as well: it is being imported now
    return runs is not None and runs()


def begin_anew_in_children(live: "weakref.WeakKeyDictionary[Any, None]") -> None:
    """Let what lives then begin_anew() in each forked child.

    A child touches no dictionary that others use: without a GIL another thread may have locked that as this one forked,
    and nobody unlocks it there.
    """
    known: list[weakref.ref[Any]] = []

    def list_them() -> None:
        nonlocal known
        known = live.keyrefs()

    def begin_anew() -> None:
        runner = current.get()
        if runner is not None:
            runner.thread = None  # who forks inside a function is outside from now on
        for reference in known:
            of_parent = reference()
            if of_parent is not None:
                of_parent.begin_anew()

    if hasattr(os, "register_at_fork"):
        os.register_at_fork(before=list_them, after_in_child=begin_anew)
