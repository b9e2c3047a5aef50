"""Check an endpoint before it is served, without a server and without an image library."""

from __future__ import annotations

from pathlib import Path

from endpoint_registry import read_endpoint, read_parameters
from parameters import ParameterError
from settings import SettingsError, read_endpoint_settings


def check_endpoint(folder: Path) -> None:
    """Check that the shared steps can serve this endpoint.

    Args:
        folder: of the endpoint; its network and `preprocess` are beside it.

    Raises:
        ValueError: they cannot; one sentence.
    """
    endpoint = read_endpoint(folder)
    try:
        read_endpoint_settings(
            read_parameters(folder.parent / "preprocess"),
            endpoint.parameters,
            endpoint.network.class_names,
            **endpoint.network.head,
        )
    except (SettingsError, ParameterError) as error:
        raise ValueError(f"{folder.name}/config.pbtxt: {error}") from None
