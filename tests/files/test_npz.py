"""Arrays of npz and npy files: their usual names and shapes, whole and in batches; rows for testing."""

from __future__ import annotations

import json

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.preprocessing import StandardScaler

from xent.command.cli import main
from xent.files import dataset
from xent.files.dataset import DataError
from xent.files.preprocess import Preprocessor
from xent.regression.estimator import SoftmaxRegression
from xent.report import training

X = np.arange(240.0).reshape(20, 3, 4) % 7
Y = np.arange(20) % 3
ONE_HOT = np.eye(3)[Y]
LABELS = {"y", "labels", "y_train", "y_test", "train_Y", "test_Y"}
# name → (arrays, shape of the features, names of the first and last column, rows held out, dtype)
ARRAYS = {
    "X, y": ({"X": X[:, 0], "y": Y}, (20, 4), ("x0", "x3"), 0, "f8"),
    "x_train, y_train": ({"x_train": X[:, 0], "y_train": Y}, (20, 4), ("x0", "x3"), 0, "f8"),
    "pictures": ({"X": X.astype("u1"), "y": Y}, (20, 12), ("pixel_0_0", "pixel_2_3"), 0, "f4"),
    "of one channel": ({"X": X[..., None], "y": Y}, (20, 12), ("pixel_0_0", "pixel_2_3"), 0, "f8"),
    "in colour": (
        {"images": X.reshape(20, 2, 2, 3).astype("i2"), "labels": Y},
        (20, 12),
        ("pixel_0_0_0", "pixel_1_1_2"),
        0,
        "f4",
    ),
    "of many axes": ({"X": X.reshape(20, 2, 2, 1, 3), "y": Y}, (20, 12), ("x0", "x11"), 0, "f8"),
    "y of two axes": ({"X": X[:, 0], "y": Y[:, None]}, (20, 4), ("x0", "x3"), 0, "f8"),
    "one-hot y": ({"X": X[:, 0], "y": ONE_HOT}, (20, 4), ("x0", "x3"), 0, "f8"),
    "one-hot y of booleans": ({"X": X[:, 0], "y": ONE_HOT > 0}, (20, 4), ("x0", "x3"), 0, "f8"),
    "rows for testing": (
        {"x_train": X[:14].astype("u1"), "y_train": Y[:14], "x_test": X[14:].astype("u1"), "y_test": Y[14:]},
        (20, 12),
        ("pixel_0_0", "pixel_2_3"),
        6,
        "f4",
    ),
    "rows for testing, one-hot": (
        {"train_X": X[:14, 0], "train_Y": ONE_HOT[:14], "test_X": X[14:, 0], "test_Y": ONE_HOT[14:]},
        (20, 4),
        ("x0", "x3"),
        6,
        "f8",
    ),
}  # fmt: skip


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("case", ARRAYS)
def test_arrays_by_their_usual_names_and_shapes(case, order, monkeypatch):
    arrays, shape, ends, held_out, dtype = ARRAYS[case]
    np.savez("f.npz", **{name: np.array(each, order=order) for name, each in arrays.items()})
    found = dataset.load("f.npz")
    features = X.reshape(20, -1)[:, : shape[1]]
    np.testing.assert_array_equal(found.features, features)
    assert found.labels.tolist() == Y.tolist()
    assert (found.feature_names[0], found.feature_names[-1]) == ends
    assert found.features.dtype == np.dtype(dtype)
    assert (found.held_out is not None) is (held_out > 0)
    if held_out:
        assert found.held_out.tolist() == list(range(14, 20))
        assert "the 6 rows of" in found.notes[0]
        assert "are held out" in found.notes[0]
    monkeypatch.setattr(dataset, "PIECE", 30)
    learnt = Preprocessor.fit(found.features, found.feature_names)
    pieces = [batch.features for batch in dataset.batches("f.npz", learnt)]
    assert len(pieces) > (0 if order == "F" else 1)
    np.testing.assert_array_equal(np.concatenate(pieces), features)
    np.save(
        "x.npy",
        np.concatenate(
            [
                each
                for name, each in arrays.items()
                if not name.lower().startswith(("y", "lab", "train_y", "test_y"))
            ]
        ),
    )
    pieces = [batch.features for batch in dataset.batches("x.npy", learnt)]
    np.testing.assert_array_equal(np.concatenate(pieces), features)


def test_an_npy_file_has_no_labels_to_learn():
    np.save("x.npy", X)
    with pytest.raises(DataError, match=r"x\.npy: is an npy file, .* save X and y in one npz file"):
        dataset.load("x.npy")


def test_the_rows_for_testing_are_those_held_out(capsys):
    x, y = load_digits(return_X_y=True)
    np.savez("f.npz", x_train=x[:1500], y_train=y[:1500], x_test=x[1500:], y_test=y[1500:])
    assert main(["fit", "f.npz", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["rows"]["training"], found["rows"]["held_out"]) == (1500, 297)
    expected = SoftmaxRegression(alpha=1e-3)
    scaler = StandardScaler().fit(x[:1500])
    expected.fit(scaler.transform(x[:1500]), y[:1500])
    accuracy = expected.score(scaler.transform(x[1500:]), y[1500:])
    assert abs(found["held_out"]["accuracy"] - accuracy) < 0.01
    assert all(row["row"] > 1500 for row in found["costliest"])


def test_a_class_without_training_rows_is_named():
    np.savez("f.npz", x_train=X[:14], y_train=Y[:14], x_test=X[14:], y_test=Y[14:] + 1)
    with pytest.raises(DataError, match="class 3 is in the rows for testing alone"):
        training.run(dataset.load("f.npz"), training.Settings())
