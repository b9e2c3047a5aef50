"""Paths that Triton can use: its Python backend puts them into a shell command, unquoted."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from pathlib import Path

from ._errors import StartError

_PLAIN = re.compile(r"[A-Za-z0-9._/+@=-]+")
_FOLDERS = ("/tmp", "/var/tmp", "/dev/shm")


def is_plain(path: Path) -> bool:
    """Whether the path is safe in a shell command, in a search path and in every locale."""
    return _PLAIN.fullmatch(os.fspath(path)) is not None


def make_folder() -> Path:
    """Make a new folder for one server, with a plain path, in TMPDIR or another temporary folder.

    Raises:
        StartError: no temporary folder can be used.
    """
    try:
        wanted = [tempfile.gettempdir()]
    except FileNotFoundError:
        wanted = []
    for place in (*wanted, *_FOLDERS):
        if is_plain(Path(place)) and _is_usable(place):
            with contextlib.suppress(OSError):  # there may be another place
                return Path(tempfile.mkdtemp(prefix="yolov5-triton-", dir=place))
    raise StartError(
        "There is no temporary folder: TMPDIR must name one that may be written to and is not"
        " mounted noexec, with a path of letters, digits and ._/+@=- alone."
    )


def _is_usable(place: str) -> bool:
    try:
        # The Python backend will be loaded from this folder.
        executable = not os.statvfs(place).f_flag & os.ST_NOEXEC
    except OSError:
        return False
    return executable and os.access(place, os.W_OK | os.X_OK)


def plain(path: Path, folder: Path, name: str) -> Path:
    """The path itself if it is plain; otherwise a new link to it, called `name`, in the folder."""
    if is_plain(path):
        return path
    link = folder / name
    link.symlink_to(path)
    return link
