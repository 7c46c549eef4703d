"""Vision Transformer (Dosovitskiy et al. 2021, arXiv 2010.11929), as in the paper's comparison.

Dims     B batch   C channels   H W image side   N tokens   E token width   Q question features
Sizes    ViT-Small 2, ViT-Medium 6, ViT-Base 12 layers at E 768, 12 heads of width 64
"""

from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import ConfigDict, with_config
from torch import Tensor, nn

from associative_transformer.interface import ADDED_LATER
from associative_transformer.models.heads import build_head
from associative_transformer.models.layers import FeedForward, SelfAttention, run_block
from associative_transformer.models.regularization import build_branch_end, build_dropout
from associative_transformer.models.transformer import (
    TransformerConfig,
    TransformerModel,
    build_embed,
)


@with_config(ConfigDict(extra="forbid"))
@dataclass(frozen=True)
class ViTConfig(TransformerConfig):
    """Sizes of a Vision Transformer; the defaults are those of the paper's ViT-Small.

    The paper's ViT has a flattened head and no positions, which makes it weaker than the usual
    ViT: `head="cls", pos="learned"`.
    """

    kind: Literal["vit"] = "vit"
    """Name of the model in saved configurations."""
    use_output_norm: bool = field(default=False, metadata=ADDED_LATER)
    """Normalize the output of the feed-forward, as AiT does."""


class Block(nn.Module):
    """Self-attention, then feed-forward, both pre-norm and residual."""

    def __init__(self, config: ViTConfig, layer: int) -> None:
        super().__init__()
        c, dim = config, config.embed_dim
        self.norm1 = nn.LayerNorm(dim)
        self.attention = SelfAttention(dim, c.num_heads, c.head_dim)
        self.norm2 = nn.LayerNorm(dim)
        dropout = c.regularization.dropout
        self.feed_forward = FeedForward(dim, round(dim * c.mlp_ratio), dropout)
        self.norm3 = nn.LayerNorm(dim) if c.use_output_norm else nn.Identity()
        self.drop = build_branch_end(c.regularization, layer, c.depth)

    def forward(self, x: Float[Tensor, "B N E"]) -> Float[Tensor, "B N E"]:
        x = x + self.drop(self.attention(self.norm1(x)))
        return x + self.drop(self.norm3(self.feed_forward(self.norm2(x))))


class ViT(TransformerModel, tags=["vision-transformer"]):
    """Image classifier whose tokens attend to each other.

    >>> images = torch.randn(2, 3, 32, 32)
    >>> logits, _ = ViT(VIT_SMALL)(images)
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        c = self.config = config
        self.embed = build_embed(c)
        self.drop = build_dropout(c.regularization.dropout)
        self.blocks = nn.ModuleList(Block(c, layer) for layer in range(c.depth))
        self.head = build_head(c.head, self.embed.num_tokens, c.embed_dim, c.num_classes)
        self.recompute = False

    def encode(
        self,
        images: Float[Tensor, "B C H W"],
        questions: Float[Tensor, "B Q"] | None = None,
    ) -> tuple[Float[Tensor, "B N E"], Float[Tensor, ""]]:
        """Return the tokens after the last block, and a loss of zero."""
        x = self.drop(self.embed(images, questions))
        for block in self.blocks:
            x = run_block(block, x, recompute=self.recompute)
        return x, torch.zeros((), device=x.device)

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
