"""The metrics of `preprocess`, on Triton's own metrics port."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from decode import REASONS
from metrics_buffer import MetricsBuffer, MetricsByModel

# Reasons of a refusal, beside those of `decode.REASONS` for an image.
PARAMETER, SATURATED = "parameter", "saturated"
# Seconds, from small photos to the largest allowed.
_BUCKETS = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5]


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
            )
        }

    def for_model(self, model: str) -> ModelMetrics:
        """The metrics of this model."""
        found = self._find(model, lambda: ModelMetrics(self._families, self._buffer))
        self._label()
        return found


class ModelMetrics:
    """Counters and histograms of one model, to be used from several threads."""

    def __init__(self, families: Mapping[str, Any], buffer: MetricsBuffer) -> None:
        self._families = families
        self._buffer = buffer
        self._labels: Mapping[str, str] | None = None

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

    def count_received(self, images: int) -> None:
        self._buffer.increment(self._images, images)

    def count_rejected(self, reason: str, images: int) -> None:
        self._buffer.increment(self._rejected[reason], images)

    def observe(self, decode: float, letterbox: float) -> None:
        """Record the times of one image, in seconds."""
        self._buffer.observe(self._decode_seconds, decode)
        self._buffer.observe(self._letterbox_seconds, letterbox)
