"""Ready-made observers, against the libraries that they feed; and progress bars around a map."""

import asyncio
import io
import math
import pickle
from collections.abc import Sequence
from contextvars import Context, ContextVar, copy_context
from pathlib import Path
from typing import Any, ClassVar
from uuid import uuid4

import cloudpickle
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import REGISTRY, CollectorRegistry, Counter, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from rich.console import Console
from rich.progress import track
from tqdm import tqdm

from batchify import BatchReport, BufferFullError
from batchify import batched as typed_batched
from batchify.otel import OpenTelemetryObserver
from batchify.prometheus import PrometheusObserver

from ..intruder import at_each_line
from ..kit import Kit
from ..tools import batched, collect, in_threads, run_script


def a_report(
    name: str = "f",
    waits: Sequence[float] = (0.0,),
    error: BaseException | None = None,
    contexts: Sequence[Context] | None = None,
    **others: Any,
) -> BatchReport:
    """Return a report in which only that is said which matters."""
    said: dict[str, Any] = {
        "batch_size": 64,
        "reason": "timeout",
        "group": None,
        "duration": 0.0,
        "pending": 0,
        "in_flight": 0,
    } | others
    contexts = tuple(Context() for _ in waits) if contexts is None else tuple(contexts)
    return BatchReport(name=name, size=len(waits), waits=tuple(waits), error=error, contexts=contexts, **said)


def tens(items: list[int]) -> list[int]:
    return [10 * item for item in items]


def picky(items: list[int]) -> list[int]:
    if 0 in items:
        raise ValueError("none for 0")
    return tens(items)


# Prometheus


def scraped(registry: CollectorRegistry) -> dict[str, float]:
    """Return what a scrape reads: the value of each series, but for those that say when another one was made."""
    lines = [line for line in generate_latest(registry).decode().splitlines() if not line.startswith("#")]
    pairs = [line.rsplit(" ", 1) for line in lines if "_created{" not in line]
    return {series: float(value) for series, value in pairs}


def test_prometheus_shows_every_figure_in_base_units_by_function() -> None:
    registry = CollectorRegistry()
    observe = PrometheusObserver(registry)
    observe(a_report(waits=[0.5, 0.25, 0.0], duration=2.0, reason="full", pending=7, in_flight=3))
    observe(a_report(waits=[0.125], duration=0.25, pending=5, in_flight=2, error=ValueError("no"), refused=4))
    shown = scraped(registry)
    assert {series: value for series, value in shown.items() if "_bucket{" not in series} == {
        'batchify_batch_size_count{function="f"}': 2,
        'batchify_batch_size_sum{function="f"}': 4,
        'batchify_full_batches_total{function="f"}': 1,
        'batchify_failed_batches_total{function="f"}': 1,
        'batchify_item_wait_seconds_count{function="f"}': 4,
        'batchify_item_wait_seconds_sum{function="f"}': 0.875,
        'batchify_batch_duration_seconds_count{function="f"}': 2,
        'batchify_batch_duration_seconds_sum{function="f"}': 2.25,
        'batchify_pending_items{function="f"}': 5,
        'batchify_in_flight_batches{function="f"}': 2,
        'batchify_refused_items_total{function="f"}': 4,
    }
    assert [shown[f'batchify_batch_size_bucket{{function="f",le="{le}"}}'] for le in ("1.0", "2.0", "4.0")] == [1, 1, 2]
    assert shown['batchify_item_wait_seconds_bucket{function="f",le="0.0001"}'] == 1
    assert shown['batchify_batch_duration_seconds_bucket{function="f",le="0.25"}'] == 1


