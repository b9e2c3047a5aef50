from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from yolov5_build import BuildError, Checkpoint, load_safetensors, save_safetensors
from yolov5_build.cli import main as build


@pytest.fixture(scope="module")
def saved_once(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("saved") / "best.safetensors"
    save_safetensors(checkpoint, path)
    return path


@pytest.fixture
def saved(saved_once: Path, tmp_path: Path) -> Path:
    """The bundled network, in a file that a test may change."""
    return Path(shutil.copy(saved_once, tmp_path))


def test_saved_network_computes_the_same(checkpoint: Checkpoint, saved: Path) -> None:
    original, read = checkpoint, load_safetensors(saved)
    assert (read.names, read.stride) == (original.names, original.stride)
    images = torch.rand((2, 3, 64, 96), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(read.network(images), original.network(images))


def test_other_tools_can_read_the_weights(saved: Path) -> None:
    with safe_open(saved, "pt") as file:
        assert "model.0.conv.weight" in file.keys()  # noqa: SIM118
        assert json.loads(file.metadata()["yolov5"])["names"] == ["Platelets", "RBC", "WBC"]


def changed(path: Path, change: Callable[[dict[str, Any], dict[str, torch.Tensor]], None]) -> Path:
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        description = json.loads(file.metadata()["yolov5"])
    change(description, tensors)
    save_file(tensors, path, {"yolov5": json.dumps(description)})
    return path


@pytest.mark.parametrize(
    "change",
    [
        lambda d, t: t.pop("model.0.conv.weight"),
        lambda d, t: t.update({"model.0.conv.weight": torch.zeros(1)}),
        lambda d, t: d["network"].update(layer="os.system"),
        lambda d, t: d["network"]["values"].update(_forward_hooks=[1]),
        lambda d, t: d["network"]["values"].update(forward=1),
        lambda d, t: d["network"]["children"].clear(),
        lambda d, t: d.update(names=["one"]),
        lambda d, t: d.pop("network"),
    ],
    ids=["missing", "shape", "layer", "hooks", "method", "children", "names", "network"],
)
def test_description_that_does_not_fit_is_refused(saved: Path, change: Any) -> None:
    with pytest.raises(BuildError, match=r"^best\.safetensors (is|has) "):
        load_safetensors(changed(saved, change))


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "best.safetensors"
    with pytest.raises(BuildError, match="cannot be read: No such file"):
        load_safetensors(path)
    path.write_bytes(b"\0" * 100)
    with pytest.raises(BuildError, match="is not a YOLOv5 safetensors file, or is damaged"):
        load_safetensors(path)
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(BuildError, match="without a description of their network; make one"):
        load_safetensors(path)


def test_save_option_writes_the_file_and_installs_nothing(
    small_weights: Path, tmp_path: Path
) -> None:
    path = tmp_path / "shared.safetensors"
    repository = tmp_path / "repository"
    repository.mkdir()
    assert build([str(small_weights), f"--save={path}", f"--repository={repository}"]) == 0
    assert not list(repository.iterdir())
    assert build([str(path), "--imgsz=64", f"--repository={repository}"]) == 0
    assert (repository / "yolov5" / "labels.txt").read_text() == "Platelets\nRBC\nWBC\n"
