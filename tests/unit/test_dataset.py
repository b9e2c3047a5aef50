"""Real data sets are read as YOLOv5 v7.0 reads them, with notes where it is silent."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support import ROOT

from yolov5_client import DataError
from yolov5_client.evaluation import Split, read_names, read_split

LABELS = ROOT / "examples" / "bccd" / "labels"
STEMS = sorted(path.stem for path in LABELS.iterdir())
NAMES = "names: [Platelets, RBC, WBC]\n"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A data set with the labels of the bundled photos; the photos are never read."""
    for name in ("images", "labels"):
        (tmp_path / "set" / "valid" / name).mkdir(parents=True)
    for stem in STEMS:
        (tmp_path / "set" / "valid" / "images" / f"{stem}.jpg").touch()
        text = (LABELS / f"{stem}.txt").read_text()
        (tmp_path / "set" / "valid" / "labels" / f"{stem}.txt").write_text(text)
    (tmp_path / "set" / "data.yaml").write_text("val: valid/images\n" + NAMES)
    return tmp_path / "set"


def change_labels(folder: Path, change: Callable[[list[str]], list[str]], count: int = 8) -> None:
    for stem in STEMS[:count]:
        path = folder / "valid" / "labels" / f"{stem}.txt"
        rows = [row for line in path.read_text().splitlines() for row in change(line.split())]
        path.write_text("".join(f"{row}\n" for row in rows))


def polygon(row: list[str]) -> list[str]:
    x, y, w, h = map(float, row[1:])
    left, top, right, bottom = x - w / 2, y - h / 2, x + w / 2, y + h / 2
    return [f"{row[0]} {left} {top} {right} {top} {right} {bottom} {left} {bottom}"]


def same_labels(one: Split, other: Split) -> bool:
    return [path.name for path in one.photos] == [path.name for path in other.photos] and all(
        np.allclose(a, b, atol=1e-6) for a, b in zip(one.labels, other.labels, strict=True)
    )


def val(folder: Path) -> Split:
    return read_split(folder / "data.yaml", "val")


def test_missing_parent_folder_in_a_path_is_skipped(base: Path) -> None:
    wanted = val(base)
    assert sum(map(len, wanted.labels)) == 148
    assert wanted.notes == ()
    (base / "data.yaml").write_text("val: ../valid/images\n" + NAMES)
    assert same_labels(val(base), wanted)
    (base / "data.yaml").write_text("val: [../valid/images]\n" + NAMES)
    assert same_labels(val(base), wanted)


def test_path_may_be_relative_to_the_working_directory(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (base / "data").mkdir()
    (base / "data" / "data.yaml").write_text("path: valid\nval: images\n" + NAMES)
    monkeypatch.chdir(base)
    assert len(read_split(Path("data/data.yaml"), "val").photos) == 8


def test_polygon_becomes_its_bounding_box(base: Path) -> None:
    wanted = val(base)
    change_labels(base, polygon)
    found = val(base)
    assert same_labels(found, wanted)
    assert found.notes == ()


def test_box_among_polygons_is_read_as_two_points_and_noted(base: Path) -> None:
    first = base / "valid" / "labels" / f"{STEMS[0]}.txt"
    first.write_text("2 0.3 0.2 0.6 0.2 0.6 0.5 0.3 0.5\n1 0.1 0.7 0.3 0.2\n")
    found = val(base)
    assert found.labels[0].tolist() == [
        pytest.approx([2, 0.45, 0.35, 0.3, 0.3]),
        pytest.approx([1, 0.2, 0.45, 0.2, 0.5]),
    ]
    assert [note for note in found.notes if "boxes among polygons" in note and first.name in note]


def test_duplicate_row_counts_once_and_is_noted(base: Path) -> None:
    wanted = val(base)
    change_labels(base, lambda row: [" ".join(row)] * 2)
    found = val(base)
    assert same_labels(found, wanted)
    assert found.notes == (f"148 duplicate rows of labels left out, the first in {STEMS[0]}.txt.",)


def test_hidden_files_and_folders_are_ignored(base: Path) -> None:
    wanted = val(base)
    (base / "valid" / "images" / f"._{STEMS[0]}.jpg").touch()
    (base / "valid" / "images" / ".ipynb_checkpoints").mkdir()
    (base / "valid" / "images" / ".ipynb_checkpoints" / "a-checkpoint.jpg").touch()
    found = val(base)
    assert same_labels(found, wanted)
    assert found.notes == ()


def test_labels_in_pixels_are_refused(base: Path) -> None:
    change_labels(base, lambda row: [" ".join([row[0], *(str(float(x) * 640) for x in row[1:])])])
    with pytest.raises(DataError, match=r"7\.txt has \S+, as if in pixels; allowed: class, x, y"):
        val(base)


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ("1 1.002 0.5 0.1 0.1", "has 1.002, which is out of bounds"),
        ("1 0.5 -0.1 0.1 0.1", "has -0.1, which is out of bounds"),
        ("-1 0.5 0.5 0.1 0.1", "has class -1"),
        ("1.5 0.5 0.5 0.1 0.1", "has class 1.5"),
        ("1 0.5 0.5 0.1", "is not a file of labels"),
        ("1 0.5 0.5 0.1 0.1 0.9", "is not a file of labels"),
        ("1 .1 .1 .2 .2 .3 .3 .4", "is not a file of labels"),
        ("cat 0.5 0.5 0.1 0.1", "is not a file of labels"),
        ("1 nan 0.5 0.1 0.1", "is not a file of labels"),
    ],
)
def test_photo_with_labels_out_of_bounds_is_left_out_and_noted(
    base: Path, row: str, sentence: str
) -> None:
    (base / "valid" / "labels" / f"{STEMS[0]}.txt").write_text(row + "\n")
    found = val(base)
    assert [path.stem for path in found.photos] == STEMS[1:]
    (note,) = found.notes
    assert note.startswith(f"1 photo left out; the first: {STEMS[0]}.txt {sentence}")


