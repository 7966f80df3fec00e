"""Each fault of a distribution is found, in made ones that differ from a right one in one point."""

from __future__ import annotations

import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from zipfile import ZipFile

import pytest

from tests.packaging import contents

VERSION = contents.version()
INFORMATION = f"xent-{VERSION}.dist-info"
WHEEL = f"xent-{VERSION}-cp312-abi3-manylinux_2_34_x86_64.whl"
EXTENSION = "xent/kernels/_native.abi3.so"
Files = dict[str, bytes]


def right_wheel() -> Files:
    files = {item.removeprefix("src/"): b"" for item in contents.sources("src/xent")}
    files |= {f"{INFORMATION}/licenses/{licence}": b"" for licence in contents.LICENCES}
    return files | {EXTENSION: b" ".join(contents.ISAS["x86_64"]), "xent.libs/libgomp-1.so": b""}


def without(name: str) -> Callable[[Files], Files]:
    return lambda files: {item: content for item, content in files.items() if item != name}


def plus(name: str, content: bytes = b"") -> Callable[[Files], Files]:
    return lambda files: files | {name: content}


def renamed(old: str, new: str) -> Callable[[Files], Files]:
    return lambda files: {new if item == old else item: content for item, content in files.items()}


WHEELS: list[tuple[str, Callable[[Files], Files], list[str]]] = [
    (WHEEL, dict, []),
    (
        WHEEL.replace("cp312-abi3", "cp314-cp314t"),
        renamed(EXTENSION, "xent/kernels/_native.cpython-314t.so"),
        [],
    ),
    (WHEEL.replace(VERSION, "0.0.1"), dict, ["name: expected", "missing: the licence", "extra: "]),
    (WHEEL.replace("manylinux_2_34", "manylinux2014_x86_64.manylinux_2_17"), dict, []),
    (WHEEL.replace("manylinux_2_34", "linux"), dict, ["tag: expected manylinux"]),
    (WHEEL.replace("cp312-abi3", "cp311-abi3"), dict, ["tag: expected cp311-cp311"]),
    (WHEEL.replace("cp312-abi3", "cp314-cp313t"), dict, ["tag: expected cp311-cp311"]),
    (WHEEL.replace("cp312-abi3", "cp311-cp311"), dict, ["extension: expected one of cp311-cp311"]),
    (WHEEL.replace("cp312-abi3", "cp314-cp314t"), dict, ["extension: expected one of cp314-cp314t"]),
    (WHEEL, without("xent/py.typed"), ["missing: xent/py.typed"]),
    (WHEEL, without("xent/html/templates/report.html.j2"), ["missing: xent/html/templates/report.html.j2"]),
    (WHEEL, without(f"{INFORMATION}/licenses/{contents.LICENCES[1]}"), ["missing: the licence native"]),
    (WHEEL, without(EXTENSION), ["extension: expected one"]),
    (WHEEL, without("xent.libs/libgomp-1.so"), ["OpenMP: expected one libgomp"]),
    (WHEEL, plus("xent.libs/libgomp-2.so"), ["OpenMP: expected one libgomp"]),
    (WHEEL, plus("tests/conftest.py"), ["extra: tests/conftest.py"]),
    (WHEEL, plus("bench/results/fits.json"), ["extra: bench/results/fits.json"]),
    (WHEEL, plus(EXTENSION, b"x86_64_v3 baseline"), ["instruction sets: no kernels for x86_64_v4"]),
]


@pytest.mark.parametrize(("name", "change", "expected"), WHEELS)
def test_wheel(
    name: str,
    change: Callable[[Files], Files],
    expected: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(contents, "_library_faults", lambda content: [])  # no made file is a library
    with ZipFile(tmp_path / name, "w") as archive:
        for item, content in change(right_wheel()).items():
            archive.writestr(item, content)
    found = contents.faults(tmp_path / name)
    assert bool(found) == bool(expected)
    assert all(any(fault.startswith(words) for fault in found) for words in expected), found


OURS = "-Wl,-rpath,$ORIGIN/../../xent.libs"
LINKS = [
    ([], "omp_get_max_threads", ["search path: expected", "links the system's OpenMP"]),
    (["-Wl,-rpath,/usr/lib"], "omp_get_max_threads", ["search path: expected", "links the system's OpenMP"]),
    ([OURS], "omp_get_max_threads", ["links the system's OpenMP"]),
    ([OURS], "getpid", []),
    ([OURS], "Py_IsInitialized", []),
    ([OURS], "arc5random", ["symbols of no library: ['arc5random']"]),
]


@pytest.mark.parametrize(("options", "function", "expected"), LINKS)
@pytest.mark.skipif(not shutil.which("gcc"), reason="needs GCC")
def test_library(options: list[str], function: str, expected: list[str], tmp_path: Path) -> None:
    pytest.importorskip("elftools", reason="pyelftools, which reads libraries, is not installed")
    library, source = tmp_path / "one.so", tmp_path / "one.c"
    source.write_text(
        f"int getpid(void), {function}(void); int one(void) {{ return getpid() + {function}(); }}"
    )
    links = ["-fopenmp"] if function.startswith("omp_") else []
    subprocess.run(["gcc", "-shared", "-fPIC", *options, str(source), *links, "-o", str(library)], check=True)
    found = list(contents._library_faults(library.read_bytes()))
    assert [fault[: len(words)] for fault, words in zip(found, expected, strict=True)] == expected


SDISTS = [
    (None, None, []),
    ("native/math.h", None, ["missing: native/math.h"]),
    ("tests/conftest.py", None, ["missing: tests/conftest.py"]),
    (None, "bench/results/fits.json", ["extra: bench/results/fits.json"]),
    (None, "src/xent/kernels/_native.so", ["extra: src/xent/kernels/_native.so"]),
]


@pytest.mark.parametrize(("left_out", "added", "expected"), SDISTS)
def test_source_distribution(
    left_out: str | None, added: str | None, expected: list[str], tmp_path: Path
) -> None:
    path = tmp_path / f"xent-{VERSION}.tar.gz"
    held = {*contents.SINGLE_FILES, *contents.LICENCES}
    held = held.union(*map(contents.sources, contents.SOURCE_FOLDERS)) - {left_out}
    with tarfile.open(path, "w:gz") as archive:
        for item in {*held, added} - {None}:
            archive.addfile(tarfile.TarInfo(f"xent-{VERSION}/{item}"))
    assert contents.faults(path) == expected


def test_main_prints_faults(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with tarfile.open(tmp_path / "xent-0.0.1.tar.gz", "w:gz"):
        pass
    assert contents.main([str(tmp_path / "xent-0.0.1.tar.gz")]) == 1
    assert f"name: expected xent-{VERSION}.tar.gz; got xent-0.0.1.tar.gz" in capsys.readouterr().out
