"""Read an untrusted ONNX file completely, and nothing outside its folder."""

from __future__ import annotations

import functools
import hashlib
import math
import re
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path, PureWindowsPath

import onnx
from onnx import ModelProto, NodeProto, TensorProto
from onnx.inliner import inline_local_functions

from ._errors import BuildError
from ._onnx_graph import GraphError, all_nodes, prune, subgraphs
from ._onnx_limits import check_fields

MAX_BYTES = (2 << 30) - 1  # the limit of a protobuf message; yolov5x6 has 563 MB
MAX_NODES = 100_000
MAX_DIMENSIONS = 16
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_ZIP = b"PK\x03\x04"
_IR_VERSION = b"\x08"  # tag of field 1, a number, which every ONNX writer puts first

_ITEM_BYTES: dict[int, int] = {
    TensorProto.BOOL: 1,
    TensorProto.INT8: 1,
    TensorProto.UINT8: 1,
    TensorProto.INT16: 2,
    TensorProto.UINT16: 2,
    TensorProto.FLOAT16: 2,
    TensorProto.BFLOAT16: 2,
    TensorProto.INT32: 4,
    TensorProto.UINT32: 4,
    TensorProto.FLOAT: 4,
    TensorProto.INT64: 8,
    TensorProto.UINT64: 8,
    TensorProto.DOUBLE: 8,
}


def read_onnx(path: Path) -> tuple[ModelProto, str]:
    """Read the model in a file, and the file's SHA-256.

    External data are embedded, functions are inlined, nodes are sorted, and every tensor has as
    many bytes as its shape needs.

    Raises:
        BuildError: the file is not ONNX, is damaged, or refers to a missing file.
    """
    name = path.name
    data = _read(path)
    if not data:
        raise BuildError(f"{name} is empty.")
    if data.startswith(_LFS_POINTER):
        raise BuildError(
            f"{name} is a Git LFS pointer and not the file itself, which `git lfs pull` fetches."
        )
    if data.startswith(_ZIP):
        raise BuildError(f"{name} is a PyTorch file; rename it to .pt.")
    try:
        check_fields(data)
        model = ModelProto.FromString(data)
    except Exception:  # protobuf raises several types
        raise (damaged(name) if data.startswith(_IR_VERSION) else _not_onnx(name)) from None
    if not model.ir_version:
        raise _not_onnx(name)
    if not model.graph.node or not model.graph.output:
        raise BuildError(f"{name} holds an empty graph.")
    model = _inline_functions(name, model)
    if not _names_are_text(model):
        raise damaged(name)
    # An initializer among the inputs is a default value, which only callers of that input override.
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in constants]
    model.graph.ClearField("input")
    model.graph.input.extend(inputs)
    model.ir_version = max(
        model.ir_version, 4
    )  # before version 4, initializers had to be inputs too
    try:
        prune(model.graph, [output.name for output in model.graph.output])
    except GraphError:
        raise damaged(name) from None
    _embed_external_data(name, path.parent, model)
    return model, hashlib.sha256(data).hexdigest()


def damaged(name: str) -> BuildError:
    return BuildError(f"{name} is cut off or damaged.")


def _not_onnx(name: str) -> BuildError:
    return BuildError(f"{name} is not an ONNX file.")


def quoted(text: str) -> str:
    """A text from the file, shortened and printable, to be quoted in an error message."""
    return ascii(text if len(text) <= 60 else f"{text[:57]}...")


def short_reason(error: Exception) -> str:
    """The reason in an error of ONNX or ONNX Runtime: one short line without a final period."""
    text = "".join(c if c.isprintable() else "?" for c in " ".join(str(error).split()))
    text = text.rpartition("Status Message: ")[2]
    for boilerplate in (
        r"\S+\.(cc|h):\d+ ([\w:~<>&*, ]+\([^()]*\) )?",  # the place in its source code
        r"\[ONNXRuntimeError\] : \d+ : \w+ : ",
        r"^Exception during initialization: ",
        r"^(This is an i|I)nvalid model\. ",
    ):
        text = re.sub(boilerplate, "", text)
    text = text.replace(". ", "; ")
    return text[:160].rstrip(".") or type(error).__name__


def _read(path: Path) -> bytes:
    try:
        status = path.stat()
        if stat.S_ISREG(status.st_mode) and status.st_size > MAX_BYTES:
            raise _too_large(path.name)
        if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
            raise BuildError(f"{path.name} is not a file.")  # a pipe could block forever
        return path.read_bytes()
    except OSError as error:
        raise BuildError(f"{path.name} cannot be read: {error.strerror or error}.") from None


