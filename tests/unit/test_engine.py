from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from enum import Enum
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from support import REPOSITORY

from yolov5_build import BuildError, _plan, _tensorrt, engine
from yolov5_build._onnx_prefiltered import prefiltered_from
from yolov5_build._plan import BuildPrecision, Profile, choose_precision, to_onnx, to_plan
from yolov5_build._record import Accuracy, Record, read_record, write_record
from yolov5_build._version import kept_versions, link_tree

CONFIG = """\
# The trained network, with a comment that must be kept.
name: "yolov5"
backend: "onnxruntime"
default_model_filename: "served.onnx"
max_batch_size: 8

input [
  # RGB 0..255, letterboxed.
  { name: "pixels" data_type: TYPE_UINT8 dims: [ 3, 64, 96 ] },
  { name: "nms" data_type: TYPE_FP32 dims: [ 5 ] }
]
output [
  { name: "output0" data_type: TYPE_FP32 dims: [ -1, 8 ] }
]
parameters { key: "letterbox" value: { string_value: "square" } }
parameters { key: "head" value: { string_value: "full" } }
parameters { key: "intra_op_thread_count" value: { string_value: "0" } }
dynamic_batching { }
model_warmup [
  {
    name: "one image"
    batch_size: 1
    inputs {
      key: "pixels"
      value: { data_type: TYPE_UINT8 dims: [ 3, 64, 96 ] random_data: true }
    }
  }
]
"""
RECT = """
parameters { key: "imgsz" value: { string_value: "384 640" } }
parameters { key: "stride" value: { string_value: "32" } }
"""
NOTE = "TensorRT 10.13.3.9, NVIDIA H200 (compute capability 9.0), fp16."
GPU = _tensorrt.Gpu(name="NVIDIA H200", capability="9.0")


