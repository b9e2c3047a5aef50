"""How the C library keeps this process's memory, so that it stays the same for weeks.

The numbers are glibc's `mallopt` (malloc.h); another libc is left as it is.
"""

from __future__ import annotations

import contextlib
import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_KEPT = 128 << 20
_LARGEST = 32 << 20  # that glibc takes as threshold


def configure(tensor_bytes: int) -> None:
    """Keep the memory of one image's tensor for the next one, and give back that of large pictures.

    Threads share one heap: glibc gives each its own, and what one has freed another cannot use.
    Pictures larger than a tensor get memory of their own: among those of all sizes a heap grows
    for hours.
    """
    with contextlib.suppress(AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_ARENA_MAX, 1)
        mallopt(_M_MMAP_THRESHOLD, min(tensor_bytes + (64 << 10), _LARGEST))
        mallopt(_M_TRIM_THRESHOLD, _KEPT)
