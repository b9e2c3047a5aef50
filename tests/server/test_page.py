"""The page to try images on, and the documentation, in a real browser.

docs/try-it.png is made with:
    SCREENSHOT=docs/try-it.png .venv/bin/python -m pytest tests/server/test_page.py -k screenshot
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import pytest
from api_service import RunningApi, running_api
from axe_playwright_python.sync_playwright import Axe
from numpy.typing import NDArray
from playwright.sync_api import Browser, Page, expect, sync_playwright
from support import (
    BUNDLED,
    PHOTO,
    ROOT,
    RunningServer,
    free_ports,
    make_repository,
    parse_binary,
    post_raw,
    reference,
    running_server,
    wait_until,
)

from yolov5_build.cli import main as build

IMAGE = PHOTO.read_bytes()
OTHER = PHOTO.with_name("BloodImage_00011.jpg")
WANTED = reference(ROOT / "tests" / "data" / "bccd_reference.json")
PLATES = ["first", "second", "third"]  # classes of the network `plates`, which is else the same
KEY = "0123456789abcdef"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server with two networks."""
    folder = tmp_path_factory.mktemp("site")
    repository = make_repository(folder, BUNDLED)
    (folder / "names.txt").write_text("\n".join(PLATES))
    names = f"--names={folder / 'names.txt'}"
    assert build([str(BUNDLED), "--name=plates", names, f"--repository={repository}"]) == 0
    with running_server(f"--repository={repository}") as server:
        yield server


@pytest.fixture(scope="module")
def api(site: RunningServer) -> Iterator[RunningApi]:
    """The service in front of it."""
    with running_api(site) as running:
        yield running


# ---------------------------------------------------------------------------------------------
# The browser

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
    "--use-fake-device-for-media-stream",  # a camera: a green picture with a clock
    "--use-fake-ui-for-media-stream",
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
    """Open the page; at the end check that it contacted only its service and logged nothing."""
    context = browser.new_context(**options)
    page = context.new_page()
    requests: list[str] = []
    complaints: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(url)
    if options.get("java_script_enabled", True):
        assert page.inner_text("#empty").startswith("No image yet.")
    yield page
    context.close()
    foreign = [one for one in requests if not one.startswith((f"{url}/", "blob:", "data:"))]
    assert (foreign, complaints) == ([], [])


@pytest.fixture
def page(browser: Browser, api: RunningApi) -> Iterator[Page]:
    with opened(browser, api.url, viewport={"width": 1200, "height": 860}) as page:
        yield page


@pytest.fixture
def forgiving(browser: Browser, api: RunningApi) -> Iterator[Page]:
    """The page without the check of the console, where the browser logs each HTTP error."""
    context = browser.new_context()
    page = context.new_page()
    page.goto(api.url)
    yield page
    context.close()


def settled(page: Page, state: str) -> None:
    page.wait_for_selector(f"main[data-state={state}]")


def rows(page: Page) -> NDArray[np.float64]:
    """Read the table as [n, 6]: x1, y1, x2, y2, score, class."""
    found = page.eval_on_selector_all(
        "#rows tr",
        "rows => rows.map(({dataset: d}) => [...d.box.split(' '), d.score, d.class].map(Number))",
    )
    return np.array(found, np.float64).reshape(-1, 6)


def labels(page: Page) -> list[str]:
    found: list[str] = page.eval_on_selector_all(
        "#rows tr", "rows => rows.map((row) => row.dataset.label)"
    )
    return found


def drop(page: Page, **files: bytes) -> None:
    page.evaluate(
        """(files) => {
            const dataTransfer = new DataTransfer();
            for (const [name, base64] of files) {
                const bytes = Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
                dataTransfer.items.add(new File([bytes], name));
            }
            const target = document.getElementById("place");
            for (const kind of ["dragover", "drop"])
                target.dispatchEvent(new DragEvent(kind, {dataTransfer, bubbles: true}));
        }""",
        [(name, base64.b64encode(content).decode()) for name, content in files.items()],
    )


