"""Shared by the tests: servers, requests in every protocol, reference answers."""

from __future__ import annotations

import atexit
import json
import os
import random
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import psutil
import torch
import tritonclient.grpc as triton
from numpy.typing import NDArray
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from yolov5_bench import fidelity
from yolov5_build import load_checkpoint
from yolov5_build.cli import main as build
from yolov5_client import Detections
from yolov5_server._http import open_directly
from yolov5_server.embedded import assemble_backends, server_environment, triton_folder

ROOT = Path(__file__).parents[1]
REPOSITORY = ROOT / "model_repository"
BUNDLED = ROOT / "examples" / "bccd" / "best.pt"
PHOTOS = ROOT / "examples" / "bccd" / "photos"
PHOTO = PHOTOS / "BloodImage_00007.jpg"
SHARED = ROOT.parent / "shared" / "data"
# A shell starts background jobs with SIGINT ignored, and make and the commands would inherit that.
# It is not set in each child: a process that uses gRPC must not run Python between fork and exec.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
SHARED_MEMORY = Path("/dev/shm")
# The Triton that is tested in place of the embedded one: `--triton` of pytest, see conftest.py.
TRITON = Path(os.environ["TESTED_TRITON"]) if "TESTED_TRITON" in os.environ else None
TRITON_FLAGS = [f"--triton={TRITON}"] if TRITON else []
# Models with a process of their own; Triton's backends in C++ run the network in Triton's process.
MODEL_PROCESSES = ["preprocess", *([] if TRITON else ["yolov5"]), "postprocess"]

