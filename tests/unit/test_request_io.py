"""A request that fails is answered in the same way by a model on a CPU and by one on a GPU."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from device import DeviceRunner
from support import GraphTensor

CONFIG = {"name": "m", "max_batch_size": 4, "input": [{"name": "images"}]}
FAULT = ("INTERNAL", "error running model 'm'")
MODULES = ("cpu_model", "gpu_model", "request_io")


@dataclass
class TritonError:
    """Holds what it is given, as do the other classes in place of Triton's."""

    message: str
    code: str
    INVALID_ARG: ClassVar[str] = "INVALID_ARG"
    INTERNAL: ClassVar[str] = "INTERNAL"


class Tensor:
    """An output, or an input, which cannot be read if it is empty."""

    def __init__(self, name: str, array: Any) -> None:
        if array.dtype == complex:
            raise TypeError("Triton has no complex numbers")
        self.name, self.array = name, array

    @classmethod
    def from_dlpack(cls, name: str, array: Any) -> Tensor:
        return cls(name, array)

    def is_cpu(self) -> bool:
        return True

    def __dlpack__(self) -> Any:
        if not self.array.size:
            raise BufferError("out of memory")
        return self.array.__dlpack__()


@dataclass
class Response:
    tensors: Sequence[Tensor] = ()
    error: TritonError | None = None

    def told(self) -> Any:
        """Code and message of an error, else the output."""
        if self.error:
            return self.error.code, self.error.message
        return self.tensors[0].array.tolist()


class Request:
    def __init__(self, **arrays: Sequence[float]) -> None:
        self.inputs = {
            name: Tensor(name, np.array(values, np.float32).reshape(-1, 1))
            for name, values in arrays.items()
        }
        self.responses: list[Response] = []

    def requested_output_names(self) -> list[str]:
        return ["y"]

    def get_response_sender(self) -> Any:
        return SimpleNamespace(send=lambda response, flags: self.responses.append(response))


def run(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Double the images; fail for -1, and answer with complex numbers for -2."""
    images = inputs["images"]
    if (images == -1).any():
        raise RuntimeError("negative")
    return {"y": images.astype(complex) if (images == -2).any() else images * 2}


def run_tensors(inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    outputs = run({name: tensor.numpy() for name, tensor in inputs.items()})
    return {name: torch.from_numpy(array) for name, array in outputs.items()}


def take_tensor(tensor: Tensor) -> torch.Tensor:
    return torch.from_numpy(np.array(np.from_dlpack(tensor)))  # type: ignore[arg-type]


Execute = Callable[[Sequence[Request]], list[Any]]  # each request's answer


@pytest.fixture(params=["cpu", "gpu"])
def execute(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Execute]:
    utilities = SimpleNamespace(
        InferenceResponse=Response,
        Logger=SimpleNamespace(log_error=print),
        Tensor=Tensor,
        TRITONSERVER_RESPONSE_COMPLETE_FINAL=1,
        TritonError=TritonError,
        get_input_tensor_by_name=lambda one, name: one.inputs.get(name),
    )
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", utilities)

    def on_cpu(requests: Sequence[Request]) -> list[Any]:
        model = import_module("cpu_model").CpuModel(CONFIG, {1: run}, 1)
        model.execute(requests)
        model.close()
        return [response.told() for one in requests for response in one.responses]

    def on_gpu(requests: Sequence[Request]) -> list[Any]:
        runner = SimpleNamespace(join=torch.cat, run=run_tensors, take=take_tensor)
        model = import_module("gpu_model").GpuModel(CONFIG, runner)
        return [response.told() for response in model.execute(requests)]

    yield {"cpu": on_cpu, "gpu": on_gpu}[request.param]
    for name in MODULES:
        sys.modules.pop(name, None)


ONE_IS_NEEDED = ("INVALID_ARG", "an input is needed")


@pytest.mark.parametrize(
    "arrays, answer, is_logged",
    [
        ({}, ONE_IS_NEEDED, False),
        ({"images": []}, FAULT, True),
        ({"images": [-1]}, FAULT, True),
        ({"images": [-2]}, FAULT, True),
    ],
    ids=["no input", "input that cannot be read", "run", "output"],
)
def test_failed_request_gets_the_same_answer_on_cpu_and_gpu(
    execute: Execute,
    arrays: dict[str, list[float]],
    answer: Any,
    is_logged: bool,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert execute([Request(**arrays)]) == [answer]
    assert ("Traceback" in capsys.readouterr().out) is is_logged


def test_failed_requests_leave_the_others_of_their_batch_alone(execute: Execute) -> None:
    batch: list[dict[str, list[float]]] = [
        {"images": [1, 2]},
        {},
        {"images": []},
        {"images": [-1]},
        {"images": [3]},
    ]
    answers = execute([Request(**arrays) for arrays in batch])
    assert answers == [[[2.0], [4.0]], ONE_IS_NEEDED, FAULT, FAULT, [[6.0]]]


class Session:
    """A session on CUDA, with a graph that takes `images`."""

    def get_providers(self) -> list[str]:
        return ["CUDAExecutionProvider", "CPUExecutionProvider"]

    def get_inputs(self) -> list[GraphTensor]:
        return [GraphTensor("images", "tensor(float)", ["batch", 3, 64, 64])]

    def get_outputs(self) -> list[GraphTensor]:
        return [GraphTensor("output0", "tensor(float)", ["batch", 252, 8])]


def test_inputs_that_are_made_for_the_graph_keep_a_network_on_the_gpus_own_path() -> None:
    session: Any = Session()
    assert DeviceRunner.supports(session, ["images"])
    assert DeviceRunner.supports(session, ["pixels", "nms"])
    assert not DeviceRunner.supports(session, ["images", "other"])
    assert not DeviceRunner.supports(session, ["images", "pixels", "nms"])
