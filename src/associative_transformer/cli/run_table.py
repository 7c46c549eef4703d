"""`ait run-table`: train all missing runs of a table."""

from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Literal

from associative_transformer.cli.options import (
    RUNS,
    check_trained,
    find_edition,
    format_command,
    parse,
    say,
)
from associative_transformer.interface import UserError, format_count
from associative_transformer.recipes import LAPTOP_RECIPES, RECIPES, TABLE_RECIPES
from associative_transformer.recipes.budgets import Budget


@dataclass(frozen=True)
class RunTableOptions:
    """Train all missing runs of a table, one after another; run the command again to continue."""

    table: Literal["classification", "ablations", "relational"]
    """The table to complete."""
    rows: tuple[str, ...] = ()
    """Rows, such as ait-small, or single recipes, such as cifar10-ait-small; default: all rows."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds; each recipe is trained once per seed."""
    budget: Budget | Literal["laptop"] = "paper"
    """paper: as published; short: 10 epochs; smoke: one epoch of 40 images, as a quick check;
    laptop: small models, each trained in minutes without a GPU."""
    sources: dict[str, Path] = field(default_factory=dict)
    """Local copies of image sets, as in: --sources cifar10 PATH cifar100 PATH."""
    runs: Path = RUNS
    """Folder of all runs."""

    def __post_init__(self) -> None:
        if not self.seeds or min(self.seeds) < 0:
            raise ValueError(
                f"--seeds takes at least one number, each 0 or more, not {self.seeds}"
            )


def run(arguments: list[str]) -> None:
    """Train the missing runs of a table."""
    options = parse(RunTableOptions, arguments, "run-table")
    from associative_transformer.runs.plan import PlannedRun, plan_runs
    from associative_transformer.training.run_all import announce_run, train_runs

    stored = (recipe.data for recipe in RECIPES.values() if not recipe.data.is_generated)
    known = {data.display_name for data in stored}
    for name, path in options.sources.items():
        if name not in known:
            raise UserError(
                f"--sources has {name!r}, which is not an image set: use one of "
                f"{', '.join(sorted(known))}"
            )
        if not path.is_dir():
            raise UserError(f"there is no folder {path} with a copy of {name}: correct --sources")
    recipes = _choose(options)
    budget = "paper" if options.budget == "laptop" else options.budget
    runs = plan_runs(recipes, budget, options.seeds, options.runs, options.sources)
    num_complete = sum(run.is_complete for run in runs)
    say(f"{format_count(len(runs), 'run')}, {num_complete} of them complete")

    def announce(position: int, run: PlannedRun) -> None:
        say(f"\n{announce_run(position, runs)}")

    check_trained(runs, train_runs(runs, announce))
    words = ["table", options.table, "--runs", str(options.runs)]
    words += ["--budget", "laptop"] * (options.budget == "laptop")
    say(f"\nnext          {format_command(*words)}")


def _choose(options: RunTableOptions) -> list[str]:
    """Return the recipes that --rows selects, each a row or a recipe, in the same order."""
    rows = (
        find_edition(LAPTOP_RECIPES, options.table)
        if options.budget == "laptop"
        else TABLE_RECIPES[options.table]
    )
    recipes: list[str] = []
    for word in options.rows or tuple(rows):
        if word not in rows and word not in RECIPES:
            close = get_close_matches(word, [*rows, *RECIPES], n=5, cutoff=0.0)
            raise UserError(
                f"--rows: the table {options.table} has no row {word!r}, and there is no such "
                f"recipe; closest: {', '.join(close)}"
            )
        recipes += rows.get(word, (word,))
    return list(dict.fromkeys(recipes))
