"""The description in a safetensors file, of a network of a few weights."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_network
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from yolov5_build import BuildError, Checkpoint, load_safetensors, save_safetensors
from yolov5_build._checkpoint import checkpoint_from

DAMAGED = "best.safetensors is not a YOLOv5 safetensors file, or is damaged."


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    path = tmp_path / "best.pt"
    path.write_bytes(bytes(10_000))
    return checkpoint_from(path, tiny_network.network())


@pytest.fixture
def saved(checkpoint: Checkpoint, tmp_path: Path) -> Path:
    path = tmp_path / "best.safetensors"
    save_safetensors(checkpoint, path)
    return path


def first_layer(path: Path) -> Any:
    return load_safetensors(path).network.model[0]


def last_convolution(checkpoint: Checkpoint) -> Any:
    head: Any = checkpoint.network.head
    return head.m[0]


def refusal(path: Path) -> str:
    with pytest.raises(BuildError) as caught:
        load_safetensors(path)
    return str(caught.value)


def test_saved_network_computes_the_same(checkpoint: Checkpoint, saved: Path) -> None:
    read = load_safetensors(saved)
    assert (read.names, read.stride) == (("car", "bus"), 16)
    images = torch.rand((2, 3, 64, 96), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(read.network(images), checkpoint.network(images))
    assert not any(one.requires_grad for one in read.network.parameters())
    assert last_convolution(read).bias is not None
    assert load_safetensors(saved, names=["a", "b"]).names == ("a", "b")


def test_attributes_of_layers_are_read_as_they_were(saved: Path) -> None:
    conv = first_layer(saved).conv
    assert (conv.stride, conv.kernel_size, conv.padding_mode) == ((8, 8), (8, 8), "zeros")


def test_absent_bias_stays_absent(checkpoint: Checkpoint, tmp_path: Path) -> None:
    path = tmp_path / "best.safetensors"
    last_convolution(checkpoint).bias = None
    save_safetensors(checkpoint, path)
    assert last_convolution(load_safetensors(path)).bias is None


def described(path: Path) -> dict[str, Any]:
    with safe_open(path, "pt") as file:
        description = json.loads(file.metadata()["yolov5"])
    assert isinstance(description, dict)
    return description


def test_description_names_every_tensor_once(saved: Path) -> None:
    network = described(saved)["network"]
    assert network["tensors"] == {"parameters": [], "buffers": [], "values": []}
    conv = network["children"]["model"]["children"]["0"]["children"]["conv"]
    assert conv["layer"] == "torch.nn.modules.conv.Conv2d"
    assert conv["tensors"] == {"parameters": ["weight", "bias"], "buffers": [], "values": []}
    head = network["children"]["model"]["children"]["2"]
    assert head["tensors"] == {"parameters": [], "buffers": ["anchors"], "values": ["stride"]}
    assert head["values"].keys() == {"nc", "no", "nl", "na", "i", "f"}


def changed(path: Path, change: Callable[[dict[str, Any], dict[str, Any]], None]) -> Path:
    """The same file with another description of the first convolution, or other tensors."""
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    description = described(path)
    first = description["network"]["children"]["model"]["children"]["0"]["children"]["conv"]
    change(first, tensors)
    save_file(tensors, path, {"yolov5": json.dumps(description)})
    return path


def add_tensor(name: str) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    def change(conv: dict[str, Any], tensors: dict[str, Any]) -> None:
        tensors[f"model.0.conv.{name}"] = torch.zeros(1)
        conv["tensors"]["values"].append(name)

    return change


@pytest.mark.parametrize(
    "change",
    [
        lambda conv, _: conv["values"].update(training=True),
        lambda conv, _: conv["values"].update(more={"a": 1}),
        lambda conv, _: conv["values"].update(more=[1, [2, {"a": 1}]]),
        lambda conv, _: conv["tensors"]["parameters"].append("weight"),
        lambda conv, _: conv["tensors"]["buffers"].append("weight"),
        lambda conv, _: conv["tensors"]["values"].append("bias"),
        lambda conv, _: conv["tensors"]["values"].append("unknown"),
        lambda conv, _: conv.update(layer="torch.nn.modules.conv.Conv1d"),
        lambda conv, _: conv.pop("absent"),
        add_tensor("training"),
    ],
)
def test_odd_descriptions_are_refused(
    saved: Path, change: Callable[[dict[str, Any], dict[str, Any]], None]
) -> None:
    assert refusal(changed(saved, change)) == DAMAGED


def test_further_values_are_accepted(saved: Path) -> None:
    def change(conv: dict[str, Any], tensors: dict[str, Any]) -> None:
        conv["values"].update(more=[1, [2.5, "x", None, True]])
        add_tensor("scale")(conv, tensors)

    conv = first_layer(changed(saved, change)).conv
    assert conv.more == (1, (2.5, "x", None, True)) and conv.scale.tolist() == [0]


def test_only_a_whole_network_is_read(saved: Path) -> None:
    with safe_open(saved, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    description = described(saved)
    part = description["network"]["children"]["model"]
    parts = {name.removeprefix("model."): value for name, value in tensors.items()}
    save_file(parts, saved, {"yolov5": json.dumps({**description, "network": part})})
    assert refusal(saved) == DAMAGED


@pytest.mark.parametrize("more, refused", [(0, False), (1, True)])
def test_header_of_four_megabytes_is_read_and_a_larger_one_is_not(
    saved: Path, more: int, refused: bool
) -> None:
    data = saved.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = data[8 : 8 + length].ljust((4 << 20) + more)
    saved.write_bytes(struct.pack("<Q", len(header)) + header + data[8 + length :])
    if refused:
        assert refusal(saved) == DAMAGED
    else:
        assert load_safetensors(saved).stride == 16


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "best.safetensors"
    assert refusal(path) == "best.safetensors cannot be read: No such file or directory."
    path.write_bytes(bytes(100))
    assert refusal(path) == DAMAGED
    for metadata in (None, {"other": "x"}):
        save_file({"a": torch.zeros(1)}, path, metadata)
        assert "holds weights without a description of their network; make one" in refusal(path)


def test_file_that_cannot_be_written_is_named(checkpoint: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"^a\.safetensors cannot be written: "):
        save_safetensors(checkpoint, tmp_path / "none" / "a.safetensors")
