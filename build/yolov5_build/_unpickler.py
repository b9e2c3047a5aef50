"""A restricted unpickler for checkpoints: zips with a pickle and a raw member for each storage.

A pickle is a program. This unpickler accepts an explicit list of names, checks the object that each
instruction acts on, and compares every tensor with the bytes in the file. A file can therefore run
no code, and can use no more memory than it has bytes for.
"""

from __future__ import annotations

import io
import itertools
import math
import pickle
import pickletools
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ._errors import BuildError
from ._families import refusal
from ._placeholders import PLACEHOLDERS, Ignored, load_type, placeholder
from .anchor_free import KNOWN_LAYERS
from .layers import CompiledNetwork, DetectionModel, Wrapper

# The largest official checkpoint (yolov5x6) has 283 MB. The bundled one has a pickle of 87 kB with
# 36,000 instructions, and 364 other members in the zip.
MAX_FILE_BYTES = 2 << 30
MAX_PICKLE_BYTES = 8 << 20
MAX_INSTRUCTIONS = 1_000_000
MAX_DIRECTORY_BYTES = 4 << 20  # of the zip's central directory
MAX_DIMENSIONS = 8
# Levels of nesting, and the number of objects if a shared one is counted everywhere it occurs: the
# bundled checkpoint has 15 levels and 4,485 places.
MAX_DEPTH = 100
MAX_PLACES = 1_000_000

# The instructions that containers, numbers, texts and objects need, in protocols 2 to 5.
_OPCODES = frozenset(
    opcode
    for line in (
        "PROTO FRAME STOP MARK POP POP_MARK DUP NONE NEWTRUE NEWFALSE",
        "BININT BININT1 BININT2 LONG1 BINFLOAT BINUNICODE SHORT_BINUNICODE SHORT_BINBYTES BINBYTES",
        "EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_LIST APPEND APPENDS LIST",
        "EMPTY_DICT DICT SETITEM SETITEMS EMPTY_SET ADDITEMS FROZENSET",
        "BINPUT LONG_BINPUT MEMOIZE BINGET LONG_BINGET BINPERSID",
        "GLOBAL STACK_GLOBAL REDUCE NEWOBJ BUILD",
    )
    for opcode in line.split()
)

_DTYPES = {
    "torch.DoubleStorage": torch.float64,
    "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16,
    "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
}


# The first bytes of files that are often taken for a checkpoint, and what they are.
_BEGINNINGS = {
    b"version https://git-lfs": (
        "is not a YOLOv5 checkpoint but a Git LFS pointer to one; `git lfs pull` fetches the file"
    ),
    b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.": (
        "has the file format of PyTorch before 1.6; load it with a newer PyTorch and save it again"
    ),
}

_NONE = type(None)


class UnknownNameError(pickle.UnpicklingError):
    """The pickle names something that is not on the list of known names."""


class DamagedError(Exception):
    """The file violates its own format."""


def unpickle(path: Path) -> object:
    """Read the object in a checkpoint, made of known classes only.

    Raises:
        BuildError: the file is not a checkpoint, is damaged, or names an unknown class.
    """
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise BuildError(f"{path.name} is over the limit of {MAX_FILE_BYTES >> 20} MB.")
        with path.open("rb") as file:
            start = file.read(64)
        for beginning, sentence in _BEGINNINGS.items():
            if start.startswith(beginning):
                raise BuildError(f"{path.name} {sentence}.")
        _check_directory(path)
        with zipfile.ZipFile(path) as archive:
            content = _read(archive, path)
        _check_nesting(content)
        return content
    except UnknownNameError as error:
        raise BuildError(f"{path.name} {refusal(path.name, str(error))}.") from None
    except OSError as error:
        raise BuildError(f"{path.name} cannot be read: {error.strerror or error}.") from None
    except BuildError:
        raise
    except Exception:  # a damaged pickle can raise anything
        raise BuildError(f"{path.name} is not a YOLOv5 checkpoint, or is damaged.") from None


def _check_directory(path: Path) -> None:
    """Check the size of the zip's directory, since `zipfile` creates an object for each entry."""
    with path.open("rb") as file:
        end = zipfile._EndRecData(file)  # type: ignore[attr-defined]
    if end and end[zipfile._ECD_SIZE] > MAX_DIRECTORY_BYTES:  # type: ignore[attr-defined]
        raise DamagedError("a huge directory")


