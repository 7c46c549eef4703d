"""Table 1 of the paper, image classification, and its ablations of AiT-Small."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import mean

import torch

from associative_transformer.experiment import Experiment
from associative_transformer.models import ModelConfig, build_model
from associative_transformer.recipes import RECIPES, ablations, classification, sources
from associative_transformer.recipes.budgets import BUDGETS, Budget, shorten
from associative_transformer.tables.collect import (
    Found,
    Runs,
    describe_overrides,
    find_runs,
    spread,
)
from associative_transformer.tabular import RowGroup, Table

SETS = dict(zip(classification.SETS, ("CIFAR-10", "CIFAR-100", "Triangle"), strict=True))
COLUMNS = (
    "model",
    *(column for title in SETS.values() for column in (title, "published")),
    "average",
    "published",
    "parameters, M",
    "published",
    "seeds",
    "epochs",
    "device",
    "finished",
)
NOTE = (
    "Test accuracy, mean and standard deviation over the seeds, at the last epoch, all test "
    "images counted. Averages: ours once all sets are there, the published one over those that "
    "have a figure. Parameters, for CIFAR-10: live, and in brackets with those that the "
    "reference code registers and never uses."
)


@dataclass(frozen=True)
class TableRow:
    """The recipes of a row, and what is published of it."""

    title: str
    recipes: Sequence[str | None]  # one for each set
    published: Sequence[float | None] = (None, None, None)
    average: float | None = None  # published; None: that of `published`
    size: float | None = None  # published, millions of parameters


def classification_table(folder: Path) -> Table:
    """Build Table 1 from the runs below a folder."""
    quoted = list(classification.QUOTED)
    rows = [
        TableRow(
            row.title + (f" [{quoted.index(row.name) + 1}]" if row.name in quoted else ""),
            [f"{name}-{row.name}" for name in SETS],
            row.accuracies,
            size=row.size,
        )
        for row in classification.ROWS
    ]
    others = [
        ("Triangle in patches of another size", classification.OTHER_PATCHES),
        ("recipes of the sources", sources.EXPERIMENTS),
        ("reduced recipes: not comparable with the published figures", classification.TINY),
    ]
    notes = [NOTE, *(f"[{i}] {text}" for i, text in enumerate(classification.QUOTED.values(), 1))]
    extra = [(title, [_alone(recipe) for recipe in recipes]) for title, recipes in others]
    return _table("Image classification", folder, rows, extra, notes)


def ablation_table(folder: Path) -> Table:
    """Build the table of the ablations of AiT-Small from the runs below a folder."""
    rows = [
        TableRow(row.title, [f"{name}-{row.recipe}" for name in SETS], average=row.average)
        for row in ablations.ROWS
    ]
    notes = [NOTE, "Without memory and workspace AiT-Small is ViT-Small: that row is its recipe."]
    return _table("Ablations of AiT-Small", folder, rows, [], notes)


def _table(
    title: str,
    folder: Path,
    rows: list[TableRow],
    extra: list[tuple[str, list[TableRow]]],
    notes: list[str],
) -> Table:
    groups = [("recipes of the paper", rows), *extra]
    names = [name for _, group in groups for row in group for name in row.recipes if name]
    recipes = {name: RECIPES[name] for name in names}
    found = find_runs(folder, recipes)
    sections = [
        RowGroup(heading, [_cells(row, found, "paper") for row in group])
        for heading, group in groups
    ]
    for budget in BUDGETS[1:]:
        plain = [TableRow(row.title, row.recipes) for _, group in groups for row in group]
        lines = [_cells(row, found, budget) for row in plain]
        shown = [cells for cells in lines if cells[COLUMNS.index("seeds")] != "not run"]
        sections.append(RowGroup(f"budget {budget}: not comparable with any row above", shown))
    changed = []
    for name, print_ in sorted(found.runs):
        runs = found.runs[name, print_]
        row = TableRow(describe_overrides(runs.experiment, recipes[name]), _places(name))
        changed.append(_write(row, [runs if place else None for place in row.recipes]))
    sections.append(RowGroup("runs with overrides: they belong to no row above", changed))
    filled = [section for section in sections if section.rows]
    return Table(f"{title}, test accuracy in percent", COLUMNS, filled, [*notes, *found.left_out])


def _alone(recipe: Experiment) -> TableRow:
    """Give a row to a recipe that is there for one set only."""
    return TableRow(recipe.name, _places(recipe.name))


def _places(recipe: str) -> list[str | None]:
    return [recipe if recipe.startswith(f"{name}-") else None for name in SETS]


def _cells(row: TableRow, found: Found, budget: Budget) -> tuple[str, ...]:
    runs = [name and found.take(shorten(RECIPES[name], budget)) for name in row.recipes]
    return _write(row, [there or None for there in runs])


def _write(row: TableRow, runs: Sequence[Runs | None]) -> tuple[str, ...]:
    """Write the cells of a row; a set for which there is no recipe has no runs."""
    there = [found for found in runs if found]
    accuracies = [[r.test_accuracy for r in found.results] if found else [] for found in runs]
    published = [accuracy for accuracy in row.published if accuracy is not None]
    average = row.average or (mean(published) if published else None)
    ours = [mean(values) for values in accuracies if values]
    results = [result for found in there for result in found.results]
    pairs = [
        cell
        for values, accuracy in zip(accuracies, row.published, strict=True)
        for cell in (spread(values), _figure(accuracy, 2))
    ]
    complete = [run for found in there for run in found.complete.values()]
    return (
        row.title,
        *pairs,
        spread([mean(ours)]) if len(ours) == len(there) > 1 else "-",
        _figure(average, 2),
        _size(there[0].experiment.model),
        _figure(row.size, 1),
        _seeds(runs),
        _join({str(result.epochs) for result in results}),
        _join({run.environment.device for run in complete}),
        max((result.timing.finished for result in results), default="-"),
    )


@cache
def _size(model: ModelConfig) -> str:
    with torch.device("meta"):
        built = build_model(model)
    live = _figure(sum(p.numel() for p in built.parameters()) / 1e6, 1)
    total = _figure(built.reference_parameters() / 1e6, 1)
    return live if live == total else f"{live} ({total})"


def _seeds(runs: Sequence[Runs | None]) -> str:
    """Say once what holds for all sets, and else what holds for each."""
    said = {title: there.seeds for title, there in zip(SETS.values(), runs, strict=True) if there}
    if len(set(said.values())) == 1:
        return next(iter(said.values()))
    return "; ".join(f"{title}: {seeds}" for title, seeds in said.items())


def _figure(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value + 1e-9:.{digits}f}"  # a half is rounded up


def _join(values: set[str]) -> str:
    return ", ".join(sorted(values)) or "-"
