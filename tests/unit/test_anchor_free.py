"""Checkpoints of the `ultralytics` package, from layers made here under the package's names."""

from __future__ import annotations

import collections
import functools
import os
import pathlib
import shutil
import tempfile
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mutated_checkpoints
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import ultralytics_networks as made
from checkpoints import read_small
from foreign_layers import changed, original, saved
from numpy.typing import NDArray
from support import PHOTOS, REPOSITORY
from torch import Tensor, nn
from ultralytics_networks import MODULES, SIZES, Size, block, network, unit

from yolov5_build import (
    BuildError,
    Checkpoint,
    export_onnx,
    export_prefiltered,
    load_checkpoint,
    load_safetensors,
    save_safetensors,
)
from yolov5_build._families import head_refusal
from yolov5_build._quantise import quantise
from yolov5_build.anchor_free import LAYERS
from yolov5_build.cli import main as build
from yolov5_build.layers import Head
from yolov5_build.metadata import read_metadata
from yolov5_build.photos import example_images

CHANNELS = 16
SMALL = Size(0.33, 0.0625, 1024, 0.0)  # a sixteenth of the plan's channels


def chain(*layers: Any, classes: int = 2, stride: int = 16) -> Any:
    """A network of one level: a stem that divides the image's sides, these layers, a head."""
    names = [f"class {index}" for index in range(classes)]
    return network(
        (-1, unit(3, CHANNELS, 3, stride)),
        *((-1, layer) for layer in layers),
        ([len(layers)], made.detect([CHANNELS], [stride], classes)),
        names=names,
    )


def load(path: Path, model: Any) -> Checkpoint:
    """Save a network as the package's trainer does at the end, and read it again."""
    saved(path, {"epoch": -1, "model": model.half(), "ema": None, "version": "8.4.190"})
    model.float()  # rounded to FP16, like the network in the file
    return load_checkpoint(path)


def images(batch: int, height: int, width: int) -> Tensor:
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(0))


def assert_same_rows(checkpoint: Checkpoint, model: Any, pixels: Tensor) -> None:
    with torch.no_grad():
        found, wanted = checkpoint.network(pixels), made.answer(model, pixels)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-3)


# ---------------------------------------------------------------------------------------------
# Layers

