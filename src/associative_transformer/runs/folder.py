"""The files of a run beside its checkpoints: experiment, environment, metrics, memory."""

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
from associative_transformer.files import write_file
from associative_transformer.interface import UserError
from associative_transformer.runs.environment import describe_environment
from associative_transformer.runs.lock import LOCK


@dataclass
class History:
    """What a run has measured so far, an entry an epoch."""

    metrics: list[dict[str, Any]] = field(default_factory=list)
    """Rows of `metrics.jsonl`; what depends on the clock stands under `timing`."""
    memory: list[Float[np.ndarray, "..."]] = field(default_factory=list)
    """Priors (L, M, D) of all layers after the epoch, in `memory.npz`; empty without any."""

    @classmethod
    def read(cls, folder: Path, epochs: int | None) -> "History":
        """Read the first `epochs` entries; None: as many as a run under way has written.

        Raises UserError where the files are damaged.
        """
        is_new = epochs is None and not (folder / "metrics.jsonl").exists()
        if epochs == 0 or is_new:  # there may be no files yet
            return cls()
        try:
            rows = (folder / "metrics.jsonl").read_text().splitlines()[:epochs]
            with np.load(folder / "memory.npz") as saved:
                read = cls([json.loads(row) for row in rows], list(saved["priors"][:epochs]))
            both = min(len(read.metrics), len(read.memory))  # one is written before the other
            if epochs is not None and both < epochs:
                raise ValueError(f"it ends before epoch {epochs}")
            return cls(read.metrics[:both], read.memory[:both])
        except Exception as error:  # damaged archives make zipfile raise nearly anything
            raise UserError(
                f"the history of the run in {folder} is damaged ({error}): "
                "start again with --overwrite"
            ) from error

    def write(self, folder: Path) -> None:
        """Write both files whole."""
        rows = "".join(json.dumps(row) + "\n" for row in self.metrics)
        write_file(folder / "metrics.jsonl", rows.encode())
        buffer = io.BytesIO()
        np.savez(buffer, priors=np.array(self.memory))
        write_file(folder / "memory.npz", buffer.getvalue())


def check_folder(folder: Path, experiment: Experiment, resume: bool, overwrite: bool) -> None:
    """Check that a run may start or go on in a folder, before anything is written.

    Raises UserError where it exists and neither is asked for, where there is nothing to resume
    or the run there is of another configuration, and where `overwrite` would remove a folder
    that is no run.
    """
    is_run = (folder / "experiment.yaml").exists()
    if resume and overwrite:
        raise UserError("--resume and --overwrite exclude each other: pass one of them")
    if resume:
        if not is_run:
            raise UserError(f"there is no run in {folder} to resume: leave --resume out")
        check_links(folder)
        saved = load_experiment(folder / "experiment.yaml")
        changed = [
            f"{name} ({mine} here, {theirs} there)"
            for name, (mine, theirs) in differences(experiment, saved).items()
        ]
        if experiment.train.seed != saved.train.seed:
            changed.append(f"train.seed ({experiment.train.seed} here, {saved.train.seed} there)")
        if changed:
            raise UserError(
                f"the run in {folder} has another configuration: {', '.join(changed)}; "
                "repeat its fields, or choose another --name"
            )
    elif not folder.exists() or (folder.is_dir() and _is_empty(folder)):
        return
    elif not overwrite:
        raise UserError(f"{folder} exists: go on with --resume or start again with --overwrite")
    elif not is_run:
        raise UserError(f"{folder} is no run folder, so --overwrite leaves it alone: move it away")


def _is_empty(folder: Path) -> bool:
    """Say whether nothing is in a folder but what a run killed at its very start leaves there."""
    return {path.name for path in folder.iterdir()} <= {LOCK, ".experiment.yaml.partial"}


def check_links(folder: Path) -> None:
    """Raise UserError where a folder in a run folder is a link: writing there would leave the run.

    Links to files are read, and replaced where they would be written.
    """
    for parent, inside, _ in os.walk(folder):
        for path in (Path(parent) / name for name in inside):
            if path.is_symlink():
                raise UserError(f"{path} is a link out of the run: put a folder in its place")


def prepare_folder(
    folder: Path, experiment: Experiment, device: torch.device, resume: bool
) -> None:
    """Make the run folder, in the place of an older run unless it is resumed."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not resume:
            _clear(folder)
    except OSError as error:
        raise UserError(
            f"can't make the run folder {folder}: {error.strerror or error}"
        ) from error
    save_experiment(experiment, folder / "experiment.yaml")
    environment = json.dumps(describe_environment(device), indent=2)
    write_file(folder / "environment.json", environment.encode())
    if resume and not any(
        (folder / "checkpoint" / name).exists() for name in ("last", "previous")
    ):
        print(f"{folder} holds no checkpoint yet: starting from the first step", file=sys.stderr)


def _clear(folder: Path) -> None:
    """Remove a run, its result first. Its experiment stays, to be replaced.

    So a kill in the middle leaves what is still a run and can be overwritten again.
    """
    if folder.is_symlink():
        raise OSError(errno.EEXIST, "it is a link")
    for path in sorted(folder.iterdir(), key=lambda path: path.name != "result.json"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name not in (LOCK, "experiment.yaml"):
            path.unlink()
