"""Reconstruction: tokens before and after their retrieval, in two dimensions.

The plane is that of the two main components of the tokens before.

Dims     R inverse temperatures   L layers   I images   N tokens per image   T = I * N tokens
         E token width
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from associative_transformer.analysis.trace import trace_all
from associative_transformer.functional import hopfield_retrieve
from associative_transformer.interface import Batch
from associative_transformer.models import AiT
from associative_transformer.workspace import GlobalWorkspace

BETAS = (0.05, 1.0, 4.0)
SAME = 0.01
"""Retrieved tokens are the same when they are this near, in mean norms of the attractors."""


@dataclass(frozen=True)
class Reconstruction:
    """Tokens of some images, before and after one retrieval."""

    betas: Float[np.ndarray, " R"]
    images: Int[np.ndarray, " I"]  # their places in the split
    before: Float[np.ndarray, "L I N 2"]
    after: Float[np.ndarray, "R L I N 2"]
    explained: Float[np.ndarray, " L"]  # share of the variance of the tokens before
    num_distinct: Int[np.ndarray, "R L"]  # retrieved tokens that differ, of I * N


@torch.no_grad()
def measure_reconstruction(
    model: AiT, batches: Iterable[Batch], betas: Sequence[float] = BETAS, num_images: int = 8
) -> Reconstruction:
    """Retrieve the patch tokens of the first images, once for each inverse temperature.

    Tokens count as distinct when none counted before them is nearer than `SAME`. Raises
    ValueError where the model reads its memory in another way.
    """
    if model.config.read != "hopfield":
        raise ValueError(
            f"there is no Hopfield retrieval in a model with read={model.config.read}"
        )
    layers = _first_tokens(model, batches, num_images)
    found = len(layers[0])
    shape = (len(betas), len(layers), *layers[0].shape[:2], 2)
    before, after = np.empty(shape[1:]), np.empty(shape)
    explained, num_distinct = np.empty(shape[1]), np.empty(shape[:2], np.int64)
    for layer, u in enumerate(layers):
        workspace = cast(GlobalWorkspace, model.blocks[layer].workspace)
        attractors = workspace.to_attractor(workspace.priors)
        plane = _main_plane(u.flatten(0, 1))
        before[layer], explained[layer] = plane.project(u), plane.explained
        tolerance = SAME * attractors.norm(dim=-1).mean().item()
        for place, beta in enumerate(betas):
            retrieved = hopfield_retrieve(u, attractors, beta)
            after[place, layer] = plane.project(retrieved)
            num_distinct[place, layer] = _count_distinct(retrieved.flatten(0, 1), tolerance)
    return Reconstruction(
        np.array(betas), np.arange(found), before, after, explained, num_distinct
    )


def _first_tokens(
    model: AiT, batches: Iterable[Batch], num_images: int
) -> list[Float[Tensor, "I N E"]]:
    """Collect what the patches of the first images hand to the workspace of each layer."""
    found: list[list[Tensor]] = [[] for _ in model.blocks]
    missing = num_images
    for traced in trace_all(model, batches):
        for kept, layer in zip(found, traced.layers, strict=True):
            kept.append(cast(Tensor, layer.handed)[:missing, -traced.num_patches :])
        missing -= len(found[0][-1])
        if missing == 0:
            break
    return [torch.cat(kept) for kept in found]


class Plane(NamedTuple):
    """The plane in which tokens vary most."""

    center: Float[Tensor, " E"]
    axes: Float[Tensor, "2 E"]
    explained: float  # share of the variance

    def project(self, tokens: Float[Tensor, "I N E"]) -> Float[np.ndarray, "I N 2"]:
        """Give the coordinates of tokens in the plane."""
        return ((tokens.cpu().double() - self.center) @ self.axes.mT).numpy()


def _main_plane(tokens: Float[Tensor, "T E"]) -> Plane:
    """Find the plane; on each axis the entry of largest size is positive."""
    tokens = tokens.cpu().double()
    center = tokens.mean(dim=0)
    _, size, axes = torch.linalg.svd(tokens - center)
    variance, axes = size.square(), axes[:2]
    largest = axes.gather(1, axes.abs().argmax(dim=1, keepdim=True))
    share = variance[:2].sum() / variance.sum() if variance.any() else torch.ones(())
    return Plane(center, axes * largest.sign(), share.item())


def _count_distinct(tokens: Float[Tensor, "T E"], tolerance: float) -> int:
    count = 0
    while len(tokens):
        tokens = tokens[(tokens - tokens[0]).norm(dim=-1) > tolerance]
        count += 1
    return count