def test_prometheus_buckets_are_the_same_in_every_version() -> None:
    # Else the histograms that somebody has stored could not be added to those of today.
    registry = CollectorRegistry()
    PrometheusObserver(registry)(a_report())
    buckets: dict[str, list[float]] = {}
    for series in scraped(registry):
        name, _, labels = series.partition("_bucket{")
        if labels:
            buckets.setdefault(name, []).append(float(labels.partition('le="')[2].rstrip('"}')))
    seconds = [
        0.0001,
        0.00025,
        0.0005,
        0.001,
        0.0025,
        0.005,
        0.01,
        0.025,
        0.05,
        0.1,
        0.25,
        0.5,
        1,
        2.5,
        5,
        10,
        math.inf,
    ]
    items = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, math.inf]
    assert buckets == {
        "batchify_batch_size": items,
        "batchify_item_wait_seconds": seconds,
        "batchify_batch_duration_seconds": seconds,
    }


@pytest.mark.parametrize("reason", ["timeout", "flush", "close", "nested", "isolate"])
def test_prometheus_counts_no_batch_as_full_that_was_taken_for_another_reason(reason: str) -> None:
    registry = CollectorRegistry()
    PrometheusObserver(registry)(a_report(reason=reason))
    assert scraped(registry)['batchify_full_batches_total{function="f"}'] == 0


def test_prometheus_counts_the_batches_of_callers_in_threads() -> None:
    registry = CollectorRegistry()
    f = batched(batch_size=2, timeout=None, on_batch=PrometheusObserver(registry))(tens)
    assert in_threads(f, range(6)) == tens([*range(6)])
    shown = scraped(registry)
    assert shown['batchify_batch_size_bucket{function="tens",le="1.0"}'] == 0
    assert shown['batchify_batch_size_bucket{function="tens",le="2.0"}'] == 3
    assert shown['batchify_full_batches_total{function="tens"}'] == 3
    assert shown['batchify_failed_batches_total{function="tens"}'] == 0  # there before the first
    assert shown['batchify_item_wait_seconds_count{function="tens"}'] == 6
    assert shown['batchify_batch_duration_seconds_count{function="tens"}'] == 3


def test_prometheus_counts_a_failed_batch() -> None:
    registry = CollectorRegistry()
    f = batched(batch_size=2, timeout=None, on_batch=PrometheusObserver(registry))(picky)
    outcomes = in_threads(f, [0, 1])
    assert [type(each) for each in outcomes] == [ValueError, ValueError]
    assert scraped(registry)['batchify_failed_batches_total{function="picky"}'] == 1


def test_prometheus_counts_the_waits_of_a_split_batch_once() -> None:
    registry = CollectorRegistry()
    f = batched(batch_size=2, timeout=None, isolate=True, on_batch=PrometheusObserver(registry))(picky)
    good, bad = in_threads(f, [1, 0])
    assert (good, type(bad)) == (10, ValueError)
    shown = scraped(registry)
    assert shown['batchify_item_wait_seconds_count{function="picky"}'] == 2
    assert shown['batchify_batch_size_count{function="picky"}'] == 3
    assert shown['batchify_failed_batches_total{function="picky"}'] == 2


def test_prometheus_observer_serves_many_functions() -> None:
    registry = CollectorRegistry()
    observe = PrometheusObserver(registry)
    f, g = batched(batch_size=1, on_batch=observe)(tens), batched(batch_size=1, on_batch=observe)(picky)
    assert (f(1), g(2), g(3)) == (10, 20, 30)
    shown = scraped(registry)
    assert shown['batchify_batch_size_count{function="tens"}'] == 1
    assert shown['batchify_batch_size_count{function="picky"}'] == 2


def test_prometheus_observers_on_the_same_registry_share_its_metrics() -> None:
    registry, other = CollectorRegistry(), CollectorRegistry()
    for observe in in_threads(PrometheusObserver, [registry, other, registry]):
        observe(a_report())
    assert scraped(registry)['batchify_batch_size_count{function="f"}'] == 2
    assert scraped(other)['batchify_batch_size_count{function="f"}'] == 1


def test_prometheus_observer_refuses_a_name_that_is_taken() -> None:
    registry = CollectorRegistry()
    Counter("batchify_full_batches_total", "of somebody else", registry=registry)
    with pytest.raises(ValueError, match="batchify_full_batches"):
        PrometheusObserver(registry)


