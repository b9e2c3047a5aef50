"""From an encoded image to its place in the batch: decode, letterbox, normalise."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING

from decode import Decoder, full_size
from network_spec import NetworkSpec
from placement import Placement
from tracing import NOT_TRACED, RequestTrace

if TYPE_CHECKING:
    from batch_builder import BatchBuilder


class ImagePipeline:
    """Prepares images for the network, in several threads at the same time.

    Args:
        decoder: with the limits of an image.
        network: determines the size and letterbox of the input.
        scaled_decoding: whether a JPEG may be decoded smaller.
        gpu: number of the GPU that the network runs on; None on the CPU.
        observe: called after each image with the seconds that decoding took, and the seconds that
            letterboxing and normalising took.
    """

    def __init__(
        self,
        decoder: Decoder,
        network: NetworkSpec,
        *,
        scaled_decoding: bool,
        gpu: int | None,
        observe: Callable[[float, float], None],
    ) -> None:
        self._decoder = decoder
        # These import OpenCV, which must not happen before a decoder has set its pixel limit.
        from batch_builder import BatchBuilder
        from letterbox import letterbox, reduction
        from normalise import PlaneSplitter, make_normaliser

        height, width, mode = network.height, network.width, network.letterbox
        self._letterbox = partial(
            letterbox,
            height=height,
            width=width,
            mode=mode,
            stride=network.stride,
            whole_padding=network.whole_padding,
        )
        reduce = partial(reduction, height=height, width=width, mode=mode)
        self._reduction = reduce if scaled_decoding else full_size
        self._normalisers = {"images": make_normaliser(gpu), "pixels": PlaneSplitter()}
        self._builder = BatchBuilder
        self._size = None if mode == "rect" else (height, width)
        self._observe = observe

    def new_batch(self, tensors: Collection[str], count: int) -> BatchBuilder:
        """Begin a batch of `count` images.

        Args:
            tensors: names of the tensors to make, of `images` and `pixels`; others are ignored.
        """
        normalisers = {name: n for name, n in self._normalisers.items() if name in tensors}
        return self._builder(normalisers, count, self._size)

    def prepare(
        self, element: bytes, batch: BatchBuilder, index: int, trace: RequestTrace = NOT_TRACED
    ) -> Placement:
        """Decode one element of the input and add it to the batch.

        Args:
            trace: of the request.

        Raises:
            ImageError: not an image of an allowed format, damaged, or over a limit.
        """
        started = monotonic()
        picture, size = self._decoder.decode_scaled(element, self._reduction)
        decoded = monotonic()
        canvas, placement = self._letterbox(picture, size=size)
        batch.add(index, canvas)
        ended = monotonic()
        self._observe(decoded - started, ended - decoded)
        trace.record("decode", started, decoded, image=index + 1, bytes=len(element))
        trace.record("letterbox", decoded, ended, image=index + 1)
        return placement
