"""Selection: which tokens the priors of each head take, and how alike the priors are.

A pool is a batch of the split, as in training; the memory stays frozen.

Dims     B images   N tokens per image, the last P of them patches   T = B * N pooled tokens
         E token width   L layers   S heads of the workspace   M priors   D prior width
         K tokens that a prior of a head takes   W winners kept   I first images
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from associative_transformer.analysis.trace import trace_all
from associative_transformer.functional import effective_rank, hopfield_retrieve
from associative_transformer.interface import Batch, UserError
from associative_transformer.models import AiT
from associative_transformer.models.layers import CrossAttention, TokenEmbed
from associative_transformer.models.pretrained import PretrainedModel
from associative_transformer.workspace import GlobalWorkspace

DEAD = 0.1
"""A prior is dead when tokens retrieve it less than this share of an even part, 1 / M."""
DUPLICATE = 0.9
"""Priors are duplicates when their tokens overlap more than this (Jaccard, mean over heads)."""


@dataclass(frozen=True)
class Selected:
    """What the priors take from the pools of a split, and how much of it is the same."""

    num_images: int
    pool_size: int  # tokens of a full pool
    bottleneck: int  # tokens that each prior of each head takes from a full pool
    usage: Float[np.ndarray, "L M"]  # mean weight of each attractor in the retrieval, sums to 1
    entropy: Float[np.ndarray, "L S M"]  # of the attention over the tokens taken, in bits
    coverage: Float[np.ndarray, "L S"]  # share of a pool that at least one prior takes
    overlap: Float[np.ndarray, "L S M M"]  # Jaccard overlap of what two priors of a head take
    head_overlap: Float[np.ndarray, "L M S S"]  # the same of two heads of a prior
    similarity: Float[np.ndarray, "L M M"]  # cosine between priors
    effective_rank: Float[np.ndarray, " L"]  # exp of the entropy of the squared singular values
    winners: Int[np.ndarray, "L S M W 2"]  # (image, patch) of the best tokens; patch -1: question
    winner_scores: Float[np.ndarray, "L S M W"]  # their similarity to the prior, falling
    taken: Int[np.ndarray, "L S M I P"]  # of the first I images: rank of each patch, 0: not taken

    @property
    def is_dead(self) -> Bool[np.ndarray, "L M"]:
        """Whether a prior is hardly retrieved."""
        return self.usage < DEAD / self.usage.shape[1]

    @property
    def is_duplicate(self) -> Bool[np.ndarray, "L M"]:
        """Whether a prior before it takes the same tokens."""
        same = self.overlap.mean(axis=1) > DUPLICATE  # (L, M, M)
        return np.tril(same, k=-1).any(axis=-1)


@dataclass(frozen=True)
class Drift:
    """How the memory moved during training."""

    epochs: list[int]  # after which it was saved, from 1; their number is T
    angle: Float[np.ndarray, "T L"]  # mean angle of a prior to the epoch before, degrees; first: 0
    effective_rank: Float[np.ndarray, "T L"]


@torch.no_grad()
def measure_selection(
    model: PretrainedModel,
    batches: Iterable[Batch],
    num_winners: int = 12,
    num_images: int = 48,
) -> Selected:
    """Let the priors of an AiT choose from every batch as from a pool of training.

    Entropy, coverage and overlaps are means over the pools, weighted by their tokens, so that a
    smaller last pool counts for what it is; it may be smaller than the bottleneck, which then
    takes all of it. The winners are the best of all pools; there are fewer than `num_winners`
    where a prior takes fewer. Images are counted in the order of the split.

    The memory is not moved, and the model keeps its mode. Raises UserError where it is no AiT.
    """
    if not isinstance(model, AiT):
        name = type(model).__name__
        raise UserError(f"a {name} has no workspace whose priors select: take a run of AiT")
    blocks = cast(Iterable[Any], model.blocks)
    layers = [
        _LayerTally(block.workspace, model.embed, num_winners, num_images) for block in blocks
    ]
    for traced in trace_all(model, batches):
        for layer, passed in zip(layers, traced.layers, strict=True):
            layer.add(cast(Tensor, passed.handed))
    if not layers[0].num_images:
        raise ValueError("there are no images to select from")
    means = [layer.means() for layer in layers]
    memory = [layer.workspace.priors.cpu().double() for layer in layers]
    unit = [normalize(priors, dim=-1) for priors in memory]
    return Selected(
        num_images=layers[0].num_images,
        pool_size=layers[0].pool_size,
        bottleneck=layers[0].bottleneck,
        usage=_stack(mean.usage for mean in means),
        entropy=_stack(mean.entropy for mean in means),
        coverage=_stack(mean.coverage for mean in means),
        overlap=_stack(mean.overlap for mean in means),
        head_overlap=_stack(mean.head_overlap for mean in means),
        similarity=_stack(priors @ priors.mT for priors in unit),
        effective_rank=np.array([effective_rank(priors) for priors in memory]),
        winners=_stack(layer.winners() for layer in layers),
        winner_scores=_stack(layer.scores for layer in layers),
        taken=_stack(layer.taken for layer in layers),
    )


class _Means(NamedTuple):
    """What is averaged over the pools of a layer."""

    usage: Float[Tensor, " M"]
    entropy: Float[Tensor, "S M"]
    coverage: Float[Tensor, " S"]
    overlap: Float[Tensor, "S M M"]
    head_overlap: Float[Tensor, "M S S"]


class _LayerTally:
    """What the priors of one layer took from the pools so far, on the CPU."""

    def __init__(
        self, workspace: GlobalWorkspace, embed: TokenEmbed, num_winners: int, num_shown: int
    ) -> None:
        self.workspace = workspace
        self.num_tokens, self.num_patches = embed.num_tokens, embed.num_patches  # of an image
        self.num_winners, self.num_shown = num_winners, num_shown
        self.num_images = self.pool_size = self.bottleneck = 0
        self.sums = [torch.zeros(()) for _ in _Means._fields]  # weighted by the tokens of a pool
        nothing = torch.zeros(workspace.config.num_heads, workspace.config.num_priors, 0)
        self.scores = nothing  # (S, M, W), falling
        self.places = nothing.long()  # of these tokens in the split
        self.taken = nothing.long()[..., None].expand(-1, -1, -1, self.num_patches)

    def add(self, u: Float[Tensor, "B N E"]) -> None:
        """Let the priors choose from one more pool."""
        pool = u.flatten(0, 1)  # (T, E)
        _, score, chosen = self.workspace.write(pool).selection
        if not self.num_images:
            self.pool_size, self.bottleneck = len(pool), chosen.shape[-1]
        takes = torch.zeros(*chosen.shape[:2], len(pool), dtype=torch.bool, device=u.device)
        takes.scatter_(-1, chosen, True)  # (S, M, T)
        found = _Means(
            usage=_usage(self.workspace, pool),
            entropy=torch.special.entr(score).sum(dim=-1) / math.log(2),
            coverage=takes.any(dim=1).float().mean(dim=-1),
            overlap=_jaccard(takes),
            head_overlap=_jaccard(takes.transpose(0, 1)),
        )
        weighted = [mean.cpu().double() * len(pool) for mean in found]
        self.sums = [total + more for total, more in zip(self.sums, weighted, strict=True)]
        similarity = _similarity(self.workspace, pool).gather(-1, chosen)  # (S, M, K)
        scores, order = similarity.sort(dim=-1, descending=True, stable=True)
        self._rank(scores.cpu(), chosen.gather(-1, order).cpu(), len(u))

    def _rank(
        self, scores: Float[Tensor, "S M K"], chosen: Int[Tensor, "S M K"], num_images: int
    ) -> None:
        """Keep the best tokens of the split, and the rank of each patch in the first images."""
        places = chosen + self.num_images * self.num_tokens
        scores = torch.cat([self.scores, scores[..., : self.num_winners]], dim=-1)
        places = torch.cat([self.places, places[..., : self.num_winners]], dim=-1)
        scores, order = scores.sort(dim=-1, descending=True, stable=True)
        self.scores = scores[..., : self.num_winners]
        self.places = places.gather(-1, order)[..., : self.num_winners]
        shown = min(max(self.num_shown - self.num_images, 0), num_images)
        end = shown * self.num_tokens
        ranks = chosen.new_zeros(*chosen.shape[:2], end + 1)  # the last one is for all that follow
        rank = torch.arange(1, chosen.shape[-1] + 1).expand_as(chosen)
        ranks.scatter_(-1, chosen.clamp(max=end), rank)
        ranks = rearrange(ranks[..., :end], "s m (i n) -> s m i n", n=self.num_tokens)
        self.taken = torch.cat([self.taken, ranks[..., -self.num_patches :]], dim=-2)
        self.num_images += num_images

    def means(self) -> _Means:
        """Give the means over all tokens so far."""
        return _Means(*(total / (self.num_images * self.num_tokens) for total in self.sums))

    def winners(self) -> Int[Tensor, "S M W 2"]:
        """Give image and patch of the best tokens; the question is patch -1."""
        image, token = self.places // self.num_tokens, self.places % self.num_tokens
        patch = token - (self.num_tokens - self.num_patches)  # an AiT has no class token
        return torch.stack([image, patch], dim=-1)


def _usage(workspace: GlobalWorkspace, u: Float[Tensor, "T E"]) -> Float[Tensor, " M"]:
    """Give the mean weight of each attractor in what the tokens read (in the last step)."""
    attractors, c = workspace.to_attractor(workspace.priors), workspace.config
    if isinstance(reader := workspace.reader, CrossAttention):
        q = rearrange(reader.to_q(u), "t (h d) -> h t d", h=reader.num_heads)
        k, _ = rearrange(reader.to_kv(attractors), "m (z h d) -> z h m d", z=2, h=len(q))
        return (q @ k.mT / math.sqrt(q.shape[-1])).softmax(dim=-1).mean(dim=(0, 1))
    state = hopfield_retrieve(u, attractors, c.beta, c.num_steps - 1)
    return (c.beta * state @ attractors.mT).softmax(dim=-1).mean(dim=0)


def _similarity(workspace: GlobalWorkspace, pool: Float[Tensor, "T E"]) -> Float[Tensor, "S M T"]:
    """Give the logits of the bottleneck attention."""
    heads = workspace.config.num_heads
    q = rearrange(workspace.to_q(workspace.priors), "m (s d) -> s m d", s=heads)
    k = rearrange(workspace.to_k(pool), "t (s d) -> s t d", s=heads)
    return q @ k.mT / math.sqrt(q.shape[-1])


def _jaccard(takes: Bool[Tensor, "G A T"]) -> Float[Tensor, "G A A"]:
    """Compare, within a group, what each takes: shared tokens over those that either takes."""
    shared = torch.stack([each.float() @ each.float().mT for each in takes])
    size = shared.diagonal(dim1=-2, dim2=-1)
    return shared / (size[..., :, None] + size[..., None, :] - shared)


def _stack(parts: Iterable[Tensor]) -> np.ndarray:
    return torch.stack(list(parts)).numpy()


def measure_drift(memory: Float[np.ndarray, "T L M D"]) -> Drift:
    """Follow the memory over the epochs of a run: the `priors` in its `memory.npz`."""
    unit = normalize(torch.from_numpy(memory), dim=-1)
    before, after = unit[:-1], unit[1:]
    apart, together = (after - before).norm(dim=-1), (after + before).norm(dim=-1)
    angle = 2 * torch.atan2(apart, together).rad2deg()  # an arc cosine is inexact near 0
    first = torch.zeros_like(unit[:1, ..., 0])
    rank = [[effective_rank(layer) for layer in epoch] for epoch in torch.from_numpy(memory)]
    return Drift(
        epochs=list(range(1, len(memory) + 1)),
        angle=torch.cat([first, angle]).mean(dim=-1).numpy(),
        effective_rank=np.array(rank),
    )
