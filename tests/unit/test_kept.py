"""Earlier versions of a network are kept, and one of them can be served again."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import threading
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from empty_network import write
from support import REPOSITORY

from yolov5_build import BuildError, install_onnx
from yolov5_build import cli as command
from yolov5_build._kept import roll_back
from yolov5_build._record import Accuracy, read_record
from yolov5_build._version import kept_versions, new_version, version_folder

SHA256 = "0" * 63 + "1"


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """With the endpoint of the project, and no network."""
    folder = tmp_path / "repository"
    shutil.copytree(REPOSITORY / "yolov5_ensemble", folder / "yolov5_ensemble", symlinks=True)
    return folder


def install(
    repository: Path, *, label: str = "car", name: str = "yolov5", batch: int = 8, **options: Any
) -> int:
    metadata = {
        "names": str({0: label, 1: "bus"}),
        "max_batch_size": str(batch),
        "provenance": f"From {label}.pt, sha256 {SHA256}.",
    }
    weights = write(repository.parent, 96, 64, metadata=metadata)
    return install_onnx(weights, repository, name=name, **options).version


def served(repository: Path, name: str = "yolov5") -> int:
    folder = version_folder(repository / name)
    assert folder is not None
    return int(folder.name)


def kept(repository: Path, name: str = "yolov5") -> list[int]:
    return [int(path.name) for path in kept_versions(repository / name)]


def contents(folder: Path) -> dict[str, bytes]:
    """Of all files of a version, without the versions that are kept beside it."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and "versions" not in path.relative_to(folder).parts
    }


def refusal(repository: Path, number: int | None = None, name: str = "yolov5") -> str:
    before = contents(repository), kept(repository, name)
    with pytest.raises(BuildError) as caught:
        roll_back(repository, name, number)
    assert (contents(repository), kept(repository, name)) == before
    return str(caught.value)


@pytest.mark.parametrize("name", ["yolov5", "plates"])
def test_three_earlier_versions_are_kept_whole(repository: Path, name: str) -> None:
    installed = {}
    for number in range(1, 6):
        assert install(repository, label=f"class{number}", name=name) == number
        installed[number] = contents(repository / name)
        assert f"{number}/installed.json" in installed[number]
        assert kept(repository, name) == list(range(max(1, number - 3), number))
    for number in (2, 3, 4):
        assert contents(repository / name / "versions" / str(number)) == installed[number]
    assert contents(repository / name) == installed[5]
    assert not list(repository.parent.glob(".yolov5-*"))


def test_weights_of_kept_versions_are_not_copied(repository: Path) -> None:
    install(repository)
    weights = (repository / "yolov5" / "1" / "model.onnx").stat().st_ino
    install(repository)
    install(repository)
    moved = repository / "yolov5" / "versions" / "1" / "1" / "model.onnx"
    assert moved.stat().st_ino == weights
    roll_back(repository, "yolov5", 1)
    assert (repository / "yolov5" / "1" / "model.onnx").stat().st_ino == weights
    # A file that an operator edits is part of no other version.
    assert {path.stat().st_nlink for path in repository.rglob("*") if path.is_file()} == {1}


