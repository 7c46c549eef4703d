"""What two runs have not in common: their configuration and their results."""

from collections.abc import Mapping
from typing import Any

from associative_transformer.experiment import Experiment, differences
from associative_transformer.report.charts import Bars, Figure, Grid, Section


def results_section(results: Mapping[str, Mapping[str, Any] | None]) -> Section:
    """Put the test accuracies of runs side by side, by kind of question where they were asked."""
    found: dict[str, list[tuple[str, Mapping[str, Any]]]] = {}
    for letter, result in results.items():
        whole = {"name": "all", "accuracy": (result or {}).get("test_accuracy")}
        for kind in (result or {}).get("test_kinds", [whole] if result else []):
            found.setdefault(kind["name"], []).append((letter, kind))
    bars = {f"{name}, {letter}": kind for name, kinds in found.items() for letter, kind in kinds}
    if not bars:
        return Section("results", "Results", "None of the runs is complete yet.")
    bounds = [kind["interval"] for kind in bars.values() if "interval" in kind]
    chart = Bars(
        "Test accuracy",
        "accuracy, %",
        list(bars),
        {"accuracy, %": [kind["accuracy"] for kind in bars.values()]},
        note="Strokes are 95 % intervals, with the image as the unit." if bounds else "",
        low=[low for low, _ in bounds] if len(bounds) == len(bars) else [],
        high=[high for _, high in bounds] if len(bounds) == len(bars) else [],
        end=100,
        hues=[list(results).index(name[-1]) for name in bars],
    )
    return Section("results", "Results", figures=[Figure(chart)])


def differences_section(a: Experiment, b: Experiment) -> Section:
    """Name the fields in which two experiments differ."""
    fields = {name: pair for name, pair in differences(a, b).items() if name != "name"}
    if a.train.seed != b.train.seed:
        fields["train.seed"] = (a.train.seed, b.train.seed)
    title = "Differences in configuration"
    if not fields:
        return Section("differences", title, "Configuration and seed are the same.")
    rows = [[name, *map(str, pair)] for name, pair in fields.items()]
    return Section("differences", title, tables=[Grid(["field", "A", "B"], rows)])
