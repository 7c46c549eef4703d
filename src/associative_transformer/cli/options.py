"""What the commands of `ait` share: reading options, choosing a device, writing a file."""

import io
import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import which
from typing import Any, TypeVar, cast

import torch
import tyro

from associative_transformer.files import write_file
from associative_transformer.interface import UserError

Options = TypeVar("Options")


def parse(
    kind: type[Options], arguments: list[str], command: str, default: Options | None = None
) -> Options:
    """Read the options of a command. Raises UserError where their values do not fit together."""
    # A field without default is a positional argument; a union keeps the kind of its default.
    config = (tyro.conf.PositionalRequiredArgs, tyro.conf.AvoidSubcommands)
    given: dict[str, Any] = {} if default is None else {"default": default}
    try:
        return tyro.cli(kind, prog=f"ait {command}", args=arguments, config=config, **given)
    except ValueError as error:  # tyro reports those of nested configurations itself
        raise UserError(str(error)) from error


def check_counts(**counts: int) -> None:
    """Raise ValueError for the first that is below 1."""
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name} must be at least 1, not {count}")


def check_output(path: Path | None) -> None:
    """Raise UserError where there is no folder to write the file to."""
    if path is not None and not path.parent.is_dir():
        raise UserError(f"there is no folder {path.parent} for --output: make it first")


def write_command(*words: str) -> str:
    """Write a command of `ait` that can be copied as it is."""
    if Path(sys.argv[0]).name == "__main__.py":
        return shlex.join(["python", "-m", "associative_transformer", *words])
    return shlex.join(["ait" if which("ait") else os.path.relpath(sys.argv[0]), *words])


def choose_device(name: str) -> torch.device:
    """Turn a name, or "auto", into a device. Raises UserError where there is none of that name."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"no device {name!r} here: {str(error).splitlines()[0]}") from error
    return device


@contextmanager
def open_output(path: Path | None) -> Iterator[io.TextIOBase]:
    """Write to a file, whole or not at all, or to the terminal."""
    if path is None:
        yield cast(io.TextIOBase, sys.stdout)
    else:
        yield (buffer := io.StringIO())
        write_file(path, buffer.getvalue().encode(errors="surrogateescape"))  # odd file names
