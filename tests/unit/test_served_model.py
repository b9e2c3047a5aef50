from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from decode import ImageLimits
from parameters import ParameterError
from served_labels import read_labels
from served_model import ServedModel, ServedModelError, read_served_model
from settings import SettingsError, read_settings
from support import REPOSITORY


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """The committed configuration of the bundled network, where a test may spoil it."""
    (tmp_path / "yolov5").mkdir()
    template = REPOSITORY.parent / "build" / "yolov5_build" / "config.pbtxt"
    text = template.read_text()
    for name, value in {
        "height": "480",
        "width": "640",
        "rows": "18900",
        "columns": "8",
        "letterbox": "square",
    }.items():
        text = text.replace(f"${name}", value)
    (tmp_path / "yolov5" / "config.pbtxt").write_text(text)
    (tmp_path / "yolov5" / "labels.txt").write_text("Platelets\nRBC\nWBC\n")
    return tmp_path


def test_what_it_says(repository: Path) -> None:
    names = ("Platelets", "RBC", "WBC")
    assert read_served_model(repository) == ServedModel(
        height=480, width=640, letterbox="square", names=names
    )
    assert read_labels(repository) == names


@pytest.mark.parametrize(
    "old, new, sentence",
    [
        (
            "18900, 8",
            "18900, 9",
            "output 'output0' has dims [18900, 9], but labels.txt has 3 names",
        ),
        ("3, 480, 640", "480, 640, 3", "allowed: [3, H, W]"),
        ("3, 480, 640", "3, -1, -1", "input 'images' has dims [3, -1, -1]"),
        ("TYPE_FP32 dims: [ 3", "TYPE_FP16 dims: [ 3", "input 'images' must be TYPE_FP32"),
        ('"square"', '"rect"', "letterbox is 'rect'; allowed: square, stretch"),
        ("max_batch_size", "max_bach_size", "yolov5/config.pbtxt is not valid"),
    ],
)
def test_contradictions(repository: Path, old: str, new: str, sentence: str) -> None:
    config = repository / "yolov5" / "config.pbtxt"
    assert old in config.read_text()
    config.write_text(config.read_text().replace(old, new))
    with pytest.raises(ServedModelError) as caught:
        read_served_model(repository)
    assert sentence in str(caught.value)


@pytest.mark.parametrize("file", ["config.pbtxt", "labels.txt"])
def test_a_missing_file_is_named(repository: Path, file: str) -> None:
    (repository / "yolov5" / file).unlink()
    with pytest.raises(ServedModelError, match=f"yolov5/{file} cannot be read"):
        read_served_model(repository)
    shutil.rmtree(repository / "yolov5")


SETTINGS = {
    "conf_thres": "0.25",
    "iou_thres": "0.45",
    "max_det": "300",
    "agnostic_nms": "false",
    "multi_label": "false",
    "max_image_bytes": "1000",
    "max_image_pixels": "2000",
    "threads": "3",
}


def test_settings() -> None:
    settings = read_settings({**SETTINGS, "conf_thres": "0.3", "classes": "bus"}, ("car", "bus"))
    assert settings.limits == ImageLimits(bytes=1000, pixels=2000)
    assert settings.threads == 3
    assert settings.defaults.conf_thres == 0.3
    assert settings.defaults.classes == {1}
    assert settings.defaults.iou_thres == 0.45
    assert read_settings({**SETTINGS, "threads": "0"}, ("car",)).threads >= 1


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
        ({"conf_threshold": "0.5"}, "setting 'conf_threshold' is unknown"),
        ({"max_det": "0"}, "max_det is '0'; allowed: a whole number from 1 to 1000"),
    ],
)
def test_settings_out_of_range(change: dict[str, str], sentence: str) -> None:
    with pytest.raises((SettingsError, ParameterError)) as caught:
        read_settings({**SETTINGS, **change}, ("car",))
    assert sentence in str(caught.value)