def test_versions_are_kept_where_there_are_no_links(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    install(repository)
    before = contents(repository / "yolov5")
    install(repository, label="other")
    assert roll_back(repository, "yolov5") == 1
    assert contents(repository / "yolov5") == before
    assert kept(repository) == [2]


def test_rollback_serves_the_version_before_as_it_was(repository: Path) -> None:
    for label in ("one", "two", "three"):
        install(repository, label=label)
    before = contents(repository / "yolov5" / "versions" / "2")
    newest = contents(repository / "yolov5")
    assert roll_back(repository, "yolov5") == 2
    assert (served(repository), kept(repository)) == (2, [1, 3])
    assert contents(repository / "yolov5") == before
    assert contents(repository / "yolov5" / "versions" / "3") == newest
    assert roll_back(repository, "yolov5") == 1
    assert roll_back(repository, "yolov5", 3) == 3
    assert contents(repository / "yolov5") == newest
    assert (served(repository), kept(repository)) == (3, [1, 2])


def test_next_version_is_one_more_than_the_highest_and_the_served_one_is_kept(
    repository: Path,
) -> None:
    for _ in range(4):
        install(repository)
    roll_back(repository, "yolov5", 1)
    assert kept(repository) == [2, 3, 4]
    assert install(repository) == 5
    assert kept(repository) == [1, 3, 4]


def test_rollback_of_one_network_leaves_the_others(repository: Path) -> None:
    for name in ("yolov5", "plates"):
        install(repository, name=name)
        install(repository, name=name)
    before = contents(repository / "yolov5")
    assert roll_back(repository, "plates") == 1
    assert (served(repository), served(repository, "plates")) == (2, 1)
    assert contents(repository / "yolov5") == before


@pytest.mark.parametrize(("old", "new"), [(8, 2), (2, 8)])
def test_batch_limit_of_the_endpoint_follows_a_rollback(
    repository: Path, old: int, new: int
) -> None:
    for name in ("yolov5", "plates"):
        install(repository, name=name, batch=old)
        install(repository, name=name, batch=new)
        roll_back(repository, name)
        for config in (repository / f"{name}_ensemble").rglob("*.pbtxt"):
            assert f"\nmax_batch_size: {old}\n" in config.read_text()


def test_rollback_brings_back_an_endpoint_that_is_missing(repository: Path) -> None:
    install(repository, name="plates")
    install(repository, name="plates")
    shutil.rmtree(repository / "plates_ensemble")
    roll_back(repository, "plates")
    assert (repository / "plates_ensemble" / "config.pbtxt").is_file()


def test_missing_versions_are_named(repository: Path) -> None:
    install(repository)
    assert refusal(repository) == (
        "no version of yolov5 before the served one, 1, is kept; kept: none."
    )
    for _ in range(3):
        install(repository)
    assert refusal(repository, 7) == "there is no version 7 of yolov5; kept: 3, 2, 1."
    assert refusal(repository, 4) == "version 4 of yolov5 is served already; kept: 3, 2, 1."
    (repository / "yolov5" / "versions" / "2" / "config.pbtxt").unlink()
    assert refusal(repository, 2) == "version 2 of yolov5 is not complete; kept: 3, 2, 1."
    roll_back(repository, "yolov5", 1)
    assert refusal(repository) == (
        "no version of yolov5 before the served one, 1, is kept; kept: 4, 3, 2."
    )


@pytest.mark.parametrize("missing", ["config.pbtxt", "1/model.onnx"])
def test_version_that_cannot_be_served_is_not_kept(repository: Path, missing: str) -> None:
    """As in a clone of a repository whose weights are not in git."""
    install(repository, label="one")
    for path in (repository / "yolov5" / "1").iterdir():
        if missing != "config.pbtxt":
            path.unlink()
    if missing == "config.pbtxt":
        (repository / "yolov5" / missing).unlink()
    assert install(repository) == 2
    assert kept(repository) == []


def test_reader_never_sees_a_partial_rollback(repository: Path) -> None:
    install(repository, label="one")
    install(repository, label="two")
    done, broken, folder = threading.Event(), list[str](), repository / "yolov5"

    def read() -> None:
        while not done.is_set():
            for part in ("config.pbtxt", "labels.txt", "versions"):
                if not (folder / part).exists():
                    broken.append(part)

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(10):
        before = folder.stat().st_ino
        roll_back(repository, "yolov5", 3 - served(repository))
        assert folder.stat().st_ino != before  # by which a running server notices it
    done.set()
    reader.join()
    assert broken == []


def test_installation_that_another_one_has_overtaken_gets_the_next_number(
    repository: Path,
) -> None:
    install(repository, label="one")
    with new_version(repository) as (folder, version):
        assert version.name == "2"
        (folder / "config.pbtxt").write_text("slow")
        (version / "model.onnx").write_text("slow")
        assert install(repository, label="fast") == 2
    assert (served(repository), kept(repository)) == (3, [1, 2])
    assert (repository / "yolov5" / "3" / "model.onnx").read_text() == "slow"
    assert (repository / "yolov5" / "versions" / "2" / "labels.txt").read_text() == "fast\nbus\n"


def test_record_says_what_was_installed(repository: Path) -> None:
    started = datetime.now(timezone.utc).replace(microsecond=0)
    accuracy = Accuracy(map50=0.61, map50_95=0.4, photos=64)
    install(repository, label="plates", options=["--half"], accuracy=accuracy)
    values = json.loads((repository / "yolov5" / "1" / "installed.json").read_text())
    time = values.pop("installed")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", time)
    installed = datetime.fromisoformat(time.replace("Z", "+00:00"))
    assert started <= installed <= datetime.now(timezone.utc)
    assert values == {
        "file": "plates.pt",
        "sha256": SHA256,
        "options": ["--half"],
        "map50": 0.61,
        "map50_95": 0.4,
        "photos": 64,
    }
    install(repository)
    values = json.loads((repository / "yolov5" / "2" / "installed.json").read_text())
    assert values.keys() == {"installed", "file", "sha256", "options"}
    record = read_record(repository / "yolov5" / "versions" / "1" / "1")
    assert record is not None and record.accuracy == accuracy


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"file": 1}', "[" * 60_000, '{"installed": "x", "file": "y"}']
)
def test_record_that_cannot_be_used_is_none(tmp_path: Path, text: str) -> None:
    assert read_record(tmp_path) is None
    (tmp_path / "installed.json").write_text(text)
    assert read_record(tmp_path) is None


