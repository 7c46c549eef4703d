"""Code shared by the commands: parsing options, choosing a device, writing the output."""

import io
import os
import re
import shlex
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TextIO, TypeVar

import tyro

from associative_transformer.cli.mistakes import (
    CommandLine,
    InstantiationFailure,
    watched,
)
from associative_transformer.files import check_writable, write_file
from associative_transformer.interface import (
    SHOWN,
    UserError,
    format_count,
    printable,
    printable_lines,
)

if TYPE_CHECKING:
    import torch

    from associative_transformer.experiment import Experiment
    from associative_transformer.tabular import Table
    from associative_transformer.training.run_all import FailedRun

Options = TypeVar("Options")
Edition = TypeVar("Edition")

RUNS = Path("runs")
"""The default folder of all runs."""
OWN_FILES = {"", "experiment", "environment", "metrics", "memory", "config", "model", "result"}
OWN_FILES |= {"evaluation", "confusion", "skipped", "report", "comparison", "readme"}
OWN_FILES |= {"initialization", "priors", "data"}
"""How the names of a run's own files begin, up to a dot or hyphen, in lower case."""
OWN_FOLDERS = {"checkpoint", "analysis", "figures", "tracker"}
"""The folders of a run."""
TEXT_SUFFIXES = (".csv", ".json", ".jsonl", ".html", ".md", ".txt")
"""What commands write next to images, and may write again."""


def parse(
    kind: type[Options], arguments: list[str], command: str, default: Options | None = None
) -> Options:
    """Parse the options of a command. Raises UserError with one sentence if they are invalid."""
    # A field without a default is a positional argument; a union keeps the type of its default.
    config = (tyro.conf.PositionalRequiredArgs, tyro.conf.AvoidSubcommands)
    defaults: dict[str, Any] = {} if default is None else {"default": default}

    def read(words: list[str]) -> Options:
        return tyro.cli(kind, prog=f"ait {command}", args=words, config=config, **defaults)

    try:
        with watched() as refusal:
            options = read(arguments)
    except ValueError as error:  # raised by the outermost configuration
        refusal.events.append(InstantiationFailure(str(error)))
    except SystemExit as stopped:
        if stopped.code != 2:
            raise
    else:
        sys.stderr.write(refusal.box.getvalue())  # warnings
        return options
    raise UserError(printable(CommandLine(command, arguments, read).describe(refusal)))


@dataclass(frozen=True)
class _ConfigFile:
    """The option that is read before all others, since it changes their defaults."""

    config: Path | None = None


def find_config(arguments: list[str]) -> Path | None:
    """Return the value of --config; None if there is none, or if `parse` will refuse it."""
    with redirect_stderr(io.StringIO()), suppress(SystemExit):
        found, _ = tyro.cli(_ConfigFile, args=arguments, add_help=False, return_unknown_args=True)
        return found.config
    return None


def list_options(arguments: list[str]) -> set[str]:
    """Return the dotted names of the fields that options set."""
    options = (word.partition("=")[0] for word in arguments if word.startswith("--"))
    return {option.removeprefix("--").replace("-", "_") for option in options}


def check_seeds(seeds: tuple[int, ...] | None, arguments: list[str]) -> None:
    """Check the seeds of several runs.

    Raises UserError if there is none, if one is negative or occurs twice, or if --train.seed is
    passed too.
    """
    if seeds is None:
        return
    if not seeds or min(seeds) < 0:
        raise UserError(f"--seeds takes at least one number, each 0 or more, not {seeds}")
    if len(set(seeds)) < len(seeds):
        raise UserError(f"--seeds must name each seed once, not {' '.join(map(str, seeds))}")
    if "train.seed" in list_options(arguments):
        raise UserError("--seeds and --train.seed exclude each other: remove --train.seed")


def check_trained(runs: Sequence[object], failed: "Sequence[FailedRun]") -> None:
    """Raise UserError if some of several runs have failed."""
    if failed:
        names, count = "; ".join(map(str, failed)), format_count(len(runs), "run")
        command = format_command(*failed[0].run.arguments)
        raise UserError(
            f"{len(failed)} of {count} failed: {names}. Their messages are above; run "
            f"the same command to try them again, or only the first one: {command}"
        )


def read_recipe(command: str, usage: str, arguments: Sequence[str]) -> "Experiment | None":
    """Return the recipe that the first argument names.

    None if it asks for help, which is then printed. Raises UserError if there is no such recipe.
    """
    from associative_transformer.recipes import RECIPES, find_recipe

    name = arguments[0] if arguments else "--help"
    if name in ("-h", "--help"):
        print(usage, *RECIPES, sep="\n  ")
        return None
    if name.startswith("-"):
        raise UserError(
            f"`ait {command}` needs the name of a RECIPE before {name}: see `ait list`"
        )
    return find_recipe(name)