Outputs = dict[str, NDArray[Any]]
reference = fidelity.read_reference
StartModel = Callable[[str], "subprocess.Popen[bytes]"]  # starts the process of a model


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on.

    The kernel gives none of this range to outgoing connections, and the processes of pytest-xdist
    share it: a port is still free when the server that gets it opens it.
    """
    process = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    processes = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    drawn = random.SystemRandom().sample(range(15000 + process, 32000, processes), 50 * count)
    found: list[int] = []
    for port in drawn:
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            found.append(port)
        if len(found) == count:
            return found
    raise AssertionError("no free ports")


@dataclass
class RunningServer:
    """A launcher started by a test, and the addresses of its server.

    Attributes:
        ports: HTTP, gRPC, metrics, health.
        log: file with all that the launcher has written.
        seen: numbers of the processes that it has started.
    """

    process: subprocess.Popen[str]
    ports: list[int]
    log: Path
    seen: set[int] = field(default_factory=set)

    @property
    def http(self) -> str:
        return f"http://127.0.0.1:{self.ports[0]}"

    @property
    def grpc(self) -> str:
        return f"127.0.0.1:{self.ports[1]}"

    @property
    def metrics(self) -> str:
        return f"http://127.0.0.1:{self.ports[2]}/metrics"

    @property
    def health(self) -> str:
        return f"http://127.0.0.1:{self.ports[3]}"

    @property
    def triton_version(self) -> str:
        """Version of the running Triton, such as 2.51.0."""
        with urllib.request.urlopen(f"{self.http}/v2", timeout=20) as answer:
            return str(json.load(answer)["version"])

    def wait_ready(self, timeout: float = 90) -> None:
        deadline = time.monotonic() + timeout
        while "Ready:" not in self.log.read_text():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"the server did not get ready:\n{self.log.read_text()}")
            time.sleep(0.05)
        self.seen.update(self.descendants())

    def descendants(self) -> list[int]:
        """Numbers of all processes below the launcher."""
        return [process.pid for process in self._descendants()]

    def _descendants(self) -> list[psutil.Process]:
        try:
            return psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []

    def processes(self, text: str) -> list[int]:
        """Numbers of the processes below the launcher with `text` in their command line."""
        found = []
        for process in self._descendants():
            with suppress(psutil.NoSuchProcess):
                if text in " ".join(process.cmdline()):
                    found.append(process.pid)
        return found

    def stop(self, number: int = signal.SIGTERM, timeout: float = 20) -> float:
        """Send the signal; return the seconds until the launcher ended."""
        self.seen.update(self.descendants())
        started = time.monotonic()
        self.process.send_signal(number)
        self.process.wait(timeout)
        return time.monotonic() - started

    def leftovers(self) -> list[str]:
        """What is left of an ended server: processes, ports in use, shared memory."""
        left = [f"process {pid}" for pid in self.seen if psutil.pid_exists(pid)]
        for port in self.ports:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    left.append(f"port {port}")
        for name in shared_memory() - self.shared_memory_before:
            launcher = re.match(r"yolov5_triton_(\d+)_", name)
            # Other names belong to servers or programs of somebody else.
            if launcher and int(launcher[1]) in {self.process.pid, *self.seen}:
                left.append(f"/dev/shm/{name}")
        return left

    shared_memory_before: set[str] = field(default_factory=set)


def shared_memory() -> set[str]:
    return {path.name for path in SHARED_MEMORY.iterdir()}


@contextmanager
def running_server(
    *arguments: str,
    command: Sequence[str] | None = None,
    wait: bool = True,
    ports: Sequence[int] | None = None,
) -> Iterator[RunningServer]:
    """Start the launcher, and end it at the end of the block in any case.

    It serves FP32, the reference's numbers, unless the arguments name another precision, on the
    Triton that is tested, unless they name another one.

    Args:
        arguments: for the launcher.
        command: starts the launcher in another way, with `TRITON_FLAGS`; gets its ports as
            variables of make.
        wait: until the server is ready.
        ports: HTTP, gRPC, metrics and health; free ones if left out.
    """
    ports = [*ports] if ports else free_ports(4)
    named = dict(zip(("http-port", "grpc-port", "metrics-port", "health-port"), ports))
    if command is None:
        flags = [f"--{name}={port}" for name, port in named.items()]
        if not any(argument.startswith("--precision") for argument in arguments):
            flags.append("--precision=fp32")
        if not any(argument.startswith("--triton") for argument in arguments):
            flags += TRITON_FLAGS
        command = [sys.executable, "-m", "yolov5_server", *flags, *arguments]
    else:
        variables = [f"{name.upper().replace('-', '_')}={port}" for name, port in named.items()]
        command = [*command, *variables]
    before = shared_memory()
    wait_for_ended(left=3)
    log = Path(tempfile.mkdtemp(), "log")
    with log.open("w") as file:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
    server = RunningServer(process, ports, log, shared_memory_before=before)
    try:
        if wait:
            server.wait_ready()
        yield server
    finally:
        process.terminate()
        _ended.append((process, log.parent))


# Servers that were told to end, and their temporary folders.
_ended: list[tuple[subprocess.Popen[str], Path]] = []


def wait_for_ended(left: int = 0) -> None:
    """Wait for the servers that were told to end, but for the last ones.

    A server takes seconds to end, and next to no processor: the next test need not wait for it.

    Raises:
        subprocess.TimeoutExpired: one does not end.
    """
    while len(_ended) > left:
        process, folder = _ended.pop(0)
        try:
            process.communicate(timeout=20)
        finally:
            shutil.rmtree(folder)


def find_triton(folder: Path) -> tuple[Path, Path]:
    """The tested Triton's binary and the folder of its backends, which may be made in `folder`."""
    triton = TRITON or triton_folder()
    backends = TRITON / "backends" if TRITON else assemble_backends(triton, folder / "backends")
    return triton / "bin" / "tritonserver", backends


