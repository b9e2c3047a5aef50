"""The *try it* page: its server in front of the real one, and the page in a real browser.

docs/try-it.png is made with:
    SCREENSHOT=docs/try-it.png .venv/bin/python -m pytest tests/server/test_page.py -k screenshot
"""

from __future__ import annotations

import base64
import http.client
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from playwright.sync_api import Browser, Page, expect, sync_playwright
from support import (
    PHOTO,
    RAW,
    ROOT,
    Reply,
    RunningServer,
    assert_same,
    free_ports,
    parse_binary,
    post_raw,
    reference,
)

from yolov5_client import _cli
from yolov5_client._page import INFER, MAX_BODY, PageServer, Upstream

IMAGE = PHOTO.read_bytes()


@contextmanager
def serving(address: str, host: str = "127.0.0.1", **upstream: Any) -> Iterator[str]:
    with PageServer(host, 0, Upstream(address=address, **upstream)) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield server.url
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def url(server: RunningServer) -> Iterator[str]:
    with serving(server.http) as address:
        yield address


def ask(
    url: str,
    headers: Mapping[str, str],
    body: bytes | None = b"image",
    *,
    method: str = "POST",
    path: str = INFER,
) -> Reply:
    """Send a request with these headers, plus Host and the body's length."""
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=30)
    try:
        connection.putrequest(method, path, skip_host="Host" in headers, skip_accept_encoding=True)
        if body is not None and "Content-Length" not in headers:
            headers = {**headers, "Content-Length": str(len(body))}
        for name, value in headers.items():
            connection.putheader(name, value)
        connection.endheaders(body)
        answer = connection.getresponse()
        return Reply(answer.status, dict(answer.headers), answer.read())
    finally:
        connection.close()


# ---------------------------------------------------------------------------------------------
# What is passed on


@pytest.mark.parametrize(
    "headers",
    [{}, {"X-Yolo-Conf-Thres": "0.5", "x-yolo-CLASSES": "RBC"}, {"X-Yolo-Max-Det": "0"}],
    ids=["defaults", "parameters", "refused"],
)
def test_page_passes_answers_on_unchanged(
    server: RunningServer, url: str, headers: dict[str, str]
) -> None:
    direct = post_raw(server.http, IMAGE, headers)
    through = post_raw(url, IMAGE, headers)
    assert through.status == direct.status
    assert through.headers["Content-Type"] == direct.headers["Content-Type"]
    if direct.status == 200:
        assert_same(parse_binary(through), parse_binary(direct))
    else:
        assert through.body == direct.body
        assert b"max_det is '0'" in through.body


def test_page_drops_other_headers_of_the_caller(url: str) -> None:
    # Triton would try to decompress the body.
    reply = ask(url, {**RAW, "Content-Encoding": "gzip"}, IMAGE)
    assert reply.status == 200
    assert parse_binary(reply)["num_dets"].item() == 11


def test_operators_headers_are_sent_with_every_request(server: RunningServer) -> None:
    with serving(server.http, headers={"X-Yolo-Max-Det": "2"}) as url:
        assert parse_binary(post_raw(url, IMAGE))["num_dets"].item() == 2


def test_page_passes_on_the_largest_allowed_image(url: str) -> None:
    # A JPEG may be followed by anything.
    reply = post_raw(url, IMAGE + bytes(MAX_BODY - len(IMAGE)))
    assert parse_binary(reply)["num_dets"].item() == 11


def test_content_security_policy_allows_only_the_page_itself(url: str) -> None:
    reply = ask(url, {}, None, method="GET", path="/")
    assert reply.status == 200
    assert reply.headers["Content-Type"] == "text/html; charset=utf-8"
    assert reply.headers["X-Content-Type-Options"] == "nosniff"
    assert reply.headers["Cache-Control"] == "no-store"
    policy = reply.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "connect-src 'self';" in policy
    assert "unsafe" not in policy


# ---------------------------------------------------------------------------------------------
# What is refused

