"""Triton glue for a network on a GPU: one run for each batch, tensors by DLPack."""

from __future__ import annotations

import traceback
from collections.abc import Mapping, Sequence
from typing import Any

import onnxruntime
import triton_python_backend_utils as pb_utils
from batch import Tensors, run_batch
from device import DeviceRunner


class GpuModel:
    """Serves a network on a GPU, for a `TritonPythonModel`.

    Args:
        config: the model's configuration, as Triton passes it to a backend.
        runner: the network.
    """

    def __init__(self, config: Mapping[str, Any], runner: DeviceRunner) -> None:
        self.name = config["name"]
        self.inputs = [tensor["name"] for tensor in config["input"]]
        self.runner = runner
        self.join = runner.join if config["max_batch_size"] > 0 else None

    @classmethod
    def from_session(
        cls, config: Mapping[str, Any], session: onnxruntime.InferenceSession, device: int
    ) -> GpuModel | None:
        """None if the session cannot run without copies to the host."""
        if DeviceRunner.supports(session):
            return cls(config, DeviceRunner(session, device))
        return None

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Run the requests as one batch; one response for each."""
        answers = run_batch(
            self.runner.run, [self.unpack(request) for request in requests], join=self.join
        )
        return [self.response(request, answer) for request, answer in zip(requests, answers)]

    def unpack(self, request: Any) -> Tensors:
        return {
            name: self.runner.take(pb_utils.get_input_tensor_by_name(request, name))
            for name in self.inputs
        }

    def response(self, request: Any, answer: Tensors | Exception) -> Any:
        if isinstance(answer, Exception):
            pb_utils.Logger.log_error("".join(traceback.format_exception(answer)))
            message = f"error running model '{self.name}'"
            return pb_utils.InferenceResponse(
                error=pb_utils.TritonError(message, pb_utils.TritonError.INTERNAL)
            )
        wanted = request.requested_output_names()
        return pb_utils.InferenceResponse(
            [
                pb_utils.Tensor.from_dlpack(name, tensor)
                for name, tensor in answer.items()
                if name in wanted
            ]
        )

    def close(self) -> None:
        pass