def assert_as_the_reference(page: Page, photo: Path = PHOTO) -> None:
    settled(page, "done")
    found, wanted = rows(page), WANTED[photo.name]
    assert len(found) == len(wanted) > 0
    np.testing.assert_allclose(found[:, :4], wanted[:, :4], rtol=0, atol=0.01)
    np.testing.assert_allclose(found[:, 4], wanted[:, 4], rtol=0, atol=0.001)
    np.testing.assert_array_equal(found[:, 5], wanted[:, 5])


# ---------------------------------------------------------------------------------------------
# One image


def test_chosen_photo_shows_the_references_boxes(page: Page) -> None:
    page.set_input_files("#file", PHOTO)
    assert_as_the_reference(page)
    status = page.inner_text("#status")
    assert status.startswith("11 detections in ")
    assert status.endswith(" ms · 640 × 480 pixels · yolov5, version 1")
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
    np.testing.assert_allclose(boxes[::-1], WANTED[PHOTO.name][:, :4], rtol=0, atol=3)
    names = np.array(drawn[11:])
    assert (names[:, :2] >= frame[:2]).all()
    assert (names[:, 2:] <= frame[2:]).all()


def test_dropped_photo_is_answered(page: Page) -> None:
    drop(page, **{PHOTO.name: IMAGE})
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
    assert page.evaluate("document.activeElement.href").endswith("/docs")
    page.keyboard.press("Tab")
    expect(page.locator("#file")).to_be_focused()
    page.keyboard.press("Enter")
    settled(page, "done")
    names = []
    for _ in range(12):
        page.keyboard.press("Tab")
        names.append(page.evaluate("document.activeElement.name || document.activeElement.id"))
    assert names == [
        "camera", "remove", "shown", "conf_thres", "iou_thres", "max_det", "classes",
        "class_conf_thres", "agnostic_nms", "multi_label", "model", "",
    ]  # fmt: skip
    assert page.evaluate("document.activeElement.textContent") == "This request as curl"
    for _ in range(8):
        page.keyboard.press("Shift+Tab")
    page.keyboard.press("End")
    expect(page.locator("#status")).to_contain_text("0 detections")
    assert page.input_value("#conf_thres") == "1"


def test_focus_is_visible_wherever_the_keyboard_goes(page: Page) -> None:
    page.set_input_files("#file", PHOTO)
    settled(page, "done")
    seen = set()
    for _ in range(20):
        page.keyboard.press("Tab")
        shown = page.evaluate(
            """() => {
                const one = document.activeElement;
                const seen = one.classList.contains("unseen") ? one.nextElementSibling : one;
                return [one.id || one.name || one.textContent, getComputedStyle(seen).outlineStyle];
            }"""
        )
        if shown[0].startswith("\n"):  # the page itself: once around
            break
        seen.add(shown[0])
        assert shown[1] == "solid", shown
    assert {"file", "camera", "shown", "model", "save", "save-picture", "table"} <= seen


def test_row_under_the_pointer_or_chosen_by_arrow_shows_its_box_alone(page: Page) -> None:
    page.set_input_files("#file", PHOTO)
    settled(page, "done")
    alone = "svg.chosen g.chosen[data-index='{}'] rect.edge"
    page.hover("#rows tr:nth-child(3)")
    assert page.locator(alone.format(2)).count() == 1
    assert page.locator("svg.chosen g.chosen rect.edge").count() == 1
    page.hover("h1")
    assert page.locator("svg.chosen").count() == 0
    page.focus("#table")
    for key in ("ArrowDown", "ArrowDown", "ArrowDown", "ArrowUp"):
        page.keyboard.press(key)
    assert page.locator(alone.format(1)).count() == 1
    page.keyboard.press("Tab")
    assert page.locator("svg.chosen").count() == 0


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
    page: Page, site: RunningServer, name: str, headers: dict[str, str]
) -> None:
    page.set_input_files("#file", PHOTO)
    settled(page, "done")
    page.fill(f"#{name}", *headers.values())
    settled(page, "done")
    direct = parse_binary(post_raw(site.http, IMAGE, headers))
    assert direct["num_dets"].item() < 11
    expected = np.concatenate(
        [direct["det_boxes"][0], direct["det_scores"].T, direct["det_classes"].T], axis=1
    )
    np.testing.assert_allclose(rows(page), expected, rtol=1e-6)


