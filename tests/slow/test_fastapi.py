"""FastAPI finds out by itself what a batched function takes, and its lifespan opens and closes one."""

import asyncio
import importlib.util
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from batchify import ClosedError, batched

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("fastapi") is None, reason="needs fastapi"),
    pytest.mark.filterwarnings("ignore:Using `httpx` with `starlette.testclient`"),
]


def client_of(app: Any) -> Any:
    from fastapi.testclient import TestClient

    return TestClient(app)


def test_batched_function_is_an_endpoint_and_a_dependency() -> None:
    from fastapi import Depends, FastAPI

    app = FastAPI()

    @app.get("/length")
    @batched(batch_size=2)
    async def length(text: list[str]) -> list[int]:
        """The length of a text."""
        return [len(each) for each in text]

    @app.get("/length-in-a-thread")
    @batched(batch_size=2)
    def length_in_a_thread(text: list[str], *, times: int = 1) -> list[int]:
        return [times * len(each) for each in text]

    @app.get("/depends")
    async def depends(found: int = Depends(length)) -> int:
        return found

    with client_of(app) as client:
        for path in ("/length", "/length-in-a-thread", "/depends"):
            assert client.get(path, params={"text": "four"}).json() == 4
            assert client.get(path).status_code == 422
        assert client.get("/length-in-a-thread", params={"text": "four", "times": 3}).json() == 12
        schema = client.get("/openapi.json").json()["paths"]["/length"]["get"]
    assert [(each["name"], each["schema"]["type"]) for each in schema["parameters"]] == [("text", "string")]
    assert schema["description"] == "The length of a text."
    length_in_a_thread.close()


@pytest.mark.parametrize("awaited", [False, True])
def test_two_clients_in_one_process_open_and_close_it(awaited: bool) -> None:
    from fastapi import FastAPI

    @batched(batch_size=2)
    async def on_the_loop(texts: list[str]) -> list[int]:
        return [len(each) for each in texts]

    @batched(batch_size=2)
    def in_a_thread(texts: list[str]) -> list[int]:
        return [len(each) for each in texts]

    length: Any = on_the_loop if awaited else in_a_thread

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with length:
            yield

    app = FastAPI(lifespan=lifespan)

    @app.get("/")
    async def ask(text: str) -> int:
        found: int = await length.aio(text)
        return found

    for _ in range(2):
        with client_of(app) as client:
            assert client.get("/", params={"text": "four"}).json() == 4
        with pytest.raises(ClosedError):
            asyncio.run(length.aio("x"))
