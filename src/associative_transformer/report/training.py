"""The section on training: loss, accuracy and learning rate in each epoch."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from associative_transformer.report.charts import Figure, Lines, Section, Series

HUES = (0, 1, 2)  # of the lines of a single run
COMPARED_HUES = ((0, 5, 2), (1, 4, 3))  # of runs A and B, whose bars have hues 0 and 1

Rows = Sequence[Mapping[str, Any]]


def training_section(runs: Mapping[str, Rows], tests: Mapping[str, float | None]) -> Section:
    """Return the curves of `metrics.jsonl` for one run or two, with their test accuracies.

    The keys of both mappings are the prefixes of the names of lines, "" for a single run.
    """
    if not any(runs.values()):
        return Section("training", "Training", "No epoch is complete yet.")
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
        others = ", ".join(name.strip() for name in runs if name not in balanced)
        note = f"Run {others} has no balance loss." if others else ""
        charts.append(replace(chart, note=note))
    note = (
        "The training curves show means over each epoch, measured on augmented images while the "
        "weights change."
    )
    return Section("training", "Training", note, [Figure(chart) for chart in charts])


def _draw(
    runs: Mapping[str, Rows],
    title: str,
    y_label: str,
    lines: Mapping[str, Sequence[str]],
    tests: Mapping[str, float | None] | None = None,
) -> Lines:
    """Draw one line for each run and each path into its rows."""
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
        test = (tests or {}).get(prefix)
        if test is not None and rows:
            last = rows[-1]["epoch"]
            series.append(Series(f"{prefix}test", [last], [test], hue=next(hues)))
    return Lines(title, "epoch", y_label, series)


def _look_up(row: Mapping[str, Any], path: Sequence[str]) -> float | None:
    value: Any = row
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value
