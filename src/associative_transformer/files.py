"""Atomic file writes, new folders, and the first error in the content of a file."""

import errno
import os
from contextlib import suppress
from pathlib import Path

from pydantic import ValidationError

from associative_transformer.interface import UserError


def write_file(path: Path, content: bytes) -> None:
    """Write a file completely or not at all: an interrupted write leaves the old file unchanged.

    Raises UserError if the disk is full or the folder is not writable.
    """
    partial = path.parent / f".{path.name}.partial"
    try:
        partial.unlink(missing_ok=True)  # left by an interrupted write; links are not followed
        with partial.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        with suppress(OSError):
            partial.unlink()
        reason = error.strerror or error
        is_full = error.errno == errno.ENOSPC
        hint = "free some space and try again" if is_full else "check the path and its permissions"
        raise UserError(f"cannot write {path}: {reason}; {hint}") from error


def make_folder(folder: Path) -> None:
    """Create a folder and its parents; an existing folder is left unchanged.

    Raises UserError if the folder cannot be created.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(
            f"cannot create the folder {folder}: {reason}; check the path and its permissions"
        ) from error


def first_error(error: ValidationError, *prefix: str) -> str:
    """Return the first error of a validation, preceded by its dotted location: `train.lr: ...`.

    `prefix`, such as the name of a file, comes before the location.
    """
    first = error.errors()[0]
    location = ".".join([*prefix, *map(str, first["loc"])])
    message = first["msg"].removeprefix("Value error, ")
    return f"{location}: {message}" if location else message
