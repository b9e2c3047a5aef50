"""Harmless placeholders for names in a checkpoint that are not layers.

A trainer stores its own data beside the network: a NumPy score, the path of a file, its options,
types written by the `dill` library. None of them is needed here. The unpickler therefore accepts
their names but maps them to an empty class, which drops its arguments and state.
"""

from __future__ import annotations

from typing import Any


class Ignored:
    """An empty object in place of one that is not needed."""

    def __new__(cls, *arguments: Any, **named: Any) -> Ignored:
        return super().__new__(cls)

    def ignore(self, *arguments: Any) -> None:
        pass

    # All operations that an unpickler applies to an object.
    __setstate__ = __setitem__ = append = extend = add = ignore


def load_type(name: object) -> Any:
    """The container of this name, else `Ignored`; `dill` writes builtin types as such calls."""
    types = {"set": set, "dict": dict, "list": list, "tuple": tuple}
    return types.get(name, Ignored) if isinstance(name, str) else Ignored


_IGNORED = {
    "_codecs": "encode",
    "argparse": "Namespace",
    "collections": "Counter defaultdict deque",
    "contextlib": "nullcontext",
    "datetime": "date datetime time timedelta timezone",
    # Fusing leaves methods in a layer, which are pickled as `getattr`; a `Sum` holds a `range`. In
    # protocol 2, int, str and range are called long, unicode and xrange.
    "builtins": (
        "bool bytearray bytes complex float frozenset getattr int long object range slice str "
        "type unicode xrange"
    ),
    # Attributes that the wrapper of PyTorch Hub keeps from its constructor.
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
    "torch": (
        "Tensor _TorchCompileInductorWrapper bfloat16 bool device dtype float16 float32 float64 "
        "int16 int32 int64 int8 uint8"
    ),
    # Of `torch.compile`.
    "torch._dynamo.convert_frame": (
        "CatchErrorsWrapper ConvertFrame ConvertFrameAssert ConvertFrameBox"
    ),
    "torch._dynamo.eval_frame": "OptimizeContext",
    "torch._dynamo.hooks": "Hooks",
    "torch._dynamo.repro.after_dynamo": "WrapBackendDebug",
    "torch.nn.modules.loss": "BCEWithLogitsLoss",
    "types": "SimpleNamespace",
    "typing": "Any",
}

PLACEHOLDERS: dict[str, Any] = {
    "builtins.set": set,
    "builtins.dict": dict,
    "builtins.list": list,
    "builtins.tuple": tuple,
    "dill._dill._load_type": load_type,
    **{f"{module}.{name}": Ignored for module, names in _IGNORED.items() for name in names.split()},
}

# What the `ultralytics` package keeps of a training, such as options and the loss, is defined
# beside its layers, which are in `ultralytics.nn`. Its first releases had options of `omegaconf`.
_MODULES = (
    "omegaconf.",
    *(f"ultralytics.{part}." for part in ("cfg", "data", "engine", "hub", "utils", "yolo")),
)


def placeholder(name: str) -> type[Ignored] | None:
    """The placeholder of a name that is in no list, because its module has no layers; else None."""
    return Ignored if name.startswith(_MODULES) else None