def make_repository(folder: Path, precision: str | None = None) -> Path:
    """A repository with nothing but `yolov5/`: one convolution, 6 rows of 8 columns."""
    repository = folder / "model_repository"
    version = repository / "yolov5" / "1"
    version.mkdir(parents=True)
    (repository / "yolov5" / "config.pbtxt").write_text(CONFIG)
    (repository / "yolov5" / "labels.txt").write_text("Platelets\nRBC\nWBC\n")
    kernel = np.random.default_rng(0).random((8, 3, 32, 32), np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["images", "kernel"], ["maps"], strides=[32, 32]),
            helper.make_node("Reshape", ["maps", "shape"], ["flat"]),
            helper.make_node("Transpose", ["flat"], ["output0"], perm=[0, 2, 1]),
        ],
        "tiny",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, 64, 96])],
        [helper.make_tensor_value_info("output0", TensorProto.FLOAT, ["batch", 6, 8])],
        [
            numpy_helper.from_array(kernel, "kernel"),
            numpy_helper.from_array(np.array([0, 8, 6]), "shape"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    if precision is not None:
        helper.set_model_props(model, {"precision": precision})
    onnx.save(model, version / "model.onnx")
    return repository


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


# ---------------------------------------------------------------------------------------------
# Profile


def test_profile_of_a_fixed_size_ranges_over_the_batch() -> None:
    config = _plan.parse_config(CONFIG)
    assert _plan.profiles_for(config) == {
        "pixels": Profile(min=(1, 3, 64, 96), opt=(8, 3, 64, 96), max=(8, 3, 64, 96)),
        "nms": Profile(min=(1, 5), opt=(8, 5), max=(8, 5)),
    }
    assert _plan.profiles_for(config, 2)["pixels"].opt == (2, 3, 64, 96)
    assert _plan.profiles_for(config, 2)["nms"].opt == (2, 5)


def test_profile_of_an_open_size_ranges_from_stride_to_imgsz() -> None:
    config = _plan.parse_config(CONFIG.replace("3, 64, 96", "3, -1, -1") + RECT)
    assert _plan.profiles_for(config, 4)["pixels"] == Profile(
        min=(1, 3, 32, 32), opt=(4, 3, 384, 640), max=(8, 3, 384, 640)
    )


@pytest.mark.parametrize("lines", ["", RECT.replace('"384 640"', '"640"'), RECT[:-60]])
def test_open_size_without_limits_is_refused(lines: str) -> None:
    config = _plan.parse_config(CONFIG.replace("3, 64, 96", "3, -1, -1") + lines)
    with pytest.raises(BuildError, match="size open without the parameters imgsz and stride"):
        _plan.profiles_for(config)


@pytest.mark.parametrize(
    "old, new", [("max_batch_size: 8", ""), ("3, 64, 96", "3, 64"), ('"pixels"', '"images"')]
)
def test_profile_without_a_batch_or_with_another_input_is_refused(old: str, new: str) -> None:
    with pytest.raises(BuildError, match="a max_batch_size, the input pixels with three"):
        _plan.profiles_for(_plan.parse_config(CONFIG.replace(old, new)))


@pytest.mark.parametrize("batch", [0, 9])
def test_opt_batch_out_of_range_is_refused(batch: int) -> None:
    with pytest.raises(BuildError, match=rf"--opt-batch is {batch}; .* allows 1 to 8\.$"):
        _plan.profiles_for(_plan.parse_config(CONFIG), batch)


# ---------------------------------------------------------------------------------------------
# Precision


@pytest.mark.parametrize(
    "requested, graph, major, chosen",
    [
        ("auto", "fp32", 10, BuildPrecision(name="fp16", strongly_typed=False, fp16=True)),
        ("fp16", "fp32", 10, BuildPrecision(name="fp16", strongly_typed=False, fp16=True)),
        ("fp32", "fp32", 10, BuildPrecision(name="fp32", strongly_typed=True, tf32=False)),
        ("auto", "fp16", 10, BuildPrecision(name="fp16", strongly_typed=True)),
        ("fp16", "fp16", 10, BuildPrecision(name="fp16", strongly_typed=True)),
        ("auto", "int8", 10, BuildPrecision(name="int8", strongly_typed=True)),
        ("int8", "int8", 10, BuildPrecision(name="int8", strongly_typed=True)),
        ("auto", "fp32", 11, BuildPrecision(name="fp32", strongly_typed=False, tf32=False)),
        ("fp32", "fp32", 11, BuildPrecision(name="fp32", strongly_typed=False, tf32=False)),
        ("auto", "fp16", 11, BuildPrecision(name="fp16", strongly_typed=False)),
        ("fp16", "fp16", 11, BuildPrecision(name="fp16", strongly_typed=False)),
        ("auto", "int8", 11, BuildPrecision(name="int8", strongly_typed=False)),
        ("int8", "int8", 11, BuildPrecision(name="int8", strongly_typed=False)),
    ],
)
def test_precision_is_chosen_from_request_file_and_version(
    requested: str, graph: str, major: int, chosen: BuildPrecision
) -> None:
    assert choose_precision(requested, graph, major) == chosen


@pytest.mark.parametrize(
    "requested, graph, major, advice",
    [
        ("fp16", "fp32", 11, "ARGS=--half"),
        ("int8", "fp32", 10, r"quantised \(Q/DQ\)"),
        ("int8", "fp32", 11, r"quantised \(Q/DQ\)"),
        ("int8", "fp16", 11, r"quantised \(Q/DQ\)"),
        ("fp32", "fp16", 10, "without --half"),
        ("fp32", "fp16", 11, "without --half"),
        ("fp32", "int8", 10, "an FP32 file"),
        ("fp16", "int8", 11, "an FP16 file"),
    ],
)
def test_precision_that_the_file_cannot_give_is_refused(
    requested: str, graph: str, major: int, advice: str
) -> None:
    sentence = f"is {graph}, and TensorRT {major} cannot build {requested} from it; .*{advice}"
    with pytest.raises(BuildError, match=sentence):
        choose_precision(requested, graph, major)


def test_precision_is_read_from_the_metadata(tmp_path: Path) -> None:
    noted = ((None, "fp32"), ("fp16", "fp16"), ("int8-symmetric", "int8"))
    for precision, expected in noted:
        repository = make_repository(tmp_path / expected, precision)
        assert engine.graph_precision(engine.read_served(repository).weights) == expected
    repository = make_repository(tmp_path / "cpu", "int8")
    with pytest.raises(BuildError, match="is INT8 for CPUs, .* install it again with --int8 tens"):
        engine.graph_precision(repository / "yolov5" / "1" / "model.onnx")
    repository = make_repository(tmp_path / "bf16", "bf16")
    weights = engine.read_served(repository).weights
    with pytest.raises(BuildError, match="'bf16'; allowed: fp32, fp16, int8"):
        engine.graph_precision(weights)
    weights.write_bytes(b"\xff" * 100)
    with pytest.raises(BuildError, match="model.onnx cannot be read as ONNX"):
        engine.graph_precision(weights)


# ---------------------------------------------------------------------------------------------
# Versions


@pytest.mark.parametrize(
    "building, target, major",
    [
        ("10.13.3.9", None, 10),
        ("10.13.3.9", "10.13.3.9", 10),
        ("10.13.3.9.post1", "10.13.3.9+cuda13.0", 10),
        ("10.4.0", "10.4.0.26", 10),  # the version that PyPI's package reports
        ("11.2.1.2", "11.2.1.2+cuda13.3", 11),
    ],
)
def test_same_version_may_build_and_serve(building: str, target: str | None, major: int) -> None:
    assert _plan.check_versions(building, target) == major


@pytest.mark.parametrize(
    "building, target",
    [("10.13.3.9", "10.13.2.6"), ("11.1.0.106", "10.13.3.9"), ("10.6.1.2", "10.6.1.6")],
)
def test_other_target_version_is_refused(building: str, target: str) -> None:
    sentence = f"This is TensorRT {building}, but the plan is to run with {target}, "
    with pytest.raises(BuildError, match=re.escape(sentence)):
        _plan.check_versions(building, target)


def test_old_and_invalid_versions_are_refused() -> None:
    with pytest.raises(BuildError, match="TensorRT 8.6.1; 10 is the oldest supported version"):
        _plan.check_versions("8.6.1", None)
    for text in ("10", "10.13", "latest", ""):
        with pytest.raises(BuildError, match=f"'{text}' is not a version of TensorRT"):
            _plan.check_versions("10.13.3.9", text)


def test_target_version_is_known_only_in_a_triton_container(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TRT_VERSION", "10.13.3.9+cuda13.0")
    monkeypatch.delenv("NVIDIA_TRITON_SERVER_VERSION", raising=False)
    assert engine.target_version() is None
    monkeypatch.setenv("NVIDIA_TRITON_SERVER_VERSION", "25.09")
    assert engine.target_version() == "10.13.3.9+cuda13.0"


def test_container_is_the_base_image_of_the_dockerfile() -> None:
    assert re.fullmatch(r"nvcr\.io/nvidia/tritonserver:\d\d\.\d\d-py3", engine.container())


# ---------------------------------------------------------------------------------------------
# Configuration


def test_config_is_switched_to_a_plan_and_back() -> None:
    switched = to_plan(CONFIG, NOTE)
    before, after = CONFIG.splitlines(), switched.splitlines()
    note, platform, file = (line for line in after if line not in before)
    assert note == f"# Made from model.onnx by `make engine`: {NOTE}"
    assert platform == 'platform: "tensorrt_plan"'
    assert file == 'default_model_filename: "model.plan"'
    assert [line for line in before if line not in after] == before[2:4]
    assert after.index(platform) == after.index(note) + 1 == 3

    changed = _plan.parse_config(switched)
    assert (changed.platform, changed.backend) == ("tensorrt_plan", "")
    changed.platform, changed.backend = "", "onnxruntime"
    changed.default_model_filename = "served.onnx"
    assert changed == _plan.parse_config(CONFIG)
    assert _plan.is_plan(switched) and not _plan.is_plan(CONFIG)
    assert to_onnx(switched) == CONFIG


def test_plan_answers_with_all_rows() -> None:
    switched = to_plan(CONFIG, NOTE, 126)
    assert list(_plan.parse_config(switched).output[0].dims) == [126, 8]
    assert to_onnx(switched) == CONFIG


def test_plan_of_an_earlier_version_goes_back_to_its_own_file() -> None:
    text = CONFIG.replace('"served.onnx"', '"model.onnx"').replace('"pixels"', '"images"')
    plan = text.replace('backend: "onnxruntime"', 'platform: "tensorrt_plan"')
    assert to_onnx(plan.replace('"model.onnx"', '"model.plan"')) == text


def test_formatting_of_the_config_is_kept() -> None:
    text = CONFIG.replace('backend: "onnxruntime"', ' backend :  "onnxruntime"  # mine')
    text = text.replace("\n", "\r\n")
    switched = to_plan(text, NOTE)
    assert ' platform :  "tensorrt_plan"  # mine\r\n' in switched
    assert to_onnx(switched) == text


def test_installed_config_can_be_switched() -> None:
    text = (REPOSITORY / "yolov5" / "config.pbtxt").read_text("utf-8")
    if _plan.is_plan(text):
        text = to_onnx(text)
    assert to_onnx(to_plan(text, NOTE)) == text


@pytest.mark.parametrize(
    "old, new, sentence",
    [
        ('backend: "onnxruntime"', 'backend: "python"', "one line that begins with backend"),
        ('"served.onnx"', '"best.onnx"', "one line that begins with default_model_filename"),
        ("max_batch_size: 8", "max_batch_size: eight", "config.pbtxt is not valid"),
    ],
)
def test_unexpected_config_is_refused(old: str, new: str, sentence: str) -> None:
    with pytest.raises(BuildError, match=sentence):
        to_plan(CONFIG.replace(old, new), NOTE)


def test_nested_lines_are_not_switched() -> None:
    nested = '\nparameters {\n  key: "x"\n  value: {\n    string_value: "served.onnx"\n  }\n}\n'
    assert to_onnx(to_plan(CONFIG + nested, NOTE)) == CONFIG + nested
    twice = CONFIG + '# and again\nbackend: "onnxruntime"\n'
    with pytest.raises(BuildError):
        to_plan(twice, NOTE)


# ---------------------------------------------------------------------------------------------
# The error between rows


def test_relative_error_of_rows() -> None:
    rows = np.random.default_rng(0).random((2, 50, 8), np.float32)
    rows[..., :4] *= 640
    assert _plan.relative_error(rows, rows) == 0
    assert _plan.relative_error(rows * np.float32(1.01), rows) == pytest.approx(0.01, rel=1e-3)
    silent = rows.copy()
    silent[..., 4] = 0  # boxes right, nothing found
    assert _plan.relative_error(silent, rows) == pytest.approx(1)
    assert _plan.relative_error(rows[:1], rows) == float("inf")
    silent[0, 0, 0] = np.nan
    assert not _plan.relative_error(silent, rows) <= 1
    unseen = np.zeros_like(rows)
    assert _plan.relative_error(unseen + np.float32(1e-4), unseen) == pytest.approx(0.01)


# ---------------------------------------------------------------------------------------------
# Calls of the API, with a fake for the package tensorrt (which needs a GPU)

REMOVED = {"FP16", "INT8", "EXPLICIT_BATCH"}  # in version 11


class FakeTensorRT(ModuleType):
    """A fake for the package `tensorrt`, which records calls and returns the given results.

    It has no more than NVIDIA's bindings have in that version, so that asking for what version 11
    removed raises AttributeError.
    """

    def __init__(
        self,
        version: str,
        *,
        starts: bool = True,
        parses: bool = True,
        accepts: bool = True,
        builds: bool = True,
    ) -> None:
        super().__init__("tensorrt")
        self.__version__ = version
        self.calls: list[tuple[Any, ...]] = []
        calls = self.calls
        eleven = version.startswith("11")
        removed = REMOVED if eleven else set()

        def names(enum: str, members: Sequence[str], values: Sequence[int]) -> Any:
            given = {m: v for m, v in zip(members, values) if m not in removed}
            return Enum(enum, given, type=int)

        self.BuilderFlag = names("BuilderFlag", ["FP16", "INT8", "TF32"], [0, 2, 8])
        self.NetworkDefinitionCreationFlag = names(
            "NetworkDefinitionCreationFlag",
            ["EXPLICIT_BATCH", "STRONGLY_TYPED"],
            [0, 0 if eleven else 1],
        )
        self.MemoryPoolType = names("MemoryPoolType", ["WORKSPACE"], [0])

        class ILogger:
            Severity = Enum("Severity", ["INTERNAL_ERROR", "ERROR", "WARNING"])

            def log(self, severity: Any, msg: str) -> None:
                raise NotImplementedError

        class TimingCache:
            def __init__(self, data: bytes) -> None:
                self.data = data

            def serialize(self) -> memoryview:
                return memoryview(b"timings of " + (self.data or b"nothing"))

        class Profile:
            def set_shape(self, name: str, *shapes: Any) -> None:
                if not accepts:
                    raise ValueError("inconsistent")
                calls.append(("set_shape", name, *shapes))

        class Config:
            cache: TimingCache | None = None

            def set_flag(self, flag: Any) -> None:
                calls.append(("set_flag", flag.name))

            def clear_flag(self, flag: Any) -> None:
                calls.append(("clear_flag", flag.name))

            def set_memory_pool_limit(self, pool: Any, size: int) -> None:
                calls.append(("set_memory_pool_limit", pool.name, size))

            def add_optimization_profile(self, profile: Profile) -> int:
                return 0

            def create_timing_cache(self, data: bytes) -> TimingCache | None:
                return None if data == b"damaged" else TimingCache(data)

            def set_timing_cache(self, cache: TimingCache, ignore_mismatch: bool) -> bool:
                assert not ignore_mismatch
                fits = cache.data in (b"", b"known")
                if fits:
                    self.cache = cache
                return fits

            def get_timing_cache(self) -> TimingCache | None:
                return self.cache

        class Builder:
            def __init__(self, log: ILogger) -> None:
                self.log = log
                if not starts:
                    log.log(ILogger.Severity.WARNING, "nothing of interest")
                    log.log(ILogger.Severity.ERROR, "CUDA initialization failure\nwith error: 35.")
                    raise TypeError("pybind11::init(): factory function returned nullptr")

            def create_network(self, flags: int = 0) -> str:
                calls.append(("create_network", flags))
                return "network"

            def create_builder_config(self) -> Config:
                return Config()

            def create_optimization_profile(self) -> Profile:
                return Profile()

            def build_serialized_network(self, network: str, config: Config) -> memoryview | None:
                calls.append(("timing cache", config.cache and config.cache.data))
                if not builds:
                    self.log.log(ILogger.Severity.INTERNAL_ERROR, "out of memory")
                    return None
                return memoryview(b"a plan")

        class ParserError:
            def desc(self) -> str:
                return "no operator Fancy."

        class OnnxParser:
            num_errors = 0 if parses else 1

            def __init__(self, network: str, log: ILogger) -> None:
                assert network == "network"

            def parse_from_file(self, model: str) -> bool:
                calls.append(("parse_from_file", model))
                return parses

            def get_error(self, index: int) -> ParserError:
                return ParserError()

        self.ILogger, self.Builder, self.OnnxParser = ILogger, Builder, OnnxParser


PROFILE = Profile(min=(1, 3, 64, 96), opt=(4, 3, 64, 96), max=(8, 3, 64, 96))
PROFILES = {"pixels": PROFILE, "nms": Profile(min=(1, 5), opt=(4, 5), max=(8, 5))}


def build(trt: FakeTensorRT, precision: BuildPrecision, folder: Path) -> bytes:
    weights, cache = folder / "model.onnx", folder / "cache" / "timing"
    return _tensorrt.build(trt, weights, precision, PROFILES, workspace=1 << 30, timing_cache=cache)


@pytest.mark.parametrize(
    "version, requested, graph, flags, precision_calls",
    [
        ("10.16.1.11", "auto", "fp32", 0, [("set_flag", "FP16")]),
        ("10.16.1.11", "fp32", "fp32", 2, [("clear_flag", "TF32")]),
        ("10.16.1.11", "auto", "fp16", 2, []),
        ("10.16.1.11", "auto", "int8", 2, []),
        ("11.4.0.106", "auto", "fp32", 0, [("clear_flag", "TF32")]),
        ("11.4.0.106", "auto", "fp16", 0, []),
        ("11.4.0.106", "auto", "int8", 0, []),
    ],
)
def test_builder_gets_the_flags_of_its_version(
    tmp_path: Path,
    version: str,
    requested: str,
    graph: str,
    flags: int,
    precision_calls: list[tuple[str, str]],
) -> None:
    trt = FakeTensorRT(version)
    precision = choose_precision(requested, graph, int(version[:2]))
    assert build(trt, precision, tmp_path) == b"a plan"
    assert trt.calls == [
        ("create_network", flags),
        ("parse_from_file", str(tmp_path / "model.onnx")),
        ("set_memory_pool_limit", "WORKSPACE", 1 << 30),
        *precision_calls,
        ("set_shape", "pixels", (1, 3, 64, 96), (4, 3, 64, 96), (8, 3, 64, 96)),
        ("set_shape", "nms", (1, 5), (4, 5), (8, 5)),
        ("timing cache", b""),
    ]


def test_fake_lacks_names_removed_in_version_11() -> None:
    assert FakeTensorRT("10.16.1.11").BuilderFlag.FP16.name == "FP16"
    with pytest.raises(AttributeError):
        _ = FakeTensorRT("11.4.0.106").BuilderFlag.FP16


@pytest.mark.parametrize(
    "found, used", [(b"known", b"known"), (b"damaged", b""), (b"of another GPU", b""), (None, b"")]
)
def test_unsuitable_timing_cache_is_replaced(
    tmp_path: Path, found: bytes | None, used: bytes
) -> None:
    cache = tmp_path / "cache" / "timing"
    if found is not None:
        cache.parent.mkdir()
        cache.write_bytes(found)
    trt = FakeTensorRT("11.4.0.106")
    build(trt, choose_precision("auto", "fp16", 11), tmp_path)
    assert trt.calls[-1] == ("timing cache", used)
    assert cache.read_bytes() == b"timings of " + (used or b"nothing")


def test_unwritable_timing_cache_does_not_fail_the_build(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("not a folder")
    trt = FakeTensorRT("11.4.0.106")
    assert build(trt, choose_precision("auto", "fp16", 11), tmp_path) == b"a plan"


FAILURES = {
    "starts": "TensorRT cannot use this GPU: CUDA initialization failure with error: 35.",
    "parses": "TensorRT 11.4.0.106 cannot read model.onnx: no operator Fancy.",
    "accepts": "TensorRT does not take pixels from (1, 3, 64, 96) to (8, 3, 64, 96) and nms from"
    " (1, 5) to (8, 5): no reason given.",
    "builds": "TensorRT 11.4.0.106 cannot build the plan: out of memory.",
}


@pytest.mark.parametrize("failing", FAILURES)
def test_failure_of_tensorrt_is_one_sentence(tmp_path: Path, failing: str) -> None:
    trt = FakeTensorRT("11.4.0.106", **{failing: False})
    with pytest.raises(BuildError) as raised:
        build(trt, choose_precision("auto", "fp16", 11), tmp_path)
    assert str(raised.value) == FAILURES[failing]


# ---------------------------------------------------------------------------------------------
# The command


def serve_by(
    monkeypatch: pytest.MonkeyPatch, trt: FakeTensorRT, repository: Path, error_factor: float = 0
) -> None:
    """Use the fake as TensorRT, with a plan that scales the right rows by 1 + `error_factor`."""
    weights = engine.read_served(repository).weights.read_bytes()

    def run(
        trt: ModuleType, plan: bytes, inputs: Mapping[str, NDArray[Any]]
    ) -> dict[str, NDArray[np.float32]]:
        assert plan == b"a plan"
        assert (inputs["nms"][:, 0] == -1).all()
        images = inputs["pixels"].astype(np.float32) / np.float32(255)
        (rows,) = onnxruntime.InferenceSession(weights).run(None, {"images": images})
        return {"output0": rows * np.float32(1 + error_factor)}

    monkeypatch.setattr(_tensorrt, "load", lambda: trt)
    monkeypatch.setattr(_tensorrt, "gpu", lambda: GPU)
    monkeypatch.setattr(_tensorrt, "run", run)
    monkeypatch.setenv("XDG_CACHE_HOME", str(repository.parent / "cache"))
    monkeypatch.delenv("NVIDIA_TRITON_SERVER_VERSION", raising=False)


def test_plan_is_installed_and_undone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    repository = make_repository(tmp_path)
    (repository / "yolov5" / "warmup").mkdir()
    (repository / "yolov5" / "warmup" / "photo").write_bytes(b"jpeg")
    before = contents(repository / "yolov5")
    arguments = [f"--repository={repository}"]
    trt = FakeTensorRT("10.16.1.11")
    serve_by(monkeypatch, trt, repository)
    for number in ("2", "3"):  # the second time over a plan
        assert engine.main([*arguments, "--opt-batch=2"]) == 0
        assert contents(repository / "yolov5") == {
            f"{number}/model.onnx": before["1/model.onnx"],
            f"{number}/model.plan": b"a plan",
            "config.pbtxt": to_plan(
                CONFIG, "TensorRT 10.16.1.11, NVIDIA H200 (compute capability 9.0), fp16.", 6
            ).encode(),
            "labels.txt": before["labels.txt"],
            "warmup/photo": b"jpeg",
        }
    assert ("set_flag", "FP16") in trt.calls
    assert contents(tmp_path / "cache") == {
        "yolov5-triton/timing-10.16.1.11-NVIDIA-H200-9.0.cache": b"timings of nothing"
    }
    output = capsys.readouterr().out
    assert "It runs only with TensorRT 10.16.1.11, NVIDIA H200" in output
    assert "It was not checked that the Triton server has that TensorRT" in output

    assert engine.main([*arguments, "--undo"]) == 0
    after = contents(repository / "yolov5")
    assert after.pop("4/model.onnx") == before.pop("1/model.onnx")
    assert after == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "model_repository"]

    assert engine.main([*arguments, "--undo"]) == 1
    error = "error: yolov5 is not served as a TensorRT plan, so there is nothing to undo.\n"
    assert capsys.readouterr().err == error


def test_plan_of_a_further_network_is_installed_and_undone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its earlier versions stay. The ONNX file itself is no earlier one: it is the same network."""
    repository = make_repository(tmp_path)
    serve_by(monkeypatch, FakeTensorRT("10.16.1.11"), repository)
    before = contents(repository / "yolov5")
    network = (repository / "yolov5").rename(repository / "plates")
    config = network / "config.pbtxt"
    config.write_text(config.read_text().replace('"yolov5"', '"plates"'))
    record = Record(installed="2026-11-26T17:00:00Z", file="plates.pt", sha256="0" * 64)
    accuracy = Accuracy(map50=0.5, map50_95=0.4, photos=3)
    write_record(network / "1", replace(record, accuracy=accuracy))
    link_tree(network, network / "versions" / "0", without=["versions"])
    arguments = [f"--repository={repository}", "--name=plates"]
    assert engine.main(arguments) == 0
    assert "\nplates is now served as a TensorRT plan for batches" in capsys.readouterr().out
    assert 'platform: "tensorrt_plan"' in config.read_text()
    assert [path.name for path in kept_versions(network)] == ["0"]
    made = read_record(network / "2")
    assert made is not None and made.accuracy is None  # of the plan, it was not measured
    assert made.file == "plates.pt" and made.installed > record.installed
    assert engine.main([*arguments, "--undo"]) == 0
    assert capsys.readouterr().out == "plates is served by ONNX Runtime again.\n"
    assert (network / "3" / "model.onnx").read_bytes() == before["1/model.onnx"]
    assert [path.name for path in kept_versions(network)] == ["0"]
    for name, sentence in (
        ("yolov5", "model_repository/yolov5 holds no model.onnx; `make model` installs one."),
        ("cars", "there is no network 'cars' in model_repository; installed: plates."),
        ("plates", "plates is not served as a TensorRT plan, so there is nothing to undo."),
    ):
        assert engine.main([arguments[0], f"--name={name}", "--undo"]) == 1
        assert capsys.readouterr().err == f"error: {sentence}\n"


def test_class_column_of_a_reduced_head_is_not_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = make_repository(tmp_path)
    weights = tmp_path / "weights.onnx"
    onnx.save(
        prefiltered_from(onnx.load(engine.read_served(repository).weights), keep_all=True), weights
    )
    serve_by(monkeypatch, FakeTensorRT("10.16.1.11"), repository)
    right = _tensorrt.run

    def other_classes(*arguments: Any) -> dict[str, NDArray[np.float32]]:
        rows = right(*arguments)["output0"]
        rows[..., -1] += 5000
        return {"output0": rows}

    monkeypatch.setattr(_tensorrt, "run", other_classes)
    config = _plan.parse_config(CONFIG.replace('"full"', '"reduced"'))
    trt = FakeTensorRT("10.16.1.11")
    assert engine.verify_plan(trt, b"a plan", weights, config, PROFILE, 1e-3) == 0
    with pytest.raises(BuildError, match="differ from ONNX Runtime's"):
        config = _plan.parse_config(CONFIG)
        engine.verify_plan(trt, b"a plan", weights, config, PROFILE, 1e-3)


def test_network_that_chooses_its_boxes_itself_gets_no_plan(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    repository = make_repository(tmp_path)
    config = repository / "yolov5" / "config.pbtxt"
    config.write_text(config.read_text().replace('"full"', '"end2end"'))
    assert engine.main([f"--repository={repository}"]) == 1
    assert capsys.readouterr().err == (
        "error: yolov5 chooses its boxes itself, and such a choice cannot be compared with that of"
        " a plan; install an export without that.\n"
    )


@pytest.mark.parametrize(
    "options, fake, error_factor, sentence",
    [
        *(([], {name: False}, 0, sentence) for name, sentence in FAILURES.items()),
        ([], {}, 0.01, "The plan's rows for the example photos differ from ONNX Runtime's by"),
        (["--precision=fp16"], {}, 0, "The installed model.onnx is fp32, and TensorRT 11 cannot"),
        (["--target-tensorrt=10.9.0"], {}, 0, "This is TensorRT 11.4.0.106, but the plan is to"),
        (["--opt-batch=9"], {}, 0, "--opt-batch is 9;"),
    ],
)
def test_installed_model_stays_if_anything_fails(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    fake: dict[str, bool],
    error_factor: float,
    sentence: str,
) -> None:
    repository = make_repository(tmp_path)
    before = contents(repository)
    serve_by(monkeypatch, FakeTensorRT("11.4.0.106", **fake), repository, error_factor)
    assert engine.main([f"--repository={repository}", *options]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: {sentence}")
    assert error.endswith(".\n") and error.count("\n") == 1
    assert contents(repository) == before


def test_missing_files_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    repository = make_repository(tmp_path)
    (repository / "yolov5" / "config.pbtxt").unlink()
    assert engine.main([f"--repository={repository}"]) == 1
    (repository / "yolov5" / "1" / "model.onnx").unlink()
    assert engine.main([f"--repository={repository}", "--undo"]) == 1
    assert capsys.readouterr().err.splitlines() == [
        "error: yolov5/config.pbtxt cannot be read: No such file or directory.",
        "error: model_repository/yolov5 holds no model.onnx; `make model` installs one.",
    ]


@pytest.mark.skipif(
    importlib.util.find_spec("tensorrt") is not None, reason="the package tensorrt is installed"
)
def test_missing_tensorrt_is_reported_in_one_sentence(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    repository = make_repository(tmp_path)
    before = contents(repository)
    assert engine.main([f"--repository={repository}"]) == 1
    out, err = capfd.readouterr()
    assert out == ""
    assert err == (
        "error: The Python package tensorrt, which builds plans, is not installed; install the"
        " version of the Triton server that will serve the plan.\n"
    )
    assert contents(repository) == before


def test_bindings_without_libraries_are_reported_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tensorrt.py").write_text(
        "raise ImportError('libnvinfer.so.10: cannot open shared object file')"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    with pytest.raises(BuildError, match="cannot be loaded: libnvinfer.so.10: cannot open"):
        _tensorrt.load()
