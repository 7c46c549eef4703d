"""`ait train`: train a recipe, or go on with it."""

from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated

import tyro

from associative_transformer.command_line import parse, write_command
from associative_transformer.evaluate import describe_kinds
from associative_transformer.experiment import Experiment, fingerprint
from associative_transformer.interface import UserError
from associative_transformer.questions import example
from associative_transformer.recipes import RECIPES
from associative_transformer.train import train


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


def run(arguments: list[str]) -> None:
    """Train a recipe, with overrides of its fields."""
    name = arguments[0] if arguments else "--help"
    if name in ("-h", "--help"):
        print("usage: ait train RECIPE [--help] [options]\n\nrecipes:", *RECIPES, sep="\n  ")
        return
    if name not in RECIPES:
        close = get_close_matches(name, RECIPES, n=len(RECIPES), cutoff=0.0)
        raise UserError(f"there is no recipe {name!r}; closest first: {', '.join(close)}")
    recipe = RECIPES[name]
    options = parse(TrainOptions, arguments[1:], f"train {name}", TrainOptions(recipe))
    experiment = options.experiment
    if experiment.name == name and fingerprint(experiment) != fingerprint(recipe):
        experiment = replace(experiment, name=f"{name}+{fingerprint(experiment)}")
    folder = options.runs / experiment.name / str(experiment.train.seed)
    result = train(experiment, folder, resume=options.resume, overwrite=options.overwrite)
    if best := result.get("best_validation"):
        score = f"{best['test_accuracy']:.2f} % of the test set"
        print(f"saved model   of epoch {best['epoch']}, {score}")
        print("below         what the last epoch reached")
    types, predict = result.get("question_types"), [str(folder), "PATH/TO/IMAGES"]
    if types:
        print(f"trained on    {' and '.join(types)} questions{' together' * (len(types) > 1)}")
        print(describe_kinds(result["test_kinds"]))
        predict += ["--question", example(tuple(types))]
    asked = f"{result['test_questions']:,} questions about " if types else ""
    print(
        f"test accuracy {result['test_accuracy']:.2f} % of {asked}{result['test_images']:,} images"
    )
    print(f"run folder    {folder}")
    print(f"next          {write_command('eval', str(folder))}")
    print(f"              {write_command('predict', *predict)}")
