"""The gateway's list of endpoints, made from the folders of a model repository."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from endpoints import EndpointList, find_endpoints
from support import ROOT

SCRIPT = ROOT / "deploy" / "gateway" / "endpoints.py"


def make_folders(repository: Path, *names: str) -> Path:
    for name in names:
        (repository / name).mkdir(parents=True)
    return repository


def written(folder: Path) -> list[str]:
    return (folder / "endpoints" / "list").read_text().splitlines()


def test_every_network_with_an_endpoint_is_found(tmp_path: Path) -> None:
    make_folders(tmp_path, "yolov5", "yolov5_ensemble", "plates-2_b", "plates-2_b_ensemble")
    assert find_endpoints(tmp_path) == ["plates-2_b_ensemble", "yolov5_ensemble"]


def test_repository_of_the_project_has_the_endpoint_of_the_contract() -> None:
    assert "yolov5_ensemble" in find_endpoints(ROOT / "model_repository")


@pytest.mark.parametrize(
    "names",
    [
        ("plates",),
        ("plates_ensemble",),
        ("preprocess", "preprocess_ensemble"),
        ("postprocess", "postprocess_ensemble"),
        ("plates_ensemble", "plates_ensemble_ensemble"),
        ("Plates", "Plates_ensemble"),
        ("-x", "-x_ensemble"),
        (".plates", ".plates_ensemble"),
        ("a\nb", "a\nb_ensemble"),
        ("a b", "a b_ensemble"),
        ("x" * 41, "x" * 41 + "_ensemble"),
    ],
)
def test_other_folders_are_no_endpoints(tmp_path: Path, names: tuple[str, ...]) -> None:
    make_folders(tmp_path, *names)
    assert find_endpoints(tmp_path) == []


def test_file_is_no_network(tmp_path: Path) -> None:
    make_folders(tmp_path, "plates_ensemble")
    (tmp_path / "plates").touch()
    assert find_endpoints(tmp_path) == []


def test_folder_may_be_a_link(tmp_path: Path) -> None:
    repository = make_folders(tmp_path / "models", "plates_ensemble")
    (repository / "plates").symlink_to(make_folders(tmp_path / "elsewhere", "1"))
    assert find_endpoints(repository) == ["plates_ensemble"]


def test_list_follows_the_repository(tmp_path: Path) -> None:
    repository = make_folders(tmp_path / "models", "yolov5", "yolov5_ensemble")
    endpoints = EndpointList(repository, tmp_path)
    endpoints.update()
    assert written(tmp_path) == endpoints.names == ["yolov5_ensemble"]
    make_folders(repository, "plates", "plates_ensemble")
    endpoints.update()
    assert written(tmp_path) == endpoints.names == ["plates_ensemble", "yolov5_ensemble"]
    for name in ("plates", "plates_ensemble"):
        (repository / name).rmdir()
    endpoints.update()
    endpoints.update()
    assert written(tmp_path) == endpoints.names == ["yolov5_ensemble"]
    assert [path.name for path in (tmp_path / "endpoints").iterdir()] == ["list"]


def test_network_that_is_missing_for_a_moment_stays_in_the_list(tmp_path: Path) -> None:
    repository = make_folders(tmp_path / "models", "yolov5", "yolov5_ensemble")
    endpoints = EndpointList(repository, tmp_path)
    endpoints.update()
    for _ in range(3):
        (repository / "yolov5").rename(tmp_path / "old")
        endpoints.update()
        assert written(tmp_path) == ["yolov5_ensemble"]
        (tmp_path / "old").rename(repository / "yolov5")
        endpoints.update()


def test_list_of_an_empty_repository_is_empty(tmp_path: Path) -> None:
    repository = make_folders(tmp_path / "models", "preprocess")
    EndpointList(repository, tmp_path).update()
    assert written(tmp_path) == []


def test_unreadable_repository_changes_nothing(tmp_path: Path) -> None:
    repository = make_folders(tmp_path / "models", "yolov5", "yolov5_ensemble")
    endpoints = EndpointList(repository, tmp_path)
    endpoints.refresh()
    shutil.rmtree(repository)
    for _ in range(3):
        with pytest.raises(FileNotFoundError):
            endpoints.update()
    assert written(tmp_path) == ["yolov5_ensemble"]


def test_refresh_looks_once_a_second(tmp_path: Path) -> None:
    repository = make_folders(tmp_path / "models", "yolov5", "yolov5_ensemble")
    endpoints = EndpointList(repository, tmp_path)
    endpoints.refresh()
    make_folders(repository, "plates", "plates_ensemble")
    endpoints.refresh()
    assert endpoints.names == ["yolov5_ensemble"]


def run_script(*arguments: Path) -> subprocess.CompletedProcess[str]:
    # -I -S: any Python will do, without the packages of this project.
    command = [sys.executable, "-I", "-S", str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=30)


def test_script_writes_the_list_without_the_project(tmp_path: Path) -> None:
    repository = make_folders(tmp_path / "models", "yolov5", "yolov5_ensemble")
    done = run_script(repository, tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "yolov5_ensemble\n", "")
    assert written(tmp_path) == ["yolov5_ensemble"]


def test_script_names_a_folder_that_is_missing(tmp_path: Path) -> None:
    done = run_script(tmp_path / "models", tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert (
        done.stderr == f"error: {tmp_path / 'models'} cannot be used (No such file or directory).\n"
    )
