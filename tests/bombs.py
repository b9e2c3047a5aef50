"""Small weights files that make a reader use hours or gigabytes."""

from __future__ import annotations

import json
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

_PROTO = b"\x80\x02"
_NESTED = b")" + b"2\x86" * 60  # a pair of a pair of ...: 2^60 empty tuples
_PRIME = 2**61 - 1  # integers are hashed modulo this prime


def _archive(path: Path, program: bytes) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("best/data.pkl", _PROTO + program + b".")
        archive.writestr("best/data/0", b"")


def _number(value: int) -> bytes:
    """The instruction for an integer of up to 255 bytes."""
    data = pickle.encode_long(value)
    return b"\x8a" + bytes([len(data)]) + data


def _named(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def _memory(count: int) -> bytes:
    """The storage of a tensor, which the file does not hold."""
    kind = _named("torch", "FloatStorage")
    text = b"X\x07\x00\x00\x00storage" + kind + b"X\x01\x00\x00\x000X\x03\x00\x00\x00cpu"
    return b"(" + text + _number(count) + b"tQ"


_ORDERED = _named("collections", "OrderedDict")
_REBUILD = _named("torch._utils", "_rebuild_tensor_v2")

PICKLES: dict[str, Callable[[], bytes]] = {
    "nested tuple as a key": lambda: b"}" + _NESTED + b"Ns",
    "nested tuple among keys": lambda: b"}(" + _NESTED + b"Nu",
    "nested tuple in a new dict": lambda: b"(" + _NESTED + b"Nd",
    "nested tuple in a set": lambda: b"\x80\x04\x8f(" + _NESTED + b"\x90",
    "nested tuple in a frozenset": lambda: b"\x80\x04(" + _NESTED + b"\x91",
    "nested tuple in a call": lambda: _ORDERED + b"(" + _NESTED + b"Nt\x85\x85R",
    "nested tuple in the network": lambda: b"}X\x05\x00\x00\x00model" + _NESTED + b"s",
    "colliding keys": lambda: (
        b"}(" + b"".join(_number(i * _PRIME) + b"N" for i in range(150_000)) + b"u"
    ),
    "shape of huge numbers": lambda: (
        _REBUILD + b"(" + _memory(0) + b"K\x00(" + _number(2**2039 - 1) * 25_000 + b"tK\x01\x85tR"
    ),
    "memory that is not there": lambda: (
        _REBUILD + b"(" + _memory(1 << 62) + b"K\x00K\x01\x85K\x01\x85tR"
    ),
    "millions of instructions": lambda: b")0" * 4_000_000 + b"N",
    "millions of lists": lambda: b"(" + b"]" * 8_000_000 + b"t",
    "lists in lists": lambda: b"]" * 1_000_000 + b"a" * 999_999,
    "tuples in tuples": lambda: b")" + b"\x85" * 1_000_000,
    "copies of copies": lambda: b"]q\x00" + b"(h\x00" * 200_000 + b"e" * 200_000,
    "text of absurd length": lambda: b"X\xff\xff\xff\x7f",
    "number of absurd length": lambda: b"\x8b\xff\xff\xff\x7f",
    "memo of absurd size": lambda: b"Nr\xff\xff\xff\x7f",
}


def checkpoint(path: Path, kind: str) -> Path:
    """A `.pt` of one of `PICKLES`."""
    _archive(path, PICKLES[kind]())
    return path


def zip_of_many(path: Path) -> Path:
    """A checkpoint with hundreds of thousands of empty members."""
    entry = struct.pack("<4s6H3I5H2I", b"PK\1\2", 20, 20, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0)
    directory = b"".join(entry + b"%08d" % index for index in range(400_000))
    total = len(directory)
    end64 = struct.pack("<4sQ2H2I4Q", b"PK\6\6", 44, 45, 45, 0, 0, 400_000, 400_000, total, 0)
    locator = struct.pack("<4sIQI", b"PK\6\7", 0, total, 1)
    end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, total, 0, 0)
    path.write_bytes(directory + end64 + locator + end)
    return path


# ---------------------------------------------------------------------------------------------


