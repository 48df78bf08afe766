"""Where no thread can be started a call fails at once, with a clear error, and before anything of it is accepted."""

import asyncio
import re
import threading
from collections.abc import Callable
from typing import Any

import pytest

from .. import inside
from ..tools import batched, run_script

pytestmark = pytest.mark.thread_unsafe(reason="changes `threading`, or is a program of its own")

CALLS: dict[str, Callable[[Any], Any]] = {
    "call": lambda f: f(1),
    "submit": lambda f: f.submit(1).result(),
    "map": lambda f: next(f.map([1])),
    "aio": lambda f: asyncio.run(f.aio(1)),
}


def cannot_start(_: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")


@pytest.mark.parametrize("how", CALLS)
def test_flush_thread_that_cannot_start_fails_that_call_alone(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(items: list[int]) -> list[int]:
        return items

    with batched(batch_size=1)(answer) as f:
        with monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "start", cannot_start)
            with pytest.raises(RuntimeError, match=r"^answer\(\) cannot start its flush thread: can't start new"):
                CALLS[how](f)
        assert (f.stats.accepted, f.stats.pending) == (0, 0)
        assert CALLS[how](f) == 1


@pytest.mark.parametrize("how", CALLS)
def test_what_no_flush_thread_could_be_started_for_is_not_computed_later(
    how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was posted just as the last flush thread ended, so it stands in the buffer when there is another one."""
    batches: list[list[int]] = []

    def answer(items: list[int]) -> list[int]:
        batches.append(items)
        return items

    with batched(batch_size=1)(answer) as f:
        inside.owner_ends_when_it_was_seen(f)
        with monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "start", cannot_start)
            with pytest.raises(RuntimeError, match=r"^answer\(\) cannot start its flush thread"):
                CALLS[how](f)
        assert f(2) == 2
    assert batches == [[2]]
    assert (f.stats.accepted, f.stats.cancelled, f.stats.answered) == (2, 1, 1)


def test_subinterpreter_without_threads_refuses_calls_clearly_and_runs_coroutines() -> None:
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


def test_runner_that_there_is_no_memory_to_start_is_started_later(monkeypatch: pytest.MonkeyPatch) -> None:
    start, errors = threading.Thread.start, [MemoryError()]

    def start_or_fail(thread: threading.Thread) -> None:
        if len(inside.threads_of(f)) == 2 and errors:  # the second one is the first runner
            raise errors.pop()
        start(thread)

    f = batched(batch_size=1, concurrency=2)(lambda items: items)
    monkeypatch.setattr(threading.Thread, "start", start_or_fail)
    with pytest.raises(MemoryError):
        f(1)
    assert not errors
    assert f(2) == 2
    f.close()
    assert f.stats.in_flight == 0
