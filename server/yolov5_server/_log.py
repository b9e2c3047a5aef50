"""Filter the server's output down to what an operator has to see."""

from __future__ import annotations

import os
import re
import select
import threading
import time
from collections import deque
from collections.abc import Callable, Collection
from typing import IO

from ._console import log as console_log
from ._repeats import RepeatLimiter
from ._unload_noise import UnloadNoise

# Logged on every machine without a GPU, or for every damaged image that a caller sends.
_NOISE = re.compile(
    r"pinned memory pool|pinned system memory|CudaDriverHelper has not been initialized"
    r"|CUDA driver version is insufficient|Failed to initialize NVML|DCGM"
    r"|^Signal \((2|15)\) received"  # SIGINT and SIGTERM; others are of a crash
    r"|libpng (warning|error):|Corrupt JPEG data|Premature end of JPEG|Invalid SOS parameters"
    r"|closed::|models::[\w-]+\.\d+'"  # see _reload.py, which reports on those itself
    r"|extraneous bytes before marker|Unsupported marker type|Bogus |TIFF\w*:|imdecode_?\("
    r"|Inconsistent progression sequence|Unknown Adobe color transform"
)
# Triton's line for a model that does not load, around the model's own sentence. For a Python model
# the exception's class comes before that sentence and the (escaped) traceback after it.
_FAILED = re.compile(
    r"failed to load '(?:[^']*::)?(?P<model>[\w.-]+)' version \d+: \w[\w ]*: "
    r'(?:\w+(?:Error|Exception): )?(?P<reason>.+?)(?:\\n|"?$)'
)
# A backend's line for a network that it has loaded on a GPU.
_ON_GPU = re.compile(r"(?P<model>[\w.-]+) runs on (?P<gpu>GPU \d+), by (?P<provider>\w+)\.$")
# The shell's or the loader's line if a model's process cannot be started. Triton does not see it
# and would wait for many minutes.
_STUB_FAILED = re.compile(r"triton_python_backend_stub\S*: (?P<reason>.+)$")
_HEADER = re.compile(r"[IWEF]\d{4} [\d:.]+ \d+ (?P<place>[\w.]+:\d+)\]")
_LONGEST_LINE = 8192  # bytes; the rest of a longer line counts as the next line
_MOST_HELD = 500  # lines before the server is ready; the last ones say why it is not ready


class LogPump:
    """Reads the server's output to its end and passes on the lines that matter.

    Lines are held back until the server is ready: if it fails to start, one sentence of them says
    why, and the rest repeats that at length. Repeated lines are counted. Whatever callers do, there
    are few lines a second, and little memory is used. Noise is dropped, unless `verbose`.

    Attributes:
        failures: why models could not be loaded, by their names.
        stub_failure: why no Python model can be started; empty if there was no such line.
        gpus: what runs each network that is on a GPU, by model and by GPU.

    Args:
        stream: a file or pipe, read by its descriptor.
        log: called with each line that is passed on, without its end; must not block.
        verbose: pass on all lines, also before the server is ready.
    """

    def __init__(
        self, stream: IO[bytes], *, verbose: bool, log: Callable[[str], None] = console_log
    ) -> None:
        self._stream = stream
        self._verbose = verbose
        self._log = log
        self._held: deque[str] | None = None if verbose else deque(maxlen=_MOST_HELD)
        self._lock = threading.Lock()
        self.failures: dict[str, str] = {}
        self.stub_failure = ""
        self._unload_noise = UnloadNoise()
        self.gpus: dict[str, dict[str, str]] = {}
        self._repeats = RepeatLimiter()
        self._last: tuple[bytes, str | None, str] = (b"", None, "")
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        descriptor = self._stream.fileno()
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        rest = b""
        while True:
            ends = (self._unload_noise.next_due(), self._repeats.next_due())
            due = min((end for end in ends if end is not None), default=None)
            wait = None if due is None else max(0.0, due - time.monotonic()) * 1000 + 1
            if poll.poll(wait):
                chunk = os.read(descriptor, 1 << 16)
                if not chunk:
                    break
                *lines, rest = (rest + chunk).split(b"\n")
                while len(rest) > _LONGEST_LINE:
                    lines.append(rest[:_LONGEST_LINE])
                    rest = rest[_LONGEST_LINE:]
                for line in lines:
                    self._take(line)
            self._limit(self._unload_noise.due(time.monotonic()))
            self._pass_on(self._repeats.due(time.monotonic()))
        self._take(rest)
        self._limit(self._unload_noise.rest())
        self._pass_on(self._repeats.rest())

    def _take(self, data: bytes) -> None:
        if data != self._last[0]:
            text = _printable(data[:_LONGEST_LINE].decode(errors="replace").rstrip())
            self._last = (data, self._kind(text), text)
            if failed := _FAILED.search(text):
                self.failures[failed["model"]] = failed["reason"]
            if on_gpu := _ON_GPU.match(text):
                self.gpus.setdefault(on_gpu["model"], {})[on_gpu["gpu"]] = on_gpu["provider"]
            if not _HEADER.match(text) and (found := _STUB_FAILED.search(text)):
                self.stub_failure = found["reason"]
        _, kind, text = self._last
        if kind is not None:
            now = time.monotonic()
            self._limit([text] if self._verbose else self._unload_noise.take(text, now))

    def _limit(self, lines: list[str]) -> None:
        """Pass on the lines that are not repeated too often."""
        for text in lines:
            _, kind, last = self._last
            if text is not last:
                kind = self._kind(text)
            if kind is not None and (line := self._repeats.take(kind, text, time.monotonic())):
                self._pass_on([line])

    def _kind(self, text: str) -> str | None:
        """Kind of a line; lines of one kind count as repeats. None if the line does not matter."""
        if not text or (not self._verbose and _NOISE.search(text)):
            return None
        header = _HEADER.match(text)
        if self._verbose:  # repeats are lines that differ only in their time
            return text[header.end() :] if header else text
        # The place in Triton's source: callers may have written what follows it.
        return header["place"] if header else re.sub(r"\d+", "0", text)

    def _pass_on(self, lines: list[str]) -> None:
        with self._lock:
            for line in lines:
                if self._held is None:
                    self._log(line)
                else:
                    self._held.append(line)

    def release(self) -> None:
        """Pass on the lines held back, and from now on each line as it comes."""
        with self._lock:
            for line in self._held or ():
                self._log(line)
            self._held = None

    def failure(self, models: Collection[str]) -> str:
        """Why a server with these models did not start. If that is unclear, pass on all lines."""
        self._thread.join(timeout=1)
        for model, reason in reversed(self.failures.items()):
            if model in models:
                return f"it could not load {model}: {reason}"
        self.release()
        return "its own messages above say why"

    def close(self) -> None:
        """Wait for the last lines of a server that has ended."""
        self._thread.join(timeout=0.5)


def _printable(text: str) -> str:
    """Replace characters that could control a terminal: callers may have written the text."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\t" else "?" for c in text)
