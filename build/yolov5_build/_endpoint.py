"""The endpoint of a network: the ensemble that connects the network with the steps around it.

Its folder is written once. Later installations change only its batch limit, since an operator adds
defaults of this endpoint to it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from string import Template

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from . import _contract as contract
from ._errors import BuildError
from ._networks import endpoint_name, slot_input, used_slots
from ._staging import staging_folder
from ._version import staging_prefix

# `preprocess` has an input for each slot, 64. A network that is replaced in a running server has
# two of them for a while.
MOST_NETWORKS = 48
_SLOTS = range(1, 64)  # 0 is that of `yolov5`

_TEMPLATE = Path(__file__).with_name("endpoint.pbtxt")
_BATCH_LINE = re.compile(r"(?m)^max_batch_size: (\d+)$")


def _map(kind: str, tensor: str) -> str:
    return f'      {kind}_map {{ key: "{tensor}" value: "{tensor}" }}\n'


# The lines that pass on the network's input, from preprocess and to the network.
_WIRING = (
    _map("output", contract.PIXELS),
    _map("input", contract.PIXELS) + _map("input", contract.NMS),
)
# The same in earlier versions, which also wrote the files below.
_OLD_WIRING = (_map("output", contract.INPUT), _map("input", contract.INPUT))
_OLD_CONFIGS = ("embedded.pbtxt", "embedded-bf16.pbtxt")


def endpoint_text(name: str, *, slot: int, max_batch_size: int) -> str:
    """The configuration of an endpoint.

    Args:
        name: of the network.
        slot: tells the steps which network a request is for; no two endpoints have the same.
        max_batch_size: at most that of the network.
    """
    values = {
        "network": name,
        "endpoint": endpoint_name(name),
        "slot": slot_input(slot),
        "max_batch_size": max_batch_size,
        "PIXELS": contract.PIXELS,
        "NMS": contract.NMS,
        "OUTPUT": contract.OUTPUT,
    }
    text = Template(_TEMPLATE.read_text("utf-8")).substitute(values)
    text_format.Parse(text, model_config_pb2.ModelConfig())
    return text


def free_slot(repository: Path) -> int:
    """The lowest slot that no endpoint has.

    Raises:
        BuildError: there are as many networks as a server takes, or an endpoint's configuration
            cannot be read.
    """
    used = used_slots(repository)
    free = [slot for slot in _SLOTS if slot not in used]
    if len(used | {0}) >= MOST_NETWORKS or not free:
        raise BuildError(
            f"{repository.name} holds {MOST_NETWORKS} networks, the most that a server takes; `make"
            " model NAME=... ARGS=--remove` takes one away."
        )
    return free[0]


def new_slot(repository: Path, name: str) -> int | None:
    """The slot for a network's endpoint, None if it has an endpoint already.

    The endpoint of `yolov5` is part of the project, and is never written.

    Raises:
        BuildError: as `free_slot`.
    """
    if name == contract.MODEL or (repository / endpoint_name(name)).exists():
        return None
    return free_slot(repository)


@contextmanager
def endpoint_for(repository: Path, name: str, max_batch_size: int) -> Iterator[None]:
    """Provide the endpoint of a network, which is exchanged in the block.

    If it has none, a new one appears after the block: a running server must find the network
    complete.

    Args:
        name: of the network.
        max_batch_size: of the new network.

    Raises:
        BuildError: there are as many networks as a server takes. The block is not run.
    """
    slot = new_slot(repository, name)
    if slot is None:
        with batch_limit(repository, max_batch_size, name):
            yield
        follow_network(repository, name)
        return
    with staging_folder(repository.parent, staging_prefix(name)) as staging:
        folder = staging / "endpoint"
        (folder / "1").mkdir(parents=True)  # Triton requires a version
        (folder / "1" / ".gitkeep").touch()  # and git a file in it
        text = endpoint_text(name, slot=slot, max_batch_size=max_batch_size)
        (folder / contract.CONFIG_FILE).write_text(text, "utf-8")
        yield
        folder.rename(repository / endpoint_name(name))


def follow_network(repository: Path, name: str) -> None:
    """Let an endpoint that is there already pass on the tensors that its network takes.

    Networks installed by an earlier version of the project take `images` of 0..1 alone, and one may
    be replaced or brought back. What an operator has added to the endpoint stays.
    """
    network, endpoint = repository / name, repository / endpoint_name(name)
    config = endpoint / contract.CONFIG_FILE
    if not config.is_file():
        return
    takes_pixels = f'"{contract.PIXELS}"' in (network / contract.CONFIG_FILE).read_text("utf-8")
    before, after = (_OLD_WIRING, _WIRING) if takes_pixels else (_WIRING, _OLD_WIRING)
    text = changed = config.read_text("utf-8")
    for old, new in zip(before, after):
        changed = changed.replace(old, new)
    if changed != text:
        _replace(config, changed)
    for old_config in _OLD_CONFIGS:
        (endpoint / "configs" / old_config).unlink(missing_ok=True)


@contextmanager
def batch_limit(repository: Path, new: int, name: str = contract.MODEL) -> Iterator[None]:
    """Set the batch limit of the endpoint to that of the network, which is exchanged in the block.

    Triton refuses an endpoint with a larger limit than its network's. Until the network is
    exchanged, the limit is therefore the smaller one of the old and the new network's. All
    configurations of the ensemble are changed, whichever the server will choose. A smaller limit
    that an operator has set stays as it is.
    """
    ensemble = repository / endpoint_name(name)
    # A link to another of them would become a file if it were written itself.
    configs = {
        config.resolve()
        for config in (ensemble / contract.CONFIG_FILE, *ensemble.glob("configs/*.pbtxt"))
    }
    limits = {config: limit for config in configs if (limit := read_limit(config))}
    before = read_limit(repository / name / contract.CONFIG_FILE)
    following = [config for config, now in limits.items() if now > new or now == before]
    _write_limit(following, min(new, before or new))
    yield
    _write_limit(following, new)


def read_limit(config: Path) -> int | None:
    """The `max_batch_size` of a configuration, None if there is none."""
    found = _BATCH_LINE.search(config.read_text("utf-8")) if config.is_file() else None
    return int(found[1]) if found else None


def _write_limit(configs: Iterable[Path], limit: int) -> None:
    for config in configs:
        text = config.read_text("utf-8")
        changed = _BATCH_LINE.sub(f"max_batch_size: {limit}", text)
        if changed != text:
            _replace(config, changed)


def _replace(config: Path, text: str) -> None:
    new = config.with_name(f".{config.name}.new")
    new.write_text(text, "utf-8")
    new.replace(config)
