"""Harmless placeholders for names in a checkpoint that are no layers.

A trainer leaves its own numbers and notes beside the network: a NumPy score, the path of a file,
its options, types written by the `dill` library. None of them matters here, so that the names are
known but lead to nothing: the objects made under them are empty, and what they were made of or
filled with is dropped.
"""

from __future__ import annotations

from typing import Any


class Ignored:
    """Stands for an object that is of no use here."""

    def __new__(cls, *arguments: Any, **named: Any) -> Ignored:
        return super().__new__(cls)

    def ignore(self, *arguments: Any) -> None:
        pass

    # All that an unpickler does to an object.
    __setstate__ = __setitem__ = append = extend = add = ignore


def load_type(name: object) -> Any:
    """`dill` writes a builtin type as a call that looks it up by name: here, a plain container."""
    types = {"set": set, "dict": dict, "list": list, "tuple": tuple}
    return types.get(name, Ignored) if isinstance(name, str) else Ignored


_IGNORED = {
    "_codecs": "encode",
    "argparse": "Namespace",
    "collections": "Counter defaultdict deque",
    "datetime": "date datetime time timedelta timezone",
    # `getattr` is how the methods are written that fusing leaves in a layer, `range` is in a `Sum`;
    # long, unicode, xrange are int, str, range in pickles of protocol 2.
    "builtins": (
        "bool bytearray bytes complex float frozenset getattr int long object range slice str "
        "type unicode xrange"
    ),
    # What the wrapper of PyTorch Hub keeps of its constructor.
    "models.experimental": "attempt_download attempt_load",
    "utils.downloads": "attempt_download",
    **dict.fromkeys(("numpy.core.multiarray", "numpy._core.multiarray"), "_reconstruct scalar"),
    **dict.fromkeys(("numpy.core.numeric", "numpy._core.numeric"), "_frombuffer"),
    "numpy": (
        "bool bool_ dtype float16 float32 float64 int16 int32 int64 int8 ndarray str_ "
        "uint16 uint32 uint64 uint8"
    ),
    **dict.fromkeys(
        ("pathlib", "pathlib._local"),
        "Path PosixPath PurePath PurePosixPath PureWindowsPath WindowsPath",
    ),
    "torch": "bfloat16 bool device dtype float16 float32 float64 int16 int32 int64 int8 uint8",
    "types": "SimpleNamespace",
}

PLACEHOLDERS: dict[str, Any] = {
    "builtins.set": set,
    "builtins.dict": dict,
    "builtins.list": list,
    "builtins.tuple": tuple,
    "dill._dill._load_type": load_type,
    **{f"{module}.{name}": Ignored for module, names in _IGNORED.items() for name in names.split()},
}
