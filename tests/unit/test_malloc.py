"""What glibc does after `malloc.configure`, in a process of its own."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest

PREPROCESS = Path(__file__).parents[2] / "model_repository" / "preprocess" / "1"
SCRIPT = """
import ctypes, sys
import malloc

class Info(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in
        "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()]

libc = ctypes.CDLL(None)
libc.mallinfo2.restype = Info
libc.malloc.restype = ctypes.c_void_p
malloc.configure(tensor_bytes=4 << 20)
apart = libc.mallinfo2().hblks
libc.malloc(ctypes.c_size_t(4 << 20))
print(libc.mallinfo2().hblks - apart)
libc.malloc(ctypes.c_size_t(5 << 20))
print(libc.mallinfo2().hblks - apart)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_tensor_is_in_the_heap_and_a_larger_picture_is_mapped() -> None:
    outcome = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        cwd=PREPROCESS,
        env={"PYTHONPATH": str(PREPROCESS)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert outcome.stdout.split() == ["0", "1"]
