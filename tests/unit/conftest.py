from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:  # the process that hands out the tests does without the time that these take
    from support import StartModel

    from yolov5_build import Checkpoint


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """PyTorch computes with one thread, in these processes and in those that they start.

    The networks here are small, and threads that wait for each other take several times as long,
    above all beside other tests.
    """
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("OMP_NUM_THREADS", "1")
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def checkpoint() -> Checkpoint:
    """The bundled network, which no test may change."""
    from support import BUNDLED

    from yolov5_build import load_checkpoint

    return load_checkpoint(BUNDLED)


@pytest.fixture(scope="session")
def small_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A `best.pt` of a small network, which no test may change."""
    from checkpoints import small_checkpoint

    return small_checkpoint(tmp_path_factory.mktemp("weights") / "best.pt")


@pytest.fixture
def start_model(tmp_path: Path) -> Iterator[StartModel]:
    """A function that starts the process of a model."""
    from support import kill_process

    from yolov5_server._processes import model_processes

    processes = []

    def now(model: str) -> subprocess.Popen[bytes]:
        script = tmp_path / model / "1" / "model.py"
        script.parent.mkdir(parents=True, exist_ok=True)
        script.write_text("import time\ntime.sleep(60)")
        stub = "/backends/python/triton_python_backend_stub"
        process = subprocess.Popen([stub, str(script)], executable=sys.executable)
        processes.append(process)
        while process.pid not in {one.process.pid for one in model_processes(os.getpid())}:
            assert process.poll() is None
        return process

    yield now
    for process in processes:
        kill_process(process)
