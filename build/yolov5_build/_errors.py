"""The errors of the build tool."""

from __future__ import annotations

import sys


class BuildError(Exception):
    """Weights that cannot be turned into a served model; the message is one sentence."""


def _os_error_reason(error: OSError) -> str:
    """The reason of a full disk, a missing permission or a failing device, to begin a sentence."""
    reason = error.strerror or str(error) or type(error).__name__
    return f"{error.filename}: {reason}" if error.filename else reason


def report_failure(error: Exception) -> int:
    """Print the sentence to an error that has ended a command; return the command's exit status."""
    sentence: object = error
    if isinstance(error, OSError):
        sentence = f"{_os_error_reason(error)}; the installed model is unchanged."
    print(f"error: {sentence}", file=sys.stderr)
    return 1
