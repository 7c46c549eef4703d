"""A ViT without attention: Dense-Small and Dense-Base, named but not defined in the paper.

Dims     B batch   C channels   H W image side   N tokens   E token width   Q question features
Sizes    Dense-Small 2, Dense-Base 12 layers at E 768
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import ConfigDict, with_config
from torch import Tensor, nn

from associative_transformer.interface import ModelOutput
from associative_transformer.models.heads import FlattenHead
from associative_transformer.models.layers import (
    FeedForward,
    Positions,
    TokenEmbed,
    check_sizes,
    run_block,
)
from associative_transformer.models.pretrained import PretrainedModel


@with_config(ConfigDict(extra="forbid"))
@dataclass(frozen=True)
class DenseConfig:
    """Sizes of a ViT without attention; the defaults are those of Dense-Small on Sort-of-CLEVR."""

    kind: Literal["dense"] = "dense"
    """Name of the model in saved configurations."""
    image_size: int = 75
    """Height and width of the images in pixels."""
    patch_size: int = 15
    """Height and width of a patch in pixels; divides image_size."""
    num_channels: int = 3
    """C: channels of the images."""
    num_classes: int = 10
    """Number of classes."""
    question_dim: int = 18
    """Q: features of a question about the image, which becomes the first token; 0: no question."""
    pos: Positions = "none"
    """Position embedding."""
    embed_dim: int = 768
    """E: token width."""
    depth: int = 2
    """L: number of blocks."""
    mlp_ratio: float = 4.0
    """Hidden width of the feed-forward, as a multiple of the token width."""

    def __post_init__(self) -> None:
        check_sizes(self)


class Block(nn.Module):
    """Feed-forward of each token, pre-norm and residual."""

    def __init__(self, config: DenseConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.embed_dim)
        self.feed_forward = FeedForward(
            config.embed_dim, round(config.embed_dim * config.mlp_ratio)
        )

    def forward(self, x: Float[Tensor, "B N E"]) -> Float[Tensor, "B N E"]:
        return x + self.feed_forward(self.norm(x))


class Dense(PretrainedModel, tags=["dense"]):
    """Image classifier whose tokens are processed independently and meet only in the head.

    The paper reports Dense-Small and Dense-Base without defining them. Here, they are the paper's
    ViT, including its flattened head, without self-attention.

    >>> images, questions = torch.rand(2, 3, 75, 75), torch.rand(2, 18)
    >>> logits, _ = Dense(DENSE_SMALL)(images, questions)
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
            x = run_block(block, x, recompute=self.recompute)
        return ModelOutput(self.head(x), torch.zeros((), device=x.device))

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block in the backward pass, which saves memory."""
        self.recompute = enable


DENSE_SMALL = DenseConfig()
DENSE_BASE = DenseConfig(depth=12)
