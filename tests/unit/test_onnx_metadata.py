"""Class names and stride in the metadata of an ONNX file."""

from __future__ import annotations

import pytest

from yolov5_build import BuildError
from yolov5_build._onnx_metadata import class_names, largest_stride
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
