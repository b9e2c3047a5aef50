"""Strip an image file of everything that a still picture does not need, before it is decoded.

Animations, profiles, texts and thumbnails do not change the picture that OpenCV returns, but each
has a parser, and several of these parsers had vulnerabilities. Only what changes the answer stays:
the picture, its palette, and the EXIF data, which hold its orientation.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

from containers import (
    RIFF_HEADER,
    Chunk,
    jpeg_segments,
    png_chunks,
    riff_chunks,
    tiff_directory,
)

_APP0, _APP1, _APP14, _APP15, _COMMENT = 0xE0, 0xE1, 0xEE, 0xEF, 0xFE
# Application segments that change the picture: JFIF and Adobe its colours, Exif its orientation.
_JPEG_KEPT = {_APP0: b"JFIF\0", _APP1: b"Exif\0\0", _APP14: b"Adobe"}

_PNG_ANCILLARY = 0x20  # bit of the first letter: a decoder may ignore the chunk
_PNG_KEPT = b"eXIf"

_WEBP_PICTURE = (b"ALPH", b"VP8 ", b"VP8L")
_WEBP_ANIMATION, _WEBP_ALPHA, _WEBP_EXIF = 0x02, 0x10, 0x08
_WEBP_FRAME_HEADER = 16


def strip_to_still(data: bytes) -> bytes:
    """Return a file of one still picture; the same object if there is nothing to strip.

    Args:
        data: a file with the first bytes of a JPEG, PNG, WebP, BMP or TIFF.

    Returns:
        A file of the same picture: the first frame of an animation, the first page of a TIFF.

    Raises:
        struct.error, OverflowError: the file ends too early, or has an offset beyond its end.
        ValueError: its parts are not those of its format.
    """
    if data.startswith(b"\xff\xd8"):
        return _jpeg(data)
    if data.startswith(b"\x89PNG"):
        return _png(data)
    if data.startswith(b"RIFF"):
        return _webp(data)
    if data.startswith((b"II", b"MM")):
        return _tiff(data)
    return data


def _without(data: bytes, parts: Iterable[tuple[int, int]]) -> bytes:
    """The data without these parts, which are offsets of start and end, in order."""
    view, kept, position = memoryview(data), [], 0
    for start, end in parts:
        if start > position:
            kept.append(view[position:start])
        position = end
    return b"".join([*kept, view[position:]]) if position else data


def _jpeg(data: bytes) -> bytes:
    dropped: list[tuple[int, int]] = []
    gap = -1  # end of the segment before, if that was dropped
    for kind, start, body, end in jpeg_segments(data):
        if gap >= 0:  # also what lies between: the file must begin with a segment
            dropped.append((gap, start))
        gap = -1
        if kind != _COMMENT and not _APP0 <= kind <= _APP15:
            continue
        name = _JPEG_KEPT.get(kind)
        if name is None or not data.startswith(name, body):
            dropped.append((start, end))
            gap = end
    return _without(data, dropped)


def _png(data: bytes) -> bytes:
    return _without(
        data,
        (
            (start, end)
            for kind, start, _, end in png_chunks(data)
            if kind[0] & _PNG_ANCILLARY and kind != _PNG_KEPT
        ),
    )


def _webp(data: bytes) -> bytes:
    if data[RIFF_HEADER : RIFF_HEADER + 4] != b"VP8X":
        return data  # one chunk; the decoder ignores what follows
    (size,) = struct.unpack_from("<I", data, 4)
    chunks = [*riff_chunks(data, RIFF_HEADER, min(len(data), 8 + size))]
    if not chunks or chunks[0][3] - chunks[0][2] < 10:
        raise struct.error
    flags = data[chunks[0][2]]
    kept = [chunk for chunk in chunks[1:] if chunk[0] in _WEBP_PICTURE or chunk[0] == b"EXIF"]
    if not flags & _WEBP_ANIMATION:
        if len(kept) + 1 == len(chunks):
            return data
        return _riff(_extended(data, chunks[0], 0), [data[start:end] for _, start, _, end in kept])
    return _first_frame(data, chunks)


def _first_frame(data: bytes, chunks: list[Chunk]) -> bytes:
    """The first frame of an animation; as a still picture if it is as large as the canvas."""
    frame = next((chunk for chunk in chunks if chunk[0] == b"ANMF"), None)
    if frame is None:
        raise ValueError
    _, _, body, end = frame
    if end - body < _WEBP_FRAME_HEADER:
        raise struct.error
    exif = [data[start:end] for kind, start, _, end in chunks if kind == b"EXIF"]
    picture = [
        data[start:end]
        for kind, start, _, end in riff_chunks(data, body + _WEBP_FRAME_HEADER, end)
        if kind in _WEBP_PICTURE
    ]
    place, sides = data[body : body + 6], data[body + 6 : body + 12]
    whole = chunks[0][2]
    if not any(place) and sides == data[whole + 4 : whole + 10]:
        return _riff(_extended(data, chunks[0], 0), [*picture, *exif])
    # The frame lies on a larger, empty canvas: only the decoder of animations can place it.
    control = [data[start:end] for kind, start, _, end in chunks if kind == b"ANIM"]
    content = data[body : body + _WEBP_FRAME_HEADER] + b"".join(picture)
    anmf = b"ANMF" + struct.pack("<I", len(content)) + content
    return _riff(_extended(data, chunks[0], _WEBP_ANIMATION), [*control[:1], anmf, *exif])


def _extended(data: bytes, chunk: Chunk, more: int) -> bytes:
    """The chunk VP8X, with the flags of alpha and EXIF data alone, and those of `more`."""
    _, start, body, end = chunk
    flags = data[body] & (_WEBP_ALPHA | _WEBP_EXIF) | more
    return data[start:body] + bytes([flags]) + data[body + 1 : end]


def _riff(first: bytes, others: list[bytes]) -> bytes:
    body = b"WEBP" + first + b"".join(others)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def _tiff(data: bytes) -> bytes:
    """The file with its first page as the only one: the link to the next is zeroed."""
    directory = tiff_directory(data)
    link, end = directory.link, directory.link + directory.offset
    following = data[link:end]
    if not any(following):
        return data
    return b"".join((data[:link], bytes(len(following)), data[link + len(following) :]))
