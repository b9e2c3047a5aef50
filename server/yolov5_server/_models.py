"""What a server serves, for operators: the answer to /models."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import psutil

from ._health import Health
from ._processes import model_processes
from ._reload import Reloader
from ._repository import FIRST, LAST, endpoint_name


def list_models(reloader: Reloader, health: Health, server: int | None) -> dict[str, Any]:
    """List the networks that are installed, and the steps that they share.

    Args:
        server: Triton's process number; None leaves the memory out.

    Returns:
        `models`: for each network its name, endpoint, version, precision, whether it is ready, why
        it is not ready or not served as it is installed, and the memory of its process in bytes.
        `steps`: name and memory of each. Memory is the proportional set size: shared pages are
        divided among the processes that have them.
    """
    memory = {} if server is None else _memory_by_model(server)
    models = []
    for name in sorted({*reloader.served, *reloader.refused}):
        served = reloader.served.get(name)
        fault = health.check(name) if served else None
        models.append(
            {
                "name": name,
                "endpoint": endpoint_name(name),
                "version": served.version if served else None,
                "precision": served.staged.precision if served else None,
                "ready": served is not None and fault is None,
                "reason": reloader.refused.get(name) or fault,
                "memory_bytes": memory.get(served.staged.model) if served else None,
            }
        )
    steps = [{"name": step, "memory_bytes": memory.get(step)} for step in (FIRST, LAST)]
    return {"models": models, "steps": steps}


def _memory_by_model(server: int) -> dict[str, int]:
    found: dict[str, int] = {}
    for one in model_processes(server):
        with suppress(psutil.Error, AttributeError):
            found[one.model] = found.get(one.model, 0) + one.process.memory_full_info().pss
    return found
