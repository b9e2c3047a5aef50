"""Hears from the last step which tickets it has seen."""

from __future__ import annotations

import socket
from collections.abc import Callable
from threading import Thread

_END = b""


class Reports:
    """
    Args:
        heard: called with each ticket, from a thread of its own.

    Attributes:
        address: a number, to be sent along with a ticket. The step that reports writes the ticket
            in decimal digits to the datagram socket that Linux names so: a zero byte and five
            hexadecimal digits (unix(7), autobind). No file is left behind.
    """

    def __init__(self, heard: Callable[[int], None]) -> None:
        self._heard = heard
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind("")
        self.address = int(self._socket.getsockname()[1:], 16)
        self._thread = Thread(target=self._listen, name="reports", daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        while (text := self._socket.recv(32)) != _END:
            if text.isdigit():
                self._heard(int(text))

    def close(self) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.sendto(_END, self._socket.getsockname())
        self._thread.join()
        self._socket.close()
