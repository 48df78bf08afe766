"""The worker processes of a server that forks after it has imported the application start clean, under load too."""

import http.client
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ..tools import said_until

pytestmark = pytest.mark.thread_unsafe(reason="programs of their own")

APPLICATION = """
import os, threading
from batchify import batched

@batched(batch_size=8, timeout=0.002)
def double(items):
    return [(os.getpid(), 2 * item) for item in items]

@batched(batch_size=2, timeout=None)
def record(items):
    with open("record", "a") as file:
        file.write("".join(f"{os.getpid()} {item}\\n" for item in items))
    return items

# In the parent, before it forks: a flush thread, and an item that waits.
double(0)
record.submit("parent")
with open("parent", "w") as file:
    file.write(str(os.getpid()))

def application(environ, start_response):
    flushed_in, result = double(int(environ["QUERY_STRING"]))
    assert list(double.map([1, 2, 3])) == [(os.getpid(), 2), (os.getpid(), 4), (os.getpid(), 6)]
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [f"{os.getpid()} {flushed_in} {result}".encode()]
"""


def test_gunicorn_workers_start_clean_under_load(tmp_path: Path) -> None:
    pytest.importorskip("gunicorn")
    (tmp_path / "application.py").write_text(APPLICATION)
    options = ["--preload", "--workers=4", "--threads=8", "--bind=127.0.0.1:0", "--no-control-socket"]
    server = subprocess.Popen(
        [sys.executable, "-m", "gunicorn", *options, "application"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert server.stderr is not None
    try:
        address, said = said_until(server, r"Listening at: http://(127\.0\.0\.1:\d+)")

        def ask(number: int) -> int:
            connection = http.client.HTTPConnection(address, timeout=100)
            connection.request("GET", f"/?{number}")
            worker, flushed_in, result = connection.getresponse().read().split()
            connection.close()
            assert worker == flushed_in
            assert int(result) == 2 * number
            return int(worker)

        parent = int((tmp_path / "parent").read_text())
        with ThreadPoolExecutor(32) as clients:
            workers: set[int] = set()
            while len(workers) < 4:  # until each of them was asked
                workers.update(clients.map(ask, range(256)))
            killed = workers.pop()
            os.kill(killed, signal.SIGKILL)
            while len(workers - {killed}) < 4:  # and one that was forked under load
                workers.update(clients.map(_unless_it_was_killed(ask), range(256)))
                workers.discard(0)
        assert parent not in workers
        server.send_signal(signal.SIGTERM)
        said += server.stderr.read()
        assert server.wait() == 0, said
        assert "Traceback" not in said
    finally:
        server.kill()
        server.wait()
        server.stderr.close()
    # What waited in the parent was run once, there, at its end.
    assert (tmp_path / "record").read_text() == f"{parent} parent\n"


def _unless_it_was_killed(ask: Callable[[int], int]) -> Callable[[int], int]:
    def ask_again(number: int) -> int:
        try:
            return ask(number)
        except (OSError, http.client.HTTPException):
            return 0

    return ask_again
