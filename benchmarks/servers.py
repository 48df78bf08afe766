"""How many requests does a server answer, with and without `@batched`, and what do the usual mistakes cost?

Starts each server of examples/ as a program of its own, and lets clients in this process ask it about one image at a
time, over connections that stay open: closed loop, each client sends its next request when it has its answer. Every
answer is checked. What the servers ask about an image is exchanged:

    batched     examples/digits.py as it is: batch_size=64, timeout=0
    single      the forest is asked about each image by itself; one at a time, as several at once are no faster
    blocking    an `async def` endpoint calls `predict(image)` where it should await `predict.aio(image)`
    40 threads  `def` endpoints get the 40 threads that they have unless told otherwise, not 128
    timeout     with timeout=0.05, which is for batches that fill

Printed: requests per second; the CPU time that the server spent on one (Linux only), which other programs on the
machine change little; the median and the 99th percentile of the time that one took; the mean size of the batches; and
the share of one core that the clients took: where it is near 100 %, it was they who were too slow.

    python benchmarks/servers.py [--seconds 2] [--clients 128] [--only fastapi]

It needs `pip install -e '.[examples]' flask gunicorn django grpcio`, and takes two minutes.
"""

import argparse
import asyncio
import json
import os
import re
import runpy
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from itertools import cycle
from math import nan
from pathlib import Path
from statistics import median, quantiles
from types import SimpleNamespace
from typing import Any, NamedTuple, TypeVar

EXAMPLES = Path(__file__).parent.parent / "examples"
WARM_UP = 0.5
LINE = "{:<20}{:<22}{:>10}{:>8}{:>11}{:>8}{:>7}{:>9}"

T = TypeVar("T")
# Sends the request with a number; returns the answer.
Ask = Callable[[int], Awaitable[T]]


class Stand:
    """Stands for a batched function, which the lifespan of a server opens and closes."""

    async def __aenter__(self) -> None:
        pass

    async def __aexit__(self, *_: object) -> None:
        pass


class Single(Stand):
    """Stands for `predict`, without batching."""

    def __init__(self, digits: Any) -> None:
        self.forest = digits.forest
        self.lock = threading.Lock()
        self.answered = 0

    def __call__(self, image: Any) -> int:
        with self.lock:
            self.answered += 1
            return int(self.forest.predict(image[None])[0])

    async def aio(self, image: Any) -> int:
        return await asyncio.to_thread(self, image)

    @property
    def stats(self) -> Any:
        return SimpleNamespace(answered=self.answered, batches=self.answered, mean_size=1.0, sizes={1: self.answered})

    def close(self) -> None:
        pass


class Blocking(Stand):
    """Stands for `predict` where somebody calls it on the thread of the event loop."""

    def __init__(self, digits: Any) -> None:
        self.predict = digits.predict

    async def aio(self, image: Any) -> int:
        digit: int = self.predict(image)
        return digit

    def __getattr__(self, name: str) -> Any:
        return getattr(self.predict, name)


def serve(changes: list[str], command: list[str]) -> None:
    """Run one server in this process, with changes to what it serves."""
    sys.path.insert(0, str(EXAMPLES))
    digits: Any = __import__("digits")
    for change in changes:
        if change == "single":
            digits.predict = Single(digits)
        elif change == "blocking":
            digits.predict = Blocking(digits)
        elif change == "40 threads":
            digits.THREADS = 40
        elif change == "timeout":
            digits.predict.timeout = 0.05
    sys.argv = command
    if command[0].endswith(".py"):
        runpy.run_path(command[0], run_name="__main__")
    else:
        runpy.run_module(command[0], run_name="__main__")


