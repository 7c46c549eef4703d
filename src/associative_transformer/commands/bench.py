"""`ait bench`: speed and memory of recipes, side by side."""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import torch
import tyro

from associative_transformer.bench import Measured, measure
from associative_transformer.command_line import (
    check_counts,
    check_output,
    choose_device,
    open_output,
    parse,
)
from associative_transformer.recipes import find_recipe
from associative_transformer.run_folder import describe_environment
from associative_transformer.tabular import Section, Table

TITLES = {"step": "Training step", "infer": "Prediction"}
COLUMNS = ("recipe", "ms", "images/s", "times the first", "peak memory, GiB", "of matrix peak")


@dataclass(frozen=True)
class BenchOptions:
    """Time recipes on random images, taking turns in one run."""

    what: Literal["step", "infer"]
    """step: a step of training; infer: prediction."""
    recipes: tyro.conf.Positional[tuple[str, ...]] = ("cifar10-vit-small", "cifar10-ait-small")
    """What to time; the first one is what the others are compared with."""
    batch_size: int = 64
    """Images in a batch."""
    rounds: int = 10
    """How often each is timed, after two rounds to warm up."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """bfloat16 is autocast; auto takes it on a GPU that supports it."""
    compile: bool = False
    """Compile the models with torch.compile."""
    device: Literal["auto", "cpu"] = "auto"
    """auto takes a GPU where there is one."""
    format: Literal["terminal", "markdown", "json"] = "terminal"
    """How to write it; json holds the environment too."""
    output: Path | None = None
    """File to write; None: the terminal."""

    def __post_init__(self) -> None:
        check_counts(batch_size=self.batch_size, rounds=self.rounds)


def run(arguments: list[str]) -> None:
    """Time recipes and write a table, or JSON with the environment."""
    options = parse(BenchOptions, arguments, "bench")
    check_output(options.output)
    experiments = []
    for name in options.recipes:
        recipe = find_recipe(name)
        train = replace(
            recipe.train,
            batch_size=options.batch_size,
            precision=options.precision,
            compile=options.compile,
            device=options.device,
        )
        experiments.append(replace(recipe, train=train))
    measured = measure(experiments, options.what, options.rounds)
    environment = describe_environment(choose_device(options.device))
    if options.format == "json":
        rows = [asdict(row) for row in measured]
        text = json.dumps({"options": asdict(options), "rows": rows} | environment, default=str)
    else:
        table = _tabulate(measured, options, environment)
        text = table.to_markdown() if options.format == "markdown" else table.to_terminal(100)
    with open_output(options.output) as file:
        file.write(text)


def _tabulate(
    measured: list[Measured], options: BenchOptions, environment: dict[str, object]
) -> Table:
    rows = [
        (
            row.name,
            f"{row.milliseconds:.1f}",
            f"{row.samples_per_second:,.0f}",
            f"{row.milliseconds / measured[0].milliseconds:.2f}",
            f"{row.peak_memory:.2f}",
            f"{100 * row.peak_share:.0f} %",
        )
        for row in measured
    ]
    where = f"{environment['device']}, {environment['threads']} threads, torch {torch.__version__}"
    note = f"Medians of {options.rounds} rounds in which the recipes take turns."
    section = Section(f"batch {options.batch_size}, {options.precision}", rows)
    return Table(f"{TITLES[options.what]} on {where}", COLUMNS, [section], [note])
