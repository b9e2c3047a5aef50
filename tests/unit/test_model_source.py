"""What a source may hold, how it is fetched, and what is kept of it. No server is needed."""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import REPOSITORY

from yolov5_build.publish import main as publish
from yolov5_build.publish import read_network
from yolov5_server import Settings, StartError
from yolov5_server._source_url import safe_url, source_key, url_fault
from yolov5_server.source import ModelSource, SourceError, SourceFile, parse_manifest
from yolov5_server.source._cache import Cache
from yolov5_server.source._configs import check_configs
from yolov5_server.source._fetch import StoppedError, fetch_file, fetch_manifest
from yolov5_server.source._model_source import default_cache
from yolov5_server.source._stores import FolderStore

NEVER = threading.Event()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A model repository with a small file for the weights."""
    folder = tmp_path / "model_repository"
    leave = shutil.ignore_patterns("*.onnx", "versions", "__pycache__")
    shutil.copytree(REPOSITORY, folder, symlinks=True, ignore=leave)
    (version,) = (path for path in (folder / "yolov5").iterdir() if path.name.isdecimal())
    version = version.rename(folder / "yolov5" / "3")
    (version / "served.onnx").write_bytes(b"served")
    (version / "model.onnx").write_bytes(b"model")
    return folder


@pytest.fixture
def place(tmp_path: Path, repository: Path) -> Path:
    """A folder in which this repository is published."""
    folder = tmp_path / "published"
    assert publish([str(folder), f"--repository={repository}"]) == 0
    return folder


@dataclass
class Launcher:
    """The source of a launcher that does not run, and what it has logged."""

    folder: Path
    place: Path
    lines: list[str] = field(default_factory=list)

    def source(self) -> ModelSource:
        settings = Settings(
            model_source=str(self.place), model_cache=self.folder, repository=REPOSITORY
        )
        return ModelSource(settings, self.lines.append)


def manifest(place: Path) -> Any:
    return json.loads((place / "models.json").read_text())


def write_manifest(place: Path, values: Any) -> None:
    (place / "models.json").write_text(json.dumps(values))


# ---------------------------------------------------------------------------------------------
# The address


@pytest.mark.parametrize("url", ["s3://bucket", "s3://b/a/c", "https://host/x", "models", "/m"])
def test_address_is_taken(url: str) -> None:
    assert url_fault(url) is None


@pytest.mark.parametrize(
    "url, sentence",
    [
        ("http://host/x", "is 'http://host/x'; allowed: s3://bucket/prefix, https://host/path"),
        ("gs://bucket", "is 'gs://bucket'; allowed"),
        ("https://", "is 'https://'; allowed"),
        ("https://host/x?token=1", "without ? and #"),
        ("https://user:secret@host/x#y", "is 'https://host/x#y'"),
        ("https://[", "is 'https://['"),
        ("s3://key:secret@bucket", "has credentials in it"),
    ],
)
def test_address_is_refused(url: str, sentence: str) -> None:
    fault = url_fault(url) or ""
    assert sentence in fault
    assert "secret" not in fault
    with pytest.raises(StartError, match="MODEL_SOURCE"):
        Settings(model_source=url)


def test_user_and_password_are_left_out() -> None:
    assert safe_url("no https://user:pass@host/x or s3://k@b") == "no https://host/x or s3://b"
    assert source_key("https://user:pass@host/x/") == "https://host/x"


@pytest.mark.parametrize("seconds", [-1.0, 0.5, 86401.0, float("nan")])
def test_poll_out_of_range_is_refused(seconds: float) -> None:
    with pytest.raises(StartError, match="MODEL_SOURCE_POLL is .*; allowed: 0, or 1 to 86400"):
        Settings(model_source_poll=seconds)


def test_each_server_has_a_cache_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    places = {
        default_cache(Settings(model_source=source, metrics_port=port))
        for source in ("s3://a", "s3://b")
        for port in (8002, 9002)
    }
    assert len(places) == 4
    assert {path.parent for path in places} == {Path("/caches/yolov5-triton/sources")}


# ---------------------------------------------------------------------------------------------
# The manifest


def test_published_network_is_read_as_it_was_installed(place: Path, repository: Path) -> None:
    found = parse_manifest((place / "models.json").read_bytes()).networks["yolov5"]
    assert found.digest == read_network(repository, "yolov5").digest
    assert found.version == 3
    for file in found.files:
        content = (place / "objects" / file.sha256).read_bytes()
        assert content == (repository / file.path).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (file.size, file.sha256)


@pytest.mark.parametrize(
    "path",
    [
        "../x",
        "/etc/passwd",
        "yolov5/../preprocess/1/model.py",
        "yolov5/3/model.py",
        "yolov5/3/../../x/model.onnx",
        "yolov5/03/model.onnx",
        "yolov5/9999999999999999999/model.onnx",
        "yolov5/3/model.onnx\n",
        "yolov5/configs/../x.pbtxt",
        "yolov5/configs/UPPER.pbtxt",
        "preprocess/config.pbtxt",
        "preprocess/1/model.py",
        "yolov5_ensemble/1/model.py",
        "plates/config.pbtxt",
        "yolov5//config.pbtxt",
        "yolov5/libx.so",
        "",
    ],
)
def test_file_of_another_name_is_refused(place: Path, path: str) -> None:
    values = manifest(place)
    values["networks"]["yolov5"]["files"][0]["path"] = path
    with pytest.raises(SourceError, match="allowed: config.pbtxt") as caught:
        parse_manifest(json.dumps(values).encode())
    assert caught.value.is_refused


@pytest.mark.parametrize(
    "name", ["../x", "preprocess", "postprocess", "a_ensemble", "Upper", "", "a/b", "x" * 41]
)
def test_network_of_another_name_is_refused(place: Path, name: str) -> None:
    values = manifest(place)
    values["networks"][name] = values["networks"]["yolov5"]
    with pytest.raises(SourceError, match="no allowed name"):
        parse_manifest(json.dumps(values).encode())


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"size": -1}, "no SHA-256 and size"),
        ({"size": 5 << 30}, "over 4 GiB"),
        ({"size": "many"}, "no list of files"),
        ({"size": float("inf")}, "no list of files"),
        ({"sha256": "../../x"}, "no SHA-256 and size"),
        ({"sha256": "A" * 64}, "no SHA-256 and size"),
        ({"path": "yolov5/labels.txt"}, "has a file twice"),
        ({"path": "yolov5/4/model.plan"}, "weights of 2 versions; allowed: one"),
    ],
)
def test_wrong_entry_is_refused(place: Path, change: dict[str, Any], sentence: str) -> None:
    values = manifest(place)
    files = values["networks"]["yolov5"]["files"]
    (weights,) = (one for one in files if one["path"].endswith("/model.onnx"))
    weights.update(change)
    with pytest.raises(SourceError, match=sentence):
        parse_manifest(json.dumps(values).encode())


@pytest.mark.parametrize("path", ["yolov5/config.pbtxt", "yolov5_ensemble/config.pbtxt"])
def test_missing_file_of_the_manifest_is_named(place: Path, path: str) -> None:
    values = manifest(place)
    network = values["networks"]["yolov5"]
    network["files"] = [one for one in network["files"] if one["path"] != path]
    with pytest.raises(SourceError, match=f"{path} is missing"):
        parse_manifest(json.dumps(values).encode())


@pytest.mark.parametrize(
    "content, sentence",
    [
        (b"", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"\xff{}", "is not JSON"),
        (b"[]", "is no manifest of format 1"),
        (b'{"format": 2}', "is no manifest of format 1"),
        (b'{"format": 1, "networks": []}', "has no list of at most 48 networks"),
        (b'{"format": 1, "networks": {}}', "has no network yolov5"),
        (b'{"format": 1, "networks": {"yolov5": null}}', "has no list of files"),
        (b'{"format": 1, "networks": {"yolov5": {"files": [1]}}}', "has no list of files"),
        (b" " * ((1 << 20) + 1), "has over 1048576 bytes"),
    ],
)
def test_what_is_no_manifest_is_refused(content: bytes, sentence: str) -> None:
    with pytest.raises(SourceError, match=sentence):
        parse_manifest(content)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)
_ENTRY = st.fixed_dictionaries(
    {"path": st.sampled_from(["yolov5/config.pbtxt", "yolov5/3/model.onnx"]) | st.text()},
    optional={"size": st.integers() | _JSON, "sha256": st.just("a" * 64) | _JSON},
)
_FILES = st.fixed_dictionaries({"files": st.lists(_ENTRY | _JSON, max_size=3) | _JSON})


@settings(deadline=None)  # other programs may keep this one waiting
@given(_JSON | st.dictionaries(st.sampled_from(["yolov5", "plates", "../x"]), _FILES | _JSON))
def test_any_manifest_is_read_or_refused(networks: Any) -> None:
    try:
        parse_manifest(json.dumps({"format": 1, "networks": networks}).encode())
    except SourceError as error:
        assert error.is_refused
        assert str(error).isprintable()


# ---------------------------------------------------------------------------------------------
# Configurations


def test_configurations_of_make_model_are_taken(repository: Path) -> None:
    check_configs(repository, "yolov5")


@pytest.mark.parametrize(
    "model, added, sentence",
    [
        ("yolov5", 'backend: "python"', "wants the backend 'python'; allowed: onnxruntime"),
        ("yolov5", 'platform: "pytorch_libtorch"', "wants the backend"),
        ("yolov5", 'runtime: "libother.so"', "has the field runtime"),
        ("yolov5", 'model_operations { op_library_filename: "/x.so" }', "has the field"),
        ("yolov5", 'model_repository_agents { agents { name: "x" } }', "has the field"),
        ("yolov5", "optimization { priority: PRIORITY_MAX }", "has the field optimization"),
        ("yolov5", 'default_model_filename: "../../x.onnx"', "names the file '../../x.onnx'"),
        (
            "yolov5",
            'parameters { key: "EXECUTION_ENV_PATH" value { string_value: "/x.tar.gz" } }',
            "has the parameter 'EXECUTION_ENV_PATH'; allowed: ",
        ),
        (
            "yolov5",
            'parameters { key: "full" value { string_value: "/x.onnx" } }',
            "names the file '/x.onnx'",
        ),
        (
            "yolov5",
            'model_warmup { name: "w" inputs { key: "x" value { input_data_file: "y" } } }',
            "warms up with a file",
        ),
        ("yolov5", 'name: "plates"', "has the name 'plates'; allowed: 'yolov5'"),
        ("yolov5", "nonsense", "is not valid"),
        ("yolov5_ensemble", 'backend: "python"', "is no ensemble"),
        ("yolov5_ensemble", "instance_group { kind: KIND_CPU }", "has the field instance_group"),
        ("yolov5_ensemble", 'name: "x"', "has the name 'x'"),
    ],
)
def test_configuration_that_runs_something_else_is_refused(
    repository: Path, model: str, added: str, sentence: str
) -> None:
    config = repository / model / "config.pbtxt"
    field = added.partition(":")[0]
    lines = config.read_text().splitlines(keepends=True)
    kept = [line for line in lines if not line.startswith(f"{field}:")]
    config.write_text("".join(kept) + f"\n{added}\n")
    with pytest.raises(SourceError) as caught:
        check_configs(repository, "yolov5")
    assert sentence in str(caught.value)
    assert publish([str(repository.parent / "other"), f"--repository={repository}"]) == 1


def test_text_of_a_manifest_controls_no_terminal(place: Path) -> None:
    values = manifest(place)
    values["networks"]["yolov5"]["published"] = "now\x1b[2J\nerror: x"
    found = parse_manifest(json.dumps(values).encode()).networks["yolov5"]
    assert found.published == "now?[2J?error: x"
    assert str(SourceError("a\x1b[2Jb")) == "a?[2Jb"


# ---------------------------------------------------------------------------------------------
# Fetching


class Broken:
    """A store whose connection ends after some steps, or whose server is away.

    Args:
        attempts: what each attempt gives: steps, and an error at the end if it is cut.
    """

    def __init__(self, *attempts: list[bytes | SourceError], resumes: bool = True) -> None:
        self.attempts = [*attempts]
        self.resumes = resumes
        self.offsets: list[int] = []

    def steps(self, name: str, offset: int, most: int) -> Iterator[bytes]:
        self.offsets.append(offset)
        for step in self.attempts.pop(0):
            if isinstance(step, SourceError):
                raise step
            yield step


CUT = SourceError("The connection was cut.", is_temporary=True)
WRONG = SourceError("There is no such bucket.")
FILE = SourceFile(path="yolov5/3/model.onnx", size=6, sha256=hashlib.sha256(b"abcdef").hexdigest())


def test_cut_file_is_completed(tmp_path: Path) -> None:
    store = Broken([b"ab", CUT], [CUT], [b"cd"], [b"ef"])
    fetch_file(store, FILE, tmp_path / "x", NEVER, delays=[0, 0, 0])
    assert (tmp_path / "x").read_bytes() == b"abcdef"
    assert store.offsets == [0, 2, 2, 4]
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_cut_file_begins_anew_if_the_store_cannot_resume(tmp_path: Path) -> None:
    store = Broken([b"ab", CUT], [b"abcdef"], resumes=False)
    fetch_file(store, FILE, tmp_path / "x", NEVER, delays=[0])
    assert (tmp_path / "x").read_bytes() == b"abcdef"
    assert store.offsets == [0, 0]


@pytest.mark.parametrize(
    "attempts, sentence",
    [
        ([[b"ab", CUT], [b"c", CUT]], "The connection was cut"),
        ([[b"abc"], [b""]], "ended after 3 of 6 bytes"),
        ([[WRONG]], "There is no such bucket"),
        ([[b"abcdeX"]], "has the SHA-256"),
        ([[b"abcdefg"]], "has more bytes than models.json says, 6"),
    ],
)
def test_file_that_is_not_the_one_of_the_manifest_is_not_there(
    tmp_path: Path, attempts: list[list[bytes | SourceError]], sentence: str
) -> None:
    with pytest.raises(SourceError, match=sentence):
        fetch_file(Broken(*attempts), FILE, tmp_path / "x", NEVER, delays=[0])
    assert not (tmp_path / "x").exists()


def test_end_of_the_launcher_ends_fetching(tmp_path: Path) -> None:
    ending = threading.Event()
    ending.set()
    with pytest.raises(StoppedError):
        fetch_file(Broken([b"ab"]), FILE, tmp_path / "x", ending, delays=[60])
    with pytest.raises(StoppedError):
        fetch_manifest(Broken([CUT]), ending, delays=[60])


def test_folder_does_not_lead_out_of_itself(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    folder = tmp_path / "source"
    (folder / "objects").mkdir(parents=True)
    (folder / "out").symlink_to(tmp_path / "secret")
    (folder / "in").symlink_to("objects/x")
    (folder / "loop").symlink_to("loop")
    (folder / "objects" / "x").write_text("inside")
    store = FolderStore(folder)
    assert b"".join(store.steps("in", 2, 3)) == b"sid"
    for name, sentence in (
        ("out", "leads out of"),
        ("../secret", "leads out of"),
        ("objects", "or is no file"),
        ("loop", "cannot be read"),
        ("none", "cannot be read: No such file"),
    ):
        with pytest.raises(SourceError, match=sentence):
            list(store.steps(name, 0, 10))


# ---------------------------------------------------------------------------------------------
# What is installed


def test_networks_are_installed_and_found_again(tmp_path: Path, place: Path) -> None:
    launcher = Launcher(tmp_path / "cache", place)
    first = launcher.source()
    assert first.prepare(NEVER)
    served = first.repository
    assert (served / "yolov5" / "3" / "served.onnx").read_bytes() == b"served"
    assert (served / "preprocess" / "1" / "model.py").is_file()
    assert not list((tmp_path / "cache").rglob("*.part*"))
    assert first.checks == {"installed": 1}
    first.close()
    shutil.rmtree(place)
    again = launcher.source()
    assert again.prepare(NEVER)
    assert "The networks that were fetched before are served: version 3 of yolov5." in (
        launcher.lines
    )
    assert again.checks == {"failed": 1}
    assert again.last_success == 0
    assert "models.json cannot be read" in str(again.status()["reason"])


def test_only_what_has_changed_is_fetched(tmp_path: Path, place: Path, repository: Path) -> None:
    launcher = Launcher(tmp_path / "cache", place)
    source = launcher.source()
    source.prepare(NEVER)
    for path in (place / "objects").iterdir():
        path.unlink()
    (repository / "yolov5" / "labels.txt").write_text("a\nb\nc\n")
    assert publish([str(place), f"--repository={repository}"]) == 0
    for path in (place / "objects").iterdir():
        if path.read_bytes() in (b"served", b"model"):
            path.unlink()
    assert source.prepare(NEVER)
    assert source.checks["installed"] == 2
    assert (source.repository / "yolov5" / "labels.txt").read_text() == "a\nb\nc\n"
    assert (source.repository / "yolov5" / "3" / "served.onnx").read_bytes() == b"served"


def test_refused_source_changes_nothing_and_is_logged_once(
    tmp_path: Path, place: Path, repository: Path
) -> None:
    launcher = Launcher(tmp_path / "cache", place)
    source = launcher.source()
    source.prepare(NEVER)
    before = source.status()["networks"]
    (repository / "yolov5" / "3" / "served.onnx").write_bytes(b"other!")
    assert publish([str(place), f"--repository={repository}"]) == 0
    bad = place / "objects" / hashlib.sha256(b"other!").hexdigest()
    bad.write_bytes(b"other?")
    for _ in range(3):
        source.prepare(NEVER)
    assert source.status()["networks"] == before
    assert (source.repository / "yolov5" / "3" / "served.onnx").read_bytes() == b"served"
    assert source.checks["refused"] == 3
    assert sum("was not taken over: yolov5/3/served.onnx has" in one for one in launcher.lines) == 1
    bad.write_bytes(b"other!")
    source.check_soon()
    source.prepare(NEVER)
    assert (source.repository / "yolov5" / "3" / "served.onnx").read_bytes() == b"other!"
    assert source.status()["reason"] is None


def test_network_that_is_put_back_stays_refused(
    tmp_path: Path, place: Path, repository: Path
) -> None:
    launcher = Launcher(tmp_path / "cache", place)
    source = launcher.source()
    source.prepare(NEVER)
    assert not source.put_back("yolov5")
    (repository / "yolov5" / "3").rename(repository / "yolov5" / "4")
    assert publish([str(place), f"--repository={repository}"]) == 0
    source.prepare(NEVER)
    assert (source.repository / "yolov5" / "4").is_dir()
    source.note_loaded(["yolov5"])
    assert not source.put_back_new()
    assert source.put_back("yolov5")
    assert not source.put_back("yolov5")
    source.close()
    source = launcher.source()
    source.prepare(NEVER)
    assert (source.repository / "yolov5" / "3").is_dir()
    source.check_soon()
    source.prepare(NEVER)
    assert (source.repository / "yolov5" / "4").is_dir()


def test_damaged_cache_is_fetched_again(tmp_path: Path, place: Path) -> None:
    launcher = Launcher(tmp_path / "cache", place)
    source = launcher.source()
    source.prepare(NEVER)
    weights = source.repository / "yolov5" / "3" / "served.onnx"
    weights.write_bytes(b"sErved")
    source.close()
    source = launcher.source()
    source.prepare(NEVER)
    assert weights.read_bytes() == b"served"


@pytest.mark.parametrize("state", [b"", b"{}", b"[]", b'{"source": 1}', b"\xff"])
def test_damaged_state_is_no_state(tmp_path: Path, place: Path, state: bytes) -> None:
    launcher = Launcher(tmp_path / "cache", place)
    source = launcher.source()
    source.prepare(NEVER)
    (tmp_path / "cache" / "state.json").write_bytes(state)
    source.close()
    assert launcher.source().prepare(NEVER)


def test_cache_of_another_source_is_not_served(tmp_path: Path, place: Path) -> None:
    source = Launcher(tmp_path / "cache", place).source()
    source.prepare(NEVER)
    source.close()
    other = Launcher(tmp_path / "cache", tmp_path / "other").source()
    with pytest.raises(StartError, match="MODEL_SOURCE cannot be served: .*other/models.json"):
        other.prepare(NEVER)


def test_cache_in_use_is_refused(tmp_path: Path, place: Path) -> None:
    launcher = Launcher(tmp_path / "cache", place)
    source = launcher.source()
    with pytest.raises(StartError, match="is in use by another launcher"):
        launcher.source()
    source.close()


def test_cache_that_cannot_be_written_to_is_named(tmp_path: Path, place: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(
        StartError, match="MODEL_CACHE .*file/cache cannot be used: Not a directory"
    ):
        Launcher(tmp_path / "file" / "cache", place).source()


def test_further_network_needs_the_first_one(tmp_path: Path, repository: Path, capsys: Any) -> None:
    plates = repository / "plates"
    shutil.copytree(repository / "yolov5", plates)
    shutil.copytree(repository / "yolov5_ensemble", repository / "plates_ensemble")
    for model in ("plates", "plates_ensemble"):
        for config in (repository / model).rglob("*.pbtxt"):
            config.write_text(config.read_text().replace('name: "yolov5', 'name: "plates'))
    place = str(tmp_path / "published")
    flags = [f"--repository={repository}", "--name=plates"]
    assert publish([place, *flags]) == 1
    assert "yolov5 is not published there, and every server needs it" in capsys.readouterr().err
    assert publish([place, f"--repository={repository}"]) == 0
    assert publish([place, *flags]) == 0
    source = Launcher(tmp_path / "cache", Path(place)).source()
    source.prepare(NEVER)
    assert (source.repository / "plates_ensemble" / "config.pbtxt").is_file()
    assert publish([place, *flags, "--remove"]) == 0
    source.prepare(NEVER)
    assert not (source.repository / "plates_ensemble").exists()
    assert not (source.repository / "plates").exists()
    assert publish([place, f"--repository={repository}", "--remove"]) == 1
    assert "'yolov5' cannot be removed" in capsys.readouterr().err


@pytest.mark.parametrize(
    "destination, sentence",
    [
        ("https://host/models", "DEST is an https address, which can only be read"),
        ("gs://bucket", "DEST is 'gs://bucket'; allowed: s3://bucket/prefix"),
        ("", "DEST is empty; allowed: s3://bucket/prefix or a folder"),
    ],
)
def test_place_that_cannot_be_written_to_is_refused(
    destination: str, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert publish([destination]) == 1
    assert sentence in capsys.readouterr().err


def test_cache_lock_is_released_with_its_owner(tmp_path: Path) -> None:
    for _ in range(2):
        Cache(tmp_path / "cache", "s3://bucket", REPOSITORY).close()
