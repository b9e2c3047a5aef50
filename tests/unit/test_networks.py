"""Names of networks, and the endpoints that are written for them."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from empty_network import write
from google.protobuf import text_format
from support import REPOSITORY, ROOT
from tritonclient.grpc import model_config_pb2

from yolov5_build import BuildError, install_onnx
from yolov5_build import cli as command
from yolov5_build._endpoint import (
    MOST_NETWORKS,
    endpoint_text,
    follow_network,
    new_slot,
)
from yolov5_build._networks import check_name, endpoint_name, installed_networks, read_slot

ENDPOINT_FILES = {
    "1/.gitkeep",
    "config.pbtxt",
}


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """The endpoint of the project, and no network."""
    folder = tmp_path / "repository"
    shutil.copytree(REPOSITORY / "yolov5_ensemble", folder / "yolov5_ensemble", symlinks=True)
    return folder


def add(repository: Path, name: str, tmp_path: Path, batch: str | None = None) -> None:
    metadata = {"max_batch_size": batch} if batch else {}
    install_onnx(write(tmp_path, 96, 64, metadata=metadata), repository, name=name)


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()}


def slots(repository: Path) -> dict[str, int | None]:
    return {path.parent.name: read_slot(path) for path in repository.glob("*/config.pbtxt")}


@pytest.mark.parametrize("name", ["a", "7", "plates", "a-b_c", "yolov5", "ensemble", "x" * 40])
def test_name_is_allowed(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        *("", "Plates", "plates.2", "../x", "a/b", "-x", "_x", "x" * 41, "ä", "a b", "a\n"),
        *("preprocess", "postprocess", "yolov5_ensemble", "a_ensemble"),
    ],
)
def test_name_is_refused_in_one_sentence(name: str) -> None:
    with pytest.raises(BuildError) as caught:
        check_name(name)
    assert str(caught.value) == (
        f"NAME is {name[:60]!r}; allowed: up to 40 lower-case letters, digits, - and _, the first"
        " one a letter or digit, but not preprocess or postprocess, and no _ensemble at the end."
    )


def test_template_renders_the_endpoint_of_the_project() -> None:
    rendered = endpoint_text("yolov5", slot=0, max_batch_size=8)
    assert rendered == (REPOSITORY / "yolov5_ensemble" / "config.pbtxt").read_text()


def test_endpoint_differs_from_that_of_the_project_by_its_names() -> None:
    own, other = (
        text_format.Parse(text, model_config_pb2.ModelConfig())
        for text in (
            endpoint_text("plates", slot=7, max_batch_size=3),
            (REPOSITORY / "yolov5_ensemble" / "config.pbtxt").read_text(),
        )
    )
    assert own.name == "plates_ensemble"
    preprocess, network, _ = own.ensemble_scheduling.step
    assert dict(preprocess.input_map) == {"image_7": "image"}
    assert network.model_name == "plates"
    assert own.max_batch_size == 3
    preprocess.input_map.clear()
    preprocess.input_map["image"] = "image"
    own.name, network.model_name, own.max_batch_size = "yolov5_ensemble", "yolov5", 8
    assert own == other


def test_further_network_gets_an_endpoint_and_the_first_one_is_untouched(
    tmp_path: Path, repository: Path
) -> None:
    before = (repository / "yolov5_ensemble").stat()
    add(repository, "plates", tmp_path)
    assert files(repository / "plates_ensemble") == ENDPOINT_FILES
    assert files(repository / "plates") == {
        *("1/model.onnx", "1/served.onnx", "config.pbtxt", "labels.txt")
    }
    assert '\nname: "plates"\n' in (repository / "plates" / "config.pbtxt").read_text()
    assert (repository / "yolov5_ensemble").stat().st_mtime_ns == before.st_mtime_ns
    assert not (repository / "yolov5").exists()
    assert not list(tmp_path.glob(".yolov5-*"))


def test_endpoints_get_the_lowest_free_slot(tmp_path: Path, repository: Path) -> None:
    for name in ("b", "a", "c"):
        add(repository, name, tmp_path)
    wanted = {"yolov5_ensemble": 0, "b_ensemble": 1, "a_ensemble": 2, "c_ensemble": 3}
    assert {key: value for key, value in slots(repository).items() if key in wanted} == wanted
    shutil.rmtree(repository / "a_ensemble")
    add(repository, "d", tmp_path)
    assert slots(repository)["d_ensemble"] == 2


def test_endpoint_that_exists_stays_as_the_operator_has_changed_it(
    tmp_path: Path, repository: Path
) -> None:
    add(repository, "plates", tmp_path)
    config = repository / "plates_ensemble" / "config.pbtxt"
    text = config.read_text() + '\nparameters { key: "weight" value: { string_value: "2" } }\n'
    config.write_text(text)
    before = (repository / "plates_ensemble").stat().st_ino
    add(repository, "plates", tmp_path)
    assert config.read_text() == text
    assert (repository / "plates_ensemble").stat().st_ino == before
    add(repository, "plates", tmp_path, batch="3")
    assert config.read_text() == text.replace("max_batch_size: 8", "max_batch_size: 3")


def test_endpoint_follows_a_network_of_an_earlier_version_and_back(
    tmp_path: Path, repository: Path
) -> None:
    add(repository, "plates", tmp_path)
    config = repository / "plates_ensemble" / "config.pbtxt"
    new, network = config.read_text(), repository / "plates" / "config.pbtxt"
    small = network.read_text()
    network.write_text(small.replace('"pixels"', '"images"'))
    follow_network(repository, "plates")
    old = text_format.Parse(config.read_text(), model_config_pb2.ModelConfig())
    preprocess, step, _ = old.ensemble_scheduling.step
    assert dict(step.input_map) == {"images": "images"}
    assert "images" in preprocess.output_map and "pixels" not in preprocess.output_map
    (config.parent / "configs").mkdir()
    (config.parent / "configs" / "embedded.pbtxt").write_text("of an earlier version")
    network.write_text(small)
    follow_network(repository, "plates")
    assert config.read_text() == new
    assert not (config.parent / "configs" / "embedded.pbtxt").exists()


def test_batch_limit_of_an_endpoint_follows_its_own_network_alone(
    tmp_path: Path, repository: Path
) -> None:
    add(repository, "one", tmp_path, batch="3")
    add(repository, "two", tmp_path)
    add(repository, "one", tmp_path, batch="5")
    limits = {
        str(path.relative_to(repository)): path.read_text().partition("max_batch_size: ")[2][0]
        for path in repository.glob("*_ensemble/**/*.pbtxt")
    }
    for file in ENDPOINT_FILES - {"1/.gitkeep"}:
        assert limits[f"one_ensemble/{file}"] == "5"
        assert limits[f"two_ensemble/{file}"] == "8"


def test_endpoint_appears_when_the_network_is_complete(
    tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a running server sees the repository: each entry that appears is complete."""
    seen: list[tuple[str, set[str]]] = []
    rename = Path.rename

    def watched(source: Path, target: Path) -> Path:
        moved = rename(source, target)
        if Path(target).parent == repository:
            seen.append((Path(target).name, {path.name for path in repository.iterdir()}))
            assert "config.pbtxt" in files(Path(target))
        return moved

    monkeypatch.setattr(Path, "rename", watched)
    add(repository, "plates", tmp_path)
    assert seen == [
        ("plates", {"yolov5_ensemble", "plates"}),
        ("plates_ensemble", {"yolov5_ensemble", "plates", "plates_ensemble"}),
    ]


