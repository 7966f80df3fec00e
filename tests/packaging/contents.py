"""What a wheel and a source distribution must hold.

``python -m tests.packaging.contents dist/*`` prints a line for each fault and exits 1 if there is one.
auditwheel and abi3audit check whether the symbols fit the tag, and twine the metadata; `make wheel` runs all.
"""

from __future__ import annotations

import io
import re
import sys
import tarfile
import tomllib
from collections.abc import Iterator
from pathlib import Path
from zipfile import ZipFile

ROOT = Path(__file__).parents[2]
SINGLE_FILES = ["CMakeLists.txt", "pyproject.toml", "README.md", "CHANGELOG.md", "CITATION.cff", "Makefile"]
SOURCE_FOLDERS = ["src", "native", "tests", "examples"]
LICENCES = ["LICENSE", "native/third_party/xla/LICENSE"]
ISAS = {"x86_64": [b"x86_64_v4", b"x86_64_v3", b"baseline"], "aarch64": [b"baseline"]}


def version() -> str:
    """The version in pyproject.toml."""
    return str(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"])


def sources(folder: str) -> set[str]:
    """Paths of the source files in a folder, relative to the repository; what was built is left out."""
    files = (path for path in (ROOT / folder).rglob("*") if path.is_file())
    made = {".so", ".pyd", ".pyc"}
    return {str(path.relative_to(ROOT)) for path in files if path.suffix not in made}


def faults(path: Path) -> list[str]:
    """What is wrong with a distribution, a line for each fault."""
    return list((_sdist_faults if path.name.endswith(".tar.gz") else _wheel_faults)(path))


def _wheel_faults(path: Path) -> Iterator[str]:
    name, number, python, abi, platform = path.stem.split("-")
    if (name, number) != ("xent", version()):
        yield f"name: expected xent-{version()}; got {name}-{number}"
    free_threaded = re.fullmatch(r"cp3\d+", python) and abi == f"{python}t"
    if not free_threaded and (python, abi) not in {("cp311", "cp311"), ("cp312", "abi3")}:
        yield f"tag: expected cp311-cp311, cp312-abi3 or cp3??-cp3??t; got {python}-{abi}"
    if not platform.startswith(("manylinux", "musllinux")):
        yield f"tag: expected manylinux or musllinux; got {platform}"
    with ZipFile(path) as archive:
        held = {item.filename for item in archive.infolist() if not item.is_dir()}
        extensions = {item for item in held if item.startswith("xent/kernels/_native.") and ".so" in item}
        runtimes = {item for item in held if item.startswith("xent.libs/libgomp-")}
        information = {item for item in held if item.startswith(f"xent-{number}.dist-info/")}
        package = {item.removeprefix("src/") for item in sources("src/xent")}
        yield from (f"missing: {item}" for item in sorted(package - held))
        yield from (f"extra: {item}" for item in sorted(held - package - extensions - runtimes - information))
        for licence in LICENCES:
            if f"xent-{number}.dist-info/licenses/{licence}" not in information:
                yield f"missing: the licence {licence}"
        if len(extensions) != 1 or any(item.endswith(".abi3.so") != (abi == "abi3") for item in extensions):
            yield f"extension: expected one of {python}-{abi}; got {sorted(extensions)}"
        if len(runtimes) != 1:
            yield f"OpenMP: expected one libgomp in xent.libs; got {sorted(runtimes)}"
        for extension in extensions:
            content = archive.read(extension)
            for isa in ISAS["aarch64" if platform.endswith("aarch64") else "x86_64"]:
                if isa not in content:
                    yield f"instruction sets: no kernels for {isa.decode()} in {extension}"
            yield from (f"{extension}: {fault}" for fault in _library_faults(content))


def _library_faults(content: bytes) -> Iterator[str]:
    """Whether a library searches in its wheel only, links its libgomp, and names where each symbol is."""
    from elftools.elf.elffile import ELFFile

    library = ELFFile(io.BytesIO(content))
    tags = list(library.get_section_by_name(".dynamic").iter_tags())
    searched = [getattr(tag, name, "") for tag in tags for name in ("rpath", "runpath")]
    paths = [path for value in searched for path in value.split(":") if path]
    if paths != ["$ORIGIN/../../xent.libs"]:
        yield f"search path: expected $ORIGIN/../../xent.libs; got {paths}"
    if "libgomp.so.1" in (linked := [tag.needed for tag in tags if hasattr(tag, "needed")]):
        yield f"links the system's OpenMP: {linked}"
    # auditwheel judges by versions. A symbol without one may be of a newer glibc than the tag says.
    if versions := library.get_section_by_name(".gnu.version"):  # musl has none
        symbols = enumerate(library.get_section_by_name(".dynsym").iter_symbols())
        strong = [(i, x) for i, x in symbols if x["st_info"]["bind"] == "STB_GLOBAL"]
        needed = [(i, x.name) for i, x in strong if x["st_shndx"] == "SHN_UNDEF"]
        lost = [name for i, name in needed if str(versions.get_symbol(i)["ndx"]).startswith("VER_NDX_")]
        if lost := sorted(name for name in lost if not name.startswith(("Py", "_Py"))):
            yield f"symbols of no library: {lost}"


def _sdist_faults(path: Path) -> Iterator[str]:
    if path.name != f"xent-{version()}.tar.gz":
        yield f"name: expected xent-{version()}.tar.gz; got {path.name}"
    with tarfile.open(path) as archive:
        held = {item.name.partition("/")[2] for item in archive if item.isfile()}
    needed = {*SINGLE_FILES, *LICENCES}
    for folder in SOURCE_FOLDERS:
        needed |= sources(folder)
    yield from (f"missing: {item}" for item in sorted(needed - held))
    built = (".so", ".pyd", ".pyc", ".whl")
    wrong = [x for x in held if x.endswith(built) or x.startswith(("bench/results", "."))]
    yield from (f"extra: {item}" for item in sorted(wrong))


def main(paths: list[str]) -> int:
    """Print the faults of the distributions; the exit status."""
    found = [f"{path}: {fault}" for path in paths for fault in faults(Path(path))]
    print("\n".join(found) or f"{len(paths)} distributions hold what they must")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
