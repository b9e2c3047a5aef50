"""The metrics of `preprocess`, on Triton's own metrics port."""

from __future__ import annotations

from typing import Any

from decode import REASONS
from metrics_buffer import MetricsBuffer

# Reasons of a refusal, beside those of `decode.REASONS` for an image.
PARAMETER, SATURATED = "parameter", "saturated"
# Seconds, from small photos to the largest allowed.
_BUCKETS = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5]


class Metrics:
    """Counters and histograms, to be used from several threads.

    Args:
        pb_utils: Triton's module, which exists only inside the server.
    """

    def __init__(self, pb_utils: Any) -> None:
        family = pb_utils.MetricFamily
        self._families: list[Any] = []  # kept, as a metric ends with its family

        def new_family(name: str, description: str, kind: Any) -> Any:
            self._families.append(family(name=name, description=description, kind=kind))
            return self._families[-1]

        def histogram(name: str, description: str) -> Any:
            return new_family(name, description, family.HISTOGRAM).Metric(
                labels={}, buckets=_BUCKETS
            )

        images = new_family("yolov5_images_total", "Images received", family.COUNTER)
        rejected = new_family(
            "yolov5_rejected_images_total", "Images refused, by reason", family.COUNTER
        )
        self._buffer = MetricsBuffer(pb_utils.Logger.log_error)
        self._images = images.Metric(labels={})
        self._rejected = {
            reason: rejected.Metric(labels={"reason": reason})
            for reason in (*REASONS, PARAMETER, SATURATED)
        }
        self._decode_seconds = histogram("yolov5_decode_seconds", "Time to decode one image")
        self._letterbox_seconds = histogram(
            "yolov5_letterbox_seconds", "Time to letterbox and normalise one image"
        )

    def count_received(self, images: int) -> None:
        self._buffer.increment(self._images, images)

    def count_rejected(self, reason: str, images: int) -> None:
        self._buffer.increment(self._rejected[reason], images)

    def observe(self, decode: float, letterbox: float) -> None:
        """Record the times of one image, in seconds."""
        self._buffer.observe(self._decode_seconds, decode)
        self._buffer.observe(self._letterbox_seconds, letterbox)

    def close(self) -> None:
        self._buffer.close()
