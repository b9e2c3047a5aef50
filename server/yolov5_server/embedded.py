"""The Triton embedded in the wheel `nvidia-pytriton`: its folder, backends and environment."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import os
import shutil
import sys
import sysconfig
from pathlib import Path

from ._errors import StartError
from ._paths import plain
from ._settings import BACKENDS
from .hardware import gpu_python_path, wants_gpu

# A tensor of 5 MB crosses from step to step for every image. These settings keep its memory for the
# next one; by default glibc returns it, and the kernel fills it with zeros again each time.
_MALLOC = {
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(128 << 20),
    "MALLOC_ARENA_MAX": "4",
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}


def triton_folder() -> Path:
    """The folder in the wheel that holds `bin/tritonserver`.

    Raises:
        StartError: the wheel is not installed.
    """
    # Not imported: the package does much more than hold the binary.
    spec = importlib.util.find_spec("pytriton")
    if spec is None or spec.origin is None:
        raise StartError("The nvidia-pytriton wheel is not installed; run `make setup`.")
    return Path(spec.origin).parent / "tritonserver"


def assemble_backends(triton: Path, folder: Path) -> Path:
    """Make the folder for `--backend-directory`: Triton's Python backend and this project's.

    `libtriton_python.so` is copied, because Triton refuses a link to it. The stub is a link,
    because it finds its libraries relative to its own place.

    Args:
        triton: see `triton_folder`; or a container's Triton.
        folder: to be made, or extended.

    Returns:
        `folder`.

    Raises:
        StartError: this version of Python has no backend.
    """
    python = triton / "backends" / "python"
    stub = _find_stub(triton)
    # Without this Triton would make it executable for its owner only.
    with contextlib.suppress(OSError):
        stub.chmod(0o755)
    shutil.copytree(
        python, folder / "python", ignore=shutil.ignore_patterns("__pycache__", stub.name)
    )
    (folder / "python" / stub.name).symlink_to(stub)
    for backend in BACKENDS.iterdir():
        (folder / backend.name).symlink_to(backend)
    return folder


def _find_stub(triton: Path) -> Path:
    """The program that runs a Python model: the wheel has one for each version of Python."""
    stub = triton / "backends" / "python" / "triton_python_backend_stub"
    if stub.is_file():
        return stub
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = triton / "python_backend_stubs" / version / stub.name
    if not stub.is_file():
        raise StartError(f"Triton has no Python backend for Python {version}; use 3.10 to 3.12.")
    return stub


def server_environment(links: Path, gpu: str = "auto") -> dict[str, str]:
    """Environment of a Triton: this interpreter for its models, without the user's Python settings.

    Args:
        links: an existing folder for links to the interpreter and its library.
        gpu: as in `Settings`.

    Raises:
        StartError: this Python has no shared library.
    """
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in ("PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP")
    }
    interpreter = Path(sys.executable)
    # Triton's Python stub uses the environment of the first `python3` on the path.
    environment["PATH"] = os.pathsep.join(
        (
            f"{plain(interpreter.parents[1], links, 'python')}/bin",
            environment.get("PATH", os.defpath),
        )
    )
    environment["PYTHONDONTWRITEBYTECODE"] = "1"  # the model repository stays as it is
    environment["PYTHONNOUSERSITE"] = "1"
    if gpu == "0":
        environment["CUDA_VISIBLE_DEVICES"] = ""  # neither Triton nor a step sees one
    elif wants_gpu(gpu) and (folder := gpu_python_path()):
        environment["PYTHONPATH"] = str(plain(Path(folder), links, "gpu"))
    for name, value in _MALLOC.items():
        environment.setdefault(name, value)
    if library := python_library():
        # A folder with nothing else: conda has a C++ library beside it that Triton must not load.
        (links / "lib").mkdir()
        (links / "lib" / library.name).symlink_to(library)
        known = environment.get("LD_LIBRARY_PATH")
        folders = filter(None, (str(links / "lib"), known))
        environment["LD_LIBRARY_PATH"] = os.pathsep.join(folders)
    return environment


def python_library() -> Path | None:
    """Find the shared library of this interpreter, which Triton's Python stub needs.

    Returns:
        The file, or None if the system's own search finds it.

    Raises:
        StartError: this Python has no shared library.
    """
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    library = f"libpython{version}.so.1.0"
    # An interpreter that was moved after it was built, such as uv's, may name a folder that does
    # not exist.
    folders = [sysconfig.get_config_var("LIBDIR"), Path(sys.base_prefix, "lib")]
    for folder in filter(None, folders):
        if (found := Path(folder, library)).exists():
            return found
    try:
        ctypes.CDLL(library)
    except OSError:
        raise StartError(
            f"{library} is not installed, and Triton's Python backend needs it;"
            f" on Debian and Ubuntu: apt install libpython{version}."
        ) from None
    return None
