"""The launcher's flags for networks from a bucket, an https address or a folder."""

from __future__ import annotations

import argparse
from pathlib import Path

from ._settings import Settings


def add_source_options(parser: argparse.ArgumentParser) -> None:
    """Add them; their names are those of fields of `Settings`."""
    default = Settings()
    parser.add_argument(
        "--model-source",
        default=default.model_source,
        metavar="URL",
        help="fetch the networks from s3://bucket/prefix, https://host/path or a folder",
    )
    parser.add_argument(
        "--model-source-poll",
        type=float,
        default=default.model_source_poll,
        metavar="SECONDS",
        help="between two looks at it; 0: only at the start and at SIGUSR1 (%(default)g)",
    )
    parser.add_argument(
        "--model-cache",
        type=Path,
        metavar="FOLDER",
        help="keep what was fetched there (default: a folder in the user's cache)",
    )
