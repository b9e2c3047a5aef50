"""The model repository runs on any Triton; and names that two places share are the same in both."""

from __future__ import annotations

import ast
import re
import sys
from dataclasses import asdict
from pathlib import Path

import endpoint_registry
import endpoints
import network_spec
import pytest
import settings
from google.protobuf import text_format
from one_image import placement_of
from parameters import PARAMETER_NAMES
from support import REPOSITORY, ROOT
from thresholds import Thresholds
from tritonclient.grpc import model_config_pb2

from yolov5_build import _contract as build_names
from yolov5_build._networks import is_name
from yolov5_client import _contract as client_names
from yolov5_server import _repository

MODELS = ("preprocess", "yolov5", "postprocess", "yolov5_ensemble")


def read_config(model: str) -> model_config_pb2.ModelConfig:
    text = (REPOSITORY / model / "config.pbtxt").read_text()
    return text_format.Parse(text, model_config_pb2.ModelConfig())


def test_repository_holds_these_models_and_nothing_else() -> None:
    assert {path.name for path in REPOSITORY.iterdir()} == set(MODELS)


@pytest.mark.parametrize("model", MODELS)
def test_configuration_is_portable(model: str) -> None:
    config = read_config(model)
    assert config.name == model
    # A runtime names a file that only a Python-based backend has.
    assert not config.runtime
    # Other kinds fail on a machine without a GPU; by default Triton uses what there is.
    kinds = {group.kind for group in config.instance_group}
    assert kinds <= {model_config_pb2.ModelInstanceGroup.KIND_AUTO}
    assert not any(group.gpus for group in config.instance_group)
    # The cache ignores the thresholds, which are parameters.
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
    # A field that the oldest server supported, 2.51, cannot parse.
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
def test_code_imports_only_what_every_server_has(path: Path) -> None:
    allowed = {"numpy", "cv2", "torch", "torchvision", "google", "tritonclient", "opentelemetry"}
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


def test_steps_share_modules_by_links_that_can_be_copied() -> None:
    written, read = (REPOSITORY / step / "1" for step in ("preprocess", "postprocess"))
    shared = {path.name for path in read.glob("*.py") if (written / path.name).exists()}
    for name in shared - {"model.py"}:
        assert (read / name).readlink() == Path("../../preprocess/1") / name
    assert {"completion.py", "network_spec.py", "placement.py", "thresholds.py"} <= shared


def test_both_steps_describe_the_tensors_between_them_alike() -> None:
    written = {tensor.name: tensor for tensor in read_config("preprocess").output}
    read = {tensor.name: tensor for tensor in read_config("postprocess").input}
    assert read.keys() - written.keys() == {"output0"}
    for name in read.keys() & written.keys():
        assert read[name].data_type == written[name].data_type
        assert read[name].dims == written[name].dims
    placement = placement_of([1, 1, 0, 0, 480, 640])
    thresholds = Thresholds.from_row([0.25, 0.45, 300, 0, 0])
    assert [*read["placement"].dims] == [len(placement.as_row())]
    assert [*read["nms"].dims] == [len(thresholds.as_row())]


def test_client_and_endpoint_agree() -> None:
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


def test_build_tool_and_ensemble_agree() -> None:
    config = read_config("yolov5_ensemble")
    step = config.ensemble_scheduling.step[1]
    assert step.model_name == build_names.MODEL
    assert set(step.input_map) == {build_names.PIXELS, build_names.NMS}
    assert list(step.output_map) == [build_names.OUTPUT]


def test_build_tool_offers_what_the_steps_can_do() -> None:
    assert build_names.LETTERBOX_MODES == network_spec.LETTERBOX_MODES
    assert build_names.HEADS == network_spec.HEADS


def test_steps_read_the_endpoint_from_its_wiring() -> None:
    endpoint = endpoint_registry.read_endpoint(REPOSITORY / build_names.ENSEMBLE)
    assert (endpoint.name, endpoint.slot) == (build_names.MODEL, 0)
    assert [tensor.name for tensor in read_config("preprocess").input] == [
        *endpoint_registry.INPUTS
    ]


@pytest.mark.parametrize(
    "name",
    [
        *("plates", "a", "0", "a-b_c", "a" * 40, "a" * 41, "", "Plates", "a.b", "a b", "ä", "-a"),
        *("_a", "a\n", "a_ensemble", "_ensemble", "preprocess", "postprocess", "preprocess-2"),
    ],
)
def test_every_part_allows_the_same_names_of_networks(name: str) -> None:
    """Each part runs without the others, and so has the rule for itself."""
    try:
        by_client = client_names.check_network(name) == name
    except ValueError:
        by_client = False
    by_gateway = endpoints._is_network(name)
    assert is_name(name) == by_client == _repository.is_name(name) == by_gateway


def test_every_default_is_in_the_configuration() -> None:
    """With the values that the documents promise to callers."""
    config = read_config("preprocess")
    given = {name: value.string_value for name, value in config.parameters.items()}
    # These have no text for their defaults: all classes, and the same threshold for all.
    assert set(PARAMETER_NAMES) - set(given) == {"classes", "class_conf_thres"}
    assert asdict(settings.read_settings(given, ("a",)).defaults) == {
        "conf_thres": 0.25,
        "iou_thres": 0.45,
        "max_det": 300,
        "classes": frozenset(),
        "agnostic_nms": False,
        "multi_label": False,
        "class_conf_thres": {},
    }


