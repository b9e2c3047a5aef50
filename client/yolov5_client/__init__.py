"""Thin client of the Triton ensemble `yolov5_ensemble`: encoded images out, boxes back.

from yolov5_client import Client

with Client("127.0.0.1:8001") as client:
    result = client.detect("photo.jpg", conf_thres=0.4)
    print(result.boxes, result.labels)
"""

from ._client import Client, Image, ServerStatus
from ._detections import Detections
from ._errors import (
    DataError,
    InvalidRequestError,
    ServerError,
    TimedOutError,
    UnavailableError,
    YoloClientError,
)

__all__ = [
    "Client",
    "DataError",
    "Detections",
    "Image",
    "InvalidRequestError",
    "ServerError",
    "ServerStatus",
    "TimedOutError",
    "UnavailableError",
    "YoloClientError",
]
