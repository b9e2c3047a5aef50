"""The processor cores that one instance of a model may use."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def cores_of_instance(config: Mapping[str, Any]) -> int:
    """Its share of those that there are.

    Args:
        config: Triton's, as it hands it to a backend.
    """
    instances = sum(int(group.get("count", 1)) for group in config.get("instance_group", []))
    return max(1, available_cpus() // max(1, instances))


def available_cpus() -> int:
    """Processors that this process may use, a container's CPU quota included."""
    cpus = len(os.sched_getaffinity(0))
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        if quota != "max":
            cpus = min(cpus, max(1, round(int(quota) / int(period))))
    except (OSError, ValueError):
        pass  # no control group of version 2: no quota to be seen
    return cpus
