"""A checkout of the project: its programs, and a model repository of its own steps."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from yolov5_client._contract import endpoint_for

from ._load import MODEL

_STEPS = ("preprocess", "postprocess")
_PACKAGES = ("bench", "build", "client", "server")  # as the editable install adds them
_BUILD = (
    "import json, sys; from yolov5_build.cli import main;"
    " sys.exit(max(main(one) for one in json.load(sys.stdin)))"
)


@dataclass(frozen=True)
class Checkout:
    """A folder with the project's sources.

    Its programs run with its own `.venv`; without one they share the packages of this process.
    """

    root: Path

    @property
    def python(self) -> str:
        own = self.root / ".venv" / "bin" / "python"
        return str(own) if own.exists() else sys.executable

    @property
    def environment(self) -> dict[str, str]:
        """Variables with which this checkout's packages are found before any other's."""
        packages = [str(self.root / name) for name in _PACKAGES]
        return {**os.environ, "PYTHONPATH": os.pathsep.join(packages)}

    def copy_steps(self, repository: Path, model: str = MODEL) -> None:
        """Copy the steps around the network. No installed network is measured, or takes memory.

        A server always has the network `yolov5`, so beside another one it is copied as well.
        """
        kept = [*_STEPS, endpoint_for(MODEL), *([MODEL] if model != MODEL else [])]
        for name in kept:
            shutil.copytree(self.root / "model_repository" / name, repository / name)

    def install(self, commands: Sequence[Sequence[str]]) -> None:
        """Run this checkout's `make model` with each of these lists of arguments.

        Raises:
            RuntimeError: one of them fails; its standard error says why.
        """
        done = subprocess.run(
            [self.python, "-c", _BUILD],
            input=json.dumps([*map(list, commands)]),
            text=True,
            stdout=subprocess.DEVNULL,
            env=self.environment,
        )
        if done.returncode:
            raise RuntimeError(f"{self.root.name} could not install the networks")


HERE = Checkout(Path(__file__).parents[2])
