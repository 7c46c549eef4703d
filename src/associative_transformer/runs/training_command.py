"""The command that repeats a training run."""

import re
import shlex
from dataclasses import replace
from pathlib import Path

from associative_transformer.experiment import Experiment, differences
from associative_transformer.recipes import RECIPES
from associative_transformer.recipes.commands import train_arguments

HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+")


def find_recipe_of(experiment: Experiment) -> Experiment | None:
    """Return the recipe of an experiment, or the most similar one with the same model and data.

    None if no recipe has this kind of model and data.
    """
    kinds = (experiment.data.kind, experiment.model.kind)
    candidates = [r for r in RECIPES.values() if (r.data.kind, r.model.kind) == kinds]
    named = RECIPES.get(experiment.name.partition("+")[0])
    if named in candidates:
        return named
    return min(candidates, key=lambda r: len(differences(experiment, r)), default=None)


def format_train_command(experiment: Experiment) -> str | None:
    """Return the command that repeats a training run; None if there is no similar recipe."""
    recipe = find_recipe_of(experiment)
    if recipe is None:
        return None
    return shlex.join(["ait", *train_arguments(experiment, recipe)])


def without_source(experiment: Experiment) -> Experiment:
    """Return the experiment without paths of this machine, since pages may be shared."""
    if experiment.init is not None and not _is_on_hub(experiment.init):
        experiment = replace(experiment, init="SOURCE")
    if experiment.data.source is None:
        return experiment
    return replace(experiment, data=experiment.data.with_storage(source="FOLDER"))


def _is_on_hub(source: str) -> bool:
    """Return whether a source can only be a name on the Hugging Face Hub."""
    return bool(HUB_NAME.fullmatch(source)) and not Path(source).expanduser().exists()
