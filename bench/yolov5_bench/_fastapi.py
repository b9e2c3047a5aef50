"""What one would write instead: `python -m yolov5_bench._fastapi NETWORK PORT ...`."""

import sys
from pathlib import Path
from typing import Any

from ._pipeline import Pipeline


def serve(network: Path, port: int, threads: int = 0, at_once: int = 40) -> None:
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


if __name__ == "__main__":
    path, number, *settings = sys.argv[1:]
    serve(Path(path), int(number), *map(int, settings))
