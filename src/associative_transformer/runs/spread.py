"""The mean over a few runs and its 95 % interval, by Student's t."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

from associative_transformer.runs.result import RunResult
from associative_transformer.tabular import RowGroup, Table

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Spread:
    """The mean of some values, and half the width of its 95 % interval."""

    mean: float
    half_width: float | None  # None for a single value

    def __str__(self) -> str:
        if self.half_width is None:
            return f"{self.mean:.2f}"
        return f"{self.mean:.2f} ± {self.half_width:.2f}"


def spread_of(values: Sequence[float]) -> Spread:
    """Return the mean of values with its 95 % interval, by Student's t from two values on."""
    if len(values) < 2:
        return Spread(mean(values), None)
    quantile = student_quantile(len(values) - 1)
    return Spread(mean(values), quantile * stdev(values) / math.sqrt(len(values)))


def student_quantile(freedom: int, confidence: float = CONFIDENCE) -> float:
    """Return t such that |T| <= t with a probability, for whole degrees of freedom.

    The probability is a finite sum (Abramowitz and Stegun 1964, 26.7.3 and 26.7.4), which is
    inverted by bisection.
    """
    low, high = 0.0, math.pi / 2  # of the angle whose tangent is t / sqrt(freedom)
    for _ in range(60):
        middle = (low + high) / 2
        if _student_probability(middle, freedom) < confidence:
            low = middle
        else:
            high = middle
    return math.sqrt(freedom) * math.tan(low)


def _student_probability(angle: float, freedom: int) -> float:
    """Return the probability that |T| is at most sqrt(freedom) tan(angle)."""
    cosine, total = math.cos(angle), 0.0
    term = cosine if freedom % 2 else 1.0
    for power in range(freedom % 2, freedom - 1, 2):
        total += term
        term *= cosine**2 * (power + 1) / (power + 2)
    if freedom % 2:
        return 2 / math.pi * (angle + math.sin(angle) * total)
    return math.sin(angle) * total


def tabulate_seeds(title: str, results: dict[Path, RunResult]) -> Table:
    """Return a table of runs, by folder, that differ only in their seed, with their mean.

    It shows the scores of the saved models, on all test items and on each type of question.
    """
    rows, columns = [], ["test accuracy in %"]
    accuracies: list[list[float]] = []
    for result in results.values():
        scores = result.best_validation or result
        kinds = {kind.name: kind.accuracy for kind in scores.test_kinds or ()}
        types = [name for name in result.question_types if name in kinds]
        columns = ["test accuracy in %", *types]
        accuracies.append([scores.test_accuracy, *(kinds[name] for name in types)])
    for (folder, result), values in zip(results.items(), accuracies, strict=True):
        epoch = result.best_validation.epoch if result.best_validation else result.epochs
        shown = [f"{value:.2f}" for value in values]
        rows.append((str(result.seed), *shown, str(epoch), str(folder)))
    means = [str(spread_of(column)) for column in zip(*accuracies, strict=True)]
    rows.append((f"mean of {len(rows)}", *means, "", ""))
    notes = ["± half the 95 % interval of the mean (Student's t)."] if len(results) > 1 else []
    groups = [RowGroup("", rows)]
    return Table(title, ("seed", *columns, "epoch", "run folder"), groups, notes)
