"""Threads that call from inside the function, from a callback on the flush thread, or from a hook, are answered."""

import asyncio
import concurrent.futures
import contextvars
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from batchify import BatchReport, WaitsForItselfError

from ..kit import Threads
from ..tools import batched, in_threads, until

# Calls from inside the function

WAITS: dict[str, Callable[[Any], Any]] = {
    "result": lambda future: future.result(),
    "result, limited": lambda future: future.result(100.0),
    "exception": lambda future: future.exception(),
    "exception, limited": lambda future: future.exception(100.0),
    "wait": lambda future: concurrent.futures.wait([future]),
    "wait, limited": lambda future: concurrent.futures.wait([future], 100.0),
    "wait for one": lambda future: concurrent.futures.wait([future], return_when="FIRST_COMPLETED"),
    "as completed": lambda future: list(concurrent.futures.as_completed([future])),
    "as completed, limited": lambda future: list(concurrent.futures.as_completed([future], 100.0)),
}


@pytest.mark.parametrize("way", WAITS)
def test_turn_is_lent_in_whatever_way_a_thread_waits_inside(threads: Threads, way: str) -> None:
    def function(items: list[int]) -> list[int]:
        if items == [0]:
            future = f.submit(1)
            WAITS[way](future)
            return [future.result(timeout=0)]
        return items

    f = threads(function, batch_size=2, timeout=None)
    future = f.submit(0)
    f.flush()
    assert future.result() == 1
    assert (len(threads.idents), f.stats.reasons) == (1, {"flush": 1, "nested": 1})


@pytest.mark.parametrize("way", WAITS)
def test_wait_for_its_own_batch_fails_at_once_whatever_its_time_limit(threads: Threads, way: str) -> None:
    def function(items: list[int]) -> list[int]:
        begun.wait()
        with pytest.raises(WaitsForItselfError):
            WAITS[way](futures[0])
        return items

    begun = threading.Event()
    f = threads(function, batch_size=1)
    passes = threads(lambda items: [f.submit(0)], batch_size=1)
    # wait() and as_completed() are heard for futures that were submitted inside.
    futures = [f.submit(0) if way.startswith(("result", "exception")) else passes(0)]
    begun.set()
    assert futures[0].result() == 0


@pytest.mark.parametrize("ask", ["result", "exception"])
def test_function_may_wait_for_a_future_that_was_submitted_outside(ask: str) -> None:
    def function(items: list[int]) -> list[Any]:
        if items == [1]:
            return items
        begun.wait()
        return [getattr(later, ask)()]

    begun = threading.Event()
    with batched(batch_size=1)(function) as f:
        first, later = f.submit(0), f.submit(1)
        begun.set()
        assert first.result() == (1 if ask == "result" else None)
        assert later.result() == 1
        assert f.stats.reasons == {"full": 2}


def test_time_limit_of_a_wait_inside_takes_nothing_with_it(threads: Threads) -> None:
    def function(items: list[int]) -> list[Any]:
        future = busy.submit(items[0])
        with pytest.raises(TimeoutError):
            future.result(timeout=0)
        return [future]

    busy = threads(gated=True, batch_size=2, timeout=None)
    futures = [threads.busy(busy, 0), busy.submit(1)]
    futures.append(threads(function, batch_size=1)(2))
    threads.go_on(2)
    assert threads.outcomes(futures) == [0, -1, -2]
    assert busy.stats.reasons == {"flush": 1, "full": 1}


@pytest.mark.parametrize("how", ["call", "submit", "error", "map", "aio"])
def test_call_of_another_function_from_inside_runs_on_the_flush_thread_of_that_one(how: str) -> None:
    calls: dict[str, Callable[[int], Any]] = {
        "call": lambda item: inner(item),
        "submit": lambda item: inner.submit(item).result(),
        "error": lambda item: inner.submit(-1).exception() or inner(item),
        "map": lambda item: next(inner.map([item])),
        "aio": lambda item: asyncio.run(inner.aio(item)),
    }
    names: list[str] = []

    def function(items: list[int]) -> list[int]:
        names.append(threading.current_thread().name)
        return items

    with batched(batch_size=9, timeout=None)(function) as inner:
        stranger = inner.submit(0)
        with batched(batch_size=1)(lambda items: [calls[how](items[0])]) as outer:
            future = outer.submit(1)
            until(lambda: inner.stats.pending == 2 or future.done())
            inner.flush()
            if how == "error":
                until(lambda: inner.stats.pending == 1)
                inner.flush()
            assert (future.result(), stranger.result()) == (1, 0)
    assert set(names) == {"batchify flush thread of function()"}
    assert "nested" not in inner.stats.reasons