def test_prometheus_observer_when_pickled_counts_in_the_default_registry_of_the_other_side() -> None:
    name = uuid4().hex  # the registry is everybody's
    pickle.loads(pickle.dumps(PrometheusObserver()))(a_report(name))
    assert REGISTRY.get_sample_value("batchify_batch_size_sum", {"function": name}) == 1


def test_prometheus_observer_with_its_own_registry_cannot_be_pickled() -> None:
    with pytest.raises((TypeError, AttributeError, pickle.PicklingError), match=r"pickle|get local object"):
        pickle.dumps(PrometheusObserver(CollectorRegistry()))


def test_prometheus_gauges_of_several_processes_are_summed(tmp_path: Path) -> None:
    script = f"""if True:
        import os
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = {str(tmp_path)!r}
        from batchify import BatchReport
        from batchify.prometheus import PrometheusObserver

        PrometheusObserver()(BatchReport("f", 1, 64, "timeout", None, (0.0,), 0.0, 7, 3, None, (), None, 5))
    """
    for _ in range(2):
        run_script(script)
    registry = CollectorRegistry()
    MultiProcessCollector(registry, str(tmp_path))  # type: ignore[no-untyped-call]
    shown = scraped(registry)
    assert shown['batchify_batch_size_count{function="f"}'] == 2
    assert shown['batchify_pending_items{function="f"}'] == 14
    assert shown['batchify_in_flight_batches{function="f"}'] == 6
    assert shown['batchify_refused_items_total{function="f"}'] == 10


def test_prometheus_shows_what_waits_at_the_scrape_while_the_first_batch_hangs(kit: Kit) -> None:
    registry = CollectorRegistry()
    f = kit(gated=True, batch_size=2, max_pending=3, on_batch=PrometheusObserver(registry))
    figures = ("pending_items", "running_items", "in_flight_batches", "refused_items_total")

    def shown() -> list[float]:
        found = scraped(registry)
        return [found[f'batchify_{figure}{{function="negate"}}'] for figure in figures]

    assert shown() == [0, 0, 0, 0]
    handles = [kit.busy(f, 0), *kit.submits(f, [1, 2, 3])]
    for _ in range(2):
        with pytest.raises(BufferFullError):
            kit.submit(f, 4)
        assert shown()[:3] == [3, 1, 1]
    assert shown()[3] == 2
    kit.go_on(9)
    kit.outcomes(handles)
    kit.until_idle(f)
    assert shown() == [0, 0, 0, 2]


def test_prometheus_hears_of_a_buffer_in_the_midst_of_hearing_of_another_one() -> None:
    registry = CollectorRegistry()
    observe = PrometheusObserver(registry)

    class Model:
        @typed_batched(batch_size=9, timeout=None, on_batch=observe)
        def run(self, xs: list[int]) -> list[int]:
            return xs

    def begin() -> None:
        models.append(Model())
        _ = models[-1].run

    models: list[Model] = []
    for lines in at_each_line(at_least=3):
        models.clear()
        with lines.intruder_doing(begin, "prometheus.py").on_this_thread():
            begin()
            scraped(registry)
        assert lines.intruder is not None
        assert lines.intruder.error is None


def test_prometheus_scrape_of_some_names_shows_what_waits_now() -> None:
    registry = CollectorRegistry()
    f = batched(batch_size=9, timeout=None, on_batch=PrometheusObserver(registry))(tens)
    future = f.submit(1)
    some = registry.restricted_registry(["batchify_pending_items"])  # as /metrics?name[]=batchify_pending_items
    assert 'batchify_pending_items{function="tens"} 1.0' in generate_latest(some).decode()
    f.flush()
    assert future.result() == 10


def test_prometheus_adds_up_the_buffers_of_one_name_and_forgets_those_that_are_gone(kit: Kit) -> None:
    registry = CollectorRegistry()
    observe = PrometheusObserver(registry)

    class Model:
        run = batched(batch_size=9, timeout=None, on_batch=observe)(kit.wrap(lambda self, xs: xs))

    models = [Model(), Model()]
    handles = [kit.submit(model.run, item) for model in models for item in range(3)]
    assert scraped(registry)['batchify_pending_items{function="Model.run"}'] == 6
    kit.flush(models[0].run)
    kit.flush(models[1].run)
    kit.outcomes(handles)
    models.clear()
    collect()
    assert scraped(registry)['batchify_pending_items{function="Model.run"}'] == 0
    assert scraped(registry)['batchify_batch_size_count{function="Model.run"}'] == 2


