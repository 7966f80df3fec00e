"""Unpack a file that gzip, bzip2, xz or zstd compressed, or the only file in a zip archive, by pieces."""

from __future__ import annotations

import bz2
import gzip
import lzma
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from xent.files.errors import DataError

PIECE = 1 << 20  # bytes to unpack at a time
NAMES = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
# Raised for data that are cut, changed, encrypted or compressed by an unknown method.
DAMAGED = (OSError, EOFError, RuntimeError, zlib.error, lzma.LZMAError, zipfile.BadZipFile)


def unpacker(path: Path, head: bytes) -> Callable[[Path], None] | None:
    """A function that unpacks ``path``, which begins with ``head``, to another path; None if not packed.

    Raises DataError if a package is needed for it. The function raises DataError for a damaged file.
    """
    if head.startswith(b"PK"):
        member = _only_member(path)
        return None if member is None else lambda target: _unzip(path, member, target)
    name = next((name for magic, name in NAMES.items() if head.startswith(magic)), None)
    if name is None or (name == "bzip2" and head[4:10] != b"1AY&SY"):  # text may begin with BZh
        return None
    if name == "gzip":
        return lambda target: _write(path, name, gzip.open(path), target)
    decompressor = {"bzip2": bz2.BZ2Decompressor, "xz": lzma.LZMADecompressor}.get(name) or _zstd(path)
    return lambda target: _write(path, name, _Streams(path, decompressor), target)


class _Streams:
    """The contents of all streams in a file. bz2 and lzma would end at the first that is damaged."""

    def __init__(self, path: Path, decompressor: Callable[[], Any]) -> None:
        self.file = path.open("rb")
        self.pieces = self._pieces(decompressor)

    def __enter__(self) -> _Streams:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def read(self, _: int = -1) -> bytes:
        """The next piece; empty at the end."""
        return next((piece for piece in self.pieces if piece), b"")

    def _pieces(self, decompressor: Callable[[], Any]) -> Iterator[bytes]:
        packed = self.file.read(PIECE)
        while packed:
            stream = decompressor()
            while not stream.eof:
                yield stream.decompress(packed, PIECE)
                packed = self.file.read(PIECE) if stream.needs_input else b""
                if stream.needs_input and not packed:
                    raise EOFError("it ends too early")
            packed = stream.unused_data or packed or self.file.read(PIECE)
            while packed and not packed.strip(b"\0"):  # padding
                packed = self.file.read(PIECE)
            packed = packed.lstrip(b"\0")


def _zstd(path: Path) -> Callable[[], Any]:
    try:
        from compression import zstd  # from Python 3.14
    except ModuleNotFoundError:
        try:
            from backports import zstd
        except ModuleNotFoundError:
            raise DataError(
                f"{path}: is compressed by zstd; to read it: pip install backports.zstd, or unpack it first: "
                f"unzstd {path.name}"
            ) from None
    return lambda: _Zstd(zstd)


class _Zstd:
    """A decompressor whose errors are EOFErrors, as zstd's own class of errors is known only if installed."""

    def __init__(self, zstd: Any) -> None:
        self.stream, self.error = zstd.ZstdDecompressor(), zstd.ZstdError

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def decompress(self, packed: bytes, most: int) -> bytes:
        """As that of bz2."""
        try:
            return bytes(self.stream.decompress(packed, most))
        except self.error as error:
            raise EOFError(str(error)) from None


def _only_member(path: Path) -> str | None:
    """The name of the only file in a zip archive that holds one, and no array; None for other archives."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [each.filename for each in archive.infolist() if not each.is_dir()]
    except Exception:  # damaged: the reader of npz files raises the error
        return None
    names = [name for name in names if not (name.startswith("__MACOSX/") or Path(name).name[:1] == ".")]
    return names[0] if len(names) == 1 and not names[0].endswith(".npy") else None


def _unzip(path: Path, member: str, target: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        try:
            file = archive.open(member)
        except (*DAMAGED, NotImplementedError) as error:
            raise DataError(f"{path}: {member} in it cannot be unpacked: {error}") from None
        _write(path, "zip", file, target)


def _write(path: Path, name: str, packed: IO[bytes] | gzip.GzipFile | _Streams, target: Path) -> None:
    with packed as source, target.open("wb") as file:
        try:
            while piece := source.read(PIECE):
                file.write(piece)
        except DAMAGED as error:
            if getattr(error, "errno", None) is not None:  # the disk is full
                raise
            raise DataError(f"{path}: is damaged: it cannot be unpacked as {name}: {error}") from None
