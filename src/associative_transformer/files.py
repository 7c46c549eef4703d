"""Atomic writes, limited reads, new folders, cells of CSV, and the first error in a file."""

import errno
import hashlib
import os
import re
import stat
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryFile

from pydantic import ValidationError

from associative_transformer.interface import UserError

FORMULA = re.compile(r"[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")  # also full-width = + - @
PLAIN_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


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


def read_file(path: Path, max_bytes: int) -> bytes:
    """Return the content of a regular file of at most `max_bytes`; its size is checked first.

    Raises OSError if it cannot be read, and ValueError if it is larger or not a regular file.
    """
    check_file(path, max_bytes)
    return path.read_bytes()


def digest_file(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_file(path: Path, max_bytes: int) -> None:
    """Raise ValueError or OSError if a path is not a regular file of at most `max_bytes`."""
    status = path.stat()
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("it is not a regular file")
    if status.st_size > max_bytes:
        raise ValueError(f"it has {status.st_size:,} bytes, more than {max_bytes:,}")


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


def check_writable(folder: Path) -> None:
    """Raise UserError if no file can be created in a folder; called before long work begins."""
    try:
        with TemporaryFile(dir=folder):  # which has no name on Linux
            pass
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"cannot write to {folder}: {reason}; check its permissions") from error


def list_folders(folder: Path) -> list[Path]:
    """Return the folders in a folder, sorted; none if it does not exist.

    Raises UserError if they cannot be listed.
    """
    try:
        with os.scandir(folder) as entries:
            return sorted(Path(entry) for entry in entries if entry.is_dir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise UserError(
            f"cannot read the folder {folder}: {error.strerror or error}; check its permissions"
        ) from error


def describe_denied(error: PermissionError) -> str:
    """Return a sentence about a file or folder that this user may not access."""
    name = error.filename or "a file"
    reason = error.strerror or error
    return f"cannot access {name}: {reason}; check its permissions and those of its folder"


def first_error(error: ValidationError, *prefix: str) -> str:
    """Return the first error of a validation, preceded by its dotted location: `train.lr: ...`.

    `prefix`, such as the name of a file, comes before the location.
    """
    first = error.errors()[0]
    location = ".".join([*prefix, *map(str, first["loc"])])
    message = first["msg"].removeprefix("Value error, ")
    return f"{location}: {message}" if location else message


def csv_text(text: str) -> str:
    """Return a text for a cell of CSV that no spreadsheet takes for a formula.

    A text that starts with = + - @, a tab or a line end, and is not a number, gets a ' before it.
    """
    is_formula = FORMULA.match(text) and not PLAIN_NUMBER.fullmatch(text)
    return f"'{text}" if is_formula else text
