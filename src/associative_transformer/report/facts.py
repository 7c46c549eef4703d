"""What the files of a run say, complete or not, without its model."""

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from associative_transformer.data import name_data, name_items
from associative_transformer.experiment import Experiment, differences, load_experiment
from associative_transformer.interface import UserError
from associative_transformer.models import count_operations
from associative_transformer.recipes import PUBLISHED, RECIPES
from associative_transformer.report.charts import Grid, Section, format_number
from associative_transformer.runs.folder import History

# Where the data lies and on what it ran: no part of the experiment, but of the command.
CIRCUMSTANCES = (("data", "source", None), ("train", "seed", 0), ("train", "device", "auto"))

REQUIRED = {"test_accuracy", "test_images", "live_parameters", "total_parameters", "classes"}


@dataclass(frozen=True)
class Facts:
    """A run as its files tell it."""

    folder: Path
    experiment: Experiment
    result: dict[str, Any] | None  # None: it is not complete
    environment: dict[str, Any]
    history: History

    @property
    def name(self) -> str:
        """Name it by recipe and seed."""
        return f"{self.experiment.name}, seed {self.experiment.train.seed}"

    @property
    def items(self) -> str:
        """Say what is answered: images or questions."""
        return name_items(self.experiment.data)

    @property
    def standing(self) -> str:
        """Say how far it is."""
        train = self.experiment.train
        if self.result is not None:
            return f"complete after {format_number(train.epochs)} epochs"
        return f"unfinished: {len(self.history.metrics)} of {train.epochs} epochs"

    @property
    def summary(self) -> str:
        """Say in a sentence how well it does."""
        data = name_data(self.experiment.data)
        if self.result is None:
            return f"{self.standing.capitalize()}, on {data}."
        share = _percent(self.result["test_accuracy"])
        number = self.result.get("test_questions", self.result["test_images"])
        return f"{share} of {number:,} test {self.items} of {data} are answered right."

    @property
    def epoch(self) -> int:
        """Give the epoch, counted from 1, of the saved model, or the last one so far."""
        best = (self.result or {}).get("best_validation")
        return best["epoch"] if best else len(self.history.metrics)

    @property
    def memory(self) -> Float[np.ndarray, "T L M D"] | None:
        """Give the memory after each epoch; None where the model has none."""
        memory = np.array(self.history.memory)
        return memory if memory.ndim == 4 and memory.size else None


def read_facts(folder: Path) -> Facts:
    """Read the files of a run. Raises UserError where it is none, or is damaged."""
    seeds = sorted(path.parent.name for path in folder.glob("*/experiment.yaml"))
    if seeds:
        raise UserError(f"{folder} holds the runs {', '.join(seeds)}: pass {folder / seeds[0]}")
    experiment = load_experiment(folder / "experiment.yaml")
    history = History.read(folder, None)
    result = _read_json(folder / "result.json")
    if result is not None and (missing := REQUIRED - result.keys()):
        raise UserError(f"the result.json of {folder} lacks {', '.join(sorted(missing))}")
    environment = _read_json(folder / "environment.json") or {}
    return Facts(folder, experiment, result, environment, history)


def find_recipe_of(experiment: Experiment) -> Experiment | None:
    """Give the recipe of an experiment, or the one that is most like it; None without any."""
    kinds = (experiment.data.kind, experiment.model.kind)
    alike = [r for r in RECIPES.values() if (r.data.kind, r.model.kind) == kinds]
    named = RECIPES.get(experiment.name.partition("+")[0])
    if named in alike:
        return named
    return min(alike, key=lambda recipe: len(differences(experiment, recipe)), default=None)


def write_training(experiment: Experiment) -> str | None:
    """Write the command that repeats a training; None where no recipe is like it."""
    recipe = find_recipe_of(experiment)
    if recipe is None:
        return None
    changed = {name: mine for name, (mine, _) in differences(experiment, recipe).items()}
    if experiment.name.partition("+")[0] == recipe.name:
        changed.pop("name", None)
    for part, name, default in CIRCUMSTANCES:
        value = getattr(getattr(experiment, part), name, default)
        if value != default:
            changed[f"{part}.{name}"] = value
    words = ["ait", "train", recipe.name]
    for name, value in changed.items():
        *parts, last = name.replace("_", "-").split(".")
        if isinstance(value, bool):
            words.append("--" + ".".join([*parts, last if value else f"no-{last}"]))
        else:
            values = value if isinstance(value, list | tuple) else [value]
            words += ["--" + ".".join([*parts, last]), *map(str, values)]
    return shlex.join(words)


