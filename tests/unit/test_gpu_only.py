"""The list of what only a GPU can reach names functions that exist, and all of the backends'."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import ROOT

_ROW = re.compile(r"^\| `([\w/.]+\.py)` \| `([\w.]+)` \| .+ \|$", re.MULTILINE)
_GPU = re.compile(r"\bcuda\b|\bis_cuda\b|dlpack|\bCUDA\b")
_DOCSTRING = re.compile(r'"""[\s\S]*?"""')
_TESTED = {"providers"}  # only reads a configuration


def listed() -> set[tuple[str, str]]:
    text = (ROOT / "docs" / "validation.md").read_text()
    section = text.partition("### What only a GPU can reach")[2].partition("\n#")[0]
    return set(_ROW.findall(section))


def definitions(path: Path) -> Iterator[tuple[str, str]]:
    """Qualified names of a file's classes and functions, and the source of each function."""
    source = path.read_text()
    for node in ast.parse(source).body:
        inner = node.body if isinstance(node, ast.ClassDef) else []
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
            yield node.name, "" if inner else ast.get_source_segment(source, node) or ""
        for method in inner:
            if isinstance(method, ast.FunctionDef):
                segment = ast.get_source_segment(source, method) or ""
                yield f"{getattr(node, 'name', '')}.{method.name}", segment


@pytest.mark.parametrize("path, name", sorted(listed()))
def test_listed_function_exists(path: str, name: str) -> None:
    assert name in dict(definitions(ROOT / path))


def test_every_function_of_the_backends_that_names_cuda_is_listed() -> None:
    names = {name for _, name in listed()}
    found = set()
    for path in sorted((ROOT / "server" / "backends").rglob("*.py")):
        for name, segment in definitions(path):
            if _GPU.search(_DOCSTRING.sub("", segment)):
                found.add(name)
    assert len(found) >= 8
    assert found - names - _TESTED == set()
