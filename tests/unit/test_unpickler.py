"""The restricted unpickler, on pickles of a few instructions."""

from __future__ import annotations

import copy
import itertools
import struct
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from yolov5_build import BuildError
from yolov5_build._placeholders import Ignored
from yolov5_build._unpickler import (
    DamagedError,
    _check_nesting,
    _check_opcodes,
    _tensor,
    unpickle,
)
from yolov5_build.layers import LAYERS

DAMAGED = "best.pt is not a YOLOv5 checkpoint, or is damaged."


def write(folder: Path, program: bytes, members: Mapping[str, bytes] | None = None) -> Path:
    """A checkpoint with this program, without its beginning and its end."""
    path = folder / "best.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("best/data.pkl", b"\x80\x02" + program + b".")
        for name, content in (members or {}).items():
            archive.writestr(name, content)
    return path


def run(folder: Path, program: bytes, members: Mapping[str, bytes] | None = None) -> Any:
    return unpickle(write(folder, program, members))


def refusal(path: Path) -> str:
    with pytest.raises(BuildError) as caught:
        unpickle(path)
    return str(caught.value)


def is_refused(folder: Path, program: bytes, members: Mapping[str, bytes] | None = None) -> bool:
    path = write(folder, program, members)
    try:
        unpickle(path)
    except BuildError as error:
        assert str(error) == DAMAGED
        return True
    return False


