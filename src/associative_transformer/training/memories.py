"""Records and messages about the memories of a model during training."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import nn

from associative_transformer.health import MemoryHealth, memory_health
from associative_transformer.runs.checkpoint import TrainingState
from associative_transformer.workspace import GlobalWorkspace
from associative_transformer.workspace_config import WorkspaceConfig

Row = dict[str, float | None]
"""The health of one layer in `metrics.jsonl`; the value of what is unknown is None."""
DIGITS = 6


def measure_health(model: nn.Module) -> list[Row]:
    """Return a row for each memory after a training step; every process must call this."""
    return [_write_row(health) for health in memory_health(model, over_ranks=True)]


def name_by_layer(rows: Sequence[Row]) -> dict[str, int | float]:
    """Return the known values as a tracker shows them, such as layer1/effective_rank."""
    return {
        f"layer{number}/{name}": value
        for number, row in enumerate(rows, start=1)
        for name, value in row.items()
        if value is not None
    }


def copy_priors(workspaces: Sequence[GlobalWorkspace]) -> Float[np.ndarray, "..."]:
    """Return the priors (L, M, D) of all layers: the memory, or the contents that are learned."""
    return np.array([each.priors.detach().cpu().numpy() for each in workspaces])


def report_collapse(state: TrainingState, workspaces: Sequence[GlobalWorkspace]) -> list[str]:
    """Return a line for each memory found to have collapsed, once per layer and run."""
    lines = []
    pairs = zip(
        state.health, workspaces, strict=False
    )  # a checkpoint of version 0.1 has no health
    for number, (row, workspace) in enumerate(pairs, start=1):
        config = workspace.config
        health = _read_row(row, config.num_priors)
        if health.is_collapsed and number not in state.collapsed:
            state.collapsed.append(number)
            lines.append(_describe_collapse(number, health, config))
    return lines


def _write_row(health: MemoryHealth) -> Row:
    values = health._asdict()
    del values["num_priors"]  # the same in every epoch
    return {
        name: None if value is None or not math.isfinite(value) else round(value, DIGITS)
        for name, value in values.items()
    }


def _read_row(row: Row, num_priors: int) -> MemoryHealth:
    values: dict[str, Any] = {**row, "num_priors": num_priors}
    if values["effective_rank"] is None:
        values["effective_rank"] = math.nan
    return MemoryHealth(**values)


def _describe_collapse(number: int, health: MemoryHealth, config: WorkspaceConfig) -> str:
    """Return what has happened to the memory of a layer, and the settings that prevent it."""
    line = (
        f"the memory of layer {number} has collapsed: {health.distinct:.0f} of "
        f"{health.num_priors} priors are distinct, with an effective rank of "
        f"{health.effective_rank:.1f}"
    )
    if config.scope == "image":  # whose contents are learned
        return f"{line}; try fewer priors: --model.workspace.num-priors"
    helpful = {
        "--model.workspace.dropout 0.1": not config.dropout,
        "--model.workspace.competition priors": config.competition == "none",
        "--model.workspace.center-values": not config.center_values,
    }
    flags = [flag for flag, is_off in helpful.items() if is_off]
    if not flags:
        return line
    return f"{line}; equal priors stay equal, so start a new run with {' or '.join(flags)}"