@contextmanager
def plain_triton(
    repository: Path, *arguments: str, complete: bool = False
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The tested Triton without the launcher: every model may be called.

    Args:
        complete: let Triton complete configurations.

    Yields:
        The process and its gRPC address.
    """
    http, port = free_ports(2)
    wait_for_ended(left=3)
    folder = Path(tempfile.mkdtemp())
    binary, backends = find_triton(folder)
    process = subprocess.Popen(
        [
            str(binary),
            f"--model-repository={repository}",
            f"--backend-directory={backends}",
            f"--http-port={http}",
            f"--grpc-port={port}",
            "--allow-metrics=false",
            "--log-info=false",
            "--exit-timeout-secs=3",
            *([] if complete else ["--disable-auto-complete-config"]),
            *arguments,
        ],
        env=server_environment(folder),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield process, f"127.0.0.1:{port}"
    finally:
        process.terminate()
        _ended.append((process, folder))


@contextmanager
def ready_triton(
    repository: Path, *arguments: str, complete: bool = False
) -> Iterator[triton.InferenceServerClient]:
    """`plain_triton` once it is ready; yields a client."""
    with (
        plain_triton(repository, *arguments, complete=complete) as (process, address),
        triton.InferenceServerClient(address) as client,
    ):
        deadline = time.monotonic() + 60
        while True:
            try:
                if client.is_server_ready():
                    break
            except triton.InferenceServerException:
                pass
            assert process.poll() is None, process.stdout and process.stdout.read()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        yield client


def regions(server: RunningServer) -> int:
    """Number of shared memory regions of this launcher's servers."""
    return sum(f"_{server.process.pid}_" in name for name in shared_memory())


def ready(server: RunningServer) -> tuple[bool, str]:
    """The launcher's own readiness: whether it is ready, and why not."""
    try:
        with urllib.request.urlopen(f"{server.health}/ready", timeout=20) as answer:
            return json.load(answer)["ready"], ""
    except urllib.error.HTTPError as error:
        assert error.code == 503
        found = json.load(error)
        return found["ready"], found["reason"]


def kill_process(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


def wait_until(condition: Callable[[], bool], seconds: float) -> float:
    """Wait for the condition, at most for so long; return the seconds that it took."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < seconds, "waited too long"
        time.sleep(0.02)
    return time.monotonic() - started


def make_repository(folder: Path, weights: Path, *arguments: str) -> Path:
    """Copy the model repository and install `weights` in it, as `make model` does."""
    installed = _installed(weights, weights.stat().st_mtime_ns, arguments)
    return Path(shutil.copytree(installed, folder / "model_repository", symlinks=True))


@cache
def _installed(weights: Path, changed: int, arguments: tuple[str, ...]) -> Path:
    """A repository with these weights, made once: several tests need the same one.

    Args:
        changed: when the weights were; others under the same name are installed anew.
    """
    folder = Path(tempfile.mkdtemp(prefix="model_repository-"))
    atexit.register(shutil.rmtree, folder)
    repository = folder / "model_repository"
    shutil.copytree(REPOSITORY, repository, ignore=shutil.ignore_patterns("yolov5"))
    assert build([str(weights), *arguments, f"--repository={repository}"]) == 0
    return repository


@dataclass
class GraphTensor:
    """An input or output of a graph, as ONNX Runtime describes it."""

    name: str
    type: str
    shape: list[Any]


def labelled_photos(folder: Path) -> Path:
    """Make a data set of the bundled photos, labelled with the reference's answers.

    Returns:
        Its YAML file.
    """
    (folder / "images").mkdir()
    (folder / "labels").mkdir()
    answers = json.loads((ROOT / "tests" / "data" / "bccd_reference.json").read_text())
    for name, image in answers["images"].items():
        shutil.copy(PHOTOS / name, folder / "images")
        w, h = image["width"], image["height"]
        rows = [
            f"{index:.0f} {(x1 + x2) / 2 / w} {(y1 + y2) / 2 / h} {(x2 - x1) / w} {(y2 - y1) / h}"
            for x1, y1, x2, y2, _, index in image["detections"]
        ]
        (folder / "labels" / name).with_suffix(".txt").write_text("\n".join(rows))
    yaml = folder / "data.yaml"
    yaml.write_text("path: .\ntrain: images\nval: images\nnames: {0: Platelets, 1: RBC, 2: WBC}\n")
    return yaml


def export_as_others_do(
    path: Path, *, metadata: Mapping[str, str] | None = None, fixed: bool = False
) -> Path:
    """Export the bundled network with batch size 1, as exporters do by default.

    Args:
        metadata: replaces the class names and the stride.
        fixed: in a way that cannot be changed to take batches.
    """
    checkpoint = load_checkpoint(BUNDLED)
    names = str(dict(enumerate(checkpoint.names)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            checkpoint.network,
            (torch.zeros(1, 3, 640, 640),),
            str(path),
            dynamo=False,
            opset_version=12,
            input_names=["images"],
            output_names=["output"],
        )
    model = onnx.load(path)
    if fixed:
        shape = onnx.numpy_helper.from_array(np.array([1, 25200, 8]), "shape")
        zero = onnx.numpy_helper.from_array(np.array(0), "zero")
        model.graph.initializer.extend([shape, zero])
        model.graph.node.extend(
            [
                onnx.helper.make_node("Add", ["shape", "zero"], ["sum"]),
                onnx.helper.make_node("Reshape", ["output", "sum"], ["fixed"]),
            ]
        )
        model.graph.output[0].name = "fixed"
    given = {"names": names, "stride": "32"} if metadata is None else dict(metadata)
    onnx.helper.set_model_props(model, given)
    onnx.save(model, path)
    return path


def some_detections(**changes: Any) -> Detections:
    """Two detections in an image of 640×480."""
    values: dict[str, Any] = {
        "boxes": np.array([[64, 48, 128, 96], [0, 0, 640, 480]], np.float32),
        "scores": np.array([0.9, 0.5], np.float32),
        "classes": np.array([2, 0], np.int32),
        "labels": ("WBC", "Platelets"),
        "image_size": (480, 640),
        **changes,
    }
    return Detections(**values)


def no_detections() -> Detections:
    empty = np.zeros(0, np.float32)
    return some_detections(
        boxes=empty.reshape(0, 4), scores=empty, classes=empty.astype(np.int32), labels=()
    )


# ---------------------------------------------------------------------------------------------
# Requests


def ask_grpc(
    address: str, images: Sequence[bytes], parameters: Mapping[str, Any] | None = None
) -> Outputs:
    """One request with several images, by Triton's own client."""
    with triton.InferenceServerClient(address) as client:
        return infer(client, images, parameters)


def infer(
    client: triton.InferenceServerClient,
    images: Sequence[bytes],
    parameters: Mapping[str, Any] | None = None,
    model: str = "yolov5_ensemble",
) -> Outputs:
    """The same over an open connection, which several threads may share."""
    result = client.infer(model, [image_tensor(triton, images)], parameters=dict(parameters or {}))
    return {output.name: result.as_numpy(output.name) for output in result.get_response().outputs}


def image_tensor(protocol: Any, images: Sequence[bytes]) -> Any:
    tensor = protocol.InferInput("image", [len(images), 1], "BYTES")
    tensor.set_data_from_numpy(np.array(images, np.object_).reshape(-1, 1))
    return tensor


@dataclass
class Reply:
    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


def post(url: str, body: bytes, headers: Mapping[str, str] | None = None) -> Reply:
    request = urllib.request.Request(url, body, dict(headers or {}), method="POST")
    try:
        with open_directly(request, timeout=60) as answer:
            return Reply(answer.status, dict(answer.headers), answer.read())
    except urllib.error.HTTPError as error:
        return Reply(error.code, dict(error.headers), error.read())


RAW = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": "0"}


def post_raw(url: str, image: bytes, headers: Mapping[str, str] | None = None) -> Reply:
    """As the documented curl command: the image itself is the body."""
    return post(
        f"{url}/v2/models/yolov5_ensemble/infer",
        image,
        {**RAW, **(headers or {})},
    )


_NUMPY = {"INT32": np.int32, "FP32": np.float32}


def parse_binary(reply: Reply) -> Outputs:
    """Parse the answer to a raw body: JSON, then the tensors in the same order."""
    length = int(reply.headers["Inference-Header-Content-Length"])
    rest = reply.body[length:]
    outputs: Outputs = {}
    for output in json.loads(reply.body[:length])["outputs"]:
        size = output["parameters"]["binary_data_size"]
        data, rest = rest[:size], rest[size:]
        if output["datatype"] == "BYTES":
            outputs[output["name"]] = np.array(_strings(data), np.object_).reshape(output["shape"])
        else:
            array = np.frombuffer(data, _NUMPY[output["datatype"]])
            outputs[output["name"]] = array.reshape(output["shape"])
    assert not rest
    return outputs


def _strings(data: bytes) -> list[bytes]:
    strings = []
    while data:
        (size,) = struct.unpack_from("<I", data)
        strings.append(data[4 : 4 + size])
        data = data[4 + size :]
    return strings


def parse_json(outputs: Sequence[Mapping[str, Any]]) -> Outputs:
    """Parse the `outputs` of a JSON answer."""
    arrays: Outputs = {}
    for output in outputs:
        data = output["data"]
        if output["datatype"] == "BYTES":
            array = np.array([text.encode() for text in data], np.object_)
        else:
            array = np.array(data, _NUMPY[output["datatype"]])
        arrays[output["name"]] = array.reshape(output["shape"])
    return arrays


# ---------------------------------------------------------------------------------------------
# Comparison


def row(outputs: Outputs, index: int) -> Outputs:
    """The outputs of one image of a batch, as if it had been sent alone."""
    count = int(outputs["num_dets"][index, 0])
    alone = {}
    for name, array in outputs.items():
        alone[name] = array[index : index + 1]
        if name.startswith("det_"):
            alone[name] = alone[name][:, :count]
    return alone


Fingerprint = tuple[int, float]


def fingerprint(outputs: Outputs) -> Fingerprint:
    """Tell the answers of two networks apart: number of detections, sum of their scores."""
    return outputs["num_dets"].item(), round(float(outputs["det_scores"].sum()), 2)


def assert_same(one: Outputs, other: Outputs, *, exact: bool = True) -> None:
    """Compare detections: to the bit if `exact`, else up to the summation order of a batch."""
    assert one.keys() == other.keys()
    for name, array in one.items():
        if exact or name in ("num_dets", "det_classes", "det_labels", "image_size"):
            np.testing.assert_array_equal(array, other[name], err_msg=name)
        else:
            np.testing.assert_allclose(array, other[name], rtol=0, atol=1e-2, err_msg=name)


@dataclass
class Difference:
    """Differences between answers and the reference's."""

    images: int = 0
    detections: int = 0
    unmatched: int = 0
    box: float = 0.0
    score: float = 0.0


def compare(answers: Mapping[str, Outputs], wanted: Mapping[str, NDArray[Any]]) -> Difference:
    """Match every detection of the reference with the nearest box of the same class."""
    found = fidelity.compare(
        {name: _Answer(outputs) for name, outputs in answers.items()}, wanted, conf_thres=0.25
    )
    return Difference(
        images=found.photos,
        detections=found.wanted,
        unmatched=found.unmatched,
        box=found.box,
        score=found.score,
    )


class _Answer:
    """The outputs of a request with one image, without their padding."""

    def __init__(self, outputs: Outputs) -> None:
        count = int(outputs["num_dets"][0, 0])
        self.boxes, self.scores, self.classes = (
            outputs[f"det_{part}"][0, :count] for part in ("boxes", "scores", "classes")
        )


def executions(server: RunningServer, model: str) -> int:
    """Number of runs of a step, each with one or several images."""
    return _step_count(server, model, "nv_inference_exec_count")


def inferences(server: RunningServer, model: str) -> int:
    """Number of images that a step was run on."""
    return _step_count(server, model, "nv_inference_count")


def _step_count(server: RunningServer, model: str, name: str) -> int:
    (sample,) = samples(server.metrics, name, model=model, namespace="models")
    return int(sample.value)


def samples(address: str, name: str, **labels: str) -> list[Sample]:
    """Read the samples of a metric that have these labels, as Prometheus would."""
    names = (name, f"{name}_total")  # which the parser appends to the counters of Triton
    with urllib.request.urlopen(address, timeout=10) as answer:
        families = text_string_to_metric_families(answer.read().decode())
        return [
            sample
            for family in families
            for sample in family.samples
            if sample.name in names and labels.items() <= sample.labels.items()
        ]


def metric(address: str, name: str, **labels: str) -> int:
    """The sum of a metric's samples that have these labels; 0 if there are none."""
    return int(sum(sample.value for sample in samples(address, name, **labels)))
