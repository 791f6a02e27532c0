"""Figures of a running server, as Prometheus reads them, in a registry of their own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
SIZES = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """Requests, times, queues, batches and items."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "modalign_requests",
            "Requests answered.",
            ("route", "method", "status"),
            registry=self._registry,
        )
        self._seconds = Histogram(
            "modalign_request_seconds",
            "From the first byte of a request to the end of its answer.",
            ("route",),
            buckets=SECONDS,
            registry=self._registry,
        )
        self._batches = Histogram(
            "modalign_batch_items",
            "Items that were encoded, or searched by, together.",
            ("queue",),
            buckets=SIZES,
            registry=self._registry,
        )
        # Looking a child up by its labels costs more than counting.
        self._counted = cache(self._requests.labels)
        self._timed = cache(self._seconds.labels)

    def answered(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count a request; `route` is as it is written in the code, never a path."""
        self._counted(route, method, str(status)).inc()
        self._timed(route).observe(seconds)

    def batch_observer(self, queue: str) -> Callable[[int], None]:
        """Return what is told the size of each batch of a queue."""
        return self._batches.labels(queue).observe

    def watch(
        self, name: str, help_text: str, label: str, values: Mapping[str, Callable[[], float]]
    ) -> None:
        """Show numbers that are asked for when they are read, one for each value of a label."""
        gauge = Gauge(name, help_text, (label,), registry=self._registry)
        for value, ask in values.items():
            gauge.labels(value).set_function(ask)

    def text(self) -> bytes:
        """Return all of them."""
        return generate_latest(self._registry)