BLOCKS: dict[str, Callable[[], Any]] = {
    "Conv": lambda: unit(CHANNELS, CHANNELS, 3),
    "DWConv": lambda: made.depthwise(CHANNELS),
    "Bottleneck": lambda: made.bottleneck(CHANNELS, True),
    "Bottleneck without shortcut": lambda: made.bottleneck(CHANNELS, False, share=0.5),
    "C3": lambda: made.c3("C3", CHANNELS, CHANNELS, 2, True, 1),
    "C3k": lambda: made.c3("C3k", CHANNELS, CHANNELS, 2, True, 3),
    "C2f": lambda: made.c2f(
        "C2f", CHANNELS, CHANNELS, 8, [made.bottleneck(8, True), made.bottleneck(8, False)]
    ),
    "C3k2": lambda: made.c3k2(CHANNELS, CHANNELS, 2, False, 0.25),
    "C3k2 of C3k": lambda: made.c3k2(CHANNELS, CHANNELS, 1, True, 0.5),
    "SPPF": lambda: made.sppf(CHANNELS, CHANNELS),
    "SPPF of later releases": lambda: made.sppf(CHANNELS, CHANNELS, n=3, add=False),
    "SPPF with another number and a shortcut": lambda: made.sppf(CHANNELS, CHANNELS, n=2, add=True),
    "Attention": lambda: made.attention(CHANNELS, 2),
    "PSABlock": lambda: made.psa_block(CHANNELS, 4),
    "PSABlock without shortcut": lambda: made.psa_block(CHANNELS, 1, add=False),
    "C2PSA": lambda: made.c2psa(CHANNELS, 2),
    "Upsample and Concat": lambda: nn.Sequential(made.double(), unit(CHANNELS, CHANNELS, 3, 2)),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_layer_computes_the_expected_values(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = chain(BLOCKS[name]())
    checkpoint = load(tmp_path / "best.pt", model)
    x = torch.randn(2, CHANNELS, 4, 6, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = checkpoint.network.model[1](x)
        wanted = made.expected(model.model[1], x)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_every_name_of_the_package_is_tried() -> None:
    """Those of one module, too, as in the package's first releases."""
    tried = {name.partition(" ")[0] for name in BLOCKS} | {"Concat", "DFL", "Detect"}
    plain = {name.rpartition(".")[2] for name in LAYERS if name.startswith(MODULES)}
    assert plain == tried - {"Upsample"}
    for name in plain:
        assert len({cls for known, cls in LAYERS.items() if known.endswith(f".{name}")}) == 1


def test_names_of_the_first_releases_are_read(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = chain(BLOCKS["C2f"]())
    path = tmp_path / "best.pt"
    load(path, model)
    for module in ("block", "conv", "head"):
        changed(path, f"{MODULES}{module}\n".encode(), b"ultralytics.nn.modules\n")
    assert_same_rows(load_checkpoint(path), model, images(1, 64, 32))


@pytest.mark.parametrize(
    ("strides", "classes", "light"),
    [([8, 16, 32], 3, False), ([4, 8, 16, 32], 1, True), ([32], 80, True)],
)
def test_rows_are_decoded_from_the_sides_of_boxes(
    strides: list[int], classes: int, light: bool, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    levels = len(strides)
    stem, *downs = (unit(3 if not k else CHANNELS, CHANNELS, 3, 2) for k in range(levels))
    stem.conv.stride = (strides[0], strides[0])
    head = made.detect([CHANNELS] * levels, strides, classes, light=light)
    names = [f"class {index}" for index in range(classes)]
    steps = [(-1, layer) for layer in (stem, *downs)]
    model = network(*steps, (list(range(levels)), head), names=names)
    checkpoint = load(tmp_path / "best.pt", model)
    assert (checkpoint.stride, len(checkpoint.names)) == (max(strides), classes)
    pixels = images(2, 64, 96)
    assert_same_rows(checkpoint, model, pixels)
    with torch.no_grad():
        rows = checkpoint.network(pixels)
    assert rows.shape == (2, sum(64 // s * (96 // s) for s in strides), 5 + classes)
    assert (rows[..., 4] == 1).all()


# ---------------------------------------------------------------------------------------------
# Whole networks


def test_plans_have_the_published_number_of_parameters() -> None:
    names = [str(index) for index in range(80)]
    with torch.device("meta"):
        for family, sizes in SIZES.items():
            for letter, size in sizes.items():
                millions = made.parameters(made.build(family, letter, names)) / 1e6
                assert millions == pytest.approx(size.millions, abs=0.08), (family, letter)


NETWORKS = [
    pytest.param(family, letter, marks=() if letter == "n" and "p6" not in family else slow)
    for slow in (pytest.mark.slow,)
    for family, sizes in SIZES.items()
    for letter in sizes
]


@pytest.mark.parametrize(("family", "letter"), NETWORKS)
def test_network_is_read_and_exported(family: str, letter: str, tmp_path: Path) -> None:
    """The export compares its answers with PyTorch's at two sizes of images, and the prefiltered
    variant's with its own."""
    torch.manual_seed(0)
    model = made.build(family, letter)
    checkpoint = load(tmp_path / "best.pt", model)
    assert (checkpoint.names, checkpoint.stride) == (("a", "b"), 64 if "p6" in family else 32)
    assert not any(isinstance(one, nn.BatchNorm2d) for one in checkpoint.network.modules())
    size = (2 * checkpoint.stride, 3 * checkpoint.stride)
    full = tmp_path / "model.onnx"
    shape: dict[str, Any] = {"imgsz": size, "dynamic": True}
    assert export_onnx(checkpoint, full, **shape) < 1e-3
    pixels = images(2, *size)
    with torch.no_grad():
        wanted = made.answer(model, pixels).numpy()
    found = rows(full, images=pixels.numpy())
    apart = np.abs(found - wanted)
    print(f"boxes within {apart[..., :4].max():.2g} px, scores within {apart[..., 5:].max():.2g}")
    np.testing.assert_allclose(found[..., :4], wanted[..., :4], rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(found[..., 5:], wanted[..., 5:], atol=1e-4)
    # What the test can find: the answers depend on the image far more than that.
    changes = np.abs(wanted[0] - wanted[1]).max(0)
    assert min(changes[:4]) > 0.05 and min(changes[5:]) > 2e-3
    assert export_prefiltered(checkpoint, tmp_path / "prefiltered.onnx", full, **shape) < 1e-3


@functools.cache
def small(family: str) -> tuple[Checkpoint, Any]:
    """A network with all layers of the family and few channels, as read, and as made."""
    torch.manual_seed(0)
    model = made.sized(family, SMALL, ["a", "b", "c"])
    with tempfile.TemporaryDirectory() as folder:
        return load(Path(folder, "best.pt"), model), model


@pytest.fixture(params=["yolov5u", "yolov8", "yolo11"])
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_network_survives_safetensors(family: str, tmp_path: Path) -> None:
    checkpoint, _ = small(family)
    save_safetensors(checkpoint, tmp_path / "best.safetensors")
    again = load_safetensors(tmp_path / "best.safetensors")
    assert (again.names, again.stride) == (checkpoint.names, checkpoint.stride)
    pixels = images(1, 64, 64)
    with torch.no_grad():
        assert torch.equal(again.network(pixels), checkpoint.network(pixels))


def rows(path: Path, **inputs: NDArray[Any]) -> NDArray[np.float32]:
    answer: NDArray[np.float32] = onnxruntime.InferenceSession(path).run(None, inputs)[0]
    return answer


def test_prefiltered_rows_are_those_with_a_class_over_the_confidence(tmp_path: Path) -> None:
    checkpoint, _ = small("yolo11")
    full, prefiltered = tmp_path / "model.onnx", tmp_path / "prefiltered.onnx"
    export_onnx(checkpoint, full, imgsz=(64, 96))
    export_prefiltered(checkpoint, prefiltered, full, imgsz=(64, 96))
    pixels = np.rint(example_images(64, 96)[:1] * 255).astype(np.uint8)
    whole = rows(full, images=pixels.astype(np.float32) / 255)[0]
    best = whole[:, 5:].max(1)
    ranked = np.sort(best)
    for conf_thres, count in ((0.0, 126), ((ranked[76] + ranked[77]) / 2, 49), (1.0, 0)):
        nms = np.array([[conf_thres, 0.45, 300, 0, 0]], np.float32)
        found = rows(prefiltered, pixels=pixels, nms=nms)[0]
        assert found.shape == (max(1, count), 8) and not found[count:].any()
        np.testing.assert_allclose(found[:count], whole[best > conf_thres], rtol=1e-4, atol=1e-3)


def test_half_precision_decodes_in_fp32(tmp_path: Path) -> None:
    checkpoint, _ = small("yolov8")
    path = tmp_path / "model.onnx"
    export_onnx(checkpoint, path, imgsz=(32, 640), half=True)
    pixels = example_images(32, 640)
    answer = rows(path, images=pixels)
    assert answer.dtype == np.float32
    with torch.no_grad():
        wanted = checkpoint.network(torch.from_numpy(pixels)).numpy()
    assert np.abs(answer[..., :2] - wanted[..., :2]).max() < 1
    # Centres beyond 512 px, which FP16 resolves only to half a pixel.
    right = answer[..., 0][wanted[..., 0] > 520]
    assert np.mean(right * 2 % 1 < 1e-3) < 0.2
    assert {p.dtype for p in checkpoint.network.parameters()} == {torch.float32}


def test_export_states_the_padding_of_its_package(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    export_onnx(small("yolov8")[0], path, imgsz=32)
    assert read_metadata(path).padding == "whole"
    export_onnx(read_small(), path, imgsz=32)
    assert read_metadata(path).padding == "exact"


def test_reduced_head_has_the_best_class(tmp_path: Path) -> None:
    checkpoint, _ = small("yolov5u")
    path = tmp_path / "model.onnx"
    export_onnx(checkpoint, path, imgsz=64, reduced_head=True)
    export_prefiltered(checkpoint, tmp_path / "few.onnx", path, imgsz=64, reduced_head=True)
    pixels = example_images(64, 64)
    with torch.no_grad():
        whole = checkpoint.network(torch.from_numpy(pixels)).numpy()
    found = rows(path, images=pixels)
    np.testing.assert_allclose(found[..., 4], whole[..., 5:].max(2), atol=1e-5)
    assert (found[..., 5] == whole[..., 5:].argmax(2)).all()


def test_last_convolutions_of_both_branches_are_not_quantised(family: str, tmp_path: Path) -> None:
    checkpoint, _ = small(family)
    full, target = tmp_path / "model.onnx", tmp_path / "int8.onnx"
    export_onnx(checkpoint, full, imgsz=64)
    quantise(full, target, sorted(PHOTOS.iterdir())[:2])
    graph = onnx.load(target).graph
    scaled = {out for n in graph.node if n.op_type == "DequantizeLinear" for out in n.output}
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    plain = [node for node in convolutions if node.input[1] not in scaled]
    # The one in DFL holds its numbers.
    count = sum(isinstance(one, nn.Conv2d) for one in checkpoint.network.modules()) - 1
    assert (len(convolutions), len(plain)) == (count, 6)
    assert rows(target, images=example_images(64, 64)).shape == (2, 84, 8)


# ---------------------------------------------------------------------------------------------
# What is around the network


def fused(model: Any) -> Any:
    """As the package fuses a network: its convolutions get another `forward`."""
    for layer in made.without_norms(model):
        type(layer).forward_fuse = lambda self, x: x
        layer.forward = layer.forward_fuse
    return model


def trained(model: Any) -> dict[str, Any]:
    """A `last.pt` in the middle of a training."""
    options = original("ultralytics.utils.IterableSimpleNamespace", types.SimpleNamespace)
    options.save_dir = pathlib.PurePosixPath("runs")
    loss = original("ultralytics.utils.loss.v8DetectionLoss", object)
    assigner = original("ultralytics.utils.tal.TaskAlignedAssigner", topk=10)
    loss.__dict__ |= {"bce": nn.BCEWithLogitsLoss(), "hyp": options, "assigner": assigner}
    loss.__dict__["device"] = torch.device("cuda:0")
    model.args, model.criterion = options, loss
    optimizer = torch.optim.AdamW(nn.Linear(2, 2).parameters())
    return {
        "epoch": 3,
        "model": None,
        "ema": model.half(),
        "updates": 17,
        "optimizer": optimizer.state_dict(),
        "scaler": {"scale": 65536.0},
        "train_args": {"save_dir": "runs", "device": None},
        "train_results": {"epoch": [1, 2, 3]},
    }


def wrapped(model: Any, name: str, attribute: str = "model", base: type = object) -> Any:
    wrapper = original(name, base)
    setattr(wrapper, attribute, model)
    return wrapper


def user_object(model: Any) -> Any:
    """What `torch.save` makes of the object that users of the package have."""
    outer = wrapped(model, "ultralytics.models.yolo.model.YOLO", base=nn.Module)
    outer.ckpt = {"model": model, "train_args": {"task": "detect"}}
    callback = original("ultralytics.utils.callbacks.base.on_train_end", object)
    outer.callbacks = collections.defaultdict(list, {"on_train_end": [callback]})
    return outer


def with_options(model: Any) -> Any:
    """The package's first releases had another library for its options."""
    model.args = original("omegaconf.dictconfig.DictConfig", object)
    entry = original("omegaconf.nodes.AnyNode", object)
    model.args.__dict__ |= {"_content": {"imgsz": entry}, "_parent": None}
    return model


def with_loss(model: Any) -> Any:
    """A loss is no layer, even if it is a module and an attribute of the network."""
    model.criterion = original("ultralytics.utils.loss.NewLoss", weight=torch.ones(2))
    model.bce = nn.BCEWithLogitsLoss()
    return model


def with_attributes(model: Any) -> Any:
    """Trainers mark tensors with attributes."""
    next(model.parameters()).marked = True
    model.register_buffer("seen", torch.zeros(1))
    model.seen.marked = True
    return model


PATH = pathlib.PureWindowsPath("C:\\runs\\best.pt")
AROUND: dict[str, Callable[[Any], Any]] = {
    "the end of a training": lambda model: {"model": model.half(), "ema": None},
    "averaged weights beside the last ones": lambda model: {"ema": model, "model": chain()},
    "the middle of a training": trained,
    "Windows": lambda model: {"model": model, "train_args": {"model": PATH}},
    "fused": lambda model: {"model": fused(model)},
    "the network alone": lambda model: model,
    "DataParallel": lambda model: {"model": nn.DataParallel(model)},
    "DistributedDataParallel": lambda model: {"ema": nn.DataParallel(model)},
    "compiled": lambda model: {"model": torch.compile(model)},
    "compiled, in DataParallel": lambda model: nn.DataParallel(torch.compile(model)),
    "the user's object": user_object,
    "the user's object of older releases": lambda model: wrapped(
        model, "ultralytics.yolo.engine.model.YOLO"
    ),
    "the object that averages": lambda model: {
        "ema": wrapped(model, "ultralytics.utils.torch_utils.ModelEMA", "ema")
    },
    "the object that runs it": lambda model: {
        "model": wrapped(model, "ultralytics.nn.autobackend.AutoBackend", base=nn.Module)
    },
    "options of the first releases": lambda model: {"model": with_options(model)},
    "a loss": lambda model: {"model": with_loss(model)},
    "attributes of tensors": lambda model: {"model": with_attributes(model)},
}
# Names in the pickle that cannot be made here, and the similar ones in their place.
RENAMED = {
    "Windows": (b"pathlib\nPureWindowsPath\n", b"pathlib\nWindowsPath\n"),
    "DistributedDataParallel": (
        b"data_parallel\nDataParallel\n",
        b"distributed\nDistributedDataParallel\n",
    ),
}


@pytest.mark.parametrize("kind", AROUND)
def test_network_is_found(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = chain(BLOCKS["C2f"]())
    pixels = images(1, 64, 32)
    model.half().float()  # its weights are rounded in some of the files
    with torch.no_grad():
        wanted = made.answer(model, pixels)
    path = saved(tmp_path / "best.pt", AROUND[kind](model))
    if kind in RENAMED:
        changed(path, *RENAMED[kind])
    with torch.no_grad():
        found = load_checkpoint(path).network(pixels)
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize(
    ("given", "size"),
    [
        (320, (320, 320)),
        ([256, 320], (256, 320)),
        ((100,), (112, 112)),  # the trainer rounds up, too
        *((nonsense, None) for nonsense in (None, 0, True, "320", [1, 2, 3], [], 320.5, 10**9)),
    ],
)
def test_size_of_the_training_is_read(given: object, size: object, tmp_path: Path) -> None:
    content = {"model": chain(BLOCKS["C2f"]()), "train_args": {"imgsz": given}}
    checkpoint = load_checkpoint(saved(tmp_path / "best.pt", content))
    assert checkpoint.stride == 16
    assert checkpoint.imgsz == size


@pytest.mark.parametrize(
    ("flags", "size"),
    [
        ([], [64, 96]),
        (["--letterbox=rect"], [64, 96]),
        (["--imgsz=128"], [128, 128]),
    ],
)
def test_network_is_installed_in_the_size_of_its_training(
    flags: list[str], size: list[int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = {"model": chain(BLOCKS["C2f"]()), "train_args": {"imgsz": (64, 96)}}
    path = saved(tmp_path / "best.pt", content)
    repository = tmp_path / "model_repository"
    shutil.copytree(REPOSITORY, repository, ignore=shutil.ignore_patterns("yolov5"))
    assert build([str(path), *flags, f"--repository={repository}"]) == 0
    assert f"{size[0]}x{size[1]}, letterbox" in capsys.readouterr().out


# ---------------------------------------------------------------------------------------------
# What is refused

INSTEAD = (
    "of the ultralytics package's checkpoints, those of YOLOv5u, YOLOv8 and YOLO11 are supported; "
    "give others as ONNX, which `yolo export model=best.pt format=onnx` writes."
)


def refusal(path: Path) -> str:
    with pytest.raises(BuildError) as caught:
        load_checkpoint(path)
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("nn.modules.block.RepNCSPELAN4", "a YOLOv9"),
        ("nn.modules.block.ELAN1", "a YOLOv9"),
        ("nn.modules.block.SCDown", "a YOLOv10"),
        ("nn.modules.head.v10Detect", "a YOLOv10"),
        ("nn.modules.block.A2C2f", "a YOLO12"),
        ("nn.tasks.RTDETRDetectionModel", "an RT-DETR"),
        ("nn.modules.block.HGStem", "an RT-DETR"),
        ("nn.tasks.WorldModel", "a YOLO-World"),
        ("nn.tasks.YOLOEModel", "a YOLOE"),
    ],
)
def test_other_families_are_named(name: str, kind: str, tmp_path: Path) -> None:
    path = saved(tmp_path / "best.pt", {"model": chain(original(f"ultralytics.{name}"))})
    assert refusal(path) == f"best.pt is {kind} checkpoint; {INSTEAD}"


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("nn.tasks.SegmentationModel", "a segmentation model"),
        ("nn.modules.head.Segment", "a segmentation model"),
        ("nn.tasks.PoseModel", "a pose model"),
        ("nn.tasks.OBBModel", "a model of oriented boxes"),
        ("nn.tasks.ClassificationModel", "a classifier"),
    ],
)
def test_other_tasks_are_named(name: str, kind: str, tmp_path: Path) -> None:
    path = saved(tmp_path / "best.pt", {"model": original(f"ultralytics.{name}")})
    assert refusal(path) == f"best.pt is {kind}, not a detection network."


def test_unknown_layer_of_the_package_is_named(tmp_path: Path) -> None:
    path = saved(tmp_path / "best.pt", {"model": chain(block("C7"))})
    unknown = f"'{MODULES}block.C7', which is not among the layers that are supported"
    assert refusal(path) == f"best.pt names {unknown}; {INSTEAD}"


def test_function_in_place_of_that_which_makes_tensors_is_not_called(tmp_path: Path) -> None:
    call = Payload(torch._tensor._rebuild_from_type_v2, dict, torch.Tensor, ([("a", 1)],), {})
    path = saved(tmp_path / "best.pt", {"model": chain(), "extra": call})
    assert refusal(path) == "best.pt is not a YOLOv5 checkpoint, or is damaged."


def test_layer_from_a_module_without_layers_is_not_left_out(tmp_path: Path) -> None:
    changed_layer = original("ultralytics.utils.patches.NewConv")
    path = saved(tmp_path / "best.pt", {"model": chain(changed_layer)})
    assert refusal(path) == "best.pt is damaged: its network cannot be run."


def test_network_without_class_names_says_how_to_give_them(tmp_path: Path) -> None:
    model = chain()
    del model.names
    path = saved(tmp_path / "best.pt", {"model": model})
    assert refusal(path) == "best.pt has no usable class names; give them with --names FILE."
    assert load_checkpoint(path, names=["x", "y"]).names == ("x", "y")


def end_to_end(head: Any) -> None:
    head.one2one_cv2, head.one2one_cv3 = head.cv2, head.cv3


def single_number(head: Any) -> None:
    head.reg_max, head.dfl = 1, nn.Identity()


@pytest.mark.parametrize("change", [end_to_end, single_number])
def test_end_to_end_head_is_named(change: Callable[[Any], None], tmp_path: Path) -> None:
    model = chain()
    change(model.model[-1])
    path = saved(tmp_path / "best.pt", {"model": model})
    assert (
        refusal(path) == f"best.pt is a YOLO26 checkpoint, or another end-to-end network; {INSTEAD}"
    )


def test_supported_head_is_not_refused() -> None:
    head = small("yolov8")[0].network.head
    assert isinstance(head, Head)
    assert head_refusal("best.pt", head) is None


class Payload:
    """Is pickled as a call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self._call = (function, arguments)

    def __reduce__(self) -> Any:
        return self._call


def argument(payload: Payload) -> Payload:
    """In place of an argument of a name that is accepted but not needed."""
    options = original("ultralytics.utils.IterableSimpleNamespace", types.SimpleNamespace)
    return Payload(type(options), payload)


PLACES: dict[str, Callable[[Any, Payload], None]] = {
    "options": lambda model, payload: setattr(model, "args", {"save_dir": payload}),
    "loss": lambda model, payload: setattr(model, "criterion", argument(payload)),
    "layer": lambda model, payload: setattr(model.model[1], "c", payload),
    "head": lambda model, payload: setattr(model.model[-1], "reg_max", payload),
}


@pytest.mark.parametrize("place", PLACES)
def test_code_in_a_checkpoint_is_not_executed(place: str, tmp_path: Path) -> None:
    model, mark = chain(BLOCKS["C2f"]()), tmp_path / "mark"
    PLACES[place](model, Payload(os.system, f"touch {mark}"))
    said = refusal(saved(tmp_path / "best.pt", {"model": model}))
    assert said.startswith("best.pt names 'posix.system', which is not among the layers")
    assert not mark.exists()


@pytest.mark.parametrize("count", [12, pytest.param(1000, marks=pytest.mark.slow)])
@pytest.mark.timeout(1800)
def test_mutated_checkpoints_are_read_or_refused(count: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = made.sized("yolo11", SMALL, ["a", "b", "c"])
    path = saved(tmp_path / "best.pt", {"model": model.half(), "ema": None})
    mutated_checkpoints.read_or_refuse(path, tmp_path, count)


def all_of_it(model: Any) -> None:
    """Attention between all pixels of the image: 4 x 102,400 x 102,400 weights."""
    model.model[0].conv.stride = (2, 2)


def many_pools(model: Any) -> None:
    model.model[1].n = 10**9


def one_weight_for_many(model: Any) -> None:
    first, second = model.model[1].m[:2]
    second.cv1.conv.weight = first.cv1.conv.weight


def wide_split(model: Any) -> None:
    model.model[1].attn.key_dim = 10**9


def no_numbers(model: Any) -> None:
    model.model[-1].dfl.conv.weight = nn.Parameter(torch.zeros(0, 1, 1, 1))


def lost_branch(model: Any) -> None:
    del model.model[-1].cv3[0]


DAMAGED = "is damaged: its network cannot be run."


@pytest.mark.parametrize(
    ("layer", "change", "sentence"),
    [
        ("PSABlock", all_of_it, "has a layer that makes 41943040000 values of a 640-pixel image"),
        ("SPPF", many_pools, DAMAGED),
        ("C2f", one_weight_for_many, DAMAGED),
        ("PSABlock", wide_split, DAMAGED),
        ("C2f", no_numbers, DAMAGED),
        ("C2f", lost_branch, DAMAGED),
    ],
)
def test_network_that_asks_for_too_much_is_refused(
    layer: str, change: Callable[[Any], None], sentence: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = chain(BLOCKS[layer]())
    change(model)
    assert refusal(saved(tmp_path / "best.pt", {"model": model})).startswith(f"best.pt {sentence}")
