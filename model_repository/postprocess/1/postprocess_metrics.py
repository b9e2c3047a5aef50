"""The metrics of `postprocess`, on Triton's own metrics port."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from metrics_buffer import MetricsBuffer
from numpy.typing import NDArray

# Seconds, from a few candidates to many thousands.
_BUCKETS = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5]


class Metrics:
    """Counters and histograms.

    Args:
        pb_utils: Triton's module, which exists only inside the server.
        labels: the model's class names, the only values that the metrics' label can have.
    """

    def __init__(self, pb_utils: Any, labels: Sequence[str]) -> None:
        family = pb_utils.MetricFamily
        self._detections = family(
            name="yolov5_detections_total",
            description="Detections reported, by class name",
            kind=family.COUNTER,
        )
        self._nms = family(
            name="yolov5_nms_seconds",
            description="Time to choose the detections of one image",
            kind=family.HISTOGRAM,
        )
        # Classes of the same name are counted together.
        by_label = {
            label: self._detections.Metric(labels={"label": label})
            for label in dict.fromkeys(labels)
        }
        self._by_class = [by_label[label] for label in labels]
        self._nms_seconds = self._nms.Metric(labels={}, buckets=_BUCKETS)
        self._buffer = MetricsBuffer(pb_utils.Logger.log_error)

    def observe(self, seconds: float) -> None:
        """Record the time of one image, in seconds."""
        self._buffer.observe(self._nms_seconds, seconds)

    def count_detections(self, classes: NDArray[np.int64]) -> None:
        """Count one image's detections by their classes [K]."""
        for index, number in enumerate(np.bincount(classes)):
            if number:
                self._buffer.increment(self._by_class[index], int(number))

    def close(self) -> None:
        self._buffer.close()
