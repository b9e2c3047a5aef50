"""The modules of the ensemble's steps, imported without a server."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType

from .paths import REPOSITORY


def step_module(step: str, name: str) -> ModuleType:
    """Import a module of one of the ensemble's steps, such as `letterbox` of `preprocess`."""
    path = REPOSITORY / step / "1" / f"{name}.py"
    qualified = f"_{step}_{name}"
    if qualified not in sys.modules:
        spec = importlib.util.spec_from_file_location(qualified, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[qualified] = module  # dataclasses look up their module there
        sys.path.insert(0, str(path.parent))  # modules import their neighbours, as in the server
        try:
            spec.loader.exec_module(module)
        finally:
            sys.path.remove(str(path.parent))
    return sys.modules[qualified]
