"""Serve what is installed; the test takes Triton's place, and keeps account of what it is told."""

from __future__ import annotations

import fcntl
import os
import shutil
import threading
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import text_format
from support import ROOT
from tritonclient.grpc import model_config_pb2

from yolov5_server import Settings, _reload, _repository, hardware
from yolov5_server._control import ControlError, ModelControl
from yolov5_server._errors import StartError
from yolov5_server._loading import LoadStuckError
from yolov5_server._reload import Reloader
from yolov5_server._stage import Stage, Staged

STEPS = ["postprocess", "preprocess"]
VERSIONS = {"yolov5": 1, "yolov5.2": 4, "yolov5.3": 5}


def read(path: Path) -> model_config_pb2.ModelConfig:
    return text_format.Parse(path.read_text(), model_config_pb2.ModelConfig())


class Triton(ModelControl):
    """Takes Triton's place.

    Attributes:
        done: what it was told to do, and what it was told of.
        served: the network of each endpoint that is served.
        broken: what it cannot do, with the error.
    """

    def __init__(self, models: Path) -> None:
        super().__init__("127.0.0.1:1")
        self.models = models
        self.done: list[Any] = []
        self.served = {"yolov5_ensemble": "yolov5"}
        self.broken: dict[str, Exception] = {}

    def _fail(self, what: str) -> None:
        if what in self.broken:
            raise self.broken[what]

    def load(self, model: str, config: model_config_pb2.ModelConfig | None = None) -> None:
        self.done.append(f"load {model}")
        self._fail(f"load {model}")
        if model.endswith("_ensemble"):
            config = read(self.models / model / "configs" / "served.pbtxt")
            names = [step.model_name for step in config.ensemble_scheduling.step]
            self.served[model] = names[1]

    def unload(self, model: str) -> None:
        self.done.append(f"unload {model}")
        self._fail(f"unload {model}")
        self.served.pop(model, None)

    def is_served(self, model: str) -> bool:
        self._fail("is_served")
        return model in self.served

    def failures(self) -> dict[str, str]:
        return {}

    def steps(self, ensemble: str) -> list[str]:
        return ["preprocess", self.served[ensemble], "postprocess"]

    def version(self, model: str) -> int:
        self._fail("version")
        return VERSIONS.get(model, 7)


