"""What happened, for OpenTelemetry: an `on_batch` on its official API.

Needs the extra `otel`. It is imported by whoever uses it, never by the rest of batchify.
"""

import contextvars
from collections.abc import Callable, Sequence
from functools import partial
from time import time_ns
from typing import Any

from opentelemetry import trace
from opentelemetry.context import Context, attach, detach, get_current

from ._stats import BatchReport, Observer, Reason


class OpenTelemetryObserver(Observer):
    """Makes a span `batch <function>` of each batch: `@batched(batch_size=64, on_batch=OpenTelemetryObserver())`.

    Needs the extra `otel`: `pip install 'pybatchify[otel]'`.

    The span begins and ends with the batch, and is current while the function runs: so the spans of a database's driver
    are its children. The function sees nothing of its callers' contexts. A batch has many callers, but a span one
    parent at most; so the span is the root of its own trace, with one link to each span that was current where an item
    was passed in. (The SDK keeps the last 128 links, if `OTEL_SPAN_LINK_COUNT_LIMIT` does not say otherwise.)

    Its attributes have names that begin with `batchify.`: `function`, `size`, `batch_size`, `reason`, `longest_wait` in
    seconds, `pending`, `in_flight`, and `weight` where there is one. The span of a batch with an error has the error
    status, `error.type`, and the exception as an event.

    One observer may serve many functions. Unpickled, it uses the global provider there, or its own provider, which then
    must be picklable.

    Args:
        tracer_provider: Who makes the spans; without, the global one, which may be set later.
    """

    def __init__(self, tracer_provider: trace.TracerProvider | None = None) -> None:
        self._provider = tracer_provider
        self._tracer = trace.get_tracer("batchify", tracer_provider=tracer_provider)

    def begin(
        self, name: str, size: int, reason: Reason, contexts: Sequence[contextvars.Context]
    ) -> Callable[[BatchReport], None]:
        """For batchify only. Start the span of one batch, and make it current here; return what ends it."""
        span = self._start(name, size, reason, contexts)
        context = trace.set_span_in_context(span, Context())
        return partial(self._end, span, attached=(context, attach(context)))

    def __call__(self, report: BatchReport) -> None:
        """Make the span of one batch, which has just ended."""
        end = time_ns()
        started = end - round(report.duration * 1e9)
        self._end(self._start(report.name, report.size, report.reason, report.contexts, started), report)

    def _start(
        self, name: str, size: int, reason: str, contexts: Sequence[contextvars.Context], moment: int | None = None
    ) -> trace.Span:
        callers = [context.run(trace.get_current_span).get_span_context() for context in contexts]
        distinct = {(caller.trace_id, caller.span_id): caller for caller in callers if caller.is_valid}
        return self._tracer.start_span(
            f"batch {name}",
            context=Context(),  # not that of this thread, which may be an engine's
            attributes={"batchify.function": name, "batchify.size": size, "batchify.reason": reason},
            links=[trace.Link(caller) for caller in distinct.values()],
            start_time=moment,
        )

    def _end(self, span: trace.Span, report: BatchReport, attached: tuple[Context, Any] | None = None) -> None:
        end = time_ns()
        if attached is not None and get_current() is attached[0]:  # in a task, which in tests may be its caller's
            detach(attached[1])
        span.set_attribute("batchify.batch_size", report.batch_size)
        span.set_attribute("batchify.longest_wait", max(report.waits))
        span.set_attribute("batchify.pending", report.pending)
        span.set_attribute("batchify.in_flight", report.in_flight)
        if report.weight is not None:
            span.set_attribute("batchify.weight", report.weight)
        try:
            if report.error is not None:
                span.set_attribute("error.type", type(report.error).__qualname__)
                span.set_status(trace.StatusCode.ERROR, str(report.error))
                span.record_exception(report.error, timestamp=end)
        finally:  # an error may have a message that raises
            span.end(end)

    def __reduce__(self) -> "tuple[type[OpenTelemetryObserver], tuple[trace.TracerProvider | None]]":
        return type(self), (self._provider,)
