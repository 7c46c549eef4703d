"""Specialization: what the patches that a prior takes reveal about class, position and content.

A pool is a batch of the split, as in training; the memory stays frozen. Only patches
are counted: the priors may also take the class token and questions, but these are left out.

With scope "image", each prior takes the same number of tokens from every image, so that taking a
patch reveals nothing about the class.

Dims     V variables   L layers   S heads of the workspace   M priors   O classes   N patches
         K bins of content   B images of a batch   T patches of the first batch
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from associative_transformer.analysis.information import (
    Tally,
    compare,
    links_of_writing,
    mutual_information,
)
from associative_transformer.analysis.trace import trace_all
from associative_transformer.arguments import check_count
from associative_transformer.interface import Batch, UserError
from associative_transformer.models.ait import AiT
from associative_transformer.models.layers import patchify
from associative_transformer.models.pretrained import PretrainedModel


@dataclass(frozen=True)
class Specialization:
    """Mutual information between "this prior takes this token" and a variable, in bits.

    The permutation baseline keeps all counts and shuffles the variable: the classes among the
    images, the positions within an image, the contents among all patches of the pool.

    Content is the mean brightness of a patch over its pixels and channels, normalized as for the
    model. Its bins contain equally many patches of the first pool and are the same for all pools;
    the outer edges are the smallest and the largest brightness in any pool. Equally bright patches
    share a bin, so other bins may be empty.
    """

    num_images: int  # with questions: number of questions
    num_permutations: int
    classes: list[str]  # with questions: answers
    information: Float[np.ndarray, "V L S M"]
    baseline: Float[np.ndarray, "V L S M"]  # mean over the permutations
    p_value: Float[np.ndarray, "V L S M"]  # (1 + permutations at or above it) / (1 + permutations)
    by_class: Float[np.ndarray, "L S M O"]  # share of the patches taken, sums to 1; 0 if none
    by_position: Float[np.ndarray, "L S M N"]
    by_content: Float[np.ndarray, "L S M K"]
    content_edges: Float[np.ndarray, " K+1"]  # of the bins of brightness


@torch.no_grad()
def measure_specialization(
    model: PretrainedModel,
    batches: Iterable[Batch],
    classes: Sequence[str],
    num_permutations: int = 20,
    seed: int = 0,
    num_bins: int = 8,
) -> Specialization:
    """Measure whether the priors of an AiT take patches by class, by position or by content.

    Each batch is one pool. Since the baseline shuffles within a pool, it includes the information
    about the class that comes from pools of a single class (as in a split sorted by class).

    Raises UserError if the model is not an AiT, and ValueError if there are no permutations, bins
    or images.
    """
    if not isinstance(model, AiT):
        raise UserError(f"{type(model).__name__} has no priors to specialize: use a run of AiT")
    check_count("num_permutations", num_permutations)
    check_count("num_bins", num_bins)
    generator = torch.Generator().manual_seed(seed)
    num_patches, c = model.embed.num_patches, model.config
    shape = (c.depth, c.workspace.num_heads, c.workspace.num_priors)
    sizes = (len(classes), num_patches, num_bins)
    tally = Tally(shape, sizes, num_permutations, next(model.parameters()).device)
    brightness = _Brightness(model.embed.patch_size, num_bins)
    for traced in trace_all(model, batches):
        links = [links_of_writing(layer, num_patches) for layer in traced.layers]
        tally.add(links, traced.labels, brightness.assign_bins(traced.images), generator)
    if tally.num_images == 0:
        raise ValueError("there are no images to measure specialization on")
    information = compare(tally.measure(mutual_information))  # (V, L, S, M)
    by_class, by_position, by_content = tally.shares()
    return Specialization(
        num_images=tally.num_images,
        num_permutations=num_permutations,
        classes=list(classes),
        information=information.true,
        baseline=information.baseline,
        p_value=information.p_value,
        by_class=by_class,
        by_position=by_position,
        by_content=by_content,
        content_edges=brightness.edges.cpu().numpy(),
    )


def equal_bins(values: Float[Tensor, " T"], num_bins: int) -> Float[Tensor, " {num_bins}+1"]:
    """Return the edges of bins with equally many values; a value on an edge is in the upper bin.

    Equal values give equal edges, with an empty bin between them.
    """
    ordered = values.sort().values
    indices = torch.arange(num_bins + 1, device=values.device) * len(ordered) // num_bins
    return ordered[indices.clamp(max=len(ordered) - 1)]


class _Brightness:
    """Bins of the mean brightness of a patch."""

    def __init__(self, patch_size: int, num_bins: int) -> None:
        self.patch_size, self.num_bins = patch_size, num_bins
        self.edges = torch.empty(0)  # set by the first pool

    def assign_bins(self, images: Float[Tensor, "B C H W"]) -> Int[Tensor, "B N"]:
        brightness = patchify(images, self.patch_size).double().mean(dim=-1)  # (B, N)
        if len(self.edges) == 0:
            self.edges = equal_bins(brightness.flatten(), self.num_bins)
        self.edges[0] = self.edges[0].minimum(brightness.min())
        self.edges[-1] = self.edges[-1].maximum(brightness.max())
        return torch.bucketize(brightness, self.edges[1:-1].contiguous(), right=True)
