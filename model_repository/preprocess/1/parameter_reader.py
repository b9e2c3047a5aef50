"""Read the parameters of a request into rows of the tensors `nms` and `class_conf_thres`.

Most requests have none, or the same ones as others: what was read is remembered.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from parameters import Parameters, parse_parameters, read_json

_REMEMBERED = 256  # requests
_LONGEST = 1024  # characters of one that is remembered


class ParameterRows(NamedTuple):
    """What `Parameters.as_rows` returns, to be shared and not written to.

    Attributes:
        nms: float32 [1, 5].
        class_conf_thres: float32 [1, C].
    """

    nms: NDArray[np.float32]
    class_conf_thres: NDArray[np.float32]

    def repeat(self, count: int) -> ParameterRows:
        """The same for this many images."""
        if count == 1:
            return self
        return ParameterRows(*(row.repeat(count, axis=0) for row in self))


class ParameterReader:
    """Reads the parameters of the requests to one endpoint. Not thread-safe.

    Args:
        class_names, defaults, head: as in `parse_parameters`.
    """

    def __init__(self, class_names: Sequence[str], defaults: Parameters, **head: bool) -> None:
        self._class_names = class_names
        self._defaults = defaults
        self._head = head
        self._recall = lru_cache(_REMEMBERED)(self._read)

    def read(self, text: str) -> ParameterRows:
        """Read the JSON object in which Triton hands over the parameters of a request, or nothing.

        Raises:
            ParameterError: as for `read_json` and `parse_parameters`.
        """
        return self._recall(text) if len(text) <= _LONGEST else self._read(text)

    def _read(self, text: str) -> ParameterRows:
        parameters = parse_parameters(
            read_json(text or "{}"), self._class_names, self._defaults, **self._head
        )
        rows = parameters.as_rows(len(self._class_names))
        return ParameterRows(*(np.array([row], np.float32) for row in rows))
