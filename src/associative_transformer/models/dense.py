"""A ViT without attention, for the paper's Dense-Small and Dense-Base, which it does not define.

Dims     B batch   C channels   H W image side   N tokens   E token width   Q question features
Sizes    Dense-Small 2, Dense-Base 12 layers at E 768
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import ConfigDict, with_config
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from associative_transformer.interface import ModelOutput
from associative_transformer.models.layers import (
    FeedForward,
    FlattenHead,
    Positions,
    TokenEmbed,
    check_sizes,
)
from associative_transformer.models.pretrained import PretrainedModel


@with_config(ConfigDict(extra="forbid"))
@dataclass(frozen=True)
class DenseConfig:
    """Sizes of a ViT without attention; the defaults are Dense-Small on Sort-of-CLEVR."""

    kind: Literal["dense"] = "dense"
    """Tells the model configurations apart."""
    image_size: int = 75
    """Height and width of the images in pixels."""
    patch_size: int = 15
    """Height and width of a patch in pixels; divides image_size."""
    num_channels: int = 3
    """C: channels of the images."""
    num_classes: int = 10
    """Classes to tell apart."""
    question_dim: int = 18
    """Q: features of a question about the image, which becomes the first token; 0: none."""
    pos: Positions = "none"
    """Position embedding."""
    embed_dim: int = 768
    """E: token width."""
    depth: int = 2
    """L: number of blocks."""
    mlp_ratio: float = 4.0
    """Hidden width of the feed-forward per token width."""

    def __post_init__(self) -> None:
        check_sizes(self)


class Block(nn.Module):
    """Feed-forward of each token by itself, pre-norm and residual."""

    def __init__(self, config: DenseConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.embed_dim)
        self.feed_forward = FeedForward(
            config.embed_dim, round(config.embed_dim * config.mlp_ratio)
        )

    def forward(self, x: Float[Tensor, "B N E"]) -> Float[Tensor, "B N E"]:
        return x + self.feed_forward(self.norm(x))


class Dense(PretrainedModel, tags=["dense"]):
    """Classify images with tokens that never meet before the head.

    The paper reports Dense-Small and Dense-Base without defining them. This definition is ours:
    its ViT, flattened head included, with every self-attention removed.
    """

    def __init__(self, config: DenseConfig) -> None:
        super().__init__()
        c = self.config = config
        self.embed = TokenEmbed(
            c.image_size, c.patch_size, c.num_channels, c.embed_dim, c.question_dim, c.pos
        )
        self.blocks = nn.ModuleList(Block(c) for _ in range(c.depth))
        self.head = FlattenHead(self.embed.num_tokens, c.embed_dim, c.num_classes)
        self.recompute = False

    def forward(
        self,
        images: Float[Tensor, "B C H W"],
        questions: Float[Tensor, "B Q"] | None = None,
    ) -> ModelOutput:
        x = self.embed(images, questions)
        for block in self.blocks:
            if self.recompute and torch.is_grad_enabled():
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
        return ModelOutput(self.head(x), torch.zeros((), device=x.device))

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trade time for memory: recompute each block in the backward pass."""
        self.recompute = enable


DENSE_SMALL = DenseConfig()
DENSE_BASE = DenseConfig(depth=12)