def test_functions_in_a_chain_each_run_on_their_own_thread() -> None:
    """The second calls the third, while the first waits for it: no ring."""
    third = batched(batch_size=1)(lambda items: [threading.get_ident()])
    second = batched(batch_size=1)(lambda items: [[threading.get_ident(), third(0)]])
    first = batched(batch_size=1)(lambda items: [[threading.get_ident(), *second(0)]])
    with third, second, first:
        assert len(set(first(0))) == 3
        assert (first.stats.reasons, second.stats.reasons, third.stats.reasons) == ({"full": 1},) * 3


@pytest.mark.parametrize("depth", range(0, 40, 2))
def test_endless_recursion_raises_recursion_error_and_everybody_else_is_answered(depth: int) -> None:
    def deepen(levels: int, items: list[Any]) -> list[Any]:
        return deepen(levels - 1, items) if levels else list(map(dive, items))

    def dive(item: Any) -> Any:
        if item != "dive":
            return item
        try:
            begun.wait()
            return f(item)
        except BaseException as error:
            heard.append(type(error))
            raise

    begun = threading.Event()
    heard: list[type[BaseException]] = []
    with batched(batch_size=1, group_by=type)(lambda items: deepen(depth, items)) as f:
        dives, *strangers = [f.submit("dive"), *map(f.submit, range(3))]
        begun.set()
        assert type(dives.exception()) is RecursionError
        assert [stranger.result() for stranger in strangers] == [0, 1, 2]
        assert f(0) == 0
        assert f.stats.in_flight <= 1
    assert set(heard) == {RecursionError}


# Other threads are outside


def test_thread_with_a_copy_of_the_context_is_outside() -> None:
    def function(items: list[int]) -> list[int]:
        if items == [0]:
            thread = threading.Thread(target=contextvars.copy_context().run, args=(lambda: outcome.append(f(1)),))
            others.append(thread)
            thread.start()
            until(lambda: f.stats.pending == 1)
            assert f.stats.batches == 1
        return items

    others: list[threading.Thread] = []
    outcome: list[int] = []
    with batched(batch_size=1)(function) as f:
        assert f(0) == 0
        others[0].join()
    assert (outcome, f.stats.reasons) == ([1], {"full": 2})


@pytest.mark.parametrize("concurrency", [1, 2])
def test_pool_inside_may_call_another_function_and_where_a_turn_is_free_the_same(concurrency: int) -> None:
    def function(items: list[int]) -> list[int]:
        return [pool.submit(inner, item - 1).result() if item else 0 for item in items]

    with ThreadPoolExecutor(1) as pool, batched(batch_size=1, concurrency=concurrency)(function) as f:
        inner = f if concurrency == 2 else batched(batch_size=1)(lambda items: items)
        assert f(1) == 0
        inner.close()


# Callbacks of futures, hooks and log handlers, on the flush thread


def exit_instead(*_: object) -> None:
    raise SystemExit


