"""Several networks on one server: each endpoint has its own, and they come and go without harm."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import tritonclient.grpc as grpc
from one_image import detect
from support import (
    BUNDLED,
    MODEL_PROCESSES,
    PHOTO,
    PHOTOS,
    RAW,
    SHARED,
    TRITON,
    Outputs,
    RunningServer,
    compare,
    fingerprint,
    infer,
    make_repository,
    post,
    ready,
    ready_triton,
    reference,
    running_server,
    samples,
    wait_until,
)
from thresholds import Thresholds

from yolov5_build._runtimes import ONNX_RUNTIME, RUNTIMES
from yolov5_build.cli import main as build
from yolov5_build.photos import PhotoLoader
from yolov5_server._reload import _locked

DATA = Path(__file__).parents[1] / "data"
IMAGES = {path.name: path.read_bytes() for path in sorted(PHOTOS.iterdir())}
SECONDS = 60  # for one change, on two busy cores
LABELS = ["first", "second", "third"]  # of the network `small`
# Triton's rare answer in the moment of a change: docs/operations.md.
NO_MODEL = "Request for unknown model"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with three networks of different size, classes and letterbox."""
    folder = tmp_path_factory.mktemp("several")
    repository = make_repository(folder, BUNDLED)
    (folder / "names.txt").write_text("\n".join(LABELS))
    for arguments in (
        ["--name=rect", "--letterbox=rect"],
        ["--name=small", "--imgsz=320", "--letterbox=stretch", f"--names={folder / 'names.txt'}"],
    ):
        assert build([str(BUNDLED), *arguments, f"--repository={repository}"]) == 0
    return repository


@pytest.fixture(scope="module")
def site(
    installed: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[RunningServer, Path]]:
    """A server of these networks, and its repository."""
    folder = tmp_path_factory.mktemp("site") / "models"
    repository = Path(shutil.copytree(installed, folder, symlinks=True))
    with running_server(f"--repository={repository}") as server:
        yield server, repository


def ask(server: RunningServer, network: str, image: bytes, **parameters: Any) -> Outputs:
    with grpc.InferenceServerClient(server.grpc) as client:
        return infer(client, [image], parameters, model=f"{network}_ensemble")


def models(server: RunningServer) -> dict[str, dict[str, Any]]:
    """What the launcher says of the networks and steps, by their names."""
    with urllib.request.urlopen(f"{server.health}/models", timeout=10) as answer:
        found = json.load(answer)
    return {one["name"]: one for one in (*found["models"], *found["steps"])}


def health(server: RunningServer, path: str) -> tuple[int, dict[str, Any]]:
    try:
        with urllib.request.urlopen(f"{server.health}/{path}", timeout=30) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def wait_for_line(server: RunningServer, line: str) -> None:
    wait_until(lambda: line in server.log.read_text(), SECONDS)


def expected(weights: Path, image: bytes, tmp_path: Path) -> list[np.ndarray[Any, Any]]:
    """Boxes, scores and classes of `small`, without a server."""
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(image)
    tensor, placement = PhotoLoader(320, 320, letterbox="stretch").load(photo)
    rows = RUNTIMES[ONNX_RUNTIME](weights).rows(tensor[None])
    import torch

    thresholds = Thresholds(
        conf_thres=0.25, iou_thres=0.45, max_det=300, agnostic_nms=False, multi_label=False
    )
    found = detect(torch.from_numpy(rows), thresholds, torch.full((3,), 0.25), placement)
    return [part.numpy() for part in found]


# -- each endpoint has its own network ---------------------------------------------------------


@pytest.mark.parametrize(
    ("network", "answers"),
    [("yolov5", "bccd_reference.json"), ("rect", "bccd_reference_rect.json")],
)
def test_each_network_answers_as_its_reference(
    site: tuple[RunningServer, Path], network: str, answers: str
) -> None:
    found = {name: ask(site[0], network, image) for name, image in IMAGES.items()}
    result = compare(found, reference(DATA / answers))
    print(result)
    assert result.images == 8
    assert result.unmatched == 0
    assert result.box <= 0.1
    assert result.score <= 1e-3


