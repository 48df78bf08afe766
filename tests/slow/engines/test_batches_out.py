"""Batches go out: to threads, processes and machines, with the recipes of docs/engines.md as they stand there."""

import asyncio
import os
import pkgutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from batchify import BatchError

from ...tools import in_threads
from .adapters import ENGINES, Engine, Function
from .components import component
from .items import EXIT, GO_ON, KILL, Door, Exits, Unlucky, UnluckyError, a_door
from .pages import blocks, module

pytestmark = pytest.mark.timeout(300)  # the first one on Ray starts it, three times if need be

PAGE = "engines.md"
BATCH = 8


@dataclass
class Running:
    """An engine that runs, with the function of its recipe."""

    engine: Engine
    recipe: ModuleType
    square: Function

    @property
    def lost(self) -> type[Exception]:
        found: type[Exception] = pkgutil.resolve_name(self.engine.lost)
        return found


def on(engines: Callable[[Engine], bool]) -> pytest.MarkDecorator:
    """Run a test on the engines of which this is true. Each is started once for all tests."""
    chosen = [engine for engine in ENGINES if engines(engine)]
    ids = [engine.name.removeprefix("recipe_") for engine in chosen]
    return pytest.mark.parametrize("running", chosen, ids=ids, indirect=True, scope="module")


on_all = on(lambda engine: True)
on_mortal = on(lambda engine: engine.lost != "")


@pytest.fixture(scope="module")
def running(request: pytest.FixtureRequest, folder: Path) -> Iterator[Running]:
    engine: Engine = request.param
    component(engine.package)
    if engine.package == "ray":
        request.getfixturevalue("ray")
    with pytest.MonkeyPatch.context() as monkeypatch:
        recipe = module(PAGE, engine.heading, engine.name, folder, monkeypatch)
        with engine.start(recipe) as square:
            yield Running(engine, recipe, square)


@pytest.fixture
def door() -> Iterator[Door]:
    with a_door() as found:
        yield found


def outcome(future: Any) -> Any:
    return future.exception() or future.result()


def square_all(square: Function) -> None:
    """Let 32 threads and 32 coroutines call; each must get its own answer."""

    async def in_coroutines(numbers: range) -> list[int]:
        return list(await asyncio.gather(*map(square.aio, numbers)))

    assert in_threads(square, range(32)) == [x**2 for x in range(32)]
    assert asyncio.run(in_coroutines(range(32, 64))) == [x**2 for x in range(32, 64)]


@on_all
def test_recipe_prints_what_the_page_says(running: Running, folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, folder / f"{running.engine.name}.py"], capture_output=True, text=True, timeout=100, check=False
    )
    (expected,) = blocks(PAGE, running.engine.heading, "text")
    assert (done.returncode, done.stdout) == (0, expected), done.stderr
    assert "Traceback" not in done.stderr


@on_all
def test_callers_get_their_own_results(running: Running) -> None:
    square_all(running.square)
    assert max(running.square.stats.sizes) <= BATCH


@on_all
def test_concurrency_2_has_two_batches_in_their_workers_at_once(running: Running, door: Door) -> None:
    # 7 others between the two, so they cannot share a batch of 8.
    items = [door.visitor(10), *range(7), door.visitor(11), *range(7)]
    futures = [running.square.submit(item) for item in items]
    visits = door.visit(), door.visit()  # neither goes on before both are there
    assert {visit.number for visit in visits} == {10, 11}
    if running.engine.lost:
        assert os.getpid() not in (pids := {visit.pid for visit in visits})
        assert len(pids) == 2
    for visit in visits:
        visit.tell(GO_ON)
    others = [x**2 for x in range(7)]
    assert [future.result() for future in futures] == [100, *others, 121, *others]


@on_all
def test_error_arrives_with_its_type_at_the_callers_of_its_batch_alone(running: Running, door: Door) -> None:
    square = running.square
    square.timeout = None  # only full batches: 8 items in order are one
    try:
        held = [square.submit(item) for item in [door.visitor(10), *range(7)]]
        visit = door.visit()
        failing = [square.submit(item) for item in [Unlucky(13), *range(7)]]
        errors = [future.exception() for future in failing]
        assert len({id(error) for error in errors}) == BATCH
        for error in errors:
            assert isinstance(error, UnluckyError)
            assert (error.number, error.hint) == (13, "try another one")
            assert "unlucky number 13: try another one" in str(error)
            assert isinstance(error.__cause__, UnluckyError)
        visit.tell(GO_ON)
        assert [future.result() for future in held] == [100, *(x**2 for x in range(7))]
    finally:
        square.timeout = 0.0
    square_all(square)


@on_mortal
def test_worker_killed_in_the_middle_of_a_batch_fails_that_batch(running: Running, door: Door) -> None:
    square = running.square
    square.timeout = None
    try:
        batches = [[square.submit(item) for item in [door.visitor(x), *range(7)]] for x in (10, 11)]
        visits = {visit.number: visit for visit in (door.visit(), door.visit())}
        visits[10].tell(KILL)
        if running.engine.tries > 1:
            again = door.visit()
            assert again.number == 10
            assert again.pid != visits[10].pid
            again.tell(GO_ON)
        killed = [outcome(future) for future in batches[0]]  # before the other one goes on
        visits[11].tell(GO_ON)
        neighbours = [outcome(future) for future in batches[1]]
    finally:
        square.timeout = 0.0

    answers = [x**2 for x in range(7)]
    if running.engine.tries > 1:
        assert killed == [100, *answers]
    else:
        assert [type(error) for error in killed if not isinstance(error, running.lost)] == []
    if running.engine.neighbours_go_on:
        assert neighbours == [121, *answers]
    else:
        assert [type(error) for error in neighbours if not isinstance(error, running.lost)] == []
    square_all(square)


@on_mortal
def test_batch_that_takes_down_every_worker_fails_in_the_end(running: Running, door: Door) -> None:
    square = running.square
    square.timeout = None
    try:
        deadly = [square.submit(item) for item in [door.visitor(10), *range(7)]]
        for _ in range(running.engine.tries):
            door.visit().tell(EXIT)
        errors = [future.exception() for future in deadly]
    finally:
        square.timeout = 0.0
    assert [type(error) for error in errors if not isinstance(error, running.lost)] == []
    assert all(str(error) for error in errors)
    square_all(square)


@on(lambda engine: not engine.lost)
def test_error_raised_in_a_pool_thread_is_that_of_its_batch(running: Running) -> None:
    error = running.square.submit(Exits()).exception()
    assert isinstance(error, BatchError)
    assert isinstance(error.__cause__, SystemExit)
    square_all(running.square)


@on(lambda engine: engine.start_alone is not None)
def test_isolate_finds_the_item_that_kills_its_process(running: Running, door: Door) -> None:
    assert running.engine.start_alone is not None
    with running.engine.start_alone(running.recipe) as square:
        square.timeout = None
        futures = [square.submit(item) for item in [1, 2, 3, door.visitor(10), 5, 6, 7, 8]]
        for _ in ("all 8", "the first 4", "the second 2 of them", "the item alone"):
            door.visit().tell(KILL)
        outcomes = [outcome(future) for future in futures]
    assert isinstance(outcomes.pop(3), running.lost)
    assert outcomes == [1, 4, 9, 25, 36, 49, 64]
