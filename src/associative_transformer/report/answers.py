"""The section on a run's answers to the test split: accuracy, confidence and worst mistakes."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from associative_transformer.analysis.answers import Answers
from associative_transformer.evaluate import KindScore
from associative_transformer.interface import format_count
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
from associative_transformer.scores import wilson_interval

MAX_CLASSES = 20  # in a confusion matrix; with more, only the most frequent confusions are shown
MAX_PAIRS = 20


def answers_section(
    answers: Answers | None,
    kinds: Sequence[KindScore],
    mistakes: Sequence[Picture],
    items: str,
) -> Section:
    """Return the section on how accurate and how confident the answers of a run are.

    `kinds` is the `test_kinds` of the run's result, `items` is "images" or "questions".
    """
    if answers is None:
        return Section("evaluation", "Evaluation", "No test images have been scored.")
    charts: list[Chart] = [_draw_kinds(kinds)] if kinds else []
    if len(answers.classes) > MAX_CLASSES:
        charts.append(_draw_pairs(answers, items))
    else:
        charts.append(_draw_confusion(answers))
    if not kinds:
        charts.append(_draw_classes(answers))
    charts += [_draw_calibration(answers), _draw_confidence(answers, items)]
    total, right = answers.confusion.sum(), np.trace(answers.confusion)
    count = format_count(int(total), f"analyzed test {items.removesuffix('s')}")
    share = f"{100 * right / total:.2f} %"
    if items == "images":  # answers to questions about the same image are not independent
        low, high = wilson_interval(float(right / total), int(total))
        share += f", 95 % interval {low:.2f} to {high:.2f} %"
    note = (
        f"The saved model is correct on {right:,} of the {count} ({share}). Its expected "
        f"calibration error is {100 * answers.calibration_error:.1f} percentage points"
    )
    if answers.temperature is not None and answers.scaled_error is not None:
        note += (
            f", and {100 * answers.scaled_error:.1f} at temperature {answers.temperature:.3f}, "
            "which was fitted on the validation split"
        )
    figures = [Figure(chart) for chart in charts]
    return Section("evaluation", "Evaluation", f"{note}.", figures, pictures=mistakes)


def _draw_kinds(kinds: Sequence[KindScore]) -> Bars:
    low, high = zip(*(kind.interval for kind in kinds), strict=True)
    return Bars(
        "Accuracy by kind of question, with 95 % intervals",
        "accuracy, %",
        [kind.name for kind in kinds],
        {"accuracy, %": [kind.accuracy for kind in kinds]},
        low=low,
        high=high,
        marks={"best guess without the image, %": [kind.guess for kind in kinds]},
        end=100,
    )


def _draw_classes(answers: Answers) -> Bars:
    items = answers.confusion.sum(axis=1)
    shares = 100 * answers.confusion.diagonal() / np.maximum(items, 1)
    order = shares.argsort() if len(shares) > MAX_CLASSES else np.arange(len(shares))
    labels = [answers.classes[i] for i in order]
    parts = {"accuracy, %": shares[order].tolist()}
    bounds = [wilson_interval(float(shares[i]) / 100, int(items[i])) for i in order]
    low, high = zip(*bounds, strict=True)
    title = "Accuracy by class, with 95 % intervals"
    return Bars(title, "accuracy, %", labels, parts, low=low, high=high, end=100)


def _draw_confusion(answers: Answers) -> Heat:
    shares = 100 * answers.confusion / np.maximum(answers.confusion.sum(axis=1, keepdims=True), 1)
    return Heat(
        "Confusion matrix, in percent of each true class",
        "predicted class",
        "true class",
        rows=answers.classes,
        columns=answers.classes,
        values=shares.tolist(),
        low=0,
        high=100,
        unit="%",
    )


def _draw_pairs(answers: Answers, items: str) -> Bars:
    wrong = answers.confusion - np.diag(answers.confusion.diagonal())
    most_frequent = wrong.ravel().argsort()[::-1][:MAX_PAIRS]
    pairs = [divmod(int(i), len(answers.classes)) for i in most_frequent]
    labels = [
        f"{answers.classes[true]} mistaken for {answers.classes[predicted]}"
        for true, predicted in pairs
    ]
    counts = [int(wrong[pair]) for pair in pairs]
    return Bars("Most frequent confusions", f"test {items}", labels, {items: counts})


def _draw_calibration(answers: Answers) -> Lines:
    filled = answers.bin_items > 0
    confidence, accuracy = answers.bin_confidence[filled], answers.bin_accuracy[filled]
    lines = [
        Series("this model", confidence.tolist(), accuracy.tolist()),
        Series("perfect calibration", [0, 1], [0, 1], is_dashed=True),
    ]
    if answers.scaled_confidence is not None and answers.scaled_accuracy is not None:
        filled = ~np.isnan(answers.scaled_confidence)
        x, y = answers.scaled_confidence[filled], answers.scaled_accuracy[filled]
        name = f"at temperature {answers.temperature:.3f}"
        lines.append(Series(name, x.tolist(), y.tolist()))
    title = "Calibration: accuracy by confidence"
    return Lines(title, "mean confidence", "share of correct answers", lines, start=0)


def _draw_confidence(answers: Answers, items: str) -> Bars:
    labels = [f"{low:.0f} to {high:.0f} %" for low, high in pairwise(100 * answers.bins)]
    filled = np.flatnonzero(answers.bin_items)
    shown = slice(int(filled.min()), int(filled.max()) + 1)
    parts = {f"test {items}": answers.bin_items[shown].tolist()}
    return Bars("Confidence of the answers", f"test {items}", labels[shown], parts)
