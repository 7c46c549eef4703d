"""The files of a run beside its checkpoints: experiment, environment, metrics, memory."""

import errno
import io
import json
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float

from associative_transformer.data import HeldOut, ImagesConfig, load_test
from associative_transformer.experiment import (
    Experiment,
    differences,
    load_experiment,
    save_experiment,
    write_file,
)
from associative_transformer.interface import UserError
from associative_transformer.lock import LOCK
from associative_transformer.models import load_model
from associative_transformer.pretrained import PretrainedModel


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


def open_folder(folder: Path, experiment: Experiment, device: torch.device, resume: bool) -> None:
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


def read_result(folder: Path) -> dict[str, Any] | None:
    """Read what a complete run has reached; None where it is not complete yet.

    Raises UserError where the file is damaged.
    """
    path = folder / "result.json"
    if not path.exists():
        return None
    try:
        result = json.loads(path.read_text())
        if not isinstance(result, dict):
            raise ValueError("it holds no result")
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{path} is damaged ({error}): remove it, and --resume writes it again"
        ) from error
    return result


class SavedRun(NamedTuple):
    """A complete run, read back."""

    experiment: Experiment
    model: PretrainedModel
    classes: tuple[str, ...]


def load_run(folder: Path) -> SavedRun:
    """Read a complete run back, its model in evaluation mode.

    Raises UserError where the folder holds no run, or one that is not complete or damaged, or a
    link in the place of a folder.
    """
    seeds = sorted(path.parent.name for path in folder.glob("*/experiment.yaml"))
    if seeds:
        raise UserError(f"{folder} holds the runs {', '.join(seeds)}: pass {folder / seeds[0]}")
    experiment = load_experiment(folder / "experiment.yaml")
    if not (folder / "result.json").exists():
        raise UserError(f"the run in {folder} is not complete: finish it with --resume")
    check_links(folder)
    try:
        model = load_model(folder)
        if model.config != experiment.model:
            raise ValueError("config.json and experiment.yaml describe different models")
        return SavedRun(experiment, model, _read_classes(folder, experiment.model.num_classes))
    except Exception as error:  # damaged files make their readers raise nearly anything
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(
            f"the run in {folder} is damaged ({reason}): train it again with --overwrite"
        ) from error


def _read_classes(folder: Path, num_classes: int) -> tuple[str, ...]:
    classes = json.loads((folder / "result.json").read_text())["classes"]
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise ValueError("the classes in result.json are no list of names")
    if len(classes) != num_classes:
        raise ValueError(f"result.json has {len(classes)} classes, the model {num_classes}")
    return tuple(classes)


def load_test_of(run: SavedRun, source: str | None, device: torch.device) -> HeldOut:
    """Open the test split of a run, from `source` where its images have moved there.

    Raises UserError where the data is generated and has no source, or has other classes.
    """
    config = run.experiment.data
    if source is not None:
        if not isinstance(config, ImagesConfig):
            raise UserError(f"{config.kind} is generated and has no source: leave --source out")
        config = replace(config, source=source)
    data = load_test(config, device)
    if data.class_names != run.classes:
        raise UserError(
            f"the run knows the classes {', '.join(run.classes)} but the data has the classes "
            f"{', '.join(data.class_names)}: pass a --source with those of the run"
        )
    return data


def describe_environment(device: torch.device) -> dict[str, object]:
    """Collect what another person needs to repeat the run: versions, device, commit."""
    packages = (
        "associative-transformer",
        "torch",
        "torchvision",
        "numpy",
        "accelerate",
        "datasets",
    )
    on_gpu = device.type == "cuda"
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: find_version(name) for name in packages},
        "device": torch.cuda.get_device_name(device) if on_gpu else platform.machine(),
        "cuda": torch.version.cuda if on_gpu else None,
        "threads": torch.get_num_threads(),
        "commit": find_commit(),
    }


def find_version(package: str) -> str | None:
    """Give the version of a package; None where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def find_commit() -> str | None:
    """Give the commit of the source tree, with `+changes` where it was edited since."""
    here = Path(__file__).parent
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(here), *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, check=True, env=environment
        ).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)  # an installed copy is not tracked
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", ".") else "")
    except (OSError, subprocess.CalledProcessError):
        return None
