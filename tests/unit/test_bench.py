"""The reports that `make bench` makes of its samples."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest
from support import REPOSITORY

from yolov5_bench import __main__ as bench
from yolov5_bench._contenders import on_triton
from yolov5_bench._load import make_sender
from yolov5_bench._measure import Sample
from yolov5_bench._pipeline import Answer
from yolov5_bench._report import (
    accuracy_table,
    plot,
    ratios,
    regressions,
    step_table,
    table,
    write_csv,
)
from yolov5_bench._scaling import Point
from yolov5_bench._scaling import table as scaling_table

SAMPLE = Sample(
    contender="ours",
    callers=8,
    round=0,
    rate=40.0,
    p50=200.0,
    p95=210.0,
    p99=220.0,
    longest=230.0,
    server_ms=50.0,
    client_ms=1.0,
    wire=9000.0,
    steps={"yolov5 work": 30.0},
)
SAMPLES = [
    SAMPLE,
    replace(SAMPLE, round=1, rate=44.0),
    replace(SAMPLE, contender="fastapi", rate=50.0, steps={}),
    replace(SAMPLE, contender="fastapi", round=1, rate=40.0, steps={}),
]


def test_ratios_compare_within_a_round() -> None:
    found = ratios(SAMPLES)
    assert found["fastapi", 8] == pytest.approx([0.8, 1.1])
    assert found["ours", 8] == [1, 1]


def test_table_has_medians_and_the_spread_of_the_ratios() -> None:
    lines = table(SAMPLES).splitlines()
    assert lines[2].startswith("| 8 | ours | 42.0 |  | 200 |")
    assert lines[3].startswith("| 8 | fastapi | 45.0 | 0.95 (0.80 to 1.10) | 200 |")
    assert step_table(SAMPLES).splitlines()[2] == "| 8 | 30.0 |"
    assert step_table(SAMPLES[2:]) == ""


def test_report_files_are_written(tmp_path: Path) -> None:
    write_csv(SAMPLES, tmp_path / "samples.csv")
    lines = (tmp_path / "samples.csv").read_text().splitlines()
    assert lines[0].startswith("contender,callers,round,rate,")
    assert len(lines) == 5
    plot(SAMPLES, tmp_path / "plot.png", "a title")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_inexact_answer_must_have_every_confident_detection() -> None:
    boxes = np.array([[10, 20, 30, 40], [50, 60, 70, 80]], np.float32)
    answer = Answer(boxes=boxes, scores=np.array([0.6, 0.3], np.float32), classes=np.array([1, 1]))
    assert (
        replace(answer, boxes=boxes + np.float32(3), scores=answer.scores / 2).missing_from(answer)
        is None
    )
    only = Answer(boxes=boxes[:1], scores=answer.scores[:1], classes=answer.classes[:1])
    assert only.missing_from(answer) is None  # the other's score is too low
    assert "class 1 near [10.0, 20.0, 30.0, 40.0]" in str(
        replace(answer, classes=np.array([0, 1])).missing_from(answer)
    )
    none = Answer.from_dict({"boxes": [], "scores": [], "classes": []})
    assert none.missing_from(answer) is not None


def test_different_answer_is_noticed() -> None:
    boxes = np.array([[1, 2, 3, 4]], np.float32)
    answer = Answer(boxes=boxes, scores=np.array([0.5], np.float32), classes=np.array([1]))
    assert Answer.from_dict(answer.as_dict()).difference_from(answer) is None
    assert "0.200 px" in str(replace(answer, boxes=boxes + np.float32(0.2)).difference_from(answer))
    assert "score 0.0100" in str(
        replace(answer, scores=answer.scores + 0.01).difference_from(answer)
    )
    none = Answer.from_dict({"boxes": [], "scores": [], "classes": []})
    assert none.difference_from(answer) == "0 detections in place of 1"


def test_scaling_table_has_the_median_of_each_point() -> None:
    point = Point(what="cores", value=2, callers=8, rate=40.0, p50=200.0, p99=220.0)
    points = [point, replace(point, value=1), replace(point, rate=50.0), replace(point, rate=60.0)]
    assert scaling_table(points).splitlines()[2:] == [
        "| cores | 2 | 8 | 50.0 | 200 | 220 |",
        "| cores | 1 | 8 | 40.0 | 200 | 220 |",
    ]


def test_accuracy_is_compared_with_ours() -> None:
    lines = accuracy_table({"ours": (0.8, 0.5), "default": (0.81, 0.496)}).splitlines()
    assert lines[2:] == [
        "| ours | 0.8000 | 0.5000 | +0.0000 |",
        "| default | 0.8100 | 0.4960 | -0.0040 |",
    ]


def test_regression_of_a_ratio_is_found() -> None:
    kept = {"fastapi": {"1": 0.9, "8": 1.0}, "bare": {"8": 0.9}}
    assert regressions({"fastapi": {"1": 0.82, "8": 0.91}, "bare": {"8": 0.95}}, kept, 0.9) == {}
    found = {"fastapi": {"1": 0.8, "8": 0.89}, "other": {"8": 0.1}}
    assert regressions(found, kept, 0.9) == {
        ("fastapi", "1"): (0.8, 0.9),
        ("fastapi", "8"): (0.89, 1.0),
    }


@pytest.fixture
def asked() -> Iterator[tuple[str, list[str]]]:
    """The address of a server that answers nothing, and the paths that it was asked for."""
    paths: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            paths.append(self.path)
            self.send_error(503)

        def log_message(self, *_arguments: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"127.0.0.1:{server.server_port}", paths
    server.shutdown()
    thread.join()
    server.server_close()


def test_model_names_the_endpoint_that_is_asked(asked: tuple[str, list[str]]) -> None:
    address, paths = asked
    for named in ({}, {"model": "plates"}):
        with pytest.raises(RuntimeError, match="HTTP 503"):
            make_sender("http", address, **named)(b"x")
    assert paths == ["/v2/models/yolov5_ensemble/infer", "/v2/models/plates_ensemble/infer"]


def test_another_triton_is_measured_with_its_backends_and_with_ours(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "tritonserver").touch()
    options = bench._options([f"--triton=26.08={tmp_path}"])
    theirs, own = (one for triton in options.triton for one in on_triton(*triton))
    assert (theirs.name, theirs.flags) == ("26.08", (f"--triton={tmp_path}",))
    assert (own.name, own.flags) == ("26.08-own", (f"--triton={tmp_path}", "--own-backends"))
    assert theirs.is_exact and own.is_exact
    for wrong in (f"{tmp_path}", f"x={tmp_path / 'bin'}"):
        with pytest.raises(SystemExit):
            bench._options([f"--triton={wrong}"])
        assert "is not NAME=FOLDER with the folder of a Triton" in capsys.readouterr().err


@pytest.mark.parametrize("model", ["yolov5", "plates"])
def test_only_the_measured_network_is_installed(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[list[str]] = []
    found: list[set[str]] = []

    def build(arguments: list[str]) -> int:
        calls.append(arguments)
        repository = arguments[1].removeprefix("--repository=")
        found.append({path.name for path in Path(repository).iterdir()})
        return 1

    monkeypatch.setattr(bench, "build", build)
    weights = str(tmp_path / "best.pt")
    named = [] if model == "yolov5" else [f"--model={model}"]
    assert bench.main([f"--weights={weights}", *named]) == 1
    ((given, _, *more),) = calls
    assert given == weights
    steps = {"preprocess", "postprocess", "yolov5_ensemble"}
    if named:  # a server has the network without a name in any case
        assert (more, found) == (["--name=plates"], [{*steps, "yolov5"}])
    else:
        assert (more, found) == ([], [steps])
    assert found[0] <= {path.name for path in REPOSITORY.iterdir()}
