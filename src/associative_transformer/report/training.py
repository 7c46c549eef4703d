"""The section on training: loss, accuracy and learning rate in each epoch."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from associative_transformer.report.charts import Figure, Lines, Section, Series
from associative_transformer.runs.result import RunResult

HUES = (0, 1, 2, 3)  # of the lines of a single run
COMPARED_HUES = ((0, 5, 2, 6), (1, 4, 3, 7))  # of runs A and B, whose bars have hues 0 and 1
LOST = "is missing: copy it again from the original run folder."

Rows = Sequence[Mapping[str, Any]]


class TestScore(NamedTuple):
    """A test accuracy, as a dot in the chart."""

    name: str
    epoch: int
    accuracy: float


def training_section(runs: Mapping[str, Rows], results: Mapping[str, RunResult | None]) -> Section:
    """Return the curves of `metrics.jsonl` for one run or two, with their test accuracies.

    The keys of both mappings are the prefixes of the names of lines, "" for a single run; the
    result of an unfinished run is None.
    """
    lost = _list_lost(runs, results)
    if not any(runs.values()):
        return Section("training", "Training", lost or "No epoch is complete yet.")
    tests = {prefix: _list_tests(result) for prefix, result in results.items()}
    loss = {"training": ["loss"], "validation": ["validation", "loss"]}
    accuracy = {"training": ["accuracy"], "validation": ["validation", "accuracy"]}
    charts = [
        _draw(runs, "Loss", "cross-entropy, nats", loss),
        _draw(runs, "Accuracy", "accuracy, %", accuracy, tests),
        _draw(runs, "Learning rate", "learning rate", {"learning rate": ["lr"]}),
    ]
    balanced = {name: rows for name, rows in runs.items() if any(r["balance_loss"] for r in rows)}
    if balanced:
        label = "sum over layers, weighted"
        chart = _draw(balanced, "Balance loss", label, {"balance loss": ["balance_loss"]})
        others = ", ".join(x.strip() for x, rows in runs.items() if rows and x not in balanced)
        note = f"Run {others} has no balance loss." if others else ""
        charts.append(replace(chart, note=note))
    note = (
        "The training curves show means over each epoch, measured on augmented images while the "
        "weights change."
    )
    note = f"{lost} {note}" if lost else note
    return Section("training", "Training", note, [Figure(chart) for chart in charts])


def _list_lost(runs: Mapping[str, Rows], results: Mapping[str, RunResult | None]) -> str:
    """Return a sentence about complete runs that have lost their metrics; empty if none has."""
    lost = [prefix.strip() for prefix, rows in runs.items() if not rows and results[prefix]]
    names = f" of run {' and run '.join(lost)}" if any(lost) else ""
    return f"metrics.jsonl{names} {LOST}" if lost else ""


def _list_tests(result: RunResult | None) -> list[TestScore]:
    """Return the score of the saved model, then that of the last epoch if that is later."""
    if result is None:
        return []
    last, best = result.epochs, result.best_validation
    if best is None or best.epoch == last:
        return [TestScore("test of the saved model (last epoch)", last, result.test_accuracy)]
    saved = f"test of the saved model (epoch {best.epoch})"
    return [
        TestScore(saved, best.epoch, best.test_accuracy),
        TestScore("test after the last epoch", last, result.test_accuracy),
    ]


def _draw(
    runs: Mapping[str, Rows],
    title: str,
    y_label: str,
    lines: Mapping[str, Sequence[str]],
    tests: Mapping[str, Sequence[TestScore]] | None = None,
) -> Lines:
    """Draw one line for each run and each path into its rows, and a dot for each test score."""
    series: list[Series] = []
    for run, (prefix, rows) in enumerate(runs.items()):
        hues = iter(COMPARED_HUES[run] if len(runs) > 1 else HUES)
        for name, path in lines.items():
            points = [(row["epoch"], _look_up(row, path)) for row in rows]
            points = [(epoch, value) for epoch, value in points if value is not None]
            if points:
                epochs, values = zip(*points, strict=True)
                hue = next(hues)
                series.append(Series(f"{prefix}{name}", epochs, values, (), run > 0, hue))
        for test in (tests or {}).get(prefix, ()):
            dot = [test.epoch], [test.accuracy]
            series.append(Series(f"{prefix}{test.name}", *dot, hue=next(hues)))
    return Lines(title, "epoch", y_label, series)


def _look_up(row: Mapping[str, Any], path: Sequence[str]) -> float | None:
    value: Any = row
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value
