"""`ait run-table`: train all runs of a table that are missing."""

from dataclasses import dataclass, field
from datetime import timedelta
from difflib import get_close_matches
from pathlib import Path
from typing import Literal

from associative_transformer.cli.options import parse, write_command
from associative_transformer.interface import UserError
from associative_transformer.recipes import RECIPES, ROWS
from associative_transformer.recipes.budgets import Budget
from associative_transformer.tables.run_all import Clock, Failure, Job, plan, run_jobs


@dataclass(frozen=True)
class RunTableOptions:
    """Train what is missing of a table, one run after another; start it again to go on."""

    table: Literal["classification", "ablations", "relational"]
    """Which one."""
    rows: tuple[str, ...] = ()
    """Rows, such as ait-small, or single recipes, such as cifar10-ait-small; default: all rows."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds to train each recipe with."""
    budget: Budget = "paper"
    """paper: as published; short: 10 epochs; smoke: one epoch of 40 images, to see it run."""
    sources: dict[str, Path] = field(default_factory=dict)
    """Local copies in place of the hub, as in: --sources cifar10 PATH cifar100 PATH."""
    runs: Path = Path("runs")
    """Folder of all runs."""

    def __post_init__(self) -> None:
        if not self.seeds or min(self.seeds) < 0:
            raise ValueError(f"seeds must be 0 or more, and at least one, not {self.seeds}")


def run(arguments: list[str]) -> None:
    """Train the runs of a table."""
    options = parse(RunTableOptions, arguments, "run-table")
    known = {data.name for recipe in RECIPES.values() if (data := recipe.data).kind == "images"}
    for name, path in options.sources.items():
        if name not in known:
            raise UserError(f"--sources has {name!r} but only {', '.join(sorted(known))} take one")
        if not path.is_dir():
            raise UserError(f"there is no folder {path} with a copy of {name}: check --sources")
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
    print(f"\nnext          {write_command('table', options.table, '--runs', str(options.runs))}")


def _choose(table: str, words: tuple[str, ...]) -> list[str]:
    """Give the recipes of the rows, row by row; a word may name a row or a recipe."""
    rows = ROWS[table]
    recipes: list[str] = []
    for word in words or tuple(rows):
        if word not in rows and word not in RECIPES:
            close = get_close_matches(word, [*rows, *RECIPES], n=5, cutoff=0.0)
            raise UserError(
                f"the table {table} has no row {word!r} and there is no such recipe; closest: "
                f"{', '.join(close)}"
            )
        recipes += rows.get(word, (word,))
    return list(dict.fromkeys(recipes))


def _describe(failures: list[Failure], num_runs: int) -> str:
    """Say which runs failed and how to see why."""
    names = "; ".join(map(str, failures))
    again = write_command(*failures[0].job.arguments)
    return (
        f"{len(failures)} of {num_runs} runs failed: {names}. Their messages stand above, and the "
        f"same command tries them again; the first one alone: {again}"
    )
