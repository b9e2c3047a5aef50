"""Check an endpoint before it is served, without a server and without an image library."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from endpoint_registry import read_endpoint, read_parameters
from parameters import ParameterError
from settings import SettingsError, read_endpoint_settings, read_settings

_NOTHING: Mapping[str, str] = {}


def check_endpoint(folder: Path, replaced: Mapping[str, str] = _NOTHING) -> None:
    """Check that the shared steps can serve this endpoint.

    Args:
        folder: of the endpoint; its network and `preprocess` are beside it.
        replaced: settings in place of those of `preprocess`, by name.

    Raises:
        ValueError: they cannot; one sentence.
    """
    endpoint = read_endpoint(folder)
    try:
        read_endpoint_settings(
            {**read_parameters(folder.parent / "preprocess"), **replaced},
            endpoint.parameters,
            endpoint.network.class_names,
            **endpoint.network.head,
        )
    except (SettingsError, ParameterError) as error:
        raise ValueError(f"{folder.name}/config.pbtxt: {error}") from None


def check_settings(folder: Path, replaced: Mapping[str, str]) -> None:
    """Check the settings of `preprocess` for the network of an endpoint.

    The endpoint's own ones are left out.

    Args:
        folder, replaced: as in `check_endpoint`.

    Raises:
        ValueError: one cannot be used; one sentence that names it.
    """
    network = read_endpoint(folder).network
    given = {**read_parameters(folder.parent / "preprocess"), **replaced}
    read_settings(given, network.class_names, **network.head)
