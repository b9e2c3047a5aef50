"""Configure the C library's malloc to keep this process's memory constant for weeks.

The parameters are those of glibc's `mallopt` (malloc.h); other C libraries are left alone.
"""

from __future__ import annotations

import contextlib
import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_KEPT = 128 << 20  # free bytes that the heap keeps
_LARGEST = 32 << 20  # bytes; glibc accepts no larger threshold


def configure(tensor_bytes: int) -> None:
    """Keep the memory of one image's tensor for the next one, and return that of large pictures.

    All threads share one heap: with a heap for each, glibc's default, a thread cannot reuse what
    another one has freed. Pictures larger than a tensor are mapped apart: a heap that holds
    pictures of all sizes grows for hours.
    """
    with contextlib.suppress(AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_ARENA_MAX, 1)
        mallopt(_M_MMAP_THRESHOLD, min(tensor_bytes + (64 << 10), _LARGEST))
        mallopt(_M_TRIM_THRESHOLD, _KEPT)