def test_all_modules_but_triton_glue_are_typed() -> None:
    backends = sorted((ROOT / "server" / "backends").glob("*/*.py"))
    for path in (*modules(), *backends):
        if path.name != "model.py":
            assert "from __future__ import annotations" in path.read_text(), path


DOCKERFILES = ("Dockerfile", "Dockerfile.cpu")


def instructions(dockerfile: str) -> list[str]:
    """The instructions of a Dockerfile, each in one line."""
    text = (ROOT / "build" / dockerfile).read_text().replace("\\\n", "")
    return [line for line in text.splitlines() if line and not line.startswith("#")]


@pytest.mark.parametrize("dockerfile", DOCKERFILES)
def test_the_image_gets_what_its_dockerfile_copies(dockerfile: str) -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    let_through = [line[1:] for line in lines if line.startswith("!")]
    copied = [
        source
        for line in instructions(dockerfile)
        if line.startswith("COPY ") and "--from=" not in line
        for source in line.split()[1:-1]
    ]
    assert {"server", "client/yolov5_client", "model_repository"} <= {*copied}
    for path in copied:
        assert (ROOT / path).exists(), path
        # In full, or the parts of it that are for an image.
        assert any(
            path == one or path.startswith(f"{one}/") or one.startswith(f"{path}/")
            for one in let_through
        ), path
    needed = [
        "model_repository/yolov5_ensemble/config.pbtxt",
        "server/tritonserver.flags",
        "server/backends/onnxruntime/model.py",
        "server/yolov5_server/__main__.py",
    ]
    for path in needed:
        assert (ROOT / path).is_file()
        assert any(path == one or path.startswith(f"{one}/") for one in let_through), path


@pytest.mark.parametrize("dockerfile", DOCKERFILES)
def test_image_runs_as_a_numbered_user_and_says_what_it_is(dockerfile: str) -> None:
    lines = instructions(dockerfile)
    users = [line for line in lines if line.startswith("USER ")]
    assert users[-1] == "USER 1000:1000"
    assert any(line.startswith("HEALTHCHECK ") and "8003/ready" in line for line in lines)
    (label,) = [line for line in lines if line.startswith("LABEL ")]
    for name in ("title", "description", "licenses", "version", "revision", "base.name"):
        assert f"org.opencontainers.image.{name}=" in label
    # What is downloaded stays in an earlier stage, and so do package managers' caches.
    last = lines[max(i for i, line in enumerate(lines) if line.startswith("FROM ")) :]
    assert not any(line.startswith(("RUN ", "ADD ")) for line in last)


@pytest.mark.parametrize("dockerfile", DOCKERFILES)
def test_image_is_built_from_locked_packages_alone(dockerfile: str) -> None:
    installs = [line for line in instructions(dockerfile) if "pip" in line and " install " in line]
    assert installs
    for line in installs:
        commands = [part for part in line.split("&&") if " install " in part and "pip" in part]
        for command in commands:
            assert "--require-hashes" in command, command
            assert "--no-deps" in command, command


def locked(name: str) -> dict[str, set[str]]:
    """Versions by package in a lock, without those for Pythons that Triton does not support."""
    found: dict[str, set[str]] = {}
    for line in (ROOT / name).read_text().splitlines():
        pinned = re.match(r"([a-z0-9.-]+)==(\S+)", line)
        if pinned and "python_full_version >= '3.13'" not in line:
            found.setdefault(pinned[1], set()).add(pinned[2])
    return found


@pytest.mark.parametrize("name", ["requirements-server.lock", "requirements-server-gpu.lock"])
def test_images_hold_what_the_tests_ran_with_and_nothing_to_build_or_test(name: str) -> None:
    everything, image = locked("requirements.lock"), locked(name)
    for package, versions in image.items():
        if package != "colorama":  # for Windows, which the environment does not support
            assert versions <= everything[package], package
    assert not {"hypothesis", "mypy", "onnx", "playwright", "pytest", "pycocotools"} & set(image)
    assert {"fsspec", "onnxruntime", "openvino", "s3fs", "starlette", "torch"} <= set(image)


def test_image_for_cpus_holds_no_cuda_but_what_torch_is_linked_to() -> None:
    packages = locked("requirements-server.lock")
    assert {name for name in packages if name.startswith(("cuda", "nvidia", "triton"))} == {
        "nvidia-cuda-cupti",
        "nvidia-cuda-runtime",
        "nvidia-pytriton",
        "tritonclient",
    }


def test_links_of_the_backends_lead_to_the_steps_in_the_image() -> None:
    backends = ROOT / "server" / "backends"
    targets = [path.resolve() for path in backends.rglob("*.py") if path.is_symlink()]
    outside = [path for path in targets if not path.is_relative_to(backends)]
    assert outside
    assert all(path.is_relative_to(REPOSITORY) for path in outside)
    # The images have server/ in /opt/server, and model_repository/ in /models.
    script = (ROOT / "build" / "image" / "project.sh").read_text()
    assert 'ln -s /models "$root/opt/model_repository"\n' in script
