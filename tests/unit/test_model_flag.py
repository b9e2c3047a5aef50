"""The flag that names the network, in the commands that send images."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from hostile import http, http_endpoints, over_http, tensors
from support import PHOTO

from yolov5_client._cli import main

ANSWER = over_http([*tensors().values()])
UNKNOWN = {"error": "Request for unknown model: 'plates_ensemble' is not found"}


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, list[str]]]:
    """A server's address, and the endpoints that were asked; its folder is the current one."""
    monkeypatch.chdir(tmp_path)
    seen: list[str] = []

    def answer(endpoint: str, image: bytes) -> bytes:
        seen.append(endpoint)
        if image == b"later":
            return http(b'{"error": "not now"}', status="500 No")
        return ANSWER

    with http_endpoints(answer) as address:
        yield address, seen


def test_detect_asks_the_network_that_is_named(asked: tuple[str, list[str]]) -> None:
    server, seen = asked
    assert main(["detect", str(PHOTO), "--server", server, "--model", "plates"]) == 0
    assert main(["detect", str(PHOTO), "--server", server]) == 0
    assert seen == ["plates_ensemble", "yolov5_ensemble"]


def test_resumed_run_asks_the_same_network(
    asked: tuple[str, list[str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    server, seen = asked
    monkeypatch.setattr("yolov5_client._commands._run.RETRY_FAULTS_AFTER", ())
    Path("later.jpg").write_bytes(b"later")
    assert main(["detect", "later.jpg", "--server", server, "--model", "plates"]) == 1
    assert json.loads(Path("runs/detect/exp/run.json").read_text())["options"]["model"] == "plates"
    Path("later.jpg").write_bytes(PHOTO.read_bytes())
    assert main(["detect", "--resume", "--server", server]) == 0
    assert seen == ["plates_ensemble", "plates_ensemble"]
    capsys.readouterr()
    assert main(["detect", "--resume", "--server", server, "--model", "cars"]) == 2
    assert "without it: --model." in capsys.readouterr().err


@pytest.mark.parametrize(
    "command", [["detect", str(PHOTO)], ["eval", "data.yaml"], ["status"], ["api"]]
)
def test_name_that_no_network_can_have_is_refused(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Path("images").mkdir()
    Path("images/a.jpg").write_bytes(PHOTO.read_bytes())
    Path("data.yaml").write_text("val: images\nnames: [a]\n")
    assert main([*command, "--model", "Plates"]) == 2
    assert "model is 'Plates'; allowed: up to 40 lower-case letters" in capsys.readouterr().err


def test_detect_says_that_the_server_lacks_the_endpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    refusal = http(json.dumps(UNKNOWN).encode(), status="400 Bad Request")
    with http_endpoints(lambda endpoint, image: refusal) as server:
        command = ["detect", str(PHOTO), "--server", server, "--model", "plates"]
        assert main([*command, "--retry-for", "0"]) == 3
    sentence = "the server has no endpoint 'plates_ensemble', or has not loaded it yet."
    assert sentence in capsys.readouterr().err