def test_checkboxes_are_sent(page: Page) -> None:
    page.set_input_files("#file", PHOTO)
    settled(page, "done")
    for name in ("agnostic_nms", "multi_label"):
        with page.expect_request(lambda request: "/detect?" in request.url) as asked:
            page.check(f"[name={name}]")
        assert f"&{name}=true" in asked.value.url
        settled(page, "done")


HOLD_FIRST_REQUEST = """() => {
    // The first answer is delayed, and arrives although its request was aborted.
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
RELEASE = "async () => { window.release(); await new Promise((r) => setTimeout(r)); }"


def test_older_answer_does_not_replace_a_newer_one(page: Page) -> None:
    page.wait_for_load_state("networkidle")  # the list of networks
    page.evaluate(HOLD_FIRST_REQUEST)
    page.set_input_files("#file", PHOTO)
    page.wait_for_selector("body[data-held]")
    page.fill("#max_det", "3")
    settled(page, "done")
    assert len(rows(page)) == 3
    page.evaluate(RELEASE)
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
    drop(page, slow=OTHER.read_bytes())
    page.set_input_files("#file", PHOTO)
    assert_as_the_reference(page)
    page.evaluate(RELEASE)
    page.fill("#max_det", "299")
    assert_as_the_reference(page)
    assert page.get_attribute("#picture", "alt") == PHOTO.name


def test_rotated_photo_is_shown_upright_under_its_boxes(page: Page) -> None:
    turned = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    segment = b"Exif\0\0" + turned
    exif = b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment
    drop(page, turned=IMAGE[:2] + exif + IMAGE[2:])
    settled(page, "done")
    assert "480 × 640" in page.inner_text("#status")
    shown = page.evaluate("""() => {
        const {width, height} = document.getElementById("picture").getBoundingClientRect();
        return width / height;
    }""")
    assert shown == pytest.approx(480 / 640, rel=0.01)


def picture_in(file: Path) -> NDArray[Any]:
    picture = cv2.imread(str(file))
    assert picture is not None
    return picture


def tiff() -> bytes:
    return cv2.imencode(".tiff", picture_in(PHOTO))[1].tobytes()


def test_boxes_are_shown_for_a_picture_the_browser_cannot_show(page: Page) -> None:
    drop(page, photo=tiff())
    assert_as_the_reference(page)
    assert page.is_visible("#unseen")
    assert page.is_visible("#overlay")


# ---------------------------------------------------------------------------------------------
# Several images


def test_two_dropped_photos_each_have_their_own_result(page: Page) -> None:
    drop(page, **{PHOTO.name: IMAGE, OTHER.name: OTHER.read_bytes()})
    assert_as_the_reference(page)
    counts = [len(WANTED[one.name]) for one in (PHOTO, OTHER)]
    expect(page.locator("#images .count")).to_have_text([str(one) for one in counts])
    page.focus("#images input")
    page.keyboard.press("ArrowRight")
    assert_as_the_reference(page, OTHER)
    assert page.get_attribute("#picture", "alt") == OTHER.name
    page.keyboard.press("ArrowLeft")
    assert_as_the_reference(page)


def test_changed_setting_asks_again_for_each_image_when_it_is_shown(page: Page) -> None:
    drop(page, **{PHOTO.name: IMAGE, OTHER.name: OTHER.read_bytes()})
    expect(page.locator("#images .count").last).to_have_text(str(len(WANTED[OTHER.name])))
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.fill("#max_det", "2")
    expect(page.locator("#images .count")).to_have_text(["2", str(len(WANTED[OTHER.name]))])
    page.click(f"#images label:has-text('{OTHER.name}')")
    expect(page.locator("#images .count")).to_have_text(["2", "2"])
    settled(page, "done")
    np.testing.assert_allclose(rows(page)[:, :4], WANTED[OTHER.name][:2, :4], rtol=0, atol=0.01)
    assert len([one for one in asked if "max_det=2" in one]) == 2


def test_older_answer_about_another_image_is_not_shown(page: Page) -> None:
    page.wait_for_load_state("networkidle")
    page.evaluate(HOLD_FIRST_REQUEST)
    page.set_input_files("#file", PHOTO)
    page.wait_for_selector("body[data-held]")
    page.set_input_files("#file", OTHER)
    assert_as_the_reference(page, OTHER)
    page.evaluate(RELEASE)
    assert_as_the_reference(page, OTHER)
    page.click(f"#images label:has-text('{PHOTO.name}')")
    assert_as_the_reference(page)


def test_removed_image_gives_place_to_its_neighbour(page: Page) -> None:
    drop(page, **{PHOTO.name: IMAGE, OTHER.name: OTHER.read_bytes()})
    settled(page, "done")
    page.click("#remove")
    assert_as_the_reference(page, OTHER)
    page.focus("#images input")
    page.keyboard.press("Delete")
    settled(page, "empty")
    assert page.is_visible("#empty")
    assert not page.is_visible("#result")
    assert not page.is_visible("#images")
    page.set_input_files("#file", PHOTO)
    assert_as_the_reference(page)


def test_one_bad_file_does_not_affect_the_others(forgiving: Page) -> None:
    drop(forgiving, notes=b"hello", photo=IMAGE)
    settled(forgiving, "error")
    expect(forgiving.locator("#images .count")).to_have_text(["!", "11"])
    assert forgiving.inner_text("#empty").startswith("No picture to show.")
    # Nor does its tile show the sign of a broken picture.
    sources = "tiles => tiles.map((tile) => tile.hasAttribute('src'))"
    assert forgiving.eval_on_selector_all("#images img", sources) == [False, True]
    forgiving.click("#images label:has-text('photo')")
    assert_as_the_reference(forgiving)
    assert not forgiving.is_visible("#error")


# ---------------------------------------------------------------------------------------------
# Networks


def test_networks_are_listed_and_the_chosen_one_is_asked(page: Page) -> None:
    page.set_input_files("#file", PHOTO)
    settled(page, "done")
    options = page.locator("#model option")
    assert sorted(options.all_inner_texts()) == ["plates", "yolov5"]
    assert page.input_value("#model") == "yolov5"
    page.select_option("#model", "plates")
    settled(page, "done")
    assert "· plates, version 1" in page.inner_text("#status")
    assert set(labels(page)) == set(PLATES)


def test_network_that_the_address_names_is_asked(forgiving: Page, api: RunningApi) -> None:
    forgiving.goto(f"{api.url}/?model=plates")
    forgiving.wait_for_load_state("networkidle")
    assert forgiving.input_value("#model") == "plates"
    forgiving.set_input_files("#file", PHOTO)
    settled(forgiving, "done")
    assert set(labels(forgiving)) == set(PLATES)
    for name, sentence in {
        "cars": "the server has no endpoint 'cars_ensemble', or has not loaded it yet",
        "Cars": "model is 'Cars'; allowed: up to 40 lower-case letters, ",
    }.items():
        forgiving.goto(f"{api.url}/?model={name}")
        assert forgiving.input_value("#model") == name
        forgiving.set_input_files("#file", PHOTO)
        expect(forgiving.locator("#error")).to_contain_text(sentence)
    forgiving.select_option("#model", "yolov5")
    assert_as_the_reference(forgiving)


def test_without_a_list_of_networks_the_default_one_is_asked(
    browser: Browser, site: RunningServer
) -> None:
    with (
        running_api(site.grpc, "--model=plates") as api,
        opened(browser, api.url) as page,
    ):
        page.set_input_files("#file", PHOTO)
        settled(page, "done")
        assert page.locator("#model option").all_inner_texts() == ["plates"]
        assert set(labels(page)) == set(PLATES)
        assert page.inner_text("#status").endswith("· plates")


# ---------------------------------------------------------------------------------------------
# The camera


def test_camera_shows_frames_with_their_answers_and_one_request_at_a_time(page: Page) -> None:
    page.evaluate(
        """() => {
            const real = window.fetch;
            window.flights = {now: 0, most: 0, sent: []};
            window.fetch = async (url, options) => {
                flights.most = Math.max(flights.most, ++flights.now);
                const head = new Uint8Array(await options.body.slice(0, 3).arrayBuffer());
                flights.sent.push([...head]);
                try { return await real(url, options); } finally { flights.now--; }
            };
        }"""
    )
    page.click("#camera")
    expect(page.locator("#camera")).to_have_text("Stop the camera")
    wait_until(lambda: page.evaluate("flights.sent.length >= 4"), 30)
    assert page.evaluate("flights.most") == 1
    assert page.evaluate("flights.sent[3]") == [0xFF, 0xD8, 0xFF]  # JPEG
    # A changed setting holds for the next frame.
    with page.expect_request(lambda request: "conf_thres=0.01&" in request.url):
        page.fill("#conf_thres", "0.01")
    settled(page, "done")
    page.click("#camera")
    expect(page.locator("#camera")).to_have_text("Start the camera")
    wait_until(lambda: page.evaluate("flights.now === 0"), 30)
    sent = page.evaluate("flights.sent.length")
    # The last frame stays, as an image like any other.
    assert page.evaluate("document.getElementById('picture').naturalWidth") >= 640
    assert page.locator("#images .name").all_inner_texts() == ["camera.jpg"]
    page.fill("#max_det", "1")
    settled(page, "done")
    assert page.evaluate("flights.sent.length") == sent + 1
    assert len(rows(page)) <= 1


def test_camera_stops_when_another_image_is_shown(page: Page) -> None:
    page.evaluate(
        """() => {
            const real = navigator.mediaDevices.getUserMedia;
            navigator.mediaDevices.getUserMedia = async function (options) {
                return (window.stream = await real.call(this, options));
            };
        }"""
    )
    page.click("#camera")
    expect(page.locator("#camera")).to_have_text("Stop the camera")
    settled(page, "done")
    page.set_input_files("#file", PHOTO)
    assert_as_the_reference(page)
    expect(page.locator("#camera")).to_have_text("Start the camera")
    assert page.evaluate("stream.getTracks().map((track) => track.readyState)") == ["ended"]


def test_camera_that_may_not_be_used_is_reported_in_a_sentence(
    browser: Browser, api: RunningApi
) -> None:
    with opened(browser, api.url) as page:
        page.evaluate(
            """() => {
                navigator.mediaDevices.getUserMedia = async () => {
                    throw new DOMException("no", "NotAllowedError");
                };
            }"""
        )
        page.click("#camera")
        expect(page.locator("#error")).to_have_text(
            "The browser does not let this page use the camera."
        )
        assert page.is_enabled("#camera")


# ---------------------------------------------------------------------------------------------
# Copying and saving


def test_answer_can_be_saved_and_copied(browser: Browser, api: RunningApi) -> None:
    options = {"permissions": ["clipboard-read", "clipboard-write"]}
    with opened(browser, api.url, **options) as page:
        page.set_input_files("#file", PHOTO)
        settled(page, "done")
        with page.expect_download() as download:
            page.click("#save")
        assert download.value.suggested_filename == f"{PHOTO.stem}.json"
        saved = Path(download.value.path()).read_text()
        page.click("[data-copies=json]")
        expect(page.locator("[data-copies=json]")).to_have_text("Copied")
        assert page.evaluate("navigator.clipboard.readText()") == saved
    answer = json.loads(saved)
    assert (answer["model"], answer["version"]) == ("yolov5", "1")
    (image,) = answer["images"]
    assert (image["width"], image["height"]) == (640, 480)
    assert [one["label"] for one in image["detections"]][:2] == ["WBC", "Platelets"]
    boxes = np.array([[one["box"][side] for side in ("x1", "y1", "x2", "y2")]
                      for one in image["detections"]])  # fmt: skip
    np.testing.assert_allclose(boxes, WANTED[PHOTO.name][:, :4], rtol=0, atol=0.01)


def test_drawn_picture_can_be_saved_even_if_the_browser_cannot_show_it(page: Page) -> None:
    drop(page, **{"photo.tiff": tiff()})
    settled(page, "done")
    with page.expect_download() as download:
        page.click("#save-picture")
    assert download.value.suggested_filename == "photo-detections.jpg"
    drawn = picture_in(Path(download.value.path())).astype(int)
    plain = picture_in(PHOTO).astype(int)
    assert drawn.shape == plain.shape
    changed = np.abs(drawn - plain).max(axis=2) > 60
    x1, y1, x2, y2 = WANTED[PHOTO.name][0, :4].round().astype(int)
    assert changed[y1 : y2 + 1, [x1, min(x2, 639)]].mean() > 0.5  # the sides of the best box
    assert changed.mean() < 0.2


@pytest.mark.parametrize("name", ["photo.jpg", """it's "a"; photo, $HOME `x` \\ é.jpg"""])
def test_request_as_curl_gives_the_shown_answer(
    browser: Browser, api: RunningApi, tmp_path: Path, name: str
) -> None:
    if not shutil.which("curl"):
        pytest.skip("not here: curl")
    (tmp_path / name).write_bytes(IMAGE)
    options = {"permissions": ["clipboard-read", "clipboard-write"]}
    with opened(browser, api.url, **options) as page:
        drop(page, **{name: IMAGE})
        settled(page, "done")
        page.fill("#classes", """["RBC", "WBC"]""")
        page.fill("#conf_thres", "0.6")
        settled(page, "done")
        page.click("summary")
        page.click("[data-copies=curl]")
        expect(page.locator("[data-copies=curl]")).to_have_text("Copied")
        command = page.evaluate("navigator.clipboard.readText()")
        shown = rows(page)
    assert "\n" not in command
    done = subprocess.run(
        ["sh", "-c", command], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, ""), command
    found = json.loads(done.stdout)["images"][0]["detections"]
    assert len(found) == len(shown) > 0
    assert {one["label"] for one in found} == {"RBC", "WBC"}
    np.testing.assert_allclose([one["score"] for one in found], shown[:, 4], rtol=1e-6)