def test_network_of_another_size_and_other_classes_answers_as_it_does_alone(
    site: tuple[RunningServer, Path], tmp_path: Path
) -> None:
    server, repository = site
    (weights,) = repository.glob("small/[0-9]*/model.onnx")
    for image in [*IMAGES.values()][:2]:
        found = ask(server, "small", image)
        boxes, scores, classes = expected(weights, image, tmp_path)
        assert len(scores) > 3
        assert found["det_classes"][0].tolist() == classes.tolist()
        assert np.abs(found["det_boxes"][0] - boxes).max() < 0.01
        assert np.abs(found["det_scores"][0] - scores).max() < 1e-4
        labels = {label.decode() for label in found["det_labels"].ravel()}
        assert labels <= {*LABELS}


def test_requests_of_all_networks_at_once_are_not_mixed_up(
    site: tuple[RunningServer, Path],
) -> None:
    server, _ = site
    with load(server, {"yolov5": 2, "rect": 2, "small": 2}) as (answers, failures):
        time.sleep(5)
    assert failures == []
    for network in ("yolov5", "rect", "small"):
        (only,) = {found for name, found in answers if name == network}
        assert only == fingerprint(ask(server, network, PHOTO.read_bytes()))


def test_parameters_are_read_with_the_classes_of_the_network(
    site: tuple[RunningServer, Path],
) -> None:
    server, _ = site
    found = ask(server, "small", PHOTO.read_bytes(), classes="second")
    assert {*found["det_labels"].ravel()} == {b"second"}
    for network, allowed in (("yolov5", "RBC"), ("small", "second")):
        other = "RBC" if allowed == "second" else "second"
        with pytest.raises(grpc.InferenceServerException, match=other) as caught:
            ask(server, network, PHOTO.read_bytes(), classes=other)
        assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"


def test_raw_request_reaches_a_further_endpoint(site: tuple[RunningServer, Path]) -> None:
    server, _ = site
    url = f"{server.http}/v2/models/small_ensemble/infer"
    assert post(url, PHOTO.read_bytes(), RAW).status == 200
    refused = post(url, PHOTO.read_bytes(), {**RAW, "X-Yolo-Conf-Thres": "2"})
    assert (refused.status, b"conf_thres is '2'" in refused.body) == (400, True)
    assert post(url, b"no image", RAW).status == 400


@pytest.mark.parametrize("network", ["rect", "small"])
def test_further_network_is_closed_to_callers(
    site: tuple[RunningServer, Path], network: str
) -> None:
    reply = post(f"{site[0].http}/v2/models/{network}/infer", PHOTO.read_bytes(), RAW)
    assert reply.status >= 400
    assert b"2 identifiers" in reply.body


def test_metrics_carry_the_name_of_the_model(site: tuple[RunningServer, Path]) -> None:
    server, _ = site
    names = ("yolov5", "rect", "small")

    def received() -> dict[str, float]:
        found = samples(server.metrics, "yolov5_images_total")
        return {sample.labels.get("model", ""): sample.value for sample in found}

    before = received()
    assert {*before} == {*names}, "no series is without the label"
    for _ in range(5):
        ask(server, "small", PHOTO.read_bytes())
    wait_until(lambda: received()["small"] >= before["small"] + 5, 5)
    for name in (
        "yolov5_nms_seconds_count",
        "yolov5_queue_seconds_count",
        "yolov5_request_seconds_count",
        "yolov5_requests_total",
        "yolov5_queued_images",
        "yolov5_in_flight_images",
        "yolov5_saturation",
    ):
        assert {one.labels["model"] for one in samples(server.metrics, name)} == {*names}, name
    labels = {
        one.labels["label"]
        for one in samples(server.metrics, "yolov5_detections_total", model="small")
    }
    assert labels == {*LABELS}


