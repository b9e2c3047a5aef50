"""What the steps count and measure reaches the right metric."""

from __future__ import annotations

import gc
import time
import weakref
from types import SimpleNamespace
from typing import Any

import numpy as np
import postprocess_metrics
import preprocess_metrics
import pytest
from decode import REASONS
from load_signals import Load
from request_outcomes import OUTCOMES

Values = dict[tuple[str, str], list[float]]  # by family and label


class Metric:
    def __init__(self, kind: str, values: list[float]) -> None:
        method = {"histogram": "observe", "counter": "increment", "gauge": "set"}[kind]
        setattr(self, method, values.append)


class Recorder:
    """Takes the place of the module that Triton gives to a step, and records what it is told."""

    def __init__(self) -> None:
        values = self.values = Values()
        buckets = self.buckets = dict[str, list[float]]()

        families = self.families = weakref.WeakSet[Any]()

        class Family:
            COUNTER, HISTOGRAM, GAUGE = "counter", "histogram", "gauge"

            def __init__(self, *, name: str, description: str, kind: str) -> None:
                assert description
                self.name, self.kind = name, kind
                families.add(self)

            def Metric(self, labels: dict[str, str], **more: Any) -> Any:  # noqa: N802
                assert (self.kind == "histogram") == ("buckets" in more)
                buckets[self.name] = more.get("buckets", [])
                found = values.setdefault((self.name, " ".join(labels.values())), [])
                return Metric(self.kind, found)

        self.MetricFamily = Family
        self.Logger = SimpleNamespace(log_error=pytest.fail)

    def told(self) -> Values:
        return {key: values for key, values in self.values.items() if values}


def test_images_received_and_refused_are_counted() -> None:
    triton = Recorder()
    metrics = preprocess_metrics.Metrics(triton)
    plates = metrics.for_model("plates")
    metrics.start()
    plates.count_received(8)
    plates.count_received(1)
    for reason in (*REASONS, "parameter", "saturated"):
        plates.count_rejected(reason, 2)
    metrics.close()
    received = triton.values.pop(("yolov5_images_total", ""))
    assert sum(received) == 9
    assert triton.told() == {
        ("yolov5_rejected_images_total", reason): [2]
        for reason in (*REASONS, "parameter", "saturated")
    }


def test_families_are_kept_as_a_metric_ends_with_its_family() -> None:
    before, after = Recorder(), Recorder()
    metrics = preprocess_metrics.Metrics(before), postprocess_metrics.Metrics(after)
    gc.collect()
    assert (len(before.families), len(after.families)) == (10, 3)
    for one in metrics:
        one.close()


def test_times_of_decoding_and_letterboxing_are_told_apart() -> None:
    triton = Recorder()
    metrics = preprocess_metrics.Metrics(triton)
    metrics.start()
    metrics.for_model("plates").observe(0.25, 0.5)
    metrics.close()
    assert triton.told() == {
        ("yolov5_decode_seconds", ""): [0.25],
        ("yolov5_letterbox_seconds", ""): [0.5],
    }
    assert triton.buckets["yolov5_decode_seconds"] == [
        *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
    ]


def test_requests_are_counted_and_timed_by_outcome() -> None:
    triton = Recorder()
    metrics = preprocess_metrics.Metrics(triton)
    plates = metrics.for_model("plates")
    metrics.start()
    for outcome in OUTCOMES:
        plates.count_request(outcome, 0.25)
    plates.observe_queue(0.5)
    metrics.close()
    assert triton.told() == {
        **{("yolov5_requests_total", outcome): [1] for outcome in OUTCOMES},
        # Nobody knows when a request was lost.
        **{("yolov5_request_seconds", outcome): [0.25] for outcome in OUTCOMES[:-1]},
        ("yolov5_queue_seconds", ""): [0.5],
    }
    assert triton.buckets["yolov5_request_seconds"] == [
        *(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0)
    ]
    assert triton.buckets["yolov5_queue_seconds"] == triton.buckets["yolov5_request_seconds"]


def gauges(triton: Recorder, label: str) -> list[list[float]]:
    """What was told to `yolov5_queued_images`, `yolov5_in_flight_images`, `yolov5_saturation`."""
    names = ("queued_images", "in_flight_images", "saturation")
    return [triton.values[(f"yolov5_{name}", label)] for name in names]