@pytest.mark.parametrize("where", ["a callback", "on_batch", "a log handler"])
@pytest.mark.parametrize("how", ["call", "call that calls", "result", "map", "drain", "close", "ring"])
def test_thread_of_a_function_that_calls_it_elsewhere_is_answered_there(
    threads: Threads, monkeypatch: pytest.MonkeyPatch, where: str, how: str
) -> None:
    passed = threading.Event()  # all items: what happens then may close it

    def function(items: list[int]) -> list[int]:
        passed.wait()
        return [f(item + 1) if item < 0 else item for item in items]

    actions: dict[str, Callable[[], Any]] = {
        "call": lambda: f(5),
        "call that calls": lambda: f(-3),
        "result": lambda: f.submit(5).result(),
        "map": lambda: list(f.map([5, 6, 7])),
        "drain": lambda: f.drain(),
        "close": lambda: f.close(),
        "ring": lambda: calls_f(5),
    }
    outcome: list[Any] = []
    acts = [actions[how]]

    def act(*_: object, **__: object) -> None:
        while acts:
            outcome.append(acts.pop()())

    f = threads(function, batch_size=2, timeout=None, on_batch=act if where == "on_batch" else None)
    calls_f = threads(lambda items: [f(item) for item in items], batch_size=1)
    monkeypatch.setattr("logging.Logger.error", act)
    futures = [f.submit(1)]
    if where != "on_batch":
        futures[0].add_done_callback(act if where == "a callback" else exit_instead)
    futures += [f.submit(2), f.submit(3)]
    passed.set()
    assert threads.outcomes(futures[:2]) == [1, 2]
    threads.until(lambda: bool(outcome))
    f.close()
    assert futures[2].result() == 3
    assert outcome == [{"call that calls": 0, "map": [5, 6, 7], "drain": None, "close": None}.get(how, 5)]
    threads.consistent(f)


@pytest.mark.parametrize("timeout", [0.0, None])
def test_callback_that_waits_for_futures_is_answered(timeout: float | None) -> None:
    outcome: list[int] = []
    f = batched(batch_size=3, timeout=timeout)(lambda items: items)
    futures = [f.submit(1), f.submit(2)]
    futures[0].add_done_callback(lambda _: outcome.append(f.submit(9).result()))  # it may be closed by then
    futures[0].add_done_callback(lambda _: outcome.append(futures[1].result()))
    f.close()
    assert outcome in ([2], [9, 2])
    outcome.clear()
    f = batched(batch_size=2, timeout=timeout)(lambda items: items)
    futures = [f.submit(1), f.submit(2)]
    futures[0].add_done_callback(lambda _: outcome.append(futures[1].result()))
    futures[0].add_done_callback(lambda _: outcome.append(f.submit(9).result()))
    assert [future.result() for future in futures] == [1, 2]
    f.close()
    assert outcome in ([2], [2, 9])


def test_callback_that_waits_holds_up_no_blocked_caller_of_its_batch() -> None:
    let_on = threading.Event()
    with batched(batch_size=2, timeout=None)(lambda items: items) as f:
        f.submit(1).add_done_callback(lambda _: let_on.wait())
        assert f(2) == 2
        let_on.set()


# Logging handlers that raise


def test_logging_handler_that_raises_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("logging.Logger.error", exit_instead)
    with batched(batch_size=1)(lambda items: iter([*items, "one too many"])) as f:
        assert [f(1), f(2)] == [1, 2]


def test_logging_handler_that_raises_after_a_callback_did_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("logging.Logger.error", exit_instead)
    with batched(batch_size=2, timeout=None)(lambda items: items) as f:
        f.submit(1).add_done_callback(exit_instead)
        assert f.submit(2).result() == 2
        assert in_threads(f, [3, 4]) == [3, 4]


# What is reported


def test_batch_that_a_hook_waits_for_is_not_reported(threads: Threads) -> None:
    reports: list[BatchReport] = []

    def hook(report: BatchReport) -> None:
        reports.append(report)
        if len(reports) < 9:
            f(0)

    f = threads(batch_size=1, on_batch=hook)
    assert f(1) == -1
    assert [report.reason for report in reports] == ["full"]
    assert f(2) == -2
    assert [report.reason for report in reports] == ["full", "full"]
    assert f.stats.batches == 4


def test_map_from_inside_is_reported_before_the_halves_it_is_split_into() -> None:
    reports: list[tuple[str, int]] = []

    def function(xs: list[Any]) -> list[Any]:
        if xs == ["outer"]:
            return [list(f.map(range(4)))]
        if len(xs) > 1:
            raise ValueError
        return xs

    f = batched(batch_size=4, isolate=True, on_batch=lambda report: reports.append((report.reason, report.size)))(
        function
    )
    with f:
        assert f("outer") == [0, 1, 2, 3]
    assert reports[:2] == [("full", 4), ("isolate", 2)]
    assert [size for _, size in reports] == [4, 2, 1, 1, 2, 1, 1, 1]
