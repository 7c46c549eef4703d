"""The recipes: all named experiments, and the tables they belong to.

`table.json`, in this folder, holds what `ait list` shows, so that the command can read it without
importing torch: a JSON list with one object per recipe, in the order of `RECIPES`, with the keys
`name`, `data`, `model` ("ait, 2 layers of 768"), `epochs`, `live_parameters` (an integer) and
`published` (a string such as "85.44 %", or null). `make tables` writes it.
"""

from collections.abc import Iterable
from difflib import get_close_matches

from associative_transformer.experiment import Experiment
from associative_transformer.interface import UserError
from associative_transformer.recipes import (
    ablations,
    classification,
    laptop,
    per_image,
    relational,
    sources,
)

RECIPES: dict[str, Experiment] = {
    experiment.name: experiment
    for experiment in (
        *classification.TINY,
        *classification.NARROW,
        *classification.EXPERIMENTS,
        *ablations.EXPERIMENTS,
        *ablations.FURTHER,
        *classification.OTHER_PATCHES,
        *sources.EXPERIMENTS,
        *relational.TINY,
        *relational.EXPERIMENTS,
        *relational.SOURCES,
        *per_image.EXPERIMENTS,
        *laptop.EXPERIMENTS,
    )
}


def _group(names: Iterable[str], data_sets: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Group recipes by their names without the data set."""
    rows: dict[str, tuple[str, ...]] = {}
    for name in names:
        data_set = next(data_set for data_set in data_sets if name.startswith(f"{data_set}-"))
        row = name.removeprefix(f"{data_set}-")
        rows[row] = (*rows.get(row, ()), name)
    return rows


TABLE_RECIPES = {
    "classification": _group((row.name for row in classification.ROWS), classification.DATA_SETS),
    "ablations": _group(
        (name for row in ablations.ROWS for name in row.recipes), classification.DATA_SETS
    ),
    "relational": _group(
        (experiment.name for experiment in relational.EXPERIMENTS), ("sort-of-clevr",)
    ),
}
"""The recipes of each row of the paper's tables; rows are named without the data set."""

LAPTOP_RECIPES = {
    table: _group(
        (name for row in rows for name in (row.cifar10, row.triangle) if name),
        ("cifar10-laptop", "triangle-laptop"),
    )
    for table, rows in laptop.TABLE_ROWS.items()
}
"""The recipes of each row of the laptop edition of a table."""

PUBLISHED_TEXT = {
    row.name: f"{row.published:.2f} %" for row in classification.ROWS if row.published is not None
} | {
    name: f"{binary:.2f} % binary, {other:.2f} % not" if other else f"{binary:.2f} % binary"
    for name, (binary, other) in relational.PUBLISHED.items()
}
"""Published test accuracy of a recipe, as text."""


def find_recipe(name: str) -> Experiment:
    """Return the recipe of that name. Raises UserError with the three closest names otherwise."""
    if name not in RECIPES:
        similar = ", ".join(get_close_matches(name, RECIPES, n=3, cutoff=0.0))
        raise UserError(
            f"there is no recipe {name!r}; closest first: {similar}; `ait list` shows all recipes"
        )
    return RECIPES[name]
