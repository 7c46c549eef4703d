"""The one place through which files of a run are read: first their size, then their content.

Everything else in the package that reads a run goes through these functions, or through readers
in this folder that use them. Files may have any content: a damaged one raises ValueError with the
reason, and the caller adds how to fix it. The limits keep the memory that a file takes below
1 GiB, whatever its content: Python objects take up to 45 times as much memory as their JSON.
"""

import errno
import io
import json
import math
import zipfile
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
from pydantic import TypeAdapter, ValidationError

from associative_transformer.files import check_file, first_error, read_file
from associative_transformer.interface import UserError
from associative_transformer.optimization import MAX_EPOCHS

Value = TypeVar("Value")

MAX_JSON = 8 * 2**20
"""Bytes of a JSON file; the largest known, an analysis of 1,000 classes, has 8 % of that."""
MAX_METRICS = 12 * 2**20
"""Bytes of `metrics.jsonl`, enough for 39,000 epochs, or for 6,900 of a model with 12 memories."""
MAX_ARRAYS = 384 * 2**20
"""Bytes of all arrays of a file together, unpacked: AiT-Base takes 5 MB for 100 epochs."""
MAX_DIRECTORY = 2**20
"""Bytes of the list of arrays at the end of their file."""
MAX_HEADER = 2**14
"""Bytes of the shape and the type of an array, as numpy writes them."""


@dataclass(frozen=True, kw_only=True)
class EpochScores:
    """Scores on the validation images after an epoch, as `metrics.jsonl` holds them."""

    accuracy: float | None = None
    loss: float | None = None


@dataclass(frozen=True, kw_only=True)
class EpochTiming:
    """What depends on the clock in a row of `metrics.jsonl`."""

    seconds: float | None = None
    samples_per_second: float | None = None
    images_per_second: float | None = None  # the name in the earliest runs


@dataclass(frozen=True, kw_only=True)
class EpochRow:
    """The types of a row of `metrics.jsonl`; a row may have more keys, or fewer."""

    epoch: int | None = None
    lr: float | None = None
    loss: float | None = None
    balance_loss: float | None = None
    accuracy: float | None = None
    skipped_steps: int | None = None
    validation: EpochScores | None = None
    health: list[dict[str, float | None]] | None = None  # by layer; not in early runs
    timing: EpochTiming | None = None


_ROW: TypeAdapter[EpochRow] = TypeAdapter(EpochRow)
END, END_BYTES = b"PK\5\6", 22  # the last record of an archive
LOCATOR, LAST_BYTES = b"PK\6\7", 42  # the record before it in an archive of gigabytes
NEEDED = ("epoch", "lr", "loss", "balance_loss", "accuracy")  # to show a row


def exists(path: Path) -> bool:
    """Return whether a file exists. Raises UserError if its folder cannot be searched."""
    try:
        path.stat()
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return False
        raise UserError(
            f"cannot read {path}: {error.strerror or error}; check the permissions of its folder"
        ) from error
    except ValueError:  # a null byte
        return False
    return True


def has_checkpoint(folder: Path) -> bool:
    """Return whether a run folder has a checkpoint that --resume would continue from."""
    return any(
        exists(folder / "checkpoint" / name / "state.json") for name in ("last", "previous")
    )


def how_to_restore(folder: Path) -> str:
    """Return how to repair the result or the model of a run with the least loss of work."""
    if has_checkpoint(folder):
        return "pass --resume to ait train to restore it from the checkpoint without training"
    return (
        "there is no checkpoint to restore it from, so copy it again from the original run "
        "folder, or train the run again with --overwrite"
    )


def read_json(path: Path, kind: type[Value]) -> Value:
    """Read a JSON file as a value of a type, strictly. Raises OSError or ValueError."""
    return parse_json(read_file(path, MAX_JSON), kind)


def parse_json(text: bytes, kind: type[Value]) -> Value:
    """Return a value of a type, read strictly from JSON. Raises ValueError."""
    try:
        return TypeAdapter(kind).validate_json(text, strict=True)
    except ValidationError as error:
        raise ValueError(first_error(error)) from None


def count_rows(path: Path) -> int:
    """Return the number of lines of `metrics.jsonl`; 0 if there is none."""
    try:
        return sum(1 for _ in io.BytesIO(read_file(path, MAX_METRICS)))
    except FileNotFoundError:
        return 0


