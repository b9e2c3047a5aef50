"""Class names and stride in the metadata of an ONNX file."""

from __future__ import annotations

import pytest

from yolov5_build import BuildError
from yolov5_build._onnx_metadata import (
    check_task,
    chooses_boxes,
    class_count,
    class_names,
    exported_size,
    largest_stride,
)
from yolov5_build._onnx_rows import Layout

LAYOUT = Layout(anchors=3, strides=(8, 16, 32))
NO_NAMES = "them.onnx has no class names in it; give them with --names FILE, one a line."


@pytest.mark.parametrize(
    "text, names",
    [
        ("['a', 'b']", ["a", "b"]),
        ('["a", "b"]', ["a", "b"]),
        ("('a', 'b')", ["a", "b"]),
        ("{0: 'a', 1: 'b'}", ["a", "b"]),
        ('{"1": "b", "0": "a"}', ["a", "b"]),
        ('["a", null]', ["a", "class1"]),
        ("[1.5, True]", ["1.5", "True"]),
        (r'["\ud83d\ude00", "b"]', ["\U0001f600", "b"]),  # Python would read two characters
    ],
)
def test_names_in_the_syntax_of_python_or_json(text: str, names: list[str]) -> None:
    assert class_names("them.onnx", None, text, 2) == names


@pytest.mark.parametrize(
    "text", [None, "", "7", '"ab"', "['a', ['b']]", "[b'a', 'b']", "{'a': 0, 'b': 1}", "{None: 1}"]
)
def test_text_without_names_is_refused(text: str | None) -> None:
    with pytest.raises(BuildError) as caught:
        class_names("them.onnx", None, text, 2)
    assert str(caught.value) == NO_NAMES


@pytest.mark.parametrize("text", ["{0: 'a', 2: 'c'}", "{1: 'a', 2: 'b'}", "{0: 'a', '0': 'b'}"])
def test_gaps_in_the_numbers_of_classes_are_refused(text: str) -> None:
    with pytest.raises(BuildError) as caught:
        class_names("them.onnx", None, text, 2)
    assert str(caught.value) == (
        "them.onnx has class names that are not numbered from 0 without a gap;"
        " give them with --names FILE, one a line."
    )


@pytest.mark.parametrize(
    "given, text, sentence",
    [
        (["a"], None, "them.onnx has 2 classes but 1 class names."),
        ([], "['a', 'b']", "them.onnx has 2 classes but 0 class names."),
        (
            None,
            "['a', 'b', 'c']",
            "them.onnx has 2 classes but 3 class names; give them with --names FILE, one a line.",
        ),
    ],
)
def test_other_number_of_names_is_refused(
    given: list[str] | None, text: str | None, sentence: str
) -> None:
    with pytest.raises(BuildError) as caught:
        class_names("them.onnx", given, text, 2)
    assert str(caught.value) == sentence


def test_given_names_replace_those_of_the_file() -> None:
    assert class_names("them.onnx", ["x", " "], "['a', 'b']", 2) == ["x", "class1"]


def test_text_of_names_is_read_up_to_a_limit() -> None:
    longest = '["a", "b"' + " " * ((1 << 18) - 10) + "]"
    assert len(longest) == 262_144
    assert class_names("them.onnx", None, longest, 2) == ["a", "b"]
    with pytest.raises(BuildError) as caught:
        class_names("them.onnx", None, " " + longest, 2)
    assert str(caught.value) == NO_NAMES


@pytest.mark.parametrize(
    "text, height, width, stride",
    [
        ("64", 640, 1280, 64),
        ("32", 640, 640, 32),
        ("128", 640, 640, 128),
        # Impossible ones: the layout's largest stride counts.
        (None, 640, 640, 32),
        ("", 640, 640, 32),
        ("thirty-two", 640, 640, 32),
        ("0", 640, 640, 32),
        ("16", 640, 640, 32),
        ("64", 672, 640, 32),
        ("64", 640, 672, 32),
        ("64", 672, 672, 32),
        ("129", 4128, 4128, 32),
        ("256", 512, 512, 32),
    ],
)
def test_largest_stride_is_that_of_the_metadata_if_possible(
    text: str | None, height: int, width: int, stride: int
) -> None:
    assert largest_stride(text, LAYOUT, height, width) == stride


