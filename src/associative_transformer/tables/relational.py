"""Table 2 of the paper: relational reasoning on Sort-of-CLEVR."""

from pathlib import Path

from associative_transformer.recipes import relational
from associative_transformer.recipes.budgets import BUDGETS
from associative_transformer.recipes.relational import Published
from associative_transformer.tables.collect import (
    RunsOfExperiment,
    collect_runs,
    name_rest,
    spread,
)
from associative_transformer.tabular import RowGroup, Table

NOT_PUBLISHED = Published(None, None)
COLUMNS = (
    "model",
    "relational",
    "guess",
    "non-relational",
    "guess",
    "average",
    "seeds",
    "epochs",
    "trained on",
    "published relational",
    "published non-relational",
)
NOTE = (
    "Test accuracy after the last epoch on all test questions: mean and standard deviation over "
    "the seeds, or the accuracy of one seed with its 95 % interval. Relational: binary questions. "
    "Guess: accuracy of the best answer that ignores the picture. The paper's table has no "
    "ternary questions. The paper does not describe Dense; ours is a ViT without attention."
)


def relational_table(folder: Path) -> Table:
    """Build Table 2 from a folder of runs."""
    groups = {
        "recipes of the paper": relational.EXPERIMENTS,
        "recipes from the source papers": relational.SOURCES,
        "reduced recipes: not comparable with the published figures": relational.TINY,
    }
    recipes = {recipe.name: recipe for group in groups.values() for recipe in group}
    collected = collect_runs(folder, recipes)
    row_groups = []
    for title, group in groups.items():
        rows = [
            _row(r.name, collected.take(r), relational.PUBLISHED.get(r.name, NOT_PUBLISHED))
            for r in group
        ]
        row_groups.append(RowGroup(title, rows))
    for budget in BUDGETS[1:]:
        runs = {name: collected.take_budget(recipe, budget) for name, recipe in recipes.items()}
        rows = [_row(name, r, NOT_PUBLISHED) for name, r in runs.items() if r.seeds != "not run"]
        row_groups.append(RowGroup(f"budget {budget}: not comparable with any row above", rows))
    for heading, named in name_rest(collected, recipes).items():
        rows = [_row(title, runs, NOT_PUBLISHED) for title, runs in named]
        row_groups.append(RowGroup(heading, rows))
    title = "Relational reasoning on Sort-of-CLEVR, test accuracy in percent"
    filled = [group for group in row_groups if group.rows]
    return Table(title, COLUMNS, filled, [NOTE, *collected.left_out])


def _row(name: str, runs: RunsOfExperiment, published: Published) -> tuple[str, ...]:
    results = runs.results
    columns = [[result.score(kind) for result in results] for kind in ("binary", "non-relational")]
    binary, other = ([score for score in scores if score] for scores in columns)
    averages = [(a.accuracy + b.accuracy) / 2 for a, b in zip(*columns, strict=True) if a and b]
    cells = []
    for scores in (binary, other):
        cells.append(spread([s.accuracy for s in scores], scores[0].interval if scores else None))
        cells.append(spread([score.guess for score in scores[:1]]))
    return (
        name.removeprefix("sort-of-clevr-"),
        *cells,
        spread(averages),
        runs.seeds,
        str(results[0].epochs) if results else "-",
        " + ".join(results[0].question_types) if results else "-",
        *("-" if accuracy is None else f"{accuracy:.2f}" for accuracy in published),
    )
