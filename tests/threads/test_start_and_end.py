"""The flush thread is started once, by the first call, carries the function's name, and ends with the function."""

import asyncio
import sys
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import trio

from batchify import ClosedError

from .. import inside
from ..kit import Threads, anegate
from ..tools import batched, in_threads, run_script, until


def flush_threads(name: str) -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == f"batchify flush thread of {name}()"]


def cannot_start(_: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")


CALLS: dict[str, Callable[[Any], Any]] = {
    "call": lambda f: f(1),
    "submit": lambda f: f.submit(1).result(),
    "map": lambda f: next(f.map([1])),
    "aio": lambda f: asyncio.run(f.aio(1)),
}


# Start


@pytest.mark.thread_unsafe(reason="looks for threads by name")
def test_unused_function_starts_no_thread() -> None:
    def unused(items: list[int]) -> list[int]:
        return items

    f = batched(batch_size=2)(unused)
    assert not flush_threads("unused")
    f.close()
    assert not flush_threads("unused")


@pytest.mark.thread_unsafe(reason="looks for threads by name")
def test_flush_thread_is_named_after_the_function() -> None:
    def look_up(items: list[int]) -> list[str]:
        return [threading.current_thread().name] * len(items)

    with batched(batch_size=1)(look_up) as f:
        assert f(1) == "batchify flush thread of look_up()"
        assert len(flush_threads("look_up")) == 1


@pytest.mark.thread_unsafe(reason="looks for threads by name")
def test_first_calls_at_once_start_one_flush_thread() -> None:
    def eager(items: list[int]) -> list[int]:
        return items

    for _ in range(20):
        with batched(batch_size=1)(eager) as f:
            assert in_threads(f, range(16)) == list(range(16))
            until(lambda: len(flush_threads("eager")) == 1)
        until(lambda: not flush_threads("eager"))


@pytest.mark.parametrize("how", CALLS)
def test_flush_thread_is_started_once(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with batched(batch_size=1)(lambda items: items) as f:
        assert f(0) == 0
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", cannot_start)
            assert CALLS[how](f) == 1


@pytest.mark.parametrize("meanwhile", ["another call starts it", "the function is closed"])
@pytest.mark.thread_unsafe(reason="looks for threads by name")
def test_flush_thread_that_starts_too_late_ends(meanwhile: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def late(items: list[int]) -> list[int]:
        return items

    start = threading.Thread.start

    def start_late(thread: threading.Thread) -> None:
        monkeypatch.setattr(threading.Thread, "start", start)
        if meanwhile == "the function is closed":
            f.close()
        else:
            assert f(0) == 0
        thread.start()

    f = batched(batch_size=1)(late)
    monkeypatch.setattr(threading.Thread, "start", start_late)
    if meanwhile == "the function is closed":
        with suppress(ClosedError):  # or it was answered, as it came at the same moment
            assert f(1) == 1
        until(lambda: not flush_threads("late"))
    else:
        assert f(1) == 1
        until(lambda: len(flush_threads("late")) == 1)
        f.close()


@pytest.mark.thread_unsafe(reason="changes the module")
def test_finalizer_on_a_flush_thread_that_has_hardly_begun_is_answered(
    threads: Threads, monkeypatch: pytest.MonkeyPatch
) -> None:
    def early(items: list[int]) -> list[int]:
        return items

    begun: list[threading.Thread] = []
    outcome: list[Any] = []
    run = threading.Thread.run

    def call_first(thread: threading.Thread) -> None:
        if "early()" in thread.name and not begun:
            begun.append(thread)
            # Until the first caller waits for this thread to begin, or, if it does not, for its own answer.
            starter_waits.wait()
            outcome.append(f(9))
        run(thread)

    monkeypatch.setattr(threading.Thread, "run", call_first)
    with inside.waits_at_a_lock() as starter_waits:
        f = threads(early, batch_size=1)
        assert f(0) == 0
        begun[0].join()
        f.close()
    assert outcome == [9]


# End


@pytest.mark.thread_unsafe(reason="looks for threads by name")
def test_close_ends_the_flush_thread(threads: Threads) -> None:
    def closing(items: list[int]) -> list[int]:
        return items

    f = threads(closing, batch_size=2, timeout=None)
    futures = threads.submits(f, range(5))
    threads.until_runs(2)
    (thread,) = flush_threads("closing")
    f.close()
    assert threads.outcomes(futures) == list(range(5))
    assert not thread.is_alive()
    assert not flush_threads("closing")


@pytest.mark.parametrize("how", CALLS)
def test_call_after_close_starts_no_thread(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refusing(items: list[int]) -> list[int]:
        return items

    f = batched(batch_size=2)(refusing)
    f.close()
    f.close()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", cannot_start)
        with pytest.raises(ClosedError, match=r"^refusing\(\) is closed$"):
            CALLS[how](f)
    assert f.stats.accepted == 0


@pytest.mark.parametrize("how", ["call", "submit", "aio"])
def test_call_that_is_posted_just_as_the_flush_thread_ends_is_answered(how: str) -> None:
    posted: list[None] = []

    def close_before_the_second() -> None:
        posted.append(None)
        if len(posted) == 2:
            f.close()

    f = batched(batch_size=2)(lambda items: items)
    inside.before_posts(f, close_before_the_second)
    assert f(0) == 0
    assert CALLS[how](f) == 1
    until(lambda: not inside.threads_of(f))
    with pytest.raises(ClosedError):
        f(2)


def test_function_that_is_opened_again_just_as_its_flush_thread_ends_goes_on() -> None:
    f = batched(batch_size=1)(lambda items: items)
    for number in range(50):
        with ThreadPoolExecutor(2) as pool, f:
            assert f(number) == number
            closing = pool.submit(f.close)
            while not inside.is_closed(f):
                pass
            with f:
                assert f(number) == number
            closing.result()


def test_close_waits_for_a_returned_future(threads: Threads) -> None:
    engine: list[Future[Any]] = []

    def function(items: list[int]) -> Future[Any]:
        engine.append(Future())
        return engine[-1]

    f = threads(function, batch_size=1)
    future = f.submit(1)
    until(lambda: len(engine) == 1)
    closer = threads.start_close(f)
    threads.settle(f)
    assert not closer.done()
    engine[0].set_result(["x"])
    assert threads.outcome(closer) is None
    assert future.done()
    assert future.result() == "x"


def test_flush_thread_that_has_ended_is_forgotten() -> None:
    """Another thread may get its number."""
    with batched(batch_size=1)(lambda items: [threading.get_ident()]) as f:
        ident = f(1)
        assert inside.works_for_a_function(ident)
    assert not inside.works_for_a_function(ident)
    assert not inside.is_known(ident)


# Calls on the thread of a running event loop


def test_blocking_call_on_a_running_loop_warns_once_and_works() -> None:
    async def main() -> list[int]:
        return [f(1), f(2)]

    with batched(batch_size=1)(lambda items: items) as f:
        with pytest.warns(RuntimeWarning, match=r"running event loop.* use `await <lambda>\.aio\(item\)`$") as warned:
            assert asyncio.run(main()) == [1, 2]
        assert len(warned) == 1
        assert warned[0].filename == __file__


def test_map_on_a_running_loop_warns_too() -> None:
    async def main() -> list[int]:
        return list(f.map([1, 2]))

    with batched(batch_size=1)(lambda items: items) as f:
        instead = r"use `await asyncio\.gather\(\*map\(<lambda>\.aio, items\)\)`$"
        with pytest.warns(RuntimeWarning, match=f"running event loop.* {instead}") as warned:
            assert asyncio.run(main()) == [1, 2]
        assert len(warned) == 1
        assert warned[0].filename == __file__


def test_blocking_call_on_a_running_loop_is_refused_each_time_where_warnings_are_errors() -> None:
    async def main() -> None:
        for _ in range(3):
            with pytest.raises(RuntimeWarning):
                f(1)
            with pytest.raises(RuntimeWarning):
                list(f.map([1]))

    with warnings.catch_warnings(), batched(batch_size=1)(lambda items: items) as f:
        warnings.simplefilter("error")
        asyncio.run(main())
    assert f.stats.accepted == 0


def test_blocking_call_on_the_loop_of_trio_warns_and_says_what_works_there() -> None:
    async def main() -> None:
        with pytest.warns(RuntimeWarning, match=r"use `await trio\.to_thread\.run_sync\(<lambda>, item\)`$"):
            assert f(1) == 1
        assert await trio.to_thread.run_sync(f, 2) == 2
        for awaited in (f.aio, batched(batch_size=1)(anegate)):
            with pytest.raises(RuntimeError) as raised:
                await awaited(3)
            name = raised.value.args[0].partition("(")[0]
            assert str(raised.value) == (
                f"{name}() needs an event loop of asyncio, and this one is trio's: there, a `def` function can be "
                f"awaited with `await trio.to_thread.run_sync({name.removesuffix('.aio')}, item)`"
            )

    with batched(batch_size=1)(lambda items: items) as f:
        trio.run(main)


def test_blocking_call_in_a_notebook_does_not_warn(monkeypatch: pytest.MonkeyPatch) -> None:
    async def cell() -> None:
        assert f(1) == 1
        assert list(f.map([2])) == [2]

    jupyter: Any = ModuleType("ipykernel.kernelapp")
    jupyter.IPKernelApp = SimpleNamespace(initialized=lambda: True)  # as where a kernel runs
    monkeypatch.setitem(sys.modules, jupyter.__name__, jupyter)
    with warnings.catch_warnings(), batched(batch_size=1)(lambda items: items) as f:
        warnings.simplefilter("error")
        asyncio.run(cell())


def test_blocking_call_on_a_running_loop_warns_if_it_is_the_very_first() -> None:
    done = run_script("""if True:
        import asyncio, warnings
        from batchify import batched
        warnings.simplefilter("error")

        async def main():
            try:
                f(1)
            except RuntimeWarning:
                print("warned")

        f = batched(batch_size=1)(lambda items: items)
        asyncio.run(main())
    """)
    assert done.stdout.split() == ["warned"]


def test_submit_aio_and_other_threads_do_not_warn() -> None:
    async def main() -> Any:
        future = f.submit(1)
        return await asyncio.to_thread(f, 2) + await asyncio.wrap_future(future)

    async def aio() -> Any:
        return await f.aio(3)

    with warnings.catch_warnings(), batched(batch_size=1)(lambda items: items) as f:
        warnings.simplefilter("error")
        assert asyncio.run(main()) == 3
        assert f(1) == 1
        assert asyncio.run(aio()) == 3


def test_calls_are_answered_where_asyncio_is_not_imported() -> None:
    run_script("""if True:
        import sys
        from batchify import batched
        sys.modules.pop("asyncio", None)
        assert [f(1) for f in [batched(batch_size=1)(lambda items: items)] * 2] == [1, 1]
    """)


def test_close_with_a_time_limit_does_not_wait_longer_for_a_thread_that_has_answered_all() -> None:
    gate = threading.Event()

    def function(items: list[int]) -> Any:
        try:
            yield from [*items, "one too many"]
        finally:
            gate.wait()

    f = batched(batch_size=1, concurrency=2)(function)
    assert f(1) == 1
    runner = inside.threads_of(f)[-1]
    closing = threading.Thread(target=f.close, args=(0.05,), daemon=True)
    closing.start()
    until(lambda: not closing.is_alive())
    assert runner.is_alive()
    gate.set()
    until(lambda: not runner.is_alive())


@pytest.mark.parametrize("what", ["drain", "close"])
def test_time_limit_may_be_longer_than_any_wait_of_python(what: str) -> None:
    f = batched(batch_size=1)(lambda items: items)
    assert f(1) == 1
    getattr(f, what)(timeout=1e10)
    f.close()
