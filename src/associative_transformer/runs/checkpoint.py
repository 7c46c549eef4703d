"""Save and restore a run, so that stopping and resuming gives what an undisturbed run gives.

A checkpoint is a folder: `model.safetensors` (weights and memory), `optimizer.pt` (read with
`weights_only=True`) and `state.json` (position, running sums, and the digests of all three).
"""

import hashlib
import io
import json
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import nn

from associative_transformer.files import write_file
from associative_transformer.interface import UserError

WEIGHTS, OPTIMIZER, STATE = "model.safetensors", "optimizer.pt", "state.json"


@dataclass
class TrainingState:
    """Where a run stands; saved in every checkpoint."""

    epoch: int = 0  # the epoch under way, from 0
    step: int = 0  # optimizer steps done in it
    sums: list[float] = field(default_factory=lambda: [0.0] * 4)  # `step.Sums` over it so far
    skipped_steps: int = 0
    bad_steps: int = 0  # skipped in a row
    best_epoch: int | None = None  # from 1
    best_accuracy: float = -1.0  # percent of the validation images
    best_digest: str = ""  # of the weights in checkpoint/best
    data: str = ""  # digest of the data set
    precision: str = ""  # float32 or bfloat16
    pools: int = 1  # of tokens; more where nodes or processes have their own
    timing: dict[str, float] = field(default_factory=lambda: {"epoch": 0.0, "run": 0.0})

    def check_resumable(self, here: "TrainingState", folder: Path) -> None:
        """Raise UserError where a run can't go on from this state as it went before."""
        if self.data != here.data:
            raise UserError(
                f"the run in {folder} was trained on other data under the same name: "
                "pass the same --data.source, or use the same version of this package"
            )
        if self.precision != here.precision:
            raise UserError(
                f"the run in {folder} has the precision {self.precision} but "
                f"{here.precision} is what this device takes: resume it on one like before"
            )
        if self.pools != here.pools:
            raise UserError(
                f"the run in {folder} has its tokens in {self.pools} pools and these processes "
                f"in {here.pools}: resume it on as many nodes or processes as before"
            )


def save_checkpoint(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]
) -> None:
    """Make `folder/last` this checkpoint and `folder/previous` the one that was last.

    A crash at any moment leaves at least one of the two whole. Raises UserError where the disk
    is full; the checkpoints that stood before still stand then.
    """
    buffer = io.BytesIO()
    torch.save(optimizer.state_dict(), buffer)
    files = {WEIGHTS: save(_contiguous(model.state_dict())), OPTIMIZER: buffer.getvalue()}
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    state = {**state, "digests": digests}
    files[STATE] = json.dumps({**state, "digest": _digest(state)}, indent=2).encode()

    last, previous, partial = folder / "last", folder / "previous", folder / ".partial"
    shutil.rmtree(partial, ignore_errors=True)
    _make_folder(partial)
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
        raise UserError(f"can't replace {last}: {error.strerror or error}") from error


def restore_checkpoint(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer
) -> dict[str, Any] | None:
    """Load the newest whole checkpoint and return its state; None where there is none.

    A damaged `last` is passed over for `previous`, with a line on stderr, and set aside: the next
    checkpoint would take it for a good one and put it in the place of `previous`. Raises
    UserError where both are damaged.
    """
    damaged = []
    for path in (folder / "last", folder / "previous"):
        if not path.exists():
            continue
        try:
            state, weights, moments = _read(path)
            model.load_state_dict(weights)
            optimizer.load_state_dict(moments)
        except (MemoryError, torch.OutOfMemoryError):  # no fault of the files
            raise
        except Exception as error:  # damaged files make the readers raise nearly anything
            damaged.append(path)
            print(f"{path} is damaged ({error}), so it is passed over", file=sys.stderr)
            continue
        if damaged:
            _set_aside(folder / "last", folder / "damaged")
            print(f"going on from the checkpoint before it, {path}", file=sys.stderr)
        return {key: value for key, value in state.items() if key != "digests"}
    if damaged:
        raise UserError(f"every checkpoint in {folder} is damaged: start again with --overwrite")
    return None


def _set_aside(path: Path, place: Path) -> None:
    try:
        shutil.rmtree(place, ignore_errors=True)
        path.rename(place)
    except OSError as error:
        raise UserError(f"can't move {path} to {place}: {error.strerror or error}") from error


def save_best(folder: Path, model: nn.Module) -> str:
    """Keep the weights of the best validation epoch and return their digest."""
    _make_folder(folder / "best")
    content = save(_contiguous(model.state_dict()))
    write_file(folder / "best" / WEIGHTS, content)
    return hashlib.sha256(content).hexdigest()


def load_best(folder: Path, model: nn.Module, digest: str) -> None:
    """Put the weights of the best validation epoch into the model.

    Raises UserError where they are not those of `digest`.
    """
    path = folder / "best" / WEIGHTS
    try:
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != digest:
            raise ValueError("it is not what was written")
        model.load_state_dict(load(content))
    except Exception as error:  # as above
        raise UserError(f"{path} is damaged ({error}): start again with --overwrite") from error


def _read(path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor], dict[str, Any]]:
    state = json.loads((path / STATE).read_text())
    if state.pop("digest") != _digest(state):
        raise ValueError(f"{STATE} is not what was written")
    content = {name: (path / name).read_bytes() for name in (WEIGHTS, OPTIMIZER)}
    for name, data in content.items():
        if hashlib.sha256(data).hexdigest() != state["digests"][name]:
            raise ValueError(f"{name} is not what was written")
    moments = torch.load(io.BytesIO(content[OPTIMIZER]), map_location="cpu", weights_only=True)
    return state, load(content[WEIGHTS]), moments


def _digest(state: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def _contiguous(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"can't make {path}: {error.strerror}") from error
