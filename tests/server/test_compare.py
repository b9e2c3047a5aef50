"""`yolov5-client compare` against a real server, and a network that it does not have."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from support import PHOTO, PHOTOS, RunningServer

from yolov5_client import AsyncClient, Client, UnknownModelError
from yolov5_client._cli import main

LACKS = r"^the server has no endpoint 'plates_ensemble', or has not loaded it yet\.$"


def test_network_agrees_with_itself_over_both_transports(
    server: RunningServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"hello")
    command = ["compare", "yolov5", "yolov5", str(PHOTOS), str(tmp_path / "broken.jpg")]
    command += ["--server", server.grpc, "--server-b", server.http]
    command += ["--min-agreement", "1", "--save", str(tmp_path / "none"), "--json", "-"]
    assert main(command) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["agreement"] == 1.0
    assert figures["photos"] == 8
    total = figures["total"]
    assert (total["found_a"], total["found_b"], total["matched"]) == (130, 130, 130)
    assert (total["score_shift_max"], total["mean_iou"]) == (0.0, 1.0)
    assert [*figures["classes"]] == ["Platelets", "RBC", "WBC"]
    (left_out,) = figures["left_out"]
    assert left_out["a"] == left_out["b"]
    assert left_out["a"].startswith("not an image of a supported format; ")
    assert figures["largest_disagreements"] == []
    assert [*(tmp_path / "none").iterdir()] == []


def test_network_that_the_server_does_not_have_is_named(
    server: RunningServer, capsys: pytest.CaptureFixture[str]
) -> None:
    async def asking(address: str) -> None:
        async with AsyncClient(address, model="plates") as client:
            await client.detect(PHOTO)

    for address in (server.grpc, server.http):
        with Client(address, model="plates") as client:
            with pytest.raises(UnknownModelError, match=LACKS):
                client.detect(PHOTO)
            assert client.status().models == {"plates_ensemble": False}
        with pytest.raises(UnknownModelError, match=LACKS):
            asyncio.run(asking(address))
        for command in (
            ["detect", str(PHOTO), "--model", "plates"],
            ["compare", "yolov5", "plates"],
        ):
            source = [str(PHOTO)] if command[0] == "compare" else []
            assert main([*command, *source, "--server", address]) == 3
            assert "the server has no endpoint 'plates_ensemble'" in capsys.readouterr().err
        assert main(["status", "--server", address, "--model", "yolov5", "plates"]) == 3
        lines = capsys.readouterr().out.splitlines()
        assert lines[1] == "  yolov5_ensemble: ready"
        assert lines[2].startswith("  plates_ensemble: NOT READY, the server has no endpoint")
