"""Class names as lines of text, and the files that they are read from."""

from __future__ import annotations

from pathlib import Path

import pytest

from yolov5_build import BuildError
from yolov5_build._labels import as_labels, is_name, read_names_file


@pytest.mark.parametrize("name", ["a", "", 3, 1.5, True, None])
def test_value_that_yaml_reads_for_a_name_is_one(name: object) -> None:
    assert is_name(name)


@pytest.mark.parametrize("other", [["a"], ("a",), {}, b"a", object()])
def test_other_value_is_no_name(other: object) -> None:
    assert not is_name(other)


def test_only_changed_names_are_reported(capsys: pytest.CaptureFixture[str]) -> None:
    assert as_labels([" car ", None, "a\nb", 7, "  "]) == (" car ", "class1", "a b", "7", "class4")
    assert capsys.readouterr().err.splitlines() == [
        "Class 1 is called 'class1' here; its name is ''.",
        "Class 2 is called 'a b' here; its name is 'a\\nb'.",
        "Class 4 is called 'class4' here; its name is '  '.",
    ]


def test_file_has_one_name_a_line(tmp_path: Path) -> None:
    path = tmp_path / "names.txt"
    path.write_text("  car\nbus stop \n\n \n")
    assert read_names_file(path) == ("car", "bus stop")


@pytest.mark.parametrize("name", ["data.yaml", "data.YML"])
def test_yaml_file_has_a_list_of_names(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text("train: photos\nnames: [car, bus]\n")
    assert read_names_file(path) == ("car", "bus")


@pytest.mark.parametrize(
    "content, sentence",
    [
        (b"a\n\nc\n\n", "names.txt has no class name in line 2."),
        (b"\n \n", "names.txt has no class names; allowed: one a line, or a data.yaml."),
        (b"", "names.txt has no class names; allowed: one a line, or a data.yaml."),
        (b"\xff\xfea\0", "names.txt is not UTF-8 text."),
        (None, "names.txt cannot be read: No such file or directory."),
    ],
    ids=["gap", "blank", "empty", "encoding", "missing"],
)
def test_file_without_names_is_refused(
    tmp_path: Path, content: bytes | None, sentence: str
) -> None:
    path = tmp_path / "names.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BuildError) as caught:
        read_names_file(path)
    assert str(caught.value) == sentence


def test_file_of_a_megabyte_is_read_and_a_larger_one_is_not(tmp_path: Path) -> None:
    path = tmp_path / "names.txt"
    path.write_bytes(b"a" * (1 << 20))
    assert read_names_file(path) == ("a" * (1 << 20),)
    path.write_bytes(b"a" * ((1 << 20) + 1))
    with pytest.raises(BuildError, match="over the limit of 1024 kB for names"):
        read_names_file(path)
