from __future__ import annotations

from collections.abc import Iterator

import pytest
from support import wait_for_ended


@pytest.fixture(scope="session", autouse=True)
def servers_end() -> Iterator[None]:
    """Leave no server behind, and fail if one does not end."""
    yield
    wait_for_ended()
