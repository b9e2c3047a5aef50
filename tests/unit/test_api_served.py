"""What the service knows of the networks when the launcher is busy or gone."""

from __future__ import annotations

import asyncio
import json
import time

import pytest
from hostile import Send, http, tcp_server

from yolov5_client._api import served
from yolov5_client._api.served import ServedModels

NETWORKS = [
    {"name": name, "endpoint": f"{name}_ensemble", "version": 3, "ready": True}
    for name in ("plates", "yolov5")
]


def names(models: ServedModels) -> list[str]:
    async def asking() -> list[str]:
        return [model.name for model in await models.all()]

    return asyncio.run(asking())


def test_networks_are_remembered_while_the_launcher_is_busy_but_not_when_it_is_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(served, "_FRESH", 0.0)
    monkeypatch.setattr(served, "_TIMEOUT", 0.2)
    answers = [http(json.dumps({"models": NETWORKS, "steps": []}).encode())]

    def answer(request: bytes, send: Send) -> None:
        if answers:
            send(answers.pop())
        else:
            time.sleep(1)

    with tcp_server(answer) as address:
        models = ServedModels(f"http://{address}", "yolov5")
        assert names(models) == ["plates", "yolov5"]
        assert not answers
        assert names(models) == ["plates", "yolov5"]
        assert asyncio.run(models.version("yolov5")) == "3"
    assert names(models) == ["yolov5"]  # the default one, of which nothing is known
    assert asyncio.run(models.version("yolov5")) is None


def test_first_answer_after_an_idle_time_has_the_version_of_now(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(served, "_FRESH", 0.01)
    monkeypatch.setattr(served, "_OLD", 0.02)
    versions = iter((3, 4))

    def answer(request: bytes, send: Send) -> None:
        networks = [{**NETWORKS[1], "version": next(versions)}]
        send(http(json.dumps({"models": networks, "steps": []}).encode()))

    async def asking(address: str) -> list[str | None]:
        models = ServedModels(f"http://{address}", "yolov5")
        first = await models.version("yolov5")
        await asyncio.sleep(0.1)
        return [first, await models.version("yolov5")]

    with tcp_server(answer) as address:
        assert asyncio.run(asking(address)) == ["3", "4"]
