"""What traces cost: `python -m yolov5_bench.trace_cost`, on a machine that does nothing else.

Servers without traces, with 1 % of the requests traced, and with all of them take turns under raw
HTTP. Their network only answers with stored rows, so that what Triton and the steps do is most of
the work. A second server without traces shows the noise.
"""

from __future__ import annotations

import argparse
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from statistics import median

from ._ceiling import Case, open_rig
from ._ceiling_report import HERE as THIS
from ._ceiling_report import Point
from ._checkout import HERE, Checkout

NOISE = "off, again"


@dataclass(frozen=True)
class _Traced(Checkout):
    """This checkout, whose server traces this share of the requests."""

    collector: str = ""
    ratio: float = 0.0

    @property
    def environment(self) -> dict[str, str]:
        traces = {"YOLOV5_TRACE": self.collector, "YOLOV5_TRACE_RATIO": str(self.ratio)}
        return {**super().environment, **traces}


class _Collector(BaseHTTPRequestHandler):
    """Takes spans, and forgets them."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Print nothing."""


@contextmanager
def _collector() -> Iterator[str]:
    """The address of a collector that runs until the end of the block."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Collector)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def measure(*, callers: int, rounds: int, seconds: float) -> dict[str, list[list[Point]]]:
    """Measure each server in each round: its points by its name, with that without traces.

    Returns:
        By the name of a server, for each round the point without traces and its own.
    """
    case = Case(callers=callers)
    with _collector() as address:
        checkouts: dict[str, Checkout] = {
            THIS: HERE,
            NOISE: HERE,
            "1 %": _Traced(HERE.root, address, 0.01),
            "all": _Traced(HERE.root, address, 1.0),
        }
        pairs: dict[str, list[list[Point]]] = {name: [] for name in checkouts if name != THIS}
        with open_rig(checkouts, [case], seconds=seconds, warm=1.0) as rig:
            for number in range(rounds):
                points = {point.tree: point for point in rig.measure(case, number)}
                for name, found in pairs.items():
                    found.append([points[THIS], points[name]])
    return pairs


def table(pairs: dict[str, list[list[Point]]]) -> str:
    """Ratios to the server without traces: the median of the rounds, and their range."""
    lines = ["| traced | images/s | CPU time of steps and Triton |", "|---|---|---|"]
    for name, rounds in pairs.items():
        rates = [own.rate / off.rate for off, own in rounds]
        cpu = [own.ours / off.ours for off, own in rounds]
        lines.append(f"| {name} | {_shown(rates)} | {_shown(cpu)} |")
    return "\n".join(lines)


def _shown(ratios: Sequence[float]) -> str:
    return f"{median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"


def main() -> int:
    parser = argparse.ArgumentParser(prog="yolov5_bench.trace_cost", description=__doc__)
    parser.add_argument("--callers", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=5.0, help="of one measurement")
    options = parser.parse_args()
    print(table(measure(callers=options.callers, rounds=options.rounds, seconds=options.seconds)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
