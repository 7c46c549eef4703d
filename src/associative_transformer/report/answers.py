"""What a run answers on the test split: how right, how sure, and where most wrong."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from associative_transformer.analysis.answers import Answers
from associative_transformer.report.charts import (
    Bars,
    Chart,
    Figure,
    Heat,
    Lines,
    Picture,
    Section,
    Series,
)

MAX_CLASSES = 20  # with a matrix of all pairs; more are shown by the pairs most often confused
MAX_PAIRS = 20


def answers_section(
    found: Answers | None,
    kinds: Sequence[Mapping[str, Any]],
    mistakes: Sequence[Picture],
    items: str,
) -> Section:
    """Draw how right and how sure a run is; `kinds` are the `test_kinds` of its result.

    The `items` of the test split are images or questions.
    """
    if found is None:
        return Section("evaluation", "Evaluation", "The run is not complete yet.")
    charts: list[Chart] = [_draw_kinds(kinds)] if kinds else []
    many = len(found.classes) > MAX_CLASSES
    charts += [_draw_pairs(found, items)] if many else [_draw_confusion(found)]
    if not kinds:
        charts.append(_draw_classes(found))
    charts += [_draw_calibration(found), _draw_confidence(found, items)]
    total, right = found.confusion.sum(), np.trace(found.confusion)
    note = (
        f"Of {total:,} test {items} that were analyzed, the saved model answers {right:,} right, "
        f"{100 * right / total:.2f} %. Expected calibration error: "
        f"{100 * found.calibration_error:.1f} percentage points."
    )
    figures = [Figure(chart) for chart in charts]
    return Section("evaluation", "Evaluation", note, figures, pictures=mistakes)


def _draw_kinds(kinds: Sequence[Mapping[str, Any]]) -> Bars:
    low, high = zip(*(kind["interval"] for kind in kinds), strict=True)
    return Bars(
        "Accuracy by kind of question, with a 95 % interval",
        "accuracy, %",
        [kind["name"] for kind in kinds],
        {"accuracy, %": [kind["accuracy"] for kind in kinds]},
        low=low,
        high=high,
        marks={"best guess without the image, %": [kind["guess"] for kind in kinds]},
        end=100,
    )


def _draw_classes(found: Answers) -> Bars:
    shares = 100 * found.confusion.diagonal() / np.maximum(found.confusion.sum(axis=1), 1)
    order = shares.argsort() if len(shares) > MAX_CLASSES else np.arange(len(shares))
    labels = [found.classes[i] for i in order]
    parts = {"accuracy, %": shares[order].tolist()}
    return Bars("Accuracy by class", "accuracy, %", labels, parts, end=100)


def _draw_confusion(found: Answers) -> Heat:
    shares = 100 * found.confusion / np.maximum(found.confusion.sum(axis=1, keepdims=True), 1)
    return Heat(
        "Confusion: share of each true class that gets each answer",
        "predicted",
        "true",
        rows=found.classes,
        columns=found.classes,
        values=shares.tolist(),
        low=0,
        high=100,
        unit="%",
    )


def _draw_pairs(found: Answers, items: str) -> Bars:
    wrong = found.confusion - np.diag(found.confusion.diagonal())
    most = wrong.ravel().argsort()[::-1][:MAX_PAIRS]
    pairs = [divmod(int(place), len(found.classes)) for place in most]
    labels = [f"{found.classes[true]} taken for {found.classes[said]}" for true, said in pairs]
    counts = [int(wrong[pair]) for pair in pairs]
    return Bars("Classes most often confused", f"test {items}", labels, {items: counts})


def _draw_calibration(found: Answers) -> Lines:
    filled = found.bin_items > 0
    sure, right = (each[filled].tolist() for each in (found.bin_confidence, found.bin_accuracy))
    lines = [
        Series("answers", sure, right),
        Series("as sure as right", [0, 1], [0, 1], is_dashed=True),
    ]
    title = "Calibration: how right answers are, by how sure they are"
    return Lines(title, "mean confidence", "share that is right", lines, start=0)


def _draw_confidence(found: Answers, items: str) -> Bars:
    edges = 100 * found.bins
    labels = [f"{low:.0f} to {high:.0f} %" for low, high in pairwise(edges)]
    filled = np.flatnonzero(found.bin_items)
    shown = slice(int(filled.min()), int(filled.max()) + 1)
    parts = {f"test {items}": found.bin_items[shown].tolist()}
    return Bars("How sure the answers are", f"test {items}", labels[shown], parts)
