"""A model file that is foreign, damaged or cut short is one clear error, and runs nothing."""

from __future__ import annotations

import hashlib
import json
import struct
import subprocess
import sys

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st
from sklearn.base import clone

import xent
from tests.regression.saved.test_model_file import X


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
