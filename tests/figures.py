"""Figures of a server on a data set, as `yolov5-client eval` measures them."""

from __future__ import annotations

import json
from pathlib import Path

from support import RunningServer

from yolov5_client._cli import main


def figures(server: RunningServer, data: Path, folder: Path, *arguments: str) -> dict[str, object]:
    """What `eval` writes in `folder` on this YAML file's data set."""
    place = [f"--project={folder}", "--name=run", "--exist-ok"]
    assert main(["eval", str(data), f"--server={server.grpc}", *place, *arguments]) == 0
    answer: dict[str, object] = json.loads((folder / "run" / "results.json").read_text())
    return answer


def all_of(figures: object) -> dict[str, float]:
    """The figures of all classes together."""
    assert isinstance(figures, dict)
    total = figures["all"]
    assert isinstance(total, dict)
    return total
