"""Collect the runs of recipes from a folder for a table.

Runs are grouped by experiment and data: a row only uses complete runs of exactly its own
experiment on exactly the same data, so a table never averages over different experiments or data.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import mean, stdev
from typing import NamedTuple

from associative_transformer.experiment import Experiment, differences, fingerprint
from associative_transformer.files import describe_denied, list_folders
from associative_transformer.interface import UserError, format_count, printable
from associative_transformer.recipes import RECIPES
from associative_transformer.recipes.budgets import BUDGETS, Budget, shorten
from associative_transformer.runs.reading import exists
from associative_transformer.runs.result import RunResult, name_unfinished_data
from associative_transformer.runs.saved import RunRecord, read_run
from associative_transformer.scores import Interval

OTHER_DATA = "runs on other data: never averaged with those of another row"
OVERRIDES = "runs with overrides: not part of any row above"
UNKNOWN = "unknown"  # in place of what a complete run does not record


class CompleteRun(NamedTuple):
    """A complete run, as a table needs it."""

    result: RunResult
    device: str


@dataclass
class RunsOfExperiment:
    """The runs of one experiment on the same data, with different seeds."""

    experiment: Experiment
    data: str = ""  # digest of the data; empty if no run is complete
    other: str = ""  # what the data are, if they are not those of the recipe
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


Named = tuple[str, RunsOfExperiment]  # with the title of its row


class CollectedRuns(NamedTuple):
    """All runs of some recipes in a folder."""

    runs: dict[tuple[str, str, str], RunsOfExperiment]  # by recipe, fingerprint and data
    left_out: list[str]  # a note on each run that was not used, with the reason

    def take(self, experiment: Experiment) -> RunsOfExperiment:
        """Remove and return the runs of exactly this experiment; there may be none.

        If there are runs on several data sets, those with the most seeds are taken. Runs on images
        that are not those of the recipe stay, see `take_others`.
        """
        plain = replace(experiment, name=_recipe_of(experiment))
        key = (plain.name, fingerprint(plain))
        groups = [group for k, group in self.runs.items() if k[:2] == key and not group.other]
        chosen = max(groups, key=lambda group: len(group.complete), default=None)
        if chosen is None:
            return RunsOfExperiment(plain)
        del self.runs[*key, chosen.data]
        if chosen.data and (unfinished := self.runs.pop((*key, ""), None)):
            chosen.unfinished += unfinished.unfinished
        return chosen

    def take_budget(self, recipe: Experiment, budget: Budget) -> RunsOfExperiment:
        """Remove and return the runs of a recipe at a budget; none if it does not shorten it."""
        short = shorten(recipe, budget)
        if budget != "paper" and short == recipe:
            return RunsOfExperiment(recipe)
        return self.take(short)

    def take_others(self, recipes: dict[str, Experiment]) -> list[RunsOfExperiment]:
        """Remove and return the remaining runs that differ from a recipe only in their data."""
        prints = {
            (name, fingerprint(shorten(recipe, budget)))
            for name, recipe in recipes.items()
            for budget in BUDGETS
        }
        keys = sorted(key for key in self.runs if key[:2] in prints)
        return [self.runs.pop(key) for key in keys]


def collect_runs(folder: Path, recipes: dict[str, Experiment]) -> CollectedRuns:
    """Read all runs of the recipes in `folder/NAME/SEED`, with or without overrides.

    These are left out with a note: damaged runs, folders and runs that may not be read, and runs
    with unknown names on a data set of the recipes. A run that has lost only its environment still
    counts. Raises UserError if the folder cannot be read.
    """
    collected = CollectedRuns({}, [])
    paths: list[Path] = []
    for parent in list_folders(folder):
        try:
            paths += list_folders(parent)
        except UserError as error:
            collected.left_out.append(f"Left out: {error}.")
    data_kinds = {recipe.data.kind for recipe in recipes.values()}
    for path in paths:
        try:
            if not exists(path / "experiment.yaml"):
                continue
            run = read_run(path)
            name = _recipe_of(run.experiment)
            if name in recipes:
                _add(run, name, collected)
            elif name not in RECIPES and run.experiment.data.kind in data_kinds:
                collected.left_out.append(f"Left out: {path}: {name} is not a recipe.")
        except UserError as error:
            collected.left_out.append(f"Left out: {error}.")
        except PermissionError as error:
            collected.left_out.append(f"Left out: {describe_denied(error)}.")
    if not collected.runs and not collected.left_out:
        collected.left_out.append(f"There are no runs of these recipes in {folder}.")
    return collected


def _add(run: RunRecord, name: str, collected: CollectedRuns) -> None:
    """Add a run to those of its experiment; copies of a complete run count once."""
    experiment, train = replace(run.experiment, name=name), run.experiment.train
    group = RunsOfExperiment(experiment)
    if run.result is not None:
        group.data, group.other = run.result.data, run.result.other_data(experiment.data) or ""
        complete = CompleteRun(run.result, _device_of(run))
        group = collected.runs.setdefault((name, fingerprint(experiment), group.data), group)
        group.complete.setdefault(train.seed, complete)
    else:
        epochs = f"{run.num_epochs:,} of {format_count(train.epochs, 'epoch')}"
        progress = f"seed {train.seed} unfinished after {epochs}"
        if name_unfinished_data(experiment) != experiment.data.display_name:
            progress += " (data not known yet)"
        group = collected.runs.setdefault((name, fingerprint(experiment), ""), group)
        group.unfinished.append(progress)


def _device_of(run: RunRecord) -> str:
    """Return the device of a run, or UNKNOWN; an unusable environment is named on stderr."""
    try:
        environment = run.environment
    except UserError as error:
        print(printable(str(error)), file=sys.stderr)
        return UNKNOWN
    except PermissionError as error:
        print(printable(describe_denied(error)), file=sys.stderr)
        return UNKNOWN
    return UNKNOWN if environment is None else environment.device or UNKNOWN


def _recipe_of(experiment: Experiment) -> str:
    """Return the name of an experiment without the fingerprint of its overrides."""
    return experiment.name.partition("+")[0]


def describe_overrides(experiment: Experiment, recipe: Experiment) -> str:
    """Return the name of a recipe followed by its overrides."""
    overrides = differences(experiment, recipe)
    changes = ", ".join(f"{key} {new} instead of {old}" for key, (new, old) in overrides.items())
    return f"{recipe.name} with {changes}"


def describe_data(runs: RunsOfExperiment) -> str:
    """Return what the data of runs are, with the start of their digest."""
    if not runs.data:
        return "data that is not known yet"
    return f"{runs.other or 'other data of the same kind'}, digest {runs.data[:8]}"


def name_rest(collected: CollectedRuns, recipes: dict[str, Experiment]) -> dict[str, list[Named]]:
    """Return the runs that no row has taken, each group with the title of its row, by heading."""
    others = [
        (f"{runs.experiment.name} on {describe_data(runs)}", runs)
        for runs in collected.take_others(recipes)
    ]
    keys = [key[:2] for key in collected.runs]
    changed = []
    for key, runs in sorted(collected.runs.items()):
        title = describe_overrides(runs.experiment, recipes[key[0]])
        if runs.other or keys.count(key[:2]) > 1:
            title += f", on {describe_data(runs)}"
        changed.append((title, runs))
    return {OTHER_DATA: others, OVERRIDES: changed}


def spread(values: Sequence[float], interval: Interval | None = None) -> str:
    """Return the mean, with the standard deviation if there are several values, or a dash.

    A single value is followed by its interval, if one is given.
    """
    if not values:
        return "-"
    if len(values) == 1 and interval is not None:
        return f"{values[0]:.2f} ({interval.low:.1f} to {interval.high:.1f})"
    return f"{mean(values):.2f}" + (f" ± {stdev(values):.2f}" if len(values) > 1 else "")
