"""How runs went, epoch by epoch."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from associative_transformer.report.charts import Figure, Lines, Section, Series

HUE = (0, 1, 2)  # of the lines of a run alone
HUES = ((0, 5, 2), (1, 4, 3))  # of run A and of run B, which bars show in 0 and 1

Rows = Sequence[Mapping[str, Any]]


def training_section(runs: Mapping[str, Rows], tests: Mapping[str, float | None]) -> Section:
    """Draw what `metrics.jsonl` says of each run, and the test accuracy where there is one.

    Each run goes by what stands before the names of its lines, "" where it is alone.
    """
    if not any(runs.values()):
        return Section("training", "Training", "No epoch is complete yet.")
    charts = [
        _draw(runs, "Loss", "cross-entropy, nats", {"training": ["loss"], **_validated("loss")}),
        _draw(
            runs,
            "Accuracy",
            "accuracy, %",
            {"training": ["accuracy"], **_validated("accuracy")},
            tests,
        ),
        _draw(runs, "Learning rate", "learning rate", {"learning rate": ["lr"]}),
    ]
    balanced = {name: rows for name, rows in runs.items() if any(r["balance_loss"] for r in rows)}
    if balanced:
        label = "sum over layers, weighted"
        chart = _draw(balanced, "Balance loss", label, {"balance loss": ["balance_loss"]})
        others = ", ".join(name.strip() for name in runs if name not in balanced)
        charts.append(replace(chart, note=f"Run {others} has none." if others else ""))
    note = "Training figures are means over an epoch, with augmentation, while the weights move."
    return Section("training", "Training", note, [Figure(chart) for chart in charts])


def _validated(what: str) -> dict[str, list[str]]:
    return {"validation": ["validation", what]}


def _draw(
    runs: Mapping[str, Rows],
    title: str,
    y_label: str,
    lines: Mapping[str, Sequence[str]],
    tests: Mapping[str, float | None] | None = None,
) -> Lines:
    """Draw a line for each run and each path into its rows."""
    series: list[Series] = []
    for place, (prefix, rows) in enumerate(runs.items()):
        hues = iter(HUES[place] if len(runs) > 1 else HUE)
        for name, path in lines.items():
            found = [(row["epoch"], _look_up(row, path)) for row in rows]
            found = [(epoch, value) for epoch, value in found if value is not None]
            if found:
                epochs, values = zip(*found, strict=True)
                line = Series(f"{prefix}{name}", epochs, values, is_dashed=place > 0)
                series.append(replace(line, hue=next(hues)))
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
