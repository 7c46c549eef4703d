"""An experiment: the configuration of data, model and training, saved as YAML next to its results.

The fingerprint of an experiment identifies its configuration: a recipe with overrides is named
RECIPE+FINGERPRINT.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config

from associative_transformer.arguments import image_shape
from associative_transformer.compute import CompileSetting, read_flag
from associative_transformer.data import DataConfig, DataSet, ImagesConfig
from associative_transformer.data.augment import RAW
from associative_transformer.files import first_error, read_file, write_file
from associative_transformer.interface import ADDED_LATER, UserError
from associative_transformer.models import ModelConfig
from associative_transformer.optimization import Optimization, require

MAX_FILE = 2**20  # bytes of a saved experiment; the largest has a few thousand
MAX_SHOWN = 40  # characters of a value in an error
MAX_NAME = 200  # bytes; file systems allow 255, and overrides append a fingerprint


@dataclass(frozen=True)
class TrainConfig(Optimization):
    """Configuration of a training run; the defaults are the paper's."""

    seed: int = 0
    """Seed for weights, batch order, augmentation and dropout."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """bfloat16 means autocast; auto uses it if the hardware has instructions for it."""
    compile: CompileSetting = "auto"
    """Compile the model with torch.compile; auto does so if that saves time within the run."""
    checkpoint_every: int | None = None
    """Optimizer steps between checkpoints, in addition to the one after each epoch."""
    log_every: int = 50
    """Optimizer steps between updates of the progress bar and the tracker."""
    tracker: Literal["none", "tensorboard", "wandb", "mlflow"] = "none"
    """Experiment tracker; must be installed."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto uses a GPU if there is one."""
    detect_anomaly: bool = False
    """Stop at the first value that is not finite and name the operation that produced it; slow."""

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "compile", read_flag(self.compile))
        require(self.log_every >= 1, "log_every", "at least 1", self.log_every)
        require(0 <= self.seed < 2**63, "seed", "at least 0 and below 2**63", self.seed)
        every = self.checkpoint_every
        require(every is None or every >= 1, "checkpoint_every", "at least 1", every)
        if self.compile == "on" and self.detect_anomaly:
            raise ValueError("detect_anomaly cannot inspect a compiled model: set compile to off")


@with_config(ConfigDict(extra="forbid"))
@dataclass(frozen=True)
class Experiment:
    """A data set, a model, and how to train it."""

    name: str
    """Name of the recipe and of the run folder."""
    data: DataConfig
    """The data set."""
    model: ModelConfig
    """The model."""
    train: TrainConfig
    """How to train."""
    init: str | None = field(default=None, metadata=ADDED_LATER)
    """Start from the weights of a run, of a saved model (a folder or a name on the Hugging Face
    hub), or of a checkpoint of the official code; None: draw them at random."""

    def __post_init__(self) -> None:
        if not is_folder_name(self.name):
            raise ValueError(f"name must be a valid folder name, not {self.name!r}")
        model = self.model
        size, channels, question_dim = self.data.input_size
        if (size, channels) != (model.image_size, model.num_channels):
            wanted = f"{model.num_channels} of {'x'.join(map(str, image_shape(model.image_size)))}"
            raise ValueError(
                f"the images have {channels} channels of {size}x{size} pixels, but the model "
                f"expects {wanted}: change data or model"
            )
        expected = getattr(model, "question_dim", None)
        if question_dim and expected is None:
            raise ValueError(
                f"a model of kind {model.kind} cannot answer questions: choose another model"
            )
        if question_dim != (expected or 0):
            actual = f"questions of {question_dim} features" if question_dim else "no questions"
            raise ValueError(
                f"model.question_dim is {expected}, but the data has {actual}: set it to "
                f"{question_dim}"
            )
        if self.train.freeze == "backbone" and self.init is None:
            raise ValueError("train.freeze backbone would keep random weights: pass --init SOURCE")
        mean, takes_pixels = self.data.mean, getattr(model, "takes_pixels", False)
        if takes_pixels and mean != "auto" and (any(mean) or set(self.data.std) != {1}):
            raise ValueError(
                f"a model of kind {model.kind} expects pixels from 0 to 1, not normalized ones: "
                "set data.mean to 0 and data.std to 1 for each channel"
            )


# Fields that do not identify the configuration: the seed, data storage, and machine settings.
_CIRCUMSTANCES = {
    "data.source",
    "data.splits.validation",
    "data.measured",
    "data.measured.mean",
    "data.measured.std",
    "data.num_workers",
    "data.memory_budget",
    "train.seed",
    "train.checkpoint_every",
    "train.log_every",
    "train.tracker",
    "train.device",
    "train.detect_anomaly",
}

_ADAPTER: TypeAdapter[Experiment] = TypeAdapter(Experiment)


def load_data(experiment: Experiment, device: torch.device, is_resumed: bool) -> DataSet:
    """Load the data set of a run.

    A new run may compute the normalization, except for a model that takes pixels from 0 to 1.
    """
    data = experiment.data
    if is_resumed:
        return data.load(device)
    if getattr(experiment.model, "takes_pixels", False) and isinstance(data, ImagesConfig):
        return (replace(data, measured=RAW) if data.mean == "auto" else data).load(device)
    return data.load_for_new_run(device)


def list_fields(experiment: Experiment) -> dict[str, object]:
    """Return the values of all fields by dotted name, tuples as lists."""
    return dict(_flatten(experiment, nested_fields(experiment), omit_added=False))


