from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support import BUNDLED, RunningServer, make_repository, running_server

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The folder is the tier."""
    for item in items:
        item.add_marker(item.path.relative_to(HERE).parts[0])


@pytest.fixture(scope="session")
def bundled_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's model repository with the bundled network, whichever one is installed."""
    return make_repository(tmp_path_factory.mktemp("bundled"), BUNDLED)


@pytest.fixture(scope="session")
def server(bundled_repository: Path) -> Iterator[RunningServer]:
    with running_server(f"--repository={bundled_repository}") as running:
        yield running
