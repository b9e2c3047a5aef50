"""Finding the network in a checkpoint and checking it, on a network of a few weights."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_network
import torch
from tiny_network import layer, network
from torch import nn

from yolov5_build import BuildError, _checkpoint, layers
from yolov5_build._checkpoint import (
    _Budget,
    _check_shapes,
    _find_network,
    _largest_stride,
    _multiplications,
    checkpoint_from,
)

DAMAGED = "best.pt is damaged: its network cannot be run."


def file(folder: Path, size: int = 10_000) -> Path:
    path = folder / "best.pt"
    path.write_bytes(bytes(size))
    return path


def refusal(path: Path, model: layers.DetectionModel, **options: Any) -> str:
    with pytest.raises(BuildError) as caught:
        checkpoint_from(path, model, **options)
    return str(caught.value)


def test_network_is_made_ready_for_inference(tmp_path: Path) -> None:
    model = network()
    images = torch.rand((2, 3, 64, 96), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model.eval()(images)
    model.train()
    path = file(tmp_path, (1 << 20) + 5)
    made = checkpoint_from(path, model)
    assert (made.names, made.stride) == (("car", "bus"), 16)
    assert made.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert not any(one.training for one in made.network.modules())
    assert not any(isinstance(one, nn.BatchNorm2d) for one in made.network.modules())
    assert not hasattr(made.network.model[0], "bn")
    with torch.no_grad():
        rows = made.network(images)
    assert rows.shape == (2, 8 * 12 + 4 * 6, 7)
    torch.testing.assert_close(rows, expected)


def test_half_precision_becomes_single(tmp_path: Path) -> None:
    made = checkpoint_from(file(tmp_path), network().half())
    assert {one.dtype for one in made.network.parameters()} == {torch.float32}


def test_tensors_have_no_more_values_than_the_file_has_bytes(tmp_path: Path) -> None:
    values = tiny_network.tensors(network())
    checkpoint_from(file(tmp_path, values), network())
    assert refusal(file(tmp_path, values - 1), network()) == DAMAGED


def test_convolutions_with_batch_norms_may_not_share_weights(tmp_path: Path) -> None:
    model = network()
    body: Any = model.model[1]
    again = layer("models.common.Conv", conv=body.conv, bn=body.bn, act=body.act)
    body.act = again
    body.conv.__dict__.update(stride=(1, 1), padding=(0, 0))
    body.conv.weight = nn.Parameter(torch.zeros(4, 4, 1, 1))
    model.model[2].__dict__["stride"] = torch.tensor([8.0, 8.0])
    assert refusal(file(tmp_path), model) == DAMAGED
    body.act = layer("models.common.Conv", conv=tiny_network.conv(4, 4, 1).conv, act=again.act)
    assert checkpoint_from(file(tmp_path), model).stride == 8


def test_network_ends_in_a_head(tmp_path: Path) -> None:
    model = network()
    del model.model[2]
    assert refusal(file(tmp_path), model) == "best.pt does not end in a detection head."


@pytest.mark.parametrize(
    "names, labels",
    [
        (["a", "b"], ("a", "b")),
        (("a", None), ("a", "class1")),
        ({0: "a", 1: "b"}, ("a", "b")),
        ({1: "b", 0: 7}, ("7", "b")),
    ],
)
def test_class_names_are_a_list_or_numbered(
    names: Any, labels: tuple[str, ...], tmp_path: Path
) -> None:
    model = network()
    model.names = names
    assert checkpoint_from(file(tmp_path), model).names == labels
    assert checkpoint_from(file(tmp_path), network(), names).names == labels


@pytest.mark.parametrize("names", [{1: "a", 2: "b"}, [["a"], "b"], "ab", 2, {0: "a", "1": "b"}])
def test_other_class_names_are_refused(names: Any, tmp_path: Path) -> None:
    model = network()
    model.names = names
    sentence = "best.pt has no usable class names; give them with --names FILE."
    assert refusal(file(tmp_path), model) == sentence


def test_number_of_class_names_is_that_of_the_classes(tmp_path: Path) -> None:
    sentence = "best.pt has 2 classes but 3 class names."
    assert refusal(file(tmp_path), network(), names=["a", "b", "c"]) == sentence


@pytest.mark.parametrize("stride", [1, 32, 1024])
def test_largest_stride_is_a_whole_number(stride: int) -> None:
    assert _largest_stride(torch.tensor([1.0, float(stride)])) == stride


@pytest.mark.parametrize("stride", [0.0, 0.5, 8.5, 1025.0, 2048.0, float("nan")])
def test_other_strides_are_refused(stride: float) -> None:
    with pytest.raises(ValueError):
        _largest_stride(torch.tensor([stride]))


# ---------------------------------------------------------------------------------------------
# Finding it


def wrapped(model: object, times: int = 1, attribute: str = "module") -> Any:
    for _ in range(times):
        made = layer("models.common.AutoShape")
        made.__dict__[attribute] = model
        model = made
    return model


@pytest.mark.parametrize(
    "around",
    [
        lambda model: model,
        lambda model: {"model": model},
        lambda model: {"ema": None, "model": model},
        lambda model: {"ema": model, "model": network()},
        lambda model: {"ema": (model, 5), "model": network()},
        lambda model: {"model": wrapped(model)},
        lambda model: {"model": wrapped(model, 4, "model")},
        lambda model: {"model": wrapped(model, 2, "_orig_mod")},
    ],
)
def test_network_is_found(around: Callable[[Any], Any]) -> None:
    model = network()
    assert _find_network("best.pt", around(model)) is model


@pytest.mark.parametrize(
    "content",
    [
        *({}, {"state_dict": {}}, {"model": ()}, {"model": nn.Identity()}, 7, None),
        {"model": {"a": torch.zeros(1), "b": 1}},
        {"model": wrapped(network(), 5)},
        {"network": network()},
    ],
)
def test_content_without_a_network_is_refused(content: Any) -> None:
    with pytest.raises(BuildError) as caught:
        _find_network("best.pt", content)
    assert str(caught.value) == "best.pt holds no YOLOv5 detection network."


@pytest.mark.parametrize("content", [{"a": torch.zeros(1)}, {"model": {"a": torch.zeros(1)}}])
def test_weights_alone_are_named(content: Any) -> None:
    with pytest.raises(BuildError, match=r"holds weights without the network around them; give"):
        _find_network("best.pt", content)


# ---------------------------------------------------------------------------------------------
# Shapes and costs


@pytest.mark.parametrize(
    "channels, said", [(1, "1 channel"), (2, "2 channels"), (16, "16 channels")]
)
def test_number_of_channels_is_named(channels: int, said: str, tmp_path: Path) -> None:
    sentence = f"best.pt takes images of {said}; 3 are needed."
    assert refusal(file(tmp_path), network(channels)) == sentence


def test_network_that_fits_no_image_is_damaged(tmp_path: Path) -> None:
    assert refusal(file(tmp_path), network(17)) == DAMAGED


def test_head_answers_with_a_column_for_each_class() -> None:
    _check_shapes("best.pt", network(), 16, 7)
    for columns in (6, 8):
        with pytest.raises(ValueError):
            _check_shapes("best.pt", network(), 16, columns)


@pytest.mark.parametrize("stride, side", [(16, 640), (100, 600), (1024, 1024)])
def test_costs_are_those_of_an_image_of_640_pixels(
    stride: int, side: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = 4 * (side // 8) ** 2
    monkeypatch.setattr(_checkpoint, "MAX_LAYER_VALUES", values - 1)
    with pytest.raises(BuildError, match=f"has a layer that makes {values} values of a 640-pixel"):
        _check_shapes("best.pt", network(), stride, 7)


def meta(*shape: int) -> torch.Tensor:
    return torch.empty(shape, device="meta")


MORE = (
    "best.pt computes more for a 640-pixel image than a YOLOv5 network with so many weights does."
)


def spent(budget: _Budget, output: Any, one: nn.Module | None = None, inputs: Any = ()) -> str:
    try:
        budget.spend(one or nn.Identity(), inputs, output)
    except (BuildError, ValueError) as error:
        return str(error)
    return ""


def test_values_of_one_layer_are_limited() -> None:
    budget = _Budget("best.pt", 0)
    assert spent(budget, (meta(1 << 28), meta(1 << 14, 1 << 14))) == ""
    said = (
        "best.pt has a layer that makes 268435457 values of a 640-pixel image, and at most"
        " 268435456 are allowed."
    )
    assert spent(budget, meta((1 << 28) + 1)) == said
    assert spent(budget, (meta(1), meta((1 << 28) + 1))) == said


ATTENTION = layer("ultralytics.nn.modules.block.Attention", num_heads=2, key_dim=3, head_dim=5)


def test_values_of_one_layer_include_the_weights_of_attention(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    weights = 2 * (4 * 6) ** 2
    image = (meta(1, 10, 4, 6),)
    monkeypatch.setattr(_checkpoint, "MAX_LAYER_VALUES", weights)
    assert spent(_Budget("best.pt", 0), meta(1, 10, 4, 6), ATTENTION, image) == ""
    monkeypatch.setattr(_checkpoint, "MAX_LAYER_VALUES", weights - 1)
    said = spent(_Budget("best.pt", 0), meta(1, 10, 4, 6), ATTENTION, image)
    assert said.startswith(f"best.pt has a layer that makes {weights} values")


def test_values_of_all_layers_are_limited() -> None:
    budget = _Budget("best.pt", 0)
    for _ in range(16):
        assert spent(budget, (meta(1 << 28), meta(1 << 28))) == ""
    assert spent(budget, meta(0)) == ""
    assert spent(budget, meta(1)) == MORE


def test_calls_of_layers_are_limited() -> None:
    budget = _Budget("best.pt", 0)
    for _ in range(1 << 14):
        assert spent(budget, ()) == ""
    assert spent(budget, ()) == "layers within layers"


def test_multiplications_are_limited_by_the_number_of_weights() -> None:
    linear = nn.Linear(1 << 13, 1, device="meta")
    budget = _Budget("best.pt", 3)
    assert spent(budget, meta(1 << 21), linear) == ""
    assert spent(budget, meta(3), linear) == ""
    assert spent(budget, meta(1), linear) == MORE


@pytest.mark.parametrize(
    "one, inputs, output, count",
    [
        (nn.Conv2d(6, 10, 3, device="meta"), (meta(1, 6, 9, 9),), meta(1, 10, 7, 7), 490 * 54),
        (nn.Conv2d(6, 10, 3, groups=2, device="meta"), (), meta(1, 10, 7, 7), 490 * 27),
        (nn.Linear(5, 7, device="meta"), (meta(2, 5),), meta(2, 7), 14 * 5),
        (nn.Conv2d(6, 1, 3, device="meta"), (), meta(1, 1, 7, 7), 49 * 54),
        (nn.ConvTranspose2d(6, 10, 2, device="meta"), (meta(1, 6, 3, 3),), meta(9), 54 * 40),
        (nn.ConvTranspose2d(1, 10, 2, device="meta"), (meta(1, 1, 3, 3),), meta(9), 9 * 40),
        (nn.MultiheadAttention(8, 2), (), (meta(5, 8), meta(5, 5)), 25 * 4),
        (ATTENTION, (meta(1, 10, 4, 6),), meta(1, 10, 2, 3), 2 * 24 * 24 * (3 + 5)),
        (nn.BatchNorm2d(5), (), meta(9), 0),
    ],
)
def test_multiplications_follow_from_the_weights(
    one: nn.Module, inputs: Any, output: Any, count: int
) -> None:
    assert _multiplications(one, inputs, output) == count
