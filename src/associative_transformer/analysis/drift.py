"""Drift: how far the memory moved from epoch to epoch during training.

Dims     T epochs   L layers   M priors   D prior width
"""

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from associative_transformer.functional import effective_rank
from associative_transformer.interface import UserError
from associative_transformer.runs.reading import read_memory


@dataclass(frozen=True)
class Drift:
    """How far the memory moved during training."""

    epochs: list[int]  # numbers of the T epochs, from 1
    angle: Float[np.ndarray, "T L"]  # degrees since the previous epoch, mean over priors; first: 0
    effective_rank: Float[np.ndarray, "T L"]


def measure_drift(memory: Float[np.ndarray, "T L M D"]) -> Drift:
    """Compare the memory after each epoch with the memory after the previous one."""
    units = (normalize(torch.from_numpy(priors), dim=-1) for priors in memory)  # saves memory
    angles = [_angle(before, after) for before, after in pairwise(units)]
    ranks = [[effective_rank(layer) for layer in epoch] for epoch in torch.from_numpy(memory)]
    return Drift(
        epochs=list(range(1, len(memory) + 1)),
        angle=np.array([np.zeros(memory.shape[1]), *angles], memory.dtype),
        effective_rank=np.array(ranks),
    )


def _angle(
    before: Float[Tensor, "L M D"], after: Float[Tensor, "L M D"]
) -> Float[np.ndarray, " L"]:
    """Return the mean angle between unit vectors in degrees."""
    difference, total = (after - before).norm(dim=-1), (after + before).norm(dim=-1)
    angle = 2 * torch.atan2(difference, total).rad2deg()  # an arc cosine is inexact near 0
    return angle.mean(dim=-1).numpy()


def measure_drift_of_run(folder: Path) -> Drift | None:
    """Measure the drift from the `memory.npz` of a run; return None if the file is missing.

    Raises UserError if the file is damaged.
    """
    path = folder / "memory.npz"
    if not path.exists():  # a run may be copied without its history
        return None
    try:
        priors = np.array(read_memory(path, None))
        if not priors.size:
            raise ValueError("it contains no priors")
    except PermissionError:  # the file may be intact
        raise
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} is damaged ({error}): remove it to analyze the run without the drift of its "
            "memory"
        ) from error
    return measure_drift(priors)
