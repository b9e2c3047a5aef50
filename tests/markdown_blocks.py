"""The code blocks of a Markdown document, its links, and whether an output is the one it shows.

A block is fenced, with a language, or indented, which is shell. A block of the language `text`
right after another block is its output. `<!-- not run: REASON -->` before a block says why no test
can run it. A block whose first line is a comment that begins with a file's name,
`// detect.cpp: ...`, is that file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

# The documents whose code `tests/server/test_docs.py` runs.
DOCUMENTS = ("README.md", "docs/quickstart.md", "docs/api.md", "docs/client.md")

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
        line: number of its first line of code, from 1.
        section: the heading above it.
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
    """Every block, and whether it directly follows another one."""
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
    """Whether a program printed what the document shows.

    In the document `...` matches anything, and white space any other white space. A number with
    decimals matches one that differs by at most one in its last place (by 0.01 if it has more than
    two decimals).
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


_LINK = re.compile(r"\]\((<[^>]*>|[^)\s]+)(?: \"[^\"]*\")?\)")
_CODE = re.compile(r"(`+).*?\1")
_NOT_IN_ANCHOR = re.compile(r"[^\w\- ]")


def read_links(path: Path) -> list[tuple[int, str]]:
    """The target of every link and picture outside of code, with its line number from 1."""
    return [
        (number, target.strip("<>"))
        for number, line in _prose(path)
        for target in _LINK.findall(_CODE.sub("", line))
    ]


def read_anchors(path: Path) -> set[str]:
    """The anchors that GitHub gives the document's headings: `## A `b`` becomes `a-b`."""
    anchors: set[str] = set()
    for _, line in _prose(path):
        if heading := _HEADING.fullmatch(line):
            text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading[1])
            base = anchor = _NOT_IN_ANCHOR.sub("", text.strip().lower()).replace(" ", "-")
            count = 0
            while anchor in anchors:  # a second heading of the same text
                count += 1
                anchor = f"{base}-{count}"
            anchors.add(anchor)
    return anchors


def _prose(path: Path) -> Iterator[tuple[int, str]]:
    """The lines outside of fenced blocks, numbered from 1."""
    inside = False
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        if line.lstrip().startswith("```"):
            inside = not inside
        elif not inside:
            yield number, line
