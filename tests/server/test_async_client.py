"""`AsyncClient` against a real server: concurrent and cancelled calls."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from support import PHOTO, PHOTOS, RunningServer, metric, reference, wait_until

from yolov5_client import AsyncClient, AsyncImage, InvalidRequestError

REFERENCE = reference(Path(__file__).parents[1] / "data" / "bccd_reference.json")


def test_two_hundred_concurrent_calls_are_all_answered(server: RunningServer) -> None:
    photos = [*sorted(PHOTOS.iterdir())] * 25
    read = 0
    most = 0

    async def ask() -> None:
        nonlocal read, most
        under_way = 0
        async with AsyncClient(server.grpc) as client:

            async def one(path: Path) -> None:
                nonlocal under_way, read, most

                async def image() -> bytes:
                    nonlocal under_way, most
                    under_way += 1
                    most = max(most, under_way)
                    return path.read_bytes()

                found = await client.detect(image)
                under_way -= 1
                read += 1
                wanted = REFERENCE[path.name]
                assert found.classes.tolist() == wanted[:, 5].tolist()
                assert abs(found.boxes - wanted[:, :4]).max() < 0.01

            await asyncio.gather(*map(one, photos))

    asyncio.run(ask())
    assert read == 200
    assert most <= 17, "the bytes of at most as many images as are under way are held"


def test_cancelled_call_is_cancelled_on_the_server(server: RunningServer) -> None:
    async def ask() -> int:
        async with AsyncClient(server.grpc, in_flight=64) as client:
            calls = [asyncio.ensure_future(client.detect(PHOTO)) for _ in range(64)]
            # Once eight are done, most have arrived, and are still queued: a call that is cancelled
            # while its bytes are being sent is not yet a request.
            while sum(call.done() for call in calls) < 8:
                await asyncio.sleep(0.01)
            for call in calls[32:]:
                call.cancel()
            results = await asyncio.gather(*calls, return_exceptions=True)
            kept = [found for found in results if not isinstance(found, BaseException)]
            assert len(kept) >= 32
            assert [len(found) for found in kept] == [11] * len(kept)
            return len(kept)

    def answered() -> int:
        return metric(server.metrics, "nv_inference_request_success", model="postprocess")

    def cancelled() -> int:
        return metric(server.metrics, "nv_inference_request_failure", reason="CANCELED")

    before = answered(), cancelled()
    kept = asyncio.run(ask())
    # Triton notices and counts the cancellation only when the request's turn comes.
    wait_until(lambda: cancelled() > before[1], 10)
    wait_until(lambda: answered() >= before[0] + kept, 10)  # counted after the answer is sent
    # The network's turns of most of the cancelled ones were spared.
    assert answered() < before[0] + kept + (64 - kept) / 2


def test_stream_keeps_order_and_bounds_what_it_holds(
    server: RunningServer,
) -> None:
    photos = sorted(PHOTOS.iterdir())

    async def ask() -> None:
        taken = 0

        async def without_end() -> AsyncIterator[Path]:
            nonlocal taken
            while True:
                yield photos[taken % 8]
                taken += 1

        async with AsyncClient(server.grpc, in_flight=3) as client:
            stream = client.detect_stream(without_end())
            number = 0
            async for found in stream:
                assert len(found) == len(REFERENCE[photos[number % 8].name])
                number += 1
                assert taken - number <= 6
                if number == 20:
                    break
            await stream.aclose()

    asyncio.run(ask())


def test_stream_raises_or_yields_errors(server: RunningServer, tmp_path: Path) -> None:
    images: list[AsyncImage] = [PHOTO, b"hello", tmp_path / "none.jpg", PHOTO]

    async def ask() -> None:
        async with AsyncClient(server.grpc) as client:
            results = [r async for r in client.detect_stream(images, return_exceptions=True)]
            assert [len(results[0]), len(results[3])] == [11, 11]  # type: ignore[arg-type]
            assert isinstance(results[1], InvalidRequestError)
            assert isinstance(results[2], FileNotFoundError)
            with pytest.raises(InvalidRequestError, match="^image 2 of the list: not an image"):
                await client.detect(images)
            assert len(await client.detect(PHOTO)) == 11

    asyncio.run(ask())


def test_slow_async_source_gets_answers_while_it_waits(server: RunningServer) -> None:
    async def ask() -> None:
        answered = asyncio.Event()

        async def photos() -> AsyncIterator[Path]:
            for _ in range(3):
                yield PHOTO
                # Without its answer there is no next image.
                await asyncio.wait_for(answered.wait(), 30)
                answered.clear()

        async with AsyncClient(server.grpc) as client:
            async for found in client.detect_stream(photos()):
                assert len(found) == 11
                answered.set()

    asyncio.run(ask())
