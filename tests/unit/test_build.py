from __future__ import annotations

import functools
import operator
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mutated_checkpoints
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from checkpoints import read_small
from support import BUNDLED, SHARED

from yolov5_build import (
    BuildError,
    Checkpoint,
    _export,
    export_onnx,
    install_onnx,
    load_checkpoint,
    save_safetensors,
)
from yolov5_build import cli as command
from yolov5_build._checkpoint import checkpoint_from
from yolov5_build._labels import read_names_file
from yolov5_build._unpickler import unpickle
from yolov5_build._version import new_version
from yolov5_build.metadata import Metadata, read_metadata
from yolov5_build.photos import example_images


def test_bundled_checkpoint_is_loaded_in_fp32_and_fused(checkpoint: Checkpoint) -> None:
    assert checkpoint.names == ("Platelets", "RBC", "WBC")
    assert checkpoint.stride == 32
    assert not checkpoint.network.training
    assert {p.dtype for p in checkpoint.network.parameters()} == {torch.float32}
    # All batch norms are folded.
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in checkpoint.network.modules())
    with torch.no_grad():
        rows = checkpoint.network(torch.zeros(2, 3, 64, 96))
    assert rows.shape == (2, 3 * (8 * 12 + 4 * 6 + 2 * 3), 8)


def test_boxes_are_decoded_as_published(checkpoint: Checkpoint) -> None:
    """If the convolutions of the head return 0, all sigmoids are 0.5: boxes have the size of the
    anchors, and lie at the centres of their cells."""
    head = load_checkpoint(BUNDLED).network.model[-1]
    for convolution in head.m:  # type: ignore[union-attr]
        torch.nn.init.zeros_(convolution.weight)
        torch.nn.init.zeros_(convolution.bias)
    maps = [torch.zeros(1, c.in_channels, 2, 3) for c in head.m]  # type: ignore[union-attr]
    with torch.no_grad():
        rows = head(maps)[0]
    first = rows[:6]  # level 0, stride 8, anchor 0: two rows of three cells
    assert first[:, 0].tolist() == [4, 12, 20, 4, 12, 20]
    assert first[:, 1].tolist() == [4, 4, 4, 12, 12, 12]
    torch.testing.assert_close(first[0, 2:4], head.anchors[0, 0] * 8)  # type: ignore[index]
    assert (rows[:, 4:] == 0.5).all()


def test_export_has_a_dynamic_batch_and_metadata(tmp_path: Path) -> None:
    checkpoint, path = read_small(), tmp_path / "model.onnx"
    export_onnx(checkpoint, path, imgsz=320)
    assert shapes(path) == [["batch", 3, 320, 320], ["batch", 6300, 8]]
    assert read_metadata(path) == Metadata(
        names=("Platelets", "RBC", "WBC"),
        stride=32,
        head="full",
        precision="fp32",
        provenance=f"From a checkpoint, sha256 {checkpoint.sha256}.",
        max_batch_size=None,
    )
    with pytest.raises(BuildError, match="image size 100 is not a positive multiple of 32"):
        export_onnx(checkpoint, path, imgsz=100)


def shapes(path: Path) -> list[list[str | int]]:
    """The shapes of the input and the output."""
    graph = onnx.load(path).graph
    return [
        [side.dim_param or side.dim_value for side in tensor.type.tensor_type.shape.dim]
        for tensor in (*graph.input, *graph.output)
    ]


def test_dynamic_export_matches_the_network_at_another_size(tmp_path: Path) -> None:
    checkpoint, path = read_small(), tmp_path / "model.onnx"
    assert export_onnx(checkpoint, path, imgsz=(128, 160), dynamic=True) < 1e-3
    assert shapes(path) == [["batch", 3, "height", "width"], ["batch", "rows", 8]]
    session = onnxruntime.InferenceSession(path)
    images = example_images(64, 192)
    with torch.no_grad():
        expected = checkpoint.network(torch.from_numpy(images))
    rows = session.run(None, {"images": images})[0]
    np.testing.assert_allclose(rows, expected, rtol=1e-3, atol=1e-3)


