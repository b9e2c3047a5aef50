"""Limits on the time and memory that reading an untrusted file may take.

The readers check a file before they process it, and refuse most that ask for too much. This module
stops the rest. The command runs in a child process, which limits its CPU time and memory while it
reads the file; if that kills the child, the parent reports why in one sentence.
"""

from __future__ import annotations

import ctypes
import os
import re
import resource
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ._errors import BuildError
from ._staging import staging_folder

# Measured at 640 pixels: yolov5n 80 MB and 8 s; yolov5s 260 MB (18 times its file) and 12 s. A
# slow machine, a large image or a large attention map needs more.
BASE_SECONDS, SECONDS_PER_MB = 300, 5
BASE_BYTES, BYTES_PER_BYTE = 4 << 30, 16
# Limit on wall-clock time, as a multiple of that on CPU time; generous, as the machine may be busy.
WALL_FACTOR = 10

_PR_SET_PDEATHSIG = 1
_NO_MEMORY = re.compile(r"bad.?alloc|allocate.{0,9}memory", re.IGNORECASE)
_enforced = False  # True only in the child, since the limits kill a process


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits on reading one file.

    Attributes:
        seconds: of CPU time.
        bytes: of memory, in addition to what the process has already.
    """

    seconds: int
    bytes: int


def limits_for(path: Path) -> Limits:
    """The limits on reading this file, which need not exist."""
    try:
        size = path.stat().st_size
    except OSError:
        size = 0
    return Limits(
        seconds=BASE_SECONDS + SECONDS_PER_MB * (size >> 20),
        bytes=BASE_BYTES + BYTES_PER_BYTE * size,
    )


@contextmanager
def limited(path: Path) -> Iterator[None]:
    """Enforce the limits of this file during the block, if `run_in_child` runs the command.

    Raises:
        BuildError: the memory does not suffice.
    """
    if not _enforced:
        with _memory_errors_explained(path):
            yield
        return
    allowed = limits_for(path)
    used = resource.getrusage(resource.RUSAGE_SELF)
    soft, hard = resource.getrlimit(resource.RLIMIT_CPU)
    seconds = int(used.ru_utime + used.ru_stime) + 1 + allowed.seconds
    resource.setrlimit(resource.RLIMIT_CPU, (_lower(seconds, soft), hard))
    signal.alarm(WALL_FACTOR * allowed.seconds)
    try:
        with _memory_errors_explained(path), memory_limit(allowed.bytes):
            yield
    finally:
        signal.alarm(0)
        resource.setrlimit(resource.RLIMIT_CPU, (soft, hard))


@contextmanager
def _memory_errors_explained(path: Path) -> Iterator[None]:
    try:
        yield
    except BuildError:
        raise
    except Exception as error:  # each library raises its own type
        if not isinstance(error, MemoryError) and not _NO_MEMORY.search(str(error)):
            raise
        limit = f"the allowed {limits_for(path).bytes >> 20} MB" if _enforced else "is available"
        raise BuildError(f"{path.name} needs more memory than {limit}.") from None


@contextmanager
def memory_limit(more: int) -> Iterator[None]:
    """Limit this process to `more` bytes in addition to those it has. A larger allocation fails at
    once, before the system has to find the memory."""
    status = Path("/proc/self/status").read_text()
    has = int(status.partition("VmData:")[2].split()[0]) << 10
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (_lower(has + more, soft), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _lower(wanted: int, limit: int) -> int:
    return wanted if limit == resource.RLIM_INFINITY else min(wanted, limit)


def run_in_child(command: Callable[[], int], weights: Path) -> int:
    """Run the command in a child process, in which `limited` enforces its limits.

    The child's temporary files are removed however it ends.

    Args:
        weights: the file that the command reads, for its limits and for error messages.

    Returns:
        The command's exit status. If a signal killed it: 1, with a sentence on stderr; or 143 for
        SIGTERM.

    Raises:
        OSError: temporary files cannot be created, or no further process is allowed.
    """
    with staging_folder(Path(tempfile.gettempdir()), "yolov5-build-") as folder:
        # The child handles SIGINT itself: a terminal sends it to both. SIGTERM is passed on.
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        child = os.fork()
        if not child:
            signal.signal(signal.SIGINT, before)
            _run_command(command, folder)
        forward = signal.signal(signal.SIGTERM, lambda *_: os.kill(child, signal.SIGTERM))
        try:
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        finally:
            signal.signal(signal.SIGINT, before)
            signal.signal(signal.SIGTERM, forward)
    if status >= 0:
        return status
    if status == -signal.SIGTERM:
        return 128 + signal.SIGTERM
    print(f"error: {_reason(-status, weights)}; the installed model is unchanged.", file=sys.stderr)
    return 1


def _run_command(command: Callable[[], int], folder: Path) -> None:
    """Run the command in the child, and end the child."""
    global _enforced
    status = 1
    try:
        _enforced = True
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # end with the parent
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        tempfile.tempdir = os.environ["TMPDIR"] = str(folder)
        status = command()
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _reason(number: int, weights: Path) -> str:
    allowed, name = limits_for(weights), weights.name
    if number == signal.SIGXCPU:
        return f"{name} took more than the allowed {allowed.seconds} s of CPU time"
    if number == signal.SIGALRM:
        return f"{name} took more than the allowed {WALL_FACTOR * allowed.seconds} s"
    if number == signal.SIGKILL:
        return f"the process that read {name} was killed, probably because memory ran out"
    return f"the process that read {name} crashed ({signal.Signals(number).name})"
