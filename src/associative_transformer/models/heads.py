"""Heads: from the tokens of an image to its logits.

Dims     B batch   N tokens per image   E token width   F features of an image   O classes
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
        super().__init__(nn.Flatten(), nn.LayerNorm(width), build_classifier(width, num_classes))
        self.width = width

    @property
    def classifier(self) -> nn.Module:
        """The linear map to the logits."""
        return self[2]

    def set_classifier(self, classifier: nn.Module) -> None:
        """Replace the linear map."""
        self[2] = classifier

    def pool(self, x: Float[Tensor, "B N E"]) -> Float[Tensor, "B F"]:
        """Return the features that the classifier takes."""
        return self[1](self[0](x))


class PoolHead(nn.Module):
    """Base of heads that reduce the normalized tokens to one vector, then map it linearly."""

    def __init__(self, embed_dim: int, num_classes: int) -> None:
        super().__init__()
        self.width = embed_dim
        self.norm = nn.LayerNorm(embed_dim)
        self.to_logits = build_classifier(embed_dim, num_classes)

    @property
    def classifier(self) -> nn.Module:
        """The linear map to the logits."""
        return self.to_logits

    def set_classifier(self, classifier: nn.Module) -> None:
        """Replace the linear map."""
        self.to_logits = classifier

    def pool(self, x: Float[Tensor, "B N E"]) -> Float[Tensor, "B F"]:
        """Return the features that the classifier takes."""
        raise NotImplementedError

    def forward(self, x: Float[Tensor, "B N E"]) -> Float[Tensor, "B O"]:
        return self.to_logits(self.pool(x))


class MeanHead(PoolHead):
    """Linear map of the mean over the normalized tokens."""

    def pool(self, x: Float[Tensor, "B N E"]) -> Float[Tensor, "B F"]:
        """Return the mean of the normalized tokens."""
        return self.norm(x).mean(dim=1)


class FirstTokenHead(PoolHead):
    """LayerNorm and linear map of the first token: a class token, or the question."""

    def pool(self, x: Float[Tensor, "B N E"]) -> Float[Tensor, "B F"]:
        """Return the normalized first token."""
        return self.norm(x[:, 0])


Head = FlattenHead | MeanHead | FirstTokenHead


def build_head(kind: HeadKind, num_tokens: int, embed_dim: int, num_classes: int) -> Head:
    """Return a new head of the given kind; with `num_classes` 0, it returns its features."""
    if kind == "flatten":
        return FlattenHead(num_tokens, embed_dim, num_classes)
    return (MeanHead if kind == "mean" else FirstTokenHead)(embed_dim, num_classes)


def build_classifier(width: int, num_classes: int) -> nn.Module:
    """Return a new linear map to the logits, or the identity without classes."""
    return Float32Linear(width, num_classes) if num_classes else nn.Identity()
