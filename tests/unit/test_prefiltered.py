"""The network's prefiltered variant for the CPU: bytes in, rows over a confidence out."""

from __future__ import annotations

import copy
import functools
import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from checkpoints import read_small
from config_check import ConfigError
from numpy.typing import NDArray
from prefilter import check_prefiltered, with_prefilter
from support import GraphTensor
from variants import open_variants

from yolov5_build import (
    BuildError,
    Checkpoint,
    export_onnx,
    export_prefiltered,
)
from yolov5_build import cli as command
from yolov5_build.photos import example_images

Array = NDArray[Any]


Exported = Callable[..., tuple[Path, Path]]


@pytest.fixture(scope="module")
def exported_once(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    @functools.cache
    def once(*, bundled: bool = False, **form: Any) -> tuple[Path, Path]:
        network = checkpoint if bundled else read_small()
        folder = tmp_path_factory.mktemp("exported")
        full, prefiltered = folder / "model.onnx", folder / "prefiltered.onnx"
        export_onnx(network, full, **form)
        export_prefiltered(network, prefiltered, full, **form)
        return full, prefiltered

    return once


@pytest.fixture
def exported(exported_once: Exported, tmp_path: Path) -> Exported:
    """A function that gives the full and the prefiltered network, which a test may change."""

    def now(**form: Any) -> tuple[Path, Path]:
        full, prefiltered = exported_once(**form)
        return Path(shutil.copy(full, tmp_path)), Path(shutil.copy(prefiltered, tmp_path))

    return now


def rows(path: Path, **inputs: Array) -> Array:
    found: Array = onnxruntime.InferenceSession(path).run(None, inputs)[0]
    return found


def nms(conf_thres: float) -> Array:
    return np.array([[conf_thres, 0.45, 300, 0, 0]], np.float32)


@pytest.mark.parametrize(
    "bundled",
    # `make setup` compares those of the bundled network, and the server's tests use them.
    [False, pytest.param(True, marks=pytest.mark.slow)],
    ids=["small", "bundled"],
)
@pytest.mark.parametrize("conf_thres", [0.25, 0.001, 0.0, 1.0])
def test_prefiltered_rows_are_the_rows_over_the_confidence(
    exported: Exported, conf_thres: float, bundled: bool
) -> None:
    full, prefiltered = exported(bundled=bundled, imgsz=(256, 320))
    images = example_images(256, 320)[:1]
    whole = rows(full, images=images)[0]
    wanted = whole[whole[:, 4] > np.float32(conf_thres)]
    assert (len(wanted) > 0) == (conf_thres < 1)
    pixels = np.rint(images * 255).astype(np.uint8)
    found = rows(prefiltered, pixels=pixels, nms=nms(conf_thres))
    np.testing.assert_array_equal(found, wanted[None])


def test_dynamic_variant_takes_images_of_any_shape(exported: Exported) -> None:
    full, prefiltered = exported(imgsz=128, dynamic=True)
    images = example_images(96, 160)[:1]
    whole = rows(full, images=images)[0]
    pixels = np.rint(images * 255).astype(np.uint8)
    found = rows(prefiltered, pixels=pixels, nms=nms(0.01))
    np.testing.assert_array_equal(found[0], whole[whole[:, 4] > np.float32(0.01)])
    assert found.shape[1] > 3


def test_reduced_head_keeps_every_row_over_the_confidence(exported: Exported) -> None:
    full, prefiltered = exported(imgsz=128, reduced_head=True)
    images = example_images(128, 128)[:1]
    whole = rows(full, images=images)[0]
    found = rows(prefiltered, pixels=np.rint(images * 255).astype(np.uint8), nms=nms(0.1))[0]
    # A score is at most its objectness.
    assert {*map(bytes, whole[whole[:, 4] > 0.1])} <= {*map(bytes, found)} <= {*map(bytes, whole)}


def test_variant_that_answers_differently_is_refused(exported: Exported) -> None:
    checkpoint = copy.deepcopy(read_small())
    full, prefiltered = exported(imgsz=64)
    with pytest.raises(BuildError, match="prefiltered variant returns rows of another shape"):
        export_prefiltered(checkpoint, prefiltered, full, imgsz=64, reduced_head=True)
    head: Any = checkpoint.network.head
    head.anchors *= 1.01
    with pytest.raises(BuildError, match="prefiltered variant differs from it by .*allowed 0.001"):
        export_prefiltered(checkpoint, prefiltered, full, imgsz=64)


def test_only_fp32_networks_have_a_prefiltered_variant(small_weights: Path, tmp_path: Path) -> None:
    for flags, there in (((), True), (("--half",), False)):
        arguments = [str(small_weights), "--imgsz=64", f"--repository={tmp_path}", *flags]
        assert command.main(arguments) == 0
        (version,) = (tmp_path / "yolov5").glob("[0-9]*")
        assert (version / "prefiltered.onnx").exists() == there
        config = (tmp_path / "yolov5" / "configs" / "embedded.pbtxt").read_text()
        assert ('"prefiltered.onnx"' in config) == there
        assert "prefiltered" not in (tmp_path / "yolov5" / "config.pbtxt").read_text()


# ---------------------------------------------------------------------------------------------
# In the backend `onnxruntime`

INPUTS = [
    GraphTensor("pixels", "tensor(uint8)", [1, 3, 64, 64]),
    GraphTensor("nms", "tensor(float)", [1, 5]),
]
OUTPUTS = [GraphTensor("output0", "tensor(float)", [1, "rows", 8])]


def config(side: int = 64, columns: int = 8, **changes: Any) -> dict[str, Any]:
    sides = [3, side, side]
    return {
        "name": "m",
        "max_batch_size": 8,
        "input": [
            {"name": "images", "data_type": "TYPE_FP32", "dims": sides, "optional": True},
            {"name": "pixels", "data_type": "TYPE_UINT8", "dims": sides, "optional": True},
            {"name": "nms", "data_type": "TYPE_FP32", "dims": [5], "optional": True},
        ],
        "output": [{"name": "output0", "data_type": "TYPE_FP32", "dims": [-1, columns]}],
        "parameters": {"prefiltered": {"string_value": "prefiltered.onnx"}},
        **changes,
    }


def test_configuration_must_fit_the_prefiltered_variant() -> None:
    check_prefiltered(config(), INPUTS, OUTPUTS)
    for wrong in (config(96), config(columns=9), config(input=config()["input"][:1])):
        with pytest.raises(ConfigError):
            check_prefiltered(wrong, INPUTS, OUTPUTS)


def test_only_requests_with_pixels_and_nms_use_the_prefiltered_variant() -> None:
    asked = []

    def variant(name: str) -> Any:
        def run(inputs: Any) -> Any:
            asked.append((name, sorted(inputs)))
            return {"output0": np.zeros((1, 2, 8), np.float32)}

        return run

    network = with_prefilter(variant("full"), variant("prefiltered"))
    pixels = np.zeros((1, 3, 8, 8), np.uint8)
    network({"pixels": pixels, "nms": nms(0.5)})
    network({"pixels": pixels})
    network({"images": pixels, "nms": nms(0.5)})
    assert asked == [
        ("prefiltered", ["nms", "pixels"]),
        ("full", ["images"]),
        ("full", ["images"]),
    ]


def test_both_variants_are_opened_for_each_number_of_threads(
    exported: Exported, tmp_path: Path
) -> None:
    exported(imgsz=64)
    warnings: list[str] = []
    variants = open_variants(config(), tmp_path, 4, warn=warnings.append)
    assert list(variants.full) == list(variants.prefiltered) == [1, 4]
    images = example_images(64, 64)[:1]
    pixels = np.rint(images * 255).astype(np.uint8)
    whole = variants.full[1]({"images": images})["output0"][0].copy()
    for run in variants.prefiltered.values():
        found = run({"pixels": pixels, "nms": nms(-1)})["output0"][0]
        np.testing.assert_allclose(found, whole, rtol=1e-5, atol=1e-5)
    without = config(parameters={})
    assert not open_variants(without, tmp_path, 4, warn=warnings.append).prefiltered
    assert warnings == []


def test_variant_of_another_network_is_not_used(exported: Exported, tmp_path: Path) -> None:
    """Another model.onnx was copied into the folder by hand."""
    full, prefiltered = exported(imgsz=64)
    noted = onnxruntime.InferenceSession(prefiltered).get_modelmeta().custom_metadata_map
    assert noted == {"full_sha256": hashlib.sha256(full.read_bytes()).hexdigest()}
    model = onnx.load(full)
    model.doc_string = "another"
    onnx.save(model, full)
    warnings: list[str] = []
    variants = open_variants(config(), tmp_path, 2, warn=warnings.append)
    assert list(variants.full) == [1, 2]
    assert not variants.prefiltered
    assert warnings == [
        "prefiltered.onnx was not made from this model.onnx, which runs in its place;"
        " `make model` writes both."
    ]
    prefiltered.unlink()
    with pytest.raises(ConfigError, match="unable to find 'prefiltered.onnx' for model 'm'"):
        open_variants(config(), tmp_path, 2, warn=warnings.append)


def test_reduced_head_without_rows_keeps_its_columns(exported: Exported, tmp_path: Path) -> None:
    exported(imgsz=64, reduced_head=True)
    variants = open_variants(config(columns=6), tmp_path, 1, warn=pytest.fail)
    pixels = np.zeros((1, 3, 64, 64), np.uint8)
    found = variants.prefiltered[1]({"pixels": pixels, "nms": nms(1.0)})["output0"]
    assert found.shape == (1, 0, 6)
