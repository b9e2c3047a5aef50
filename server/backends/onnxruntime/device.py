"""Run a session on the GPU; tensors that are there stay there."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np
import onnxruntime
import torch
from config_check import dims
from prefilter import IMAGES, NMS, PIXELS, ROWS

_TORCH_TYPES = {
    "tensor(float)": torch.float32,
    "tensor(float16)": torch.float16,
    "tensor(double)": torch.float64,
    "tensor(int32)": torch.int32,
    "tensor(int64)": torch.int64,
    "tensor(uint8)": torch.uint8,
    "tensor(bool)": torch.bool,
}


_OBJECTNESS = 4  # column of a row


class DeviceRunner:
    """Runs a network by IO binding.

    Inputs are torch tensors on the device or on the host, outputs are on the device. A detection
    network may get `pixels` and `nms` as well (see `prefilter`): then `output0` is on the host, and
    has only the rows whose objectness is over the confidence, padded with zeros.

    Args:
        sessions: of the network, by batch size. A batch runs in the smallest that holds it, padded
            with zeros; one that is larger than all of them runs in the largest as it is.
        device: of the sessions: a GPU; tests use the CPU.
    """

    def __init__(
        self, sessions: Mapping[int, onnxruntime.InferenceSession], device: torch.device
    ) -> None:
        self._sessions = dict(sorted(sessions.items()))
        self._device = device
        inputs = next(iter(sessions.values())).get_inputs()
        self._types = {tensor.name: _TORCH_TYPES[tensor.type] for tensor in inputs}
        self._shapes = {tensor.name: dims(tensor.shape)[1:] for tensor in inputs}

    @staticmethod
    def supports(session: onnxruntime.InferenceSession, names: Collection[str]) -> bool:
        """Whether it runs on CUDA and its outputs can be allocated once the batch size is known.

        Args:
            names: the inputs that the configuration states.
        """
        return (
            "CUDAExecutionProvider" in session.get_providers()
            and {tensor.name for tensor in session.get_inputs()}
            == ({IMAGES} if set(names) == {PIXELS, NMS} else set(names))
            and all(
                -1 not in dims(output.shape)[1:] and output.type in _TORCH_TYPES
                for output in session.get_outputs()
            )
        )

    def take(self, tensor: Any) -> torch.Tensor:
        """Triton's tensor as torch's, not copied."""
        found: torch.Tensor = torch.utils.dlpack.from_dlpack(tensor.to_dlpack())
        return found

    def join(self, tensors: list[torch.Tensor]) -> torch.Tensor:
        """Concatenate along the batch; tensors on the host go to the device in one copy."""
        if any(tensor.device.type == self._device.type for tensor in tensors):
            return torch.cat([tensor.to(self._device) for tensor in tensors])
        rows = sum(len(tensor) for tensor in tensors)
        pinned = self._device.type == "cuda"  # not pageable: such copies are twice as fast
        shape = (rows, *tensors[0].shape[1:])
        joined = torch.empty(shape, dtype=tensors[0].dtype, pin_memory=pinned)
        return torch.cat(tensors, out=joined).to(self._device, non_blocking=True)

    def warm_up(self) -> None:
        """Run each session once, as cuDNN looks for the fastest convolutions of each anew.

        Does nothing if a side of an input is not fixed.
        """
        if any(-1 in shape for shape in self._shapes.values()):
            return
        for size in self._sessions:
            self.run(
                {
                    name: torch.zeros((size, *shape), dtype=self._types[name])
                    for name, shape in self._shapes.items()
                }
            )

    def run(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Inputs by name -> outputs by name."""
        given = {name: tensor.to(self._device) for name, tensor in inputs.items()}
        nms = given.pop(NMS, None) if NMS not in self._types else None
        if PIXELS in given and PIXELS not in self._types:
            pixels = given.pop(PIXELS).to(torch.float32)
            given[IMAGES] = pixels.div_(255).to(self._types[IMAGES])
        outputs = self._run(given)
        if nms is not None:
            outputs[ROWS] = rows_over(outputs[ROWS], nms[:, 0]).cpu()
        return outputs

    def _run(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Inputs by name -> outputs by name, all on the device."""
        rows = len(next(iter(inputs.values())))
        size = next((size for size in self._sessions if size >= rows), rows)
        session = self._sessions.get(size) or self._sessions[max(self._sessions)]
        device = self._device
        where: dict[str, Any] = {"device_type": device.type, "device_id": device.index or 0}
        binding = session.io_binding()
        held = {name: _padded(tensor, size) for name, tensor in inputs.items()}
        for name, tensor in held.items():
            binding.bind_input(name, **where, **_memory(tensor))
        outputs = {}
        for output in session.get_outputs():
            shape = [size if side == -1 else side for side in dims(output.shape)]
            outputs[output.name] = torch.empty(
                shape, dtype=_TORCH_TYPES[output.type], device=device
            )
            binding.bind_output(output.name, **where, **_memory(outputs[output.name]))
        if device.type == "cuda":
            torch.cuda.synchronize(device)  # the inputs may come from another stream
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()
        if size == rows:
            return outputs
        return {name: tensor[:rows] for name, tensor in outputs.items()}


def sessions_by_size(
    session: onnxruntime.InferenceSession,
    max_batch_size: int,
    open_fixed: Callable[[Mapping[str, int]], onnxruntime.InferenceSession],
) -> dict[int, onnxruntime.InferenceSession]:
    """Open a session for each of a few batch sizes: 1, 2, 4 ... up to the largest.

    On CUDA a session plans its convolutions anew whenever its input has another shape than in the
    run before. That takes about a second; the run itself takes milliseconds.

    Args:
        session: of the network, which is returned if it does not batch.
        max_batch_size: 0 if it does not batch.
        open_fixed: opens another, with a size for each named dimension.
    """
    if max_batch_size <= 0:
        return {1: session}
    batch = session.get_inputs()[0].shape[0]
    return {
        size: open_fixed({batch: size} if isinstance(batch, str) else {})
        for size in batch_sizes(max_batch_size)
    }


def batch_sizes(most: int) -> list[int]:
    """The powers of two below `most`, and `most`."""
    return [*(1 << power for power in range((most - 1).bit_length())), most]


def rows_over(rows: torch.Tensor, confidence: torch.Tensor) -> torch.Tensor:
    """Keep the rows whose objectness is over their image's confidence, in their order.

    Args:
        rows: [B, N, 5 + C], or [B, N, 6] with a reduced head.
        confidence: [B]

    Returns:
        [B, K, columns], padded with zeros to the largest number K of an image.
    """
    wanted = rows[..., _OBJECTNESS] > confidence[:, None]
    image, row = wanted.nonzero(as_tuple=True)
    place = wanted.cumsum(1)[image, row] - 1
    longest: Any = wanted.sum(1).max().item()
    kept = rows.new_zeros((len(rows), longest, rows.shape[2]))
    kept[image, place] = rows[image, row]
    return kept


def _padded(tensor: torch.Tensor, rows: int) -> torch.Tensor:
    """The tensor with rows of zeros at its end; not copied if it has as many and is contiguous."""
    if len(tensor) >= rows:
        return tensor.contiguous()
    padded = tensor.new_zeros((rows, *tensor.shape[1:]))
    padded[: len(tensor)] = tensor
    return padded


def _memory(tensor: torch.Tensor) -> dict[str, Any]:
    return {
        "element_type": np.dtype(str(tensor.dtype).removeprefix("torch.")).type,
        "shape": tuple(tensor.shape),
        "buffer_ptr": tensor.data_ptr(),
    }
