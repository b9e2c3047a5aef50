"""The load generator, a separate process: `python -m yolov5_bench._load`, JSON in and out.

The same threads load every contender; only the function that sends an image differs.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

from yolov5_client._contract import NETWORK, endpoint_for

from ._pipeline import Answer, Pipeline

# An image -> its answer, and the bytes on the wire.
SendImage = Callable[[bytes], tuple[Answer, int]]

_RAW = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": "0"}
_JSON = {"Content-Type": "application/json"}
_PAUSE_SECONDS = 0.02  # after a failed request
MODEL = NETWORK  # name of the network, unless another one is given


def over_http(address: str, *parameters: str, model: str = MODEL) -> SendImage:
    """Send to the endpoint, with the image itself as the body.

    Args:
        parameters: for the headers, such as Conf-Thres=0.4.
    """
    more = {f"X-Yolo-{name}": value for name, _, value in (p.partition("=") for p in parameters)}
    post = _poster(address, f"/v2/models/{endpoint_for(model)}/infer", {**_RAW, **more})

    def send(image: bytes) -> tuple[Answer, int]:
        headers, body = post(image)
        length = int(headers["Inference-Header-Content-Length"])
        tensors, at = {}, length
        for one in json.loads(body[:length])["outputs"]:
            size = one["parameters"]["binary_data_size"]
            tensors[one["name"]] = (one["shape"], body[at : at + size])
            at += size

        def array(name: str, kind: type) -> NDArray[Any]:
            shape, data = tensors[name]
            return np.frombuffer(data, kind).reshape(shape)[0]  # type: ignore[no-any-return]

        answer = Answer(
            boxes=array("det_boxes", np.float32),
            scores=array("det_scores", np.float32),
            classes=array("det_classes", np.int32).astype(np.int64),
        )
        return answer, len(image) + len(body)

    return send


def over_grpc(address: str, *, model: str = MODEL) -> SendImage:
    """Send to the endpoint with the project's client."""
    from yolov5_client import Client

    client = Client(address, model=model)

    def send(image: bytes) -> tuple[Answer, int]:
        found = client.detect(image)
        size = found.boxes.nbytes + found.scores.nbytes + 4 * len(found) + 12
        answer = Answer(
            boxes=found.boxes, scores=found.scores, classes=found.classes.astype(np.int64)
        )
        return answer, len(image) + size + sum(4 + len(label) for label in found.labels)

    return send


def in_batches(address: str, size: str, *, model: str = MODEL) -> SendImage:
    """Send an image several times in one gRPC request, and return the first answer."""
    import tritonclient.grpc as triton

    client = triton.InferenceServerClient(address)

    def send(image: bytes) -> tuple[Answer, int]:
        tensor = triton.InferInput("image", [int(size), 1], "BYTES")
        tensor.set_data_from_numpy(np.array([[image]] * int(size), np.object_))
        result = client.infer(endpoint_for(model), [tensor])
        count = result.as_numpy("num_dets")[0, 0]
        boxes, scores, classes = (
            result.as_numpy(name)[0, :count] for name in ("det_boxes", "det_scores", "det_classes")
        )
        return Answer(boxes=boxes, scores=scores, classes=classes.astype(np.int64)), len(image)

    return send


def over_json(address: str, *, wrapped: bool) -> SendImage:
    """Send to a service that answers with JSON.

    Args:
        wrapped: send the image as base64 in JSON.
    """
    post = _poster(address, "/detect", _JSON if wrapped else _RAW)

    def send(image: bytes) -> tuple[Answer, int]:
        body = (
            json.dumps({"image": base64.b64encode(image).decode()}).encode() if wrapped else image
        )
        _, answer = post(body)
        return Answer.from_dict(json.loads(answer)), len(body) + len(answer)

    return send


