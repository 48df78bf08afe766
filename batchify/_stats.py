"""What happened: figures of one batcher."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Reason = Literal["full", "timeout", "flush", "close", "nested"]


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
        batches: Calls of the function.
        sizes: How many batches there were of each size.
        reasons: How many batches were taken because they were `full`, past their `timeout`, by `flush`, by `close`
            (which exit and dropping the function imply), or `nested`: called from inside the function.
        waited: Seconds that items waited in the buffer, all together.
        longest_wait: Seconds that the item waited that waited longest.
    """

    accepted: int
    pending: int
    running: int
    in_flight: int
    answered: int
    failed: int
    cancelled: int
    batches: int
    sizes: Mapping[int, int]
    reasons: Mapping[Reason, int]
    waited: float
    longest_wait: float

    @property
    def mean_size(self) -> float:
        """Items per batch, 0.0 before the first."""
        return sum(size * count for size, count in self.sizes.items()) / self.batches if self.batches else 0.0

    @property
    def mean_wait(self) -> float:
        """Seconds that an item waited in the buffer on average, 0.0 before the first batch."""
        items = sum(size * count for size, count in self.sizes.items())
        return self.waited / items if items else 0.0


class Tally:
    """The running counts behind `Stats`. Guarded by its owner's lock."""

    def __init__(self) -> None:
        self.answered = 0
        self.failed = 0
        self.cancelled = 0
        self.running = 0
        self.in_flight = 0
        self.waited = 0.0
        self.longest_wait = 0.0
        self._batches: Counter[tuple[Reason, int]] = Counter()

    def begin(self, reason: Reason, arrivals: list[float], now: float) -> None:
        """Count a batch that is about to run. `arrivals`: when each of its items came, the first one first."""
        size = len(arrivals)
        self._batches[reason, size] += 1
        self.in_flight += 1
        self.running += size
        self.waited += size * now - sum(arrivals)
        self.longest_wait = max(self.longest_wait, now - arrivals[0])

    def answer(self, items: int, failed: int, *, done: bool) -> None:
        """Count items whose callers are about to go on. `done`: with them the batch has ended."""
        self.running -= items
        self.answered += items - failed
        self.failed += failed
        self.in_flight -= done

    def snapshot(self, pending: int) -> Stats:
        """Return the counts as they stand."""
        sizes: Counter[int] = Counter()
        reasons: Counter[Reason] = Counter()
        for (reason, size), count in sorted(self._batches.items()):
            sizes[size] += count
            reasons[reason] += count
        return Stats(
            accepted=pending + self.running + self.answered + self.failed + self.cancelled,
            pending=pending,
            running=self.running,
            in_flight=self.in_flight,
            answered=self.answered,
            failed=self.failed,
            cancelled=self.cancelled,
            batches=sum(reasons.values()),
            sizes=dict(sorted(sizes.items())),
            reasons=dict(reasons),
            waited=self.waited,
            longest_wait=self.longest_wait,
        )
