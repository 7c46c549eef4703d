"""The files of a run other than its checkpoints: experiment, environment, metrics, memory."""

import errno
import io
import json
import os
import shutil
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
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
from associative_transformer.runs.lock import LOCK, hold_folder
from associative_transformer.runs.reading import check_row, exists, read_memory, read_rows


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

        Raises UserError if the files are damaged, and PermissionError if they may not be read.
        """
        is_new = epochs is None and not exists(folder / "metrics.jsonl")
        if epochs == 0 or is_new:  # there may be no files yet
            return cls()
        file = "metrics.jsonl"
        try:
            metrics = read_rows(folder / file, epochs)
            file = "memory.npz"
            memory = read_memory(folder / file, epochs)
            length = min(len(metrics), len(memory))  # one file is written before the other
            if epochs is not None and length < epochs:
                file = "metrics.jsonl" if len(metrics) < epochs else file
                raise ValueError(f"it ends before epoch {epochs}")
            return cls(metrics[:length], memory[:length])
        except PermissionError:  # the file may be intact
            raise
        except OSError as error:
            raise damaged_history(folder, file, error.strerror or str(error)) from error
        except ValueError as error:
            raise damaged_history(folder, file, str(error)) from error

    def check(self, folder: Path, epochs: int | None) -> None:
        """Raise UserError if a value that is shown is missing, or one of `epochs` epochs."""
        try:
            for number, row in enumerate(self.metrics, start=1):
                check_row(row, number)
            if epochs is not None and len(self.metrics) < epochs:
                raise ValueError(f"it ends before epoch {epochs}")
        except ValueError as error:
            raise damaged_history(folder, "metrics.jsonl", str(error)) from error

    def write(self, folder: Path) -> None:
        """Write both files, each atomically."""
        rows = "".join(json.dumps(row) + "\n" for row in self.metrics)
        write_file(folder / "metrics.jsonl", rows.encode())
        buffer = io.BytesIO()
        np.savez(buffer, priors=np.array(self.memory))
        write_file(folder / "memory.npz", buffer.getvalue())


def damaged_history(folder: Path, file: str, reason: str) -> UserError:
    """Return the error for a history that cannot be used."""
    return UserError(
        f"the history of the run in {folder} is damaged ({file}: {reason}): copy {file} again "
        "from the original run folder, or train the run again with --overwrite; only reports, "
        "analyses and --resume read it"
    )


def check_folder(folder: Path, experiment: Experiment, resume: bool, overwrite: bool) -> None:
    """Check that a run may start or continue in a folder, before anything is written.

    Raises UserError if the folder exists but neither `resume` nor `overwrite` is set, or if both
    are; if it contains no run to resume, or one with a different configuration; or if it is
    not empty and not a run folder.
    """
    is_run = exists(folder / "experiment.yaml")
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
    elif is_run:
        if not overwrite:
            raise UserError(
                f"{folder} exists: pass --resume to continue it or --overwrite to start again"
            )
    elif exists(folder) and not (folder.is_dir() and _is_empty(folder)):
        raise UserError(
            f"{folder} is not a run folder, so it is not replaced: move it elsewhere or choose "
            "another --name"
        )


def as_recorded(experiment: Experiment, folder: Path, resume: bool) -> Experiment:
    """Return the experiment with what a resumed run has recorded about compilation and its data.

    Version 0.1 recorded no choice of validation images, which were any training images, and no
    computed normalization.
    """
    if not resume:
        return experiment
    recorded_train = load_experiment(folder / "experiment.yaml").train
    train = replace(experiment.train, compile=recorded_train.compile)
    experiment = replace(experiment, train=train)
    splits = getattr(experiment.data, "splits", None)
    if splits is None:
        return experiment
    text = (folder / "experiment.yaml").read_text(encoding="utf-8")
    recorded = yaml.safe_load(text)["data"].get("splits")
    validation = "random" if recorded is None else recorded["validation"]
    data: Any = experiment.data
    saved: Any = load_experiment(folder / "experiment.yaml").data
    data = replace(data, splits=replace(splits, validation=validation), measured=saved.measured)
    return replace(experiment, data=data)


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
    save_experiment(with_absolute_source(experiment), folder / "experiment.yaml")
    write_environment(folder, describe_environment(device))
    if resume and not any(
        (folder / "checkpoint" / name).exists() for name in ("last", "previous")
    ):
        print(f"{folder} has no checkpoint yet: starting from the first step", file=sys.stderr)


def with_absolute_source(experiment: Experiment) -> Experiment:
    """Return an experiment that can be loaded from any working directory."""
    source = experiment.data.source
    if source is None:
        return experiment
    absolute = str(Path(source).expanduser().absolute())
    return replace(experiment, data=experiment.data.with_storage(source=absolute))


def remove_run(folder: Path) -> None:
    """Remove the files of a run, its `experiment.yaml` last. Raises UserError if that fails."""
    with hold_folder(folder):
        _clear(folder)
        (folder / "experiment.yaml").unlink(missing_ok=True)


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
