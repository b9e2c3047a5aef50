"""Remove networks, and go back to earlier versions; nothing here imports PyTorch or ONNX."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from yolov5_client.stdio import prepare_stdio

from . import _contract as contract
from ._errors import BuildError, report_failure
from ._kept import roll_back
from ._networks import check_name, endpoint_name, installed_networks
from ._options import BEFORE, install_options
from ._version import locked, staged_folder


def manage(options: argparse.Namespace) -> int:
    """Run the command with `--remove` or `--rollback`; return its exit status."""
    prepare_stdio()
    try:
        flag = "--remove" if options.remove else "--rollback"
        if given := install_options(options):
            raise BuildError(f"{flag} installs nothing, so it cannot be with {', '.join(given)}.")
        check_installed(options.repository, options.name)
        if options.remove:
            remove_network(options.repository, options.name)
            print(
                f"Removed {options.name} and {endpoint_name(options.name)}. A server that runs on"
                " this repository lets go of them within seconds."
            )
        else:
            version = roll_back(options.repository, options.name, _number(options.rollback))
            further = options.name != contract.MODEL
            print(
                f"Back at version {version}{f' of {options.name}' if further else ''}. A server"
                " that runs on this repository takes it over within seconds."
            )
    except (BuildError, OSError) as error:
        return report_failure(error)
    except KeyboardInterrupt:
        print("error: interrupted.", file=sys.stderr)
        return 130
    return 0


def _number(text: str) -> int | None:
    """The number of a version as on the command line, None for the one before."""
    if text == BEFORE:
        return None
    if not (text.isascii() and text.isdecimal()):
        raise BuildError(f"--rollback is {text[:60]!r}; allowed: the number of a kept version.")
    return int(text)


def check_installed(repository: Path, name: str) -> None:
    """Check that there is a network of this name.

    Raises:
        BuildError: there is none; the sentence lists those that are.
    """
    check_name(name)
    names = installed_networks(repository)
    if name not in names:
        raise BuildError(
            f"there is no network {name!r} in {repository.name}; installed:"
            f" {', '.join(names) or 'none'}."
        )


def remove_network(repository: Path, name: str) -> None:
    """Take a further network and its endpoint away.

    The endpoint goes first: a running server must not find one without its network.

    Raises:
        BuildError: it is `yolov5`, or the repository cannot be written to.
    """
    if name == contract.MODEL:
        further = [one for one in installed_networks(repository) if one != name]
        raise BuildError(
            f"{name} is part of the project and cannot be removed; allowed:"
            f" {', '.join(further) or 'further networks, of which there are none'}."
        )
    with staged_folder(repository, name) as staging, locked(repository):
        for folder in (endpoint_name(name), name):
            if (repository / folder).exists():
                (repository / folder).rename(staging / folder)
