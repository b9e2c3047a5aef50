"""`yolov5-client detect` against a real server."""

from __future__ import annotations

import base64
import csv
import fcntl
import io
import json
import os
import pty
import shutil
import signal
import socket
import struct
import subprocess
import sys
import termios
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from proxy import Proxy
from support import PHOTO, PHOTOS, RunningServer, free_ports, reference, running_server

from yolov5_client._cli import main
from yolov5_client._commands import _run

REFERENCE = reference(Path(__file__).parents[1] / "data" / "bccd_reference.json")
EACH = sorted(PHOTOS.iterdir())
# Two photos that differ in what is on them; which is told by the number of detections.
ONE, OTHER = PHOTO, PHOTOS / "BloodImage_00011.jpg"
COUNT = {path: len(REFERENCE[path.name]) for path in (ONE, OTHER)}


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Change to a folder of its own, since runs are written to the working directory."""
    monkeypatch.chdir(tmp_path)


def detect(server: RunningServer, *arguments: str | Path) -> int:
    return main(["detect", "--server", server.grpc, *map(str, arguments)])


def start(server: RunningServer, *arguments: str | Path, **options: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "yolov5_client._cli", "detect", "--server", server.grpc]
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [*command, *map(str, arguments)],
        stdout=pipe,
        stderr=pipe,
        text=True,
        **options,
    )


def journal(folder: str = "exp") -> list[dict[str, Any]]:
    text = Path("runs", "detect", folder, "results.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def wait_for(condition: Callable[[], object], timeout: float = 60) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "it has not come about"
        time.sleep(0.005)


def make_video(path: Path, frames: int, code: str = "mp4v") -> list[int]:
    """Write a video of two photos in turn, ten frames each; return the detections per frame."""
    pictures = [cv2.imread(str(photo)) for photo in (ONE, OTHER)]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*code), 12.0, (640, 480))
    for number in range(frames):
        picture = pictures[number // 10 % 2]
        assert picture is not None
        writer.write(picture)
    writer.release()
    return [number // 10 % 2 for number in range(frames)]


def which(line: dict[str, Any]) -> int:
    """0 for `ONE`, 1 for `OTHER`, by the box of the white cell."""
    x1 = line["boxes"][line["labels"].index("WBC")][0]
    wanted = [float(REFERENCE[path.name][0][0]) for path in (ONE, OTHER)]
    return int(abs(x1 - wanted[1]) < abs(x1 - wanted[0]))


# -- sources ---------------------------------------------------------------------------------


@contextmanager
def file_server(folder: Path, on_request: Callable[[], object] = bool) -> Iterator[str]:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            on_request()
            super().do_GET()

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_one_run_takes_every_kind_of_source(
    server: RunningServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "in" / "sub").mkdir(parents=True)
    shutil.copy(EACH[0], "in/a.jpg")
    shutil.copy(EACH[1], "in/sub/b.jpg")
    shutil.copy(EACH[2], "c.upload")
    Path("broken.jpg").write_bytes(b"hello")
    Path("list.txt").write_text(f"# two\n{EACH[3]}\nnone.jpg\n")
    stdin = io.TextIOWrapper(io.BufferedReader(io.BytesIO(f"{EACH[4]}\n".encode())))
    monkeypatch.setattr("sys.stdin", stdin)
    with file_server(PHOTOS) as url:
        sources = ["in", "in/**/b.*", "c.upload", "broken.jpg", "list.txt"]
        sources += [f"{url}/{EACH[5].name}", f"{url}/none.jpg", "--source", "-"]
        assert detect(server, *sources) == 1
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    found = ["in/a.jpg", "in/sub/b.jpg", "in/sub/b.jpg", "c.upload", EACH[3]]
    found += [f"{url}/{EACH[5].name}", EACH[4]]
    assert [line["image"] for line in journal() if "error" not in line] == [*map(str, found)]
    assert lines[0].startswith("image 1 in/a.jpg: 480x640 1 WBC, 1 Platelets, 9 RBCs, ")
    assert lines[-1] == "Results saved to runs/detect/exp"
    failures = [
        "broken.jpg: not an image of a supported format; allowed: JPEG, PNG, WebP, BMP, TIFF",
        "none.jpg: No such file or directory",
        f"{url}/none.jpg: cannot be downloaded: HTTP 404 File not found",
    ]
    for failure in failures:
        assert f"error: {failure}\n" in captured.err
    assert "error: 3 of 10 images failed.\n" in captured.err
    results = Path("runs/detect/exp")
    assert (results / "failures.txt").read_text().splitlines() == failures
    assert [line for line in journal() if "error" in line] == [
        {"image": "broken.jpg", "error": failures[0].removeprefix("broken.jpg: ")}
    ], "what may be there later is not in the journal"
    pictures = {path.name for path in results.glob("*.jpg")}
    stems = {EACH[number].name for number in (3, 4, 5)}
    assert pictures == {"a.jpg", "b.jpg", "b-2.jpg", "c.jpg", *stems}
    assert journal()[2]["stem"] == "b-2"


def test_image_on_standard_input_prints_lines_of_json(server: RunningServer) -> None:
    with PHOTO.open("rb") as photo:
        process = start(server, "-", "--json", "--nosave", "--conf-thres", "0.5", stdin=photo)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    line = json.loads(out)
    assert (line["image"], line["labels"][0], line["image_size"]) == ("-", "WBC", [480, 640])
    assert len(line["scores"]) == sum(row[4] > 0.5 for row in REFERENCE[PHOTO.name])
    assert not Path("runs").exists()


def test_terminal_gets_a_progress_bar(server: RunningServer) -> None:
    near, far = pty.openpty()
    fcntl.ioctl(far, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    command = [sys.executable, "-m", "yolov5_client._cli", "detect", "--server", server.grpc]
    done = subprocess.run(
        [*command, str(PHOTOS), "--nosave"], stdout=subprocess.PIPE, stderr=far, text=True
    )
    os.close(far)
    shown = b""
    with suppress(OSError):  # reading from a closed terminal
        while data := os.read(near, 4096):
            shown += data
    os.close(near)
    assert done.returncode == 0
    assert [line.split()[:2] for line in done.stdout.splitlines()] == [
        ["image", f"{number}/8"] for number in range(1, 9)
    ]
    assert b"8/8 [" in shown
    assert b"image/s]" in shown


def test_all_outputs_agree_with_the_reference(
    server: RunningServer, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--save-txt", "--save-conf", "--save-crop", "--save-csv", "--save-json", "--quiet"]
    assert detect(server, PHOTOS, *flags) == 0
    assert capsys.readouterr().out == ""
    results = Path("runs/detect/exp")
    with (results / "results.csv").open(newline="") as file:
        table = [*csv.DictReader(file)]
    coco = json.loads((results / "results.json").read_text())
    lines = {Path(line["image"]).stem: line for line in journal()}
    assert [*lines] == [path.stem for path in EACH]
    for path in EACH:
        wanted = REFERENCE[path.name]
        line = lines[path.stem]
        assert line["image_size"] == [480, 640]
        np.testing.assert_allclose(line["boxes"], wanted[:, :4], atol=1e-2)
        np.testing.assert_allclose(line["scores"], wanted[:, 4], atol=1e-3)
        assert line["classes"] == wanted[:, 5].tolist()

        rows = [row for row in table if row["image"] == str(path)]
        assert [float(row["score"]) for row in rows] == line["scores"]
        sides = [[float(row[side]) for side in ("x1", "y1", "x2", "y2")] for row in rows]
        assert sides == line["boxes"]
        assert [row["label"] for row in rows] == line["labels"]

        found = [result for result in coco if result["image_id"] == path.stem]
        x, y, w, h = np.array([result["bbox"] for result in found]).T
        np.testing.assert_allclose(np.stack([x, y, x + w, y + h], 1), wanted[:, :4], atol=1e-2)
        assert [result["category_id"] for result in found] == line["classes"]

        written = np.loadtxt(results / "labels" / f"{path.stem}.txt")
        x1, y1, x2, y2 = wanted[:, :4].T
        normalised = [(x1 + x2) / 1280, (y1 + y2) / 960, (x2 - x1) / 640, (y2 - y1) / 480]
        rest = np.stack([wanted[:, 5], *normalised, wanted[:, 4]], 1)
        np.testing.assert_allclose(written, rest, atol=2e-4)

        picture = cv2.imread(str(results / path.name))
        assert picture is not None
        assert picture.shape == (480, 640, 3)
    crops = Counter(path.parent.name for path in (results / "crops").glob("*/*.jpg"))
    assert crops == Counter(label for line in lines.values() for label in line["labels"])
    cell = cv2.imread(str(results / "crops" / "WBC" / f"{PHOTO.stem}.jpg"))
    assert cell is not None
    x1, y1, x2, y2 = REFERENCE[PHOTO.name][0][:4]
    assert cell.shape[:2] == pytest.approx(((y2 - y1) * 1.02 + 10, (x2 - x1) * 1.02 + 10), abs=1)


def test_second_run_gets_its_own_folder_unless_exist_ok(
    server: RunningServer,
) -> None:
    assert detect(server, PHOTO) == 0
    assert detect(server, OTHER, "--nosave", "--save-jsonl") == 0
    assert [path.name for path in Path("runs/detect").iterdir() if path.name != "exp"] == ["exp2"]
    assert sorted(path.name for path in Path("runs/detect/exp2").iterdir()) == [
        "results.jsonl",
        "run.json",
    ]
    assert detect(server, OTHER, "--exist-ok") == 0
    assert [line["image"] for line in journal()] == [str(OTHER)]
    assert Path("runs/detect/exp", OTHER.name).exists()


def test_undrawable_picture_keeps_its_other_results(
    server: RunningServer, capsys: pytest.CaptureFixture[str]
) -> None:
    text, odd = Path("photo.b64"), Path("photo.upload")
    text.write_bytes(base64.b64encode(PHOTO.read_bytes()))  # the server accepts base64 as well
    odd.write_bytes(PHOTO.read_bytes())
    assert detect(server, text, odd, "--save-txt") == 1
    captured = capsys.readouterr()
    assert "error: photo.b64: cannot be decoded for drawing" in captured.err
    assert "image 2/2 photo.upload: 480x640 1 WBC" in captured.out
    assert [path.name for path in Path("runs/detect/exp").glob("*.jpg")] == ["photo-2.jpg"]
    assert len(list(Path("runs/detect/exp/labels").iterdir())) == 2
    assert len(journal()) == 2


@pytest.mark.parametrize("thresholds", ["WBC:0.9,2:0.9", '{"WBC": 0.9}', "WBC:0.9"])
def test_thresholds_by_class_are_the_servers_text(
    server: RunningServer, capsys: pytest.CaptureFixture[str], thresholds: str
) -> None:
    flags = ("--nosave", "--conf-thres", "0.7", "--class-conf-thres", thresholds)
    status = detect(server, PHOTO, *flags)
    shown = capsys.readouterr()
    if thresholds == "WBC:0.9,2:0.9":
        assert status == 2
        assert "class_conf_thres names '2', a class that has a number already" in shown.err
    else:
        assert status == 0
        assert "480x640 1 Platelets, " in shown.out


def test_refused_parameter_ends_the_run_at_once(
    server: RunningServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert detect(server, PHOTOS, "--conf-thres", "1.5") == 2
    error = "error: conf_thres is 1.5; allowed: a number from 0 to 1\n"
    assert capsys.readouterr() == ("", error)
    assert detect(server, PHOTOS, "--classes", "RBC", "zebra") == 2
    capsys.readouterr()
    assert detect(server, PHOTOS, "--class-conf-thres", "RBC:1.5") == 2
    error = "error: class_conf_thres for 'RBC' is '1.5'; allowed: a number from 0 to 1\n"
    assert capsys.readouterr() == ("", error)
    assert not Path("runs").exists()


def test_detect_works_without_opencv(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_video(Path("clip.mp4"), 3)
    script = "import sys; sys.modules['cv2'] = None; from yolov5_client._cli import main; "
    script += "sys.exit(main(sys.argv[1:]))"

    def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", script, "detect", "--server", server.grpc, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    notice = "No pictures are drawn: OpenCV is missing (pip install opencv-python-headless).\n"
    drawn = run(PHOTO, "--save-txt")
    assert (drawn.returncode, drawn.stderr) == (0, notice)
    assert len(journal()) == len(list(Path("runs/detect/exp/labels").iterdir())) == 1
    for arguments in (["clip.mp4"], [PHOTO, "--save-crop"]):
        refused = run(*arguments)
        assert refused.returncode == 2
        assert "needs OpenCV: pip install opencv-python-headless" in refused.stderr


# -- runs that are cut short -----------------------------------------------------------------


def copies(count: int) -> list[str]:
    """Fill the folder `in` with photos, some with the same name."""
    for number in range(count):
        folder = Path("in", str(number // 20))
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(EACH[number % len(EACH)], folder / f"{number % 20:02}.jpg")
    return sorted(map(str, Path("in").rglob("*.jpg")))


def test_resumed_run_has_each_image_exactly_once(server: RunningServer) -> None:
    names = copies(60)
    process = start(server, "in", "--save-txt", "--save-csv")
    path = Path("runs/detect/exp/results.jsonl")
    wait_for(lambda: path.exists() and path.read_bytes().count(b"\n") >= 20)
    process.kill()
    process.communicate()
    before = path.read_bytes()
    assert 20 <= before.count(b"\n") < 60
    with path.open("ab") as file:
        file.write(b'{"image": "in/2/0')  # a kill in the middle of a write leaves this
    shutil.copy(PHOTO, "in/late.jpg")
    assert detect(server, "--resume", "runs/detect/exp", "--quiet") == 0
    assert path.read_bytes().startswith(before)
    assert Counter(line["image"] for line in journal()) == Counter([*names, "in/late.jpg"])
    stems = [line.get("stem") or Path(line["image"]).stem for line in journal()]
    assert len({*stems}) == 61
    for kind, suffix in (("labels", ".txt"), ("", ".jpg")):
        written = {path.stem for path in Path("runs/detect/exp", kind).glob(f"*{suffix}")}
        assert written == {*stems}
    for line, stem in zip(journal(), stems):
        text = Path("runs/detect/exp/labels", f"{stem}.txt").read_text()
        assert text.count("\n") == len(line["labels"])
    with Path("runs/detect/exp/results.csv").open() as table:
        assert sum(1 for _ in table) == 1 + sum(len(line["labels"]) for line in journal())
    done = path.read_bytes()
    assert detect(server, "--resume", "--quiet") == 0, "the newest run"
    assert path.read_bytes() == done


def test_interrupted_run_says_how_to_resume(server: RunningServer) -> None:
    copies(60)
    process = start(server, "in", "--nosave", "--save-csv")
    path = Path("runs/detect/exp/results.jsonl")
    wait_for(lambda: path.exists() and path.stat().st_size)
    process.send_signal(signal.SIGINT)
    err = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert "Go on with: yolov5-client detect --resume runs/detect/exp\n" in err
    assert "Traceback" not in err
    assert Path("runs/detect/exp/results.csv").exists()
    assert detect(server, "--resume") == 0
    assert len({line["image"] for line in journal()}) == len(journal()) == 60


def test_runs_that_cannot_be_resumed_are_refused(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*arguments: str) -> str:
        assert detect(server, "--resume", *arguments) == 2
        return capsys.readouterr().err

    assert refused() == "error: no run in runs/detect that could be resumed.\n"
    assert detect(server, PHOTO) == 0
    capsys.readouterr()
    assert "takes all from the run itself; without it: --save-txt, SOURCE" in refused(
        "runs/detect/exp", "--save-txt", "--source", "a.jpg"
    )
    assert refused("runs") == "error: runs is not a run's folder: no run.json.\n"
    here = Path.cwd()
    monkeypatch.chdir("runs")
    assert refused("detect/exp") == f"error: the run was started in {here}; resume it there.\n"
    monkeypatch.chdir(here)
    record = Path("runs/detect/exp/run.json")
    started = json.loads(record.read_text())
    for source, message in (("-", "on standard input"), ("rtsp://host/a", "on a live stream")):
        started["options"]["source"] = [source]
        record.write_text(json.dumps(started))
        assert f"{message} cannot be resumed" in refused("runs/detect/exp")


def test_two_processes_cannot_write_to_one_folder(server: RunningServer) -> None:
    copies(60)
    process = start(server, "in")
    wait_for(lambda: list(Path("runs").rglob("*.jpg")))
    try:
        assert detect(server, "--resume", "runs/detect/exp") == 2
    finally:
        process.kill()
        process.communicate()


def test_missing_server_is_an_error_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    address = f"127.0.0.1:{free_ports(1)[0]}"
    started = time.monotonic()
    assert main(["detect", str(PHOTO), "--server", address]) == 3
    assert time.monotonic() - started < 10
    assert capsys.readouterr().err.startswith(f"error: {address}: ")
    assert not Path("runs").exists()
    assert main(["detect", "none.jpg", "--server", address]) == 2


def test_run_survives_a_restart_of_the_server(bundled_repository: Path) -> None:
    names = copies(60)
    path = Path("runs/detect/exp/results.jsonl")
    flags = ["--nosave", "--save-jsonl", "--in-flight", "2"]
    with running_server(f"--repository={bundled_repository}") as first:
        process = start(first, "in", *flags)
        wait_for(lambda: path.exists() and path.stat().st_size)
        first.stop()
        ports = first.ports
    assert process.poll() is None, "it waits for the server"
    assert len(journal()) < 60
    with running_server(f"--repository={bundled_repository}", ports=ports) as second:
        _, err = process.communicate(timeout=120)
        assert (process.returncode, err) == (0, "")
        assert [line["image"] for line in journal()] == names
        assert not any("error" in line for line in journal())

        process = start(second, "in", *flags, "--retry-for", "0")
        other = Path("runs/detect/exp2/results.jsonl")
        wait_for(lambda: other.exists() and other.stat().st_size)
        second.stop()
        _, err = process.communicate(timeout=60)
    assert process.returncode == 3
    assert err.startswith(f"error: {second.grpc}: ")
    assert "Go on with: yolov5-client detect --resume runs/detect/exp2\n" in err
    assert 0 < len(journal("exp2")) < 60
    assert err.count("\n") == 2, "the images that are left are not listed"


def test_unanswered_image_is_sent_again(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(_run, "RETRY_FAULTS_AFTER", (0.05, 0.05, 0.05))
    flags = ["--timeout", "1", "--in-flight", "1", "--nosave", "--save-jsonl"]

    def run(url: str) -> int:
        arguments = ["detect", PHOTO, f"{url}/{OTHER.name}", "--server", proxy.address, *flags]
        return main([*map(str, arguments)])

    with Proxy(server.grpc) as proxy:

        def hold_a_while() -> None:
            proxy.hold()
            threading.Timer(1.3, proxy.let_go).start()

        with file_server(PHOTOS, hold_a_while) as url:
            assert run(url) == 0
        assert [len(line["labels"]) for line in journal()] == [COUNT[ONE], COUNT[OTHER]]
        capsys.readouterr()

        with file_server(PHOTOS, proxy.hold) as url:
            assert run(url) == 1
            assert [line["image"] for line in journal("exp2")] == [str(PHOTO)]
            assert f"error: {url}/{OTHER.name}: " in capsys.readouterr().err
            failures = Path("runs/detect/exp2/failures.txt")
            assert failures.read_text().startswith(f"{url}/{OTHER.name}: ")
            proxy.let_go()
    Path("runs/detect/exp2/run.json").write_text(
        Path("runs/detect/exp2/run.json").read_text().replace(f"{url}/", f"{PHOTOS}/")
    )
    assert detect(server, "--resume", "runs/detect/exp2") == 0
    assert [len(line["labels"]) for line in journal("exp2")] == [COUNT[ONE], COUNT[OTHER]]
    assert not failures.exists()


def test_resumed_run_does_not_need_finished_files(server: RunningServer) -> None:
    shutil.copy(ONE, "one.jpg")
    assert detect(server, "one.jpg", OTHER, "--nosave", "--save-jsonl") == 0
    Path("one.jpg").unlink()
    path = Path("runs/detect/exp/results.jsonl")
    path.write_text(path.read_text().partition("\n")[0] + "\n")
    assert detect(server, "--resume") == 0
    assert [line["image"] for line in journal()] == ["one.jpg", str(OTHER)]


# -- videos and streams ----------------------------------------------------------------------


def test_annotated_video_has_its_frames_in_order(
    server: RunningServer, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = make_video(Path("clip.mp4"), 60)
    assert detect(server, "clip.mp4", PHOTO, "--save-txt") == 0
    lines = journal()
    assert [line.get("frame") for line in lines] == [*range(1, 61), None]
    assert [which(line) for line in lines[:60]] == shown
    assert "video 1/2 (60/60) clip.mp4: 480x640 1 WBC" in capsys.readouterr().out
    labels = {path.stem for path in Path("runs/detect/exp/labels").iterdir()}
    assert labels == {*(f"clip_{number}" for number in range(1, 61)), PHOTO.stem}

    capture = cv2.VideoCapture("runs/detect/exp/clip.mp4")
    assert capture.get(cv2.CAP_PROP_FPS) == 12
    plain = [cv2.imread(str(photo)) for photo in (ONE, OTHER)]
    seen = []
    while (frame := capture.read()[1]) is not None:
        assert frame.shape == (480, 640, 3)
        differences = [
            float(np.abs(frame.astype(int) - one.astype(int)).mean())
            for one in plain
            if one is not None
        ]
        seen.append(differences.index(min(differences)))
        # The box of the white cell: its edge is drawn at half the height.
        x1, y1, _, y2 = lines[len(seen) - 1]["boxes"][0]
        edge = frame[round((y1 + y2) / 2), round(x1)].astype(int)
        before = plain[seen[-1]]
        assert before is not None
        assert np.abs(edge - before[round((y1 + y2) / 2), round(x1)]).max() > 30
    assert seen == shown


def test_stride_takes_every_nth_frame(server: RunningServer) -> None:
    make_video(Path("clip.avi"), 20, "MJPG")
    assert detect(server, "clip.avi", "--vid-stride", "8", "--nosave", "--save-jsonl") == 0
    assert [line["frame"] for line in journal()] == [1, 9, 17]


def test_strided_frames_are_shown_longer(server: RunningServer) -> None:
    make_video(Path("clip.avi"), 20, "MJPG")
    assert detect(server, "clip.avi", "--vid-stride", "4") == 0
    capture = cv2.VideoCapture("runs/detect/exp/clip.mp4")
    length = capture.get(cv2.CAP_PROP_FRAME_COUNT) / capture.get(cv2.CAP_PROP_FPS)
    assert length == pytest.approx(20 / 12, abs=1e-3)


def test_first_frame_of_an_animated_picture_is_used(server: RunningServer) -> None:
    """An MPO is a sequence of JPEGs; the annotated picture is a JPEG."""
    Path("in").mkdir()
    Path("in", "a.MPO").write_bytes(ONE.read_bytes() + OTHER.read_bytes())
    assert detect(server, "in") == 0
    (line,) = journal()
    assert (line["image"], which(line)) == ("in/a.MPO", 0)
    assert Path("runs/detect/exp/a.jpg").exists()


def test_broken_video_fails_alone(
    server: RunningServer, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("clip.mp4").write_bytes(b"hello")
    assert detect(server, "clip.mp4", PHOTO) == 1
    assert "error: clip.mp4: cannot be opened as a video\n" in capsys.readouterr().err
    assert len(journal()) == 1


def test_resumed_run_starts_an_incomplete_video_again(server: RunningServer) -> None:
    make_video(Path("a.mp4"), 12)
    shown = make_video(Path("b.mp4"), 60)
    process = start(server, "a.mp4", "b.mp4", "--save-txt")
    path = Path("runs/detect/exp/results.jsonl")
    wait_for(lambda: path.exists() and path.read_bytes().count(b"b.mp4") >= 15)
    process.kill()
    process.communicate()
    complete = Path("runs/detect/exp/a.mp4").stat()
    assert path.read_bytes().count(b"b.mp4") < 60
    assert detect(server, "--resume", "runs/detect/exp", "--quiet") == 0
    lines = journal()
    assert [(line["image"], line["frame"]) for line in lines] == [
        *(("a.mp4", number) for number in range(1, 13)),
        *(("b.mp4", number) for number in range(1, 61)),
    ]
    assert [which(line) for line in lines[12:]] == shown
    assert Path("runs/detect/exp/a.mp4").stat() == complete
    assert cv2.VideoCapture("runs/detect/exp/b.mp4").get(cv2.CAP_PROP_FRAME_COUNT) == 60
    done = path.read_bytes()
    assert detect(server, "--resume", "runs/detect/exp", "--quiet") == 0
    assert path.read_bytes() == done


@contextmanager
def camera(video: bytes, seconds: float) -> Iterator[str]:
    """Serve the bytes of a video to each caller within a time; yields the address."""
    listener = socket.create_server(("127.0.0.1", 0))

    def send() -> None:
        while True:
            try:
                caller, _ = listener.accept()
            except OSError:
                return
            with caller:
                try:
                    for start in range(0, len(video), len(video) // 50):
                        caller.sendall(video[start : start + len(video) // 50])
                        time.sleep(seconds / 50)
                except OSError:
                    continue

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield f"tcp://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


def test_live_streams_are_followed_concurrently_until_they_end(
    server: RunningServer, capsys: pytest.CaptureFixture[str]
) -> None:
    make_video(Path("camera.avi"), 100, "MJPG")
    video = Path("camera.avi").read_bytes()
    nobody = f"tcp://127.0.0.1:{free_ports(1)[0]}"
    with camera(video, 5) as one, camera(video, 5) as other:
        started = time.monotonic()
        assert detect(server, PHOTO, one, nobody, other) == 1
        assert time.monotonic() - started < 90
    captured = capsys.readouterr()
    assert f"error: {nobody}: cannot be opened as a video\n" in captured.err
    assert f"{one}: the stream has ended after " in captured.err
    for number, address in ((2, one), (4, other)):
        lines = [line for line in journal() if line["image"] == address]
        frames = [line["frame"] for line in lines]
        assert len(frames) >= 2
        assert frames == sorted({*frames})
        assert [which(line) for line in lines] == [(frame - 1) // 10 % 2 for frame in frames]
        assert f"stream {number}/4 ({frames[0]}) {address}: 480x640" in captured.out
    annotated = [*Path("runs/detect/exp").glob("*.mp4")]
    assert len(annotated) == 2
    assert all(cv2.VideoCapture(str(path)).isOpened() for path in annotated)
