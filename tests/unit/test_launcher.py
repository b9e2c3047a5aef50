from __future__ import annotations

import io
import json
import socket
import subprocess
import sys
import time
import urllib.error
from email.message import Message
from pathlib import Path
from typing import Any

import pytest
from support import REPOSITORY, free_ports
from tritonclient.grpc import model_config_pb2

from yolov5_build._config import NetworkConfig, config_texts
from yolov5_build._plan import to_plan
from yolov5_build.metadata import Metadata
from yolov5_server import (
    Settings,
    StartError,
    _control,
    _paths,
    _repository,
    _settings,
    hardware,
)
from yolov5_server._checks import (
    check_ports,
    check_precision,
    check_shared_memory,
)
from yolov5_server._control import ControlError, ModelControl
from yolov5_server._paths import is_plain, make_folder, plain
from yolov5_server._repository import chosen_configs, read_config, read_network_config
from yolov5_server._startup import Stop
from yolov5_server.embedded import assemble_backends, python_library, triton_folder
from yolov5_server.hardware import has_cuda_provider


@pytest.mark.parametrize(
    "values, sentence",
    [
        ({"host": "example.org"}, "HOST is 'example.org'; allowed: a numeric address"),
        ({"http_port": 0}, "HTTP_PORT is 0; allowed: 1 to 65535"),
        ({"metrics_port": 65536}, "METRICS_PORT is 65536"),
        ({"health_port": 8000}, "must be different ports"),
        ({"http_port": 8001}, "must be different ports"),
        ({"drain_seconds": -1}, "--drain-seconds is -1; allowed: 0 to 3600"),
        ({"precision": "int4"}, "PRECISION is 'int4'; allowed: auto, fp32"),
    ],
)
def test_settings_out_of_range_are_refused(values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(StartError) as caught:
        Settings(**values)
    assert sentence in str(caught.value)


def test_url_is_the_address_that_a_client_uses() -> None:
    assert Settings().url(8000) == "127.0.0.1:8000"
    assert Settings(host="localhost").url(1) == "127.0.0.1:1"
    assert Settings(host="0.0.0.0").url(8000) == "localhost:8000"
    assert Settings(host="::1").url(8000) == "[::1]:8000"


def test_port_in_use_is_named_with_its_variable() -> None:
    ports = free_ports(4)
    settings = Settings(
        http_port=ports[0], grpc_port=ports[1], metrics_port=ports[2], health_port=ports[3]
    )
    check_ports(settings)
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", ports[1]))
        holder.listen()
        with pytest.raises(StartError, match=f"Port {ports[1]} .*; set GRPC_PORT to another one"):
            check_ports(settings)


def test_missing_models_and_weights_are_named(tmp_path: Path) -> None:
    for model in ("preprocess", "yolov5"):
        with pytest.raises(StartError, match=f"{model}/config.pbtxt is missing"):
            read_config(tmp_path, model)
    for model in ("preprocess", "yolov5", "postprocess", "yolov5_ensemble"):
        (tmp_path / model).mkdir()
        config = (REPOSITORY / model / "config.pbtxt").read_text()
        (tmp_path / model / "config.pbtxt").write_text(config)
    with pytest.raises(StartError, match="holds no served.onnx; `make model` installs one"):
        read_network_config(tmp_path)
    (tmp_path / "yolov5" / "1").mkdir()
    (tmp_path / "yolov5" / "1" / "served.onnx").touch()
    assert read_network_config(tmp_path).max_batch_size == 8
    (tmp_path / "yolov5" / "1" / "model.plan").touch()
    config = (tmp_path / "yolov5" / "config.pbtxt").read_text()
    plan = to_plan(config, "a note")
    (tmp_path / "yolov5" / "config.pbtxt").write_text(plan)
    with pytest.raises(StartError, match="is a TensorRT plan, which the embedded server cannot"):
        read_network_config(tmp_path)
    (tmp_path / "yolov5" / "config.pbtxt").write_text("name: yolov5")
    with pytest.raises(StartError, match="yolov5/config.pbtxt is not valid"):
        read_network_config(tmp_path)


def test_bf16_configuration_depends_on_cpu_gpu_and_precision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_repository, "cpu_has_bf16", lambda: True)
    monkeypatch.setattr(hardware, "has_gpu", lambda: False)
    monkeypatch.setattr(_repository, "has_cuda_provider", lambda: False)
    configs = tmp_path / "yolov5" / "configs"
    configs.mkdir(parents=True)
    (tmp_path / "yolov5" / "config.pbtxt").write_text('backend: "onnxruntime"')

    def chosen(**changes: Any) -> str | None:
        return chosen_configs(Settings(repository=tmp_path, **changes))

    (configs / "embedded.pbtxt").write_text('backend: "onnxruntime"')  # of an earlier version
    assert chosen() is None
    (configs / "bf16.pbtxt").write_text('backend: "openvino"')
    assert chosen() == "bf16"
    assert chosen(precision="fp32") is None
    assert chosen(triton=tmp_path) is None
    assert read_config(tmp_path, "yolov5", "bf16").backend == "openvino"
    assert read_config(tmp_path, "yolov5").backend == "onnxruntime"
    with monkeypatch.context() as patched:
        patched.setattr(hardware, "has_gpu", lambda: True)
        assert chosen() == "bf16"  # the network runs on the CPU
        patched.setattr(_repository, "has_cuda_provider", lambda: True)
        assert chosen() is None
    monkeypatch.setattr(_repository, "cpu_has_bf16", lambda: False)
    assert chosen() is None
    monkeypatch.setattr(_repository, "cpu_has_bf16", lambda: True)
    (tmp_path / "yolov5" / "config.pbtxt").write_text('platform: "tensorrt_plan"')
    assert chosen() is None


