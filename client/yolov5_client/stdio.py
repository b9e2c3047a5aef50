"""Standard streams as a command finds them: closed, or in an encoding that lacks characters."""

from __future__ import annotations

import io
import os
import sys


def prepare_stdio() -> None:
    """Make the standard streams fit to be used; for the start of a command.

    A closed one is the null device then: otherwise the next file would get its number, and what is
    printed. A character that the output's encoding lacks is printed as `\\xe9`, not a fault.
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
