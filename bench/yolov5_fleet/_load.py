"""The load generator, a process: `python -m yolov5_fleet._load`, JSON in and out.

It sends at given times, whatever the answers take, or as callers that wait for their answers. A
latency counts from the time at which a request was to be sent, so that a generator that is late
does not hide a wait.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time
from pathlib import Path
from typing import Any

import uvloop

from yolov5_bench._light_load import http_request
from yolov5_client._contract import NETWORK

_CONTENT = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_TIMEOUT_SECONDS = 60.0
_NO_ANSWER = 0  # in place of a status

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Load:
    """Requests to one address, over connections that are kept.

    Args:
        address: host and port.
        photos: sent in turn.

    Attributes:
        results: of each request: seconds from the start to its sending, its latency, its status.
        late: the longest that a request was sent after its time, in seconds.
    """

    def __init__(self, address: str, photos: list[bytes]) -> None:
        self._host, _, port = address.rpartition(":")
        self._port = int(port)
        self._requests = [http_request(address, NETWORK, photo) for photo in photos]
        self._free: list[Connection] = []
        self._sent = 0
        self._begin = 0.0
        self.results: list[tuple[float, float, int]] = []
        self.late = 0.0

    async def at_times(self, times: list[float]) -> None:
        """Send requests at these times, in seconds from now on."""
        self._begin = time.perf_counter()
        tasks = []
        for moment in times:
            await asyncio.sleep(max(0.0, self._begin + moment - time.perf_counter()))
            tasks.append(asyncio.create_task(self._ask(moment)))
        await asyncio.gather(*tasks)

    async def by_callers(self, callers: int, seconds: float, pause: float) -> None:
        """Let callers send the next request as soon as they have an answer.

        Args:
            pause: seconds, after a request that was not answered.
        """
        self._begin = time.perf_counter()

        async def caller() -> None:
            while (now := time.perf_counter() - self._begin) < seconds:
                if await self._ask(now) != 200:
                    await asyncio.sleep(pause)

        await asyncio.gather(*(caller() for _ in range(callers)))

    async def _ask(self, moment: float) -> int:
        request = self._requests[self._sent % len(self._requests)]
        self._sent += 1
        self.late = max(self.late, time.perf_counter() - self._begin - moment)
        try:
            status = await asyncio.wait_for(self._exchange(request), _TIMEOUT_SECONDS)
        except (OSError, EOFError, ValueError, asyncio.TimeoutError):
            status = _NO_ANSWER
        self.results.append((moment, time.perf_counter() - self._begin - moment, status))
        return status

    async def _exchange(self, request: bytes) -> int:
        if self._free:
            connection = self._free.pop()
        else:
            connection = await asyncio.open_connection(self._host, self._port)
        reader, writer = connection
        try:
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            length = _CONTENT.search(head)
            await reader.readexactly(int(length[1]) if length else 0)
        except BaseException:
            writer.close()
            raise
        self._free.append(connection)
        return int(head.split(maxsplit=2)[1])


async def _run(order: dict[str, Any]) -> dict[str, Any]:
    load = Load(order["address"], [Path(path).read_bytes() for path in order["photos"]])
    used = time.process_time()
    if times := order.get("times"):
        await load.at_times(times)
    else:
        await load.by_callers(order["callers"], order["seconds"], order["pause"])
    cpu = time.process_time() - used
    return {"results": load.results, "cpu": cpu, "late": load.late}


def main() -> None:
    """Carry out the one order that stands in standard input."""
    print(json.dumps(uvloop.run(_run(json.load(sys.stdin)))))


if __name__ == "__main__":
    main()
