"""The network on a CPU, by number of threads: in full and, if it has one, in a prefiltered variant.

The prefiltered variant answers requests that bring pixels and a confidence, see `prefilter`. It is
a file beside the weights, which `make model` writes and the configuration names as `prefiltered`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from config_check import check_config
from executor import Run
from io_binding import bind_outputs
from onnxruntime import InferenceSession
from prefilter import ROWS, check_prefiltered, without_own_inputs
from session import configured_thread_counts, open_session

# Key of a prefiltered variant's metadata: the hash of the weights that it was made from.
_FULL_KEY = "full_sha256"


@dataclass(frozen=True, kw_only=True)
class Variants:
    """A network's variants by number of threads, run on one image each if the network batches.

    Attributes:
        full: the network, with all rows.
        prefiltered: its prefiltered variant; empty if it has none.
    """

    full: Mapping[int, Run]
    prefiltered: Mapping[int, Run]


def open_variants(
    config: Mapping[str, Any], folder: Path, cores: int, *, warn: Callable[[str], None]
) -> Variants:
    """Load a network's variants and check them against the configuration.

    Args:
        config: the model's configuration, as Triton passes it to a backend.
        folder: of the served version.
        cores: number of cores of this instance.
        warn: writes a warning to the log.

    Raises:
        ConfigError: a file is missing, cannot be read, or does not fit the configuration.
    """
    weights = weights_path(config, folder)
    counts = configured_thread_counts(config, cores)
    full = {}
    for threads in counts:
        session = open_session(config, weights, kind="CPU", device=0, threads=threads)
        check(config, session)
        full[threads] = runner(config, session)
    return Variants(full=full, prefiltered=_open_prefiltered(config, weights, counts, warn))


def check(config: Mapping[str, Any], session: InferenceSession) -> None:
    """Check that the configuration fits the network.

    Raises:
        ConfigError: it does not.
    """
    outputs = session.get_outputs()
    check_config(without_own_inputs(config, outputs), session.get_inputs(), outputs)


def runner(config: Mapping[str, Any], session: InferenceSession) -> Run:
    """The session as a `Run`, with the outputs that the configuration names."""
    names = [tensor["name"] for tensor in config["output"]]
    one_by_one = bind_outputs(session, names) if config["max_batch_size"] > 0 else None
    return one_by_one or partial(_run, session, names)


def weights_path(config: Mapping[str, Any], folder: Path) -> Path:
    """File of the weights in the folder of a version."""
    return folder / (config.get("default_model_filename") or "model.onnx")


def _open_prefiltered(
    config: Mapping[str, Any],
    weights: Path,
    counts: Sequence[int],
    warn: Callable[[str], None],
) -> dict[int, Run]:
    name = config.get("parameters", {}).get("prefiltered", {}).get("string_value")
    runs: dict[int, Run] = {}
    for threads in counts if name else ():
        path = weights.with_name(name)
        session = open_session(config, path, kind="CPU", device=0, threads=threads)
        check_prefiltered(config, session.get_inputs(), session.get_outputs())
        if not runs and not _belongs_to(session, weights):
            warn(
                f"{name} was not made from this {weights.name}, which runs in its place;"
                " `make model` writes both."
            )
            return {}
        columns = next(t["dims"][-1] for t in config["output"] if t["name"] == ROWS)
        runs[threads] = partial(_run_prefiltered, session, int(columns))
    return runs


def _run_prefiltered(
    session: InferenceSession, columns: int, inputs: Mapping[str, Any]
) -> dict[str, Any]:
    (rows,) = session.run([ROWS], inputs)
    if not rows.size:
        # For the best class of no rows ONNX Runtime answers with a column for each class.
        rows = rows.reshape(1, 0, columns)
    return {ROWS: rows}


def _belongs_to(session: InferenceSession, weights: Path) -> bool:
    made_from = session.get_modelmeta().custom_metadata_map.get(_FULL_KEY)
    return bool(made_from == hashlib.sha256(weights.read_bytes()).hexdigest())


def _run(
    session: InferenceSession, names: Sequence[str], inputs: Mapping[str, Any]
) -> dict[str, Any]:
    return dict(zip(names, session.run(names, inputs)))
