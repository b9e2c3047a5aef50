"""The model repository runs anywhere: nothing in it is for the embedded server alone. And a name
that two places must share is the same in both."""

from __future__ import annotations

import ast
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import served_model
import settings
from google.protobuf import text_format
from parameters import NAMES
from support import REPOSITORY, ROOT
from tritonclient.grpc import model_config_pb2

from yolov5_build import _contract as build_names
from yolov5_client import _contract as client_names

MODELS = ("preprocess", "yolov5", "postprocess", "yolov5_ensemble")


def read_config(model: str) -> model_config_pb2.ModelConfig:
    text = (REPOSITORY / model / "config.pbtxt").read_text()
    return text_format.Parse(text, model_config_pb2.ModelConfig())


def test_it_holds_these_models_and_nothing_else() -> None:
    assert {path.name for path in REPOSITORY.iterdir()} == set(MODELS)


@pytest.mark.parametrize("model", MODELS)
def test_a_configuration_is_portable(model: str) -> None:
    config = read_config(model)
    assert config.name == model
    # It would name a file that only a Python-based backend has.
    assert not config.runtime
    # These stop a machine without a GPU; left out, Triton takes what there is.
    kinds = {group.kind for group in config.instance_group}
    assert kinds <= {model_config_pb2.ModelInstanceGroup.KIND_AUTO}
    assert not any(group.gpus for group in config.instance_group)
    # It would ignore the thresholds, which are parameters.
    assert not config.response_cache.enable
    text = (REPOSITORY / model / "config.pbtxt").read_text()
    values = [parameter.string_value for parameter in config.parameters.values()]
    files = [
        tensor.input_data_file
        for sample in config.model_warmup
        for tensor in sample.inputs.values()
    ]
    for value in (*values, *files, config.default_model_filename):
        assert not value.startswith(("/", "~")), value
        assert ".." not in value
    # Fields that the oldest server here, 2.51, cannot parse.
    assert "max_inflight_requests" not in text


def test_every_step_batches_and_no_more_than_the_endpoint_allows() -> None:
    batch = read_config("yolov5_ensemble").max_batch_size
    for model in MODELS[:3]:
        config = read_config(model)
        assert config.HasField("dynamic_batching"), model
        assert config.max_batch_size >= batch


def modules() -> list[Path]:
    return sorted(REPOSITORY.glob("*/1/*.py"))


@pytest.mark.parametrize("path", modules(), ids=lambda path: f"{path.parts[-3]}/{path.name}")
def test_the_code_needs_only_what_every_server_has(path: Path) -> None:
    allowed = {"numpy", "cv2", "torch", "torchvision", "google", "tritonclient"}
    beside = {other.stem for other in path.parent.glob("*.py")}
    tree = ast.parse(path.read_text())
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            imported.add(node.module.partition(".")[0])
    glue = path.name == "model.py"
    assert ("triton_python_backend_utils" in imported) == glue
    assert imported - allowed - beside - sys.stdlib_module_names <= {"triton_python_backend_utils"}


def test_the_client_and_the_endpoint_agree() -> None:
    config = read_config(client_names.MODEL)
    assert [tensor.name for tensor in config.input] == [client_names.IMAGE]
    assert {tensor.name for tensor in config.output} == set(client_names.OUTPUTS)
    steps = [step.model_name for step in config.ensemble_scheduling.step]
    assert tuple(steps) == MODELS[:3]


def test_every_step_has_a_double_that_closes_it() -> None:
    folder = ROOT / "server" / "closed_steps"
    assert {path.name for path in folder.iterdir()} == {*MODELS[:3], "README.md"}
    for model in MODELS[:3]:
        text = (folder / model / "config.pbtxt").read_text()
        double = text_format.Parse(text, model_config_pb2.ModelConfig())
        assert double.name == model
        assert [step.model_name for step in double.ensemble_scheduling.step] == ["yolov5_ensemble"]
        assert (folder / model / "1").is_dir()


def test_the_build_tool_and_the_ensemble_agree() -> None:
    config = read_config("yolov5_ensemble")
    step = config.ensemble_scheduling.step[1]
    assert step.model_name == build_names.MODEL
    assert list(step.input_map) == [build_names.INPUT]
    assert list(step.output_map) == [build_names.OUTPUT]


def test_the_build_tool_offers_what_the_steps_can_do() -> None:
    assert build_names.LETTERBOX_MODES == served_model.LETTERBOX_MODES
    assert build_names.HEADS == served_model.HEADS


def test_both_steps_look_at_the_served_network() -> None:
    for step in ("preprocess", "postprocess"):
        assert read_config(step).parameters["network"].string_value == build_names.MODEL


def test_every_default_is_in_the_configuration() -> None:
    config = read_config("preprocess")
    given = {name: value.string_value for name, value in config.parameters.items()}
    # All classes is the default of `classes`, and has no text.
    assert set(NAMES) - set(given) == {"classes"}
    assert asdict(settings.read_settings(given, ("a",)).defaults) == {
        "conf_thres": 0.25,
        "iou_thres": 0.45,
        "max_det": 300,
        "classes": frozenset(),
        "agnostic_nms": False,
        "multi_label": False,
    }


def test_only_triton_glue_is_free_of_types() -> None:
    backends = sorted((ROOT / "server" / "backends").glob("*/*.py"))
    for path in (*modules(), *backends):
        if path.name != "model.py":
            assert "from __future__ import annotations" in path.read_text(), path


def test_the_image_gets_what_its_dockerfile_copies() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    let_through = [line[1:] for line in lines if line.startswith("!")]
    copied = [
        line.split()[1]
        for line in (ROOT / "build" / "Dockerfile").read_text().splitlines()
        if line.startswith("COPY ")
    ]
    assert copied == ["requirements.lock", "server", "model_repository"]
    needed = [
        "requirements.lock",
        "model_repository/yolov5_ensemble/config.pbtxt",
        "server/tritonserver.flags",
        "server/yolov5_server/__main__.py",
    ]
    for path in needed:
        assert (ROOT / path).is_file()
        assert any(path == one or path.startswith(f"{one}/") for one in let_through), path
