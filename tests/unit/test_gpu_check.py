"""`make gpu-check`: its report, and what it reads from the driver, the log and the processes."""

from __future__ import annotations

import csv
import math
import subprocess
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from yolov5_bench import _load, gpu_check
from yolov5_bench._gpu_probe import (
    GpuState,
    average,
    gpu_state,
    milliseconds_for_an_image,
    process_name,
)
from yolov5_bench._gpu_report import Engine, Load, Report, Started, file_stem, markdown, write
from yolov5_bench._gpu_server import GpuServer, provider, shares
from yolov5_bench._pipeline import Answer
from yolov5_bench.fidelity import compare

STATE = GpuState(percent=40.0, memory=1500.0, power=120.0)


def load(**changes: object) -> Load:
    values: dict[str, object] = {
        "case": "FP32",
        "callers": 8,
        "rate": 812.4,
        "p50": 9.75,
        "p99": 14.2,
        "gpu": STATE,
        "cpu": {"preprocess": 1.25, "tritonserver": 0.5},
        "failed": 3,
        "wrong": 2,
        "steps": {"preprocess queue": 0.25, "yolov5 work": 4.5},
        **changes,
    }
    return Load(**values)  # type: ignore[arg-type]


def answer(*rows: tuple[float, float, int]) -> Answer:
    """Boxes of 10 pixels: left side, score and class."""
    return Answer(
        boxes=np.array([[x, 0, x + 10, 10] for x, *_ in rows], np.float32).reshape(-1, 4),
        scores=np.array([score for _, score, _ in rows], np.float32),
        classes=np.array([index for *_, index in rows], np.int64),
    )


def reference(*rows: tuple[float, float, int]) -> NDArray[np.float64]:
    return np.array([[x, 0, x + 10, 10, score, index] for x, score, index in rows], float)


def test_report_names_the_gpu_and_every_figure() -> None:
    report = Report(facts={"GPU": "NVIDIA H100 80GB HBM3"}, loads=[load()])
    report.started.append(Started(case="FP32", seconds=12.34, provider="GPU 0, by CUDA"))
    report.fidelity["FP32"] = compare(
        {"a": answer((0, 0.9, 1))}, {"a": reference((0, 0.9, 1))}, conf_thres=0.25
    )
    report.recoveries["FP32"] = 7.06
    report.engines.append(Engine(case="FP32", batch=32, rate=2900.4, warm=1.0))
    text = markdown(report)
    assert text.startswith("# NVIDIA H100 80GB HBM3\n")
    assert "| FP32 | 12.3 | GPU 0, by CUDA | 1 of 1 | 0 | 0.0000 | 0.000000 | 7.1 |" in text
    assert "| FP32 | 8 | 812 | 9.8 | 14.2 | 3 | 2 | 40 | 1500 | 120 | 1.25 | 0.50 |" in text
    assert "| server | callers | preprocess queue | yolov5 work |" in text
    assert "| FP32 | 8 | 0.25 | 4.50 |" in text
    assert "Best: FP32 2900 images/s" in text
    assert "What failed" not in text


def test_failure_is_in_the_report_with_the_figures_of_before(tmp_path: Path) -> None:
    report = Report(facts={"GPU": "X"}, loads=[load()])
    report.fail("server FP16: the time was over")
    write(report, tmp_path / "new" / "x")
    text = (tmp_path / "new" / "x.md").read_text()
    assert report.failed
    assert "- server FP16: the time was over" in text and "| FP32 | 8 | 812 |" in text


def test_csv_has_a_row_for_each_measurement(tmp_path: Path) -> None:
    report = Report(loads=[load(), load(callers=32, gpu=None, cpu={}, steps={})])
    report.engines.append(Engine(case="FP16", batch=8, rate=1000.0, warm=0.5))
    write(report, tmp_path / "x")
    with (tmp_path / "x.csv").open() as file:
        first, second, engine = csv.DictReader(file)
    assert (first["images_per_second"], first["cpu_ms_preprocess"]) == ("812.400", "1.250")
    assert (first["failed"], first["wrong"], first["step_ms_yolov5_work"]) == ("3", "2", "4.500")
    assert (second["callers or batch"], second["gpu_watts"]) == ("32", "")
    assert second["step_ms_yolov5_work"] == ""
    assert (engine["what"], engine["images_per_second"], engine["p50_ms"]) == (
        "engine",
        "1000.000",
        "",
    )


@pytest.mark.parametrize(
    "name, stem",
    [("NVIDIA H100 80GB HBM3", "NVIDIA-H100-80GB-HBM3"), ("../x/[y]", "x-y"), ("", "unknown")],
)
def test_report_is_named_after_the_gpu(name: str, stem: str) -> None:
    assert file_stem(name) == stem


def test_differences_from_the_reference_are_counted() -> None:
    wanted = reference((0, 0.9, 1), (50, 0.8, 1), (100, 0.7, 0), (150, 0.2505, 0))
    ours = answer((0.05, 0.9005, 1), (50, 0.8, 2), (300, 0.6, 0))
    found = compare({"a": ours}, {"a": wanted}, conf_thres=0.25)
    # 50 has another class and 100 is missing on our side; 50 and 300 on the reference's. 150 is too
    # close to the threshold to count.
    assert (found.wanted, found.found, found.unmatched) == (4, 3, 4)
    assert found.box == pytest.approx(0.05, abs=1e-6)
    assert found.score == pytest.approx(0.0005, abs=1e-6)
    assert not found.is_exact
    assert compare({"a": answer((0.05, 0.9005, 1))}, {"a": wanted[:1]}, conf_thres=0.25).is_exact
    assert not compare({"a": answer((0.2, 0.9, 1))}, {"a": wanted[:1]}, conf_thres=0.25).is_exact


