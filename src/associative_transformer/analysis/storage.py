"""Results of an analysis as files: arrays in NAME.npz, all else in NAME.json."""

import io
import json
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from associative_transformer.files import write_file
from associative_transformer.interface import UserError

Kind = TypeVar("Kind")


def save_result(result: Any, folder: Path, name: str) -> None:  # noqa: ANN401
    """Write a frozen dataclass whose fields are arrays, numbers, words and lists of them.

    Raises UserError where the disk is full or the folder can't be written.
    """
    values = {field.name: getattr(result, field.name) for field in fields(result)}
    arrays: dict[str, Any] = {
        key: value for key, value in values.items() if isinstance(value, np.ndarray)
    }
    rest = {key: value for key, value in values.items() if key not in arrays}
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"can't make the folder {folder}: {error.strerror}") from error
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    write_file(folder / f"{name}.npz", buffer.getvalue())
    write_file(folder / f"{name}.json", json.dumps(rest, indent=2).encode())


def load_result(kind: type[Kind], folder: Path, name: str) -> Kind:
    """Read it back. Raises UserError where a file is missing, damaged or of another kind."""
    try:
        values = json.loads((folder / f"{name}.json").read_text())
        with np.load(folder / f"{name}.npz") as arrays:
            values |= {key: arrays[key] for key in arrays.files}
        wanted = {field.name for field in fields(kind)}  # type: ignore[arg-type]
        if values.keys() != wanted:
            differing = ", ".join(sorted(values.keys() ^ wanted))
            raise ValueError(f"fields that differ: {differing}")
        return kind(**values)
    except Exception as error:  # damaged archives make zipfile raise nearly anything
        raise UserError(
            f"can't read the result {name} in {folder} ({error}): make it anew with ait analyze"
        ) from error
