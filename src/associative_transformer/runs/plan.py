"""The runs of a table, of several seeds or of a sweep: which there are, and which are complete."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from associative_transformer.experiment import Experiment, fingerprint
from associative_transformer.interface import UserError
from associative_transformer.recipes import RECIPES
from associative_transformer.recipes.budgets import Budget, shorten
from associative_transformer.recipes.commands import train_arguments
from associative_transformer.runs.defaults import named, run_folder
from associative_transformer.runs.folder import check_folder
from associative_transformer.runs.reading import exists
from associative_transformer.runs.result import read_result


@dataclass(frozen=True)
class PlannedRun:
    """A run of a recipe, shortened or with overrides, which may be complete already."""

    recipe: str
    experiment: Experiment
    runs: Path  # folder of all runs
    options: tuple[str, ...] = ()  # of `ait train`, which do not belong to the experiment
    label: str = ""  # what to call the experiment if not by its recipe

    @property
    def folder(self) -> Path:
        """Folder of this run."""
        return run_folder(self.experiment, self.runs)

    @property
    def is_started(self) -> bool:
        """Whether the run folder exists. Raises UserError if that cannot be determined."""
        return exists(self.folder / "experiment.yaml")

    @property
    def is_complete(self) -> bool:
        """Whether the run has a result that tables can use; if not, `ait train` says why.

        Raises UserError or PermissionError if that cannot be determined.
        """
        exists(self.folder / "experiment.yaml")
        try:
            check_folder(self.folder, self.experiment, resume=True, overwrite=False)
            return read_result(self.folder) is not None
        except UserError:
            return False

    @property
    def title(self) -> str:
        """Recipe, or label, and seed."""
        return f"{self.label or self.recipe}, seed {self.experiment.train.seed}"

    @property
    def arguments(self) -> list[str]:
        """Arguments for `ait` to train or resume this run."""
        words = train_arguments(self.experiment, RECIPES[self.recipe])
        words += ["--runs", str(self.runs), *self.options]
        return words + ["--resume"] * self.is_started


def plan_runs(
    recipes: Iterable[str],
    budget: Budget,
    seeds: Iterable[int],
    runs: Path,
    sources: dict[str, Path],
) -> list[PlannedRun]:
    """List the runs of all recipes with the first seed, then those with the next seed.

    `sources` maps names of data sets to local copies of their images.
    """
    planned = []
    for recipe in recipes:
        experiment = shorten(RECIPES[recipe], budget)
        if source := sources.get(experiment.data.display_name):
            data = experiment.data.with_storage(source=str(source))
            experiment = replace(experiment, data=data)
        planned.append(PlannedRun(recipe, experiment, runs))
    return with_seeds(planned, seeds)


def plan_variants(
    recipe: Experiment, variants: Mapping[str, Experiment], seeds: Iterable[int], runs: Path
) -> list[PlannedRun]:
    """List the runs of variants of a recipe, by label, one seed after another.

    A variant is named RECIPE+FINGERPRINT, or NAME+FINGERPRINT if it has a name of its own, so that
    each has a folder. Raises UserError if two variants are the same experiment.
    """
    planned: dict[str, PlannedRun] = {}
    for label, variant in variants.items():
        experiment = _named_variant(variant, recipe)
        run = PlannedRun(recipe.name, experiment, runs, label=label)
        other = planned.setdefault(experiment.name, run)
        if other is not run:
            raise UserError(f"{other.label} and {label} are the same experiment: remove one")
    return with_seeds(planned.values(), seeds)


def with_seeds(planned: Collection[PlannedRun], seeds: Iterable[int]) -> list[PlannedRun]:
    """List planned runs with the first seed, then with the next seed."""
    return [_with_seed(run, seed) for seed in seeds for run in planned]


def _with_seed(run: PlannedRun, seed: int) -> PlannedRun:
    train = replace(run.experiment.train, seed=seed)
    return replace(run, experiment=replace(run.experiment, train=train))


def _named_variant(variant: Experiment, recipe: Experiment) -> Experiment:
    if variant.name == recipe.name:
        return named(variant, recipe)
    return replace(variant, name=f"{variant.name}+{fingerprint(variant)}")
