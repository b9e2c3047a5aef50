"""What runs in the processes of the cluster: one part of the job after the other."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import numpy as np

from .._async_client import AsyncClient
from .._errors import YoloClientError
from .._served import read_served_models
from .local_server import LocalServer
from .plan import RESULTS, part_name, read_part
from .questions import Questions
from .rows import Counts, Row, to_parquet
from .settings import BatchSettings
from .storage import Folder

PART, COUNTS = "part", "counts"


class PartWorker:
    """A callable for Ray Data's actor pool.

    Args:
        settings: of the job. Without an address of a server, the worker starts one.
    """

    def __init__(self, settings: BatchSettings) -> None:
        self._settings = settings
        self._folder = Folder(settings.destination, settings.retry_for)
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="questions", daemon=True).start()
        server = LocalServer(settings.server_flags) if settings.server is None else None
        self._server = server  # it ends with this process
        self._health = settings.health if server is None else server.health
        self._client = AsyncClient(
            settings.server if server is None else server.address,  # type: ignore[arg-type]
            model=settings.model,
            timeout=settings.timeout,
            retry_for=settings.retry_for,
            in_flight=settings.in_flight,
            headers=settings.headers,
            tls=settings.tls,
        )
        self._questions = Questions(settings, self._client)

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Do one part; one that is done already is only counted. Threads may do several at a time.

        Returns:
            Its number and its counts, in arrays of one element.
        """
        number = int(batch[PART][0])
        try:
            counts = Counts.of_file(self._folder.read(f"{RESULTS}/{part_name(number)}"))
        except FileNotFoundError:
            counts = asyncio.run_coroutine_threadsafe(self._do(number), self._loop).result()
        return {PART: np.array([number]), COUNTS: np.array([counts.to_json()], np.object_)}

    async def _do(self, number: int) -> Counts:
        part = await asyncio.to_thread(read_part, self._folder, number)
        rows = await self._questions.rows(part)
        return await asyncio.to_thread(self._write, number, rows)

    def _write(self, number: int, rows: list[Row]) -> Counts:
        content = to_parquet(rows, self._settings.model, self._version())
        self._folder.write(f"{RESULTS}/{part_name(number)}", content)
        return Counts.of_file(content)

    def _version(self) -> str | None:
        """Return the version that is served now; None if nobody tells."""
        if self._health is not None:
            with suppress(YoloClientError):
                for one in read_served_models(self._health, 5.0, memory=False):
                    if one.name == self._settings.model and one.version is not None:
                        return str(one.version)
        return None
