"""Vision Transformer (Dosovitskiy et al. 2021, arXiv 2010.11929), as in the paper's comparison.

Dims     B batch   C channels   H W image side   N tokens   E token width   Q question features
Sizes    ViT-Small 2, ViT-Medium 6, ViT-Base 12 layers at E 768, 12 heads of width 64
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import ConfigDict, with_config
from torch import Tensor, nn

from associative_transformer.interface import ModelOutput
from associative_transformer.models.layers import (
    FeedForward,
    FlattenHead,
    Float32Linear,
    Positions,
    SelfAttention,
    TokenEmbed,
    check_sizes,
    run_block,
)
from associative_transformer.models.pretrained import PretrainedModel


@with_config(ConfigDict(extra="forbid"))
@dataclass(frozen=True)
class ViTConfig:
    """Sizes of a Vision Transformer; the defaults are those of the paper's ViT-Small.

    The paper's ViT has a flattened head and no positions, which makes it weaker than the usual
    ViT: `head="cls", pos="learned"`.
    """

    kind: Literal["vit"] = "vit"
    """Name of the model in saved configurations."""
    image_size: int = 32
    """Height and width of the images in pixels."""
    patch_size: int = 4
    """Height and width of a patch in pixels; divides image_size."""
    num_channels: int = 3
    """C: channels of the images."""
    num_classes: int = 10
    """Number of classes."""
    question_dim: int = 0
    """Q: features of a question about the image, which becomes a token; 0: no question."""
    pos: Positions = "none"
    """Position embedding."""
    embed_dim: int = 768
    """E: token width."""
    depth: int = 2
    """L: number of blocks."""
    num_heads: int = 12
    """Heads of the self-attention."""
    head_dim: int = 64
    """Width of each head."""
    mlp_ratio: float = 4.0
    """Hidden width of the feed-forward, as a multiple of the token width."""
    head: Literal["flatten", "cls"] = "flatten"
    """flatten: classify from all tokens, concatenated; cls: from a class token."""

    def __post_init__(self) -> None:
        check_sizes(self)


class Block(nn.Module):
    """Self-attention, then feed-forward, both pre-norm and residual."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        c, dim = config, config.embed_dim
        self.norm1 = nn.LayerNorm(dim)
        self.attention = SelfAttention(dim, c.num_heads, c.head_dim)
        self.norm2 = nn.LayerNorm(dim)
        self.feed_forward = FeedForward(dim, round(dim * c.mlp_ratio))

    def forward(self, x: Float[Tensor, "B N E"]) -> Float[Tensor, "B N E"]:
        x = x + self.attention(self.norm1(x))
        return x + self.feed_forward(self.norm2(x))


class ClassTokenHead(nn.Module):
    """LayerNorm and linear map of the first token."""

    def __init__(self, embed_dim: int, num_classes: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(embed_dim)
        self.to_logits = Float32Linear(embed_dim, num_classes)

    def forward(self, x: Float[Tensor, "B N E"]) -> Float[Tensor, "B O"]:
        return self.to_logits(self.norm(x[:, 0]))


class ViT(PretrainedModel, tags=["vision-transformer"]):
    """Image classifier whose tokens attend to each other.

    >>> images = torch.randn(2, 3, 32, 32)
    >>> logits, _ = ViT(VIT_SMALL)(images)
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        c = self.config = config
        by_class_token = c.head == "cls"
        self.embed = TokenEmbed(
            c.image_size,
            c.patch_size,
            c.num_channels,
            c.embed_dim,
            c.question_dim,
            c.pos,
            use_class_token=by_class_token,
        )
        self.blocks = nn.ModuleList(Block(c) for _ in range(c.depth))
        self.head = (
            ClassTokenHead(c.embed_dim, c.num_classes)
            if by_class_token
            else FlattenHead(self.embed.num_tokens, c.embed_dim, c.num_classes)
        )
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

    def reference_parameters(self) -> int:
        """Count as the paper's table does, including its unused class token and positions."""
        c = self.config
        unused_rows = (c.head != "cls") + (c.pos == "none") * (self.embed.num_patches + 1)
        return super().reference_parameters() + unused_rows * c.embed_dim


VIT_SMALL = ViTConfig()
VIT_MEDIUM = ViTConfig(depth=6)
VIT_BASE = ViTConfig(depth=12)
