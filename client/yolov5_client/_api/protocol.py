"""HTTP/1.1 as uvicorn speaks it, with limits on what comes before a handler is asked."""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

LONGEST_HEAD = 64 << 10  # bytes, and up to one read from the connection more
HEAD_SECONDS = 30.0


class BoundedProtocol(HttpToolsProtocol):
    """Refuses heads and trailers that go on for ever, which the parser collects in memory.

    A connection on which no whole head comes is closed, for their number is limited.
    """

    _events = 0
    _without_event = 0
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        before = self._events
        super().data_received(data)
        self._without_event = self._without_event + len(data) if self._events == before else 0
        if self._without_event > LONGEST_HEAD and not self.transport.is_closing():
            if self.cycle is None or self.cycle.response_complete:
                self.send_400_response(
                    f"The head of the request is too long; allowed: {LONGEST_HEAD >> 10} KiB."
                )
            else:
                self.transport.close()

    def on_message_begin(self) -> None:
        self._events += 1
        self._start_timer()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._events += 1
        self._stop_timer()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._events += 1
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._events += 1
        super().on_message_complete()

    def _start_timer(self) -> None:
        self._stop_timer()
        self._timer = self.loop.call_later(HEAD_SECONDS, self._too_slow)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_slow(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self._start_timer()  # it reads no further until the request before is answered
        else:
            self.transport.close()