def test_largest_stride_without_a_layout_is_the_usual_one_if_possible() -> None:
    assert largest_stride(None, None, 640, 320) == 32
    assert largest_stride("16", None, 640, 320) == 16
    assert largest_stride("64", None, 640, 320) == 64
    assert largest_stride("64", None, 640, 352) == 32
    assert largest_stride(None, None, 640, 336) == 16
    assert largest_stride("", None, 100, 640) == 4


# ---------------------------------------------------------------------------------------------
# What the `ultralytics` package writes


@pytest.mark.parametrize("task", ["segment", "pose", "obb", "classify", " OBB "])
def test_networks_for_other_tasks_are_refused(task: str) -> None:
    with pytest.raises(BuildError) as caught:
        check_task("them.onnx", {"task": task})
    name = {"segment": "segmentation", "pose": "poses", "classify": "classification"}
    task = task.strip().lower()
    assert str(caught.value) == (
        f"them.onnx is a network for {name.get(task, 'oriented boxes')} (task '{task}');"
        " only detection networks are supported."
    )


@pytest.mark.parametrize("metadata", [{}, {"task": "detect"}, {"task": ""}, {"task": "other"}])
def test_networks_for_detection_or_an_unknown_task_are_tried(metadata: dict[str, str]) -> None:
    check_task("them.onnx", metadata)


@pytest.mark.parametrize(
    "metadata, chooses",
    [
        ({}, False),
        ({"end2end": "True"}, True),
        ({"end2end": "true"}, True),
        ({"end2end": "False"}, False),
        ({"end2end": "1"}, False),
        ({"args": "{'batch': 1, 'nms': True}"}, True),
        ({"args": '{"nms": true}'}, True),
        ({"args": "{'nms': None}"}, False),
        ({"args": "{'batch': 1}"}, False),
        ({"args": "[True]"}, False),
        ({"args": "dict(nms=True)"}, False),
        ({"args": "{'nms': True}", "end2end": "False"}, True),
    ],
)
def test_metadata_say_whether_a_network_chooses_its_boxes(
    metadata: dict[str, str], chooses: bool
) -> None:
    assert chooses_boxes(metadata) is chooses


@pytest.mark.parametrize(
    "text, size",
    [
        ("[320, 640]", (320, 640)),
        ("(320, 640)", (320, 640)),
        ("[640]", (640, 640)),
        ("640", (640, 640)),
        (None, None),
        ("", None),
        ("[]", None),
        ("[320, 640, 3]", None),
        ("[320, 641]", None),
        ("[0, 640]", None),
        ("[-320, 640]", None),
        ("[320.0, 640]", None),
        ("True", None),
        ("{320: 640}", None),
        ("320x640", None),
    ],
)
def test_size_in_the_metadata(text: str | None, size: tuple[int, int] | None) -> None:
    assert exported_size(text, 32) == size


@pytest.mark.parametrize(
    "text", ["[" * 5000, "9" * 5000, "-" * 300_000, "__import__('os').abort()"]
)
def test_text_that_is_no_value_is_not_evaluated(text: str) -> None:
    assert not chooses_boxes({"args": text, "end2end": text})
    assert exported_size(text, 32) is None
    assert class_count(text) is None


def test_class_count_is_that_of_the_metadata() -> None:
    assert class_count("{0: 'a', 1: 'b'}") == 2
    assert class_count("['a']") == 1
    for text in (None, "", "[]", "{}", "{1: 'a'}"):
        assert class_count(text) is None


def test_number_of_classes_may_be_that_of_the_metadata() -> None:
    assert class_names("them.onnx", None, "['a', 'b']", None) == ["a", "b"]
    assert class_names("them.onnx", ["x", "y"], "['a', 'b']", None) == ["x", "y"]
    assert class_names("them.onnx", ["x"], None, None) == ["x"]
    with pytest.raises(BuildError, match="^them.onnx has 2 classes but 1 class names.$"):
        class_names("them.onnx", ["x"], "['a', 'b']", None)
    with pytest.raises(BuildError, match="has no class names in it"):
        class_names("them.onnx", None, None, None)
