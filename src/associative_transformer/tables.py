"""The paper's tables: what lies in run folders, beside the published results.

A row takes the complete runs whose experiment is exactly its recipe. Runs with overrides stand by
themselves below, with what was changed; nothing is averaged across them.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import mean, stdev
from typing import NamedTuple

import jinja2
from pydantic import TypeAdapter, ValidationError
from rich.console import Console
from rich.table import Table as RichTable

from associative_transformer.experiment import (
    Experiment,
    differences,
    fingerprint,
    load_experiment,
)
from associative_transformer.interface import UserError
from associative_transformer.recipes import relational
from associative_transformer.recipes.relational import Published

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{{ table.title }}</title>
<style>
body { font: 1rem/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 75rem; padding: 0 1rem }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; width: 100% }
.wide { overflow-x: auto }
caption, tbody th { text-align: left; font-weight: 600 }
caption { font-size: 1.25rem; padding-bottom: .5rem }
td, thead th { padding: .25rem .75rem; text-align: right; border-bottom: 1px solid #ccc }
td:first-child, thead th:first-child { text-align: left }
tbody th { padding: 1rem .75rem .25rem }
</style>
</head>
<body>
<div class="wide">
<table>
<caption>{{ table.title }}</caption>
<thead><tr>{% for name in table.columns %}<th scope="col">{{ name }}</th>{% endfor %}</tr></thead>
{% for section in table.sections %}<tbody>
<tr><th scope="rowgroup" colspan="{{ table.columns | length }}">{{ section.title }}</th></tr>
{% for row in section.rows %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</tbody>
{% endfor %}</table>
</div>
{% for note in table.notes %}<p>{{ note }}</p>
{% endfor %}</body>
</html>
"""

MODEL_WIDTH = 30  # of the first column, at most; longer names are broken


class Section(NamedTuple):
    """Rows under one heading; a row has a cell for each column."""

    title: str
    rows: list[tuple[str, ...]]


@dataclass(frozen=True)
class Table:
    """Cells of text, which can be written in several forms."""

    title: str
    columns: tuple[str, ...]
    sections: list[Section]
    notes: list[str]

    def to_terminal(self, width: int) -> str:
        """Draw it with lines, `width` characters wide, or wider where a word would be cut."""
        columns = list(
            zip(self.columns, *(row for s in self.sections for row in s.rows), strict=True)
        )
        whole = [max(map(len, cells)) for cells in columns]
        whole[0] = min(whole[0], MODEL_WIDTH)
        least = [max(len(word) for cell in cells for word in cell.split()) for cells in columns]
        lines = 3 * len(columns) + 1
        widths = whole if sum(whole) + lines <= width else [whole[0], *least[1:]]
        drawn = RichTable(title=self.title)
        for name, chars in zip(self.columns, widths, strict=True):
            drawn.add_column(name, width=chars, justify="right" if drawn.columns else "left")
        for section in self.sections:
            drawn.add_section()
            drawn.add_row(section.title, style="bold")
            for row in section.rows:
                drawn.add_row(*row)
        buffer = io.StringIO()
        console = Console(file=buffer, width=width, markup=False, highlight=False)
        console.width = max(width, sum(widths) + lines)
        console.print(drawn, *self.notes, sep="\n")
        return buffer.getvalue()

    def to_markdown(self) -> str:
        """Write a pipe table under a heading, one for each section."""
        parts = [f"## {self.title}"]
        for section in self.sections:
            head = [self.columns, ("---", *["---:"] * (len(self.columns) - 1))]
            lines = ["| " + " | ".join(map(_escape, row)) + " |" for row in [*head, *section.rows]]
            parts += [f"### {section.title}", "\n".join(lines)]
        return "\n\n".join([*parts, *self.notes]) + "\n"

    def to_html(self) -> str:
        """Write a page that needs nothing else."""
        return jinja2.Environment(autoescape=True).from_string(PAGE).render(table=self)


@dataclass(frozen=True)
class Score:
    """What a table reads of the questions of a kind."""

    name: str
    accuracy: float
    guess: float


@dataclass(frozen=True)
class Result:
    """What a table reads of `result.json`."""

    epochs: int
    precision: str
    question_types: list[str]
    test_kinds: list[Score]

    def score(self, name: str) -> Score | None:
        """Find the questions of a kind, where there are any."""
        return next((score for score in self.test_kinds if score.name == name), None)


@dataclass
class Runs:
    """The runs of one experiment under several seeds."""

    experiment: Experiment
    results: dict[int, Result] = field(default_factory=dict)  # of the complete ones, by seed
    unfinished: list[str] = field(default_factory=list)  # "seed 1 after 3 of 100 epochs"


class Found(NamedTuple):
    """All runs of some recipes in a folder."""

    runs: dict[tuple[str, str], Runs]  # by recipe and fingerprint
    left_out: list[str]  # which runs were not read, and why


_RESULT = TypeAdapter(Result)


