"""Limits on what a file from elsewhere may take while it is read: time, memory, and a crash.

A file is looked at before anything is done with it, so that what asks for too much is refused at
once. What these looks miss ends here. The command is run in a child process, and while that reads
the file it may take so much CPU time and memory and no more; the parent says in a sentence how the
child ended.
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

# Seen for 640 pixels: yolov5n 80 MB and 8 s, yolov5s 260 MB, 18 times its file, and 12 s. A slow
# machine, a large image and a large attention map need more.
BASE_SECONDS, SECONDS_PER_MB = 300, 5
BASE_BYTES, BYTES_PER_BYTE = 4 << 30, 16
# Wall-clock time allowed, in times of the CPU time: a busy machine is no fault of the file.
WALL_FACTOR = 10

_PR_SET_PDEATHSIG = 1
_NO_MEMORY = re.compile(r"bad.?alloc|allocate.{0,9}memory", re.IGNORECASE)
_enforced = False  # in the child only: the limits end a process


@dataclass(frozen=True, kw_only=True)
class Limits:
    """
    Attributes:
        seconds: of CPU time.
        bytes: of memory, beyond what the process has.
    """

    seconds: int
    bytes: int


def limits_for(path: Path) -> Limits:
    """What reading this file may take; it need not exist."""
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
    """Where the command is run by `run_in_child`: take no more than is allowed for this file."""
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
    except Exception as error:  # each library has a kind of its own for it
        if not isinstance(error, MemoryError) and not _NO_MEMORY.search(str(error)):
            raise
        limit = (
            f"the {limits_for(path).bytes >> 20} MB that are allowed" if _enforced else "there is"
        )
        raise BuildError(f"{path.name} needs more memory than {limit}.") from None


@contextmanager
def memory_limit(more: int) -> Iterator[None]:
    """Let this process have no more than so many bytes beyond those that it has; what asks for them
    fails at once, before the system looks for them."""
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
    """Run the command in a child process, which `limited` then limits.

    Its temporary files are removed however it ends.

    Args:
        weights: the file that it reads, for sentences and limits.

    Returns:
        The command's exit status; where it was ended by a signal, 1, and a sentence on stderr.

    Raises:
        OSError: there is no room for temporary files, or no further process is allowed.
    """
    with staging_folder(Path(tempfile.gettempdir()), "yolov5-build-") as folder:
        # The child sees to both by itself: a terminal sends them to it as well.
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
    print(f"error: {_reason(-status, weights)}; what was served still is.", file=sys.stderr)
    return 1


def _run_command(command: Callable[[], int], folder: Path) -> None:
    """Be the child; does not return."""
    global _enforced
    status = 1
    try:
        _enforced = True
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # the parent is killed: end
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
        return f"{name} took more than the {allowed.seconds} s of CPU time that are allowed"
    if number == signal.SIGALRM:
        return f"{name} took more than the {WALL_FACTOR * allowed.seconds} s that are allowed"
    if number == signal.SIGKILL:
        return f"the process that read {name} was killed, probably for want of memory"
    return f"the process that read {name} crashed ({signal.Signals(number).name})"
