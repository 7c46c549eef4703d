"""One experiment: what is trained on what and how; saved beside its results as YAML.

An experiment that is not its recipe any more carries the fingerprint of its fields in its name.
"""

import hashlib
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config

from associative_transformer.data import DataConfig, input_size
from associative_transformer.files import write_file
from associative_transformer.interface import UserError
from associative_transformer.models import ModelConfig

MAX_NAME = 200  # bytes; a file system takes 255, and a run with overrides adds a few


@dataclass(frozen=True)
class Schedule:
    """Learning rate per epoch: a warm-up, then a decay."""

    warmup_epochs: int = 5
    """Epochs of the warm-up."""
    warmup_lr: float = 1e-5
    """Learning rate of the first epoch of the warm-up."""
    min_lr: float = 1e-6
    """Floor of a cosine."""
    shape: Literal["cosine", "inverse_sqrt", "one_cycle"] = "cosine"
    """cosine: linear warm-up, then a cosine as long as all epochs, as in the official code;
    inverse_sqrt: linear warm-up, then falling with the square root of the epoch; one_cycle: a
    cosine up, then one down to the last epoch."""

    def __post_init__(self) -> None:
        for name in ("warmup_epochs", "warmup_lr", "min_lr"):
            value = getattr(self, name)
            _require(0 <= value < math.inf, name, "0 or more", value)


@dataclass(frozen=True)
class Optimization:
    """How the weights are moved; the defaults are the paper's recipe."""

    epochs: int = 100
    """Passes over the training images."""
    batch_size: int = 512
    """Images per optimizer step, over all devices and accumulation steps."""
    lr: float = 1e-4
    """Learning rate after the warm-up."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of AdamW's two moments."""
    weight_decay: float = 0.01
    """Decoupled weight decay, on all parameters."""
    schedule: Schedule = field(default_factory=Schedule)
    """Learning rate over the epochs."""
    clip_norm: float | None = None
    """Largest norm of the whole gradient; None: no clipping."""
    accumulation_steps: int = 1
    """Micro-batches per optimizer step; each is a pool of its own and moves the memory once."""


@dataclass(frozen=True)
class TrainConfig(Optimization):
    """How to train; the defaults are the paper's recipe."""

    seed: int = 0
    """Seed of weights, order, augmentation and dropout."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """bfloat16 is autocast; auto takes it on a GPU that supports it."""
    compile: bool = False
    """Compile the model with torch.compile."""
    checkpoint_every: int | None = None
    """Optimizer steps between checkpoints, beside the one after each epoch."""
    log_every: int = 50
    """Optimizer steps between updates of progress and tracker."""
    tracker: Literal["none", "tensorboard", "wandb", "mlflow"] = "none"
    """Experiment tracker; it has to be installed."""
    device: Literal["auto", "cpu"] = "auto"
    """auto takes a GPU where there is one."""
    detect_anomaly: bool = False
    """Name the operation behind the first number that is not finite and stop; slow."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "accumulation_steps", "log_every"):
            _require(getattr(self, name) >= 1, name, "at least 1", getattr(self, name))
        _require(0 < self.lr < math.inf, "lr", "positive", self.lr)
        _require(0 <= self.weight_decay < math.inf, "weight_decay", "0 or more", self.weight_decay)
        _require(all(0 <= b < 1 for b in self.betas), "betas", "in [0, 1)", self.betas)
        _require(0 <= self.seed < 2**63, "seed", "at least 0 and below 2**63", self.seed)
        _require(
            self.clip_norm is None or self.clip_norm > 0, "clip_norm", "positive", self.clip_norm
        )
        every = self.checkpoint_every
        _require(every is None or every >= 1, "checkpoint_every", "at least 1", every)
        if self.compile and self.detect_anomaly:
            raise ValueError("detect_anomaly can't look into a compiled model: leave out one")
        if self.batch_size % self.accumulation_steps:
            raise ValueError(
                f"batch_size {self.batch_size} can't be split into accumulation_steps "
                f"{self.accumulation_steps} equal micro-batches"
            )


