"""The service's own metrics, beside those of Triton."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

# Seconds; about the times of a network on a GPU, on a CPU, and of a full queue.
_BUCKETS = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)


class Metrics:
    """Counts and times of requests. Each service has its own, for tests start several."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.requests = Counter(
            "yolov5_api_requests",
            "Requests by route and HTTP status; 499 if the caller hung up.",
            ("route", "status"),
            registry=self.registry,
        )
        self.seconds = Histogram(
            "yolov5_api_request_seconds",
            "Time from the request's head to the end of its answer.",
            ("route",),
            buckets=_BUCKETS,
            registry=self.registry,
        )
        self.in_progress = Gauge(
            "yolov5_api_requests_in_progress",
            "Requests that are being read or answered.",
            registry=self.registry,
        )
        self.buffered = Gauge(
            "yolov5_api_buffered_bytes",
            "Request bodies in memory.",
            registry=self.registry,
        )
