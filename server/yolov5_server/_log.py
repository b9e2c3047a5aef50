"""What of the server's output an operator has to see."""

from __future__ import annotations

import re
import sys
import threading
from typing import IO

# Said on every machine without a GPU, or about every damaged image a caller sends.
_NOISE = re.compile(
    r"pinned memory pool|pinned system memory|CudaDriverHelper has not been initialized"
    r"|CUDA driver version is insufficient|Failed to initialize NVML|DCGM"
    r"|^Signal \(\d+\) received"
    r"|libpng (warning|error):|Corrupt JPEG data|Premature end of JPEG|Invalid SOS parameters"
    r"|closed::|models::\w+\.\d+'"  # see _swap.py, which reports on those itself
    r"|extraneous bytes before marker|Unsupported marker type|Bogus |TIFF\w*:|imdecode_?\("
)
# What Triton says when a model does not load, around the sentence of the model itself; a Python
# model's sentence comes with its class before and with the (escaped) traceback behind.
_FAILED = re.compile(
    r"failed to load '(?:[^']*::)?(?P<model>\w+)' version \d+: \w[\w ]*: "
    r'(?:\w+(?:Error|Exception): )?(?P<reason>.+?)(?:\\n|"?$)'
)


class LogPump:
    """Reads the server's output to its end and passes on what matters.

    Until the server is ready, lines are held back: if it fails to start, one sentence of them
    says why, and the rest is the same in Triton's many words.
    """

    def __init__(self, stream: IO[str], *, verbose: bool) -> None:
        self._stream = stream
        self._verbose = verbose
        self._held: list[str] | None = None if verbose else []
        self._lock = threading.Lock()
        self._failure: str | None = None
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        for line in self._stream:
            if not line.strip() or (not self._verbose and _NOISE.search(line)):
                continue
            if failed := _FAILED.search(line):
                self._failure = f"it could not load {failed['model']}: {failed['reason']}"
            with self._lock:
                if self._held is None:
                    _show(line)
                else:
                    self._held.append(line)

    def release(self) -> None:
        """Show what was held back, and from now on each line as it comes."""
        with self._lock:
            for line in self._held or ():
                _show(line)
            self._held = None

    def failure(self) -> str:
        """Why the server, which has ended, did not start; where that is unclear, all it said."""
        self.close()
        if self._failure is None:
            self.release()
        return self._failure or "its own messages above say why"

    def close(self) -> None:
        """Wait for the last lines of a server that has ended."""
        self._thread.join(timeout=1)


def _show(line: str) -> None:
    print(line, end="", file=sys.stderr, flush=True)
