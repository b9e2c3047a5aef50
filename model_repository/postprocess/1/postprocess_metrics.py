"""The metrics of `postprocess`, on Triton's own metrics port."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from metrics_buffer import MetricsBuffer
from numpy.typing import NDArray

# Seconds, from a few candidates to many thousands.
_BUCKETS = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5]


class Metrics:
    """The families, and the metrics of each model.

    Args:
        pb_utils: Triton's module, which exists only inside the server.
    """

    def __init__(self, pb_utils: Any) -> None:
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
        self._buffer = MetricsBuffer(pb_utils.Logger.log_error)
        self._models: dict[str, ModelMetrics] = {}

    def for_model(self, model: str, class_names: Sequence[str]) -> ModelMetrics:
        """The metrics of this model. If there are several models, all carry the label `model`.

        Args:
            class_names: the only values that the label `label` can have; index = class.
        """
        with self._buffer.calling:
            if model not in self._models:
                self._models[model] = ModelMetrics(self._detections, self._nms, self._buffer)
            several = len(self._models) > 1
            for name, metrics in self._models.items():
                metrics.label({"model": name} if several else {})
            self._models[model].add_classes(class_names)
        return self._models[model]

    def close(self) -> None:
        self._buffer.close()


class ModelMetrics:
    """A counter for each class name, and the histogram of one model."""

    def __init__(self, detections: Any, nms: Any, buffer: MetricsBuffer) -> None:
        self._families = detections, nms
        self._buffer = buffer
        self._labels: Mapping[str, str] | None = None
        self._by_label: dict[str, Any] = {}

    def label(self, labels: Mapping[str, str]) -> None:
        """Create the metrics, with these labels, unless they have them already."""
        if self._labels != labels:
            self._labels = labels
            self._nms_seconds = self._families[1].Metric(labels=labels, buckets=_BUCKETS)
            names, self._by_label = list(self._by_label), {}
            self.add_classes(names)

    def add_classes(self, names: Sequence[str]) -> None:
        """Create the counters of these classes; equal names are counted together."""
        for name in names:
            if name not in self._by_label:
                labels = {**(self._labels or {}), "label": name}
                self._by_label[name] = self._families[0].Metric(labels=labels)

    def observe(self, seconds: float) -> None:
        """Record the time of one image, in seconds."""
        self._buffer.observe(self._nms_seconds, seconds)

    def count_detections(self, classes: NDArray[np.int64], names: Sequence[str]) -> None:
        """Count one image's detections by their classes [K]; `names` are those of all classes."""
        for index, number in enumerate(np.bincount(classes)):
            if number:
                self._buffer.increment(self._by_label[names[index]], int(number))