def _model(nodes: list[NodeProto], *constants: TensorProto) -> ModelProto:
    """A graph of `images` [1,3,640,640] whose output is `output`."""
    image = helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, 640, 640])
    graph = helper.make_graph(
        nodes, "bomb", [image], [helper.make_empty_tensor_value_info("output")], list(constants)
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _numbers(name: str, *values: int) -> TensorProto:
    return numpy_helper.from_array(np.array(values, np.int64), name)


def _loop() -> ModelProto:
    """A loop that adds one 2^62 times."""
    again = helper.make_node("Identity", ["on"], ["still"])
    more = helper.make_node("Add", ["before", "before"], ["after"])
    body = helper.make_graph(
        [again, more],
        "body",
        [
            helper.make_tensor_value_info("trip", TensorProto.INT64, []),
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("before", TensorProto.FLOAT, [1, 3, 640, 640]),
        ],
        [
            helper.make_tensor_value_info("still", TensorProto.BOOL, []),
            helper.make_tensor_value_info("after", TensorProto.FLOAT, [1, 3, 640, 640]),
        ],
    )
    trips = numpy_helper.from_array(np.array(2**62, np.int64), "trips")
    yes = numpy_helper.from_array(np.array(True), "yes")
    loop = helper.make_node("Loop", ["trips", "yes", "images"], ["output"], body=body)
    return _model([loop], trips, yes)


def _scan() -> ModelProto:
    """A scan over every row of a tall constant."""
    same = [helper.make_node("Identity", [a], [b]) for a, b in (("s", "t"), ("x", "y"))]
    state = [1, 3, 640, 640]
    body = helper.make_graph(
        same,
        "body",
        [
            helper.make_tensor_value_info("s", TensorProto.FLOAT, state),
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [1]),
        ],
        [
            helper.make_tensor_value_info("t", TensorProto.FLOAT, state),
            helper.make_tensor_value_info("y", TensorProto.FLOAT, [1]),
        ],
    )
    tall = helper.make_node("ConstantOfShape", ["shape"], ["tall"])
    scan = helper.make_node(
        "Scan", ["images", "tall"], ["output", "rest"], body=body, num_scan_inputs=1
    )
    return _model([tall, scan], _numbers("shape", 1 << 24, 1))


def _added(nodes: list[NodeProto], *constants: TensorProto) -> ModelProto:
    """The constant `big`, added to the image."""
    total = helper.make_node("ReduceSum", ["big"], ["sum"], keepdims=0)
    output = helper.make_node("Add", ["images", "sum"], ["output"])
    return _model([*nodes, total, output], *constants)


def _of_shape(*shape: int) -> ModelProto:
    return _added(
        [helper.make_node("ConstantOfShape", ["shape"], ["big"])], _numbers("shape", *shape)
    )


def _expanded() -> ModelProto:
    one = numpy_helper.from_array(np.ones(1, np.float32), "one")
    node = helper.make_node("Expand", ["one", "shape"], ["big"])
    return _added([node], one, _numbers("shape", 1 << 32))


def _tiled() -> ModelProto:
    one = numpy_helper.from_array(np.ones(1, np.float32), "one")
    node = helper.make_node("Tile", ["one", "shape"], ["big"])
    return _added([node], one, _numbers("shape", 1 << 32))


def _range() -> ModelProto:
    ends = [
        numpy_helper.from_array(np.array(v, np.float32), n)
        for n, v in (("start", 0), ("limit", 4e9), ("step", 1))
    ]
    return _added([helper.make_node("Range", ["start", "limit", "step"], ["big"])], *ends)


def _resized() -> ModelProto:
    one = numpy_helper.from_array(np.ones((1, 1, 1, 1), np.float32), "one")
    node = helper.make_node("Resize", ["one", "", "", "shape"], ["big"], mode="nearest")
    return _added([node], one, _numbers("shape", 1, 1, 1 << 16, 1 << 16))


def _padded() -> ModelProto:
    one = numpy_helper.from_array(np.ones((1, 1), np.float32), "one")
    node = helper.make_node("Pad", ["one", "pads"], ["big"])
    return _added([node], one, _numbers("pads", 0, 0, 1 << 16, 1 << 16))


