"""A contender: a service with FastAPI, `python -m yolov5_bench._fastapi NETWORK PORT ...`."""

import sys
from pathlib import Path
from typing import Any

from ._pipeline import Pipeline


def serve(network: Path, port: int, threads: int = 0, at_once: int = 40) -> None:
    """Serve the image as the body, with the work in FastAPI's own thread pool.

    Args:
        threads: threads of ONNX Runtime for one image; 0 for its own default.
        at_once: images processed at the same time; 40 is FastAPI's default.
    """
    import anyio
    import anyio.to_thread
    import uvicorn
    from fastapi import FastAPI, Request

    pipeline = Pipeline(network, threads)
    limiter = anyio.CapacityLimiter(at_once)

    async def detect(request: Request) -> dict[str, Any]:
        body = await request.body()
        return await anyio.to_thread.run_sync(lambda: pipeline(body).as_dict(), limiter=limiter)

    app = FastAPI()
    app.post("/detect")(detect)
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="error", access_log=False)


if __name__ == "__main__":
    path, number, *settings = sys.argv[1:]
    serve(Path(path), int(number), *map(int, settings))
