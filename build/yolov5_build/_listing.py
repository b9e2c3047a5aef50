"""What is installed: all versions of all networks, as their files describe them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from . import _contract as contract
from ._networks import printable
from ._record import Record, read_record
from ._version import kept_versions, version_folder

_PROVENANCE = re.compile(r"^# From (.+), sha256 ", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class Version:
    """A version of a network. What its files do not tell is None.

    Attributes:
        number: of the version.
        kept: whether it is an earlier one, and not the one that a server serves.
        classes: class names.
        size: height and width of the input in pixels; with letterbox `rect` the largest.
        letterbox: one of `LETTERBOX_MODES`.
        precision: one of `PRECISIONS`, or `plan` if it is a TensorRT plan.
        bf16: whether a CPU that has BF16 computes in it.
        file: name of the file of weights that it was made of.
        record: of its installation; versions from before there were records have none.
        fault: one sentence if a file is missing or damaged.
    """

    number: int | None
    kept: bool
    classes: tuple[str, ...] | None = None
    size: tuple[int, int] | None = None
    letterbox: str | None = None
    precision: str | None = None
    bf16: bool = False
    file: str | None = None
    record: Record | None = None
    fault: str | None = None


def read_versions(network: Path) -> list[Version]:
    """The installed version of a network, then the kept ones, newest first."""
    kept = reversed(kept_versions(network))
    return [_describe(network, False), *(_describe(folder, True) for folder in kept)]


def _describe(folder: Path, kept: bool) -> Version:
    version = version_folder(folder)
    record = read_record(version) if version else None
    facts: dict[str, Any] = {"fault": None}
    try:
        facts |= _read_config(folder)
        facts["classes"] = tuple(_labels(folder))
    except (OSError, UnicodeDecodeError, text_format.ParseError, ValueError) as error:
        file = Path(getattr(error, "filename", None) or contract.CONFIG_FILE).name
        reason = getattr(error, "strerror", None) or "it is not valid"
        facts["fault"] = f"{file} cannot be read: {reason}."
    if version is None or not any(version.glob("model.*")):
        facts["fault"] = "it has no weights; `make model` installs them."
    if record:
        facts["file"] = printable(record.file)
    return Version(number=int(version.name) if version else None, kept=kept, record=record, **facts)


def _labels(folder: Path) -> Iterator[str]:
    for line in (folder / contract.LABELS_FILE).read_text("utf-8").splitlines():
        yield printable(line)


def _read_config(folder: Path) -> dict[str, Any]:
    """Size, letterbox, precision, and the file that the network was made of.

    Raises:
        OSError, UnicodeDecodeError, ParseError, ValueError: the file is missing or damaged.
    """
    text = (folder / contract.CONFIG_FILE).read_text("utf-8")
    config = text_format.Parse(text, model_config_pb2.ModelConfig())
    parameters = {key: value.string_value for key, value in config.parameters.items()}
    if contract.IMGSZ_KEY in parameters:
        height, width = map(int, parameters[contract.IMGSZ_KEY].split())
    else:
        (image,) = config.input[:1]
        _, height, width = image.dims
    plan = config.platform == "tensorrt_plan"
    precision = parameters.get(contract.PRECISION_KEY, contract.FP32)
    file = _PROVENANCE.search(text)
    return {
        "file": printable(file[1]) if file else None,
        "size": (height, width),
        "letterbox": printable(parameters.get(contract.LETTERBOX_KEY, contract.SQUARE)),
        "precision": "plan" if plan else printable(precision),
        "bf16": not plan and (folder / contract.BF16_CONFIG_FILE).is_file(),
    }
