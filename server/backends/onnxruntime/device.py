"""Run a session on the GPU, without copying tensors from the device or back."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import onnxruntime
import torch
from config_check import dims

_TORCH_TYPES = {
    "tensor(float)": torch.float32,
    "tensor(float16)": torch.float16,
    "tensor(double)": torch.float64,
    "tensor(int32)": torch.int32,
    "tensor(int64)": torch.int64,
    "tensor(uint8)": torch.uint8,
    "tensor(bool)": torch.bool,
}


class DeviceRunner:
    """Runs a session by IO binding; inputs and outputs are torch tensors on the device."""

    def __init__(self, session: onnxruntime.InferenceSession, device: int) -> None:
        self._session = session
        self._device = torch.device("cuda", device)
        self.join = torch.cat

    @staticmethod
    def supports(session: onnxruntime.InferenceSession, names: Collection[str]) -> bool:
        """Whether it runs on CUDA and its outputs can be allocated once the batch size is known.

        Args:
            names: the inputs that the configuration states. `prefilter` adds some, for the CPU.
        """
        return (
            "CUDAExecutionProvider" in session.get_providers()
            and {tensor.name for tensor in session.get_inputs()} == set(names)
            and all(
                -1 not in dims(output.shape)[1:] and output.type in _TORCH_TYPES
                for output in session.get_outputs()
            )
        )

    def take(self, tensor: Any) -> torch.Tensor:
        """A torch tensor from Triton's, copied only if that is on the host."""
        if tensor.is_cpu():
            return torch.from_numpy(tensor.as_numpy()).to(self._device)
        return torch.utils.dlpack.from_dlpack(tensor.to_dlpack())

    def run(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Inputs by name -> outputs by name, all on the device."""
        where: dict[str, Any] = {"device_type": "cuda", "device_id": self._device.index}
        binding = self._session.io_binding()
        held = {name: tensor.contiguous() for name, tensor in inputs.items()}
        for name, tensor in held.items():
            binding.bind_input(name, **where, **_memory(tensor))
        batch = len(next(iter(held.values())))
        outputs = {}
        for output in self._session.get_outputs():
            shape = [batch if side == -1 else side for side in dims(output.shape)]
            outputs[output.name] = torch.empty(
                shape, dtype=_TORCH_TYPES[output.type], device=self._device
            )
            binding.bind_output(output.name, **where, **_memory(outputs[output.name]))
        torch.cuda.synchronize(self._device)  # the inputs may come from another stream
        self._session.run_with_iobinding(binding)
        binding.synchronize_outputs()
        return outputs


def _memory(tensor: torch.Tensor) -> dict[str, Any]:
    return {
        "element_type": np.dtype(str(tensor.dtype).removeprefix("torch.")).type,
        "shape": tuple(tensor.shape),
        "buffer_ptr": tensor.data_ptr(),
    }