@with_config(ConfigDict(extra="forbid"))
@dataclass(frozen=True)
class Experiment:
    """What is trained on what and how."""

    name: str
    """Name of the recipe, and of the run folder."""
    data: DataConfig
    """The data set."""
    model: ModelConfig
    """The model."""
    train: TrainConfig
    """How to train."""

    def __post_init__(self) -> None:
        if not _names_a_folder(self.name):
            raise ValueError(f"name must be usable as a folder name, not {self.name!r}")
        data, model = input_size(self.data), self.model
        size, channels, question_dim = data
        if (size, channels) != (model.image_size, model.num_channels):
            raise ValueError(
                f"the images have {channels} channels of {size}x{size} pixels but the model wants "
                f"{model.num_channels} of {model.image_size}x{model.image_size}: change "
                "data or model so that they agree"
            )
        takes = getattr(model, "question_dim", None)
        if question_dim and takes is None:
            raise ValueError(f"a model of kind {model.kind} takes no questions: choose another")
        if question_dim != (takes or 0):
            come = f"with questions of {question_dim} features" if question_dim else "without any"
            raise ValueError(
                f"model.question_dim is {takes} but the images come {come}: "
                f"set it to {question_dim}"
            )
        if getattr(model, "takes_pixels", False) and (
            any(self.data.mean) or set(self.data.std) != {1}
        ):
            raise ValueError(
                f"a model of kind {model.kind} takes pixels from 0 to 1, not normalized ones: "
                "set data.mean to 0 and data.std to 1 for each channel"
            )


# Where the data lies and how fast the machine works: no part of what the experiment is.
_CIRCUMSTANCES = {
    "data": {"source", "num_workers", "memory_budget"},
    "train": {"seed", "checkpoint_every", "log_every", "tracker", "device", "detect_anomaly"},
}

_ADAPTER: TypeAdapter[Experiment] = TypeAdapter(Experiment)


def fields_of(experiment: Experiment) -> dict[str, object]:
    """List the fields that make the experiment what it is, by dotted name."""
    saved = _ADAPTER.dump_python(experiment, mode="json")
    for part, names in _CIRCUMSTANCES.items():
        saved[part] = {key: value for key, value in saved[part].items() if key not in names}
    return _flatten(saved)


def differences(mine: Experiment, theirs: Experiment) -> dict[str, tuple[object, object]]:
    """Name the fields in which two experiments differ, with my value and theirs."""
    a, b = fields_of(mine), fields_of(theirs)
    both = {name: (a.get(name), b.get(name)) for name in sorted(a.keys() | b.keys())}
    return {name: values for name, values in both.items() if values[0] != values[1]}


def fingerprint(experiment: Experiment) -> str:
    """Give eight characters that change whenever the experiment does."""
    fields = json.dumps(fields_of(experiment), sort_keys=True)
    return hashlib.sha256(fields.encode()).hexdigest()[:8]


def save_experiment(experiment: Experiment, path: Path) -> None:
    """Write the experiment as YAML."""
    saved = _ADAPTER.dump_python(experiment, mode="json")
    write_file(path, yaml.safe_dump(saved, sort_keys=False).encode())


def load_experiment(path: Path) -> Experiment:
    """Read an experiment back, strictly.

    Raises UserError where the file is missing, or has an unknown field or a wrong value.
    """
    try:
        text = path.read_text()
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{path} is missing: {path.parent} is no run folder") from None
    except OSError as error:
        raise UserError(f"can't read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no YAML: {error}") from None
    try:
        saved = yaml.safe_load(text)
    except Exception as error:  # odd dates, numbers and depths make yaml raise nearly anything
        raise UserError(f"{path} is no YAML: {error}") from None
    try:
        return _ADAPTER.validate_python(saved)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "it"
        raise UserError(f"{path}: {where}: {first['msg']}") from None


def _names_a_folder(name: str) -> bool:
    """Say whether a folder of that name can be made here and on other machines."""
    if not name.isprintable() or name.strip() in {"", ".", ".."} or {"/", "\\"} & set(name):
        return False
    return len(name.encode()) <= MAX_NAME


def _require(holds: bool, name: str, wanted: str, value: object) -> None:
    if not holds:
        raise ValueError(f"{name} must be {wanted}, not {value}")


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        flat |= _flatten(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return flat
