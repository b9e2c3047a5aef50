"""The metrics of a model source, as Prometheus reads them."""

from __future__ import annotations

from .source import OUTCOMES, ModelSource


def source_metrics(source: ModelSource | None) -> str:
    """The lines for this source; none without a source."""
    if source is None:
        return ""
    lines = [
        "# HELP yolov5_source_checks_total Looks at the model source, by outcome.",
        "# TYPE yolov5_source_checks_total counter",
        *(
            f'yolov5_source_checks_total{{outcome="{outcome}"}} {source.checks[outcome]}'
            for outcome in OUTCOMES
        ),
        "# HELP yolov5_source_last_success_timestamp_seconds When what is installed was last what"
        " the model source holds; 0: never.",
        "# TYPE yolov5_source_last_success_timestamp_seconds gauge",
        f"yolov5_source_last_success_timestamp_seconds {source.last_success:.3f}",
    ]
    return "".join(f"{line}\n" for line in lines)
