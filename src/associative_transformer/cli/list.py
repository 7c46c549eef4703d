"""`ait list`: the recipes as a table."""

import sys
from dataclasses import dataclass

import torch
import tyro
from rich.console import Console
from rich.table import Table

from associative_transformer.cli.options import parse
from associative_transformer.interface import UserError
from associative_transformer.models import build_model
from associative_transformer.recipes import PUBLISHED, RECIPES


@dataclass(frozen=True)
class ListOptions:
    """Show the recipes: data, model, live parameters, published accuracy."""

    words: tyro.conf.Positional[tuple[str, ...]] = ()
    """Show those with all these words in their names, as in: ait list cifar10 luna."""


def run(arguments: list[str]) -> None:
    """Print the recipes as a table."""
    options = parse(ListOptions, arguments, "list")
    chosen = {n: r for n, r in RECIPES.items() if all(word in n for word in options.words)}
    if not chosen:
        raise UserError(f"no recipe has {' and '.join(options.words)} in its name")
    table = Table(title="ait train RECIPE")
    for title in ("recipe", "data", "model"):
        table.add_column(title, no_wrap=True)
    for title in ("epochs", "live parameters", "published accuracy"):
        table.add_column(title, justify="right")
    for name, recipe in chosen.items():
        data, model = recipe.data, recipe.model
        with torch.device("meta"):
            live = sum(p.numel() for p in build_model(model).parameters())
        depth, width = getattr(model, "depth", None), getattr(model, "embed_dim", None)
        table.add_row(
            name,
            data.name if data.kind == "images" else data.kind,
            f"{model.kind}, {depth} layers of {width}" if depth else model.kind,
            str(recipe.train.epochs),
            f"{live:,}",
            PUBLISHED.get(name, "-"),
        )
    Console(width=None if sys.stdout.isatty() else 160).print(table)
