from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import onnx
import pytest
from network_spec import NetworkSpec, NetworkSpecError, read_network_spec

from yolov5_build import install_onnx

NAMES = ("Platelets", "RBC", "WBC")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of a network, for a test to change."""
    return write(tmp_path, height=480, width=640)


def write(place: Path, *, letterbox: str = "square", head: str = "full", **size: int) -> Path:
    """Write what `make model` does, with empty weights; return the network's folder."""
    model = onnx.helper.make_model(
        onnx.helper.make_graph(
            [],
            "g",
            [tensor("images", ["batch", 3, size.get("height"), size.get("width")])],
            [tensor("output0", ["batch", 18900 if size else None, 8 if head == "full" else 6])],
        )
    )
    metadata = {
        "names": str(dict(enumerate(NAMES))),
        "stride": "32",
        "head": head,
        "precision": "fp32",
        "provenance": "From a test.",
    }
    onnx.helper.set_model_props(model, metadata)
    onnx.save(model, place / "made.onnx")
    repository = place / "repository"
    repository.mkdir()
    install_onnx(place / "made.onnx", repository, letterbox=letterbox, imgsz=(480, 640))
    return repository / "yolov5"


def tensor(name: str, shape: list[str | int | None]) -> onnx.ValueInfoProto:
    return onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)


def test_spec_of_a_fixed_size(folder: Path) -> None:
    spec = read_network_spec(folder)
    assert spec == NetworkSpec(
        height=480,
        width=640,
        letterbox="square",
        stride=1,
        best_class_only=False,
        class_names=NAMES,
    )
    assert spec.columns == 8


def test_spec_of_an_open_size_with_a_reduced_head(tmp_path: Path) -> None:
    folder = write(tmp_path, letterbox="rect", head="reduced")
    spec = read_network_spec(folder)
    assert spec == NetworkSpec(
        height=480, width=640, letterbox="rect", stride=32, best_class_only=True, class_names=NAMES
    )
    assert spec.columns == 6


def test_spec_of_a_network_that_chooses_its_boxes_itself(tmp_path: Path) -> None:
    spec = read_network_spec(write(tmp_path, head="end2end", height=480, width=640))
    assert (spec.end_to_end, spec.best_class_only, spec.columns) == (True, True, 6)
    reduced = NetworkSpec(
        height=480, width=640, letterbox="square", stride=1, best_class_only=True, class_names=NAMES
    )
    assert spec == replace(reduced, end_to_end=True) != reduced


def test_padding_is_exact_unless_the_configuration_says_otherwise(tmp_path: Path) -> None:
    folder = write(tmp_path, height=480, width=640)
    exact = read_network_spec(folder)
    config = folder / "config.pbtxt"
    line = 'parameters { key: "padding" value: { string_value: "%s" } }\n'
    original = config.read_text()
    config.write_text(original + line % "exact")
    assert read_network_spec(folder) == exact
    config.write_text(original + line % "whole")
    assert read_network_spec(folder) == replace(exact, whole_padding=True) != exact
    config.write_text(original + line % "half")
    with pytest.raises(NetworkSpecError, match="padding is 'half'; allowed: exact, whole"):
        read_network_spec(folder)


@pytest.mark.parametrize(
    "old, new, sentence",
    [
        (
            "-1, 8",
            "-1, 9",
            "output 'output0' has dims [-1, 9], but the last one must be 8, as its head is full"
            " and labels.txt has 3 names",
        ),
        ("3, 480, 640 ] },", "480, 640, 3 ] },", "allowed with letterbox square: [3, H, W]"),
        ("3, 480, 640 ] },", "3, -1, -1 ] },", "input 'pixels' has dims [3, -1, -1]"),
        ("TYPE_UINT8 dims: [ 3", "TYPE_FP32 dims: [ 3", "input 'pixels' must be TYPE_UINT8"),
        ("TYPE_FP32 dims: [ 5", "TYPE_FP64 dims: [ 5", "input 'nms' must be TYPE_FP32"),
        ("TYPE_FP32 dims: [ -1", "TYPE_FP16 dims: [ -1", "output 'output0' must be TYPE_FP32"),
        ("3, 480, 640 ] },", "1, 480, 640 ] },", "input 'pixels' has dims [1, 480, 640]"),
        ("3, 480, 640 ] },", "3, 480, 0 ] },", "input 'pixels' has dims [3, 480, 0]"),
        ("3, 480, 640 ] },", "3, 480 ] },", "input 'pixels' has dims [3, 480]"),
        ("3, 480, 640 ] },", "3, 480, 640, 1 ] },", "dims [3, 480, 640, 1]"),
        ("[ -1, 8 ]", "[ 8 ]", "output 'output0' has dims [8]"),
        ("[ -1, 8 ]", "[ 1, 8, 8 ]", "output 'output0' has dims [1, 8, 8]"),
        (
            "input [",
            "input [ { name: 'x' data_type: TYPE_FP32 },",
            "pixels and nms, and one output",
        ),
        (
            "output [",
            "output [ { name: 'x' data_type: TYPE_FP32 },",
            "pixels and nms, and one output",
        ),
        ('"square"', '"rect"', "allowed with letterbox rect: [3, -1, -1]"),
        ('"square"', '"round"', "letterbox is 'round'; allowed: square, rect, stretch"),
        ('"full"', '"half"', "head is 'half'; allowed: full, reduced, end2end"),
        ("max_batch_size", "max_bach_size", "yolov5/config.pbtxt is not valid"),
    ],
)
def test_contradictory_files_are_refused(folder: Path, old: str, new: str, sentence: str) -> None:
    assert sentence in spoilt(folder, old, new)


