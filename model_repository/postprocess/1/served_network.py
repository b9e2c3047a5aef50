"""What `postprocess` has to know of the network whose rows it reads.

That its files fit each other is checked by `preprocess`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2


@dataclass(frozen=True, kw_only=True)
class ServedNetwork:
    """
    Attributes:
        labels: class names, index = class.
        best_class_only: a row holds the score and the index of the best class, in place of
            objectness and one score for each class.
    """

    labels: tuple[str, ...]
    best_class_only: bool

    @property
    def columns(self) -> int:
        """Values in a row."""
        return 6 if self.best_class_only else 5 + len(self.labels)


def read_served_network(folder: Path) -> ServedNetwork:
    """Read `labels.txt` (one name a line, line 0 = class 0) and `config.pbtxt`."""
    config = text_format.Parse(
        (folder / "config.pbtxt").read_text("utf-8"), model_config_pb2.ModelConfig()
    )
    return ServedNetwork(
        labels=tuple((folder / "labels.txt").read_text("utf-8").splitlines()),
        best_class_only=config.parameters["head"].string_value == "reduced",
    )
