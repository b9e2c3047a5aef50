from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from support import BUNDLED, SHARED

from yolov5_build import BuildError, Checkpoint, export_onnx, install_onnx, load_checkpoint
from yolov5_build import __main__ as command


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return load_checkpoint(BUNDLED)


def test_the_bundled_checkpoint(checkpoint: Checkpoint) -> None:
    assert checkpoint.names == ("Platelets", "RBC", "WBC")
    assert checkpoint.stride == 32
    assert not checkpoint.network.training
    assert {p.dtype for p in checkpoint.network.parameters()} == {torch.float32}
    # Folded away: nothing of a batch norm is left.
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in checkpoint.network.modules())
    with torch.no_grad():
        rows = checkpoint.network(torch.zeros(2, 3, 64, 96))
    assert rows.shape == (2, 3 * (8 * 12 + 4 * 6 + 2 * 3), 8)


def test_boxes_are_decoded_as_published(checkpoint: Checkpoint) -> None:
    """A head whose convolutions answer 0 everywhere has sigmoid 0.5: boxes as large as the
    anchors, centred in their cells."""
    head = load_checkpoint(BUNDLED).network.model[-1]
    for convolution in head.m:  # type: ignore[union-attr]
        torch.nn.init.zeros_(convolution.weight)
        torch.nn.init.zeros_(convolution.bias)
    maps = [torch.zeros(1, c.in_channels, 2, 3) for c in head.m]  # type: ignore[union-attr]
    with torch.no_grad():
        rows = head(maps)[0]
    first = rows[:6]  # level 0, stride 8, anchor 0: two rows of three cells
    assert first[:, 0].tolist() == [4, 12, 20, 4, 12, 20]
    assert first[:, 1].tolist() == [4, 4, 4, 12, 12, 12]
    torch.testing.assert_close(first[0, 2:4], head.anchors[0, 0] * 8)  # type: ignore[index]
    assert (rows[:, 4:] == 0.5).all()


def test_the_export(checkpoint: Checkpoint, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    export_onnx(checkpoint, path, imgsz=320)
    model = onnx.load(path)
    shape = [d.dim_param or d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim]
    assert shape == ["batch", 3, 320, 320]
    shape = [d.dim_param or d.dim_value for d in model.graph.output[0].type.tensor_type.shape.dim]
    assert shape == ["batch", 6300, 8]
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert metadata["names"] == "{0: 'Platelets', 1: 'RBC', 2: 'WBC'}"
    assert metadata["stride"] == "32"
    assert metadata["checkpoint_sha256"] == checkpoint.sha256

    (tmp_path / "yolov5").mkdir()
    (tmp_path / "yolov5" / "stale").touch()
    install_onnx(path, tmp_path, provenance="two\nlines", letterbox="stretch")
    assert sorted(p.name for p in (tmp_path / "yolov5").iterdir()) == [
        "1",
        "config.pbtxt",
        "labels.txt",
    ]
    assert "# two lines\n" in (tmp_path / "yolov5" / "config.pbtxt").read_text()
    with pytest.raises(BuildError, match="image size 100 is not a positive multiple of 32"):
        export_onnx(checkpoint, path, imgsz=100)


class Payload:
    def __init__(self, function: Callable[..., Any], *arguments: str) -> None:
        self._call = (function, arguments)

    def __reduce__(self) -> Any:
        return self._call


@pytest.mark.parametrize("key", ["ema", "model", "date"])
def test_nothing_in_a_checkpoint_is_executed(tmp_path: Path, key: str) -> None:
    path, mark = tmp_path / "evil.pt", tmp_path / "mark"
    torch.save({key: Payload(os.system, f"touch {mark}")}, path)
    with pytest.raises(BuildError, match="evil.pt names 'posix.system', which is not among"):
        load_checkpoint(path)
    path.write_bytes(pickle.dumps(Payload(eval, f"open({str(mark)!r}, 'w')")))
    with pytest.raises(BuildError):
        load_checkpoint(path)
    assert not mark.exists()


@pytest.mark.parametrize(
    "content, sentence",
    [
        (b"", "is not a YOLOv5 checkpoint, or is damaged"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is not a YOLOv5 checkpoint"),
        (BUNDLED.read_bytes()[:100_000], "is not a YOLOv5 checkpoint"),
    ],
    ids=["empty", "text", "truncated"],
)
def test_files_that_are_no_checkpoint(tmp_path: Path, content: bytes, sentence: str) -> None:
    path = tmp_path / "best.pt"
    path.write_bytes(content)
    with pytest.raises(BuildError, match=sentence):
        load_checkpoint(path)


def test_other_contents(tmp_path: Path) -> None:
    path = tmp_path / "best.pt"
    torch.save({"state_dict": {}}, path)
    with pytest.raises(BuildError, match="holds no YOLOv5 detection network"):
        load_checkpoint(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("hello.txt", "hello")
    with pytest.raises(BuildError, match="is not a YOLOv5 checkpoint"):
        load_checkpoint(path)
    with pytest.raises(BuildError, match="cannot be read: No such file"):
        load_checkpoint(tmp_path / "none.pt")


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main([str(BUNDLED), "--imgsz", "64", "--repository", str(tmp_path)]) == 0
    assert (tmp_path / "yolov5" / "1" / "model.onnx").is_file()
    assert (tmp_path / "yolov5" / "labels.txt").read_text() == "Platelets\nRBC\nWBC\n"
    assert command.main([str(tmp_path / "none.pt"), "--repository", str(tmp_path)]) == 1
    assert capsys.readouterr().err == "error: none.pt cannot be read: No such file or directory.\n"


@pytest.mark.skipif(not SHARED.exists(), reason="other people's checkpoints are not at hand")
@pytest.mark.parametrize("name", ["yolov5s_v5.0.pt", "crop_best.pt"])
def test_what_is_not_supported_yet_is_named(name: str) -> None:
    with pytest.raises(BuildError, match=r"names '(numpy|dill|models)\..+', which is not"):
        load_checkpoint(SHARED / "weights" / name)