def test_health_of_each_endpoint_is_told(site: tuple[RunningServer, Path]) -> None:
    server, _ = site
    assert health(server, "ready") == (200, {"ready": True})
    assert health(server, "ready/small") == (200, {"ready": True})
    assert health(server, "ready/other")[0] == 404
    found = samples(f"{server.health}/metrics", "yolov5_ready")
    assert {one.labels["model"]: one.value for one in found} == {"yolov5": 1, "rect": 1, "small": 1}


@pytest.mark.embedded("each network has a process of its own")
def test_one_more_network_costs_its_process_and_little_else(
    site: tuple[RunningServer, Path],
) -> None:
    server, _ = site
    assert len(server.processes("triton_python_backend_stub")) == 5
    for pid in server.processes("/small/"):
        libraries = Path(f"/proc/{pid}/maps").read_text()
        assert "onnxruntime" in libraries
        assert "libtorch" not in libraries
        assert "cv2" not in libraries
    found = models(server)
    assert found["small"]["version"] == 1
    assert found["small"]["precision"] == "fp32"
    assert 0 < found["small"]["memory_bytes"] < 400 << 20


@pytest.mark.skipif(not SHARED.exists(), reason="other people's networks are not at hand")
def test_networks_of_others_added_one_by_one_equal_their_references(
    bundled_repository: Path, tmp_path: Path
) -> None:
    repository = Path(shutil.copytree(bundled_repository, tmp_path / "models", symlinks=True))
    told: list[dict[str, dict[str, Any]]] = []
    with running_server(f"--repository={repository}") as server:
        told.append(models(server))
        for name, weights, letterbox in (
            ("nano", "yolov5n_v7.0", "square"),
            ("small", "yolov5s_v5.0", "rect"),
        ):
            path = SHARED / "weights" / f"{weights}.pt"
            flags = [f"--name={name}", f"--letterbox={letterbox}"]
            assert build([str(path), *flags, f"--repository={repository}"]) == 0
            wait_for_line(server, f"Now serving version 1 of {name}, FP32.")
            photos = [*(SHARED / "coco" / "images").iterdir(), *(SHARED / "photos").iterdir()]
            answers = SHARED / "reference" / f"{weights}_{letterbox}.json"
            assert_equal(server, name, photos, answers, 73)
            told.append(models(server))
        blood = [*(SHARED / "bccd" / "images" / "test").iterdir()]
        answers = SHARED / "reference" / "bccd_yolov5n_square.json"
        assert_equal(server, "yolov5", blood, answers, 72)
    for name in told[-1]:
        print(f"{name}: {' -> '.join(memory(one, name) for one in told)}")
    for step in ("preprocess", "postprocess"):
        assert told[-1][step]["memory_bytes"] - told[0][step]["memory_bytes"] < 100 << 20


def memory(told: dict[str, dict[str, Any]], name: str) -> str:
    """Memory of a model's process, for people; it has none if its backend is in C++."""
    size = told.get(name, {}).get("memory_bytes")
    return "-" if size is None else f"{size >> 20} MB"


def assert_equal(
    server: RunningServer, network: str, photos: Sequence[Path], answers: Path, count: int
) -> None:
    wanted = reference(answers)
    found = {
        path.name: ask(server, network, path.read_bytes()) for path in photos if path.name in wanted
    }
    result = compare(found, wanted)
    print(network, result)
    assert result.images == count
    assert result.unmatched <= 0.002 * result.detections
    assert result.box <= 0.1
    assert result.score <= 1e-3


