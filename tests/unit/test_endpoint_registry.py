"""The steps find the network of each request by the wiring of its endpoint."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from endpoint_registry import Endpoint, EndpointError, EndpointRegistry, read_endpoint
from network_spec import NetworkSpecError
from support import ROOT

REPOSITORY = ROOT / "model_repository"


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository with the endpoint of yolov5, whose network's files are copied."""
    for model in ("yolov5", "yolov5_ensemble"):
        shutil.copytree(REPOSITORY / model, tmp_path / model, symlinks=True)
    return tmp_path


def add(repository: Path, name: str, slot: int, *, network: str = "", labels: str = "") -> Path:
    """Add an endpoint; its network is the bundled one, with these labels."""
    network = network or name
    shutil.copytree(REPOSITORY / "yolov5", repository / network)
    if labels:
        (repository / network / "labels.txt").write_text(labels)
    wire(repository, name, slot, network)
    return repository / f"{name}_ensemble"


def wire(repository: Path, name: str, slot: int, network: str) -> None:
    """Write the endpoint's configuration as a whole, as the launcher does."""
    text = (REPOSITORY / "yolov5_ensemble" / "config.pbtxt").read_text()
    text = text.replace('model_name: "yolov5"', f'model_name: "{network}"')
    text = text.replace('{ key: "image" value', f'{{ key: "image{f"_{slot}" * (slot > 0)}" value')
    new = repository / "new"
    new.mkdir()
    (new / "config.pbtxt").write_text(text)
    if (repository / f"{name}_ensemble").exists():
        shutil.rmtree(repository / f"{name}_ensemble")
    new.rename(repository / f"{name}_ensemble")


def registry(repository: Path, warnings: list[str]) -> EndpointRegistry[Endpoint]:
    return EndpointRegistry(repository, lambda endpoint: endpoint, warnings.append)


def test_endpoint_is_read_from_its_wiring(repository: Path) -> None:
    folder = add(repository, "plates", 7, labels="a\nb\nc\n")
    with (folder / "config.pbtxt").open("a") as config:
        config.write('parameters { key: "conf_thres" value: { string_value: "0.4" } }\n')
    endpoint = read_endpoint(folder)
    assert (endpoint.name, endpoint.slot) == ("plates", 7)
    assert endpoint.network.class_names == ("a", "b", "c")
    assert endpoint.parameters == {"conf_thres": "0.4"}


def test_endpoint_that_is_added_is_found(repository: Path) -> None:
    warnings: list[str] = []
    endpoints = registry(repository, warnings)
    assert endpoints.find(0).name == "yolov5"
    with pytest.raises(EndpointError, match="no endpoint uses input 3"):
        endpoints.find(3)
    add(repository, "plates", 3)
    assert endpoints.find(3).name == "plates"
    assert not warnings


def test_endpoint_that_is_removed_while_all_are_read_does_not_disturb_the_others(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = add(repository, "plates", 1)
    glob = Path.glob

    def glob_and_remove(path: Path, pattern: str) -> list[Path]:
        found = [*glob(path, pattern)]
        assert folder / "config.pbtxt" in found
        shutil.rmtree(folder)
        return found

    monkeypatch.setattr(Path, "glob", glob_and_remove)
    warnings: list[str] = []
    assert registry(repository, warnings).find(0).name == "yolov5"
    assert warnings == []


def test_requests_under_way_keep_the_network_that_is_replaced(repository: Path) -> None:
    add(repository, "plates", 1, labels="a\nb\nc\n")
    endpoints = registry(repository, [])
    assert endpoints.find(1).network.class_names == ("a", "b", "c")
    shutil.copytree(REPOSITORY / "yolov5", repository / "plates.2")
    (repository / "plates.2" / "labels.txt").write_text("d\ne\nf\n")
    wire(repository, "plates", 2, "plates.2")
    assert endpoints.find(2).network.class_names == ("d", "e", "f")
    assert endpoints.find(1).network.class_names == ("a", "b", "c")
    shutil.rmtree(repository / "plates")
    assert endpoints.find(1).network.class_names == ("a", "b", "c")


def test_slot_that_is_used_again_gets_the_new_network(repository: Path) -> None:
    endpoints = registry(repository, [])
    add(repository, "plates", 1)
    assert endpoints.find(1).name == "plates"
    shutil.rmtree(repository / "plates_ensemble")
    add(repository, "helmets", 1)
    os.utime(repository, ns=(0, 1))  # in case that the clock has not moved on
    assert endpoints.find(1).name == "helmets"


def test_endpoint_that_cannot_be_used_does_not_touch_the_others(repository: Path) -> None:
    add(repository, "plates", 1, labels="only one\n")
    (repository / "broken_ensemble").mkdir()
    (repository / "broken_ensemble" / "config.pbtxt").write_text("name: ")
    warnings: list[str] = []
    endpoints = registry(repository, warnings)
    assert endpoints.find(0).name == "yolov5"
    with pytest.raises(EndpointError, match="plates_ensemble: plates: output 'output0' has dims"):
        endpoints.find(1)
    assert len(warnings) == 2
    assert warnings[0].startswith("broken_ensemble/config.pbtxt cannot be read: ")
    endpoints.find(0)
    assert len(warnings) == 2


@pytest.mark.parametrize(
    "change",
    [
        ('key: "image" value', 'key: "picture" value'),
        ('key: "image" value', 'key: "image_64" value'),
        ('model_name: "postprocess"', 'model_name: "other"'),
        ('model_name: "yolov5"', 'model_name: "preprocess"'),
    ],
)
def test_wiring_of_another_kind_is_refused(repository: Path, change: tuple[str, str]) -> None:
    config = repository / "yolov5_ensemble" / "config.pbtxt"
    config.write_text(config.read_text().replace(*change))
    with pytest.raises(EndpointError, match="yolov5_ensemble/config.pbtxt must have three steps"):
        read_endpoint(config.parent)


def test_missing_network_is_named(repository: Path) -> None:
    wire(repository, "plates", 1, "plates")
    with pytest.raises(NetworkSpecError, match=r"plates/config.pbtxt cannot be read"):
        read_endpoint(repository / "plates_ensemble")
