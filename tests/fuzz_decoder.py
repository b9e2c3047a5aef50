"""Coverage-guided fuzzing of the decoder, in a process of its own; started by test_fuzz_decoder.py.

Atheris sees which lines of our own modules an input reaches, and goes on from those that reach new
ones. OpenCV is fuzzed by what gets through to it.
"""

from __future__ import annotations

import re
import struct
import sys
import time
import zlib
from pathlib import Path

import atheris

with atheris.instrument_imports():
    import containers
    import headers
    import png_rows
    import strip
    from decode import REASONS, Decoder, ImageError
    from image_limits import ImageLimits

LIMITS = ImageLimits(bytes=200_000, pixels=1_000_000)
SECONDS, MEMORY = 1.0, 200 << 20  # the most that a small input may take
decoder = Decoder(LIMITS)
INSTRUMENTED = (containers, headers, png_rows, strip)


def resident(peak: bool) -> int:
    (kib,) = re.findall(
        r"VmHWM:\s+(\d+) kB" if peak else r"VmRSS:\s+(\d+) kB",
        Path("/proc/self/status").read_text(),
    )
    return int(kib) << 10


def decode(data: bytes) -> None:
    before = resident(peak=False)
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    started = time.thread_time()
    try:
        picture = decoder.decode(data)
    except ImageError as error:
        assert error.reason in REASONS
        assert str(error).isprintable()
    else:
        assert 0 < picture.shape[0] * picture.shape[1] <= LIMITS.pixels
    assert time.thread_time() - started < SECONDS, "too much time"
    assert resident(peak=True) - before < MEMORY, "too much memory"


def with_right_sums(png: bytes) -> bytes:
    """The PNG with the right checksum for every chunk."""
    parts, position = [png[:8]], 8
    while position + 12 <= len(png):
        (length,) = struct.unpack_from(">I", png, position)
        body = png[position + 4 : position + 8 + length]
        parts.append(struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body)))
        position += 12 + length
    return b"".join(parts)


def check(data: bytes) -> None:
    decode(data)
    if data.startswith(b"\x89PNG"):
        decode(with_right_sums(data))


if __name__ == "__main__":
    atheris.Setup(sys.argv, check)
    atheris.Fuzz()
