"""Python code in children of one process that has imported what all of it needs.

To import PyTorch takes seconds, longer than most of this code runs. Besides, all children begin
with the same memory.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

_SERVE = """
import ctypes, json, os, signal, sys, traceback

sys.path[:0] = json.loads(sys.argv[1])
for name in json.loads(sys.argv[2]):
    __import__(name)

def run(code, arguments, folder):
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # end with the parent
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(os.path.join(folder, name), os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    sys.argv = ["-c", *arguments]
    exec(code, {"__name__": "__main__"})

for line in sys.stdin:
    child = os.fork()
    if not child:
        status = 1
        try:
            run(*json.loads(line))
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Nursery:
    """The process, which ends with the block of `nursery`."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def run(self, code: str, *arguments: object, folder: Path) -> subprocess.CompletedProcess[str]:
        """Run the code in a child as `python -c` would, without the imports.

        Args:
            arguments: become `sys.argv[1:]`.
            folder: for what the child writes to its standard streams.
        """
        assert self._process.stdin and self._process.stdout
        words = [*map(str, arguments)]
        print(json.dumps([code, words, str(folder)]), file=self._process.stdin, flush=True)
        status = int(self._process.stdout.readline())
        written = [(folder / name).read_text() for name in ("stdout", "stderr")]
        return subprocess.CompletedProcess(words, status, *written)


@contextmanager
def nursery(imports: Sequence[str], paths: Sequence[Path] = ()) -> Iterator[Nursery]:
    """Start the process.

    Args:
        imports: modules that it imports.
        paths: of these modules, where they are not installed.
    """
    lists = (json.dumps([*map(str, paths)]), json.dumps([*imports]))
    with subprocess.Popen(
        [sys.executable, "-c", _SERVE, *lists],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield Nursery(process)
        finally:
            process.kill()
