"""Networks from a bucket, an https address and a folder, while the source fails and changes."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import shutil
import signal
import ssl
import subprocess
import sys
import threading
import time
import urllib.request
from base64 import b64encode
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import onnx
import pytest
import trustme
from s3_server import BUCKET, KEY, SECRET, Proxy, S3Server, proxy_to, running_s3
from support import (
    PHOTO,
    REPOSITORY,
    ROOT,
    Fingerprint,
    RunningServer,
    ask_grpc,
    fingerprint,
    free_ports,
    ready,
    running_server,
    samples,
    wait_for_ended,
    wait_until,
)

from yolov5_build._endpoint import endpoint_text
from yolov5_build._version import version_folder
from yolov5_build.publish import main as publish
from yolov5_client import Client
from yolov5_server.source import object_name

SECONDS = 60.0  # for one change, on two busy cores
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
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with running_s3(tmp_path_factory.mktemp("s3")) as server:
        yield server


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
    site.proxy.pause = 0.02  # 14 MB in more than 4 s
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


def test_launcher_starts_with_what_it_fetched_before(s3: S3Server, tmp_path: Path) -> None:
    """First the source holds a network that Triton does not load, then it is away."""
    published = Published(tmp_path, f"s3://{BUCKET}/second")
    published.put(SQUARE)
    flags = [f"--model-source={published.place}", f"--model-cache={tmp_path / 'cache'}"]
    with running_server(*flags) as server:
        expected = answer(server)
    wait_for_ended()
    published.put(STRETCH, broken=True)
    with running_server(*flags) as server:
        log = server.log.read_text()
        assert "Version 1 of yolov5, which was fetched before, is installed again." in log
        assert answer(server) == expected
        assert "The server did not load" in source_status(server)["reason"]
        second = subprocess.run(
            launch(*flags), capture_output=True, text=True, timeout=60, cwd=ROOT
        )
        assert second.returncode == 1
        assert "is in use by another launcher" in second.stderr
    wait_for_ended()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_ports(1)[0]}")
        with running_server(*flags) as server:
            log = server.log.read_text()
            assert "The networks that were fetched before are served: version 1" in log
            assert answer(server) == expected
            assert "cannot be read" in source_status(server)["reason"]


def launch(*flags: str) -> list[str]:
    """The command of a launcher on free ports."""
    names = ("http-port", "grpc-port", "metrics-port", "health-port")
    ports = [f"--{name}={port}" for name, port in zip(names, free_ports(4))]
    return [sys.executable, "-m", "yolov5_server", *ports, *flags]


def test_launcher_without_a_cache_waits_for_its_source(s3: S3Server, tmp_path: Path) -> None:
    published = Published(tmp_path, f"s3://{BUCKET}/late")
    published.put(SQUARE)
    with proxy_to(free_ports(1)[0]) as proxy, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        flags = [f"--model-source={published.place}", f"--model-cache={tmp_path / 'cache'}"]
        with running_server(*flags, wait=False) as server:
            wait_for(server, "was not taken over: s3://")
            is_ready, reason = ready(server)
            assert not is_ready
            assert reason.startswith("It waits for the model source: s3://")
            with urllib.request.urlopen(f"{server.health}/live", timeout=20) as reply:
                assert reply.status == 200
            proxy.target = s3.port
            server.wait_ready()
            assert answer(server)[0] > 0


def test_signal_ends_a_launcher_that_waits_for_its_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_ports(1)[0]}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    flags = ["--model-source=s3://models", f"--model-cache={tmp_path}"]
    with running_server(*flags, wait=False) as server:
        wait_for(server, "was not taken over: s3://")
        assert server.stop() < 10
        assert server.process.returncode == 0


@pytest.mark.parametrize(
    "source, variables, sentence",
    [
        (f"s3://{BUCKET}/nothing", {}, "models.json is not there"),
        ("s3://nobucket/nothing", {}, "models.json is not there"),
        (f"s3://{BUCKET}/wrong", {"AWS_SECRET_ACCESS_KEY": "no"}, "may not be read with these"),
        (f"s3://{BUCKET}/wrong", {"AWS_ACCESS_KEY_ID": "no"}, "may not be read with these"),
        (f"s3://{BUCKET}/bad", {}, "models.json is not JSON"),
        ("ftp://host/models", {}, "MODEL_SOURCE is 'ftp://host/models'; allowed: s3://bucket"),
        ("https://u:p@host/x?y", {}, "MODEL_SOURCE is 'https://host/x?y'; allowed: s3://bucket"),
        ("no/such/folder", {}, "no/such/folder/models.json cannot be read: No such file"),
    ],
)
def test_wrong_source_ends_the_first_start_with_a_sentence(
    s3: S3Server, source: str, variables: dict[str, str], sentence: str, tmp_path: Path
) -> None:
    import s3fs

    s3fs.S3FileSystem(skip_instance_cache=True).pipe_file(f"{BUCKET}/bad/models.json", b"{nonsense")
    started = subprocess.run(
        launch(f"--model-source={source}", f"--model-cache={tmp_path}"),
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=60,
        cwd=ROOT,
    )
    assert started.returncode == 1
    last = started.stderr.splitlines()[-1]
    assert last.startswith("error: ") and sentence in last
    assert "Traceback" not in started.stderr


@contextmanager
def https_server(folder: Path, authority: trustme.CA) -> Iterator[str]:
    """A server of the files in a folder, with TLS."""
    handler = partial(Handler, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"https://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


class Handler(http.server.SimpleHTTPRequestHandler):
    """Files for those who know the password, and addresses that lead elsewhere."""

    def do_GET(self) -> None:
        name, _, rest = self.path.removeprefix("/").partition("/")
        if name in ("http", "circle"):
            self.send_response(302)
            to = "http://127.0.0.1:9/" if name == "http" else f"/circle/x{rest}"
            self.send_header("Location", to)
            self.end_headers()
        elif self.headers["Authorization"] != f"Basic {b64encode(b'me:password').decode()}":
            self.send_error(401)
        else:
            super().do_GET()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


def refusal(*flags: str) -> str:
    """How the first start of a launcher ends, a sentence."""
    done = subprocess.run(launch(*flags), capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert done.returncode == 1
    return done.stderr.splitlines()[-1]


def test_https_is_a_source_if_its_certificate_is_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published = Published(tmp_path, str(tmp_path / "published"))
    published.put(SQUARE)
    authority = trustme.CA()
    cache = f"--model-cache={tmp_path / 'cache'}"
    with https_server(tmp_path / "published", authority) as address:
        assert "CERTIFICATE_VERIFY_FAILED" in refusal(f"--model-source={address}", cache)
        authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
        for path, sentence in (
            ("", "may not be read with these credentials"),
            ("/http", "leads to an address without https"),
            ("/circle", "cannot be read"),
        ):
            assert sentence in refusal(f"--model-source={address}{path}", cache)
        netrc = tmp_path / "netrc"
        netrc.write_text("machine 127.0.0.1 login me password password\n")
        with monkeypatch.context() as patch:
            patch.setenv("NETRC", str(netrc))
            assert "models.json is not there" in refusal(f"--model-source={address}/none", cache)
        with_password = address.replace("//", "//me:password@")
        flags = [f"--model-source={with_password}", cache, "--model-source-poll=1"]
        with running_server(*flags) as server:
            before = answer(server)
            version = published.put(STRETCH)
            wait_for(server, now_serving(version))
            assert answer(server) != before
            assert source_status(server)["url"] == address
            assert "password" not in server.log.read_text()


def test_folder_is_a_source_and_a_signal_lets_the_launcher_look(tmp_path: Path) -> None:
    published = Published(tmp_path, str(tmp_path / "published"))
    published.put(SQUARE)
    flags = [f"--model-source={published.place}", f"--model-cache={tmp_path / 'a cache'}"]
    with running_server(*flags, "--model-source-poll=0") as server:
        before = answer(server)
        version = published.put(STRETCH)
        time.sleep(2)
        assert now_serving(version) not in server.log.read_text()
        server.process.send_signal(signal.SIGUSR1)
        wait_for(server, now_serving(version))
        assert answer(server) != before
        # A further network comes and goes.
        repository = published.make_plates()
        plates = [published.place, "--name=plates", f"--repository={repository}"]
        assert publish(plates) == 0
        server.process.send_signal(signal.SIGUSR1)
        wait_for(server, f"Now serving version {published.version} of plates")
        with Client(server.grpc, model="plates") as client:
            assert len(client.detect(PHOTO).scores)
        assert publish([*plates, "--remove"]) == 0
        server.process.send_signal(signal.SIGUSR1)
        wait_for(server, "plates_ensemble was removed.")
        assert answer(server) != before
