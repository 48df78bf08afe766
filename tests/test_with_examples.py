"""The examples do what they say, as programs of their own. For more servers see tests/engines."""

import subprocess
import sys

import pytest

from .servers import EXAMPLES, check, http

pytestmark = pytest.mark.thread_unsafe(reason="programs of their own")


def test_the_model_behind_threads_answers_as_if_asked_directly() -> None:
    example = EXAMPLES / "serve_digits.py"
    done = subprocess.run([sys.executable, example, "--items", "200"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "differ" in done.stdout


def test_256_requests_at_once_get_their_own_answers_in_batches() -> None:
    said = check(http("/classify"), "examples/serve_fastapi.py", "--port=0")
    assert "Application shutdown complete" in said
