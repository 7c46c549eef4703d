"""Table 1 of the paper (image classification), and the ablations of AiT-Small."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import mean

import torch

from associative_transformer.experiment import Experiment
from associative_transformer.models import ModelConfig, build_model
from associative_transformer.recipes import RECIPES, ablations, classification, sources
from associative_transformer.recipes.budgets import BUDGETS, Budget
from associative_transformer.runs.result import RunResult, accuracy_interval
from associative_transformer.tables.collect import (
    UNKNOWN,
    CollectedRuns,
    RunsOfExperiment,
    collect_runs,
    name_rest,
    spread,
)
from associative_transformer.tabular import RowGroup, Table

SETS = dict(zip(classification.DATA_SETS, ("CIFAR-10", "CIFAR-100", "Triangle"), strict=True))
COLUMNS = (
    "model",
    *(column for title in SETS.values() for column in (title, "published")),
    "own images",  # left out if there are no runs on any
    "average",
    "published",
    "parameters, M",
    "published",
    "seeds",
    "epochs",
    "device",
    "finished",
)
OWN_IMAGES = COLUMNS.index("own images")
OWN_NOTE = (
    "Own images: runs whose classes or sizes differ from those of the data set that their recipe "
    "names."
)
NOTE = (
    "Test accuracy after the last epoch on all test images: mean and standard deviation over the "
    "seeds, or the accuracy of one seed with its 95 % interval. Our average needs runs for all "
    "data sets; the published average is over the data sets with a published figure. Parameters "
    "are counted for the first data set of a row; numbers in brackets include those that the "
    "reference code registers but never uses."
)


@dataclass(frozen=True)
class TableRow:
    """The recipes and the published figures of a row."""

    title: str
    recipes: Sequence[str | None]  # one for each data set
    published: Sequence[float | None] = (None, None, None)
    average: float | None = None  # published; None: the mean of `published`
    size: float | None = None  # published, in millions of parameters


def classification_table(folder: Path) -> Table:
    """Build Table 1 from a folder of runs."""
    quoted = list(classification.QUOTED)
    by_title: dict[str, dict[str, classification.Row]] = {}
    for row in classification.ROWS:
        by_title.setdefault(row.title, {})[row.data_set] = row
    rows = [
        TableRow(
            title + (f" [{quoted.index(title) + 1}]" if title in quoted else ""),
            [recipe.name if (recipe := columns.get(name)) else None for name in SETS],
            [recipe.published if (recipe := columns.get(name)) else None for name in SETS],
            size=classification.PUBLISHED_SIZES.get(title),
        )
        for title, columns in by_title.items()
    ]
    reduced = [*classification.TINY, *classification.NARROW]
    others = [
        ("Triangle with other patch sizes", classification.OTHER_PATCHES),
        ("recipes from the source papers", sources.EXPERIMENTS),
        ("reduced recipes: not comparable with the published figures", reduced),
    ]
    notes = [NOTE, *(f"[{i}] {text}" for i, text in enumerate(classification.QUOTED.values(), 1))]
    extra = [
        (title, [_row_for_one_set(recipe) for recipe in recipes]) for title, recipes in others
    ]
    return _table("Image classification", folder, rows, extra, notes)


def ablation_table(folder: Path) -> Table:
    """Build the table of the ablations of AiT-Small from a folder of runs."""
    rows = [TableRow(row.title, row.recipes, average=row.average) for row in ablations.ROWS]
    notes = [
        NOTE,
        "AiT-Small without memory and workspace is ViT-Small; its row uses the ViT-Small recipe.",
    ]
    further = [_row_for_one_set(recipe) for recipe in ablations.FURTHER]
    extra = [("other changes to AiT-Small", further)]
    return _table("Ablations of AiT-Small", folder, rows, extra, notes)


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
    collected = collect_runs(folder, recipes)
    row_groups = [
        RowGroup(heading, [_recipe_cells(row, collected, "paper") for row in group])
        for heading, group in groups
    ]
    for budget in BUDGETS[1:]:
        plain = [TableRow(row.title, row.recipes) for _, group in groups for row in group]
        lines = [_recipe_cells(row, collected, budget) for row in plain]
        trained = [cells for cells in lines if cells[COLUMNS.index("seeds")] != "not run"]
        row_groups.append(RowGroup(f"budget {budget}: not comparable with any row above", trained))
    for heading, named in name_rest(collected, recipes).items():
        rest = [TableRow(name, _by_set(runs.experiment.name)) for name, runs in named]
        cells = [
            _cells(row, [runs if recipe else None for recipe in row.recipes])
            for row, (_, runs) in zip(rest, named, strict=True)
        ]
        row_groups.append(RowGroup(heading, cells))
    title = f"{title}, test accuracy in percent"
    filled = [group for group in row_groups if group.rows]
    notes = [*notes, *collected.left_out]
    if any(row[OWN_IMAGES] != "-" for group in filled for row in group.rows):
        return Table(title, COLUMNS, filled, [*notes, OWN_NOTE])
    filled = [RowGroup(group.title, list(map(_shorten, group.rows))) for group in filled]
    return Table(title, _shorten(COLUMNS), filled, notes)


def _shorten(row: tuple[str, ...]) -> tuple[str, ...]:
    """Return a row without its cell for own images."""
    return (*row[:OWN_IMAGES], *row[OWN_IMAGES + 1 :])


def _row_for_one_set(recipe: Experiment) -> TableRow:
    """Return the row of a recipe that exists for only one data set."""
    return TableRow(recipe.name, _by_set(recipe.name))


def _by_set(recipe: str) -> list[str | None]:
    """Return the recipe at the position of its data set, and None for the other data sets."""
    return [recipe if recipe.startswith(f"{name}-") else None for name in SETS]


def _recipe_cells(row: TableRow, collected: CollectedRuns, budget: Budget) -> tuple[str, ...]:
    """Return the cells of a row for the runs of its recipes at a budget."""
    runs = [collected.take_budget(RECIPES[name], budget) if name else None for name in row.recipes]
    return _cells(row, runs)


def _cells(row: TableRow, runs: Sequence[RunsOfExperiment | None]) -> tuple[str, ...]:
    """Return the cells of a row from its runs on each data set; None if it has no recipe."""
    with_recipe = [each for each in runs if each]
    results = [each.results if each else [] for each in runs]
    accuracies = [[result.test_accuracy for result in of_set] for of_set in results]
    published = [accuracy for accuracy in row.published if accuracy is not None]
    average = row.average or (mean(published) if published else None)
    means = [mean(values) for values in accuracies if values]
    is_own = [each is not None and bool(each.other) for each in runs]
    pairs = [
        cell
        for of_set, accuracy, own in zip(results, row.published, is_own, strict=True)
        for cell in (_accuracies([] if own else of_set), _figure(accuracy, 2))
    ]
    on_own = [
        result for of_set, own in zip(results, is_own, strict=True) for result in of_set * own
    ]
    complete = [run for each in with_recipe for run in each.complete.values()]
    return (
        row.title,
        *pairs,
        _accuracies(on_own),
        spread([mean(means)]) if len(means) == len(with_recipe) > 1 else "-",
        _figure(average, 2),
        _size(with_recipe[0].experiment.model),
        _figure(row.size, 1),
        _seeds(runs),
        _join({str(run.result.epochs) for run in complete}),
        _join({run.device for run in complete}),
        _latest([run.result for run in complete]),
    )


def _accuracies(results: Sequence[RunResult]) -> str:
    """Return the accuracies of runs with different seeds."""
    interval = accuracy_interval(results[0]) if results else None
    return spread([result.test_accuracy for result in results], interval)


def _latest(results: Sequence[RunResult]) -> str:
    """Return the latest date on which a run finished, and whether there are unknown ones."""
    dates = [(result.timing and result.timing.finished) or UNKNOWN for result in results]
    known = sorted(date for date in dates if date != UNKNOWN)
    return _join({*known[-1:], *(date for date in dates if date == UNKNOWN)})


@cache
def _size(model: ModelConfig) -> str:
    with torch.device("meta"):
        built = build_model(model)
    live = _figure(sum(p.numel() for p in built.parameters()) / 1e6, 1)
    total = _figure(built.reference_parameters() / 1e6, 1)
    return live if live == total else f"{live} ({total})"


def _seeds(runs: Sequence[RunsOfExperiment | None]) -> str:
    """Return the seeds, listed by data set unless they are the same for all."""
    seeds = {title: each.seeds for title, each in zip(SETS.values(), runs, strict=True) if each}
    if len(set(seeds.values())) == 1:
        return next(iter(seeds.values()))
    return "; ".join(f"{title}: {text}" for title, text in seeds.items())


def _figure(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value + 1e-9:.{digits}f}"  # rounds a half up


def _join(values: set[str]) -> str:
    return ", ".join(sorted(values)) or "-"
