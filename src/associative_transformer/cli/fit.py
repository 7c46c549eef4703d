"""`ait fit`: train a classifier on one's own images, without choosing a recipe or a size."""

import math
import re
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from associative_transformer import distributed
from associative_transformer.cli import eval as evaluation
from associative_transformer.cli.check_data import DataOptions, locate, look_at
from associative_transformer.cli.options import RUNS, choose_device, format_command, parse, say
from associative_transformer.data import ImagesConfig
from associative_transformer.experiment import Experiment, is_folder_name, load_experiment
from associative_transformer.interface import UserError, format_count
from associative_transformer.runs.reading import exists
from associative_transformer.runs.training_command import find_recipe_of
from associative_transformer.training.duration import format_seconds, parse_duration

MORE_TIME = 4  # times the given time, for the next run that is suggested
MUCH_LONGER = 1.2  # times the given time


@dataclass(frozen=True)
class FitOptions:
    """Train a classifier on a data set of images in the given time.

    Looks at the images, chooses image size, model and training settings, measures a few steps,
    trains, scores the test images and writes a report. docs/how-to/own-images.md lists the rules.
    """

    path: str
    """Folder, parquet or CSV file, or the id of a data set on the hub, such as cifar10."""
    time: str = "10m"
    """How long all of it may take, such as 90s, 10m or 1h30m."""
    seed: int = 0
    """Seed for weights, batch order and augmentation."""
    name: str | None = None
    """Name of the run; None: fit-FOLDER."""
    runs: Path = RUNS
    """Folder of all runs; this run is written to RUNS/NAME/SEED."""
    resume: bool = False
    """Continue a run that was stopped, with the settings and the epochs that it has."""
    overwrite: bool = False
    """Delete the existing run and start again."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto uses a GPU if there is one."""
    init: str | None = None
    """Start from the weights of a run or of a saved model, whose sizes are kept."""
    flip: bool = True
    """Mirror half of the images in training; not for digits, letters and signs."""
    data: DataOptions = field(default=DataOptions())
    """Which columns, splits and classes to use."""

    def __post_init__(self) -> None:
        parse_duration(self.time)
        if self.name is not None and not is_folder_name(self.name):
            raise ValueError(f"name must be a valid folder name, not {self.name!r}")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed must be at least 0 and below 2**63, not {self.seed}")


def run(arguments: list[str]) -> None:
    """Look at the images, choose an experiment, train it, score it and write the report."""
    options = parse(FitOptions, arguments, "fit")
    started = time.perf_counter()
    if distributed.is_launched():
        raise UserError(
            "`ait fit` measures the time of one process: start it without a launcher, or train "
            "the experiment.yaml of its run with `ait train RECIPE --config`"
        )
    from associative_transformer.compute import set_up_cpu
    from associative_transformer.training.loop import train

    set_up_cpu()
    data = locate(options.path, options.data)
    name = options.name or f"fit-{_name_folder(options.path)}"
    folder = options.runs / name / str(options.seed)
    if options.resume:
        experiment = _find_started(folder, data)
    else:
        if exists(folder / "experiment.yaml") and not options.overwrite:
            raise UserError(
                f"{folder} exists: pass --resume to continue it, --overwrite to start again, or "
                "another --name"
            )
        experiment = _choose(options, data, name, started)
    train(experiment, folder, resume=options.resume, overwrite=options.overwrite)
    _conclude(folder, options, time.perf_counter() - started)
    _print_next(folder, experiment, _with_more_time(arguments, options.time))


def _find_started(folder: Path, data: ImagesConfig) -> Experiment:
    """Return the experiment of the run to resume, with the images in their present folder."""
    if not exists(folder / "experiment.yaml"):
        raise UserError(f"there is no run in {folder} to resume: remove --resume")
    experiment = load_experiment(folder / "experiment.yaml")
    if data.source is not None:
        experiment = replace(experiment, data=experiment.data.with_storage(source=data.source))
    epochs = format_count(experiment.train.epochs, "epoch")
    say(f"resuming {folder} with its own settings and its {epochs}; --time has no effect")
    return experiment


