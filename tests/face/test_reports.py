"""`on_batch` is told of each call of the function once: after its results are there, before its callers go on."""

import contextvars
import gc
import sys
import weakref
from typing import Any

import pytest

from batchify import BatchReport, BufferFullError, ResultCountError

from .. import inside
from ..kit import Kit


def embed(texts: list[Any], *, model: Any = "small") -> list[Any]:
    return [(model, text) for text in texts]


def raises(xs: list[int]) -> list[int]:
    raise ValueError(len(xs))


def refuses_1(xs: list[int]) -> list[int]:
    if 1 in xs:
        raise ValueError(xs)
    return [-x for x in xs]


def test_report_comes_once_per_batch_before_its_callers_go_on(kit: Kit) -> None:
    reports: list[BatchReport] = []
    answered: list[bool] = []

    def hook(report: BatchReport) -> None:
        reports.append(report)
        answered.append(any(handle.done() for handle in handles))
        assert not inside.holds_a_lock()

    f = kit(embed, batch_size=2, timeout=None, on_batch=hook, group_by=lambda x: "g", concurrency=2)
    handles: list[Any] = [kit.submit(f, 1, model="m")]
    handles.append(kit.submit(f, 2, model="m"))
    kit.outcomes(handles)
    (report,) = reports
    assert answered == [False]
    assert (report.name, report.size, report.batch_size, report.reason) == ("embed", 2, 2, "full")
    assert (report.group, report.pending, report.in_flight, report.error) == (("g", "m"), 0, 0, None)
    assert len(report.waits) == len(report.contexts) == 2
    assert all(wait >= 0 for wait in report.waits)
    assert report.duration >= 0
    with pytest.raises(AttributeError):
        report.size = 3  # type: ignore[misc]
    assert f.stats.answered == 2


def test_report_names_the_group_as_group_by_did(kit: Kit) -> None:
    reports: list[BatchReport] = []
    f = kit(batch_size=2, group_by=lambda x: "g", on_batch=reports.append)
    kit.outcome(kit.submit(f, 1))
    assert [report.group for report in reports] == ["g"]


def test_report_gives_waits_and_duration_by_the_clock(kit: Kit) -> None:
    reports: list[BatchReport] = []
    kit.stop_the_clock()
    f = kit(gated=True, batch_size=3, timeout=2.0, on_batch=reports.append)
    handles = [kit.submit(f, 1)]
    kit.move(0.5)
    handles.append(kit.submit(f, 2))
    kit.move(1.5)
    kit.until_runs(1)
    waiting = kit.submit(f, 3)
    kit.move(4.0)
    kit.go_on()
    kit.outcomes(handles)
    (report,) = reports[:1]
    assert (report.waits, report.duration, report.reason) == ((2.0, 1.5), 4.0, "timeout")
    assert (report.pending, report.in_flight, report.group) == (1, 0, None)
    kit.go_on()
    kit.outcome(waiting)
    assert reports[1].waits == (4.0,)


def test_report_counts_what_waits_and_what_runs(kit: Kit) -> None:
    reports: list[BatchReport] = []
    f = kit(gated=True, batch_size=1, timeout=0.0, concurrency=2, on_batch=reports.append)
    handles = [kit.submit(f, 0)]
    kit.until_runs(1)
    handles.append(kit.submit(f, 1))
    kit.until_runs(2)
    handles += kit.submits(f, [2, 3])
    kit.go_on(1)
    kit.until(lambda: len(reports) == 1)
    assert (reports[0].pending, reports[0].in_flight) == (2, 1)
    kit.go_on(3)
    kit.outcomes(handles)
    kit.until(lambda: len(reports) == 4)
    assert (reports[3].pending, reports[3].in_flight) == (0, 0)


@pytest.mark.parametrize(
    ("function", "error"),
    [
        (raises, ValueError),
        (lambda xs: exit(), SystemExit),
        (lambda xs: [1], ResultCountError),
        (lambda xs: iter([1]), ResultCountError),
        (lambda xs: None, TypeError),
        (lambda xs: [KeyError()] * 2, type(None)),
        (lambda xs: {}, type(None)),
    ],
    ids=["raises", "exits", "few", "early", "None", "exceptions", "missing"],
)
def test_report_holds_the_error_of_its_batch(kit: Kit, function: Any, error: type) -> None:
    reports: list[BatchReport] = []
    f = kit(function, batch_size=2, timeout=None, on_batch=reports.append)
    kit.outcomes(kit.submits(f, [1, 2]))
    kit.until_idle(f)
    assert [type(report.error) for report in reports] == [error]


def test_report_is_made_for_each_part_of_a_batch_that_is_split(kit: Kit) -> None:
    reports: list[BatchReport] = []
    f = kit(refuses_1, batch_size=4, timeout=None, isolate=True, on_batch=reports.append)
    kit.outcomes(kit.submits(f, range(4)))
    kit.until_idle(f)
    assert [(report.reason, report.size, type(report.error)) for report in reports] == [
        ("full", 4, ValueError),
        ("isolate", 2, ValueError),
        ("isolate", 1, type(None)),
        ("isolate", 1, ValueError),
        ("isolate", 2, type(None)),
    ]
    assert f.stats.sizes_by_reason == {"full": {4: 1}, "isolate": {1: 2, 2: 2}}
    assert f.stats.accepted == 4
    kit.consistent(f)


