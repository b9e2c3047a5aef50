"""`make models`: what is installed, and what a running server serves of it."""

from __future__ import annotations

import json
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from empty_network import OPEN, write
from support import REPOSITORY, free_ports

from yolov5_build import install_onnx, models
from yolov5_build._kept import roll_back
from yolov5_build._plan import to_plan
from yolov5_build._record import Accuracy, read_record, write_record
from yolov5_build._served import ask_server
from yolov5_build._version import version_folder

SHA256 = "ab" * 32


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Two versions of `yolov5`, of which the second was measured, and one of `plates`."""
    folder = tmp_path / "repository"
    shutil.copytree(REPOSITORY / "yolov5_ensemble", folder / "yolov5_ensemble", symlinks=True)
    install(folder)
    accuracy = Accuracy(map50=0.8, map50_95=0.5405, photos=8)
    install(folder, bf16=True, accuracy=accuracy, options=["--data", "data.yaml"])
    install(folder, "plates", size=OPEN, letterbox="rect", imgsz=(96, 64))
    return folder


def install(repository: Path, name: str = "yolov5", *, size: Any = (96, 64), **how: Any) -> None:
    metadata = {"provenance": f"From {name}.pt, sha256 {SHA256}.", "precision": "fp32"}
    install_onnx(write(repository.parent, *size, metadata=metadata), repository, name=name, **how)
    folder = version_folder(repository / name)
    assert folder is not None
    record = read_record(folder)
    assert record is not None
    write_record(folder, replace(record, installed=f"2026-11-2{folder.name}T17:00:00Z"))


@contextmanager
def serving(answer: bytes, status: int = 200, pause: float = 0) -> Iterator[int]:
    """A port that answers to /models with this body."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = self.path == "/models"
            self.send_response(status if found else 404)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            for index in range(len(answer)):
                time.sleep(pause)
                try:
                    self.wfile.write(answer[index : index + 1])
                except OSError:
                    return

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=[0.02], daemon=True).start()
    yield server.server_port
    server.shutdown()
    server.server_close()


def entry(name: str, version: int | None, **facts: Any) -> dict[str, Any]:
    return {
        "name": name,
        "endpoint": f"{name}_ensemble",
        "version": version,
        "precision": "bf16",
        "ready": "reason" not in facts,
        "reason": None,
        "memory_bytes": 123_400_000,
        **facts,
    }


def listing(
    capsys: pytest.CaptureFixture[str], repository: Path, *entries: dict[str, Any]
) -> list[str]:
    """The lines of the command beside a server with these networks, or without a server."""
    if not entries:
        (port,) = free_ports(1)
        return run(capsys, repository, port)
    steps = [{"name": "preprocess", "memory_bytes": 150_000_000}, {"name": "postprocess"}]
    with serving(json.dumps({"models": entries, "steps": steps}).encode()) as port:
        return run(capsys, repository, port)