def _choose(options: FitOptions, data: ImagesConfig, name: str, started: float) -> Experiment:
    """Look at the images and return the experiment for them and for the given time."""
    from associative_transformer.recipes.own_images import Wishes
    from associative_transformer.runs.source import load_source
    from associative_transformer.training.throughput import measure_throughput
    from associative_transformer.training.time_plan import plan_time

    choose_device(options.device)  # raises an error if there is none
    start = None if options.init is None else load_source(options.init).config
    before = time.perf_counter()
    summary = look_at(data, options.data.num_workers)
    decoding = time.perf_counter() - before
    if summary.problem is not None:
        raise UserError(summary.problem)
    if summary.contents is not None and (bad := summary.contents.unreadable):
        say(f"{format_count(len(bad), 'unreadable image')} left out")
    wishes = Wishes(
        replace(data, name=summary.name if data.source else data.name),
        name,
        options.seed,
        options.flip,
        options.device,
        options.init,
        start,
    )
    deadline = started + parse_duration(options.time)

    def remaining() -> float:
        return deadline - time.perf_counter()

    try:
        plan = plan_time(summary, wishes, remaining, decoding, measure_throughput)
    except ValueError as error:  # such as a model that answers questions
        raise UserError(str(error)) from error
    say("\n" + "\n".join(plan.describe()))
    if plan.seconds > MUCH_LONGER * max(remaining(), 1.0):
        say(
            f"this is longer than --time {options.time}, into which not even one epoch fits: "
            "stop with Ctrl-C if it is too long"
        )
    return plan.experiment


def _conclude(folder: Path, options: FitOptions, seconds: float) -> None:
    """Score the saved model, write the report and print its path; training took `seconds`."""
    from associative_transformer.report import AnalysisOptions, write_report

    before = time.perf_counter()
    evaluation.run([str(folder), "--device", options.device])
    if (baseline := _describe_baseline(folder)) is not None:
        say(baseline)
    device = str(choose_device(options.device))
    report = write_report(folder, None, AnalysisOptions(device=device))
    after = time.perf_counter() - before
    say(f"run folder    {folder}")
    say(f"report        {report}")
    say(
        f"time          {format_seconds(seconds + after)}, {format_seconds(after)} of it for "
        "scores and report"
    )


def _with_more_time(arguments: list[str], given: str) -> list[str]:
    """Return the arguments of a longer run that replaces this one."""
    dropped = ("--time", "--overwrite", "--resume")
    kept = [
        word
        for before, word in zip(["", *arguments], arguments, strict=False)
        if before != "--time" and word not in dropped and not word.startswith("--time=")
    ]
    minutes = math.ceil(MORE_TIME * parse_duration(given) / 60)
    return [*kept, "--time", f"{minutes}m", "--overwrite"]


def _print_next(folder: Path, experiment: Experiment, longer: list[str]) -> None:
    """Print the commands to run next; `longer` are the arguments for a longer run."""
    recipe = find_recipe_of(experiment)
    repeat = [recipe.name if recipe else "RECIPE", "--config", str(folder / "experiment.yaml")]
    repeat += ["--name", f"{experiment.name}-again", "--runs", str(folder.parents[1])]
    for title, command in {
        "predict": format_command("predict", str(folder), "PATH/TO/IMAGES"),
        "evaluate": format_command("eval", str(folder)),
        "export": format_command("export", str(folder), "--output", "model.onnx"),
        "more time": format_command("fit", *longer),
        "repeat": format_command("train", *repeat),
    }.items():
        say(f"{title:13} {command}")


def _describe_baseline(folder: Path) -> str | None:
    """Return the test accuracy of always naming the largest training class, if it is known."""
    from associative_transformer.runs.data_summary import read_data

    summary = read_data(folder)
    splits = {} if summary is None else {split.name: split.classes for split in summary.splits}
    if not splits or not sum(splits["test"].values()):
        return None
    largest = max(splits["training"], key=splits["training"].__getitem__)
    share = 100 * splits["test"].get(largest, 0) / sum(splits["test"].values())
    return f"{share:6.2f} %  for always answering {largest}, the largest training class"


def _name_folder(path: str) -> str:
    """Return the last part of a path, or the id on the hub, as the name of a folder."""
    local = Path(path).expanduser()
    name = local.absolute().name if local.exists() else path
    return re.sub(r"[^\w.+-]+", "-", name).strip("-.") or "images"
