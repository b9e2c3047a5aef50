"""Networks that the tests publish, and the servers that fetch them."""

from __future__ import annotations

import json
import shutil
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from support import (
    PHOTO,
    REPOSITORY,
    Fingerprint,
    RunningServer,
    ask_grpc,
    fingerprint,
    samples,
)

from yolov5_build._endpoint import endpoint_text
from yolov5_build._version import version_folder
from yolov5_build.publish import main as publish

SECONDS = 120.0  # for one change, on two busy cores
SQUARE, STRETCH = "square", "stretch"  # letterboxes, by which answers tell networks apart
EVERYTHING = {"conf_thres": 0.01}


@dataclass
class Published:
    """A place where networks are published, each as a version with a number of its own.

    Attributes:
        version: that was published last.
    """

    folder: Path
    place: str
    version: int = 0

    def put(self, letterbox: str, *, broken: bool = False) -> int:
        """Publish the bundled network with this letterbox, under the next number."""
        repository = self.make(letterbox, broken=broken)
        assert publish([self.place, f"--repository={repository}"]) == 0
        return self.version

    def make(self, letterbox: str, *, broken: bool = False) -> Path:
        """A repository with this network as the next version, with weights of its own to fetch."""
        self.version += 1
        repository = self.folder / f"v{self.version}" / "model_repository"
        shutil.copytree(REPOSITORY, repository, symlinks=True)
        network = repository / "yolov5"
        for config in network.rglob("*.pbtxt"):
            config.write_text(config.read_text().replace('"square"', f'"{letterbox}"'))
        version = version_folder(network)
        assert version is not None
        weights = version.rename(network / str(self.version))
        added = onnx.ModelProto()
        added.metadata_props.add(key="test", value=f"{self.version} of {self.place}")
        with (weights / "served.onnx").open("wb" if broken else "ab") as file:
            file.write(added.SerializeToString())  # of one message behind the other ONNX makes one
        return repository

    def make_plates(self) -> Path:
        """A repository with a further network, plates."""
        repository = self.make(SQUARE)
        shutil.copytree(repository / "yolov5", repository / "plates")
        for config in (repository / "plates").rglob("*.pbtxt"):
            config.write_text(config.read_text().replace('name: "yolov5"', 'name: "plates"'))
        endpoint = repository / "plates_ensemble" / "config.pbtxt"
        endpoint.parent.mkdir()
        endpoint.write_text(endpoint_text("plates", slot=1, max_batch_size=8))
        return repository


def answer(server: RunningServer) -> Fingerprint:
    return fingerprint(ask_grpc(server.grpc, [PHOTO.read_bytes()], EVERYTHING))


def wait_for(server: RunningServer, line: str, since: int = 0, seconds: float = SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while line not in server.log.read_text()[since:]:
        assert time.monotonic() < deadline, server.log.read_text()
        assert server.process.poll() is None, server.log.read_text()
        time.sleep(0.1)


def now_serving(version: int) -> str:
    return f"Now serving version {version} of the network"


def source_checks(server: RunningServer) -> dict[str, float]:
    found = samples(f"{server.health}/metrics", "yolov5_source_checks_total")
    return {one.labels["outcome"]: one.value for one in found}


def source_status(server: RunningServer) -> dict[str, Any]:
    with urllib.request.urlopen(f"{server.health}/models?memory=0", timeout=20) as reply:
        found: dict[str, Any] = json.load(reply)["source"]
    return found