def _read(archive: zipfile.ZipFile, path: Path) -> object:
    members = {info.filename: info for info in archive.infolist()}
    pickles = [name for name in members if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(pickles) != 1:
        raise DamagedError("no pickle, or several")
    folder = pickles[0].removesuffix("data.pkl")
    if f"{folder}constants.pkl" in members and any(n.startswith(f"{folder}code/") for n in members):
        raise BuildError(
            f"{path.name} is a TorchScript export; give the best.pt that it was made from, or an "
            "ONNX export."
        )
    for name, info in members.items():
        # torch does not compress members. A compressed one comes from elsewhere, and can expand
        # a thousandfold.
        if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
            raise DamagedError("a compressed member")
        if not name.startswith(folder) or ".." in name.split("/"):
            raise DamagedError("a member outside the folder")
    if sum(info.file_size for info in members.values()) > path.stat().st_size:
        raise DamagedError("members that overlap")
    if members[pickles[0]].file_size > MAX_PICKLE_BYTES:
        raise DamagedError("a huge pickle")
    return _Unpickler(archive, folder).load()


@dataclass(frozen=True)
class _StorageType:
    dtype: torch.dtype


class _Unpickler(pickle._Unpickler):
    """Python's unpickler with checks; the one written in Python, as that in C cannot be changed.

    The standard unpickler lets a file call and modify any object that it has created. A layer is
    callable and a tensor has methods, so a small file could allocate any amount of memory. This
    one calls only known functions, and fills only containers and empty objects.
    """

    stack: list[Any]  # declared in pickle._Unpickler, like the next three
    metastack: list[list[Any]]
    append: Callable[[Any], None]
    dispatch: ClassVar[dict[int, Any]]

    def __init__(self, archive: zipfile.ZipFile, folder: str) -> None:
        data = archive.read(f"{folder}data.pkl")
        _check_opcodes(data)
        super().__init__(io.BytesIO(data))
        self._archive = archive
        self._folder = folder
        self._storages: dict[str, Tensor] = {}
        # How many entries may still be copied between containers; each is in the pickle once.
        self._copies = len(data)

    def find_class(self, module: str, name: str) -> Any:
        # Protocol 2 uses the module names of Python 2; the pip package of YOLOv5 adds a prefix.
        plain = "builtins" if module == "__builtin__" else module.removeprefix("yolov5.")
        known = _KNOWN.get(f"{plain}.{name}") or placeholder(f"{plain}.{name}")
        if known is None:
            raise UnknownNameError(ascii(f"{module}.{name}")[1:-1])
        return known

    def _check_keys(self, keys: Iterable[Any]) -> None:
        """Allow only keys that are hashed in constant time.

        Hashing a tuple visits everything in it, which takes 2^60 steps if each of 60 tuples holds
        the previous one twice. Integers are hashed modulo 2^61 - 1, so larger ones can collide.
        """
        for key in keys:
            if isinstance(key, int) and abs(key) >> 60:
                raise DamagedError("a huge number as a key")
            if not isinstance(key, (str, int, float, bytes, type, Ignored, _NONE)):
                raise DamagedError("a key of an unusual kind")

    def _limit_copies(self, *copied: Any) -> None:
        """Limit how many entries are copied: a few bytes of pickle can copy a large container."""
        sized = (list, tuple, dict, set, frozenset)
        self._copies -= sum(len(one) for one in copied if isinstance(one, sized))
        if self._copies < 0:
            raise DamagedError("copies of copies")

    def _reduce(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        if not any(function is known for known in _CALLED):
            raise DamagedError("a call of something else than a name")
        self._limit_copies(arguments, *arguments)
        if function in (dict, OrderedDict):
            for pairs in arguments:
                self._check_keys(pairs if isinstance(pairs, dict) else (pair[0] for pair in pairs))
        elif function is set:
            self._check_keys(itertools.chain(*arguments))
        self.append(function(*arguments))

    def _new(self) -> None:
        _, cls = self.stack.pop(), self.stack.pop()
        if not issubclass(cls, (nn.Module, Ignored)):
            raise DamagedError("an object of another kind")
        self.append(cls.__new__(cls))

    def _build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, nn.Module):
            parts = state.get("_modules")
            self._limit_copies(state, parts)
            # A network that was fused before it was saved has methods of its own in `forward`.
            state.pop("forward", None)
            # A loss that belongs to a network is no layer of it.
            if isinstance(target, (DetectionModel, Wrapper)) and isinstance(parts, dict):
                for name in [name for name, part in parts.items() if isinstance(part, Ignored)]:
                    del parts[name]
            target.__setstate__(state)  # type: ignore[no-untyped-call]
        elif not isinstance(target, (Ignored, OrderedDict)):  # attributes of these are dropped
            raise DamagedError("an object of another kind")

    def persistent_load(self, pid: Any) -> Tensor:
        """The storage of a tensor, as a tensor of one dimension."""
        kind, storage_type, key, _, count = pid
        known = isinstance(storage_type, _StorageType) and isinstance(key, str)
        if kind != "storage" or not known:
            raise DamagedError("an unknown kind of memory")
        if key not in self._storages:
            data = self._archive.read(f"{self._folder}data/{key}")
            if len(data) != count * storage_type.dtype.itemsize:
                raise DamagedError("memory of another size than stated")
            self._storages[key] = (
                torch.frombuffer(bytearray(data), dtype=storage_type.dtype)
                if data
                else torch.empty(0, dtype=storage_type.dtype)
            )
        return self._storages[key]


def _filling(
    opcode: int, kind: type | None, depth: int | None, keys: slice | None
) -> Callable[[_Unpickler], None]:
    """A checked form of an instruction that creates or fills a container.

    Args:
        kind: type of the container that is filled, None if a new one is created.
        depth: position of that container from the top of the stack, None for right below the mark.
        keys: the entries of the stack that are hashed.
    """
    fill: Callable[[Any], None] = pickle._Unpickler.dispatch[opcode]

    def checked(unpickler: _Unpickler) -> None:
        if kind is not None:
            target = unpickler.metastack[-1][-1] if depth is None else unpickler.stack[-depth]
            if not isinstance(target, (kind, Ignored)):
                raise DamagedError("an object that is no container")
        if keys is not None:
            unpickler._check_keys(unpickler.stack[keys])
        fill(unpickler)

    return checked


_Unpickler.dispatch = {
    **pickle._Unpickler.dispatch,
    pickle.REDUCE[0]: _Unpickler._reduce,
    pickle.NEWOBJ[0]: _Unpickler._new,
    pickle.BUILD[0]: _Unpickler._build,
    **{
        opcode[0]: _filling(opcode[0], kind, depth, keys)
        for opcode, kind, depth, keys in (
            (pickle.APPEND, list, 2, None),
            (pickle.SETITEM, dict, 3, slice(-2, -1)),
            (pickle.APPENDS, list, None, None),
            (pickle.SETITEMS, dict, None, slice(None, None, 2)),
            (pickle.ADDITEMS, set, None, slice(None)),
            (pickle.DICT, None, None, slice(None, None, 2)),
            (pickle.FROZENSET, None, None, slice(None)),
        )
    },
}


def _check_opcodes(data: bytes) -> None:
    """Check the program before it runs.

    The unpickler allocates whatever length and memo index an instruction states. A length must
    therefore be that of bytes in the file, and an index less than the length of the program.
    """
    for count, (opcode, argument, _) in enumerate(pickletools.genops(data)):
        if count >= MAX_INSTRUCTIONS:
            raise DamagedError("a huge program")
        if opcode.name not in _OPCODES:
            raise DamagedError("an unusual instruction")
        if opcode.name == "LONG_BINPUT" and (argument or 0) > len(data):
            raise DamagedError("a memo of absurd size")


def _check_nesting(content: object) -> None:
    """Refuse deep nesting, objects that contain themselves, and objects in so many places
    that a traversal would not end."""
    depths: dict[int, int] = {}
    places: dict[int, int] = {}
    todo: list[tuple[object, list[object] | None]] = [(content, None)]
    while todo:
        part, inner = todo.pop()
        if inner is None:
            if id(part) in places:
                if not places[id(part)]:  # begun but not finished: `part` contains itself
                    raise DamagedError("an object within itself")
                continue
            places[id(part)] = 0
            inner = _inner(part)
            todo.append((part, inner))
            todo.extend((other, None) for other in inner if not places.get(id(other)))
            continue
        depths[id(part)] = 1 + max((depths[id(other)] for other in inner), default=0)
        places[id(part)] = 1 + sum(places[id(other)] for other in inner)
        if depths[id(part)] > MAX_DEPTH or places[id(part)] > MAX_PLACES:
            raise DamagedError("objects that are nested too deeply")


def _inner(part: object) -> list[object]:
    """The containers and layers that an object of the file refers to."""
    if isinstance(part, dict):
        held: Iterable[object] = part.values()
    elif isinstance(part, (list, tuple)):
        held = part
    elif isinstance(part, nn.Module):
        held = vars(part).values()
    else:
        held = ()
    kinds = (dict, list, tuple, nn.Module)
    # The wrapper of PyTorch Hub has itself as an attribute, `self`.
    return [other for other in held if isinstance(other, kinds) and other is not part]


def _tensor(
    memory: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any
) -> Tensor:
    """A view of a storage, checked to lie within it and to have no more elements than it."""
    if len(size) > MAX_DIMENSIONS or len(size) != len(stride):
        raise DamagedError("an unusual number of dimensions")
    if min((offset, *size, *stride)) < 0:
        raise DamagedError("a negative size")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride))
    count = math.prod(list(size))
    if count > len(memory) or (count and last >= len(memory)):
        raise DamagedError("a tensor larger than its memory")
    return memory.as_strided(size, stride, offset)


def _parameter(data: Tensor, *_: Any) -> nn.Parameter:
    return nn.Parameter(data, requires_grad=False)


def _typed_tensor(rebuild: object, _: object, arguments: tuple[Any, ...], *__: Any) -> Tensor:
    """A tensor with attributes, which are dropped."""
    if rebuild is not _tensor:
        raise DamagedError("a tensor made in an unusual way")
    return _tensor(*arguments)


_KNOWN: dict[str, Any] = {
    **KNOWN_LAYERS,
    **PLACEHOLDERS,
    **{name: _StorageType(dtype) for name, dtype in _DTYPES.items()},
    "collections.OrderedDict": OrderedDict,
    "torch.Size": tuple,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch._tensor._rebuild_from_type_v2": _typed_tensor,
}

_CALLED = (
    *(OrderedDict, tuple, list, dict, set, load_type, Ignored, CompiledNetwork),
    *(_tensor, _parameter, _typed_tensor),
)
