"""Harmless stand-ins for names in a checkpoint that are no layers.

A trainer leaves its own numbers and notes beside the network: a NumPy score, the path of a file,
types written by the `dill` library. None of them matters here, so that the names are known but lead
to nothing: the objects made under them are empty, and what they were made of is dropped.
"""

from __future__ import annotations

from typing import Any


class Ignored:
    """Stands for an object that is of no use here."""

    def __new__(cls, *arguments: Any, **named: Any) -> Ignored:
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        pass


def load_type(name: object) -> Any:
    """`dill` writes a builtin type as a call that looks it up by name: here, a plain container."""
    return {"set": set, "dict": dict, "list": list, "tuple": tuple}.get(str(name), Ignored)


STAND_INS: dict[str, Any] = {
    "__builtin__.set": set,
    "builtins.set": set,
    "builtins.dict": dict,
    "builtins.list": list,
    "builtins.tuple": tuple,
    "dill._dill._load_type": load_type,
    **dict.fromkeys(
        (
            "_codecs.encode",
            "datetime.datetime",
            "numpy.core.multiarray._reconstruct",
            "numpy.core.multiarray.scalar",
            "numpy._core.multiarray._reconstruct",
            "numpy._core.multiarray.scalar",
            "numpy.dtype",
            "numpy.ndarray",
            "pathlib.PosixPath",
            "pathlib.WindowsPath",
            "pathlib._local.PosixPath",
            "pathlib._local.WindowsPath",
        ),
        Ignored,
    ),
}
