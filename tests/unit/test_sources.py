from __future__ import annotations

import io
import os
import time
from collections.abc import Iterable
from pathlib import Path

import pytest
from support import PHOTO

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
