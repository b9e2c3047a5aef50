from __future__ import annotations

import os

from support import StartModel

from yolov5_server._processes import cpu_seconds


def test_cpu_time_includes_the_model_processes(start_model: StartModel) -> None:
    before = cpu_seconds(os.getpid())
    start_model("yolov5")
    sum(range(3_000_000))
    assert cpu_seconds(os.getpid()) > before
