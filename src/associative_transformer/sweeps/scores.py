"""The scores of a sweep: a table for the terminal, CSV and JSON, sorted by validation accuracy."""

import csv
import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any, Literal

from associative_transformer.experiment import Experiment
from associative_transformer.files import csv_text, make_folder, write_file
from associative_transformer.recipes.commands import train_arguments
from associative_transformer.runs.overrides import override
from associative_transformer.runs.plan import PlannedRun
from associative_transformer.runs.result import read_result
from associative_transformer.runs.spread import spread_of
from associative_transformer.sweeps.space import format_value
from associative_transformer.tabular import RowGroup, Table

State = Literal["complete", "pruned", "failed", "missing"]
STATES: tuple[State, ...] = ("complete", "pruned", "failed", "missing")
NOTE = (
    "Validation accuracy in % of the best epoch of each run, ± half the 95 % interval of the mean "
    "over seeds (Student's t); that of the best one of many is too high. No test image was used "
    "to choose."
)


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A combination of values, with the scores of its runs."""

    values: dict[str, Any]
    state: State
    validation: tuple[float, ...]  # best accuracy of each seed in percent
    epochs: int | None = None  # trained
    best_epochs: tuple[int, ...] = ()
    parameters: int | None = None
    seconds: float | None = None  # of training, summed over seeds
    folders: tuple[str, ...]

    @property
    def score(self) -> float:
        """The mean validation accuracy; -1 if there is none."""
        return mean(self.validation) if self.validation else -1.0


def score_runs(values: Mapping[str, Any], runs: Iterable[PlannedRun], state: State) -> Trial:
    """Read the scores of the runs of a combination; `state` is that of runs without a result."""
    runs = list(runs)
    results = [read_result(run.folder) if run.is_complete else None for run in runs]
    complete = [result for result in results if result is not None]
    best = [each.best_validation for each in complete if each.best_validation is not None]
    timed = [each.timing.seconds for each in complete if each.timing is not None]
    return Trial(
        values=dict(values),
        state="complete" if len(best) == len(runs) else state,
        validation=tuple(each.validation_accuracy for each in best),
        epochs=complete[0].epochs if complete else None,
        best_epochs=tuple(each.epoch for each in best),
        parameters=complete[0].live_parameters if complete else None,
        seconds=sum(timed) if timed else None,
        folders=tuple(str(run.folder) for run in runs),
    )


def sort_trials(trials: Iterable[Trial]) -> list[Trial]:
    """Sort by validation accuracy, the best first; trials that did not finish come last."""
    return sorted(trials, key=lambda trial: (STATES.index(trial.state), -trial.score))


def tabulate_trials(title: str, trials: list[Trial]) -> Table:
    """Return a table of sorted trials."""
    fields = list(dict.fromkeys(field for trial in trials for field in trial.values))
    columns = ["rank", *fields, "validation", "best epoch", "parameters", "seconds", "run folder"]
    rows = []
    for number, trial in enumerate(trials, start=1):
        accuracy = str(spread_of(trial.validation)) if trial.validation else "-"
        epoch = ", ".join(map(str, trial.best_epochs)) or "-"
        if trial.state != "complete":
            after = f" after epoch {trial.epochs}" if trial.state == "pruned" else ""
            epoch = f"{trial.state}{after}"
        first, more = trial.folders[0], len(trial.folders) - 1
        rows.append(
            (
                str(number) if trial.state == "complete" else "-",
                *(format_value(trial.values[field]) for field in fields),
                accuracy,
                epoch,
                "-" if trial.parameters is None else f"{trial.parameters:,}",
                "-" if trial.seconds is None else f"{trial.seconds:,.0f}",
                f"{first} and {more} more" if more else first,
            )
        )
    return Table(title, tuple(columns), [RowGroup("", rows)], [NOTE])


def train_on_all(best: PlannedRun, recipe: Experiment) -> list[str] | None:
    """Return the arguments of `ait` that train the best combination on all training images.

    None if the validation images are not taken from the training images.
    """
    experiment = best.experiment
    if not getattr(experiment.data, "val_fraction", 0.0):
        return None
    experiment = override(experiment, {"data.val_fraction": 0.0}, "data.val_fraction")
    if experiment.name.partition("+")[0] != recipe.name:
        experiment = replace(experiment, name=f"{experiment.name}-all")
    return [*train_arguments(experiment, recipe), "--runs", str(best.runs)]


def write_scores(folder: Path, trials: list[Trial], described: Mapping[str, Any]) -> None:
    """Write `table.csv` and `sweep.json`. Raises UserError if that fails."""
    make_folder(folder)
    fields = list(dict.fromkeys(field for trial in trials for field in trial.values))
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    last = ["epochs", "parameters", "seconds"]
    writer.writerow([*fields, "state", "validation_accuracy", *last, "folders"])
    for trial in trials:
        score = trial.score if trial.validation else None
        numbers = [getattr(trial, name) for name in last]
        cells = [trial.values[field] for field in fields]
        row = [*cells, trial.state, score, *numbers, " ".join(trial.folders)]
        writer.writerow(["" if cell is None else csv_text(str(cell)) for cell in row])
    write_file(folder / "table.csv", buffer.getvalue().encode())
    rows = [asdict(trial) for trial in trials]
    content = {**described, "scored_on": "validation", "trials": rows}
    write_file(folder / "sweep.json", (json.dumps(content, indent=2) + "\n").encode())
