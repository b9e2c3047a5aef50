"""Write pictures into the network's input: BGR uint8 [H, W, 3] -> RGB 0..1, float32 [3, H, W].

Three classes with the same methods. `HostNormaliser` does all of it on the host. `DeviceNormaliser`
computes on the network's GPU: a quarter of the bytes cross the bus, and the result stays there.
`PlaneSplitter` leaves the division to the network's process.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray


def make_normaliser(gpu: int | None) -> HostNormaliser | DeviceNormaliser:
    """The normaliser for an instance on this GPU; on the host if torch cannot use the GPU."""
    if gpu is not None:
        import torch  # slow to import, and not needed on a CPU

        # Triton may see a GPU whose driver is too old for torch.
        if torch.cuda.is_available():
            return DeviceNormaliser(gpu)
    return HostNormaliser()


class HostNormaliser:
    """Normalises each picture directly into its place in the batch."""

    def allocate(self, count: int, height: int, width: int) -> NDArray[np.float32]:
        """An uninitialised batch for `count` pictures."""
        return np.empty((count, 3, height, width), np.float32)

    def put(self, picture: NDArray[np.uint8], batch: NDArray[np.float32], index: int) -> None:
        """Write one picture to its place in the batch; may be called from several threads."""
        # Split first: dividing contiguous planes is nearly twice as fast as strided ones.
        for plane, values in zip(batch[index], reversed(cv2.split(picture))):
            np.divide(values, np.float32(255), out=plane, dtype=np.float32)

    def pack(self, tensor_type: Any, name: str, batch: NDArray[np.float32]) -> Any:
        """The batch as Triton's tensor, float32 [B, 3, H, W]."""
        return tensor_type(name, batch)


class PlaneSplitter:
    """Keeps the values as uint8 0..255, a quarter of the bytes to pass to the network."""

    def allocate(self, count: int, height: int, width: int) -> NDArray[np.uint8]:
        """An uninitialised batch for `count` pictures."""
        return np.empty((count, 3, height, width), np.uint8)

    def put(self, picture: NDArray[np.uint8], batch: NDArray[np.uint8], index: int) -> None:
        """Write one picture to its place in the batch; may be called from several threads."""
        red, green, blue = batch[index]
        cv2.split(picture, [blue, green, red])  # writes into these

    def pack(self, tensor_type: Any, name: str, batch: NDArray[np.uint8]) -> Any:
        """The batch as Triton's tensor, uint8 [B, 3, H, W]."""
        return tensor_type(name, batch)


class DeviceNormaliser:
    """Collects the pictures on the host, then normalises the whole batch on the GPU."""

    def __init__(self, device: int) -> None:
        import torch

        self._torch = torch
        self._device = torch.device("cuda", device)

    def allocate(self, count: int, height: int, width: int) -> NDArray[np.uint8]:
        """An uninitialised batch for `count` pictures."""
        return np.empty((count, height, width, 3), np.uint8)

    def put(self, picture: NDArray[np.uint8], batch: NDArray[np.uint8], index: int) -> None:
        """Write one picture to its place in the batch; may be called from several threads."""
        batch[index] = picture

    def pack(self, tensor_type: Any, name: str, batch: NDArray[np.uint8]) -> Any:
        """The batch as Triton's tensor, float32 [B, 3, H, W], on the device."""
        torch = self._torch
        pictures = torch.from_numpy(batch).to(self._device)
        images = pictures.flip(3).permute(0, 3, 1, 2).to(torch.float32).div_(255).contiguous()
        # The next step may read the result on another CUDA stream.
        torch.cuda.synchronize(self._device)
        return tensor_type.from_dlpack(name, images)
