"""Data sets, mAP, and the loss by INT8: `make model ... --data`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from checkpoints import read_small
from support import BUNDLED, PHOTOS, SHARED, labelled_photos

from yolov5_build import BuildError, Checkpoint, cli, export_onnx, import_onnx
from yolov5_build._evaluate import Measurement, evaluate
from yolov5_build._quantise import quantise
from yolov5_build.cli import _replaces
from yolov5_build.cli import main as build
from yolov5_build.metadata import read_metadata
from yolov5_client import DataError
from yolov5_client.evaluation import Split, read_names, read_split

FEW = 3  # photos that suffice to see whether figures rise or fall


@pytest.fixture(scope="module")
def network(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("network") / "model.onnx"
    export_onnx(checkpoint, path)
    return path


@pytest.fixture(scope="module")
def dynamic_network(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("network") / "model.onnx"
    export_onnx(checkpoint, path, imgsz=320, dynamic=True)
    return path


@pytest.fixture(scope="module")
def small_network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network without training, for tests in which any network will do."""
    path = tmp_path_factory.mktemp("network") / "model.onnx"
    export_onnx(read_small(), path, imgsz=64)
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return labelled_photos(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def square_figures(dynamic_network: Path, data: Path) -> Measurement:
    """With letterbox square at 640x640, as the labels were made."""
    return evaluate(dynamic_network, read_split(data, "val"))


def few(split: Split) -> Split:
    return Split(photos=split.photos[:FEW], labels=split.labels[:FEW])


def test_split_names_photos_and_labels(data: Path) -> None:
    split = read_split(data, "val", "test")
    assert [photo.name for photo in split.photos] == sorted(p.name for p in PHOTOS.iterdir())
    assert sum(len(labels) for labels in split.labels) == 130
    assert split.labels[0].shape[1] == 5


def test_list_of_photos_may_lack_labels(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.png"):
        (tmp_path / name).touch()
    (tmp_path / "list.txt").write_text("a.jpg\n\nb.png\n")
    (tmp_path / "data.yaml").write_text("val: [list.txt]\n")
    split = read_split(tmp_path / "data.yaml", "val")
    assert [photo.name for photo in split.photos] == ["a.jpg", "b.png"]
    assert [labels.shape for labels in split.labels] == [(0, 5), (0, 5)]


@pytest.mark.parametrize(
    "text, sentence",
    [
        ("train: images\n", "data.yaml names no photos under val or test"),
        ("val: nowhere\n", "data.yaml names 'nowhere', which is not there"),
        ("val: 5\n", "data.yaml names no photos"),
        ("- a\n", "data.yaml is not a data-set YAML"),
        ("val: [\n", "data.yaml is not a data-set YAML"),
        ("val: .\n", "data.yaml names '.', which holds no pictures"),
    ],
)
def test_invalid_data_sets_are_refused(tmp_path: Path, text: str, sentence: str) -> None:
    (tmp_path / "data.yaml").write_text(text)
    with pytest.raises(DataError, match=sentence):
        read_split(tmp_path / "data.yaml", "val", "test")


def test_invalid_labels_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").touch()
    (tmp_path / "a.txt").write_text("0 0.5 0.5\n")
    (tmp_path / "data.yaml").write_text("val: .\n")
    with pytest.raises(DataError, match="a.txt is not a file of labels; allowed: class, x, y"):
        read_split(tmp_path / "data.yaml", "val")


def test_class_names_are_read_from_yaml(tmp_path: Path) -> None:
    names, yaml = tmp_path / "names.txt", tmp_path / "data.yaml"
    names.write_text("cat\n fire truck \n")
    assert read_names(names) == ("cat", "fire truck")
    yaml.write_text("names: [cat, dog]\n")
    assert read_names(yaml) == ("cat", "dog")
    yaml.write_text("names: {1: dog, 0: cat}\n")
    assert read_names(yaml) == ("cat", "dog")
    for path, text in ((names, ""), (names, "cat\n\ndog"), (yaml, "names: []")):
        path.write_text(text)
        with pytest.raises(DataError, match="has no class names; allowed: one a line"):
            read_names(path)
    yaml.write_text("names: {0: cat, 2: dog}")
    with pytest.raises(DataError, match="has no class name for 1; allowed: one for each index"):
        read_names(yaml)
    with pytest.raises(DataError, match="none.txt cannot be read: No such file"):
        read_names(tmp_path / "none.txt")


def test_network_finds_all_labels_made_from_its_own_detections(
    dynamic_network: Path, data: Path, square_figures: Measurement
) -> None:
    split = read_split(data, "val")
    assert square_figures.map50 > 0.99
    assert square_figures.map50_95 > 0.99
    assert square_figures.bytes == dynamic_network.stat().st_size
    # Boxes of about half the width still overlap by half, but do not count at a higher IoU.
    narrow = [labels * [1, 1, 1, 0.55, 1] for labels in split.labels]
    figures = evaluate(dynamic_network, few(Split(photos=split.photos, labels=narrow)))
    assert figures.map50 > 0.9
    assert figures.map50_95 < 0.3


def test_measurement_uses_the_served_letterbox(
    dynamic_network: Path, data: Path, square_figures: Measurement, tmp_path: Path
) -> None:
    split = read_split(data, "val")
    rect = evaluate(dynamic_network, split, letterbox="rect")
    small = evaluate(dynamic_network, split, imgsz=(320, 320))
    assert square_figures.map50 > 0.99
    assert 0.8 < rect.map50 < square_figures.map50  # the labels come from letterbox square
    assert small.map50 < rect.map50
    with pytest.raises(BuildError, match="INT8 needs a fixed input size"):
        quantise(dynamic_network, tmp_path / "int8.onnx", split.photos)


def test_labels_of_other_classes_are_refused(small_network: Path, data: Path) -> None:
    split = few(read_split(data, "val"))
    none = Split(photos=split.photos, labels=[np.zeros((0, 5))] * len(split.photos))
    with pytest.raises(DataError, match="no labels to measure with"):
        evaluate(small_network, none)
    other = [np.add(labels, [3, 0, 0, 0, 0]) for labels in split.labels]
    with pytest.raises(DataError, match="labels beyond the network's 3 classes"):
        evaluate(small_network, Split(photos=split.photos, labels=other))


@pytest.mark.slow  # `tests/server/test_eval.py` compares the same figures through the server
@pytest.mark.skipif(not SHARED.exists(), reason="the labelled test split is not available")
def test_measurement_matches_the_reference(network: Path, tmp_path: Path) -> None:
    yaml = tmp_path / "data.yaml"
    yaml.write_text(f"path: {SHARED / 'bccd'}\nval: images/test\n")
    figures = evaluate(network, read_split(yaml, "val"))
    print(figures)
    assert figures.map50 == pytest.approx(0.8609, abs=0.002)
    assert figures.map50_95 == pytest.approx(0.5422, abs=0.002)


TARGETS = {"cpu": "int8", "tensorrt": "int8-symmetric"}


def assert_quantised(target: Path, device: str, *, more_than: int) -> None:
    """But for the last three convolutions, and as the device needs it."""
    metadata = read_metadata(target)
    assert metadata.precision == TARGETS[device]
    assert metadata.names == ("Platelets", "RBC", "WBC")
    graph = onnx.load(target).graph
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    zeros = [constants[n.input[2]] for n in graph.node if n.op_type == "QuantizeLinear"]
    assert len(zeros) > more_than
    # TensorRT supports only signed numbers around zero.
    assert all(zero.dtype == np.int8 and not zero.any() for zero in zeros) == (device == "tensorrt")
    # The last convolutions are unchanged.
    quantised = {out for n in graph.node if n.op_type == "DequantizeLinear" for out in n.output}
    plain = [n for n in graph.node if n.op_type == "Conv" and n.input[1] not in quantised]
    assert len(plain) == 3


# For TensorRT, the next test looks at the same in a small network.
@pytest.mark.parametrize("device", ["cpu", pytest.param("tensorrt", marks=pytest.mark.slow)])
def test_int8_finds_nearly_the_same(network: Path, data: Path, tmp_path: Path, device: str) -> None:
    target = tmp_path / "int8.onnx"
    quantise(network, target, read_split(data, "train").photos[:FEW], device=device)
    assert target.stat().st_size < 0.4 * network.stat().st_size
    assert_quantised(target, device, more_than=100)
    assert evaluate(target, few(read_split(data, "val"))).map50 > 0.9


@pytest.mark.parametrize("device", TARGETS)
def test_int8_network_without_metadata_shows_its_precision(
    small_network: Path, data: Path, tmp_path: Path, device: str
) -> None:
    target, again = tmp_path / "int8.onnx", tmp_path / "again.onnx"
    quantise(small_network, target, read_split(data, "train").photos[:FEW], device=device)
    assert_quantised(target, device, more_than=10)
    names = read_metadata(target).names
    import_onnx(target, again, names=names)  # which reads no precision from metadata
    assert read_metadata(again).precision == TARGETS[device]


@pytest.mark.parametrize(
    "allowed, flags, installs",
    [(0.005, [], True), (-0.005, [], False), (-0.005, ["--accept-loss"], True)],
)
def test_command_refuses_int8_that_loses_too_much(
    small_weights: Path,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    allowed: float,
    flags: list[str],
    installs: bool,
) -> None:
    """A network without training finds next to nothing, and loses next to nothing."""
    monkeypatch.setattr(cli, "ALLOWED_MAP_LOSS", allowed)
    arguments = [str(small_weights), f"--repository={tmp_path}", f"--data={data}", "--imgsz=64"]
    assert build([*arguments, "--int8", *flags]) == (not installs)
    shown = capsys.readouterr()
    before, after = shown.out.splitlines()[:2]
    assert before.startswith("fp32: mAP50 0.")
    assert after.startswith("int8: mAP50 0.")
    figures = [float(line.split("mAP50-95 ")[1].split(",")[0]) for line in (before, after)]
    assert abs(figures[0] - figures[1]) < 0.004
    assert ("of mAP50-95, more than -0.005, so it was not" in shown.err) == (not installs)
    assert ("--accept-loss installs it anyway" in shown.err) == (not installs)
    assert (tmp_path / "yolov5" / "config.pbtxt").exists() == installs


@pytest.mark.slow  # the test above decides in the same way with a small network
def test_command_measures_the_loss_of_a_trained_network(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(BUNDLED), f"--repository={tmp_path}", f"--data={data}", "--imgsz=160"]
    status = build([*arguments, "--int8"])
    shown = capsys.readouterr()
    before, after = shown.out.splitlines()[:2]
    assert before.startswith("fp32: mAP50 0.")
    assert after.startswith("int8: mAP50 0.")
    figures = [float(line.split("mAP50-95 ")[1].split(",")[0]) for line in (before, after)]
    lost = figures[0] - figures[1] > 0.005
    assert status == lost
    assert ("--accept-loss installs it anyway" in shown.err) == lost
    assert (tmp_path / "yolov5").exists() != lost
    assert build([*arguments, "--int8", "--accept-loss"]) == 0
    assert (tmp_path / "yolov5" / "config.pbtxt").exists()


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["--int8"], "--int8 needs --data data.yaml: photos to calibrate with, and labels"),
        (["--half", "--int8"], "--half and --int8 exclude each other."),
        (["--imgsz", "1", "2", "3"], "--imgsz takes height and width, or one number for both."),
        (["--data=none.yaml"], "none.yaml cannot be read: No such file or directory."),
    ],
)
def test_incompatible_flags_are_refused(
    tmp_path: Path, arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert build([str(BUNDLED), *arguments, f"--repository={tmp_path}"]) == 1
    assert capsys.readouterr().err.startswith(f"error: {sentence}")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "map50_95, milliseconds, replaces",
    [(0.4951, 9, True), (0.4949, 9, False), (0.6, 10, False), (0.6, 11, False)],
)
def test_bf16_is_served_if_it_keeps_the_map_and_is_faster(
    map50_95: float, milliseconds: float, replaces: bool
) -> None:
    before = Measurement(map50=0.8, map50_95=0.5, milliseconds=10, bytes=1)
    after = Measurement(map50=0.8, map50_95=map50_95, milliseconds=milliseconds, bytes=1)
    assert _replaces(after, before) is replaces
