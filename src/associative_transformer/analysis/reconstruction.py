"""Reconstruction: tokens before and after retrieval, in two dimensions.

The plane is spanned by the first two principal components of the tokens before retrieval.

Dims     R inverse temperatures   L layers   I images   N patches per image   T = I * N tokens
         E token width
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from associative_transformer.analysis.networks import memories_of
from associative_transformer.analysis.trace import first_images
from associative_transformer.functional import hopfield_retrieve, hopfield_retrieve_per_image
from associative_transformer.interface import Batch
from associative_transformer.models.ait import AiT
from associative_transformer.workspace import GlobalWorkspace

BETAS = (0.05, 1.0, 4.0)
SAME = 0.01
"""Retrieved tokens at most this far apart, in mean attractor norms, count as the same."""


@dataclass(frozen=True)
class Reconstruction:
    """Tokens of some images, before and after one retrieval."""

    betas: Float[np.ndarray, " R"]
    images: Int[np.ndarray, " I"]  # indices in the split
    before: Float[np.ndarray, "L I N 2"]
    after: Float[np.ndarray, "R L I N 2"]
    explained: Float[np.ndarray, " L"]  # share of the variance before retrieval
    num_distinct: Int[np.ndarray, "R L"]  # distinct tokens after retrieval, of I * N


@torch.no_grad()
def measure_reconstruction(
    model: AiT, batches: Iterable[Batch], betas: Sequence[float] = BETAS, num_images: int = 8
) -> Reconstruction:
    """Retrieve the patch tokens of the first images once for each inverse temperature.

    With scope "image", each head retrieves its own channels, with the inverse temperature
    beta / sqrt(d), and without the LayerNorm on the read.

    A token is distinct if it is more than `SAME` mean attractor norms away from all earlier
    distinct tokens. Raises ValueError if the model does not read its memory by Hopfield retrieval.
    """
    if model.config.read != "hopfield":
        raise ValueError(
            f"a model with read={model.config.read} has no Hopfield retrieval to measure"
        )
    layers = first_images(model, batches, num_images)
    images = np.arange(len(layers[0]))
    shape = (len(betas), len(layers), len(images), model.embed.num_patches, 2)
    before, after = np.empty(shape[1:]), np.empty(shape)
    explained, num_distinct = np.empty(shape[1]), np.empty(shape[:2], np.int64)
    for layer, u in enumerate(layers):
        workspace = cast(GlobalWorkspace, model.blocks[layer].workspace)
        attractors = workspace.to_attractor(memories_of(workspace, u))  # (I, M, E)
        patches = u[:, -model.embed.num_patches :]
        plane = _principal_plane(patches.flatten(0, 1))
        before[layer], explained[layer] = plane.project(patches), plane.explained
        tolerance = SAME * attractors.norm(dim=-1).mean().item()
        for row, beta in enumerate(betas):
            retrieved = _retrieve(workspace, patches, attractors, beta)
            after[row, layer] = plane.project(retrieved)
            num_distinct[row, layer] = _count_distinct(retrieved.flatten(0, 1), tolerance)
    return Reconstruction(np.array(betas), images, before, after, explained, num_distinct)


def _retrieve(
    workspace: GlobalWorkspace,
    tokens: Float[Tensor, "I N E"],
    attractors: Float[Tensor, "I M E"],
    beta: float,
) -> Float[Tensor, "I N E"]:
    if workspace.config.scope == "batch":
        return hopfield_retrieve(tokens, attractors[0], beta)
    width = workspace.config.image.read_head_dim
    return hopfield_retrieve_per_image(tokens, attractors, beta, width)


class Plane(NamedTuple):
    """The plane in which tokens vary most."""

    center: Float[Tensor, " E"]
    axes: Float[Tensor, "2 E"]
    explained: float  # share of the variance

    def project(self, tokens: Float[Tensor, "I N E"]) -> Float[np.ndarray, "I N 2"]:
        """Return the coordinates of tokens in the plane."""
        return ((tokens.cpu().double() - self.center) @ self.axes.mT).numpy()


def _principal_plane(tokens: Float[Tensor, "T E"]) -> Plane:
    """Return the principal plane; the entry of largest magnitude in each axis is positive."""
    tokens = tokens.cpu().double()
    center = tokens.mean(dim=0)
    _, singular_values, axes = torch.linalg.svd(tokens - center)
    variance, axes = singular_values.square(), axes[:2]
    largest = axes.gather(1, axes.abs().argmax(dim=1, keepdim=True))
    share = variance[:2].sum() / variance.sum() if variance.any() else torch.ones(())
    return Plane(center, axes * largest.sign(), share.item())


def _count_distinct(tokens: Float[Tensor, "T E"], tolerance: float) -> int:
    count = 0
    while len(tokens):
        tokens = tokens[(tokens - tokens[0]).norm(dim=-1) > tolerance]
        count += 1
    return count
