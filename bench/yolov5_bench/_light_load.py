"""A cheap load generator for our endpoint, a process: `python -m yolov5_bench._light_load`.

Requests are made once and sent as they are: over HTTP by one thread for all callers, over gRPC by
a thread for each, without the SDK. Of each answer only the number of detections is read.
JSON in and out, one line each.
"""

from __future__ import annotations

import json
import re
import select
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from yolov5_client._contract import endpoint_for

_TIMEOUT_SECONDS = 60
_CHUNK = 1 << 18  # bytes to receive at once
_CONTENT = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_INFERENCE = re.compile(rb"\r\ninference-header-content-length: *(\d+)", re.IGNORECASE)
_METHOD = "/inference.GRPCInferenceService/ModelInfer"


class Tally:
    """What was answered between two times on the clock of `perf_counter`."""

    def __init__(self, begin: float, end: float) -> None:
        self.begin, self.end = begin, end
        self.answered = 0
        self.latencies: list[float] = []

    def add(self, started: float, now: float, images: int = 1) -> None:
        if self.begin <= now <= self.end:
            self.answered += images
        if self.begin <= started:
            self.latencies.append(now - started)


def http_request(address: str, model: str, image: bytes, conf_thres: float | None = None) -> bytes:
    """A whole request: headers and the image as the body."""
    asked = "" if conf_thres is None else f"X-Yolo-Conf-Thres: {conf_thres}\r\n"
    head = (
        f"POST /v2/models/{endpoint_for(model)}/infer HTTP/1.1\r\nHost: {address}\r\n"
        "Content-Type: application/octet-stream\r\nInference-Header-Content-Length: 0\r\n"
        f"{asked}Content-Length: {len(image)}\r\n\r\n"
    )
    return head.encode() + image


class HttpAnswers:
    """Reads answers to one image over HTTP. A description that came before is not parsed again."""

    def __init__(self) -> None:
        self._places: dict[bytes, int] = {}

    def detections(self, answer: bytearray) -> int | None:
        """The number of detections in a whole answer; None if more of it is to come.

        Raises:
            RuntimeError: the status is not 200, or the answer is not the endpoint's.
        """
        end = answer.find(b"\r\n\r\n") + 4
        if end < 4:
            return None
        content = _CONTENT.search(answer, 0, end)
        if not answer.startswith(b"HTTP/1.1 200") or content is None:
            raise RuntimeError(f"answered with {bytes(answer[:300])!r}")
        if len(answer) < end + int(content[1]):
            return None
        length = _INFERENCE.search(answer, 0, end)
        described = bytes(answer[end : end + int(length[1])]) if length else b""
        if described not in self._places:
            self._places[described] = _place(described)
        at = end + self._places[described]
        return int.from_bytes(answer[at : at + 4], "little")


def _place(described: bytes) -> int:
    """Where the number of detections is in an answer, counted from its description in JSON."""
    at = len(described)
    for output in json.loads(described or b"{}").get("outputs", []):
        if output["name"] == "num_dets":
            return at
        at += output["parameters"]["binary_data_size"]
    raise RuntimeError(f"no num_dets in {described[:300]!r}")


class _Connection:
    """One caller over HTTP."""

    def __init__(self, address: str, request: bytes, answers: HttpAnswers, detections: int) -> None:
        host, _, port = address.rpartition(":")
        self.socket = socket.create_connection((host, int(port)), timeout=_TIMEOUT_SECONDS)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        self._request = memoryview(request)
        self._answers = answers
        self._detections = detections
        self._answer = bytearray()
        self._sent = 0
        self.started = 0.0

    def send(self) -> bool:
        """Send what can be sent; whether that was all."""
        if not self._sent:
            self.started = time.perf_counter()
        try:
            while self._sent < len(self._request):
                self._sent += self.socket.send(self._request[self._sent :])
        except BlockingIOError:
            return False
        return True

    def receive(self) -> bool:
        """Receive what has come; whether the answer is complete.

        Raises:
            RuntimeError: the connection was closed, or the answer is not the right one.
        """
        data = self.socket.recv(_CHUNK)
        if not data:
            raise RuntimeError("the server has closed a connection")
        self._answer += data
        found = self._answers.detections(self._answer)
        if found is None:
            return False
        if found != self._detections:
            raise RuntimeError(f"{found} detections in place of {self._detections}")
        self._answer.clear()
        self._sent = 0
        return True


