"""A stand-in of a server for measuring how the offline job grows: it sleeps and finds nothing.

Nothing of Triton is claimed by it. It answers one image after another, each after the same time, as
a server does whose network is the limit.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import service_pb2, service_pb2_grpc

from yolov5_client import _contract as names

_NOTHING: dict[str, tuple[str, np.ndarray[Any, Any]]] = {
    names.NUM_DETS: ("INT32", np.zeros((1, 1), np.int32)),
    names.DET_BOXES: ("FP32", np.zeros((1, 0, 4), np.float32)),
    names.DET_SCORES: ("FP32", np.zeros((1, 0), np.float32)),
    names.DET_CLASSES: ("INT32", np.zeros((1, 0), np.int32)),
    names.DET_LABELS: ("BYTES", np.zeros((1, 0), np.uint8)),
    names.IMAGE_SIZE: ("INT32", np.array([[480, 640]], np.int32)),
}


class StandIn(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """
    Args:
        seconds: for one image.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._turn = asyncio.Lock()
        self._answered = 0

    async def ServerReady(self, request: Any, context: Any) -> Any:  # noqa: N802
        return service_pb2.ServerReadyResponse(ready=True)

    async def ModelReady(self, request: Any, context: Any) -> Any:  # noqa: N802
        return service_pb2.ModelReadyResponse(ready=True)

    async def ServerMetadata(self, request: Any, context: Any) -> Any:  # noqa: N802
        return service_pb2.ServerMetadataResponse(name="stand-in", version="0")

    async def ModelStatistics(self, request: Any, context: Any) -> Any:  # noqa: N802
        one = service_pb2.ModelStatistics(name=request.name, inference_count=self._answered)
        return service_pb2.ModelStatisticsResponse(model_stats=[one])

    async def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802
        async with self._turn:
            await asyncio.sleep(self._seconds)
        self._answered += 1
        answer = service_pb2.ModelInferResponse(model_name=request.model_name, model_version="1")
        for name, (datatype, array) in _NOTHING.items():
            output = answer.outputs.add(name=name, datatype=datatype)
            output.shape.extend(array.shape)
            answer.raw_output_contents.append(array.tobytes())
        return answer


async def serve(port: int, seconds: float) -> None:
    server = grpc.aio.server()
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(StandIn(seconds), server)
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), float(sys.argv[2])))
