"""The laptop edition of the paper's tables: small models, all trained on the same images."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

from associative_transformer.data import ImagesConfig
from associative_transformer.recipes import RECIPES
from associative_transformer.recipes.laptop import TABLE_ROWS, Row
from associative_transformer.runs.result import RunResult, accuracy_interval
from associative_transformer.runs.spread import spread_of
from associative_transformer.tables.collect import CompleteRun, collect_runs
from associative_transformer.tabular import RowGroup, Table

COLUMNS = (
    "model",
    "test accuracy, %",
    "difference",
    "parameters, M",
    "minutes",
    "seeds",
    "device",
)
RIVAL = {"classification": "ViT", "ablations": "AiT"}
"""The row that the others are compared with."""
TITLES = {
    "classification": "Image classification, laptop edition",
    "ablations": "Ablations of AiT, laptop edition",
}
NOTE = (
    "Test accuracy after the last epoch. A single run is followed by its 95 % interval (Wilson), "
    "several by half of theirs (Student's t). Differences from {rival} are paired by seed; those "
    "whose interval excludes 0 are marked with *. Minutes: median time of training on the device, "
    "which may have done other work."
)
Runs = Mapping[str, Mapping[int, CompleteRun]]
"""Complete runs by recipe and seed."""


def laptop_table(folder: Path) -> Table:
    """Build the table of all models from a folder of runs."""
    return tabulate("classification", *_collect("classification", folder))


def laptop_ablation_table(folder: Path) -> Table:
    """Build the table of the ablations of AiT from a folder of runs."""
    return tabulate("ablations", *_collect("ablations", folder))


def tabulate(table: str, runs: Runs, notes: Sequence[str] = ()) -> Table:
    """Return one of the two tables."""
    rows = TABLE_ROWS[table]
    rival = next(row for row in rows if row.title == RIVAL[table])
    groups = [
        RowGroup("CIFAR-10", [_cells(row, row.cifar10, rival.cifar10, runs) for row in rows]),
        RowGroup(
            "Triangle",
            [
                _cells(row, row.triangle, rival.triangle, runs)
                for row in rows
                if row.triangle is not None
            ],
        ),
    ]
    notes = [NOTE.format(rival=rival.title), *notes]
    return Table(TITLES[table], COLUMNS, groups, notes)


def _collect(table: str, folder: Path) -> tuple[Runs, list[str]]:
    names = [name for row in TABLE_ROWS[table] for name in (row.cifar10, row.triangle) if name]
    recipes = {name: RECIPES[name] for name in names}
    collected = collect_runs(folder, recipes)
    runs = {name: collected.take(recipe).complete for name, recipe in recipes.items()}
    return runs, collected.left_out


def _cells(row: Row, name: str, rival: str | None, runs: Runs) -> tuple[str, ...]:
    """Return the cells of a row for one data set."""
    complete = runs.get(name, {})
    title = row.title
    if limit := _num_images(name):
        title += f", {limit:,} training images"
    if not complete:
        return (title, "not measured", "", "", "", "0", "")
    results = {seed: run.result for seed, run in complete.items()}
    others = {} if rival in (None, name) else runs.get(rival or "", {})
    differences = [
        result.test_accuracy - others[seed].result.test_accuracy
        for seed, result in results.items()
        if seed in others
    ]
    first = next(iter(results.values()))
    seconds = [result.timing.seconds for result in results.values() if result.timing]
    return (
        title,
        _accuracy(list(results.values())),
        _difference(differences),
        f"{first.live_parameters / 1e6:.2f}",
        f"{median(seconds) / 60:.1f}" if seconds else "",
        str(len(results)),
        ", ".join(sorted({run.device for run in complete.values()})),
    )


def _accuracy(results: list[RunResult]) -> str:
    if len(results) > 1:
        return str(spread_of([result.test_accuracy for result in results]))
    (result,) = results
    low, high = accuracy_interval(result)
    return f"{result.test_accuracy:.2f} ({low:.1f} to {high:.1f})"


def _difference(values: list[float]) -> str:
    """Return the mean difference, marked if its interval excludes 0."""
    if not values:
        return ""
    spread = spread_of(values)
    is_clear = spread.half_width is not None and abs(spread.mean) > spread.half_width
    width = "" if spread.half_width is None else f" ± {spread.half_width:.2f}"
    return f"{spread.mean:+.2f}{width}{' *' * is_clear}"


def _num_images(name: str) -> int | None:
    """Return the number of training images of a recipe that does not use all of them."""
    data = RECIPES[name].data
    if isinstance(data, ImagesConfig):
        return data.splits.train_limit
    is_default = data == type(data)()
    return None if is_default else data.num_train