def named(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def number(value: int) -> bytes:
    data = value.to_bytes(9, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


LIST, DICT, SET = (named("builtins", name) for name in ("list", "dict", "set"))
ORDERED = named("collections", "OrderedDict")
IGNORED = named("argparse", "Namespace")
MODULES = named("torch.nn.modules.container", "ModuleList") + b")\x81"
PAIR = b"K\x01K\x02\x86"  # a tuple, which is hashed by what it holds


# ---------------------------------------------------------------------------------------------
# The file


def test_saved_object_is_read(tmp_path: Path) -> None:
    path = tmp_path / "best.pt"
    base = torch.arange(12.0)
    saved = {
        "plain": [1, -2.5, "x", None, True, (), (1,), {"a": {"b": [2]}}, {3}],
        "ordered": OrderedDict(a=1),
        "whole": base,
        "part": base.view(3, 4)[1:, ::2],
        "empty": torch.empty(0),
        "scalar": torch.tensor(7),
        "weights": nn.Parameter(torch.ones(2)),
    }
    torch.save(saved, path)
    read = unpickle(path)
    assert isinstance(read, dict) and read.keys() == saved.keys()
    assert read["plain"] == saved["plain"] and read["ordered"] == saved["ordered"]
    for name in ("whole", "part", "empty", "scalar", "weights"):
        assert torch.equal(read[name], saved[name])  # type: ignore[arg-type]
    assert read["part"].untyped_storage().data_ptr() == read["whole"].data_ptr()
    assert isinstance(read["weights"], nn.Parameter) and not read["weights"].requires_grad


@pytest.mark.parametrize(
    "kind",
    [
        *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64),
        *(torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
    ],
)
def test_tensors_of_all_kinds_are_read(kind: torch.dtype, tmp_path: Path) -> None:
    saved = torch.tensor([0, 1, 1], dtype=kind)
    torch.save(saved, tmp_path / "best.pt")
    read = unpickle(tmp_path / "best.pt")
    assert isinstance(read, torch.Tensor)
    assert read.dtype == kind and torch.equal(read, saved)


def test_file_of_two_gigabytes_is_opened_and_a_larger_one_is_not(tmp_path: Path) -> None:
    path = tmp_path / "best.pt"
    for more, sentence in ((0, DAMAGED), (1, "best.pt is over the limit of 2048 MB.")):
        with path.open("wb") as file:
            file.truncate((1 << 31) + more)
        assert refusal(path) == sentence


@pytest.mark.parametrize(
    "content, sentence",
    [
        (b"", DAMAGED),
        (b"version https://git-lfs.github.com/spec/v1\n", "best.pt is not a YOLOv5 checkpoint but"),
        (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.more", "best.pt has the file format of PyTorch"),
    ],
)
def test_other_files_are_named(content: bytes, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "best.pt"
    path.write_bytes(content)
    assert refusal(path).startswith(sentence)
    assert refusal(tmp_path / "none.pt") == "none.pt cannot be read: No such file or directory."


@pytest.mark.parametrize(
    "module, name, sentence",
    [
        ("os", "system", "names 'os.system', which is not among the layers that are supported."),
        ("ultralytics.nn.modules.block", "SCDown", "is a YOLOv10 checkpoint; of the ultralytics"),
        ("ultralytics.nn.modules.head", "Segment", "is a segmentation model, not a detection"),
        (
            "ultralytics.nn",
            "C2x",
            "names 'ultralytics.nn.C2x', which is not among the layers that are supported; of the "
            "ultralytics package's checkpoints, those of YOLOv5u, YOLOv8 and YOLO11 are supported; "
            "give others as ONNX, which `yolo export model=best.pt format=onnx` writes.",
        ),
        ("models.yolo", "SegmentationModel", "is a segmentation model, not a detection network."),
        ("yolov5.models.common", "Classify", "is a classifier, not a detection network."),
    ],
)
def test_unknown_names_are_refused(module: str, name: str, sentence: str, tmp_path: Path) -> None:
    said = refusal(write(tmp_path, named(module, name)))
    assert said.startswith(f"best.pt {sentence}")


def test_names_of_old_and_packaged_versions_are_known(tmp_path: Path) -> None:
    for module in ("builtins", "__builtin__"):
        assert run(tmp_path, named(module, "set")) is set
    for module in ("models.common", "yolov5.models.common"):
        assert run(tmp_path, named(module, "Conv")) is LAYERS["models.common.Conv"]


def test_archive_has_one_pickle_at_the_top(tmp_path: Path) -> None:
    assert run(tmp_path, b"N", {"best/more/data.pkl": b"x", "best/a..b": b"x"}) is None
    for members in (
        {"other/data.pkl": b"x"},
        {"other/x": b"x"},
        {"best/../x": b"x"},
        {"best/data/..": b"x"},
    ):
        assert is_refused(tmp_path, b"N", members)
    with zipfile.ZipFile(tmp_path / "best.pt", "w") as archive:
        archive.writestr("best/more/data.pkl", b"N.")
    assert refusal(tmp_path / "best.pt") == DAMAGED


def test_torchscript_is_named(tmp_path: Path) -> None:
    constants, code = {"best/constants.pkl": b"x"}, {"best/code/a.py": b"x"}
    said = refusal(write(tmp_path, b"N", constants | code))
    assert said.startswith("best.pt is a TorchScript export; give the best.pt ")
    assert run(tmp_path, b"N", constants) is None
    assert run(tmp_path, b"N", code) is None


def deflated(data: bytes) -> bytes:
    compressor = zlib.compressobj(wbits=-15)
    return compressor.compress(data) + compressor.flush()


def test_compressed_members_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path, b"N")
    length = next(n for n in range(1, 99) if len(deflated(b"a" * n)) == n)
    for data in (b"a" * 1000, b"a" * length):
        path = write(tmp_path, b"N")
        with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("best/data/0", data)
        assert refusal(path) == DAMAGED
    path = write(tmp_path, b"N", {"best/data/0": b"1234567"})
    data, sizes = path.read_bytes(), struct.pack("<2I", 7, 7)
    assert data.count(sizes) == 2  # before the member, and in the directory
    path.write_bytes(struct.pack("<2I", 7, 8).join(data.rsplit(sizes, 1)))
    assert refusal(path) == DAMAGED


@pytest.mark.parametrize("less, refused", [(0, False), (1, True)])
def test_members_may_not_overlap(less: int, refused: bool, tmp_path: Path) -> None:
    path = write(tmp_path, b"N", {"best/data/0": bytes(10_000)})
    with zipfile.ZipFile(path, "a") as archive:
        again = copy.copy(archive.getinfo("best/data/0"))
        again.filename = again.orig_filename = "best/data/1"
        archive.filelist.append(again)
        archive._didModify = True  # type: ignore[attr-defined]
        total = sum(info.file_size for info in archive.filelist)
    data = path.read_bytes()
    path.write_bytes(bytes(total - less - len(data)) + data)
    assert path.stat().st_size == total - less
    if refused:
        assert refusal(path) == DAMAGED
    else:
        assert unpickle(path) is None


@pytest.mark.parametrize("more", [0, 1])
def test_directory_of_the_archive_is_limited(more: int, tmp_path: Path) -> None:
    path = tmp_path / "best.pt"
    left = (4 << 20) + more
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("best/data.pkl", b"N.")
        left -= 46 + len("best/data.pkl")
        for index in itertools.count():
            info = zipfile.ZipInfo(f"best/data/{index:03d}")
            left -= 46 + len(info.filename)
            info.comment = b"c" * min(left, 60_000)
            left -= len(info.comment)
            archive.writestr(info, b"")
            if not left:
                break
            assert left > 100
    if more:
        assert refusal(path) == DAMAGED
    else:
        assert unpickle(path) is None


def test_pickle_of_eight_megabytes_is_read_and_a_larger_one_is_not(tmp_path: Path) -> None:
    longest = "a" * ((8 << 20) - 8)
    assert run(tmp_path, text(longest)) == longest
    assert is_refused(tmp_path, text(longest + "a"))


# ---------------------------------------------------------------------------------------------
# Keys and containers


@pytest.mark.parametrize(
    "key, value",
    [
        (text("a"), "a"),
        (b"K\x07", 7),
        (number((1 << 60) - 1), (1 << 60) - 1),
        (number(1 - (1 << 60)), 1 - (1 << 60)),
        (b"G" + struct.pack(">d", 1.5), 1.5),
        (b"N", None),
        (b"\x88", True),
        (b"\x80\x03C\x01a", b"a"),
        (SET, set),
    ],
    ids=repr,
)
def test_usual_keys_are_allowed(key: bytes, value: object, tmp_path: Path) -> None:
    """Values may be tuples, wherever keys may not."""
    pair = (1, 2)
    assert run(tmp_path, b"}" + key + PAIR + b"s") == {value: pair}
    assert run(tmp_path, b"}(" + key + PAIR + b"u") == {value: pair}
    assert run(tmp_path, b"(" + key + PAIR + b"d") == {value: pair}
    assert run(tmp_path, b"\x80\x04\x8f(" + key + b"\x90") == {value}
    assert run(tmp_path, b"\x80\x04(" + key + b"\x91") == frozenset({value})
    assert run(tmp_path, SET + b"]" + key + b"a\x85R") == {value}
    for kind in (DICT, ORDERED):
        assert run(tmp_path, kind + b"]" + key + PAIR + b"\x86a\x85R") == {value: pair}
        assert run(tmp_path, kind + b"}" + key + PAIR + b"s\x85R") == {value: pair}


@pytest.mark.parametrize("key", [PAIR, number(1 << 60), number(-1 << 60)], ids=repr)
def test_keys_that_take_long_to_hash_are_refused(key: bytes, tmp_path: Path) -> None:
    assert is_refused(tmp_path, b"}" + key + b"Ns")
    assert is_refused(tmp_path, b"}(" + key + b"Nu")
    assert is_refused(tmp_path, b"}(K\x01N" + key + b"Nu")
    assert is_refused(tmp_path, b"(" + key + b"Nd")
    assert is_refused(tmp_path, b"(K\x01N" + key + b"Nd")
    assert is_refused(tmp_path, b"\x80\x04\x8f(K\x01" + key + b"\x90")
    assert is_refused(tmp_path, b"\x80\x04(K\x01" + key + b"\x91")
    assert is_refused(tmp_path, SET + b"]" + key + b"a\x85R")
    for kind in (DICT, ORDERED):
        assert is_refused(tmp_path, kind + b"]" + key + b"N\x86a\x85R")


def test_lists_may_hold_anything(tmp_path: Path) -> None:
    assert run(tmp_path, b"]" + PAIR + b"a") == [(1, 2)]
    assert run(tmp_path, b"](" + PAIR + b"Ne") == [(1, 2), None]
    assert run(tmp_path, LIST + b"]" + PAIR + b"a\x85R") == [(1, 2)]
    assert run(tmp_path, LIST + b"]K\x05a\x85R") == [5]


def test_only_containers_are_filled(tmp_path: Path) -> None:
    assert is_refused(tmp_path, MODULES + MODULES + b"a")
    assert is_refused(tmp_path, MODULES + b"(" + MODULES + b"e")
    assert is_refused(tmp_path, b"]NaK\x00K\x05s")
    assert is_refused(tmp_path, b"]Na(K\x00K\x05u")
    assert is_refused(tmp_path, b"](K\x05\x90")
    for fill in (b"Na", b"(Ne", b"NNs", b"(NNu", b"(N\x90"):
        assert isinstance(run(tmp_path, IGNORED + b")\x81" + fill), Ignored)


@pytest.mark.parametrize("kind", ["list", "state"])
def test_no_more_is_copied_than_the_file_holds(kind: str, tmp_path: Path) -> None:
    """Each entry is in the file once; a few bytes copy all of them again."""
    outcomes = set()
    for entries in range(20, 200):
        if kind == "list":
            made = b"](" + b"N" * entries + b"eq\x000"
            again = LIST + b"h\x00\x85R"
            copied = 1 + entries
        else:
            made = b"}(" + b"".join(b"K%cN" % i for i in range(entries)) + b"uq\x000"
            again = named("torch.nn.modules.linear", "Identity") + b")\x81h\x00b"
            copied = entries
        for times in (4, 5):
            program = made + b"0".join([again] * times)
            allowed = len(program) + 3  # with its beginning and its end
            if abs(times * copied - allowed) < 3:
                refused = times * copied > allowed
                assert is_refused(tmp_path, program) == refused
                outcomes.add((refused, times * copied == allowed))
    assert {(True, False), (False, True)} <= outcomes


# ---------------------------------------------------------------------------------------------
# Calls and objects


def test_only_known_functions_are_called(tmp_path: Path) -> None:
    assert isinstance(run(tmp_path, IGNORED + PAIR + b"R"), Ignored)
    assert run(tmp_path, named("torch", "Size") + b"]K\x02a\x85R") == (2,)
    for name in (
        named("torch", "FloatStorage"),
        named("torch.nn.modules.linear", "Identity"),
        b"]",
        b"N",
    ):
        assert is_refused(tmp_path, name + b")R")


def test_only_layers_and_placeholders_are_created(tmp_path: Path) -> None:
    assert type(run(tmp_path, MODULES)) is LAYERS["torch.nn.modules.container.ModuleList"]
    assert isinstance(run(tmp_path, IGNORED + b")\x81"), Ignored)
    for name in (ORDERED, LIST, SET, b"]"):
        assert is_refused(tmp_path, name + b")\x81")


def test_state_is_set_without_methods(tmp_path: Path) -> None:
    state = b"}(" + text("training") + b"\x89" + text("forward") + b"K\x05u"
    module = run(tmp_path, MODULES + state + b"b")
    assert vars(module)["training"] is False and "forward" not in vars(module)
    assert run(tmp_path, MODULES + b"}" + text("a") + b"K\x01sb").a == 1
    assert run(tmp_path, ORDERED + b")R" + state + b"b") == {}
    assert isinstance(run(tmp_path, IGNORED + b")\x81" + state + b"b"), Ignored)
    assert is_refused(tmp_path, b"]" + state + b"b")
    assert is_refused(tmp_path, SET + state + b"b")


def memory(*, kind: str = "storage", key: bytes = text("0"), count: int = 2) -> bytes:
    storage = named("torch", "FloatStorage")
    return b"(" + text(kind) + storage + key + text("cpu") + bytes([75, count]) + b"tQ"


def test_memory_is_that_of_the_file(tmp_path: Path) -> None:
    data = {"best/data/0": struct.pack("<2f", 1, 2)}
    assert run(tmp_path, memory(), data).tolist() == [1, 2]
    first, second = run(tmp_path, memory() + memory() + b"\x86", data)
    assert first is second
    for program in (
        memory(kind="module"),
        memory(key=b"K\x00"),
        memory(count=1),
        memory(count=3),
        memory().replace(named("torch", "FloatStorage"), SET),
        memory(key=text("1")),
    ):
        assert is_refused(tmp_path, program, data)


# ---------------------------------------------------------------------------------------------
# Checks before and after


def test_number_of_instructions_is_limited() -> None:
    _check_opcodes(b"N0" * 499_999 + b"N.")
    with pytest.raises(DamagedError, match="a huge program"):
        _check_opcodes(b"N0" * 500_000 + b".")


@pytest.mark.parametrize("program", [b"I1\n.", b"(i__main__\nx\n.", b"\x8b\1\0\0\0\1.", b"V1\n."])
def test_unusual_instructions_are_refused(program: bytes, tmp_path: Path) -> None:
    with pytest.raises(DamagedError, match="an unusual instruction"):
        _check_opcodes(program)
    assert is_refused(tmp_path, program[:-1])


def test_memo_is_no_larger_than_the_program() -> None:
    _check_opcodes(b"Nr\7\0\0\0.")
    _check_opcodes(b"Nr\0\0\0\0.")
    with pytest.raises(DamagedError, match="a memo of absurd size"):
        _check_opcodes(b"Nr\x08\0\0\0.")


def deep(levels: int) -> list[Any]:
    content: list[Any] = []
    for _ in range(levels - 1):
        content = [content]
    return content


def test_depth_is_limited() -> None:
    module, contents = nn.Identity(), list[Any]()
    module.__dict__["extra"] = deep(98)
    contents += (deep(100), {"a": deep(99)}, (deep(99),), [1, deep(99), "x"], [module], "text")
    for content in contents:
        _check_nesting(content)
    module.__dict__["extra"] = deep(100)
    shared: list[Any] = []
    contents = [deep(101), {"a": deep(100)}, (deep(100),), module, [deep(100), shared, shared]]
    for content in contents:
        with pytest.raises(DamagedError, match="nested too deeply"):
            _check_nesting(content)


def test_number_of_places_is_limited() -> None:
    """A shared object counts wherever it occurs."""
    content: list[Any] = [[[]] * 998] * 1001  # 1 + 1001 * 999
    _check_nesting(content)
    content.append([])
    with pytest.raises(DamagedError, match="nested too deeply"):
        _check_nesting(content)


def test_objects_within_themselves_are_refused() -> None:
    first: list[Any] = []
    second = {"a": [first]}
    first.append(second)
    with pytest.raises(DamagedError, match="within itself"):
        _check_nesting(first)
    wrapper = nn.Identity()  # as that of PyTorch Hub
    wrapper.__dict__["self"] = wrapper
    _check_nesting(wrapper)
    wrapper.__dict__["args"] = [wrapper]
    with pytest.raises(DamagedError, match="within itself"):
        _check_nesting(wrapper)


MEMORY = torch.arange(12.0)


@pytest.mark.parametrize(
    "offset, size, stride",
    [
        (0, (12,), (1,)),
        (0, (3, 4), (4, 1)),
        (2, (2, 3), (3, 1)),
        (0, (4, 2), (3, 2)),
        (0, (12,), (0,)),
        (11, (), ()),
        (0, (1,) * 8, (1,) * 8),
        (0, (0,), (1,)),
        (12, (0, 5), (5, 1)),
    ],
)
def test_tensor_lies_within_its_memory(
    offset: int, size: tuple[int, ...], stride: tuple[int, ...]
) -> None:
    made = _tensor(MEMORY, offset, size, stride, False, OrderedDict())
    assert tuple(made.shape) == size
    indices = itertools.product(*map(range, size))
    places = [offset + sum(i * s for i, s in zip(index, stride)) for index in indices]
    assert made.flatten().tolist() == [float(place) for place in places]


@pytest.mark.parametrize(
    "offset, size, stride",
    [
        (1, (12,), (1,)),
        (12, (), ()),
        (0, (13,), (0,)),
        (0, (3, 4), (4, 2)),
        (0, (4, 2), (4, 1)),
        (-1, (1,), (1,)),
        (1, (-1,), (1,)),
        (5, (2,), (-1,)),
        (0, (1,) * 9, (1,) * 9),
        (0, (2, 3), (1,)),
        (0, (2,), (1, 1)),
    ],
)
def test_tensor_beyond_its_memory_is_refused(
    offset: int, size: tuple[int, ...], stride: tuple[int, ...]
) -> None:
    with pytest.raises(DamagedError):
        _tensor(MEMORY, offset, size, stride)