def wait_until_shown(triton: Recorder, load: Load) -> None:
    deadline = time.monotonic() + 10
    while [values[-1:] for values in gauges(triton, "")] != [[value] for value in load]:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_gauges_are_set_when_they_change() -> None:
    triton = Recorder()
    metrics = preprocess_metrics.Metrics(triton)
    metrics.for_model("plates")
    metrics.show_load({"plates": Load(1, 1, 1.0)})  # too early: there are no gauges yet
    metrics.start()
    for load in (Load(3, 2, 1.5), Load(3, 2, 1.5), Load(0, 1, 0.5), Load(0, 1, 0.5)):
        metrics.show_load({"plates": load, "unknown": Load(9, 9, 9.0)})
        wait_until_shown(triton, load)
    metrics.show_load({})  # it has been forgotten
    metrics.close()
    assert gauges(triton, "") == [[3, 0, 0], [2, 1, 0], [1.5, 0.5, 0.0]]


def test_gauges_without_the_label_fall_to_0_when_a_second_model_comes() -> None:
    triton = Recorder()
    metrics = preprocess_metrics.Metrics(triton)
    metrics.for_model("yolov5")
    metrics.start()
    load = Load(3, 2, 1.5)
    metrics.show_load({"yolov5": load})
    wait_until_shown(triton, load)
    metrics.for_model("plates")
    metrics.show_load({"yolov5": load})
    metrics.close()
    assert gauges(triton, "") == [[3, 0], [2, 0], [1.5, 0]]
    assert gauges(triton, "yolov5") == [[3], [2], [1.5]]
    assert gauges(triton, "plates") == [[0], [0], [0.0]]


def test_detections_are_counted_by_the_name_of_their_class() -> None:
    triton = Recorder()
    metrics = postprocess_metrics.Metrics(triton)
    names = ("car", "bus", "car", "van")
    plates = metrics.for_model("plates", names)
    metrics.start()
    plates.count_detections(np.array([2, 0, 1, 2]), names)
    plates.count_detections(np.array([], np.int64), names)
    plates.observe(0.25, images=2)
    metrics.close()
    assert triton.told() == {
        ("yolov5_detections_total", "car"): [3],
        ("yolov5_detections_total", "bus"): [1],
        ("yolov5_nms_seconds", ""): [0.125, 0.125],
    }
    assert triton.buckets["yolov5_nms_seconds"] == [
        *(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5)
    ]


def test_scores_are_sampled_twenty_times_a_second() -> None:
    triton = Recorder()
    metrics = postprocess_metrics.Metrics(triton)
    plates = metrics.for_model("plates", ("car",))
    metrics.start()
    plates.sample_score(np.array([], np.float32), 7.0)
    for tick in range(60):
        plates.sample_score(np.array([0.25, 0.5, 0.75], np.float32), 7.0 + tick / 100)
    metrics.close()
    told = triton.told()
    scores = told.pop(("yolov5_detection_score", ""))
    assert told == {}
    assert 10 <= len(scores) <= 12
    assert {*scores} <= {0.25, 0.5, 0.75} and len({*scores}) > 1
    assert triton.buckets["yolov5_detection_score"][-1] == 1


def test_metrics_of_several_models_all_carry_the_label_model() -> None:
    triton = Recorder()
    metrics = preprocess_metrics.Metrics(triton)
    yolov5 = metrics.for_model("yolov5")
    metrics.start()
    yolov5.count_received(1)
    metrics.for_model("plates").count_received(2)
    yolov5.count_received(4)
    assert metrics.for_model("yolov5") is yolov5
    metrics.close()
    received = {
        label: sum(values)
        for (name, label), values in triton.told().items()
        if name == "yolov5_images_total"
    }
    assert received["plates"] == 2
    # The first image may have been told with the label or before there was one.
    assert received["yolov5"] + received.get("", 0) == 5
    assert received["yolov5"] >= 4


def test_a_later_network_of_a_model_adds_its_classes() -> None:
    triton = Recorder()
    metrics = postprocess_metrics.Metrics(triton)
    metrics.for_model("yolov5", ("car", "bus"))
    metrics.for_model("plates", ("car",))
    metrics.start()
    metrics.for_model("yolov5", ("van", "car")).count_detections(
        np.array([1, 0, 0]), ("van", "car")
    )
    metrics.close()
    assert triton.told() == {
        ("yolov5_detections_total", "yolov5 car"): [1],
        ("yolov5_detections_total", "yolov5 van"): [2],
    }


def test_several_models_at_the_start_have_no_metrics_without_the_label() -> None:
    before, after = Recorder(), Recorder()
    first, last = preprocess_metrics.Metrics(before), postprocess_metrics.Metrics(after)
    for name in ("plates", "yolov5"):
        first.for_model(name)
        last.for_model(name, ("car",))
    for one in (first, last):
        one.start()
        one.close()
    labels = {label.split()[0] for _, label in (*before.values, *after.values)}
    assert labels == {"plates", "yolov5"}
