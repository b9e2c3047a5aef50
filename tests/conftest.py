from __future__ import annotations

import fcntl
import gc
import os
import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:  # the process that hands out the tests does without the time that these take
    from api_service import RunningApi
    from support import RunningServer

HERE = Path(__file__).parent


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Import the tests without the garbage collector, which takes a fifth of that time.

    Modules stay anyway. They are then left out of its later searches too.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--triton",
        type=Path,
        metavar="FOLDER",
        help="run the server tests on this Triton, not on the embedded one",
    )


def pytest_configure(config: pytest.Config) -> None:
    # In the environment: support.py, which reads it, is imported only by processes that run tests.
    assert "support" not in sys.modules
    os.environ.pop("TESTED_TRITON", None)
    if triton := config.getoption("--triton"):
        os.environ["TESTED_TRITON"] = str(triton.resolve())


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The folder is the tier. With `--triton`, skip what only the embedded server does."""
    for item in items:
        item.add_marker(item.path.relative_to(HERE).parts[0])
        embedded = item.get_closest_marker("embedded")
        if embedded and config.getoption("--triton"):
            reason = f"only on the embedded server: {embedded.args[0]}"
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """One process more than there are cores: tests often wait for a server to start or end."""
    return len(os.sched_getaffinity(0)) + 1


@contextmanager
def turn(folder: Path, *, alone: bool) -> Iterator[None]:
    """Wait until a test may run beside those of the other processes of pytest-xdist.

    All tests share one lock; a test that must run alone holds it exclusively. Everybody passes a
    gate on the way, which stays shut while such a test waits: else the others could keep it
    waiting for ever.
    """
    with (folder / "gate").open("w") as gate, (folder / "lock").open("w") as lock:
        fcntl.flock(gate, fcntl.LOCK_EX)
        fcntl.flock(lock, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        fcntl.flock(gate, fcntl.LOCK_UN)
        yield


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Outside of pytest-timeout: the waiting does not count as the test's time."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return (yield)
    assert item.config.cache is not None
    folder = item.config.cache.mkdir("turn")
    with turn(folder, alone=item.get_closest_marker("alone") is not None):
        return (yield)


@pytest.fixture(scope="session")
def bundled_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's model repository with the bundled network, whichever one is installed.

    The first process of pytest-xdist that needs it makes it for all.
    """
    from support import BUNDLED, make_repository

    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    repository = folder / "bundled" / "model_repository"
    with (folder / "bundled.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not repository.exists():
            make_repository(repository.parent, BUNDLED)
    return repository


@pytest.fixture(scope="session")
def server(bundled_repository: Path) -> Iterator[RunningServer]:
    from support import running_server

    with running_server(f"--repository={bundled_repository}") as running:
        yield running


@pytest.fixture(scope="session")
def api(server: RunningServer) -> Iterator[RunningApi]:
    """The REST service in front of `server`, as it is without flags."""
    from api_service import running_api

    with running_api(server) as running:
        yield running
