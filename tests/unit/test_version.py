"""The exchange of the served network's folder for a new one."""

from __future__ import annotations

import ctypes
import fcntl
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from yolov5_build import BuildError
from yolov5_build._version import _exchange, copy_weights, new_version, version_folder


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """An empty one; the folder around it is for staging."""
    folder = tmp_path / "repository"
    folder.mkdir()
    return folder


def staged(repository: Path) -> list[Path]:
    return list(repository.parent.glob(".yolov5-*"))


def install(repository: Path, text: str) -> None:
    with new_version(repository) as (folder, _):
        (folder / "labels.txt").write_text(text)


def content(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_newest_version_is_the_folder_with_the_highest_number(tmp_path: Path) -> None:
    assert version_folder(tmp_path / "none") is None
    for name in ("9", "10", "11x", "x12"):
        (tmp_path / name).mkdir()
    (tmp_path / "13").touch()
    assert version_folder(tmp_path) == tmp_path / "10"


def test_first_network_has_version_1(repository: Path) -> None:
    with new_version(repository) as (folder, version):
        assert version == folder / "1" and version.is_dir()
        assert repository not in folder.parents
        (folder / "labels.txt").write_text("car\n")
        assert content(repository) == []
    assert content(repository) == ["yolov5"]
    assert content(repository / "yolov5") == ["1", "labels.txt"]
    assert not staged(repository)


def test_next_network_has_the_next_version_and_nothing_of_the_old_one(repository: Path) -> None:
    (repository / "yolov5" / "9").mkdir(parents=True)
    (repository / "yolov5" / "stale").touch()
    install(repository, "bus\n")
    assert content(repository / "yolov5") == ["10", "labels.txt"]
    assert not staged(repository)


def test_failure_leaves_the_old_network(repository: Path) -> None:
    install(repository, "car\n")
    with pytest.raises(RuntimeError), new_version(repository) as (folder, _):
        (folder / "labels.txt").write_text("half")
        raise RuntimeError
    assert (repository / "yolov5" / "labels.txt").read_text() == "car\n"
    assert content(repository / "yolov5") == ["1", "labels.txt"]
    assert not staged(repository)


def test_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(BuildError) as caught:
        install(tmp_path / "none" / "models", "")
    assert str(caught.value) == "models cannot be written to: No such file or directory."


def abandoned(repository: Path) -> Path:
    """What a process leaves that was killed between two renames."""
    folder = repository.parent / ".yolov5-abcdefgh" / "old" / "7"
    folder.mkdir(parents=True)
    return folder


def test_network_that_a_killed_process_moved_away_is_restored(repository: Path) -> None:
    abandoned(repository)
    with pytest.raises(RuntimeError), new_version(repository) as (_, version):
        assert version.name == "8"
        raise RuntimeError
    assert content(repository / "yolov5") == ["7"]
    assert not staged(repository)


def test_installed_network_is_kept_when_an_older_one_is_left_over(repository: Path) -> None:
    install(repository, "car\n")
    abandoned(repository)
    with pytest.raises(RuntimeError), new_version(repository) as (_, version):
        assert version.name == "2"
        raise RuntimeError
    assert content(repository / "yolov5") == ["1", "labels.txt"]
    (repository.parent / ".yolov5-abcdefgh" / "other").mkdir(parents=True)
    install(repository, "bus\n")
    assert not staged(repository)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """As a server locks its repository while it loads the network."""
    descriptor = os.open(folder, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    yield
    os.close(descriptor)


def test_exchange_waits_for_a_server_that_loads_the_old_network(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    install(repository, "car\n")
    assert capsys.readouterr().err == ""
    with locked(repository):
        thread = threading.Thread(target=install, args=(repository, "bus\n"))
        thread.start()
        thread.join(0.3)
        assert thread.is_alive()
        assert (repository / "yolov5" / "labels.txt").read_text() == "car\n"
    thread.join(30)
    assert (repository / "yolov5" / "labels.txt").read_text() == "bus\n"
    said = "Waiting for a server that is loading the previous model ...\n"
    assert capsys.readouterr().err == said
    with locked(repository):  # nobody holds it any more
        pass


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A new network and the served one, as relative paths."""
    monkeypatch.chdir(tmp_path)
    Path("staging/yolov5/2").mkdir(parents=True)
    Path("repository/yolov5/1").mkdir(parents=True)
    return Path("staging/yolov5"), Path("repository/yolov5")


def test_exchange_is_one_step(folders: tuple[Path, Path]) -> None:
    new, served = folders
    _exchange(new, served)
    assert content(served) == ["2"]
    assert content(new) == ["1"]  # the other way would leave it as `old`


def test_exchange_takes_two_steps_where_one_is_not_supported(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: object())
    new, served = folders
    _exchange(new, served)
    assert content(served) == ["2"]
    assert content(new.parent) == ["old"] and content(new.parent / "old") == ["1"]


def test_exchange_of_two_steps_is_undone_if_the_second_fails(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: object())
    new, served = folders
    with pytest.raises(FileNotFoundError):
        _exchange(new.with_name("none"), served)
    assert content(served) == ["1"]
    assert content(new.parent) == ["yolov5"]


def test_weights_are_linked_or_else_copied(tmp_path: Path) -> None:
    source, target = tmp_path / "a.onnx", tmp_path / "b.onnx"
    source.write_bytes(b"weights")
    copy_weights(source, target)
    assert target.samefile(source)
    target.unlink()
    target.write_bytes(b"another file, which cannot be replaced by a link")
    copy_weights(source, target)
    assert target.read_bytes() == b"weights" and not target.samefile(source)