def _outer() -> ModelProto:
    """A column plus a line."""
    line = numpy_helper.from_array(np.ones((1, 65536), np.float32), "line")
    column = numpy_helper.from_array(np.ones((65536, 1), np.float32), "column")
    return _added([helper.make_node("Add", ["line", "column"], ["big"])], line, column)


def _doubled() -> ModelProto:
    """A constant concatenated with itself, 32 times."""
    nodes = [
        helper.make_node("Concat", [name, name], ["big" if i == 31 else f"c{i}"], axis=0)
        for i, name in enumerate(["one", *(f"c{i}" for i in range(31))])
    ]
    return _added(nodes, numpy_helper.from_array(np.ones(1, np.float32), "one"))


def _hidden() -> ModelProto:
    """16 GB whose shape is computed in a way that shape inference does not follow."""
    two = numpy_helper.from_array(np.array([2], np.float32), "two")
    power = numpy_helper.from_array(np.array([32], np.float32), "power")
    nodes = [
        helper.make_node("Pow", ["two", "power"], ["number"]),
        helper.make_node("Cast", ["number"], ["shape"], to=TensorProto.INT64),
        helper.make_node("ConstantOfShape", ["shape"], ["big"]),
    ]
    return _added(nodes, two, power)


def _image_tiled() -> ModelProto:
    nodes = [helper.make_node("Tile", ["images", "repeats"], ["output"])]
    return _model(nodes, _numbers("repeats", 1, 1, 64, 64))


def _convolved() -> ModelProto:
    """Convolutions of a thousand by a thousand channels, repeated over the whole picture."""
    weights = np.full((512, 512, 1, 1), 0.001, np.float16)
    small = numpy_helper.from_array(weights, "half")
    widen = numpy_helper.from_array(np.full((512, 3, 1, 1), 0.1, np.float32), "widen")
    nodes = [
        helper.make_node("Cast", ["half"], ["weights"], to=TensorProto.FLOAT),
        helper.make_node("Conv", ["images", "widen"], ["x0"]),
    ]
    nodes += [helper.make_node("Conv", [f"x{i}", "weights"], [f"x{i + 1}"]) for i in range(2000)]
    nodes.append(helper.make_node("Identity", ["x2000"], ["output"]))
    return _model(nodes, small, widen)


def _nested() -> ModelProto:
    """Nested branches."""
    yes = numpy_helper.from_array(np.array(True), "yes")
    inner = helper.make_node("Identity", ["images"], ["v0"])
    for depth in range(16):
        outer = NodeProto(op_type="If", input=["yes"], output=[f"v{depth + 1}"])
        for name in ("else_branch", "then_branch"):
            branch = outer.attribute.add(name=name, type=AttributeProto.GRAPH).g
            branch.name = f"g{depth}"
            branch.node.append(inner)  # the only copy: `helper` makes three
            branch.output.add(name=f"v{depth}")
        inner = outer
    inner.output[0] = "output"
    return _model([inner], yes)


def _functions() -> ModelProto:
    """Functions that each call another one twice."""
    model = _model([helper.make_node("f30", ["images"], ["output"], domain="own")])
    opset = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    for i in range(31):
        call = ("Identity", "") if i == 0 else (f"f{i - 1}", "own")
        nodes = [
            helper.make_node(call[0], ["x"], ["y"], domain=call[1]),
            helper.make_node(call[0], ["y"], ["z"], domain=call[1]),
        ]
        model.functions.append(helper.make_function("own", f"f{i}", ["x"], ["z"], nodes, opset))
    model.opset_import.append(helper.make_opsetid("own", 1))
    return model


def _field(number: int, data: bytes) -> bytes:
    """A field of a protobuf message that holds bytes or another message."""

    def varint(value: int) -> bytes:
        out = b""
        while value > 127:
            out += bytes([value & 127 | 128])
            value >>= 7
        return out + bytes([value])

    return varint(number << 3 | 2) + varint(len(data)) + data


def _empty_messages() -> bytes:
    """Four million nodes of two bytes each."""
    return b"\x08\x08" + _field(7, _field(1, b"") * 4_000_000)


def _deep_messages() -> bytes:
    """A graph in an attribute of a node in a graph, 30,000 times."""
    data = b""
    for _ in range(10_000):
        data = _field(7, _field(1, _field(5, _field(6, data)))) if len(data) < 1 << 20 else data
    return b"\x08\x08" + data


