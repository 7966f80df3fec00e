"""Save and load the model of the command: an estimator and its preprocessor, in one file."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np

from xent.files import storage
from xent.files.preprocess import Preprocessor
from xent.regression.estimator import SoftmaxRegression

Array = np.ndarray[Any, Any]

PREFIX = "preprocessing."  # begins the names of the preprocessor's tensors


class Model(NamedTuple):
    """A model trained on the columns of a table, which ``preprocessor`` transforms for ``estimator``."""

    estimator: SoftmaxRegression
    preprocessor: Preprocessor
    notes: dict[str, Any]  # about the training, as JSON: name of the data, settings

    def predict_log_proba(self, table: Any) -> Array:
        """Log-probabilities (N, K) in the order of ``estimator.classes_``; ``table`` as in training."""
        return self.estimator.predict_log_proba(self.preprocessor.transform(table))


class PreparedRegression(SoftmaxRegression):
    """A SoftmaxRegression whose `contents`, and so its checkpoints, hold the preprocessing of its rows."""

    def prepared_by(self, preprocessor: Preprocessor, notes: dict[str, Any]) -> Self:
        """Set what a `Model` has beside the estimator; return the estimator."""
        self._preprocessor, self._notes = preprocessor, notes
        return self

    def contents(self) -> storage.Contents:
        """The contents of a file that `load` reads."""
        return _contents(super().contents(), self._preprocessor, self._notes)


def save(model: Model, path: str | Path) -> None:
    """Write ``model`` at ``path``; OSError if the file cannot be written."""
    storage.save(_contents(model.estimator.contents(), model.preprocessor, model.notes), path)


def _contents(
    estimator: storage.Contents, preprocessor: Preprocessor, notes: dict[str, Any]
) -> storage.Contents:
    arrays = {PREFIX + name: array for name, array in preprocessor.arrays().items()}
    more = {"preprocessing": preprocessor.to_json(), "notes": notes}
    return storage.Contents(estimator.tensors | arrays, estimator.metadata | more)


def load(path: str | Path) -> Model:
    """The model at ``path``; OSError if it cannot be read, ValueError if it is no model of the command."""
    contents = storage.load(path)
    with storage.reading(path):
        if "preprocessing" not in contents.metadata:
            raise ValueError("holds an estimator without its preprocessing: use SoftmaxRegression.load")
        arrays = {
            name.removeprefix(PREFIX): array
            for name, array in contents.tensors.items()
            if name.startswith(PREFIX)
        }
        estimator = SoftmaxRegression.from_contents(contents)
        preprocessor = Preprocessor.from_json(contents.metadata["preprocessing"], arrays)
        if len(preprocessor.feature_names) != estimator.n_features_in_:
            raise ValueError(
                f"its preprocessing makes {len(preprocessor.feature_names)} features, "
                f"its estimator takes {estimator.n_features_in_}"
            )
        return Model(estimator, preprocessor, storage.entry(contents.metadata, "notes", dict))