def test_plain_triton_serves_every_endpoint_of_a_repository(installed: Path) -> None:
    with ready_triton(installed) as client:
        for network in ("yolov5", "rect", "small"):
            found = infer(client, [PHOTO.read_bytes()], model=f"{network}_ensemble")
            labels = {label.decode() for label in found["det_labels"].ravel()}
            assert labels <= ({*LABELS} if network == "small" else {"Platelets", "RBC", "WBC"})
            assert found["num_dets"].item() > 3


# -- networks come and go ----------------------------------------------------------------------


@contextmanager
def load(
    server: RunningServer, callers: dict[str, int]
) -> Iterator[tuple[Counter[tuple[str, tuple[int, float]]], list[str]]]:
    """Callers of these networks while the block runs: what was answered, and what failed."""
    done, failures = threading.Event(), list[str]()
    answers = Counter[tuple[str, tuple[int, float]]]()
    image = PHOTO.read_bytes()

    def work(network: str) -> None:
        with grpc.InferenceServerClient(server.grpc) as client:
            while not done.is_set():
                try:
                    outputs = infer(client, [image], model=f"{network}_ensemble")
                except grpc.InferenceServerException as error:
                    failures.append(f"{network}: {error}")
                    continue
                answers[network, fingerprint(outputs)] += 1

    threads = [
        threading.Thread(target=work, args=(network,))
        for network, count in callers.items()
        for _ in range(count)
    ]
    for thread in threads:
        thread.start()
    try:
        yield answers, failures
    finally:
        done.set()
        for thread in threads:
            thread.join()


class Third:
    """A network `third` that is installed beside the others, in versions made before."""

    def __init__(self, repository: Path, folder: Path) -> None:
        self.repository, self.folder = repository, folder
        self.made: list[Path] = []
        for size in (256, 320, 192):
            source = make_repository(folder / str(size), BUNDLED, f"--imgsz={size}", "--name=third")
            version = len(self.made) + 1
            network = source / "third"
            (network / "1").rename(network / str(version))
            self.made.append(network)
        self.endpoint = source / "third_ensemble"

    def install(self, index: int) -> None:
        """As `make model NAME=third` does in the end."""
        with _locked(self.repository):
            if (self.repository / "third").exists():
                (self.repository / "third").rename(self.folder / f"old-{index}")
            self.made[index].rename(self.repository / "third")
            if not (self.repository / "third_ensemble").exists():
                path = self.endpoint / "config.pbtxt"
                path.write_text(path.read_text().replace('key: "image_1"', 'key: "image_9"'))
                self.endpoint.rename(self.repository / "third_ensemble")

    def remove(self) -> None:
        assert build(["--name=third", "--remove", f"--repository={self.repository}"]) == 0


@pytest.mark.parametrize(
    ("count", "seconds"), [(2, 0), pytest.param(8, 60, marks=pytest.mark.slow)]
)
def test_no_request_fails_while_a_network_is_added_replaced_and_removed(
    site: tuple[RunningServer, Path], tmp_path: Path, count: int, seconds: int
) -> None:
    server, repository = site
    third = Third(repository, tmp_path)
    own = {name: fingerprint(ask(server, name, PHOTO.read_bytes())) for name in ("rect", "small")}
    started, thirds = time.monotonic(), []
    before = models(server)
    with load(server, {"rect": count, "small": count}) as (answers, failures):
        for index in range(3):
            logged = len(server.log.read_text())
            third.install(index)
            line = f"Now serving version {index + 1} of third, FP32."
            wait_until(lambda: line in server.log.read_text()[logged:], SECONDS)  # noqa: B023
            thirds.append(fingerprint(ask(server, "third", PHOTO.read_bytes())))
            time.sleep(seconds / 4)
        third.remove()
        wait_until(
            lambda: "third_ensemble was removed." in server.log.read_text()[logged:], SECONDS
        )
        assert health(server, "ready/third")[0] == 404
        time.sleep(max(0.0, seconds - (time.monotonic() - started)))
        after = models(server)
    print(f"{time.monotonic() - started:.0f} s: {answers}, {len(failures)} failed")
    for name in ("preprocess", "postprocess", "rect", "small"):
        print(f"{name}: {memory(before, name)} -> {memory(after, name)}")
    assert [one for one in failures if NO_MODEL not in one] == []
    assert len(failures) < 3
    assert {*answers} == {*own.items()}
    assert len({*thirds}) == 3
    left = len(MODEL_PROCESSES) + (0 if TRITON else 2)  # networks beside the one without a name
    wait_until(lambda: len(server.processes("triton_python_backend_stub")) == left, SECONDS)
    assert post(f"{server.http}/v2/models/third_ensemble/infer", b"", RAW).status in (400, 404)


