"""Servers that send whatever bytes a test wants, over HTTP and over gRPC."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import service_pb2

from yolov5_client import Detections

Send = Callable[[bytes], None]


@contextmanager
def tcp_server(answer: Callable[[bytes, Send], None]) -> Iterator[str]:
    """Its `host:port`; `answer` gets the first bytes of each connection, and sends."""
    listener = socket.create_server(("127.0.0.1", 0))
    opened: list[socket.socket] = []

    def serve(connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            answer(connection.recv(65536), connection.sendall)
            # Closing on unread bytes would take back what was sent.
            connection.shutdown(socket.SHUT_WR)
            connection.settimeout(2)
            while connection.recv(65536):
                pass
        connection.close()

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            opened.append(connection)
            threading.Thread(target=serve, args=(connection,), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{listener.getsockname()[1]}"
    finally:
        for one in [listener, *opened]:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        thread.join(5)


def dribble(data: bytes, pause: float = 0.2) -> Callable[[bytes, Send], None]:
    """A byte at a time; when there are no more, the last one for ever."""

    def answer(request: bytes, send: Send) -> None:
        deadline = time.monotonic() + 20
        for i in range(1 << 30):
            send(data[i : i + 1] or data[-1:])
            time.sleep(pause)
            if time.monotonic() > deadline:
                return

    return answer


def http(body: bytes, headers: dict[str, Any] | None = None, status: str = "200 OK") -> bytes:
    lines = {"Content-Length": len(body), **(headers or {})}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items() if value is not None)
    return f"HTTP/1.1 {status}\r\n{head}\r\n".encode() + body


@dataclass
class Tensor:
    """One output as it travels."""

    name: str
    datatype: str
    shape: Sequence[int]
    data: bytes


def strings(*items: bytes) -> bytes:
    return b"".join(len(item).to_bytes(4, "little") + item for item in items)


def tensors() -> dict[str, Tensor]:
    """An answer as the contract has it: two detections in an image of 640x480."""
    boxes = np.array([[1, 2, 3, 4], [0, 0, 640, 480]], "<f4").tobytes()
    all_of_them = [
        Tensor("num_dets", "INT32", [1, 1], np.array([2], "<i4").tobytes()),
        Tensor("det_boxes", "FP32", [1, 2, 4], boxes),
        Tensor("det_scores", "FP32", [1, 2], np.array([0.9, 0.5], "<f4").tobytes()),
        Tensor("det_classes", "INT32", [1, 2], np.array([1, 0], "<i4").tobytes()),
        Tensor("det_labels", "BYTES", [1, 2], strings(b"RBC", b"WBC")),
        Tensor("image_size", "INT32", [1, 2], np.array([480, 640], "<i4").tobytes()),
    ]
    return {tensor.name: tensor for tensor in all_of_them}


def tensors_for(found: Detections) -> list[Tensor]:
    """Return the answer to one image in which these are found."""
    n = len(found)
    labels = strings(*(label.encode() for label in found.labels))
    return [
        Tensor("num_dets", "INT32", [1, 1], np.array([n], "<i4").tobytes()),
        Tensor("det_boxes", "FP32", [1, n, 4], found.boxes.astype("<f4").tobytes()),
        Tensor("det_scores", "FP32", [1, n], found.scores.astype("<f4").tobytes()),
        Tensor("det_classes", "INT32", [1, n], found.classes.astype("<i4").tobytes()),
        Tensor("det_labels", "BYTES", [1, n], labels),
        Tensor("image_size", "INT32", [1, 2], np.array(found.image_size, "<i4").tobytes()),
    ]


def over_http(answer: Sequence[Tensor]) -> bytes:
    """The whole of what is sent."""
    outputs = [
        {
            "name": one.name,
            "datatype": one.datatype,
            "shape": [*one.shape],
            "parameters": {"binary_data_size": len(one.data)},
        }
        for one in answer
    ]
    head = json.dumps({"outputs": outputs}).encode()
    body = head + b"".join(one.data for one in answer)
    return http(body, {"Inference-Header-Content-Length": len(head)})


def over_grpc(answer: Sequence[Tensor]) -> bytes:
    """The message."""
    response = service_pb2.ModelInferResponse(model_name="yolov5_ensemble")
    for one in answer:
        output = response.outputs.add(name=one.name, datatype=one.datatype)
        output.shape.extend(one.shape)
        response.raw_output_contents.append(one.data)
    return bytes(response.SerializeToString())


@contextmanager
def http_server(data: bytes) -> Iterator[str]:
    """Answers every request with these bytes; its address."""
    with tcp_server(lambda request, send: send(data)) as address:
        yield f"http://{address}"


@contextmanager
def grpc_server(
    message: bytes, compression: grpc.Compression = grpc.Compression.NoCompression
) -> Iterator[str]:
    """Answers every call with this message; its address."""

    class Handler(grpc.GenericRpcHandler):  # type: ignore[misc]
        def service(self, details: Any) -> Any:
            return grpc.unary_unary_rpc_method_handler(lambda request, context: message)

    server = grpc.server(
        futures.ThreadPoolExecutor(2),
        handlers=[Handler()],
        options=[("grpc.max_send_message_length", -1)],
        compression=compression,
    )
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None)


@contextmanager
def http_recorder(*labels: str) -> Iterator[tuple[str, list[bytes]]]:
    """Answers every image as the contract says; its address, and the bodies that came.

    Args:
        labels: of the two detections.
    """
    received: list[bytes] = []
    answer = tensors()
    if labels:
        answer["det_labels"].data = strings(*(label.encode() for label in labels))

    def record(endpoint: str, image: bytes) -> bytes:
        received.append(image)
        return over_http([*answer.values()])

    with http_endpoints(record) as address:
        yield address, received


@contextmanager
def http_endpoints(answer: Callable[[str, bytes], bytes]) -> Iterator[str]:
    """Is ready, and answers images; its address.

    Args:
        answer: takes the name of an endpoint and an image, and returns the whole of what is sent.
    """

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            image = self.rfile.read(int(self.headers["Content-Length"]))
            self.wfile.write(answer(self.path.split("/")[3], image))

        def do_GET(self) -> None:
            self.wfile.write(http(b'{"version": "2.0"}'))

        def log_message(self, *_: Any) -> None:
            """Not."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()