def test_half_precision_export_decodes_in_fp32(checkpoint: Checkpoint, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    export_onnx(checkpoint, path, imgsz=(64, 640), half=True)
    assert path.stat().st_size < BUNDLED.stat().st_size
    images = example_images(64, 640)
    rows = onnxruntime.InferenceSession(path).run(None, {"images": images})[0]
    assert rows.dtype == np.float32
    with torch.no_grad():
        expected = checkpoint.network(torch.from_numpy(images)).numpy()
    # Centres beyond 512 px, which FP16 resolves only to half a pixel.
    right = rows[..., 0][expected[..., 0] > 520]
    assert right.size > 100
    assert np.mean(right * 2 % 1 < 1e-3) < 0.2
    assert np.abs(rows[..., 0] - expected[..., 0]).max() < 1
    assert {p.dtype for p in checkpoint.network.parameters()} == {torch.float32}


def test_reduced_head_returns_the_best_class(checkpoint: Checkpoint, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    export_onnx(checkpoint, path, imgsz=96, reduced_head=True)
    assert shapes(path)[1] == ["batch", 567, 6]
    images = example_images(96, 96)
    rows = onnxruntime.InferenceSession(path).run(None, {"images": images})[0]
    with torch.no_grad():
        full = checkpoint.network(torch.from_numpy(images)).numpy()
    scores = full[..., 5:] * full[..., 4:5]
    np.testing.assert_allclose(rows[..., 4], scores.max(2), atol=1e-5)
    clear = np.sort(scores, 2)[..., -1] - np.sort(scores, 2)[..., -2] > 1e-4
    assert (rows[..., 5] == scores.argmax(2))[clear].all()


def test_export_that_differs_from_the_network_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_export, "TOLERANCE", 1e-12)
    with pytest.raises(BuildError, match="differs from the checkpoint by .* .allowed 1e-12"):
        export_onnx(read_small(), tmp_path / "model.onnx", imgsz=64)


@pytest.fixture(scope="module")
def small_export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("small") / "model.onnx"
    export_onnx(read_small(), path, imgsz=64, provenance="two\nlines")
    return path


@pytest.fixture
def small(small_export: Path, tmp_path: Path) -> Path:
    """A small export, which a test may change."""
    return Path(shutil.copy(small_export, tmp_path))


def test_installation_replaces_the_old_one_completely(small: Path, tmp_path: Path) -> None:
    (tmp_path / "yolov5" / "7").mkdir(parents=True)
    (tmp_path / "yolov5" / "stale").touch()
    assert install_onnx(small, tmp_path, letterbox="stretch").version == 8
    served = tmp_path / "yolov5"
    assert sorted(p.name for p in served.iterdir()) == ["8", "config.pbtxt", "labels.txt"]
    assert "# two lines\n" in (served / "config.pbtxt").read_text()
    assert not list(tmp_path.parent.glob(".yolov5-*"))


def test_failed_installation_leaves_the_old_one(small: Path, tmp_path: Path) -> None:
    install_onnx(small, tmp_path)
    before = (tmp_path / "yolov5").stat()  # compared without the access time
    with pytest.raises(BuildError, match="needs a network with open height and width; .*64x64"):
        install_onnx(small, tmp_path, letterbox="rect")
    model = onnx.load(small)
    model.metadata_props[0].value = "{0: 'a', 1: 'b\\nb', 2: 'c'}"
    onnx.save(model, small)
    with pytest.raises(BuildError, match="has a line break, so it cannot be a label"):
        install_onnx(small, tmp_path)
    with pytest.raises(RuntimeError), new_version(tmp_path) as (folder, _):
        (folder / "config.pbtxt").write_text("half")
        raise RuntimeError
    after = (tmp_path / "yolov5").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


@pytest.mark.parametrize("count", [10, pytest.param(50, marks=pytest.mark.slow)])
def test_reader_never_sees_a_partial_installation(small: Path, tmp_path: Path, count: int) -> None:
    """A process that opens the folder during the replacement finds the old one or the new one."""
    install_onnx(small, tmp_path)
    done, broken = threading.Event(), []

    def read() -> None:
        while not done.is_set():
            if not (tmp_path / "yolov5" / "config.pbtxt").exists():
                broken.append(time.monotonic())

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(count):
        install_onnx(small, tmp_path)
    done.set()
    reader.join()
    assert broken == []


@pytest.mark.parametrize("name", ["config.pbtxt", "configs/own.pbtxt"])
def test_endpoint_batch_limit_follows_the_network(small: Path, tmp_path: Path, name: str) -> None:
    ensemble = tmp_path / "yolov5_ensemble" / name
    ensemble.parent.mkdir(parents=True)

    def install(limit: str | None) -> str:
        model = onnx.load(small)
        entries = {e.key: e.value for e in model.metadata_props if e.key != "max_batch_size"}
        onnx.helper.set_model_props(model, entries | ({"max_batch_size": limit} if limit else {}))
        onnx.save(model, small)
        install_onnx(small, tmp_path)
        return ensemble.read_text()

    ensemble.write_text("# comment\nmax_batch_size: 8\n")
    assert install(None) == "# comment\nmax_batch_size: 8\n"
    assert install("1") == "# comment\nmax_batch_size: 1\n"
    assert install(None) == "# comment\nmax_batch_size: 8\n"
    ensemble.write_text("max_batch_size: 4\n")  # an operator's own limit
    assert install(None) == "max_batch_size: 4\n"


class Payload:
    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self._call = (function, arguments)

    def __reduce__(self) -> Any:
        return self._call


def chain(mark: Path) -> Payload:
    """A call of the result of another call."""
    return Payload(functools.reduce, operator.getitem, Payload(os.system, f"touch {mark}"))


@pytest.mark.parametrize("key", ["ema", "model", "date"])
@pytest.mark.parametrize(
    "payload, name",
    [
        (lambda mark: Payload(os.system, f"touch {mark}"), "posix.system"),
        (lambda mark: Payload(eval, f"open({str(mark)!r}, 'w')"), "(__builtin__|builtins).eval"),
        (chain, "(__builtin__|_functools|functools).reduce"),
        (lambda mark: Payload(torch.load, str(mark)), "torch.serialization.load"),
    ],
    ids=["os.system", "eval", "chain", "torch.load"],
)
def test_code_in_a_checkpoint_is_not_executed(
    tmp_path: Path, key: str, payload: Callable[[Path], Payload], name: str
) -> None:
    path, mark = tmp_path / "evil.pt", tmp_path / "mark"
    torch.save({key: payload(mark)}, path)
    with pytest.raises(BuildError, match=f"evil.pt names '{name}', which is not among the layers"):
        load_checkpoint(path)
    assert not mark.exists()


def test_checkpoint_cannot_construct_a_layer(tmp_path: Path) -> None:
    path = tmp_path / "evil.pt"
    torch.save({"model": Payload(torch.nn.Conv2d, 100_000, 100_000, 9)}, path)
    with pytest.raises(BuildError, match="is damaged"):
        load_checkpoint(path)


def rewritten(target: Path, *arguments: Any, **options: Any) -> Path:
    """The bundled checkpoint with changed members, in a valid zip."""
    return mutated_checkpoints.rewritten(BUNDLED, target, *arguments, **options)


def test_zip_that_torch_did_not_write_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "best.pt"
    assert load_checkpoint(rewritten(path)).stride == 32
    for changes in (
        # A bomb: 64 MB of zeros in 64 kB. `test_import_limits.py` has larger ones.
        {"compression": zipfile.ZIP_DEFLATED, "more": {"bccd_yolov5n/data/999": bytes(1 << 26)}},
        {"more": {"../../etc/evil": b"x"}},
        {"more": {"bccd_yolov5n/../evil": b"x"}},
        {"more": {"other/data.pkl": b"x"}},
        {"change": lambda name, data: data[:-1] if name.endswith("/data/7") else data},
    ):
        path.unlink()
        with pytest.raises(BuildError, match="is not a YOLOv5 checkpoint, or is damaged"):
            load_checkpoint(rewritten(path, **changes))


@pytest.mark.parametrize(
    "content, sentence",
    [
        (b"", "is not a YOLOv5 checkpoint, or is damaged"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is not a YOLOv5 checkpoint"),
        (BUNDLED.read_bytes()[:100_000], "is not a YOLOv5 checkpoint"),
    ],
    ids=["empty", "text", "truncated"],
)
def test_file_that_is_not_a_checkpoint_is_refused(
    tmp_path: Path, content: bytes, sentence: str
) -> None:
    path = tmp_path / "best.pt"
    path.write_bytes(content)
    with pytest.raises(BuildError, match=sentence):
        load_checkpoint(path)


def test_checkpoint_without_a_network_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "best.pt"
    torch.save({"state_dict": {}}, path)
    with pytest.raises(BuildError, match="holds no YOLOv5 detection network"):
        load_checkpoint(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("hello.txt", "hello")
    with pytest.raises(BuildError, match="is not a YOLOv5 checkpoint"):
        load_checkpoint(path)
    with pytest.raises(BuildError, match="cannot be read: No such file"):
        load_checkpoint(tmp_path / "none.pt")


@pytest.mark.parametrize(
    "names, labels",
    [
        ([0, 1, 2], ("0", "1", "2")),
        ([True, 1.5, None], ("True", "1.5", "class2")),
        ({0: "", 1: " ", 2: "c"}, ("class0", "class1", "c")),
        (["a\nb", "c\r\nd\u2028e", "f\n"], ("a b", "c d e", "f")),
        ([" a,b ", 'say "no"', "\ud800x"], (" a,b ", 'say "no"', "?x")),
    ],
    ids=["numbers", "other kinds", "empty", "line breaks", "odd texts"],
)
def test_class_names_of_a_checkpoint_become_lines_of_text(
    small_weights: Path, capsys: pytest.CaptureFixture[str], names: Any, labels: tuple[str, ...]
) -> None:
    network = unpickle(small_weights)
    assert isinstance(network, dict)
    network["model"].names = names
    assert checkpoint_from(small_weights, network["model"]).names == labels
    changed = [str(name) for name in names] != list(labels) if isinstance(names, list) else True
    assert bool(capsys.readouterr().err) == changed


def test_invalid_class_names_are_refused(small_weights: Path) -> None:
    network = unpickle(small_weights)
    assert isinstance(network, dict)
    for names in ({1: "a", 2: "b", 3: "c"}, [["a"], "b", "c"], "abc", None):
        network["model"].names = names
        with pytest.raises(BuildError, match="has no usable class names; give them with --names"):
            checkpoint_from(small_weights, network["model"])


def test_names_file_replaces_the_names_of_a_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "names.txt"
    path.write_bytes(b"\xef\xbb\xbfone\r\ntwo\r\nthree\r\n\r\n")
    names = read_names_file(path)
    assert load_checkpoint(BUNDLED, names=names).names == ("one", "two", "three")
    with pytest.raises(BuildError, match="has 3 classes but 2 class names"):
        load_checkpoint(BUNDLED, names=names[:2])
    for content, sentence in (
        (b"a\n\nc\n", "names.txt has no class name in line 2"),
        (b"\n \n", "names.txt has no class names; allowed: one a line, or a data.yaml"),
        (b"\xff\xfea\0", "names.txt is not UTF-8 text"),
        (b"a\n" * 600_000, "names.txt is over the limit of 1024 kB"),
    ):
        path.write_bytes(content)
        with pytest.raises(BuildError, match=sentence):
            read_names_file(path)


def test_synchronised_batch_norm_is_read_as_batch_norm(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    path = rewritten(
        tmp_path / "best.pt",
        lambda name, data: data.replace(b"\nBatchNorm2d\n", b"\nSyncBatchNorm\n"),
    )
    read = load_checkpoint(path)
    images = torch.rand((1, 3, 64, 64), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(read.network(images), checkpoint.network(images))


def test_wrong_number_of_channels_is_named(tmp_path: Path) -> None:
    network = unpickle(BUNDLED)
    assert isinstance(network, dict)
    stem = network["model"].model[0].conv
    stem.weight = torch.nn.Parameter(stem.weight[:, :1].clone())
    stem.in_channels = 1
    with pytest.raises(BuildError, match="best.pt takes images of 1 channel; 3 are needed"):
        checkpoint_from(BUNDLED, network["model"])


def test_network_that_computes_for_hours_is_refused() -> None:
    network = unpickle(BUNDLED)
    assert isinstance(network, dict)
    stem = network["model"].model[0]
    wide = torch.nn.Conv2d(16, 16, 3, padding=1, bias=False, device="meta")
    wide.weight = torch.nn.Parameter(torch.zeros(16, 16, 3, 3))
    stem.act = torch.nn.Sequential(*[wide] * 2000)
    with pytest.raises(BuildError, match="computes more for a 640-pixel image than a YOLOv5"):
        checkpoint_from(BUNDLED, network["model"])


@pytest.mark.parametrize("ending", [".PT", ".Onnx", ".SAFETENSORS"])
def test_file_suffix_is_case_insensitive(
    small_weights: Path, small: Path, tmp_path: Path, ending: str
) -> None:
    path = tmp_path / f"BEST{ending}"
    if ending == ".PT":
        shutil.copyfile(small_weights, path)
    elif ending == ".Onnx":
        shutil.copyfile(small, path)
    else:
        save_safetensors(read_small(), path)
    assert command.main([str(path), "--imgsz=64", f"--repository={tmp_path}"]) == 0
    assert (tmp_path / "yolov5" / "labels.txt").read_text() == "Platelets\nRBC\nWBC\n"


def test_folders_of_killed_installations_are_removed(small: Path, tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    repository.mkdir()
    install_onnx(small, repository)
    child = os.fork()
    if not child:
        with new_version(repository) as (folder, _):
            (folder / "half").touch()
            signal.pause()
    while not list(tmp_path.glob(".yolov5-*/yolov5/half")):
        time.sleep(0.01)
    with new_version(repository) as (folder, version):  # the folder of a live process stays
        (version / "model.onnx").touch()
        assert len(list(tmp_path.glob(".yolov5-*"))) == 2
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert list(tmp_path.glob(".yolov5-*"))
    install_onnx(small, repository)
    assert not list(tmp_path.glob(".yolov5-*"))


def test_network_moved_by_a_killed_exchange_is_restored(tmp_path: Path) -> None:
    """If two folders cannot be exchanged atomically, there is a moment without a network."""
    repository = tmp_path / "repository"
    repository.mkdir()
    (tmp_path / ".yolov5-abcdefgh" / "old" / "7").mkdir(parents=True)
    with pytest.raises(RuntimeError), new_version(repository) as (_, version):
        assert version.name == "8"
        raise RuntimeError
    assert (repository / "yolov5" / "7").is_dir()
    assert not list(tmp_path.glob(".yolov5-*"))


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder with a capacity of two pages."""
    folder = tmp_path / "full"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8k", "tmpfs", str(folder)]
    if os.getuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a small file system cannot be mounted here")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.parametrize("what", ["temporary files", "repository", "saved file"])
@pytest.mark.parametrize("weights", ["best.pt", "best.onnx"])
def test_full_disk_is_reported_in_one_sentence(
    small_weights: Path,
    small: Path,
    tmp_path: Path,
    full_disk: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    what: str,
    weights: str,
) -> None:
    repository = (full_disk if what == "repository" else tmp_path) / "repository"
    served = repository / "yolov5"
    (served / "7").mkdir(parents=True)
    (served / "labels.txt").write_text("old\n")
    arguments = ["--imgsz=64", f"--repository={repository}"]
    if what == "temporary files":
        monkeypatch.setattr(tempfile, "tempdir", str(full_disk))
    if what == "saved file":
        arguments.append(f"--save={full_disk / 'best.safetensors'}")
    source = small_weights
    if weights == "best.onnx":
        if what == "saved file":
            pytest.skip("only checkpoints are saved")
        source = small.rename(tmp_path / weights)
    assert command.main([str(source), *arguments]) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1
    assert "No space left on device" in said
    assert (served / "labels.txt").read_text() == "old\n"
    assert [path.name for path in served.iterdir() if path.is_dir()] == ["7"]
    assert not list(repository.parent.glob(".yolov5-*"))


def test_command_installs_weights_and_reports_missing_files(
    small_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main([str(small_weights), "--imgsz", "64", "--repository", str(tmp_path)]) == 0
    assert (tmp_path / "yolov5" / "1" / "model.onnx").is_file()
    assert (tmp_path / "yolov5" / "labels.txt").read_text() == "Platelets\nRBC\nWBC\n"
    assert command.main([str(tmp_path / "none.pt"), "--repository", str(tmp_path)]) == 1
    assert capsys.readouterr().err == "error: none.pt cannot be read: No such file or directory.\n"


@pytest.mark.skipif(not SHARED.exists(), reason="third-party checkpoints are not available")
@pytest.mark.parametrize(
    "name, classes, first",
    [
        ("yolov5n_v7.0.pt", 80, "person"),
        ("yolov5s_v5.0.pt", 80, "person"),  # an older graph, and a NumPy number beside it
        ("crop_best.pt", 1, "tobacco"),  # names a function of the dill library
    ],
)
def test_third_party_checkpoints_are_loaded(name: str, classes: int, first: str) -> None:
    checkpoint = load_checkpoint(SHARED / "weights" / name)
    assert (len(checkpoint.names), checkpoint.names[0]) == (classes, first)
    with torch.no_grad():
        assert checkpoint.network(torch.zeros(1, 3, 64, 64)).shape == (1, 252, 5 + classes)
