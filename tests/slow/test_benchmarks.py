"""The benchmarks beside other libraries: they notice what is wrong, and their page shows what was recorded."""

import json
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("numpy")

from benchmarks import plot
from benchmarks.adapters import AwaitDirectly, BatchifyAwait, NoBatching
from benchmarks.peers import Worker
from benchmarks.threads import Caller
from benchmarks.workloads import Failed, LoopLoad, ThreadLoad, arriving, bulk, closed

ROOT = Path(__file__).parent.parent.parent


@contextmanager
def worker(path: str, name: str) -> Generator[Worker, None, None]:
    started = Worker(path, name)
    try:
        yield started
    finally:
        started.end()


class Wrong(NoBatching):
    """Answers one item with what belongs to another one."""

    def caller(self) -> Caller:
        return lambda item: self.function([item + (item == 7)])[0]

    def bulk(self, items: list[int]) -> list[int]:
        return list(map(self.caller(), items))


class AwaitWrong(AwaitDirectly):
    async def one(self, item: int) -> int:
        return await super().one(item + (item == 7))


def test_page_shows_what_was_recorded() -> None:
    recorded = [json.loads((ROOT / f"benchmarks/recorded/{name}.json").read_text()) for name in ("peers", "optimal")]
    page = (ROOT / "docs/benchmarks.md").read_text()
    assert plot.fill(page, recorded[0], recorded[1]) == page


def test_library_that_hangs_is_ended() -> None:
    with worker("threads", "floor") as hangs:
        assert hangs.state == "ready"
        hangs.pipe.send(("memory", 32, 0.0, {"items": 1}))  # the floor never answers a batch that is not full
        assert hangs.answer(0.1) == ("HUNG", None)
        hangs.end()
        assert not hangs.process.is_alive()


def test_library_that_cannot_be_imported_is_named() -> None:
    with worker("threads", "no such library") as absent:
        assert (absent.state, absent.why) == ("not installed", "KeyError: 'no such library'")


def test_worker_process_reports_what_it_measured() -> None:
    with worker("asyncio", "batchify") as batchify:
        batchify.pipe.send(("bulk", 8, 0.005, {"items": 100}))
        status, figures = batchify.answer(60)
        assert (status, figures["items"], figures["batches"]) == ("done", 100, 13)


@pytest.mark.parametrize("load", [ThreadLoad(Wrong, 8, 0.0), LoopLoad(AwaitWrong, 8, 0.0)])
def test_wrong_result_is_noticed(load: Any) -> None:
    with pytest.raises((Failed, SystemExit), match=r"(?i)wrong"):
        closed(load, callers=1, seconds=0.05)
    with pytest.raises(Failed, match="WRONG"):
        bulk(load, items=16)
    with pytest.raises(Failed, match="WRONG"):
        arriving(load, rate=1000.0, seconds=0.05, fixed=0.0, each=0.0, seed=1, callers=4)


def test_arrivals_are_all_answered() -> None:
    load = LoopLoad(BatchifyAwait, 8, 0.0)
    figures = arriving(load, rate=1000.0, seconds=0.1, fixed=0.0, each=0.0, seed=1, callers=4)
    assert figures["unanswered"] == 0
    assert figures["items"] == round(figures["size"] * figures["batches"])
