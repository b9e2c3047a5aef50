"""Download official release files, for `make model WEIGHTS=yolov5s`, and keep them in a cache.

An incomplete download is kept as `NAME.part`, and resumed by the next attempt, of this process or a
later one. The downloading process locks `NAME.lock`, which also holds the ETag of the part.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import http.client
import json
import os
import re
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, NoReturn
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit

from tqdm import tqdm

from ._errors import BuildError

_TABLE = Path(__file__).with_name("releases.json")

TIMEOUT_S = 30.0  # to connect, and for each read
DELAYS_S = (1.0, 2.0, 4.0, 8.0)  # before each further attempt
_CHUNK_BYTES = 1 << 16
_TRANSIENT = {408, 416, 425, 429, 500, 502, 503, 504}  # HTTP errors worth another attempt


@dataclass(frozen=True, kw_only=True)
class Release:
    """A file of an official release.

    Attributes:
        size: in bytes.
        sha256: in hexadecimal digits.
    """

    name: str
    size: int
    sha256: str
    url: str


@functools.cache
def releases() -> dict[str, Release]:
    """The files of `releases.json`, by name."""
    table = json.loads(_TABLE.read_text("utf-8"))
    return {
        file["name"]: Release(**file, url=f"{table['base_url']}{file['name']}")
        for file in table["files"]
    }


def is_release_name(text: str) -> bool:
    """Whether this is the name of a release file, with or without `.pt`."""
    return text in releases() or f"{text}.pt" in releases()


def fetch_release(name: str, *, cache: Path | None = None, base_url: str | None = None) -> Path:
    """Return a release file, and download it unless it is in the cache; reports on stderr.

    Args:
        name: a name that `is_release_name` accepts.
        cache: the folder to keep it in (default: `yolov5-triton` in the user's cache).
        base_url: the folder to download from, instead of the official one.

    Raises:
        BuildError: the release is unknown, cannot be downloaded or stored, or the file differs
            from the released one.
    """
    release = releases().get(name) or releases().get(f"{name}.pt")
    if release is None:
        known = ", ".join(known.removesuffix(".pt") for known in releases())
        raise BuildError(f"{name} is not a YOLOv5 release; there are {known}.")
    if base_url is not None:
        release = replace(release, url=f"{base_url.rstrip('/')}/{release.name}")
    return fetch(release, cache or _default_cache())


def fetch(
    release: Release,
    folder: Path,
    *,
    timeout: float = TIMEOUT_S,
    delays: Sequence[float] = DELAYS_S,
) -> Path:
    """Like `fetch_release`, for any file at an https address, or an http one if `release` has one.

    Args:
        timeout: in seconds, to connect and for each read.
        delays: seconds to wait before each further attempt.

    Raises:
        BuildError: the file cannot be downloaded or stored, or differs from the released one.
    """
    target, part, lock = (folder / f"{release.name}{end}" for end in ("", ".part", ".lock"))
    try:
        if _is_complete(target, release):
            print(f"Using {target} (Ultralytics, AGPL-3.0).", file=sys.stderr)
            return target
        print(
            f"{release.name} is licensed AGPL-3.0 by Ultralytics; this may bind what you serve "
            "with it.",
            file=sys.stderr,
        )
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(lock, release.name) as etag:
            if not _is_complete(target, release):
                with _Progress(release, target) as progress:
                    _download(release, part, etag, progress, timeout, delays)
                    _verify(release, part)
                    part.replace(target)
    except OSError as error:
        raise BuildError(
            f"{release.name} cannot be kept in {folder}: {error.strerror or error}."
        ) from None
    return target


def _default_cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME", "")
    if Path(base).is_absolute():
        return Path(base, "yolov5-triton")
    try:
        return Path.home() / ".cache" / "yolov5-triton"
    except RuntimeError:  # a user without a home folder, as in some containers
        raise BuildError(
            "There is no home folder to keep a download in; set XDG_CACHE_HOME to a folder."
        ) from None


@contextmanager
def _locked(path: Path, name: str) -> Iterator[IO[str]]:
    with path.open("a+", encoding="ascii", errors="replace") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"Waiting for another process that downloads {name} ...", file=sys.stderr)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield file


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _is_complete(path: Path, release: Release) -> bool:
    return _size(path) == release.size and _digest(path) == release.sha256


def _verify(release: Release, part: Path) -> None:
    """Compare the part with the release.

    Raises:
        BuildError: it differs, and has been deleted.
    """
    digest = _digest(part)
    if digest != release.sha256:
        part.unlink()
        raise _other_file(release, f"the received ones have {digest} and were deleted")


def _other_file(release: Release, instead: str) -> BuildError:
    return BuildError(
        f"The download of {release.url} is not the official {release.name}: {release.size} bytes "
        f"with SHA-256 {release.sha256} were expected, but {instead}."
    )


class _AttemptError(Exception):
    """An attempt that failed; the message is a short reason.

    Attributes:
        permanent: another attempt would fail as well.
        restart: the part cannot be resumed.
    """

    def __init__(self, reason: str, *, permanent: bool = False, restart: bool = False) -> None:
        super().__init__(reason)
        self.permanent = permanent
        self.restart = restart


class _Progress:
    """Progress on stderr: a bar for each attempt on a terminal, else a first and a last line.

    Attributes:
        received: bytes received by this process.
    """

    def __init__(self, release: Release, target: Path) -> None:
        self.received = 0
        self._release = release
        self._target = target
        self._live = sys.stderr.isatty()

    def __enter__(self) -> _Progress:
        if not self._live:
            megabytes = self._release.size / 1e6
            print(f"Downloading {self._release.url} ({megabytes:.1f} MB) ...", file=sys.stderr)
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None and not self._live:
            print(f"Downloaded {self._target}.", file=sys.stderr)

    def bar(self, done: int) -> tqdm[NoReturn]:
        """The bar of an attempt that begins with `done` bytes."""
        return tqdm(
            desc=self._release.name,
            initial=done,
            total=self._release.size,
            unit="B",
            unit_scale=True,
            disable=not self._live,
            file=sys.stderr,
        )


def _download(
    release: Release,
    part: Path,
    etag: IO[str],
    progress: _Progress,
    timeout: float,
    delays: Sequence[float],
) -> None:
    """Complete the part, with one attempt more than there are delays."""
    remaining = iter(delays)
    while True:
        try:
            return _receive(release, part, etag, progress, timeout)
        except _AttemptError as failure:
            if failure.restart:
                part.unlink(missing_ok=True)
            delay = next(remaining, None)
            if failure.permanent or delay is None:
                raise BuildError(
                    f"{release.name} cannot be downloaded ({failure}); download it yourself from "
                    f"{release.url} and give its path as WEIGHTS."
                ) from None
            time.sleep(delay)


def _receive(
    release: Release, part: Path, etag: IO[str], progress: _Progress, timeout: float
) -> None:
    """Make one attempt: receive the rest of the part, or the whole file if it cannot be resumed."""
    done = _size(part)
    if done == release.size:
        return
    if done > release.size:
        done = 0
    request = urllib.request.Request(release.url)
    if done:
        request.add_header("Range", f"bytes={done}-{release.size - 1}")
        etag.seek(0)
        if known := _strong_etag(etag.read()):
            request.add_header("If-Range", known)
    with _open(request, timeout, progress) as response:
        if response.status == 206:
            span = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers["Content-Range"] or "")
            if span is None or int(span[1]) != done:
                raise _AttemptError("the server sent a different part than requested", restart=True)
            offered: int | None = int(span[2])
        else:
            done, offered = 0, response.length
        if offered not in (None, release.size):
            raise _other_file(release, f"{offered} bytes are offered")
        with part.open("ab" if done else "wb") as file, progress.bar(done) as bar:
            if not done:
                etag.truncate(0)
                etag.write(_strong_etag(response.headers["ETag"]))
                etag.flush()
            while done < release.size:
                chunk = _read(response, min(_CHUNK_BYTES, release.size - done), progress)
                if not chunk:
                    raise _AttemptError("the connection ended early")
                file.write(chunk)
                done += len(chunk)
                progress.received += len(chunk)
                bar.update(len(chunk))


def _strong_etag(etag: str | None) -> str:
    """The ETag if it is a strong one, which a range request needs, else an empty text."""
    return etag if etag and re.fullmatch(r'"[!-~]*"', etag) else ""


class _Redirects(urllib.request.HTTPRedirectHandler):
    def __init__(self, schemes: set[str]) -> None:
        self._schemes = schemes

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        _check_scheme(newurl, self._schemes)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _check_scheme(url: str, schemes: set[str]) -> None:
    scheme = urlsplit(url).scheme
    if scheme not in schemes:
        raise _AttemptError(f"its address leads to {scheme}, not https", permanent=True)


def _open(request: urllib.request.Request, timeout: float, progress: _Progress) -> Any:
    schemes = {"https", "http"} if request.full_url.startswith("http://") else {"https"}
    _check_scheme(request.full_url, schemes)
    try:
        return urllib.request.build_opener(_Redirects(schemes)).open(request, timeout=timeout)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise _attempt_error(error, progress) from None


def _read(response: Any, count: int, progress: _Progress) -> bytes:
    """Up to `count` bytes, as soon as some have arrived; none at the end."""
    try:
        return bytes(response.read1(count))
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise _attempt_error(error, progress) from None


def _attempt_error(error: Exception, progress: _Progress) -> _AttemptError:
    if isinstance(error, HTTPError):
        error.close()
        reason = f"HTTP {error.code} {http.client.responses.get(error.code, '')}".rstrip()
        restart = error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE
        return _AttemptError(reason, permanent=error.code not in _TRANSIENT, restart=restart)
    # urllib raises URLError if it cannot connect. If nothing has been received before, the network
    # is probably unreachable, and further attempts would only keep the user waiting.
    permanent = isinstance(error, URLError) and not progress.received
    cause = error.reason if isinstance(error, URLError) else error
    reason = getattr(cause, "strerror", None) or str(cause) or type(cause).__name__
    return _AttemptError(reason, permanent=permanent or isinstance(error, ValueError))