def test_endpoint_that_a_killed_installation_has_not_written_is_written_by_the_next(
    tmp_path: Path, repository: Path
) -> None:
    add(repository, "plates", tmp_path)
    shutil.rmtree(repository / "plates_ensemble")
    add(repository, "plates", tmp_path)
    assert files(repository / "plates_ensemble") == ENDPOINT_FILES


def test_full_repository_is_named_and_an_installed_network_can_be_replaced(
    tmp_path: Path, repository: Path
) -> None:
    for number in range(1, MOST_NETWORKS):
        folder = repository / f"n{number}_ensemble"
        folder.mkdir()
        text = endpoint_text(f"n{number}", slot=number, max_batch_size=8)
        (folder / "config.pbtxt").write_text(text)
    before = sorted(repository.iterdir())
    with pytest.raises(BuildError) as caught:
        add(repository, "plates", tmp_path)
    assert str(caught.value) == (
        "repository holds 48 networks, the most that a server takes; `make model NAME=..."
        " ARGS=--remove` takes one away."
    )
    assert sorted(repository.iterdir()) == before
    add(repository, "n3", tmp_path)
    assert (repository / "n3" / "1").is_dir()


def test_endpoint_whose_slot_is_unknown_is_named(tmp_path: Path, repository: Path) -> None:
    (repository / "b_ensemble").mkdir()
    (repository / "b_ensemble" / "config.pbtxt").write_text("name: \x1b[2J\n")
    with pytest.raises(BuildError, match=r"^b_ensemble/config.pbtxt is not valid: [^\x1b]*\.$"):
        add(repository, "plates", tmp_path)
    assert not (repository / "plates").exists()