def test_cuda_provider_is_found_without_an_import(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tmp_path / "onnxruntime" / "capi"
    folder.mkdir(parents=True)
    (folder.parent / "__init__.py").write_text("raise RuntimeError")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "onnxruntime", raising=False)
    monkeypatch.setattr(hardware, "GPU_PACKAGES", tmp_path / "none")
    assert not has_cuda_provider()
    (folder / "libonnxruntime_providers_cuda.so").touch()
    assert has_cuda_provider()
    monkeypatch.setattr(sys, "path", [])
    assert not has_cuda_provider()
    monkeypatch.setattr(hardware, "GPU_PACKAGES", tmp_path)
    assert has_cuda_provider()


@pytest.mark.parametrize("gpu", [False, True])
@pytest.mark.parametrize("wanted", [False, True])
def test_own_backends_take_the_place_of_a_container_s_without_a_gpu(
    monkeypatch: pytest.MonkeyPatch, wanted: bool, gpu: bool
) -> None:
    monkeypatch.setattr(_settings, "has_gpu", lambda: gpu)
    container = Path("/opt/tritonserver")
    settings = Settings(triton=container, own_backends=wanted, precision="fp32")
    assert settings.has_own_backends is (wanted and not gpu)
    assert Settings(own_backends=wanted).has_own_backends
    assert chosen_configs(settings) is None


def test_precision_that_is_not_installed_is_refused() -> None:
    config = model_config_pb2.ModelConfig()
    check_precision(config, "fp32")
    config.parameters["precision"].string_value = "int8"
    check_precision(config, "auto")
    with pytest.raises(StartError, match="installed network is int8; `make model` without --half"):
        check_precision(config, "fp32")


def test_precision_advice_fits_an_imported_file() -> None:
    config = model_config_pb2.ModelConfig()
    config.parameters["precision"].string_value = "fp16"
    config.parameters["source"].string_value = "onnx"
    with pytest.raises(
        StartError, match="is fp16; so is the imported .onnx file; export it in FP32"
    ):
        check_precision(config, "fp32")


def test_shared_memory_check_of_a_dynamic_network_uses_its_largest_size() -> None:
    config = model_config_pb2.ModelConfig(max_batch_size=1)
    config.parameters["imgsz"].string_value = "480 640"
    for tensors, dims in ((config.input, [3, -1, -1]), (config.output, [-1, 8])):
        tensors.add(data_type=model_config_pb2.TYPE_FP32, dims=dims)
    needed = 2 * (3 * 480 * 640 + 18900 * 8) * 4  # three rows for each of 6300 cells
    check_shared_memory(config, needed)
    with pytest.raises(StartError, match="--shm-size"):
        check_shared_memory(config, needed - 1)


