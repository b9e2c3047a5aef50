"""What can go wrong, as one tree:

YoloClientError
├── InvalidRequestError   the server refuses this image or parameter; the same again will fail again
├── UnavailableError      no server there, or a saturated one; later it may work
├── TimedOutError         no answer within the deadline
├── ImageTypeError        what was given as an image is nothing that can be sent; a TypeError, too
├── DeniedError           the credentials are missing or not accepted
├── ServerError           a fault in the server, or an answer that is not one
└── DataError             a data set to evaluate with is not what it should be
"""


class YoloClientError(Exception):
    """Base of all errors that this package raises on purpose."""


class InvalidRequestError(YoloClientError):
    """The server refuses an image or a parameter; the message says which and what is allowed."""


class ImageTypeError(YoloClientError, TypeError):
    """What was given as an image is of a type that cannot be sent; nothing was."""


class UnavailableError(YoloClientError):
    """The server cannot be reached, is not ready, or is saturated; trying again may help."""


class TimedOutError(YoloClientError):
    """No answer within the timeout."""


class DeniedError(YoloClientError):
    """What stands before the server does not accept the caller: no API key, or a wrong one."""


class ServerError(YoloClientError):
    """The server failed, or its answer does not follow the contract."""


class DataError(YoloClientError):
    """A data set, its names or its labels cannot be used; the message is one sentence."""
