"""What this machine has to run a network on."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

# Where `make serve` puts onnxruntime-gpu: beside the onnxruntime of the environment, which has the
# same files without CUDA, and which all but the server go on using.
GPU_PACKAGES = Path(sys.prefix, "gpu")


def cpu_has_bf16() -> bool:
    """Whether the CPU multiplies BF16 numbers itself; elsewhere OpenVINO only imitates them."""
    flags = Path("/proc/cpuinfo").read_text().partition("flags")[2].partition("\n")[0].split()
    return not {"avx512_bf16", "amx_bf16"}.isdisjoint(flags)


def has_gpu() -> bool:
    """Whether the driver of an NVIDIA GPU is loaded. The Makefile looks for the same file."""
    return Path("/dev/nvidiactl").exists()


def wants_gpu(choice: str) -> bool:
    """Whether to look for a GPU; `choice` is that of `Settings.gpu`."""
    return choice == "1" or (choice == "auto" and has_gpu())


def has_cuda_provider() -> bool:
    """Whether an installed onnxruntime can run on an NVIDIA GPU; does not import it."""
    spec = importlib.util.find_spec("onnxruntime")
    folders = [str(GPU_PACKAGES / "onnxruntime")]
    folders += (spec.submodule_search_locations if spec else None) or []
    return any(
        Path(folder, "capi", "libonnxruntime_providers_cuda.so").is_file() for folder in folders
    )


def gpu_python_path() -> str | None:
    """The folder that a process on the GPU needs first on its path; None if it needs none."""
    return str(GPU_PACKAGES) if (GPU_PACKAGES / "onnxruntime").is_dir() else None
