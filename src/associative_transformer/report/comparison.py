"""The sections that compare two runs: their results and their configurations."""

from collections.abc import Mapping

from associative_transformer.experiment import Experiment, differences
from associative_transformer.report.charts import Bars, Figure, Grid, Section
from associative_transformer.runs.result import RunResult, accuracy_interval
from associative_transformer.scores import Interval


def results_section(results: Mapping[str, RunResult | None]) -> Section:
    """Return the section that compares test accuracies, overall or for each kind of question.

    `results` maps the letter of each run to its result, or to None if it is not complete.
    """
    scores: dict[str, dict[str, tuple[float, Interval]]] = {}  # by kind and letter
    for letter, result in results.items():
        if result is None:
            continue
        saved = result.best_validation or result
        if saved.test_kinds is None:
            scores.setdefault("all", {})[letter] = (saved.test_accuracy, accuracy_interval(saved))
        for kind in saved.test_kinds or ():
            scores.setdefault(kind.name, {})[letter] = (kind.accuracy, kind.interval)
    bars = {
        f"{name}, {letter}": score
        for name, by_letter in scores.items()
        for letter, score in by_letter.items()
    }
    if not bars:
        return Section("results", "Results", "Neither run is complete yet.")
    chart = Bars(
        "Test accuracy of the saved model",
        "accuracy, %",
        list(bars),
        {"accuracy, %": [accuracy for accuracy, _ in bars.values()]},
        note="The strokes are 95 % intervals, clustered by image.",
        low=[interval.low for _, interval in bars.values()],
        high=[interval.high for _, interval in bars.values()],
        end=100,
        hues=[list(results).index(name[-1]) for name in bars],
    )
    return Section("results", "Results", figures=[Figure(chart)])


def differences_section(a: Experiment, b: Experiment) -> Section:
    """Return the section with the fields in which two experiments differ."""
    fields = {name: pair for name, pair in differences(a, b).items() if name != "name"}
    if a.train.seed != b.train.seed:
        fields["train.seed"] = (a.train.seed, b.train.seed)
    title = "Differences in configuration"
    if not fields:
        return Section("differences", title, "Both runs have the same configuration and seed.")
    rows = [[name, *map(str, pair)] for name, pair in fields.items()]
    return Section("differences", title, tables=[Grid(["field", "A", "B"], rows)])