def break_weights(version: Path) -> None:
    for weights in version.glob("*.onnx"):
        weights.unlink()  # it may be a link to a file that others use
        weights.write_bytes(b"nonsense")


def test_broken_network_is_refused_while_the_others_go_on(
    site: tuple[RunningServer, Path],
) -> None:
    server, repository = site
    with load(server, {"rect": 1, "small": 1}) as (_, failures):
        for broken in ("labels.txt", "weights"):
            logged = len(server.log.read_text())
            new = repository.parent / "new"
            shutil.copytree(repository / "small", new)
            (version,) = new.glob("[0-9]*")
            if broken == "weights":
                break_weights(version)
            else:
                (new / broken).unlink()
                (new / broken).write_text("only one\n")
            with _locked(repository):
                (repository / "small").rename(repository.parent / "good")
                new.rename(repository / "small")
            sentence = "The new network small was not loaded, the old one is still served: "
            wait_until(lambda: sentence in server.log.read_text()[logged:], SECONDS)  # noqa: B023
            assert models(server)["small"]["reason"].startswith(sentence)
            assert health(server, "ready/small") == (200, {"ready": True})
            assert "small" in health(server, "ready")[1]["not_served"]
            with _locked(repository):
                shutil.rmtree(repository / "small")
                (repository.parent / "good").rename(repository / "small")
            good = "Now serving version 1 of small"
            wait_until(lambda: good in server.log.read_text()[logged:], SECONDS)  # noqa: B023
    assert failures == []
    assert health(server, "ready") == (200, {"ready": True})


def test_endpoint_takes_over_its_own_defaults(site: tuple[RunningServer, Path]) -> None:
    server, repository = site
    config = repository / "small_ensemble" / "config.pbtxt"
    before = len(ask(server, "small", PHOTO.read_bytes())["det_scores"][0])
    others = len(ask(server, "rect", PHOTO.read_bytes())["det_scores"][0])
    with config.open("a") as file:
        file.write('parameters { key: "conf_thres" value: { string_value: "0.6" } }\n')
    wait_for_line(server, "Now serving small_ensemble as it is configured now.")
    scores = ask(server, "small", PHOTO.read_bytes())["det_scores"][0]
    assert 0 < len(scores) < before
    assert scores.min() > 0.6
    assert len(ask(server, "rect", PHOTO.read_bytes())["det_scores"][0]) == others


def test_endpoint_stays_as_it_was_if_its_new_settings_are_refused(
    site: tuple[RunningServer, Path],
) -> None:
    server, repository = site
    config = repository / "small_ensemble" / "config.pbtxt"
    text, said = config.read_text(), len(server.log.read_text())
    before = fingerprint(ask(server, "small", PHOTO.read_bytes()))
    (triton,) = server.processes("bin/tritonserver")
    more = (
        f'parameters {{ key: "{name}" value: {{ string_value: "{value}" }} }}\n'
        for name, value in (("conf_thres", "0.8"), ("weight", "0"))
    )
    config.write_text("".join((text, *more)))
    line = "small_ensemble/config.pbtxt: setting 'weight' is '0'; allowed: a number from 0.01"
    wait_until(lambda: line in server.log.read_text()[said:], SECONDS)
    end = time.monotonic() + 8
    while time.monotonic() < end:
        assert fingerprint(ask(server, "small", PHOTO.read_bytes())) == before
    assert health(server, "ready/small") == (200, {"ready": True})
    assert server.processes("bin/tritonserver") == [triton]
    config.write_text(text)
    wait_until(lambda: "not_served" not in health(server, "ready")[1], SECONDS)