REFUSED: dict[str, tuple[int, str, dict[str, Any]]] = {
    "other path": (404, "no such path", {"path": "/v2/models/yolov5/infer"}),
    "other model": (404, "no such path", {"path": "/v2/models/preprocess/infer"}),
    "management": (404, "no such path", {"path": "/v2/repository/index"}),
    "dots": (404, "no such path", {"path": f"{INFER}/../generate"}),
    "GET of it": (405, "allowed: POST", {"method": "GET"}),
    "PUT": (405, "allowed: POST", {"method": "PUT"}),
    "preflight": (405, "allowed: POST", {"method": "OPTIONS"}),
    "POST of the page": (405, "allowed: GET", {"path": "/"}),
    "unknown method": (501, "Unsupported method", {"method": "BREW"}),
    "web form": (415, "allowed: application/octet-stream", {"Content-Type": "x/y; charset=a"}),
    "no type": (415, "Content-Type is none", {"Content-Type": None}),
    "JSON in front": (400, "allowed: 0", {"Inference-Header-Content-Length": "150"}),
    "no length": (411, "Content-Length", {"body": None}),
    "chunked": (411, "Content-Length", {"Transfer-Encoding": "chunked"}),
    "odd length": (400, "not one whole number", {"Content-Length": "-1"}),
    "too large": (413, f"allowed: at most {MAX_BODY}", {"Content-Length": str(MAX_BODY + 1)}),
    "folded header": (400, "'X-Yolo-Classes'", {"X-Yolo-Classes": "0\r\n X-Other: 1"}),
    "other host": (403, "header Host", {"Host": "rebound.example:8080"}),
    "no host": (403, "header Host", {"Host": ""}),
    "other origin": (403, "another site", {"Origin": "http://evil.example"}),
    "no origin": (403, "another site", {"Origin": "null"}),
    "other port": (403, "another site", {"Origin": "http://127.0.0.1:1"}),
    "other site": (403, "another site", {"Sec-Fetch-Site": "cross-site"}),
}


@pytest.mark.parametrize(("status", "sentence", "change"), REFUSED.values(), ids=REFUSED)
def test_any_other_request_is_refused_with_a_sentence(
    url: str, status: int, sentence: str, change: dict[str, Any]
) -> None:
    change = dict(change)
    options = {name: change.pop(name) for name in ("path", "method", "body") if name in change}
    headers = {name: text for name, text in {**RAW, **change}.items() if text is not None}
    reply = ask(url, headers, **options)
    assert reply.status == status
    assert reply.headers["Content-Type"] == "application/json"
    assert sentence in reply.json()["error"]
    assert "Access-Control-Allow-Origin" not in reply.headers


def test_oversized_body_still_gets_an_answer(url: str) -> None:
    # Closing the connection while the body still arrives would reset it.
    reply = ask(url, RAW, bytes(2 * MAX_BODY))
    assert reply.status == 413


@pytest.mark.parametrize("host", ["localhost:8080", "LOCALHOST", "127.0.0.1", "[::1]:8080"])
def test_local_host_names_are_served(url: str, host: str) -> None:
    own = {"Host": host, "Origin": f"http://{host}", "Sec-Fetch-Site": "same-origin"}
    assert ask(url, {**RAW, **own}, IMAGE).status == 200


def test_page_may_be_linked_to_from_elsewhere(url: str) -> None:
    headers = {"Sec-Fetch-Site": "cross-site"}
    assert ask(url, headers, None, method="GET", path="/?from=elsewhere").status == 200


# ---------------------------------------------------------------------------------------------
# When something does not work


def test_missing_server_is_reported_in_a_sentence() -> None:
    (port,) = free_ports(1)
    with serving(f"http://127.0.0.1:{port}") as url:
        reply = post_raw(url, IMAGE)
    assert reply.status == 502
    assert reply.json() == {
        "error": f"the server http://127.0.0.1:{port} cannot be reached: Connection refused"
    }


def test_grpc_port_as_server_is_reported_in_a_sentence(server: RunningServer) -> None:
    with serving(f"http://{server.grpc}") as url:
        reply = post_raw(url, IMAGE)
    assert reply.status == 502
    assert f"{server.grpc} " in reply.json()["error"]


def test_server_that_does_not_answer_is_reported_in_a_sentence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with serving(address, timeout=0.2) as url:
            reply = post_raw(url, IMAGE)
    assert reply.status == 504
    assert reply.json()["error"] == f"the server {address} did not answer within 0.2 s"