def test_photo_with_binary_labels_is_left_out(base: Path) -> None:
    (base / "valid" / "labels" / f"{STEMS[0]}.txt").write_bytes(b"1 0.5 0.5 0.1 0.1\n\xff\n")
    found = val(base)
    assert len(found.photos) == 7
    assert "1 photo left out" in found.notes[0]


def test_label_that_rounds_to_the_border_is_accepted(base: Path) -> None:
    (base / "valid" / "labels" / f"{STEMS[0]}.txt").write_text("1 0.5 0.5 1.00000001 1\n")
    assert len(val(base).photos) == 8


def test_photos_without_labels_count_and_are_noted(base: Path) -> None:
    (base / "valid" / "labels" / f"{STEMS[0]}.txt").unlink()
    found = val(base)
    assert len(found.labels[0]) == 0
    assert found.notes == ("1 photo without a file of labels, taken as photos of nothing.",)


def test_list_skips_lines_that_are_not_pictures(base: Path) -> None:
    wanted = val(base)
    lines = [f"./valid/images/{stem}.jpg" for stem in STEMS]
    text = "\ufeff" + "\r\n".join([*lines[:4], "", "  ", *lines[4:], "valid/labels/classes.txt"])
    (base / "list.txt").write_text(text, "utf-8")
    (base / "data.yaml").write_text("val: list.txt\n" + NAMES)
    found = val(base)
    assert same_labels(found, wanted)
    assert found.notes == ("1 line of list.txt passed over: no picture.",)
    (base / "list.txt").write_text(text.removeprefix("\ufeff"), "utf-16")
    assert same_labels(val(base), wanted)


def test_lines_of_a_list_are_relative_to_the_working_directory(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = val(base)
    (base / "list.txt").write_text("".join(f"set/valid/images/{stem}.jpg\n" for stem in STEMS))
    (base / "data.yaml").write_text("val: list.txt\n" + NAMES)
    monkeypatch.chdir(base.parent)
    assert same_labels(val(Path("set")), wanted)
    # Beside the list, if they are not in the working directory.
    (base / "list.txt").write_text("".join(f"valid/images/{stem}.jpg\n" for stem in STEMS))
    assert same_labels(val(Path("set")), wanted)


def test_repeated_photo_is_noted(base: Path) -> None:
    (base / "data.yaml").write_text("val: [valid/images, valid/images]\n" + NAMES)
    found = val(base)
    assert len(found.photos) == 16
    assert found.notes == ("8 photos named again, and counted again.",)


def test_file_name_need_not_be_utf8(base: Path) -> None:
    name = os.fsdecode(b"\xe9.jpg")
    (base / "valid" / "images" / name).touch()
    (base / "list.txt").write_bytes(b"./valid/images/\xe9.jpg\n")
    (base / "data.yaml").write_text("val: list.txt\n" + NAMES)
    assert [path.name for path in val(base).photos] == [name]


def test_links_to_folders_are_followed_and_loops_end(base: Path) -> None:
    wanted = val(base)
    (base / "images").mkdir()
    (base / "labels").mkdir()
    (base / "images" / "val").symlink_to(base / "valid" / "images")
    (base / "labels" / "val").symlink_to(base / "valid" / "labels")
    (base / "data.yaml").write_text("val: images\n" + NAMES)
    assert same_labels(val(base), wanted)
    (base / "valid" / "images" / "again").symlink_to(base / "images")
    assert same_labels(val(base), wanted)
    (base / "labels" / "val").unlink()
    (base / "data.yaml").write_text("val: images/val\n" + NAMES)
    assert same_labels(val(base), wanted), "the labels beside what the link leads to"


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("names: [0, 1, 2]", ("0", "1", "2")),
        ("names: [yes, no, 1.5]", ("True", "False", "1.5")),
        ("names: {0: 7, 1: on}", ("7", "True")),
        ("names: {'0': cat, '1': dog}", ("cat", "dog")),
        ("names: [2020-01-01, a]", ("2020-01-01", "a")),
        ("\ufeffnames: [cat]", ("cat",)),
    ],
)
def test_yaml_numbers_and_booleans_become_text(
    tmp_path: Path, text: str, names: tuple[str, ...]
) -> None:
    (tmp_path / "DATA.YAML").write_text(text, "utf-8")
    assert read_names(tmp_path / "DATA.YAML") == names


