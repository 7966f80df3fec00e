"""Model files: what is saved comes back to the bit; anything else is one clear error, whatever its bytes."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from sklearn.datasets import load_iris

import xent
from xent.files import storage
from xent.files.preprocess import Preprocessor
from xent.files.storage import Contents
from xent.regression.saved import model_file

X, Y = load_iris(return_X_y=True)


def fitted(labels=None, **options) -> xent.SoftmaxRegression:
    y = Y if labels is None else np.asarray(labels)[Y]
    return xent.SoftmaxRegression(**{"alpha": 0.1} | options).fit(X, y)


LABELS = {
    "text": ["ant", "bee", "cät 🐈"],
    "text of object": np.array(["ant", "bee", "cat"], object),
    "integers": [-7, 0, 2**40],
    "int8": np.array([-1, 0, 1], np.int8),
    "uint64": np.array([0, 1, 2**64 - 1], np.uint64),
    "floats": [-0.0, 1.0, 3.0],
    "two": [0, 1, 1],
    "booleans": [False, True, True],
    "a lone surrogate": ["a", "b", "\ud800"],
}


@pytest.mark.parametrize("labels", LABELS.values(), ids=LABELS)
def test_labels_come_back_with_their_dtype(labels, tmp_path):
    before = fitted(labels)
    before.save(tmp_path / "m")
    after = xent.SoftmaxRegression.load(tmp_path / "m")
    assert after.classes_.dtype == before.classes_.dtype
    assert after.classes_.tolist() == before.classes_.tolist()
    np.testing.assert_array_equal(after.predict(X), before.predict(X))


OPTIONS = [
    {},
    {"class_weight": {0: 2.0, 2: 0.5}, "solver": "lbfgs", "fit_intercept": False, "warm_start": True},
    {"class_weight": "balanced", "label_smoothing": 0.1, "smoothing_over": "others", "random_state": 3},
    {"focal_gamma": 2.0, "max_iter": np.int64(500), "tol": np.float64(1e-3)},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_all_that_was_fitted_comes_back(options, dtype, tmp_path):
    before = xent.SoftmaxRegression(alpha=0.1, callback=lambda step: None, **options).fit(X.astype(dtype), Y)
    before.temperature_ = 1.7
    before.save(tmp_path / "m")
    after = xent.SoftmaxRegression.load(tmp_path / "m")
    assert after.get_params() == before.get_params() | {"callback": None}
    assert after.coef_.dtype == dtype
    for name, value in vars(before).items():
        if name.endswith("_"):
            np.testing.assert_array_equal(getattr(after, name), value, err_msg=name)
    np.testing.assert_array_equal(after.predict_log_proba(X), before.predict_log_proba(X))
    after.fit(X, Y)


def test_feature_names_come_back(tmp_path):
    names = ["a", "b", "ç", "d d"]
    table = pytest.importorskip("polars").DataFrame(X, schema=names, orient="row")
    before = xent.SoftmaxRegression().fit(table, Y)
    before.save(tmp_path / "m")
    after = xent.SoftmaxRegression.load(tmp_path / "m")
    assert after.feature_names_in_.tolist() == names
    np.testing.assert_array_equal(after.predict(table), before.predict(table))
    with pytest.raises(ValueError, match="feature names"):
        after.predict(table.select(names[::-1]))


def test_the_same_model_is_the_same_bytes(model, saved, tmp_path):
    model.save(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == saved
    assert [path.name for path in tmp_path.iterdir()] == ["again"]
    xent.SoftmaxRegression.load(tmp_path / "again").save(tmp_path / "third")
    assert (tmp_path / "third").read_bytes() == saved


def test_the_metadata_says_what_made_it(saved):
    whole = json.loads(
        json.loads(saved[8 : 8 + int.from_bytes(saved[:8], "little")])["__metadata__"]["xent-model"]
    )
    assert whole["version"] == 1
    assert whole["metadata"]["versions"]["xent"] == xent.__version__
    assert whole["metadata"]["estimator"]["parameters"]["alpha"] == 0.1


def test_what_cannot_be_stored_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"labels of dtype datetime64.* cannot be stored"):
        fitted(np.array(["2026-01-01", "2026-01-02", "2026-01-03"], "M8[D]")).save(tmp_path / "m")
    with pytest.raises(ValueError, match="not fitted"):
        xent.SoftmaxRegression().save(tmp_path / "m")
    broken = fitted()
    broken.coef_[0, 0] = np.nan
    with pytest.raises(ValueError, match="tensor 'coef' holds NaN or infinity"):
        broken.save(tmp_path / "m")
    with pytest.raises(ValueError, match="tensor 'x' of dtype float16"):
        storage.save(Contents({"x": np.zeros(1, np.float16)}, {}), tmp_path / "m")
    with pytest.raises(ValueError, match="cannot be stored"):
        storage.save(Contents({}, {"x": float("nan")}), tmp_path / "m")
    with pytest.raises(OSError, match="cannot be written"):
        fitted().save(tmp_path / "no" / "m")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs a pipe in the file system")
def test_what_is_no_file_is_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    os.symlink("pipe", tmp_path / "link")
    os.symlink("itself", tmp_path / "itself")
    (tmp_path / "directory").mkdir()
    before = {path.name: path.lstat().st_mode for path in tmp_path.iterdir()}
    for name, words in (
        ("pipe", "is not a regular file"),
        ("link", "is not a regular file"),
        ("itself", "symbolic links"),
        ("directory", "director|regular file"),
    ):
        for call in (storage.require_writable, lambda path: storage.write(path, b"new")):
            with pytest.raises(OSError, match=f"cannot be written: .*({words})"):
                call(tmp_path / name)
        with pytest.raises(OSError, match=f"cannot be written: .*({words})"):
            fitted().save(tmp_path / name)
    assert {path.name: path.lstat().st_mode for path in tmp_path.iterdir()} == before


def test_a_link_stays_and_what_it_leads_to_is_replaced(model, saved, tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "m").write_bytes(b"old")
    os.symlink(os.path.join("deep", "m"), tmp_path / "link")
    os.symlink("link", tmp_path / "link to link")
    os.symlink(os.path.join("deep", "new"), tmp_path / "to nothing yet")
    for name, target in (("link", "m"), ("link to link", "m"), ("to nothing yet", "new")):
        storage.require_writable(tmp_path / name)
        (tmp_path / "deep" / "m").write_bytes(b"old")
        model.save(tmp_path / name)
        assert (tmp_path / name).is_symlink()
        assert not (tmp_path / "deep" / target).is_symlink()
        assert (tmp_path / "deep" / target).read_bytes() == saved
    assert sorted(path.name for path in (tmp_path / "deep").iterdir()) == ["m", "new"]
    assert len(list(tmp_path.iterdir())) == 4


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o644, 0o664, 0o666, 0o400])
def test_a_file_that_is_replaced_keeps_its_permissions(mode, model, tmp_path):
    path = tmp_path / "m"
    path.write_bytes(b"old")
    path.chmod(mode)
    (tmp_path / "link").symlink_to("m")
    for name in ("m", "link"):
        model.save(tmp_path / name)
        assert path.stat().st_mode & 0o777 == mode
    assert sorted(each.name for each in tmp_path.iterdir()) == ["link", "m"]


def test_a_private_file_is_never_open_to_others_on_the_way(tmp_path):
    path = tmp_path / "m"
    path.touch(0o600)
    with storage.replacing(path) as beside:
        assert beside.stat().st_mode & 0o077 == 0
    with storage.replacing(tmp_path / "new") as beside:
        beside.write_bytes(b"new")
    assert (tmp_path / "new").read_bytes() == b"new"


def test_another_hard_link_keeps_the_old_file(model, saved, tmp_path):
    (tmp_path / "m").write_bytes(b"old")
    os.link(tmp_path / "m", tmp_path / "other")
    model.save(tmp_path / "m")
    assert ((tmp_path / "m").read_bytes(), (tmp_path / "other").read_bytes()) == (saved, b"old")


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_a_new_file_has_what_the_umask_leaves_and_nobody_else_sees_the_umask_change(umask, model, tmp_path):
    code = (
        "import os, sys; from xent.files import storage; os.umask(int(sys.argv[1]))\n"
        "def refuse(mask): raise AssertionError('the umask is of the whole process')\n"
        "os.umask = refuse; storage.write(sys.argv[2], b'new')"
    )
    subprocess.run([sys.executable, "-c", code, str(umask), str(tmp_path / "m")], check=True)
    assert (tmp_path / "m").stat().st_mode & 0o777 == 0o666 & ~umask


def test_a_file_is_on_the_disk_before_it_takes_the_place_of_another(tmp_path, monkeypatch):
    done = []
    plain = os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: done.append(os.path.realpath(f"/proc/self/fd/{handle}")))
    monkeypatch.setattr(os, "replace", lambda *paths: (done.append("replaced"), plain(*paths)))
    storage.write(tmp_path / "m", b"new")
    assert done == [done[0], "replaced", str(tmp_path.resolve())]
    assert done[0].startswith(str(tmp_path.resolve() / ".m."))


def test_names_may_be_as_long_as_the_system_allows(tmp_path):
    for name in ("n" * 255, "ü" * 127):
        storage.write(tmp_path / name, b"new")
        assert (tmp_path / name).read_bytes() == b"new"


# Files as an enemy writes them: safetensors in order, with a checksum that fits.


# The command's model: the same file, with preprocessing.


@pytest.fixture(scope="module")
def command_model() -> model_file.Model:
    learnt = Preprocessor.fit(X, ["a", "b", "c", "d"])
    return model_file.Model(xent.SoftmaxRegression().fit(learnt.transform(X), Y), learnt, {"dataset": "iris"})


def test_the_command_s_model_comes_back(command_model, tmp_path):
    model_file.save(command_model, tmp_path / "m")
    again = model_file.load(tmp_path / "m")
    np.testing.assert_array_equal(again.predict_log_proba(X), command_model.predict_log_proba(X))
    assert again.notes == command_model.notes
    assert again.estimator.score(command_model.preprocessor.transform(X), Y) > 0.9
    with pytest.raises(ValueError, match="holds an estimator behind preprocessing"):
        xent.SoftmaxRegression.load(tmp_path / "m")


def test_an_estimator_alone_is_no_model_of_the_command(model, tmp_path):
    model.save(tmp_path / "m")
    with pytest.raises(ValueError, match=r"without its preprocessing: use SoftmaxRegression\.load"):
        model_file.load(tmp_path / "m")


def test_preprocessing_and_estimator_must_fit(command_model, tmp_path):
    narrow = Preprocessor.fit(X[:, :3], ["a", "b", "c"])
    model_file.save(command_model._replace(preprocessor=narrow), tmp_path / "m")
    with pytest.raises(ValueError, match="preprocessing makes 3 features, its estimator takes 4"):
        model_file.load(tmp_path / "m")
