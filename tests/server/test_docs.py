"""Run every block of code in the documents as printed, against the real server."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from api_service import RunningApi
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from markdown_blocks import DOCUMENTS, Block, read_blocks, same_output
from playwright.sync_api import sync_playwright
from support import PHOTOS, ROOT, RunningServer
from tritonclient.grpc import model_config_pb2, service_pb2

BLOCKS = {name: read_blocks(ROOT / name) for name in DOCUMENTS}
ALL = [(name, block) for name, blocks in BLOCKS.items() for block in blocks]
GO_PACKAGES = Path("/usr/share/gocode")


def is_run(block: Block) -> bool:
    if block.not_run:
        return False
    return not block.file and block.language in ("sh", "python", "html")


def lacks(*tools: str) -> str | None:
    missing = [tool for tool in tools if not shutil.which(tool)]
    return f"not here: {', '.join(missing)}" if missing else None


def lacks_cpp() -> str | None:
    missing = lacks("g++", "protoc", "grpc_cpp_plugin", "pkg-config")
    if missing or not subprocess.call(["pkg-config", "--exists", "grpc++", "protobuf"]):
        return missing
    return "not here: the headers of gRPC for C++"


def lacks_go() -> str | None:
    missing = lacks("go", "protoc", "protoc-gen-go", "protoc-gen-go-grpc")
    if missing or (GO_PACKAGES / "src" / "google.golang.org" / "grpc").exists():
        return missing
    return "not here: gRPC for Go, as Debian packages it"


# Text in a block -> the check for tools that not every machine has.
NEEDS: dict[str, Callable[[], str | None]] = {
    "curl ": lambda: lacks("curl"),
    "node ": lambda: lacks("node"),
    "--cpp_out": lacks_cpp,
    "--go_out": lacks_go,
    "<script": lambda: lacks("chromium"),
}


def names(block: Block, file: Block) -> bool:
    """Whether the block runs this file."""
    return str(file.file) in block.code or (file.language == "go" and "go run ." in block.code)


def sandbox(tmp_path: Path) -> Path:
    """A folder with the photos and the project's files that the documents name."""
    # Without modules, Go takes the packages of this very folder by the name `detect/...`.
    folder = tmp_path / "src" / "detect"
    folder.mkdir(parents=True)
    shutil.copy(PHOTOS / "BloodImage_00007.jpg", folder / "photo.jpg")
    shutil.copy(PHOTOS / "BloodImage_00011.jpg", folder / "other.jpg")
    for link in (
        "Makefile",
        "pyproject.toml",
        "requirements.lock",
        "client",
        "model_repository",
        "examples",
    ):
        (folder / link).symlink_to(ROOT / link)
    (folder / ".venv").symlink_to(sys.prefix)
    return folder


def environment(tmp_path: Path, server: RunningServer) -> dict[str, str]:
    tools = tmp_path / "bin"
    tools.mkdir()
    if real := shutil.which("make"):
        # No set-up while a test runs. Make ignores this flag in MAKEFLAGS.
        script = tools / "make"
        script.write_text(f'#!/bin/sh\nexec {real} --old-file=.venv/.installed "$@"\n')
        script.chmod(0o755)
    if real := shutil.which("protoc"):
        # Instead of the two files that a reader downloads.
        protos = FileDescriptorSet()
        for module in (model_config_pb2, service_pb2):
            module.DESCRIPTOR.CopyToProto(protos.file.add())
        (tmp_path / "protos").write_bytes(protos.SerializeToString())
        script = tools / "protoc"
        script.write_text(f'#!/bin/sh\nexec {real} --descriptor_set_in={tmp_path}/protos "$@"\n')
        script.chmod(0o755)
    return {
        # Below `make test`, make would say which folder it enters.
        **{name: text for name, text in os.environ.items() if name not in {"MAKELEVEL", "MFLAGS"}},
        "PATH": os.pathsep.join([str(tools), str(Path(sys.executable).parent), os.environ["PATH"]]),
        "no_proxy": "127.0.0.1",
        "GO111MODULE": "off",
        "GOPATH": f"{tmp_path}:{GO_PACKAGES}",
        "MAKEFLAGS": f"SERVER={server.grpc}",  # for make
    }


