from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session", autouse=True)
def servers_end() -> Iterator[None]:
    """Leave no server behind, and fail if one does not end."""
    from support import wait_for_ended  # see ../conftest.py: not before pytest is configured

    yield
    wait_for_ended()
