"""The defaults of a request's parameters, for tests without a server."""

from __future__ import annotations

from parameters import Parameters

DEFAULTS = Parameters(
    conf_thres=0.25,
    iou_thres=0.45,
    max_det=300,
    classes=frozenset(),
    agnostic_nms=False,
    multi_label=False,
    class_conf_thres={},
)
