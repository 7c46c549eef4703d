"""Specialization: how much the tokens a prior takes say about class, position and content.

A pool is a batch of the split, as in training; the memory stays frozen. Only patches count: class
and question tokens, which priors may take too, are left out.

Dims     V variables   L layers   S heads of the workspace   M priors   O classes   N patches
         K bins of content   B images of a pool   W winners: pairs of a prior and a patch it takes
         P pairs of head and prior   X values of a variable
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
from associative_transformer.models import AiT
from associative_transformer.models.layers import patchify
from associative_transformer.models.pretrained import PretrainedModel
from associative_transformer.workspace import GlobalWorkspace

VARIABLES = ("class", "position", "content")
ROUNDING = 1e-9  # bits by which the sums of one and the same information may differ


@dataclass(frozen=True)
class Specialization:
    """Mutual information between "this prior takes this token" and a variable, in bits.

    The permutation baseline keeps all counts and shuffles the variable: images among each other
    for the class, patches within an image for the position, tokens of the pool for the content.

    Content is the mean brightness of a patch over its pixels and channels, normalized as the
    model sees them. Its bins hold equally many patches of the first pool, and all pools share
    them, so that none is kept; the outer edges are the least and the largest brightness of all.
    Equally bright patches stay in one bin, and others may stay empty.
    """

    num_images: int  # where questions are asked: questions
    num_permutations: int
    classes: list[str]  # where questions are asked: answers
    information: Float[np.ndarray, "V L S M"]
    baseline: Float[np.ndarray, "V L S M"]  # mean over the permutations
    p_value: Float[np.ndarray, "V L S M"]  # (1 + permutations that say as much) / (1 + all)
    by_class: Float[np.ndarray, "L S M O"]  # share of the patches taken, sums to 1; 0 without any
    by_position: Float[np.ndarray, "L S M N"]
    by_content: Float[np.ndarray, "L S M K"]
    content_edges: Float[np.ndarray, " K+1"]  # of the bins of a patch's mean brightness


@torch.no_grad()
def measure_specialization(
    model: PretrainedModel,
    batches: Iterable[Batch],
    classes: Sequence[str],
    num_permutations: int = 20,
    seed: int = 0,
    num_bins: int = 8,
) -> Specialization:
    """Tell whether the priors of an AiT take patches by class, by position or by content.

    Every batch is a pool. The baseline shuffles within a pool: what pools of a single class (a
    split in order of class) say about the class, it says too.

    Raises UserError for other models, ValueError without a permutation, bin or image.
    """
    if not isinstance(model, AiT):
        raise UserError(f"a {type(model).__name__} has no priors to specialize: take a run of AiT")
    if num_permutations < 1 or num_bins < 1:
        raise ValueError(f"permutations ({num_permutations}) and bins ({num_bins}) start at 1")
    generator, num_images = torch.Generator().manual_seed(seed), 0
    tally = _Tally(model, (len(classes), model.embed.num_patches, num_bins), num_permutations)
    brightness = _Brightness(model.embed.patch_size, num_bins)
    for traced in trace_all(model, batches):
        tally.add(traced, brightness.sort(traced.images), generator)
        num_images += len(traced.images)
    if num_images == 0:
        raise ValueError("there is no image to measure")
    information = tally.information()  # (1 + permutations, V, L, S, M)
    as_much = (information[1:] >= information[0] - ROUNDING).sum(axis=0)
    by_class, by_position, by_content = tally.shares()
    return Specialization(
        num_images=num_images,
        num_permutations=num_permutations,
        classes=list(classes),
        information=information[0],
        baseline=information[1:].mean(axis=0),
        p_value=(1 + as_much) / (1 + num_permutations),
        by_class=by_class,
        by_position=by_position,
        by_content=by_content,
        content_edges=brightness.edges.cpu().numpy(),
    )


def mutual_information(taken: Int[Tensor, "P X"], total: Int[Tensor, " X"]) -> Float[Tensor, " P"]:
    """Give the bits that a value says about being taken, from counts of tokens by value.

    `total` counts all tokens, `taken` those among them that were taken.
    """
    value = total / total.sum().double()  # p(x)
    both = taken / total.sum().double()  # p(taken, x)
    either = torch.stack([both, value - both])  # (2, P, X): taken, left
    apart = either.sum(dim=-1, keepdim=True) * value  # as if they did not depend on each other
    nats = torch.xlogy(either, either) - torch.xlogy(either, apart)
    return (nats.sum(dim=(0, -1)) / np.log(2)).clamp(min=0)


def equal_bins(values: Float[Tensor, " T"], num_bins: int) -> Float[Tensor, " {num_bins}+1"]:
    """Give the edges of bins with equally many values; a value on an edge is in the upper bin.

    Equal values make equal edges, and an empty bin between these.
    """
    ordered = values.sort().values
    places = torch.arange(num_bins + 1, device=values.device) * len(ordered) // num_bins
    return ordered[places.clamp(max=len(ordered) - 1)]


class _Brightness:
    """Bins of the mean brightness of a patch."""

    def __init__(self, patch_size: int, num_bins: int) -> None:
        self.patch_size, self.num_bins = patch_size, num_bins
        self.edges = torch.empty(0)  # none before the first pool

    def sort(self, images: Float[Tensor, "B C H W"]) -> Int[Tensor, "B N"]:
        bright = patchify(images, self.patch_size).double().mean(dim=-1)  # (B, N)
        if len(self.edges) == 0:
            self.edges = equal_bins(bright.flatten(), self.num_bins)
        self.edges[0] = self.edges[0].minimum(bright.min())
        self.edges[-1] = self.edges[-1].maximum(bright.max())
        return torch.bucketize(bright, self.edges[1:-1].contiguous(), right=True)


class _Winners(NamedTuple):
    """Patches that the priors take, by their places among the patches of the pool."""

    prior: Int[Tensor, " W"]  # counted through all heads
    patch: Int[Tensor, " W"]


class _Tally:
    """Counts of the patches taken: as they are first, then under each permutation."""

    def __init__(self, model: AiT, sizes: tuple[int, ...], num_permutations: int) -> None:
        c, device = model.config, next(model.parameters()).device
        self.num_heads, self.num_priors = c.workspace.num_heads, c.workspace.num_priors
        rows = (1 + num_permutations, c.depth, self.num_heads * self.num_priors)
        self.taken = [  # bounded: one table a variable, whatever the number of images
            torch.zeros(*rows, size, dtype=torch.int32, device=device) for size in sizes
        ]
        self.total = [torch.zeros(size, dtype=torch.int64, device=device) for size in sizes]

    def add(
        self, traced: ModelTrace, content: Int[Tensor, "B N"], generator: torch.Generator
    ) -> None:
        winners = [_take(layer, traced.num_patches) for layer in traced.layers]
        variables = _variables(traced.labels, content)
        for total, values in zip(self.total, variables, strict=True):
            total += values.flatten().bincount(minlength=len(total))
        for turn in range(len(self.taken[0])):
            if turn > 0:
                variables = _shuffle(traced.labels, content, generator)
            for taken, values in zip(self.taken, variables, strict=True):
                values = values.flatten()
                for place, (prior, patch) in enumerate(winners):
                    rows, size = taken.shape[-2:]
                    pairs = prior * size + values[patch]
                    taken[turn, place] += pairs.bincount(minlength=rows * size).view(rows, size)

    def information(self) -> Float[np.ndarray, "R V L S M"]:
        """Give the mutual information with each variable, as it is and under permutations."""
        turns = [
            torch.stack([mutual_information(layer, total) for layer in turn])
            for taken, total in zip(self.taken, self.total, strict=True)
            for turn in taken
        ]
        sizes = (len(self.taken), len(self.taken[0]), -1, self.num_heads, self.num_priors)
        return torch.stack(turns).view(sizes).transpose(0, 1).cpu().numpy()

    def shares(self) -> Iterator[Float[np.ndarray, "L S M X"]]:
        """Give the share of each value in what a prior takes, by class, position and content."""
        for taken in self.taken:
            counts = taken[0].view(len(taken[0]), self.num_heads, self.num_priors, -1).double()
            yield (counts / counts.sum(dim=-1, keepdim=True).clamp(min=1)).cpu().numpy()


def _take(layer: LayerTrace, num_patches: int) -> _Winners:
    handed = cast(Tensor, layer.handed)
    chosen = cast(GlobalWorkspace, layer.workspace).write(handed.flatten(0, 1)).selection.chosen
    num_tokens = handed.shape[1]
    image = chosen.flatten(0, 1) // num_tokens
    patch = chosen.flatten(0, 1) % num_tokens - (num_tokens - num_patches)
    is_patch = patch >= 0  # those before are class token and question
    return _Winners(is_patch.nonzero()[:, 0], (image * num_patches + patch)[is_patch])


def _variables(labels: Int[Tensor, " B"], content: Int[Tensor, "B N"]) -> list[Tensor]:
    position = torch.arange(content.shape[1], device=content.device)
    return [labels[:, None].expand_as(content), position.expand_as(content), content]


def _shuffle(
    labels: Int[Tensor, " B"], content: Int[Tensor, "B N"], generator: torch.Generator
) -> list[Tensor]:
    """Shuffle each variable within the pool; drawn on the CPU, the same on every device."""
    device = content.device
    images = torch.randperm(len(labels), generator=generator).to(device)
    positions = torch.rand(content.shape, generator=generator).argsort(dim=1).to(device)
    tokens = torch.randperm(content.numel(), generator=generator).to(device)
    shuffled = content.flatten()[tokens].view_as(content)
    return [labels[images, None].expand_as(content), positions, shuffled]
