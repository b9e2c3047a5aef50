from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from s3_server import S3Server


@pytest.fixture(scope="session", autouse=True)
def servers_end() -> Iterator[None]:
    """Leave no server behind, and fail if one does not end."""
    from support import wait_for_ended  # see ../conftest.py: not before pytest is configured

    yield
    wait_for_ended()


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A real S3 server, whose credentials are in the environment."""
    from s3_server import running_s3

    with running_s3(tmp_path_factory.mktemp("s3")) as server:
        yield server
