"""Model files: what is saved comes back to the bit; anything else is one clear error, whatever its bytes."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import subprocess
import sys

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st
from sklearn.base import clone
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


@pytest.fixture(scope="module")
def model() -> xent.SoftmaxRegression:
    return fitted(["setosa", "versicolor", "virginica"])


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("models") / "m.safetensors"
    model.save(path)
    return path.read_bytes()


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


def forged(tensors: dict, metadata: object, version: object = 1, **more: object) -> bytes:
    text = json.dumps(metadata, sort_keys=True)
    digest = hashlib.sha256(text.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(json.dumps([name, tensor.dtype.str, tensor.shape]).encode())
        digest.update(tensor.tobytes())
    whole = {"version": version, "sha256": digest.hexdigest(), "metadata": metadata} | more
    return safetensors.numpy.save(tensors, {"xent-model": json.dumps(whole)})


def replaced(metadata: dict, place: str, value: object) -> dict:
    """A copy with the entry at ``place``, "a.b.c", replaced; left out for value DELETE."""
    copy = json.loads(json.dumps(metadata))
    *way, last = place.split(".")
    inner = copy
    for name in way:
        inner = inner[name]
    if value is DELETE:
        del inner[last]
    else:
        inner[last] = value
    return copy


DELETE = object()
DEEP = json.loads("[" * 800 + "]" * 800)
STATE = "estimator."

WRONG_METADATA = [
    ("estimator", DELETE, "'estimator' must be dict; got None"),
    ("estimator", [1], "'estimator' must be dict"),
    (STATE + "kind", "Ridge", "holds a 'Ridge', no SoftmaxRegression"),
    (STATE + "kind", 5, "'kind' must be str"),
    (STATE + "parameters", DELETE, "'parameters' must be dict"),
    (STATE + "parameters.alpha", "1", "`alpha` must be a number"),
    (STATE + "parameters.alpha", -1.0, "`alpha` must be a number, finite and >= 0; got -1.0"),
    (STATE + "parameters.alpha", [1], r"`alpha` must be a number, .*got \[1\]"),
    (STATE + "parameters.label_smoothing", 10**400, "`label_smoothing` must be in"),
    (STATE + "parameters.label_smoothing", "x", "`label_smoothing` must be a number"),
    (STATE + "parameters.solver", {"a": 1}, "`solver` must be one of"),
    (STATE + "parameters.max_iter", True, "`max_iter` must be an integer"),
    (STATE + "parameters.fit_intercept", "no", "`fit_intercept` must be True or False"),
    (STATE + "parameters.random_state", "os.system", "'random_state' must be int or null"),
    (STATE + "parameters.random_state", -1, "Seed must be between 0"),
    (STATE + "parameters.callback", "print", "unknown parameter 'callback'"),
    (STATE + "parameters.__class__", "print", "unknown parameter '__class__'"),
    (STATE + "parameters.class_weight", [[0]], "class weights must be pairs"),
    (STATE + "parameters.class_weight", [[[0], 1]], "class weights must be labels and numbers"),
    (STATE + "parameters.class_weight", [[0, "a"]], "`class_weight` must be finite"),
    (STATE + "parameters.class_weight", 7, "`class_weight` must be a dict"),
    (STATE + "classes", DELETE, "'classes' must be dict"),
    (STATE + "classes.dtype", "O", "of dtype 'O'"),
    (STATE + "classes.dtype", "U999999999", "of dtype 'U999999999'"),
    (STATE + "classes.dtype", "int64", "of dtype 'int64'"),
    (STATE + "classes.values", ["b", "a", "c"], "sorted, distinct"),
    (STATE + "classes.values", ["a", "a", "c"], "sorted, distinct"),
    (STATE + "classes.values", ["a", "b"], r"coefficients \(3, 4\) .* do not go with 2 classes"),
    (STATE + "classes.values", [], "do not go with 0 classes"),
    (STATE + "classes.values", ["a", "b", 3], "sorted, distinct"),
    (STATE + "classes.values", ["a", "b", DEEP], "is not a model file|sorted, distinct"),
    (STATE + "classes.values", ["a", "b", "c\0"], "sorted, distinct"),
    (STATE + "classes.values", [*"abcdefghijklmnop", "z" * (1 << 24)], "sorted, distinct"),
    (STATE + "classes", {"dtype": "int8", "values": [1, 2, 300]}, "of dtype 'int8'"),
    (STATE + "classes", {"dtype": "uint8", "values": [-1, 2, 3]}, "of dtype 'uint8'"),
    (STATE + "classes", {"dtype": "int64", "values": [1, 2, 10**30]}, "of dtype 'int64'"),
    (STATE + "classes", {"dtype": "object", "values": [1, 2, None]}, "of dtype 'object'"),
    (STATE + "feature_names", ["a", "b"], "feature names must be 4 strings"),
    (STATE + "feature_names", ["a", "b", "c", 4], "feature names must be 4 strings"),
    (STATE + "feature_names", "abcd", "'feature_names' must be list or null"),
    (STATE + "temperature", 0.0, "temperature must be > 0"),
    (STATE + "temperature", None, "'temperature' must be float"),
    (STATE + "temperature", 10**400, "'temperature' must be float"),
    (STATE + "n_iter", 1.5, "'n_iter' must be int"),
    (STATE + "n_iter", True, "'n_iter' must be int; got True"),
    (STATE + "loss_curve", 1.0, "'loss_curve' must be list"),
    (STATE + "loss_curve", [1.0, "a"], "'loss_curve' must be float; got 'a'"),
    (STATE + "optimality_gap", "small", "'optimality_gap' must be float or null"),
    (STATE + "solver", None, "'solver' must be str"),
    ("preprocessing", {"scale": [1.0]}, "use xent.regression.saved.model_file.load"),
]


@pytest.mark.parametrize(
    ("place", "value", "message"), WRONG_METADATA, ids=lambda v: "delete" if v is DELETE else str(v)[:40]
)
def test_metadata_of_another_kind_is_named(place, value, message, model, tmp_path):
    tensors, metadata = model.contents()
    (tmp_path / "m").write_bytes(forged(tensors, replaced(metadata, place, value)))
    with pytest.raises(ValueError, match=message) as raised:
        xent.SoftmaxRegression.load(tmp_path / "m")
    assert str(raised.value).startswith(str(tmp_path / "m"))
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 400


def changed(name: str, tensor: np.ndarray | None):
    def change(tensors: dict) -> dict:
        rest = {key: value for key, value in tensors.items() if key != name}
        return rest if tensor is None else rest | {name: tensor}

    return change


WRONG_TENSORS = [
    (changed("coef", None), "lacks the tensor 'coef'"),
    (changed("intercept", None), "lacks the tensor 'intercept'"),
    (changed("coef", np.zeros((2, 4))), r"coefficients \(2, 4\)"),
    (changed("coef", np.zeros(12)), r"coefficients \(12,\)"),
    (changed("coef", np.zeros((3, 0))), r"coefficients \(3, 0\)"),
    (changed("coef", np.zeros((3, 4, 1))), r"coefficients \(3, 4, 1\)"),
    (changed("intercept", np.zeros((1, 3))), r"intercept \(1, 3\)"),
    (changed("intercept", np.zeros(())), r"intercept \(\)"),
    (changed("intercept", np.zeros(3, np.float32)), "float64, its intercept is float32"),
    (changed("coef", np.zeros((3, 4), np.int64)), "coefficients are int64"),
    (changed("coef", np.full((3, 4), np.nan)), "'coef' holds NaN or infinity"),
    (changed("intercept", np.array([0.0, np.inf, 0.0])), "'intercept' holds NaN or infinity"),
    (changed("more", np.zeros(2, np.float16)), "'more' is of dtype F16"),
    (changed("more", np.zeros(2, np.complex64)), "'more' is of dtype C64"),
]


@pytest.mark.parametrize(("change", "message"), WRONG_TENSORS, ids=[text for _, text in WRONG_TENSORS])
def test_tensors_of_another_kind_are_named(change, message, model, tmp_path):
    tensors, metadata = model.contents()
    (tmp_path / "m").write_bytes(forged(change(tensors), metadata))
    with pytest.raises(ValueError, match=message):
        xent.SoftmaxRegression.load(tmp_path / "m")


def with_header(header: str | bytes, body: bytes = b"", length: int | None = None) -> bytes:
    header = header.encode() if isinstance(header, str) else header
    return struct.pack("<Q", len(header) if length is None else length) + header + body


def with_metadata(text: str) -> bytes:
    return with_header(json.dumps({"__metadata__": {"xent-model": text}}))


FOREIGN = {
    "nothing": (b"", "is not a model file: "),
    "text": (b"not a model at all, but text", "is not a model file: "),
    "a pickle": (b"cos\nsystem\n(S'false'\ntR.", "is not a model file: "),
    "no metadata": (safetensors.numpy.save({"coef": np.zeros(3)}), "no 'xent-model' in its metadata"),
    "another's metadata": (
        safetensors.numpy.save({"coef": np.zeros(3)}, {"format": "pt"}),
        "no 'xent-model' in its metadata",
    ),
    "a header of exabytes": (with_header("{}", length=1 << 62), "is not a model file: "),
    "a header longer than the file": (with_header("{}", length=1000), "is not a model file: "),
    "a tensor of exabytes": (
        with_header(
            json.dumps({"coef": {"dtype": "F64", "shape": [1 << 30, 1 << 27], "data_offsets": [0, 1 << 60]}})
        ),
        "is not a model file: ",
    ),
    "a shape that overflows": (
        with_header(
            json.dumps({"coef": {"dtype": "F64", "shape": [1 << 40, 1 << 40], "data_offsets": [0, 8]}}),
            bytes(8),
        ),
        "is not a model file: ",
    ),
    "tensors that overlap": (
        with_header(
            json.dumps({k: {"dtype": "F64", "shape": [1], "data_offsets": [0, 8]} for k in "ab"}), bytes(8)
        ),
        "is not a model file: ",
    ),
    "a deep header": (with_header("[" * 100_000 + "]" * 100_000), "is not a model file: "),
    "metadata that is no text": (
        with_header('{"__metadata__": {"xent-model": {"a": 1}}}'),
        "is not a model file: ",
    ),
    "no JSON": (with_metadata("{"), "is no JSON: Expecting"),
    "deep JSON": (
        with_metadata('{"version": ' + "[" * 100_000 + "]" * 100_000 + "}"),
        "is no JSON: maximum recursion depth",
    ),
    "JSON as deep as Python": (
        with_metadata('{"version": 1, "metadata": ' + "[" * 900 + "]" * 900 + "}"),
        r"is no JSON: maximum recursion depth|is no JSON object|'sha256' must be str",
    ),
    "a number of 5000 digits": (
        with_metadata('{"version": ' + "9" * 5000 + "}"),
        "is no JSON: Exceeds the limit",
    ),
    "NaN": (with_metadata('{"version": NaN}'), r"is no JSON: .*not JSON compliant"),
    "infinity": (
        with_metadata('{"version": 1, "sha256": "", "metadata": {"x": 1e999}}'),
        r"is no JSON: .*not JSON compliant",
    ),
    "too much JSON": (with_metadata("[" + "[]," * (1 << 24) + "[]]"), r"[0-9,]+ characters of metadata"),
    "a list": (with_metadata("[]"), r"is no JSON object: \[\]"),
    "a later version": (
        with_metadata('{"version": 2}'),
        "is a model file of version 2; this version of xent reads 1",
    ),
    "no version": (with_metadata("{}"), "'version' must be int; got None"),
    "a version in words": (with_metadata('{"version": "1"}'), "'version' must be int; got '1'"),
    "no checksum": (with_metadata('{"version": 1, "metadata": {}}'), "'sha256' must be str; got None"),
    "no contents": (with_metadata('{"version": 1, "sha256": ""}'), "'metadata' must be dict; got None"),
    "a wrong checksum": (with_metadata('{"version": 1, "sha256": "", "metadata": {}}'), "is damaged"),
}


@pytest.mark.parametrize(("content", "message"), FOREIGN.values(), ids=FOREIGN)
def test_a_foreign_file_is_one_clear_error(content, message, tmp_path):
    (tmp_path / "m").write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        xent.SoftmaxRegression.load(tmp_path / "m")
    assert str(error.value).startswith(str(tmp_path / "m"))
    assert len(str(error.value)) < 500


def test_what_is_no_file_is_said_so(tmp_path):
    with pytest.raises(FileNotFoundError):
        xent.SoftmaxRegression.load(tmp_path / "none")
    with pytest.raises(ValueError, match="not a regular file"):
        xent.SoftmaxRegression.load(tmp_path)
    with pytest.raises(ValueError, match="not a regular file"):
        xent.SoftmaxRegression.load("/dev/zero")


@pytest.fixture(scope="module")
def anywhere(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzzed") / "m"


@given(data=st.data())
def test_a_file_cut_short_is_refused(data, saved, anywhere):
    anywhere.write_bytes(saved[: data.draw(st.integers(0, len(saved) - 1))])
    with pytest.raises(ValueError, match="is not a model file"):
        xent.SoftmaxRegression.load(anywhere)


@pytest.mark.parametrize("others", [0, 7])
def test_changed_bytes_are_noticed(others, saved, model, anywhere):
    """Each byte with a bit flipped, alone or with others anywhere: an error, or the very same model."""
    rng = np.random.default_rng(others)
    for place in range(0, len(saved), 1 + others):
        content = np.frombuffer(saved, np.uint8).copy()
        content[place] ^= 1 << rng.integers(8)
        content[rng.integers(0, len(saved), others)] = rng.integers(0, 256, others)
        anywhere.write_bytes(content.tobytes())
        _assert_refused_or_the_same(anywhere, model)


def _assert_refused_or_the_same(anywhere, model):
    try:
        loaded = xent.SoftmaxRegression.load(anywhere)
    except ValueError:
        return
    assert loaded.contents().metadata == model.contents().metadata
    np.testing.assert_array_equal(loaded.coef_, model.coef_)


@given(
    value=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=6,
    ),
    place=st.sampled_from([p for p, *_ in WRONG_METADATA if not p.startswith("preprocessing")]),
)
def test_any_json_anywhere_is_a_model_or_a_value_error(value, place, model, anywhere):
    tensors, metadata = model.contents()
    anywhere.write_bytes(forged(tensors, replaced(metadata, place, value)))
    try:
        loaded = xent.SoftmaxRegression.load(anywhere)
    except ValueError:
        return
    loaded.predict_proba(X)
    clone(loaded)


def test_loading_imports_and_runs_nothing_of_the_file(saved, tmp_path):
    """The file cannot name code: no pickle is read while it is loaded."""
    (tmp_path / "m").write_bytes(saved)
    code = (
        "import sys, xent; xent.SoftmaxRegression\n"
        "import pickle; import safetensors\n"
        "bad = ('pickle', 'exec', 'os.system', 'subprocess', 'compile')\n"
        "sys.addaudithook(lambda event, _: event.startswith(bad) and sys.exit(event))\n"
        f"xent.SoftmaxRegression.load({str(tmp_path / 'm')!r})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


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
