"""Table 2 of the paper: relational reasoning on Sort-of-CLEVR."""

from pathlib import Path

from associative_transformer.recipes import relational
from associative_transformer.recipes.budgets import BUDGETS, shorten
from associative_transformer.recipes.relational import Published
from associative_transformer.tables.collect import (
    QuestionResult,
    Runs,
    describe_overrides,
    find_runs,
    spread,
)
from associative_transformer.tabular import RowGroup, Table

NOTHING = Published(None, None)
COLUMNS = (
    "model",
    "relational",
    "guess",
    "non-relational",
    "guess",
    "average",
    "seeds",
    "epoch",
    "trained on",
    "published relational",
    "published non-relational",
)
NOTE = (
    "Mean and standard deviation over the seeds, at the last epoch, all test questions counted. "
    "Relational: binary questions. Guess: the best answer without a look at the picture. Ternary "
    "questions are not in the paper's table, and what its Dense is it does not say: ours is the "
    "ViT without attention."
)


def relational_table(folder: Path) -> Table:
    """Build the table of Sort-of-CLEVR from the runs below a folder."""
    groups = {
        "recipes of the paper": relational.EXPERIMENTS,
        "recipes of the sources": relational.SOURCES,
        "reduced recipes: not comparable with the published figures": relational.TINY,
    }
    recipes = {recipe.name: recipe for group in groups.values() for recipe in group}
    found = find_runs(folder, recipes)
    sections = []
    for title, group in groups.items():
        rows = [
            _row(recipe.name, found.take(recipe), relational.PUBLISHED.get(recipe.name, NOTHING))
            for recipe in group
        ]
        sections.append(RowGroup(title, rows))
    for budget in BUDGETS[1:]:
        runs = {name: found.take(shorten(recipe, budget)) for name, recipe in recipes.items()}
        rows = [_row(name, r, NOTHING) for name, r in runs.items() if r.seeds != "not run"]
        sections.append(RowGroup(f"budget {budget}: not comparable with any row above", rows))
    changed = [
        _row(describe_overrides(runs.experiment, recipes[name]), runs, NOTHING)
        for (name, _), runs in sorted(found.runs.items())
    ]
    sections.append(RowGroup("runs with overrides: they belong to no row above", changed))
    title = "Relational reasoning on Sort-of-CLEVR, test accuracy in percent"
    filled = [section for section in sections if section.rows]
    return Table(title, COLUMNS, filled, [NOTE, *found.left_out])


def _row(name: str, runs: Runs, published: Published) -> tuple[str, ...]:
    results = [result for result in runs.results if isinstance(result, QuestionResult)]
    columns = [
        [result.score(type_) for result in results] for type_ in ("binary", "non-relational")
    ]
    binary, other = ([score for score in scores if score] for scores in columns)
    both = [(a.accuracy + b.accuracy) / 2 for a, b in zip(*columns, strict=True) if a and b]
    cells = []
    for scores in (binary, other):
        cells.append(spread([score.accuracy for score in scores]))
        cells.append(spread([score.guess for score in scores[:1]]))
    return (
        name.removeprefix("sort-of-clevr-"),
        *cells,
        spread(both),
        runs.seeds,
        str(results[0].epochs) if results else "-",
        " + ".join(results[0].question_types) if results else "-",
        *("-" if accuracy is None else f"{accuracy:.2f}" for accuracy in published),
    )