def test_key_is_hidden_from_the_process_list() -> None:
    control = ModelControl("127.0.0.1:1")
    key = control.restriction.rpartition("=")[2]
    command = [sys.executable, "-c", "import time; time.sleep(60)", control.restriction, "last"]
    with subprocess.Popen(command) as process:
        try:
            arguments = Path("/proc", str(process.pid), "cmdline")
            while key not in arguments.read_text():  # until the new process runs the command
                time.sleep(0.01)
            assert control.hide_key(process.pid)
            assert key not in arguments.read_text()
            assert arguments.read_text().split("\0")[-2] == "last"
        finally:
            process.kill()
    assert not control.hide_key(process.pid)


def test_configuration_that_is_no_file_is_not_called_missing(tmp_path: Path) -> None:
    (tmp_path / "plates" / "config.pbtxt").mkdir(parents=True)
    with pytest.raises(StartError, match=r"/plates/config.pbtxt cannot be read: Is a directory\."):
        read_config(tmp_path, "plates")
    with pytest.raises(StartError, match=r"/helmets/config.pbtxt is missing; `git checkout"):
        read_config(tmp_path, "helmets")


def test_reason_of_triton_is_told_without_places_in_the_code(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    places = "\n\nAt:\n  /x/session.py(60): open_session\n  /x/model.py(63): initialize\n"
    reason = "version 1 is at UNAVAILABLE state: Internal: ConfigError: no 'model.onnx'"
    body = json.dumps({"error": f"load failed for model 'models::a.2': {reason}{places};\n"})
    control = ModelControl("127.0.0.1:1")

    def refuse(*_: object, **__: object) -> None:
        raise urllib.error.HTTPError("", 400, "", Message(), io.BytesIO(body.encode()))

    monkeypatch.setattr(_control, "open_directly", refuse)
    with pytest.raises(ControlError) as caught:
        control.load("a.2")
    assert str(caught.value) == f"load failed for model 'models::a.2': {reason}"
    listed = [{"name": "a", "state": "UNAVAILABLE", "reason": f"{reason}{places}"}, {"name": "b"}]
    monkeypatch.setattr(
        _control, "open_directly", lambda *_, **__: io.BytesIO(json.dumps(listed).encode())
    )
    assert control.failures()["a"] == reason
    assert control.failures()["b"].startswith("Triton could not load it")


def test_shared_memory_must_hold_a_full_batch(tmp_path: Path) -> None:
    metadata = Metadata(
        names=("Platelets", "RBC", "WBC"),
        stride=32,
        head="full",
        precision="fp32",
        provenance="",
        max_batch_size=None,
    )
    network = NetworkConfig(
        metadata=metadata,
        letterbox="square",
        height=640,
        width=640,
        columns=8,
        max_batch_size=8,
    )
    (tmp_path / "yolov5" / "1").mkdir(parents=True)
    (tmp_path / "yolov5" / "1" / "served.onnx").touch()
    text = config_texts(network, bf16=False)["config.pbtxt"]
    (tmp_path / "yolov5" / "config.pbtxt").write_text(text)
    config = read_network_config(tmp_path)
    # Into and out of the network, twice; out of it all rows at worst.
    needed = 2 * 8 * (3 * 640 * 640 + 5 * 4 + 25200 * 8 * 4)
    check_shared_memory(config, needed)
    with pytest.raises(StartError, match="has 16 MB free, but .* need 31 MB; .* --shm-size"):
        check_shared_memory(config, 16 << 20)


def test_library_of_this_python_is_found() -> None:
    found = python_library()
    assert found is None or (found.is_file() and found.name.startswith("libpython3."))


def test_library_of_a_moved_python_is_found(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    library = tmp_path / "lib" / f"libpython{version}.so.1.0"
    library.parent.mkdir()
    library.touch()
    monkeypatch.setattr("sysconfig.get_config_var", lambda name: "/install/lib")
    monkeypatch.setattr("sys.base_prefix", str(tmp_path))
    assert python_library() == library


def test_python_without_a_library_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_library(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr("sysconfig.get_config_var", lambda name: "/nowhere")
    monkeypatch.setattr("sys.base_prefix", "/nowhere")
    monkeypatch.setattr("ctypes.CDLL", no_library)
    with pytest.raises(
        StartError, match=r"libpython3.*.so.1.0 is not installed, .*: apt install lib"
    ):
        python_library()


def test_backend_directory_has_all_backends(tmp_path: Path) -> None:
    assemble_backends(triton_folder(), tmp_path)
    assert not (tmp_path / "python" / "libtriton_python.so").is_symlink()
    assert (tmp_path / "python" / "triton_python_backend_stub").resolve().is_file()
    assert (tmp_path / "onnxruntime" / "model.py").is_file()


@pytest.mark.parametrize("name", ["a b", "é", "$(id)", "a;b", "a'b", 'a"b', "a:b", "a\nb", "a%`b"])
def test_path_that_a_shell_would_misread_gets_a_plain_link(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    odd = tmp_path / name
    odd.mkdir()
    (odd / "file").touch()
    assert plain(tmp_path, tmp_path, "link") == tmp_path
    link = plain(odd, tmp_path, "link")
    assert is_plain(link)
    assert (link / "file").is_file()
    monkeypatch.setattr("tempfile.tempdir", str(odd))
    folder = make_folder()
    try:
        assert is_plain(folder)
        assert not folder.is_relative_to(odd)
    finally:
        folder.rmdir()


def test_missing_temporary_folder_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", "/a b")
    monkeypatch.setattr(_paths, "_FOLDERS", ("/nowhere",))
    with pytest.raises(StartError, match=r"^There is no temporary folder: TMPDIR must name one"):
        make_folder()


def test_blocked_launcher_ends_in_time_with_its_children() -> None:
    code = """
import subprocess, sys, threading
from yolov5_server._startup import end_in_time
child = subprocess.Popen(["sleep", "60"], start_new_session=True)
print(child.pid, flush=True)
should_exit = threading.Event()
end_in_time(should_exit, kill_seconds=0.2, exit_seconds=0.5)
should_exit.set()
threading.Event().wait()
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60)
    assert found.returncode == 1
    assert not Path("/proc", found.stdout.decode().strip(), "exe").exists()


def test_signals_ask_for_a_drain_then_the_end_then_force() -> None:
    stop = Stop()
    stop.drain_first(60, lambda: True)
    for should_exit, force_exit in ((False, False), (True, False), (True, True)):
        stop.request()
        assert stop.should_exit.is_set() == should_exit
        assert stop.force_exit.is_set() == force_exit


def test_drain_ends_by_itself() -> None:
    stop = Stop()
    stop.drain_first(0.05, lambda: True)
    stop.request()
    assert stop.should_exit.wait(10)
    assert not stop.force_exit.is_set()


@pytest.mark.parametrize(("seconds", "serves"), [(0, True), (60, False)])
def test_without_a_drain_or_a_server_the_first_signal_ends(seconds: float, serves: bool) -> None:
    stop = Stop()
    stop.drain_first(seconds, lambda: serves)
    stop.request()
    assert stop.should_exit.is_set()
    assert not stop.force_exit.is_set()


def test_signal_in_the_middle_of_a_wait_does_not_block_the_main_thread() -> None:
    code = """
import signal, threading
from yolov5_server import on_signals
event = threading.Event()
on_signals([signal.SIGUSR1], event.set)
with event._cond:  # held for a moment by every wait
    signal.raise_signal(signal.SIGUSR1)
event.wait()
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_soft_limit_on_descriptors_is_raised() -> None:
    code = """
import resource
from yolov5_server._startup import raise_descriptor_limit
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 512))
raise_descriptor_limit()
print(*resource.getrlimit(resource.RLIMIT_NOFILE))
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60)
    assert found.stdout == b"512 512\n"
