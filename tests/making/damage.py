"""Ways to damage a file of a run."""

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

FILES = (
    "result.json",
    "metrics.jsonl",
    "memory.npz",
    "environment.json",
    "config.json",
    "evaluation.json",
    "experiment.yaml",
    "model.safetensors",
)
HUGE = 3 * 2**30


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def replace_by_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def change_values(path: Path, change: Callable[[Any], Any]) -> None:
    """Replace each value of a JSON file or of its lines, or each array."""

    def visit(value: Any) -> Any:  # noqa: ANN401
        if isinstance(value, dict):
            return {key: visit(entry) for key, entry in value.items()}
        return change(value)

    if path.suffix == ".npz":
        with np.load(path) as arrays:
            changed = {name: change(arrays[name]) for name in arrays.files}
        np.savez(path, **changed)
    elif path.suffix in (".json", ".jsonl"):
        lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
        path.write_text("\n".join(json.dumps(visit(json.loads(line))) for line in lines))
    else:
        path.write_bytes(b"\xff" + path.read_bytes())


def other_type(value: Any) -> Any:  # noqa: ANN401
    if isinstance(value, np.ndarray):
        return np.array(["a", "b"])
    return [1.5] if isinstance(value, str) else "x"


def no_value(value: Any) -> Any:  # noqa: ANN401
    return np.full_like(value, np.nan) if isinstance(value, np.ndarray) else None


def below_range(value: Any) -> Any:  # noqa: ANN401
    if isinstance(value, np.ndarray):
        return np.zeros((2, 3, 3, 3, 3), int)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return -7 if is_number else value


def keep_the_first_epoch(path: Path) -> None:
    """Leave out everything but the first entry."""
    if path.suffix == ".npz":
        change_values(path, lambda array: array[:1])
    elif path.suffix == ".json":
        values = json.loads(path.read_text())
        path.write_text(json.dumps(dict(list(values.items())[:1])))
    else:
        path.write_bytes(path.read_bytes().splitlines(keepends=True)[0])


def make_huge(path: Path) -> None:
    """Let the file claim gigabytes, without writing them."""
    if path.suffix == ".npz":
        make_bomb(path)
    else:
        with path.open("r+b") as file:
            file.truncate(HUGE)


def make_bomb(path: Path) -> None:
    """Write an archive whose headers claim 12 GB of zeros; only 1 MB of them is there."""
    header, shape = io.BytesIO(), (HUGE,)
    values = {"descr": "<f4", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, values)
    content = header.getvalue() + bytes(2**20)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("priors.npy", content)
    size = len(content).to_bytes(4, "little")
    path.write_bytes(path.read_bytes().replace(size, (2**32 - 2**20).to_bytes(4, "little")))


DAMAGES: dict[str, Callable[[Path], object]] = {
    "cut": cut,
    "empty": lambda path: path.write_bytes(b""),
    "binary": lambda path: path.write_bytes(bytes(range(256)) * 4),
    "list": lambda path: path.write_bytes(b"[]"),
    "null": lambda path: path.write_bytes(b"null"),
    "number": lambda path: path.write_bytes(b"3"),
    "word": lambda path: path.write_bytes(b'"word"'),
    "nested": lambda path: path.write_bytes(b"[" * 100_000),
    "folder": replace_by_a_folder,
    "other types": lambda path: change_values(path, other_type),
    "no values": lambda path: change_values(path, no_value),
    "below range": lambda path: change_values(path, below_range),
    "one epoch": keep_the_first_epoch,
    "huge": make_huge,
}
