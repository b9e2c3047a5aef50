"""A server under hostile load for minutes; prints figures.

`pytest -m slow -s tests/server/test_siege.py`. SOAK_MINUTES (30) is the length of the longest test.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import os
import random
import socket
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from attacks import ATTACKS
from numpy.typing import NDArray
from support import PHOTO, PHOTOS, RAW, SHARED, SHARED_MEMORY, RunningServer, running_server

from yolov5_client import (
    AsyncClient,
    Client,
    Detections,
    InvalidRequestError,
    UnavailableError,
    YoloClientError,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200)]

SOAK_MINUTES = float(os.environ.get("SOAK_MINUTES", "30"))
PHOTO_BYTES = PHOTO.read_bytes()


@pytest.fixture
def own(bundled_repository: Path) -> Iterator[RunningServer]:
    with running_server(f"--repository={bundled_repository}") as running:
        yield running
        log = running.log.read_text()
        assert "again" not in log, log[-10000:]


def hostile() -> list[bytes]:
    folder = SHARED / "nasty"
    if not folder.exists():
        pytest.skip("the hostile files are not at hand")
    return [path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()]


def rate(server: RunningServer, seconds: float, callers: int = 8) -> float:
    """Images a second with this number of callers."""
    end = time.monotonic() + seconds

    def ask(_: int) -> int:
        answered = 0
        while time.monotonic() < end:
            assert len(client.detect(PHOTO_BYTES)) == 11
            answered += 1
        return answered

    with Client(server.grpc, in_flight=callers) as client, ThreadPoolExecutor(callers) as pool:
        started = time.monotonic()
        answered = sum(pool.map(ask, range(callers)))
        return answered / (time.monotonic() - started)


class Sizes:
    """Memory and open files of the server's processes, sampled every few seconds."""

    def __init__(self, server: RunningServer) -> None:
        self.names: dict[int, str] = {}
        for pid in server.descendants():
            command = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
            name = Path(command[0]).name
            stub = name.endswith("_stub")
            self.names[pid] = f"{Path(command[1]).parts[-3] if stub else name} {pid}"
        self.names[server.process.pid] = "launcher"
        assert any(name.startswith("tritonserver ") for name in self.names.values())
        self.rows: list[dict[str, float]] = []
        self._server = server

    def look(self) -> None:
        row: dict[str, float] = {"seconds": time.monotonic()}
        for pid, name in self.names.items():
            status = Path(f"/proc/{pid}/status").read_text()
            # Without shared memory, which has a row of its own.
            row[f"{name} MB"] = sum(
                int(line.split()[1]) / 1024
                for line in status.splitlines()
                if line.startswith(("RssAnon", "RssFile"))
            )
            row[f"{name} files"] = sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())
        held = sum(
            path.stat().st_blocks * 512
            for path in SHARED_MEMORY.glob(f"yolov5_triton_{self._server.process.pid}_*")
        )
        row["/dev/shm MB"] = held / 2**20
        self.rows.append(row)

    def look_when_idle(self) -> None:
        """Sample once the connections of ended callers are closed, which takes some seconds."""
        self.look()
        for _ in range(6):
            before = self.rows.pop()
            time.sleep(10)
            self.look()
            if all(self.rows[-1][name] >= before[name] for name in before if "files" in name):
                return

    @contextmanager
    def watched(self, seconds: float = 1.0) -> Iterator[None]:
        stop = threading.Event()

        def watch() -> None:
            while not stop.wait(seconds):
                self.look()

        thread = threading.Thread(target=watch)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def table(self, *parts: list[dict[str, float]]) -> dict[str, list[float]]:
        """The median of each size in each of these parts of the rows."""
        return {
            name: [statistics.median(row[name] for row in part) for part in parts]
            for name in self.rows[0]
            if name != "seconds"
        }


def quantile(seconds: list[float], share: float) -> float:
    return float(np.quantile(seconds, share))


