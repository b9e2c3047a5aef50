"""The network's prefiltered variant, which is served: bytes in, rows over a confidence out."""

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
from prefilter import with_prefilter
from variants import open_runs

from yolov5_build import (
    BuildError,
    Checkpoint,
    export_onnx,
    export_prefiltered,
)
from yolov5_build import cli as command
from yolov5_build._onnx_prefiltered import prefiltered_from
from yolov5_build.photos import example_images

Array = NDArray[Any]


Exported = Callable[..., tuple[Path, Path]]


@pytest.fixture(scope="module")
def exported_once(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    @functools.cache
    def once(*, bundled: bool = False, **form: Any) -> tuple[Path, Path]:
        network = checkpoint if bundled else read_small()
        folder = tmp_path_factory.mktemp("exported")
        full, prefiltered = folder / "model.onnx", folder / "served.onnx"
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
    assert found.shape == (1, max(len(wanted), 1), 8)
    np.testing.assert_array_equal(found[0, : len(wanted)], wanted)
    assert not found[0, len(wanted) :].any()


@pytest.mark.parametrize("form", [{}, {"reduced_head": True}, {"half": True}], ids=str)
@pytest.mark.parametrize("keep_all", [False, True])
def test_each_image_of_a_batch_has_the_rows_over_its_own_confidence(
    exported: Exported, tmp_path: Path, form: dict[str, Any], keep_all: bool
) -> None:
    """Of a checkpoint's own variant and of those that are made of a file; the last ones keep the
    place of the other rows."""
    half = form.get("half", False)
    full = tmp_path / "model.onnx"
    export_onnx(read_small(), full, imgsz=128, **form)
    variants = [prefiltered_from(onnx.load(full), keep_all=keep_all)]
    if not half and not keep_all:
        variants.append(onnx.load(exported(imgsz=128, **form)[1]))
    images = np.tile(example_images(128, 128), (2, 1, 1, 1))
    whole = rows(full, images=images)
    score = 0.9 * float(whole[..., 4].max())
    confidences = np.array([score, 0.01, 2, score / 2], np.float32)
    thresholds = np.repeat(confidences[:, None], 5, 1)
    for model in variants:
        onnx.checker.check_model(model)
        onnx.save(model, tmp_path / "variant.onnx")
        pixels = np.rint(images * 255).astype(np.uint8)
        found = rows(tmp_path / "variant.onnx", pixels=pixels, nms=thresholds)
        over = whole[..., 4] > confidences[:, None]
        if keep_all:
            np.testing.assert_array_equal(found, np.where(over[..., None], whole, 0))
            continue
        wanted = [one[chosen] for one, chosen in zip(whole, over)]
        if form.get("reduced_head") and model is variants[-1]:
            continue  # its rows are chosen by their objectness, which is over the score
        assert found.shape[1] == max(map(len, wanted)) > 1
        assert len({*map(len, wanted)}) > 2 and not len(wanted[2])
        for one, kept in zip(found, wanted):
            np.testing.assert_array_equal(one[: len(kept)], kept)
            assert not one[len(kept) :].any()


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


def test_networks_of_every_precision_have_a_prefiltered_variant(
    small_weights: Path, tmp_path: Path
) -> None:
    for flags in ((), ("--half",)):
        arguments = [str(small_weights), "--imgsz=64", f"--repository={tmp_path}", *flags]
        assert command.main(arguments) == 0
        (version,) = (tmp_path / "yolov5").glob("[0-9]*")
        noted = onnxruntime.InferenceSession(version / "served.onnx").get_modelmeta()
        full = hashlib.sha256((version / "model.onnx").read_bytes()).hexdigest()
        assert noted.custom_metadata_map == {"full_sha256": full}
        assert '"served.onnx"' in (tmp_path / "yolov5" / "config.pbtxt").read_text()


# ---------------------------------------------------------------------------------------------
# In the backend `onnxruntime`


def config(side: int = 64, columns: int = 8, **changes: Any) -> dict[str, Any]:
    sides = [3, side, side]
    return {
        "name": "m",
        "max_batch_size": 8,
        "default_model_filename": "served.onnx",
        "input": [
            {"name": "pixels", "data_type": "TYPE_UINT8", "dims": sides},
            {"name": "nms", "data_type": "TYPE_FP32", "dims": [5]},
        ],
        "output": [{"name": "output0", "data_type": "TYPE_FP32", "dims": [-1, columns]}],
        "parameters": {"full": {"string_value": "model.onnx"}},
        **changes,
    }


def test_configuration_must_fit_the_prefiltered_variant(exported: Exported, tmp_path: Path) -> None:
    exported(imgsz=64)
    for wrong in (config(96), config(columns=9), config(input=config()["input"][:1])):
        with pytest.raises(ConfigError):
            open_runs(wrong, tmp_path, 1, warn=pytest.fail)


def test_variant_is_opened_for_each_number_of_threads(exported: Exported, tmp_path: Path) -> None:
    full, _ = exported(imgsz=64)
    runs = open_runs(config(), tmp_path, 4, warn=pytest.fail)
    assert list(runs) == [1, 4]
    images = example_images(64, 64)[:1]
    pixels = np.rint(images * 255).astype(np.uint8)
    whole = rows(full, images=images)
    for run in runs.values():
        found = run({"pixels": pixels, "nms": nms(-1)})["output0"]
        np.testing.assert_allclose(found, whole, rtol=1e-5, atol=1e-5)


def test_network_of_an_earlier_version_is_opened(exported: Exported, tmp_path: Path) -> None:
    """Its configuration has images in and all rows out."""
    full, _ = exported(imgsz=64)
    images = example_images(64, 64)[:1]
    whole = rows(full, images=images)
    earlier = {
        "name": "m",
        "max_batch_size": 8,
        "input": [{"name": "images", "data_type": "TYPE_FP32", "dims": [3, 64, 64]}],
        "output": [
            {"name": "output0", "data_type": "TYPE_FP32", "dims": [*whole.shape[1:]]},
        ],
    }
    (run,) = open_runs(earlier, tmp_path, 1, warn=pytest.fail).values()
    np.testing.assert_array_equal(run({"images": images})["output0"], whole)


def test_full_network_that_was_exchanged_is_warned_of(exported: Exported, tmp_path: Path) -> None:
    """Another model.onnx was copied into the folder by hand."""
    full, prefiltered = exported(imgsz=64)
    noted = onnxruntime.InferenceSession(prefiltered).get_modelmeta().custom_metadata_map
    assert noted == {"full_sha256": hashlib.sha256(full.read_bytes()).hexdigest()}
    model = onnx.load(full)
    model.doc_string = "another"
    onnx.save(model, full)
    warnings: list[str] = []
    assert list(open_runs(config(), tmp_path, 2, warn=warnings.append)) == [1, 2]
    assert warnings == [
        "served.onnx was not made from this model.onnx, and is what runs; `make model` writes both."
    ]
    prefiltered.unlink()
    with pytest.raises(ConfigError, match="unable to find 'served.onnx' for model 'm'"):
        open_runs(config(), tmp_path, 2, warn=warnings.append)


def test_full_network_beside_its_prefilter_gives_the_variants_rows(
    exported: Exported, tmp_path: Path
) -> None:
    full, prefiltered = exported(imgsz=64)
    session = onnxruntime.InferenceSession(full)
    network = with_prefilter(lambda inputs: {"output0": session.run(None, dict(inputs))[0]})
    pixels = np.rint(example_images(64, 64)[:1] * 255).astype(np.uint8)
    thresholds = nms(0.05)
    wanted = rows(prefiltered, pixels=pixels, nms=thresholds)
    assert wanted.shape[1] > 3
    found = network({"pixels": pixels, "nms": thresholds})["output0"]
    np.testing.assert_array_equal(found, wanted)


def test_reduced_head_without_rows_keeps_its_columns(exported: Exported, tmp_path: Path) -> None:
    exported(imgsz=64, reduced_head=True)
    (run,) = open_runs(config(columns=6), tmp_path, 1, warn=pytest.fail).values()
    pixels = np.zeros((1, 3, 64, 64), np.uint8)
    found = run({"pixels": pixels, "nms": nms(1.0)})["output0"]
    assert found.shape == (1, 1, 6) and not found.any()
