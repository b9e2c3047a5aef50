"""The images, videos and streams that the arguments of `detect` name."""

from __future__ import annotations

import codecs
import glob
import http.client
import io
import os
import re
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import BinaryIO, Literal
from urllib.parse import unquote, urlsplit

from ._proxy import opener_for
from ._wire import read_file

IMAGE_SUFFIXES = frozenset(
    {".bmp", ".jpe", ".jpeg", ".jpg", ".mpo", ".png", ".tif", ".tiff", ".webp"}
)
VIDEO_SUFFIXES = frozenset(
    {".asf", ".avi", ".gif", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ts", ".webm"}
    | {".wmv"}
)
LIVE_SUFFIXES = frozenset({".m3u8", ".mjpeg", ".mjpg"})  # of a URL
LIVE_SCHEMES = frozenset({"rtmp", "rtmps", "rtsp", "rtsps", "tcp", "udp"})

STDIN = "-"
_DOWNLOAD_TIMEOUT = 30.0  # seconds without a byte
_DOWNLOAD_LIMIT = 32 << 20  # bytes; the server accepts no more
_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"II*\0", b"MM\0*")


@dataclass(frozen=True)
class Source:
    """One image, video or live stream.

    Attributes:
        name: as the caller named it; for files from a folder or glob, their path.
        data: the encoded image, if it came on standard input.
    """

    name: str
    kind: Literal["image", "video", "stream"] = "image"
    data: bytes | None = None

    @property
    def stem(self) -> str:
        """The name of its results."""
        if not self._is_url:
            return Path(self._file).stem
        host = urlsplit(self.name).netloc.rpartition("@")[2]
        return safe_name(Path(self._file).stem or host)

    @property
    def suffix(self) -> str:
        return Path(self._file).suffix.lower()

    @property
    def _is_url(self) -> bool:
        return _scheme(self.name) is not None

    @property
    def _file(self) -> str:
        if self.name == STDIN:
            return "stdin"
        if not self._is_url:
            return self.name
        return unquote(urlsplit(self.name).path).rstrip("/").rpartition("/")[2]

    def read(self) -> bytes:
        """Return the bytes of an image.

        Raises:
            OSError: the image cannot be read or downloaded.
        """
        if self.data is not None:
            return self.data
        return _download(self.name) if self._is_url else read_file(self.name)


def expand(
    arguments: Iterable[str],
    *,
    stdin: BinaryIO,
    exclude: Path | None = None,
    strict: bool = True,
) -> tuple[Iterable[Source], int | None]:
    """Return the sources that the arguments name, in order, and their number.

    A file is accepted whatever its name; the server judges its content. Folders (recursively) and
    globs yield the files with a suffix of an image or video, sorted. A `.txt` file lists further
    sources, and so does standard input, which is read lazily; the number is then unknown (None). A
    `.streams` file lists addresses of streams.

    Args:
        exclude: a folder to skip, because results are written there.
        strict: raise an error for a missing file at once. Otherwise it fails when it is read, as
            the entries of a list always do.

    Raises:
        FileNotFoundError: a source does not exist, or contains no image and no video.
    """
    excluded = os.path.abspath(exclude) + os.sep if exclude else None  # noqa: PTH100
    parts: list[Iterable[Source]] = []
    count: int | None = 0
    for argument in arguments:
        if argument != STDIN:
            found = _expand(argument, excluded, strict)
            parts.append(found)
            count = None if count is None else count + len(found)
        elif head_is_image(stdin.peek(64)):  # type: ignore[attr-defined]
            parts.append([Source(STDIN, data=stdin.read())])
            count = None if count is None else count + 1
        else:
            parts.append(_sources_in_list(stdin, excluded))
            count = None
    return chain.from_iterable(parts), count


def head_is_image(head: bytes) -> bool:
    """Whether the first bytes of a file belong to an image rather than to a list of paths."""
    return (
        head.startswith(_SIGNATURES)
        or (head[:4] == b"RIFF" and head[8:12] == b"WEBP")
        or (head[:2] == b"BM" and b"\0\0" in head[2:18])  # a path may begin with BM, too
    )


def safe_name(text: str) -> str:
    """Turn a label or URL into a file name that cannot lead out of its folder."""
    name = re.sub(r"[^\w .()+-]", "_", text)[:60].strip(" .")  # 60 of any letters are < 255 bytes
    # Encoded in UTF-8 on disk, whatever the locale's encoding.
    return os.fsdecode((name or "_").encode())


