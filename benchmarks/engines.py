"""How long is a batch on its way to an engine and back?

The recipes of docs/engines.md, as they stand there. One caller asks for one item at a time, so each call is a batch of
its own, and what it takes is the way there and back: the function only squares a number, which takes no time. The
second figure is for a batch that brings 1 MB and takes 1 MB home.

All engines are started first; then they run in turn within each round, so that the machine's moods hit all of them.

Printed: the median over the rounds of the mean time of a call, and the median of its ratios to a thread pool in the
same round. Work that takes less time than the way should stay where it is.

    pip install -e '.[examples]' --group engines && python benchmarks/engines.py [--rounds 7]
"""

import argparse
import importlib
import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from types import ModuleType
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from tests.slow.engines.adapters import ENGINES
from tests.slow.engines.items import Parcel
from tests.slow.engines.local_ray import local_ray
from tests.slow.engines.pages import code
from tests.tools import until

PAGE = "engines.md"
CALLS, PARCELS = 50, 10
MEGABYTE = b"\0" * 2**20

# One call of an engine, with an item.
Call = Callable[[Any], Any]


def recipe(heading: str, name: str, folder: Path) -> ModuleType:
    (folder / f"{name}.py").write_text(code(PAGE, heading))
    return importlib.import_module(name)


def work(xs: list[Any]) -> list[Any]:
    return [x * x for x in xs]


def answer_of_actor(ray: Any, model: Any, item: Any) -> Any:
    return ray.get(model.predict.remote(item))


@contextmanager
def manager(folder: Path) -> Iterator[Call]:
    """The server for several processes, asked for a list of one as its workers ask it."""
    os.environ["SQUARES_ADDRESS"] = str(folder / "squares.sock")
    os.environ["SQUARES_KEY"] = secrets.token_hex(32)
    recipe("The server", "squares", folder)
    app = recipe("The workers", "app", folder)
    server = subprocess.Popen([sys.executable, "-c", "import squares; squares.square.timeout = 0; squares.serve()"])
    try:
        until(Path(os.environ["SQUARES_ADDRESS"]).exists)
        app.square.timeout = 0.0
        yield app.square
    finally:
        server.terminate()
        server.wait()


def start(folder: Path, stack: ExitStack) -> dict[str, Call]:
    """Start all engines; return how to call each."""
    ray = stack.enter_context(local_ray())
    from ray import serve

    pool = stack.enter_context(ThreadPoolExecutor(2))
    calls: dict[str, Call] = {"a thread pool, without batchify": lambda item: pool.submit(work, [item]).result()[0]}
    for engine in ENGINES:
        calls[engine.heading] = stack.enter_context(engine.start(recipe(engine.heading, engine.name, folder)))
    actors = {"Ray actor with threads": "recipe_threads", "Ray actor with async methods": "recipe_async"}
    for heading, name in actors.items():
        calls[heading] = partial(answer_of_actor, ray, recipe(heading, name, folder).Model.remote())
    serve.start(proxy_location="Disabled")
    stack.callback(serve.shutdown)
    deployment = serve.run(recipe("Ray Serve", "recipe_serve", folder).Model.bind())
    calls["Ray Serve"] = lambda item: deployment.remote(item).result()
    calls["BaseManager server"] = stack.enter_context(manager(folder))
    return calls


def mean_time(call: Call, item: Any, times: int) -> float:
    """Return the milliseconds that a call takes."""
    begin = time.perf_counter()
    for _ in range(times):
        call(item)
    return (time.perf_counter() - begin) / times * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="how often each engine is measured")
    rounds: int = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        sys.path.insert(0, folder)
        os.environ["PYTHONPATH"] = os.pathsep.join([folder, os.environ.get("PYTHONPATH", "")])
        calls = start(Path(folder), stack)
        for name, call in calls.items():
            if call(3) != 9 or call(Parcel(MEGABYTE)) != Parcel(MEGABYTE):
                sys.exit(f"wrong result from {name}")
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
        for _ in range(rounds):
            for name, call in calls.items():
                found[name].append((mean_time(call, 3, CALLS), mean_time(call, Parcel(MEGABYTE), PARCELS)))

    print(f"Python {sys.version.split()[0]}, {os.cpu_count()} CPUs, {rounds} rounds; milliseconds there and back")
    print(f"{'':<32} {'a number':>10} {'ratio':>8} {'1 MB':>10}")
    (base, *_) = found.values()
    for name, figures in found.items():
        ratio = median(mine[0] / other[0] for mine, other in zip(figures, base, strict=True))
        number, parcel = (median(column) for column in zip(*figures, strict=True))
        print(f"{name:<32} {number:>10.2f} {ratio:>8.1f} {parcel:>10.2f}")


if __name__ == "__main__":
    main()
