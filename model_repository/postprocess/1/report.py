"""Tells preprocess which images have left the network behind them, so that the next may come."""

from __future__ import annotations

import contextlib
import socket


class Reporter:
    """Sends tickets; see `reports.py` and `line.py` of preprocess."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)

    def report(self, address: int, ticket: int) -> None:
        """Never fails: preprocess may be gone, or may not have listened for a while."""
        with contextlib.suppress(OSError):
            self._socket.sendto(b"%d" % ticket, b"\0%05x" % (address & 0xFFFFF))
