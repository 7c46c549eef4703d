"""The command line, `ait`.

Nothing heavy is imported before a command needs it: `ait --help` does not wait for torch.
"""

import argparse
import io
import os
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from shutil import which
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, TypeVar, cast

from associative_transformer import __version__

if TYPE_CHECKING:
    import torch

Options = TypeVar("Options")


@dataclass(frozen=True)
class EvalOptions:
    """Score a trained model on every test image; write evaluation.json and confusion.csv."""

    run: Path
    """Folder of the run, such as runs/triangle-ait-tiny/0."""
    source: str | None = None
    """Folder of the images, where they no longer lie where they lay in training."""
    batch_size: int = 512
    """Images at a time."""
    device: str = "auto"
    """auto, cpu, cuda, or another device that torch knows."""

    def __post_init__(self) -> None:
        _check_counts(batch_size=self.batch_size)


@dataclass(frozen=True)
class PredictOptions:
    """Classify image files, and the images in folders."""

    run: Path
    """Folder of the run, such as runs/cifar10-ait-tiny/0."""
    paths: tuple[Path, ...]
    """Image files, and folders to search for images."""
    top: int = 5
    """Classes to give for each image, the most probable first."""
    format: Literal["csv", "jsonl"] = "csv"
    """CSV, or a JSON object per line."""
    output: Path | None = None
    """File to write; None: the terminal."""
    on_error: Literal["stop", "skip"] = "stop"
    """What to do with an unreadable image; skip: count it and go on."""
    batch_size: int = 64
    """Images at a time."""
    device: str = "auto"
    """auto, cpu, cuda, or another device that torch knows."""

    def __post_init__(self) -> None:
        _check_counts(top=self.top, batch_size=self.batch_size)


def _check_counts(**counts: int) -> None:
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name} must be at least 1, not {count}")


