"""The REST service when it is told to end while requests are not complete."""

from __future__ import annotations

import json
import socket

from api_service import running_api


def test_upload_that_outlasts_the_draining_is_answered_and_leaves_no_traceback() -> None:
    with running_api("127.0.0.1:1", "--drain=1") as api:
        with socket.create_connection(("127.0.0.1", api.port), 30) as caller:
            caller.sendall(
                b"POST /detect HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\n"
                b"Content-Length: 9\r\n\r\n"
            )
            assert caller.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"  # it waits for the body
            api.process.terminate()
            with caller.makefile("rb") as file:
                head, _, body = file.read().partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 503 ") and b"\r\nretry-after: 1\r\n" in head
        assert json.loads(body)["detail"] == "the service is being stopped; try again later"
        assert api.process.wait(20) == 0
        assert [one["status"] for one in api.access_log] == [503]
        assert "Traceback" not in api.errors.read_text()
