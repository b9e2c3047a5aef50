"""What one would write instead: `python -m yolov5_bench._services KIND NETWORK PORT`."""

import base64
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ._pipeline import Pipeline


def fastapi(network: Path, port: int, threads: int = 0, at_once: int = 40) -> None:
    """The image as the body; the work in FastAPI's own thread pool, of 40 unless told otherwise.

    Args:
        threads: of ONNX Runtime for one image.
        at_once: images worked on at the same time.
    """
    import anyio
    import anyio.to_thread
    import uvicorn
    from fastapi import FastAPI, Request

    pipeline = Pipeline(network, threads)
    room = anyio.CapacityLimiter(at_once)

    async def detect(request: Request) -> dict[str, Any]:
        body = await request.body()
        return await anyio.to_thread.run_sync(lambda: pipeline(body).as_dict(), limiter=room)

    app = FastAPI()
    app.post("/detect")(detect)
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="error", access_log=False)


def litserve(network: Path, port: int, workers: int) -> None:
    """The image as base64 in JSON, which is what LitServe reads; one thread for each worker."""
    import litserve as ls

    class Yolo(ls.LitAPI):  # type: ignore[misc]
        def setup(self, device: str) -> None:
            self.pipeline = Pipeline(network, 1)

        def decode_request(self, request: dict[str, str]) -> bytes:
            return base64.b64decode(request["image"])

        def predict(self, image: bytes) -> dict[str, Any]:
            return self.pipeline(image).as_dict()

        def encode_response(self, output: dict[str, Any]) -> dict[str, Any]:
            return output

    server = ls.LitServer(
        Yolo(api_path="/detect"), accelerator="cpu", workers_per_device=workers, timeout=120
    )
    server.run(host="127.0.0.1", port=port, log_level="error", generate_client_file=False)


if __name__ == "__main__":
    kind, path, number, *settings = sys.argv[1:]
    serve: dict[str, Callable[..., None]] = {"fastapi": fastapi, "litserve": litserve}
    serve[kind](Path(path), int(number), *map(int, settings))
