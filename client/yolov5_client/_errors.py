"""The errors that the client raises:

YoloClientError
├── InvalidRequestError   the server refuses the image or a parameter; do not retry
├── UnavailableError      the server cannot be reached or is saturated; retry later
│   └── UnknownModelError the server has no endpoint for the network, or not yet
├── TimedOutError         no answer within the timeout
├── ImageTypeError        the argument for an image has a type that cannot be sent; also a TypeError
├── DeniedError           the credentials are missing or not accepted
├── ServerError           the server failed, or its answer breaks the contract
└── DataError             a data set for an evaluation cannot be used
"""


class YoloClientError(Exception):
    """Base class of all errors that this package raises on purpose.

    Example:
        >>> try:
        ...     Client("127.0.0.1:9").detect(b"an image")
        ... except YoloClientError as error:
        ...     print(type(error).__name__)
        UnavailableError
    """


class InvalidRequestError(YoloClientError):
    """The server refuses an image or a parameter. The message says which, and what is allowed.

    Example:
        >>> Client("127.0.0.1:8001").detect("photo.jpg", conf_thres=1.5)
        Traceback (most recent call last):
        yolov5_client._errors.InvalidRequestError: conf_thres is 1.5; allowed: ...
    """


class ImageTypeError(YoloClientError, TypeError):
    """An argument for an image has a type that cannot be sent. No request was made.

    Example:
        >>> Client().detect(3)
        Traceback (most recent call last):
        yolov5_client._errors.ImageTypeError: an image is a value of the type int; allowed: ...
    """


class UnavailableError(YoloClientError):
    """The server cannot be reached, is not ready, or is saturated. A later attempt may succeed.

    Example:
        >>> Client("127.0.0.1:9").detect(b"an image")
        Traceback (most recent call last):
        yolov5_client._errors.UnavailableError: ...
    """


class UnknownModelError(UnavailableError):
    """The server has no endpoint for the client's network, or has not loaded it yet.

    Example:
        >>> Client("127.0.0.1:8001", model="plates").detect("photo.jpg")
        Traceback (most recent call last):
        yolov5_client._errors.UnknownModelError: the server has no endpoint 'plates_ensemble', ...
    """


class TimedOutError(YoloClientError):
    """The server did not answer within the timeout.

    Example:
        >>> import socket
        >>> silent = socket.create_server(("127.0.0.1", 0))
        >>> port = silent.getsockname()[1]
        >>> Client(f"http://127.0.0.1:{port}", timeout=0.1).detect(b"an image")
        Traceback (most recent call last):
        yolov5_client._errors.TimedOutError: no answer within the timeout.
    """


class DeniedError(YoloClientError):
    """A gateway or proxy in front of the server does not accept the caller's credentials.

    Example:
        >>> Client("https://gateway.example").detect("photo.jpg")  # doctest: +SKIP
        Traceback (most recent call last):
        yolov5_client._errors.DeniedError: no API key in the header X-Api-Key, or one that is not
        known
    """


class ServerError(YoloClientError):
    """The server failed, or its answer breaks the contract.

    Example:
        >>> Client("http://127.0.0.1:8001").detect("photo.jpg")  # the port of gRPC
        Traceback (most recent call last):
        yolov5_client._errors.ServerError: the server at this address does not speak HTTP: ...
    """


class DataError(YoloClientError):
    """A data set, its class names or its labels cannot be used. The message is one sentence.

    Example:
        >>> read_names(Path("missing.yaml"))
        Traceback (most recent call last):
        yolov5_client._errors.DataError: missing.yaml cannot be read: No such file or directory.
    """
