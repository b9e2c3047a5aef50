from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import BUNDLED, REPOSITORY, RunningServer, running_server

from yolov5_build import export_onnx, install_onnx, load_checkpoint

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The folder is the tier."""
    for item in items:
        item.add_marker(item.path.relative_to(HERE).parts[0])


def make_repository(folder: Path, weights: Path, letterbox: str = "square") -> Path:
    """A copy of the model repository with `weights` as the served network."""
    repository = folder / "model_repository"
    shutil.copytree(REPOSITORY, repository, ignore=shutil.ignore_patterns("yolov5"))
    checkpoint = load_checkpoint(weights)
    exported = folder / "model.onnx"
    export_onnx(checkpoint, exported)
    install_onnx(exported, repository, provenance="made by a test", letterbox=letterbox)
    return repository


@pytest.fixture(scope="session")
def bundled_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's model repository with the bundled network, whichever one is installed."""
    return make_repository(tmp_path_factory.mktemp("bundled"), BUNDLED)


@pytest.fixture(scope="session")
def server(bundled_repository: Path) -> Iterator[RunningServer]:
    with running_server(f"--repository={bundled_repository}") as running:
        yield running
