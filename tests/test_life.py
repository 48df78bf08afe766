"""A batcher lives inside other people's processes: memory, fork, exit, threads that do not start, subinterpreters."""

import asyncio
import http.client
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from .tools import batched, run_script, said_until

pytestmark = pytest.mark.thread_unsafe(reason="programs of their own")

# What a program does that waits in a way of its own, and prints each answer that it gets.
CALLERS = {
    "submit": "[function.submit(n).add_done_callback(lambda future: show(future.result())) for n in range(3)]",
    "call": "[Thread(target=lambda n=n: show(function(n))).start() for n in range(3)]",
    "call of a daemon": "[Thread(target=lambda n=n: show(function(n)), daemon=True).start() for n in range(3)]",
    "map": "Thread(target=lambda: [show(result) for result in function.map(range(3))]).start()",
    "aio": """
async def main():
    for result in await asyncio.gather(*map(function.aio, range(3))):
        show(result)
Thread(target=lambda: asyncio.run(main())).start()""",
    "async def": """
@batched(batch_size=3)
async def outer(items):
    return await asyncio.gather(*map(function.aio, items))
async def main():
    for result in await asyncio.gather(*map(outer, range(3))):
        show(result)
Thread(target=lambda: asyncio.run(main())).start()""",
}
ENDINGS = {
    "return": ("", 0),
    "sys.exit": ("sys.exit(0)", 0),
    "an error": ("raise ValueError", 1),
    "Ctrl-C": ("signal.raise_signal(signal.SIGINT)", -signal.SIGINT),
}


# Memory


@pytest.mark.parametrize("kind", ["threads", "aio", "async def"])
def test_memory_does_not_grow_over_100_000_calls(kind: str) -> None:
    """With errors and cancellations among them, and without the garbage collector: by counting alone."""
    run_script(f"""if True:
        import asyncio, contextlib, gc, threading, tracemalloc
        from batchify import batched

        def answer(items):
            if 7 in items:
                raise ValueError("seven")
            return [KeyError(item) if item == 3 else item for item in items]

        async def answer_there(items):
            await asyncio.sleep(0)
            return answer(items)

        f = batched(batch_size=8)(answer_there if {kind!r} == "async def" else answer)

        def by_threads(rounds):
            def calls():
                for n in range(5):
                    with contextlib.suppress(KeyError, ValueError):
                        f(n)
            for _ in range(rounds):
                threads = [threading.Thread(target=calls) for _ in range(2)]
                for thread in threads:
                    thread.start()
                futures = [f.submit(n) for n in range(80)]
                for future in futures[::3]:
                    future.cancel()
                [future.cancelled() or future.exception() for future in futures]
                f.timeout = None
                assert f.submit(0).cancel()
                f.timeout = 0.0
                with contextlib.suppress(ValueError):  # of a batch it shares
                    list(f.map([1] * 10))
                for thread in threads:
                    thread.join()

        async def by_loop(rounds):
            call = f if {kind!r} == "async def" else f.aio
            for _ in range(rounds):
                tasks = [asyncio.ensure_future(call(n)) for n in range(100)]
                await asyncio.sleep(0)
                for task in tasks[::3]:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                tasks.clear()

        def by_loops(rounds):
            asyncio.run(by_loop(rounds))

        run = by_threads if {kind!r} == "threads" else by_loops
        gc.disable()
        run(20)
        if {kind!r} != "threads":
            gc.collect()  # what asyncio.run() itself leaves
        tracemalloc.start()
        run(20)
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
        run(1000)
        if {kind!r} != "threads":
            gc.collect()
        grown = tracemalloc.get_traced_memory()[0] - before
        assert f.stats.answered + f.stats.failed + f.stats.cancelled > 95_000, f.stats
        assert f.stats.cancelled >= {1000 if kind == "threads" else 0}, f.stats
        assert grown < 40_000, grown  # less than half a byte for each call: what is left is not theirs
    """)


# Fork

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


def test_the_workers_of_gunicorn_start_clean_under_load(tmp_path: Path) -> None:
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


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_child_of_a_child_and_of_a_thread_starts_clean() -> None:
    run_script(
        """if True:
        import asyncio, os, signal, threading
        from batchify import batched

        @batched(batch_size=4, timeout=0.0)
        def f(items):
            return [(os.getpid(), item) for item in items]

        @batched(batch_size=4, timeout=0.0)
        async def g(items):
            return [await f.aio(item) for item in items]

        def ask(depth):
            assert f(depth) == (os.getpid(), depth)
            assert asyncio.run(g(depth)) == (os.getpid(), depth)
            if depth:
                threading.Thread(target=fork, args=(depth - 1,)).start()
                fork(depth - 1)

        def fork(depth):
            child = os.fork()
            if not child:
                signal.alarm(100)  # else it could hang for ever
                ask(depth)
                for thread in threading.enumerate():
                    if not thread.daemon and thread is not threading.current_thread():
                        thread.join()
                os._exit(0)
            assert os.waitpid(child, 0)[1] == 0

        ask(2)
        """,
        "-W",
        "ignore",
    )