@pytest.mark.parametrize(
    "old, new, sentence",
    [
        ('"480 640"', '"480"', "imgsz is '480'; allowed with letterbox rect: 2 whole numbers"),
        ('"480 640"', '"470 640"', "imgsz is '470 640'; allowed: multiples of the stride, 32"),
        ('"480 640"', '"480 630"', "imgsz is '480 630'; allowed: multiples of the stride, 32"),
        ('"480 640"', '"480 8193"', "imgsz is '480 8193'; allowed with letterbox rect: 2 whole"),
        ('"480 640"', '"480 0"', "imgsz is '480 0'; allowed with letterbox rect: 2 whole"),
        ('"480 640"', '"480 640 640"', "imgsz is '480 640 640'; allowed with letterbox rect: 2"),
        ('"480 640"', '"480 64.0"', "imgsz is '480 64.0'; allowed with letterbox rect: 2 whole"),
        ('"32"', '"32 32"', "stride is '32 32'; allowed with letterbox rect: 1 whole number from"),
        ('"32"', '""', "stride is ''; allowed with letterbox rect: 1 whole number from 1"),
        ('"32"', '"0"', "stride is '0'; allowed with letterbox rect: 1 whole number from 1"),
    ],
)
def test_contradictory_files_of_an_open_size_are_refused(
    tmp_path: Path, old: str, new: str, sentence: str
) -> None:
    assert sentence in spoilt(write(tmp_path, letterbox="rect"), old, new)


def changed(folder: Path, old: str, new: str) -> NetworkSpec:
    config = folder / "config.pbtxt"
    assert old in config.read_text()
    config.write_text(config.read_text().replace(old, new))
    return read_network_spec(folder)


def test_smallest_and_largest_sizes_are_accepted(folder: Path, tmp_path: Path) -> None:
    spec = changed(folder, "3, 480, 640 ] },", "3, 1, 1 ] },")
    assert (spec.height, spec.width) == (1, 1)
    (tmp_path / "open").mkdir()
    other = write(tmp_path / "open", letterbox="rect")
    spec = changed(other, '"480 640"', '"32 8192"')
    assert (spec.height, spec.width, spec.stride) == (32, 8192, 32)
    assert changed(other, '"32"', '"1"').stride == 1


def test_letterbox_and_head_have_defaults(folder: Path) -> None:
    changed(folder, '"square"', '""')
    spec = changed(folder, '"full"', '""')
    assert (spec.letterbox, spec.best_class_only) == ("square", False)
    assert (
        changed(
            folder,
            'key: "letterbox" value: { string_value: ""',
            'key: "letterbox" value: { string_value: "stretch"',
        ).letterbox
        == "stretch"
    )


def spoilt(folder: Path, old: str, new: str) -> str:
    config = folder / "config.pbtxt"
    assert old in config.read_text()
    config.write_text(config.read_text().replace(old, new))
    with pytest.raises(NetworkSpecError) as caught:
        read_network_spec(folder)
    return str(caught.value)


@pytest.mark.parametrize("file", ["config.pbtxt", "labels.txt"])
def test_missing_file_is_named(folder: Path, file: str) -> None:
    (folder / file).unlink()
    with pytest.raises(NetworkSpecError, match=f"yolov5/{file} cannot be read"):
        read_network_spec(folder)


@pytest.mark.parametrize("file", ["config.pbtxt", "labels.txt"])
def test_file_that_is_no_text_is_named(folder: Path, file: str) -> None:
    (folder / file).write_bytes(b"RBC\n\xff\xfe\n")
    sentence = f"yolov5/{file} cannot be read: byte 4 is no text; allowed: UTF-8"
    with pytest.raises(NetworkSpecError, match=sentence):
        read_network_spec(folder)