def test_boolean_name_and_wrong_count_are_noted(base: Path) -> None:
    (base / "data.yaml").write_text("val: valid/images\nnc: 4\nnames: [a, yes, b]\n")
    assert val(base).notes == (
        "a class of data.yaml is called 'True', as YAML reads a word that is not in quotes.",
        "data.yaml has nc 4 but 3 names; the names count.",
    )


@pytest.mark.parametrize("text", ["names: [a, null]", "names: [a, [b]]", "names: [a, '']"])
def test_missing_or_empty_class_names_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "data.yaml").write_text(text)
    with pytest.raises(DataError, match="has no class names"):
        read_names(tmp_path / "data.yaml")


@pytest.mark.parametrize("key", [".inf", "0.5", "cat", "null", "'1'", "-1", "9" * 90])
def test_class_names_under_a_key_that_is_not_an_index_are_refused(tmp_path: Path, key: str) -> None:
    (tmp_path / "data.yaml").write_text(f"names: {{0: a, 1: b, {key}: c}}")
    with pytest.raises(DataError, match="no class name for 2|a key that is not an index"):
        read_names(tmp_path / "data.yaml")


def test_names_file_may_have_a_bom_and_blank_last_lines(tmp_path: Path) -> None:
    for encoding in ("utf-8-sig", "utf-16"):
        (tmp_path / "names.txt").write_text("Platelets\r\nRBC\n\n  \n", encoding)
        assert read_names(tmp_path / "names.txt") == ("Platelets", "RBC")


def test_yaml_bytes_that_are_not_utf8_are_dropped(base: Path) -> None:
    text = b"# \xe9t\xe9\nval: valid/images\nnames: [Pl\xe4ttchen, RBC, WBC]\n"
    (base / "data.yaml").write_bytes(text)
    assert read_names(base / "data.yaml")[0] == "Plttchen"
    assert len(val(base).photos) == 8


NESTED = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)
)
MERGED = "a0: &a0 {x: 1}\n" + "".join(
    f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}\n" for n in range(1, 10)
)
BOMBS = {
    "aliases": NESTED + "path: *a11\nval: .\nnames: *a11\n",
    "merged": MERGED + "val: .\n",
    "repeated text": f"a: &a '{'x' * 100_000}'\nval: [{', '.join(['*a'] * 10_000)}]\n",
    "itself": "val: &a [*a]\n",
    "deep": "val: " + "[" * 400_000,
    "deep in lines": "- " * 100_000,
    "number": "nc: " + "9" * 400_000,
    "base 60": "nc: 1:" + ":".join(["59"] * 150_000),
    "large": "#" * (1 << 20),
}


@pytest.mark.parametrize("kind", BOMBS)
def test_expanding_yaml_is_refused_at_once(tmp_path: Path, kind: str) -> None:
    (tmp_path / "data.yaml").write_text(BOMBS[kind])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for read in (read_names, lambda path: read_split(path, "val")):
        started = time.process_time()
        with pytest.raises(DataError, match="data.yaml is (not a data-set YAML|too large)"):
            read(tmp_path / "data.yaml")
        assert time.process_time() - started < 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 << 10


def test_yaml_bomb_ends_the_command_with_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "data.yaml").write_text(BOMBS["aliases"])
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_DATA, (600 << 20,) * 2);"
        "from yolov5_client._cli import main; sys.exit(main(['eval', 'data.yaml']))"
    )
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (2, "error: data.yaml is not a data-set YAML.\n")


def test_few_aliases_are_read(base: Path) -> None:
    (base / "data.yaml").write_text("train: &t [valid/images]\nval: *t\n" + NAMES)
    assert len(val(base).photos) == 8


def test_thousands_of_names_are_read(tmp_path: Path) -> None:
    text = "names:\n" + "".join(f"  {n}: class number {n}\n" for n in range(10_000))
    (tmp_path / "data.yaml").write_text(text)
    assert len(read_names(tmp_path / "data.yaml")) == 10_000
