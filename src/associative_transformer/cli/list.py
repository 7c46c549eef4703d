"""`ait list`: list the recipes.

Reads the generated table of recipes instead of building the models, so it does not need torch.
"""

import json
import sys
from dataclasses import dataclass
from importlib.resources import files
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.table import Table

from associative_transformer.cli.options import parse
from associative_transformer.interface import UserError


@dataclass(frozen=True)
class ListOptions:
    """List the recipes with data set, model, epochs, live parameters and published accuracy."""

    words: Annotated[
        tyro.conf.Positional[tuple[str, ...]],
        tyro.conf.arg(metavar="[WORD ...]", help_behavior_hint="(default: list all recipes)"),
    ] = ()
    """List only recipes whose names contain all these words, as in: ait list cifar10 luna."""


def run(arguments: list[str]) -> None:
    """Print a table of the recipes."""
    options = parse(ListOptions, arguments, "list")
    chosen = [r for r in read_recipes() if all(word in r["name"] for word in options.words)]
    if not chosen:
        words = " and ".join(options.words)
        raise UserError(f"no recipe has {words} in its name: `ait list` lists all recipes")
    table = Table(title="ait train RECIPE")
    for title in ("recipe", "data", "model"):
        table.add_column(title, no_wrap=True)
    for title in ("epochs", "live parameters", "published accuracy"):
        table.add_column(title, justify="right")
    for recipe in chosen:
        table.add_row(
            recipe["name"],
            recipe["data"],
            recipe["model"],
            str(recipe["epochs"]),
            f"{recipe['live_parameters']:,}",
            recipe["published"] or "-",
        )
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def read_recipes() -> list[dict[str, Any]]:
    """Read the generated table of recipes, one dictionary per recipe."""
    path = files("associative_transformer") / "recipes" / "table.json"  # importing recipes is slow
    return json.loads(path.read_text(encoding="utf-8"))