def test_report_of_a_generator_comes_after_its_last_result(kit: Kit, caplog: pytest.LogCaptureFixture) -> None:
    reports: list[BatchReport] = []
    f = kit(lambda xs: (-x for x in xs), batch_size=2, timeout=None, on_batch=reports.append)
    assert kit.outcomes(kit.submits(f, [1, 2])) == [-1, -2]
    kit.until(lambda: f.stats.in_flight == 0 and len(reports) == 1)
    assert (reports[0].size, reports[0].error) == (2, None)
    assert not caplog.records  # nor is one tried before


@pytest.mark.parametrize("dedupe", [False, True])
def test_report_says_what_the_items_weigh_together(kit: Kit, dedupe: bool) -> None:
    reports: list[BatchReport] = []
    options: dict[str, Any] = {"weight": lambda x: x / 4, "max_weight": 9, "dedupe": dedupe}
    f = kit(batch_size=3, timeout=None, on_batch=reports.append, **options)
    kit.outcomes(kit.submits(f, [1, 2, 3, 4, 4, 5, 6] if dedupe else [1, 2, 3, 4, 5, 6]))
    kit.until_idle(f)
    assert [report.weight for report in reports] == [1.5, 3.75]
    g = kit(batch_size=1, on_batch=reports.append)
    kit.outcome(kit.start(g, 1))
    kit.until_idle(g)
    assert reports[-1].weight is None


def test_report_says_how_many_were_refused_since_the_last_one(kit: Kit) -> None:
    reports: list[BatchReport] = []
    f = kit(gated=True, batch_size=1, max_pending=1, on_batch=reports.append)
    handles = [kit.busy(f, 0), kit.submit(f, 1)]
    for _ in range(3):
        with pytest.raises(BufferFullError):
            kit.submit(f, 2)
    kit.go_on(3)
    kit.outcomes(handles)
    kit.until_idle(f)
    assert [report.refused for report in reports] == [3, 0]
    assert f.stats.refused == 3


def test_report_is_not_made_where_all_items_were_cancelled(kit: Kit) -> None:
    reports: list[BatchReport] = []
    f = kit(batch_size=2, timeout=None, on_batch=reports.append)
    kit.submit(f, 1).cancel()
    kit.flush(f)
    kit.close(f)
    assert reports == []


@pytest.mark.parametrize("error", [ValueError, SystemExit, GeneratorExit])
def test_on_batch_that_raises_is_logged_and_harms_no_caller(
    kit: Kit, error: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    def hook(report: BatchReport) -> None:
        raise error("hook")

    f = kit(batch_size=2, timeout=None, on_batch=hook)
    for _ in range(2):
        assert kit.outcomes(kit.submits(f, [1, 2])) == [-1, -2]
    kit.until_idle(f)
    kit.consistent(f)
    said = [(record.name, record.message, record.exc_info and record.exc_info[0]) for record in caplog.records]
    assert said == [("batchify", "on_batch of negate() raised", error)] * 2


def test_report_holds_the_contexts_of_the_callers(kit: Kit) -> None:
    variable: contextvars.ContextVar[int] = contextvars.ContextVar("variable", default=0)
    reports: list[BatchReport] = []
    f = kit(batch_size=3, timeout=None, on_batch=reports.append)
    handles = []
    for number in (1, 2, 3):
        context = contextvars.copy_context()
        context.run(variable.set, number)
        handles.append(context.run(kit.start if number == 2 else kit.submit, f, number))
    kit.outcomes(handles)
    if kit.kind == "threads":
        inherited = 2 if getattr(sys.flags, "thread_inherit_context", False) else 0  # a thread has its own else
        assert [context.get(variable, 0) for context in reports[0].contexts] == [1, inherited, 3]
    else:
        assert [context[variable] for context in reports[0].contexts] == [1, 2, 3]


def test_context_is_not_kept_by_an_answered_future(kit: Kit) -> None:
    class Transaction:
        pass

    variable: contextvars.ContextVar[Any] = contextvars.ContextVar("variable")
    f = kit(batch_size=1, group_by=lambda x: x, on_batch=lambda report: None)
    token = variable.set(transaction := Transaction())
    future = contextvars.copy_context().run(kit.submit, f, 1)
    variable.reset(token)
    reference = weakref.ref(transaction)
    del transaction, token
    assert kit.outcome(future) == -1
    kit.until_idle(f)
    kit.until(lambda: gc.collect() >= 0 and reference() is None)
    assert kit.outcome(future) == -1


def test_context_is_not_kept_without_on_batch(kit: Kit) -> None:
    class Value:
        pass

    f = kit(batch_size=2, timeout=None, dedupe=True, group_by=lambda x: 1)
    variable: contextvars.ContextVar[Any] = contextvars.ContextVar("variable")
    context = contextvars.copy_context()
    value = Value()
    gone = weakref.ref(value)
    context.run(variable.set, value)
    handle = context.run(kit.submit, f, 1)
    del value, context
    gc.collect()
    assert gone() is None
    kit.flush(f)
    assert kit.outcome(handle) == -1
