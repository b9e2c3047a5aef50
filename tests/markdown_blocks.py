"""The code blocks of a Markdown document, and whether an output is the one that it shows.

A block is fenced, with a language, or indented, which is shell. One of the language `text` right
after another is its output. `<!-- not run: REASON -->` before a block says why no test can run it.
A block whose first line is a comment that begins with a file's name, `// detect.cpp: ...`, is that
file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

_FENCE = re.compile(r"```(\w*)\s*")
_HEADING = re.compile(r"#+ (.+)")
_NOT_RUN = re.compile(r"<!-- not run: (.+) -->")
_FILE = re.compile(r"(?://|#) ([\w-]+\.\w+): ")
_PART = re.compile(r"(\.\.\.)|(\d+\.\d+)|(\s+)")
_NUMBER = r"(-?\d+(?:\.\d+)?(?:e[+-]?\d+)?)"


@dataclass(frozen=True, kw_only=True)
class Block:
    """One block of code.

    Attributes:
        line: of its first line of code, from 1.
        section: the heading that it stands under.
        output: what it prints, if the document shows it.
        not_run: why no test can run it.
    """

    document: str
    line: int
    section: str
    language: str
    code: str
    output: str | None = None
    not_run: str | None = None

    @property
    def file(self) -> str | None:
        match = _FILE.match(self.code)
        return match[1] if match else None


def read_blocks(path: Path, section: str | None = None) -> list[Block]:
    """The blocks of a document, or of the one section with that heading.

    Raises:
        ValueError: a fence is not closed, or there is no such section.
    """
    blocks: list[Block] = []
    for block, adjacent in _parse(path):
        if block.language == "text" and adjacent and blocks and blocks[-1].output is None:
            blocks[-1] = replace(blocks[-1], output=block.code)
        else:
            blocks.append(block)
    chosen = [block for block in blocks if section in (None, block.section)]
    if not chosen:
        raise ValueError(f"{path.name} has no code under the heading {section!r}")
    return chosen


def _parse(path: Path) -> Iterator[tuple[Block, bool]]:
    """Every block, and whether nothing stands between it and the one before."""
    lines = path.read_text().splitlines()
    section, not_run, adjacent, at = "", None, False, 0
    while at < len(lines):
        line = lines[at]
        fence = _FENCE.fullmatch(line)
        indented = line.startswith("    ") and (at == 0 or not lines[at - 1].strip())
        if not fence and not indented:
            if line.strip():
                adjacent = False
                heading, comment = _HEADING.fullmatch(line), _NOT_RUN.fullmatch(line)
                section = heading[1] if heading else section
                not_run = comment[1] if comment else None
            at += 1
            continue
        start = at + 1 if fence else at
        end = start
        if fence:
            while end < len(lines) and lines[end] != "```":
                end += 1
            if end == len(lines):
                raise ValueError(f"{path.name}:{at + 1}: the block has no end")
            code = lines[start:end]
            at = end + 1
        else:
            while end < len(lines) and (lines[end].startswith("    ") or not lines[end].strip()):
                end += 1
            code = [text[4:] for text in lines[start:end]]
            at = end
        block = Block(
            document=path.name,
            line=start + 1,
            section=section,
            language=fence[1] if fence else "sh",
            code="\n".join(code).rstrip() + "\n",
            not_run=not_run,
        )
        yield block, adjacent
        not_run, adjacent = None, True


def same_output(shown: str, printed: str) -> bool:
    """Is what was printed what the document shows?

    There, `...` stands for anything, white space for any other, and a number with decimals for one
    that differs by no more than one in its last place (of those after the second, by 0.01).
    """
    pattern, numbers, end = "", [], 0
    shown = shown.strip()
    for part in _PART.finditer(shown):
        pattern += re.escape(shown[end : part.start()])
        if part[2]:
            numbers.append(part[2])
        pattern += ".*?" if part[1] else _NUMBER if part[2] else r"\s+"
        end = part.end()
    match = re.fullmatch(pattern + re.escape(shown[end:]), printed.strip(), re.DOTALL)
    return match is not None and all(
        abs(float(want) - float(got)) <= 1.01 * 10 ** -min(2, len(want.partition(".")[2]))
        for want, got in zip(numbers, match.groups())
    )