def _load_over_http(
    request: bytes, *, address: str, callers: int, detections: int, tally: Tally
) -> None:
    poll = select.epoll()
    reading, both = select.EPOLLIN, select.EPOLLIN | select.EPOLLOUT
    connections, answers = {}, HttpAnswers()
    for _ in range(callers):
        connection = _Connection(address, request, answers, detections)
        connections[connection.socket.fileno()] = connection
        poll.register(connection.socket, reading if connection.send() else both)
    waiting = callers
    while waiting:
        events = poll.poll(_TIMEOUT_SECONDS)
        if not events:
            raise RuntimeError(f"no answer in {_TIMEOUT_SECONDS} s")
        for number, event in events:
            connection = connections[number]
            if event & select.EPOLLOUT and connection.send():
                poll.modify(number, reading)
            if event & ~select.EPOLLOUT and connection.receive():
                now = time.perf_counter()
                tally.add(connection.started, now)
                if now >= tally.end:
                    waiting -= 1
                elif not connection.send():
                    poll.modify(number, both)
    for connection in connections.values():
        connection.socket.close()
    poll.close()


def grpc_request(model: str, image: bytes, images: int) -> bytes:
    """A serialised request of the image, `images` times."""
    from tritonclient.grpc import service_pb2

    content = len(image).to_bytes(4, "little") + image
    request = service_pb2.ModelInferRequest(
        model_name=endpoint_for(model), raw_input_contents=[content * images]
    )
    request.inputs.add(name="image", datatype="BYTES", shape=[images, 1])
    made: bytes = request.SerializeToString()
    return made


def _load_over_grpc(
    request: bytes, *, address: str, callers: int, detections: list[int], tally: Tally
) -> None:
    import grpc
    from tritonclient.grpc import service_pb2

    parse: Callable[[bytes], Any] = service_pb2.ModelInferResponse.FromString
    wanted = np.array(detections, np.int32).tobytes()
    failures: list[str] = []
    options = [
        ("grpc.use_local_subchannel_pool", 1),  # a connection for each caller
        ("grpc.max_send_message_length", -1),
        ("grpc.max_receive_message_length", -1),
    ]

    def call() -> None:
        try:
            with grpc.insecure_channel(address, options=options) as channel:
                infer = channel.unary_unary(_METHOD)
                while (started := time.perf_counter()) < tally.end and not failures:
                    answer = parse(infer(request, timeout=_TIMEOUT_SECONDS))
                    names = [output.name for output in answer.outputs]
                    if answer.raw_output_contents[names.index("num_dets")] != wanted:
                        raise RuntimeError(f"not {detections} detections")
                    tally.add(started, time.perf_counter(), len(detections))
        except Exception as error:
            failures.append(repr(error))

    threads = [threading.Thread(target=call) for _ in range(callers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise RuntimeError(failures[0])


def run_light_load(
    *,
    transport: str,
    address: str,
    model: str,
    photo: str,
    callers: int,
    detections: int,
    begin: float,
    end: float,
    images: int = 1,
    conf_thres: float | None = None,
) -> dict[str, Any]:
    """Load the endpoint with callers that send the next image as soon as they have an answer.

    Args:
        transport: HTTP or GRPC.
        detections: that each answer must have.
        begin, end: of the measurement, on the clock of `perf_counter`, which processes share.
        images: in a request; over HTTP only one.
        conf_thres: to ask for, over HTTP; by default the endpoint's own.

    Returns:
        images: answered during the measurement; latencies: in seconds, of requests sent during it;
        client_cpu: seconds used by this process during it.

    Raises:
        RuntimeError: a request has failed, or was answered with another number of detections.
    """
    tally = Tally(begin, end)
    used: list[float] = []

    def look() -> None:
        for moment in (begin, end):
            time.sleep(max(0.0, moment - time.perf_counter()))
            used.append(time.process_time())

    thread = threading.Thread(target=look)
    thread.start()
    image = Path(photo).read_bytes()
    common: dict[str, Any] = {"address": address, "callers": callers, "tally": tally}
    if transport == "HTTP":
        request = http_request(address, model, image, conf_thres)
        _load_over_http(request, detections=detections, **common)
    else:
        request = grpc_request(model, image, images)
        _load_over_grpc(request, detections=[detections] * images, **common)
    thread.join()
    return {
        "images": tally.answered,
        "latencies": tally.latencies,
        "client_cpu": used[1] - used[0],
    }


def main() -> None:
    """Answer requests, one line of JSON each, until the input ends."""
    for line in sys.stdin:
        print(json.dumps(run_light_load(**json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