def test_hostile_files_do_not_change_answers_to_good_ones(own: RunningServer) -> None:
    good = [path.read_bytes() for path in sorted(PHOTOS.iterdir())]
    wanted: dict[bytes, Detections | str] = {}
    slowest = 0.0

    def answer(client: Client, image: bytes) -> Detections | str:
        try:
            return client.detect(image)
        except InvalidRequestError as error:
            return str(error)

    with Client(own.grpc) as client:
        for image in [*good, *hostile()]:
            started = time.monotonic()
            wanted[image] = answer(client, image)
            slowest = max(slowest, time.monotonic() - started)
    images = [*wanted]
    refused = sum(isinstance(found, str) for found in wanted.values())
    print(f"\nalone: {len(images)} files, {refused} refused, slowest {slowest:.2f} s")
    end = time.monotonic() + 120
    taken: list[float] = []

    def ask(seed: int) -> int:
        order = random.Random(seed)
        asked = 0
        with Client(own.grpc) as client:
            while time.monotonic() < end:
                image = order.choice(good) if order.random() < 0.5 else order.choice(images)
                started = time.monotonic()
                found = answer(client, image)
                taken.append(time.monotonic() - started)
                assert same(found, wanted[image]), (found, wanted[image])
                asked += 1
        return asked

    with ThreadPoolExecutor(16) as pool:
        asked = sum(pool.map(ask, range(16)))
    peak = max(
        int(line.split()[1]) / 1024
        for line in Path(f"/proc/{own.processes('/preprocess/1/')[0]}/status")
        .read_text()
        .splitlines()
        if line.startswith("VmHWM")
    )
    print(
        f"mixed: {asked} requests, all as alone, slowest {max(taken):.2f} s,"
        f" preprocess {peak:.0f} MB at most"
    )
    assert peak < 1500


def same(one: Detections | str, other: Detections | str) -> bool:
    if isinstance(one, str) or isinstance(other, str):
        return one == other
    return (
        one.labels == other.labels
        and one.image_size == other.image_size
        and close(one.boxes, other.boxes)
        and close(one.scores, other.scores)
    )


def close(one: NDArray[np.float32], other: NDArray[np.float32]) -> bool:
    return np.allclose(one, other, rtol=0, atol=1e-2)


async def storm(
    server: RunningServer,
    seconds: float,
    accepted: list[float],
    refused: list[float],
    images: Sequence[bytes] = (PHOTO_BYTES,),
) -> None:
    """Run 256 callers that retry after a second if refused; append the seconds of each answer."""
    order = random.Random(0)

    async def caller() -> None:
        while True:
            started = time.monotonic()
            try:
                image = order.choice(images)
                found = await client.detect(image)
                assert image is not PHOTO_BYTES or len(found) == 11
                accepted.append(time.monotonic() - started)
            except InvalidRequestError:
                assert image is not PHOTO_BYTES
            except UnavailableError:
                refused.append(time.monotonic() - started)
                await asyncio.sleep(1)

    async with AsyncClient(server.grpc, in_flight=256) as client:
        callers = [asyncio.ensure_future(caller()) for _ in range(256)]
        done, _ = await asyncio.wait(callers, timeout=seconds)
        assert not done
        for one in callers:
            one.cancel()
        await asyncio.gather(*callers, return_exceptions=True)


def test_throughput_recovers_after_256_callers(own: RunningServer) -> None:
    before = rate(own, 10)
    accepted: list[float] = []
    refused: list[float] = []
    sizes = Sizes(own)

    with sizes.watched():
        started = time.monotonic()
        asyncio.run(storm(own, 120, accepted, refused))
        took = time.monotonic() - started
    time.sleep(1)
    after = rate(own, 10)
    middle, late = sizes.rows[50:65], sizes.rows[-15:]
    print(
        f"\naccepted {len(accepted) / took:.1f}/s, p50 {quantile(accepted, 0.5):.2f} s, p99"
        f" {quantile(accepted, 0.99):.2f} s, longest {max(accepted):.2f} s; refused"
        f" {len(refused) / took:.1f}/s, median {1000 * quantile(refused, 0.5):.1f} ms, p99"
        f" {1000 * quantile(refused, 0.99):.1f} ms; images/s of 8 callers before {before:.1f},"
        f" 1 s after {after:.1f}"
    )
    for name, (then, last) in sizes.table(middle, late).items():
        print(f"  {name}: {then:.1f} after a minute, {last:.1f} at the end")
    assert quantile(refused, 0.5) < 0.05
    assert after > 0.9 * before


