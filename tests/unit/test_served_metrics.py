"""The launcher tells which networks it serves, since when, and how much memory all takes."""

from __future__ import annotations

import json
import os
from pathlib import Path

import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families
from support import StartModel

from yolov5_server._memory import memory_by_process, memory_limit
from yolov5_server._reload import Served
from yolov5_server._served_metrics import Record, read_record, served_metrics
from yolov5_server._stage import Staged

SHA256 = "195e54ac4bb1" + 52 * "0"


def record(folder: Path, **changes: object) -> None:
    folder.mkdir(parents=True)
    found = {"installed": "2026-11-22T17:00:00Z", "sha256": SHA256, **changes}
    (folder / "installed.json").write_text(json.dumps(found))


def served(network: str, version: int) -> Served:
    staged = Staged(
        network=network, model=network, slot=0, input="image", takes=("pixels",), precision="fp32"
    )
    return Served(staged=staged, identity=None, version=version)


def values(text: str) -> dict[tuple[str, ...], float]:
    return {
        (sample.name.removeprefix("yolov5_"), *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_served_and_refused_networks_are_told(tmp_path: Path) -> None:
    record(tmp_path / "yolov5" / "3")
    networks = {"yolov5": served("yolov5", 3), "plates": served("plates", 1)}
    text = served_metrics(tmp_path, networks, {"plates": "no memory", "cars": "bad"}, None)
    found = values(text)
    assert {key: value for key, value in found.items() if not key[0].startswith("memory")} == {
        ("model_info", "yolov5", "3", "fp32", "195e54ac4bb1"): 1,
        ("model_info", "plates", "1", "fp32", ""): 1,
        ("model_installed_timestamp_seconds", "yolov5"): 1795366800,
        ("model_refused", "yolov5"): 0,
        ("model_refused", "plates"): 1,
        ("model_refused", "cars"): 1,
    }
    assert found["memory_bytes", "launcher"] > 1 << 20
    assert found["memory_limit_bytes",] >= 1 << 28


def test_record_of_a_kept_version_is_found(tmp_path: Path) -> None:
    record(tmp_path / "yolov5" / "versions" / "2")
    assert read_record(tmp_path, "yolov5", 2).sha256 == "195e54ac4bb1"


@pytest.mark.parametrize(
    "changes", [{"installed": "soon"}, {"installed": 3}, {"sha256": None}, {"sha256": 7}]
)
def test_damaged_record_is_none(tmp_path: Path, changes: dict[str, object]) -> None:
    record(tmp_path / "yolov5" / "1", **changes)
    assert read_record(tmp_path, "yolov5", 1) == Record()


def test_label_is_safe_whatever_the_record_holds(tmp_path: Path) -> None:
    record(tmp_path / "yolov5" / "1", sha256='"} 1\nother 7\n')
    text = served_metrics(tmp_path, {"yolov5": served("yolov5", 1)}, (), None)
    assert ("model_info", "yolov5", "1", "fp32", "1e7") in values(text)


def test_memory_is_told_by_process(start_model: StartModel) -> None:
    start_model("yolov5.2")
    found = memory_by_process(os.getpid())
    assert list(found) == ["launcher", "tritonserver", "yolov5"]
    assert all(size > 1 << 20 for size in found.values())
    assert list(memory_by_process(None)) == ["launcher"]


@pytest.mark.parametrize(
    ("group", "files", "limit"),
    [
        ("0::/a/b", {"a/b/memory.max": "max", "a/memory.max": "700"}, 700),
        ("0::/a/b", {"memory.max": "600"}, 600),
        ("3:cpu,memory:/a\n2:cpu:/b", {"memory/a/memory.limit_in_bytes": "500"}, 500),
        ("3:memory:/host/path", {"memory/memory.limit_in_bytes": "400"}, 400),
        ("0::/../..", {"memory.max": "300"}, 300),
    ],
)
def test_smallest_limit_around_the_process_counts(
    tmp_path: Path, group: str, files: dict[str, str], limit: int
) -> None:
    (tmp_path / "cgroup").write_text(f"{group}\n")
    for name, content in files.items():
        path = tmp_path / "groups" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")
    assert memory_limit(tmp_path, tmp_path / "groups") == limit


def test_without_a_limit_the_memory_of_the_machine_counts(tmp_path: Path) -> None:
    (tmp_path / "cgroup").write_text("0::/a\n")
    unlimited = tmp_path / "groups" / "a" / "memory.max"
    unlimited.parent.mkdir(parents=True)
    unlimited.write_text("max\n")
    for proc in (tmp_path, tmp_path / "missing"):
        assert memory_limit(proc, tmp_path / "groups") == psutil.virtual_memory().total
