"""The servers in examples/, each as a program of its own, asked by many clients at once."""

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from math import nan
from pathlib import Path
from typing import Any

import pytest

from ..tools import said_until

EXAMPLES = Path(__file__).parent.parent.parent / "examples"
REQUESTS = 256
REFUSED = -1

# What no server may let into a batch, where the model would raise for all of them.
TOO_FEW, TOO_BRIGHT, NO_NUMBER = [1, 2, 3], [17] * 64, [nan] * 64

# Asks a server at an address about images, all at once; returns the digits, or `REFUSED`, in order, and its figures.
Ask = Callable[[str, list[list[Any]]], Awaitable[tuple[list[int], dict[str, float]]]]


@contextmanager
def serving(*command: str) -> Iterator["subprocess.Popen[str]"]:
    """Start a server with this Python; give the process at once."""
    process = subprocess.Popen([sys.executable, *command], cwd=EXAMPLES.parent, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def address_of(process: "subprocess.Popen[str]") -> str:
    """Return the address of a server as soon as it listens."""
    return said_until(process, r"(?:running on|Listening at:|listening at) (?:http://)?([\d.]+:\d+)")[0]


def http(path: str) -> Ask:
    """Ask by HTTP, at this path, on a connection for each request."""

    async def ask(address: str, images: list[list[Any]]) -> tuple[list[int], dict[str, float]]:
        import httpx  # here, since the garbage collector, which other tests call, would walk over all that it brings

        # None is used twice: servers close an idle connection after some seconds, just when it may be used again.
        limits = httpx.Limits(max_connections=len(images), max_keepalive_connections=0)
        url = f"http://{address}"
        async with httpx.AsyncClient(base_url=url, limits=limits, timeout=100, trust_env=False) as client:

            async def classify(image: list[Any]) -> int:
                body = json.dumps({"pixels": image})  # httpx itself would not send NaN
                answer = await client.post(path, content=body, headers={"content-type": "application/json"})
                if answer.status_code in (400, 422):
                    return REFUSED
                digit: int = answer.raise_for_status().json()["digit"]
                return digit

            found = await asyncio.gather(*map(classify, images))
            return found, (await client.get("/figures")).raise_for_status().json()

    return ask


async def grpc(address: str, images: list[list[Any]]) -> tuple[list[int], dict[str, float]]:
    """Ask by gRPC, on one connection."""
    from grpc import StatusCode, aio

    async with aio.insecure_channel(address) as channel:
        ask: Any = channel.unary_unary("/Digits/Classify")

        async def classify(image: list[Any]) -> int:
            try:
                digit: int = (await ask(bytes(255 if pixel is nan else int(pixel) for pixel in image)))[0]
            except aio.AioRpcError as error:
                if error.code() == StatusCode.INVALID_ARGUMENT:
                    return REFUSED
                raise
            return digit

        found = await asyncio.gather(*map(classify, images))
        figures: Any = channel.unary_unary("/Digits/Figures")
        return found, json.loads(await figures(b""))


def check(ask: Ask, *command: str, stop: signal.Signals = signal.SIGINT) -> str:
    """Start a server, send it 256 good requests and some bad ones, all at once, and stop it; return what it said.

    Each must get its own answer, in batches, and the server must end without a complaint.
    """
    with serving(*command) as process:
        images, expected = _images()  # while the server starts, which takes as long
        address = address_of(process)
        found, figures = asyncio.run(_awaited(ask(address, images)))
        assert found == expected
        assert figures["images"] == REQUESTS
        assert figures["batches"] < REQUESTS / 2
        assert figures["largest"] <= 64

        process.send_signal(stop)
        assert process.stderr is not None
        said = process.stderr.read()
        assert process.wait() == 0, said
    assert "Traceback" not in said, said
    return said


def _images() -> tuple[list[list[Any]], list[int]]:
    """Return what a server is asked about, and what it must answer: the digit, or `REFUSED`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXAMPLES)
        from digits import forest
    from sklearn.datasets import load_digits

    pixels = load_digits().data[:REQUESTS]
    expected = [int(digit) for digit in forest.predict(pixels)]
    assert len(set(expected)) == 10
    images = pixels.tolist()
    for position, bad in ((0, TOO_FEW), (100, TOO_BRIGHT), (200, NO_NUMBER)):
        images.insert(position, bad)
        expected.insert(position, REFUSED)
    return images, expected


async def _awaited(answer: Awaitable[Any]) -> Any:
    return await answer
