"""The metrics of `preprocess`, on Triton's own metrics port."""

from __future__ import annotations

from threading import Lock
from typing import Any

from decode import REASONS

# Seconds, from small photos to the largest that are allowed.
_BUCKETS = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5]


class Metrics:
    """Counters and histograms.

    One thread at a time: Triton's Python backend (2.51) crashes the server when two of a process
    touch metrics at once.

    Args:
        pb_utils: Triton's module, which exists only inside the server.
    """

    def __init__(self, pb_utils: Any) -> None:
        family = pb_utils.MetricFamily
        self._families: list[Any] = []  # a metric goes when its family does

        def histogram(name: str, description: str) -> Any:
            kind = family(name=name, description=description, kind=family.HISTOGRAM)
            self._families.append(kind)
            return kind.Metric(labels={}, buckets=_BUCKETS)

        images = family(
            name="yolov5_images_total", description="Images received", kind=family.COUNTER
        )
        rejected = family(
            name="yolov5_rejected_images_total",
            description="Images refused, by reason",
            kind=family.COUNTER,
        )
        self._families += [images, rejected]
        self._lock = Lock()
        self._images = images.Metric(labels={})
        self._rejected = {
            reason: rejected.Metric(labels={"reason": reason})
            for reason in (*REASONS, "parameter", "saturated")
        }
        self._decode_seconds = histogram("yolov5_decode_seconds", "Time to decode one image")
        self._letterbox_seconds = histogram(
            "yolov5_letterbox_seconds", "Time to letterbox and normalise one image"
        )

    def receive(self, images: int) -> None:
        with self._lock:
            self._images.increment(images)

    def reject(self, reason: str, images: int) -> None:
        with self._lock:
            self._rejected[reason].increment(images)

    def time(self, decode: float, letterbox: float) -> None:
        """One image, in seconds."""
        with self._lock:
            self._decode_seconds.observe(decode)
            self._letterbox_seconds.observe(letterbox)
