"""Callers come in, to a decorated function inside an actor or a deployment, with the recipes of docs/engines.md."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from batchify import Stats

from ...tools import until
from .items import GO_ON, KILL, Door, a_door
from .pages import blocks, module

pytestmark = [
    # From Ray Serve, when it is imported, on the names of what it tells pydantic.
    pytest.mark.filterwarnings("ignore:Using extra keyword arguments on `Field`:DeprecationWarning"),
    # The first one starts Ray, three times if need be.
    pytest.mark.timeout(300),
]

PAGE = "engines.md"
HEADINGS = {
    "recipe_threaded_actor": "Ray actor with threads",
    "recipe_async_actor": "Ray actor with async methods",
    "recipe_serve": "Ray Serve",
}
BATCH = 8


@pytest.fixture(scope="module")
def recipes(folder: Path, ray: Any) -> Iterator[dict[str, ModuleType]]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        yield {name: module(PAGE, heading, name, folder, monkeypatch) for name, heading in HEADINGS.items()}


@pytest.fixture(scope="module")
def serve(ray: Any) -> Iterator[Any]:
    """Ray Serve without HTTP, where the tests and the recipe need no port."""
    from ray import serve

    serve.start(proxy_location="Disabled")
    yield serve
    serve.shutdown()


@pytest.fixture
def door() -> Iterator[Door]:
    with a_door() as found:
        yield found


@pytest.fixture
def actor(ray: Any) -> Iterator[Callable[..., "Asked"]]:
    """Starts an actor of a class, with options."""
    actors = []

    def start(kind: Any, **options: Any) -> Asked:
        actors.append(found := kind.options(**options).remote())
        return Asked(lambda item: found.predict.remote(item).future().result, lambda: ray.get(found.stats.remote()))

    yield start
    for one in actors:
        ray.kill(one)


@pytest.fixture
def deployment(serve: Any) -> Iterator[Callable[..., "Asked"]]:
    """Starts a deployment of a class, with options."""

    def start(kind: Any, **options: Any) -> Asked:
        # A replica that is to end waits for so long before it looks whether it answers anybody.
        quick = {"graceful_shutdown_wait_loop_s": 0.1}
        found = serve.run(kind.options(**quick, **options).bind(), name="tested", route_prefix=None)
        return Asked(lambda item: found.remote(item).result, lambda: found.stats.remote().result())

    yield start
    serve.delete("tested")


class Asked:
    """What answers calls from elsewhere: `ask` returns what waits for the answer."""

    def __init__(self, ask: Callable[[Any], Callable[[], int]], stats: Callable[[], Stats]) -> None:
        self.ask, self.stats = ask, stats

    def fills_its_batches(self, door: Door) -> bool:
        """While one item is held in the function, let three batches come; say whether they were three full ones."""
        first = self.ask(door.visitor(10))
        visit = door.visit()
        answers = [self.ask(x) for x in range(3 * BATCH)]
        until(lambda: self.stats().pending == 3 * BATCH)
        visit.tell(GO_ON)
        assert [first(), *(answer() for answer in answers)] == [100, *(x**2 for x in range(3 * BATCH))]
        return self.stats().sizes == {1: 1, BATCH: 3}

    def errors_when_it_dies(self, door: Door) -> list[Exception]:
        """Kill its process while one item is in the function and others wait; return what the callers get."""
        answers = [self.ask(door.visitor(10))]
        visit = door.visit()
        answers += [self.ask(x) for x in range(BATCH)]
        until(lambda: self.stats().pending == BATCH)
        visit.tell(KILL)
        errors = []
        for answer in answers:
            with pytest.raises(Exception) as caught:  # noqa: PT011 - its type is what is asked
                answer()
            errors.append(caught.value)
        return errors

    def largest_batch(self, calls: int) -> int:
        """Make calls, all at once, and return the size of the largest batch that came of them."""
        answers = [self.ask(x) for x in range(calls)]
        assert [answer() for answer in answers] == [x**2 for x in range(calls)]
        return max(self.stats().sizes)


@pytest.mark.parametrize("name", HEADINGS)
def test_recipe_prints_what_the_page_says(recipes: dict[str, ModuleType], serve: Any, folder: Path, name: str) -> None:
    done = subprocess.run(
        [sys.executable, folder / f"{name}.py"], capture_output=True, text=True, timeout=100, check=False
    )
    (expected,) = blocks(PAGE, HEADINGS[name], "text")
    assert (done.returncode, done.stdout) == (0, expected), done.stderr
    assert "Traceback" not in done.stderr


def test_actor_threads_fill_batches(recipes: Any, actor: Any, door: Door) -> None:
    assert actor(recipes["recipe_threaded_actor"].Model).fills_its_batches(door)


def test_actor_with_one_thread_never_fills_batches(recipes: Any, actor: Any) -> None:
    assert actor(recipes["recipe_threaded_actor"].Model, max_concurrency=1).largest_batch(16) == 1


def test_actor_with_an_async_method_has_no_threads(recipes: Any, actor: Any, ray: Any) -> None:
    model: Any = recipes["recipe_threaded_actor"].Model.__ray_actor_class__

    async def ping(self: Any) -> None: ...

    with_another = type("WithAnother", (model,), {"ping": ping})
    assert actor(ray.remote(with_another), max_concurrency=64).largest_batch(16) == 1


def test_actor_coroutines_fill_batches(recipes: Any, actor: Any, door: Door) -> None:
    assert actor(recipes["recipe_async_actor"].Model).fills_its_batches(door)


def test_actor_that_lets_few_coroutines_in_never_fills_batches(recipes: Any, actor: Any) -> None:
    assert actor(recipes["recipe_async_actor"].Model, max_concurrency=3).largest_batch(16) <= 3


def test_actor_coroutine_that_blocks_never_fills_batches(recipes: Any, actor: Any, ray: Any) -> None:
    model: Any = recipes["recipe_async_actor"].Model.__ray_actor_class__

    async def predict(self: Any, x: int) -> int:
        answer: int = self.predict_many(x)
        return answer

    blocking = type("Blocking", (model,), {"predict": predict})
    assert actor(ray.remote(blocking)).largest_batch(16) == 1


def test_deployment_requests_fill_batches(recipes: Any, deployment: Any, door: Door) -> None:
    assert deployment(recipes["recipe_serve"].Model).fills_its_batches(door)


def test_deployment_that_is_given_few_requests_never_fills_batches(recipes: Any, deployment: Any) -> None:
    model = recipes["recipe_serve"].Model
    assert deployment(model, max_ongoing_requests=5).largest_batch(16) <= 5


@pytest.mark.parametrize("name", ["recipe_threaded_actor", "recipe_async_actor"])
def test_actor_that_dies_is_an_error_of_all_its_callers(
    recipes: Any, actor: Any, ray: Any, door: Door, name: str
) -> None:
    model = actor(recipes[name].Model)
    errors = model.errors_when_it_dies(door)
    assert [type(error) for error in errors] == [ray.exceptions.ActorDiedError] * (BATCH + 1)
    with pytest.raises(ray.exceptions.ActorDiedError):
        model.ask(3)()


def test_deployment_whose_replica_dies_starts_another_one(recipes: Any, deployment: Any, ray: Any, door: Door) -> None:
    model = deployment(recipes["recipe_serve"].Model, health_check_period_s=0.5)
    errors = model.errors_when_it_dies(door)
    assert [type(error) for error in errors] == [ray.exceptions.ActorDiedError] * (BATCH + 1)

    def works_again() -> bool:
        try:
            return bool(model.ask(3)() == 9)
        except ray.exceptions.RayError:  # from a replica that is not known to be dead yet
            return False

    until(works_again)
