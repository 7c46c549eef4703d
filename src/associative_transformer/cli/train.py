"""`ait train`: train a recipe, or resume a run."""

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Annotated

import tyro

from associative_transformer import distributed
from associative_transformer.cli.options import (
    RUNS,
    check_counts,
    check_seeds,
    check_trained,
    choose_device,
    find_config,
    format_command,
    list_options,
    parse,
    read_recipe,
    say,
    table_width,
)
from associative_transformer.experiment import Experiment, format_experiment
from associative_transformer.interface import UserError
from associative_transformer.runs.defaults import as_started, named
from associative_transformer.runs.folder import check_folder, remove_run
from associative_transformer.runs.overrides import override, read_overrides
from associative_transformer.runs.plan import PlannedRun
from associative_transformer.runs.result import RunResult, accuracy_interval

USAGE = """usage: ait train RECIPE [--help] [options]

Train a recipe, or resume a run. `ait train RECIPE --help` lists the options, `ait list` describes
the recipes.

recipes:"""


@dataclass(frozen=True)
class TrainOptions:
    """Train a recipe; each of its fields can be overridden."""

    experiment: Annotated[Experiment, tyro.conf.arg(name="")]
    config: Path | None = None
    """YAML file with overrides, nested as in experiment.yaml; options take precedence."""
    seeds: tuple[int, ...] | None = None
    """Train with each of these seeds, one after another; None: only with --train.seed."""
    resume: bool = False
    """Continue from the last checkpoint; with --seeds, train what is missing."""
    overwrite: bool = False
    """Delete the existing run and start again."""
    runs: Path = RUNS
    """Folder of all runs; this run is written to RUNS/NAME/SEED."""
    report_every: int | None = None
    """Epochs between updates of report.html, which is also written at the end; None: no report."""
    print_config: bool = False
    """Print the experiment as YAML, as the run would save it, instead of training."""
    dry_run: bool = False
    """Print what would run, with the time and the memory of a few steps, and write nothing."""

    def __post_init__(self) -> None:
        if self.report_every is not None:
            check_counts(report_every=self.report_every)
        if self.print_config and self.dry_run:
            raise ValueError("--print-config and --dry-run exclude each other: pass one of them")


def run(arguments: list[str]) -> None:
    """Train a recipe, with overrides of its fields."""
    recipe = read_recipe("train", USAGE, arguments)
    if recipe is None:
        return
    words = _read_flags(arguments[1:])
    file = find_config(words)
    values = {} if file is None else read_overrides(file, recipe)
    default = override(recipe, values, str(file)) if values else recipe
    options = parse(TrainOptions, words, f"train {recipe.name}", TrainOptions(default))
    check_seeds(options.seeds, words)
    seeds = options.seeds or (options.experiment.train.seed,)
    planned = [_plan(options, recipe, seed, values.keys() | list_options(words)) for seed in seeds]
    from associative_transformer.compute import set_up_cpu

    set_up_cpu()
    if options.print_config:
        _print_config(planned[0], options)
    elif options.dry_run:
        _print_dry_run(planned, options)
    elif options.seeds is None:
        _train(planned[0], options)
    else:
        _train_seeds(planned, options)


def _plan(
    options: TrainOptions, recipe: Experiment, seed: int, given: Collection[str]
) -> PlannedRun:
    """Return the run with a seed; `given` are the fields that the user has set."""
    train = replace(options.experiment.train, seed=seed)
    experiment = replace(options.experiment, train=train)
    if options.resume:
        experiment = as_started(experiment, recipe, options.runs, given)
    else:
        experiment = named(experiment, recipe)
    every = options.report_every
    flags = () if every is None else ("--report-every", str(every))
    return PlannedRun(recipe.name, experiment, options.runs, flags)


def _print_config(planned: PlannedRun, options: TrainOptions) -> None:
    """Print what `experiment.yaml` of a run would contain."""
    from associative_transformer.training.dry_run import resolve

    resolved = resolve(planned.experiment, planned.folder, options.resume)
    if distributed.is_first():
        print(format_experiment(resolved), end="")


def _print_dry_run(planned: list[PlannedRun], options: TrainOptions) -> None:
    """Print what would run, and what a few steps take."""
    from associative_transformer.training.dry_run import dry_run

    first = planned[0]
    measured = dry_run(first.experiment)
    if not distributed.is_first():
        return
    folder = str(first.folder)
    if first.is_started and not (options.resume or options.overwrite):
        folder += " (exists: pass --resume or --overwrite)"
    lines = {"run folder": folder, **measured.describe()}
    if options.seeds is not None:
        lines["seeds"] = f"{', '.join(map(str, options.seeds))}, each with the time above"
    say("\n".join(f"{title:15} {text}" for title, text in lines.items()))
    for note in measured.notes:
        say(f"{'note':15} {note}")
    say("nothing was written: remove --dry-run to train")


def _train(planned: PlannedRun, options: TrainOptions) -> None:
    """Train one run in this process, and print its result."""
    from associative_transformer.training.loop import train

    result = train(
        planned.experiment,
        planned.folder,
        resume=options.resume,
        overwrite=options.overwrite,
        on_epoch_end=_report_every(options.report_every),
    )
    if not distributed.is_first():
        return
    report = None
    if options.report_every is not None:
        report = _write_final_report(planned.folder, planned.experiment.train.device)
    _print_result(result, planned.folder, report)


def _train_seeds(planned: list[PlannedRun], options: TrainOptions) -> None:
    """Train several seeds, each in a process of its own, and print a table of their results."""
    from associative_transformer.runs.result import read_result
    from associative_transformer.runs.spread import tabulate_seeds
    from associative_transformer.training.run_all import announce_run, train_runs

    if distributed.is_launched():
        raise UserError("--seeds starts its own processes: start it without a launcher")
    _check_folders(planned, options)

    def announce(position: int, run: PlannedRun) -> None:
        say(f"\n{announce_run(position, planned)}")

    check_trained(planned, train_runs(planned, announce))
    results = {run.folder: read_result(run.folder) for run in planned}
    known = {folder: result for folder, result in results.items() if result is not None}
    table = tabulate_seeds(planned[0].experiment.name, known)
    say("\n" + table.to_terminal(table_width()))


def _check_folders(planned: list[PlannedRun], options: TrainOptions) -> None:
    """Check all folders before a run starts; remove the runs that are to be overwritten."""
    started = [run for run in planned if run.is_started]
    for run in planned:
        is_resumed = options.resume and (run in started or options.overwrite)
        check_folder(run.folder, run.experiment, is_resumed, options.overwrite)
    if len({run.experiment.name for run in planned}) > 1:
        names = ", ".join(str(run.folder) for run in planned)
        raise UserError(
            f"the runs {names} were started with different defaults: pass --overwrite to train "
            "all of them again"
        )
    for run in started if options.overwrite else []:
        remove_run(run.folder)


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
    low, high = accuracy_interval(saved)
    say(f"test accuracy {saved.test_accuracy:.2f} % of {items}, saved model ({epoch})")
    say(f"95 % interval {low:.2f} to {high:.2f} %")
    if best:
        say(f"last epoch    {result.test_accuracy:.2f} % of the same")
    if result.skipped_steps:
        say(f"skipped steps {result.skipped_steps:,}, whose gradient was not finite")
    say(f"run folder    {folder}")
    if report is not None:
        say(f"report        {report}")
    say(f"next          {format_command('eval', str(folder))}")
    say(f"              {format_command('predict', *predict)}")