# ---------------------------------------------------------------------------------------------
# When something does not work


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


@pytest.mark.parametrize(
    ("megabytes", "sentence"),
    [(40, "over the limit of 33554432 bytes"), (64, "the request is too large; allowed: at most")],
)
def test_file_over_the_limit_shows_the_sentence(
    forgiving: Page, tmp_path: Path, megabytes: int, sentence: str
) -> None:
    (tmp_path / "large").write_bytes(bytes(megabytes << 20))
    forgiving.set_input_files("#file", tmp_path / "large")
    settled(forgiving, "error")
    assert sentence in forgiving.inner_text("#error")


def test_missing_server_shows_a_sentence(browser: Browser) -> None:
    (port,) = free_ports(1)
    page = browser.new_page()
    with running_api(f"127.0.0.1:{port}") as api:
        page.goto(api.url)
        page.set_input_files("#file", PHOTO)
        settled(page, "error")
        assert f"127.0.0.1:{port}" in page.inner_text("#error")
    # Now the page's own service has ended as well.
    page.fill("#max_det", "3")
    expect(page.locator("#error")).to_have_text("This page's service cannot be reached.")
    page.close()


def test_answer_that_is_not_the_services_shows_its_status(forgiving: Page) -> None:
    forgiving.route("**/detect?*", lambda route: route.fulfill(status=502, body="<html>"))
    forgiving.set_input_files("#file", PHOTO)
    settled(forgiving, "error")
    assert forgiving.inner_text("#error") == "The service answers with HTTP status 502."