def test_hanging_callers_do_not_block_others(url: str, capfd: pytest.CaptureFixture[str]) -> None:
    address = url.removeprefix("http://").split(":")
    head = "".join(f"{name}: {text}\r\n" for name, text in RAW.items())
    begun = f"POST {INFER} HTTP/1.1\r\nHost: localhost\r\n{head}Content-Length: 999\r\n\r\npart"
    with ExitStack() as stack:
        for text in ("", "POST / HT", begun) * 20:
            slow = stack.enter_context(socket.create_connection((address[0], int(address[1]))))
            slow.sendall(text.encode())
        assert post_raw(url, IMAGE).status == 200
    # All of them have hung up by now, in the middle of a request.
    assert post_raw(url, IMAGE).status == 200
    assert capfd.readouterr().err == ""


# ---------------------------------------------------------------------------------------------
# The command


def start(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "yolov5_client._cli", "page", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_signal_ends_the_command_at_once(server: RunningServer, number: int, status: int) -> None:
    with start("--port=0", f"--server={server.http}") as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("Page: http://127.0.0.1:")
        assert line.endswith(f" (server {server.http})\n")
        url = line.split()[1]
        assert post_raw(url, IMAGE).status == 200
        with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))):
            started = time.monotonic()
            process.send_signal(number)
            output, errors = process.communicate(timeout=20)
            assert time.monotonic() - started < 10
    assert (process.returncode, output, errors) == (status, "", "")


def test_port_in_use_is_reported_in_a_sentence(
    url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    port = url.rpartition(":")[2]
    before = signal.getsignal(signal.SIGTERM)
    try:
        assert _cli.main(["page", f"--port={port}"]) == 2
    finally:
        signal.signal(signal.SIGTERM, before)
    assert capsys.readouterr().err == (
        f"error: cannot listen on 127.0.0.1, port {port}: Address already in use;"
        " choose others with --host and --port.\n"
    )


@pytest.mark.parametrize(
    ("flag", "sentence"),
    [
        ("--server=127.0.0.1:8001", "allowed: the http:// or https:// address"),
        ("--server=http://a:b", "allowed: the http:// or https:// address"),
        ("--server=http://user:password@a", "allowed: the http:// or https:// address"),
        ("--timeout=0", "--timeout is 0.0; allowed: more than 0 seconds, at most a year."),
        ("--header=secret", "a --header is not of the form 'NAME: VALUE'."),
        ("--header=a: Ж", "--header 'a' has characters that no header may have."),
    ],
)
def test_unusable_flag_is_reported_in_a_sentence(
    flag: str, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    try:
        assert _cli.main(["page", "--port=0", flag]) == 2
    finally:
        signal.signal(signal.SIGTERM, before)
    assert sentence in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------
# The page in a browser

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "google-chrome", "chromium-browser"))), None
)
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no Chromium; on Debian: apt install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@contextmanager
def opened(browser: Browser, url: str, **options: Any) -> Iterator[Page]:
    """Open the page; at the end check that it contacted only its server and logged nothing."""
    context = browser.new_context(**options)
    page = context.new_page()
    requests: list[str] = []
    complaints: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(url)
    yield page
    context.close()
    foreign = [one for one in requests if not one.startswith((f"{url}/", "blob:", "data:"))]
    assert (foreign, complaints) == ([], [])


@pytest.fixture
def page(browser: Browser, url: str) -> Iterator[Page]:
    with opened(browser, url, viewport={"width": 1200, "height": 860}) as page:
        yield page


def settled(page: Page, state: str) -> None:
    page.wait_for_selector(f"main[data-state={state}]")


def rows(page: Page) -> NDArray[np.float64]:
    """Read the table as [n, 6]: x1, y1, x2, y2, score, class."""
    found = page.eval_on_selector_all(
        "#rows tr",
        "rows => rows.map(({dataset: d}) => [...d.box.split(' '), d.score, d.class].map(Number))",
    )
    return np.array(found, np.float64).reshape(-1, 6)


def drop(page: Page, name: str, content: bytes) -> None:
    page.evaluate(
        """([name, base64]) => {
            const bytes = Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
            const dataTransfer = new DataTransfer();
            dataTransfer.items.add(new File([bytes], name));
            const target = document.getElementById("place");
            for (const kind of ["dragover", "drop"])
                target.dispatchEvent(new DragEvent(kind, {dataTransfer, bubbles: true}));
        }""",
        [name, base64.b64encode(content).decode()],
    )


