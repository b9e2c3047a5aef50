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

# A tensor of 5 MB crosses from step to step for every image. Its memory is kept for the next one:
# as glibc comes, it is given back and filled with zeros anew each time.
_MALLOC = {
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(128 << 20),
    "MALLOC_ARENA_MAX": "4",
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}


def triton_folder() -> Path:
    """Where the wheel has put `tritonserver`.

    Raises:
        StartError: the wheel is not installed.
    """
    # The package itself is not imported: it does much more than carry the binary.
    spec = importlib.util.find_spec("pytriton")
    if spec is None or spec.origin is None:
        raise StartError("The nvidia-pytriton wheel is not installed; run `make setup`.")
    return Path(spec.origin).parent / "tritonserver"


def assemble_backends(triton: Path, folder: Path) -> Path:
    """Put together what `--backend-directory` names, as `folder`, from the wheel's Triton.

    `libtriton_python.so` must be a real file, since Triton refuses one that a link leads to; the
    stub must stay a link, since it finds its own libraries relative to where it lies.
    """
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = triton / "python_backend_stubs" / version / "triton_python_backend_stub"
    if not stub.is_file():
        raise StartError(f"Triton has no Python backend for Python {version}; use 3.10 to 3.12.")
    # Triton gives its owner alone the right to run it, where nobody has that yet.
    with contextlib.suppress(PermissionError):
        stub.chmod(0o755)
    shutil.copytree(
        triton / "backends" / "python",
        folder / "python",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    (folder / "python" / stub.name).symlink_to(stub)
    for backend in BACKENDS.iterdir():
        (folder / backend.name).symlink_to(backend)
    return folder


def server_environment(links: Path) -> dict[str, str]:
    """The server's environment: this interpreter for the models, and none of its user's habits.

    Args:
        links: a folder for links to what lies elsewhere.
    """
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in ("PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP")
    }
    interpreter = Path(sys.executable)
    # Triton's Python stub takes the environment whose `python3` comes first.
    environment["PATH"] = os.pathsep.join(
        (
            f"{plain(interpreter.parents[1], links, 'python')}/bin",
            environment.get("PATH", os.defpath),
        )
    )
    environment["PYTHONDONTWRITEBYTECODE"] = "1"  # the model repository stays as it is
    environment["PYTHONNOUSERSITE"] = "1"
    for name, value in _MALLOC.items():
        environment.setdefault(name, value)
    if library := python_library():
        # Alone: conda, for one, has a C++ library beside it, which Triton must not take.
        (links / "lib").mkdir()
        (links / "lib" / library.name).symlink_to(library)
        known = environment.get("LD_LIBRARY_PATH")
        folders = filter(None, (str(links / "lib"), known))
        environment["LD_LIBRARY_PATH"] = os.pathsep.join(folders)
    return environment


def python_library() -> Path | None:
    """The shared library of this interpreter, which Triton's Python stub needs.

    Returns:
        The file, or None where the system's own search finds it.

    Raises:
        StartError: this Python has no shared library.
    """
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    library = f"libpython{version}.so.1.0"
    # An interpreter that was moved after it was built, such as one of uv, may name a folder that
    # is not there.
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
