"""Random load with equal items and `dedupe`: each result names the batch that it is of."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from concurrent.futures import CancelledError
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from math import inf
from random import Random
from typing import Any

import batchify

from .history import Planned, Violation, moment


@dataclass(slots=True, eq=False)
class _Call:
    item: object
    began: int
    ended: float = inf
    batch: int | None = None  # that answered it
    outcome: str = "none"

    def end(self, outcome: str, batch: int | None = None) -> None:
        self.ended, self.outcome, self.batch = moment(), outcome, batch


@dataclass(slots=True, eq=False)
class _Batch:
    items: list[object]
    began: int
    ended: float = inf
    raised: bool = False


@dataclass(slots=True)
class Equal:
    """A function of equal items, of threads or of one event loop, and what happened to it."""

    rng: Random
    on_loop: bool
    calls: list[_Call] = field(default_factory=list)
    batches: dict[int, _Batch] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    numbers: "count[int]" = field(default_factory=count)

    def decorated(self) -> Any:
        choice = self.rng.choice
        self.options = {
            "batch_size": choice((2, 3, 8)),
            "timeout": choice((0.0, 0.001)),
            "concurrency": choice((1, 1, 3)),
            "isolate": choice((False, False, True)),
            "max_pending": choice((None, None, 4)),
            "group_by": choice((None, type)),
        }
        function = self.run_there if self.on_loop else self.run
        return batchify.batched(dedupe=True, **self.options)(function)

    def begin(self, items: list[object]) -> int:
        number = next(self.numbers)
        self.batches[number] = _Batch(items.copy(), moment())
        return number

    def run(self, items: list[object]) -> list[object]:
        return self.end(items, self.begin(items))

    def end(self, items: list[object], number: int) -> list[object]:
        batch = self.batches[number]
        if self.rng.random() < 0.3:
            time.sleep(self.rng.random() * 0.002)  # this is what it is: slow
        batch.raised = self.rng.random() < 0.2
        batch.ended = moment()
        if batch.raised:
            raise Planned(number)
        return [(item, number) for item in items]

    async def run_there(self, items: list[object]) -> list[object]:
        number = self.begin(items)
        for _ in range(self.rng.randrange(3)):
            await asyncio.sleep(0)
        return self.end(items, number)

    def call(self, rng: Random) -> _Call:
        """Begin a call; its item equals many others: but 1, 1.0, True and "1" are four."""
        call = _Call(rng.choice((int, int, float, str, bool))(rng.randrange(rng.choice((2, 10)))), moment())
        self.calls.append(call)
        return call

    def settle(self, call: _Call, result: Callable[[], Any]) -> None:
        try:
            item, number = result()
        except Planned as error:
            call.end("error", error.args[0])
        except batchify.BufferFullError:
            call.end("refused")
        except (CancelledError, asyncio.CancelledError):
            call.end("cancelled")
        else:
            exact = type(item) is type(call.item) and item == call.item
            call.end("result" if exact else f"the result of {item!r}", number)

    def thread(self, f: Any, rng: Random) -> None:
        for _ in range(30):
            futures = []
            for _ in range(rng.randrange(6)):
                call = self.call(rng)
                try:
                    futures.append((call, f.submit(call.item)))
                except batchify.BufferFullError:
                    call.end("refused")
            for call, future in futures:
                if rng.random() < 0.2:
                    future.cancel()
                self.settle(call, future.result)
            if rng.random() < 0.5:
                call = self.call(rng)
                self.settle(call, partial(f, call.item))

    def loop(self, f: Any, rng: Random) -> None:
        async def one() -> None:
            for _ in range(rng.randrange(4)):
                await asyncio.sleep(0)
            call = self.call(rng)
            try:
                found = await f.aio(call.item)
            except BaseException as error:
                raised = error

                def result() -> Any:
                    raise raised

                self.settle(call, result)
            else:
                self.settle(call, lambda: found)

        async def main() -> None:
            for _ in range(20):
                tasks = [asyncio.create_task(one()) for _ in range(rng.randrange(12))]
                for _ in range(rng.randrange(4)):
                    await asyncio.sleep(0)
                for task in rng.sample(tasks, len(tasks) // 4):
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
            await f.adrain()

        steps: Coroutine[Any, Any, None] = main()
        asyncio.run(steps)

    def check(self, stats: batchify.Stats) -> list[Violation]:
        """Return what was wrong; nothing may be running any more."""
        return [Violation("equal", f"{wrong}, {self.options}") for wrong in (*self._calls(), *self._figures(stats))]

    def _calls(self) -> list[str]:
        wrong = []
        answered: set[tuple[int, str]] = set()
        for call in self.calls:
            key = repr(call.item)
            if call.batch is not None:
                batch = self.batches[call.batch]
                answered.add((call.batch, key))
                meets = batch.began > call.began and batch.ended < call.ended
                if key not in map(repr, batch.items) or not meets or (call.outcome == "error") is not batch.raised:
                    wrong.append(f"{call} by {batch}")
            if call.outcome not in ("result", "error", "refused", "cancelled"):
                wrong.append(str(call))
        gone = {repr(call.item) for call in self.calls if call.outcome == "cancelled"}  # whose caller left meanwhile
        for number, batch in self.batches.items():
            keys = list(map(repr, batch.items))
            if len(set(keys)) < len(keys) or len(keys) > self.options["batch_size"]:
                wrong.append(f"in one batch: {batch}")
            if not (batch.raised and self.options["isolate"] and len(keys) > 1):
                wrong += [
                    f"nobody was answered with {key} of {batch}"
                    for key in keys
                    if key not in gone and (number, key) not in answered
                ]
        return wrong

    def _figures(self, stats: batchify.Stats) -> list[str]:
        outcomes = Counter(call.outcome for call in self.calls)
        late = outcomes["cancelled"]  # of tasks: in a batch or before
        facts = {
            "sizes": (dict(stats.sizes), dict(Counter(len(batch.items) for batch in self.batches.values()))),
            "refused": (stats.refused, outcomes["refused"]),
            "accepted": (stats.accepted, len(self.calls) - outcomes["refused"]),
            "all": (stats.accepted, stats.answered + stats.failed + stats.cancelled),
            "answered": (outcomes["result"] <= stats.answered <= outcomes["result"] + late, True),
            "failed": (outcomes["error"] <= stats.failed <= outcomes["error"] + late, True),
        }
        return [f"{name}: {figure}, but {fact}, {stats}" for name, (figure, fact) in facts.items() if figure != fact]
