"""Four gunicorn workers share a BaseManager server, and both make batches, with the recipe of docs/engines.md."""

import http.client
import os
import re
import secrets
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from batchify import Stats

from ...tools import in_threads, until
from .components import component
from .pages import blocks, module

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="gunicorn needs fork")

PAGE = "engines.md"
WORKERS, AT_WORKER, AT_SERVER = 4, 16, 64

# As the recipe, but that only full batches run: who has an answer was in one.
ONLY_FULL = {
    "squares_full": "import squares\n\nsquares.square.timeout = None\nsquares.serve()\n",
    "squares_unlucky": (
        "import squares\n\nright = squares.square.__wrapped__\n"
        "def square(xs):\n    return [ValueError('unlucky') if x == 13 else y for x, y in zip(xs, right(xs))]\n\n"
        "squares.square = squares.batched(batch_size=64, timeout=None)(square)\nsquares.serve()\n"
    ),
    "app_full": "from app import app as app\nfrom app import square\n\nsquare.timeout = None\n",
}


class Site:
    """The server and its gunicorn workers."""

    def __init__(self, app: Any, gunicorn: list[str], folder: Path) -> None:
        self._app = app
        self._gunicorn = gunicorn
        self._folder = folder
        self._running: list[subprocess.Popen[bytes]] = []
        self._port = 0

    def start_server(self, name: str = "squares") -> "subprocess.Popen[bytes]":
        process = subprocess.Popen([sys.executable, "-m", name])
        self._running.append(process)
        until(lambda: process.poll() is not None or self._listens())
        return process

    def _listens(self) -> bool:
        try:
            self.stats()
        except OSError:
            return False
        return True

    def stats(self) -> Stats:
        """Ask the server what it did, as the workers ask it for squares."""
        server = self._app.Server(os.environ["SQUARES_ADDRESS"], os.environ["SQUARES_KEY"].encode())
        server.connect()
        found: Stats = server.model().stats()
        return found

    def start_workers(self, *options: str, name: str = "app:app") -> None:
        # A file, as a pipe would fill.
        log = self._folder / "gunicorn.log"
        command = [sys.executable, "-m", *self._gunicorn, f"--log-file={log}", *options, name]
        process = subprocess.Popen(command)
        self._running.append(process)

        def found(pattern: str) -> list[str]:
            assert process.poll() is None
            return re.findall(pattern, log.read_text() if log.exists() else "")

        until(lambda: len(found("Booting worker")) >= WORKERS)
        (port,) = found(r"Listening at: http://127.0.0.1:(\d+)")
        self._port = int(port)

    def get(self, x: int) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self._port)
        try:
            connection.request("GET", f"/?x={x}")
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def stop(self) -> None:
        for process in reversed(self._running):
            process.terminate()
            process.wait()


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    component("gunicorn")
    module(PAGE, "The server", "squares", tmp_path, monkeypatch)
    app = module(PAGE, "The workers", "app", tmp_path, monkeypatch)
    for name, text in ONLY_FULL.items():
        (tmp_path / f"{name}.py").write_text(text)
    (shell,) = blocks(PAGE, "The workers", "sh")
    gunicorn = shlex.split(shell.splitlines()[-1])[:-1]
    # The path of a Unix socket may have 107 bytes, which pytest's folders may exceed.
    with tempfile.TemporaryDirectory() as folder:
        monkeypatch.setenv("SQUARES_ADDRESS", f"{folder}/squares")
        monkeypatch.setenv("SQUARES_KEY", secrets.token_hex(32))
        found = Site(app, [*gunicorn, "--bind=127.0.0.1:0", "--no-control-socket"], tmp_path)
        try:
            yield found
        finally:
            found.stop()


def right(numbers: range) -> list[tuple[int, str]]:
    return [(200, str(x**2)) for x in numbers]


def test_requests_get_their_own_answers(site: Site) -> None:
    site.start_server()
    site.start_workers()
    for round_ in range(4):
        numbers = range(64 * round_, 64 * (round_ + 1))
        assert in_threads(site.get, numbers) == right(numbers)
    assert site.stats().answered == 4 * 64


def test_full_batches_of_the_workers_make_full_ones_of_the_server(site: Site) -> None:
    site.start_server("squares_full")
    # No worker takes more connections than fill its batch, so each of them gets so many.
    site.start_workers(f"--threads={AT_WORKER}", f"--worker-connections={AT_WORKER}", name="app_full:app")
    for round_ in range(2):
        numbers = range(64 * round_, 64 * (round_ + 1))
        assert in_threads(site.get, numbers) == right(numbers)
    stats = site.stats()
    assert (stats.sizes, stats.reasons) == ({AT_SERVER: 2}, {"full": 2})


def test_workers_with_few_threads_starve_both(site: Site) -> None:
    site.start_server()
    site.start_workers("--threads=2")
    assert in_threads(site.get, range(AT_SERVER)) == right(range(AT_SERVER))
    assert max(site.stats().sizes) <= WORKERS * 2


def test_error_of_one_item_is_not_one_of_its_list(site: Site) -> None:
    site.start_server("squares_unlucky")
    site.start_workers(f"--threads={AT_WORKER}", f"--worker-connections={AT_WORKER}", name="app_full:app")
    answers = in_threads(site.get, range(AT_SERVER))
    assert answers.pop(13)[0] == 500
    numbers = [x for x in range(AT_SERVER) if x != 13]
    assert answers == [(200, str(x**2)) for x in numbers]


def test_server_that_dies_is_an_error_of_what_it_was_asked(site: Site) -> None:
    server = site.start_server("squares_full")
    site.start_workers()
    with ThreadPoolExecutor(AT_SERVER // 2) as callers:  # too few to fill its batch
        asked = [callers.submit(site.get, x) for x in range(AT_SERVER // 2)]
        until(lambda: site.stats().pending > 0)
        server.kill()
        assert {answer.result() for answer in asked} == {(503, "the server of the model is gone")}

    site.start_server()
    numbers = range(AT_SERVER)
    # Each worker finds out by a list that fails, and is replaced.
    until(lambda: in_threads(site.get, numbers) == right(numbers))
