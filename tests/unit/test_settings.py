from __future__ import annotations

import pytest
from cpu_count import available_cpus
from image_limits import ImageLimits
from parameters import ParameterError
from settings import SettingsError, read_endpoint_settings, read_settings

SETTINGS = {
    "conf_thres": "0.25",
    "iou_thres": "0.45",
    "max_det": "300",
    "agnostic_nms": "false",
    "multi_label": "false",
    "max_image_bytes": "1000",
    "max_image_pixels": "2000",
    "threads": "3",
    "max_queued_images": "7",
    "max_queue_seconds": "9",
    "max_in_flight_images": "5",
    "scaled_decoding": "true",
}


def test_settings_are_read() -> None:
    settings = read_settings({**SETTINGS, "conf_thres": "0.3", "classes": "bus"}, ("car", "bus"))
    assert settings.limits == ImageLimits(bytes=1000, pixels=2000)
    assert settings.threads == 3
    assert settings.max_queued_images == 7
    assert settings.max_queue_seconds == 9
    assert settings.max_in_flight_images == 5
    assert settings.scaled_decoding is True
    assert settings.defaults.conf_thres == 0.3
    assert settings.defaults.classes == {1}
    assert settings.defaults.iou_thres == 0.45
    automatic = read_settings({**SETTINGS, "threads": "0", "max_in_flight_images": "0"}, ("car",))
    assert automatic.threads >= 1
    assert automatic.max_in_flight_images == 2 * automatic.threads + 2


def test_multi_label_is_refused_as_default_of_a_reduced_head() -> None:
    given = {**SETTINGS, "multi_label": "true"}
    assert read_settings(given, ("car",)).defaults.multi_label
    with pytest.raises(ParameterError, match="only the best class of each box"):
        read_settings(given, ("car",), best_class_only=True)


def test_agnostic_nms_is_refused_as_default_of_an_end_to_end_head() -> None:
    given = {**SETTINGS, "agnostic_nms": "true"}
    assert read_settings(given, ("car",), best_class_only=True).defaults.agnostic_nms
    with pytest.raises(ParameterError, match="suppresses overlapping boxes itself"):
        read_settings(given, ("car",), best_class_only=True, end_to_end=True)


def test_missing_default_is_refused() -> None:
    given = {name: value for name, value in SETTINGS.items() if name != "iou_thres"}
    with pytest.raises(ParameterError, match="iou_thres has no default"):
        read_settings(given, ("car",))


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"max_image_bytes": "0"}, "setting 'max_image_bytes' is '0'; allowed: a whole number"),
        ({"max_image_pixels": "1e6"}, "setting 'max_image_pixels' is '1e6'"),
        ({"threads": "-1"}, "setting 'threads' is '-1'"),
        ({"max_queued_images": "0"}, "setting 'max_queued_images' is '0'"),
        ({"max_queue_seconds": "0.5"}, "setting 'max_queue_seconds' is '0.5'"),
        ({"scaled_decoding": "yes"}, "setting 'scaled_decoding' is 'yes'; allowed: true, false"),
        ({"conf_threshold": "0.5"}, "setting 'conf_threshold' is unknown"),
        ({"max_det": "0"}, "max_det is '0'; allowed: a whole number from 1 to 1000"),
    ],
)
def test_setting_out_of_range_is_refused(change: dict[str, str], sentence: str) -> None:
    with pytest.raises((SettingsError, ParameterError)) as caught:
        read_settings({**SETTINGS, **change}, ("car",))
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    "name, least, most",
    [
        ("threads", 0, 1024),
        ("max_queued_images", 1, 1 << 20),
        ("max_queue_seconds", 1, 3600),
        ("max_in_flight_images", 0, 1 << 20),
        ("max_image_bytes", 1, 1 << 30),
        ("max_image_pixels", 1, 1 << 30),
    ],
)
def test_bounds_of_a_setting(name: str, least: int, most: int) -> None:
    for value in (least, most):
        read_settings({**SETTINGS, name: str(value)}, ("car",))
    allowed = f"allowed: a whole number from {least} to {most}"
    for value in (least - 1, most + 1):
        with pytest.raises(SettingsError, match=allowed):
            read_settings({**SETTINGS, name: str(value)}, ("car",))


def test_least_settings_are_taken_as_they_are() -> None:
    settings = read_settings({**SETTINGS, "threads": "1", "max_in_flight_images": "1"}, ("car",))
    assert (settings.threads, settings.max_in_flight_images) == (1, 1)
    assert not read_settings({**SETTINGS, "scaled_decoding": "false"}, ("car",)).scaled_decoding


def test_threads_follow_the_processors_unless_set() -> None:
    settings = read_settings({**SETTINGS, "threads": "0"}, ("car",))
    assert settings.threads == available_cpus()


@pytest.mark.parametrize("name", SETTINGS)
def test_missing_setting_is_refused(name: str) -> None:
    given = {key: value for key, value in SETTINGS.items() if key != name}
    with pytest.raises((SettingsError, ParameterError), match=name):
        read_settings(given, ("car",))


def test_endpoint_has_its_own_defaults_and_lower_limits() -> None:
    own = {"conf_thres": "0.6", "max_image_pixels": "1500", "weight": "2.5", "classes": "bus"}
    settings = read_endpoint_settings(SETTINGS, own, ("car", "bus"))
    assert settings.defaults.conf_thres == 0.6
    assert settings.defaults.classes == {1}
    assert settings.limits == ImageLimits(bytes=1000, pixels=1500)
    assert settings.weight == 2.5
    assert settings.threads == 3
    assert read_endpoint_settings(SETTINGS, {}, ("car",)) == read_settings(SETTINGS, ("car",))


@pytest.mark.parametrize(
    "own, sentence",
    [
        ({"max_image_pixels": "2001"}, "'max_image_pixels' is '2001'; allowed: at most 2000"),
        ({"max_image_bytes": "1001"}, "'max_image_bytes' is '1001'; allowed: at most 1000"),
        ({"threads": "2"}, "setting 'threads' is unknown; allowed: conf_thres, "),
        ({"weight": "0"}, "setting 'weight' is '0'; allowed: a number from 0.01 to 100"),
        ({"weight": "nan"}, "setting 'weight' is 'nan'"),
        ({"weight": "heavy"}, "setting 'weight' is 'heavy'"),
        ({"iou_thres": "2"}, "iou_thres is '2'; allowed: a number from 0 to 1"),
        ({"classes": "tram"}, "tram"),
    ],
)
def test_endpoint_setting_out_of_range_is_refused(own: dict[str, str], sentence: str) -> None:
    with pytest.raises((SettingsError, ParameterError)) as caught:
        read_endpoint_settings(SETTINGS, own, ("car", "bus"))
    assert sentence in str(caught.value)