def test_command_records_its_options(small_weights: Path, repository: Path) -> None:
    arguments = ["--imgsz", "64", "96", "--half", f"--repository={repository}"]
    assert command.main([str(small_weights), *arguments]) == 0
    record = read_record(repository / "yolov5" / "1")
    assert record is not None
    assert (record.file, record.accuracy) == ("best.pt", None)
    assert record.options == ("--half", "--imgsz", "64", "96")


def test_command_goes_back(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = f"--repository={repository}"
    for _ in range(3):
        install(repository)
        install(repository, name="plates")
    assert command.main([where, "--rollback"]) == 0
    assert command.main([where, "--name=plates", "--rollback", "1"]) == 0
    taken_over = "A server that runs on this repository takes it over within seconds.\n"
    assert capsys.readouterr().out == (
        f"Back at version 2. {taken_over}Back at version 1 of plates. {taken_over}"
    )
    assert (served(repository), served(repository, "plates")) == (2, 1)
    for flags, sentence in (
        (["--rollback", "two"], "--rollback is 'two'; allowed: the number of a kept version."),
        (["--rollback", "9"], "there is no version 9 of yolov5; kept: 3, 1."),
        (["--name=cars", "--rollback"], "there is no network 'cars' in repository; installed:"),
        (["--name=Cars", "--rollback"], "NAME is 'Cars'; allowed: "),
        (["x.pt", "--rollback"], "--rollback installs nothing, so it cannot be with WEIGHTS."),
        (["--rollback", "--imgsz=64"], "--rollback installs nothing, so it cannot be with --imgsz"),
    ):
        assert command.main([where, *flags]) == 1
        said = capsys.readouterr().err
        assert said.startswith(f"error: {sentence}") and said.count("\n") == 1


def test_nothing_that_takes_seconds_is_imported_to_go_back_or_to_list() -> None:
    script = (
        "import sys; import yolov5_build.__main__, yolov5_build.models;"
        "print(sorted({'torch', 'onnx', 'onnxruntime', 'cv2'} & sys.modules.keys()))"
    )
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (answer.stdout, answer.stderr) == ("[]\n", "")


def test_command_removes_a_network_its_endpoint_first(
    repository: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    install(repository)
    install(repository, name="plates")
    install(repository, name="plates")
    moved = []
    rename = Path.rename

    def watched(source: Path, target: Path) -> Path:
        moved.append(source.name)
        return rename(source, target)

    monkeypatch.setattr(Path, "rename", watched)
    where = f"--repository={repository}"
    before = contents(repository / "yolov5")
    assert command.main([where, "--name=plates", "--remove"]) == 0
    assert moved == ["plates_ensemble", "plates"]
    assert {path.name for path in repository.iterdir()} == {"yolov5", "yolov5_ensemble"}
    assert contents(repository / "yolov5") == before
    assert not list(repository.parent.glob(".yolov5-*"))
    assert capsys.readouterr().out.startswith("Removed plates and plates_ensemble. A server ")
    for name, sentence in (
        ("plates", "there is no network 'plates' in repository; installed: yolov5."),
        (
            "yolov5",
            "yolov5 is part of the project and cannot be removed; allowed: further networks, of"
            " which there are none.",
        ),
    ):
        assert command.main([where, f"--name={name}", "--remove"]) == 1
        assert capsys.readouterr().err == f"error: {sentence}\n"
    install(repository, name="cars")
    assert command.main([where, "--remove"]) == 1
    assert capsys.readouterr().err.endswith("cannot be removed; allowed: cars.\n")


@pytest.mark.parametrize("rest", ["plates", "plates_ensemble"])
def test_what_is_left_of_a_network_can_be_removed(repository: Path, rest: str) -> None:
    """A process may have been killed in between, or somebody has removed a folder by hand."""
    install(repository, name="plates")
    for name in {"plates", "plates_ensemble"} - {rest}:
        shutil.rmtree(repository / name)
    assert command.main([f"--repository={repository}", "--name=plates", "--remove"]) == 0
    assert [path.name for path in repository.iterdir()] == ["yolov5_ensemble"]


def test_network_called_like_a_temporary_folder_is_replaced(repository: Path) -> None:
    for number in (1, 2):
        assert install(repository, name="old") == number
    assert roll_back(repository, "old") == 1
