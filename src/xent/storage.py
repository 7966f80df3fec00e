"""Files that are either whole or not there, and the model file: safetensors with JSON metadata."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from errno import EISDIR, ENOENT
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from xent.api import log_softmax

Array = np.ndarray[Any, Any]

FORMAT = "xent-softmax-regression-1"


class Model(NamedTuple):
    """A trained model on raw features ``x (N, D)``: the scores are ``((x − mean)/scale) Wᵀ + b``."""

    coef: Array  # W (K, D), one row a class
    intercept: Array  # b (K,)
    mean: Array  # (D,)
    scale: Array  # (D,)
    metadata: dict[str, Any]  # classes, feature_names, options, versions, ...

    def predict_log_proba(self, features: Any) -> Array:
        """Log-probabilities (N, K) in the order of ``metadata["classes"]``."""
        scaled = (np.asarray(features, np.float64) - self.mean) / self.scale
        return log_softmax(scaled @ self.coef.T + self.intercept)


def save(model: Model, path: str | Path) -> None:
    """Write ``model`` at ``path``; OSError if that cannot be."""
    import safetensors.numpy

    tensors = {
        name: np.ascontiguousarray(getattr(model, name), np.float64)
        for name in ("coef", "intercept", "mean", "scale")
    }
    # One key: safetensors writes several in any order, and the same model should be the same bytes.
    metadata = {FORMAT: json.dumps(model.metadata, sort_keys=True)}
    write(path, safetensors.numpy.save(tensors, metadata))


def load(path: str | Path) -> Model:
    """The model at ``path``; OSError if it cannot be read, ValueError if it is no model of ours."""
    import safetensors

    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path}: is not a model file: {error}") from None
    if FORMAT not in metadata:
        raise ValueError(f"{path}: is not a model file of format {FORMAT}")
    return Model(**tensors, metadata=json.loads(metadata[FORMAT]))


def write(path: str | Path, content: bytes) -> None:
    """Write beside the destination, then rename: a reader sees the old file or the new, never a part."""
    path = Path(path)
    with _named(path):
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
            os.chmod(name, 0o666 & ~_umask())  # mkstemp's files are for the owner alone
            os.replace(name, path)
        except BaseException:
            os.unlink(name)
            raise


def require_writable(path: str | Path) -> None:
    """Raise OSError now if `write` to ``path`` would fail for lack of a directory or of permission."""
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(EISDIR, "cannot be written: is a directory", str(path))
    if not path.parent.is_dir():
        message = f"cannot be written: no directory {path.parent}"
        raise FileNotFoundError(ENOENT, message, str(path))
    with _named(path), tempfile.TemporaryFile(dir=path.parent):
        pass


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """An OSError speaks of ``path``, not of the temporary file beside it."""
    try:
        yield
    except OSError as error:
        message = f"cannot be written: {(error.strerror or str(error)).lower()}"
        raise OSError(error.errno, message, str(path)) from None


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
