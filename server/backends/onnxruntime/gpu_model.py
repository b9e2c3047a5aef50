"""Triton glue for a network on a GPU: one run for each batch; device tensors go by DLPack."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from time import monotonic
from typing import Any

import onnxruntime
import torch
import triton_python_backend_utils as pb_utils
from batch import Tensors, run_batch
from device import DeviceRunner, sessions_by_size
from request_io import error_response, read_inputs
from tracing import open_tracer


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
        self.tracer = open_tracer(self.name, pb_utils.Logger.log_error)

    @classmethod
    def from_session(
        cls,
        config: Mapping[str, Any],
        session: onnxruntime.InferenceSession,
        device: int,
        open_fixed: Callable[[Mapping[str, int]], onnxruntime.InferenceSession],
    ) -> GpuModel | None:
        """None if torch cannot use the GPU, or the session's outputs cannot be allocated there.

        Args:
            open_fixed: opens the network again, with a size for each named dimension.
        """
        names = [tensor["name"] for tensor in config["input"]]
        if not torch.cuda.is_available() or not DeviceRunner.supports(session, names):
            return None
        # torch only joins batches on the host: more threads take the cores from the other steps.
        torch.set_num_threads(1)
        sessions = sessions_by_size(session, config["max_batch_size"], open_fixed)
        runner = DeviceRunner(sessions, torch.device("cuda", device))
        runner.warm_up()
        return cls(config, runner)

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Run the requests as one batch; one response for each."""
        inputs = [read_inputs(request, self.inputs, self.runner.take) for request in requests]
        started = monotonic()
        answers = run_batch(self.runner.run, inputs, join=self.join)
        ended = monotonic()
        for request in requests:
            trace = self.tracer.trace_of(request)
            trace.record("run", started, ended, requests_together=len(requests))
        return [self.response(request, answer) for request, answer in zip(requests, answers)]

    def response(self, request: Any, answer: Tensors | Exception) -> Any:
        if isinstance(answer, Exception):
            return error_response(self.name, answer)
        try:
            wanted = request.requested_output_names()
            return pb_utils.InferenceResponse(
                [as_triton(name, answer[name]) for name in wanted if name in answer]
            )
        except Exception as error:
            return error_response(self.name, error)

    def close(self) -> None:
        self.tracer.close()


def as_triton(name: str, tensor: torch.Tensor) -> Any:
    """Triton's tensor of torch's, which stays where it is."""
    if tensor.is_cuda:
        return pb_utils.Tensor.from_dlpack(name, tensor)
    return pb_utils.Tensor(name, tensor.numpy())
