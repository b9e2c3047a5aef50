"""What callers can make the REST service write."""

from __future__ import annotations

import httpx
from api_service import running_api


def test_form_that_cannot_be_read_leaves_one_line_of_json_and_nothing_else() -> None:
    with running_api("127.0.0.1:1") as api:
        kind = {"Content-Type": "multipart/form-data; boundary=B"}
        answer = httpx.post(f"{api.url}/detect", content=b"--Bx\r\n", headers=kind)
        assert answer.json()["detail"].startswith("the form cannot be read: ")
        assert httpx.get(f"{api.url}/detect").status_code == 405  # the first line is complete now
        assert api.access_log[0]["problem"] == answer.json()["detail"]
        assert api.errors.read_text() == ""
