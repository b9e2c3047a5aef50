"""Runs tests again and again, each time in a fork of a process that has the big libraries loaded.

`mutation.py` runs this as a program, in a copy of the project. Each line on the standard input
asks for one run, in JSON; each line on the standard output says how it ended.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import os
import resource
import signal
import sys
import time
from pathlib import Path

import hypothesis

# Importing these takes seconds. None of them starts a thread before it is used.
PRELOADED = (
    *("_pytest.unittest", "anyio.pytest_plugin", "cv2", "httpx", "hypothesis.strategies", "numpy"),
    *("onnx", "onnxruntime.quantization", "pycocotools.cocoeval", "pytest", "pytest_timeout"),
    *("safetensors.torch", "torch", "torchvision", "tritonclient.grpc", "unittest.mock", "yaml"),
)
_PR_SET_PDEATHSIG = 1  # prctl(2): a run ends with this program
MEMORY = 6 << 30  # bytes on top of what is mapped already; a mutant may fill them without end


def run(arguments: list[str], output: Path) -> int:
    """Run pytest in this process, a fork."""
    os.setsid()  # for what the tests leave behind, which is ended with the group
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    import pytest

    with output.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + MEMORY, resource.RLIM_INFINITY))
    return int(pytest.main(arguments))


def wait(pid: int, seconds: float) -> int | None:
    """Wait for the process and end what it leaves behind; None if it took too long."""
    deadline, status = time.monotonic() + seconds, None
    while status is None and time.monotonic() < deadline:
        ended, found = os.waitpid(pid, os.WNOHANG)
        if ended:
            status = os.waitstatus_to_exitcode(found)
        else:
            time.sleep(0.02)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    if status is None:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    return status


def main() -> None:
    sys.path[0] = str(Path.cwd())  # as with `python -m pytest`
    for name in PRELOADED:
        importlib.import_module(name)
    # The first failure is enough; to find the simplest one takes minutes.
    phases = (hypothesis.Phase.explicit, hypothesis.Phase.generate)
    hypothesis.settings.register_profile("mutation", phases=phases)
    hypothesis.settings.load_profile("mutation")
    gc.freeze()  # pytest collects garbage twice; all that is loaded here is none
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        pid = os.fork()
        if not pid:
            status = 1
            try:
                status = run(request["arguments"], Path(request["output"]))
            finally:
                sys.stdout.flush()
                os._exit(status)
        started = time.monotonic()
        ended = wait(pid, request["seconds"])
        print(json.dumps({"status": ended, "took": time.monotonic() - started}), flush=True)


if __name__ == "__main__":
    main()
