"""Number of CPU cores that one instance of a model may use."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cpu_count import available_cpus


def cores_for_instance(config: Mapping[str, Any]) -> int:
    """Divide the available cores evenly between a model's instances; at least 1.

    Args:
        config: the model's configuration, as Triton passes it to a backend.
    """
    instances = sum(
        int(group.get("count", 1)) * max(1, len(group.get("gpus", [])))  # of each GPU as many
        for group in config.get("instance_group", [])
    )
    return max(1, available_cpus() // max(1, instances))