@pytest.fixture(scope="module")
def addresses(server: RunningServer, api: RunningApi) -> dict[str, str]:
    """Default addresses, and those of the test's server and of the service in front of it."""
    return {
        "127.0.0.1:8000": server.http.removeprefix("http://"),
        "127.0.0.1:8001": server.grpc,
        "127.0.0.1:8080": api.url.removeprefix("http://"),
    }


def at_server(text: str, addresses: Mapping[str, str]) -> str:
    """Replace the default addresses in the text by those of the test's server."""
    for default, address in addresses.items():
        text = text.replace(default, address)
    return text


def run_html(block: Block, folder: Path, api: RunningApi) -> str:
    """Load the page from the service's own origin and choose photo.jpg; return what it shows."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        page = browser.new_page()
        page.route("**/page.html", lambda r: r.fulfill(body=block.code, content_type="text/html"))
        page.goto(f"{api.url}/page.html")
        page.set_input_files("input", folder / "photo.jpg")
        page.wait_for_function("document.querySelector('pre').textContent")
        answer = page.inner_text("pre")
        browser.close()
    return answer


@pytest.mark.parametrize(
    "name, block",
    [(name, block) for name, block in ALL if not block.file],
    ids=[f"{name}:{b.line}" for name, b in ALL if not b.file],
)
def test_block_prints_what_the_document_shows(
    server: RunningServer,
    api: RunningApi,
    addresses: dict[str, str],
    tmp_path: Path,
    name: str,
    block: Block,
) -> None:
    if block.not_run:
        pytest.skip(f"marked in the document: {block.not_run}")
    for text, missing in NEEDS.items():
        if text in block.code and (reason := missing()):
            pytest.skip(reason)
    folder = sandbox(tmp_path)
    for file in BLOCKS[name]:
        if file.file and names(block, file):
            (folder / file.file).write_text(at_server(file.code, addresses))
    if block.language == "html":
        printed = run_html(block, folder, api)
    else:
        shell = ["bash", "-e", "-o", "pipefail", "-c"]
        command = shell if block.language == "sh" else [sys.executable, "-c"]
        done = subprocess.run(
            [*command, at_server(block.code, addresses)],
            cwd=folder,
            env=environment(tmp_path, server),
            capture_output=True,
            text=True,
            timeout=280,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        printed = done.stdout
    if block.output is None:
        assert '"error"' not in printed
        assert not any(b'{"error"' in file.read_bytes()[:20] for file in folder.glob("*.bin"))
    else:
        assert same_output(at_server(block.output, addresses), printed), printed


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_block_is_run_or_marked_as_not_run(name: str) -> None:
    for block in BLOCKS[name]:
        where = f"{name}:{block.line} is neither run nor marked as not run"
        if block.file:
            assert any(is_run(other) and names(other, block) for other in BLOCKS[name]), where
        else:
            assert is_run(block) or block.not_run, where
        assert "localhost" not in block.code, f"{name}:{block.line} would miss the test's server"


def test_different_output_is_noticed() -> None:
    shown = "WBC 0.82 [193.7, 94.5]\n...\n12 bytes"
    assert same_output(shown, "WBC 0.81 [193.8,   94.5]\nanything\nat all\n12 bytes\n")
    for other in ("RBC 0.82", "WBC 0.85", "WBC 0.82 [193.9, 94.5]\n...\n12 bytes"):
        assert not same_output(shown, shown.replace("WBC 0.82", other))
    assert not same_output(shown, shown.replace("12", "13"))


def test_blocks_are_found_with_their_outputs_and_marks(tmp_path: Path) -> None:
    document = tmp_path / "a.md"
    document.write_text(
        "# A\n\n    make x\n\n```text\nmade\n```\n\nWords.\n\n```text\nalone\n```\n\n"
        "## B\n\n<!-- not run: no network -->\n```sh\n# a comment\ncurl x\n```\n\n"
        "```python\n# a.py: python a.py\n```\n"
    )
    found = [
        (b.line, b.section, b.language, b.output, b.not_run, b.file) for b in read_blocks(document)
    ]
    assert found == [
        (3, "A", "sh", "made\n", None, None),
        (12, "A", "text", None, None, None),
        (19, "B", "sh", None, "no network", None),
        (24, "B", "python", None, None, "a.py"),
    ]
    assert [block.line for block in read_blocks(document, "B")] == [19, 24]