def test_memory_and_descriptors_do_not_grow_under_mixed_load_and_attacks(
    own: RunningServer,
) -> None:
    """Good and bad requests, cancelled ones, broken connections, and attacks.

    Each good answer is correct, and a refused good request is refused as saturated.
    """
    bad = [*hostile(), b"", b"hello"]
    good = [path.read_bytes() for path in sorted(PHOTOS.iterdir())]
    stop = threading.Event()
    counts = Counter[str]()

    with Client(own.grpc) as client:
        wanted = {image: client.detect(image) for image in good}

    def ask(order: random.Random) -> None:
        with Client(own.grpc) as client:
            while not stop.is_set():
                image = order.choice(good)
                try:
                    found = client.detect(image)
                except UnavailableError as error:
                    # Triton still works on requests of closed connections: its queues may be full.
                    assert "saturated" in str(error), own.log.read_text()[-10000:]
                    counts["good, shed"] += 1
                    time.sleep(0.5)
                else:
                    assert same(found, wanted[image]), (found, wanted[image])
                    counts["good"] += 1

    def attack(order: random.Random) -> None:
        while not stop.is_set():
            name = order.choice([*ATTACKS])
            ATTACKS[name](own)
            counts["attacks"] += 1
            time.sleep(order.uniform(0, 1))

    def offend(order: random.Random) -> None:
        with Client(own.grpc, retry_for=60) as client:
            while not stop.is_set():
                with contextlib.suppress(InvalidRequestError):
                    client.detect(order.choice(bad))
                counts["bad"] += 1

    def cancel(order: random.Random) -> None:
        # A gRPC call that is cancelled in a bad moment ends Triton 2.51: docs/security.md.
        address = own.http if own.triton_version.startswith("2.51.") else own.grpc

        async def ask() -> None:
            async with AsyncClient(address) as client:
                while not stop.is_set():
                    call = asyncio.ensure_future(client.detect(order.choice(good)))
                    await asyncio.sleep(order.uniform(0, 0.2))
                    call.cancel()
                    with contextlib.suppress(asyncio.CancelledError, YoloClientError):
                        await call
                    counts["cancelled"] += 1

        asyncio.run(ask())

    def hang_up(order: random.Random) -> None:
        host, _, port = own.http.removeprefix("http://").partition(":")
        while not stop.is_set():
            image = order.choice(good)
            with socket.create_connection((host, int(port))) as connection:
                head = (
                    "POST /v2/models/yolov5_ensemble/infer HTTP/1.1\r\nHost: here\r\n"
                    + "".join(f"{name}: {value}\r\n" for name, value in RAW.items())
                    + f"Content-Length: {len(image)}\r\n\r\n"
                )
                connection.sendall(head.encode() + image[: order.randrange(2 * len(image))])
                time.sleep(order.uniform(0, 0.2))
            counts["hung up"] += 1

    def over_http(order: random.Random) -> None:
        connection = http.client.HTTPConnection(own.http.removeprefix("http://"))
        while not stop.is_set():
            connection.request(
                "POST", "/v2/models/yolov5_ensemble/infer", order.choice(good), dict(RAW)
            )
            answer = connection.getresponse()
            answer.read()
            assert answer.status in (200, 503)
            counts["good over HTTP" if answer.status == 200 else "refused over HTTP"] += 1
            time.sleep(0 if answer.status == 200 else 0.5)

    kinds: list[Callable[[random.Random], None]] = [
        *[ask] * 4,
        *[over_http] * 2,
        *[offend] * 2,
        *[cancel] * 2,
        *[hang_up] * 2,
        *[attack] * 2,
    ]
    # The warm-up: the server's memory grows with the longest queue of the largest files.
    asyncio.run(storm(own, 60, [], [], [*good, *bad]))
    asyncio.run(storm(own, 60, [], [], [max(bad, key=len)]))
    sizes = Sizes(own)
    sizes.look_when_idle()
    with ThreadPoolExecutor(len(kinds)) as pool:
        running = [pool.submit(kind, random.Random(number)) for number, kind in enumerate(kinds)]

        def go_on(minutes: float) -> None:
            end = time.monotonic() + 60 * minutes
            while time.monotonic() < end and not any(one.done() for one in running):
                time.sleep(1)

        try:
            go_on(SOAK_MINUTES / 3)  # the warm-up's last part
            with sizes.watched(5):
                go_on(SOAK_MINUTES)
        finally:
            stop.set()
        for one in running:
            one.result()
    sizes.look_when_idle()
    idle = sizes.rows.pop(0), sizes.rows.pop()
    part = len(sizes.rows) // 12
    parts = [sizes.rows[n * part : (n + 1) * part] for n in range(12)]
    print(f"\n{dict(counts)}; medians of the twelfths of {SOAK_MINUTES:.0f} minutes:")
    table = sizes.table(*parts)
    for name, values in table.items():
        print(f"  {name}: {' '.join(f'{value:.1f}' for value in values)}")
    print(f"  idle before: {idle[0]}\n  idle after: {idle[1]}")
    for name, values in table.items():
        if name.endswith("files"):
            # Connections come and go: compare before and after, when there are none.
            assert idle[1][name] <= idle[0][name] + 1, name
        else:
            # Memory depends on the images of the moment: compare the highest of each third.
            assert max(values[-4:]) < 1.02 * max(values[:4]) + 1, name
