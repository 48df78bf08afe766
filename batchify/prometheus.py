"""What happened, for Prometheus: an `on_batch` on its official client library.

Needs the extra `prometheus`. It is imported by whoever uses it, never by the rest of batchify.
"""

import threading
from weakref import WeakKeyDictionary

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram

from ._stats import BatchReport

_ITEMS = [2**n for n in range(11)]
# The library's own begin at 5 ms, where many a batch has ended.
_SECONDS = [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10]

# A registry takes each name once, so all observers on a registry have the same metrics.
_lock = threading.Lock()
_metrics: "WeakKeyDictionary[CollectorRegistry, _Metrics]" = WeakKeyDictionary()


class _Metrics:
    def __init__(self, to: CollectorRegistry) -> None:
        by = ["function"]
        self.size = Histogram("batchify_batch_size", "Items in a batch", by, registry=to, buckets=_ITEMS)
        self.full = Counter("batchify_full_batches_total", "Batches taken because they were full", by, registry=to)
        self.failed = Counter("batchify_failed_batches_total", "Batches that ended with an error", by, registry=to)
        name, text = "batchify_item_wait_seconds", "Seconds that an item waited until its batch was taken"
        self.wait = Histogram(name, text, by, registry=to, buckets=_SECONDS)
        name, text = "batchify_batch_duration_seconds", "Seconds from taking a batch until its results were there"
        self.duration = Histogram(name, text, by, registry=to, buckets=_SECONDS)
        # livesum: of several processes that are scraped together, the sum over those alive.
        name, text = "batchify_pending_items", "Items that waited when the last batch ended"
        self.pending = Gauge(name, text, by, registry=to, multiprocess_mode="livesum")
        name, text = "batchify_in_flight_batches", "Other batches that were running when the last one ended"
        self.in_flight = Gauge(name, text, by, registry=to, multiprocess_mode="livesum")


class PrometheusObserver:
    """Counts batches in a registry of `prometheus_client`: `@batched(batch_size=64, on_batch=PrometheusObserver())`.

    Histograms: `batchify_batch_size`, `batchify_item_wait_seconds`, `batchify_batch_duration_seconds`. Counters:
    `batchify_full_batches_total`, `batchify_failed_batches_total`. Gauges, as they were when the last batch ended:
    `batchify_pending_items`, `batchify_in_flight_batches`. They have one label, `function`.

    One observer may serve many functions; several on one registry share its metrics. Buffers of functions of one
    name, of instances and of event loops are counted together; but in a gauge each replaces what another one said. The
    waits of items whose batch was split to `isolate` are counted once, sizes and durations with each part.

    It is pickled as one on the default registry of the other side; with a registry of its own, if that can be pickled.

    Args:
        registry: Where the metrics are, and are made by the first observer.

    Raises:
        ValueError: Something else in the registry has one of their names.
    """

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self._registry = registry
        with _lock:
            if registry not in _metrics:
                _metrics[registry] = _Metrics(registry)
            self._metrics = _metrics[registry]

    def __call__(self, report: BatchReport) -> None:
        """Count one batch."""
        metrics, function = self._metrics, report.name
        metrics.size.labels(function).observe(report.size)
        metrics.duration.labels(function).observe(report.duration)
        # By 0 as well: until then there is no series.
        metrics.full.labels(function).inc(report.reason == "full")
        metrics.failed.labels(function).inc(report.error is not None)
        metrics.pending.labels(function).set(report.pending)
        metrics.in_flight.labels(function).set(report.in_flight)
        wait = metrics.wait.labels(function)
        for seconds in report.waits if report.reason != "isolate" else ():
            wait.observe(seconds)

    def __reduce__(self) -> "tuple[type[PrometheusObserver], tuple[CollectorRegistry, ...]]":
        return type(self), () if self._registry is REGISTRY else (self._registry,)