def with_the_work_in_the_client(address: str, network: str, *, model: str = MODEL) -> SendImage:
    """Letterbox and suppress here and call the network there, as a plain ONNX model requires."""
    import tritonclient.grpc as triton

    pipeline = _shared_pipeline(network)
    client = triton.InferenceServerClient(address)

    def send(image: bytes) -> tuple[Answer, int]:
        batch, placement = pipeline.prepare(image)
        tensor = triton.InferInput("images", [*batch.shape], "FP32")
        tensor.set_data_from_numpy(batch)
        rows = client.infer(model, [tensor]).as_numpy("output0")
        return pipeline.finish(rows[0], placement), batch.nbytes + rows.nbytes

    return send


def in_process(network: str) -> SendImage:
    """Call the functions in this process, without a server: the limit."""
    pipeline = _shared_pipeline(network)
    return lambda image: (pipeline(image), len(image))


_pipelines: dict[str, Pipeline] = {}
_lock = threading.Lock()


def _shared_pipeline(network: str) -> Pipeline:
    with _lock:
        if network not in _pipelines:
            _pipelines[network] = Pipeline(Path(network), 1)
        return _pipelines[network]


def _poster(
    address: str, path: str, headers: dict[str, str]
) -> Callable[[bytes], tuple[Any, bytes]]:
    connection = http.client.HTTPConnection(address, timeout=120)

    def post(body: bytes) -> tuple[Any, bytes]:
        connection.request("POST", path, body, headers)
        answer = connection.getresponse()
        data = answer.read()
        if answer.status != 200:
            raise RuntimeError(f"HTTP {answer.status}: {data[:200]!r}")
        return answer.headers, data

    return post


def make_sender(kind: str, *where: str, model: str = MODEL) -> SendImage:
    """A sender with a connection of its own.

    Args:
        model: name of the network on a Triton.
    """
    senders: dict[str, Callable[..., SendImage]] = {
        "http": partial(over_http, model=model),
        "grpc": partial(over_grpc, model=model),
        "batch": partial(in_batches, model=model),
        "json": lambda address: over_json(address, wrapped=False),
        "base64": lambda address: over_json(address, wrapped=True),
        "work": partial(with_the_work_in_the_client, model=model),
        "bare": in_process,
    }
    return senders[kind](*where)


def run_load(
    sender: list[str],
    images: list[bytes],
    *,
    callers: int,
    seconds: float,
    warm: float,
    server: int,
    metrics: str,
    counts: list[int] | None = None,
    model: str = MODEL,
) -> dict[str, Any]:
    """Load a server with callers that send the next image as soon as they have an answer.

    Args:
        warm: seconds of load before the measurement.
        server: PID of the server, whose descendants belong to it; 0 for none.
        metrics: `host:port` of a Triton's metrics; empty for none.
        counts: of the boxes in each image; with them, failed requests and other answers are counted
            and the callers go on.
        model: name of the network on a Triton.

    Returns:
        images: answered during the measurement; latencies: in seconds, by caller, of requests sent
        during it; client_cpu, server_cpu: seconds used during it; wire: bytes for an image, both
        ways; steps: milliseconds for an image in each of Triton's steps; failed: requests, and
        wrong: answers with another number of boxes, from the start on.

    Raises:
        RuntimeError: a request has failed, and `counts` is not given.
    """
    begin = time.perf_counter() + warm
    window = _Window(begin, begin + seconds)
    make = partial(make_sender, *sender, model=model)
    loops = [_Caller(make, images, number, counts) for number in range(callers)]
    threads = _start(loops, window)
    time.sleep(max(0.0, window.begin - time.perf_counter()))
    before = _cpu_below(os.getpid()), _cpu_below(server), _step_times(metrics, model)
    time.sleep(max(0.0, window.end - time.perf_counter()))
    after = _cpu_below(os.getpid()), _cpu_below(server), _step_times(metrics, model)
    for thread in threads:
        thread.join()
    if window.failures:
        raise RuntimeError(window.failures[0])
    return {
        "client_cpu": after[0] - before[0],
        "server_cpu": after[1] - before[1],
        "steps": _milliseconds(before[2], after[2]),
        **_sums(loops),
    }


def _start(loops: list[_Caller], window: _Window) -> list[threading.Thread]:
    threads = [threading.Thread(target=loop.run, args=(window,)) for loop in loops]
    for thread in threads:
        thread.start()
    return threads


