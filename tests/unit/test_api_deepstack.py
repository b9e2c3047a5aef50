"""The dialect of DeepStack and CodeProject.AI, without a server."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

import pytest

from yolov5_client import Detections
from yolov5_client._api import deepstack
from yolov5_client._api.problems import ProblemError

# What the documentation of CodeProject.AI lists for `/v1/vision/detection`, with its types.
DOCUMENTED: Mapping[str, type] = {
    "success": bool,
    "message": str,
    "predictions": list,
    "count": int,
    "command": str,
    "moduleId": str,
    "moduleName": str,
    "executionProvider": str,
    "canUseGPU": bool,
    "inferenceMs": int,
    "processMs": int,
    "analysisRoundTripMs": int,
}


def found(*rows: tuple[str, float, list[float]]) -> Detections:
    return Detections.from_unsorted(
        boxes=[box for _, _, box in rows],
        scores=[score for _, score, _ in rows],
        classes=[0] * len(rows),
        labels=[label for label, _, _ in rows],
        image_size=(480, 640),
    )


def answer_to(detections: Detections, **changed: Any) -> dict[str, Any]:
    """The answer as a client has it that has read its JSON."""
    given: dict[str, Any] = {"network": "yolov5", "inference_seconds": 0.03, "seconds": 0.035}
    answer: dict[str, Any] = json.loads(
        json.dumps(deepstack.answer(detections, **{**given, **changed}))
    )
    return answer


def parameters(query: Sequence[tuple[str, str]] = (), **form: str) -> dict[str, Any]:
    return deepstack.parameters(form.items(), query)


def test_confidence_of_the_form_is_the_threshold() -> None:
    assert parameters(min_confidence="0.55") == {"conf_thres": 0.55}


@pytest.mark.parametrize("form", [{}, {"min_confidence": ""}, {"api_key": "", "userid": "me"}])
def test_default_confidence_is_that_of_deepstack(form: dict[str, str]) -> None:
    assert deepstack.parameters(form.items(), []) == {"conf_thres": 0.4}


@pytest.mark.parametrize("value", ["0", "1", "0.0", "1.0", "4e-1"])
def test_bounds_of_the_confidence_are_allowed(value: str) -> None:
    assert parameters(min_confidence=value) == {"conf_thres": float(value)}


@pytest.mark.parametrize("value", ["1.01", "-0.1", "nan", "inf", "45%", "0,4", "high", " ", "é"])
def test_confidence_that_is_no_share_is_refused_by_name(value: str) -> None:
    with pytest.raises(ProblemError, match="^min_confidence is '.*'; allowed: a number") as caught:
        parameters(min_confidence=value)
    assert caught.value.status == 400
    assert str(caught.value).isascii()


def test_refusal_does_not_repeat_a_long_value() -> None:
    with pytest.raises(ProblemError) as caught:
        parameters(min_confidence="x" * 10_000)
    assert len(str(caught.value)) < 120


def test_address_may_hold_parameters_that_a_client_cannot_send() -> None:
    query = [("max_det", "20"), ("classes", "person,car")]
    assert parameters(query) == {"conf_thres": 0.4, **dict(query)}
    assert parameters([("conf_thres", "0.6")]) == {"conf_thres": "0.6"}
    assert parameters([("min_confidence", "0.6")]) == {"conf_thres": 0.6}


@pytest.mark.parametrize("name", ["conf_thres", "min_confidence"])
def test_threshold_that_is_given_twice_is_refused(name: str) -> None:
    with pytest.raises(ProblemError, match="^min_confidence or conf_thres is given twice"):
        parameters([(name, "0.6")], min_confidence="0.5")


def test_other_parameter_that_is_given_twice_is_refused() -> None:
    with pytest.raises(ProblemError, match="^'max_det' is given twice; allowed: once$"):
        parameters([("max_det", "1"), ("max_det", "2")])


def test_predictions_are_best_first_in_whole_pixels() -> None:
    detections = found(
        ("RBC", 0.61, [538.5, 375.06, 640.0, 477.3]), ("WBC", 0.8176594, [193.7, 94.5, 397.6, 0.49])
    )
    assert answer_to(detections)["predictions"] == [
        {
            "label": "WBC",
            "confidence": 0.8176594,
            "x_min": 194,
            "y_min": 94,
            "x_max": 398,
            "y_max": 0,
        },
        {
            "label": "RBC",
            "confidence": 0.61,
            "x_min": 538,
            "y_min": 375,
            "x_max": 640,
            "y_max": 477,
        },
    ]


def test_coordinates_are_integers_for_clients_in_languages_with_types() -> None:
    (one,) = answer_to(found(("WBC", 0.8, [1.0, 2.0, 3.0, 4.0])))["predictions"]
    assert {type(one[side]) for side in ("x_min", "y_min", "x_max", "y_max")} == {int}
    assert type(one["confidence"]) is float


@pytest.mark.parametrize("rows", [0, 1, 3])
def test_answer_has_each_documented_member_in_its_type(rows: int) -> None:
    answer = answer_to(found(*[("WBC", 0.8, [1.0, 2.0, 3.0, 4.0])] * rows))
    assert {name: type(answer[name]) for name in DOCUMENTED} == DOCUMENTED
    assert answer["count"] == len(answer["predictions"]) == rows
    assert answer["success"] is True
    assert answer["code"] == 200
    assert "error" not in answer


def test_message_names_each_class_once() -> None:
    box = [1.0, 2.0, 3.0, 4.0]
    detections = found(("RBC", 0.5, box), ("WBC", 0.9, box), ("RBC", 0.7, box))
    assert answer_to(detections)["message"] == "Found WBC, RBC"
    assert answer_to(found())["message"] == "No objects found"


def test_times_are_whole_milliseconds() -> None:
    answer = answer_to(found(), inference_seconds=0.0304, seconds=0.0356)
    assert [answer[name] for name in ("inferenceMs", "processMs", "analysisRoundTripMs")] == [
        30,
        30,
        36,
    ]
    assert answer_to(found(), inference_seconds=0.0001)["inferenceMs"] == 1


def test_answer_names_the_network() -> None:
    assert answer_to(found(), network="plates")["moduleId"] == "plates"


def test_list_has_the_networks_under_models() -> None:
    listed = deepstack.model_list(["yolov5", "plates"], "yolov5")
    assert listed["success"] is True
    assert listed["models"] == ["yolov5", "plates"]
    assert listed["command"] == "list-custom"


def test_failure_has_the_sentence_and_no_predictions() -> None:
    problem = ProblemError(HTTPStatus.BAD_REQUEST, "image 1 of 1: not an image")
    # Frigate takes a missing `predictions` for an error, and an empty one for an empty picture.
    assert deepstack.failure(problem) == {
        "success": False,
        "error": "image 1 of 1: not an image",
        "code": 400,
    }


def test_probe_of_blue_iris_says_that_there_is_no_update() -> None:
    answer = deepstack.update_available()
    assert answer["success"] is True
    assert answer["updateAvailable"] is False
    assert answer["current"] == answer["latest"]
    assert all(isinstance(answer["current"][part], int) for part in ("major", "minor", "patch"))
