"""The files of a run beside its checkpoints: experiment, environment, metrics, memory."""

import io
import json
import os
import platform
import shutil
import subprocess
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from safetensors import SafetensorError

from associative_transformer.data import HeldOut, ImagesConfig, load_test
from associative_transformer.experiment import (
    Experiment,
    differences,
    load_experiment,
    save_experiment,
    write_file,
)
from associative_transformer.interface import UserError
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
    def read(cls, folder: Path, epochs: int) -> "History":
        """Read the first `epochs` entries. Raises UserError where the files are damaged."""
        if epochs == 0:  # there may be no files yet
            return cls()
        try:
            rows = (folder / "metrics.jsonl").read_text().splitlines()[:epochs]
            with np.load(folder / "memory.npz") as saved:
                return cls([json.loads(row) for row in rows], list(saved["priors"][:epochs]))
        except (OSError, ValueError, KeyError) as error:
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
    elif not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    elif not overwrite:
        raise UserError(f"{folder} exists: go on with --resume or start again with --overwrite")
    elif not is_run:
        raise UserError(f"{folder} is no run folder, so --overwrite leaves it alone: move it away")


def open_folder(folder: Path, experiment: Experiment, device: torch.device, resume: bool) -> None:
    """Make the run folder, in the place of an older run unless it is resumed."""
    try:
        if folder.exists() and not resume:
            shutil.rmtree(folder)
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"can't make the run folder {folder}: {error.strerror or error}"
        ) from error
    save_experiment(experiment, folder / "experiment.yaml")
    environment = json.dumps(describe_environment(device), indent=2)
    write_file(folder / "environment.json", environment.encode())


class SavedRun(NamedTuple):
    """A complete run, read back."""

    experiment: Experiment
    model: PretrainedModel
    classes: tuple[str, ...]


def load_run(folder: Path) -> SavedRun:
    """Read a complete run back, its model in evaluation mode.

    Raises UserError where the folder holds no run, or one that is not complete or damaged.
    """
    seeds = sorted(path.parent.name for path in folder.glob("*/experiment.yaml"))
    if seeds:
        raise UserError(f"{folder} holds the runs {', '.join(seeds)}: pass {folder / seeds[0]}")
    experiment = load_experiment(folder / "experiment.yaml")
    if not (folder / "result.json").exists():
        raise UserError(f"the run in {folder} is not complete: finish it with --resume")
    try:
        classes = json.loads((folder / "result.json").read_text())["classes"]
        return SavedRun(experiment, load_model(folder), tuple(classes))
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"the run in {folder} is damaged ({reason}): train it again with --overwrite"
        ) from error


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
        "packages": {name: _version(name) for name in packages},
        "device": torch.cuda.get_device_name(device) if on_gpu else platform.machine(),
        "cuda": torch.version.cuda if on_gpu else None,
        "threads": torch.get_num_threads(),
        "commit": _commit(),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
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