class Place:
    """A repository, what Triton reads of it, and a reloader.

    Attributes:
        said: lines of the log, and sentences of `on_stuck`.
        endpoints: the networks that are served, as they were last told.
        replaced: the networks whose endpoints are others than before, in turn.
    """

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, triton: Path | None) -> None:
        self.repository = folder / "repository"
        self.models, self.closed = folder / "models", folder / "closed"
        self.triton = Triton(self.models)
        shutil.copytree(
            ROOT / "model_repository",
            self.repository,
            symlinks=True,
            ignore=lambda folder, names: (
                {*names} - {"config.pbtxt", "labels.txt"} if folder.endswith("/yolov5") else ()
            ),
        )
        (self.repository / "yolov5" / "1").mkdir()
        (self.repository / "yolov5" / "1" / "served.onnx").write_text("first")
        self.said: list[str] = []
        self.endpoints: list[str] = []
        self.replaced: list[str] = []
        self.loading = threading.Lock()
        self.process: dict[str, bool] = {}

        def load(control: Callable[[str], None], name: str, **how: Any) -> None:
            assert how["server"] == 77
            self.process[name] = how["has_process"]
            control(name)

        monkeypatch.setattr(_reload, "load", load)
        settings = Settings(repository=self.repository, triton=triton)
        self.reloader = Reloader(
            settings=settings,
            stage=Stage(settings, folder),
            control=self.triton,
            loading=self.loading,
            on_models_changed=self.changed,
            on_endpoints_changed=self.told,
            on_stuck=lambda sentence: self.said.append(f"stuck: {sentence}"),
            log=self.said.append,
            on_replaced=self.replaced.append,
        )
        self.reloader.server = 77
        self.reloader.started(self.reloader.stage_all())

    def changed(self, models: Collection[str] | None) -> None:
        self.triton.done.append(None if models is None else sorted(models))

    def told(self, networks: Collection[str]) -> None:
        self.endpoints = [*networks]

    def install(self, weights: str | None, name: str = "yolov5") -> None:
        """As `make model` does: another folder takes the place of the network's."""
        network, new = self.repository / name, self.repository / "new"
        shutil.copytree(self.repository / "yolov5", new)
        if weights is not None:
            (new / "1" / "served.onnx").write_text(weights)
        config = new / "config.pbtxt"
        config.write_text(config.read_text().replace('name: "yolov5"', f'name: "{name}"'))
        if network.exists():
            network.rename(self.repository / "old")
        new.rename(network)
        shutil.rmtree(self.repository / "old", ignore_errors=True)

    def add(self, name: str, slot: int, more: str = "") -> None:
        """Install a further network, and write its endpoint."""
        self.install("weights", name)
        new = self.repository / "new"
        shutil.copytree(self.repository / "yolov5_ensemble", new, symlinks=True)
        config = new / "config.pbtxt"
        text = config.read_text()
        text = text.replace('name: "yolov5', f'name: "{name}')
        text = text.replace('key: "image" value', f'key: "image_{slot}" value')
        config.write_text(text + more)
        new.rename(self.repository / f"{name}_ensemble")

    def remove(self, name: str) -> None:
        shutil.rmtree(self.repository / f"{name}_ensemble")
        shutil.rmtree(self.repository / name)

    def reload(self, weights: str | None = "another") -> None:
        """Install another network, and watch until it is served or given up."""
        self.install(weights)
        self.watch()

    def watch(self) -> None:
        ended = threading.Event()
        waits = iter([False, False, True])
        ended.wait = lambda timeout=None: next(waits)  # type: ignore[method-assign]
        self.reloader.watch(ended)

    def restage(self) -> list[Staged]:
        """Stage what is installed, as the next start does."""
        for folder in (self.models, self.closed):
            shutil.rmtree(folder)
        self.reloader._stage = Stage(Settings(repository=self.repository), self.models.parent)
        return self.reloader.stage_all()

    def slot(self, endpoint: str = "yolov5_ensemble") -> str:
        """The input of `preprocess` that this endpoint uses, in both of its configurations."""
        (one,) = {
            str(name)
            for path in ("config.pbtxt", "configs/served.pbtxt")
            for name in read(self.models / endpoint / path).ensemble_scheduling.step[0].input_map
        }
        return one

    def folders(self) -> list[str]:
        return sorted(path.name for path in self.models.iterdir())

    def doubles(self) -> list[str]:
        return sorted(path.name for path in self.closed.iterdir() if path.is_dir())


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    return Place(tmp_path, monkeypatch, None)


FIRST = ["postprocess", "preprocess", "yolov5"]
SECOND = [*STEPS, "yolov5.2"]
CUT_OVER = ["load yolov5.2", None, "load yolov5_ensemble", SECOND]


def test_new_network_is_loaded_under_a_new_name_and_then_served(place: Place) -> None:
    place.reload()
    assert place.triton.done == [*CUT_OVER, "unload yolov5"]
    assert place.said == ["Now serving version 4 of the network, FP32."]
    assert place.folders() == [*SECOND, "yolov5_ensemble"]
    assert place.doubles() == [*SECOND[:2], "yolov5", "yolov5.2"]
    assert place.process == {"yolov5.2": True}
    assert place.endpoints == ["yolov5"]
    assert not place.loading.locked()


