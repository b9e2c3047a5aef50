"""Standard streams that are closed, or whose encoding lacks characters."""

from __future__ import annotations

import io
import os
import sys


def prepare_stdio() -> None:
    """Make the standard streams usable, at the start of a command.

    A closed stream is replaced by the null device; otherwise the next file that is opened would get
    its number and receive what is printed. A character that the output's encoding lacks is printed
    as an escape such as `\\xe9` instead of raising an error.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)
            if null != number:
                os.dup2(null, number)
                os.close(null)
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "r" if number == 0 else "w", closefd=False))  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