def _expand(argument: str, excluded: str | None, strict: bool) -> list[Source]:
    found = _find(argument, excluded)
    suffix = Path(argument).suffix.lower()
    if found is None and suffix in (".txt", ".streams") and Path(argument).is_file():
        with Path(argument).open("rb") as file:
            lists = (
                _streams_in_list(file) if suffix == ".streams" else _sources_in_list(file, excluded)
            )
            return list(lists)
    if found is None and (Path(argument).exists() or not strict):
        return [_file(argument)]
    if found is None:
        raise FileNotFoundError(f"no such file or folder: {argument}")
    if not found and strict:
        where = "in the folder" if Path(argument).is_dir() else "matches"
        raise FileNotFoundError(f"no image or video {where} {argument}")
    return found


def _list_entries(file: BinaryIO) -> Iterator[str]:
    """Yield the lines of a list without blank lines, comments and the byte order mark."""
    first = file.readline()
    if first.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        text = (first + file.read()).decode("utf-16", "replace")
        first, file = b"", io.BytesIO(text.encode())
    for line in chain([first.removeprefix(codecs.BOM_UTF8)], file):
        name = os.fsdecode(line).strip()
        if name and not name.startswith("#"):
            yield name


def _streams_in_list(file: BinaryIO) -> Iterator[Source]:
    """Yield the entries of a list of streams; a file on disk is a video that is read whole."""
    for name in _list_entries(file):
        yield _file(name) if Path(name).is_file() else Source(name, "stream")


def _sources_in_list(file: BinaryIO, excluded: str | None) -> Iterator[Source]:
    for name in _list_entries(file):
        if excluded and os.path.abspath(name).startswith(excluded):  # noqa: PTH100
            continue  # a result of this run
        # The usual case, which needs no access to the disk.
        if _scheme(name) is None and not glob.has_magic(name) and _has_suffix(name, IMAGE_SUFFIXES):
            yield Source(name)
        else:
            try:
                found = _find(name, excluded)
            except (OSError, ValueError):  # not accessible, or not a file name at all
                found = None
            yield from found or [_file(name)]


def _find(argument: str, excluded: str | None) -> list[Source] | None:
    """Return the sources that an argument names; None if it is a file or does not exist."""
    scheme = _scheme(argument)
    if scheme in ("http", "https"):
        suffix = Source(argument).suffix
        if suffix in LIVE_SUFFIXES:
            return [Source(argument, "stream")]
        return [Source(argument, "video" if suffix in VIDEO_SUFFIXES else "image")]
    if scheme is not None:
        return [Source(argument, "stream")] if scheme in LIVE_SCHEMES else None
    if Path(argument).is_dir():
        return _media_files(_walk(argument), excluded)
    if Path(argument).exists():
        return None
    if argument.isdecimal():
        return [Source(argument, "stream")]
    if glob.has_magic(argument):
        return _media_files(glob.iglob(argument, recursive=True), excluded)  # noqa: PTH207 (quicker)
    return None


def _walk(folder: str) -> Iterator[str]:
    for place, folders, files in os.walk(Path(folder)):
        folders[:] = [name for name in folders if not name.startswith(".")]
        prefix = (place.rstrip(os.sep) + os.sep).removeprefix("." + os.sep)
        yield from (prefix + name for name in files if not name.startswith("."))


def _media_files(paths: Iterable[str], excluded: str | None) -> list[Source]:
    wanted = IMAGE_SUFFIXES | VIDEO_SUFFIXES
    return [
        _file(path)
        for path in sorted(path for path in paths if _has_suffix(path, wanted))
        if excluded is None or not os.path.abspath(path).startswith(excluded)  # noqa: PTH100
    ]


def _file(path: str) -> Source:
    return Source(path, "video" if _has_suffix(path, VIDEO_SUFFIXES) else "image")


def _has_suffix(path: str, suffixes: frozenset[str]) -> bool:
    return os.path.splitext(path)[1].lower() in suffixes  # noqa: PTH122 (of very many)


def _scheme(argument: str) -> str | None:
    match = re.match(r"([A-Za-z][A-Za-z0-9+.-]+)://", argument)
    return match[1].lower() if match else None


def _download(url: str) -> bytes:
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "yolov5-client"})
        with opener_for(url).open(request, timeout=_DOWNLOAD_TIMEOUT) as answer:
            data: bytes = answer.read(_DOWNLOAD_LIMIT + 1)
            missing = answer.length  # of the bytes that were announced
    except urllib.error.HTTPError as error:
        raise OSError(f"cannot be downloaded: HTTP {error.code} {error.reason}") from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", error)
        reason = getattr(reason, "strerror", None) or reason or type(error).__name__
        raise OSError(f"cannot be downloaded: {reason}") from None
    if len(data) > _DOWNLOAD_LIMIT:
        raise OSError(f"cannot be downloaded: larger than {_DOWNLOAD_LIMIT >> 20} MiB")
    if missing:
        raise OSError(f"cannot be downloaded: the connection ended {missing} bytes early")
    return data