# -- faults ------------------------------------------------------------------------------------


def test_endpoint_that_refuses_every_image_does_not_end_the_others(
    site: tuple[RunningServer, Path],
) -> None:
    server, repository = site
    config = repository / "small_ensemble" / "config.pbtxt"
    text, said = config.read_text(), len(server.log.read_text())
    (triton,) = server.processes("bin/tritonserver")
    # Less than the image has that the launcher sends.
    setting = 'parameters { key: "max_image_bytes" value: { string_value: "50" } }'
    config.write_text(f"{text}{setting}\n")
    line = "small_ensemble cannot be used: the endpoint answers an image with HTTP 400"
    wait_until(lambda: line in server.log.read_text()[said:], SECONDS)
    time.sleep(5)
    assert server.processes("bin/tritonserver") == [triton]
    assert server.log.read_text()[said:].count("cannot be used") == 1
    status, body = health(server, "ready")
    assert status == 503
    assert body["reason"].startswith("small_ensemble: the endpoint answers an image with HTTP 400")
    assert health(server, "ready/yolov5") == (200, {"ready": True})
    assert models(server)["small"]["reason"] in body["reason"]
    assert ask(server, "yolov5", PHOTO.read_bytes())["num_dets"].item() > 3
    config.write_text(text)
    wait_until(lambda: health(server, "ready") == (200, {"ready": True}), SECONDS)
    assert server.processes("bin/tritonserver") == [triton]


@pytest.mark.parametrize(
    "model",
    [
        pytest.param("small", marks=pytest.mark.embedded("a network has a process of its own")),
        "preprocess",
    ],
)
def test_killed_process_brings_all_endpoints_back(
    site: tuple[RunningServer, Path], model: str
) -> None:
    server, _ = site
    # After a change the model has a number in its name; earlier ones may still be ending.
    wait_until(lambda: len(_processes(server, [f"/{model}/", f"/{model}."])) == 1, SECONDS)
    (victim,) = _processes(server, [f"/{model}/", f"/{model}."])
    os.kill(victim, signal.SIGKILL)
    killed = time.monotonic()
    wait_until(lambda: not psutil.pid_exists(victim), 10)
    wait_until(lambda: ready(server) == (True, ""), SECONDS)
    print(f"{model}: ready again after {time.monotonic() - killed:.1f} s")
    for network in ("yolov5", "rect", "small"):
        assert ask(server, network, PHOTO.read_bytes())["num_dets"].item() > 0


def _processes(server: RunningServer, texts: Sequence[str]) -> set[int]:
    return {pid for text in texts for pid in server.processes(text)}


def test_broken_further_network_does_not_keep_a_server_from_starting(
    installed: Path, tmp_path: Path
) -> None:
    repository = Path(shutil.copytree(installed, tmp_path / "models", symlinks=True))
    (version,) = repository.glob("small/[0-9]*")
    break_weights(version)
    (repository / "rect" / "labels.txt").unlink()
    (repository / "rect" / "labels.txt").write_text("only one\n")
    with running_server(f"--repository={repository}") as server:
        assert ask(server, "yolov5", PHOTO.read_bytes())["num_dets"].item() > 0
        status, answer = health(server, "ready")
        assert (status, answer["ready"]) == (200, True)
        assert {*answer["not_served"]} == {"rect", "small"}
        assert health(server, "ready/small")[0] == 503
        assert "labels.txt has 1 names" in models(server)["rect"]["reason"]
        log = server.log.read_text()
        assert "The network rect is not served: " in log
        assert "The network small is not served: " in log
