"""Save and restore a run, so that a resumed run gives the same result as an uninterrupted one.

A checkpoint is a folder with `model.safetensors` (weights and memory), `optimizer.pt` (read with
`weights_only=True`) and `state.json` (position, running sums, and a digest of each file).
"""

import hashlib
import io
import json
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config
from safetensors.torch import load, save
from torch import nn

from associative_transformer.data import DataSet
from associative_transformer.files import first_error, make_folder, read_file, write_file
from associative_transformer.interface import UserError
from associative_transformer.runs.reading import MAX_JSON

WEIGHTS, OPTIMIZER, STATE = "model.safetensors", "optimizer.pt", "state.json"


@with_config(ConfigDict(extra="forbid"))
@dataclass
class TrainingState:
    """The position and the running totals of a run; saved in every checkpoint."""

    epoch: int = 0  # the current epoch, from 0
    step: int = 0  # optimizer steps done in this epoch
    sums: list[float] = field(default_factory=list)  # `Sums` of these steps; empty: none yet
    skipped_steps: int = 0
    bad_steps: int = 0  # skipped in a row
    best_epoch: int | None = None  # from 1
    best_accuracy: float = -1.0  # percent of the validation images
    best_score: float | None = None  # of that epoch by train.stopping.best_by; higher is better
    reference: float | None = None  # the score that an epoch must exceed to count as progress
    stale_epochs: int = 0  # in a row that did not
    best_digest: str = ""  # of the weights in checkpoint/best
    data: str = ""  # digest of the data set
    precision: str = ""  # float32 or bfloat16
    compiled: bool | None = None  # None: not decided, as in version 0.1
    pools: int = 1  # pools of tokens; more than one if nodes or processes have their own
    health: list[dict[str, float | None]] = field(default_factory=list)  # of each layer's memory
    collapsed: list[int] = field(default_factory=list)  # layers, from 1, that were reported
    timing: dict[str, float] = field(default_factory=lambda: {"epoch": 0.0, "run": 0.0})

    def check_resumable(self, current: "TrainingState", folder: Path, data: DataSet) -> None:
        """Raise UserError if a process with this state and data cannot continue this run."""
        if self.data != data.digest_like(self.data):
            raise UserError(
                f"the run in {folder} was trained on different data with the same name: "
                "pass the same --data.source, or use the same version of this package"
            )
        if self.pools != current.pools:
            raise UserError(
                f"the run in {folder} was trained with {self.pools} pools of tokens, but these "
                f"processes have {current.pools}: resume it on the same number of nodes or "
                "processes"
            )


