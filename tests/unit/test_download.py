from __future__ import annotations

import fcntl
import hashlib
import os
import random
import re
import shutil
import ssl
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from support import SHARED, free_ports

from yolov5_build import BuildError
from yolov5_build._download import Release, fetch, fetch_release, is_release_name, releases

BODY = random.Random(5).randbytes(200_000)
NAME = "fake.pt"


class Handler(BaseHTTPRequestHandler):
    server: Origin

    def do_GET(self) -> None:
        origin, headers = self.server, self.headers
        origin.asked.append((self.path, headers["Range"], headers["If-Range"]))
        if origin.statuses:
            self.send_error(origin.statuses.pop(0))
            return
        if origin.location and not self.path.startswith("/moved/"):
            self.send_response(302)
            self.send_header("Location", origin.location)
            self.end_headers()
            return
        start, end = 0, len(origin.body) - 1
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", headers["Range"] or "")
        if origin.ranges and asked and headers["If-Range"] in (None, origin.etag):
            start, end = int(asked[1]) - origin.shift, min(int(asked[2]), end)
            if start > end:
                self.send_error(416)
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{end}/{len(origin.body)}")
        else:
            self.send_response(200)
        if origin.etag:
            self.send_header("ETag", origin.etag)
        if not origin.endless:
            self.send_header("Content-Length", str(end + 1 - start))
        self.end_headers()
        cut = origin.cuts.pop(0) if origin.cuts else end + 1
        self.wfile.write(origin.body[start : min(cut, end + 1)])
        if not origin.gate.wait(60):
            raise TimeoutError
        try:
            while origin.endless:
                self.wfile.write(bytes(1 << 16))
        except ConnectionError:
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


