"""What does the owner of a buffer do next?

The rule of the house: `post()` may be called by anybody at any time, even in the midst of any other line of ours. All
else belongs to the owner: a function's flush thread, or its event loop. So what a finalizer or a signal handler posts
is harmless, and callers take no lock of ours.

What is the same for threads and event loops is written here once. They differ in how one waits.
"""

from _thread import allocate_lock
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from math import inf
from typing import Any

from ._batch import Batch, Call, advise
from ._buffer import Buffer, Equal, GroupedBuffer, arrival_of
from ._errors import ClosedError, own_copy
from ._options import NO_CONSTANTS, Options, Takes, check_count, check_timeout
from ._stats import Reason, Tally


class Controls:
    """What users do with a function beside calling it; the same for one engine and for many."""

    name: str
    options: Options
    # Whoever closes or opens the function writes it, everybody reads it.
    closed: bool
    blocks: list[None]  # one entry for each `with` block that is open

    def _all(self) -> "Sequence[Engine]":
        """Return the engines."""
        raise NotImplementedError

    def everywhere(self, act: Callable[..., object], *args: Any) -> None:
        """Let the owner of each engine do that: a method of `Engine`."""
        for engine in self._all():
            engine.let(act, engine, *args)

    @property
    def batch_size(self) -> int:
        return self.options.batch_size

    @batch_size.setter
    def batch_size(self, value: int) -> None:
        self.options.batch_size = check_count(self.name, "batch_size", value)
        self.everywhere(Engine.settings_changed)

    @property
    def timeout(self) -> float | None:
        return self.options.timeout

    @timeout.setter
    def timeout(self, value: float | None) -> None:
        self.options.timeout = check_timeout(self.name, value)
        self.everywhere(Engine.settings_changed)

    def drop(self) -> None:
        """Answer what waits, and end: nobody can call any more."""
        self.everywhere(Engine.all_is_due)

    def begin_to_close(self, *, cancel_pending: bool) -> None:
        """Refuse what comes, and make due what waits, or give it an error."""
        self.closed = True
        self.everywhere(Engine.all_is_due, self)
        if cancel_pending:
            for engine in self._all():
                engine.let(engine.refuse_waiting, engine.now())

    def open(self) -> None:
        """Begin a block, at whose end this is closed."""
        self.blocks.append(None)
        self._open_again()

    def _open_again(self) -> None:
        if self.closed:
            self.closed = False
            self.everywhere(Engine.all_is_due, self)

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

    inbox: deque[Any]  # anybody appends; the owner alone takes out
    news: deque[Callable[[], object]]  # what the owner is to do; anybody appends
    wake_at: float  # the owner alone writes it; callers read it
    wakes_at: float = inf  # the moment at which the owner will wake by itself; it alone writes it

    def __init__(
        self,
        function: Callable[..., Any],
        name: str,
        options: Options,
        takes: Takes | None,  # None: one list, and no decorated function asks
        tally: Tally,
    ) -> None:
        self.function = function
        self.name = name
        self.options = options
        self.takes: Takes = takes  # type: ignore[assignment]
        self.grouped = takes is not None and takes.constants
        self.asks = options.ask_items or self.grouped or options.max_pending is not None
        self.bounded = options.max_pending is not None
        self.tally = tally
        self.begin_anew()

    def begin_anew(self) -> None:
        """Forget all that waits and runs: at the beginning, and in a forked child, where nobody waits for that."""
        self.life = object()
        self.count_left = partial(_count_left, self.tally)  # not a method: the buffer keeps it
        self.inbox = deque()
        self.news = deque()
        self.wake_at = 1
        self.places: set[Any] = set()  # see _inside; added to and taken from by whoever is there
        self.bells: set[Callable[[], object]] = set()  # of maps, which may have to read on when settings change
        # The rest is the owner's.
        self.turns = self.options.concurrency  # how many further batches may begin
        # By id() of the batches that have taken a turn, the arrival of their oldest call. Not themselves: a batch whose
        # future is dropped must be garbage.
        self._running: dict[int, float] = {}
        self._parts: deque[Any] = deque()  # of batches that failed and are to run again, before what waits
        self._refused: deque[tuple[Sequence[Any], BaseException]] = deque()  # calls that are to get an error
        self._drains: list[tuple[float, Callable[[], object]]] = []  # see until_answered()
        self.buffer = self._make_buffer(self.inbox, self._refused)
        self._disturbed = False  # whether an exception from elsewhere struck while the owner looked
        self._hint = 0  # the size of batches, if it is to be said that they are never full
        self._barrier = allocate_lock()  # taken by the owner alone

    def _make_buffer(self, inbox: deque[Any], refused: Any) -> Buffer:
        options = self.options
        alike = options.group_by is None and options.weight is None and options.max_pending is None
        if alike and not self.grouped and not options.dedupe:
            return Buffer(options, inbox, self.count_left)
        return GroupedBuffer(options, inbox, self.count_left, refused.append)

    # Anybody, at any time

    def ring(self) -> None:
        """Wake the owner."""
        raise NotImplementedError

    def now(self) -> float:
        """Return the time by which all is measured here."""
        raise NotImplementedError

    def sleep_until(self, moment: float) -> None:
        """Prepare to wake at that moment, or (inf) only when woken. Comes before anybody rings."""
        self.wakes_at = moment

    def let(self, act: Callable[..., object], *args: Any) -> None:
        """Let the owner do that."""
        self.news.append(partial(act, *args))
        self.ring()

    def ask(self, call: Call, constants: Mapping[str, Any] = NO_CONSTANTS) -> None:
        """Find out what options want to know of a call. Calls functions of the user's."""
        self.options.ask(self.name, call, self.takes, constants)

    def waiting(self) -> tuple[int, int]:
        """How many calls wait, and how many of those that stand there have left. Any thread may ask."""
        calls = self.buffer.calls()
        gone = [call for call in calls if call.has_left()]
        return len(calls) - len(gone), sum(not getattr(call, "is_alone", False) for call in gone)

    def is_full(self) -> bool:
        """Whether `max_pending` calls wait that count."""
        most = self.options.max_pending
        return most is not None and sum(call.limited and not call.has_left() for call in self.buffer.calls()) >= most

    def refuse_if_full(self, call: Call) -> None:
        """Raise if the call finds too many waiting."""
        if call.limited and self.is_full():
            self.tally.refuse()
            call.leave()
            raise self.options.full_error(self.name)

    def closed_error(self) -> ClosedError:
        """Return the error of a call that comes too late."""
        return ClosedError(f"{self.name}() is closed")

    def withdraw(self, call: Call) -> None:
        """Let a caller leave that waits for its answer no more."""
        call.leave()
        self.let(self.left, call)

    def when_answered(self, done: Callable[[], object]) -> bool:
        """Call `done` when what was accepted so far is answered. False if it is, and `done` will not be called."""
        self.let(self.until_answered, self.now(), done)
        return True

    def late_message(self, timeout: float | None) -> str:
        return f"{self.name}() has not answered within {timeout} s all that it accepted; it goes on with it"

    def flush(self, lonely: Call | None = None) -> None:
        """Make due what waits; or only if that call has nobody to wait for but others of its group."""
        if len(self.buffer):  # else what comes at this very moment would be due, as some clocks stand still for long
            self.let(self.make_due, self.now(), lonely)

    # What the owner does when news come

    def left(self, call: Call) -> None:
        self.buffer.leave(call)

    def make_due(self, until: float, lonely: Call | None = None) -> None:
        if lonely is None or self.buffer.is_lonely(lonely):
            self.buffer.flush(until)

    def settings_changed(self) -> None:
        self.buffer.adapt()
        for bell in self.bells.copy():
            bell()

    def all_is_due(self, of: Controls | None = None) -> None:
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
                self._refused.append((self.callers(refused), self.closed_error()))
        finally:
            self.buffer.put_back(later)

    def until_answered(self, until: float, done: Callable[[], object]) -> None:
        """Make due what arrived until then, and call `done` when all of that is answered."""
        self.buffer.flush(until)
        self._drains.append((until, done))

    def turn_ended(self, batch: Batch) -> None:
        if self._running.pop(id(batch), None) is not None:
            self.turns += 1

    # Batches

    make_batch: type[Batch]

    def callers(self, entries: Sequence[Any]) -> Sequence[Any]:
        """Return the calls that these entries stand for."""
        return [call for entry in entries for call in entry.callers] if self.options.dedupe else entries

    def claim(self, entries: list[Any]) -> list[Any]:
        """Return the entries whose callers have not left, and count those who have."""
        if entries and type(entries[0]) is Equal:
            for entry in entries:
                entry.callers = self.claim(entry.callers)
            return [entry for entry in entries if entry.callers]
        claimed = self.claim_calls(entries)
        if len(claimed) < len(entries):
            kept = set(map(id, claimed))
            for call in entries:
                if id(call) not in kept:
                    self.count_left(call)
        return claimed

    def claim_calls(self, calls: list[Any]) -> list[Any]:
        """Return those of the calls whose callers have not left."""
        return [call for call in calls if call.claim()]

    def ended(self, batch: Batch) -> None:
        """Take notice that a batch has ended; whoever ran it calls this."""
        raise NotImplementedError

    def again(self, parts: Sequence[Sequence[Any]]) -> None:
        """Let the parts of a batch that failed run, before all that waits; as long as that batch has not ended."""
        self._parts.extendleft(reversed(parts))

    def at_once(self, calls: Sequence[Any], reason: Reason = "nested") -> list[Batch]:
        """Make batches, by the same rules, of calls or entries that must not wait; any thread may ask.

        They take no turn, and the buffer knows nothing of them.
        """
        now, refused = self.now(), deque[Any]()
        entries: list[Sequence[Any]] = [calls]
        if reason == "nested":
            for call in calls:
                call.arrival = now
                call.waits = False  # if it is the copy of one that does
            buffer = self._make_buffer(deque(calls), refused)
            buffer.ends = True
            buffer.admit(now)
            entries = [taken[0] for taken in iter(lambda: buffer.take(now), None)]
        batches = []
        with self.tally.lock:
            for each in entries:
                batches.append(self.make_batch(self, each, reason, now, takes_turn=False))
                self.tally.begin(reason, len(each), [now] * len(self.callers(each)), now)
        for call, error in refused:
            self.refuse(call, error)
        return batches

    # The owner's step

    def next(self, now: float, *, rested: bool = True) -> Batch | float | None:
        """Return the batch to run now, or for how many seconds to sleep (inf: until woken), or None: it has ended.

        Not `rested`: it has just run a batch, so somebody is likely to come.
        """
        if self._disturbed:
            self.buffer.repair()
        self._disturbed = True  # until this has come to its end
        while True:
            self.wake_at = self.wakes_at = inf  # 1.
            batch, tally = None, self.tally
            if self.news:
                self._hear(now)
            self.buffer.admit(now)
            while self._refused:
                self.refuse(*self._refused.popleft())
            if self.turns and (self.inbox or self.buffer.size or self._parts):
                tally.begin_change()
                try:
                    batch = self._take(now)
                finally:
                    tally.end_change()
            if self._drains and not self.buffer.ends:  # else see say_end()
                self._say_what_is_answered()
            if self._hint:
                size, self._hint = self._hint, 0
                advise(self.name, size, self.options.batch_size, self.options.timeout)
            if batch is not None:
                self._disturbed = False
                try:
                    return batch
                finally:
                    del batch  # a callback of a refused call may have kept this frame
            buffer, timeout = self.buffer, self.options.timeout
            waits = buffer.known > 0
            if buffer.ends and not (waits or self._running or self._parts or self.news):
                self.wake_at = 1  # for the next owner, if there will be one
                self._disturbed = False
                return None
            wakes_at, wake_at = inf, inf
            if self.turns:
                wakes_at, wake_at = buffer.due_at if waits else inf, 1
                if waits or (not rested and timeout != 0.0):
                    # If nothing waits, right after a batch, it sleeps for as long as an item may wait. One that comes
                    # meanwhile is due later than that, so it need not wake this to be timed: one wake-up for each batch
                    # instead of two.
                    wake_at = 1 if buffer.ends else buffer.wake_at
                    if not waits and timeout is not None:
                        wakes_at = now + timeout
            self.sleep_until(wakes_at)
            self.wake_at = wake_at  # 2.
            if self._barrier.acquire(False):  # never waits, also if Ctrl-C has left it held
                self._barrier.release()
            if not self.news and len(self.inbox) < wake_at:  # 3.
                self._disturbed = False
                return max(0.0, wakes_at - now)

    def _hear(self, now: float) -> None:
        self.tally.begin_change()
        try:
            while self.news:
                act = self.news[0]  # not lost if that fails; all of these may be done twice
                self.buffer.admit(now)  # what was posted before
                act()
                self.news.popleft()
        finally:
            self.tally.end_change()

    def _take(self, now: float) -> Batch | None:
        """Return the batch that is due, if any is."""
        buffer = self.buffer
        reason: Reason
        while True:
            if self._parts:
                entries, reason = self._parts.popleft(), "isolate"
            else:
                taken = buffer.take(now)
                if taken is None:
                    return None
                entries, reason = taken
            batch = None
            try:
                if reason != "isolate":  # else they are counted as running
                    claimed = self.claim(entries)
                    if len(claimed) < len(entries):
                        buffer.put_back(claimed)  # some had left without a word: are the others due, or are there more?
                        continue
                batch = self.make_batch(self, entries, reason, now, takes_turn=True)
                arrivals = list(map(arrival_of, self.callers(entries)))
                if reason == "timeout" and self.tally.too_few_callers(arrivals, self.options.timeout):
                    self._hint = len(arrivals)
                self._running[id(batch)] = batch.oldest
                self.turns -= 1
                with self.tally.lock:
                    self.tally.begin(reason, len(entries), arrivals, now)  # last, since it is not undone
            except BaseException:  # no memory: nobody else knows these calls
                if batch is not None:
                    self.turn_ended(batch)
                if reason == "isolate":
                    self._parts.appendleft(entries)
                else:
                    buffer.put_back(entries)
                raise
            return batch

    def refuse(self, calls: Sequence[Any], error: BaseException) -> None:
        """Give calls an error, in place of an answer of the function's."""
        with self.tally.lock:
            calls = self.claim(list(calls))
            self.tally.failed += len(calls)
        for call in calls:
            call.tell((call,), (own_copy(error, self.name),), 1)

    def _say_what_is_answered(self) -> None:
        for each in self._drains.copy():
            until, done = each
            unanswered = [self.buffer.oldest, *self._running.values()]
            unanswered += [part[0].arrival for part in self._parts]
            if not self._refused and all(arrival == inf or arrival > until for arrival in unanswered):
                done()
                self._drains.remove(each)

    def say_end(self) -> None:
        """Say to those who wait for the end that it has come."""
        while self._drains:
            self._drains.pop()[1]()


def _count_left(tally: Tally, call: Any) -> None:
    if not getattr(call, "is_alone", False):  # else it is counted where it runs
        with tally.lock:  # as other loops count here too
            tally.cancelled += 1