def is_circumstance(name: str) -> bool:
    """Return whether a field, by dotted name, does not identify the configuration."""
    return name in _CIRCUMSTANCES


def identifying_fields(experiment: Experiment) -> dict[str, object]:
    """Return the fields that identify the configuration, by dotted name.

    These are all fields except circumstances, such as the seed or the device, and fields that
    were added after version 0.1 (see `ADDED_LATER`) and have their default values.
    """
    leaves = _flatten(experiment, nested_fields(experiment), omit_added=True)
    values = {name: value for name, value in leaves if name not in _CIRCUMSTANCES}
    values["train.compile"] = values["train.compile"] == "on"  # a flag in version 0.1
    return values


def differences(mine: Experiment, other: Experiment) -> dict[str, tuple[object, object]]:
    """Return the fields in which two experiments differ, each with both values.

    Circumstances are ignored. The value of a field that an experiment does not have is None.
    """
    a, b = (list_fields(each) | identifying_fields(each) for each in (mine, other))
    names = sorted(identifying_fields(mine).keys() | identifying_fields(other).keys())
    pairs = {name: (a.get(name), b.get(name)) for name in names}
    return {name: values for name, values in pairs.items() if values[0] != values[1]}


def fingerprint(experiment: Experiment) -> str:
    """Return eight hexadecimal digits that identify the configuration."""
    values = json.dumps(identifying_fields(experiment), sort_keys=True)
    return hashlib.sha256(values.encode()).hexdigest()[:8]


def nested_fields(experiment: Experiment) -> dict[str, Any]:
    """Return the values of all fields, nested as in `experiment.yaml`."""
    return _ADAPTER.dump_python(experiment, mode="json")


def format_experiment(experiment: Experiment) -> str:
    """Return the experiment as YAML."""
    return yaml.safe_dump(nested_fields(experiment), sort_keys=False)


def save_experiment(experiment: Experiment, path: Path) -> None:
    """Write the experiment as YAML."""
    write_file(path, format_experiment(experiment).encode())


def load_experiment(path: Path) -> Experiment:
    """Read an experiment that `save_experiment` has written.

    Fields that version 0.1 did not have get their default values. Raises UserError if the file is
    missing, not valid YAML or cut off, or has an unknown field or an invalid value.
    """
    try:
        saved = read_yaml(path)
    except FileNotFoundError:
        raise UserError(f"{path} is missing: {path.parent} is not a run folder") from None
    experiment = parse_experiment(saved, str(path))
    for name, _ in _flatten(experiment, nested_fields(experiment), omit_added=True):
        if not _has_field(saved, name):
            raise UserError(f"{path} was cut off: it has no {name}; copy it again from the source")
    return experiment


def _has_field(saved: object, name: str) -> bool:
    for part in name.split("."):
        if not isinstance(saved, dict) or part not in saved:
            return False
        saved = saved[part]
    return True


def read_yaml(path: Path) -> object:
    """Return the content of a YAML file.

    Raises FileNotFoundError if there is none, and UserError if it cannot be read, is not valid
    YAML or has a key twice.
    """
    try:
        text = read_file(path, MAX_FILE).decode()
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(path) from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:  # too large, or not in UTF-8
        raise UserError(f"{path} is not valid YAML: {error}") from None
    try:
        return _UniqueKeys(text).get_single_data()
    except Exception as error:  # odd dates, numbers or nesting can raise nearly anything
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None


class _UniqueKeys(yaml.SafeLoader):
    """A safe loader that does not silently drop the first of two equal keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for key, count in Counter(keys).items():
            if count > 1:
                line = node.start_mark.line + 1
                raise ValueError(f"the mapping at line {line} has the key {key!r} twice")
        return super().construct_mapping(node, deep)


def parse_experiment(saved: object, where: str) -> Experiment:
    """Return the experiment with nested values. Raises UserError, which starts with `where`."""
    try:
        return _ADAPTER.validate_python(saved)
    except ValidationError as error:
        raise UserError(f"{where}: {first_error(error)}{_describe_input(error)}") from None


def _describe_input(error: ValidationError) -> str:
    """Return the value of the first error, unless the message names it or it is a long one."""
    first = error.errors()[0]
    value, is_named = first["input"], first["type"] in ("value_error", "missing")
    if is_named or not isinstance(value, int | float | str | None) or len(str(value)) > MAX_SHOWN:
        return ""
    return f", not {value!r}"


def is_folder_name(name: str) -> bool:
    """Return whether the name is printable, short enough, and a single part of a path."""
    if not name.isprintable() or name.strip() in {"", ".", ".."} or {"/", "\\"} & set(name):
        return False
    return len(name.encode()) <= MAX_NAME


def _flatten(
    config: Any,  # noqa: ANN401
    saved: dict[str, Any],
    omit_added: bool,
    prefix: str = "",
) -> Iterator[tuple[str, object]]:
    """Yield the dotted name and saved value of each field, including those of nested configs."""
    for item in fields(config):
        name, value = f"{prefix}{item.name}", getattr(config, item.name)
        if omit_added and item.metadata == ADDED_LATER and value == _default_of(item):
            continue
        if is_dataclass(value):
            yield from _flatten(value, saved[item.name], omit_added, f"{name}.")
        else:
            yield name, saved[item.name]


def _default_of(item: Field[Any]) -> object:
    return item.default if item.default_factory is MISSING else item.default_factory()