def test_key_is_asked_for_and_sent_until_the_tab_is_closed(
    browser: Browser, site: RunningServer, tmp_path: Path
) -> None:
    (tmp_path / "keys").write_text(f"{KEY} me\n")
    with running_api(site, f"--api-keys={tmp_path / 'keys'}") as api:
        context = browser.new_context()
        page = context.new_page()
        page.goto(api.url)
        expect(page.locator("#key")).to_be_visible()
        drop(page, **{PHOTO.name: IMAGE, OTHER.name: OTHER.read_bytes()})
        settled(page, "error")
        assert "no API key" in page.inner_text("#error")
        page.fill("#key-text", "another-key-than-that")
        page.keyboard.press("Enter")
        expect(page.locator("#key")).to_be_visible()
        expect(page.locator("#images .count")).to_have_text(["!", "!"])
        page.fill("#key-text", KEY)
        page.keyboard.press("Enter")
        assert_as_the_reference(page)
        expect(page.locator("#images .count").last).to_have_text(str(len(WANTED[OTHER.name])))
        assert sorted(page.locator("#model option").all_inner_texts()) == ["plates", "yolov5"]
        assert not page.is_visible("#key")
        assert '-H "X-Api-Key: $API_KEY" ' in (page.text_content("#curl") or "")
        assert KEY not in page.content()
        page.reload()
        page.set_input_files("#file", PHOTO)
        assert_as_the_reference(page)
        assert page.evaluate("localStorage.length") == 0
        assert context.cookies() == []
        context.close()


