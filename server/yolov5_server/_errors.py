from __future__ import annotations

import re
from collections.abc import Mapping


class StartError(Exception):
    """The server cannot be started; the message is one sentence that says why, or what to do."""


class SettingError(StartError):
    """Settings cannot be used.

    Args:
        sentence: contains a label for each of them.
        labels: by the name of the setting, such as `http_port`: its variable of make, such as
            `HTTP_PORT`, or its flag.
    """

    def __init__(self, sentence: str, labels: Mapping[str, str]) -> None:
        super().__init__(sentence)
        self._labels = labels

    def with_labels(self, labels: Mapping[str, str]) -> str:
        """The sentence with other labels, such as the environment variables that were set."""
        sentence = str(self)
        for setting, label in self._labels.items():
            new = labels.get(setting, label)
            sentence = re.sub(rf"(?<![\w-]){label}(?![\w-])", new, sentence, count=1)
        return sentence
