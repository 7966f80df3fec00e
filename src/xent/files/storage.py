"""Atomic writing of files; model files, safetensors with JSON metadata, checked as they are read."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from errno import EINVAL, EISDIR, ELOOP, ENOENT
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

Array = np.ndarray[Any, Any]
T = TypeVar("T")

FORMAT = "xent-model"
VERSION = 1  # of the layout of the file
METADATA_LIMIT = 1 << 25  # characters of JSON, enough for a million feature names; a few hundred MB parsed
TEXT_LIMIT = 1 << 28  # characters of an array of text labels; NumPy pads each to the longest
DTYPES = {"F64": np.float64, "F32": np.float32, "I64": np.int64}
LABEL_DTYPES = (
    "bool",
    "float16",
    "float32",
    "float64",
    *(f"{u}int{n}" for u in ("", "u") for n in (8, 16, 32, 64)),
)


class Contents(NamedTuple):
    """The contents of a model file. Each part of a model adds its tensors and its entry of ``metadata``.

    ``tensors``: finite float64, float32 or int64 arrays by name. ``metadata``: a JSON object without NaN
    and infinity. `SoftmaxRegression` uses the tensors ``coef`` and ``intercept`` and the entry
    ``"estimator"``; the preprocessing of the features is the entry ``"preprocessing"``.
    """

    tensors: dict[str, Array]
    metadata: dict[str, Any]


def save(contents: Contents, path: str | Path) -> None:
    """Write ``contents`` at ``path`` atomically; the same contents give the same bytes.

    Raises OSError if the file cannot be written, ValueError if `load` would refuse it.
    """
    import safetensors.numpy

    for name, tensor in contents.tensors.items():
        if tensor.dtype not in DTYPES.values():
            raise ValueError(f"cannot be stored: tensor {name!r} of dtype {tensor.dtype}")
        _require_finite(name, tensor)
    tensors = {name: np.ascontiguousarray(tensor) for name, tensor in contents.tensors.items()}
    text = _json(contents.metadata)
    # One key, because safetensors writes several in any order.
    whole = _json({"version": VERSION, "sha256": _digest(tensors, text), "metadata": contents.metadata})
    if len(whole) > METADATA_LIMIT:
        raise ValueError(
            f"cannot be stored: {len(whole):,} characters of metadata; {METADATA_LIMIT:,} at most"
        )
    write(path, safetensors.numpy.save(tensors, {FORMAT: whole}))


def load(path: str | Path) -> Contents:
    """The contents of the model file at ``path``; nothing in it is executed.

    Raises OSError if the file cannot be read, ValueError if it is no model file, is cut short, has another
    checksum than was written (which finds damage, but proves no origin), or is of a later version.
    """
    import safetensors

    path = Path(path)
    with reading(path):
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe or a device may never end
            raise ValueError("is not a model file: not a regular file")
        try:
            with safetensors.safe_open(path, framework="numpy") as file:
                whole = _header((file.metadata() or {}).get(FORMAT))
                tensors = {name: _tensor(file, name) for name in file.keys()}  # noqa: SIM118
        except safetensors.SafetensorError as error:
            raise ValueError(f"is not a model file: {error}") from None
        if whole["sha256"] != _digest(tensors, _json(whole["metadata"])):
            raise ValueError("is damaged: its contents do not have the checksum written with them")
        for name, tensor in tensors.items():
            _require_finite(name, tensor)
        return Contents(tensors, whole["metadata"])


def _header(text: str | None) -> dict[str, Any]:
    """Parse and check the JSON object that is safetensors' one metadata entry."""
    if text is None:
        raise ValueError(f"is not a model file: no {FORMAT!r} in its metadata")
    if len(text) > METADATA_LIMIT:
        raise ValueError(f"is not a model file: {len(text):,} characters of metadata")
    try:
        whole = json.loads(text)
        _json(whole)  # refuses too deep nesting, NaN and infinity, which json.loads accepts
    except (ValueError, RecursionError) as error:
        raise ValueError(f"is not a model file: its metadata is no JSON: {error}") from None
    if not isinstance(whole, dict):
        raise ValueError(f"is not a model file: its metadata is no JSON object: {shortened(whole)}")
    version = entry(whole, "version", int)
    if version != VERSION:
        raise ValueError(f"is a model file of version {version!r}; this version of xent reads {VERSION}")
    entry(whole, "sha256", str)
    entry(whole, "metadata", dict)
    return whole


def _tensor(file: Any, name: str) -> Array:
    dtype = file.get_slice(name).get_dtype()
    if dtype not in DTYPES:
        raise ValueError(f"is not a model file: tensor {name!r} is of dtype {dtype}")
    return np.asarray(file.get_tensor(name))


def _require_finite(name: str, tensor: Array) -> None:
    if not np.isfinite(tensor).all():
        raise ValueError(f"tensor {name!r} holds NaN or infinity")


