"""A contender: a service with LitServe, `python -m yolov5_bench._litserve NETWORK PORT WORKERS`."""

from __future__ import annotations

import base64
import sys
from pathlib import Path
from typing import Any

import litserve

from ._pipeline import Pipeline


class Yolo(litserve.LitAPI):  # type: ignore[misc]
    """Takes the image as base64 in JSON, which LitServe reads; one thread for each worker."""

    def __init__(self, network: Path) -> None:
        super().__init__(api_path="/detect")
        self.network = network

    def setup(self, device: str) -> None:
        self.pipeline = Pipeline(self.network, 1)

    def decode_request(self, request: dict[str, str]) -> bytes:
        return base64.b64decode(request["image"])

    def predict(self, image: bytes) -> dict[str, Any]:
        return self.pipeline(image).as_dict()

    def encode_response(self, output: dict[str, Any]) -> dict[str, Any]:
        return output


def serve(network: Path, port: int, workers: int) -> None:
    server = litserve.LitServer(
        Yolo(network), accelerator="cpu", workers_per_device=workers, timeout=120
    )
    server.run(host="127.0.0.1", port=port, log_level="error", generate_client_file=False)


if __name__ == "__main__":
    serve(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
