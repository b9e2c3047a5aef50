"""What of the server's output an operator has to see."""

from __future__ import annotations

import re
import sys
import threading
from collections import deque
from typing import IO

# Said on every machine without a GPU, or about every damaged image a caller sends.
_NOISE = re.compile(
    r"pinned memory pool|pinned system memory|CudaDriverHelper has not been initialized"
    r"|CUDA driver version is insufficient|Failed to initialize NVML|DCGM"
    r"|^Signal \(\d+\) received"
    r"|libpng (warning|error):|Corrupt JPEG data|Premature end of JPEG|Invalid SOS parameters"
    r"|extraneous bytes before marker|Unsupported marker type|Bogus |TIFF\w*:|imdecode_?\("
)
# `E1122 17:19:07.740850 5315 server.cc:241] "text"` -> text
_PREFIX = re.compile(r'^[EWI]\d{4} [\d:.]+ \d+ \S+\] "?|"$')


class LogPump:
    """Reads the server's output to its end and passes on what matters."""

    def __init__(self, stream: IO[str], *, verbose: bool) -> None:
        self._stream = stream
        self._verbose = verbose
        self._errors: deque[str] = deque(maxlen=20)
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        for line in self._stream:
            if not self._verbose and _NOISE.search(line):
                continue
            if line.startswith("E"):
                self._errors.append(_PREFIX.sub("", line.strip()))
            if line.strip():
                print(line, end="", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Wait for the last lines; the server must have ended."""
        self._thread.join(timeout=1)

    def reason(self) -> str | None:
        """The first error line that names a model that failed to load."""
        failed = (line for line in self._errors if "failed to load" in line)
        return next(failed, None)
