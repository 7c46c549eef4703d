"""Time the health of the memories in training: python benchmarks/health_cost.py RECIPE ...

`ait train` measures the health of each memory every `--train.log-every` steps. This prints the
time of a training step, the time of a measurement, and their ratio per step: what the health adds
on average. Medians of the rounds, in the precision "auto".
"""

import argparse
from dataclasses import replace
from statistics import median

import torch
from accelerate.utils import ProjectConfiguration

from associative_transformer.bench.timing import time_in_turn
from associative_transformer.compute import set_up_cpu
from associative_transformer.models import build_model
from associative_transformer.recipes import find_recipe
from associative_transformer.runs.environment import describe_environment
from associative_transformer.tabular import RowGroup, Table
from associative_transformer.training.computing import random_batch
from associative_transformer.training.launch import make_accelerator
from associative_transformer.training.memories import measure_health
from associative_transformer.training.step import TrainingStep

COLUMNS = ("recipe", "batch", "step, ms", "health, ms", "log-every", "share of a step, %")


def measure(name: str, batch_size: int | None, rounds: int) -> tuple[str, ...]:
    """Return the row of a recipe, with its own batch size if `batch_size` is None."""
    recipe = find_recipe(name)
    train = replace(recipe.train, batch_size=batch_size or recipe.train.batch_size, device="cpu")
    accelerator = make_accelerator(train, ProjectConfiguration())
    model = build_model(recipe.model)
    step = TrainingStep(model, train, accelerator)
    batch = random_batch(recipe, train.batch_size, accelerator.device)
    runs = {"step": lambda: step(batch), "health": lambda: measure_health(model)}
    seconds = time_in_turn(runs, rounds, accelerator.device)
    of_step, of_health = (median(seconds[name]) for name in runs)
    share = 100 * of_health / train.log_every / of_step
    return (
        *(name, str(train.batch_size), f"{1e3 * of_step:.1f}", f"{1e3 * of_health:.1f}"),
        *(str(train.log_every), f"{share:.2f}"),
    )


def main() -> None:
    """Print a row for each recipe."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("recipes", nargs="+", metavar="RECIPE")
    parser.add_argument("--batch-size", type=int, help="default: that of the recipe")
    parser.add_argument("--rounds", type=int, default=11)
    options = parser.parse_args()
    set_up_cpu()
    rows = [measure(name, options.batch_size, options.rounds) for name in options.recipes]
    environment = describe_environment(torch.device("cpu"))
    notes = [f"{environment.device}, {environment.threads} threads, torch {torch.__version__}"]
    print(Table("Health", COLUMNS, [RowGroup("recipes", rows)], notes).to_markdown(), end="")


if __name__ == "__main__":
    main()
