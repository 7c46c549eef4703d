"""The weights that a run starts from (`--init`), and the record of what became of them."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import save
from torch import nn

from associative_transformer.experiment import Experiment
from associative_transformer.files import write_file
from associative_transformer.interface import UserError
from associative_transformer.models import load_model
from associative_transformer.models.initialize import Initialization, initialize
from associative_transformer.models.official import load_official
from associative_transformer.models.pretrained import PretrainedModel
from associative_transformer.runs.reading import exists, has_checkpoint, read_json
from associative_transformer.runs.saved import SavedRun, load_run_or_model

INITIALIZATION = "initialization.json"
NESTED = ("state_dict", "model", "net")
"""Keys under which checkpoints of the official code may hold their weights."""


@dataclass(frozen=True)
class InitialWeights:
    """The source of the initial weights of a run, and what became of each of them."""

    source: str
    """The value of `--init`."""
    digest: str
    """SHA-256 of the names and values of the source's weights."""
    weights: Initialization
    """Which weights were loaded, resized, adapted, newly initialized and not used."""

    def describe(self) -> str:
        """Return a short table."""
        return f"initial weights from {self.source}\n{self.weights.describe()}"


def initialize_run(
    experiment: Experiment, model: nn.Module, folder: Path, is_resumed: bool
) -> InitialWeights | None:
    """Set the initial weights; return None without `--init` or if a checkpoint replaces them.

    Raises UserError if the source cannot be loaded, shares no weight with the model, does not have
    a weight that would be frozen, or has changed since the run was started.
    """
    if experiment.init is None or (is_resumed and has_checkpoint(folder)):
        return None
    initial = _initialize_from(experiment.init, model)
    missing = [name for name in initial.weights.drawn if not name.startswith("head.")]
    if experiment.train.freeze == "backbone" and missing:
        raise UserError(
            f"--train.freeze backbone would keep random weights, because {initial.source} does "
            f"not have {', '.join(missing)}: choose another --init or another --train.freeze"
        )
    if is_resumed and exists(folder / INITIALIZATION):
        recorded = _read_initialization(folder).digest
        if recorded != initial.digest:
            raise UserError(
                f"--init {initial.source} has changed since the run in {folder} was started: "
                "start again with --overwrite"
            )
    return initial


def load_source(source: str) -> PretrainedModel:
    """Load a run, a saved model (a folder or a name on the hub), or an official checkpoint.

    Raises UserError if there is none, or if it cannot be loaded.
    """
    path = Path(source).expanduser()
    if path.is_file():
        return _load_checkpoint(path)
    if path.is_dir():
        loaded = load_run_or_model(path)
        return loaded.model if isinstance(loaded, SavedRun) else loaded
    return load_model(source)


def write_initialization(folder: Path, initial: InitialWeights | None) -> None:
    """Write `initialization.json`, if there are initial weights."""
    if initial is not None:
        content = {**asdict(initial), "weights": initial.weights._asdict()}
        write_file(folder / INITIALIZATION, (json.dumps(content, indent=2) + "\n").encode())


def _read_initialization(folder: Path) -> InitialWeights:
    try:
        return read_json(folder / INITIALIZATION, InitialWeights)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{folder / INITIALIZATION} is damaged ({error}): start again with --overwrite"
        ) from error


def _initialize_from(source: str, model: nn.Module) -> InitialWeights:
    loaded = load_source(source)
    weights = {name: value.contiguous() for name, value in loaded.state_dict().items()}
    digest = hashlib.sha256(save(weights)).hexdigest()
    try:
        return InitialWeights(source, digest, initialize(model, loaded))
    except UserError as error:
        raise UserError(f"--init {source}: {error}") from error


def _load_checkpoint(path: Path) -> PretrainedModel:
    """Load a checkpoint of the official code without running any code in the file."""
    if path.suffix == ".safetensors":
        raise UserError(f"--init {path} is part of a saved model: pass its folder instead")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # broken files make torch raise almost any error
        raise UserError(
            f"--init {path} is not a checkpoint of the official code that torch can read: pass a "
            "state dict saved with torch.save, a run or the folder of a saved model"
        ) from error
    for key in NESTED:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not (isinstance(content, dict) and all(torch.is_tensor(x) for x in content.values())):
        raise UserError(f"--init {path} does not contain a state dict: save model.state_dict()")
    try:
        return load_official(content)
    except UserError as error:
        raise UserError(f"--init {path}: {error}") from error
