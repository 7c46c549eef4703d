"""`ait train`: train a recipe, or resume a run."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Annotated

import tyro

from associative_transformer import distributed
from associative_transformer.cli.options import (
    check_counts,
    choose_device,
    format_command,
    parse,
    say,
)
from associative_transformer.experiment import Experiment
from associative_transformer.interface import UserError
from associative_transformer.recipes import RECIPES, find_recipe
from associative_transformer.runs.defaults import as_started, named, run_folder
from associative_transformer.runs.result import RunResult

USAGE = """usage: ait train RECIPE [--help] [options]

Train a recipe, or resume a run. `ait train RECIPE --help` lists the options, `ait list` describes
the recipes.

recipes:"""


@dataclass(frozen=True)
class TrainOptions:
    """Train a recipe; each of its fields can be overridden."""

    experiment: Annotated[Experiment, tyro.conf.arg(name="")]
    resume: bool = False
    """Continue from the last checkpoint."""
    overwrite: bool = False
    """Delete the existing run and start again."""
    runs: Path = Path("runs")
    """Folder of all runs; this run is written to RUNS/NAME/SEED."""
    report_every: int | None = None
    """Epochs between updates of report.html, which is also written at the end; None: no report."""

    def __post_init__(self) -> None:
        if self.report_every is not None:
            check_counts(report_every=self.report_every)


def run(arguments: list[str]) -> None:
    """Train a recipe, with overrides of its fields."""
    name = arguments[0] if arguments else "--help"
    if name in ("-h", "--help"):
        print(USAGE, *RECIPES, sep="\n  ")
        return
    if name.startswith("-"):
        raise UserError(f"`ait train` needs the name of a RECIPE before {name}: see `ait list`")
    recipe = find_recipe(name)
    words = _read_flags(arguments[1:])
    options = parse(TrainOptions, words, f"train {name}", TrainOptions(recipe))
    from associative_transformer.compute import set_up_cpu
    from associative_transformer.training.loop import train

    set_up_cpu()
    if options.resume:
        given = _list_fields_set(words)
        experiment = as_started(options.experiment, recipe, options.runs, given)
    else:
        experiment = named(options.experiment, recipe)
    folder = run_folder(experiment, options.runs)
    result = train(
        experiment,
        folder,
        resume=options.resume,
        overwrite=options.overwrite,
        on_epoch_end=_report_every(options.report_every),
    )
    if not distributed.is_first():
        return
    report = None
    if options.report_every is not None:
        report = _write_final_report(folder, experiment.train.device)
    _print_result(result, folder, report)


def _read_flags(words: list[str]) -> list[str]:
    """Replace --train.compile and --train.no-compile, flags in version 0.1, with settings."""
    read: list[str] = []
    for word, following in zip_longest(words, words[1:], fillvalue=""):
        if word == "--train.no-compile":
            read += ["--train.compile", "off"]
        elif word == "--train.compile" and (not following or following.startswith("-")):
            read += [word, "on"]
        else:
            read.append(word)
    return read


def _list_fields_set(words: list[str]) -> set[str]:
    """Return the dotted names of the fields that options set."""
    options = (word.partition("=")[0] for word in words if word.startswith("--"))
    return {option.removeprefix("--").replace("-", "_") for option in options}


def _report_every(epochs: int | None) -> Callable[[Path], None] | None:
    """Return a callback for `train` that writes a report after every `epochs` epochs."""
    if epochs is None:
        return None
    from associative_transformer.report import write_report

    def report(folder: Path) -> None:
        done = len((folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
        if done % epochs == 0:
            write_report(folder)

    return report


def _write_final_report(folder: Path, device: str) -> Path:
    from associative_transformer.report import AnalysisOptions, write_report

    return write_report(folder, None, AnalysisOptions(device=str(choose_device(device))))


def _print_result(result: RunResult, folder: Path, report: Path | None) -> None:
    """Print the scores, the folder and the commands to run next."""
    from associative_transformer.data.questions import example_question
    from associative_transformer.evaluate import describe_kinds

    best = result.best_validation
    types, predict = result.question_types, [str(folder), "PATH/TO/IMAGES"]
    if types:
        say(f"trained on    {' and '.join(types)} questions{' together' * (len(types) > 1)}")
        say(describe_kinds((best or result).test_kinds or ()))
        predict += ["--question", example_question(types)]
    items = f"{result.test_images:,} images"
    if types:
        items = f"{result.test_questions:,} questions about {items}"
    saved, epoch = (best, f"epoch {best.epoch}, the best") if best else (result, "last epoch")
    say(f"test accuracy {saved.test_accuracy:.2f} % of {items}, saved model ({epoch})")
    if best:
        say(f"last epoch    {result.test_accuracy:.2f} % of the same")
    if result.skipped_steps:
        say(f"skipped steps {result.skipped_steps:,}, whose gradient was not finite")
    say(f"run folder    {folder}")
    if report is not None:
        say(f"report        {report}")
    say(f"next          {format_command('eval', str(folder))}")
    say(f"              {format_command('predict', *predict)}")
