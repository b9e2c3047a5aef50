"""The offline job on a cluster of three raylets, from a real S3 server, while everything is killed.

`BATCH_PHOTOS=20000` runs it with more photos than the default.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from s3_server import BUCKET, S3Server, running_s3
from support import PHOTOS, RunningServer, running_server, wait_until

pytest.importorskip("pyarrow", reason="pyarrow is not installed")
pytest.importorskip("ray", reason="Ray is not installed")

from yolov5_client import Client, Detections
from yolov5_client._batch.rows import read_table
from yolov5_client._batch.storage import Folder

COUNT = int(os.environ.get("BATCH_PHOTOS", "1500"))
PART = 20 if COUNT < 5000 else 100
SECONDS = 600 + COUNT // 4

pytestmark = [pytest.mark.server, pytest.mark.slow, pytest.mark.timeout(2 * SECONDS)]

EACH = sorted(PHOTOS.glob("*.jpg"))
SIDES = ("x1", "y1", "x2", "y2")
RESULTS = f"s3://{BUCKET}/results"


def store_photos() -> list[str]:
    """Put the photos into the bucket, again and again under other names; returns their keys."""
    import s3fs

    bucket = s3fs.S3FileSystem(skip_instance_cache=True)
    contents = [(path.name, path.read_bytes()) for path in EACH]

    def store(number: int) -> str:
        name, content = contents[number % len(contents)]
        path = f"{BUCKET}/photos/{number % 10}/{number:06d}-{name}"
        bucket.pipe_file(path, content)
        return f"s3://{path}"

    with ThreadPoolExecutor(8) as threads:
        return list(threads.map(store, range(COUNT)))


@contextmanager
def three_raylets() -> Iterator[Any]:
    from ray.cluster_utils import Cluster

    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
    )
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=1)
        yield cluster
    finally:
        cluster.shutdown()


class Job:
    """The command, which is started again as an operator would."""

    def __init__(self, cluster: Any, servers: list[RunningServer], log: Path) -> None:
        address = "ipv4:" + ",".join(server.grpc for server in servers)
        self._command = [
            *(sys.executable, "-m", "yolov5_client._cli", "batch"),
            *(f"s3://{BUCKET}/photos", RESULTS, "--part-size", str(PART), "--workers", "3"),
            *("--server", address, "--health", servers[0].health, "--address", cluster.address),
        ]
        self._log = log
        self._folder = Folder(RESULTS)
        self.start()

    def start(self) -> None:
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(self._command, stdout=log, stderr=log)

    def wait_for(self, share: float) -> None:
        """Wait until this share of the parts is done."""
        parts = COUNT / PART

        def is_there() -> bool:
            assert self.process.poll() in (None, 0), self._log.read_text()
            return len(self._folder.names("photos")) >= share * parts

        wait_until(is_there, SECONDS)


def kill_worker() -> None:
    workers = [
        process
        for process in psutil.process_iter(["cmdline"])
        if "MapWorker" in " ".join(process.info["cmdline"] or [])
    ]
    assert workers
    workers[0].kill()


def rows() -> list[dict[str, Any]]:
    folder = Folder(RESULTS)
    return [
        row
        for name in sorted(folder.names("photos"))
        for row in read_table(folder.read(f"photos/{name}")).to_pylist()
    ]


def assert_same(row: dict[str, Any], expected: Detections) -> None:
    assert row["error"] is None
    detections = row["detections"]
    assert [one["label"] for one in detections] == [*expected.labels]
    boxes = np.array([[one[side] for side in SIDES] for one in detections])
    np.testing.assert_allclose(boxes, expected.boxes, atol=1e-2)


def test_each_photo_has_one_row_whatever_is_killed(tmp_path: Path) -> None:
    with ExitStack() as held:
        (tmp_path / "s3").mkdir()
        s3 = held.enter_context(running_s3(tmp_path / "s3"))
        servers = [held.enter_context(running_server()) for _ in range(2)]
        keys = store_photos()
        cluster = held.enter_context(three_raylets())
        began = time.monotonic()
        job = Job(cluster, servers, tmp_path / "log")
        _kill_everything(job, cluster, servers, s3)
        assert job.process.wait(SECONDS) == 0, (tmp_path / "log").read_text()
        print(f"{COUNT} photos in {time.monotonic() - began:.0f} s")
        found = rows()
        counted = Counter(row["key"] for row in found)
        assert counted == Counter(keys)
        with Client(servers[0].grpc) as client:
            wanted = {path.name: client.detect(path) for path in EACH}
        for row in found:
            assert_same(row, wanted[row["key"].rsplit("-", 1)[1]])


def _kill_everything(job: Job, cluster: Any, servers: list[RunningServer], s3: S3Server) -> None:
    job.wait_for(0.1)
    kill_worker()
    job.wait_for(0.25)
    cluster.remove_node(cluster.list_all_nodes()[-1], allow_graceful=False)
    job.wait_for(0.4)
    os.kill(servers[0].processes("bin/tritonserver")[0], signal.SIGKILL)
    job.wait_for(0.55)
    s3.kill()
    time.sleep(20)
    s3.start()
    job.wait_for(0.7)
    job.process.kill()
    job.process.wait(20)
    job.start()