@pytest.mark.parametrize("named", [True, False])
def test_page_of_another_site_can_ask_only_if_the_operator_names_it(
    browser: Browser, site: RunningServer, api: RunningApi, named: bool
) -> None:
    flags = [f"--allow-origin={api.url}"] if named else []
    context = browser.new_context()
    page = context.new_page()
    page.goto(f"{api.url}/live")  # of another origin, and without a policy of its own
    with running_api(site, *flags) as other:
        answers = page.evaluate(
            """async ([url, base64]) => {
                const body = Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
                const headers = {"Content-Type": "application/octet-stream", "X-Api-Key": "x"};
                const ask = (count) =>
                    fetch(`${url}/detect?max_det=${count}`, {method: "POST", headers, body})
                        .then((answer) => answer.json(), (error) => error.name);
                return [await ask(2), await ask(0)];
            }""",
            [other.url, base64.b64encode(IMAGE).decode()],
        )
    context.close()
    if named:
        assert len(answers[0]["images"][0]["detections"]) == 2
        assert answers[1]["detail"].startswith("max_det is '0'")
    else:
        assert answers == ["TypeError", "TypeError"]


# ---------------------------------------------------------------------------------------------
# How it looks


@pytest.mark.parametrize("colours", ["light", "dark"])
def test_phone_shows_the_page_without_sideways_scrolling(
    browser: Browser, api: RunningApi, colours: Literal["light", "dark"]
) -> None:
    size = {"width": 360, "height": 740}
    with opened(browser, api.url, viewport=size, color_scheme=colours) as page:
        many = {f"{number}-{PHOTO.name}": IMAGE for number in range(6)}
        drop(page, **many)
        settled(page, "done")
        page.click("summary")
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        page.goto(f"{api.url}/docs")
        assert page.evaluate("document.documentElement.scrollWidth") <= 360