def test_gpu_is_read_from_nvidia_smi_with_its_gaps() -> None:
    assert gpu_state(["40", "1500", "120.00"]) == STATE
    gap = gpu_state(["40", "1500", "[N/A]"])
    assert gap is not None and math.isnan(gap.power)
    assert gpu_state([]) is None
    other = GpuState(percent=60.0, memory=1700.0, power=140.0)
    assert average([STATE, other]) == GpuState(percent=50.0, memory=1700.0, power=130.0)
    assert average([]) is None


def test_processes_are_named_by_their_work() -> None:
    stub = ["/x/triton_python_backend_stub", "models/preprocess/1/model.py", "triton_shm", "1"]
    assert process_name(stub) == "preprocess"
    assert process_name(["/x/bin/tritonserver", "--model-repository=models"]) == "tritonserver"
    assert process_name(["python", "-m", "yolov5_server", "--host=::1"]) == "launcher"
    assert process_name([]) == process_name(["/bin/sh", "-c", "sleep 1"]) == "other"


def test_cpu_time_is_that_of_the_measurement_alone() -> None:
    found = milliseconds_for_an_image({"a": 1.0}, {"a": 1.5, "new": 0.25}, images=250)
    assert found == {"a": pytest.approx(2.0), "new": pytest.approx(1.0)}


@pytest.mark.parametrize(
    "log, what",
    [
        (
            "x\nyolov5 runs on GPU 0, by CUDAExecutionProvider.\ny",
            "GPU 0, by CUDAExecutionProvider",
        ),
        (
            "W1 m.cc:1] yolov5 runs on the CPU, not on GPU 0: why",
            "CPU: yolov5 runs on the CPU, not on GPU 0: why",
        ),
        ("Ready: ...", "CPU"),
    ],
)
def test_provider_is_what_the_log_says(log: str, what: str) -> None:
    assert provider(log) == what


def test_callers_are_spread_over_the_generators() -> None:
    assert shares(1, 6) == [1]
    assert shares(8, 6) == [2, 2, 1, 1, 1, 1]
    assert shares(64, 6) == [11, 11, 11, 11, 10, 10]


def test_failed_and_wrong_answers_are_counted_and_the_load_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sent: list[bytes] = []

    def make_sender(*where: str, model: str) -> _load.SendImage:
        def send(image: bytes) -> tuple[Answer, int]:
            sent.append(image)
            if image == b"broken":
                raise RuntimeError("HTTP 500")
            return answer((0, 0.9, 1)), 1

        return send

    monkeypatch.setattr(_load, "make_sender", make_sender)
    load = partial(
        _load.run_load,
        ["http", "x"],
        [b"right", b"broken", b"two boxes"],
        callers=1,
        seconds=0.2,
        warm=0.0,
        server=0,
        metrics="",
    )
    found = load(counts=[1, 1, 2])
    assert found["failed"] == sent.count(b"broken") > 1
    assert found["wrong"] == sent.count(b"two boxes") > 1
    with pytest.raises(RuntimeError, match="HTTP 500"):
        load()


def test_failed_requests_fail_the_check(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(gpu_check, "nvidia_smi", lambda *fields: ["Some GPU"])
    monkeypatch.setattr(gpu_check, "measure_load", lambda *args, **kwargs: load(failed=3, wrong=2))
    monkeypatch.setattr(gpu_check.Check, "_fidelity", lambda self, case, server: [1])
    options = gpu_check._options([f"--output={tmp_path}", "--quick"])
    check = gpu_check.Check(options, "Some GPU", tmp_path)
    server = GpuServer(subprocess.Popen(["true"]), "", "", tmp_path / "log")
    server.log.write_text("yolov5 runs on GPU 0, by CUDA.\n")
    check._examine(gpu_check.CASES[1], server, [])
    server.process.wait()
    assert check.report.failed
    assert check.report.notes == [
        f"FP32, all steps on the GPU, {callers} callers: 3 requests failed, and 2 answers were"
        " wrong"
        for callers in (8, 32)
    ]


def test_without_a_gpu_nothing_is_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu_check, "nvidia_smi", lambda *fields: [])
    assert gpu_check.main([f"--output={tmp_path}"]) == 1
    assert "--rehearse" in capsys.readouterr().err
    assert not [*tmp_path.iterdir()]


def test_failed_phase_leaves_the_others_their_turn(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(self: gpu_check.Check, *case: gpu_check.Case) -> None:
        raise RuntimeError("broken\nin two lines")

    monkeypatch.setattr(gpu_check, "nvidia_smi", lambda *fields: ["Some GPU"])
    for name in ("tests", "server"):
        monkeypatch.setattr(gpu_check.Check, name, fail)
    monkeypatch.setattr(gpu_check.Check, "engine", lambda self, case: None)
    assert gpu_check.main([f"--output={tmp_path}"]) == 1
    text = (tmp_path / "Some-GPU.md").read_text()
    assert "- tests: broken / in two lines" in text
    assert "- server FP16: broken / in two lines" in text
    assert "| TensorRT |" in text


def test_phase_after_the_time_is_left_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(gpu_check, "nvidia_smi", lambda *fields: ["Some GPU"])
    assert gpu_check.main([f"--output={tmp_path}", "--minutes=0"]) == 1
    text = (tmp_path / "Some-GPU.md").read_text()
    assert "- tests: left out, the time was over" in text
    assert "- bare engine FP32: left out, the time was over" in text