def read_rows(path: Path, num_rows: int | None) -> list[dict[str, Any]]:
    """Read the first rows of `metrics.jsonl`, or all. Raises OSError or ValueError."""
    rows = []
    lines = io.BytesIO(read_file(path, MAX_METRICS))
    for number, line in enumerate(islice(lines, num_rows), start=1):
        try:
            epoch = _ROW.validate_json(line, strict=True).epoch
        except ValidationError as error:
            raise ValueError(first_error(error, f"row {number}")) from None
        if epoch not in (None, number):
            raise ValueError(f"row {number} belongs to epoch {epoch}")
        if number > MAX_EPOCHS:
            raise ValueError(f"it has more than {MAX_EPOCHS:,} rows")
        rows.append(json.loads(line))
    return rows


def check_row(row: dict[str, Any], number: int) -> None:
    """Raise ValueError if a row lacks a value that every epoch has."""
    missing = [name for name in NEEDED if row.get(name) is None]
    missing += [] if (row.get("timing") or {}).get("seconds") is not None else ["timing.seconds"]
    if missing:
        raise ValueError(f"row {number} has no {', '.join(missing)}")


def read_memory(path: Path, num_epochs: int | None) -> list[np.ndarray]:
    """Read the priors (L, M, D) after each epoch from `memory.npz`; empty without memory.

    Raises OSError or ValueError.
    """
    arrays = read_arrays(path)
    if list(arrays) != ["priors"]:
        raise ValueError(f"it holds {', '.join(arrays) or 'nothing'} instead of priors")
    priors = arrays["priors"]
    if priors.dtype.kind != "f" or (priors.ndim != 4 and priors.size):
        shape = "x".join(map(str, priors.shape))
        raise ValueError(f"its priors are {shape or 'one'} {priors.dtype} values")
    if priors.ndim and len(priors) > MAX_EPOCHS:
        raise ValueError(f"it has more than {MAX_EPOCHS:,} epochs")
    if not all(np.isfinite(epoch).all() for epoch in priors):  # one by one, to save memory
        raise ValueError("its priors are not finite")
    return list(priors[:num_epochs])


def read_arrays(path: Path, max_bytes: int = MAX_ARRAYS) -> dict[str, np.ndarray]:
    """Read an npz file, without pickle, if its arrays take at most `max_bytes` once unpacked.

    The sizes that its headers state are checked before anything is unpacked.
    Raises OSError or ValueError.
    """
    check_file(path, max_bytes)
    try:
        with path.open("rb") as file:
            _check_directory(file)
            with zipfile.ZipFile(file) as archive:
                entries = archive.infolist()
                size = sum(entry.file_size for entry in entries)
                if size > max_bytes:
                    raise ValueError(f"it unpacks to {size:,} bytes, more than {max_bytes:,}")
                return {
                    entry.filename.removesuffix(".npy"): _read_array(archive, entry)
                    for entry in entries
                }
    except (OSError, ValueError):
        raise
    except Exception as error:  # zipfile raises many types of exception for a damaged archive
        raise ValueError(next(iter(str(error).splitlines()), type(error).__name__)) from error


def check_size(path: Path) -> None:
    """Raise ValueError if a safetensors file is not as long as its header says."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > min(size, MAX_JSON):
            raise ValueError(f"its header claims {length:,} bytes")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    expected = 8 + length + max((entry["data_offsets"][1] for entry in header.values()), default=0)
    if size != expected:
        raise ValueError(f"it has {size:,} bytes instead of {expected:,}")


def _check_directory(file: BinaryIO) -> None:
    """Raise ValueError if an archive does not end as numpy writes it, or lists too many arrays."""
    length = file.seek(0, io.SEEK_END)
    file.seek(max(0, length - LAST_BYTES))
    tail = file.read()
    end = tail[-END_BYTES:]
    if not end.startswith(END) or not end.endswith(b"\0\0"):  # no comment follows
        raise ValueError("it does not end like an archive of arrays")
    size = int.from_bytes(end[12:16], "little")
    if tail.startswith(LOCATOR) or size > MAX_DIRECTORY:  # the locator of a larger directory
        raise ValueError(f"its directory takes {size:,} bytes, more than {MAX_DIRECTORY:,}")


def _read_array(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> np.ndarray:
    """Read an array of numbers. Raises ValueError if it claims more than its entry holds."""
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{entry.filename} is compressed by a method that numpy does not use")
    with archive.open(entry) as file:
        header = io.BytesIO(file.read(MAX_HEADER))
    version = np.lib.format.read_magic(header)
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }.get(version)
    if read is None:
        raise ValueError(f"{entry.filename} has an unknown version")
    shape, _, dtype = read(header)
    size = dtype.itemsize * math.prod(shape)
    is_impossible = min(shape, default=0) < 0 or max(shape, default=0) > max(size, MAX_EPOCHS)
    if dtype.kind not in "biuf" or is_impossible or size > entry.file_size:
        raise ValueError(f"{entry.filename} claims {shape} values of type {dtype}")
    with archive.open(entry) as file:
        return np.lib.format.read_array(file)  # without pickle
