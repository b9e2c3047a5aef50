"""The metrics of `preprocess`, on Triton's own metrics port."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from decode import REASONS
from load_signals import Load
from metrics_buffer import MetricsBuffer, MetricsByModel
from request_outcomes import LOST, OUTCOMES

# Reasons of a refusal, beside those of `decode.REASONS` for an image.
PARAMETER, SATURATED = "parameter", "saturated"
# Seconds, from small photos to the largest allowed.
_BUCKETS = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5]
# Seconds, from a request that need not wait to one that waits for as long as it may.
_REQUEST_BUCKETS = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0]
_NO_LOAD = Load()


class Metrics(MetricsByModel["ModelMetrics"]):
    """The families, and the metrics of each model.

    Args:
        pb_utils: Triton's module, which exists only inside the server.
    """

    def __init__(self, pb_utils: Any) -> None:
        super().__init__(pb_utils.Logger.log_error)
        family = pb_utils.MetricFamily
        self._families = {  # kept, as a metric ends with its family
            name: family(name=f"yolov5_{name}", description=description, kind=kind)
            for name, description, kind in (
                ("images_total", "Images received", family.COUNTER),
                ("rejected_images_total", "Images refused, by reason", family.COUNTER),
                ("decode_seconds", "Time to decode one image", family.HISTOGRAM),
                (
                    "letterbox_seconds",
                    "Time to letterbox and normalise one image",
                    family.HISTOGRAM,
                ),
                ("requests_total", "Requests that have ended, by outcome", family.COUNTER),
                ("request_seconds", "Time from arrival to the end of a request", family.HISTOGRAM),
                ("queue_seconds", "Time that a request waited for admission", family.HISTOGRAM),
                ("queued_images", "Images that wait for admission", family.GAUGE),
                ("in_flight_images", "Images between admission and postprocess", family.GAUGE),
                ("saturation", "Demand over capacity, 1 = all that it can do", family.GAUGE),
            )
        }

    def for_model(self, model: str) -> ModelMetrics:
        """The metrics of this model."""
        found = self._find(model, lambda: ModelMetrics(self._families, self._buffer))
        self._label()
        return found

    def show_load(self, loads: Mapping[str, Load]) -> None:
        """Set the gauges of all models; those without a load have none."""
        for name, metrics in [*self._models.items()]:
            metrics.show_load(loads.get(name, _NO_LOAD))


class ModelMetrics:
    """Counters, histograms and gauges of one model, to be used from several threads."""

    def __init__(self, families: Mapping[str, Any], buffer: MetricsBuffer) -> None:
        self._families = families
        self._buffer = buffer
        self._labels: Mapping[str, str] | None = None
        self._load_gauges: list[Any] = []
        self._load: Load | None = None  # what the gauges show

    def label(self, labels: Mapping[str, str]) -> None:
        """Create the metrics, with these labels, unless they have them already."""
        if self._labels == labels:
            return
        self._labels = labels
        families = self._families
        self._images = families["images_total"].Metric(labels=labels)
        self._rejected = {
            reason: families["rejected_images_total"].Metric(labels={**labels, "reason": reason})
            for reason in (*REASONS, PARAMETER, SATURATED)
        }
        self._decode_seconds, self._letterbox_seconds = (
            families[name].Metric(labels=labels, buckets=_BUCKETS)
            for name in ("decode_seconds", "letterbox_seconds")
        )
        self._label_requests(labels)
        for gauge in self._load_gauges:
            self._buffer.set(gauge, 0)  # Triton goes on showing it
        self._load_gauges = [
            families[name].Metric(labels=labels)
            for name in ("queued_images", "in_flight_images", "saturation")
        ]
        self._load = None

    def _label_requests(self, labels: Mapping[str, str]) -> None:
        families = self._families
        self._queue_seconds = families["queue_seconds"].Metric(
            labels=labels, buckets=_REQUEST_BUCKETS
        )
        self._requests = {
            outcome: families["requests_total"].Metric(labels={**labels, "outcome": outcome})
            for outcome in OUTCOMES
        }
        self._request_seconds = {
            outcome: families["request_seconds"].Metric(
                labels={**labels, "outcome": outcome}, buckets=_REQUEST_BUCKETS
            )
            for outcome in OUTCOMES
            if outcome != LOST  # nobody knows when
        }

    def count_received(self, images: int) -> None:
        self._buffer.increment(self._images, images)

    def count_rejected(self, reason: str, images: int) -> None:
        self._buffer.increment(self._rejected[reason], images)

    def observe(self, decode: float, letterbox: float) -> None:
        """Record the times of one image, in seconds."""
        self._buffer.observe(self._decode_seconds, decode)
        self._buffer.observe(self._letterbox_seconds, letterbox)

    def observe_queue(self, seconds: float) -> None:
        """Record how long a request has waited for its admission."""
        self._buffer.observe(self._queue_seconds, seconds)

    def count_request(self, outcome: str, seconds: float) -> None:
        """Count a request that has ended, and record how long it took; not if it was lost."""
        self._buffer.increment(self._requests[outcome])
        if outcome != LOST:
            self._buffer.observe(self._request_seconds[outcome], seconds)

    def show_load(self, load: Load) -> None:
        """Set the gauges, if they have to change."""
        if load == self._load:
            return
        self._load = load
        for gauge, value in zip(self._load_gauges, load):
            self._buffer.set(gauge, value)
