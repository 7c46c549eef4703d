"""The runs of recipes that lie in a folder, read back for a table.

A table takes the complete runs whose experiment is exactly what it asks for; nothing is averaged
across different ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import mean, stdev
from typing import NamedTuple, TypeVar

from pydantic import TypeAdapter, ValidationError

from associative_transformer.experiment import (
    Experiment,
    differences,
    fingerprint,
    load_experiment,
)
from associative_transformer.interface import UserError
from associative_transformer.recipes import RECIPES

Content = TypeVar("Content")


@dataclass(frozen=True)
class Score:
    """What a table reads of the questions of a kind."""

    name: str
    accuracy: float
    guess: float


@dataclass(frozen=True)
class Timing:
    """What a table reads of the clock."""

    finished: str = "-"  # date


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a table reads of `result.json`."""

    epochs: int
    precision: str
    test_accuracy: float
    timing: Timing = field(default_factory=Timing)


@dataclass(frozen=True, kw_only=True)
class QuestionResult(Result):
    """What a table reads where questions were asked."""

    question_types: list[str]
    test_kinds: list[Score]

    def score(self, name: str) -> Score | None:
        """Find the questions of a kind, where there are any."""
        return next((score for score in self.test_kinds if score.name == name), None)


@dataclass(frozen=True)
class Environment:
    """What a table reads of `environment.json`."""

    device: str = "-"


class Run(NamedTuple):
    """A complete run."""

    result: Result
    environment: Environment


@dataclass
class Runs:
    """The runs of one experiment under several seeds."""

    experiment: Experiment
    complete: dict[int, Run] = field(default_factory=dict)  # by seed
    unfinished: list[str] = field(default_factory=list)  # "seed 1 after 3 of 100 epochs"

    @property
    def results(self) -> list[Result]:
        """Those of the complete runs."""
        return [run.result for run in self.complete.values()]

    @property
    def seeds(self) -> str:
        """Say how many seeds are complete, and how far the others got."""
        precisions = sorted({result.precision for result in self.results})
        count = f"{len(self.complete)}"
        count += f" in {' and '.join(precisions)}" if precisions[1:] else ""
        return ", ".join([count] * bool(self.complete) + self.unfinished) or "not run"


class Found(NamedTuple):
    """All runs of some recipes in a folder."""

    runs: dict[tuple[str, str], Runs]  # by recipe and fingerprint
    left_out: list[str]  # which runs were not read, and why

    def take(self, experiment: Experiment) -> Runs:
        """Take out the runs of exactly this experiment; there may be none."""
        plain = replace(experiment, name=experiment.name.partition("+")[0])
        return self.runs.pop((plain.name, fingerprint(plain)), Runs(plain))


def find_runs(folder: Path, recipes: dict[str, Experiment]) -> Found:
    """Read the runs of these recipes below a folder, with overrides or without."""
    runs: dict[tuple[str, str], Runs] = {}
    kinds = {recipe.data.kind for recipe in recipes.values()}
    left_out = []
    for path in sorted(folder.glob("*/*/experiment.yaml")):
        try:
            experiment = load_experiment(path)
            name = experiment.name.partition("+")[0]
            if name not in recipes:
                if name not in RECIPES and experiment.data.kind in kinds:
                    left_out.append(f"Left out: {path.parent}, since {name} is no recipe.")
                continue
            experiment = replace(experiment, name=name)
            is_complete = (path.parent / "result.json").exists()
            here = (_read if is_complete else _standing)(experiment, path.parent)
            found = runs.setdefault((name, fingerprint(experiment)), Runs(experiment))
            if isinstance(here, Run):
                found.complete.setdefault(experiment.train.seed, here)  # once, if it was copied
            else:
                found.unfinished.append(here)
        except (UserError, OSError) as error:
            left_out.append(f"Left out: {path.parent} can't be read ({error}).")
    if not runs and not left_out:
        left_out.append(f"There are no runs of these recipes in {folder}.")
    return Found(runs, left_out)


def describe_overrides(experiment: Experiment, recipe: Experiment) -> str:
    """Name a run that is not its recipe by what was changed."""
    overrides = differences(experiment, recipe)
    what = ", ".join(f"{key} {new} instead of {old}" for key, (new, old) in overrides.items())
    return f"{recipe.name} with {what}"


def spread(values: Sequence[float]) -> str:
    """Write mean and, where there are several, standard deviation; a dash where there are none."""
    if not values:
        return "-"
    return f"{mean(values):.2f}" + (f" ± {stdev(values):.2f}" if len(values) > 1 else "")


def _read(experiment: Experiment, folder: Path) -> Run:
    kind = QuestionResult if hasattr(experiment.data, "question_types") else Result
    environment = _parse(Environment, folder / "environment.json")
    return Run(_parse(kind, folder / "result.json"), environment)


def _parse(kind: type[Content], path: Path) -> Content:
    try:
        return TypeAdapter(kind).validate_json(path.read_bytes(), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join([path.name, *map(str, first["loc"])])
        raise UserError(f"{where}: {first['msg']}") from None


def _standing(experiment: Experiment, folder: Path) -> str:
    """Say how far a run got that is not complete."""
    metrics = folder / "metrics.jsonl"
    epochs = len(metrics.read_bytes().splitlines()) if metrics.exists() else 0
    train = experiment.train
    return f"seed {train.seed} unfinished after {epochs} of {train.epochs} epochs"
