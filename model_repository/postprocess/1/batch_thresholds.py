"""The thresholds of a batch of images, on the device of the network's rows, and placements."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from thresholds import AGNOSTIC_NMS, COLUMNS, CONF_THRES, MULTI_LABEL, Thresholds
from torch import Tensor


@dataclass(frozen=True)
class BatchThresholds:
    """What is asked for each of B images.

    Attributes:
        by_image: the thresholds on the host, for what cannot be a tensor.
        placement: [B, 6] float32, rows as `Placement.as_row` makes them, on the host.
    """

    by_image: Sequence[Thresholds]
    placement: NDArray[np.float32]
    _columns: Tensor  # [B, 5 + C]: those of `nms` and `class_conf_thres`

    @classmethod
    def from_arrays(
        cls,
        nms: NDArray[np.float32],
        class_conf_thres: NDArray[np.float32],
        placement: NDArray[np.float32],
        device: torch.device | str = "cpu",
    ) -> BatchThresholds:
        """Bring the tensors `nms` [B, 5] and `class_conf_thres` [B, C] to a device, in one copy.

        Args:
            placement: [B, 6].

        Raises:
            ThresholdsError: as in `Thresholds.from_row`.
        """
        by_image = [*map(Thresholds.from_row, nms.tolist())]
        columns = torch.from_numpy(np.concatenate((nms, class_conf_thres), 1)).to(device)
        return cls(by_image, placement, columns)

    @property
    def conf_thres(self) -> Tensor:
        """[B] float32, the lowest of all classes."""
        return self._columns[:, CONF_THRES]

    @property
    def agnostic_nms(self) -> Tensor:
        """[B] bool."""
        return self._columns[:, AGNOSTIC_NMS] != 0

    @property
    def multi_label(self) -> Tensor:
        """[B] bool."""
        return self._columns[:, MULTI_LABEL] != 0

    @property
    def class_conf_thres(self) -> Tensor:
        """[B, C] float32: the conf_thres of each class, `NOT_REPORTED` for none."""
        return self._columns[:, COLUMNS:]

    def part(self, first: int, end: int) -> BatchThresholds:
        """Those of the images from `first` to before `end`."""
        part = slice(first, end)
        return BatchThresholds(self.by_image[part], self.placement[part], self._columns[part])
