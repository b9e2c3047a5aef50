"""Starts of a launcher from a bucket, an https address and a folder, and without them."""

from __future__ import annotations

import http.server
import os
import signal
import ssl
import subprocess
import sys
import threading
import time
import urllib.request
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import trustme
from published_networks import (
    SQUARE,
    STRETCH,
    Published,
    answer,
    now_serving,
    source_status,
    wait_for,
)
from s3_server import BUCKET, KEY, SECRET, S3Server, proxy_to
from support import (
    PHOTO,
    ROOT,
    free_ports,
    ready,
    running_server,
    wait_for_ended,
)

from yolov5_build.publish import main as publish
from yolov5_client import Client


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
            launch(*flags), capture_output=True, text=True, timeout=120, cwd=ROOT
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
        timeout=120,
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
    done = subprocess.run(launch(*flags), capture_output=True, text=True, timeout=120, cwd=ROOT)
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
