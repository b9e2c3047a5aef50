from __future__ import annotations


class SourceError(Exception):
    """The source cannot be read, or holds what cannot be served; the message is one sentence.

    Attributes:
        is_temporary: another attempt may succeed: the source may be back.
        is_refused: the source was read, and what it holds is refused.
    """

    def __init__(
        self, sentence: str, *, is_temporary: bool = False, is_refused: bool = False
    ) -> None:
        super().__init__(printable(sentence))
        self.is_temporary = is_temporary
        self.is_refused = is_refused


def printable(text: str) -> str:
    """The text without what would control a terminal: somebody else may have written it."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def refused(sentence: str) -> SourceError:
    """The error for what the source holds."""
    return SourceError(sentence, is_refused=True)