def _too_large(name: str) -> BuildError:
    return BuildError(f"{name} is over the limit of {(MAX_BYTES + 1) >> 20} MB.")


def _inline_functions(name: str, model: ModelProto) -> ModelProto:
    """Inline the functions of a model, unless their calls multiply to too many nodes."""
    functions = {(f.domain, f.name): f.node for f in model.functions}

    @functools.cache
    def size(function: tuple[str, str]) -> int:
        return count(functions[function])

    def count(nodes: Iterable[NodeProto]) -> int:
        calls = ((node.domain, node.op_type) for node in all_nodes(nodes))
        return sum(1 + (size(call) if call in functions else 0) for call in calls)

    if count(model.graph.node) + len(model.graph.initializer) > MAX_NODES:
        raise BuildError(f"{name} has more nodes than any YOLOv5 network.")
    return inline_local_functions(model) if functions else model


def _names_are_text(model: ModelProto) -> bool:
    """Whether all names are valid Unicode; protobuf returns others as bytes."""
    graph = model.graph
    names = {value.name for value in (*graph.input, *graph.output)}
    names.update(tensor.name for tensor in graph.initializer)
    for node in all_nodes(graph.node):
        names.update((node.name, node.op_type, node.domain, *node.input, *node.output))
        names.update(attribute.name for attribute in node.attribute)
    return all(isinstance(name, str) for name in names)


def _tensors(name: str, model: ModelProto) -> Iterator[TensorProto]:
    graphs = [model.graph]
    for graph in graphs:
        yield from graph.initializer
        sparse = len(graph.sparse_initializer)
        for node in graph.node:
            graphs.extend(subgraphs(node))
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    yield attribute.t
                yield from attribute.tensors
                sparse += attribute.HasField("sparse_tensor") + len(attribute.sparse_tensors)
        if sparse:
            raise BuildError(f"{name} holds sparse tensors, which are not supported.")


def _embed_external_data(name: str, folder: Path, model: ModelProto) -> None:
    """Embed external data, and check that every tensor has as many bytes as its shape needs."""
    total = 0
    sizes: dict[str, int] = {}  # of the external files
    for tensor in _tensors(name, model):
        item = _ITEM_BYTES.get(tensor.data_type)
        if item is None:
            raise BuildError(f"{name} holds data of a type that no YOLOv5 network has.")
        dims = list(tensor.dims[: MAX_DIMENSIONS + 1])
        if len(dims) > MAX_DIMENSIONS or min(dims, default=0) < 0:
            raise damaged(name)
        needed = math.prod(dims) * item
        if tensor.data_location == TensorProto.EXTERNAL:
            total += needed
            if total > MAX_BYTES:
                raise _too_large(name)
            path = _external_path(name, folder, tensor)
            sizes[str(path)] = path.stat().st_size
            offset = _external_offset(name, sizes[str(path)], tensor, needed)
            if total > 2 * sum(sizes.values()):  # tensors that overlap
                raise damaged(name)
            with path.open("rb") as file:
                file.seek(offset)
                tensor.raw_data = file.read(needed)
            tensor.ClearField("external_data")
            tensor.ClearField("data_location")
        elif tensor.HasField("raw_data"):
            if len(tensor.raw_data) < needed:
                raise damaged(name)
        else:
            values = getattr(tensor, onnx.helper.tensor_dtype_to_field(tensor.data_type))
            if len(values) * item < needed:
                raise damaged(name)


def _external_path(name: str, folder: Path, tensor: TensorProto) -> Path:
    """The external file of a tensor, which must be in the folder of the model."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = PureWindowsPath(entries.get("location", ""))  # accepts both kinds of slash
    path = folder.joinpath(*location.parts).resolve()
    if location.anchor or ".." in location.parts or not path.is_relative_to(folder.resolve()):
        raise BuildError(f"{name} wants {quoted(str(location))}, which is not in its folder.")
    label = quoted(location.as_posix())
    if not path.is_file():
        raise BuildError(f"{name} needs {label} beside it, which is not there.")
    return path


def _external_offset(name: str, size: int, tensor: TensorProto, needed: int) -> int:
    """The offset of a tensor in its external file, checked against the size of that."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    offset, length = int(entries.get("offset", 0)), int(entries.get("length", needed))
    if offset < 0 or length != needed:
        raise damaged(name)
    if size < offset + needed:
        label = quoted(PureWindowsPath(entries["location"]).as_posix())
        raise BuildError(f"{name} needs more data than {label} has, which is cut off.")
    return offset