def _milliseconds(before: dict[str, int], after: dict[str, int]) -> dict[str, float]:
    """Milliseconds for an image in each step, of Triton's counters at two times."""
    images = max(1, after.pop("images", 0) - before.pop("images", 0))
    return {name: (after[name] - before[name]) / images / 1e3 for name in after}


def _sums(loops: Sequence[_Caller]) -> dict[str, Any]:
    answered = max(1, sum(loop.answered for loop in loops))
    return {
        "images": answered,
        "latencies": [loop.latencies for loop in loops],
        "wire": sum(loop.bytes_moved for loop in loops) / answered,
        "failed": sum(loop.failed for loop in loops),
        "wrong": sum(loop.wrong for loop in loops),
    }


@dataclass
class _Window:
    """The measurement: begin and end on the clock of `perf_counter`, and its failed requests."""

    begin: float
    end: float
    failures: list[str] = field(default_factory=list)


class _Caller:
    """One caller: sends one image after the other until the window ends.

    Args:
        counts: as for `run_load`; without them it ends when a request fails.
    """

    def __init__(
        self,
        make: Callable[[], SendImage],
        images: list[bytes],
        first: int,
        counts: list[int] | None,
    ) -> None:
        self._make = make
        self._send = make()
        self._images = images
        self._counts = counts
        self._next = first
        self.latencies: list[float] = []
        self.answered = self.bytes_moved = self.failed = self.wrong = 0

    def run(self, window: _Window) -> None:
        while (started := time.perf_counter()) < window.end and not window.failures:
            index = self._next % len(self._images)
            self._next += 1
            try:
                answer, size = self._send(self._images[index])
            except Exception as error:
                if self._counts is None:
                    window.failures.append(repr(error))
                    return
                self.failed += 1
                time.sleep(_PAUSE_SECONDS)
                self._send = self._make()  # the connection may be in the middle of an answer
                continue
            if self._counts is not None and len(answer.scores) != self._counts[index]:
                self.wrong += 1
            now = time.perf_counter()
            if window.begin <= started:
                self.latencies.append(now - started)
            if window.begin <= now <= window.end:
                self.answered += 1
                self.bytes_moved += size


def _step_times(address: str, network: str) -> dict[str, int]:
    """Read from Triton's metrics the microseconds since its start, summed over the images."""
    if not address:
        return {}
    connection = http.client.HTTPConnection(address, timeout=20)
    connection.request("GET", "/metrics")
    lines = connection.getresponse().read().decode().splitlines()
    connection.close()

    def value(metric: str, model: str) -> int:
        start = f'nv_inference_{metric}{{model="{model}",namespace="models"'
        return int(float(next(line for line in lines if line.startswith(start)).split()[-1]))

    found = {"images": value("count", network)}
    for step in ("preprocess", network, "postprocess"):
        found[f"{step} queue"] = value("queue_duration_us", step)
        found[f"{step} in"] = value("compute_input_duration_us", step)
        found[f"{step} work"] = value("compute_infer_duration_us", step)
        found[f"{step} out"] = value("compute_output_duration_us", step)
    return found


def _cpu_below(root: int) -> float:
    """Sum the CPU seconds of a process and its descendants, without those that have ended."""
    if not root:
        return 0.0
    below: list[psutil.Process] = []
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(root)
        below = [process, *process.children(recursive=True)]
    total = 0.0
    for one in below:
        with contextlib.suppress(psutil.NoSuchProcess):
            used = one.cpu_times()
            total += used.user + used.system
    return total


def main() -> None:
    """Answer requests, one line of JSON each, until the input ends."""
    for line in sys.stdin:
        request = json.loads(line)
        images = [Path(path).read_bytes() for path in request.pop("photos")]
        if request.pop("check", False):
            send = make_sender(*request["sender"], model=request.get("model", MODEL))
            report: Any = [send(image)[0].as_dict() for image in images]
        else:
            report = run_load(images=images, **request)
        print(json.dumps(report), flush=True)


if __name__ == "__main__":
    main()
