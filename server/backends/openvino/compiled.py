"""Read and compile a network with OpenVINO, for the CPU."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import openvino
from config_check import ConfigError

# OpenVINO's names of types -> ONNX Runtime's, which `config_check` compares.
_TYPES = {
    "f32": "tensor(float)",
    "f16": "tensor(float16)",
    "f64": "tensor(double)",
    "i64": "tensor(int64)",
    "i32": "tensor(int32)",
    "u8": "tensor(uint8)",
    "boolean": "tensor(bool)",
}


class Port(NamedTuple):
    """An input or output, as `config_check` takes it."""

    name: str
    type: str
    shape: list[int]


class Network:
    """A network that OpenVINO has read.

    Args:
        config: the model's configuration, as Triton passes it to a backend.
        path: a file in ONNX or OpenVINO's own format.

    Raises:
        ConfigError: the file is missing or cannot be read.
    """

    def __init__(self, config: Mapping[str, Any], path: Path) -> None:
        model = config["name"]
        if not path.is_file():
            raise ConfigError(f"unable to find '{path.name}' for model '{model}'")
        self._core = openvino.Core()
        try:
            self._model = self._core.read_model(path)
        except Exception as error:  # OpenVINO raises several classes
            raise ConfigError(f"openvino error loading model '{model}': {error}") from None
        self.inputs = [_port(port) for port in self._model.inputs]
        self.outputs = [_port(port) for port in self._model.outputs]
        if int(config["max_batch_size"]) > 0:
            # The backend runs one image at a time, and a fixed batch is faster than a dynamic one.
            self._model.reshape(
                {port.name: openvino.PartialShape([1, *port.shape[1:]]) for port in self.inputs}
            )
        self._precision = {"INFERENCE_PRECISION_HINT": "bf16" if _bf16(config) else "f32"}

    def run_with(self, threads: int, at_once: int) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
        """Compile the network.

        Args:
            threads: number of threads of one run.
            at_once: number of concurrent runs, each called from a thread of its own.

        Returns:
            The network: inputs by name -> outputs by name, which the next run on the same thread
            may overwrite.
        """
        compiled = self._core.compile_model(
            self._model,
            "CPU",
            {
                "NUM_STREAMS": at_once,
                "INFERENCE_NUM_THREADS": threads * at_once,
                # The other steps run on the same cores.
                "ENABLE_CPU_PINNING": False,
                **self._precision,
            },
        )
        local = threading.local()

        def run(inputs: Mapping[str, Any]) -> dict[str, Any]:
            if not hasattr(local, "request"):
                local.request = compiled.create_infer_request()
            results = local.request.infer(dict(inputs), share_inputs=True, share_outputs=True)
            return {port.any_name: array for port, array in results.items()}

        return run


def _port(port: Any) -> Port:
    shape = [-1 if side.is_dynamic else side.get_length() for side in port.get_partial_shape()]
    kind = port.get_element_type().get_type_name()
    return Port(port.any_name, _TYPES.get(kind, kind), shape)


def _bf16(config: Mapping[str, Any]) -> bool:
    """Whether to compute in BF16; the C++ backend's parameter and values."""
    text = config.get("parameters", {}).get("HINT_BF16", {}).get("string_value", "NO")
    if text not in ("YES", "NO"):
        raise ConfigError(f"parameter 'HINT_BF16' is '{text}'; allowed: YES, NO")
    return bool(text == "YES")