@runtime_checkable
class Stateful(Protocol):
    """An optimizer, or a training step with more than that: what a checkpoint saves and loads."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any], /) -> object: ...


def save_checkpoint(
    folder: Path, model: nn.Module, optimizer: Stateful, state: dict[str, Any]
) -> None:
    """Save a checkpoint as `folder/last`, after renaming the old one to `folder/previous`.

    A crash at any moment leaves at least one of the two complete. Raises UserError if the disk is
    full or cannot be written; the last complete checkpoint is then kept.
    """
    buffer = io.BytesIO()
    torch.save(optimizer.state_dict(), buffer)
    files = {WEIGHTS: save(_contiguous(model.state_dict())), OPTIMIZER: buffer.getvalue()}
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    state = {**state, "digests": digests}
    files[STATE] = json.dumps({**state, "digest": _digest(state)}, indent=2).encode()

    last, previous, partial = folder / "last", folder / "previous", folder / ".partial"
    if not folder.parent.is_dir():
        raise UserError(
            f"the run folder {folder.parent} was removed while it was being trained: train the "
            "run again"
        )
    shutil.rmtree(partial, ignore_errors=True)
    make_folder(partial)
    try:
        for name, content in files.items():
            write_file(partial / name, content)
    except UserError:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    try:
        if last.exists():
            shutil.rmtree(previous, ignore_errors=True)
            last.rename(previous)
        partial.rename(last)
    except OSError as error:
        raise UserError(f"cannot replace {last}: {error.strerror or error}") from error


def restore_checkpoint(
    folder: Path, model: nn.Module, optimizer: Stateful
) -> dict[str, Any] | None:
    """Load the newest undamaged checkpoint and return its state, or None if there is none.

    If `last` is damaged, `previous` is used and a line on stderr says so. The damaged one is
    renamed to `damaged`: otherwise the next save would replace the good one with it.
    Raises UserError if every checkpoint is damaged, and PermissionError if one may not be read: it
    may be intact.
    """
    damaged = []
    for path in (folder / "last", folder / "previous"):
        if not path.exists():
            continue
        try:
            state, weights, moments = _read(path)
            model.load_state_dict(weights)
            optimizer.load_state_dict(moments)
        except (MemoryError, torch.OutOfMemoryError, PermissionError):  # the files may be intact
            raise
        except Exception as error:  # reading damaged files may raise almost anything
            damaged.append(path)
            print(f"{path} is damaged ({error}) and is not used", file=sys.stderr)
            continue
        if damaged:
            _set_aside(folder / "last", folder / "damaged")
            print(f"continuing from the previous checkpoint, {path}", file=sys.stderr)
        return {key: value for key, value in state.items() if key != "digests"}
    if damaged:
        raise UserError(f"every checkpoint in {folder} is damaged: start again with --overwrite")
    return None


def restore_weights(folder: Path, model: nn.Module) -> dict[str, Any]:
    """Load the weights of the newest undamaged checkpoint into a model and return its state.

    Raises UserError if there is none; nothing is renamed.
    """
    reasons = []
    for path in (folder / "last", folder / "previous"):
        try:
            state, weights, _ = _read(path)
            model.load_state_dict(weights)
            return state
        except PermissionError:
            raise
        except Exception as error:  # as in restore_checkpoint
            reasons.append(f"{path.name}: {error}")
    raise UserError(
        f"every checkpoint in {folder} is damaged ({'; '.join(reasons)}): start again with "
        "--overwrite"
    )


def _set_aside(path: Path, destination: Path) -> None:
    try:
        shutil.rmtree(destination, ignore_errors=True)
        path.rename(destination)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"cannot move {path} to {destination}: {reason}") from error


def save_best(folder: Path, model: nn.Module) -> str:
    """Save the weights of the best validation epoch and return their digest."""
    make_folder(folder / "best")
    content = save(_contiguous(model.state_dict()))
    write_file(folder / "best" / WEIGHTS, content)
    return hashlib.sha256(content).hexdigest()


def load_best(folder: Path, model: nn.Module, digest: str) -> None:
    """Load the weights of the best validation epoch into the model.

    Raises UserError if their digest is not `digest`.
    """
    path = folder / "best" / WEIGHTS
    try:
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != digest:
            raise ValueError("its content has changed")
        model.load_state_dict(load(content))
    except PermissionError:
        raise
    except Exception as error:  # as in restore_checkpoint
        raise UserError(f"{path} is damaged ({error}): start again with --overwrite") from error


def _read(path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor], dict[str, Any]]:
    state = json.loads(read_file(path / STATE, MAX_JSON))
    if state.pop("digest") != _digest(state):
        raise ValueError(f"the content of {STATE} has changed")
    content = {name: (path / name).read_bytes() for name in (WEIGHTS, OPTIMIZER)}
    for name, data in content.items():
        if hashlib.sha256(data).hexdigest() != state["digests"][name]:
            raise ValueError(f"the content of {name} has changed")
    try:
        values = {key: value for key, value in state.items() if key != "digests"}
        TypeAdapter(TrainingState).validate_json(json.dumps(values), strict=True)
    except ValidationError as error:
        raise ValueError(first_error(error, STATE)) from None
    return state, load(content[WEIGHTS]), _load_moments(content[OPTIMIZER])


def _load_moments(content: bytes) -> dict[str, Any]:
    """Load the state of an optimizer. Raises ValueError if the file is damaged.

    The names in it are checked first: torch refuses an unknown one too, but takes time quadratic
    in its length, and advises loading the file without protection.
    """
    try:
        if torch.serialization.get_unsafe_globals_in_checkpoint(io.BytesIO(content)):
            raise ValueError("it contains more than tensors and numbers")
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except (MemoryError, torch.OutOfMemoryError):  # not caused by the file
        raise
    except Exception as error:  # as in restore_checkpoint
        raise ValueError(f"{OPTIMIZER} is not a saved optimizer state") from error


def _digest(state: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def _contiguous(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
