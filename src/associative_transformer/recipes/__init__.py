"""The recipes: every experiment that has a name, and the tables they belong to.

`table.json`, in this folder, holds what `ait list` shows, so that the command can read it without
importing torch: a JSON list with one object per recipe, in the order of `RECIPES`, with the keys
`name`, `data`, `model` ("ait, 2 layers of 768"), `epochs`, `live_parameters` (an integer) and
`published` (a text such as "85.44 %", or null). `make tables` writes it.
"""

from difflib import get_close_matches

from associative_transformer.experiment import Experiment
from associative_transformer.interface import UserError
from associative_transformer.recipes import ablations, classification, relational, sources

RECIPES = {
    experiment.name: experiment
    for experiment in (
        *classification.TINY,
        *classification.EXPERIMENTS,
        *(
            ablation
            for experiment in classification.EXPERIMENTS
            if experiment.name.endswith("-ait-small")
            for ablation in ablations.ablate(experiment)
        ),
        *classification.OTHER_PATCHES,
        *sources.EXPERIMENTS,
        *relational.TINY,
        *relational.EXPERIMENTS,
        *relational.SOURCES,
    )
}

ROWS: dict[str, dict[str, tuple[str, ...]]] = {
    "classification": {
        row.name: tuple(f"{name}-{row.name}" for name in classification.SETS)
        for row in classification.ROWS
    },
    "ablations": {
        row.recipe: tuple(f"{name}-{row.recipe}" for name in classification.SETS)
        for row in ablations.ROWS
    },
    "relational": {
        experiment.name.removeprefix("sort-of-clevr-"): (experiment.name,)
        for experiment in relational.EXPERIMENTS
    },
}
"""The recipes of each row of the paper's tables."""

PUBLISHED = {
    f"{name}-{row.name}": f"{accuracy:.2f} %"
    for row in classification.ROWS
    for name, accuracy in zip(classification.SETS, row.accuracies, strict=True)
    if accuracy is not None
} | {
    name: f"{binary:.2f} % binary, {other:.2f} % not" if other else f"{binary:.2f} % binary"
    for name, (binary, other) in relational.PUBLISHED.items()
}
"""Published test accuracy by recipe, in words."""


def find_recipe(name: str) -> Experiment:
    """Give the recipe of a name. Raises UserError, with names like it, where there is none."""
    if name not in RECIPES:
        close = ", ".join(get_close_matches(name, RECIPES, n=10, cutoff=0.0))
        raise UserError(
            f"there is no recipe {name!r}; closest first: {close}; ait list shows all of them"
        )
    return RECIPES[name]
