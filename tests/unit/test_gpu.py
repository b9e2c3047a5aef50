"""Whether the network runs on a GPU: what is installed for it, what is tried, and what is said."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from config_check import ConfigError
from cores import cores_for_instance
from session import providers, without_missing_tensorrt
from support import ROOT

from yolov5_server import Settings, StartError, _gpu, _repository, embedded, hardware
from yolov5_server._gpu import gpu_fault, without_faulty_gpu
from yolov5_server._log import LogPump
from yolov5_server._repository import chosen_configs

NEVER = threading.Event()
HAS_DRIVER = hardware.has_gpu() or shutil.which("nvidia-smi") is not None


def make(*arguments: str) -> str:
    command = ["make", "-n", "--old-file=.venv/.installed", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


def test_make_installs_onnxruntime_gpu_for_a_gpu_alone() -> None:
    new = "--what-if=requirements-gpu.lock"
    assert "--requirement requirements-gpu.lock" in make("serve", "GPU=1", new)
    assert "requirements-gpu" not in make("serve", "GPU=0", new)
    assert ("requirements-gpu" in make("serve", new)) == hardware.has_gpu()
    assert "--gpu='1'" in make("gateway", "GPU=1")
    assert "PYTHONPATH=.venv/gpu" in make("gpu-check", "GPU=1")
    assert "PYTHONPATH" not in make("gpu-check", "GPU=0")


def test_makefile_looks_for_the_driver_and_the_packages_where_the_launcher_does() -> None:
    makefile = (ROOT / "Makefile").read_text()
    assert "$(wildcard /dev/nvidiactl)" in makefile
    assert 'Path("/dev/nvidiactl")' in Path(hardware.__file__).read_text()
    assert "GPU_PACKAGES := $(VENV)/gpu\n" in makefile
    assert Path(sys.prefix, "gpu") == hardware.GPU_PACKAGES


def test_locked_onnxruntime_gpu_is_the_version_of_onnxruntime() -> None:
    lock = (ROOT / "requirements-gpu.lock").read_text()
    name, version = re.findall(r"^([\w-]+)==(\S+)", lock, re.MULTILINE)[0]
    assert name == "onnxruntime-gpu" and len(re.findall(r"^\w", lock, re.MULTILINE)) == 1
    assert f'"onnxruntime=={version}; python_version >= ' in (ROOT / "pyproject.toml").read_text()
    assert f"onnxruntime-gpu=={version};" in (ROOT / "requirements-gpu.txt").read_text()
    assert len(re.findall(r"--hash=sha256:[0-9a-f]{64}", lock)) >= 2  # Python 3.11 and 3.12


def test_unknown_choice_is_refused() -> None:
    with pytest.raises(StartError, match="GPU is 'yes'; allowed: auto, 1, 0"):
        Settings(gpu="yes")


def test_nothing_is_tried_without_a_driver_or_with_gpu_0(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(_gpu, "gpu_fault", lambda should_exit: "it must not be asked")
    monkeypatch.setattr(hardware, "has_gpu", lambda: False)
    for settings in Settings(), Settings(gpu="0"), Settings(gpu="1", triton=tmp_path):
        assert without_faulty_gpu(settings, NEVER) == (settings, None)


def test_faulty_gpu_is_left_alone_with_a_warning_that_says_why(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_gpu, "gpu_fault", lambda should_exit: "a cause")
    monkeypatch.setattr(hardware, "has_gpu", lambda: True)
    monkeypatch.setattr(_gpu, "has_gpu", lambda: True)
    settings, warning = without_faulty_gpu(Settings(), NEVER)
    assert settings == Settings(gpu="0")
    assert warning == (
        "warning: the network runs on the CPU, although there is an NVIDIA GPU: a cause."
    )
    monkeypatch.setattr(_gpu, "gpu_fault", lambda should_exit: None)
    assert without_faulty_gpu(Settings(), NEVER) == (Settings(), None)


def test_onnxruntime_without_cuda_is_named_as_the_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_gpu, "has_cuda_provider", lambda: False)
    cause = gpu_fault(NEVER) or ""
    if sys.version_info >= (3, 11):
        assert "the installed onnxruntime cannot use it" in cause
    monkeypatch.setattr(sys, "version_info", (3, 10, 9))
    assert "needs Python 3.11 or newer" in (gpu_fault(NEVER) or "")


@pytest.mark.skipif(HAS_DRIVER, reason="an NVIDIA driver is here")
def test_missing_driver_is_named_as_the_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_gpu, "has_cuda_provider", lambda: True)
    cause = "its driver's library cannot be loaded: libcuda.so.1: cannot open shared object file"
    assert (gpu_fault(NEVER) or "").startswith(cause)


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a driver's library, whose answers are in the environment."""
    if shutil.which("cc") is None:
        pytest.skip("there is no C compiler to make a driver's library with")
    folder = tmp_path_factory.mktemp("driver")
    (folder / "cuda.c").write_text(
        "#include <stdlib.h>\n#include <unistd.h>\n"
        'int cuInit(int f) { int s = atoi(getenv("CU_INIT"));'
        " if (s == -1) abort(); if (s == -2) sleep(60); return s; }\n"
        'int cuDriverGetVersion(int *v) { *v = atoi(getenv("CU_VERSION")); return 0; }\n'
    )
    command = ["cc", "-shared", "-fPIC", "-o", "libcuda.so.1", "cuda.c"]
    subprocess.run(command, cwd=folder, check=True)
    return folder