def find_runs(folder: Path, recipes: dict[str, Experiment]) -> Found:
    """Read the runs of these recipes below a folder, with overrides or without."""
    runs: dict[tuple[str, str], Runs] = {}
    kinds = {recipe.data.kind for recipe in recipes.values()}
    left_out = []
    for path in sorted(folder.glob("*/*/experiment.yaml")):
        try:
            experiment = load_experiment(path)
            name = experiment.name.partition("+")[0]
            if name not in recipes:
                if experiment.data.kind in kinds:
                    left_out.append(f"Left out: {path.parent}, since {name} is no recipe.")
                continue
            experiment = replace(experiment, name=name)
            found = runs.setdefault((name, fingerprint(experiment)), Runs(experiment))
            result = path.parent / "result.json"
            if result.exists():
                read = _RESULT.validate_json(result.read_bytes(), strict=True)
                found.results.setdefault(experiment.train.seed, read)  # once, if it was copied
            else:
                found.unfinished.append(_standing(experiment, path.parent))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(["result.json", *map(str, first["loc"])])
            left_out.append(f"Left out: {path.parent} can't be read ({where}: {first['msg']}).")
        except (UserError, OSError) as error:
            left_out.append(f"Left out: {path.parent} can't be read ({error}).")
    if not runs:
        left_out.append(f"There are no runs of these recipes in {folder}.")
    return Found(runs, left_out)


NOTHING = Published(None, None)
RELATIONAL_COLUMNS = (
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


def relational_table(folder: Path) -> Table:
    """Build the table of Sort-of-CLEVR from the runs below a folder."""
    recipes = {experiment.name: experiment for experiment in relational.EXPERIMENTS}
    found = find_runs(folder, recipes)
    sections: dict[str, list[tuple[str, ...]]] = {
        "recipes of the paper": [],
        "reduced recipes: not comparable with the published figures": [],
        "runs with overrides: they belong to no row above": [],
    }
    full, tiny, changed = sections.values()
    for name, recipe in recipes.items():
        runs = found.runs.pop((name, fingerprint(recipe)), Runs(recipe))
        published = relational.PUBLISHED.get(name, NOTHING)
        (tiny if name.endswith("-tiny") else full).append(_relational_row(name, runs, published))
    full += [
        _relational_row(model, None, published)
        for model, published in relational.PUBLISHED_ONLY.items()
    ]
    for (name, _), runs in sorted(found.runs.items()):
        overrides = differences(runs.experiment, recipes[name])
        what = ", ".join(f"{key} {new} instead of {old}" for key, (new, old) in overrides.items())
        changed.append(_relational_row(f"{name} with {what}", runs, NOTHING))
    notes = [
        "Mean and standard deviation over the seeds, at the last epoch, all test questions "
        "counted. Relational: binary questions. Guess: the best answer without a look at the "
        "picture. Ternary questions are not in the paper's table, and what its Dense is it does "
        "not say: ours is the ViT without attention.",
        *found.left_out,
    ]
    title = "Relational reasoning on Sort-of-CLEVR, test accuracy in percent"
    filled = [Section(name, rows) for name, rows in sections.items() if rows]
    return Table(title, RELATIONAL_COLUMNS, filled, notes)


def _relational_row(name: str, runs: Runs | None, published: Published) -> tuple[str, ...]:
    """Write the cells of a row; `runs` is None where there is no recipe to run."""
    results = list(runs.results.values()) if runs else []
    columns = [
        [result.score(type_) for result in results] for type_ in ("binary", "non-relational")
    ]
    binary, other = ([score for score in scores if score] for scores in columns)
    both = [(a.accuracy + b.accuracy) / 2 for a, b in zip(*columns, strict=True) if a and b]
    cells = []
    for scores in (binary, other):
        cells.append(_spread([score.accuracy for score in scores]))
        cells.append(_spread([score.guess for score in scores[:1]]))
    return (
        name.removeprefix("sort-of-clevr-"),
        *cells,
        _spread(both),
        _seeds(runs),
        str(results[0].epochs) if results else "-",
        " + ".join(results[0].question_types) if results else "-",
        *("-" if accuracy is None else f"{accuracy:.2f}" for accuracy in published),
    )


def _seeds(runs: Runs | None) -> str:
    if runs is None:
        return "no recipe yet"
    precisions = sorted({result.precision for result in runs.results.values()})
    done = f"{len(runs.results)}" + (f" in {' and '.join(precisions)}" if precisions[1:] else "")
    return ", ".join([done] * bool(runs.results) + runs.unfinished) or "not run"


def _spread(values: Sequence[float]) -> str:
    if not values:
        return "-"
    return f"{mean(values):.2f}" + (f" ± {stdev(values):.2f}" if len(values) > 1 else "")


def _standing(experiment: Experiment, folder: Path) -> str:
    """Say how far a run got that is not complete."""
    metrics = folder / "metrics.jsonl"
    epochs = len(metrics.read_text().splitlines()) if metrics.exists() else 0
    train = experiment.train
    return f"seed {train.seed} unfinished after {epochs} of {train.epochs} epochs"


def _escape(cell: str) -> str:
    return cell.replace("|", "\\|")
