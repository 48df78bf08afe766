"""The benchmarks: they notice what is wrong, and their page shows what was recorded."""

import json
import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("numpy")

from benchmarks import overhead, plot
from benchmarks.adapters import AwaitDirectly, BatchifyAwait, Caller, NoBatching
from benchmarks.peers import Worker
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


@pytest.mark.parametrize(
    ("name", "scheme", "size"),
    [
        ("threads 8/8", "floor", 8),
        ("threads 8/8", "batchify", 8),
        ("await 32/32", "batchify", 32),
        ("aio 256/64", "batchify", 64),
        ("map def", "batchify", 64),
        ("option dedupe", "batchify", 64),  # of twice as many calls
    ],
)
def test_process_reports_what_a_call_costs(name: str, scheme: str, size: int) -> None:
    figures = overhead.measure(name, scheme, rounds=1, pinned=False)
    assert 0 < figures.cpu < 10_000
    assert figures.size == size


def test_other_checkout_is_the_one_that_is_measured(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "batchify").mkdir()
    (tmp_path / "batchify/__init__.py").write_text("raise ImportError('this is the other one')")
    with pytest.raises(subprocess.CalledProcessError):
        overhead.measure("await lone", "batchify", rounds=1, pinned=False, checkout=str(tmp_path))
    assert "this is the other one" in capfd.readouterr().err


def test_cost_over_the_least_is_a_line_of_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    costs = {"floor": [4.0, 2.0], "batchify": [3.0, 5.0], "original": [8.0, 8.0], "queue": [9.0, 7.0]}

    def measure(_: str, scheme: str, rounds: int, *, pinned: bool, checkout: str) -> overhead.Figures:
        return overhead.Figures(costs[scheme].pop(), 8.0)

    monkeypatch.setattr(overhead, "measure", measure)
    line = overhead.compare("threads 8/8", 2, 1, pinned=False)
    assert line == "| threads 8/8 | 2.00 | 3.00 | 1.50 | 8 | original 4.00 (8), queue 3.50 (8) |"
