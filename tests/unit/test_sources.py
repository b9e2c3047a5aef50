from __future__ import annotations

import io
import os
import time
from collections.abc import Iterable
from pathlib import Path

import pytest
from hostile import http, http_server, tcp_server
from support import PHOTO

from yolov5_client import _sources
from yolov5_client._sources import Source, expand, head_is_image, safe_name


def stdin(data: bytes = b"") -> io.BufferedReader:
    return io.BufferedReader(io.BytesIO(data))


def names(arguments: Iterable[str], data: bytes = b"", exclude: Path | None = None) -> list[str]:
    return [one.name for one in expand(arguments, stdin=stdin(data), exclude=exclude)[0]]


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with photos and other files in `in`."""
    for name in ("b.JPG", "a.png", "notes.md", ".hidden.jpg", "sub/c.webp", "sub/clip.MP4"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).touch()
    (tmp_path / "in" / ".cache").mkdir()
    (tmp_path / "in" / ".cache" / "d.jpg").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_folder_yields_sorted_images_and_videos_without_hidden_ones(tree: Path) -> None:
    wanted = ["in/a.png", "in/b.JPG", "in/sub/c.webp", "in/sub/clip.MP4"]
    assert names(["in"]) == names(["./in/"]) == wanted
    found, total = expand(["in"], stdin=stdin())
    assert [one.kind for one in found] == ["image", "image", "image", "video"]
    assert total == 4
    os.chdir("in")
    assert names(["."]) == ["a.png", "b.JPG", "sub/c.webp", "sub/clip.MP4"]


def test_result_folder_is_not_a_source(tree: Path) -> None:
    assert names(["in"], exclude=Path("in/sub")) == ["in/a.png", "in/b.JPG"]
    assert names(["in/**/*.*"], exclude=tree / "in" / "sub") == ["in/a.png", "in/b.JPG"]


def test_file_is_a_source_whatever_its_name(tree: Path) -> None:
    assert names(["in/notes.md", "in/.hidden.jpg"]) == ["in/notes.md", "in/.hidden.jpg"]


def test_globs_are_sorted_and_may_cross_folders(tree: Path) -> None:
    assert names(["in/*"]) == ["in/a.png", "in/b.JPG"]
    assert names(["in/**/*.*"]) == ["in/a.png", "in/b.JPG", "in/sub/c.webp", "in/sub/clip.MP4"]
    (tree / "in" / "[1].jpg").touch()
    (tree / "in" / "1.jpg").touch()
    assert names(["in/[1].jpg"]) == ["in/[1].jpg"], "a file of that very name comes first"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("none.jpg", "no such file or folder: none.jpg"),
        ("in/*.bmp", "no image or video matches in/*.bmp"),
        ("empty", "no image or video in the folder empty"),
        ("gopher://host/a.jpg", "no such file or folder: gopher"),
    ],
)
def test_missing_source_is_an_error_at_once(tree: Path, source: str, message: str) -> None:
    (tree / "empty").mkdir()
    with pytest.raises(FileNotFoundError) as error:
        expand(["in", source], stdin=stdin())
    assert str(error.value).startswith(message)
    found, _ = expand(["in", source], stdin=stdin(), strict=False)
    assert len([*found]) == 4 + (source not in ("in/*.bmp", "empty"))


def test_list_file_names_further_sources(tree: Path) -> None:
    lines = ["# photos", "", "in/a.png ", "none.jpg", "in/sub", "in/*.JPG", "in/notes.md", "x.txt"]
    wanted = ["in/a.png", "none.jpg", "in/sub/c.webp", "in/sub/clip.MP4", "in/b.JPG", "in/notes.md"]
    (tree / "list.txt").write_text("\r\n".join([*lines, "none/"]))
    assert names(["list.txt"]) == [*wanted, "x.txt", "none/"]
    found, total = expand(["in/b.JPG", "list.txt"], stdin=stdin())
    assert total == 9
    with pytest.raises(FileNotFoundError):
        [*found][2].read()


def test_list_file_may_begin_with_a_bom(tree: Path) -> None:
    for encoding in ("utf-8-sig", "utf-16"):
        (tree / "list.txt").write_text("in/a.png\r\nin/b.JPG\r\n", encoding)
        assert names(["list.txt"]) == ["in/a.png", "in/b.JPG"]
        assert names(["-"], "in/a.png\n".encode(encoding)) == ["in/a.png"]


def test_mpo_files_are_images(tree: Path) -> None:
    (tree / "in" / "z.MPO").touch()
    assert names(["in"])[-1] == "in/z.MPO"
    assert names(["in/*.MPO"]) == ["in/z.MPO"]


def test_streams_file_lists_streams(tree: Path) -> None:
    lines = [
        "# cameras",
        "rtsp://host/one",
        "",
        "http://host/video",
        "0",
        "in/sub/clip.MP4",
        "x.mp4",
    ]
    for name in ("list.streams", "LIST.STREAMS"):
        (tree / name).write_text("\ufeff" + "\n".join(lines), "utf-8")
        found, total = expand([name, "in/a.png"], stdin=stdin())
        assert total == 6
        assert [(one.name, one.kind) for one in found] == [
            ("rtsp://host/one", "stream"),
            ("http://host/video", "stream"),
            ("0", "stream"),
            ("in/sub/clip.MP4", "video"),
            ("x.mp4", "stream"),
            ("in/a.png", "image"),
        ]


def test_standard_input_is_an_image_or_a_lazily_read_list(tree: Path) -> None:
    photo = PHOTO.read_bytes()
    (image,), total = expand(["-"], stdin=stdin(photo))
    assert (image.read(), total, image.stem) == (photo, 1, "stdin")
    found, total = expand(["-", "in/a.png"], stdin=stdin(b"./x.jpg\nhttp://host/y\n"))
    assert total is None
    assert [one.name for one in found] == ["./x.jpg", "http://host/y", "in/a.png"]

    reader, writer = os.pipe()
    with open(reader, "rb") as file:  # noqa: PTH123
        os.write(writer, b"first.jpg\n")
        lines = iter(expand(["-"], stdin=file)[0])
        assert next(lines).name == "first.jpg", "before the list is at its end"
        os.close(writer)
        assert not [*lines]


@pytest.mark.parametrize(
    ("head", "image"),
    [
        (b"\xff\xd8\xff\xe0", True),
        (b"\x89PNG\r\n\x1a\n", True),
        (b"RIFF\0\0\0\0WEBP", True),
        (b"BM\x36\x10\x0e\0\0\0\0\0\x36\0\0\0", True),
        (b"MM\0*", True),
        (b"II*\0", True),
        (b"BM" + b"1" * 15 + b"\0\0", False),
        (b"BM" + b"1" * 14 + b"\0\0", True),
        (b"BM\0\0", True),
        (b"bm\0\0", False),
        (b"B\0\0", False),
        (b"RIFF1234WEBP\n", True),
        (b"RIFF1234WAVE\n", False),
        (b"riff1234WEBP\n", False),
        (b"RIFF123WEBP4\n", False),
        (b"in/\xff\xd8\xff", False),
        (b"BMW.jpg\nBMX.jpg\nothers.jpg\n", False),
        (b"RIFF.jpg\n", False),
        (b"", False),
    ],
)
def test_image_is_told_from_a_list_by_its_first_bytes(head: bytes, image: bool) -> None:
    assert head_is_image(head) is image


@pytest.mark.parametrize(
    ("argument", "kind", "stem"),
    [
        ("https://host/a/photo%20one.jpg?size=3", "image", "photo one"),
        ("http://host/show?id=3", "image", "show"),
        ("http://host", "image", "host"),
        ("http://host/a%2F..%2F..%2Fb.png", "image", "b"),
        ("https://host/clip.MP4?token=.jpg", "video", "clip"),
        ("http://host/cam.mjpg", "stream", "cam"),
        ("rtsp://user:word@host:554/live", "stream", "live"),
        ("tcp://user:word@127.0.0.1:90", "stream", "127.0.0.1_90"),
        ("0", "stream", "0"),
    ],
)
def test_urls_and_devices_become_sources(tree: Path, argument: str, kind: str, stem: str) -> None:
    (found,), _ = expand([argument], stdin=stdin())
    assert (found.kind, found.stem) == (kind, stem)


@pytest.mark.parametrize(
    ("name", "suffix"),
    [
        ("-", ""),
        ("in/photo.JPG", ".jpg"),
        ("http://host/a/photo.JPG/?x=.png", ".jpg"),
        ("http://host/a.b/c", ""),
    ],
)
def test_suffix_is_of_the_file(name: str, suffix: str) -> None:
    assert Source(name).suffix == suffix


def test_url_becomes_a_safe_name_but_a_path_keeps_its_own() -> None:
    assert Source("http://host/a:b*c.jpg").stem == "a_b_c"
    assert Source("in/a:b*c.jpg").stem == "a:b*c"
    assert Source("h://host/a:b.jpg").stem == "a:b", "one letter is a drive, not a scheme"


def test_kinds_of_files(tree: Path) -> None:
    assert [one.kind for one in expand(["in/a.png", "in/sub/clip.MP4"], stdin=stdin())[0]] == [
        *("image", "video")
    ]
    lines = b"in/a.png\nin/sub/clip.MP4\nrtsp://host/x\nhttp://host/x.mp4\nhttp://host/x.m3u8\n"
    assert [one.kind for one in expand(["-"], stdin=stdin(lines))[0]] == [
        *("image", "video", "stream", "video", "stream")
    ]


def test_sources_are_counted(tree: Path) -> None:
    photo = PHOTO.read_bytes()
    assert expand([], stdin=stdin())[1] == 0
    assert expand(["in/a.png", "-", "in"], stdin=stdin(photo))[1] == 6
    assert expand(["-", "in/a.png"], stdin=stdin(b"in/a.png\n"))[1] is None
    found, total = expand(["-", "-", "in/a.png"], stdin=stdin(photo))
    assert total is None, "the second time, standard input is an empty list"
    assert [one.name for one in found] == ["-", "in/a.png"]


def test_result_of_this_run_is_skipped_and_the_list_goes_on(tree: Path) -> None:
    lines = b"in/sub/c.webp\nin/a.png\nin/sub/clip.MP4\nin/subway.png\n"
    assert names(["-"], lines, exclude=Path("in/sub")) == ["in/a.png", "in/subway.png"]
    assert names(["-"], lines) == lines.decode().split()


def test_folder_of_a_lists_entry_is_searched(tree: Path) -> None:
    (tree / "in" / "folder.bin").mkdir()
    (tree / "in" / "folder.bin" / "e.bmp").touch()
    lines = b"in/folder.bin\nin/*.png\nin/none*\n"
    assert names(["-"], lines) == ["in/folder.bin/e.bmp", "in/a.png", "in/none*"]


def test_list_that_is_not_there_is_an_error_unless_it_may_come_later(tree: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        names(["none.txt"])
    found, total = expand(["none.txt"], stdin=stdin(), strict=False)
    assert ([one.name for one in found], total) == (["none.txt"], 1)


# -- downloads -------------------------------------------------------------------------------


def test_image_is_downloaded_up_to_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _sources._DOWNLOAD_LIMIT == 32 * 1024 * 1024
    monkeypatch.setattr(_sources, "_DOWNLOAD_LIMIT", 3 << 20)
    largest = bytes(3 << 20)
    with http_server(http(largest)) as address:
        assert Source(f"{address}/photo.jpg").read() == largest
    with (
        http_server(http(largest + b"x")) as address,
        pytest.raises(OSError, match=r"^cannot be downloaded: larger than 3 MiB$"),
    ):
        Source(f"{address}/photo.jpg").read()


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (http(b"", status="404 Not There"), "HTTP 404 Not There"),
        (b"\0\1\2\r\n\r\n", ".*\\S"),
        (http(b"short", {"Content-Length": 99}), "the connection ended 94 bytes early"),
        (b"", "Remote end closed connection without response"),
    ],
)
def test_failed_download_has_a_reason(answer: bytes, sentence: str) -> None:
    with (
        http_server(answer) as address,
        pytest.raises(OSError, match=f"^cannot be downloaded: {sentence}"),
    ):
        Source(f"{address}/photo.jpg").read()


def test_refused_connection_is_named_in_words() -> None:
    with pytest.raises(OSError, match=r"^cannot be downloaded: Connection refused$"):
        Source("http://127.0.0.1:1/photo.jpg").read()
    with pytest.raises(OSError, match=r"^cannot be downloaded: .*nonnumeric port"):
        Source("http://127.0.0.1:port/photo.jpg").read()


def test_server_that_stays_silent_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _sources._DOWNLOAD_TIMEOUT == 30
    monkeypatch.setattr(_sources, "_DOWNLOAD_TIMEOUT", 0.05)
    with (
        tcp_server(lambda request, send: time.sleep(5)) as address,
        pytest.raises(OSError, match="^cannot be downloaded: timed out"),
    ):
        Source(f"http://{address}/photo.jpg").read()


def test_digit_may_be_a_file(tree: Path) -> None:
    (tree / "0").touch()
    assert [*expand(["0"], stdin=stdin())[0]] == [Source("0")]


@pytest.mark.parametrize(
    ("label", "name"),
    [
        ("WBC", "WBC"),
        ("traffic light", "traffic light"),
        ("../../etc/passwd", "_.._etc_passwd"),
        ("..", "_"),
        ("", "_"),
        ("a\0b\\c", "a_b_c"),
        ("Zelle ü", "Zelle ü"),
    ],
)
def test_label_becomes_a_safe_file_name(label: str, name: str) -> None:
    assert safe_name(label) == name
    assert len(safe_name(label * 999).encode()) < 250


def test_file_name_has_at_most_sixty_letters() -> None:
    assert safe_name("x" * 60) == "x" * 60
    assert safe_name("x" * 61) == "x" * 60
    assert safe_name(" .a-b+(c). ") == "a-b+(c)"


def test_ten_thousands_of_files_are_found_quickly(tmp_path: Path) -> None:
    for number in range(50):
        (tmp_path / f"{number:03}").mkdir()
    for number in range(10_000):
        os.close(os.open(tmp_path / f"{number % 50:03}" / f"{number}.jpg", os.O_CREAT))
    started = time.process_time()
    assert expand([str(tmp_path)], stdin=stdin())[1] == 10_000
    assert time.process_time() - started < 5


def test_list_file_may_hold_anything(tmp_path: Path) -> None:
    lines = f"a\0b.jpg\na\0b\n{'x' * 300}\n{tmp_path}/out/exp/photo.jpg\nphoto.jpg\n"
    found, count = expand(["-"], stdin=stdin(lines.encode()), exclude=tmp_path / "out")
    names = [source.name for source in found]
    assert count is None
    assert names == ["a\0b.jpg", "a\0b", "x" * 300, "photo.jpg"]
    with pytest.raises(OSError, match="null byte"):
        Source("a\0b.jpg").read()
