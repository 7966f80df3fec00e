"""Pages of fits and of evaluations with names of many kinds, for the tests in a browser."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from tests.evaluation.evaluations import results
from xent.files import dataset as data
from xent.report import evaluation_page, training
from xent.report import page as report

COMMAND = "xent fit data.csv --target topic --report report.html"
NAMES = ["a question about the bill", "cancellation", "it does not work", "praise"]
LONGEST = "a complaint about the delivery of goods to another town, far away, and of all that is said of it"


def made(rows=400):
    """Text classes with long names, one of them rare."""
    rng = np.random.default_rng(0)
    labels = rng.choice(4, rows, p=[0.5, 0.3, 0.17, 0.03])
    features = rng.standard_normal((rows, 5)) + 1.5 * np.eye(4, 5)[labels]
    return data.Dataset(
        "made.csv", features, np.array(NAMES)[labels], ["words", "replies", "hour", "day", "links"]
    )


def wide_names():
    """Classes whose names are long, of wide letters and of several scripts; columns likewise."""
    rng = np.random.default_rng(2)
    names = [f"Genus{k} species-{k}275" for k in range(3)]
    names += ["WWWWWWWWWWWW MMMMM", "動物の分類 第二", "Животные ЩЖШ", "حيوانات أليفة", "m@m.example"]
    labels = np.arange(400) % len(names)
    features = rng.standard_normal((400, 5)) + 0.7 * rng.standard_normal((len(names), 5))[labels]
    columns = [
        "WMWMWMWMWMWMWMWMWM",
        "長い列の名前",
        "a_very_long_name_of_a_column_without_any_blank",
        "b",
        "c",
    ]
    return data.Dataset("species.csv", features, np.array(names)[labels], columns)


@cache
def pages() -> dict[str, str]:
    """The pages by name."""
    rng = np.random.default_rng(1)
    noise = data.Dataset(
        "noise", rng.standard_normal((150, 40)), rng.integers(0, 3, 150), list(map(str, range(40)))
    )
    sets = [data.load("digits"), data.load("breast_cancer"), made(), noise, wide_names()]
    runs = {each.name: training.run(each, training.Settings()) for each in sets}
    summary = runs["noise"].test._replace(loss=138.0010, accuracy=0.2)  # as where no penalty holds the model
    worse = runs["noise"].diagnosis._replace(summary=summary, error=54.6241)
    runs["worse"] = runs["noise"]._replace(diagnosis=worse)
    made_pages = {name: report.html(run, COMMAND) for name, run in runs.items()}
    names = np.unique(wide_names().labels).tolist()
    made_pages["two models"] = evaluated_page(names)
    made_pages["longest names"] = evaluated_page([f"{LONGEST} in year {k}" for k in range(5)] + ["W" * 120])
    return made_pages


def evaluated_page(names):
    """Of two models with long names, and classes with long names."""
    rng = np.random.default_rng(0)
    logits = 3 * rng.standard_normal((300, len(names)))
    labels = (logits + 2 * rng.gumbel(size=logits.shape)).argmax(1)
    with TemporaryDirectory() as folder:
        models = [logits, logits + rng.standard_normal(logits.shape)]
        found = results(Path(folder), models, labels, costliest=20)
    files = ["the-larger-model-step-20000.npy", "WWWWWWWW-step-MMMMMMMM-00000.npy", "labels.npy"]
    return evaluation_page.html(files, names, found, "xent eval a.npy b.npy labels.npy")