def test_reduced_motion_shows_no_animation(browser: Browser, api: RunningApi) -> None:
    script = "getComputedStyle(document.getElementById('busy'), '::before').animationName"
    with opened(browser, api.url, reduced_motion="reduce") as page:
        assert page.evaluate(script) == "none"
    with opened(browser, api.url) as page:
        assert page.evaluate(script) == "pass"


def test_page_without_scripts_says_what_it_needs(browser: Browser, api: RunningApi) -> None:
    with opened(browser, api.url, java_script_enabled=False) as page:
        assert page.inner_text("noscript p") == "This page needs JavaScript."
        assert page.is_visible("noscript p")


def serious(page: Page) -> list[str]:
    """The serious and critical violations that axe-core finds."""
    found = Axe().run(page).response["violations"]
    return [
        f"{one['id']}: {node['html']}: {node['failureSummary']}"
        for one in found
        if one["impact"] in ("serious", "critical")
        for node in one["nodes"]
    ]


@pytest.mark.parametrize("colours", ["light", "dark"])
def test_axe_finds_no_serious_violation(
    browser: Browser, api: RunningApi, colours: Literal["light", "dark"]
) -> None:
    context = browser.new_context(color_scheme=colours)
    page = context.new_page()
    page.goto(api.url)
    page.wait_for_load_state("networkidle")
    assert serious(page) == []
    drop(page, **{PHOTO.name: IMAGE, "notes.txt": b"hello"})
    settled(page, "done")
    page.click("summary")
    expect(page.locator("#images .count")).to_have_text(["11", "!"])
    assert serious(page) == []
    page.click("#images label:has-text('notes.txt')")
    settled(page, "error")
    page.evaluate("document.getElementById('key').hidden = false")
    assert serious(page) == []
    page.goto(f"{api.url}/docs")
    assert serious(page) == []
    context.close()


