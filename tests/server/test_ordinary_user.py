"""The server writes only to its temporary folder and shared memory."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from support import PHOTO, ROOT, SHARED_MEMORY, TRITON_FLAGS, ask_grpc, find_triton, running_server

USER = 61_000  # has no name, no home, and no file on this machine
# It may read everything, because Python may be in root's home, and write as any other user.
AS_USER = (
    *("setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups", "--no-new-privs"),
    *("--inh-caps=-all,+dac_read_search", "--ambient-caps=-all,+dac_read_search"),
    "--bounding-set=-all,+dac_read_search",
)
# As `make serve`; make itself refuses to start a Python that not every user may run.
SERVE = """export "$@"
exec "$0" -m yolov5_server $TRITON --repository="$REPOSITORY" --http-port="$HTTP_PORT" \\
  --grpc-port="$GRPC_PORT" --metrics-port="$METRICS_PORT" --health-port="$HEALTH_PORT"
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that every user may list, as Triton does before it reads."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


def owned() -> set[Path]:
    """The user's files, in all folders where it might have made some."""
    places = [ROOT, Path("/tmp"), Path("/var/tmp"), Path("/run"), Path("/home"), SHARED_MEMORY]
    command = [
        "find",
        *map(str, filter(Path.exists, places)),
        "-xdev",
        "-uid",
        str(USER),
        "-print0",
    ]
    # find complains about files that vanish meanwhile.
    found = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout
    return {Path(os.fsdecode(name)) for name in found.split(b"\0") if name}


def writable_by_others(place: Path) -> list[Path]:
    """Files and folders that every user may write to; links are not followed."""
    command = ["find", str(place), "-perm", "-o+w", "-not", "-type", "l", "-print0"]
    found = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout
    return [Path(os.fsdecode(name)) for name in found.split(b"\0") if name]


def test_ordinary_user_can_serve_from_a_tree_without_write_access(
    bundled_repository: Path, folder: Path
) -> None:
    if os.getuid() != 0:
        pytest.skip("only root can become another user")
    find_triton(folder)  # as the tree's owner did once
    if shutil.which("setpriv") is None:
        pytest.skip("setpriv is not installed")
    repository = Path(shutil.copytree(bundled_repository, folder / "model_repository"))
    temporary = folder / "temporary"
    temporary.mkdir(0o700)
    os.chown(temporary, USER, USER)
    assert [*writable_by_others(ROOT), *writable_by_others(repository)] == []
    before = owned()

    environment = ["env", f"TMPDIR={temporary}", "HOME=/nonexistent"]
    environment.append(f"TRITON={' '.join(TRITON_FLAGS)}")
    serve = ["sh", "-c", SERVE, sys.executable, f"REPOSITORY={repository}"]
    with running_server(command=[*AS_USER, *environment, *serve]) as server:
        assert ask_grpc(server.grpc, [PHOTO.read_bytes()])["num_dets"].item() == 11
        assert server.processes("tritonserver")
        users = {psutil.Process(pid).uids().effective for pid in server.descendants()}
        assert users == {USER}
        written = owned() - before
        assert written
        for path in written:
            # Triton's Python backend makes python_env_*, which stays empty.
            assert (
                path.is_relative_to(temporary)
                or path.name.startswith("yolov5_triton_")
                or (path.name.startswith("python_env_") and not any(path.iterdir()))
            ), path
        assert "warning" not in server.log.read_text()
        server.stop()
        deadline = time.monotonic() + 5
        while owned() != before:  # ended processes stay listed for a moment
            assert time.monotonic() < deadline, owned() - before
            time.sleep(0.1)