def main() -> int:
    """Run the command that the arguments name and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="ait",
        description="Associative Transformer: train, evaluate and use it.",
        epilog="commands:\n"
        + "\n".join(f"  {name:8} {command.summary}" for name, command in COMMANDS.items())
        + "\n\nait COMMAND --help tells more.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help="one of those below")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="what the command takes")
    given = parser.parse_args()
    return _guarded(COMMANDS[given.command], given.arguments)


def _guarded(command: "Command", arguments: list[str]) -> int:
    """Turn what the user can mend into one sentence and exit code 2."""
    from associative_transformer.interface import UserError
    from associative_transformer.interruption import Interrupted

    try:
        command.run(arguments)
    except UserError as error:
        print(f"ait: {error}", file=sys.stderr)
        return 2
    except Interrupted as stopped:
        again = [word for word in arguments if word not in ("--overwrite", "--resume")]
        how = _command("train", *again, "--resume")
        print(f"ait: {stopped} and saved; go on with {how}", file=sys.stderr)
        return 128 + stopped.signum
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # nobody reads on: `ait list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (MemoryError, RuntimeError) as error:
        if "out of memory" not in str(error) and "DefaultCPUAllocator" not in str(error):
            raise
        print("ait: out of memory: lower --train.batch-size or --batch-size", file=sys.stderr)
        return 2
    return 0


def list_recipes(arguments: list[str]) -> None:
    """Print the recipes as a table."""
    import torch
    from rich.console import Console
    from rich.table import Table

    from associative_transformer.models import build_model
    from associative_transformer.recipes import PUBLISHED, RECIPES

    _parse(ListOptions, arguments, "list")
    table = Table("recipe", "data", "model", title="ait train RECIPE")
    for title in ("epochs", "live parameters", "published accuracy"):
        table.add_column(title, justify="right")
    for name, recipe in RECIPES.items():
        with torch.device("meta"):
            live = sum(p.numel() for p in build_model(recipe.model).parameters())
        data = recipe.data.name if recipe.data.kind == "images" else recipe.data.kind
        published = f"{PUBLISHED[name]:.2f} %" if name in PUBLISHED else "-"
        model = f"{recipe.model.kind}, {recipe.model.depth} layers of {recipe.model.embed_dim}"
        table.add_row(name, data, model, str(recipe.train.epochs), f"{live:,}", published)
    Console(width=None if sys.stdout.isatty() else 120).print(table)


@dataclass(frozen=True)
class ListOptions:
    """Show the recipes: data, model, live parameters, published accuracy."""


def train_recipe(arguments: list[str]) -> None:
    """Train a recipe, with overrides of its fields."""
    import tyro

    from associative_transformer.experiment import Experiment, fingerprint
    from associative_transformer.interface import UserError
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

    name = arguments[0] if arguments else "--help"
    if name in ("-h", "--help"):
        print("usage: ait train RECIPE [--help] [options]\n\nrecipes:", *RECIPES, sep="\n  ")
        return
    if name not in RECIPES:
        close = get_close_matches(name, RECIPES, n=len(RECIPES), cutoff=0.0)
        raise UserError(f"there is no recipe {name!r}; closest first: {', '.join(close)}")
    recipe = RECIPES[name]
    options = _parse(TrainOptions, arguments[1:], f"train {name}", TrainOptions(recipe))
    experiment = options.experiment
    if experiment.name == name and fingerprint(experiment) != fingerprint(recipe):
        experiment = replace(experiment, name=f"{name}+{fingerprint(experiment)}")
    folder = options.runs / experiment.name / str(experiment.train.seed)
    result = train(experiment, folder, resume=options.resume, overwrite=options.overwrite)
    print(f"test accuracy {result['test_accuracy']:.2f} % of {result['test_images']:,} images")
    print(f"run folder    {folder}")
    print(f"next          {_command('eval', str(folder))}")
    print(f"              {_command('predict', str(folder))} PATH/TO/IMAGES")


def evaluate_run(arguments: list[str]) -> None:
    """Score the model of a run and write what came out beside it."""
    from associative_transformer.data import TriangleConfig, load_test
    from associative_transformer.evaluate import evaluate, save_evaluation
    from associative_transformer.interface import UserError
    from associative_transformer.run_folder import load_run

    options = _parse(EvalOptions, arguments, "eval")
    device = _device(options.device)
    run = load_run(options.run)
    config = run.experiment.data
    if options.source is not None:
        if isinstance(config, TriangleConfig):
            raise UserError("Triangle is generated and has no source: leave --source out")
        config = replace(config, source=options.source)
    data = load_test(config, device)
    if data.class_names != run.classes:
        raise UserError(
            f"the run knows the classes {', '.join(run.classes)} but the data has the classes "
            f"{', '.join(data.class_names)}: pass a --source with those of the run"
        )
    batches = data.test.eval_batches(options.batch_size)
    scored = evaluate(run.model.to(device), batches, len(run.classes))
    context = {"source": getattr(config, "source", None), "skipped_images": data.num_skipped}
    save_evaluation(scored, run.classes, options.run, **context)
    for name, accuracy in zip(run.classes, scored.class_accuracy, strict=True):
        print(f"{accuracy:6.2f} %  {name}")
    print(f"{scored.accuracy:6.2f} %  of all {int(scored.confusion.sum()):,} test images")
    print(f"written: {options.run / 'evaluation.json'}, {options.run / 'confusion.csv'}")


def predict_images(arguments: list[str]) -> None:
    """Classify image files and write the most probable classes of each."""
    from associative_transformer.evaluate import predict_files, write_predictions
    from associative_transformer.interface import UserError
    from associative_transformer.run_folder import load_run

    options = _parse(PredictOptions, arguments, "predict")
    if not options.paths:
        raise UserError("ait predict needs image files or folders behind the run")
    if options.output is not None and not options.output.parent.is_dir():
        raise UserError(f"there is no folder {options.output.parent} for --output: make it first")
    device = _device(options.device)
    run = load_run(options.run)
    model, data = run.model.to(device), run.experiment.data
    found = predict_files(model, options.paths, data, options.batch_size, options.on_error)
    with _writer(options.output) as file:
        write_predictions(found, run.classes, options.top, options.format, file)


def _parse(
    kind: type[Options], arguments: list[str], command: str, default: Options | None = None
) -> Options:
    import tyro

    from associative_transformer.interface import UserError

    # A field without default is a positional argument; a union keeps the kind of its default.
    config = (tyro.conf.PositionalRequiredArgs, tyro.conf.AvoidSubcommands)
    given: dict[str, Any] = {} if default is None else {"default": default}
    try:
        return tyro.cli(kind, prog=f"ait {command}", args=arguments, config=config, **given)
    except ValueError as error:  # tyro reports those of nested configurations itself
        raise UserError(str(error)) from error


def _command(*words: str) -> str:
    """Write a command of `ait` that can be copied as it is."""
    if Path(sys.argv[0]).name == "__main__.py":
        return shlex.join(["python", "-m", "associative_transformer", *words])
    return shlex.join(["ait" if which("ait") else os.path.relpath(sys.argv[0]), *words])


def _device(name: str) -> "torch.device":
    import torch

    from associative_transformer.interface import UserError

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"no device {name!r} here: {str(error).splitlines()[0]}") from error
    return device


@contextmanager
def _writer(path: Path | None) -> Iterator[io.TextIOBase]:
    """Write to a file, whole or not at all, or to the terminal."""
    from associative_transformer.experiment import write_file

    if path is None:
        yield cast(io.TextIOBase, sys.stdout)
    else:
        yield (buffer := io.StringIO())
        write_file(path, buffer.getvalue().encode(errors="surrogateescape"))  # odd file names


class Command(NamedTuple):
    """A sub-command of `ait`."""

    run: Callable[[list[str]], None]
    summary: str


COMMANDS = {
    "list": Command(list_recipes, "show the recipes"),
    "train": Command(train_recipe, "train a recipe, or go on with it"),
    "eval": Command(evaluate_run, "score a trained model on its test images"),
    "predict": Command(predict_images, "classify image files with a trained model"),
}
