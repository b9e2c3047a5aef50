from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from decode import ImageLimits
from network_spec import NetworkSpec, NetworkSpecError, network_folder, read_network_spec
from parameters import ParameterError
from settings import SettingsError, read_settings

from yolov5_build import install_onnx

NAMES = ("Platelets", "RBC", "WBC")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A network's folder where a test may spoil it."""
    return write(tmp_path, height=480, width=640)


def write(place: Path, *, letterbox: str = "square", head: str = "full", **size: int) -> Path:
    """What `make model` writes, without the weights."""
    model = onnx.helper.make_model(
        onnx.helper.make_graph(
            [],
            "g",
            [tensor("images", ["batch", 3, size.get("height"), size.get("width")])],
            [tensor("output0", ["batch", 18900 if size else None, 6 if head == "reduced" else 8])],
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


def test_what_it_says(folder: Path) -> None:
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


def test_a_network_of_open_size_with_a_reduced_head(tmp_path: Path) -> None:
    folder = write(tmp_path, letterbox="rect", head="reduced")
    spec = read_network_spec(folder)
    assert spec == NetworkSpec(
        height=480, width=640, letterbox="rect", stride=32, best_class_only=True, class_names=NAMES
    )
    assert spec.columns == 6


@pytest.mark.parametrize(
    "old, new, sentence",
    [
        (
            "18900, 8",
            "18900, 9",
            "output 'output0' has dims [18900, 9], but the last one must be 8, as its head is full"
            " and labels.txt has 3 names",
        ),
        ("3, 480, 640 ] }\n]", "480, 640, 3 ] }\n]", "allowed with letterbox square: [3, H, W]"),
        ("3, 480, 640 ] }\n]", "3, -1, -1 ] }\n]", "input 'images' has dims [3, -1, -1]"),
        ("TYPE_FP32 dims: [ 3", "TYPE_FP16 dims: [ 3", "input 'images' must be TYPE_FP32"),
        ("TYPE_FP32 dims: [ 18", "TYPE_FP16 dims: [ 18", "output 'output0' must be TYPE_FP32"),
        ('"square"', '"rect"', "allowed with letterbox rect: [3, -1, -1]"),
        ('"square"', '"round"', "letterbox is 'round'; allowed: square, rect, stretch"),
        ('"full"', '"half"', "head is 'half'; allowed: full, reduced"),
        ("max_batch_size", "max_bach_size", "yolov5/config.pbtxt is not valid"),
    ],
)
def test_contradictions(folder: Path, old: str, new: str, sentence: str) -> None:
    assert sentence in spoilt(folder, old, new)


@pytest.mark.parametrize(
    "old, new, sentence",
    [
        ('"480 640"', '"480"', "imgsz is '480'; allowed with letterbox rect: 2 whole numbers"),
        ('"480 640"', '"470 640"', "imgsz is '470 640'; allowed: multiples of the stride, 32"),
        ('"32"', '"0"', "stride is '0'; allowed with letterbox rect: 1 whole number from 1"),
    ],
)
def test_contradictions_of_an_open_size(tmp_path: Path, old: str, new: str, sentence: str) -> None:
    assert sentence in spoilt(write(tmp_path, letterbox="rect"), old, new)


def spoilt(folder: Path, old: str, new: str) -> str:
    config = folder / "config.pbtxt"
    assert old in config.read_text()
    config.write_text(config.read_text().replace(old, new))
    with pytest.raises(NetworkSpecError) as caught:
        read_network_spec(folder)
    return str(caught.value)


@pytest.mark.parametrize("file", ["config.pbtxt", "labels.txt"])
def test_a_missing_file_is_named(folder: Path, file: str) -> None:
    (folder / file).unlink()
    with pytest.raises(NetworkSpecError, match=f"yolov5/{file} cannot be read"):
        read_network_spec(folder)


SETTINGS = {
    "conf_thres": "0.25",
    "iou_thres": "0.45",
    "max_det": "300",
    "agnostic_nms": "false",
    "multi_label": "false",
    "max_image_bytes": "1000",
    "max_image_pixels": "2000",
    "threads": "3",
    "max_queued_images": "7",
    "max_queue_seconds": "9",
    "max_in_flight_images": "5",
    "scaled_decoding": "true",
}


def test_settings() -> None:
    settings = read_settings({**SETTINGS, "conf_thres": "0.3", "classes": "bus"}, ("car", "bus"))
    assert settings.limits == ImageLimits(bytes=1000, pixels=2000)
    assert settings.threads == 3
    assert settings.max_queued_images == 7
    assert settings.max_queue_seconds == 9
    assert settings.max_in_flight_images == 5
    assert settings.scaled_decoding is True
    assert settings.defaults.conf_thres == 0.3
    assert settings.defaults.classes == {1}
    assert settings.defaults.iou_thres == 0.45
    automatic = read_settings({**SETTINGS, "threads": "0", "max_in_flight_images": "0"}, ("car",))
    assert automatic.threads >= 1
    assert automatic.max_in_flight_images == 2 * automatic.threads + 2


def test_the_network_must_be_named() -> None:
    step = Path("/models/preprocess")
    assert network_folder(step, {"network": "plates"}) == Path("/models/plates")
    with pytest.raises(NetworkSpecError, match="setting 'network' is missing"):
        network_folder(step, SETTINGS)


def test_multi_label_cannot_be_the_default_of_a_reduced_head() -> None:
    given = {**SETTINGS, "multi_label": "true"}
    assert read_settings(given, ("car",)).defaults.multi_label
    with pytest.raises(ParameterError, match="only the best class of each box"):
        read_settings(given, ("car",), best_class_only=True)


def test_a_default_that_is_missing() -> None:
    given = {name: value for name, value in SETTINGS.items() if name != "iou_thres"}
    with pytest.raises(ParameterError, match="iou_thres has no default"):
        read_settings(given, ("car",))


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"max_image_bytes": "0"}, "setting 'max_image_bytes' is '0'; allowed: a whole number"),
        ({"max_image_pixels": "1e6"}, "setting 'max_image_pixels' is '1e6'"),
        ({"threads": "-1"}, "setting 'threads' is '-1'"),
        ({"max_queued_images": "0"}, "setting 'max_queued_images' is '0'"),
        ({"max_queue_seconds": "0.5"}, "setting 'max_queue_seconds' is '0.5'"),
        ({"scaled_decoding": "yes"}, "setting 'scaled_decoding' is 'yes'; allowed: true, false"),
        ({"conf_threshold": "0.5"}, "setting 'conf_threshold' is unknown"),
        ({"max_det": "0"}, "max_det is '0'; allowed: a whole number from 1 to 1000"),
    ],
)
def test_settings_out_of_range(change: dict[str, str], sentence: str) -> None:
    with pytest.raises((SettingsError, ParameterError)) as caught:
        read_settings({**SETTINGS, **change}, ("car",))
    assert sentence in str(caught.value)