WANTED = reference(ROOT / "tests" / "data" / "bccd_reference.json")[PHOTO.name]


def assert_as_the_reference(page: Page) -> None:
    settled(page, "done")
    found = rows(page)
    assert len(found) == len(WANTED) == 11
    np.testing.assert_allclose(found[:, :4], WANTED[:, :4], rtol=0, atol=0.01)
    np.testing.assert_allclose(found[:, 4], WANTED[:, 4], rtol=0, atol=0.001)
    np.testing.assert_array_equal(found[:, 5], WANTED[:, 5])


def test_chosen_photo_shows_the_references_boxes(page: Page) -> None:
    page.set_input_files("#file", PHOTO)
    assert_as_the_reference(page)
    assert page.inner_text("#status").startswith("11 detections in ")
    assert page.locator("#counts li").all_inner_texts() == ["RBC 9", "WBC 1", "Platelets 1"]
    assert page.locator("rect.edge").count() == 11
    # On the screen the boxes are at their place in the picture, and nothing extends beyond it.
    frame, *drawn = page.evaluate(
        """() => ["#picture", "rect.edge", "svg text"].flatMap((selector) =>
            [...document.querySelectorAll(selector)].map((one) => {
                const r = one.getBoundingClientRect();
                return [r.left, r.top, r.right, r.bottom];
            }))"""
    )
    scale = (frame[2] - frame[0]) / 640
    boxes = (np.array(drawn[:11]) - np.tile(frame[:2], 2)) / scale
    np.testing.assert_allclose(boxes[::-1], WANTED[:, :4], rtol=0, atol=3)
    labels = np.array(drawn[11:])
    assert (labels[:, :2] >= frame[:2]).all()
    assert (labels[:, 2:] <= frame[2:]).all()


def test_dropped_photo_is_answered(page: Page) -> None:
    drop(page, PHOTO.name, IMAGE)
    assert_as_the_reference(page)


def test_pasted_photo_is_answered(page: Page) -> None:
    page.evaluate(
        """(base64) => {
            const bytes = Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
            const clipboardData = new DataTransfer();
            clipboardData.items.add(new File([bytes], "pasted"));
            document.dispatchEvent(new ClipboardEvent("paste", {clipboardData}));
        }""",
        base64.b64encode(IMAGE).decode(),
    )
    assert_as_the_reference(page)


def test_keyboard_alone_reaches_the_file_and_the_settings(page: Page) -> None:
    page.on("filechooser", lambda chooser: chooser.set_files(PHOTO))
    page.keyboard.press("Tab")
    expect(page.locator("#file")).to_be_focused()
    page.keyboard.press("Enter")
    settled(page, "done")
    names = []
    for _ in range(7):
        page.keyboard.press("Tab")
        names.append(page.evaluate("document.activeElement.name"))
    assert names == [
        "conf_thres", "iou_thres", "max_det", "classes", "class_conf_thres", "agnostic_nms",
        "multi_label",
    ]  # fmt: skip
    for _ in range(6):
        page.keyboard.press("Shift+Tab")
    page.keyboard.press("End")
    expect(page.locator("#status")).to_contain_text("0 detections")
    assert page.input_value("#conf_thres") == "1"


SETTINGS: dict[str, tuple[str, dict[str, str]]] = {
    "confidence": ("conf_thres", {"X-Yolo-Conf-Thres": "0.7"}),
    "all filtered": ("conf_thres", {"X-Yolo-Conf-Thres": "0.9"}),
    "overlap": ("iou_thres", {"X-Yolo-Iou-Thres": "0.05"}),
    "count": ("max_det", {"X-Yolo-Max-Det": "3"}),
    "classes": ("classes", {"X-Yolo-Classes": "Platelets, 2"}),
    "confidence by class": ("class_conf_thres", {"X-Yolo-Class-Conf-Thres": "RBC:0.6, 0:1"}),
    "the same as JSON": ("class_conf_thres", {"X-Yolo-Class-Conf-Thres": '{"RBC": 0.6, "0": 1}'}),
}