MODELS: dict[str, Callable[[], ModelProto | bytes]] = {
    "loop of 2^62 trips": _loop,
    "scan of 2^24 lines": _scan,
    "16 GB constant": lambda: _of_shape(1 << 16, 1 << 16),
    "2 GB constant": lambda: _of_shape(1 << 29),
    "constant of overflowing shape": lambda: _of_shape(1 << 62, 1 << 62),
    "16 GB expanded": _expanded,
    "16 GB tiled": _tiled,
    "16 GB range": _range,
    "16 GB resized": _resized,
    "16 GB padded": _padded,
    "16 GB by broadcasting": _outer,
    "16 GB by doubling": _doubled,
    "16 GB of a hidden shape": _hidden,
    "20 GB made of the image": _image_tiled,
    "hours of convolutions": _convolved,
    "nested branches": _nested,
    "functions that double": _functions,
    "millions of empty nodes": _empty_messages,
    "messages within messages": _deep_messages,
}


def model(path: Path, kind: str) -> Path:
    """An `.onnx` of one of `MODELS`."""
    made = MODELS[kind]()
    path.write_bytes(made if isinstance(made, bytes) else made.SerializeToString())
    return path


def shared_external_data(path: Path) -> Path:
    """A thousand tensors that share the same two megabytes of external data."""
    data = path.with_name("weights.bin")
    data.write_bytes(bytes(2 << 20))
    tensors = []
    for index in range(1000):
        tensor = TensorProto(name=f"t{index}", data_type=TensorProto.FLOAT, dims=[512 << 10])
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=data.name)
        tensors.append(tensor)
    names = [tensor.name for tensor in tensors]
    nodes = [
        helper.make_node("Sum", names, ["big"]),
        helper.make_node("ReduceSum", ["big"], ["sum"], keepdims=0),
        helper.make_node("Add", ["images", "sum"], ["output"]),
    ]
    path.write_bytes(_model(nodes, *tensors).SerializeToString())
    return path


# ---------------------------------------------------------------------------------------------


def _safetensors(header: bytes, stated: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if stated is None else stated) + header


def _described(network: object, tensors: int = 0) -> bytes:
    entry = '"%d": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}'
    text = network if isinstance(network, str) else json.dumps({"names": [], "network": network})
    metadata = f'"__metadata__": {json.dumps({"yolov5": text})}'
    entries = ", ".join([metadata, *(entry % i for i in range(tensors))])
    return _safetensors(f"{{{entries}}}".encode())


def _repeated() -> bytes:
    """One tensor of a megabyte that is referred to a hundred thousand times."""
    layer = {
        "layer": "models.common.Conv",
        "values": {},
        "tensors": {"parameters": [], "buffers": ["w"] * 100_000, "values": []},
        "absent": [],
        "children": {},
    }
    text = json.dumps({"names": [], "network": layer})
    tensor = {"dtype": "F32", "shape": [1 << 18], "data_offsets": [0, 1 << 20]}
    header = json.dumps({"__metadata__": {"yolov5": text}, "w": tensor}).encode()
    return _safetensors(header) + bytes(1 << 20)


SAFETENSORS: dict[str, Callable[[], bytes]] = {
    "length that lies": lambda: _safetensors(b"{}", 1 << 62),
    "100 MB header": lambda: _safetensors(b'{"a":' + b" " * 99_000_000 + b"1}"),
    "header of a million tensors": lambda: _described({}, 1_000_000),
    "deep header": lambda: _safetensors(b'{"a":' * 500_000 + b"1" + b"}" * 500_000),
    "deep description": lambda: _described("[" * 1_000_000),
    "long description": lambda: _described('{"names": [' + "1," * 3_000_000 + "1]}"),
    "shape that overflows": lambda: _safetensors(
        b'{"a":{"dtype":"F32","shape":[4294967296,4294967296,4],"data_offsets":[0,0]}}'
    ),
    "one tensor again and again": _repeated,
}


def safetensors(path: Path, kind: str) -> Path:
    """A `.safetensors` of one of `SAFETENSORS`."""
    path.write_bytes(SAFETENSORS[kind]())
    return path
