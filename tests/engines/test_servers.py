"""Each server in examples/ answers 256 requests at once, each with its own digit, in batches, and ends when told to."""

import signal

import pytest

from ..servers import Ask, check, grpc, http
from .components import component

GUNICORN = ["-m", "gunicorn", "--chdir=examples", "--threads=128", "--bind=127.0.0.1:0", "--no-control-socket"]


@pytest.mark.parametrize(
    ("needs", "ask", "command", "largest", "stop"),
    [
        # In FastAPI's 40 threads. That of `async def` is in the default suite.
        pytest.param("fastapi", http("/classify-in-thread"), ["examples/serve_fastapi.py"], 40, "SIGINT", id="fastapi"),
        pytest.param("flask", http("/classify"), [*GUNICORN, "serve_flask:app"], 64, "SIGTERM", id="flask"),
        pytest.param("django", http("/classify"), ["examples/serve_django.py"], 64, "SIGINT", id="django"),
        pytest.param("grpc", grpc, ["examples/serve_grpc.py"], 64, "SIGTERM", id="grpc"),
        pytest.param("grpc", grpc, ["examples/serve_grpc_aio.py"], 64, "SIGTERM", id="grpc.aio"),
    ],
)
def test_256_requests_at_once_get_their_own_answers_in_batches(
    needs: str, ask: Ask, command: list[str], largest: int, stop: str
) -> None:
    component(needs)
    if "gunicorn" not in command:
        command = [*command, "--port=0"]
    check(ask, *command, largest=largest, stop=signal.Signals[stop])
