"""Fetch files of a source: checked by size and SHA-256, repeated when a connection is cut."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

from ._errors import SourceError, refused
from ._manifest import (
    MANIFEST_FILE,
    MOST_MANIFEST_BYTES,
    SourceFile,
    object_name,
)
from ._stores import Store

DELAYS_S = (0.5, 1.0, 2.0, 4.0)  # before each further attempt
_LEAST_RATE = 64 << 10  # bytes a second, over a whole attempt
_GRACE_SECONDS = 60.0
_CHUNK = 1 << 20


class StoppedError(Exception):
    """The launcher is to end; nothing was changed."""


def fetch_manifest(
    store: Store, should_exit: threading.Event, *, delays: Sequence[float] = DELAYS_S
) -> bytes:
    """The bytes of the manifest, one more than allowed if it has too many.

    Raises:
        SourceError: it cannot be read.
        StoppedError: `should_exit` was set.
    """
    most = MOST_MANIFEST_BYTES + 1
    for delay in (*delays, None):
        try:
            return b"".join(_bounded(store, MANIFEST_FILE, 0, most, should_exit))
        except SourceError as error:
            if not error.is_temporary or delay is None:
                raise
        if should_exit.wait(delay):
            break
    raise StoppedError


def fetch_file(
    store: Store,
    file: SourceFile,
    target: Path,
    should_exit: threading.Event,
    *,
    delays: Sequence[float] = DELAYS_S,
) -> None:
    """Fetch a file into `target`, which is there only if size and SHA-256 are right.

    An attempt goes on where the last one was cut off, if the store can do that.

    Raises:
        SourceError: it cannot be read, or is another file.
        OSError: the target cannot be written.
        StoppedError: `should_exit` was set.
    """
    part = target.with_name(f"{target.name}.part")
    digest = hashlib.sha256()
    with part.open("wb") as received:
        for delay in (*delays, None):
            if not store.resumes:
                received.truncate(0)
                received.seek(0)
                digest = hashlib.sha256()
            try:
                _receive(store, file, received, digest, should_exit)
                break
            except SourceError as error:
                if not error.is_temporary or delay is None:
                    raise
            if should_exit.wait(delay):
                raise StoppedError
        received.flush()
        os.fsync(received.fileno())
    if digest.hexdigest() != file.sha256:
        part.unlink()
        raise refused(
            f"{file.path} has the SHA-256 {digest.hexdigest()}, but {MANIFEST_FILE} says"
            f" {file.sha256}."
        )
    part.replace(target)


def _receive(
    store: Store,
    file: SourceFile,
    received: IO[bytes],
    digest: hashlib._Hash,
    should_exit: threading.Event,
) -> None:
    """Append what is missing of a file."""
    done = received.tell()
    # One byte more than there should be, to notice a longer file.
    for data in _bounded(store, object_name(file.sha256), done, file.size + 1 - done, should_exit):
        received.write(data)
        digest.update(data)
        done += len(data)
    if done > file.size:
        raise refused(f"{file.path} has more bytes than {MANIFEST_FILE} says, {file.size}.")
    if done < file.size:
        raise SourceError(
            f"{file.path} ended after {done} of {file.size} bytes.", is_temporary=True
        )


def _bounded(
    store: Store, name: str, offset: int, most: int, should_exit: threading.Event
) -> Iterator[bytes]:
    """The steps of the store, as long as they arrive at the least rate."""
    deadline = time.monotonic() + _GRACE_SECONDS + most / _LEAST_RATE
    for data in store.steps(name, offset, most):
        if should_exit.is_set():
            raise StoppedError
        yield data
        if time.monotonic() > deadline:
            reason = f"less than {_LEAST_RATE >> 10} KiB a second arrive"
            raise SourceError(f"{name} cannot be read: {reason}.", is_temporary=True)


def is_intact(path: Path, file: SourceFile) -> bool:
    """Whether a file that was fetched before is still the one of the manifest."""
    try:
        if path.is_symlink() or path.stat().st_size != file.size:
            return False
        digest = hashlib.sha256()
        with path.open("rb") as content:
            while chunk := content.read(_CHUNK):
                digest.update(chunk)
    except OSError:
        return False
    return digest.hexdigest() == file.sha256
