"""Links in the documents resolve, every page is reachable, and code is run or listed as not run."""

from __future__ import annotations

import re
from fnmatch import fnmatch
from pathlib import Path

import pytest
from markdown_blocks import DOCUMENTS, read_anchors, read_blocks, read_links
from support import ROOT

FOLDERS = (".github", "bench", "build", "client", "deploy", "docs", "examples", "server")
PAGES = sorted(
    [*ROOT.glob("*.md"), *(page for name in FOLDERS for page in (ROOT / name).rglob("*.md"))]
)
MAPPED = ("bench", "build", "client", "deploy", "model_repository", "server", "tests")
NAMES = [str(path.relative_to(ROOT)) for path in PAGES]

# Commands that take minutes, need other machines, or are no commands (maps of folders).
NOT_RUN = {
    "docs/architecture.md",
    "docs/deployment.md",
    "docs/models.md",
    "docs/operations.md",
    "docs/performance.md",
    "docs/security.md",
}


def relative_links(path: Path) -> list[tuple[int, str]]:
    return [(line, link) for line, link in read_links(path) if "://" not in link]


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_relative_link_resolves(page: Path) -> None:
    for line, link in relative_links(page):
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        where = f"{page.relative_to(ROOT)}:{line}: {link}"
        assert target.is_relative_to(ROOT) and target.exists(), where
        if anchor:
            assert target.suffix == ".md" and anchor in read_anchors(target), where


def test_every_page_is_reachable_from_the_readme() -> None:
    reached, queue = set[Path](), [ROOT / "README.md"]
    while queue:
        page = queue.pop()
        if page.suffix == ".md" and page not in reached:
            reached.add(page)
            queue += [
                (page.parent / link.partition("#")[0]).resolve()
                for _, link in relative_links(page)
                if not link.startswith("#")
            ]
    linked_by_the_host = {path for path in PAGES if ".github" in path.parts}
    assert set(PAGES) - linked_by_the_host <= reached


@pytest.mark.parametrize("name", DOCUMENTS)
def test_document_has_code_that_is_run(name: str) -> None:
    assert any(not block.not_run for block in read_blocks(ROOT / name))


def test_page_with_code_is_run_or_listed() -> None:
    for name in NAMES:
        if not name.startswith("docs/") or name in DOCUMENTS:
            continue
        try:
            blocks = read_blocks(ROOT / name)
        except ValueError:  # no code at all
            continue
        assert name in NOT_RUN, name
        assert {block.language for block in blocks} <= {"sh", "mermaid"}, name


def test_links_and_anchors_are_found(tmp_path: Path) -> None:
    page = tmp_path / "a.md"
    page.write_text(
        "# A page: `of_two` parts!\n\nSee [b](b.md#c), ![picture](<p 1.png>) and `[no](code)`.\n\n"
        "```sh\n# no heading\necho '[no](link)'\n```\n\n## Limits\n\n## [Limits](x.md)\n"
    )
    assert read_links(page) == [(3, "b.md#c"), (3, "p 1.png"), (12, "x.md")]
    assert read_anchors(page) == {"a-page-of_two-parts", "limits", "limits-1"}


def test_every_file_on_the_map_exists() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    files = {path.name for folder in MAPPED for path in (ROOT / folder).rglob("*")}
    named = set(re.findall(r"[\w*-]+\.(?:py|js|sh|html|flags|pbtxt)\b", text))
    missing = {name for name in named if not any(fnmatch(file, name) for file in files)}
    # Of YOLOv5, and of the installed network.
    assert missing - {"val.py", "bf16.pbtxt"} == set()
