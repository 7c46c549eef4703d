"""Results of an analysis as files: arrays in NAME.npz, everything else in NAME.json."""

import io
import json
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from associative_transformer.files import make_folder, write_file
from associative_transformer.interface import UserError

Result = TypeVar("Result")


def save_result(result: Any, folder: Path, name: str) -> None:  # noqa: ANN401
    """Write a frozen dataclass whose fields are arrays, numbers, strings and lists of them.

    Raises UserError if the folder cannot be written or the disk is full.
    """
    values = {field.name: getattr(result, field.name) for field in fields(result)}
    arrays: dict[str, Any] = {
        key: value for key, value in values.items() if isinstance(value, np.ndarray)
    }
    rest = {key: value for key, value in values.items() if key not in arrays}
    make_folder(folder)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    write_file(folder / f"{name}.npz", buffer.getvalue())
    write_file(folder / f"{name}.json", json.dumps(rest, indent=2).encode())


def load_result(kind: type[Result], folder: Path, name: str) -> Result:
    """Load a result of the given class.

    Raises UserError if a file is missing or damaged, or contains a result of another class.
    """
    try:
        values = json.loads((folder / f"{name}.json").read_text())
        with np.load(folder / f"{name}.npz") as arrays:
            values |= {key: arrays[key] for key in arrays.files}
        expected = {field.name for field in fields(kind)}  # type: ignore[arg-type]
        if values.keys() != expected:
            differences = ", ".join(sorted(values.keys() ^ expected))
            raise ValueError(f"unexpected or missing fields: {differences}")
        return kind(**values)
    except Exception as error:  # zipfile raises many types of exception for a damaged archive
        raise UserError(
            f"cannot read the result {name} in {folder} ({error}): run ait analyze again"
        ) from error
