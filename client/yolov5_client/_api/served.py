"""The networks of the server, as the launcher lists them, kept for a moment."""

from __future__ import annotations

import asyncio
import time

from .._contract import endpoint_for
from .._errors import TimedOutError, YoloClientError
from .._served import ServedModel, read_served_models

_FRESH = 1.0  # seconds for which the list is not read again
_OLD = 2.0  # seconds after which an answer waits for a new one
_TIMEOUT = 2.0  # seconds for the launcher to answer
_PATIENCE = 0.25  # seconds that an answer waits for a version


class ServedModels:
    """Asks the launcher at most once in a second, and while requests come, beside them.

    Args:
        health: address of the launcher's health port; None does without.
        default: the network that is asked if a request names none.
    """

    def __init__(self, health: str | None, default: str) -> None:
        self._health = health
        self._default = default
        self._models: dict[str, ServedModel] = {}
        self._read_at = -_FRESH
        self._reading: asyncio.Task[None] | None = None

    async def version(self, name: str) -> str | None:
        """Return the version of a network that is served; None if nobody tells."""
        is_old = time.monotonic() - self._read_at > _OLD
        await self._refresh(_PATIENCE if is_old or name not in self._models else 0.0)
        model = self._models.get(name)
        return None if model is None or model.version is None else str(model.version)

    async def all(self) -> list[ServedModel]:
        """Return the networks; without a launcher only the name of the default one is known."""
        await self._refresh(_TIMEOUT)
        return [*self._models.values()] or [
            ServedModel(
                name=self._default,
                endpoint=endpoint_for(self._default),
                ready=True,
                reason=None,
                version=None,
                precision=None,
                memory_bytes=None,
            )
        ]

    async def _refresh(self, patience: float) -> None:
        if self._health is None or time.monotonic() - self._read_at < _FRESH:
            return
        if self._reading is None:
            self._reading = asyncio.ensure_future(self._read(self._health))
        if patience:
            await asyncio.wait({self._reading}, timeout=patience)

    async def _read(self, health: str) -> None:
        try:
            models = await asyncio.to_thread(read_served_models, health, _TIMEOUT, memory=False)
            self._models = {model.name: model for model in models}
        except TimedOutError:
            pass  # a busy launcher, whose server is still there
        except YoloClientError:
            self._models = {}  # better none than those of a server that is gone
        finally:
            self._read_at = time.monotonic()
            self._reading = None
