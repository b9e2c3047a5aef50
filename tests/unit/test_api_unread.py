"""Answers of the REST service that nobody reads."""

from __future__ import annotations

import select
import socket
import sys

import pytest

from yolov5_client._api import serve


@pytest.mark.skipif(sys.platform != "linux", reason="the option is Linux's")
def test_connection_whose_answer_is_not_read_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "_UNREAD", 1)
    with (
        serve._listen("127.0.0.1", 0) as listening,
        socket.create_connection(listening.getsockname()),  # it reads nothing
        listening.accept()[0] as answering,
    ):
        answering.setblocking(False)
        with pytest.raises(BlockingIOError):
            while True:
                answering.send(bytes(1 << 20))
        ended = select.poll()
        ended.register(answering, select.POLLERR)
        assert ended.poll(20_000)
        assert answering.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) != 0
