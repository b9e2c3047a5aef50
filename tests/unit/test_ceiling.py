"""`make bench ARGS=--ceiling`: its networks, its load generator and its report."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper
from support import ROOT

from yolov5_bench import _pipeline
from yolov5_bench._ceiling import Case, cases, pictures
from yolov5_bench._ceiling_report import Bare, Held, Point, table, write
from yolov5_bench._checkout import HERE, Checkout
from yolov5_bench._interpreter_lock import (
    CannotSampleError,
    _on_core_and_waiting,
    _share,
    lock_shares,
)
from yolov5_bench._light_load import HttpAnswers, grpc_request, http_request, run_light_load
from yolov5_bench._pipeline import Pipeline
from yolov5_bench._stored_rows import CONF_THRES, prefilter, rows_over, stored_rows, write_full
from yolov5_build import _contract as contract
from yolov5_build._onnx_import import import_onnx

POINT = Point(
    tree="here",
    rows="prefiltered",
    sure=100,
    megapixels=0.3,
    transport="HTTP",
    callers=32,
    round=0,
    rate=200.0,
    p50=150.0,
    p99=200.0,
    preprocess=2.0,
    postprocess=1.5,
    tritonserver=1.0,
    network=0.5,
    launcher=0.1,
    load=0.07,
)


def run(path: Path, **inputs: NDArray[Any]) -> NDArray[Any]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (rows,) = session.run([contract.OUTPUT], inputs)
    return np.asarray(rows)


@pytest.mark.parametrize("batch", [1, 3])
def test_network_hands_out_all_rows_for_each_image(batch: int, tmp_path: Path) -> None:
    rows = stored_rows()
    write_full(tmp_path / "stored.onnx", rows)
    images = np.zeros((batch, 3, 640, 640), np.float32)
    found = run(tmp_path / "stored.onnx", images=images)
    assert found.shape == (batch, 25_200, 85)
    assert (found == rows).all()


@pytest.mark.parametrize("batch", [None, 3])
def test_prefiltered_network_hands_out_the_rows_over_the_confidence(
    batch: int | None, tmp_path: Path
) -> None:
    rows, version = stored_rows(), tmp_path / "1"
    version.mkdir()
    write_full(version / contract.WEIGHTS_FILE, rows)
    if batch:  # `make model` has made the file that takes pixels
        path = version / "served.onnx"
        write_taking_pixels(path)
    else:  # an earlier checkout
        path, config = version / "prefiltered.onnx", tmp_path / "configs" / "embedded.pbtxt"
        config.parent.mkdir()
        config.write_text('name: "stored"\n')
    prefilter(tmp_path)
    pixels, nms = np.zeros((batch or 1, 3, 640, 640), np.uint8), np.zeros((batch or 1, 5))
    for sure, conf_thres in CONF_THRES.items():
        nms[:, 0] = conf_thres
        found = run(path, pixels=pixels, nms=nms.astype(np.float32))
        assert found.shape == (batch or 1, sure, 85)
        assert (found == rows_over(rows, conf_thres)).all()
    if batch:
        assert metadata(path) == {"full_sha256": "kept"}
    else:
        digest = hashlib.sha256((version / contract.WEIGHTS_FILE).read_bytes()).hexdigest()
        assert metadata(path) == {"full_sha256": digest}
        assert f'"{path.name}"' in config.read_text()


def write_taking_pixels(path: Path) -> None:
    value = helper.make_tensor_value_info
    inputs = [
        value("pixels", TensorProto.UINT8, ["batch", 3, 640, 640]),
        value("nms", TensorProto.FLOAT, ["batch", 5]),
    ]
    output = value("output0", TensorProto.FLOAT, ["batch", "kept", 85])
    model = helper.make_model(helper.make_graph([], "g", inputs, [output]))
    helper.set_model_props(model, {"full_sha256": "kept"})
    onnx.save(model, path)


def metadata(path: Path) -> dict[str, str]:
    return {entry.key: entry.value for entry in onnx.load(path).metadata_props}


def test_each_row_over_the_confidence_is_a_detection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_pipeline, "CONF_THRES", CONF_THRES[300])
    write_full(tmp_path / "stored.onnx", stored_rows())
    import_onnx(tmp_path / "stored.onnx", tmp_path / "model.onnx")
    photo = pictures(tmp_path)[0.3]
    answer = Pipeline(tmp_path / "model.onnx", 1)(photo.read_bytes())
    assert len(answer.scores) == 300
    assert (answer.boxes[:, 2:] - answer.boxes[:, :2] > 10).all()


def test_one_thing_varies_at_a_time() -> None:
    usual = Case(callers=32)
    for case in cases([1, 32, 64]):
        same = {
            "callers": replace(case, callers=32, transport="HTTP"),
            "network": replace(case, rows="prefiltered", sure=100),
            "picture": replace(case, megapixels=0.3),
        }
        assert usual in same.values()
    assert {case.callers for case in cases([4, 8])} == {4, 8}
    assert {case.network for case in cases([8])} == {"yolov5", "full"}
    assert usual.network == "yolov5"


def test_pictures_are_as_large_as_those_of_a_camera(tmp_path: Path) -> None:
    sizes = {size: path.stat().st_size for size, path in pictures(tmp_path).items()}
    assert 15_000 < sizes[0.3] < 60_000
    assert 300_000 < sizes[0.9] < 500_000
    assert 900_000 < sizes[2] < 1_200_000


def answer_with(detections: int, status: str = "200 OK") -> bytes:
    outputs = [
        {"name": "det_scores", "parameters": {"binary_data_size": 4 * detections}},
        {"name": "num_dets", "parameters": {"binary_data_size": 4}},
    ]
    described = json.dumps({"outputs": outputs}).encode()
    body = described + bytes(4 * detections) + detections.to_bytes(4, "little")
    head = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n"
    head += f"Inference-Header-Content-Length: {len(described)}\r\n\r\n"
    return head.encode() + body


def test_number_of_detections_is_read_once_the_answer_is_whole() -> None:
    answers, whole = HttpAnswers(), answer_with(7)
    for length in range(len(whole)):
        assert answers.detections(bytearray(whole[:length])) is None
    assert answers.detections(bytearray(whole)) == 7
    assert answers.detections(bytearray(answer_with(12))) == 12
    with pytest.raises(RuntimeError, match="503"):
        answers.detections(bytearray(answer_with(7, "503 Service Unavailable")))


def test_confidence_is_asked_for_in_a_header() -> None:
    assert b"X-Yolo" not in http_request("127.0.0.1:8000", "yolov5", b"photo")
    asked = http_request("127.0.0.1:8000", "yolov5", b"photo", 0.95)
    head, body = asked.split(b"\r\n\r\n")
    assert b"\r\nX-Yolo-Conf-Thres: 0.95\r\n" in head
    assert body == b"photo"


def test_request_over_grpc_holds_each_image() -> None:
    from tritonclient.grpc import service_pb2

    request = service_pb2.ModelInferRequest.FromString(grpc_request("yolov5", b"abc", 2))
    assert request.model_name == "yolov5_ensemble"
    assert [*request.inputs[0].shape] == [2, 1]
    assert [*request.raw_input_contents] == [b"\3\0\0\0abc" * 2]


@pytest.fixture
def address() -> Iterator[str]:
    """Of a server that answers each request with 7 detections."""

    def serve(connection: socket.socket) -> None:
        with connection, suppress(ConnectionResetError):
            while data := connection.recv(1 << 16):
                if data.endswith(b"a photo"):
                    connection.sendall(answer_with(7))

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(connection,), daemon=True).start()

    listener = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=accept, daemon=True).start()
    yield f"127.0.0.1:{listener.getsockname()[1]}"
    listener.close()


@pytest.mark.parametrize("callers", [1, 8])
def test_answers_during_the_measurement_are_counted(
    callers: int, address: str, tmp_path: Path
) -> None:
    (tmp_path / "photo").write_bytes(b"a photo")
    begin = time.perf_counter() + 0.1
    load = {"transport": "HTTP", "address": address, "model": "yolov5", "callers": callers}
    load |= {"photo": str(tmp_path / "photo"), "begin": begin, "end": begin + 0.3}
    report = run_light_load(**load, detections=7)  # type: ignore[arg-type]
    assert 0 < report["images"] <= len(report["latencies"]) < report["images"] + 2 * callers + 1
    assert 0 < report["client_cpu"] < 1
    with pytest.raises(RuntimeError, match="7 detections in place of 8"):
        run_light_load(**load, detections=8)  # type: ignore[arg-type]


def test_table_has_a_line_for_each_tree_and_the_ratio_within_a_round() -> None:
    other = replace(POINT, tree="against", rate=100.0)
    points = [POINT, other, replace(POINT, round=1, rate=210.0), replace(other, round=1, rate=70.0)]
    here, against = table(points).splitlines()[2:]
    assert here.startswith(
        "| HTTP | 32 | 0.3 | prefiltered | 100 | here | 205 | 2.50 (2.00 to 3.00)"
    )
    assert against.startswith("| HTTP | 32 | 0.3 | prefiltered | 100 | against | 85 |  | 150.0 |")
    assert here.endswith("| 4.50 | 2.00 | 1.50 | 1.00 | 0.50 | 0.10 | 0.07 |")
    assert "tree" not in table([POINT])


def test_report_is_written_with_or_without_the_lock(tmp_path: Path) -> None:
    held = Held(
        tree="here",
        rows="full",
        sure=100,
        megapixels=2,
        callers=1,
        images=8,
        rate=50.0,
        preprocess=0.5,
        postprocess=0.25,
    )
    bare = Bare(megapixels=2, rows="full", decode=9.0, place=1.0, postprocess=0.5)
    text = write(tmp_path, "A title", {2: 1_000_000}, [POINT], [held], "", [bare])
    assert "| 1 | 8 | 2 | full | 100 | here | 50 | 0.50 | 0.25 |" in text
    assert "| 2 | full | 9.00 | 1.00 | 0.50 |" in text
    assert "2 Mpx: 1000 kB" in text
    assert (tmp_path / "ceiling.md").read_text() == text
    lines = (tmp_path / "ceiling.csv").read_text().splitlines()
    assert lines[0].startswith("tree,rows,sure,megapixels,transport,callers,round,rate,")
    assert len(lines) == 2
    text = write(tmp_path, "A title", {}, [POINT], [], "py-spy is not installed", [bare])
    assert "Left out: py-spy is not installed." in text


def test_samples_that_could_not_be_read_are_left_out_of_the_share() -> None:
    said = "py-spy> Wrote raw flamegraph data to 'x'. Samples: 60 Errors: 50"
    assert _share(said, 250) == pytest.approx(0.3)
    with pytest.raises(CannotSampleError, match="it needs CAP_SYS_PTRACE or root"):
        _share("Permission Denied: Try running again with elevated permissions\n", 250)
    with pytest.raises(CannotSampleError, match="No such process"):
        _share("Error: Failed to open process\nReason: No such process\n", 250)


def test_without_the_sampler_the_reason_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(CannotSampleError, match="py-spy is not installed"):
        lock_shares([1], 1)


def test_checkout_runs_its_own_sources(tmp_path: Path) -> None:
    assert HERE.root == ROOT
    other = Checkout(tmp_path)
    assert other.python == sys.executable
    first, *_ = other.environment["PYTHONPATH"].split(":")
    assert Path(first).parent == tmp_path
    own = tmp_path / ".venv" / "bin" / "python"
    own.parent.mkdir(parents=True)
    own.touch()
    assert other.python == str(own)


def test_time_on_a_core_is_told_from_time_of_waiting_for_one() -> None:
    before, _ = _on_core_and_waiting(os.getpid())
    began = time.thread_time_ns()
    while time.thread_time_ns() - began < 50_000_000:
        pass
    after, waiting = _on_core_and_waiting(os.getpid())
    assert 45_000_000 < after - before < 500_000_000
    assert waiting >= 0
    with pytest.raises(CannotSampleError, match="cannot be read"):
        _on_core_and_waiting(1 << 30)