def test_other_models_are_neither_listed_nor_replaced(tmp_path: Path, repository: Path) -> None:
    for name, text in (("resnet", 'backend: "python"'), ("both_ensemble", 'platform: "ensemble"')):
        (repository / name).mkdir()
        (repository / name / "config.pbtxt").write_text(text)
    add(repository, "plates", tmp_path)
    assert slots(repository)["plates_ensemble"] == 1
    assert installed_networks(repository) == ["yolov5", "plates"]
    for name, model in (("resnet", "resnet"), ("both", "both_ensemble")):
        with pytest.raises(BuildError) as caught:
            add(repository, name, tmp_path)
        assert str(caught.value) == (
            f"NAME is '{name}', but repository/{model} is another model, which `make model` has"
            " not written; choose another name."
        )


def test_network_of_the_project_is_installed_without_its_endpoint(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    repository.mkdir()
    add(repository, "yolov5", tmp_path)
    assert [path.name for path in repository.iterdir()] == ["yolov5"]
    assert new_slot(repository, "plates") == 1  # 0 stays for yolov5's, which git brings back


def test_endpoint_that_cannot_be_written_leaves_the_repository_as_it_was(
    tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mkdir = Path.mkdir

    def full(path: Path, *arguments: Any, **options: Any) -> None:
        if path.parent.name == "endpoint":
            raise OSError(errno.ENOSPC, "No space left on device")
        mkdir(path, *arguments, **options)

    monkeypatch.setattr(Path, "mkdir", full)
    with pytest.raises(BuildError, match="^repository cannot be written to: No space left on dev"):
        add(repository, "plates", tmp_path)
    assert [path.name for path in repository.iterdir()] == ["yolov5_ensemble"]
    assert not list(tmp_path.glob(".yolov5-*"))


@pytest.mark.parametrize("target", ["model", "engine"])
def test_make_hands_over_the_name_from_its_command_line_alone(target: str) -> None:
    # `make test` runs this within a make, which would name its folder in the last line.
    silent = ["--dry-run", "--no-print-directory"]
    command = ["make", *silent, "--old-file=.venv/.installed", "--old-file=Makefile", target]

    def made(*variables: str) -> str:
        environment = {**os.environ, "NAME": "from-the-environment"}
        answer = subprocess.run(
            [*command, *variables], cwd=ROOT, env=environment, capture_output=True, text=True
        )
        return answer.stdout.splitlines()[-1]

    assert "--name" not in made()
    assert " --name='plates' --x" in made("NAME=plates", "ARGS=--x")
    assert r" --name='a'\''; b'" in made("NAME=a'; b")


def test_names_of_a_network_and_its_endpoint_cannot_clash() -> None:
    assert endpoint_name("plates") == "plates_ensemble"
    with pytest.raises(BuildError):
        check_name(endpoint_name("plates"))


def test_command_installs_a_further_network(
    small_weights: Path, repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--imgsz=64", f"--repository={repository}", "--name=plates"]
    assert command.main([str(small_weights), *arguments]) == 0
    assert capsys.readouterr().out.endswith(
        "Installed best.pt as version 1 of plates: 3 classes, 64x64, letterbox square. Its endpoint"
        " is plates_ensemble. A server that runs on this repository takes it over within seconds.\n"
    )
    assert installed_networks(repository) == ["yolov5", "plates"]
    assert command.main(arguments) == 1
    assert capsys.readouterr().err == (
        "error: NAME is 'plates', but WEIGHTS is missing; only yolov5 is restored to the bundled"
        " network.\n"
    )
    assert command.main([str(small_weights), *arguments[:2], "--name="]) == 1
    assert capsys.readouterr().err.startswith("error: NAME is ''; allowed: ")
