"""The endpoint's wiring for a network of the embedded server, which takes pixels as they are.

On the way through Triton the smaller tensors save more time than anything else outside the network
does. Only the backends of `server/backends` know them, so that the repository's own wiring, which
runs everywhere, has the larger ones; this is what the launcher puts in its place.
"""

from __future__ import annotations

from tritonclient.grpc import model_config_pb2

from ._repository import NETWORK

_IMAGES, _PIXELS, _NMS = "images", "pixels", "nms"


def wired(
    ensemble: model_config_pb2.ModelConfig, network: model_config_pb2.ModelConfig
) -> model_config_pb2.ModelConfig:
    """The endpoint's configuration, with the smallest tensors that this network can do with.

    Args:
        ensemble: the repository's; it stays as it is.
        network: that it is made of.
    """
    found = model_config_pb2.ModelConfig()
    found.CopyFrom(ensemble)
    if {_PIXELS, _NMS} <= {tensor.name for tensor in network.input}:
        for step in found.ensemble_scheduling.step:
            if step.model_name == NETWORK:
                step.input_map[_NMS] = _NMS
                tensors = step.input_map
            else:
                tensors = step.output_map
            if _IMAGES in tensors:
                tensors[_PIXELS] = _PIXELS
                del tensors[_IMAGES]
    return found
