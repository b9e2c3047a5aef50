"""Reader of untrusted YAML, with limits on memory and time."""

from __future__ import annotations

from typing import Any

import yaml

# The names of 10,000 classes stay below the limits; a file at them is read in about a second.
MAX_BYTES = 512 << 10
_MAX_NODES = 30_000
_MAX_DEPTH = 20
_MAX_NUMBER = 100  # characters


class BoundedLoader(yaml.SafeLoader):
    """`SafeLoader` with limits on nesting, on numbers, and on values after alias expansion.

    An alias costs nothing to load, but every repetition costs when the value is written out or
    merged. Repetitions are therefore counted: at most `_MAX_NODES` values and `MAX_BYTES`
    characters.

    Raises:
        yaml.YAMLError: a limit is exceeded, or the text is not YAML.
    """

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._depth = self._nodes = self._characters = 0
        self._sizes: dict[str, tuple[int, int]] = {}  # nodes and characters under each anchor

    def compose_node(self, parent: Any, index: Any) -> Any:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent):
            # An unknown anchor is still being read: the value would contain itself.
            size = self._sizes.get(str(event.anchor), (_MAX_NODES + 1, 0))
            self._count(*size)
            return super().compose_node(parent, index)
        before = self._nodes, self._characters
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise yaml.YAMLError("nested too deeply")
        self._count(1, len(getattr(event, "value", "")))
        node = super().compose_node(parent, index)
        self._depth -= 1
        if event.anchor is not None:
            self._sizes[event.anchor] = (
                self._nodes - before[0],
                self._characters - before[1],
            )
        return node

    def compose_scalar_node(self, anchor: Any) -> Any:
        node = super().compose_scalar_node(anchor)
        kind = node.tag.rpartition(":")[2]
        if kind in ("int", "float") and len(node.value) > _MAX_NUMBER:
            raise yaml.YAMLError("a number with too many digits")
        return node

    def _count(self, nodes: int, characters: int) -> None:
        self._nodes += nodes
        self._characters += characters
        if self._nodes > _MAX_NODES or self._characters > MAX_BYTES:
            raise yaml.YAMLError("too many values")


def load(text: str) -> Any:
    """Parse the document in `text` as `yaml.safe_load` does.

    Raises:
        ValueError: the text is not YAML, or exceeds a limit.
    """
    try:
        return yaml.load(text, BoundedLoader)
    except Exception as error:  # PyYAML raises many kinds, for example for an invalid date
        raise ValueError("not YAML") from error
