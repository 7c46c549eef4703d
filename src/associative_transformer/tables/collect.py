"""Collect the runs of recipes from a folder for a table.

Runs are grouped by experiment: a row only uses complete runs of exactly its own experiment, so a
table never averages over different experiments.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import mean, stdev
from typing import NamedTuple

from associative_transformer.experiment import Experiment, differences, fingerprint
from associative_transformer.interface import UserError
from associative_transformer.recipes import RECIPES
from associative_transformer.runs.result import RunResult
from associative_transformer.runs.saved import RunRecord, read_run


class CompleteRun(NamedTuple):
    """A complete run, as a table needs it."""

    result: RunResult
    device: str


@dataclass
class RunsOfExperiment:
    """The runs of one experiment with different seeds."""

    experiment: Experiment
    complete: dict[int, CompleteRun] = field(default_factory=dict)  # by seed
    unfinished: list[str] = field(default_factory=list)  # "seed 1 unfinished after 3 of 9 epochs"

    @property
    def results(self) -> list[RunResult]:
        """The results of the complete runs."""
        return [run.result for run in self.complete.values()]

    @property
    def seeds(self) -> str:
        """Number of complete runs, followed by the progress of each unfinished run."""
        precisions = sorted({result.precision for result in self.results})
        count = f"{len(self.complete)}"
        count += f" in {' and '.join(precisions)}" if precisions[1:] else ""
        return ", ".join([count] * bool(self.complete) + self.unfinished) or "not run"


class CollectedRuns(NamedTuple):
    """All runs of some recipes in a folder."""

    runs: dict[tuple[str, str], RunsOfExperiment]  # by recipe and fingerprint
    left_out: list[str]  # a note on each run that was not used, with the reason

    def take(self, experiment: Experiment) -> RunsOfExperiment:
        """Remove and return the runs of exactly this experiment; there may be none."""
        plain = replace(experiment, name=_recipe_of(experiment))
        return self.runs.pop((plain.name, fingerprint(plain)), RunsOfExperiment(plain))


def collect_runs(folder: Path, recipes: dict[str, Experiment]) -> CollectedRuns:
    """Read all runs of the recipes in `folder/NAME/SEED`, with or without overrides.

    Damaged runs are left out with a note, and so are runs with unknown names on a data set of the
    recipes.
    """
    collected = CollectedRuns({}, [])
    data_kinds = {recipe.data.kind for recipe in recipes.values()}
    for path in sorted(folder.glob("*/*/experiment.yaml")):
        try:
            run = read_run(path.parent)
            name = _recipe_of(run.experiment)
            if name in recipes:
                _add(run, name, collected)
            elif name not in RECIPES and run.experiment.data.kind in data_kinds:
                collected.left_out.append(f"Left out: {path.parent}: {name} is not a recipe.")
        except UserError as error:
            collected.left_out.append(f"Left out: {error}.")
    if not collected.runs and not collected.left_out:
        collected.left_out.append(f"There are no runs of these recipes in {folder}.")
    return collected


def _add(run: RunRecord, name: str, collected: CollectedRuns) -> None:
    """Add a run to those of its experiment; copies of a complete run count once."""
    experiment, train = replace(run.experiment, name=name), run.experiment.train
    key, new_group = (name, fingerprint(experiment)), RunsOfExperiment(experiment)
    if run.result is not None:
        complete = CompleteRun(run.result, _device_of(run))
        collected.runs.setdefault(key, new_group).complete.setdefault(train.seed, complete)
    else:
        progress = f"seed {train.seed} unfinished after {run.num_epochs} of {train.epochs} epochs"
        collected.runs.setdefault(key, new_group).unfinished.append(progress)


def _device_of(run: RunRecord) -> str:
    if run.environment is None:
        raise UserError(
            f"{run.folder / 'environment.json'} is missing: copy it from the original run folder"
        )
    return run.environment.device or "-"


def _recipe_of(experiment: Experiment) -> str:
    """Return the name of an experiment without the fingerprint of its overrides."""
    return experiment.name.partition("+")[0]


def describe_overrides(experiment: Experiment, recipe: Experiment) -> str:
    """Return the name of a recipe followed by its overrides."""
    overrides = differences(experiment, recipe)
    changes = ", ".join(f"{key} {new} instead of {old}" for key, (new, old) in overrides.items())
    return f"{recipe.name} with {changes}"


def spread(values: Sequence[float]) -> str:
    """Return the mean, with the standard deviation if there are several values, or a dash."""
    if not values:
        return "-"
    return f"{mean(values):.2f}" + (f" ± {stdev(values):.2f}" if len(values) > 1 else "")
