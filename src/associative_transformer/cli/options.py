"""Code shared by the commands: parsing options, choosing a device, writing the output."""

import io
import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import which
from typing import TYPE_CHECKING, Any, TypeVar, cast

import tyro

from associative_transformer.files import write_file
from associative_transformer.interface import UserError

if TYPE_CHECKING:
    import torch

Options = TypeVar("Options")


def parse(
    kind: type[Options], arguments: list[str], command: str, default: Options | None = None
) -> Options:
    """Parse the options of a command. Raises UserError if their values are invalid."""
    # A field without a default is a positional argument; a union keeps the type of its default.
    config = (tyro.conf.PositionalRequiredArgs, tyro.conf.AvoidSubcommands)
    defaults: dict[str, Any] = {} if default is None else {"default": default}
    try:
        return tyro.cli(kind, prog=f"ait {command}", args=arguments, config=config, **defaults)
    except ValueError as error:  # tyro itself reports the errors of nested configurations
        raise UserError(str(error)) from error


def check_counts(**counts: int) -> None:
    """Raise ValueError for the first count below 1."""
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1, not {count}")


def check_output(path: Path | None) -> None:
    """Raise UserError if the folder of the output file does not exist."""
    if path is not None and not path.parent.is_dir():
        raise UserError(f"there is no folder {path.parent} for --output: create it first")


def format_command(*words: str) -> str:
    """Return a command line of `ait` that can be copied and run."""
    if Path(sys.argv[0]).name == "__main__.py":
        return shlex.join(["python", "-m", "associative_transformer", *words])
    return shlex.join(["ait" if which("ait") else os.path.relpath(sys.argv[0]), *words])


def choose_device(name: str) -> "torch.device":
    """Return the device of that name; "auto" is a GPU if there is one.

    Raises UserError if this machine has no such device.
    """
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"no device {name!r} on this machine ({reason}): pass --device auto or --device cpu"
        ) from error
    return device


@contextmanager
def open_output(path: Path | None) -> Iterator[io.TextIOBase]:
    """Open a file that is written completely or not at all; None: standard output."""
    if path is None:
        yield cast(io.TextIOBase, sys.stdout)
    else:
        yield (buffer := io.StringIO())
        write_file(path, buffer.getvalue().encode(errors="surrogateescape"))  # bytes of file names
