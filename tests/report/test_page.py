"""The report: whole in itself, readable, honest; and the model file that goes with it."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest
from sklearn.model_selection import train_test_split

import xent
from xent.files import dataset as data
from xent.files import storage
from xent.html.thumbnails import image_shape
from xent.regression.saved import model_file
from xent.report import page as report
from xent.report import plots, training
from xent.report.diagnosis import Parts, Sample, Summary, diagnose

BUNDLED = ("iris", "breast_cancer", "digits")


@pytest.fixture(scope="module")
def runs() -> dict[str, training.Run]:
    return {name: training.run(data.load(name), training.Settings()) for name in BUNDLED}


class Page(HTMLParser):
    """Collects what could refer to something outside the page, the ids and the text; checks nesting."""

    VOID = frozenset({"meta", "link", "br", "img", "path", "use", "hr", "rect"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags, self.ids, self.references, self.text, self.open = [], [], [], "", []
        self.unnamed = []  # pictures without words
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        words = dict(attributes)
        if tag in ("svg", "img") and not (words.get("alt") or words.get("aria-label")):
            self.unnamed.append(tag)
        self.ids += [value for name, value in attributes if name == "id"]
        self.references += [
            value for name, value in attributes if name in ("src", "href", "xlink:href", "data")
        ]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, text):
        self.text += text


@pytest.mark.parametrize("name", BUNDLED)
def test_the_page_needs_nothing_but_itself(runs, name):
    html = report.html(runs[name], "xent fit --report <&>.html")
    page = Page(html)
    assert page.open == page.unnamed == []
    pictures = 10 if name == "digits" else 0  # of the coefficients of pixels
    assert page.tags.count("svg") == 4 + 20 + len(runs[name].classes) + pictures
    assert page.tags.count("script") == 2  # the numbers, and the sorting of the table
    assert page.tags.count("img") == (20 if name == "digits" else 0)
    assert not {"link", "iframe", "object", "embed"} & set(page.tags)
    for reference in page.references:
        assert reference.startswith("data:image/png;base64,") or reference[1:] in page.ids
    assert not re.search(r"https?:|url\(|@import", html)
    assert len(page.ids) == len(set(page.ids))
    assert len(html) < 400_000


def test_many_classes_and_rows_make_no_large_file(runs):
    rng = np.random.default_rng(0)
    labels = np.arange(20_000) % 300
    d = diagnose(rng.standard_normal((20_000, 300)) + 3 * np.eye(300)[labels], labels)
    names = [f"class number {k}" for k in range(300)]
    model = runs["iris"].model._replace(estimator=xent.SoftmaxRegression())
    model.estimator.classes_ = np.array(names)
    model.estimator.coef_, model.estimator.intercept_ = rng.standard_normal((300, 4)), np.zeros(300)
    run = runs["iris"]._replace(
        diagnosis=d, classes=names, held_out=np.arange(20_000), reasons=[[]] * 20, model=model
    )
    html = report.html(run, "x")
    assert len(html) < 2_000_000
    assert "The 60 classes with most of the loss, of 300" in html
    assert Page(html).open == []


def test_names_are_words_and_never_markup(runs):
    names = ['<img src="x" onerror="alert(1)">', '"><script>alert(2)</script>', "</text></svg>&amp;"]
    run = runs["iris"]._replace(classes=names, reasons=[[training.Reason("<b>bold</b>", 1.0)]] * 20)
    page = Page(report.html(run, "<script>alert(3)</script>"))
    assert page.open == []
    assert page.tags.count("script") == 2
    assert not {"img"} & set(page.tags)
    for svg in all_pictures(run):
        ElementTree.fromstring(svg)


@pytest.mark.parametrize("features", [np.arange(20.0), np.repeat([-50.0, 50.0], 10), np.zeros(20)])
def test_the_smallest_data_make_a_page(features):
    labels = np.repeat(["no", "yes"], 10)
    run = training.run(data.Dataset("tiny", features[:, None], labels, ["x"]), training.Settings(alpha=1e-9))
    page = Page(report.html(run, "x"))
    assert page.open == []
    assert "nan" not in page.text.lower().split()


def test_the_numbers_are_in_the_page_as_json(runs):
    run = runs["digits"]
    html = report.html(run, "xent fit '</script>'")
    (source,) = re.findall(r'<script type="application/json" id="numbers">(.*?)</script>', html)
    numbers = json.loads(source)
    assert numbers["command"] == "xent fit '</script>'"
    assert numbers["held_out"]["loss"] == run.test.loss
    assert numbers["settings"]["seed"] == 0
    assert numbers["classes"] == list(range(10))
    assert len(numbers["curve"]["held_out"]) == run.steps + 1
    assert sum(rows for _, _, rows in numbers["confusion"]) == 360
    assert [len(sample["gradient"]) for sample in numbers["costliest"]] == [10] * 20


def test_the_page_says_what_was_found_and_how(runs):
    run = runs["digits"]
    page = Page(report.html(run, "xent fit --report <&>.html"))
    for expected in (
        f"{run.test.accuracy:.1%} of 360 held-out rows are predicted right",
        f"{run.test.loss:.6f}",
        f"{run.train.loss:.6f}",
        f"{run.frequencies:.6f}",
        f"{np.log(10):.6f}",
        report.key_numbers(run)[3].note,
        "xent fit --report <&>.html",
        "Seed 0,",
        f"skill {run.diagnosis.skill:.1%}",
        "verified",
        "Fitted temperature",
        "'pixel_0_0', 'pixel_4_0' and 'pixel_4_7': the same in every row",
        f"xent {xent.__version__}",
        f"numpy {np.__version__}",
    ):
        assert expected in page.text


def test_the_same_run_gives_the_same_bytes(runs):
    again = training.run(data.load("iris"), training.Settings())
    assert report.html(runs["iris"], "x") == report.html(again, "x")


def all_pictures(run):
    d, names = run.diagnosis, run.classes
    yield plots.loss_curve(run)
    yield plots.confusion_matrix(d, names)
    yield plots.gradient_map(d, names)
    yield plots.reliability(d.reliability)
    yield from (plots.class_reliability(c.reliability, "<&>") for c in d.classes)
    yield from (plots.sample_bars(sample, names) for sample in d.costliest)


@pytest.mark.parametrize("name", BUNDLED)
def test_pictures_take_every_colour_from_the_page(runs, name):
    for svg in all_pictures(runs[name]):
        ElementTree.fromstring(svg)  # well formed
        assert not re.findall(r"\b(?:fill|stroke|style|color)=", svg)
        assert "<text" in svg  # text is text, not outlines


def test_many_classes_with_long_names_are_shortened_and_thinned():
    labels = np.repeat(np.arange(40), 3)
    d = diagnose(np.random.default_rng(0).standard_normal((120, 40)), labels)
    names = [f"a class of some length, number {k}" for k in range(40)]
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", plots.confusion_matrix(d, names))
    assert max(len(text) for text in texts) <= 16
    assert len(texts) < 60


def test_a_loss_that_hardly_moves_is_drawn(runs):
    """No round number lies between its least and its largest value."""
    still = runs["iris"]._replace(curve=[(1.0986, 1.0986), (1.0985, 1.0987)])
    ElementTree.fromstring(plots.loss_curve(still))


def test_bars_of_many_classes_have_one_for_the_rest_and_sum_to_zero():
    probs = np.linspace(1, 2, 30) / np.linspace(1, 2, 30).sum()
    sample = Sample(0, 3, 29, 3.0, probs, probs - np.eye(30)[3])
    bars = plots._bars(sample, [f"a long name {k}" for k in range(30)], 264)
    assert [name for name, _, _ in bars] == ["a long name 3", "a long name 28", "a long name 29", "+27"]
    assert sum(p for _, p, _ in bars) == pytest.approx(1)
    assert sum(g for _, _, g in bars) == pytest.approx(0, abs=1e-15)
    assert len(plots._bars(sample, list(range(30)), 264)) == 10


@pytest.mark.parametrize(
    "parts",
    [
        Parts(2.30259, 2.17799, 0.00004, 0.9),
        Parts(1.0, 0.33335, 0.11115, 1.4),
        Parts(0.7, -0.2, 0.3, None),
        Parts(1.0, 0.99999996, 0.0, 0.5),
        Parts(1.00004, 0.50006, 0.00004, 1.1),  # rounded one by one they would not
    ],
)
def test_the_printed_parts_add_up(parts):
    values = [re.sub(r"[ =+]", "", step.value).replace("−", "-") for step in report.sum_of_parts(parts)]
    first, second, third, total = map(float, values)
    assert first + second + third == pytest.approx(total, abs=1e-9)
    assert total == pytest.approx(parts.loss, abs=6e-5)
    for step in report.sum_of_parts(parts):
        assert -1e-9 <= step.start <= step.start + step.share <= 100 + 1e-9


def test_a_loss_above_guessing_stays_on_the_scale(runs):
    run = runs["digits"]
    worse = run._replace(diagnosis=run.diagnosis._replace(summary=Summary(360, 4.6, 0.2, 4.6, 0.2)))
    scale = report.loss_scale(worse)
    assert [mark.percent >= 0 for mark in scale["marks"]] == [True, True]
    assert scale["marks"][0].percent == 0
    assert scale["guess"] == pytest.approx(100 * (1 - run.frequencies / 4.6))


def test_the_distance_from_the_optimum_is_known_or_said_to_be_unknown(runs):
    focal = runs["iris"]._replace(optimality_gap=None, settings=training.Settings(focal_gamma=2.0))
    assert report.key_numbers(focal)[2].value == "unknown"
    assert "not convex" in report.key_numbers(focal)[2].note
    assert report.key_numbers(runs["iris"]._replace(optimality_gap=0.0123))[2].value == "≤ 1.2%"
    assert report.key_numbers(runs["iris"]._replace(optimality_gap=3e-9))[2].value == "≤ 3.0 × 10⁻⁹"


@pytest.mark.parametrize(
    ("names", "shape"),
    [
        ([f"pixel_{i}_{j}" for i in range(8) for j in range(8)], (8, 8)),
        ([f"{i}x{j}" for i in range(1, 4) for j in range(1, 7)], (3, 6)),
        ([f"pixel{k}" for k in range(784)], (28, 28)),
        ([f"pixel{k}" for k in range(1, 17)], (4, 4)),
        ([f"pixel{k}" for k in range(20)], None),  # no square
        ([f"pixel_{j}_{i}" for i in range(8) for j in range(8)], None),  # column by column
        ([f"v{k}" for k in range(16)], None),
        (["pixel_0_0"], None),
    ],
)
def test_images_are_known_by_the_names_of_their_columns(names, shape):
    assert image_shape(names) == shape


CAUTIONS = [
    ({}, None),
    ({"converged": False}, "raise --alpha or --tol"),
    ({"converged": False, "settings": training.Settings(max_iter=1)}, "raise --max-iter or --tol"),
    ({"gradient": training.GradientCheck(1e-3, 5, 5)}, "do not trust"),
    ({"curve": [(2.3, 2.3), (0.5, 0.05), (0.03, 0.12)]}, "0.0500 at step 1 and is 0.12"),
    ({"curve": [(2.3, 2.3), (0.5, 0.05), (0.03, 0.12)]}, "a larger --alpha"),
    ({"curve": [(2.3, 2.3), (0.02, 0.05), (0.03, 0.12)]}, "a smaller --alpha"),
    ({"findings": [training.Finding("No", "'a' and 'A' are alike", True)]}, "'a' and 'A' are alike."),
]


@pytest.mark.parametrize(("change", "caution"), CAUTIONS)
def test_the_verdict_warns_of_what_the_numbers_show(runs, change, caution):
    finding, cautions = report.verdict(runs["digits"]._replace(**change))
    assert "below guessing by class frequencies" in finding
    assert [caution in text for text in cautions] == ([] if caution is None else [True])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "mean cross-entropy + α/2·‖W‖², α = 0.001"),
        ({"focal_gamma": 2.0, "alpha": 0.1}, "mean focal loss, γ = 2, + α/2·‖W‖², α = 0.1"),
        ({"label_smoothing": 0.1}, "labels smoothed by ε = 0.1"),
        ({"balanced": True}, "with all classes weighed alike + α"),
    ],
)
def test_the_objective_is_told_with_its_options(settings, words):
    assert words in report.objective(training.Settings(**settings))


def test_few_rows_are_called_few(runs):
    _, cautions = report.verdict(runs["iris"])
    assert "30 held-out rows are few: the last digits above are noise." in cautions


def test_a_loss_above_the_baseline_is_called_that(runs):
    run = runs["digits"]
    summary = Summary(360, 2.4, 0.2, 2.4, 0.2)
    finding, _ = report.verdict(run._replace(diagnosis=run.diagnosis._replace(summary=summary)))
    assert "no better than guessing" in finding


def test_the_measures_are_those_of_the_model_on_those_rows(runs):
    for name, run in runs.items():
        dataset = data.load(name)
        log_p = run.model.predict_log_proba(dataset.features)
        index = {label: k for k, label in enumerate(run.classes)}
        labels = np.array([index[label.item()] for label in dataset.labels])
        right = (log_p.argmax(1) == labels).sum()
        assert right == round(run.train.accuracy * run.train.rows + run.test.accuracy * run.test.rows)
        total = -log_p[np.arange(len(labels)), labels].sum()
        expected = run.train.loss * run.train.rows + run.test.loss * run.test.rows
        assert total == pytest.approx(expected, rel=1e-12)
        confusion = run.diagnosis.confusion
        assert confusion.sum() == run.test.rows == sum(b.rows for b in run.diagnosis.reliability)
        assert np.trace(confusion) == round(run.test.accuracy * run.test.rows)
        assert run.curve[-1] == pytest.approx((run.train.loss, run.test.loss), rel=1e-9)
        assert len(run.curve) == run.steps + 1


def test_the_held_out_rows_have_no_part_in_the_scaling(runs):
    dataset = data.load("digits")
    train, test = train_test_split(np.arange(1797), test_size=360, stratify=dataset.labels, random_state=0)
    mean = runs["digits"].model.preprocessor.mean
    np.testing.assert_allclose(mean, dataset.features[train].mean(0), rtol=1e-12)
    shares = [np.bincount(dataset.labels[part]) / len(part) for part in (train, test)]
    np.testing.assert_allclose(runs["digits"].diagnosis.confusion.sum(1) / 360, shares[1])
    np.testing.assert_allclose(*shares, atol=1 / 360)


def test_a_saved_model_comes_back_to_the_bit(runs, tmp_path):
    model, dataset = runs["breast_cancer"].model, data.load("breast_cancer")
    model_file.save(model, tmp_path / "m.safetensors")
    again = model_file.load(tmp_path / "m.safetensors")
    for table in (dataset.features, dataset.features[:1]):
        np.testing.assert_array_equal(again.predict_log_proba(table), model.predict_log_proba(table))
    assert again.notes == model.notes
    assert again.estimator.classes_.tolist() == ["benign", "malignant"]
    assert again.notes["settings"]["seed"] == 0
    assert [path.name for path in tmp_path.iterdir()] == ["m.safetensors"]


@pytest.mark.parametrize("content", [b"", b"not a model at all, but text", b"\x08\0\0\0\0\0\0\0{}      "])
def test_a_file_that_is_no_model_is_called_that(content, tmp_path):
    path = tmp_path / "m.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is not a model file"):
        model_file.load(path)


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "r.html"
    storage.write(path, b"old")
    (tmp_path / "plain").touch()
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode
    (tmp_path / "plain").unlink()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(storage.os, "replace", full)
    with pytest.raises(OSError, match=r"cannot be written: no space left.*r\.html"):
        storage.write(path, b"new")
    assert [p.name for p in tmp_path.iterdir()] == ["r.html"]
    assert path.read_bytes() == b"old"
