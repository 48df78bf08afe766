"""The examples do what they say, as programs of their own. For more servers see tests/slow/engines."""

import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec

import pytest

from ..tools import HAS_GIL
from .servers import EXAMPLES, check, http

pytestmark = [
    pytest.mark.thread_unsafe(reason="programs of their own"),
    pytest.mark.skipif(not HAS_GIL and not find_spec("sklearn"), reason="there is no scikit-learn for this Python"),
]


@pytest.fixture(scope="module", autouse=True)
def serve_digits() -> Iterator["subprocess.Popen[str]"]:
    """It runs while the other test does, as both mostly wait for a program to learn the digits."""
    command = [sys.executable, str(EXAMPLES / "serve_digits.py"), "--items", "100"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with process:
        try:
            yield process
        finally:
            process.kill()


def test_server_answers_256_requests_at_once_in_batches_each_with_its_own_answer() -> None:
    said = check(http("/classify"), "examples/serve_fastapi.py", "--port=0")
    assert "Application shutdown complete" in said


def test_threads_get_the_answers_that_the_model_gives_directly(serve_digits: "subprocess.Popen[str]") -> None:
    printed, said = serve_digits.communicate()
    assert serve_digits.returncode == 0, said
    assert "0 of 200 answers differ" in printed
