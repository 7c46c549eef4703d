"""What the files of a run record, whether it is complete or not; its model is not loaded."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from associative_transformer.experiment import Experiment, differences
from associative_transformer.models import count_operations
from associative_transformer.recipes import PUBLISHED_TEXT, RECIPES
from associative_transformer.recipes.commands import train_arguments
from associative_transformer.report.charts import Grid, Section, format_number
from associative_transformer.runs.environment import Environment
from associative_transformer.runs.folder import History
from associative_transformer.runs.result import RunResult
from associative_transformer.runs.saved import read_run


@dataclass(frozen=True)
class Facts:
    """What the files of a run record."""

    folder: Path
    experiment: Experiment
    result: RunResult | None  # None: the run is not complete
    environment: Environment
    history: History

    @property
    def name(self) -> str:
        """The recipe and the seed."""
        return f"{self.experiment.name}, seed {self.experiment.train.seed}"

    @property
    def items(self) -> str:
        """What the model answers: "images" or "questions"."""
        return self.experiment.data.item_noun

    @property
    def progress(self) -> str:
        """How far training has progressed."""
        train = self.experiment.train
        if self.result is not None:
            return f"complete after {format_number(train.epochs)} epochs"
        return f"unfinished: {len(self.history.metrics)} of {train.epochs} epochs"

    @property
    def summary(self) -> str:
        """One sentence on the test accuracy, or on the progress of an unfinished run."""
        data = self.experiment.data.display_name
        if self.result is None:
            return f"{self.progress.capitalize()}, on {data}."
        accuracy = _percent(self.result.test_accuracy)
        number = self.result.test_questions or self.result.test_images
        return f"{accuracy} accuracy on {number:,} test {self.items} of {data}."

    @property
    def epoch(self) -> int:
        """The epoch of the saved model, or the last epoch so far, counted from 1."""
        if self.result is not None and self.result.best_validation is not None:
            return self.result.best_validation.epoch
        return len(self.history.metrics)

    @property
    def memory(self) -> Float[np.ndarray, "T L M D"] | None:
        """The memory after each epoch; None if the model has none."""
        memory = np.array(self.history.memory)
        return memory if memory.ndim == 4 and memory.size else None


def read_facts(folder: Path) -> Facts:
    """Read the files of a run. Raises UserError if there is none, or a damaged one."""
    run = read_run(folder)
    environment = run.environment or Environment()
    return Facts(folder, run.experiment, run.result, environment, run.history)


def find_recipe_of(experiment: Experiment) -> Experiment | None:
    """Return the recipe of an experiment, or the most similar one with the same model and data.

    None if no recipe has this kind of model and data.
    """
    kinds = (experiment.data.kind, experiment.model.kind)
    candidates = [r for r in RECIPES.values() if (r.data.kind, r.model.kind) == kinds]
    named = RECIPES.get(experiment.name.partition("+")[0])
    if named in candidates:
        return named
    return min(candidates, key=lambda r: len(differences(experiment, r)), default=None)


def format_train_command(experiment: Experiment) -> str | None:
    """Return the command that repeats a training run; None if there is no similar recipe."""
    recipe = find_recipe_of(experiment)
    if recipe is None:
        return None
    return shlex.join(["ait", *train_arguments(experiment, recipe)])


def run_section(facts: Facts) -> Section:
    """Return the section on the result of a run and on how to repeat it."""
    env, train = facts.environment, facts.experiment.train
    packages = {"Python": env.python, **env.packages}
    names = ("Python", "torch", "numpy")
    versions = [f"{name} {packages[name]}" for name in names if packages.get(name)]
    threads = f", threads: {env.threads}" if env.threads else ""
    rows = [
        ("recipe", facts.experiment.name),
        ("data set", facts.experiment.data.display_name),
        ("seed", str(train.seed)),
        ("state", facts.progress),
        ("folder", str(facts.folder)),
        ("commit", env.commit or "unknown"),
        ("device", f"{env.device or 'unknown'}{threads}"),
        ("precision", facts.result.precision if facts.result else train.precision),
        ("versions", ", ".join(versions) or "unknown"),
        (
            "command",
            format_train_command(facts.experiment)
            or "none: no recipe has this kind of model and data",
        ),
    ]
    tables = [_results(facts), Grid(["", ""], rows, "How it was trained")]
    return Section("run", "Run", tables=tables)


def cost_section(facts: Facts) -> Section:
    """Return the section on parameters, operations and time."""
    result = facts.result
    rows: list[Sequence[str]] = []
    timings = [row["timing"] for row in facts.history.metrics]
    seconds = sum(timing["seconds"] for timing in timings)
    speeds = [t.get("samples_per_second", t.get("images_per_second", 0.0)) for t in timings]
    if result is not None:
        live, total = result.live_parameters, result.total_parameters
        rows += [
            ("parameters", format_number(live)),
            ("parameters as the paper counts them", format_number(total)),
        ]
    operations = count_operations(facts.experiment.model)
    rows.append(("operations per image, forward pass in training", f"{operations:,}"))
    if timings:
        rows += [
            ("seconds of training", f"{seconds:,.1f}"),
            ("samples per second, mean over epochs", f"{sum(speeds) / len(speeds):,.0f}"),
        ]
    if result is not None:
        rows.append(("skipped steps", format_number(result.skipped_steps)))
    note = (
        "Operations are floating-point operations of matrix products, convolutions and attention."
    )
    return Section("cost", "Cost", note, tables=[Grid(["", ""], rows)])


def _results(facts: Facts) -> Grid:
    """Return a table of the result and the published one."""
    recipe = RECIPES.get(facts.experiment.name.partition("+")[0])
    published, title = "none", "published"
    if recipe is not None and recipe.name in PUBLISHED_TEXT:
        published = PUBLISHED_TEXT[recipe.name]
        if differences(facts.experiment, recipe):
            title = f"published, for the unchanged {recipe.name}"
    result = facts.result
    if result is None:
        return Grid(
            ["", ""], [("test accuracy", "not available yet"), (title, published)], "Result"
        )
    rows: list[Sequence[str]] = []
    kinds = [kind for kind in result.test_kinds or () if "/" not in kind.name]
    for kind in kinds:
        low, high = kind.interval
        guess = f"best guess {_percent(kind.guess)}"
        score = f"{_percent(kind.accuracy)} ({low:.2f} to {high:.2f}), {guess}"
        rows.append((f"{kind.name} questions", score))
    if not kinds:
        share = f"{_percent(result.test_accuracy)} on {result.test_images:,} images"
        rows.append(("test accuracy", share))
    if best := result.best_validation:
        score = f"{_percent(best.test_accuracy)} after epoch {best.epoch}"
        rows.append(("saved model", f"{score} (above: accuracy after the last epoch)"))
    return Grid(["", ""], [*rows, (title, published)], "Result")


def _percent(value: float) -> str:
    return f"{value + 1e-9:.2f} %"  # a half is rounded up
