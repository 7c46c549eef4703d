"""Selection: which tokens the priors of each head take, and how similar the priors are.

A pool is a batch of the split, as in training; the memory stays frozen. With scope "image", each
image is a pool, and the priors compared are those of its memory.

Dims     B images   N tokens per image, the last P of them patches   Q pools of T tokens
         E token width   L layers   S heads of the workspace   M priors   D prior width
         K tokens that a prior of a head takes   W winners kept   I first images
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from associative_transformer.analysis.networks import (
    memories_of,
    read_weights,
    select,
    similarities,
)
from associative_transformer.analysis.trace import trace_all
from associative_transformer.functional import effective_rank
from associative_transformer.health import DEAD
from associative_transformer.interface import Batch, UserError, format_count
from associative_transformer.models.ait import AiT
from associative_transformer.models.layers import TokenEmbed
from associative_transformer.models.pretrained import PretrainedModel
from associative_transformer.workspace import GlobalWorkspace

DUPLICATE = 0.9
"""Priors are duplicates if their tokens overlap more than this (Jaccard, mean over heads)."""
PART = 2**24
"""Number of floats that a step of the overlap may hold."""


@dataclass(frozen=True)
class SelectionStatistics:
    """What the priors take from the pools of a split, and how much they have in common."""

    num_images: int
    pool_size: int  # tokens of a full pool
    bottleneck: int  # tokens that each prior of each head takes from a full pool
    usage: Float[np.ndarray, "L M"]  # mean weight of each attractor in the retrieval, sums to 1
    entropy: Float[np.ndarray, "L S M"]  # of the attention over the tokens taken, in bits
    coverage: Float[np.ndarray, "L S"]  # share of a pool that at least one prior takes
    overlap: Float[np.ndarray, "L S M M"]  # Jaccard overlap of the tokens of two priors of a head
    head_overlap: Float[np.ndarray, "L M S S"]  # the same for two heads of a prior
    similarity: Float[np.ndarray, "L M M"]  # cosine between priors
    effective_rank: Float[np.ndarray, " L"]  # exp of the entropy of the squared singular values
    winners: Int[np.ndarray, "L S M W 2"]  # (image, patch) of the best tokens; see `name_token`
    winner_scores: Float[np.ndarray, "L S M W"]  # their similarity to the prior, descending
    taken: Int[np.ndarray, "L S M I P"]  # order in which a prior takes each patch, 0: not taken
    scope: str = "batch"  # "image": a pool is an image; similarity and rank are means over them
    wins: Float[np.ndarray, "L S M"] | None = None  # share of the tokens taken; not in early runs

    @property
    def is_dead(self) -> Bool[np.ndarray, "L M"]:
        """Whether a prior is hardly ever retrieved."""
        return self.usage < DEAD / self.usage.shape[1]

    @property
    def is_duplicate(self) -> Bool[np.ndarray, "L M"]:
        """Whether an earlier prior takes the same tokens."""
        is_same = self.overlap.mean(axis=1) > DUPLICATE  # (L, M, M)
        return np.tril(is_same, k=-1).any(axis=-1)

    @property
    def never_wins(self) -> Bool[np.ndarray, "L S M"]:
        """Whether other priors of a head attend more to nearly every token that a prior takes.

        Of equal priors, the first one wins. All are False in early results, which lack the wins.
        """
        if self.wins is None:
            return np.zeros(self.entropy.shape, bool)
        return self.wins < DEAD / self.usage.shape[1]

    def describe(self) -> Iterator[str]:
        """Yield the main numbers as lines of text."""
        num_priors = self.usage.shape[1]
        of_image = " of an image" * (self.scope == "image")
        yield (
            f"memory of {format_count(num_priors, 'prior')}, each of which takes "
            f"{self.bottleneck:,} of {format_count(self.pool_size, 'token')}{of_image}:"
        )
        pairs = np.triu_indices(num_priors, k=1)
        for layer, overlap in enumerate(self.overlap):
            mean = f", mean overlap {overlap[:, *pairs].mean():.2f}" if num_priors > 1 else ""
            num_dead, num_duplicate = self.is_dead[layer].sum(), self.is_duplicate[layer].sum()
            losers = self.never_wins[layer].sum(axis=-1)
            never = f", never win (by head): {', '.join(map(str, losers))}" if losers.any() else ""
            yield (
                f"  layer {layer + 1}: effective rank {self.effective_rank[layer]:.1f}, "
                f"{num_dead} dead, {num_duplicate} duplicate{never}{mean}"
            )


@torch.no_grad()
def measure_selection(
    model: PretrainedModel,
    batches: Iterable[Batch],
    num_winners: int = 12,
    num_images: int = 48,
) -> SelectionStatistics:
    """Let the priors of an AiT select tokens from each batch, as from a pool in training.

    With scope "image", each image is a pool of its own. Entropy, coverage and overlaps are means
    over the pools, weighted by their tokens. If the last pool has fewer tokens than the
    bottleneck, every prior takes all of them. The winners are the best tokens of all pools; there
    are fewer than `num_winners` if a prior takes fewer. `taken` covers the first `num_images`
    images. Images are numbered in the order of the batches.

    The memory does not change. Raises UserError for other models, and ValueError without images.
    """
    if not isinstance(model, AiT):
        raise UserError(f"{type(model).__name__} has no workspace with priors: use a run of AiT")
    blocks = cast(Iterable[Any], model.blocks)
    tallies = [
        _LayerTally(block.workspace, model.embed, num_winners, num_images) for block in blocks
    ]
    for traced in trace_all(model, batches):
        for tally, layer in zip(tallies, traced.layers, strict=True):
            tally.add(cast(Tensor, layer.workspace_input))
    if not tallies[0].num_images:
        raise ValueError("there are no images to select from")
    means = [tally.means() for tally in tallies]
    return SelectionStatistics(
        num_images=tallies[0].num_images,
        pool_size=tallies[0].pool_size,
        bottleneck=tallies[0].bottleneck,
        usage=_stack(mean.usage for mean in means),
        entropy=_stack(mean.entropy for mean in means),
        coverage=_stack(mean.coverage for mean in means),
        overlap=_stack(mean.overlap for mean in means),
        head_overlap=_stack(mean.head_overlap for mean in means),
        similarity=_stack(tally.similarity for tally in tallies),
        effective_rank=np.array([tally.effective_rank for tally in tallies]),
        winners=_stack(tally.winners() for tally in tallies),
        winner_scores=_stack(tally.scores for tally in tallies),
        taken=_stack(tally.taken.int() for tally in tallies),  # the largest array of all results
        scope=model.config.workspace.scope,
        wins=_stack(tally.wins / tally.wins.sum(dim=-1, keepdim=True) for tally in tallies),
    )


def name_token(patch: int, items: str) -> str:
    """Return what a negative patch of `winners` stands for; `items` is "images" or "questions".

    In front of the patches are the class token, if there is one, and then the question.
    """
    return "question" if items == "questions" and patch == -1 else "class token"


class _Means(NamedTuple):
    """Statistics of one layer that are averaged over the pools."""

    usage: Float[Tensor, " M"]
    entropy: Float[Tensor, "S M"]
    coverage: Float[Tensor, " S"]
    overlap: Float[Tensor, "S M M"]
    head_overlap: Float[Tensor, "M S S"]


class _LayerTally:
    """What the priors of one layer have taken from the pools so far, on the CPU."""

    def __init__(
        self, workspace: GlobalWorkspace, embed: TokenEmbed, num_winners: int, num_shown: int
    ) -> None:
        self.workspace = workspace
        self.num_tokens, self.num_patches = embed.num_tokens, embed.num_patches  # per image
        self.num_winners, self.num_shown = num_winners, num_shown
        self.num_images = self.pool_size = self.bottleneck = 0
        self.similarity, self.effective_rank = torch.zeros(()), 0.0
        self.sums = [torch.zeros(()) for _ in _Means._fields]  # weighted by the tokens of a pool
        empty = torch.zeros(workspace.config.num_heads, workspace.config.num_priors, 0)
        self.scores = empty  # (S, M, W), descending
        self.tokens = empty.long()  # (S, M, W), index in the split of the token with this score
        self.wins = empty.new_zeros(empty.shape[:2], dtype=torch.double)  # (S, M), in tokens
        self.taken = empty.long()[..., None].expand(-1, -1, -1, self.num_patches)

    def add(self, u: Float[Tensor, "B N E"]) -> None:
        """Let the priors select from one more pool, or from the pools of some images."""
        pools = u if self.workspace.config.scope == "image" else u.flatten(0, 1)[None]
        score, chosen = select(self.workspace, u)
        if not self.num_images:
            self.pool_size, self.bottleneck = pools.shape[1], chosen.shape[-1]
        takes = torch.zeros(*chosen.shape[:3], pools.shape[1], dtype=torch.bool, device=u.device)
        takes.scatter_(-1, chosen, True)  # (Q, S, M, T)
        self.wins += _count_wins(score, chosen, pools.shape[1]).cpu()
        means = _Means(
            usage=read_weights(self.workspace, u).mean(dim=(0, 1, 2)),
            entropy=(torch.special.entr(score).sum(dim=-1) / math.log(2)).mean(dim=0),
            coverage=takes.any(dim=2).float().mean(dim=(0, -1)),
            overlap=_jaccard(takes),
            head_overlap=_jaccard(takes.transpose(1, 2)),
        )
        weighted = [mean.cpu().double() * u.shape[0] * u.shape[1] for mean in means]
        self.sums = [total + more for total, more in zip(self.sums, weighted, strict=True)]
        self._add_memories(memories_of(self.workspace, u))
        similarity = similarities(self.workspace, pools).gather(-1, chosen)  # (Q, S, M, K)
        scores, order = similarity.sort(dim=-1, descending=True, stable=True)
        scores, chosen = scores.cpu(), chosen.gather(-1, order).cpu()
        self._add_winners(scores, chosen)
        self._add_taken(chosen, len(u))
        self.num_images += len(u)

    def _add_memories(self, memories: Float[Tensor, "B M D"]) -> None:
        """Update the means of similarity and effective rank by some images."""
        if self.workspace.config.scope == "batch":  # the same in all images
            memories = memories[: not self.num_images]
        for number, priors in enumerate(memories.cpu().double(), start=self.num_images + 1):
            unit = normalize(priors, dim=-1)
            self.similarity = self.similarity + (unit @ unit.mT - self.similarity) / number
            self.effective_rank += (effective_rank(priors) - self.effective_rank) / number

    def _add_winners(
        self, scores: Float[Tensor, "Q S M K"], chosen: Int[Tensor, "Q S M K"]
    ) -> None:
        """Keep the tokens with the highest scores of all pools; `scores` must be descending."""
        starts = self.num_images * self.num_tokens + self.pool_size * torch.arange(len(chosen))
        tokens = (chosen + starts[:, None, None, None])[..., : self.num_winners]
        tokens = rearrange(tokens, "q s m k -> s m (q k)")
        scores = rearrange(scores[..., : self.num_winners], "q s m k -> s m (q k)")
        tokens = torch.cat([self.tokens, tokens], dim=-1)
        scores = torch.cat([self.scores, scores], dim=-1)
        scores, order = scores.sort(dim=-1, descending=True, stable=True)
        self.scores = scores[..., : self.num_winners]
        self.tokens = tokens.gather(-1, order)[..., : self.num_winners]

    def _add_taken(self, chosen: Int[Tensor, "Q S M K"], num_images: int) -> None:
        """Record the order in which the patches of the first images are taken, best first."""
        num_shown = min(max(self.num_shown - self.num_images, 0), num_images)
        size = num_images * self.num_tokens // len(chosen)  # tokens of a pool
        taken = chosen.new_zeros(*chosen.shape[:3], size)
        order = torch.arange(1, chosen.shape[-1] + 1).expand_as(chosen)
        taken = taken.scatter_(-1, chosen, order)
        taken = rearrange(taken, "q s m (i n) -> s m (q i) n", n=self.num_tokens)
        shown = taken[..., :num_shown, -self.num_patches :]
        self.taken = torch.cat([self.taken, shown], dim=-2)

    def means(self) -> _Means:
        """Return the means over all tokens so far."""
        return _Means(*(total / (self.num_images * self.num_tokens) for total in self.sums))

    def winners(self) -> Int[Tensor, "S M W 2"]:
        """Return the image and the patch of each winner; other tokens have negative numbers."""
        image, token = self.tokens // self.num_tokens, self.tokens % self.num_tokens
        patch = token - (self.num_tokens - self.num_patches)
        return torch.stack([image, patch], dim=-1)


def _count_wins(
    score: Float[Tensor, "Q S M K"], chosen: Int[Tensor, "Q S M K"], size: int
) -> Float[Tensor, "S M"]:
    """Count the tokens of pools of this size to which no prior of the head attends more."""
    wins = []
    for head in range(score.shape[1]):  # one by one, to save memory
        gates = score.new_zeros(len(score), score.shape[2], size)
        largest, winner = gates.scatter_(-1, chosen[:, head], score[:, head]).max(dim=1)
        wins.append(winner[largest > 0].bincount(minlength=score.shape[2]))
    return torch.stack(wins).double()


def _jaccard(takes: Bool[Tensor, "Q G A T"]) -> Float[Tensor, "G A A"]:
    """Return the Jaccard overlap (intersection over union) of token sets, a mean over pools."""
    total = torch.zeros((), device=takes.device)
    for pools in torch.split(takes, max(1, PART // takes[0].numel())):  # to save memory
        shared = pools.float() @ pools.float().mT  # (Q, G, A, A)
        size = shared.diagonal(dim1=-2, dim2=-1)
        union = size[..., :, None] + size[..., None, :] - shared
        total = total + (shared / union).sum(dim=0)
    return total / len(takes)


def _stack(parts: Iterable[Tensor]) -> np.ndarray:
    return torch.stack(list(parts)).numpy()
