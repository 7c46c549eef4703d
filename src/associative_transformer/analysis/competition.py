"""Competition in self-attention: how few tokens receive most of the attention of a token.

Follows Ramsauer et al. 2021 (arXiv 2008.02217), who counted these tokens for the heads of BERT.

Dims     B batch   L layers with self-attention   H heads   N tokens per image
         C = N + 1 possible counts, from 0 to N
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from associative_transformer.analysis.trace import trace_all
from associative_transformer.interface import Batch, UserError
from associative_transformer.models.pretrained import PretrainedModel

ROUNDING = 1e-6
"""Relative error allowed in a sum of attention: a softmax in float32 is not exact."""


@dataclass(frozen=True)
class Competition:
    """How many tokens receive `share` of the attention of a token, counted over many images."""

    one: ClassVar[int] = 1  # the lower bound: one token receives all

    share: float
    num_images: int
    layers: list[int]  # indices of the layers with self-attention
    counts: Int[np.ndarray, "L H C"]  # how many tokens of all images need 0, 1, ..., N tokens

    @property
    def uniform(self) -> int:
        """The upper bound, ceil(share N): all tokens receive the same attention."""
        num_tokens = self.counts.shape[-1] - 1
        return int(tokens_for_share(torch.full((num_tokens,), 1 / num_tokens), self.share))

    @property
    def mean(self) -> Float[np.ndarray, "L H"]:
        """The mean count of each head."""
        return self.counts @ np.arange(self.counts.shape[-1]) / self.counts.sum(axis=-1)

    def quantile(self, q: float) -> Float[np.ndarray, "L H"]:
        """Return for each head the smallest count that covers at least a share q of the tokens."""
        if not 0 <= q <= 1:
            raise ValueError(f"q must be between 0 and 1, not {q}")
        covered = self.counts.cumsum(axis=-1)
        total = covered[..., -1:]
        required = np.maximum(np.ceil(q * total * (1 - 1e-12)), 1)  # as floats, 0.07 * 100 > 7
        return (covered >= required).argmax(axis=-1).astype(np.float64)

    def describe(self) -> Iterator[str]:
        """Yield the main numbers as lines of text."""
        yield (
            f"tokens that receive {100 * self.share:.0f} % of the attention of a token (median; "
            f"{self.uniform} if uniform):"
        )
        all_heads = replace(self, counts=self.counts.sum(axis=1, keepdims=True))
        for layer, median in zip(self.layers, all_heads.quantile(0.5)[:, 0], strict=True):
            yield f"  layer {layer + 1}: {median:.0f}"


def tokens_for_share(attention: Float[Tensor, "*B N"], share: float) -> Int[Tensor, "*B"]:
    """Return the smallest number of tokens that receive at least `share` of a row of attention."""
    if not 0 < share <= 1:
        raise ValueError(f"share must be in (0, 1], not {share}")
    descending = attention.sort(dim=-1, descending=True).values
    sums = descending.cumsum(dim=-1, dtype=torch.float64)  # a GPU would sum in float32
    required = share * (1 - ROUNDING) * sums[..., -1:]
    return (sums < required).sum(dim=-1) + 1


@torch.no_grad()
def measure_competition(
    model: PretrainedModel, batches: Iterable[Batch], share: float = 0.9
) -> Competition:
    """Count, for each head, how many tokens receive `share` of the attention of each token.

    Layers without self-attention are left out. The model keeps its mode. Raises UserError if no
    layer has self-attention, and ValueError if there are no images.
    """
    counts: dict[int, Tensor] = {}
    num_images = 0
    for traced in trace_all(model, batches):
        num_images += len(traced.labels)
        for index, layer in enumerate(traced.layers):
            if (attention := layer.attention) is not None:
                counts[index] = counts.get(index, 0) + _count(attention, share)
    if not num_images:
        raise ValueError("there are no images to measure competition on")
    if not counts:
        raise UserError(
            f"this {type(model).__name__} has no self-attention in which tokens compete: use a "
            "run of ViT, or of AiT with use_self_attention"
        )
    stacked = torch.stack(list(counts.values())).cpu().numpy()
    return Competition(share, num_images, list(counts), stacked)


def _count(attention: Float[Tensor, "B H N N"], share: float) -> Int[Tensor, "H N+1"]:
    """Count the tokens of each head that need 0, 1, ..., N tokens; by head, to save memory."""
    size = attention.shape[-1] + 1
    heads = (tokens_for_share(head, share).flatten() for head in attention.unbind(dim=1))
    return torch.stack([num_needed.bincount(minlength=size) for num_needed in heads])
