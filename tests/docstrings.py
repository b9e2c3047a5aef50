"""The examples in the docstrings of the public client, and whether they print what they show."""

from __future__ import annotations

import ast
import doctest
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from support import ROOT

import yolov5_client
from yolov5_client import evaluation

_FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
_NAMES = {
    **{name: getattr(yolov5_client, name) for name in yolov5_client.__all__},
    **{name: getattr(evaluation, name) for name in evaluation.__all__},
    "np": np,
    "Path": Path,
}


@dataclass(frozen=True)
class Docstring:
    """A docstring with an example.

    Attributes:
        place: the file's name, and the line where the docstring begins.
    """

    place: str
    text: str

    @property
    def needs_server(self) -> bool:
        return "127.0.0.1:8" in self.text


def docstrings() -> Iterator[Docstring]:
    """Every string of the client that stands by itself and has an example in it."""
    for file in sorted((ROOT / "client" / "yolov5_client").glob("*.py")):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
                text = node.value.value
                if isinstance(text, str) and ">>> " in text:
                    yield Docstring(f"{file.name}:{node.lineno}", text)


def failures(docstring: Docstring, http: str = "", grpc: str = "") -> str:
    """Run the examples in the working directory; what they print otherwise than shown.

    Args:
        http, grpc: where the test's server listens, in place of 127.0.0.1:8000 and 8001.
    """
    text = docstring.text
    if docstring.needs_server:
        text = text.replace("http://127.0.0.1:8000", http).replace("127.0.0.1:8001", grpc)
    test = doctest.DocTestParser().get_doctest(text, dict(_NAMES), docstring.place, None, 0)
    report: list[str] = []
    doctest.DocTestRunner(verbose=False, optionflags=_FLAGS).run(test, out=report.append)
    return "".join(report)
