"""Which Triton's calls may be cancelled."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from yolov5_client import AsyncClient, ServerStatus, UnavailableError
from yolov5_client._api import cancelling
from yolov5_client._api.cancelling import Cancelling, withstands


@pytest.mark.parametrize(
    ("version", "wanted"),
    [("2.51.0", False), ("2.71.9", False), ("2.72.0", True), ("3.0", True), ("", False)],
)
def test_version_decides(version: str, wanted: bool) -> None:
    assert withstands(version) is wanted


def test_nothing_is_cancelled_before_the_version_is_known_or_while_the_server_is_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cancelling, "_FRESH", 0.0)
    versions = ["2.51.0", None, "2.72.0"]

    async def status(self: AsyncClient) -> ServerStatus:
        version = versions.pop()
        if version is None:
            raise UnavailableError("away")
        return ServerStatus(address="", version=version, ready=True, models={})

    monkeypatch.setattr(AsyncClient, "status", status)

    async def asking(**settings: Any) -> list[bool]:
        found = []
        async with AsyncClient() as client:
            calls = Cancelling(client, **settings)
            for _ in range(4):
                found.append(calls.is_safe())
                await asyncio.sleep(0.01)
                if not versions:
                    monkeypatch.setattr(cancelling, "_FRESH", 99.0)
        return found

    assert asyncio.run(asking(allowed=False)) == [False] * 4
    assert asyncio.run(asking(allowed=True)) == [False, True, False, False]
