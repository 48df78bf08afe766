"""What happened: figures of one batcher."""

from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextvars import Context
from dataclasses import dataclass
from functools import partial
from math import inf
from typing import Any, Literal

Reason = Literal["full", "timeout", "flush", "close", "nested", "isolate"]

# So many batches in a row must look alike before it is said that there are too few callers.
_ALIKE = 50


@dataclass(frozen=True, slots=True)
class BatchReport:
    """What `on_batch` is told of one batch: one call of the function.

    Attributes:
        name: The function's name.
        size: Items in the batch. With `dedupe`, fewer may have been given to the function.
        batch_size: Most items in a batch, as it was when this one ended.
        reason: Why it was taken; see `Stats.reasons`.
        group: What `group_by` returned for its items, None without; and with keyword-only parameters a tuple of that
            and their values.
        waits: Seconds that each item waited, from its call until its batch was taken, in the order of the items (in
            a part of a batch that failed, until that part was).
        duration: Seconds from when it was taken until its results were there.
        pending: Items that waited in the buffer when it ended.
        in_flight: Other batches that were running when it ended.
        error: What the function raised, or the error that its results were; None if it kept the rules. An exception
            that it returned for one item is not among these.
        contexts: The `contextvars` context of each caller, in the order of the items.
    """

    name: str
    size: int
    batch_size: int
    reason: Reason
    group: Hashable
    waits: tuple[float, ...]
    duration: float
    pending: int
    in_flight: int
    error: BaseException | None
    contexts: tuple[Context, ...]


def report_to(
    hook: Callable[[BatchReport], object], name: str, reason: Reason, calls: Sequence[Any], now: float
) -> Callable[..., object]:
    """Note what is known of a batch when it begins. Return what reports it to the hook, given the rest, at its end."""
    group = calls[0].group
    report = partial(
        BatchReport,
        name=name,
        size=len(calls),
        reason=reason,
        group=None if group is None else group.key,
        waits=tuple(now - call.arrival for call in calls),
        contexts=tuple(call.context for call in calls),
    )
    return lambda **rest: hook(report(**rest))


@dataclass(frozen=True, slots=True)
class Stats:
    """What a decorated function has done so far: one consistent snapshot.

    Every item accepted is in exactly one place: `accepted == pending + running + answered + failed + cancelled`.

    Attributes:
        accepted: Items passed in and not refused since the start.
        pending: Items that wait in the buffer now.
        running: Items in a batch whose callers have no answer yet.
        in_flight: Batches that are running now.
        answered: Items whose caller got a result.
        failed: Items whose caller got an exception.
        cancelled: Items whose caller left before they were in a batch.
        refused: Items that found `max_pending` others waiting, and so were not accepted: load that was shed.
        batches: Calls of the function.
        sizes: How many batches there were of each size.
        reasons: How many batches were taken because they were `full`, past their `timeout`, by `flush`, by `close`
            (which exit and dropping the function imply), `nested`: called from inside the function, or to `isolate`
            what made a larger one fail.
        sizes_by_reason: How many batches of each size there were for each reason.
        waited: Seconds that items waited until their batch was taken, all together.
        longest_wait: Seconds that the item waited that waited longest.
    """

    accepted: int
    pending: int
    running: int
    in_flight: int
    answered: int
    failed: int
    cancelled: int
    refused: int
    batches: int
    sizes: Mapping[int, int]
    reasons: Mapping[Reason, int]
    sizes_by_reason: Mapping[Reason, Mapping[int, int]]
    waited: float
    longest_wait: float

    @property
    def mean_size(self) -> float:
        """Items per batch, 0.0 before the first."""
        return sum(size * count for size, count in self.sizes.items()) / self.batches if self.batches else 0.0

    @property
    def mean_wait(self) -> float:
        """Seconds that an item waited in the buffer on average, 0.0 before the first batch."""
        items = self.accepted - self.pending - self.cancelled
        return self.waited / items if items else 0.0


class Tally:
    """The running counts behind `Stats`. Guarded by its owner's lock."""

    def __init__(self) -> None:
        self.answered = 0
        self.failed = 0
        self.cancelled = 0
        self.refused = 0
        self.running = 0
        self.in_flight = 0
        self.waited = 0.0
        self.longest_wait = 0.0
        self._batches: dict[tuple[Reason, int], int] = {}
        self._ended_at = -inf
        self._alike = 0  # batches in a row that were left by timeout with as many items, each soon after the one before
        self._last_size = 0
        self._said = False

    def begin(self, reason: Reason, arrivals: Sequence[float], now: float) -> None:
        """Count a batch that is about to run. `arrivals`: when each of its items came, the first one first."""
        size = len(arrivals)
        self._batches[reason, size] = self._batches.get((reason, size), 0) + 1
        self.in_flight += 1
        if reason != "isolate":  # else they were counted when the batch was taken that failed
            self.running += size
            self.waited += size * now - sum(arrivals)
            if now - arrivals[0] > self.longest_wait:
                self.longest_wait = now - arrivals[0]

    def too_few_callers(self, reason: Reason, arrivals: Sequence[float], timeout: float | None) -> bool:
        """Whether it shows by now, and did not before, that nobody is there to fill a batch: to be said once.

        So it is if every batch waits out its timeout for the same few items, which come as soon as those before have
        their answers. To be asked of each batch taken from a buffer, and of no other.
        """
        if not timeout or reason != "timeout":
            self._alike = 0
            return False
        soon = arrivals[0] - self._ended_at <= timeout
        self._alike = self._alike + 1 if soon and len(arrivals) == self._last_size else 0
        self._last_size = len(arrivals)
        shows = self._alike >= _ALIKE and not self._said
        self._said |= shows
        return shows

    def answer(self, items: int, failed: int, ended_at: float | None) -> None:
        """Count items whose callers are about to go on. `ended_at`: the moment at which with them the batch ended."""
        self.running -= items
        self.in_flight -= ended_at is not None
        self.answered += items - failed
        self.failed += failed
        if ended_at is not None:
            self._ended_at = ended_at

    def snapshot(self, pending: int) -> Stats:
        """Return the counts as they stand."""
        by_reason: dict[Reason, dict[int, int]] = {}
        sizes: Counter[int] = Counter()
        for (reason, size), count in sorted(self._batches.items()):
            by_reason.setdefault(reason, {})[size] = count
            sizes[size] += count
        return Stats(
            accepted=pending + self.running + self.answered + self.failed + self.cancelled,
            pending=pending,
            running=self.running,
            in_flight=self.in_flight,
            answered=self.answered,
            failed=self.failed,
            cancelled=self.cancelled,
            refused=self.refused,
            batches=sum(sizes.values()),
            sizes=dict(sorted(sizes.items())),
            reasons={reason: sum(counts.values()) for reason, counts in by_reason.items()},
            sizes_by_reason=by_reason,
            waited=self.waited,
            longest_wait=self.longest_wait,
        )
