"""The files of a run other than its checkpoints: experiment, environment, metrics, memory."""

import errno
import io
import json
import os
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from associative_transformer.experiment import (
    Experiment,
    differences,
    load_experiment,
    save_experiment,
)
from associative_transformer.files import make_folder, write_file
from associative_transformer.interface import UserError
from associative_transformer.runs.environment import describe_environment, write_environment
from associative_transformer.runs.lock import LOCK


@dataclass
class History:
    """The measurements of a run, with one entry per epoch."""

    metrics: list[dict[str, Any]] = field(default_factory=list)
    """Rows of `metrics.jsonl`; values that depend on the clock are under the key `timing`."""
    memory: list[Float[np.ndarray, "..."]] = field(default_factory=list)
    """Priors (L, M, D) of all layers after each epoch, for `memory.npz`; empty arrays for a model
    without memory."""

    @classmethod
    def read(cls, folder: Path, epochs: int | None) -> "History":
        """Read the first `epochs` entries, or all entries of an unfinished run if None.

        Raises UserError if the files are damaged.
        """
        is_new = epochs is None and not (folder / "metrics.jsonl").exists()
        if epochs == 0 or is_new:  # there may be no files yet
            return cls()
        try:
            rows = (folder / "metrics.jsonl").read_text().splitlines()[:epochs]
            with np.load(folder / "memory.npz") as saved:
                memory = list(saved["priors"][:epochs])
            metrics = [json.loads(row) for row in rows]
            length = min(len(metrics), len(memory))  # one file is written before the other
            if epochs is not None and length < epochs:
                raise ValueError(f"it ends before epoch {epochs}")
            return cls(metrics[:length], memory[:length])
        except Exception as error:  # reading damaged files may raise almost anything
            raise UserError(
                f"the history of the run in {folder} is damaged ({error}): "
                "start again with --overwrite"
            ) from error

    def write(self, folder: Path) -> None:
        """Write both files, each atomically."""
        rows = "".join(json.dumps(row) + "\n" for row in self.metrics)
        write_file(folder / "metrics.jsonl", rows.encode())
        buffer = io.BytesIO()
        np.savez(buffer, priors=np.array(self.memory))
        write_file(folder / "memory.npz", buffer.getvalue())


def check_folder(folder: Path, experiment: Experiment, resume: bool, overwrite: bool) -> None:
    """Check that a run may start or continue in a folder, before anything is written.

    Raises UserError if the folder exists but neither `resume` nor `overwrite` is set, or if both
    are; if it contains no run to resume, or one with a different configuration; or if `overwrite`
    would remove a folder that is not a run folder.
    """
    is_run = (folder / "experiment.yaml").exists()
    if resume and overwrite:
        raise UserError("--resume and --overwrite exclude each other: pass only one of them")
    if resume:
        if not is_run:
            raise UserError(f"there is no run in {folder} to resume: remove --resume")
        check_links(folder)
        saved = load_experiment(folder / "experiment.yaml")
        changed = differences(experiment, saved)
        if experiment.train.seed != saved.train.seed:
            changed["train.seed"] = (experiment.train.seed, saved.train.seed)
        if changed:
            fields = [
                f"{name} ({mine} here, {theirs} there)" for name, (mine, theirs) in changed.items()
            ]
            raise UserError(
                f"the run in {folder} has a different configuration: {', '.join(fields)}; "
                "pass the values that it was started with, or choose another --name"
            )
    elif not folder.exists() or (folder.is_dir() and _is_empty(folder)):
        return
    elif not overwrite:
        raise UserError(
            f"{folder} exists: pass --resume to continue it or --overwrite to start again"
        )
    elif not is_run:
        raise UserError(
            f"{folder} is not a run folder, so --overwrite does not remove it: move it elsewhere "
            "or choose another --name"
        )


def _is_empty(folder: Path) -> bool:
    """Return whether a folder is empty, apart from the files of a run killed at its start."""
    return {path.name for path in folder.iterdir()} <= {LOCK, ".experiment.yaml.partial"}


def check_links(folder: Path) -> None:
    """Raise UserError if a folder in a run folder is a link, since writes would follow it.

    Links to files are allowed: reading follows them and writing replaces them.
    """
    for parent, subfolders, _ in os.walk(folder):
        for path in (Path(parent) / name for name in subfolders):
            if path.is_symlink():
                raise UserError(
                    f"{path} is a link out of the run folder: replace it with a folder"
                )


def prepare_folder(
    folder: Path, experiment: Experiment, device: torch.device, resume: bool
) -> None:
    """Create the run folder and its first files; remove an earlier run unless it is resumed."""
    make_folder(folder)
    if not resume:
        _clear(folder)
    save_experiment(experiment, folder / "experiment.yaml")
    write_environment(folder, describe_environment(device))
    if resume and not any(
        (folder / "checkpoint" / name).exists() for name in ("last", "previous")
    ):
        print(f"{folder} has no checkpoint yet: starting from the first step", file=sys.stderr)


def _clear(folder: Path) -> None:
    """Remove the files of a run, its result first; keep `experiment.yaml`, which is replaced next.

    If the process is killed in between, the folder can therefore still be overwritten as a run.
    """
    try:
        if folder.is_symlink():
            raise OSError(errno.EEXIST, "it is a link")
        for path in sorted(folder.iterdir(), key=lambda path: path.name != "result.json"):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path.name not in (LOCK, "experiment.yaml"):
                path.unlink()
    except OSError as error:
        raise UserError(f"cannot replace {folder}: {error.strerror or error}") from error
