"""Requests that were made to harm a server: each ended, stalled or filled an earlier version."""

from __future__ import annotations

import contextlib
import json
import random
import socket
import struct
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import cv2
import numpy as np
import tritonclient.grpc as triton
from support import PHOTO, RAW, RunningServer, infer, post

Attack = Callable[[RunningServer], None]

REFUSED = (400, 403, 404, 413, 415, 503)


def png(*chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of these chunks, with their lengths and checksums."""
    found = b"\x89PNG\r\n\x1a\n"
    for kind, data in chunks:
        checksum = zlib.crc32(kind + data)
        found += struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)
    return found


def header(width: int, height: int) -> tuple[bytes, bytes]:
    return b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)


@cache
def inflating_png() -> bytes:
    """64 MB of zeros in the data of a picture of 8x8."""
    return png(header(8, 8), (b"IDAT", zlib.compress(bytes(64 << 20), 9)), (b"IEND", b""))


@cache
def frame_out_of_place() -> bytes:
    """An animated PNG whose first frame begins outside the picture."""
    rows = zlib.compress(b"".join(b"\0" + bytes(3 * 64) for _ in range(64)))
    control = struct.pack(">IIIIIHHBB", 0, 64, 64, 60, 60, 1, 10, 0, 0)
    return png(
        header(64, 64),
        (b"acTL", struct.pack(">II", 2, 0)),
        (b"fcTL", control),
        (b"IDAT", rows),
        (b"IEND", b""),
    )


@cache
def two_widths() -> bytes:
    """A TIFF that says twice how wide it is, 256 and then 8,000 pixels."""
    entries = [(256, 4, 1, 256), (256, 4, 1, 8000), (257, 4, 1, 8000), (258, 3, 1, 8)]
    entries += [(259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, 8), (277, 3, 1, 1)]
    entries += [(278, 4, 1, 8000), (279, 4, 1, 64)]
    directory = struct.pack("<H", len(entries))
    directory += b"".join(struct.pack("<HHII", *entry) for entry in entries) + bytes(4)
    return b"II*\0" + struct.pack("<I", 72) + bytes(64) + directory


@cache
def largest_photo() -> bytes:
    """A JPEG of 64 million pixels, which is allowed."""
    _, encoded = cv2.imencode(".jpg", np.full((8000, 8000, 3), 114, np.uint8))
    return encoded.tobytes()


def send(
    server: RunningServer, image: bytes, headers: Mapping[str, str] | None = None
) -> tuple[int, bytes]:
    """The image as a raw body; status and answer."""
    request = urllib.request.Request(
        f"{server.http}/v2/models/yolov5_ensemble/infer", image, {**RAW, **(headers or {})}
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def of_image(image: Callable[[], bytes], allowed: tuple[int, ...]) -> Attack:
    def attack(server: RunningServer) -> None:
        status, body = send(server, image())
        assert status in allowed, (status, body[:200])

    return attack


def most_expensive_parameters(server: RunningServer) -> None:
    headers = {"X-Yolo-Conf-Thres": "0", "X-Yolo-Iou-Thres": "1", "X-Yolo-Max-Det": "1000"}
    headers |= {"X-Yolo-Multi-Label": "true", "X-Yolo-Agnostic-Nms": "true"}
    status, body = send(server, PHOTO.read_bytes(), headers)
    assert status in (200, 503), (status, body[:200])


def megabytes_of_classes(server: RunningServer) -> None:
    body = {"image": "x", "classes": "0," * (1 << 20)}
    reply = post(f"{server.http}/v2/models/yolov5_ensemble/generate", json.dumps(body).encode())
    assert reply.status in REFUSED, reply.status


def forged_tensors(server: RunningServer) -> None:
    request: dict[str, Any] = {"name": "output0", "datatype": "FP32", "shape": [1, -2, -8]}
    body = json.dumps({"inputs": [{**request, "data": [0.0] * 16}]}).encode()
    for step in ("preprocess", "yolov5", "postprocess"):
        assert post(f"{server.http}/v2/models/{step}/infer", body).status in REFUSED


def step_over_grpc(server: RunningServer) -> None:
    with triton.InferenceServerClient(server.grpc) as client:
        for step in ("preprocess", "yolov5", "postprocess"):
            try:
                infer(client, [PHOTO.read_bytes()], model=step)
            except triton.InferenceServerException:
                continue
            raise AssertionError(f"{step} has answered")


def eight_of_the_largest_photos(server: RunningServer) -> None:
    with triton.InferenceServerClient(server.grpc) as client:
        try:
            outputs = infer(client, [largest_photo()] * 8)
        except triton.InferenceServerException as error:
            assert error.status() == "StatusCode.UNAVAILABLE"
        else:
            assert outputs["image_size"].tolist() == [[8000, 8000]] * 8


def silent_connections(server: RunningServer) -> None:
    """Connections that say nothing, to the endpoint and to the health port."""
    with contextlib.ExitStack() as stack:
        for port in (server.ports[0], server.ports[1], server.ports[3]):
            for _ in range(80):
                with contextlib.suppress(OSError):
                    stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=5))
        with urllib.request.urlopen(f"{server.health}/live", timeout=10) as answer:
            assert answer.status == 200
        time.sleep(random.uniform(0, 2))


# What a server bears by itself. JSON that is nested too deeply, `classification`, web forms and
# compressed gRPC end or fill Triton 2.51; the gateway keeps them away (test_gateway.py).
ATTACKS: dict[str, Attack] = {
    "an animated PNG with a frame out of place": of_image(frame_out_of_place, (200, 400, 503)),
    "a PNG that inflates": of_image(inflating_png, (200, 400, 503)),
    "a TIFF of two widths": of_image(two_widths, (400, 503)),
    "the most expensive parameters": most_expensive_parameters,
    "megabytes of classes": megabytes_of_classes,
    "forged tensors": forged_tensors,
    "a step over gRPC": step_over_grpc,
    "eight of the largest photos": eight_of_the_largest_photos,
    "silent connections": silent_connections,
}
