from __future__ import annotations

import numpy as np
import pytest
from decode import Decoder, ImageError
from image_limits import ImageLimits
from image_pipeline import ImagePipeline
from letterbox import letterbox
from network_spec import NetworkSpec
from support import PHOTO

from yolov5_build.photos import PhotoLoader

IMAGE = PHOTO.read_bytes()


def pipeline(
    seconds: list[tuple[float, float]] | None = None,
    *,
    mode: str = "square",
    scaled_decoding: bool = False,
    side: int = 640,
) -> ImagePipeline:
    network = NetworkSpec(
        height=side,
        width=side,
        letterbox=mode,
        stride=32,
        best_class_only=False,
        class_names=("a",),
    )
    decoder = Decoder(ImageLimits(bytes=1 << 20, pixels=1 << 20))
    times = [] if seconds is None else seconds
    return ImagePipeline(
        decoder,
        network,
        scaled_decoding=scaled_decoding,
        gpu=None,
        observe=lambda *spent: times.append((spent[0], spent[1])),
    )


def test_image_is_decoded_letterboxed_and_normalised_into_its_place_in_the_batch() -> None:
    images = pipeline()
    batch = images.new_batch(["images", "placement"], 2)
    placement = images.prepare(IMAGE, batch, 1)
    tensors, (same,) = batch.build([placement])
    wanted, wanted_placement = PhotoLoader(640, 640).load(PHOTO)
    assert [*tensors] == ["images"]
    np.testing.assert_array_equal(tensors["images"][1], wanted)
    assert placement == same == wanted_placement


def test_only_the_tensors_that_are_asked_for_are_made() -> None:
    images = pipeline()
    for asked in (["pixels"], ["images"], ["images", "pixels"]):
        tensors, _ = images.new_batch([*asked, "nms"], 1).build([])
        assert [*tensors] == asked


def test_rect_batch_is_as_large_as_its_largest_picture() -> None:
    images = pipeline(mode="rect")
    batch = images.new_batch(["pixels"], 1)
    tensors, _ = batch.build([images.prepare(IMAGE, batch, 0)])
    assert tensors["pixels"].shape == (1, 3, 480, 640)


@pytest.mark.parametrize("scaled_decoding", [False, True])
def test_large_jpeg_is_decoded_smaller_only_where_the_settings_say_so(
    scaled_decoding: bool,
) -> None:
    images = pipeline(scaled_decoding=scaled_decoding, side=320)
    batch = images.new_batch(["pixels"], 1)
    placement = images.prepare(IMAGE, batch, 0)
    whole = images._decoder.decode(IMAGE)
    canvas, wanted = letterbox(whole, 320, 320)
    assert placement == wanted
    tensors, _ = batch.build([placement])
    same = (tensors["pixels"][0] == canvas[..., ::-1].transpose(2, 0, 1)).all()
    assert same != scaled_decoding


def test_times_of_both_stages_are_observed_once_for_each_image() -> None:
    seconds: list[tuple[float, float]] = []
    images = pipeline(seconds)
    batch = images.new_batch(["images"], 1)
    images.prepare(IMAGE, batch, 0)
    with pytest.raises(ImageError):
        images.prepare(b"no image", batch, 0)
    ((decode, rest),) = seconds
    assert 0 < decode < 60 and 0 < rest < 60