@pytest.fixture
def bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU on which a configuration for BF16 is served."""
    monkeypatch.setattr(_repository, "cpu_has_bf16", lambda: True)
    monkeypatch.setattr(hardware, "has_gpu", lambda: False)


@pytest.mark.usefixtures("bf16")
def test_staged_network_carries_its_new_name_and_another_slot(place: Place) -> None:
    assert place.slot() == "image"
    (place.repository / "yolov5" / "configs").mkdir()
    own = (place.repository / "yolov5" / "config.pbtxt").read_text() + "version_policy {}\n"
    (place.repository / "yolov5" / "configs" / "bf16.pbtxt").write_text(own)
    place.reload()
    for path in ("config.pbtxt", "configs/served.pbtxt"):
        assert read(place.models / "yolov5.2" / path).name == "yolov5.2"
    assert read(place.models / "yolov5.2" / path).HasField("version_policy")
    double = read(place.closed / "yolov5.2" / "config.pbtxt")
    assert double.name == "yolov5.2"
    assert [one.model_name for one in double.ensemble_scheduling.step] == ["yolov5.2"]
    assert (place.models / "yolov5.2" / "1" / "served.onnx").read_text() == "another"
    assert place.slot() == "image_1", "requests under way keep the network in the slot before"


def test_second_reload_replaces_the_first(place: Place) -> None:
    place.reload()
    place.triton.done.clear()
    place.reload()
    assert place.triton.served == {"yolov5_ensemble": "yolov5.3"}
    assert place.triton.done[-1:] == ["unload yolov5.2"]
    assert place.said[-1] == "Now serving version 5 of the network, FP32."
    assert place.folders() == [*STEPS, "yolov5.3", "yolov5_ensemble"]
    assert place.doubles() == [*STEPS, "yolov5", "yolov5.3"]


def test_old_network_is_served_if_the_new_one_cannot_be_loaded(place: Place) -> None:
    place.triton.broken = {
        "load yolov5.2": ControlError("no room."),
        "unload yolov5.2": ControlError("x"),
    }
    place.reload()
    assert place.triton.done == ["load yolov5.2", FIRST, "unload yolov5.2"]
    assert place.said == ["The new network was not loaded, the old one is still served: no room."]
    assert place.reloader.refused == {"yolov5": place.said[0]}
    assert (place.folders(), place.doubles()) == ([*FIRST, "yolov5_ensemble"], FIRST)
    assert place.slot() == "image"
    place.triton.broken = {}
    place.reload()
    assert place.said[1:] == ["Now serving version 5 of the network, FP32."]
    assert place.reloader.refused == {}
    assert place.triton.done[-1] == "unload yolov5"


def test_network_that_contradicts_its_labels_is_not_loaded(place: Place) -> None:
    place.install("another")
    (place.repository / "yolov5" / "labels.txt").write_text("one\n")
    place.watch()
    assert "output 'output0' has dims [-1, 8], but the last one must be 6" in place.said[0]
    assert place.triton.done == [FIRST, "unload yolov5.2"]


def test_failure_at_the_cut_over_leaves_what_triton_serves(place: Place) -> None:
    place.triton.broken = {"load yolov5_ensemble": ControlError("timed out.")}
    place.reload()
    assert place.triton.done[1:4] == [None, "load yolov5_ensemble", FIRST]
    assert place.said == ["The new network was not loaded, the old one is still served: timed out."]
    place.triton.served = {"yolov5_ensemble": "yolov5.3"}
    place.reload()
    assert place.said[1:] == ["Now serving version 5 of the network, FP32."], "it was cut over"


def test_network_without_weights_is_not_loaded(place: Place) -> None:
    (place.repository / "yolov5" / "1" / "served.onnx").unlink()
    place.reload(weights=None)
    assert place.said[0].startswith("The new network was not loaded, the old one is still served")
    assert "holds no served.onnx" in place.said[0]
    assert not any(str(one).startswith("load") for one in place.triton.done)


@pytest.mark.parametrize(
    ("broken", "sentence"),
    [
        (
            {"load yolov5.2": LoadStuckError("a process has ended")},
            "stuck: The new network was not loaded: a process has ended.",
        ),
        (
            {"load yolov5.2": ControlError("no"), "is_served": ControlError("silence")},
            "stuck: Triton does not say which network it serves: silence.",
        ),
        (
            {"version": ControlError("silence")},
            "stuck: Triton does not say which network it serves: silence.",
        ),
    ],
)
def test_triton_that_is_stuck_is_given_up(
    place: Place, broken: dict[str, Exception], sentence: str
) -> None:
    place.triton.broken = broken
    place.reload()
    assert place.said == [sentence]
    assert not any(str(one).startswith("unload") for one in place.triton.done)


def test_network_in_cpp_needs_no_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = Place(tmp_path, monkeypatch, tmp_path)
    place.reload()
    assert place.process == {"yolov5.2": False}


def test_same_network_is_not_reloaded(place: Place) -> None:
    place.watch()
    shutil.rmtree(place.repository / "yolov5")
    place.watch()
    assert (place.triton.done, place.said) == ([], [])


# -- further networks --------------------------------------------------------------------------


def test_further_network_is_added_and_removed_beside_the_first(place: Place) -> None:
    place.add("plates", 1)
    place.watch()
    with_plates = ["plates.2", *FIRST]
    assert place.triton.done == ["load plates.2", None, "load plates_ensemble", with_plates]
    assert place.said == ["Now serving version 7 of plates, FP32."]
    assert place.endpoints == ["yolov5", "plates"]
    assert place.slot("plates_ensemble") == "image_1"
    place.triton.done.clear()
    place.remove("plates")
    place.watch()
    assert place.endpoints == ["yolov5"]
    assert place.triton.done == [None, "unload plates_ensemble", "unload plates.2", FIRST]
    assert place.said[1:] == ["plates_ensemble was removed."]
    assert (place.folders(), place.doubles()) == ([*FIRST, "yolov5_ensemble"], FIRST)


def test_changed_endpoint_is_served_with_the_same_network(place: Place) -> None:
    config = place.repository / "yolov5_ensemble" / "config.pbtxt"
    own = 'parameters { key: "conf_thres" value: { string_value: "0.5" } }\n'
    config.write_text(config.read_text() + own)
    place.watch()
    assert place.triton.done == [None, "load yolov5_ensemble", FIRST]
    assert place.said == ["Now serving yolov5_ensemble as it is configured now."]
    assert place.slot() == "image_1"
    staged = read(place.models / "yolov5_ensemble" / "config.pbtxt")
    assert staged.parameters["conf_thres"].string_value == "0.5"
    config.write_text(config.read_text().replace('"0.5"', '"5"'))
    place.watch()
    assert "conf_thres is '5'; allowed: a number from 0 to 1" in place.said[1]
    assert place.triton.served == {"yolov5_ensemble": "yolov5"}
    assert place.slot() == "image_1"


def test_health_learns_which_endpoint_is_another_one(place: Place) -> None:
    place.add("plates", 1)
    place.watch()
    place.reload()
    config = place.repository / "plates_ensemble" / "config.pbtxt"
    config.write_text(f"{config.read_text()}\n")
    place.watch()
    place.triton.broken = {"load yolov5.4": ControlError("no room.")}
    place.reload()
    place.remove("plates")
    place.watch()
    assert place.replaced == ["plates", "yolov5", "plates"]


def test_broken_further_network_is_refused_and_tried_again_when_it_is_replaced(
    place: Place,
) -> None:
    place.add("plates", 1)
    (place.repository / "plates" / "labels.txt").write_text("one\n")
    place.watch()
    assert place.said[0].startswith("The network plates is not served: plates: output 'output0'")
    assert place.reloader.refused == {"plates": place.said[0]}
    assert place.endpoints == ["yolov5"]
    assert place.folders() == [*FIRST, "yolov5_ensemble"]
    place.watch()
    assert len(place.said) == 1
    place.install("other", "plates")
    place.watch()
    assert place.said[1:] == ["Now serving version 7 of plates, FP32."]
    assert place.reloader.refused == {}


def test_broken_further_network_does_not_keep_the_server_from_starting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Place(tmp_path, monkeypatch, None)
    place.add("plates", 1)
    place.add("helmets", 2)
    (place.repository / "plates" / "labels.txt").write_text("one\n")
    again = tmp_path / "again"
    again.mkdir()
    settings = Settings(repository=place.repository)
    stage = Stage(settings, again)
    place.reloader._stage = stage
    place.reloader.started(place.reloader.stage_all())
    assert place.endpoints == ["yolov5", "helmets"]
    assert place.reloader.refused["plates"].startswith("The network plates is not served: ")
    assert place.said == [place.reloader.refused["plates"]]
    assert not (again / "models" / "plates").exists()
    assert sorted(path.name for path in (again / "closed").iterdir()) == [
        *("README.md", "helmets", "postprocess", "preprocess", "yolov5")
    ]


@pytest.mark.parametrize("name", ["preprocess", "postprocess", "yolov5_ensemble", "Plates", "a.2"])
def test_endpoint_with_the_name_of_another_model_is_left_alone(place: Place, name: str) -> None:
    network, endpoint = place.repository / name, place.repository / f"{name}_ensemble"
    shutil.copytree(place.repository / "yolov5_ensemble", endpoint, symlinks=True)
    if not network.exists():
        shutil.copytree(place.repository / "yolov5", network)
    before = place.folders()
    place.watch()
    assert (place.triton.done, place.folders(), place.said) == ([], before, [])
    staged = place.restage()
    assert [one.network for one in staged] == ["yolov5"]
    assert place.folders() == before
    assert place.reloader.refused == {}


@pytest.mark.parametrize("folder", [str(2**63), "99999999999999999999", "+99999999999999999999x"])
def test_network_with_a_number_that_would_end_triton_is_refused(place: Place, folder: str) -> None:
    place.add("plates", 1)
    (place.repository / "plates" / folder).mkdir()
    place.watch()
    assert f"repository/plates/{folder} is no version; allowed: a folder" in place.said[0]
    assert place.triton.done == [FIRST, "unload plates.2"]
    assert [one.network for one in place.restage()] == ["yolov5"]
    (place.repository / "plates" / folder).rename(place.repository / "plates" / str(2**63 - 1))
    assert [one.network for one in place.restage()] == ["yolov5", "plates"]


@pytest.mark.usefixtures("bf16")
@pytest.mark.parametrize("file", ["config.pbtxt", "configs/bf16.pbtxt"])
@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ('name: "plates_ensemble"', 'name: "p"', "name is 'p'; allowed: 'plates_ensemble'"),
        (
            'model_name: "plates"',
            'model_name: "yolov5"',
            "its steps are ['preprocess', 'yolov5', 'postprocess'];"
            " allowed: ['preprocess', 'plates', 'postprocess']",
        ),
        ("max_batch_size: 8", "max_batch_size: 9", "max_batch_size is 9; allowed: 1 to 8"),
        ("max_batch_size: 8", "max_batch_size: 0", "max_batch_size is 0; allowed: 1 to 8"),
        (None, "", "its steps are []; allowed: ['preprocess', 'plates', 'postprocess']"),
    ],
)
def test_endpoint_that_does_not_fit_its_network_is_refused_by_its_file(
    place: Place, file: str, old: str | None, new: str, fault: str
) -> None:
    place.add("plates", 1)
    configs = place.repository / "plates" / "configs"
    configs.mkdir()
    shutil.copy(configs.parent / "config.pbtxt", configs / "bf16.pbtxt")
    endpoint = place.repository / "plates_ensemble"
    (endpoint / "configs").mkdir()
    shutil.copy(endpoint / "config.pbtxt", endpoint / "configs" / "bf16.pbtxt")
    path = place.repository / "plates_ensemble" / file
    text = path.read_text()
    path.write_text(new if old is None else text.replace(old, new))
    place.watch()
    sentence = f"The network plates is not served: repository/plates_ensemble/{file}: {fault}."
    assert place.said == [sentence]
    assert not any(str(one).startswith("load") for one in place.triton.done)
    place.reloader.started(place.restage())
    assert place.said[1:] == [sentence], "also at the next start"
    path.write_text(text)
    place.watch()
    assert place.said[2:] == ["Now serving version 7 of plates, FP32."]


def staged_configs(place: Place, endpoint: str) -> dict[str, str]:
    folder = place.models / endpoint
    return {name: (folder / name).read_text() for name in ("config.pbtxt", "configs/served.pbtxt")}


@pytest.mark.parametrize("network", ["yolov5", "plates"])
@pytest.mark.parametrize(
    ("more", "fault"),
    [
        (
            'key: "weight" value: { string_value: "0" }',
            "{endpoint}/config.pbtxt: setting 'weight' is '0'; allowed: a number from 0.01",
        ),
        (
            'key: "conf_thres" value: { string_value: "1.4" }',
            "{endpoint}/config.pbtxt: conf_thres is '1.4'; allowed: a number from 0 to 1",
        ),
        ('key: "conf_thres" value: { string_value: "0.9" }', "no."),
    ],
)
def test_refused_configuration_leaves_that_which_is_served_to_the_steps(
    place: Place, network: str, more: str, fault: str
) -> None:
    place.add("plates", 1)
    place.watch()
    endpoint = f"{network}_ensemble"
    before, served = staged_configs(place, endpoint), place.reloader.served[network]
    config = place.repository / endpoint / "config.pbtxt"
    text = config.read_text()
    place.triton.broken = {f"load {endpoint}": ControlError("no.")}
    for _ in range(2):
        config.write_text(f"{config.read_text()}parameters {{ {more} }}\n")
        place.watch()
        sentence = f"the old one is still served: {fault.format(endpoint=endpoint)}"
        assert sentence in place.said[-1]
        assert staged_configs(place, endpoint) == before
        assert place.reloader.served[network] == served
    place.triton.broken = {}
    config.write_text(text)
    place.watch()
    assert place.said[-1] == f"Now serving {endpoint} as it is configured now."
    assert place.slot(endpoint) != served.staged.input


def test_two_endpoints_never_get_the_same_slot(place: Place) -> None:
    place.add("plates", 1)
    place.add("helmets", 1)
    place.watch()
    assert len({place.slot(f"{name}_ensemble") for name in ("yolov5", "plates", "helmets")}) == 3


def test_more_endpoints_than_slots_are_refused(place: Place) -> None:
    stage = place.reloader._stage
    for number in range(63):
        stage._slots[f"n{number}"] = number + 1
    place.add("plates", 1)
    place.watch()
    assert place.said == [
        "The network plates is not served: there are too many endpoints; allowed: 63."
    ]
    with pytest.raises(StartError):
        stage.replacement("yolov5", "yolov5.9")


def test_nothing_is_said_when_the_server_ends_meanwhile(place: Place) -> None:
    ended = threading.Event()
    waits = iter([False, True])
    ended.wait = lambda timeout=None: next(waits)  # type: ignore[method-assign]

    def version(model: str) -> int:
        ended.set()
        return 4

    place.triton.version = version  # type: ignore[method-assign]
    place.install("another")
    place.reloader.watch(ended)
    assert place.said == []


def test_no_network_is_loaded_while_another_is_installed(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_reload, "_POLL_SECONDS", 0.01)
    ended = threading.Event()
    installing = os.open(place.repository, os.O_RDONLY)
    fcntl.flock(installing, fcntl.LOCK_EX)
    place.install("another")
    thread = threading.Thread(target=place.reloader.watch, args=(ended,))
    thread.start()
    time.sleep(0.05)
    assert place.triton.done == []
    os.close(installing)
    deadline = time.monotonic() + 10
    while not place.said:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    ended.set()
    thread.join(10)
    again = os.open(place.repository, os.O_RDONLY)
    fcntl.flock(again, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(again)
    assert not place.loading.locked()
