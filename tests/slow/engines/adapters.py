"""How to start each engine to which batches go out, and what it does when one of its workers dies."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from .components import component

# A decorated function, without types, since the tests pass it whatever they like.
Function = Any


@dataclass(frozen=True)
class Engine:
    """One recipe of docs/engines.md.

    Attributes:
        heading: Where it stands.
        package: What must be installed.
        start: Starts the engine, gives the function of the recipe, and ends both.
        lost: What the callers of a batch get that was lost with its worker, as "module:name"; "" where none can die.
        tries: How often a batch is tried whose worker dies each time.
        neighbours_go_on: Whether batches in other workers do when one has died.
        start_alone: Like `start`, for the function that isolates an item that kills its worker, if the recipe has one.
    """

    heading: str
    package: str
    start: Callable[[ModuleType], AbstractContextManager[Function]]
    lost: str = ""
    tries: int = 1
    neighbours_go_on: bool = True
    start_alone: Callable[[ModuleType], AbstractContextManager[Function]] | None = None

    @property
    def name(self) -> str:
        """The name of its module: no page says it, and no package is called so."""
        return f"recipe_{self.heading.lower().replace(' ', '_')}"


@contextmanager
def _threads(recipe: ModuleType) -> Iterator[Function]:
    with ThreadPoolExecutor(2) as pool, recipe.square_on(pool) as square:
        yield square


@contextmanager
def _processes(recipe: ModuleType) -> Iterator[Function]:
    with recipe.Processes(2) as pool, recipe.square_on(pool) as square:
        yield square


@contextmanager
def _processes_alone(recipe: ModuleType) -> Iterator[Function]:
    with recipe.Processes(2) as pool, recipe.square_alone_on(pool) as square:
        yield square


@contextmanager
def _loky(recipe: ModuleType) -> Iterator[Function]:
    with recipe.square:
        yield recipe.square
    recipe.get_reusable_executor().shutdown()


@contextmanager
def _loky_alone(recipe: ModuleType) -> Iterator[Function]:
    with recipe.square_alone:
        yield recipe.square_alone


@contextmanager
def _dask(recipe: ModuleType) -> Iterator[Function]:
    distributed = component("distributed")
    with (
        recipe.start_cluster() as cluster,
        distributed.Client(cluster) as client,
        recipe.square_on(client) as square,
    ):
        yield square


@contextmanager
def _ray_tasks(recipe: ModuleType) -> Iterator[Function]:
    with recipe.square:
        yield recipe.square


@contextmanager
def _ray_actors(recipe: ModuleType) -> Iterator[Function]:
    with recipe.square_on_actors(2) as square:
        yield square


ENGINES = [
    Engine("ThreadPoolExecutor", "concurrent.futures", _threads),
    Engine(
        "ProcessPoolExecutor",
        "concurrent.futures",
        _processes,
        lost="concurrent.futures.process:BrokenProcessPool",
        neighbours_go_on=False,
        start_alone=_processes_alone,
    ),
    Engine(
        "loky",
        "loky",
        _loky,
        lost="loky.process_executor:TerminatedWorkerError",
        neighbours_go_on=False,
        start_alone=_loky_alone,
    ),
    Engine("Dask", "distributed", _dask, lost="distributed:KilledWorker", tries=4),
    Engine("Ray tasks", "ray", _ray_tasks, lost="ray.exceptions:WorkerCrashedError", tries=4),
    Engine("Ray actors", "ray", _ray_actors, lost="ray.exceptions:ActorDiedError"),
]
