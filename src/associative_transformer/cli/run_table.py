"""`ait run-table`: train all missing runs of a table."""

from dataclasses import dataclass, field
from datetime import timedelta
from difflib import get_close_matches
from pathlib import Path
from typing import Literal

from associative_transformer.cli.options import format_command, parse
from associative_transformer.interface import UserError
from associative_transformer.recipes import RECIPES, ROWS
from associative_transformer.recipes.budgets import Budget
from associative_transformer.tables.run_all import Clock, Failure, Job, plan, run_jobs


@dataclass(frozen=True)
class RunTableOptions:
    """Train all missing runs of a table, one after another; run the command again to continue."""

    table: Literal["classification", "ablations", "relational"]
    """The table."""
    rows: tuple[str, ...] = ()
    """Rows, such as ait-small, or single recipes, such as cifar10-ait-small; default: all rows."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds; each recipe is trained once per seed."""
    budget: Budget = "paper"
    """paper: as published; short: 10 epochs; smoke: one epoch of 40 images, as a quick check."""
    sources: dict[str, Path] = field(default_factory=dict)
    """Local copies of image sets, as in: --sources cifar10 PATH cifar100 PATH."""
    runs: Path = Path("runs")
    """Folder of all runs."""

    def __post_init__(self) -> None:
        if not self.seeds or min(self.seeds) < 0:
            raise ValueError(
                f"--seeds takes at least one number, each 0 or more, not {self.seeds}"
            )


def run(arguments: list[str]) -> None:
    """Train the missing runs of a table."""
    options = parse(RunTableOptions, arguments, "run-table")
    known = {data.name for recipe in RECIPES.values() if (data := recipe.data).kind == "images"}
    for name, path in options.sources.items():
        if name not in known:
            raise UserError(
                f"--sources has {name!r}, which is not an image set: use one of "
                f"{', '.join(sorted(known))}"
            )
        if not path.is_dir():
            raise UserError(f"there is no folder {path} with a copy of {name}: correct --sources")
    recipes = _choose(options.table, options.rows)
    jobs = plan(recipes, options.budget, options.seeds, options.runs, options.sources)
    missing = sum(not job.is_complete for job in jobs)
    print(f"{len(jobs)} runs, {len(jobs) - missing} of them complete", flush=True)

    def tell(number: int, job: Job, seconds: float | None) -> None:
        left = (
            "" if seconds is None else f"; about {timedelta(seconds=round(seconds))} left for all"
        )
        print(f"\n[{number}/{len(jobs)}] {job.title}{left}", flush=True)

    failures = run_jobs(jobs, tell, Clock())
    if failures:
        raise UserError(_describe(failures, len(jobs)))
    print(f"\nnext          {format_command('table', options.table, '--runs', str(options.runs))}")


def _choose(table: str, words: tuple[str, ...]) -> list[str]:
    """Return the recipes, row by row; each word names a row or a recipe."""
    rows = ROWS[table]
    recipes: list[str] = []
    for word in words or tuple(rows):
        if word not in rows and word not in RECIPES:
            close = get_close_matches(word, [*rows, *RECIPES], n=5, cutoff=0.0)
            raise UserError(
                f"the table {table} has no row {word!r}, and there is no such recipe; closest: "
                f"{', '.join(close)}"
            )
        recipes += rows.get(word, (word,))
    return list(dict.fromkeys(recipes))


def _describe(failures: list[Failure], num_runs: int) -> str:
    """Return which runs failed, and how to find out why."""
    names = "; ".join(map(str, failures))
    again = format_command(*failures[0].job.arguments)
    return (
        f"{len(failures)} of {num_runs} runs failed: {names}. Their messages are above; run the "
        f"same command to try them again, or only the first one: {again}"
    )
