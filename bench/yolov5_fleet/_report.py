"""The reports as Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from ._measure import Comparison
from ._parameters import Parameters
from ._scenarios import Result

WITHIN = 0.15  # by which a prediction may differ from what was measured
_FEW = 0.005  # shares of refused requests below this count as none


def parameter_table(parameters: Parameters) -> str:
    """What was measured of one server."""
    work = parameters.work
    rows = [
        *parameters.about.items(),
        ("cores of the server", f"{parameters.cores}"),
        ("Triton and `preprocess`, ms of CPU for an image", _ms(work.prepare)),
        ("the network beside others, ms on one core", _ms(work.network)),
        ("the network alone, ms on all cores", _ms(work.network_alone)),
        ("`postprocess`, ms of CPU", _ms(work.finish)),
        ("a refusal, ms of CPU", _ms(work.refuse)),
        ("load generator, ms of CPU", _ms(parameters.generator)),
        ("Envoy, ms of CPU", _ms(parameters.balancer)),
        ("work of an image, 1 % to 99 %", _spread(parameters.spread)),
        ("start to ready, s", f"{parameters.start_seconds:.1f}"),
        ("so a server does, images/s", f"{parameters.capacity:.1f}"),
        ("images that may wait, and for how long", _queue(parameters)),
        ("images in flight", f"{parameters.limits.max_in_flight_images}"),
    ]
    return _table(("", ""), rows)


def comparison_table(comparisons: Sequence[Comparison]) -> str:
    """Foretold and measured, case by case."""
    head = ("servers", "load", "images/s", "p50 ms", "p99 ms", "p99 ratio", "shed", "shed ratio")
    rows = []
    for one in comparisons:
        found, real = one.predicted, one.measured
        rows.append(
            (
                f"{one.case.servers}",
                one.case.name,
                f"{found.rate:.1f} / {real.rate:.1f}",
                f"{_ms(found.p50, 0)} / {_ms(real.p50, 0)}",
                f"{_ms(found.p99, 0)} / {_ms(real.p99, 0)}",
                f"{found.p99 / real.p99:.2f}",
                f"{found.shed:.1%} / {real.shed:.1%}",
                f"{_shed_ratio(one):.2f}",
            )
        )
    return _table(head, rows)


def verdict(comparisons: Sequence[Comparison]) -> tuple[int, int]:
    """How many ratios are within 15 %, and how many there are."""
    ratios = [one.predicted.p99 / one.measured.p99 for one in comparisons]
    ratios += [_shed_ratio(one) for one in comparisons]
    return sum(abs(ratio - 1) <= WITHIN for ratio in ratios), len(ratios)


def _shed_ratio(one: Comparison) -> float:
    """1 if hardly any request was refused, neither in the simulation nor in reality."""
    if max(one.predicted.shed, one.measured.shed) < _FEW:
        return 1.0
    return one.predicted.shed / one.measured.shed if one.measured.shed else float("inf")


def scenario_table(results: Sequence[Result]) -> str:
    """What came out of each scenario."""
    head = (
        "scenario",
        "images",
        "ready servers",
        "p50 ms",
        "p99 ms",
        "p99 of the worst minute, ms",
        "refused",
        "lost",
        "last failure after s",
        "server hours",
    )
    rows = [
        (
            one.name,
            f"{one.images:,}",
            f"{one.least} to {one.most}",
            _ms(one.p50, 0),
            _ms(one.p99, 0),
            _ms(one.worst, 0),
            f"{one.shed:.3%}",
            f"{one.lost:.4%}",
            f"{one.calm:.0f}",
            f"{one.pod_hours:.1f}",
        )
        for one in results
    ]
    return _table(head, rows)


def _ms(seconds: float, digits: int = 2) -> str:
    return f"{1000 * seconds:.{digits}f}"


def _spread(spread: Sequence[float]) -> str:
    return f"{spread[1]:.2f} to {spread[-2]:.2f} of the mean"


def _queue(parameters: Parameters) -> str:
    limits = parameters.limits
    return f"{limits.max_queued_images}, {limits.max_queue_seconds:g} s"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
