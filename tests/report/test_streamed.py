"""A run on files has the numbers of a run in memory with the same rows held out, whatever the blocks are."""

from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
import polars as pl
import pytest
from sklearn.datasets import dump_svmlight_file

import xent
from xent.files import dataset
from xent.files.errors import DataError
from xent.files.parts import held_out
from xent.regression.file_rows import cached_rows
from xent.report import page, plain, streamed, training
from xent.report.training import Run, Settings

ROWS, SEED = 900, 5
RNG = np.random.default_rng(4)
LABELS = RNG.integers(0, 3, ROWS)
X = RNG.standard_normal((ROWS, 4)) + 1.5 * np.eye(4)[LABELS]
X[RNG.random(X.shape) < 0.2] = 0
NAMES = [f"x{k + 1}" for k in range(4)]
TOWNS = [None if k % 40 == 0 else f"town {k % 7}" for k in range(ROWS)]
CUTS = (0, 200, 201, 600, ROWS)

TABLE = pl.DataFrame(X, schema=NAMES).with_columns(
    pl.when(pl.int_range(ROWS) % 9 == 4).then(None).otherwise(pl.col("x2")).alias("x2"),
    town=pl.Series(TOWNS),
    y=pl.Series(np.array(["no", "perhaps", "yes"])[LABELS]),
)
SETTINGS = Settings(seed=SEED, tol=1e-10, solver="newton-cg")


def rule(seed: int, share: float, labels) -> np.ndarray:
    """Which rows are held out, as the documentation says it."""
    draws = np.random.default_rng(seed).random(len(labels))
    _, first = np.unique(labels, return_index=True)
    draws[first] = 1.0
    return draws < share


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(cached_rows, "block_entries", lambda memory: 400)


def written(folder, kind: str, table: pl.DataFrame = TABLE):
    """The rows in four files of a new folder, and in one beside it."""
    (folder / "parts").mkdir()
    whole = [(folder / "whole", (0, ROWS))]
    for path, (start, stop) in [
        *((folder / "parts" / f"{k}", cut) for k, cut in enumerate(pairwise(CUTS))),
        *whole,
    ]:
        if kind == "svmlight":
            dump_svmlight_file(X[start:stop], LABELS[start:stop], str(path), zero_based=False)
        else:
            (table[start:stop].write_csv if kind == "csv" else table[start:stop].write_parquet)(path)
    return folder / "parts", folder / "whole"


def in_parts(files, kind: str, settings: Settings = SETTINGS, memory: int = 1 << 30) -> Run:
    target = None if kind == "svmlight" else "y"
    return streamed.run(xent.rows_from(files, target, prepare=True, memory=memory), settings)


OTHER = {"data", "reads", "file", "row", "solver", "steps", "optimality_gap", "gradient_check"}


def assert_near(ours, theirs, where: str = "") -> None:
    """Equal JSON but for the rounding of float32, and places where it has to differ."""
    if isinstance(theirs, dict):
        assert ours.keys() == theirs.keys(), where
        for key in theirs.keys() - OTHER:
            assert_near(ours[key], theirs[key], f"{where}.{key}")
    elif isinstance(theirs, list) and where != ".curve.training" and where != ".curve.held_out":
        assert len(ours) == len(theirs), where
        for index, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            assert_near(a, b, f"{where}[{index}]")
    elif isinstance(theirs, list):
        assert ours[0] == pytest.approx(theirs[0])
        assert ours[-1] == pytest.approx(theirs[-1], rel=1e-5)
    elif isinstance(theirs, float):
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-4), where
    else:
        assert ours == theirs, where


OPTIONS = [
    {},
    {"balanced": True, "label_smoothing": 0.1},
    {"focal_gamma": 1.0, "alpha": 0.01, "solver": "lbfgs"},
]


@pytest.mark.parametrize("kind", ["parquet", "csv", "svmlight"])
@pytest.mark.parametrize("options", OPTIONS, ids=["plain", "weights", "focal"])
def test_a_run_on_files_has_the_numbers_of_one_in_memory(tmp_path, monkeypatch, kind, options):
    parts, whole = written(tmp_path, kind)
    settings = SETTINGS._replace(**options)
    out = rule(SEED, 0.2, LABELS)
    monkeypatch.setattr(training, "_split", lambda *_: (np.flatnonzero(~out), np.flatnonzero(out)))
    target = None if kind == "svmlight" else "y"
    theirs = training.run(dataset.load(str(whole), target), settings)
    ours = in_parts(parts, kind, settings)
    assert ours.sample is None
    assert ours.model.preprocessor.to_json() == theirs.model.preprocessor.to_json()
    for name, array in theirs.model.preprocessor.arrays().items():
        np.testing.assert_allclose(ours.model.preprocessor.arrays()[name], array, rtol=1e-12)
    assert ours.gradient.passed
    assert_near(*(json.loads(json.dumps(plain.run(run, "xent fit"))) for run in (ours, theirs)))
    reads = ours.reads
    assert (reads.file_passes, reads.file_bytes) == (2, sum(each.stat().st_size for each in parts.iterdir()))
    assert reads.cache_passes > ours.steps
    starts = dict(zip(map(str, range(4)), CUTS, strict=False))
    first = 2 if kind == "csv" else 1
    for ours_of, theirs_of in zip(*(plain.run(run, "")["costliest"] for run in (ours, theirs)), strict=True):
        start = starts[ours_of["file"].rpartition("/")[2]]
        assert ours_of["row"] - first + start == theirs_of["row"] - first