class Origin(ThreadingHTTPServer):
    """A server of one file, with settings for its behaviour and a list of its requests."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.body = BODY
        self.etag = '"first"'
        self.ranges = True
        self.shift = 0  # number of bytes by which ranges begin too early
        self.endless = False  # without a length, and with zeros after the file's bytes
        self.location = ""  # of a redirect, unless the path begins with /moved/
        self.statuses: list[int] = []  # errors returned to the next requests
        self.cuts: list[int] = []  # positions at which the next responses are cut off
        self.gate = threading.Event()  # responses wait for it before they end
        self.gate.set()
        self.asked: list[tuple[str, str | None, str | None]] = []  # path, Range, If-Range

    def handle_error(self, *_: object) -> None:
        """Ignore errors, since clients hang up on purpose."""

    def release(self, body: bytes = BODY) -> Release:
        return Release(
            name=NAME,
            size=len(body),
            sha256=hashlib.sha256(body).hexdigest(),
            url=f"{self.url}/{NAME}",
        )

    @contextmanager
    def running(self) -> Iterator[Origin]:
        thread = threading.Thread(target=self.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield self
        finally:
            self.gate.set()
            self.shutdown()
            thread.join()
            self.server_close()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)


@pytest.fixture
def origin() -> Iterator[Origin]:
    with Origin().running() as running:
        yield running


def files_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_release_table_is_complete() -> None:
    assert len(releases()) == 10
    for name, release in releases().items():
        assert re.fullmatch(r"yolov5[nsmlx]6?\.pt", name)
        assert re.fullmatch(r"[0-9a-f]{64}", release.sha256)
        assert release.url.startswith("https://github.com/ultralytics/yolov5/releases/download/v7")
        assert release.url.endswith(f"/{name}")
    assert len({release.sha256 for release in releases().values()}) == 10
    assert releases()["yolov5n.pt"].size == 4_062_133


def test_release_names_are_recognised() -> None:
    for name in ("yolov5s", "yolov5s.pt", "yolov5x6", "yolov5x6.pt"):
        assert is_release_name(name), name
    for name in ("./yolov5s.pt", "/yolov5s", "a/yolov5s.pt", "best.pt", "yolov5", ".pt", "", "x/"):
        assert not is_release_name(name), name
    with pytest.raises(BuildError, match=r"^yolov8n is not a YOLOv5 release; .* yolov5n, .*x6\.$"):
        fetch_release("yolov8n")


def test_file_is_downloaded_to_the_cache(
    origin: Origin, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "new" / "cache"
    path = fetch(origin.release(), folder)
    assert path == folder / NAME
    assert path.read_bytes() == BODY
    assert files_in(folder) == [NAME, f"{NAME}.lock"]
    assert origin.asked == [(f"/{NAME}", None, None)]
    out, err = capsys.readouterr()
    assert not out
    assert err.splitlines() == [
        "fake.pt is licensed AGPL-3.0 by Ultralytics; this may bind what you serve with it.",
        f"Downloading {origin.url}/fake.pt (0.2 MB) ...",
        f"Downloaded {path}.",
    ]


def test_cached_file_needs_no_network(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Origin().running() as origin:
        release = origin.release()
        first = fetch(release, tmp_path)
    capsys.readouterr()
    assert fetch(release, tmp_path) == first
    assert capsys.readouterr().err == f"Using {first} (Ultralytics, AGPL-3.0).\n"

    first.write_bytes(BODY[:-1] + b"?")
    with pytest.raises(BuildError, match="cannot be downloaded"):
        fetch(release, tmp_path)


@pytest.mark.skipif(not SHARED.exists(), reason="needs an official release file")
def test_official_file_matches_the_table(tmp_path: Path) -> None:
    kept = tmp_path / "yolov5n.pt"
    kept.symlink_to(SHARED / "weights" / "yolov5n_v7.0.pt")
    assert fetch_release("yolov5n", cache=tmp_path, base_url="http://127.0.0.1:1") == kept


def test_damaged_cached_file_is_replaced(origin: Origin, tmp_path: Path) -> None:
    for damaged in (b"", BODY[:-1], BODY[:-1] + b"?"):
        (tmp_path / NAME).write_bytes(damaged)
        assert fetch(origin.release(), tmp_path).read_bytes() == BODY


def test_cache_folder_follows_the_environment(
    origin: Origin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    origin.statuses = [404] * 2
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    with pytest.raises(BuildError, match="HTTP 404"):
        fetch_release("yolov5s", base_url=origin.url)
    assert (tmp_path / "home" / ".cache" / "yolov5-triton").is_dir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    with pytest.raises(BuildError, match="HTTP 404"):
        fetch_release("yolov5m6.pt", base_url=f"{origin.url}/")
    assert (tmp_path / "xdg" / "yolov5-triton").is_dir()
    assert [path for path, *_ in origin.asked] == ["/yolov5s.pt", "/yolov5m6.pt"]


def test_interrupted_download_is_resumed(origin: Origin, tmp_path: Path) -> None:
    origin.cuts = [70_000, 130_000]
    assert fetch(origin.release(), tmp_path, delays=(0, 0)).read_bytes() == BODY
    assert [asked[1:] for asked in origin.asked] == [
        (None, None),
        ("bytes=70000-199999", '"first"'),
        ("bytes=130000-199999", '"first"'),
    ]


def test_later_call_resumes_the_part(origin: Origin, tmp_path: Path) -> None:
    origin.cuts = [70_000]
    with pytest.raises(BuildError, match="the connection ended early"):
        fetch(origin.release(), tmp_path, delays=())
    assert files_in(tmp_path) == [f"{NAME}.lock", f"{NAME}.part"]
    assert (tmp_path / f"{NAME}.part").read_bytes() == BODY[:70_000]
    assert fetch(origin.release(), tmp_path).read_bytes() == BODY
    assert origin.asked[1:] == [(f"/{NAME}", "bytes=70000-199999", '"first"')]


def test_range_is_requested_without_if_range_if_the_etag_is_weak(
    origin: Origin, tmp_path: Path
) -> None:
    for etag in ("", 'W/"weak"'):
        origin.etag, origin.cuts, origin.asked = etag, [70_000], []
        (tmp_path / NAME).unlink(missing_ok=True)
        assert fetch(origin.release(), tmp_path, delays=(0,)).read_bytes() == BODY
        assert [asked[1:] for asked in origin.asked] == [(None, None), ("bytes=70000-199999", None)]


def test_parts_of_two_versions_are_not_joined(origin: Origin, tmp_path: Path) -> None:
    origin.body, origin.etag, origin.cuts = bytes(len(BODY)), '"older"', [70_000]
    with pytest.raises(BuildError, match="the connection ended early"):
        fetch(origin.release(), tmp_path, delays=())
    origin.body, origin.etag, origin.cuts = BODY, '"newer"', [80_000]
    assert fetch(origin.release(), tmp_path, delays=(0,)).read_bytes() == BODY
    assert [asked[2] for asked in origin.asked] == [None, '"older"', '"newer"']


def test_server_without_ranges_sends_the_file_again(origin: Origin, tmp_path: Path) -> None:
    origin.ranges, origin.cuts = False, [70_000]
    assert fetch(origin.release(), tmp_path, delays=(0,)).read_bytes() == BODY
    assert len(origin.asked) == 2


def test_part_that_cannot_be_resumed_is_restarted(origin: Origin, tmp_path: Path) -> None:
    part = tmp_path / f"{NAME}.part"
    part.write_bytes(bytes(len(BODY) + 1))  # longer than the file
    assert fetch(origin.release(), tmp_path, delays=()).read_bytes() == BODY
    (tmp_path / NAME).unlink()

    part.write_bytes(BODY)  # complete, but not renamed yet
    origin.asked = []
    assert fetch(origin.release(), tmp_path, delays=()).read_bytes() == BODY
    assert origin.asked == []
    (tmp_path / NAME).unlink()

    for origin.statuses, origin.shift in (([416], 0), ([], 1)):
        part.write_bytes(BODY[:70_000])
        origin.asked = []
        assert fetch(origin.release(), tmp_path, delays=(0,)).read_bytes() == BODY
        assert [asked[1] for asked in origin.asked] == ["bytes=70000-199999", None]
        (tmp_path / NAME).unlink()


def test_other_content_is_refused(origin: Origin, tmp_path: Path) -> None:
    origin.body = bytes(len(BODY))
    release = origin.release()
    with pytest.raises(BuildError) as caught:
        fetch(release, tmp_path)
    assert str(caught.value) == (
        f"The download of {release.url} is not the official fake.pt: 200000 bytes with SHA-256 "
        f"{release.sha256} were expected, but the received ones have "
        f"{hashlib.sha256(origin.body).hexdigest()} and were deleted."
    )
    assert files_in(tmp_path) == [f"{NAME}.lock"]
    assert len(origin.asked) == 1


@pytest.mark.parametrize("count", [0, 12, 200_001, 5_000_000])
def test_other_length_is_refused_before_reading(origin: Origin, tmp_path: Path, count: int) -> None:
    origin.body = (BODY * 25)[:count]
    with pytest.raises(BuildError, match=rf"200000 bytes with SHA-256 .*, but {count} bytes are"):
        fetch(origin.release(BODY), tmp_path)
    assert files_in(tmp_path) == [f"{NAME}.lock"]


@pytest.mark.parametrize("ranges", [True, False])
def test_other_length_leaves_the_part(origin: Origin, tmp_path: Path, ranges: bool) -> None:
    origin.body, origin.ranges = BODY + b"?", ranges
    part = tmp_path / f"{NAME}.part"
    part.write_bytes(BODY[:10])
    with pytest.raises(BuildError, match="200001 bytes are offered"):
        fetch(origin.release(BODY), tmp_path)
    assert [asked[1] for asked in origin.asked] == ["bytes=10-199999"]
    assert part.read_bytes() == BODY[:10]


def test_reading_stops_at_the_size_of_the_file(origin: Origin, tmp_path: Path) -> None:
    origin.endless = True
    assert fetch(origin.release(), tmp_path).read_bytes() == BODY
    origin.body = bytes(len(BODY))
    (tmp_path / NAME).unlink()
    with pytest.raises(BuildError, match="the received ones have"):
        fetch(origin.release(BODY), tmp_path)
    assert files_in(tmp_path) == [f"{NAME}.lock"]


def test_missing_file_is_not_retried(origin: Origin, tmp_path: Path) -> None:
    origin.statuses = [404]
    with pytest.raises(BuildError) as caught:
        fetch(origin.release(), tmp_path)
    assert str(caught.value) == (
        f"fake.pt cannot be downloaded (HTTP 404 Not Found); download it yourself from "
        f"{origin.url}/fake.pt and give its path as WEIGHTS."
    )
    assert len(origin.asked) == 1


def test_busy_server_is_retried(origin: Origin, tmp_path: Path) -> None:
    origin.statuses = [503, 429]
    assert fetch(origin.release(), tmp_path, delays=(0, 0)).read_bytes() == BODY
    origin.statuses = [503] * 3
    (tmp_path / NAME).unlink()
    with pytest.raises(BuildError, match=r"\(HTTP 503 Service Unavailable\)"):
        fetch(origin.release(), tmp_path, delays=(0, 0))
    assert len(origin.asked) == 3 + 3


def test_stalled_server_times_out(origin: Origin, tmp_path: Path) -> None:
    origin.cuts = [70_000, 70_000]
    origin.gate.clear()
    with pytest.raises(BuildError, match=r"\(timed out\)"):
        fetch(origin.release(), tmp_path, timeout=0.2, delays=(0,))
    assert (tmp_path / f"{NAME}.part").read_bytes() == BODY[:70_000]
    assert len(origin.asked) == 2


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_unreachable_server_fails_quickly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    url = f"{scheme}://127.0.0.1:{free_ports(1)[0]}"
    started = time.monotonic()
    with pytest.raises(BuildError) as caught:
        fetch_release("yolov5s", cache=tmp_path, base_url=url)
    assert pauses == []
    assert time.monotonic() - started < 10
    assert str(caught.value) == (
        f"yolov5s.pt cannot be downloaded (Connection refused); download it yourself from "
        f"{url}/yolov5s.pt and give its path as WEIGHTS."
    )


def test_proxy_of_the_environment_is_used(
    origin: Origin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", origin.url)
    release = origin.release()
    elsewhere = Release(
        name=NAME, size=release.size, sha256=release.sha256, url="http://weights.invalid/fake.pt"
    )
    assert fetch(elsewhere, tmp_path).read_bytes() == BODY
    assert origin.asked == [("http://weights.invalid/fake.pt", None, None)]


def test_redirect_keeps_the_range(origin: Origin, tmp_path: Path) -> None:
    origin.location, origin.cuts = f"{origin.url}/moved/{NAME}", [70_000]
    assert fetch(origin.release(), tmp_path, delays=(0,)).read_bytes() == BODY
    assert origin.asked[3] == (f"/moved/{NAME}", "bytes=70000-199999", '"first"')


def test_redirect_to_another_protocol_is_refused(origin: Origin, tmp_path: Path) -> None:
    origin.location = "ftp://127.0.0.1/fake.pt"
    with pytest.raises(BuildError, match=r"\(its address leads to ftp, not https\); download it"):
        fetch(origin.release(), tmp_path)
    assert len(origin.asked) == 1
    with pytest.raises(BuildError, match="leads to file, not https"):
        fetch_release("yolov5s", cache=tmp_path, base_url=tmp_path.as_uri())


@pytest.fixture
def secure(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Origin]:
    """A server of the same file over TLS, with a trusted certificate."""
    if not shutil.which("openssl"):
        pytest.skip("needs the openssl command")
    folder = tmp_path_factory.mktemp("tls")
    subprocess.run(
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2"
        " -keyout key.pem -out certificate.pem -subj /CN=test -addext subjectAltName=IP:127.0.0.1",
        shell=True,
        check=True,
        cwd=folder,
        capture_output=True,
    )
    monkeypatch.setenv("SSL_CERT_FILE", str(folder / "certificate.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "certificate.pem", folder / "key.pem")
    origin = Origin()
    origin.socket = context.wrap_socket(origin.socket, server_side=True)
    origin.url = origin.url.replace("http:", "https:")
    with origin.running():
        yield origin


def test_file_is_downloaded_over_tls(secure: Origin, tmp_path: Path) -> None:
    secure.location, secure.cuts = f"{secure.url}/moved/{NAME}", [70_000]
    assert fetch(secure.release(), tmp_path, delays=(0,)).read_bytes() == BODY
    assert secure.asked[3] == (f"/moved/{NAME}", "bytes=70000-199999", '"first"')


def test_redirect_from_https_to_http_is_refused(
    secure: Origin, origin: Origin, tmp_path: Path
) -> None:
    secure.location = f"{origin.url}/moved/{NAME}"
    with pytest.raises(BuildError, match=r"\(its address leads to http, not https\); download it"):
        fetch(secure.release(), tmp_path)
    assert len(secure.asked) == 1
    assert origin.asked == []
    assert files_in(tmp_path) == [f"{NAME}.lock"]


def test_unknown_certificate_is_refused(
    secure: Origin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SSL_CERT_FILE")
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    started = time.monotonic()
    with pytest.raises(BuildError, match="certificate verify failed"):
        fetch(secure.release(), tmp_path)
    assert pauses == []
    assert time.monotonic() - started < 10
    assert secure.asked == []


def test_concurrent_calls_download_once(
    origin: Origin, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Threads instead of processes, since each of them opens the lock file itself."""
    origin.cuts = [70_000]
    origin.gate.clear()
    paths: list[Path] = []
    threads = [
        threading.Thread(
            target=lambda: paths.append(fetch(origin.release(), tmp_path, delays=(0,)))
        )
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    said, deadline = "", time.monotonic() + 20
    while "Waiting for another process that downloads fake.pt ..." not in said:
        assert time.monotonic() < deadline, said
        time.sleep(0.01)
        said += capsys.readouterr().err
    origin.gate.set()
    for thread in threads:
        thread.join()
    assert paths == [tmp_path / NAME] * 2
    assert paths[0].read_bytes() == BODY
    assert [asked[1] for asked in origin.asked] == [None, "bytes=70000-199999"]


def test_unwritable_folder_is_reported(origin: Origin, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(BuildError, match=rf"^fake.pt cannot be kept in {folder}: \w[\w ]+\.$"):
            fetch(origin.release(), folder)


def test_terminal_shows_one_bar_for_an_attempt(
    origin: Origin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / f"{NAME}.part").write_bytes(BODY[:100_000])
    terminal, user = os.openpty()
    fcntl.ioctl(user, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
    with open(user, "w", encoding="utf-8") as stderr:  # noqa: PTH123
        monkeypatch.setattr(sys, "stderr", stderr)
        fetch(origin.release(), tmp_path)
        shown = ""
        while shown.count("\n") < 2:
            shown += os.read(terminal, 1 << 16).decode()
        monkeypatch.undo()
    os.close(terminal)
    licence, line, end = shown.split("\r\n")
    assert "AGPL-3.0" in licence
    assert end == ""
    _, first, *_, last = line.split("\r")
    assert re.match(r"fake\.pt:  50%\|.*\| 100k/200k \[", first)
    assert re.fullmatch(r"fake\.pt: 100%\|.*\| 200k/200k \[00:00<00:00, [\d.]+[kM]?B/s\] *", last)
