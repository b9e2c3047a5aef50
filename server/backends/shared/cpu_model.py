"""Triton glue that the CPU backends share: requests to the executor, responses back."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from time import monotonic
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from executor import ImageExecutor, Run
from image_gather import Tensors, image_tasks
from numpy.typing import NDArray
from request_io import error_response, read_inputs
from tracing import RequestTrace, open_tracer


class CpuModel:
    """Serves a network on the CPU, for a `TritonPythonModel`.

    Args:
        config: the model's configuration, as Triton passes it to a backend.
        runs: the network by number of threads, for `ImageExecutor`; one image each if it batches.
        cores: number of cores of this instance.
    """

    def __init__(self, config: Mapping[str, Any], runs: Mapping[int, Run], cores: int) -> None:
        self.name = config["name"]
        self.inputs = [tensor["name"] for tensor in config["input"]]
        self.batching = config["max_batch_size"] > 0
        self.executor = ImageExecutor(runs, cores)
        self.tracer = open_tracer(self.name, pb_utils.Logger.log_error)

    def execute(self, requests: Sequence[Any]) -> None:
        """Submit the requests; the thread that finishes one answers it."""
        tasks = [task for request in requests for task in self.tasks(request)]
        for waiting, task in zip(reversed(range(len(tasks))), tasks):
            self.executor.submit(task, waiting=waiting)

    def tasks(self, request: Any) -> Iterable[Callable[[Run], None]]:
        """Split the request into one task for each image; the last one to finish answers it."""
        sender = request.get_response_sender()

        def respond(outputs: Tensors | Exception) -> None:
            try:
                response = self.response(request, outputs)
                sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
            except Exception:
                pb_utils.Logger.log_error(traceback.format_exc())

        inputs = read_inputs(request, self.inputs, on_host)
        if isinstance(inputs, Exception):
            respond(inputs)
            return ()
        tasks = image_tasks(inputs, batching=self.batching, respond=respond)
        trace = self.tracer.trace_of(request)
        return (traced(task, trace) for task in tasks) if trace.traced else tasks

    def response(self, request: Any, outputs: Tensors | Exception) -> Any:
        if isinstance(outputs, Exception):
            return error_response(self.name, outputs)
        try:
            wanted = request.requested_output_names()
            return pb_utils.InferenceResponse(
                [pb_utils.Tensor(name, outputs[name]) for name in wanted if name in outputs]
            )
        except Exception as error:
            return error_response(self.name, error)

    def close(self) -> None:
        self.executor.close()
        self.tracer.close()


def traced(task: Callable[[Run], None], trace: RequestTrace) -> Callable[[Run], None]:
    """The task, with a span for its wait for a worker, and one for the run of the network."""
    submitted = monotonic()

    def run_traced(run: Run) -> None:
        started = monotonic()
        trace.record("wait", submitted, started)
        task(record_run(run, trace))

    return run_traced


def record_run(run: Run, trace: RequestTrace) -> Run:
    """The network, with a span for its run."""

    def recorded(inputs: Tensors) -> Tensors:
        started = monotonic()
        try:
            return run(inputs)
        finally:
            trace.record("run", started)

    return recorded


def on_host(tensor: Any) -> NDArray[Any]:
    """A NumPy array of Triton's tensor, copied only if that is on a GPU."""
    if tensor.is_cpu():
        array: NDArray[Any] = np.from_dlpack(tensor)  # `as_numpy` copies
        return array
    # The step before uses a GPU that the installed runtime cannot use.
    import torch

    copied: NDArray[Any] = torch.utils.dlpack.from_dlpack(tensor.to_dlpack()).cpu().numpy()
    return copied