def run_section(facts: Facts) -> Section:
    """Say what was trained, where, how it can be repeated, and how well it does."""
    env, train = facts.environment, facts.experiment.train
    packages = {"Python": env.get("python"), **env.get("packages", {})}
    names = ("Python", "torch", "numpy")
    versions = [f"{name} {packages[name]}" for name in names if packages.get(name)]
    threads = f", threads: {env['threads']}" if env.get("threads") else ""
    rows = [
        ("recipe", facts.experiment.name),
        ("data set", name_data(facts.experiment.data)),
        ("seed", str(train.seed)),
        ("state", facts.standing),
        ("folder", str(facts.folder)),
        ("commit", env.get("commit") or "not known"),
        ("device", f"{env.get('device', 'not known')}{threads}"),
        ("precision", (facts.result or {}).get("precision", train.precision)),
        ("versions", ", ".join(versions) or "not known"),
        ("command", write_training(facts.experiment) or "none: no recipe is like it"),
    ]
    tables = [_results(facts), Grid(["", ""], rows, "How it was made")]
    return Section("run", "Run", tables=tables)


def cost_section(facts: Facts) -> Section:
    """Say what it took."""
    result, rows = facts.result or {}, []
    timings = [row["timing"] for row in facts.history.metrics]
    seconds = sum(timing["seconds"] for timing in timings)
    speeds = [t.get("samples_per_second", t.get("images_per_second", 0.0)) for t in timings]
    if result:
        live, total = result["live_parameters"], result["total_parameters"]
        rows += [
            ("parameters, live", format_number(live)),
            ("as the paper counts", format_number(total)),
        ]
    operations = count_operations(facts.experiment.model)
    rows.append(("operations per image, forward in training", f"{operations:,}"))
    if timings:
        rows += [
            ("seconds of training", f"{seconds:,.1f}"),
            ("samples per second, mean of the epochs", f"{sum(speeds) / len(speeds):,.0f}"),
        ]
    if "skipped_steps" in result:
        rows.append(("skipped steps", format_number(result["skipped_steps"])))
    note = "Operations are floating-point ones of matrix products, convolutions and attention."
    return Section("cost", "Cost", note, tables=[Grid(["", ""], rows)])


def _results(facts: Facts) -> Grid:
    """Put the result beside the published one."""
    recipe = RECIPES.get(facts.experiment.name.partition("+")[0])
    published, title = "none", "published"
    if recipe is not None and recipe.name in PUBLISHED:
        published = PUBLISHED[recipe.name]
        if differences(facts.experiment, recipe):
            title = f"published, for {recipe.name} as it is"
    result = facts.result
    if result is None:
        return Grid(["", ""], [("test accuracy", "not yet"), (title, published)], "Result")
    rows: list[Sequence[str]] = []
    kinds = [kind for kind in result.get("test_kinds", []) if "/" not in kind["name"]]
    for kind in kinds:
        low, high = kind["interval"]
        guess = f"best guess {_percent(kind['guess'])}"
        score = f"{_percent(kind['accuracy'])} ({low:.2f} to {high:.2f}), {guess}"
        rows.append((f"{kind['name']} questions", score))
    if not kinds:
        share = f"{_percent(result['test_accuracy'])} of {result['test_images']:,} images"
        rows.append(("test accuracy", share))
    if best := result.get("best_validation"):
        score = f"epoch {best['epoch']}, {_percent(best['test_accuracy'])} of the test set"
        rows.append(("saved model", f"{score}; above: the last epoch"))
    return Grid(["", ""], [*rows, (title, published)], "Result")


def _percent(value: float) -> str:
    return f"{value + 1e-9:.2f} %"  # a half is rounded up


def _read_json(path: Path) -> dict[str, Any] | None:
    """Read a file, where it is there."""
    if not path.exists():
        return None
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is damaged: {error}") from error
