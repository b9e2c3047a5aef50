"""Networks from a bucket, an https address or a folder: fetched, checked, kept and installed."""

from ._configs import check_configs
from ._errors import SourceError
from ._manifest import (
    MANIFEST_FILE,
    Manifest,
    SourceFile,
    SourceNetwork,
    check_network,
    object_name,
    parse_manifest,
)
from ._model_source import OUTCOMES, ModelSource

__all__ = [
    "MANIFEST_FILE",
    "OUTCOMES",
    "Manifest",
    "ModelSource",
    "SourceError",
    "SourceFile",
    "SourceNetwork",
    "check_configs",
    "check_network",
    "object_name",
    "parse_manifest",
]
