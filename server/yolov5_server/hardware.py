"""What this machine has to run a network on."""

from __future__ import annotations

import importlib.util
from pathlib import Path


def cpu_has_bf16() -> bool:
    """Whether the CPU multiplies BF16 numbers itself; elsewhere OpenVINO only imitates them."""
    flags = Path("/proc/cpuinfo").read_text().partition("flags")[2].partition("\n")[0].split()
    return not {"avx512_bf16", "amx_bf16"}.isdisjoint(flags)


def has_gpu() -> bool:
    """Whether the driver of an NVIDIA GPU is loaded."""
    return Path("/dev/nvidiactl").exists()


def has_cuda_provider() -> bool:
    """Whether the installed onnxruntime can run on an NVIDIA GPU; does not import it."""
    spec = importlib.util.find_spec("onnxruntime")
    folders = (spec.submodule_search_locations if spec else None) or []
    return any(
        Path(folder, "capi", "libonnxruntime_providers_cuda.so").is_file() for folder in folders
    )