@contextmanager
def serving(*command: str) -> Iterator[tuple[str, int]]:
    """Start a server with this Python, as a program of its own; give its address, and the number of the process."""
    process = subprocess.Popen([sys.executable, *command], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        said = ""
        while not (found := re.search(r"(?:running on|Listening at:|listening at) (?:http://)?([\d.]+:\d+)", said)):
            line = process.stderr.readline()
            if not line:
                sys.exit(f"the server ended:\n{said}")
            said += line
        threading.Thread(target=process.stderr.read, daemon=True).start()  # or it would stop when the pipe is full
        yield found[1], process.pid
    finally:
        process.terminate()
        process.wait()


async def http_client(address: str, path: str, bodies: list[bytes], read: Callable[[bytes], T]) -> Ask[T]:
    """Open a connection; what httpx does would take longer than the server does. `read` makes the answer of a body."""
    host, port = address.split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    head = f"POST {path} HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\nContent-Length: "

    async def ask(number: int) -> T:
        body = bodies[number]
        writer.write(head.encode() + b"%d\r\n\r\n" % len(body) + body)
        answer = (await reader.readuntil(b"\r\n\r\n")).lower()
        if not answer.startswith(b"http/1.1 200"):
            sys.exit(f"refused: {answer.decode()}")
        if length := re.search(rb"content-length: (\d+)", answer):
            content = await reader.readexactly(int(length[1]))
        else:
            content = await reader.readuntil(b"0\r\n\r\n")  # in chunks, of which this is the last
        return read(content)

    return ask


async def figures_of(address: str) -> Any:
    """Return what a server tells of itself."""
    host, port = address.split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(f"GET /figures HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n".encode())
    found = re.search(rb"\{.*\}", await reader.read())
    assert found is not None
    return json.loads(found[0])


def cpu_of(process: int) -> float:
    """Return the seconds of CPU that a process and its children took so far."""
    folder = Path(f"/proc/{process}")
    if not folder.exists():  # not Linux
        return nan
    fields = (folder / "stat").read_text().rpartition(")")[2].split()
    children = (folder / "task" / str(process) / "children").read_text().split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK") + sum(map(cpu_of, map(int, children)))


class Load(NamedTuple):
    """What came of one run.

    Attributes:
        took: Seconds, of each request.
        server: CPU seconds of the server.
        clients: CPU seconds of the clients.
    """

    took: list[float]
    server: float
    clients: float


async def load(
    asks: list[Ask[T]],
    requests: int,
    is_right: Callable[[int, T], bool],
    process: int,
    seconds: float,
    warm_up: float = WARM_UP,
) -> Load:
    """Let these clients ask, for so many seconds after a while to warm up; who is answered sends the next request."""
    took: list[float] = []
    counting = stopped = False
    numbers = cycle(range(requests))

    async def go_round(ask: Ask[T]) -> None:
        while not stopped:
            number = next(numbers)
            start = time.perf_counter()
            if not is_right(number, await ask(number)):
                sys.exit("a wrong answer")
            if counting:
                took.append(time.perf_counter() - start)

    tasks = [asyncio.create_task(go_round(ask)) for ask in asks]
    await asyncio.sleep(warm_up)
    before = cpu_of(process), time.process_time()
    counting = True
    await asyncio.sleep(seconds)
    counting, stopped = False, True
    after = cpu_of(process), time.process_time()
    await asyncio.gather(*tasks)
    return Load(took, after[0] - before[0], after[1] - before[1])


async def run(
    address: str, process: int, path: str, images: Any, expected: list[int], clients: int, seconds: float
) -> tuple[Load, float]:
    """Ask for so many seconds; return what came of it, and the mean size of batches."""

    def is_right(number: int, digit: int) -> bool:
        return digit == expected[number]

    if path == "grpc":
        import grpc

        async with grpc.aio.insecure_channel(address) as channel:
            classify = channel.unary_unary("/Digits/Classify")
            messages = [image.astype("uint8").tobytes() for image in images]

            async def ask(number: int) -> int:
                digit: int = (await classify(messages[number]))[0]
                return digit

            found = await load([ask] * clients, len(expected), is_right, process, seconds)
            figures = json.loads(await channel.unary_unary("/Digits/Figures")(b""))
    else:
        bodies = [json.dumps({"pixels": image.tolist()}).encode() for image in images]
        asks = [await http_client(address, path, bodies, digit_in) for _ in range(clients)]
        found = await load(asks, len(expected), is_right, process, seconds)
        figures = await figures_of(address)
    return found, figures["mean_size"]


def digit_in(content: bytes) -> int:
    """Return the digit in an answer."""
    digit = re.search(rb'"digit": ?(\d)', content)
    assert digit is not None
    return int(digit[1])


class Row(NamedTuple):
    """A server, where its endpoint is, and what is changed."""

    name: str
    path: str
    command: list[str]
    changes: list[str]


def rows() -> list[Row]:
    def example(name: str) -> list[str]:
        return [str(EXAMPLES / name), "--port=0"]

    gunicorn = ["gunicorn", f"--chdir={EXAMPLES}", "--bind=127.0.0.1:0", "--no-control-socket"]
    servers = {
        "FastAPI, async def": ("/classify", example("serve_fastapi.py")),
        "FastAPI, def": ("/classify-in-thread", example("serve_fastapi.py")),
        "Flask, gunicorn": ("/classify", [*gunicorn, "--threads=128", "serve_flask:app"]),
        "Django, ASGI": ("/classify", example("serve_django.py")),
        "grpc.server": ("grpc", example("serve_grpc.py")),
        "grpc.aio": ("grpc", example("serve_grpc_aio.py")),
    }
    both = [Row(name, *server, changes) for name, server in servers.items() for changes in (["single"], ["batched"])]
    traps = [
        ("FastAPI, async def", ["blocking"]),
        ("FastAPI, def", ["40 threads"]),
        ("FastAPI, def", ["timeout"]),
        ("FastAPI, def", ["40 threads", "timeout"]),
    ]
    return both + [Row(name, *servers[name], changes) for name, changes in traps]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2.0, help="length of one run")
    parser.add_argument("--clients", type=int, default=128, help="requests at once")
    parser.add_argument("--only", default="", help="servers whose name has this in it")
    options = parser.parse_args()
    from sklearn.datasets import load_digits

    digits = load_digits()
    # The forest knows these by heart, as it was trained on them.
    images, expected = digits.data[:512], [int(digit) for digit in digits.target[:512]]
    print(f"Python {sys.version.split()[0]}, {options.clients} clients, runs of {options.seconds:g} s")
    print(LINE.format("server", "changes", "requests/s", "CPU ms", "median ms", "p99 ms", "batch", "clients"))
    for row in rows():
        if options.only.lower() not in row.name.lower():
            continue
        with serving(__file__, "--serve", ",".join(row.changes), *row.command) as (address, process):
            work = run(address, process, row.path, images, expected, options.clients, options.seconds)
            (took, server, clients), size = asyncio.run(work)
        figures = (
            f"{len(took) / options.seconds:.0f}",
            f"{server / len(took) * 1e3:.2f}",
            f"{median(took) * 1e3:.0f}",
            f"{quantiles(took, n=100)[-1] * 1e3:.0f}",
            f"{size:.1f}",
            f"{clients / options.seconds:.0%}",
        )
        print(LINE.format(row.name, ", ".join(row.changes), *figures), flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(sys.argv[2].split(","), sys.argv[3:])
    else:
        main()
