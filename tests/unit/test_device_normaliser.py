"""The normaliser for a GPU: its arithmetic on the CPU, its devices with torch's fake tensors.

A fake tensor has a device, a shape and a type, and no values.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import device_normaliser
import numpy as np
import pytest
import torch
from batch_builder import BatchBuilder
from device_normaliser import DeviceNormaliser, normalise
from normalise import HostNormaliser
from torch._subclasses.fake_tensor import FakeTensorMode

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


class Tensor:
    """Triton's, which takes another library's memory as it is."""

    def __init__(self, name: str, tensor: torch.Tensor) -> None:
        self.name, self.tensor = name, tensor

    @classmethod
    def from_dlpack(cls, name: str, tensor: torch.Tensor) -> Tensor:
        return cls(name, tensor)


class Stream:
    """Keeps the order of what happens."""

    def __init__(self, events: list[str]) -> None:
        self.events = events

    def synchronize(self) -> None:
        self.events.append("waited")


def pictures(*size: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(3).integers(0, 256, size, np.uint8)


@pytest.mark.parametrize("count", [1, 3])
def test_batch_is_that_of_the_host_to_the_bit_and_goes_through_dlpack(count: int) -> None:
    results = []
    for normaliser in (HostNormaliser(), DeviceNormaliser(CPU)):
        batch = BatchBuilder({"images": normaliser}, count, (32, 48))
        for index, picture in enumerate(pictures(count, 32, 48, 3)):
            batch.add(index, picture)
        tensors, _ = batch.build([])
        results.append(tensors["images"])
    packed = DeviceNormaliser(CPU).pack(Tensor, "images", results[1])
    assert packed.name == "images"
    images = np.from_dlpack(packed.tensor)
    assert images.flags.c_contiguous
    np.testing.assert_array_equal(images, results[0])


def test_pictures_of_the_host_become_images_on_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_normaliser, "_new_stream", lambda device: None)
    batch = pictures(2, 32, 48, 3)
    with FakeTensorMode(allow_non_fake_inputs=True):
        packed = DeviceNormaliser(GPU).pack(Tensor, "images", batch)
    assert packed.tensor.device == GPU
    assert packed.tensor.shape == (2, 3, 32, 48) and packed.tensor.dtype == torch.float32
    assert packed.tensor.is_contiguous()


def test_images_stay_on_the_device_of_the_pictures() -> None:
    with FakeTensorMode():
        for device in (CPU, GPU):
            images = normalise(torch.empty((2, 32, 48, 3), dtype=torch.uint8, device=device))
            assert images.device == device and images.is_contiguous()


def test_triton_gets_the_images_when_the_gpu_has_made_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    events: list[str] = []
    monkeypatch.setattr(device_normaliser, "_new_stream", lambda device: Stream(events))
    monkeypatch.setattr(device_normaliser, "_on", lambda stream: nullcontext())

    class Late(Tensor):
        @classmethod
        def from_dlpack(cls, name: str, tensor: torch.Tensor) -> Tensor:
            events.append("packed")
            return cls(name, tensor)

    DeviceNormaliser(CPU).pack(Late, "images", pictures(1, 32, 48, 3))
    assert events == ["waited", "packed"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU that torch can use")
def test_images_on_a_gpu_are_those_of_the_host() -> None:
    normaliser = DeviceNormaliser(GPU)
    batch = normaliser.allocate(2, 32, 48)
    assert torch.from_numpy(batch).is_pinned()
    batch[...] = pictures(2, 32, 48, 3)
    images = normaliser.pack(Tensor, "images", batch).tensor
    assert images.device == GPU
    wanted = batch[..., ::-1].transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255)
    # A GPU multiplies by the reciprocal: the last bit may differ.
    np.testing.assert_allclose(images.cpu().numpy(), wanted, rtol=2e-7)
