"""Reload a network; the test takes Triton's place, and keeps account of what it was told to do."""

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

from yolov5_server import Settings, _reload
from yolov5_server._control import ControlError, ModelControl
from yolov5_server._loading import LoadStuckError
from yolov5_server._reload import Reloader, write_config

STEPS = ("preprocess", "yolov5", "postprocess")
SECOND = {step: f"{step}.2" for step in STEPS}


def read(path: Path) -> model_config_pb2.ModelConfig:
    return text_format.Parse(path.read_text(), model_config_pb2.ModelConfig())


class Triton(ModelControl):
    """Takes Triton's place.

    Attributes:
        done: what it was told to do, and what it was told of.
        served: the models that the endpoint is made of.
        broken: what it cannot do, with the error.
    """

    def __init__(self) -> None:
        super().__init__("127.0.0.1:1")
        self.done: list[Any] = []
        self.served = [*STEPS]
        self.broken: dict[str, Exception] = {}
        self.ensemble: model_config_pb2.ModelConfig | None = None

    def _fail(self, what: str) -> None:
        if what in self.broken:
            raise self.broken[what]

    def load(self, model: str, config: model_config_pb2.ModelConfig | None = None) -> None:
        self.done.append(f"load {model}")
        self._fail(f"load {model}")
        if config is not None:
            self.served = [step.model_name for step in config.ensemble_scheduling.step]

    def unload(self, model: str) -> None:
        self.done.append(f"unload {model}")
        self._fail(f"unload {model}")

    def steps(self, ensemble: str) -> list[str]:
        assert ensemble == "yolov5_ensemble"
        self._fail("steps")
        return self.served

    def version(self, model: str) -> int:
        self._fail("version")
        return {"yolov5": 1, "yolov5.2": 4, "yolov5.3": 5}[model]


class Place:
    """A repository, what Triton reads of it, and a reloader.

    Attributes:
        said: lines of the log, and sentences of `on_stuck`.
    """

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, triton: Path | None) -> None:
        self.repository, self.models = folder / "repository", folder / "models"
        self.closed, self.triton = folder / "closed", Triton()
        for model in (*STEPS, "yolov5_ensemble"):
            (self.repository / model / "1").mkdir(parents=True)
            source = ROOT / "model_repository" / model / "config.pbtxt"
            shutil.copy(source, self.repository / model)
        self.install("first")
        shutil.copytree(ROOT / "server" / "closed_steps", self.closed)
        self.models.mkdir()
        self.said: list[str] = []
        self.loading = threading.Lock()
        self.process: dict[str, bool] = {}

        def load(control: Callable[[str], None], name: str, **how: Any) -> None:
            assert how["server"] == 77
            self.process[name] = how["has_process"]
            control(name)

        monkeypatch.setattr(_reload, "load", load)
        monkeypatch.setattr(_reload, "chosen_configs", lambda settings: self.configs)
        self.configs: str | None = None
        self.reloader = Reloader(
            settings=Settings(repository=self.repository, triton=triton),
            models=self.models,
            closed=self.closed,
            config_name="chosen",
            control=self.triton,
            loading=self.loading,
            on_models_changed=self.changed,
            on_stuck=lambda sentence: self.said.append(f"stuck: {sentence}"),
            log=self.said.append,
        )
        self.reloader.server = 77

    def changed(self, models: Collection[str] | None) -> None:
        self.triton.done.append(None if models is None else sorted(models))

    def install(self, weights: str | None) -> None:
        """As `make model` does: another folder takes the place of the network's."""
        network, new = self.repository / "yolov5", self.repository / "new"
        shutil.copytree(network, new)
        if weights is not None:
            (new / "1" / "model.onnx").write_text(weights)
        (new / "configs").mkdir(exist_ok=True)
        (new / "configs" / "embedded.pbtxt").write_text(
            (new / "config.pbtxt").read_text().replace('name: "yolov5"', 'name: "yolov5"\n# own')
        )
        network.rename(self.repository / "old")
        new.rename(network)
        shutil.rmtree(self.repository / "old")

    def reload(self, weights: str | None = "another") -> None:
        """Install another network, and watch until it is served or given up."""
        self.install(weights)
        self.watch()

    def watch(self) -> None:
        ended = threading.Event()
        waits = iter([False, False, True])
        ended.wait = lambda timeout=None: next(waits)  # type: ignore[method-assign]
        self.reloader.watch(ended)

    def folders(self) -> list[str]:
        return sorted(path.name for path in self.models.iterdir())

    def doubles(self) -> list[str]:
        return sorted(path.name for path in self.closed.iterdir() if path.is_dir())


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    return Place(tmp_path, monkeypatch, None)