# OpenTelemetry


class Recorder:
    """A provider of tracers of its own, and the spans that have ended."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        self.provider = TracerProvider(shutdown_on_exit=False)
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.observe = OpenTelemetryObserver(self.provider)
        self.span = self.provider.get_tracer("test").start_as_current_span

    def ended(self, name: str) -> list[ReadableSpan]:
        """Return the spans of that name, in the order in which they ended."""
        return [span for span in self._exporter.get_finished_spans() if span.name == name]


def linked(span: ReadableSpan) -> list[int]:
    """Return which spans it is linked to."""
    return sorted(link.context.span_id for link in span.links)


def identities(spans: Sequence[ReadableSpan]) -> list[int]:
    return sorted(span.context.span_id for span in spans if span.context is not None)


def test_otel_span_is_linked_to_the_spans_of_callers_in_threads() -> None:
    recorder = Recorder()
    f = batched(batch_size=3, timeout=None, on_batch=recorder.observe)(tens)

    def call(item: int) -> Any:
        with recorder.span("caller"):
            return f(item)

    assert in_threads(call, [1, 2, 3]) == [10, 20, 30]
    (span,) = recorder.ended("batch tens")
    callers = recorder.ended("caller")
    assert len(callers) == 3
    assert linked(span) == identities(callers)


def test_otel_span_is_linked_to_the_spans_of_callers_in_coroutines() -> None:
    recorder = Recorder()

    @batched(batch_size=3, timeout=None, on_batch=recorder.observe)
    async def on_the_loop(items: list[int]) -> list[int]:
        return tens(items)

    @batched(batch_size=3, timeout=None, on_batch=recorder.observe)
    def in_a_thread(items: list[int]) -> list[int]:
        return tens(items)

    async def call(name: str, f: Any, item: int) -> Any:
        with recorder.span(name):
            return await f(item)

    async def main() -> None:
        for name, f in (("on_the_loop", on_the_loop), ("in_a_thread", in_a_thread.aio)):
            assert await asyncio.gather(*(call(f"caller {name}", f, item) for item in (1, 2, 3))) == [10, 20, 30]

    asyncio.run(main())
    for name in ("on_the_loop", "in_a_thread"):
        (span,) = recorder.ended(f"batch {name}")
        callers = recorder.ended(f"caller {name}")
        assert len(callers) == 3
        assert linked(span) == identities(callers)


def test_otel_span_is_current_while_the_function_runs(kit: Kit) -> None:
    recorder = Recorder()
    who: ContextVar[str] = ContextVar("who", default="nobody")

    def function(items: list[int]) -> list[str]:
        with recorder.span("SELECT"):  # as the driver of a database does
            return [who.get() for _ in items]

    f = kit(function, batch_size=2, timeout=None, on_batch=recorder.observe)
    who.set("a caller")
    with recorder.span("caller"):
        assert kit.outcomes([kit.submit(f, 1), kit.submit(f, 2)]) == ["nobody"] * 2
    kit.until_idle(f)
    (span,), (query,), callers = (recorder.ended(name) for name in ("batch function", "SELECT", "caller"))
    assert query.parent is not None
    assert query.parent == span.context
    assert linked(span) == identities(callers)
    assert not trace.get_current_span().get_span_context().is_valid
    kit.outcomes(kit.submits(f, [3, 4]))
    kit.until_idle(f)
    assert [each.parent for each in recorder.ended("SELECT")] == [
        each.context for each in recorder.ended("batch function")
    ]


def test_otel_span_processor_that_calls_the_function_is_no_recursion(kit: Kit) -> None:
    f: Any = None

    class Calls(SpanProcessor):
        def on_start(self, *_: Any, **__: Any) -> None:
            if kit.kind == "threads":
                f(1)

    recorder = Recorder()
    recorder.provider.add_span_processor(Calls())
    f = kit(tens, batch_size=1, on_batch=recorder.observe)
    assert kit.outcome(kit.start(f, 2)) == 20
    kit.until_idle(f)
    assert len(recorder.ended("batch tens")) == 1


def test_otel_that_cannot_start_a_span_harms_nobody(kit: Kit, caplog: pytest.LogCaptureFixture) -> None:
    class Fails(OpenTelemetryObserver):
        def begin(self, *_: object) -> Any:
            raise ValueError("no span")

    recorder = Recorder()
    f = kit(tens, batch_size=2, timeout=None, on_batch=Fails(recorder.provider))
    assert kit.outcomes([kit.submit(f, 1), kit.submit(f, 2)]) == [10, 20]
    assert "on_batch of tens() raised" in caplog.text
    kit.until_idle(f)
    assert len(recorder.ended("batch tens")) == 1  # made as a whole


def test_otel_span_is_linked_once_to_a_span_that_passed_several_items() -> None:
    recorder = Recorder()
    f = batched(batch_size=4, timeout=None, on_batch=recorder.observe)(tens)
    futures = [f.submit(1)]
    with recorder.span("caller"):
        futures += [f.submit(2), f.submit(3)]
    remote = trace.NonRecordingSpan(trace.SpanContext(1, 2, is_remote=True))  # what came with a request
    with trace.use_span(remote):
        futures.append(f.submit(4))
    assert [future.result() for future in futures] == [10, 20, 30, 40]
    (span,) = recorder.ended("batch tens")
    assert linked(span) == sorted([*identities(recorder.ended("caller")), 2])


def test_otel_span_is_the_root_of_a_trace_wherever_its_batch_ends() -> None:
    recorder = Recorder()
    with recorder.span("of an engine, say"):
        recorder.observe(a_report(contexts=[copy_context()]))
    (span,), (other,) = recorder.ended("batch f"), recorder.ended("of an engine, say")
    assert span.parent is None
    assert span.context is not None
    assert other.context is not None
    assert span.context.trace_id != other.context.trace_id
    assert linked(span) == identities([other])


def test_otel_span_is_as_long_as_its_batch_and_ends_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("batchify.otel.time_ns", lambda: 5_000_000_000)
    recorder = Recorder()
    recorder.observe(a_report(duration=0.75, error=ValueError("no")))
    (span,) = recorder.ended("batch f")
    assert (span.start_time, span.end_time) == (4_250_000_000, 5_000_000_000)
    assert [event.timestamp for event in span.events] == [5_000_000_000]


def test_otel_attributes_tell_the_figures_of_the_report() -> None:
    recorder = Recorder()
    recorder.observe(a_report("g", [0.5, 0.75, 0.25], batch_size=3, reason="full", pending=7, in_flight=2, weight=4.5))
    (span,) = recorder.ended("batch g")
    assert dict(span.attributes or {}) == {
        "batchify.function": "g",
        "batchify.size": 3,
        "batchify.batch_size": 3,
        "batchify.reason": "full",
        "batchify.longest_wait": 0.75,
        "batchify.pending": 7,
        "batchify.in_flight": 2,
        "batchify.weight": 4.5,
    }
    assert span.instrumentation_scope is not None
    assert span.instrumentation_scope.name == "batchify"
    assert span.status.status_code is trace.StatusCode.UNSET
    assert not span.events


def test_otel_span_of_a_failed_batch_holds_its_error() -> None:
    recorder = Recorder()
    f = batched(batch_size=1, on_batch=recorder.observe)(picky)
    with pytest.raises(ValueError, match="none for 0"), recorder.span("caller"):
        f(0)
    (span,), callers = recorder.ended("batch picky"), recorder.ended("caller")
    assert (span.status.status_code, span.status.description) == (trace.StatusCode.ERROR, "none for 0")
    assert (span.attributes or {})["error.type"] == "ValueError"
    (event,) = span.events
    assert event.name == "exception"
    said = event.attributes or {}
    assert (said["exception.type"], said["exception.message"]) == ("ValueError", "none for 0")
    assert "in picky" in str(said["exception.stacktrace"])
    assert linked(span) == identities(callers)


def test_otel_span_of_an_error_that_has_no_message(caplog: pytest.LogCaptureFixture) -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise ValueError("no message")

    def fail(items: list[int]) -> list[int]:
        raise Mute

    recorder = Recorder()
    with pytest.raises(Mute):
        batched(batch_size=1, on_batch=recorder.observe)(fail)(0)
    (span,) = recorder.ended("batch fail")
    assert str((span.attributes or {})["error.type"]).endswith("<locals>.Mute")
    assert "on_batch of fail() raised" in caplog.text


def test_otel_observer_serves_many_functions() -> None:
    recorder = Recorder()
    f, g = (batched(batch_size=1, on_batch=recorder.observe)(function) for function in (tens, picky))
    assert (f(1), g(2), g(3)) == (10, 20, 30)
    assert (len(recorder.ended("batch tens")), len(recorder.ended("batch picky"))) == (1, 2)


def test_otel_global_provider_may_be_set_later() -> None:
    script = """if True:
        import pickle
        from batchify import batched
        from batchify.otel import OpenTelemetryObserver
        from opentelemetry import trace
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import SimpleSpanProcessor
        from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

        observe, exporter = OpenTelemetryObserver(), InMemorySpanExporter()
        f = batched(batch_size=1, on_batch=observe)(lambda xs: xs)
        f(1)
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        trace.set_tracer_provider(provider)
        f(2)
        batched(batch_size=1, on_batch=pickle.loads(pickle.dumps(observe)))(lambda xs: xs)(3)
        print([span.name for span in exporter.get_finished_spans()])
    """
    assert run_script(script).stdout == "['batch <lambda>', 'batch <lambda>']\n"


class PickledProvider(trace.NoOpTracerProvider):
    """A provider that can be pickled, and remembers who asked it for a tracer."""

    asked: ClassVar[list[str]] = []

    def get_tracer(self, instrumenting_module_name: str, *args: Any, **options: Any) -> trace.Tracer:
        self.asked.append(instrumenting_module_name)
        return super().get_tracer(instrumenting_module_name, *args, **options)


@pytest.mark.thread_unsafe(reason="the provider remembers for all")
def test_otel_observer_when_pickled_takes_its_own_provider_along() -> None:
    with pytest.raises(TypeError, match="pickle"):
        pickle.dumps(Recorder().observe)
    pickled = pickle.dumps(OpenTelemetryObserver(PickledProvider()))
    PickledProvider.asked.clear()
    pickle.loads(pickled)(a_report())
    assert PickledProvider.asked == ["batchify"]


# Both


@pytest.mark.parametrize("observer", [PrometheusObserver, OpenTelemetryObserver])
def test_observed_function_can_still_be_pickled(observer: type) -> None:
    f = batched(batch_size=1, on_batch=observer())(lambda xs: tens(xs))
    assert pickle.loads(cloudpickle.dumps(f))(4) == 40


def test_observer_libraries_are_not_imported_by_batchify() -> None:
    script = "import sys, batchify; print([name for name in sys.modules if name.startswith(('prom', 'opentel'))])"
    assert run_script(script).stdout == "[]\n"


# Progress bars


def test_tqdm_around_a_map_gives_every_result_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tqdm, "monitor_interval", 0)  # else it leaves a thread
    drawn = io.StringIO()
    f = batched(batch_size=8)(tens)
    assert list(tqdm(f.map(range(100)), total=100, file=drawn)) == tens([*range(100)])
    assert "100/100" in drawn.getvalue()


def test_rich_around_a_map_gives_every_result_in_order() -> None:
    drawn = io.StringIO()
    f = batched(batch_size=8)(tens)
    assert list(track(f.map(range(100)), total=100, console=Console(file=drawn))) == tens([*range(100)])
    assert "100%" in drawn.getvalue()
