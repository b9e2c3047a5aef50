"""The backend directory: the wheel's Python backend, and ours beside it."""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
import sys
from pathlib import Path

from ._errors import StartError
from ._settings import BACKENDS


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
