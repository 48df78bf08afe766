"""Threads that call from inside the function, from a callback on the flush thread, or from a hook, are answered."""

import asyncio
import concurrent.futures
import threading
from collections.abc import Callable
from typing import Any

import pytest

from batchify import BatchReport, ClosedError

from .. import inside
from ..kit import Threads
from ..tools import batched, in_threads, until

# Calls from inside the function

Ways = dict[str, Callable[[int], Any]]


def test_function_may_wait_in_any_way_for_what_it_submits_to_itself() -> None:
    def function(items: list[int]) -> list[int]:
        if items[0] == 0:
            return items
        futures = [f.submit(0), f.submit(0)]
        concurrent.futures.wait(futures)
        assert futures[0].exception() is None
        return [items[0] + sum(future.result() for future in futures)]

    with batched(batch_size=1)(function) as f:
        assert f(3) == 3
        future = f.submit(4)
        # On the flush thread, and in a batch of its own there: what that one submits is not a callback's.
        outcome: list[int] = []
        future.add_done_callback(lambda _: outcome.append(f(5)))
        assert future.result() == 4
    assert outcome == [5]


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


def test_function_that_asks_for_its_own_answer_hears_that_it_is_not_there() -> None:
    answers: list[Any] = []

    def function(items: list[int]) -> list[int]:
        begun.wait()
        with pytest.raises(TimeoutError):
            answers.append(future.result(timeout=0))
        return items

    begun = threading.Event()
    with batched(batch_size=1)(function) as f:
        future = f.submit(1)
        begun.set()
        assert future.result() == 1
    assert not answers


@pytest.mark.parametrize("how", ["call", "submit", "error", "map", "aio"])
def test_call_of_another_function_from_inside_runs_on_the_flush_thread_of_that_one(how: str) -> None:
    calls: Ways = {
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


def test_closed_function_refuses_awaited_calls_from_inside_another_one() -> None:
    closed = batched(batch_size=1)(lambda items: items)
    assert closed(0) == 0
    closed.close()
    with batched(batch_size=1)(lambda items: [asyncio.run(closed.aio(1))]) as f, pytest.raises(ClosedError):
        f(1)


@pytest.mark.parametrize("depth", range(0, 40, 2))
def test_endless_recursion_raises_recursion_error_and_the_next_call_works(depth: int) -> None:
    def deepen(levels: int, items: list[int]) -> list[Any]:
        return deepen(levels - 1, items) if levels else [f(item) if item else 0 for item in items]

    with batched(batch_size=1)(lambda items: deepen(depth, items)) as f:
        with pytest.raises(RecursionError):
            f(1)
        assert f(0) == 0
        assert f.stats.in_flight <= 1


# Callbacks of futures, on the flush thread


def test_callback_that_calls_the_function_is_answered() -> None:
    outcome: list[int] = []
    with batched(batch_size=2, timeout=None)(lambda items: items) as f:
        f.submit(1).add_done_callback(lambda _: outcome.append(f(5)))
        f.submit(2).result()
    assert outcome == [5]


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


def exit_instead(*_: object) -> None:
    raise SystemExit


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


# These hold for calls that run at once: calls from inside that would wait for their own thread are batches of their
# own, counted as "nested".


def test_calls_from_inside_at_once_are_counted_as_nested() -> None:
    def function(items: list[int]) -> list[int]:
        return [1 if item == 0 else item * f(item - 1) for item in items]

    with batched(batch_size=4, timeout=None)(function) as f:
        f.timeout = 0.0
        assert in_threads(f, [3, 4, 5]) == [6, 24, 120]
        assert f.stats.reasons["nested"] >= 12


def test_call_from_inside_at_once_waits_for_no_other_thread() -> None:
    """Whoever looks for a ring through this thread finds none."""

    def function(items: list[int]) -> list[bool]:
        if items == [0]:
            return [f(1)]
        return [inside.waits_inside(threading.get_ident())]

    with batched(batch_size=1)(function) as f:
        assert f(0) is False


def test_call_from_inside_at_once_counts_as_no_time_waited() -> None:
    def function(items: list[int]) -> list[int]:
        if items == [0]:
            before = f.stats
            assert f(1) == 1
            assert (f.stats.waited, f.stats.longest_wait) == (before.waited, before.longest_wait)
        return items

    with batched(batch_size=1)(function) as f:
        assert f(0) == 0


def test_hook_may_call_the_function_itself(threads: Threads) -> None:
    got: list[Any] = []

    def hook(report: BatchReport) -> None:
        if report.reason != "nested":
            got.append(f(10))
            got.append(f.submit(11).result())
            got.extend(f.map([12, 13]))

    f = threads(batch_size=2, timeout=None, on_batch=hook, isolate=True)
    assert threads.outcomes(threads.submits(f, [1, 2])) == [-1, -2]
    assert got == [-10, -11, -12, -13]
    threads.until_idle(f)
    threads.consistent(f)


def test_batch_that_a_hook_runs_at_once_is_not_reported(threads: Threads) -> None:
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
    assert f.stats.reasons == {"full": 2, "nested": 2}


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
    assert reports[:2] == [("nested", 4), ("isolate", 2)]
    assert [size for _, size in reports] == [4, 2, 1, 1, 2, 1, 1, 1]


def test_wait_inside_for_a_future_whose_batch_calls_back_is_answered(threads: Threads) -> None:
    def first_function(items: list[str]) -> list[str]:
        if items == ["outer"]:
            future = second.submit("")
            began.wait(100)
            waits.set()
            concurrent.futures.wait([future])
        return items

    def second_function(items: list[str]) -> list[str]:
        began.set()
        waits.wait(100)
        assert first("inner") == "inner"
        return items

    began, waits = threading.Event(), threading.Event()
    first, second = threads(first_function, batch_size=1), threads(second_function, batch_size=1)
    assert first("outer") == "outer"
