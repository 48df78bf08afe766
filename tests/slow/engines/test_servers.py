"""Each server in examples/ answers 256 requests at once, each with its own digit, in batches, and ends when told to."""

import re
import signal

import pytest

from ..servers import EXAMPLES, Ask, check, grpc, http
from .components import component
from .pages import DOCS

GUNICORN = ["-m", "gunicorn", "--chdir=examples", "--threads=128", "--bind=127.0.0.1:0", "--no-control-socket"]
DJANGO = ["examples/serve_django.py"]


@pytest.mark.parametrize(
    ("needs", "ask", "command", "stop"),
    [
        # From a `def` endpoint; an `async def` one is in the default suite.
        pytest.param("fastapi", http("/classify-in-thread"), ["examples/serve_fastapi.py"], "SIGINT", id="fastapi"),
        pytest.param("flask", http("/classify"), [*GUNICORN, "serve_flask:app"], "SIGTERM", id="flask"),
        pytest.param("django", http("/classify"), DJANGO, "SIGINT", id="django"),
        pytest.param("django", http("/classify-in-thread"), DJANGO, "SIGINT", id="django in threads"),
        pytest.param("grpc", grpc, ["examples/serve_grpc.py"], "SIGTERM", id="grpc"),
        pytest.param("grpc", grpc, ["examples/serve_grpc_aio.py"], "SIGTERM", id="grpc.aio"),
    ],
)
def test_requests_at_once_get_their_own_answers_in_batches(needs: str, ask: Ask, command: list[str], stop: str) -> None:
    component(needs)
    if "gunicorn" not in command:
        command = [*command, "--port=0"]
    check(ask, *command, stop=signal.Signals[stop])


def test_page_shows_what_the_examples_do() -> None:
    examples = [example.read_text() for example in EXAMPLES.glob("*.py")]
    blocks = re.findall(r"```(?:python|sh)\n(.*?)```", (DOCS / "servers.md").read_text(), re.DOTALL)
    assert len(blocks) > 5
    for block in blocks:
        assert any(block in example for example in examples), block
