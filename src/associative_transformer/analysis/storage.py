"""Results of an analysis as files: arrays in NAME.npz, everything else in NAME.json.

`complete.json` is written last and holds the digest of every file and of the test images. Files
that it does not describe, such as those of an interrupted analysis, are never read.
"""

import hashlib
import io
import json
from collections.abc import Iterable
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import numpy as np
from jaxtyping import jaxtyped

from associative_transformer.files import make_folder, read_file, write_file
from associative_transformer.interface import UserError
from associative_transformer.runs.reading import MAX_ARRAYS, MAX_JSON, read_arrays, read_json

COMPLETE = "complete.json"
Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class Completion:
    """The content of `complete.json`."""

    data: str  # digest of the test split that was analyzed
    files: dict[str, str]  # digests by name


def write_completion(folder: Path, names: Iterable[str], data: str) -> None:
    """Write `complete.json` for the results of these names."""
    files = [f"{name}.{ending}" for name in names for ending in ("json", "npz")]
    complete = Completion(data=data, files={file: _digest(folder / file) for file in files})
    write_file(folder / COMPLETE, json.dumps(asdict(complete), indent=2).encode())


def remove_completion(folder: Path) -> None:
    """Remove `complete.json`, before the files that it describes are replaced."""
    try:
        (folder / COMPLETE).unlink(missing_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot replace the analysis in {folder}: {error.strerror or error}; check the "
            "permissions of the folder"
        ) from error


def read_completion(folder: Path) -> Completion | None:
    """Return the content of `complete.json`; None if there is no complete analysis.

    Raises UserError if it or a file that it describes is damaged.
    """
    file = COMPLETE
    try:
        complete = read_json(folder / COMPLETE, Completion)
        for file, digest in complete.files.items():
            if Path(file).name != file or _digest(folder / file) != digest:
                raise ValueError("its content has changed")
        return complete
    except (FileNotFoundError, NotADirectoryError) as error:
        if file == COMPLETE:
            return None
        reason = error.strerror
    except PermissionError:  # the file may be intact
        raise
    except OSError as error:
        reason = error.strerror or str(error)
    except ValueError as error:
        reason = str(error)
    raise UserError(f"{folder / file} is damaged ({reason}): run ait analyze again")


def _digest(path: Path) -> str:
    return hashlib.sha256(read_file(path, MAX_ARRAYS)).hexdigest()


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


def load_result(
    kind: type[Result], folder: Path, name: str, max_bytes: int = MAX_ARRAYS
) -> Result:
    """Load a result of the given class, whose arrays take at most `max_bytes`.

    A field with a default may be missing, as in results of earlier versions. Raises UserError if a
    file is missing or damaged, or contains a result of another class.
    """
    try:
        values = json.loads(read_file(folder / f"{name}.json", MAX_JSON))
        values |= read_arrays(folder / f"{name}.npz", max_bytes)
        defaults = {field.name: field.default for field in fields(kind)}  # type: ignore[arg-type]
        values = {name: x for name, x in defaults.items() if x is not MISSING} | values
        if values.keys() != defaults.keys():
            differences = ", ".join(sorted(values.keys() ^ defaults.keys()))
            raise ValueError(f"unexpected or missing fields: {differences}")
        _check_types(kind, values)
        return kind(**values)
    except PermissionError:
        raise
    except Exception as error:  # zipfile raises many types of exception for a damaged archive
        raise UserError(
            f"cannot read the result {name} in {folder} ({error}): run ait analyze again"
        ) from error


def _check_types(kind: type[Any], values: dict[str, Any]) -> None:
    """Raise ValueError if a value does not have the type, or an array the shape, of its field."""
    hints = get_type_hints(kind)
    with jaxtyped("context"):  # the same dimension has the same size in all fields
        for field in fields(kind):
            value, hint = values[field.name], hints[field.name]
            is_array = isinstance(value, np.ndarray)
            if not (isinstance(value, hint) if is_array else _has_type(value, hint)):
                kind_of_value = f"{value.dtype} of {value.shape}" if is_array else type(value)
                raise ValueError(f"{field.name} is {kind_of_value}")


def _has_type(value: object, hint: Any) -> bool:  # noqa: ANN401
    if get_origin(hint) is list:
        (entry,) = get_args(hint)
        return isinstance(value, list) and all(_has_type(each, entry) for each in value)
    if get_origin(hint) is UnionType:
        return any(_has_type(value, kind) for kind in get_args(hint))
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return type(value) is hint
