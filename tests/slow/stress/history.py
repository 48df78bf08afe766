"""What happened in a stress run, and whether that was right.

A `History` records calls and batches; `check()` and `check_stats()` return what broke which rule.

The items are tokens: numbers that no other call of the run has. So a result tells whose it is, and a batch tells which
calls are in it. Moments are taken from one counter, so that two events never have the same one.

A buffer is named after what has the figures of it, its owner: `f` where that is one and the same, `g/3` for the third
event loop of `g`. What an owner's options allow are its `Rules`.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count, pairwise
from math import inf
from typing import Any, Literal

import batchify

moment = count(1).__next__  # atomic, like list.append(): so a history needs no lock, and survives fork and Ctrl-C

# "cancelled": it was accepted, and its caller left. "left": the same, but perhaps it was never accepted, as when Ctrl-C
# came, or when a map had read it.
Outcome = Literal["result", "error", "cancelled", "left", "refused"]


DEEP = 16  # from so many batches that wait on one stack on, the next one begins with the awaited item
REASONS = {"full", "timeout", "free", "flush", "close", "nested", "isolate"}


def answer(token: int) -> int:
    """Return the result of an item."""
    return -token


class Planned(Exception):
    """Raised by a function, with the number of its batch."""


def batch_named_by(error: BaseException | None) -> int | None:
    """Return the number of the batch from which an error came, where it tells."""
    while error is not None:
        if error.args and type(error.args[0]) is int:
            return error.args[0]
        error = error.__cause__
    return None


@dataclass(frozen=True)
class Rules:
    """Options of a function."""

    concurrency: int = 1
    groups: int = 1  # so many
    max_weight: float | None = None
    isolate: bool | type[Exception] = False
    dedupe: bool = False  # of which nothing is seen, as no two tokens are equal
    max_pending: int | None = None
    reports: bool = False

    def group(self, token: int) -> int:
        return token % self.groups

    def weight(self, token: int) -> int:
        return token % 7

    def halves(self, batch: "BatchRecord") -> bool:
        """Whether a batch that failed is run again in halves."""
        kinds = Exception if self.isolate is True else self.isolate or ()
        return batch.raised is not None and issubclass(batch.raised, kinds)


@dataclass(slots=True, eq=False)
class CallRecord:
    token: int
    submitter: str
    sequence: int  # of this call among those of its submitter
    buffer: str
    how: str  # for tables
    nested: bool  # made from inside the function, which waits for it, and lends its turn meanwhile
    began: int
    inside: int = 0  # if nested, the number of the batch that waits for it
    accepted: float = inf  # when that was known, for a future
    ended: float = inf
    outcome: Outcome | None = None
    value: object = None  # its result
    error: str = ""  # the type of its error
    error_from: int | None = None  # the number of the batch that the error names

    def end(self, outcome: Outcome, value: object = None) -> None:
        self.value = value
        if isinstance(value, BaseException):
            self.error, self.error_from = type(value).__name__, batch_named_by(value)
            self.value = None
        self.ended = moment()
        self.outcome = outcome

    def __str__(self) -> str:
        kind = "nested call" if self.nested else "call"
        return (
            f"{kind} {self.token} ({self.how}, no. {self.sequence} of {self.submitter}, to {self.buffer}, "
            f"{self.began} to {self.ended}, {self.outcome or 'no answer'}{self.error and ' ' + self.error})"
        )


@dataclass(slots=True, eq=False)
class Wait:
    """A batch waits inside for the answer of a call."""

    inside: int  # the number of the batch
    token: int
    began: int
    ended: float = inf
    told: bool = False  # that it waits for itself


@dataclass(slots=True, eq=False)
class BatchRecord:
    number: int
    buffer: str
    tokens: list[int]
    began: int
    ended: float = inf  # just before its results leave the function
    way: str = ""  # what the function does, for tables
    given: dict[int, int] = field(default_factory=dict)  # when a single result left the function before that
    # Whose caller must get an error, unless it is run again, and the type of it.
    errors: dict[int, str] = field(default_factory=dict)
    raised: type[BaseException] | None = None  # for the whole batch, so that it may be run again in halves

    def give(self, token: int) -> None:
        self.given[token] = moment()

    def fail(self, error: type[BaseException], tokens: Sequence[int] | None = None) -> None:
        """Note that these, or all that got no result yet, must get an error."""
        if tokens is None:
            tokens = [token for token in self.tokens if token not in self.given]
        self.errors.update(dict.fromkeys(tokens, error.__name__))

    def end(self) -> None:
        self.ended = min(self.ended, moment())

    def __str__(self) -> str:
        return f"batch {self.number} ({self.way}, on {self.buffer}, {self.began} to {self.ended}, items {self.tokens})"


@dataclass(slots=True, eq=False)
class Limit:
    """A `batch_size`, and when it was set."""

    size: int
    began: int
    ended: float = inf


@dataclass(slots=True, eq=False)
class Act:
    """What was done to a buffer, and when."""

    kind: Literal["close", "drain", "enter", "exit"]  # the last two: of a block, by `with`
    buffer: str
    began: int
    cancels: bool  # what waits, in closing
    entered: "Act | None"  # for "exit"
    ended: float = inf  # when it had been done, if it did not raise


@dataclass(frozen=True)
class Violation:
    rule: str
    facts: str

    def __str__(self) -> str:
        return f"{self.rule}: {self.facts}"


class History:
    """Records calls and batches. Any thread may do so; a submitter is one thread, or the tasks of one event loop."""

    def __init__(self) -> None:
        self.calls: list[CallRecord] = []
        self.batches: list[BatchRecord] = []
        self.limits: defaultdict[str, list[Limit]] = defaultdict(list)  # by owner
        self.rules: dict[str, Rules] = {}  # by owner, if it has options
        self.reports: defaultdict[str, list[int]] = defaultdict(list)  # by owner: of how many items each one was
        self.waits: list[Wait] = []  # for calls of others
        self.acts: list[Act] = []
        self.seen: list[Violation] = []  # what was found wrong on the way
        self.events: list[str] = []  # what else was done, for tables
        self._tokens = count(1)
        self._numbers = count(1)
        self._sequences: defaultdict[str, count[int]] = defaultdict(count)

    def call(self, submitter: str, buffer: str, how: str, *, inside: int = 0) -> CallRecord:
        """Record a call that is about to be made; `inside` the batch of that number, which waits for it."""
        sequence, token = next(self._sequences[submitter]), next(self._tokens)
        record = CallRecord(token, submitter, sequence, buffer, how, inside > 0, moment(), inside)
        self.calls.append(record)
        return record

    def leave(self, submitter: str, *, but: Sequence[CallRecord] = ()) -> None:
        """Record that a submitter, its maps included, waits for nothing any more `but` for these."""
        waiting = set(but)
        for record in tuple(self.calls):
            of_it = record.submitter == submitter or record.submitter.startswith(f"{submitter} ")
            if of_it and record.outcome is None and record not in waiting:
                record.end("left")

    def batch(self, buffer: str, items: Sequence[int]) -> BatchRecord:
        """Record that the function was called."""
        record = BatchRecord(next(self._numbers), buffer, list(items), moment())
        self.batches.append(record)
        return record

    @contextmanager
    def limit(self, owner: str, size: int) -> Iterator[None]:
        """Record that `batch_size` is being set."""
        record = Limit(size, moment())
        self.limits[owner].append(record)
        yield
        record.ended = moment()

    @contextmanager
    def act(
        self,
        kind: Literal["close", "drain", "enter", "exit"],
        buffer: str,
        *,
        cancels: bool = False,
        entered: Act | None = None,
    ) -> Iterator[Act]:
        """Record that this is being done."""
        record = Act(kind, buffer, moment(), cancels, entered)
        self.acts.append(record)
        self.events.append(kind)
        yield record
        record.ended = moment()


def owner_of(buffer: str) -> str:
    return buffer.partition("/")[0]


def check(history: History, *, concurrency: int = 1) -> list[Violation]:
    """Return what broke a rule. Nothing may be running any more.

    Args:
        history: What happened.
        concurrency: Most batches of a buffer in flight at once, but for those that wait inside, where there are no
            rules.
    """
    defaults = Rules(concurrency=concurrency)
    rules = defaultdict[str, Rules](lambda: defaults, history.rules)
    return [
        *history.seen,
        *_check_places(history, rules),
        *_check_answers(history),
        *_check_rings(history),
        *_check_moments(history),
        *_check_sizes(history, rules),
        *_check_order(history, rules),
        *_check_overlap(history, rules),
        *_check_company(history, rules),
        *_check_room(history, rules),
        *_check_closing(history),
        *_check_draining(history),
    ]


def _in_batches(history: History) -> dict[int, list[BatchRecord]]:
    """Return in which batches each token was, of which the last one answered it."""
    found: dict[int, list[BatchRecord]] = defaultdict(list)
    for batch in history.batches:
        for token in batch.tokens:
            found[token].append(batch)
    return found


def _check_places(history: History, rules: Mapping[str, Rules]) -> Iterator[Violation]:
    """Every accepted item is in exactly one batch, a cancelled one in at most one, a refused one in none.

    Where batches that fail are run again in halves, it is in several, of which all but the last one failed.
    """
    batches = _in_batches(history)
    calls = {call.token: call for call in history.calls}
    for token in batches.keys() - calls.keys():
        yield Violation("stranger", f"nobody passed {token}, which is in {batches[token][0]}")
    for call in history.calls:
        found = batches.get(call.token, [])
        for before, after in pairwise(found):
            if not (rules[owner_of(call.buffer)].halves(before) and _is_part(before, after)):
                yield Violation("twice", f"{call} is in {before} and in {after}")
        if call.outcome == "refused" and found:
            yield Violation("refused", f"{call} is in {found[0]}")
        if call.outcome == "cancelled" and call.how in ("submit", "chain") and found:
            yield Violation("cancelled", f"{call} is in {found[0]}: its future said that it was cancelled")
        if call.error == "BufferFullError" and rules[owner_of(call.buffer)].max_pending is None:
            yield Violation("refused", f"{call}, and there is no limit")
        if call.outcome in ("result", "error") and not found:
            yield Violation("lost", f"{call} is in no batch")
        for batch in found:
            if batch.buffer != call.buffer:
                yield Violation("buffer", f"{call} is in {batch}")


def _is_part(whole: BatchRecord, part: BatchRecord) -> bool:
    """Whether one is a half of what the other left unanswered, which failed."""
    unanswered = [token for token in whole.tokens if token not in whole.given]
    middle = len(unanswered) // 2
    halves = (unanswered[:middle], unanswered[middle:])
    return whole.ended < part.began and part.tokens in halves


def _check_answers(history: History) -> Iterator[Violation]:
    """Every call has an answer: its own result, or the error of its own batch if it was to get one."""
    batches = _in_batches(history)
    for call in history.calls:
        if call.outcome is None:
            yield Violation("unanswered", str(call))
        if call.outcome == "result" and call.value != answer(call.token):
            yield Violation("result", f"{call} got {call.value!r}")
        for batch in batches.get(call.token, [])[-1:]:
            planned = batch.errors.get(call.token, "")
            if call.outcome == "result" and planned:
                yield Violation("error", f"{call} was to get the {planned} of {batch}")
            # Who is told that it waits for itself need not have its answer; whether that is true see _check_rings().
            if call.outcome == "error" and not (call.nested and call.error == "WaitsForItselfError"):
                if not planned:
                    yield Violation("error", f"{call} was to get a result of {batch}")
                elif call.error != planned:
                    yield Violation("error", f"{call} was to get the {planned} of {batch}")
                elif call.error_from not in (batch.number, None):
                    yield Violation("error", f"{call} got the error of batch {call.error_from}, but is in {batch}")


def _check_moments(history: History) -> Iterator[Violation]:
    """A batch lies in the interval of each of its calls, and ends."""
    calls = {call.token: call for call in history.calls}
    for batch in history.batches:
        if batch.ended == inf:
            yield Violation("unfinished", str(batch))
        for token in batch.tokens:
            call = calls.get(token)
            if call is None:
                continue
            if batch.began < call.began:
                yield Violation("early", f"{call} began after {batch}")
            given = batch.given.get(token, batch.ended)
            is_told = call.nested and call.error == "WaitsForItselfError"
            if call.outcome in ("result", "error") and not is_told and call.ended < given:
                yield Violation("late", f"{call} ended before it was answered at {given} in {batch}")


def _check_sizes(history: History, rules: Mapping[str, Rules]) -> Iterator[Violation]:
    """No batch is empty, or larger than any `batch_size` that may have held when it was taken."""
    firsts = {token: found[0] for token, found in _in_batches(history).items()}
    outdated: dict[str, list[tuple[Limit, float]]] = {}
    for owner, limits in history.limits.items():
        outdated[owner] = [
            (limit, min((later.ended for later in limits if later.began > limit.ended), default=inf))
            for limit in limits
        ]
    ends: defaultdict[str, list[float]] = defaultdict(list)
    for batch in sorted(history.batches, key=lambda batch: batch.began):
        if not batch.tokens:
            yield Violation("size", f"{batch} is empty")
            continue
        if firsts[batch.tokens[0]] is not batch:
            continue
        owner = owner_of(batch.buffer)
        # Other loops hear of it later, so there any earlier one may still hold. A thread takes a batch when the one
        # before it has ended, or waits and lends its turn, unless both may run at once.
        alone = owner == batch.buffer and rules[owner].concurrency == 1
        after = max((end for end in ends[owner] if end < batch.began), default=0.0) if alone else 0.0
        sizes = [limit.size for limit, until in outdated.get(owner, ()) if limit.began < batch.began and until > after]
        if sizes and len(batch.tokens) > max(sizes):
            yield Violation("size", f"{batch} has {len(batch.tokens)} items, and batch_size was {max(sizes)}")
        ends[batch.buffer].append(batch.ended)


def _check_order(history: History, rules: Mapping[str, Rules]) -> Iterator[Violation]:
    """The items of one submitter and group stand in order, within a batch and, unless they may overlap, across them."""
    calls = {call.token: call for call in history.calls}
    batches = _in_batches(history)
    latest: dict[tuple[str, str, int, int], CallRecord] = {}
    lent = _on_lent_turns(history)
    for batch in sorted(history.batches, key=lambda batch: batch.began):
        of_owner = rules[owner_of(batch.buffer)]
        for token in batch.tokens:
            call = calls.get(token)
            if call is None or batches[token][-1] is not batch:
                continue
            if batch.raised and call.outcome in ("cancelled", "left"):
                continue  # its half was not run, as its loop was closed, and that of its neighbour may have been
            # What runs on a lent turn may come before the halves of the batch that lent it, and deep within others
            # before all that waits.
            may_overtake = lent.get(batch.number, 0) > (0 if of_owner.isolate else DEEP)
            apart = of_owner.concurrency > 1 or may_overtake
            number = batch.number if apart else 0
            key = (call.submitter, batch.buffer, of_owner.group(token), number)
            before = latest.get(key)
            if before is not None and before.sequence > call.sequence:
                yield Violation("order", f"{call} comes after {before}, in {batch}")
            latest[key] = call


def _check_company(history: History, rules: Mapping[str, Rules]) -> Iterator[Violation]:
    """A batch is of one group, not too heavy, and if it fails as a whole it answers nobody unless there is only one."""
    batches = _in_batches(history)
    gone = {call.token for call in history.calls if call.outcome in ("cancelled", "left")}
    for batch in history.batches:
        of_owner = rules[owner_of(batch.buffer)]
        if len(set(map(of_owner.group, batch.tokens))) > 1:
            yield Violation("group", str(batch))
        weight = sum(map(of_owner.weight, batch.tokens))
        if of_owner.max_weight is not None and weight > of_owner.max_weight and len(batch.tokens) > 1:
            yield Violation("weight", f"{batch} weighs {weight}")
        if of_owner.halves(batch) and len(batch.errors) > 1:
            for token in batch.errors.keys() - gone:  # whose loop may have been closed
                if batches[token][-1] is batch:
                    yield Violation("isolate", f"{token} was not run again after {batch}")


def _waits(history: History) -> dict[int, list[Wait]]:
    """Return for what each batch waited inside, by its number."""
    waits: defaultdict[int, list[Wait]] = defaultdict(list)
    for wait in history.waits:
        waits[wait.inside].append(wait)
    for call in history.calls:
        if call.nested:
            told = call.error == "WaitsForItselfError"
            waits[call.inside].append(Wait(call.inside, call.token, call.began, call.ended, told))
    return waits


def _lends(batch: BatchRecord, at: float, waits: Mapping[int, list[Wait]]) -> bool:
    """Whether a batch waits at that moment, so that its turn may be lent."""
    return any(wait.began < at < wait.ended for wait in waits.get(batch.number, ()))


def _on_lent_turns(history: History) -> dict[int, int]:
    """Return, by the numbers of batches that began while others of their buffer waited inside, how many these were."""
    waits = _waits(history)
    running: defaultdict[str, list[BatchRecord]] = defaultdict(list)
    found: dict[int, int] = {}
    for batch in sorted(history.batches, key=lambda batch: batch.began):
        there = running[batch.buffer]
        there[:] = [other for other in there if other.ended > batch.began]
        if lenders := sum(_lends(other, batch.began, waits) for other in there):
            found[batch.number] = lenders
        there.append(batch)
    return found


def _check_overlap(history: History, rules: Mapping[str, Rules]) -> Iterator[Violation]:
    """No more batches of a buffer run at once than may, but for those that wait inside."""
    waits = _waits(history)
    running: defaultdict[str, list[BatchRecord]] = defaultdict(list)
    for batch in sorted(history.batches, key=lambda batch: batch.began):
        there = running[batch.buffer]
        there[:] = [other for other in there if other.ended > batch.began]
        there.append(batch)
        busy = [other for other in there if not _lends(other, batch.began, waits)]
        if len(busy) > rules[owner_of(batch.buffer)].concurrency:
            yield Violation("overlap", f"at once ran {' and '.join(map(str, busy))}")


def _check_rings(history: History) -> Iterator[Violation]:
    """Nobody is told that it waits for itself unless its call is in a batch that, at that moment, waits for its own."""
    batches = _in_batches(history)
    waits = _waits(history)
    for wait in [wait for found in waits.values() for wait in found if wait.told]:
        seen: set[int] = set()
        todo = [wait]
        for at in todo:
            for batch in batches.get(at.token, ()):
                if batch.began > wait.ended or batch.number in seen:
                    continue
                seen.add(batch.number)
                now = [
                    each for each in waits.get(batch.number, ()) if each.began < wait.ended and each.ended > wait.began
                ]
                todo += now
                # It also waits for what runs on the turn that it lends.
                for other in history.batches:
                    above = any(each.began < other.began < each.ended for each in now)
                    if above and other.buffer == batch.buffer and other.number not in seen:
                        seen.add(other.number)
                        todo += waits.get(other.number, ())
        if wait.inside not in seen:
            yield Violation("ring", f"batch {wait.inside} was told that it waits for itself, by {wait.token}")
    for call in history.calls:
        if call.error == "WaitsForItselfError" and not call.nested:
            yield Violation("ring", f"{call}, which is outside")


def _check_room(history: History, rules: Mapping[str, Rules]) -> Iterator[Violation]:
    """Who finds no room finds `max_pending` calls that wait, not counting those of maps."""
    batches = _in_batches(history)
    by_buffer: defaultdict[str, list[tuple[int, float]]] = defaultdict(list)  # from when to when a call may have waited
    for call in history.calls:
        if not call.how.endswith("map"):
            taken = batches[call.token][0].began if call.token in batches else call.ended
            by_buffer[call.buffer].append((call.began, taken))
    for call in history.calls:
        most = rules[owner_of(call.buffer)].max_pending
        if call.error == "BufferFullError" and most is not None:
            there = sum(began < call.ended and taken > call.began for began, taken in by_buffer[call.buffer])
            if there - 1 < most:  # one is itself
                yield Violation("room", f"{call}, and no more than {there - 1} waited")


def _check_closing(history: History) -> Iterator[Violation]:
    """Who is refused finds the function closed, and who is not, open; in a block it is open, unless closed by hand."""
    batches = _in_batches(history)
    for call in history.calls:
        acts = [act for act in history.acts if owner_of(act.buffer) == owner_of(call.buffer)]
        shut = [act for act in acts if act.kind in ("close", "exit")]
        enters = [act for act in acts if act.kind == "enter"]
        by_hand = [act for act in acts if act.kind == "close"]
        if call.error == "ClosedError":
            if not any(
                act.began < call.ended
                and not any(act.ended < enter.began and enter.ended < call.began for enter in enters)
                for act in shut
            ):
                yield Violation("closed", f"{call}, and it was open")
            if not by_hand and any(
                act.entered is not None and act.entered.ended < call.began and call.ended < act.began for act in shut
            ):
                yield Violation("closed", f"{call}, and it was made in a block")
            if call.accepted < inf and not any(act.cancels and act.began < call.ended for act in by_hand):
                yield Violation("closed", f"{call} was accepted")
        elif call.token in batches and not call.nested:
            for act in by_hand:
                known = min(call.accepted, call.ended)
                if act.ended < call.began and not any(
                    act.began < enter.ended and enter.began < known for enter in enters
                ):
                    yield Violation("closed", f"{call} was accepted, though it was closed at {act.ended}")


def _check_draining(history: History) -> Iterator[Violation]:
    """When a drain or a close is over, what was accepted before has been answered."""
    batches = _in_batches(history)
    for act in history.acts:
        if act.kind in ("close", "drain") and act.ended < inf:
            for call in history.calls:
                if call.buffer == act.buffer and call.accepted < act.began and call.outcome in ("result", "error"):
                    batch = batches[call.token][-1] if call.token in batches else None
                    if batch is not None and act.ended < batch.given.get(call.token, batch.ended):
                        yield Violation("drained", f"{call} was answered after {act.kind} at {act.ended}, in {batch}")


def check_stats(history: History, owner: str, stats: batchify.Stats) -> list[Violation]:
    """Return where the figures of a function, which runs no more, are not those of the history."""
    batches = [batch for batch in history.batches if owner_of(batch.buffer) == owner]
    rules = history.rules.get(owner, Rules())
    of_token = {token: found for token, found in _in_batches(history).items() if owner_of(found[0].buffer) == owner}
    cancels = any(act.cancels and owner_of(act.buffer) == owner for act in history.acts)
    outside = [
        _may_count_as(call, cancels=cancels)
        for call in history.calls
        if owner_of(call.buffer) == owner and call.token not in of_token
    ]
    failed = sum(token in found[-1].errors for token, found in of_token.items())
    pairs: dict[str, tuple[object, object]] = {
        "pending, running, in_flight": ((stats.pending, stats.running, stats.in_flight), (0, 0, 0)),
        "batches": (stats.batches, len(batches)),
        "sizes": (dict(stats.sizes), dict(Counter(len(batch.tokens) for batch in batches))),
        "isolated": (
            stats.reasons.get("isolate", 0),
            sum(of_token[batch.tokens[0]][0] is not batch for batch in batches),
        ),
        "reasons": (sum(stats.reasons.values()), len(batches)),
        "answered": (stats.answered, len(of_token) - failed),
        "accepted": (stats.accepted, stats.answered + stats.failed + stats.cancelled),
    }
    if rules.reports:
        reported = Counter(history.reports[owner])
        pairs["reports"] = (dict(reported), dict(Counter(len(batch.tokens) for batch in batches)))
    found = [
        Violation("stats", f"{name} of {owner}: {figure}, but there were {fact}")
        for name, (figure, fact) in pairs.items()
        if figure != fact
    ]
    lent, nested = _on_lent_turns(history), stats.reasons.get("nested", 0)
    most_nested = sum(batch.number in lent for batch in batches)
    if nested > most_nested or not stats.reasons.keys() <= REASONS:
        facts = f"reasons of {owner}: {stats.reasons}, but {most_nested} began while another one waited"
        found.append(Violation("stats", facts))
    for name, figure, in_batches in (
        ("cancelled", stats.cancelled, 0),
        ("refused", stats.refused, 0),
        ("failed", stats.failed, failed),
    ):
        least = in_batches + sum(may == {name} for may in outside)
        most = in_batches + sum(name in may for may in outside)
        if not least <= figure <= most:
            found.append(Violation("stats", f"{name} of {owner}: {figure}, but there were {least} to {most}"))
    return found


def _may_count_as(call: CallRecord, *, cancels: bool) -> set[str]:
    """Return as what a call that is in no batch may be counted; "" is nowhere.

    `cancels`: there is a close that refuses what waits, so that calls fail that were accepted.
    """
    late = {"failed"} if cancels else set()
    if call.outcome == "left":
        return {"cancelled", "refused", ""} | late
    if call.outcome == "cancelled":
        # Of the others it is the task that is cancelled, perhaps after that.
        return {"cancelled"} if call.how in ("submit", "chain", "loop submit") else {"cancelled"} | late
    if call.error == "BufferFullError":
        return {"refused"}
    if call.error == "ClosedError" and call.accepted < inf:
        return {"failed"}
    return {""} if call.how in ("submit", "chain", "loop submit") else {""} | late


def verdict(violations: Sequence[Any], most: int = 10) -> str:
    """Return the violations as text, at most so many of them; empty if there are none."""
    if not violations:
        return ""
    lines = [f"{len(violations)} violations", *map(str, violations[:most])]
    return "\n".join([*lines, "..."] if len(violations) > most else lines)
