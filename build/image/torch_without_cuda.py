"""Take the CUDA half out of an installed torch, so that an image for CPUs need not carry it.

PyPI has torch for x86-64 with CUDA only. Its Python library is linked to `libtorch_cuda.so`, and
that to three gigabytes of NVIDIA's. None of it runs on a machine without a GPU, but the dynamic
loader wants each of the names. One small library takes their place: it defines every symbol that
the remaining libraries import and none of them defines. A function in it ends the process; a type
has its name and no base, which is what pybind11 looks at when `import torch` registers it.

Needs `nm`, `strip`, `as` and `ld` (Debian: binutils). Usage: torch_without_cuda.py SITE_PACKAGES
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

# In torch/lib: what runs on a GPU only.
CUDA = (
    "libcaffe2_nvrtc.so",
    "libtorch_cuda.so",
    "libtorch_cuda_linalg.so",
    "libtorch_nvshmem.so",
)
STAND_IN = "libtorch_cuda.so"
# Further names under which the loader looks for a library that is not there.
OTHER_NAMES = ("libcudnn.so.9", "libcufile.so.0", "libnccl.so.2")
# Folders of torch that only compilers, linkers and torch's own tests read.
UNUSED = ("include", "share", "test", "lib/libshm_windows")
SHM_MANAGER = "torch_shm_manager"  # the one program that `import torch` looks for
# Called while torch's Python library is loaded: c10d::get_gil_checker(), which returns a reference
# to a pointer to be set.
RETURNS_STORAGE = "_ZN4c10d15get_gil_checkerEv"
# After this line torch's Python code looks at what its library can do ...
LOADED = "    from torch._C import *  # noqa: F403\n"
# ... and finds what it finds in a build for CPUs: no CUDA, and no distributed computing, whose
# parts for NVIDIA's NCCL would be set up at import.
HIDDEN = ("_c10d_init", "_cuda_getDeviceCount", "_dist_autograd_init", "_rpc_init")
# The interpreter itself defines these.
PYTHON = ("Py", "_Py")


def main(site_packages: Path) -> None:
    """Replace torch's CUDA libraries, and strip and thin out what stays."""
    library_folder = site_packages / "torch" / "lib"
    for name in CUDA:
        (library_folder / name).unlink()
    for name in UNUSED:
        shutil.rmtree(site_packages / "torch" / name, ignore_errors=True)
    for program in (site_packages / "torch" / "bin").iterdir():
        if program.name != SHM_MANAGER:
            program.unlink()
    torch = [*library_folder.glob("*.so*"), *site_packages.glob("torch*/_C*.so")]
    nvidia = [*site_packages.glob("nvidia/*/lib/*.so*")]
    missing = missing_symbols(torch, [*torch, *nvidia, *system_libraries(torch)])
    build(missing, library_folder / STAND_IN)
    for name in OTHER_NAMES:
        (library_folder / name).symlink_to(STAND_IN)
    hide(site_packages / "torch")
    for library in torch:
        run("strip", "--strip-unneeded", str(library))


def hide(torch: Path) -> None:
    """Have torch's Python code see a build for CPUs."""
    module = torch / "__init__.py"
    text = module.read_text()
    if LOADED not in text:
        raise SystemExit(f"{module} has no line {LOADED.strip()!r}; this script is for torch 2.14.")
    hidden = ", ".join(f"_built.{name}" for name in HIDDEN)
    lines = ("import torch._C as _built", "_built._has_cuda = False", f"del {hidden}, _built")
    module.write_text(text.replace(LOADED, LOADED + "".join(f"    {line}\n" for line in lines)))


def missing_symbols(libraries: Iterable[Path], present: Iterable[Path]) -> dict[str, str]:
    """The symbols that a library cannot do without and that no present one defines.

    Returns:
        The version that is asked for by the symbol's name; empty for none.
    """
    wanted = {
        name: version for path in libraries for kind, name, version in symbols(path) if kind == "U"
    }
    defined = {name for path in present for kind, name, _ in symbols(path) if kind not in "Uwv"}
    return {
        name: version
        for name, version in sorted(wanted.items())
        if name not in defined and not name.startswith(PYTHON)
    }


def symbols(library: Path) -> Iterator[tuple[str, str, str]]:
    """Kind, name and version of each dynamic symbol, as `nm` tells them."""
    for line in run("nm", "--dynamic", str(library)).splitlines():
        *_, kind, name = line.split()
        name, _, version = name.partition("@")
        yield kind, name, version.lstrip("@")


def system_libraries(libraries: Iterable[Path]) -> set[Path]:
    """The C and C++ libraries that the dynamic loader finds for these."""
    lines = [line for path in libraries for line in run("ldd", str(path)).splitlines()]
    found = {line.split()[2] for line in lines if " => /" in line}
    loader = {line.split()[0] for line in lines if line.strip().startswith("/")}
    return {Path(path) for path in found | loader}


def assembly(names: Iterable[str]) -> str:
    """Assembler text for a library that defines these names and can do nothing."""
    text = []
    for name in names:
        if name.startswith("_ZTI"):  # typeinfo of a C++ class
            text += [
                '.section .data.rel.ro,"aw"',
                ".balign 8",
                f".globl {name}",
                f".type {name}, @object",
                f"{name}: .quad _ZTVN10__cxxabiv117__class_type_infoE+16, 1f",
                f'.section .rodata\n1: .asciz "{name[4:]}"',
            ]
        elif name.startswith("_ZTV"):  # a virtual table
            text += [".data", ".balign 8", f".globl {name}", f".type {name}, @object"]
            text += [f"{name}: .zero 1024"]
        else:
            text += [".text", f".globl {name}", f".type {name}, @function", f"{name}:"]
            text += ["lea storage(%rip), %rax", "ret"] if name == RETURNS_STORAGE else ["ud2"]
    text += [".local storage", ".comm storage, 64, 64"]
    return "\n".join([*text, '.section .note.GNU-stack,"",@progbits', ""])


def version_script(names: Mapping[str, str]) -> str:
    """The linker's text that gives the symbols their versions."""
    return "\n".join(
        f"{version} {{ {' '.join(f'{name};' for name in names if names[name] == version)} }};"
        for version in sorted({*names.values()} - {""})
    )


def build(names: Mapping[str, str], library: Path) -> None:
    """Make the library that stands in; `names` as from `missing_symbols`."""
    with tempfile.TemporaryDirectory() as folder:
        source, compiled, script = (Path(folder, f"stand_in.{end}") for end in ("s", "o", "map"))
        source.write_text(assembly(names))
        script.write_text(version_script(names))
        run("as", str(source), "-o", str(compiled))
        flags = (f"-soname={library.name}", "--build-id=none", f"--version-script={script}")
        run("ld", "-shared", *flags, str(compiled), "-o", str(library))


def run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


if __name__ == "__main__":
    main(Path(sys.argv[1]))