def find_edition(tables: Mapping[str, Edition], table: str) -> Edition:
    """Return what belongs to the laptop edition of a table; raise UserError if it has none."""
    if table not in tables:
        raise UserError(
            f"--budget laptop: the table {table} has no laptop edition; choose "
            f"{' or '.join(tables)}"
        )
    return tables[table]


def check_runs(folder: Path) -> None:
    """Raise UserError if the folder of all runs is missing; the default need not exist yet."""
    if not folder.is_dir() and folder != RUNS:
        raise UserError(f"there is no folder {folder}: pass the folder of runs with --runs")


def format_table(table: "Table", file_format: Literal["terminal", "markdown", "html"]) -> str:
    """Return a table as text."""
    match file_format:
        case "terminal":
            return table.to_terminal(table_width())
        case "markdown":
            return table.to_markdown()
        case "html":
            return table.to_html()


def check_counts(**counts: int) -> None:
    """Raise ValueError for the first count below 1."""
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1, not {count}")


def check_output(
    path: Path | None, *inputs: Path, replaces: Iterable[str] = (), flag: str = "--output"
) -> None:
    """Check that a file can be written to a path without harm to anything else.

    `inputs` are files, and folders, that the command reads; in a run folder, only the own files
    named in `replaces` may be replaced. Raises UserError if the folder of the path does not exist
    or cannot be written; if the path is a folder, a symbolic link, a device or a pipe; or if it is
    an input, an existing file of an input folder other than a text file, or a run's own file.
    """
    if path is None:
        return
    if not path.parent.is_dir():
        raise UserError(f"there is no folder {path.parent} for {flag} {path}: create it first")
    try:
        path.lstat()
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:  # such as a name that is too long
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot write {flag} {path}: {reason}; pass another path") from error
    if path.is_dir():
        raise UserError(f"cannot write {flag} {path}: it is a folder; add the name of a file")
    if path.is_symlink():
        raise UserError(
            f"{flag} {path} is a symbolic link to {path.readlink()}: pass the path of a file"
        )
    if path.exists() and not path.is_file():
        raise UserError(f"{flag} {path} is a device or a pipe: pass the path of a file")
    for given in inputs:
        if _would_replace(path, given):
            raise UserError(
                f"{flag} {path} would replace an input of this command: pass another path"
            )
    run = next((folder for folder in path.resolve().parents if _is_run(folder)), None)
    if run is not None:
        first, *below = path.resolve().relative_to(run).parts
        names = OWN_FOLDERS if below else OWN_FILES
        if first not in replaces and re.split("[.-]", first.lower())[0] in names:
            raise UserError(f"{flag} {path} is reserved for the run itself: pass another path")
    check_writable(path.parent)


def _would_replace(path: Path, given: Path) -> bool:
    """Return whether writing to a path replaces an input file, or one in an input folder."""
    if not (path.exists() and given.exists()):
        return False
    if not given.is_dir():
        return path.samefile(given)
    is_inside = path.resolve().is_relative_to(given.resolve())
    is_text = path.suffix.lower() in TEXT_SUFFIXES and not path.name.startswith("metadata.")
    return is_inside and not is_text


def _is_run(folder: Path) -> bool:
    """Return whether a folder contains a run, or a model."""
    is_model = all((folder / name).is_file() for name in ("config.json", "model.safetensors"))
    return is_model or (folder / "experiment.yaml").is_file()


def format_command(*words: str) -> str:
    """Return a command line of `ait` that can be copied and run."""
    if Path(sys.argv[0]).name == "__main__.py":
        return shlex.join(["python", "-m", "associative_transformer", *words])
    return shlex.join(["ait" if shutil.which("ait") else os.path.relpath(sys.argv[0]), *words])


def choose_device(name: str) -> "torch.device":
    """Return the device of that name; "auto" is a GPU if there is one.

    Raises UserError if this machine has no such device.
    """
    import torch

    from associative_transformer.compute import set_up_cpu

    set_up_cpu()
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        float(torch.ones(1, device=device))  # meta and others hold no values
    except (ImportError, RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"no device {name!r} on this machine ({reason}): pass --device auto or --device cpu"
        ) from error
    return device


def table_width() -> int:
    """Return how wide a table may be: as the terminal, or 200 if the output goes elsewhere."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else 200


def say(text: str, file: TextIO | None = None) -> None:
    """Print lines of text in which names cannot hide characters that control the terminal."""
    print(printable_lines(text), file=file, flush=True)


class _Terminal(io.TextIOBase):
    """Standard output, for text in which names cannot hide control characters."""

    def write(self, text: str) -> int:
        return sys.stdout.write(printable_lines(text))


@contextmanager
def open_output(path: Path | None) -> Iterator[io.TextIOBase]:
    """Open a file that is written completely or not at all; None: standard output."""
    if path is None:
        yield _Terminal()
    else:
        yield (buffer := io.StringIO())
        write_file(path, buffer.getvalue().encode(errors=SHOWN))
