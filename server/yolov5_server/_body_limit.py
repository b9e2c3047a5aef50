"""How large a body Triton is to read over HTTP: as large as `preprocess` allows a request to be."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path

from ._repository import FIRST, read_config, step_function
from ._settings import Settings

_FLAG = "--http-max-input-size"
_ASK_SECONDS = 5.0


def body_limit_flags(binary: Path, environment: Mapping[str, str], settings: Settings) -> list[str]:
    """The flag for a Triton that limits bodies, to 64 MiB by default, such as 26.08.

    Others, such as 2.51, have no limit and refuse the flag, so the binary is asked what it knows.

    Args:
        binary: `tritonserver`.
        environment: to run it in.
        settings: of the server.

    Raises:
        StartError: the configuration of `preprocess` cannot be read.
    """
    if not _knows_flag(binary, environment):
        return []
    try:
        return [f"{_FLAG}={largest_body(settings)}"]
    except ValueError:  # the step names this error when it is loaded
        return []


def largest_body(settings: Settings) -> int:
    """Bytes of the largest request that `preprocess` allows: a full batch as base64 in JSON.

    Raises:
        StartError: its configuration cannot be read.
        ValueError: a limit is missing or out of range.
    """
    config = read_config(settings.repository, FIRST)
    given = {name: value.string_value for name, value in config.parameters.items()}
    read_limits = step_function(settings.repository, "settings", "read_image_limits")
    limits = read_limits({**given, **settings.steps})
    images: int = max(1, config.max_batch_size) * 4 * -(-limits.bytes // 3)
    # For the JSON around them, and for writers that escape each "/", one character in 64.
    return images + images // 32


def _knows_flag(binary: Path, environment: Mapping[str, str]) -> bool:
    try:
        told = subprocess.run(
            [binary, "--help"],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=_ASK_SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return _FLAG.encode() in told.stdout
