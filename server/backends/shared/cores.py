"""The processor cores that one instance of a model may use."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cpu_count import available_cpus


def cores_for_instance(config: Mapping[str, Any]) -> int:
    """Its share of those that there are.

    Args:
        config: Triton's, as it hands it to a backend.
    """
    instances = sum(int(group.get("count", 1)) for group in config.get("instance_group", []))
    return max(1, available_cpus() // max(1, instances))
