"""Tell `preprocess` that the network is done with a request: both ends of the channel.

A request carries a key and its admission id to `postprocess`, which sends both back in a datagram.
The key is new at each start of `preprocess`. The listener accepts only datagrams with its key, and
the sender can address only a listener whose key it knows: the socket's name is a hash of the key,
and other processes on the machine see only the name.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import secrets
import socket
import struct
from collections.abc import Callable, Sequence
from functools import lru_cache
from threading import Thread

_MESSAGE = struct.Struct("<qq")  # key, admission id


class CompletionListener:
    """The end in `preprocess`.

    Args:
        on_complete: called with each admission id, on a thread of its own.

    Attributes:
        key: 63 random bits; travels with each admission id.
    """

    def __init__(self, on_complete: Callable[[int], None]) -> None:
        self.key = secrets.randbits(63)
        self._on_complete = on_complete
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(_name(self.key))
        self._end = secrets.token_bytes(16)
        self._thread = Thread(target=self._listen, name="completions", daemon=True)
        self._thread.start()

    def as_row(self, admission_id: int) -> tuple[int, int]:
        """One row of the tensor `admission_id`."""
        return self.key, admission_id

    def _listen(self) -> None:
        mine = _MESSAGE.pack(self.key, 0)[:8]
        while (message := self._socket.recv(32)) != self._end:
            if len(message) == _MESSAGE.size and hmac.compare_digest(message[:8], mine):
                self._on_complete(_MESSAGE.unpack(message)[1])

    def close(self) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.sendto(self._end, self._socket.getsockname())
        self._thread.join()
        self._socket.close()


class CompletionSender:
    """The end in `postprocess`."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)

    def send(self, row: Sequence[int]) -> None:
        """Send one row of the tensor `admission_id`.

        Never fails: `preprocess` may have ended, or the socket's buffer may be full.
        """
        key, admission_id = row
        with contextlib.suppress(OSError):
            self._socket.sendto(_MESSAGE.pack(key, admission_id), _name(key))


@lru_cache(maxsize=2)  # a new key comes with a new `preprocess`
def _name(key: int) -> bytes:
    """An abstract socket name (unix(7)), which leaves no file behind."""
    return b"\0yolov5-" + hashlib.sha256(b"%d" % key).hexdigest()[:32].encode()
