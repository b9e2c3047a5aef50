"""A contender: a service with mosec, `python -m yolov5_bench._mosec NETWORK PORT WORKERS`."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import mosec

from ._pipeline import Pipeline

_NETWORK = "YOLOV5_BENCH_NETWORK"  # tells the workers, which are new processes


class Yolo(mosec.Worker):  # type: ignore[misc]
    """Takes the image as the body; one thread for each worker."""

    def __init__(self) -> None:
        super().__init__()
        self.pipeline = Pipeline(Path(os.environ[_NETWORK]), 1)

    def deserialize(self, data: bytes) -> bytes:
        return data

    def forward(self, data: bytes) -> dict[str, Any]:
        return self.pipeline(data).as_dict()

    def serialize(self, data: dict[str, Any]) -> bytes:
        return json.dumps(data).encode()  # mosec's own is indented, which is slower


def serve(network: str, port: str, workers: str) -> None:
    os.environ[_NETWORK] = network
    # mosec reads its settings from the command line.
    settings = ("--address=127.0.0.1", f"--port={port}", "--timeout=120000", "--log-level=error")
    sys.argv = [sys.argv[0], *settings]
    server = mosec.Server()
    server.register_runtime({"/detect": [mosec.Runtime(Yolo, num=int(workers))]})
    server.run()


if __name__ == "__main__":
    serve(*sys.argv[1:])
