"""What a file of another kind is, by its first bytes, and how to convert it to one that is read here."""

from __future__ import annotations

import json
import re
import zipfile
from pathlib import Path

from xent.files.errors import DataError

HEAD = 1 << 12  # bytes to look at
CONVERT = "save it as CSV or Parquet"
# first bytes → (what it is, what to do)
MAGIC = {
    b"\x04\x22\x4d\x18": ("is compressed by lz4", "unpack it first: unlz4"),
    b"7z\xbc\xaf\x27\x1c": ("is a 7z archive", "unpack it first: 7z x"),
    b"Rar!": ("is a rar archive", "unpack it first: unrar x"),
    b"FEA1": ("is an old feather file", CONVERT),
    b"PARE": ("is an encrypted Parquet file", "save it without encryption"),
    b"ORC": ("is an ORC file", CONVERT),
    b"Obj\x01": ("is an Avro file", "save it as Parquet: polars.read_avro, then write_parquet"),
    b"\x89HDF\r\n\x1a\n": ("is an HDF5 file", "save its arrays as npz: h5py, then numpy.savez"),
    b"SQLite format 3\0": ("is an SQLite database", "save a table of it as CSV"),
    b"MATLAB 5.0": ("is a MATLAB file", "save its arrays as npz: scipy.io.loadmat, then numpy.savez"),
    b"RDX": ("is an R data file", "save it as CSV by write.csv"),
    b"%PDF": ("is a PDF file", "save its table as CSV"),
    b"\x89PNG": ("is a PNG picture", "save the pixels of all pictures as npz"),
    b"\xff\xd8\xff": ("is a JPEG picture", "save the pixels of all pictures as npz"),
}
NPZ = "save its arrays as npz: numpy.savez"
URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
ARRAY = "is an npy file, one array without a name", "save X and y in one npz file: numpy.savez"
NPY = b"\x93NUMPY"


def require_file(name: str, expected: str) -> None:
    """Raise DataError if ``name`` cannot be a file: "-", a URL, a directory, a pipe or a device."""
    path = Path(name)
    if name == "-":
        raise DataError(
            f"-: standard input is not read, since a file is read more than once; save it as {expected}"
        )
    require_no_address(name)
    if path.is_dir():
        raise DataError(f"{name}: is a directory; expected a file, {expected}")
    if path.exists() and not path.is_file():
        raise DataError(
            f"{name}: is a pipe or a device, which can be read once only; expected a file: save it first"
        )


def is_pipe(name: str) -> bool:
    """Whether ``name`` is a pipe, as ``<(command)`` of a shell is: it can be read once."""
    return Path(name).is_fifo()


def require_no_address(name: str) -> None:
    """DataError for a URL."""
    if URL.match(name):
        raise DataError(f"{name}: is an address; download it first, and name the file")


def is_safetensors(head: bytes) -> bool:
    """Whether the file begins with the length of a header that is a JSON object."""
    return head[8:9] == b"{" and b"\0" in head[:8]


def identify(path: Path, expected: str) -> DataError | None:
    """A DataError that says what the file is and how to convert it; None if its kind is not known."""
    description = _identified(path)
    if description is None:
        return None
    what, mend = description
    return DataError(f"{path}: {what}; expected {expected}: {mend}")


def _identified(path: Path) -> tuple[str, str] | None:
    """(what it is, what to do)."""
    with path.open("rb") as file:
        head = file.read(HEAD)
    for magic, (what, mend) in MAGIC.items():
        if head.startswith(magic) and not (magic.isascii() and is_text(head)):
            return what, f"{mend} {path.name}" if mend.startswith("unpack") else mend
    if head.startswith(b"PK"):
        return _archive(path)
    if head.startswith(NPY):
        return ARRAY
    if is_safetensors(head):
        return "is a safetensors file", NPZ
    if head[:1] == b"\x80" and head[1:2] in (b"\2", b"\3", b"\4", b"\5"):
        return "is a pickle of Python, which is never loaded", NPZ
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    if text[:5].lower() in (b"<html", b"<!doc", b"<?xml"):
        return "is an HTML or XML page", "save its table as CSV"
    return _json(text)


def is_text(head: bytes) -> bool:
    """Whether the bytes have no control characters except white space."""
    return not re.search(rb"[\x00-\x08\x0e-\x1f]", head)


def _json(text: bytes) -> tuple[str, str] | None:
    """(what it is, what to do) for JSON, an object or a list on one line or several; None for other text."""
    if text[:1] not in (b"{", b"["):
        return None
    line = text.splitlines()[0].strip()
    lines = "save it as Parquet: polars.read_ndjson, then write_parquet"
    whole = "save it as Parquet: polars.read_json, then write_parquet"
    try:
        first = json.loads(line)
    except (ValueError, RecursionError):
        # The first line is no complete JSON: it may be cut, or the first of several. Look for an opening
        # bracket and a name in quotes.
        opened = re.match(rb'[\[{]\s*([\[{]\s*)?("([^"\\]|\\.)*"\s*[:,\]]|[-\d]|$)', text)
        return ("is JSON", whole) if opened else None
    if isinstance(first, dict):
        more = len(text.splitlines()) > 1
        return ("is JSON lines", lines) if more else ("is JSON", whole)
    return ("is JSON", whole) if isinstance(first, list) else None


def _archive(path: Path) -> tuple[str, str] | None:
    """(what it is, what to do) for a zip file; None for an npz file."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except Exception:  # damaged: the reader of npz files raises the error
        return None
    if any(name.endswith(".npy") for name in names) or not names:
        return None
    if any(name.endswith("data.pkl") for name in names):
        return "is a file of PyTorch, a pickle, which is never loaded", (
            "save its tensors by safetensors.torch.save_file, or as npz by numpy.savez"
        )
    if "mimetype" in names or "content.xml" in names:
        return "is an OpenDocument file", "save the sheet as CSV (UTF-8)"
    if "[Content_Types].xml" in names:
        return "is an Office file", "save its table as CSV (UTF-8)"
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return f"is a zip archive of {shown}", f"unpack it first: unzip {path.name}"
