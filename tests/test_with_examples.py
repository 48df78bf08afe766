"""The examples do what they say, as programs of their own."""

import asyncio
import runpy
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .tools import said_until

pytestmark = pytest.mark.thread_unsafe(reason="programs of their own")

EXAMPLES = Path(__file__).parent.parent / "examples"
REQUESTS = 256


def test_the_model_behind_threads_answers_as_if_asked_directly() -> None:
    example = EXAMPLES / "serve_digits.py"
    done = subprocess.run([sys.executable, example, "--items", "200"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "differ" in done.stdout


@pytest.fixture
def server() -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """The server, and its address."""
    process = subprocess.Popen(
        [sys.executable, EXAMPLES / "serve_http.py", "--port", "0"], stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    try:
        address, _ = said_until(process, r"running on (http://\S+)")
        yield process, address
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def test_256_requests_at_once_get_their_own_answers_in_batches(server: tuple["subprocess.Popen[str]", str]) -> None:
    # Here, since the garbage collector, which other tests call, would walk over all they bring.
    import httpx
    from sklearn.datasets import load_digits

    process, address = server
    images = load_digits().data[:REQUESTS]
    forest = runpy.run_path(str(EXAMPLES / "serve_http.py"))["forest"]
    expected = [int(digit) for digit in forest.predict(images)]
    assert len(set(expected)) == 10

    async def ask() -> tuple[list[int], dict[str, Any], int]:
        # A connection for each request: the server closes an idle one after 5 s, just when it may be used again.
        limits = httpx.Limits(max_connections=REQUESTS, max_keepalive_connections=0)
        async with httpx.AsyncClient(base_url=address, limits=limits, timeout=100, trust_env=False) as client:

            async def classify(image: Any) -> int:
                answer = await client.post("/classify", json={"pixels": image.tolist()})
                digit: int = answer.raise_for_status().json()["digit"]
                return digit

            found = list(await asyncio.gather(*map(classify, images)))
            bad = await client.post("/classify", json={"pixels": [1, 2, 3]})
            return found, (await client.get("/figures")).json(), bad.status_code

    found, figures, refused = asyncio.run(ask())
    assert found == expected
    assert figures["images"] == REQUESTS
    assert figures["batches"] < REQUESTS / 2
    assert refused == 422

    process.send_signal(signal.SIGINT)
    assert process.stderr is not None
    said = process.stderr.read()
    assert process.wait() == 0, said
    assert "Application shutdown complete" in said
    assert "Traceback" not in said
