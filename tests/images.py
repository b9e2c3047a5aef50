"""Container images, built and run without a registry and without a daemon.

The base is a Debian that debootstrap makes from the mirror of this machine; wheels come from where
this machine's pip gets them. Everything is in one folder, and gone with it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from support import ROOT

PROGRAMS = ("buildah", "debootstrap", "podman", "runc")
MINUTES = 60
BASE = "localhost/debian"
TIME = 1_700_000_000  # of everything in an image
# A folder with the wheels of both locks, for machines on which fetching them takes long.
WHEELS = os.environ.get("IMAGE_WHEELS")


def missing() -> str:
    """What keeps this machine from building images; empty if nothing does."""
    if os.geteuid() != 0:
        return "only root can make a Debian to build on"
    absent = [program for program in PROGRAMS if shutil.which(program) is None]
    return f"these are not installed: {', '.join(absent)}" if absent else ""


def output(*command: str | Path, minutes: float = 5) -> str:
    """Run the command to its end; its standard output.

    Raises:
        AssertionError: it failed, with the end of what it wrote.
    """
    ended = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=minutes * MINUTES
    )
    assert ended.returncode == 0, f"{command[:4]}: {ended.stdout[-4000:]}{ended.stderr[-4000:]}"
    return ended.stdout


def mirror() -> str:
    """Where apt gets Debian 12 from."""
    lines = output("apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE) $(COMPONENT)")
    for line in lines.splitlines():
        address, *rest = line.split()
        if rest == ["bookworm", "main"]:
            return address
    pytest.skip("apt knows no mirror of Debian 12")


@dataclass(frozen=True)
class Store:
    """A place for images and containers.

    Attributes:
        folder: holds all of it.
        wheels: folder with the packages of the locks.
    """

    folder: Path
    wheels: Path

    @property
    def flags(self) -> list[str]:
        return [f"--root={self.folder / 'images'}", f"--runroot={self.folder / 'run'}"]

    def buildah(self, *arguments: str | Path, minutes: float = 5) -> str:
        return output("buildah", *self.flags, *arguments, minutes=minutes)

    def podman(self, *arguments: str | Path) -> str:
        return output(*self.podman_command, *arguments)

    @property
    def podman_command(self) -> list[str]:
        return ["podman", *self.flags, "--cgroup-manager=cgroupfs", "--runtime=runc"]

    def make_base(self) -> None:
        """Make an image of Debian 12, the smallest that has apt."""
        root = self.folder / "debian"
        output("debootstrap", "--variant=minbase", "bookworm", root, mirror(), minutes=20)
        container = self.buildah("from", "scratch").strip()
        self.buildah("add", "--quiet", container, root, "/")
        self.buildah("commit", "--quiet", "--rm", container, BASE)
        shutil.rmtree(root)

    def build(self, dockerfile: str, tag: str, *arguments: str) -> None:
        """Build the image from this checkout, with all times in it set to the same."""
        flags = ["--isolation=chroot", "--format=docker", f"--timestamp={TIME}", f"--tag={tag}"]
        wheels = [f"--volume={self.wheels}:/wheels:ro", "--build-arg=PIP_NO_INDEX=1"]
        wheels += ["--build-arg=PIP_FIND_LINKS=/wheels", f"--build-arg=BASE={BASE}"]
        self.buildah("bud", *flags, *wheels, f"--file={dockerfile}", *arguments, ".", minutes=40)

    def inspect(self, tag: str) -> Any:
        return json.loads(self.podman("image", "inspect", tag))[0]

    @contextmanager
    def files(self, tag: str) -> Iterator[Path]:
        """The image's files, to be read only."""
        container = self.buildah("from", tag).strip()
        try:
            yield Path(self.buildah("mount", container).strip())
        finally:
            self.buildah("rm", container)


def fetch_wheels(folder: Path) -> Path:
    """Download the packages of the locks, as this machine's pip is set up; returns the folder."""
    for lock in ("requirements-server.lock", "build/image/sbom.lock"):
        output(
            *(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"),
            *("--only-binary=:all:", "--dest", folder, "--requirement", ROOT / lock),
            minutes=20,
        )
    return folder


@contextmanager
def store(folder: Path) -> Iterator[Store]:
    """A new store with a base and the wheels, removed at the end."""
    wheels = Path(WHEELS) if WHEELS else fetch_wheels(folder / "wheels")
    made = Store(folder, wheels)
    try:
        made.make_base()
        yield made
    finally:
        for program in ("podman", "buildah"):
            subprocess.run([program, *made.flags, "rm", "--all"], capture_output=True)
        subprocess.run(["buildah", *made.flags, "rmi", "--all", "--force"], capture_output=True)
        subprocess.run(["umount", "--lazy", folder / "images" / "overlay"], capture_output=True)
        shutil.rmtree(folder, ignore_errors=True)