CUT_OVER = [
    *("load preprocess.2", "load yolov5.2", "load postprocess.2", None, "load yolov5_ensemble"),
    sorted(SECOND.values()),
]


def test_new_network_is_loaded_under_new_names_and_then_served(place: Place) -> None:
    place.reload()
    assert place.triton.done == [*CUT_OVER, *(f"unload {step}" for step in STEPS)]
    assert place.triton.served == [*SECOND.values()]
    assert place.said == ["Now serving version 4 of the network, FP32."]
    assert place.folders() == sorted(SECOND.values())
    assert place.doubles() == sorted([*STEPS, *SECOND.values()])
    assert place.process == dict.fromkeys(SECOND.values(), True)
    assert not place.loading.locked()


def test_copies_carry_their_new_names(place: Place) -> None:
    place.configs = "embedded"
    place.reload()
    assert place.said == ["Now serving version 4 of the network, FP32."]
    for step, name in SECOND.items():
        for path in ("config.pbtxt", "configs/chosen.pbtxt"):
            config = read(place.models / name / path)
            assert config.name == name
            if step != "yolov5":
                assert config.parameters["network"].string_value == "yolov5.2"
        assert [one.name for one in (place.models / name / "configs").iterdir()] == ["chosen.pbtxt"]
        double = read(place.closed / name / "config.pbtxt")
        assert double.name == name
        assert [one.model_name for one in double.ensemble_scheduling.step] == [name]
    assert (place.models / "yolov5.2" / "1" / "model.onnx").read_text() == "another"


def test_second_reload_replaces_the_first(place: Place) -> None:
    place.reload()
    place.triton.done.clear()
    place.reload()
    third = [f"{step}.3" for step in STEPS]
    assert place.triton.served == third
    assert place.triton.done[-3:] == [f"unload {name}" for name in SECOND.values()]
    assert place.said[-1] == "Now serving version 5 of the network, FP32."
    assert (place.folders(), place.doubles()) == (sorted(third), sorted([*STEPS, *third]))


@pytest.mark.parametrize("failing", ["load preprocess.2", "load postprocess.2"])
def test_old_network_is_served_if_the_new_one_cannot_be_loaded(place: Place, failing: str) -> None:
    place.triton.broken = {failing: ControlError("no room."), "unload yolov5.2": ControlError("x")}
    place.reload()
    assert place.triton.served == [*STEPS]
    assert None not in place.triton.done
    assert place.triton.done[-4:] == [sorted(STEPS), *(f"unload {s}" for s in SECOND.values())]
    assert place.said == ["The new network was not loaded, the old one is still served: no room."]
    assert (place.folders(), place.doubles()) == ([], sorted(STEPS))
    place.triton.broken = {}
    place.reload()
    assert place.said[1:] == ["Now serving version 5 of the network, FP32."]
    assert place.triton.done[-3:] == [f"unload {step}" for step in STEPS]


def test_failure_at_the_cut_over_leaves_what_triton_serves(place: Place) -> None:
    place.triton.broken = {"load yolov5_ensemble": ControlError("timed out.")}
    place.reload()
    assert place.triton.done[3:6] == [None, "load yolov5_ensemble", sorted(STEPS)]
    assert place.said == ["The new network was not loaded, the old one is still served: timed out."]
    place.triton.served = [f"{step}.3" for step in STEPS]
    place.reload()
    assert place.said[1:] == ["Now serving version 5 of the network, FP32."], "it was cut over"


def test_network_without_weights_is_not_loaded(place: Place) -> None:
    (place.repository / "yolov5" / "1" / "model.onnx").unlink()
    place.reload(weights=None)
    assert place.said[0].startswith("The new network was not loaded, the old one is still served")
    assert "holds no model.onnx" in place.said[0]
    assert not any(str(one).startswith("load") for one in place.triton.done)


@pytest.mark.parametrize(
    ("broken", "sentence"),
    [
        (
            {"load yolov5.2": LoadStuckError("a process has ended")},
            "stuck: The new network was not loaded: a process has ended.",
        ),
        (
            {"steps": ControlError("silence")},
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
    assert place.process == {"preprocess.2": True, "yolov5.2": False, "postprocess.2": True}


def test_same_network_is_not_reloaded(place: Place) -> None:
    place.watch()
    shutil.rmtree(place.repository / "yolov5")
    place.watch()
    assert (place.triton.done, place.said) == ([], [])


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


def test_configuration_is_written_into_a_new_folder(tmp_path: Path) -> None:
    config = model_config_pb2.ModelConfig(name="ü")
    for _ in range(2):
        write_config(tmp_path / "new" / "config.pbtxt", config)
    assert read(tmp_path / "new" / "config.pbtxt").name == "ü"
