"""The names of networks, endpoints and tensors, as the server publishes them."""

import re

NETWORK = "yolov5"  # the network that is asked if none is named
MODEL = "yolov5_ensemble"  # its endpoint

IMAGE = "image"  # BYTES [B, 1]

NUM_DETS = "num_dets"  # INT32 [B, 1]
DET_BOXES = "det_boxes"  # FP32 [B, K, 4]
DET_SCORES = "det_scores"  # FP32 [B, K]
DET_CLASSES = "det_classes"  # INT32 [B, K]
DET_LABELS = "det_labels"  # BYTES [B, K]
IMAGE_SIZE = "image_size"  # INT32 [B, 2]

OUTPUTS = (NUM_DETS, DET_BOXES, DET_SCORES, DET_CLASSES, DET_LABELS, IMAGE_SIZE)

_SUFFIX = "_ensemble"
NETWORK_PATTERN = "[a-z0-9][a-z0-9_-]{0,39}"
_NAME = re.compile(NETWORK_PATTERN, re.ASCII)
_STEPS = ("preprocess", "postprocess")


def endpoint_for(network: str) -> str:
    """Return the name of a network's endpoint: `plates` has `plates_ensemble`."""
    return network + _SUFFIX


def check_network(name: str, what: str = "model") -> str:
    """Return the name of a network, if a server can have one of that name.

    Args:
        what: the parameter that holds the name, for the message.

    Raises:
        ValueError: no network can have that name. The message is one sentence.
    """
    usable = isinstance(name, str) and _NAME.fullmatch(name)
    if not usable or name.endswith(_SUFFIX) or name in _STEPS:
        shown = ascii(name) if len(ascii(name)) <= 60 else f"{ascii(name)[:56]}..."
        raise ValueError(
            f"{what} is {shown}; allowed: up to 40 lower-case letters, digits, - and _, beginning"
            f" with a letter or digit, not ending in {_SUFFIX}, and not {' or '.join(_STEPS)}."
        )
    return name
