"""The `parameters` of preprocess/config.pbtxt and those of an endpoint, checked when read."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from cpu_count import available_cpus
from image_limits import ImageLimits
from parameters import PARAMETER_NAMES, Parameters, read_defaults

_BY_ENDPOINT = ("max_image_bytes", "max_image_pixels", "scaled_decoding")
_OWN = (
    *_BY_ENDPOINT,
    "threads",
    "max_queued_images",
    "max_queue_seconds",
    "max_in_flight_images",
)


class SettingsError(ValueError):
    """A setting is missing or out of range; the message names it."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings of `preprocess` for one endpoint.

    Attributes:
        weight: share of the cores against other endpoints.
        defaults: of the request parameters.
        limits: of one image.
        scaled_decoding: whether a JPEG much larger than the network's input is decoded in a
            smaller size.
        threads: images that are decoded at the same time.
        max_queued_images: images that may wait for admission.
        max_queue_seconds: how long a request may wait.
        max_in_flight_images: images that may be between admission and `postprocess`.
    """

    defaults: Parameters
    limits: ImageLimits
    scaled_decoding: bool
    threads: int
    max_queued_images: int
    max_queue_seconds: int
    max_in_flight_images: int
    weight: float = 1.0


def read_endpoint_settings(
    config: Mapping[str, str], own: Mapping[str, str], class_names: Sequence[str], **head: bool
) -> Settings:
    """Read the settings of one endpoint, which replace those of `preprocess`.

    Args:
        config: the `parameters` of `preprocess`.
        own: those of the endpoint: request parameters, limits of an image, and its weight.
        class_names, head: as in `read_settings`.

    Raises:
        SettingsError, ParameterError: one sentence that names the setting.
    """
    allowed = (*PARAMETER_NAMES, *_BY_ENDPOINT, "weight")
    if unknown := set(own) - set(allowed):
        raise SettingsError(f"setting '{min(unknown)}' is unknown; allowed: {', '.join(allowed)}")
    given = {name: value for name, value in own.items() if name != "weight"}
    settings = read_settings({**config, **given}, class_names, **head)
    most = read_image_limits(config)
    for name, found, limit in (
        ("max_image_bytes", settings.limits.bytes, most.bytes),
        ("max_image_pixels", settings.limits.pixels, most.pixels),
    ):
        if found > limit:
            raise SettingsError(
                f"setting '{name}' is '{found}'; allowed: at most {limit}, as in preprocess"
            )
    return replace(settings, weight=_weight(own.get("weight", "1")))


def read_settings(config: Mapping[str, str], class_names: Sequence[str], **head: bool) -> Settings:
    """Read the settings.

    Args:
        config: the `parameters` of the configuration, as text.
        class_names: of the model.
        head: `best_class_only` and `end_to_end` of the model, as in `read_defaults`.

    Raises:
        SettingsError, ParameterError: one sentence that names the setting.
    """
    unknown = set(config) - {*PARAMETER_NAMES, *_OWN}
    if unknown:
        raise SettingsError(f"setting '{min(unknown)}' is unknown")
    cores = available_cpus()
    given = {name: config[name] for name in PARAMETER_NAMES if name in config}
    return Settings(
        defaults=read_defaults(given, class_names, **head),
        limits=read_image_limits(config),
        scaled_decoding=_flag(config, "scaled_decoding"),
        threads=_whole_number(config, "threads", 0, 1024) or cores,
        max_queued_images=_whole_number(config, "max_queued_images", 1, 1 << 20),
        max_queue_seconds=_whole_number(config, "max_queue_seconds", 1, 3600),
        # Enough for those being decoded and those in the network, and two to keep both busy.
        max_in_flight_images=_whole_number(config, "max_in_flight_images", 0, 1 << 20)
        or 2 * cores + 2,
    )


def read_image_limits(config: Mapping[str, str]) -> ImageLimits:
    """The largest image that any endpoint accepts.

    Raises:
        SettingsError: a limit is missing or out of range.
    """
    return ImageLimits(
        bytes=_whole_number(config, "max_image_bytes", 1, 1 << 30),
        # OpenCV's own limit; that of each side is 2**20.
        pixels=_whole_number(config, "max_image_pixels", 1, 1 << 30),
    )


def _flag(config: Mapping[str, str], name: str) -> bool:
    text = config.get(name, "")
    if text not in ("true", "false"):
        raise SettingsError(f"setting '{name}' is '{text}'; allowed: true, false")
    return text == "true"


def _weight(text: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not 0.01 <= weight <= 100:
        raise SettingsError(f"setting 'weight' is '{text}'; allowed: a number from 0.01 to 100")
    return weight


def _whole_number(config: Mapping[str, str], name: str, low: int, high: int) -> int:
    text = config.get(name, "")
    if not text.isdecimal() or not low <= int(text) <= high:
        raise SettingsError(
            f"setting '{name}' is '{text}'; allowed: a whole number from {low} to {high}"
        )
    return int(text)