def run(capsys: pytest.CaptureFixture[str], repository: Path, port: int, *flags: str) -> list[str]:
    capsys.readouterr()
    assert models.main([f"--repository={repository}", f"--health-port={port}", *flags]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out.splitlines()


def test_table_shows_every_version_without_a_server(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (port,) = free_ports(1)
    assert run(capsys, repository, port) == [
        "NAME    VERSION  STATE      CLASSES      SIZE   LETTERBOX  PRECISION     SOURCE     "
        "INSTALLED (UTC)   MAP50-95  MEMORY",
        "yolov5  2        installed  2: car, bus  96x64  square     fp32 or bf16  yolov5.pt  "
        "2026-11-22 17:00  0.5405    -",
        "        1        kept       2: car, bus  96x64  square     fp32          yolov5.pt  "
        "2026-11-21 17:00  -         -",
        "plates  1        installed  2: car, bus  96x64  rect       fp32          plates.pt  "
        "2026-11-21 17:00  -         -",
        f"No server answers at 127.0.0.1:{port}.",
    ]


def test_server_tells_what_it_serves_and_takes(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, first, kept, plates, *notes = listing(
        capsys, repository, entry("yolov5", 2), entry("plates", 1, precision="fp32")
    )
    assert " served " in first and " bf16 " in first and first.endswith(" 123 MB")
    assert " kept " in kept and kept.endswith(" -")
    assert " served " in plates and " fp32 " in plates
    assert notes == ["All networks share preprocess 150 MB, postprocess -."]


@pytest.mark.parametrize(
    ("version", "reason", "note"),
    [
        (1, None, "yolov5: the server serves version 1, not 2."),
        (1, "no memory", "yolov5: the server serves version 1, not 2: no memory"),
        (None, "bad config", "yolov5: the server does not serve it: bad config"),
        (2, "it hangs\x1b[2J", "yolov5: version 2 is not ready: it hangs?[2J"),
    ],
)
def test_difference_between_server_and_repository_is_named(
    repository: Path,
    capsys: pytest.CaptureFixture[str],
    version: int | None,
    reason: str | None,
    note: str,
) -> None:
    served = entry("yolov5", version, reason=reason)
    _, first, second, *_, told, _ = listing(capsys, repository, served, entry("plates", 1))
    assert told == note
    assert (" served " in first, " served " in second) == (version == 2, version == 1)
    assert second.endswith(" 123 MB") == (version == 1)


def test_networks_that_only_one_of_the_two_has_are_named(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    *_, first, second, _ = listing(capsys, repository, entry("yolov5", 2), entry("cars", 1))
    assert first == "plates: the server does not know it."
    assert second == "cars: the server still serves it, but it is not installed any more."


def test_rolled_back_version_is_the_installed_one(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    roll_back(repository, "yolov5")
    _, first, second, *_ = listing(capsys, repository)
    assert first.split()[1:3] == ["1", "installed"]
    assert second.split()[:2] == ["2", "kept"]


def test_many_classes_are_cut_and_their_names_printable(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = "\x1b[2Jred\n" + "".join(f"class{number}\n" for number in range(79))
    (repository / "plates" / "labels.txt").write_text(labels)
    line = listing(capsys, repository)[3]
    assert " 80: ?[2Jred, class0, class1, ...  " in line


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        ("config.pbtxt", "config.pbtxt cannot be read: it is not valid."),
        ("labels.txt", "labels.txt cannot be read: No such file or directory."),
        ("1/model.onnx", "it has no weights; `make model` installs them."),
    ],
)
def test_damaged_network_is_listed_with_a_sentence(
    repository: Path, capsys: pytest.CaptureFixture[str], damage: str, sentence: str
) -> None:
    path = repository / "plates" / damage
    if damage == "config.pbtxt":
        path.write_text(path.read_text() + "}")
    else:
        path.unlink()
    *_, line, note, _ = listing(capsys, repository)
    assert line.split()[0] == "plates"
    assert note == f"plates, version 1: {sentence}"


def test_network_without_any_version_is_listed(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As in a clone of a repository whose weights are not in git."""
    shutil.rmtree(repository / "plates" / "1")
    *_, line, note, _ = listing(capsys, repository)
    assert line.split()[:3] == ["plates", "-", "installed"]
    assert note == "plates, version -: it has no weights; `make model` installs them."


def test_version_without_a_record_has_its_source_from_the_configuration(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (repository / "plates" / "1" / "installed.json").unlink()
    line = listing(capsys, repository)[3].split()
    assert line[-4:] == ["plates.pt", "-", "-", "-"]


def test_endpoint_that_no_server_can_serve_is_named(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = repository / "plates_ensemble" / "config.pbtxt"
    config.write_text(config.read_text().replace('"image_1"', '"image"'))
    assert listing(capsys, repository)[-2] == (
        "plates_ensemble and yolov5_ensemble both take image, of which one server can serve only"
        " one; remove and install plates again."
    )
    shutil.rmtree(config.parent)
    note = "plates_ensemble/config.pbtxt cannot be read: No such file or directory."
    assert listing(capsys, repository)[-2] == note


def test_plan_is_called_so(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = repository / "yolov5" / "config.pbtxt"
    config.write_text(to_plan(config.read_text(), "of a test"))
    assert " plan " in listing(capsys, repository)[1]


def test_json_holds_what_the_table_shows(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = {"models": [entry("yolov5", 2)], "steps": [{"name": "preprocess", "memory_bytes": 5}]}
    with serving(json.dumps(answer).encode()) as port:
        shown = json.loads("\n".join(run(capsys, repository, port, "--json")))
    assert shown["server"] is True
    assert shown["steps"] == {"preprocess": 5}
    first, second = shown["models"]
    assert (first["name"], first["endpoint"]) == ("yolov5", "yolov5_ensemble")
    assert first["served"] == {
        "version": 2,
        "precision": "bf16",
        "reason": None,
        "memory": 123_400_000,
    }
    assert first["versions"][0] == {
        "version": 2,
        "state": "served",
        "classes": ["car", "bus"],
        "size": [96, 64],
        "letterbox": "square",
        "precision": "fp32",
        "bf16": True,
        "fault": None,
        "installed": "2026-11-22T17:00:00Z",
        "file": "yolov5.pt",
        "sha256": SHA256,
        "options": ["--data", "data.yaml"],
        "map50": 0.8,
        "map50_95": 0.5405,
        "photos": 8,
    }
    assert [one["state"] for one in first["versions"]] == ["served", "kept"]
    assert (second["name"], second["served"]) == ("plates", None)
    assert [one["state"] for one in second["versions"]] == ["installed"]
    assert shown["notes"] == ["plates: the server does not know it."]
    (port,) = free_ports(1)
    shown = json.loads("\n".join(run(capsys, repository, port, "--json")))
    assert (shown["server"], shown["steps"]) == (False, {})
    assert shown["notes"] == [f"No server answers at 127.0.0.1:{port}."]


def test_port_for_probes_follows_that_of_metrics(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(b'{"models": []}') as port:
        assert models.main([f"--repository={repository}", f"--metrics-port={port - 1}"]) == 0
    assert "No server answers" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (b'{"models": []}', 404),
        (b"<html>", 200),
        (b"[]", 200),
        (b'{"models": 3}', 200),
        (b"[" * 100_000, 200),
    ],
)
def test_other_programs_are_no_server(answer: bytes, status: int) -> None:
    with serving(answer, status) as port:
        assert ask_server("127.0.0.1", port) is None


def test_answer_of_a_server_is_read_as_data() -> None:
    entries = [1, {}, {"name": 2}, {"name": "a", "version": "x", "memory_bytes": True}]
    with serving(json.dumps({"models": entries, "steps": 7}).encode()) as port:
        server = ask_server("127.0.0.1", port)
    assert server is not None and server.steps == {}
    assert list(server.networks) == ["a"]
    assert (server.networks["a"].version, server.networks["a"].memory) == (None, None)


@pytest.mark.parametrize("kind", ["silent", "slow"])
def test_server_that_does_not_answer_is_waited_for_a_second(kind: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent, serving(b" " * 99, pause=0.1) as slow:
        port = silent.getsockname()[1] if kind == "silent" else slow
        started = time.monotonic()
        assert ask_server("127.0.0.1", port) is None
        assert 0.9 < time.monotonic() - started < 3
