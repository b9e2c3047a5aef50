"""Whether a call may be cancelled when its caller hangs up."""

from __future__ import annotations

import asyncio
import re
import time

from .. import AsyncClient, YoloClientError

# Triton 26.08, which withstood what ends 2.51: docs/security.md, "Vulnerabilities of Triton".
_WITHSTANDS = (2, 72)
_FRESH = 30.0  # seconds; another server may come back in place of the one before


class Cancelling:
    """Knows, by the server's version, whether it withstands cancelled calls.

    A race in its gRPC front end ends Triton 2.51 after some hundreds of cancelled calls. There a
    call goes on to its end, and counts among those in progress until then.

    Args:
        client: asks for the version.
        allowed: False cancels no call whatever the version is.
    """

    def __init__(self, client: AsyncClient, *, allowed: bool) -> None:
        self._client = client
        self._allowed = allowed
        self._withstands = False  # until the version is known
        self._asked_at = -_FRESH
        self._asking: asyncio.Task[None] | None = None

    def is_safe(self) -> bool:
        """Whether a call that begins now may be cancelled."""
        if self._allowed and self._asking is None and time.monotonic() - self._asked_at > _FRESH:
            self._asking = asyncio.ensure_future(self._ask())
        return self._withstands

    async def _ask(self) -> None:
        try:
            self._withstands = withstands((await self._client.status()).version)
        except YoloClientError:
            self._withstands = False
        finally:
            self._asked_at = time.monotonic()
            self._asking = None


def withstands(version: str) -> bool:
    """Whether Triton of a version such as `2.51.0` withstands cancelled calls."""
    numbers = re.match(r"(\d+)\.(\d+)", version, re.ASCII)
    return numbers is not None and (int(numbers[1]), int(numbers[2])) >= _WITHSTANDS
