"""Thin client of YOLOv5 networks on Triton: encoded images in, boxes out.

Example:
    >>> from yolov5_client import Client
    >>> with Client("127.0.0.1:8001") as client:
    ...     result = client.detect("photo.jpg", conf_thres=0.7)
    >>> for label, score, box in zip(result.labels, result.scores, result.boxes):
    ...     print(label, score.round(2), box.round())
    WBC 0.82 [194. 94. 398. 287.]
    Platelets 0.75 [195. 0. 244. 51.]
"""

from ._async_client import AsyncClient, AsyncImage
from ._client import Client
from ._connection import TLS
from ._detections import Detections
from ._errors import (
    DataError,
    DeniedError,
    ImageTypeError,
    InvalidRequestError,
    ServerError,
    TimedOutError,
    UnavailableError,
    UnknownModelError,
    YoloClientError,
)
from ._status import ServerStatus
from ._version import __version__
from ._wire import Image

__all__ = [
    "TLS",
    "AsyncClient",
    "AsyncImage",
    "Client",
    "DataError",
    "DeniedError",
    "Detections",
    "Image",
    "ImageTypeError",
    "InvalidRequestError",
    "ServerError",
    "ServerStatus",
    "TimedOutError",
    "UnavailableError",
    "UnknownModelError",
    "YoloClientError",
    "__version__",
]
