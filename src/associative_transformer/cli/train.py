"""`ait train`: train a recipe, or go on with it."""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated

import tyro

from associative_transformer import distributed
from associative_transformer.cli.options import check_counts, choose_device, parse, write_command
from associative_transformer.data.questions import example_question
from associative_transformer.evaluate import describe_kinds
from associative_transformer.experiment import Experiment, fingerprint
from associative_transformer.recipes import RECIPES, find_recipe
from associative_transformer.report import AnalysisOptions, write_report
from associative_transformer.training.loop import Result, train


@dataclass(frozen=True)
class TrainOptions:
    """Train a recipe; every field of it can be overridden."""

    experiment: Annotated[Experiment, tyro.conf.arg(name="")]
    resume: bool = False
    """Go on from the last checkpoint."""
    overwrite: bool = False
    """Remove the run that stands in the folder and start again."""
    runs: Path = Path("runs")
    """Folder of all runs; this one goes to RUNS/NAME/SEED."""
    report_every: int | None = None
    """Epochs between writing report.html, which is whole at the end; None: no report."""

    def __post_init__(self) -> None:
        if self.report_every is not None:
            check_counts(report_every=self.report_every)


def run(arguments: list[str]) -> None:
    """Train a recipe, with overrides of its fields."""
    name = arguments[0] if arguments else "--help"
    if name in ("-h", "--help"):
        print("usage: ait train RECIPE [--help] [options]\n\nrecipes:", *RECIPES, sep="\n  ")
        return
    recipe = find_recipe(name)
    options = parse(TrainOptions, arguments[1:], f"train {name}", TrainOptions(recipe))
    experiment = options.experiment
    if experiment.name == name and fingerprint(experiment) != fingerprint(recipe):
        experiment = replace(experiment, name=f"{name}+{fingerprint(experiment)}")
    folder = options.runs / experiment.name / str(experiment.train.seed)
    every = options.report_every
    # a launcher's command is the same after a failure and before any
    is_new = distributed.is_launched() and not (folder / "experiment.yaml").exists()
    result = train(
        experiment,
        folder,
        resume=options.resume and not is_new,
        overwrite=options.overwrite,
        on_epoch_end=None if every is None else partial(_report_progress, every=every),
    )
    if not distributed.is_first():
        return
    report = None
    if every is not None:
        effort = AnalysisOptions(device=str(choose_device(experiment.train.device)))
        report = write_report(folder, effort=effort)
    _tell(result, folder, report)


def _tell(result: Result, folder: Path, report: Path | None) -> None:
    """Say what came out, where it lies and what to do with it."""
    if best := result.get("best_validation"):
        score = f"{best['test_accuracy']:.2f} % of the test set"
        print(f"saved model   of epoch {best['epoch']}, {score}")
        print("below         what the last epoch reached")
    types, predict = result.get("question_types"), [str(folder), "PATH/TO/IMAGES"]
    if types:
        print(f"trained on    {' and '.join(types)} questions{' together' * (len(types) > 1)}")
        print(describe_kinds(result["test_kinds"]))
        predict += ["--question", example_question(tuple(types))]
    asked = f"{result['test_questions']:,} questions about " if types else ""
    print(
        f"test accuracy {result['test_accuracy']:.2f} % of {asked}{result['test_images']:,} images"
    )
    print(f"run folder    {folder}")
    if report is not None:
        print(f"report        {report}")
    print(f"next          {write_command('eval', str(folder))}")
    print(f"              {write_command('predict', *predict)}")


def _report_progress(folder: Path, every: int) -> None:
    """Write the report of a run under way, once in so many epochs."""
    epochs = len((folder / "metrics.jsonl").read_text().splitlines())
    if epochs % every == 0:
        write_report(folder)
