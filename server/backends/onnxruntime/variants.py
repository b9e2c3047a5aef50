"""The network's two files: which one to run, with how many threads, and whether they fit.

`served.onnx`, the prefiltered variant, runs on a CPU as in Triton's C++ backend, and `model.onnx`,
the network in full, on a GPU; `prefilter` says what they take.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from config_check import check_config
from executor import Run
from io_binding import bind_outputs
from onnxruntime import InferenceSession
from prefilter import config_of_full
from session import configured_thread_counts, open_session

# Key of a prefiltered variant's metadata: the hash of the network in full that it was made from.
_FULL_KEY = "full_sha256"


def open_runs(
    config: Mapping[str, Any], folder: Path, cores: int, *, warn: Callable[[str], None]
) -> dict[int, Run]:
    """Load the network for the CPU, and check it against the configuration.

    Args:
        config: the model's configuration, as Triton passes it to a backend.
        folder: of the served version.
        cores: number of cores of this instance.
        warn: writes a warning to the log.

    Returns:
        By number of threads the network, for one image if it batches.

    Raises:
        ConfigError: the file is missing, cannot be read, or does not fit the configuration.
    """
    weights = weights_path(config, folder)
    runs: dict[int, Run] = {}
    for threads in configured_thread_counts(config, cores):
        session = open_session(config, weights, kind="CPU", device=0, threads=threads)
        inputs, outputs = session.get_inputs(), session.get_outputs()
        check_config(config, inputs, outputs)
        if not runs and not _belongs_to(session, full := full_path(config, folder)):
            warn(
                f"{weights.name} was not made from this {full.name}, and is what runs;"
                " `make model` writes both."
            )
        runs[threads] = runner(config, session)
    return runs


def check_full(config: Mapping[str, Any], session: InferenceSession) -> None:
    """Check that the network in full fits the configuration of its prefiltered variant.

    Raises:
        ConfigError: it does not.
    """
    outputs = session.get_outputs()
    check_config(config_of_full(config, outputs), session.get_inputs(), outputs)


def runner(config: Mapping[str, Any], session: InferenceSession) -> Run:
    """The session as a `Run`, with the outputs that the configuration names."""
    names = [tensor["name"] for tensor in config["output"]]
    one_by_one = bind_outputs(session, names) if config["max_batch_size"] > 0 else None
    return one_by_one or partial(_run, session, names)


def weights_path(config: Mapping[str, Any], folder: Path) -> Path:
    """File of the weights in the folder of a version."""
    return folder / (config.get("default_model_filename") or "model.onnx")


def full_path(config: Mapping[str, Any], folder: Path) -> Path:
    """File of the network in full; the same one if the configuration names no other."""
    name = config.get("parameters", {}).get("full", {}).get("string_value")
    return folder / name if name else weights_path(config, folder)


def _belongs_to(session: InferenceSession, full: Path) -> bool:
    made_from = session.get_modelmeta().custom_metadata_map.get(_FULL_KEY)
    if made_from is None or not full.is_file():
        return True
    return bool(made_from == hashlib.sha256(full.read_bytes()).hexdigest())


def _run(
    session: InferenceSession, names: Sequence[str], inputs: Mapping[str, Any]
) -> dict[str, Any]:
    return dict(zip(names, session.run(names, inputs)))
