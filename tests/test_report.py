"""The report: whole in itself, readable, honest; and the model file that goes with it."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest
from sklearn.model_selection import train_test_split

import xent
from xent import data, persistence, plots, report, storage, training

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
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
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
    assert page.open == []
    assert page.tags.count("svg") == 3
    assert not {"script", "link", "iframe", "img"} & set(page.tags)
    assert all(reference.startswith("#") and reference[1:] in page.ids for reference in page.references)
    assert "http" not in html
    assert all(target in page.ids for target in re.findall(r"url\(#([^)]*)\)", html))
    assert len(page.ids) == len(set(page.ids))
    assert "prefers-color-scheme: dark" in html
    assert "size: A4" in html


def test_the_page_says_what_was_found_and_how(runs):
    run = runs["digits"]
    page = Page(report.html(run, "xent fit --report <&>.html"))
    for expected in (
        f"{run.test.accuracy:.1%} of 360 held-out rows are predicted right",
        f"{run.test.loss:.6f}",
        f"{run.train.loss:.6f}",
        f"{run.frequencies:.6f}",
        f"{np.log(10):.6f}",
        f"{run.gradient.error:.1e}",
        "xent fit --report <&>.html",
        "Seed 0",
        f"xent {xent.__version__}",
        f"numpy {np.__version__}",
    ):
        assert expected in page.text


def test_the_same_run_gives_the_same_bytes(runs):
    assert report.html(runs["iris"], "x") == report.html(runs["iris"], "x")


@pytest.mark.parametrize("picture", [plots.loss_curve, plots.confusion_matrix, plots.reliability])
@pytest.mark.parametrize("name", BUNDLED)
def test_pictures_take_every_colour_from_the_page(runs, name, picture):
    svg = picture(runs[name])
    ElementTree.fromstring(svg)  # well formed
    assert not re.findall(r"(?:fill|stroke): (?!none|var\()[^;\"]+", svg.replace("stroke: none", ""))
    assert "var(--ink)" in svg or "var(--soft)" in svg
    assert "<text" in svg  # text is text, not outlines


def test_many_classes_with_long_names_are_shortened_and_thinned():
    rng = np.random.default_rng(0)
    names = np.array([f"a class of some length, number {k}" for k in range(40)])
    labels = np.repeat(names, 10)
    features = rng.standard_normal((400, 5)) + np.repeat(rng.standard_normal((40, 5)), 10, 0)
    run = training.run(data.Dataset("x", features, labels, list("abcde")), training.Settings())
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", plots.confusion_matrix(run))
    assert max(len(text) for text in texts) <= 14
    assert len(texts) < 60


CAUTIONS = [
    ({}, None),
    ({"converged": False}, "raise --max-iter"),
    ({"gradient": training.GradientCheck(1e-3, 5, 5)}, "do not trust"),
    ({"curve": [(2.3, 2.3), (0.5, 0.05), (0.03, 0.12)]}, "0.0500 at step 1"),
    ({"test": training.Measures(30, 0.1, 0.9)}, "30 held-out rows are few"),
]


@pytest.mark.parametrize(("change", "caution"), CAUTIONS)
def test_the_verdict_warns_of_what_the_numbers_show(runs, change, caution):
    finding, cautions = report.verdict(runs["digits"]._replace(**change))
    assert "below guessing by class frequencies" in finding
    assert [caution in text for text in cautions] == ([] if caution is None else [True])


def test_a_loss_above_the_baseline_is_called_that(runs):
    finding, _ = report.verdict(runs["digits"]._replace(test=training.Measures(360, 2.4, 0.2)))
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
        assert run.confusion.sum() == run.test.rows == sum(b.rows for b in run.reliability)
        assert np.trace(run.confusion) == round(run.test.accuracy * run.test.rows)
        assert run.curve[-1] == pytest.approx((run.train.loss, run.test.loss), rel=1e-9)
        assert len(run.curve) == run.steps + 1


def test_the_held_out_rows_have_no_part_in_the_scaling(runs):
    dataset = data.load("digits")
    train, test = train_test_split(np.arange(1797), test_size=360, stratify=dataset.labels, random_state=0)
    mean = runs["digits"].model.preprocessor.mean
    np.testing.assert_allclose(mean, dataset.features[train].mean(0), rtol=1e-12)
    shares = [np.bincount(dataset.labels[part]) / len(part) for part in (train, test)]
    np.testing.assert_allclose(runs["digits"].confusion.sum(1) / 360, shares[1])
    np.testing.assert_allclose(*shares, atol=1 / 360)


def test_reliability_of_a_perfect_and_of_a_boastful_model():
    scores = np.log([[0.75, 0.25]] * 4)
    (honest,) = training._reliability(scores, np.array([0, 0, 0, 1]))
    assert honest == (pytest.approx(0.75), 0.75, 4)
    (boastful,) = training._reliability(scores, np.array([1, 1, 1, 1]))
    assert boastful.accuracy == 0


def test_a_saved_model_comes_back_to_the_bit(runs, tmp_path):
    model, dataset = runs["breast_cancer"].model, data.load("breast_cancer")
    persistence.save(model, tmp_path / "m.safetensors")
    again = persistence.load(tmp_path / "m.safetensors")
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
        persistence.load(path)


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "r.html"
    storage.write(path, b"old")
    assert path.stat().st_mode & 0o777 == 0o666 & ~storage._umask()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(storage.os, "replace", full)
    with pytest.raises(OSError, match=r"cannot be written: no space left.*r\.html"):
        storage.write(path, b"new")
    assert [p.name for p in tmp_path.iterdir()] == ["r.html"]
    assert path.read_bytes() == b"old"