# Exit


@pytest.mark.parametrize("state", ["waiting", "running"])
@pytest.mark.parametrize("caller", CALLERS)
def test_what_was_accepted_is_answered_however_the_program_ends(caller: str, state: str) -> None:
    with ThreadPoolExecutor(len(ENDINGS)) as beside:  # they only start, which takes two processors half as long
        ended = {ending: beside.submit(_answers_all, caller, state, *how) for ending, how in ENDINGS.items()}
    assert {ending: done.exception() for ending, done in ended.items()} == dict.fromkeys(ENDINGS)


def _answers_all(caller: str, state: str, end: str, status: int) -> None:
    done = run_script(
        f"""
import asyncio, signal, sys
from threading import Event, Thread, main_thread
from batchify import batched
sys.excepthook = lambda *error: None
def show(result): sys.stdout.write(f"{{result}}\\n")  # print() writes in two steps, between which others may write
entered = Event()

@batched(batch_size=3 if {state == "running"} else 4, timeout=None)
def function(items):
    entered.set()
    if {state == "running"}:
        main_thread().join()
    return items

function.timeout = None if {state == "waiting"} else 0.0
{CALLERS[caller]}
while function.stats.accepted < 3:
    pass
if {state == "running"}:
    entered.wait()
elif {caller != "submit"}:
    Thread(target=lambda: (main_thread().join(), function.flush())).start()  # they keep the process alive
{end}
""",
        status=status,
    )
    if caller != "call of a daemon":  # answered as well, but it may be stopped before it has printed
        assert sorted(done.stdout.split()) == ["0", "1", "2"]


@pytest.mark.parametrize("where", ["a global", "a module", "a cycle", "a thread"])
def test_calls_of_finalizers_at_exit_are_refused(where: str) -> None:
    place = {
        "a global": "late = Late()",
        "a module": "import builtins; builtins.late = Late()",
        "a cycle": "late = Late(); late.itself = late; del late",
        "a thread": "import threading; place = threading.local(); place.late = Late()",
    }
    done = run_script(f"""if True:
        from batchify import batched
        used = batched(batch_size=2)(lambda items: items)
        unused = batched(batch_size=2)(lambda items: items)
        used(0)

        class Late:
            def __del__(self, print=print, RuntimeError=RuntimeError):
                for f in self.used, self.unused:
                    for call in f, f.submit, lambda item: list(f.map([item])):
                        try:
                            call(1)
                        except RuntimeError as error:
                            print(type(error).__name__, error)
            used, unused = used, unused

        {place[where]}
    """)
    assert done.stdout.splitlines() == ["ClosedError <lambda>() is closed (the interpreter is exiting)"] * 6


# Where no thread can be started


@pytest.mark.parametrize("how", ["call", "submit", "map", "aio"])
def test_a_thread_that_cannot_start_fails_that_call_alone(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    def answer(items: list[int]) -> list[int]:
        return items

    calls: dict[str, Callable[[], Any]] = {
        "call": lambda: f(1),
        "submit": lambda: f.submit(1).result(),
        "map": lambda: next(iter(f.map([1]))),
        "aio": lambda: asyncio.run(f.aio(1)),
    }
    with batched(batch_size=1)(answer) as f:
        with monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "start", refuse)
            with pytest.raises(RuntimeError, match=r"^answer\(\) cannot start its flush thread: can't start new"):
                calls[how]()
        assert (f.stats.accepted, f.stats.pending) == (0, 0)
        assert calls[how]() == 1


def test_in_a_subinterpreter_threads_are_refused_clearly_and_coroutines_work() -> None:
    done = run_script("""if True:
        import os, sys
        try:
            import _interpreters as interpreters
            run = interpreters.exec
        except ImportError:
            import _xxsubinterpreters as interpreters
            run = interpreters.run_string

        code = f'''if True:
            import sys
            sys.path[:0] = {sys.path!r}
            import asyncio
            from batchify import batched

            @batched(batch_size=2)
            def f(items):
                return items

            @batched(batch_size=2)
            async def g(items):
                return items

            async def main():
                return await asyncio.gather(g(1), g(2))

            for call in f, f.submit, lambda item: asyncio.run(f.aio(item)), lambda item: list(f.map([item])):
                try:
                    call(1)
                except RuntimeError as error:
                    print(error)
            print(asyncio.run(main()), f.stats.accepted, flush=True)
            '''
        assert run(interpreters.create(), code) is None
        os._exit(0)  # CPython 3.12.1 crashes when one ends that has imported asyncio
    """)
    *refused, works = done.stdout.splitlines()
    assert len(refused) == 4
    assert all(re.match(r"f\(\) cannot start its flush thread: .*thread.*interpreter", line) for line in refused)
    assert works == "[1, 2] 0"
