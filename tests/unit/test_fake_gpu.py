"""Code for device tensors on torch's fake ones: mixing devices fails as it would on a GPU.

A fake tensor has a device, a shape and a type, and no values.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import device
import numpy as np
import pytest
import torch
from device import DeviceRunner, rows_over
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

GPU = torch.device("cuda", 0)
OTHER = torch.device("cuda", 1)
CPU = torch.device("cpu")
COLUMNS = 6


class Tensor:
    """What a session says of an input or output."""

    def __init__(self, name: str, kind: str, *shape: Any) -> None:
        self.name, self.type, self.shape = name, f"tensor({kind})", list(shape)


class Binding:
    def __init__(self) -> None:
        self.bound: dict[str, dict[str, Any]] = {}

    def bind_input(self, name: str, **where: Any) -> None:
        self.bound[name] = where

    bind_output = bind_input

    def synchronize_outputs(self) -> None:
        pass


class Session:
    """A detection network without arithmetic, which keeps what is bound to it."""

    def __init__(self, kind: str = "float") -> None:
        self.kind = kind
        self.bindings: list[Binding] = []

    def get_inputs(self) -> list[Tensor]:
        return [Tensor("images", self.kind, "batch", 3, 4, 4)]

    def get_outputs(self) -> list[Tensor]:
        return [Tensor("output0", "float", "batch", 8, COLUMNS)]

    def io_binding(self) -> Binding:
        self.bindings.append(Binding())
        return self.bindings[-1]

    def run_with_iobinding(self, binding: Binding) -> None:
        assert binding is self.bindings[-1]


@pytest.fixture(autouse=True)
def synchronized(monkeypatch: pytest.MonkeyPatch) -> list[torch.device]:
    """Devices that were waited for."""
    found: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "synchronize", found.append)
    # A fake tensor has no address; what is bound is the tensor itself.
    monkeypatch.setattr(device, "_memory", lambda tensor: {"tensor": tensor})
    return found


@pytest.fixture(autouse=True)
def fake() -> Iterator[None]:
    with FakeTensorMode(shape_env=ShapeEnv()):
        yield


def pixels(count: int, where: torch.device) -> torch.Tensor:
    return torch.zeros((count, 3, 4, 4), dtype=torch.uint8, device=where)


def thresholds(count: int, where: torch.device) -> torch.Tensor:
    return torch.zeros((count, 5), device=where)


def runner(session: Session, *sizes: int) -> DeviceRunner:
    sessions: Any = dict.fromkeys(sizes, session)
    return DeviceRunner(sessions, GPU)


@pytest.mark.parametrize(
    "where",
    [(CPU, CPU), (GPU, GPU), (CPU, GPU), (GPU, CPU), (OTHER, OTHER), (OTHER, GPU), (CPU, OTHER)],
)
def test_joined_tensors_are_on_the_gpu(where: tuple[torch.device, torch.device]) -> None:
    joined = runner(Session(), 8).join([pixels(1, where[0]), pixels(2, where[1])])
    assert joined.device == GPU and joined.shape == (3, 3, 4, 4)


@pytest.mark.parametrize("kind, dtype", [("float", torch.float32), ("float16", torch.float16)])
@pytest.mark.parametrize("count", [3, 4])  # padded, and not
def test_network_gets_pixels_of_the_host_on_the_gpu_in_its_type(
    kind: str, dtype: torch.dtype, count: int, synchronized: list[torch.device]
) -> None:
    session = Session(kind)
    outputs = runner(session, 1, 4).run({"pixels": pixels(count, CPU)})
    bound = session.bindings[0].bound
    assert {name: where["tensor"].device for name, where in bound.items()} == {
        "images": GPU,
        "output0": GPU,
    }
    assert bound["images"]["tensor"].dtype == dtype
    assert bound["images"]["device_type"] == "cuda" and bound["images"]["device_id"] == 0
    assert bound["images"]["tensor"].shape == (4, 3, 4, 4)
    assert outputs["output0"].device == GPU and outputs["output0"].shape == (count, 8, COLUMNS)
    assert synchronized == [GPU]


@pytest.mark.parametrize("where", [(CPU, CPU), (GPU, GPU), (GPU, CPU), (OTHER, OTHER)])
def test_rows_that_are_over_the_confidence_end_on_the_host(
    where: tuple[torch.device, torch.device],
) -> None:
    inputs = {"pixels": pixels(3, where[0]), "nms": thresholds(3, where[1])}
    outputs = runner(Session(), 4).run(inputs)
    assert outputs["output0"].device == CPU
    assert (outputs["output0"].shape[0], outputs["output0"].shape[2]) == (3, COLUMNS)


def test_images_of_the_gpu_stay_there() -> None:
    session = Session()
    images = torch.zeros((4, 3, 4, 4), device=GPU)
    runner(session, 4).run({"images": images})
    assert session.bindings[0].bound["images"]["tensor"] is images  # not copied


def test_every_session_is_warmed_up_on_the_gpu() -> None:
    session = Session()
    runner(session, 1, 2, 4).warm_up()
    assert [one.bound["images"]["tensor"].shape[0] for one in session.bindings] == [1, 2, 4]
    assert all(one.bound["images"]["tensor"].device == GPU for one in session.bindings)


def test_rows_are_filtered_where_they_are() -> None:
    rows, confidence = torch.zeros((2, 8, COLUMNS), device=GPU), torch.zeros(2, device=GPU)
    assert rows_over(rows, confidence).device == GPU


def test_fake_gpu_refuses_to_mix_devices() -> None:
    rows, confidence = torch.zeros((2, 8, COLUMNS), device=GPU), torch.zeros(2)
    with pytest.raises(RuntimeError, match="on the same device"):
        rows_over(rows, confidence)


class TritonTensor:
    """A tensor as Triton's Python backend hands it over, of which only the memory is taken."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor

    def to_dlpack(self) -> Any:
        return self.tensor.__dlpack__()


@pytest.mark.parametrize(
    "values",
    [
        np.arange(24, dtype=kind).reshape(2, 3, 4)
        for kind in (np.uint8, np.int32, np.int64, np.float16, np.float32, np.float64)
    ],
    ids=lambda values: str(values.dtype),
)
def test_tensor_taken_by_dlpack_is_the_same_memory(values: Any) -> None:
    from torch.utils._python_dispatch import _disable_current_modes

    with _disable_current_modes():  # real tensors
        given = torch.from_numpy(values.copy())
        taken = runner(Session(), 8).take(TritonTensor(given))
        assert taken.dtype == given.dtype and taken.data_ptr() == given.data_ptr()
        given[1, 2, 3] = 99
        assert taken[1, 2, 3] == 99
        # A part, as the answer to one request of a batch.
        back = torch.utils.dlpack.from_dlpack(taken[1:])
        np.testing.assert_array_equal(back.numpy(), given[1:].numpy())
