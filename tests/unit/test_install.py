"""The files of an installed network, of tiny graphs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from empty_network import OPEN, write

from yolov5_build import BuildError, Installed, install_onnx
from yolov5_build._endpoint import batch_limit


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "repository"
    folder.mkdir()
    return folder


def refusal(weights: Path, repository: Path, **options: Any) -> str:
    with pytest.raises(BuildError) as caught:
        install_onnx(weights, repository, **options)
    assert not list(repository.iterdir())
    return str(caught.value)


def config(repository: Path) -> str:
    return (repository / "yolov5" / "config.pbtxt").read_text()


def test_network_is_installed_with_all_its_files(tmp_path: Path, repository: Path) -> None:
    weights = write(tmp_path, 96, 64)
    installed = install_onnx(weights, repository)
    assert installed == Installed(version=1, height=96, width=64, names=("car", "bus"))
    folder = repository / "yolov5"
    assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*")) == [
        *("1", "1/model.onnx", "1/served.onnx", "config.pbtxt", "labels.txt")
    ]
    assert (folder / "1" / "model.onnx").read_bytes() == weights.read_bytes()
    assert (folder / "labels.txt").read_text() == "car\nbus\n"
    assert "max_batch_size: 8\n" in config(repository)
    assert "dims: [ 3, 96, 64 ]" in config(repository)
    assert "dims: [ -1, 7 ]" in config(repository)
    assert install_onnx(weights, repository).version == 2


def test_variants_are_installed_on_demand(tmp_path: Path, repository: Path) -> None:
    prefiltered = tmp_path / "other.onnx"
    prefiltered.write_bytes(b"prefiltered")
    install_onnx(write(tmp_path, 96, 64), repository, bf16=True, prefiltered=prefiltered)
    folder = repository / "yolov5"
    assert (folder / "1" / "served.onnx").read_bytes() == b"prefiltered"
    assert (folder / "configs" / "bf16.pbtxt").is_file()


def test_open_sides_are_fixed_except_for_rect(tmp_path: Path, repository: Path) -> None:
    weights = write(tmp_path, *OPEN, rows="rows")
    installed = install_onnx(weights, repository)
    assert (installed.height, installed.width) == (640, 640)
    assert "dims: [ 3, 640, 640 ]" in config(repository)
    assert "dims: [ -1, 7 ]" in config(repository)
    installed = install_onnx(weights, repository, letterbox="stretch", imgsz=(96, 64))
    assert (installed.height, installed.width) == (96, 64)
    assert "dims: [ 3, 96, 64 ]" in config(repository)
    installed = install_onnx(weights, repository, letterbox="rect", imgsz=(96, 64))
    assert (installed.height, installed.width) == (96, 64)
    assert "dims: [ 3, -1, -1 ]" in config(repository)


def test_fixed_sides_cannot_be_changed(tmp_path: Path, repository: Path) -> None:
    weights = write(tmp_path, 96, 64)
    assert refusal(weights, repository, letterbox="rect") == (
        "letterbox rect needs a network with open height and width; these are fixed to 96x64."
    )
    assert install_onnx(weights, repository, imgsz=(640, 640)).height == 96


@pytest.mark.parametrize("size", [(96, 80), (80, 96)])
def test_sides_must_be_multiples_of_the_stride(
    tmp_path: Path, repository: Path, size: tuple[int, int]
) -> None:
    sentence = f"image size {size[0]}x{size[1]} is not a multiple of the stride, 32."
    assert refusal(write(tmp_path, *size), repository) == sentence
    assert refusal(write(tmp_path, *OPEN), repository, imgsz=size) == sentence


@pytest.mark.parametrize("names", ["{0: '', 1: 'bus'}", r"{0: 'car', 1: 'b\nus'}"])
def test_class_names_must_be_lines(tmp_path: Path, repository: Path, names: str) -> None:
    weights = write(tmp_path, 96, 64, metadata={"names": names})
    assert refusal(weights, repository) == (
        "a class name is empty or has a line break, so it cannot be a label."
    )


def test_missing_tensor_is_named(tmp_path: Path, repository: Path) -> None:
    sentence = "the network has no tensor called 'output0'."
    assert refusal(write(tmp_path, 96, 64, output="rows"), repository) == sentence


@pytest.mark.parametrize("name", ["config.pbtxt", "configs/own.pbtxt"])
def test_batch_limit_of_the_endpoint_follows_the_network(
    tmp_path: Path, repository: Path, name: str
) -> None:
    endpoint = repository / "yolov5_ensemble" / name
    endpoint.parent.mkdir(parents=True)

    def limit(before: str | None, network: str | None = None) -> str:
        if before is not None:
            endpoint.write_text(f"# one\n{before}\n# two\n")
        metadata = {"max_batch_size": network} if network else {}
        install_onnx(write(tmp_path, 96, 64, metadata=metadata), repository)
        first, text, last = endpoint.read_text().splitlines()
        assert (first, last) == ("# one", "# two")
        return text

    assert limit("max_batch_size: 4") == "max_batch_size: 4"  # there is no network yet
    assert limit("max_batch_size: 9") == "max_batch_size: 8"
    assert limit(None, "3") == "max_batch_size: 3"
    assert limit(None, "3") == "max_batch_size: 3"
    assert limit(None) == "max_batch_size: 8"
    # An operator's own limit: a smaller one stays, a larger one is not possible.
    assert limit("max_batch_size: 4") == "max_batch_size: 4"
    assert limit("max_batch_size: 4", "6") == "max_batch_size: 4"
    assert limit("max_batch_size: 10", "7") == "max_batch_size: 7"
    assert limit("no limit") == "no limit"


@pytest.mark.parametrize(("old", "new"), [(8, 1), (1, 8)])
def test_installation_that_ends_early_leaves_a_batch_limit_that_fits_the_served_network(
    tmp_path: Path, old: int, new: int
) -> None:
    ensemble = tmp_path / "yolov5_ensemble" / "config.pbtxt"
    ensemble.parent.mkdir()
    ensemble.write_text(f"max_batch_size: {old}\n")
    served = tmp_path / "yolov5" / "config.pbtxt"
    served.parent.mkdir()
    served.write_text(f"max_batch_size: {old}\n")
    with pytest.raises(RuntimeError), batch_limit(tmp_path, new):
        raise RuntimeError
    assert ensemble.read_text() == "max_batch_size: 1\n"
    assert [*ensemble.parent.iterdir()] == [ensemble]
