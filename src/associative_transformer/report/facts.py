"""What the files of a run record, whether it is complete or not; its model is not loaded."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float

from associative_transformer.data.summary import DataSummary
from associative_transformer.experiment import Experiment, differences
from associative_transformer.interface import format_count
from associative_transformer.models import build_model, count_operations
from associative_transformer.recipes import PUBLISHED_TEXT, RECIPES
from associative_transformer.report.charts import Grid, Section, format_number
from associative_transformer.runs.data_summary import read_data
from associative_transformer.runs.environment import Environment
from associative_transformer.runs.folder import History, damaged_history
from associative_transformer.runs.reading import exists
from associative_transformer.runs.result import (
    BestValidation,
    RunResult,
    accuracy_interval,
    name_unfinished_data,
)
from associative_transformer.runs.saved import read_run
from associative_transformer.runs.training_command import (
    format_train_command,
    without_source,
)
from associative_transformer.workspace import GlobalWorkspace


@dataclass(frozen=True)
class Facts:
    """What the files of a run record."""

    folder: Path
    experiment: Experiment
    result: RunResult | None  # None: the run is not complete
    environment: Environment
    history: History
    images: DataSummary | None = None  # None: generated, or trained by an earlier version

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
        if self.result is not None:
            return f"complete after {format_count(self.result.epochs, 'epoch')}"
        epochs = format_count(self.experiment.train.epochs, "epoch")
        return f"unfinished: {len(self.history.metrics):,} of {epochs}"

    @property
    def summary(self) -> str:
        """One sentence on the test accuracy, or on the progress of an unfinished run."""
        if self.result is None:
            return f"{self.progress.capitalize()}, on {self.data}."
        number = self.result.test_questions or self.result.test_images
        accuracy, best = _percent(self.result.test_accuracy), self.result.best_validation
        score = f"{accuracy} accuracy{_between(self.result)}"
        if best is not None:
            score = (
                f"{_percent(best.test_accuracy)} accuracy{_between(best)} of the saved model "
                f"(epoch {best.epoch}, the best on validation), {accuracy} after the last epoch,"
            )
        count = format_count(number, f"test {self.items.removesuffix('s')}")
        return f"{score} on {count} of {self.data}."

    @property
    def data(self) -> str:
        """What to call the data: the name of the data set only if they are known to be it."""
        if self.result is None:
            return name_unfinished_data(self.experiment)
        return self.result.name_data(self.experiment.data)

    @property
    def epoch(self) -> int:
        """The epoch of the saved model, or the last epoch so far, counted from 1."""
        if self.result is not None and self.result.best_validation is not None:
            return self.result.best_validation.epoch
        return len(self.history.metrics)

    @property
    def scope(self) -> str:
        """What a memory belongs to, "batch" or "image"."""
        workspace = getattr(self.experiment.model, "workspace", None)
        return getattr(workspace, "scope", "batch")

    @property
    def memory(self) -> Float[np.ndarray, "T L M D"] | None:
        """The memory after each epoch; None if the model has none."""
        memory = np.array(self.history.memory)
        return memory if memory.ndim == 4 and memory.size else None


def read_facts(folder: Path) -> Facts:
    """Read the files of a run. Raises UserError if there is none, or a damaged one."""
    run = read_run(folder)
    environment, history = run.environment or Environment(), run.history
    has_metrics = exists(folder / "metrics.jsonl")
    history.check(folder, run.result.epochs if run.result and has_metrics else None)
    _check_memory(folder, run.experiment, history)
    images = read_data(folder)
    return Facts(folder, run.experiment, run.result, environment, history, images)


def _check_memory(folder: Path, experiment: Experiment, history: History) -> None:
    """Raise UserError if the priors of a history are not those of the model."""
    with torch.device("meta"):
        modules = build_model(experiment.model).modules()
    expected = [tuple(each.priors.shape) for each in modules if isinstance(each, GlobalWorkspace)]
    if history.memory and [layer.shape for layer in history.memory[0]] != expected:
        shape = "x".join(map(str, history.memory[0].shape))
        reason = f"its priors of an epoch are {shape} values, not those of the model"
        raise damaged_history(folder, "memory.npz", reason)


def run_section(facts: Facts) -> Section:
    """Return the section on the result of a run and on how to repeat it."""
    env, train = facts.environment, facts.experiment.train
    packages = {"Python": env.python, **env.packages}
    names = ("Python", "torch", "numpy")
    versions = [f"{name} {packages[name]}" for name in names if packages.get(name)]
    threads = f", threads: {env.threads}" if env.threads else ""
    rows = [
        ("recipe", facts.experiment.name),
        ("data set", facts.data),
        ("seed", str(train.seed)),
        ("state", facts.progress),
        ("folder", f"{facts.folder.resolve().parent.name}/{facts.folder.resolve().name}"),
        ("commit", env.commit or "unknown"),
        ("device", f"{env.device or 'unknown'}{threads}"),
        ("precision", facts.result.precision if facts.result else train.precision),
        ("versions", ", ".join(versions) or "unknown"),
        (
            "command",
            format_train_command(without_source(facts.experiment))
            or "none: no recipe has this kind of model and data",
        ),
    ]
    tables = [_results(facts), Grid(["", ""], rows, "How it was trained")]
    return Section("run", "Run", tables=tables)


def data_section(facts: Facts) -> Section:
    """Return the section on the images that the run has read, if they were stored ones."""
    if facts.images is None:
        is_generated = facts.experiment.data.is_generated
        note = "The images are generated." if is_generated else "data.json is missing."
        return Section("data-set", "Data", note)
    table = facts.images.to_table()
    rows = [row for group in table.groups for row in group.rows]
    notes = [text.removesuffix(".") for text in (facts.images.headline, *table.notes)]
    grid = Grid(table.columns, rows, "Images")
    return Section("data-set", "Data", "; ".join(notes) + ".", tables=[grid])


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
        elif facts.data != facts.experiment.data.display_name:
            title = f"published, for {recipe.name} on {facts.experiment.data.display_name}"
    result = facts.result
    if result is None:
        return Grid(
            ["", ""], [("test accuracy", "not available yet"), (title, published)], "Result"
        )
    rows = _list_scores(result)
    if best := result.best_validation:
        saved = _list_scores(best)
        when = f"saved model, after epoch {best.epoch}, the best on validation"
        rows = [(f"{name}, {when}", score) for name, score in saved] + [
            (f"{name}, after the last epoch", score) for name, score in rows
        ]
    return Grid(["", ""], [*rows, (title, published)], "Result, with 95 % intervals")


def _list_scores(scores: RunResult | BestValidation) -> list[tuple[str, str]]:
    """Return the name and value of each score that the page shows in its table."""
    rows = []
    for kind in scores.test_kinds or ():
        if "/" not in kind.name:
            low, high = kind.interval
            guess = f"best guess {_percent(kind.guess)}"
            score = f"{_percent(kind.accuracy)} ({low:.2f} to {high:.2f}), {guess}"
            rows.append((f"{kind.name} questions", score))
    if not rows:
        images = format_count(scores.test_images, "image")
        low, high = accuracy_interval(scores)
        accuracy = f"{_percent(scores.test_accuracy)} ({low:.2f} to {high:.2f}) on {images}"
        rows.append(("test accuracy", accuracy))
        if scores.test_top5_accuracy is not None and scores.test_top5_interval is not None:
            low, high = scores.test_top5_interval
            top5 = f"{_percent(scores.test_top5_accuracy)} ({low:.2f} to {high:.2f})"
            rows.append(("top-5 accuracy", top5))
        if scores.test_balanced_accuracy is not None:
            rows.append(("balanced accuracy", _percent(scores.test_balanced_accuracy)))
    if (calibration := scores.test_calibration) is not None:
        error = f"{calibration.error:.2f} points"
        if calibration.temperature is not None and calibration.scaled_error is not None:
            error += (
                f"; {calibration.scaled_error:.2f} at temperature {calibration.temperature:.3f}, "
                "fitted on validation"
            )
        rows.append(("expected calibration error", error))
    return rows


def _between(scores: RunResult | BestValidation) -> str:
    low, high = accuracy_interval(scores)
    return f" (95 % interval {low:.2f} to {high:.2f} %)"


def _percent(value: float) -> str:
    return f"{value + 1e-9:.2f} %"  # a half is rounded up
