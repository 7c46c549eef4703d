"""The Associative Transformer (Sun et al., CVPR 2025, arXiv 2309.12862).

Dims     B batch   C channels   H W image side   N tokens   E token width   Q question features
Sizes    AiT-Small 2, AiT-Medium 6, AiT-Base 12 layers at E 768, 12 heads of width 64
"""

from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple, cast

import torch
from jaxtyping import Float
from pydantic import ConfigDict, with_config
from torch import Tensor, nn

from associative_transformer import kernels
from associative_transformer.functional import hopfield_retrieve
from associative_transformer.interface import ADDED_LATER
from associative_transformer.kernels import Attend
from associative_transformer.models.heads import HeadKind, build_head
from associative_transformer.models.layers import (
    CrossAttention,
    FeedForward,
    SelfAttention,
    run_block,
)
from associative_transformer.models.regularization import build_branch_end, build_dropout
from associative_transformer.models.transformer import (
    TransformerConfig,
    TransformerModel,
    build_embed,
)
from associative_transformer.workspace import GlobalWorkspace, Retrieve
from associative_transformer.workspace_config import WorkspaceConfig


@with_config(ConfigDict(extra="forbid"))
@dataclass(frozen=True)
class AiTConfig(TransformerConfig):
    """Sizes and ablations of an Associative Transformer; the defaults are those of AiT-Small."""

    kind: Literal["ait"] = "ait"
    """Name of the model in saved configurations."""
    head: HeadKind = field(default="flatten", metadata=ADDED_LATER)
    """Classify from all tokens, concatenated (flatten), from their mean, from a class token (cls)
    or from the token of the question; flatten is the paper's."""
    use_self_attention: bool = True
    """False: ablation without self-attention, whose weights are not registered."""
    use_output_norm: bool = field(default=True, metadata=ADDED_LATER)
    """Normalize the output of the feed-forward (norm3), as in the paper."""
    read: Literal["hopfield", "cross_attention", "none"] = "hopfield"
    """How tokens read the memory. Ablations: cross_attention replaces the Hopfield network, and
    with none the tokens write, but nothing is read."""
    workspace: WorkspaceConfig = field(default_factory=WorkspaceConfig)
    """The memory of each block."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.workspace.scope == "image":
            self.workspace.image.check_width(self.embed_dim)
            if self.read != "hopfield":
                raise ValueError(
                    f'read must be "hopfield" with workspace.scope "image", not "{self.read}"'
                )


class BlockOutput(NamedTuple):
    """Output of a block."""

    tokens: Float[Tensor, "B N E"]
    balance_loss: Float[Tensor, ""]


class Block(nn.Module):
    """Self-attention and feed-forward, then the workspace: write, remember, read."""

    def __init__(self, config: AiTConfig, layer: int, attend: Attend, retrieve: Retrieve) -> None:
        super().__init__()
        c, dim = config, config.embed_dim
        self.norm1 = nn.LayerNorm(dim) if c.use_self_attention else None
        self.attention = (
            SelfAttention(dim, c.num_heads, c.head_dim) if c.use_self_attention else None
        )
        self.norm2 = nn.LayerNorm(dim)
        dropout = c.regularization.dropout
        self.feed_forward = FeedForward(dim, round(dim * c.mlp_ratio), dropout)
        self.norm3 = nn.LayerNorm(dim) if c.use_output_norm else nn.Identity()
        by_attention = c.read == "cross_attention"
        reader = CrossAttention(dim, dim, c.num_heads, c.head_dim) if by_attention else None
        self.is_read = c.read != "none"
        memory = c.workspace
        if not self.is_read:  # no gradient reaches the write, with one process or with several
            memory = replace(memory, differentiable_write=False)
        self.workspace = GlobalWorkspace(dim, memory, attend, reader, retrieve)
        self.drop = build_branch_end(c.regularization, layer, c.depth)
        self.recompute = False

    def forward(self, x: Float[Tensor, "B N E"]) -> BlockOutput:
        """Pass the tokens through one layer.

        Step 1:  x <- x + Attention(LN(x))
        Step 2:  u = LN(FFN(LN(x)))
        Step 7:  x <- x + u + r, with r read from the workspace (steps 3 to 6)
        """

        def before_workspace(
            x: Float[Tensor, "B N E"],
        ) -> tuple[Float[Tensor, "B N E"], Float[Tensor, "B N E"]]:
            if self.attention is not None and self.norm1 is not None:
                x = x + self.drop(self.attention(self.norm1(x)))
            u = self.norm3(self.feed_forward(self.norm2(x)))
            return x, u

        x, u = run_block(before_workspace, x, recompute=self.recompute)
        read, balance_loss = self.workspace(u)  # never recomputed: the memory must move only once
        if not self.is_read:
            return BlockOutput(x + self.drop(u), balance_loss)
        if isinstance(self.drop, nn.Identity):
            return BlockOutput(x + u + read, balance_loss)
        return BlockOutput(x + self.drop(u + read), balance_loss)


class AiT(TransformerModel, tags=["associative-transformer"]):
    """Image classifier whose tokens share one associative memory per layer.

    `attend` and `retrieve` are passed to each `GlobalWorkspace`.

    >>> images = torch.randn(8, 3, 32, 32)
    >>> logits, aux_loss = AiT(AIT_SMALL)(images)  # in training this also moves the memories
    """

    def __init__(
        self,
        config: AiTConfig,
        attend: Attend = kernels.attend,
        retrieve: Retrieve = hopfield_retrieve,
    ) -> None:
        super().__init__()
        c = self.config = config
        self.embed = build_embed(c)
        self.drop = build_dropout(c.regularization.dropout)
        self.blocks = nn.ModuleList(Block(c, layer, attend, retrieve) for layer in range(c.depth))
        self.head = build_head(c.head, self.embed.num_tokens, c.embed_dim, c.num_classes)

    def encode(
        self,
        images: Float[Tensor, "B C H W"],
        questions: Float[Tensor, "B Q"] | None = None,
    ) -> tuple[Float[Tensor, "B N E"], Float[Tensor, ""]]:
        """Return the tokens after the last block, and the sum of the balance losses."""
        x = self.drop(self.embed(images, questions))
        aux_loss = torch.zeros((), device=x.device)
        for block in self.blocks:
            x, balance_loss = block(x)
            aux_loss = aux_loss + balance_loss
        return x, aux_loss

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute attention and feed-forward in the backward pass, which saves memory."""
        for block in self.blocks:
            cast(Block, block).recompute = enable

    def reference_parameters(self) -> int:
        """Count parameters as the paper's table does.

        In addition to the live parameters it counts the memories, and a 5x5 convolution stem, a
        class token and positions, which the official code registers but never uses.
        """
        c = self.config
        stem = (25 * c.num_channels + 1) * c.embed_dim
        unused_rows = (c.head != "cls") + (c.pos == "none") * (self.embed.num_patches + 1)
        memories = sum(buffer.numel() for buffer in self.buffers())
        live = super().reference_parameters()
        return live + stem + unused_rows * c.embed_dim + memories


AIT_SMALL = AiTConfig()
AIT_MEDIUM = AiTConfig(depth=6)
AIT_BASE = AiTConfig(depth=12)