@pytest.fixture
def use_driver(driver: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setenv("LD_LIBRARY_PATH", str(driver))
    monkeypatch.setenv("CU_INIT", "0")
    monkeypatch.setattr(_gpu, "has_cuda_provider", lambda: True)
    return monkeypatch


@pytest.mark.parametrize(
    "status, version, needed, cause",
    [
        (100, 13000, "13.0", "its driver cannot be used: it sees no GPU; CUDA_VISIBLE_DEVICES may"),
        (803, 13000, "13.0", "its library and its kernel module have different versions"),
        (999, 13000, "13.0", "its driver cannot be used: CUDA error 999"),
        (
            0,
            12080,
            "13.0",
            "its driver knows CUDA 12.8, and onnxruntime needs CUDA 13.0; NVIDIA's driver 580 or",
        ),
        (0, 13010, "13.0", "None"),
        (0, 13000, "13.2", "None"),  # within a major version any driver will do
        (0, 12080, "", "None"),
    ],
)
def test_driver_that_cannot_be_used_says_why(
    use_driver: pytest.MonkeyPatch, status: int, version: int, needed: str, cause: str
) -> None:
    use_driver.setenv("CU_INIT", str(status))
    use_driver.setenv("CU_VERSION", str(version))
    code = (
        "import sys; from yolov5_server._gpu_probe import driver_fault as f; print(f(sys.argv[1]))"
    )
    command = [sys.executable, "-c", code, needed]
    assert cause in subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_driver_that_ends_its_process_does_not_end_the_launcher(
    use_driver: pytest.MonkeyPatch,
) -> None:
    use_driver.setenv("CU_INIT", "-1")
    assert gpu_fault(NEVER) == "the process that tried it ended with status -6"


def test_driver_that_hangs_is_given_up(use_driver: pytest.MonkeyPatch) -> None:
    use_driver.setenv("CU_INIT", "-2")
    use_driver.setattr(_gpu, "_PROBE_SECONDS", 2)
    assert gpu_fault(NEVER) == "it did not answer within 2 s"
    should_exit = threading.Event()
    should_exit.set()
    assert gpu_fault(should_exit) is None  # at once: the launcher is to end


@pytest.mark.skipif(HAS_DRIVER, reason="an NVIDIA driver is here")
def test_gpu_that_torch_cannot_use_is_not_used(use_driver: pytest.MonkeyPatch) -> None:
    use_driver.setenv("CU_VERSION", "13000")
    assert re.fullmatch(r"torch \S+ cannot use it", gpu_fault(NEVER) or "")


def test_process_on_a_gpu_has_its_packages_first_and_one_on_the_cpu_sees_no_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packages = tmp_path / "gpu"
    (packages / "onnxruntime").mkdir(parents=True)
    monkeypatch.setattr(hardware, "GPU_PACKAGES", packages)
    monkeypatch.setattr(hardware, "has_gpu", lambda: False)
    monkeypatch.setenv("PYTHONPATH", "elsewhere")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def environment(gpu: str) -> dict[str, str]:
        links = tmp_path / f"links-{gpu}"
        links.mkdir()
        return embedded.server_environment(links, gpu)

    assert environment("1")["PYTHONPATH"] == str(packages)
    assert "PYTHONPATH" not in environment("auto")
    on_cpu = environment("0")
    assert "PYTHONPATH" not in on_cpu and on_cpu["CUDA_VISIBLE_DEVICES"] == ""


def test_packages_of_the_gpu_are_what_such_a_process_imports(tmp_path: Path) -> None:
    (tmp_path / "onnxruntime").mkdir()
    (tmp_path / "onnxruntime" / "__init__.py").write_text("cuda = 1")
    command = [sys.executable, "-c", "import onnxruntime; print(onnxruntime.cuda)"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert ran.stdout == "1\n"


def test_gpu_0_serves_what_the_cpu_is_best_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("cpu_has_bf16", "has_cuda_provider"):
        monkeypatch.setattr(_repository, name, lambda: True)
    monkeypatch.setattr(hardware, "has_gpu", lambda: True)
    configs = tmp_path / "yolov5" / "configs"
    configs.mkdir(parents=True)
    (tmp_path / "yolov5" / "config.pbtxt").write_text('backend: "onnxruntime"')
    for name in ("embedded", "embedded-bf16", "bf16"):
        (configs / f"{name}.pbtxt").touch()

    def is_bf16(gpu: str) -> bool:
        return "bf16" in (chosen_configs(Settings(repository=tmp_path, gpu=gpu)) or "")

    assert not is_bf16("auto") and is_bf16("0")
    monkeypatch.setattr(hardware, "has_gpu", lambda: False)
    assert is_bf16("auto") and not is_bf16("1")


def test_log_tells_which_gpus_run_a_network() -> None:
    warning = "W1126 20:00:00.000001 1 m.cc:1] plates runs on the CPU, not on GPU 0: why"
    shown: list[str] = []
    read, write = os.pipe()
    os.write(write, b"yolov5 runs on GPU 0, by CUDAExecutionProvider.\n")
    os.write(write, b"yolov5 runs on GPU 1, by CUDAExecutionProvider.\n")
    os.write(write, f"{warning}\n".encode())
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        pump = LogPump(pipe, verbose=False, log=shown.append)
        pump.close()
        pump.release()
    assert pump.gpus == {
        "yolov5": {"GPU 0": "CUDAExecutionProvider", "GPU 1": "CUDAExecutionProvider"}
    }
    assert warning in shown


def test_instances_on_each_gpu_divide_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cores.available_cpus", lambda: 16)
    group = {"count": 2, "kind": "KIND_GPU", "gpus": [0, 1]}
    assert cores_for_instance({"instance_group": [group]}) == 4
    assert cores_for_instance({"instance_group": [{"count": 2, "gpus": []}]}) == 8


TENSORRT = {
    "name": "yolov5",
    "optimization": {
        "graph": {"level": 1},
        "execution_accelerators": {
            "gpu_execution_accelerator": [
                {"name": "tensorrt", "parameters": {"precision_mode": "FP16"}}
            ]
        },
    },
}


def test_missing_tensorrt_is_left_out_with_the_reason() -> None:
    # Here neither its provider nor its library is installed; on a GPU the first one is.
    config, reason = without_missing_tensorrt(TENSORRT)
    assert "libonnxruntime_providers_tensorrt.so" in (reason or "") or "libnv" in (reason or "")
    assert providers(config, ["CUDAExecutionProvider"], "GPU", 1) == [
        ("CUDAExecutionProvider", {"device_id": 1, "use_tf32": "0"}),
        ("CPUExecutionProvider", {}),
    ]
    assert config["optimization"]["graph"] == {"level": 1}
    with pytest.raises(ConfigError, match="TensorrtExecutionProvider is not part of"):
        providers(TENSORRT, ["CUDAExecutionProvider"], "GPU", 1)


def test_configuration_without_tensorrt_is_left_as_it_is() -> None:
    config = {"name": "yolov5", "optimization": {"execution_accelerators": {}}}
    assert without_missing_tensorrt(config) == (config, None)
