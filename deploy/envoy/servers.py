"""The list of servers in the form in which Envoy reads it.

`python servers.py LIST FOLDER` reads lines of the form

    GROUP ADDRESS [HTTP_PORT GRPC_PORT HEALTH_PORT] [drain]

and writes `endpoints/*.json` in FOLDER, the folder of `envoy.yaml`. It needs Python and no package.
"""

from __future__ import annotations

import argparse
import ipaddress
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path("endpoints")  # in Envoy's folder
GROUPS = ("stable", "canary")
PROTOCOLS = ("http", "grpc")
_PORTS = (8000, 8001, 8003)  # HTTP, gRPC, health: the launcher's own
_DRAIN = "drain"
_FORM = "GROUP ADDRESS [HTTP_PORT GRPC_PORT HEALTH_PORT] [drain]"


@dataclass(frozen=True, kw_only=True)
class Server:
    """One line of the list.

    Attributes:
        group: one of `GROUPS`.
        address: numeric.
        draining: gets no new requests.
    """

    group: str
    address: str
    http_port: int
    grpc_port: int
    health_port: int
    draining: bool = False


def parse_servers(text: str) -> list[Server]:
    """Read the list; `#` begins a comment.

    Raises:
        ValueError: a line is not of the form, or there is no server of the group `stable`.
    """
    servers = []
    for number, line in enumerate(text.splitlines(), 1):
        if words := line.partition("#")[0].split():
            try:
                servers.append(_parse(words))
            except ValueError as error:
                raise ValueError(f"line {number}: {error}") from None
    addresses = [(one.address, one.http_port) for one in servers]
    if twice := {one for one in addresses if addresses.count(one) > 1}:
        raise ValueError("{} port {} is in the list twice.".format(*min(twice)))
    if not any(one.group == "stable" for one in servers):
        raise ValueError("the list has no server of the group 'stable'; allowed: one or more.")
    return servers


def _parse(words: Sequence[str]) -> Server:
    draining = len(words) > 1 and words[-1] == _DRAIN
    group, *rest = words[:-1] if draining else words
    if group not in GROUPS:
        raise ValueError(f"the group is {group!r}; allowed: {', '.join(GROUPS)}.")
    if len(rest) not in (1, 1 + len(_PORTS)):
        raise ValueError(f"{' '.join(words)!r} is not a server; allowed: {_FORM}.")
    try:
        address = str(ipaddress.ip_address(rest[0]))
    except ValueError:
        raise ValueError(f"{rest[0]!r} is not an address; allowed: a numeric one.") from None
    for port in rest[1:]:
        if not (port.isascii() and port.isdecimal() and 1 <= int(port) <= 65535):
            raise ValueError(f"the port is {port!r}; allowed: 1 to 65535.")
    http, grpc, health = map(int, rest[1:] or _PORTS)
    return Server(
        group=group,
        address=address,
        http_port=http,
        grpc_port=grpc,
        health_port=health,
        draining=draining,
    )


def make_endpoints(servers: Sequence[Server], group: str, protocol: str) -> dict[str, Any]:
    """One group of servers as Envoy's endpoint discovery expects it, for one protocol."""
    assignment = {
        "@type": "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
        "cluster_name": f"{group}-{protocol}",
        "endpoints": [
            {"lb_endpoints": [_endpoint(one, protocol) for one in servers if one.group == group]}
        ],
    }
    return {"resources": [assignment]}


def _endpoint(server: Server, protocol: str) -> dict[str, Any]:
    port = server.http_port if protocol == "http" else server.grpc_port
    address = {"socket_address": {"address": server.address, "port_value": port}}
    return {
        "endpoint": {
            "address": address,
            "health_check_config": {"port_value": server.health_port},
        },
        "health_status": "DRAINING" if server.draining else "UNKNOWN",
    }


def write_endpoints(servers: Sequence[Server], folder: Path) -> None:
    """Replace Envoy's files, each in one step: Envoy looks at a file when it was renamed.

    Raises:
        OSError: a file cannot be written.
    """
    (folder / FOLDER).mkdir(exist_ok=True)
    for group in GROUPS:
        for protocol in PROTOCOLS:
            path = folder / FOLDER / f"{group}-{protocol}.json"
            draft = path.with_suffix(".new")
            text = json.dumps(make_endpoints(servers, group, protocol), indent=1)
            draft.write_text(f"{text}\n", "utf-8")
            draft.replace(path)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the files, and return the exit status."""
    parser = argparse.ArgumentParser(
        prog="servers.py", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("list", type=Path, help="the list of servers")
    parser.add_argument("folder", type=Path, help="the folder of envoy.yaml")
    options = parser.parse_args(arguments)
    try:
        servers = parse_servers(options.list.read_text("utf-8"))
        write_endpoints(servers, options.folder)
    except OSError as error:
        print(f"error: {error.filename} cannot be used ({error.strerror}).", file=sys.stderr)
        return 1
    except ValueError as error:
        print(f"error: {options.list}: {error}", file=sys.stderr)
        return 1
    for group in GROUPS:
        print(f"{group}: {sum(one.group == group for one in servers)} servers")
    return 0


if __name__ == "__main__":
    sys.exit(main())
