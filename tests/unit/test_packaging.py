"""The client alone is small to install and to import, and all packages have one version."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.metadata import requires

import pytest
from hatchling.metadata.core import ProjectMetadata
from hatchling.plugin.manager import PluginManager
from packaging.requirements import Requirement
from support import ROOT

import yolov5_client

HEAVY = {
    "cv2",
    "httpx",
    "matplotlib",
    "onnx",
    "onnxruntime",
    "pandas",
    "pycocotools",
    "scipy",
    "supervision",
    "torch",
    "torchvision",
    "yaml",
}


def closure(name: str, *extras: str) -> set[str]:
    """All that pip installs with a package, by the names of the distributions."""
    found: set[str] = set()
    queue = [(name, "")] + [(name, extra) for extra in extras]
    seen = set(queue)
    while queue:
        name, extra = queue.pop()
        found.add(name)
        for text in requires(name) or ():
            wanted = Requirement(text)
            if wanted.marker and not wanted.marker.evaluate({"extra": extra}):
                continue
            for more in ("", *wanted.extras):
                one = (wanted.name.lower().replace("_", "-"), more)
                if one not in seen:
                    seen.add(one)
                    queue.append(one)
    return found


def test_what_installing_the_client_brings() -> None:
    brought = closure("yolov5-client")
    assert {"numpy", "tritonclient", "grpcio", "tqdm"} <= brought
    assert not brought & HEAVY
    assert not {name for name in brought if "opencv" in name or "cuda" in name}
    # What the test relies on to find something at all:
    assert "opencv-python-headless" in closure("yolov5-client", "draw")
    assert "httpx" in closure("yolov5-client", "http")


def test_what_importing_the_client_brings() -> None:
    script = (
        "import sys; import yolov5_client, yolov5_client._cli; "
        f"print(sorted({HEAVY!r} & sys.modules.keys()), 'tritonclient.grpc' in sys.modules)"
    )
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (answer.stdout, answer.stderr) == ("[] True\n", "")


@pytest.mark.parametrize("folder", [".", "client"])
def test_every_package_has_the_version_of_the_client(folder: str) -> None:
    project = ProjectMetadata(str(ROOT / folder), PluginManager())
    assert project.version == yolov5_client.__version__


def test_the_changelog_begins_with_the_version() -> None:
    headings = re.findall(r"^## \[([^]]+)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[:2] == ["Unreleased", yolov5_client.__version__]
