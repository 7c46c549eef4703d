"""The table and the figure of `benchmarks/memory_series.py`, from the files of its runs."""

import io
import json
from collections.abc import Iterable
from pathlib import Path
from statistics import mean
from typing import Any, cast

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from associative_transformer.figures import STYLE
from associative_transformer.files import make_folder, write_file
from associative_transformer.interface import UserError
from associative_transformer.tabular import RowGroup, Table
from memory_series_variants import VARIANTS
from statistics_of_runs import interval

NO_DATE = {".svg": {"Date": None}, ".png": {"Software": None}}
"""Endings of a figure, and metadata that make equal figures equal files."""
LAYER_MEASURES = {
    "effective_rank": "effective rank",
    "distinct": "distinct priors",
    "overlap": "overlap of winners",
    "balance_loss": "balance loss",
}


def read_runs(results: Path) -> dict[str, list[dict[str, Any]]]:
    """Return the finished runs of each variant, in the order of their seeds."""
    runs = {
        name: [json.loads(file.read_text()) for file in results.glob(f"{name}-[0-9]*.json")]
        for name in VARIANTS
    }
    return {name: sorted(each, key=lambda run: run["seed"]) for name, each in runs.items()}


def tabulate(results: Path) -> Table:
    """Return a table with the last record of the runs that are there."""
    rows = []
    for name, runs in read_runs(results).items():
        cells = describe(runs) if runs else ("not measured", *[""] * 7, "0")
        rows.append((VARIANTS[name].title, *cells))
    columns = ("variant", "batch", "steps", *LAYER_MEASURES.values(), "cross-entropy")
    columns = (*columns, "accuracy, %", "n")
    notes = [
        "Means over the runs (n). Cells with commas have a value for each layer. Rank, distinct "
        "priors (of 32; a cosine above 0.99 counts as the same) and overlap are those after the "
        "last step, the losses means over the steps since the record before. The accuracy has its "
        "95 % interval (Student's t).",
        "Competition and centered values are this package's, not the paper's.",
    ]
    return Table(
        "Memories after training", columns, [RowGroup("AiT-Small, CIFAR-10", rows)], notes
    )


def describe(runs: list[dict[str, Any]]) -> tuple[str, ...]:
    """Return the cells of a variant after its title."""
    last = [run["series"][-1] for run in runs]
    digits = {"effective_rank": 2, "distinct": 1, "overlap": 3, "balance_loss": 3}
    of_layers = [
        ", ".join(f"{mean(values):.{digits[measure]}f}" for values in by_layer(last, measure))
        for measure in LAYER_MEASURES
    ]
    return (
        join_different(run["settings"]["batch_size"] for run in runs),
        join_different(run["settings"]["steps"] for run in runs),
        *of_layers,
        f"{mean(record['cross_entropy'] for record in last):.3f}",
        interval([run["accuracy"] for run in runs], ""),
        str(len(runs)),
    )


def by_layer(records: list[dict[str, Any]], measure: str) -> list[tuple[float, ...]]:
    """Return the values of a measure in some records, layer by layer."""
    rows = [[layer[measure] for layer in record["layers"]] for record in records]
    return list(zip(*rows, strict=True))


def join_different(values: Iterable[int]) -> str:
    """Return the different values, in ascending order."""
    return ", ".join(map(str, sorted(set(values))))


def draw(results: Path, path: Path) -> None:
    """Draw the series of all runs, one line each, and write the figure as SVG or PNG."""
    runs = {name: each for name, each in read_runs(results).items() if each}
    if not runs:
        raise UserError(f"{results} has no runs: python benchmarks/memory_series.py run first")
    num_layers = max(len(run["series"][0]["layers"]) for each in runs.values() for run in each)
    rows: list[Any] = [
        [f"{title}, layer {layer + 1}" for layer in range(num_layers)]
        for title in LAYER_MEASURES.values()
    ]
    buffer = io.BytesIO()
    with style.context(STYLE, after_reset=True):
        figure = Figure((6.5, 8.5))
        axes = figure.subplot_mosaic([*rows, ["cross-entropy"] * num_layers])
        for title, ax in axes.items():
            ax.set(title=title, xlabel="step" if title == "cross-entropy" else "")
        looks = cast(Iterable[dict[str, Any]], STYLE["axes.prop_cycle"])
        for (name, variant), look in zip(VARIANTS.items(), looks, strict=False):
            look = {**look, "marker": "", "linewidth": 0.8, "label": variant.title}
            for run in runs.get(name, []):  # the looks do not depend on which runs are there
                draw_run(axes, run["series"], look)
        for row in rows:
            for title in row:
                axes[title].set_ylim(bottom=0)
        lines = axes["cross-entropy"].get_lines()
        handles = {str(line.get_label()): line for line in lines}  # one for each variant
        figure.legend(handles.values(), handles, loc="outside lower center", ncols=3)
        figure.savefig(buffer, format=path.suffix[1:].lower(), metadata=NO_DATE[path.suffix])
    make_folder(path.parent)
    write_file(path, buffer.getvalue())


def draw_run(axes: dict[str, Axes], series: list[dict[str, Any]], look: dict[str, Any]) -> None:
    """Draw the series of a run into all axes."""
    steps = [record["step"] for record in series]
    for measure, title in LAYER_MEASURES.items():
        for layer, values in enumerate(by_layer(series, measure)):
            axes[f"{title}, layer {layer + 1}"].plot(steps, values, **look)
    axes["cross-entropy"].plot(steps, [record["cross_entropy"] for record in series], **look)
