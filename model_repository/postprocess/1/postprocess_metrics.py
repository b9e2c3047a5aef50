"""The metrics of `postprocess`, on Triton's own metrics port."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from random import randrange
from typing import Any

import numpy as np
from metrics_buffer import MetricsBuffer, MetricsByModel
from numpy.typing import NDArray

# Seconds, from a few candidates to many thousands.
_BUCKETS = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5]

_SCORE_BUCKETS = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]
_SCORE_PAUSE = 0.05  # seconds between two scores: an hour has 72,000, enough to see a drift


class Metrics(MetricsByModel["ModelMetrics"]):
    """The families, and the metrics of each model.

    Args:
        pb_utils: Triton's module, which exists only inside the server.
    """

    def __init__(self, pb_utils: Any) -> None:
        super().__init__(pb_utils.Logger.log_error)
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
        self._score = family(
            name="yolov5_detection_score",
            description="Scores of some detections, drawn at random",
            kind=family.HISTOGRAM,
        )

    def for_model(self, model: str, class_names: Sequence[str]) -> ModelMetrics:
        """The metrics of this model.

        Args:
            class_names: the only values that the label `label` can have; index = class.
        """
        families = self._detections, self._nms, self._score
        make = partial(ModelMetrics, families, self._buffer)
        found = self._find(model, make)
        found.class_names |= dict.fromkeys(class_names)
        self._label()
        return found


class ModelMetrics:
    """A counter for each class name, and the histograms of one model.

    Attributes:
        class_names: of the model and its earlier networks; equal ones are counted together.
    """

    def __init__(self, families: tuple[Any, Any, Any], buffer: MetricsBuffer) -> None:
        self._families = families  # of detections, NMS and scores
        self._buffer = buffer
        self._labels: Mapping[str, str] | None = None
        self._next_score = float("-inf")  # when one may be observed again
        self._by_label: dict[str, Any] = {}
        self.class_names: dict[str, None] = {}

    def label(self, labels: Mapping[str, str]) -> None:
        """Create the metrics that are missing, with these labels."""
        detections, nms, score = self._families
        if self._labels != labels:
            self._labels = labels
            self._by_label = {}
            self._nms_seconds = nms.Metric(labels=labels, buckets=_BUCKETS)
            self._scores = score.Metric(labels=labels, buckets=_SCORE_BUCKETS)
        for name in self.class_names.keys() - self._by_label.keys():
            self._by_label[name] = detections.Metric(labels={**labels, "label": name})

    def observe(self, seconds: float, images: int) -> None:
        """Record the time of images that were done together, in seconds, in equal shares."""
        for _ in range(images):
            self._buffer.observe(self._nms_seconds, seconds / images)

    def count_detections(self, classes: NDArray[np.int64], names: Sequence[str]) -> None:
        """Count detections by their classes [K]; `names` are those of all classes."""
        for index, number in enumerate(np.bincount(classes)):
            if number:
                self._buffer.increment(self._by_label[names[index]], int(number))

    def sample_score(self, scores: NDArray[np.float32], now: float) -> None:
        """Record one of the scores [K], drawn at random; at most 20 a second.

        Args:
            now: the time, in seconds.
        """
        if len(scores) and now >= self._next_score:
            self._next_score = now + _SCORE_PAUSE
            self._buffer.observe(self._scores, float(scores[randrange(len(scores))]))
