"""Heads: from the tokens of an image to its logits.

Dims     B batch   N tokens per image   E token width   O classes
"""

from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn

from associative_transformer.float32 import Float32Linear

HeadKind = Literal["flatten", "mean", "cls", "question"]
"""flatten: all tokens, concatenated, as in the paper; mean: their mean; cls: a class token;
question: the token of the question."""


class FlattenHead(nn.Sequential):
    """LayerNorm and linear map of all tokens, concatenated in order."""

    def __init__(self, num_tokens: int, embed_dim: int, num_classes: int) -> None:
        width = num_tokens * embed_dim
        super().__init__(nn.Flatten(), nn.LayerNorm(width), Float32Linear(width, num_classes))


class MeanHead(nn.Module):
    """Linear map of the mean over the normalized tokens."""

    def __init__(self, embed_dim: int, num_classes: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(embed_dim)
        self.to_logits = Float32Linear(embed_dim, num_classes)

    def forward(self, x: Float[Tensor, "B N E"]) -> Float[Tensor, "B O"]:
        return self.to_logits(self.norm(x).mean(dim=1))


class FirstTokenHead(nn.Module):
    """LayerNorm and linear map of the first token: a class token, or the question."""

    def __init__(self, embed_dim: int, num_classes: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(embed_dim)
        self.to_logits = Float32Linear(embed_dim, num_classes)

    def forward(self, x: Float[Tensor, "B N E"]) -> Float[Tensor, "B O"]:
        return self.to_logits(self.norm(x[:, 0]))


def build_head(kind: HeadKind, num_tokens: int, embed_dim: int, num_classes: int) -> nn.Module:
    """Return a new head of the given kind."""
    if kind == "flatten":
        return FlattenHead(num_tokens, embed_dim, num_classes)
    return (MeanHead if kind == "mean" else FirstTokenHead)(embed_dim, num_classes)
