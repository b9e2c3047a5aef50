"""Load `torch.ops.torchvision` without importing the torchvision package.

`import torchvision` takes about as long as `import torch` itself, since it imports models,
transforms and torch._dynamo. The operators are in one shared library, which loads in milliseconds.
"""

from __future__ import annotations

import importlib
from importlib.util import find_spec
from pathlib import Path

import torch

# The stable-ABI library of torchvision 0.29, and the `_C.so` or `_C.abi3.so` of older ones; other
# endings belong to other platforms and interpreters.
_PATTERNS = ("_C_stable*.so", "_C.so", "_C.*.so")


def load_operators() -> None:
    """Register torchvision's operators; by importing its package if its library is not found.

    Raises:
        ImportError: torchvision is not installed, or does not fit this version of torch.
    """
    for library in _libraries():
        try:
            torch.ops.load_library(str(library))  # type: ignore[no-untyped-call]
        except OSError:
            continue
        if hasattr(torch.ops.torchvision, "nms"):
            return
    importlib.import_module("torchvision")
    if not hasattr(torch.ops.torchvision, "nms"):
        raise ImportError("torchvision's operators do not fit this version of torch")


def _libraries() -> list[Path]:
    """The shared libraries that may hold the operators, the most likely first."""
    spec = find_spec("torchvision")  # finds a package without importing it
    folders = (spec.submodule_search_locations if spec else None) or []
    return [
        library
        for folder in folders
        for pattern in _PATTERNS
        for library in sorted(Path(folder).glob(pattern))
    ]