def _digest(tensors: Mapping[str, Array], text: str) -> str:
    digest = hashlib.sha256(text.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(_json([name, tensor.dtype.str, tensor.shape]).encode())
        digest.update(tensor.data)
    return digest.hexdigest()


def _json(value: Any) -> str:
    try:
        return json.dumps(value, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"cannot be stored: {error}") from None


def entry(metadata: Mapping[str, Any], name: str, *types: type[T]) -> T:
    """``metadata[name]``; ValueError if it is missing or not of one of ``types``. A bool is not an int."""
    value: Any = metadata.get(name)
    if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
        expected = " or ".join("null" if t is type(None) else t.__name__ for t in types)
        raise ValueError(f"its entry {name!r} must be {expected}; got {shortened(value)}")
    return value


def shortened(value: Any, limit: int = 60) -> str:
    """``repr(value)``, cut to ``limit`` characters."""
    text = repr(value)
    return text if len(text) <= limit else f"{text[:limit]}…"


def encode_labels(labels: Array) -> dict[str, Any]:
    """Class labels (K,) of numbers, booleans or text as a JSON object; ValueError for other labels."""
    values = labels.tolist()
    name = "str" if labels.dtype.kind == "U" else labels.dtype.name
    kinds = {type(value) for value in values}
    can_be_stored = name in (*LABEL_DTYPES, "str") or (
        name == "object" and len(kinds) == 1 and kinds <= {str, int, bool}
    )
    if not can_be_stored:
        raise ValueError(f"labels of dtype {labels.dtype} cannot be stored: {shortened(values)}")
    return {"dtype": name, "values": values}


def decode_labels(encoded: Mapping[str, Any]) -> Array:
    """The inverse of `encode_labels`; ValueError unless the labels are sorted and distinct."""
    name, values = entry(encoded, "dtype", str), entry(encoded, "values", list)
    kinds = {type(value) for value in values}
    if name == "str":
        fits = kinds <= {str} and len(values) * max(map(len, values), default=0) <= TEXT_LIMIT
    elif name == "object":
        fits = len(kinds) == 1 and kinds <= {str, int, bool}
    else:
        fits = name in LABEL_DTYPES and kinds <= {type(np.zeros(1, name).tolist()[0])}
    try:
        labels = np.array(values, name) if fits else None
    except OverflowError:
        labels = None
    if labels is None or labels.tolist() != values or any(a >= b for a, b in pairwise(values)):
        raise ValueError(
            f"its labels must be sorted, distinct and of dtype {name!r}; got {shortened(values)}"
        )
    return labels


@contextmanager
def reading(path: str | Path) -> Iterator[None]:
    """Prefix a ValueError with ``path``."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def write(path: str | Path, content: bytes) -> None:
    """Write ``content`` at ``path`` atomically, by `replacing`."""
    with replacing(path) as beside, _named(Path(path)):
        beside.write_bytes(content)


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary file beside ``path``; rename it to ``path`` at the end, or delete it on an error.

    A reader of ``path``, also after a power cut, sees the old file or the new one, never a part. If ``path``
    is a symbolic link, its target is replaced and the link stays. The new file has the permissions of the
    old one. Another hard link to the old file keeps the old contents.
    """
    path = Path(path)
    with _named(path):
        target = _replaceable(path)
        beside = _new_file(target)
    try:
        yield beside
        with _named(path):
            _flush(beside)
            if target.exists() and _mode(beside) != _mode(target):
                os.chmod(beside, _mode(target))
            os.replace(beside, target)
            _flush(target.parent)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def _new_file(target: Path) -> Path:
    """An empty file beside ``target``: private to the owner if ``target`` is, otherwise by the umask."""
    private = target.exists() and not _mode(target) & 0o077
    while True:
        beside = target.with_name(f".{target.name[:50]}.{secrets.token_hex(4)}")
        try:
            os.close(os.open(beside, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600 if private else 0o666))
        except FileExistsError:
            continue
        return beside


def _mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def _flush(path: Path) -> None:
    """fsync a file or directory; do nothing where the file system does not support it."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:  # the directory is not readable, or this system cannot open directories
        return
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != EINVAL:
            raise
    finally:
        os.close(handle)


def require_writable(path: str | Path) -> None:
    """Raise OSError if `write` to ``path`` would fail because of a missing directory or permission."""
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(EISDIR, "cannot be written: is a directory", str(path))
    if not path.parent.is_dir():
        message = f"cannot be written: no directory {path.parent}"
        raise FileNotFoundError(ENOENT, message, str(path))
    with _named(path), tempfile.TemporaryFile(dir=_replaceable(path).parent):
        pass


def _replaceable(path: Path) -> Path:
    """``path`` with links resolved; OSError for a device or a pipe, which must not become a file."""
    target = Path(os.path.realpath(path))
    if target.is_symlink():  # realpath leaves a link that leads back to itself
        raise OSError(ELOOP, os.strerror(ELOOP))
    if target.exists() and not target.is_file():
        raise OSError(EINVAL, "is not a regular file")
    return target


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Make an OSError name ``path``, not the temporary file beside it."""
    try:
        yield
    except OSError as error:
        message = f"cannot be written: {(error.strerror or str(error)).lower()}"
        raise OSError(error.errno, message, str(path)) from None