@pytest.mark.parametrize(("name", "headers"), SETTINGS.values(), ids=SETTINGS)
def test_changed_setting_sends_a_new_request(
    page: Page, server: RunningServer, name: str, headers: dict[str, str]
) -> None:
    page.set_input_files("#file", PHOTO)
    settled(page, "done")
    page.fill(f"#{name}", *headers.values())
    settled(page, "done")
    direct = parse_binary(post_raw(server.http, IMAGE, headers))
    assert direct["num_dets"].item() < 11
    expected = np.concatenate(
        [direct["det_boxes"][0], direct["det_scores"].T, direct["det_classes"].T], axis=1
    )
    np.testing.assert_allclose(rows(page), expected, rtol=1e-6)


def test_checkboxes_are_sent(page: Page) -> None:
    page.set_input_files("#file", PHOTO)
    settled(page, "done")
    for name in ("agnostic_nms", "multi_label"):
        with page.expect_request(lambda request: request.url.endswith(INFER)) as asked:
            page.check(f"[name={name}]")
        assert asked.value.headers[f"x-yolo-{name.replace('_', '-')}"] == "true"
        settled(page, "done")


def test_older_answer_does_not_replace_a_newer_one(page: Page) -> None:
    # The first answer is delayed, and arrives although its request was aborted.
    page.evaluate(
        """() => {
            const real = window.fetch;
            let first = true;
            window.fetch = async (url, options) => {
                const held = first;
                first = false;
                const answer = await real(url, held ? {...options, signal: undefined} : options);
                if (held) {
                    document.body.dataset.held = "";
                    await new Promise((resolve) => (window.release = resolve));
                }
                return answer;
            };
        }"""
    )
    page.set_input_files("#file", PHOTO)
    page.wait_for_selector("body[data-held]")
    page.fill("#max_det", "3")
    settled(page, "done")
    assert len(rows(page)) == 3
    page.evaluate("async () => { window.release(); await new Promise((r) => setTimeout(r)); }")
    assert len(rows(page)) == 3


def test_slowly_read_file_does_not_replace_a_newer_one(page: Page) -> None:
    page.evaluate(
        """() => {
            const real = Blob.prototype.arrayBuffer;
            Blob.prototype.arrayBuffer = async function () {
                Blob.prototype.arrayBuffer = real;
                await new Promise((resolve) => (window.release = resolve));
                return real.call(this);
            };
        }"""
    )
    drop(page, "slow", PHOTO.with_name("BloodImage_00011.jpg").read_bytes())
    page.set_input_files("#file", PHOTO)
    assert_as_the_reference(page)
    page.evaluate("async () => { window.release(); await new Promise((r) => setTimeout(r)); }")
    page.fill("#max_det", "299")
    assert_as_the_reference(page)
    assert page.get_attribute("#picture", "alt") == PHOTO.name


def test_rotated_photo_is_shown_upright_under_its_boxes(page: Page) -> None:
    turned = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    segment = b"Exif\0\0" + turned
    exif = b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment
    drop(page, "turned.jpg", IMAGE[:2] + exif + IMAGE[2:])
    settled(page, "done")
    assert "480 × 640" in page.inner_text("#status")
    shown = page.evaluate("""() => {
        const {width, height} = document.getElementById("picture").getBoundingClientRect();
        return width / height;
    }""")
    assert shown == pytest.approx(480 / 640, rel=0.01)


def test_boxes_are_shown_for_a_picture_the_browser_cannot_show(page: Page) -> None:
    picture = cv2.imread(str(PHOTO))
    assert picture is not None
    encoded = cv2.imencode(".tiff", picture)[1]
    drop(page, "photo.tiff", encoded.tobytes())
    assert_as_the_reference(page)
    assert page.is_visible("#unseen")
    assert page.is_visible("#overlay")


@pytest.fixture
def forgiving(browser: Browser, url: str) -> Iterator[Page]:
    """The page without the check of the console, where the browser logs each HTTP error."""
    context = browser.new_context()
    page = context.new_page()
    page.goto(url)
    yield page
    context.close()


