"""Specialization: what the patches that a prior takes reveal about class, position and content.

A pool is a batch of the split, as in training; the memory stays frozen. Only patches
are counted: the priors may also take question tokens, but these are left out.

Dims     V variables   L layers   S heads of the workspace   M priors   O classes   N patches
         K bins of content   B images of a pool   W winners: pairs of a prior and a patch it takes
         P pairs of head and prior   X values of a variable   R = 1 + number of permutations
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from associative_transformer.analysis.trace import LayerTrace, ModelTrace, trace_all
from associative_transformer.interface import Batch, UserError
from associative_transformer.models.ait import AiT
from associative_transformer.models.layers import patchify
from associative_transformer.models.pretrained import PretrainedModel
from associative_transformer.workspace import GlobalWorkspace

VARIABLES = ("class", "position", "content")
ROUNDING = 1e-9  # bits by which two sums of the same information may differ


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
    if num_permutations < 1 or num_bins < 1:
        raise ValueError(
            f"num_permutations ({num_permutations}) and num_bins ({num_bins}) must be at least 1"
        )
    generator, num_images = torch.Generator().manual_seed(seed), 0
    tally = _Tally(model, (len(classes), model.embed.num_patches, num_bins), num_permutations)
    brightness = _Brightness(model.embed.patch_size, num_bins)
    for traced in trace_all(model, batches):
        tally.add(traced, brightness.assign_bins(traced.images), generator)
        num_images += len(traced.images)
    if num_images == 0:
        raise ValueError("there are no images to measure specialization on")
    information = tally.information()  # (R, V, L, S, M)
    num_as_much = (information[1:] >= information[0] - ROUNDING).sum(axis=0)
    by_class, by_position, by_content = tally.shares()
    return Specialization(
        num_images=num_images,
        num_permutations=num_permutations,
        classes=list(classes),
        information=information[0],
        baseline=information[1:].mean(axis=0),
        p_value=(1 + num_as_much) / (1 + num_permutations),
        by_class=by_class,
        by_position=by_position,
        by_content=by_content,
        content_edges=brightness.edges.cpu().numpy(),
    )


def mutual_information(taken: Int[Tensor, "P X"], total: Int[Tensor, " X"]) -> Float[Tensor, " P"]:
    """Return the information between a variable and being taken, in bits.

    `total` counts all tokens by the value of the variable, `taken` those that were taken.
    """
    p_x = total / total.sum().double()  # p(x)
    p_taken = taken / total.sum().double()  # p(taken, x)
    joint = torch.stack([p_taken, p_x - p_taken])  # (2, P, X): taken, not taken
    independent = joint.sum(dim=-1, keepdim=True) * p_x
    nats = torch.xlogy(joint, joint) - torch.xlogy(joint, independent)
    return (nats.sum(dim=(0, -1)) / np.log(2)).clamp(min=0)


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


class _Winners(NamedTuple):
    """Pairs of a prior and a patch that it takes."""

    prior: Int[Tensor, " W"]  # index of the pair of head and prior
    patch: Int[Tensor, " W"]  # index among the patches of the pool


class _Tally:
    """Counts of the patches taken, first for the true variables, then for each permutation."""

    def __init__(self, model: AiT, sizes: tuple[int, ...], num_permutations: int) -> None:
        c, device = model.config, next(model.parameters()).device
        self.num_patches = model.embed.num_patches
        self.num_heads, self.num_priors = c.workspace.num_heads, c.workspace.num_priors
        rows = (1 + num_permutations, c.depth, self.num_heads * self.num_priors)
        self.taken = [  # one table per variable; its size does not depend on the number of images
            torch.zeros(*rows, size, dtype=torch.int32, device=device) for size in sizes
        ]
        self.total = [torch.zeros(size, dtype=torch.int64, device=device) for size in sizes]

    def add(
        self, traced: ModelTrace, content: Int[Tensor, "B N"], generator: torch.Generator
    ) -> None:
        winners = [_select(layer, self.num_patches) for layer in traced.layers]
        variables = _variables(traced.labels, content)
        for total, values in zip(self.total, variables, strict=True):
            total += values.flatten().bincount(minlength=len(total))
        for permutation in range(len(self.taken[0])):
            if permutation > 0:
                variables = _shuffle(traced.labels, content, generator)
            for taken, values in zip(self.taken, variables, strict=True):
                values = values.flatten()
                for layer, (prior, patch) in enumerate(winners):
                    rows, size = taken.shape[-2:]
                    pairs = prior * size + values[patch]
                    counts = pairs.bincount(minlength=rows * size).view(rows, size)
                    taken[permutation, layer] += counts

    def information(self) -> Float[np.ndarray, "R V L S M"]:
        """Return the information about each variable, first true, then permuted."""
        layers = [
            torch.stack([mutual_information(layer, total) for layer in counts])
            for taken, total in zip(self.taken, self.total, strict=True)
            for counts in taken
        ]
        sizes = (len(self.taken), len(self.taken[0]), -1, self.num_heads, self.num_priors)
        return torch.stack(layers).view(sizes).transpose(0, 1).cpu().numpy()

    def shares(self) -> Iterator[Float[np.ndarray, "L S M X"]]:
        """Yield the share of each value among the patches taken, for each variable."""
        for taken in self.taken:
            counts = taken[0].view(len(taken[0]), self.num_heads, self.num_priors, -1).double()
            yield (counts / counts.sum(dim=-1, keepdim=True).clamp(min=1)).cpu().numpy()


def _select(layer: LayerTrace, num_patches: int) -> _Winners:
    """Let the priors select from the pool, and keep only the patches."""
    u, workspace = cast(Tensor, layer.workspace_input), cast(GlobalWorkspace, layer.workspace)
    chosen = workspace.write(u.flatten(0, 1)).selection.chosen.flatten(0, 1)
    num_tokens = u.shape[1]
    image, patch = chosen // num_tokens, chosen % num_tokens - (num_tokens - num_patches)
    is_patch = patch >= 0  # the question comes first
    return _Winners(is_patch.nonzero()[:, 0], (image * num_patches + patch)[is_patch])


def _variables(labels: Int[Tensor, " B"], content: Int[Tensor, "B N"]) -> list[Tensor]:
    position = torch.arange(content.shape[1], device=content.device)
    return [labels[:, None].expand_as(content), position.expand_as(content), content]


def _shuffle(
    labels: Int[Tensor, " B"], content: Int[Tensor, "B N"], generator: torch.Generator
) -> list[Tensor]:
    """Shuffle each variable within the pool, drawing on the CPU so that all devices agree."""
    device = content.device
    images = torch.randperm(len(labels), generator=generator).to(device)
    positions = torch.rand(content.shape, generator=generator).argsort(dim=1).to(device)
    tokens = torch.randperm(content.numel(), generator=generator).to(device)
    shuffled = content.flatten()[tokens].view_as(content)
    return [labels[images, None].expand_as(content), positions, shuffled]