def test_axe_would_find_a_violation(page: Page) -> None:
    page.evaluate("document.querySelector('label[for=classes]').remove()")
    page.evaluate("document.getElementById('classes').placeholder = ''")
    assert any(one.startswith("label: ") for one in serious(page))


def test_documentation_shows_every_route_and_needs_no_script(
    browser: Browser, api: RunningApi
) -> None:
    with opened(browser, api.url, java_script_enabled=False) as page:
        page.click("text=Documentation")
        shown = page.locator("h2 code").all_inner_texts()
        assert {"/detect", "/detect.jpg", "/models", "/metrics"} <= set(shown)
        page.click("text=OpenAPI document")
        assert page.url == f"{api.url}/openapi.json"


def test_screenshot_shows_the_page(page: Page, tmp_path: Path) -> None:
    page.set_viewport_size({"width": 1000, "height": 800})
    page.set_input_files("#file", [PHOTO, OTHER, PHOTO.with_name("BloodImage_00015.jpg")])
    settled(page, "done")
    expect(page.locator("#images .count", has_text="…")).to_have_count(0)
    page.fill("#max_det", "100")  # the first answers take longer than those that follow
    page.fill("#max_det", "300")
    page.locator("#max_det").blur()
    settled(page, "done")
    page.evaluate("document.getElementById('picture').decode()")
    target = Path(os.environ.get("SCREENSHOT", tmp_path / "try-it.png"))
    page.screenshot(path=target)
    assert target.stat().st_size < 400_000


# ---------------------------------------------------------------------------------------------
# The command


def test_open_shows_the_page_in_a_browser(
    site: RunningServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    browser, target = tmp_path / "browser", tmp_path / "opened"
    browser.write_text(f'#!/bin/sh\necho "$1" > {target}\n')
    browser.chmod(0o755)
    monkeypatch.setenv("BROWSER", f"{browser} %s")
    with running_api(site, "--open") as api:
        wait_until(lambda: target.exists() and target.read_text() != "", 20)
        assert target.read_text() == f"{api.url}\n"


def test_port_in_use_is_reported_in_a_sentence(api: RunningApi) -> None:
    command = [sys.executable, "-m", "yolov5_client._cli", "api", f"--port={api.port}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"error: cannot listen on 127.0.0.1, port {api.port}: Address already in use;"
        " choose others with --host and --port.\n"
    )