def test_network_that_is_named_on_the_page_or_in_its_address_is_asked(
    forgiving: Page, url: str
) -> None:
    forgiving.set_input_files("#file", PHOTO)
    settled(forgiving, "done")
    for name, sentence in {
        "plates": "Request for unknown model: 'plates_ensemble' is not found",
        "Plates": "model is 'Plates'; allowed: up to 40 lower-case letters, ",
    }.items():
        forgiving.fill("#model", name)
        expect(forgiving.locator("#error")).to_contain_text(sentence)
    forgiving.fill("#model", "yolov5")
    settled(forgiving, "done")
    forgiving.goto(f"{url}/?model=plates")
    assert forgiving.input_value("#model") == "plates"
    forgiving.set_input_files("#file", PHOTO)
    expect(forgiving.locator("#error")).to_contain_text("'plates_ensemble' is not found")


def test_file_that_is_not_an_image_shows_the_servers_sentence(
    forgiving: Page, tmp_path: Path
) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    forgiving.set_input_files("#file", tmp_path / "notes.txt")
    settled(forgiving, "error")
    assert forgiving.inner_text("#error") == (
        "image 1 of 1: not an image of a supported format; allowed: JPEG, PNG, WebP, BMP, TIFF"
    )
    # The next one is not affected.
    forgiving.set_input_files("#file", PHOTO)
    assert_as_the_reference(forgiving)
    assert not forgiving.is_visible("#error")


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("classes", "кошка", r"classes names '\u043a\u043e\u0448\u043a\u0430'; allowed: "),
        (
            "class_conf_thres",
            "кошка:1",
            r"class_conf_thres names '\u043a\u043e\u0448\u043a\u0430'; ",
        ),
        ("max_det", "5000", "max_det is '5000'; allowed: a whole number from 1 to 1000"),
    ],
)
def test_refused_setting_shows_the_servers_sentence(
    forgiving: Page, name: str, value: str, sentence: str
) -> None:
    forgiving.set_input_files("#file", PHOTO)
    settled(forgiving, "done")
    forgiving.fill(f"#{name}", value)
    settled(forgiving, "error")
    assert forgiving.inner_text("#error").startswith(sentence)
    assert len(rows(forgiving)) == 0 or not forgiving.is_visible("#result")


def test_file_over_the_limit_shows_the_sentence(forgiving: Page, tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(bytes(2 * MAX_BODY))
    forgiving.set_input_files("#file", tmp_path / "large")
    settled(forgiving, "error")
    assert f"allowed: at most {MAX_BODY}" in forgiving.inner_text("#error")


def test_missing_server_shows_a_sentence(browser: Browser) -> None:
    (port,) = free_ports(1)
    with serving(f"http://127.0.0.1:{port}") as url:
        page = browser.new_page()
        page.goto(url)
        page.set_input_files("#file", PHOTO)
        settled(page, "error")
        assert "cannot be reached: Connection refused" in page.inner_text("#error")
    # Now the page's own server has ended as well.
    page.fill("#max_det", "3")
    expect(page.locator("#error")).to_have_text("This page's server cannot be reached.")
    page.close()


def test_answer_can_be_saved(page: Page) -> None:
    page.set_input_files("#file", PHOTO)
    settled(page, "done")
    with page.expect_download() as download:
        page.click("#save")
    saved = json.loads(Path(download.value.path()).read_text())
    assert saved["imageSize"] == {"width": 640, "height": 480}
    assert [one["label"] for one in saved["detections"]][:2] == ["WBC", "Platelets"]
    boxes = np.array([one["box"] for one in saved["detections"]])
    np.testing.assert_allclose(boxes, WANTED[:, :4], rtol=0, atol=0.01)


@pytest.mark.parametrize("colours", ["light", "dark"])
def test_phone_shows_the_page_without_sideways_scrolling(
    browser: Browser, url: str, colours: str
) -> None:
    size = {"width": 360, "height": 740}
    with opened(browser, url, viewport=size, color_scheme=colours) as page:
        page.set_input_files("#file", PHOTO)
        settled(page, "done")
        assert page.evaluate("document.documentElement.scrollWidth") <= 360


def test_screenshot_shows_the_page(page: Page, tmp_path: Path) -> None:
    page.set_viewport_size({"width": 1040, "height": 780})
    page.set_input_files("#file", PHOTO)
    settled(page, "done")
    page.evaluate("document.getElementById('picture').decode()")
    target = Path(os.environ.get("SCREENSHOT", tmp_path / "try-it.png"))
    page.screenshot(path=target)
    assert target.stat().st_size < 400_000
