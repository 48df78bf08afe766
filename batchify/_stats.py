"""What happened: figures of one batcher."""

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextvars import Context
from dataclasses import dataclass
from math import inf
from threading import RLock, get_ident
from time import sleep
from typing import Any, Literal

Reason = Literal["full", "timeout", "free", "flush", "close", "nested", "isolate"]

# So many batches in a row must look alike before it is said that there are too few callers.
_ALIKE = 50


@dataclass(frozen=True, slots=True)
class BatchReport:
    """What `on_batch` is told of one batch: one call of the function.

    Attributes:
        name: The function's name; a method's with its class, as `Class.method`.
        size: Items in the batch. With `dedupe`, equal ones are one.
        batch_size: Most items in a batch, as it was when this one ended.
        reason: Why it was taken; see `Stats.reasons`.
        group: What `group_by` returned, or None. If the function has parameters that are the same for a batch, a tuple
            of that and their values.
        waits: Seconds from each caller's call until its batch (with `isolate`, that part of it) was taken, in the order
            of the items.
        duration: Seconds from when it was taken until its results were there. If it waited inside, this includes the
            time of batches that ran on its turn meanwhile.
        pending: Items that waited in the buffer when it ended.
        in_flight: Other batches that ran when it ended, also those that waited for it inside.
        error: What the function raised, or what was wrong with its results, or None. An exception that it returned for
            one item does not count, nor does a `MissingResultError`.
        contexts: The `contextvars` context of each caller, in the order of the items.
        weight: What its items weigh together; None without `weight`.
        refused: Items refused because of `max_pending` since the last report.
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
    weight: float | None = None
    refused: int = 0


Hook = Callable[[BatchReport], object]


class Observer:
    """An `on_batch` that hears of more than the end of a batch."""

    def watch(self, engine: Any) -> None:
        """For batchify only. Hear of a new buffer, which is to be held weakly.

        Its `name`, `stats` and `tally` may be asked at any time.
        """

    def begin(self, name: str, size: int, reason: Reason, contexts: Sequence[Context]) -> Hook:  # noqa: ARG002
        """For batchify only. Hear that a batch begins, and return what is called with its report.

        This is called in the context in which the batch will run. What is known so far is as in the report.
        """
        return self

    def __call__(self, report: BatchReport) -> None:
        """Hear that a batch has ended."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Stats:
    """What a decorated function has done so far: one consistent snapshot.

    Every item accepted is in exactly one place: `accepted == pending + running + answered + failed + cancelled`.

    Attributes:
        accepted: Items passed since the start and not refused.
        pending: Items that wait in the buffer now.
        running: Items in a batch that have no answer yet.
        in_flight: Batches that are running now.
        answered: Items that got a result.
        failed: Items that got an exception.
        cancelled: Items whose caller left before they were in a batch.
        refused: Items that found `max_pending` others waiting, and so were not accepted: load that was shed.
        batches: Calls of the function.
        sizes: How many batches there were of each size.
        reasons: How many batches were taken for each reason. `full`: also when `max_pending` items wait. `timeout`: the
            oldest item had waited so long. `free`: the function was, with a timeout of 0. `flush`: also by `drain()`,
            the end of a map, or exit. `close`: also when the function was dropped, or late at exit. `isolate`: a part
            of a batch that failed. `nested`: it was not due, but waited for inside a function; also in
            `batchify.testing.immediate()`.
        sizes_by_reason: How many batches of each size there were for each reason.
        waited: Seconds that items waited until their batch was taken, all together.
        longest_wait: Seconds that the longest waiting item waited.
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
    """The running counts behind `Stats`.

    Who changes them holds `lock`: the owner, and those who run batches. A `with tally:` block marks the time in which
    counts and buffer disagree. An owner takes its batch in such a block, and without the lock, as keys and items of the
    user's may be compared there, and be destroyed. Callers take no lock, not even to read: read() repeats until nobody
    was in a block meanwhile.
    """

    def __init__(self) -> None:
        self.lock = RLock()  # since a finalizer may call in, on a thread that holds it
        self.changing: list[int] = []  # threads that are changing something
        self.version = object()  # another one after each change
        self.running = self.in_flight = self.answered = self.failed = self.cancelled = 0
        self._refused: Counter[int] = Counter()  # by thread, which alone changes its own
        self._told = 0  # of these
        self.waited = self.longest_wait = 0.0
        self._batches: defaultdict[tuple[Reason, int], int] = defaultdict(int)  # by reason and size
        self.ended_at = -inf  # when the last batch ended that was taken by timeout
        self._alike = 0  # batches in a row that were taken by timeout with as many items, each soon after the last one
        self._last_size = 0
        self._said = False

    @property
    def is_mine(self) -> bool:
        """Whether this thread holds the lock: then it is in a finalizer, in the midst of a change."""
        return self.lock._is_owned()  # type: ignore[attr-defined,no-any-return]

    def read(self, waiting: Callable[[], tuple[int, int]]) -> Stats:
        """Return the counts as they stand, given how many wait and how many of those have left.

        All are of one moment; but on a thread that is just changing them, what is there.
        """
        for _ in range(10_000):
            version = self.version
            stats = self._snapshot(*waiting())
            if get_ident() in self.changing or (not self.changing and self.version is version):
                break
            sleep(0)  # lets the thread go on that is changing them
        return stats  # pyright: ignore[reportPossiblyUnboundVariable]

    def __enter__(self) -> None:
        self.changing.append(get_ident())

    def __exit__(self, *_: object) -> None:
        self.version = object()
        self.changing.remove(get_ident())

    def refuse(self) -> None:
        """Count an item that was not accepted. Any thread may call."""
        self._refused[get_ident()] += 1

    @property
    def refused(self) -> int:
        return sum(dict(self._refused).values())

    def newly_refused(self) -> int:
        """Return how many were refused since this was asked last."""
        with self.lock:
            before, self._told = self._told, self.refused
            return self._told - before

    def leave(self, number: int) -> None:
        """Count calls whose callers have left."""
        with self.lock:  # as other loops count here too
            self.cancelled += number

    def begin(
        self, reason: Reason, size: int, arrivals: Sequence[float], now: float, timeout: float | None = None
    ) -> bool:
        """Count a batch of so many items that is about to run. `arrivals`: when each of its callers came.

        Return whether it shows by now, and did not before, that nobody is there to fill a batch: to be said once. So it
        is if every batch waits out its timeout for the same few items, which come as soon as those before have their
        answers.
        """
        callers, oldest = len(arrivals), arrivals[0]
        with self.lock:
            self._batches[reason, size] += 1
            self.in_flight += 1
            if reason != "isolate":  # else they were counted when the batch was taken that failed
                self.running += callers
                waited = callers * now - sum(arrivals)
                if waited > 0:  # else they came when the owner had looked at the clock
                    self.waited += waited
                if now - oldest > self.longest_wait:
                    self.longest_wait = now - oldest
            if reason == "timeout":
                soon = timeout and oldest - self.ended_at <= timeout
                self._alike = self._alike + 1 if soon and callers == self._last_size else 0
                self._last_size = callers
            elif reason not in ("nested", "isolate"):
                self._alike = 0
            if self._alike < _ALIKE or self._said:
                return False
            self._said = True
            return True

    def answer(self, items: int, failed: int, ended: bool) -> None:
        """Count items whose callers are about to go on. `ended`: with them the batch has."""
        me = get_ident()
        with self.lock:
            self.changing.append(me)  # as a `with` block does; each batch pays for a step here
            self.running -= items
            self.in_flight -= ended
            self.answered += items - failed
            self.failed += failed
            self.version = object()
            self.changing.remove(me)

    def _snapshot(self, pending: int, left: int) -> Stats:
        by_reason: dict[Reason, dict[int, int]] = {}
        for (reason, size), batches in sorted(self._batches.copy().items()):
            by_reason.setdefault(reason, {})[size] = batches
        sizes = sum(map(Counter, by_reason.values()), Counter[int]())
        return Stats(
            accepted=pending + self.running + self.answered + self.failed + self.cancelled + left,
            pending=pending,
            running=self.running,
            in_flight=self.in_flight,
            answered=self.answered,
            failed=self.failed,
            cancelled=self.cancelled + left,
            refused=self.refused,
            batches=sum(sizes.values()),
            sizes=dict(sorted(sizes.items())),
            reasons={reason: sum(counts.values()) for reason, counts in by_reason.items()},
            sizes_by_reason=by_reason,
            waited=self.waited,
            longest_wait=self.longest_wait,
        )
