"""Files: written whole or not at all, folders, and the first error of a validation."""

import errno
import os
from contextlib import suppress
from pathlib import Path

from associative_transformer.interface import UserError


def write_file(path: Path, content: bytes) -> None:
    """Write a file whole or not at all: an interrupted write leaves the old one.

    Raises UserError where the disk is full or the folder can't be written.
    """
    partial = path.parent / f".{path.name}.partial"
    try:
        partial.unlink(missing_ok=True)  # of an interrupted write; a link there is not followed
        with partial.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        with suppress(OSError):
            partial.unlink()
        reason = error.strerror or error
        hint = (
            "free some space and try again" if error.errno == errno.ENOSPC else "nothing changed"
        )
        raise UserError(f"can't write {path}: {reason}; {hint}") from error


def make_folder(folder: Path) -> None:
    """Create a folder and its parents; a folder that exists is left as it is.

    Raises UserError if that is not possible.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(
            f"cannot create the folder {folder}: {reason}; choose another path or make it writable"
        ) from error
