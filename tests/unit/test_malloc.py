"""What glibc does after `malloc.configure`, in a process of its own."""

from __future__ import annotations

import ast
import platform
import subprocess
import sys
from pathlib import Path

import pytest

PREPROCESS = Path(__file__).parents[2] / "model_repository" / "preprocess" / "1"
SCRIPT = """
import ctypes, os, sys, threading
import malloc

class Info(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in
        "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()]

libc = ctypes.CDLL(None)
libc.mallinfo2.restype = Info
libc.malloc.restype = ctypes.c_void_p
libc.free.argtypes = [ctypes.c_void_p]

def mapped(size):
    # Whether a block of this size is mapped apart from the heap.
    before = libc.mallinfo2().hblks
    libc.malloc(ctypes.c_size_t(size))
    return libc.mallinfo2().hblks > before

def kept(size):
    # Whether the heap keeps so many bytes that are freed.
    blocks = [0] * (size >> 19)  # now, or else the list would lie behind the blocks
    for index in range(len(blocks)):
        blocks[index] = libc.malloc(ctypes.c_size_t(1 << 19))
    for block in reversed(blocks):
        libc.free(block)
    return libc.mallinfo2().arena > size

def heaps():
    # How many of them four threads at the same time use.
    go = threading.Barrier(4)
    threads = [threading.Thread(target=lambda: (go.wait(), libc.malloc(99), go.wait()))
        for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with open(sys.argv[3], "w+") as file:
        libc.fdopen.restype = ctypes.c_void_p
        stream = ctypes.c_void_p(libc.fdopen(os.dup(file.fileno()), b"w"))
        libc.malloc_info(0, stream)
        libc.fclose(stream)
        file.seek(0)
        return file.read().count("<heap ")

malloc.configure(tensor_bytes=int(sys.argv[1]))
print(eval(sys.argv[2]))
"""
MIB = 1 << 20


def after(tensor_bytes: int, expression: str, *more: str) -> object:
    """The expression's value in a process with these settings."""
    outcome = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tensor_bytes), expression, *more],
        cwd=PREPROCESS,
        env={"PYTHONPATH": str(PREPROCESS)},
        capture_output=True,
        text=True,
        check=True,
    )
    return ast.literal_eval(outcome.stdout)


glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")


@glibc
def test_tensor_is_in_the_heap_and_a_larger_picture_is_mapped() -> None:
    sizes = [4 * MIB, 4 * MIB + 65_000, 4 * MIB + 66_000, 5 * MIB]  # 64 KiB more are allowed
    assert after(4 * MIB, f"[*map(mapped, {sizes})]") == [False, False, True, True]


@glibc
def test_largest_tensors_are_mapped_as_glibc_cannot_keep_them_in_the_heap() -> None:
    sizes = [31 * MIB + MIB // 2, 33 * MIB]
    assert after(40 * MIB, f"[*map(mapped, {sizes})]") == [False, True]


@glibc
def test_heap_keeps_128_mebibytes_that_are_freed() -> None:
    assert after(4 * MIB, f"kept({120 * MIB})") is True
    assert after(4 * MIB, f"kept({128 * MIB + MIB // 2})") is False


@glibc
def test_all_threads_share_one_heap(tmp_path: Path) -> None:
    assert after(4 * MIB, "heaps()", str(tmp_path / "info")) == 1
