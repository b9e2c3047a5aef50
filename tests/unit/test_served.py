"""The list of networks on the launcher's health port, and what `status` shows of it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hostile import http, http_recorder, http_server

from yolov5_client import ServerError, UnavailableError
from yolov5_client._cli import main
from yolov5_client._served import read_served_models

YOLOV5 = {
    "name": "yolov5",
    "endpoint": "yolov5_ensemble",
    "version": 3,
    "precision": "bf16",
    "ready": True,
    "reason": None,
    "memory_bytes": 123_400_000,
}
PLATES = {
    **YOLOV5,
    "name": "plates",
    "endpoint": "plates_ensemble",
    "version": None,
    "precision": None,
    "ready": False,
    "reason": "model.onnx cannot be read",
    "memory_bytes": None,
}


def answer(*models: Any) -> bytes:
    return http(json.dumps({"models": models, "steps": []}).encode())


def test_status_lists_every_network_of_the_launcher(capsys: pytest.CaptureFixture[str]) -> None:
    with http_recorder() as (server, _), http_server(answer(YOLOV5, PLATES)) as health:
        assert main(["status", "--server", server, "--health", health]) == 3
        assert capsys.readouterr().out.splitlines() == [
            f"{server}: Triton 2.0, ready",
            "  yolov5_ensemble: ready",
            f"{health}: 2 networks",
            "  yolov5_ensemble: ready, version 3, bf16, 123 MB",
            "  plates_ensemble: NOT READY, model.onnx cannot be read",
        ]
    with http_recorder() as (server, _), http_server(answer(YOLOV5)) as health:
        assert main(["status", "--server", server, "--health", health]) == 0
        assert f"{health}: 1 network\n" in capsys.readouterr().out


def test_status_asks_for_each_network_that_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with http_recorder() as (server, _):
        assert main(["status", "--server", server, "--deep", "--model", "plates", "yolov5"]) == 0
        assert capsys.readouterr().out.splitlines()[1:] == [
            "  plates_ensemble: ready",
            "  yolov5_ensemble: ready",
            "  each answered an image",
        ]
        assert main(["status", "--server", server, "--model", "Plates"]) == 2
        assert "error: model is 'Plates'; allowed: " in capsys.readouterr().err


@pytest.mark.parametrize(
    "body", [b"", b"{}", b"[]", b'{"models": 1}', b'{"models": [{"name": "a"}]}', b"[" * 9999]
)
def test_other_answer_than_a_list_of_networks_is_an_error(body: bytes) -> None:
    with http_server(http(body)) as address, pytest.raises(ServerError, match="not a list of netw"):
        read_served_models(address, 5)


def test_missing_launcher_and_other_server_are_told_apart() -> None:
    with pytest.raises(UnavailableError, match="/models cannot be read: .*refused"):
        read_served_models("http://127.0.0.1:9", 5)
    refusing = http(b"no", status="404 No")
    with (
        http_server(refusing) as address,
        pytest.raises(ServerError, match="/models answers with HTTP 404; a launcher's health port"),
    ):
        read_served_models(address, 5)
    with pytest.raises(ValueError, match="^--health is 'there:8003'; allowed: the http:// address"):
        read_served_models("there:8003", 5)
