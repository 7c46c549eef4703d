"""Competition inside the self-attention: how few tokens make up most of what a token attends to.

After Ramsauer et al. 2021 (arXiv 2008.02217), who counted them for the heads of BERT.

Dims     B batch   L layers with self-attention   H heads   N tokens per image
         C = N + 1 counts, from 0
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from associative_transformer.analysis.trace import trace_all
from associative_transformer.interface import Batch, UserError
from associative_transformer.models.pretrained import PretrainedModel

ROUNDING = 1e-6
"""What a sum of attention may lack, relative to the share: a softmax in float32 is not exact."""


@dataclass(frozen=True)
class Competition:
    """How many tokens each token needs for `share` of its attention, over many images."""

    one: ClassVar[int] = 1  # the lower bound: one token gets all

    share: float
    num_images: int
    layers: list[int]  # which ones have self-attention, from 0
    counts: Int[np.ndarray, "L H C"]  # tokens of all images that need 0, 1, ..., N tokens

    @property
    def uniform(self) -> int:
        """The upper bound, ceil(share N): all tokens get the same."""
        num_tokens = self.counts.shape[-1] - 1
        return int(tokens_for_share(torch.full((num_tokens,), 1 / num_tokens), self.share))

    @property
    def mean(self) -> Float[np.ndarray, "L H"]:
        """The mean count of each head."""
        return self.counts @ np.arange(self.counts.shape[-1]) / self.counts.sum(axis=-1)

    def quantile(self, q: float) -> Float[np.ndarray, "L H"]:
        """Give, per head, the smallest count that covers at least a share q of the tokens."""
        if not 0 <= q <= 1:
            raise ValueError(f"a quantile is between 0 and 1, not {q}")
        covered = self.counts.cumsum(axis=-1)
        total = covered[..., -1:]
        wanted = np.maximum(np.ceil(q * total * (1 - 1e-12)), 1)  # 0.07 * 100 is more than 7
        return (covered >= wanted).argmax(axis=-1).astype(np.float64)


def tokens_for_share(attention: Float[Tensor, "*B N"], share: float) -> Int[Tensor, "*B"]:
    """Count the fewest tokens whose attention sums to `share` of the row."""
    if not 0 < share <= 1:
        raise ValueError(f"share must be in (0, 1], not {share}")
    falling = attention.sort(dim=-1, descending=True).values
    reached = falling.cumsum(dim=-1, dtype=torch.float64)  # a GPU would add up in float32
    wanted = share * (1 - ROUNDING) * reached[..., -1:]
    return (reached < wanted).sum(dim=-1) + 1


@torch.no_grad()
def measure_competition(
    model: PretrainedModel, batches: Iterable[Batch], share: float = 0.9
) -> Competition:
    """Count, in every head, how many tokens make up `share` of the attention of each token.

    Layers without self-attention are left out. Raises UserError where a model has none, and where
    it is neither AiT nor ViT. The model keeps its mode.
    """
    counts: dict[int, Tensor] = {}
    num_images = 0
    for traced in trace_all(model, batches):
        num_images += len(traced.labels)
        for place, layer in enumerate(traced.layers):
            if layer.attention is not None:
                counted = _count(layer.attention, share)
                counts[place] = counts[place] + counted if place in counts else counted
    if not num_images:
        raise ValueError("there are no images to measure the competition on")
    if not counts:
        raise UserError(
            "this model has no self-attention, so nothing competes in it: take a run whose "
            "use_self_attention is True"
        )
    stacked = torch.stack(list(counts.values())).cpu().numpy()
    return Competition(share, num_images, list(counts), stacked)


def _count(attention: Float[Tensor, "B H N N"], share: float) -> Int[Tensor, "H N+1"]:
    """Give the tokens of each head that need 0, 1, ..., N tokens; one head at a time: it sorts."""
    size = attention.shape[-1] + 1
    heads = (tokens_for_share(head, share).flatten() for head in attention.unbind(dim=1))
    return torch.stack([needed.bincount(minlength=size) for needed in heads])
