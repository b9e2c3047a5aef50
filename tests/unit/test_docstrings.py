"""Everything that the client exports shows an example, and its output is the one that is shown."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path

import pytest
from docstrings import Docstring, docstrings, failures

import yolov5_client
from yolov5_client import AsyncClient, Client, Detections, evaluation

EXAMPLES = [one for one in docstrings() if not one.needs_server]
TYPES = {"AsyncImage", "Image"}  # no objects with a docstring of their own


def public() -> Iterator[tuple[str, object]]:
    for package in (yolov5_client, evaluation):
        for name in package.__all__:
            value = getattr(package, name)
            if name not in TYPES and (inspect.isclass(value) or inspect.isfunction(value)):
                yield name, value
    for kind in (AsyncClient, Client, Detections):
        for name, value in vars(kind).items():
            if not name.startswith("_") and name != "close" and callable(getattr(kind, name)):
                yield f"{kind.__name__}.{name}", value


@pytest.mark.parametrize("value", [pytest.param(value, id=name) for name, value in public()])
def test_public_name_shows_an_example(value: object) -> None:
    assert ">>> " in (inspect.getdoc(value) or "")


@pytest.mark.parametrize("docstring", EXAMPLES, ids=[one.place for one in EXAMPLES])
def test_example_prints_what_it_shows(
    docstring: Docstring, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert failures(docstring) == ""