@pytest.mark.parametrize("kind", ["parquet", "svmlight"])
def test_rows_held_out_do_not_change_the_model(tmp_path, kind, monkeypatch):
    """Neither in the training nor in what is learnt before it: their values are replaced by others."""
    models, out = [], rule(SEED, 0.2, LABELS)
    for name, factor in (("a", 1.0), ("b", -1000.0)):
        changed = X.copy()
        changed[out] *= factor
        monkeypatch.setattr(f"{__name__}.X", changed)
        table = TABLE.with_columns(pl.DataFrame(changed, schema=NAMES)).with_columns(
            town=pl.when(pl.Series(rule(SEED, 0.2, LABELS)) & (factor < 0))
            .then(pl.lit("new"))
            .otherwise("town")
        )
        (tmp_path / name).mkdir()
        parts, _ = written(tmp_path / name, kind, table)
        models.append(in_parts(parts, kind).model)
    (a, b) = models
    assert a.preprocessor.to_json() == b.preprocessor.to_json()
    for name in ("coef_", "intercept_"):
        np.testing.assert_array_equal(getattr(a.estimator, name), getattr(b.estimator, name))


def test_blocks_and_files_do_not_choose_the_rows_held_out(tmp_path, monkeypatch):
    parts, whole = written(tmp_path, "parquet")
    found = []
    for files, entries in ((parts, 50), (parts, 3000), (whole, 400)):
        monkeypatch.setattr(cached_rows, "block_entries", lambda memory, entries=entries: entries)
        found.append(plain.run(in_parts(files, "parquet"), ""))
    for other in found[1:]:
        assert other["held_out"] == pytest.approx(found[0]["held_out"], rel=1e-4)
        assert other["confusion"] == found[0]["confusion"]


@pytest.mark.parametrize("options", OPTIONS[:2], ids=["plain", "weights"])
def test_where_memory_is_short_fewer_rows_are_held_out_and_a_sample_is_looked_at(
    tmp_path, monkeypatch, options
):
    parts, _ = written(tmp_path, "parquet")
    monkeypatch.setattr(held_out, "FEATURE", 8 << 10)
    monkeypatch.setattr(held_out, "CLASS", 0)
    run = in_parts(parts, "parquet", SETTINGS._replace(**options), memory=1 << 27)
    out = rule(SEED, 0.1, LABELS)
    assert (run.test.rows, run.train.rows) == (out.sum(), ROWS - out.sum())
    assert 10 < run.sample < 200
    assert "0.1 of the rows are held out, not 0.2: as many as fit in an eighth of --memory" in run.surprises
    x = run.model.preprocessor.transform(TABLE)[~out]
    losses = -run.model.estimator.predict_log_proba(x)[np.arange(len(x)), LABELS[~out]]
    assert run.train.loss == pytest.approx(losses.mean(), rel=1e-5)
    last = run.curve[-1][0]
    sample = np.flatnonzero(np.random.default_rng(SEED).random(ROWS)[~out] >= 1 - run.sample / ROWS)
    assert last == pytest.approx(losses.mean() if not options else last, rel=1e-5)
    assert abs(len(sample) - run.sample) < 20
    html = page.html(run, "xent fit")
    words = f"a sample of {run.sample} of the {run.train.rows} training rows"
    assert html.count(words) == (2 if run.settings.is_plain else 3)
    assert f"{out.sum()} of 900 rows held out" in html


def test_a_class_of_one_row_is_trained_on_and_said_to_be_unknown(tmp_path):
    labels = TABLE["y"].to_list()
    labels[int(rule(SEED, 0.2, LABELS).argmax())] = "rare"
    parts, _ = written(tmp_path, "parquet", TABLE.with_columns(y=pl.Series(labels)))
    run = in_parts(parts, "parquet")
    assert run.classes == ["no", "perhaps", "rare", "yes"]
    assert any("no row of 'rare' is held out" in found.text for found in run.findings)


def test_mistakes_in_the_settings_come_before_the_files(tmp_path):
    rows = xent.rows_from(tmp_path / "nothing", "y", prepare=True)
    wrong = {"solver": ("sgd", '`solver` must be "auto", "lbfgs" or'), "alpha": (-1.0, "`alpha` must be")}
    for name, (value, words) in wrong.items():
        with pytest.raises(ValueError, match=words):
            streamed.run(rows, Settings(**{name: value}))


def test_too_few_rows_to_hold_out_is_an_error(tmp_path):
    _, whole = written(tmp_path, "parquet")
    with pytest.raises(DataError, match=r"whole: 1 row of 900 held out, too few to evaluate on"):
        in_parts(whole, "parquet", Settings(test_size=5e-4, seed=SEED))
