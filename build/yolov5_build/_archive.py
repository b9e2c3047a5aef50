"""The file format of a checkpoint: a zip with a pickle and one raw member for each tensor's memory.

A pickle is a program. This one is run by an unpickler that knows an explicit list of names, refuses
every other, and checks every tensor against the bytes that are really there, so that a file can ask
neither for code nor for memory that it does not bring along.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import zipfile
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from . import layers
from ._errors import BuildError
from ._stand_ins import STAND_INS

# The largest official one (yolov5x6) has 283 MB; the pickle of the bundled one has 85 kB.
MAX_FILE_BYTES = 2 << 30
MAX_PICKLE_BYTES = 8 << 20

# What a pickle of containers, numbers, texts and objects needs, in protocols 2 to 5.
_OPCODES = frozenset(
    opcode
    for line in (
        "PROTO FRAME STOP MARK POP POP_MARK DUP NONE NEWTRUE NEWFALSE",
        "BININT BININT1 BININT2 LONG1 BINFLOAT BINUNICODE SHORT_BINUNICODE SHORT_BINBYTES",
        "EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_LIST APPEND APPENDS LIST",
        "EMPTY_DICT DICT SETITEM SETITEMS EMPTY_SET ADDITEMS FROZENSET",
        "BINPUT LONG_BINPUT MEMOIZE BINGET LONG_BINGET BINPERSID",
        "GLOBAL STACK_GLOBAL REDUCE NEWOBJ NEWOBJ_EX BUILD",
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


class UnknownNameError(pickle.UnpicklingError):
    """The pickle names something that is not on the list."""


class DamagedError(Exception):
    """The file does not keep to its own format."""


def read_archive(path: Path) -> object:
    """The object that the checkpoint holds, made of known classes only.

    Raises:
        BuildError: not a checkpoint, damaged, or one that names something unknown.
    """
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise BuildError(f"{path.name} is over the limit of {MAX_FILE_BYTES >> 20} MB.")
        with zipfile.ZipFile(path) as archive:
            return _read(archive)
    except UnknownNameError as error:
        raise BuildError(
            f"{path.name} names '{error}', which is not among the layers that are supported."
        ) from None
    except OSError as error:
        raise BuildError(f"{path.name} cannot be read: {error.strerror or error}.") from None
    except BuildError:
        raise
    except Exception:  # whatever a damaged pickle makes the unpickler stumble over
        raise BuildError(f"{path.name} is not a YOLOv5 checkpoint, or is damaged.") from None


def _read(archive: zipfile.ZipFile) -> object:
    members = {info.filename: info for info in archive.infolist()}
    pickles = [name for name in members if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(pickles) != 1:
        raise DamagedError("no pickle, or several")
    folder = pickles[0].removesuffix("data.pkl")
    for name, info in members.items():
        # torch stores its members as they are: one that is compressed is not torch's, and can
        # be a thousand times what it seems.
        if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
            raise DamagedError("a compressed member")
        if not name.startswith(folder) or ".." in name.split("/"):
            raise DamagedError("a member outside the folder")
    if members[pickles[0]].file_size > MAX_PICKLE_BYTES:
        raise DamagedError("a huge pickle")
    return _Unpickler(archive, folder).load()


@dataclass(frozen=True)
class _StorageType:
    dtype: torch.dtype


class _Unpickler(pickle.Unpickler):
    def __init__(self, archive: zipfile.ZipFile, folder: str) -> None:
        data = archive.read(f"{folder}data.pkl")
        _check_opcodes(data)
        super().__init__(io.BytesIO(data))
        self._archive = archive
        self._folder = folder
        self._storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        known = _KNOWN.get(f"{module}.{name}")
        if known is None:
            raise UnknownNameError(ascii(f"{module}.{name}")[1:-1])
        return known

    def persistent_load(self, pid: Any) -> Tensor:
        """The memory of a tensor, as a tensor of one dimension."""
        kind, storage_type, key, _, count = pid
        if kind != "storage" or not isinstance(storage_type, _StorageType):
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


def _check_opcodes(data: bytes) -> None:
    """Look through the program before it runs: every length must be of bytes that are there, and
    no entry of the memo further out than the program is long, as both are allocated on sight."""
    for opcode, argument, _ in pickletools.genops(data):
        if opcode.name not in _OPCODES:
            raise DamagedError("an unusual instruction")
        if opcode.name == "LONG_BINPUT" and (argument or 0) > len(data):
            raise DamagedError("a memo of absurd size")


def _tensor(
    memory: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any
) -> Tensor:
    """A tensor that lies wholly in its memory and uses no element of it twice."""
    if min((offset, *size, *stride), default=0) < 0 or len(size) != len(stride):
        raise DamagedError("a negative size")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride))
    count = math.prod(list(size))
    if count > len(memory) or (count and last >= len(memory)):
        raise DamagedError("a tensor larger than its memory")
    return memory.as_strided(size, stride, offset)


def _parameter(data: Tensor, *_: Any) -> nn.Parameter:
    return nn.Parameter(data, requires_grad=False)


_KNOWN: dict[str, Any] = {
    **layers.LAYERS,
    **STAND_INS,
    **{name: _StorageType(dtype) for name, dtype in _DTYPES.items()},
    "collections.OrderedDict": OrderedDict,
    "torch.Size": tuple,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
}
