"""Networks from a bucket, through a proxy, while the source fails and changes."""

from __future__ import annotations

import hashlib
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
from published_networks import (
    SECONDS,
    SQUARE,
    STRETCH,
    Published,
    answer,
    now_serving,
    source_checks,
    source_status,
    wait_for,
)
from s3_server import BUCKET, KEY, SECRET, Proxy, S3Server, proxy_to
from support import (
    PHOTO,
    Fingerprint,
    RunningServer,
    ready,
    running_server,
    samples,
    wait_until,
)

from yolov5_build.publish import main as publish
from yolov5_client import Client
from yolov5_server.source import object_name


@dataclass
class Site:
    """A server whose networks come from a bucket, through a proxy."""

    s3: S3Server
    proxy: Proxy
    published: Published
    server: RunningServer

    letterbox: str = SQUARE

    @property
    def other(self) -> str:
        """The letterbox that the served network does not have."""
        return SQUARE if self.letterbox == STRETCH else STRETCH

    def publish(self) -> int:
        """Publish the other network past the proxy, and wait until the server serves it."""
        since = len(self.server.log.read_text())
        version = self.published.put(self.other)
        self.letterbox = self.other
        wait_for(self.server, now_serving(version), since)
        return version


@pytest.fixture(scope="module")
def site(s3: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """For tests that leave a server with a healthy source."""
    folder = tmp_path_factory.mktemp("site")
    published = Published(folder, f"s3://{BUCKET}/site")
    published.put(SQUARE)
    with proxy_to(s3.port) as proxy, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        flags = [f"--model-source={published.place}", f"--model-cache={folder / 'cache'}"]
        with running_server(*flags, "--model-source-poll=1") as server:
            patch.setenv("AWS_ENDPOINT_URL", s3.endpoint)
            yield Site(s3, proxy, published, server)


def test_server_starts_from_a_bucket(site: Site) -> None:
    version = site.published.version
    assert f"Installed version {version} of yolov5 from s3://{BUCKET}/site" in (
        site.server.log.read_text()
    )
    assert answer(site.server)[0] > 0
    status = source_status(site.server)
    assert (status["url"], status["reason"]) == (f"s3://{BUCKET}/site", None)
    assert status["networks"]["yolov5"]["version"] == version
    assert source_checks(site.server)["installed"] == 1
    (success,) = samples(
        f"{site.server.health}/metrics", "yolov5_source_last_success_timestamp_seconds"
    )
    assert time.time() - success.value < 60
    for secret in (KEY, SECRET):
        assert secret not in site.server.log.read_text()


def test_wrong_checksum_is_refused_and_the_old_network_goes_on(site: Site) -> None:
    import s3fs

    before, since = answer(site.server), len(site.server.log.read_text())
    repository = site.published.make(site.other)
    weights = repository / "yolov5" / str(site.published.version) / "served.onnx"
    content = bytearray(weights.read_bytes())
    name = object_name(hashlib.sha256(content).hexdigest())
    content[1000] ^= 1
    bucket = s3fs.S3FileSystem(skip_instance_cache=True)
    bucket.pipe_file(f"{BUCKET}/site/{name}", bytes(content))  # not written again: it has the size
    assert publish([site.published.place, f"--repository={repository}"]) == 0
    wait_for(site.server, "has the SHA-256", since)
    assert answer(site.server) == before
    assert ready(site.server) == (True, "")
    assert "served.onnx has the SHA-256" in source_status(site.server)["reason"]
    assert source_checks(site.server)["refused"] > 0
    bucket.rm_file(f"{BUCKET}/site/{name}")
    site.publish()
    assert answer(site.server) != before
    assert source_status(site.server)["reason"] is None


def test_connection_that_is_cut_is_made_again_and_no_half_network_is_served(site: Site) -> None:
    before, cut = answer(site.server), site.proxy.was_cut
    site.proxy.cuts = 3
    failed = source_checks(site.server)["failed"]
    site.publish()
    assert site.proxy.was_cut == cut + 3
    assert source_checks(site.server)["failed"] == failed
    assert answer(site.server) != before


def test_slow_source_is_waited_for(site: Site) -> None:
    before = answer(site.server)
    site.proxy.pause = 0.06  # the 7 MB that are new, in more than 4 s
    try:
        started = time.monotonic()
        site.publish()
        assert time.monotonic() - started > 4
    finally:
        site.proxy.pause = 0.0
    assert answer(site.server) != before


def source_is_away(site: Site, seconds: float) -> None:
    """Kill the S3 server for so long, and publish the next network when it is back."""
    before, since = answer(site.server), len(site.server.log.read_text())
    failed = source_checks(site.server)["failed"]
    ended = time.monotonic() + seconds
    with callers(site.server, 2) as (answers, failures):
        site.s3.kill()
        while time.monotonic() < ended:
            assert ready(site.server) == (True, "")
            time.sleep(0.5)
        wait_until(lambda: source_checks(site.server)["failed"] > failed, SECONDS)
        assert set(answers) == {before}
        site.s3.start()
        site.publish()
        last = answer(site.server)
    assert failures == []
    assert set(answers) <= {before, last}
    log = site.server.log.read_text()[since:]
    assert log.count("was not taken over: s3://") == 1, log
    assert "is taken over again" in log


def test_source_that_is_away_harms_nobody(site: Site) -> None:
    source_is_away(site, 10)


@pytest.mark.slow
def test_source_that_is_away_for_a_minute_harms_nobody(site: Site) -> None:
    source_is_away(site, 60)


@contextmanager
def callers(
    server: RunningServer, count: int, pause: float = 0.05
) -> Iterator[tuple[Counter[Fingerprint], list[str]]]:
    """Callers with the client of this project, which sends again what it may, while the block runs.

    Yields:
        How often each answer came, and what failed.
    """
    done, answers, failures = threading.Event(), Counter[Fingerprint](), list[str]()
    image = PHOTO.read_bytes()

    def ask() -> None:
        with Client(server.grpc, retry_for=20) as client:
            while not done.wait(pause):
                try:
                    found = client.detect(image, conf_thres=0.01)
                    answers[len(found.scores), round(float(found.scores.sum()), 2)] += 1
                except Exception as error:
                    failures.append(repr(error))

    threads = [threading.Thread(target=ask) for _ in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield answers, failures
    finally:
        done.set()
        for thread in threads:
            thread.join()


def test_no_request_fails_while_the_network_is_replaced_twice(site: Site) -> None:
    seen = [answer(site.server)]
    with callers(site.server, 8) as (answers, failures):
        for _ in range(2):
            site.publish()
            seen.append(answer(site.server))
        time.sleep(0.5)
    print(f"{answers}")
    assert failures == []
    assert set(answers) == {*seen}
    assert min(answers.values()) > 8


def test_network_that_triton_does_not_load_is_put_back(site: Site) -> None:
    before, since = answer(site.server), len(site.server.log.read_text())
    kept = source_status(site.server)["networks"]
    site.published.put(site.other, broken=True)
    wait_for(site.server, "The new network was not loaded, the old one is still served:", since)
    wait_for(site.server, "which was fetched before, is installed again.", since)
    assert source_status(site.server)["networks"] == kept
    assert answer(site.server) == before
    # Triton starts again with the earlier network.
    os.kill(site.server.processes("bin/tritonserver")[0], signal.SIGKILL)
    wait_for(site.server, "Triton is back after", since)
    assert answer(site.server) == before
    site.publish()
    assert source_status(site.server)["reason"] is None
