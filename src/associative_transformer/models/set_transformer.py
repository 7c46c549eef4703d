"""Set Transformer (Lee et al. 2019, arXiv 1810.00825), as in the paper's comparison.

The model is that of anirudh9119/shared_workspace, which has the size in the paper's table: a class
token and fixed positions, then four ISABs. `pool="pma", pos="none"` is a model of sets, as built
by Lee et al.

Dims     B batch   C channels   H W image side   N tokens   E token width   Q question features
         X Y widths of query and key tokens   L key tokens   D block width   M inducing points
         K seeds
Sizes    4 ISABs, E 256, D 256, 4 heads, M 8
"""

from dataclasses import dataclass
from typing import Literal

import torch
from einops import rearrange
from jaxtyping import Float
from pydantic import ConfigDict, with_config
from torch import Tensor, nn
from torch.nn.functional import relu

from associative_transformer.float32 import Float32Linear
from associative_transformer.interface import ModelOutput
from associative_transformer.kernels.attention import attention
from associative_transformer.models.layers import (
    LinearTokenEmbed,
    check_sizes,
    run_block,
    shared_workspace_positions,
)
from associative_transformer.models.pretrained import PretrainedModel

REFERENCE_POSITIONS = 300
"""Rows of the reference's position table, each with E gates that no gradient reaches."""


@with_config(ConfigDict(extra="forbid"))
@dataclass(frozen=True)
class SetTransformerConfig:
    """Sizes of a Set Transformer; the defaults are the paper's.

    With positions the model sees a sequence; with `pos="none"` it sees a set, and its answer does
    not depend on the order of the patches.
    """

    kind: Literal["set-transformer"] = "set-transformer"
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
    pos: Literal["none", "fixed"] = "fixed"
    """Position code."""
    embed_dim: int = 256
    """E: token width before the first block."""
    hidden_dim: int = 256
    """D: token width in and after the blocks."""
    depth: int = 4
    """Number of blocks (ISABs)."""
    num_heads: int = 4
    """Heads of each attention; divides hidden_dim."""
    num_inducing: int = 8
    """M: inducing points of each block."""
    use_norm: bool = True
    """Normalize after each attention and each feed-forward."""
    pool: Literal["cls", "pma"] = "cls"
    """cls: classify from a class token; pma: from a learned seed that attends to all tokens."""
    decoder_depth: int = 0
    """Self-attention blocks (SABs) after the seed; must be 0 unless pool is "pma"."""

    def __post_init__(self) -> None:
        check_sizes(self)
        if self.hidden_dim % self.num_heads:
            raise ValueError(
                f"num_heads {self.num_heads} does not divide hidden_dim {self.hidden_dim}"
            )
        if self.decoder_depth and self.pool != "pma":
            raise ValueError(f'decoder_depth {self.decoder_depth} needs pool "pma"')


class MAB(nn.Module):
    """Multi-head attention block: attention from one set to another, then feed-forward.

    As in the authors' code, scores are divided by the square root of the full width, not of the
    head width, the residual is the projected query, and there is no output projection.
    """

    def __init__(
        self,
        query_dim: int,
        key_dim: int,
        hidden_dim: int,
        num_heads: int,
        use_norm: bool = True,
    ) -> None:
        super().__init__()
        if hidden_dim % num_heads:
            raise ValueError(f"num_heads {num_heads} does not divide hidden_dim {hidden_dim}")
        self.num_heads, self.scale = num_heads, hidden_dim**-0.5
        self.to_q = nn.Linear(query_dim, hidden_dim)
        self.to_k = nn.Linear(key_dim, hidden_dim)
        self.to_v = nn.Linear(key_dim, hidden_dim)
        self.norm0 = nn.LayerNorm(hidden_dim) if use_norm else nn.Identity()
        self.feed_forward = nn.Linear(hidden_dim, hidden_dim)
        self.norm1 = nn.LayerNorm(hidden_dim) if use_norm else nn.Identity()

    def forward(
        self, x: Float[Tensor, "B N X"], y: Float[Tensor, "B L Y"]
    ) -> Float[Tensor, "B N D"]:
        projected = self.to_q(x), self.to_k(y), self.to_v(y)
        q, k, v = (rearrange(z, "b n (h d) -> b h n d", h=self.num_heads) for z in projected)
        attended = attention(q, k, v, scale=self.scale)
        o = self.norm0(rearrange(q + attended, "b h n d -> b n (h d)"))
        return self.norm1(o + relu(self.feed_forward(o)))


class SAB(nn.Module):
    """Self-attention of a set, at quadratic cost: SAB(X) = MAB(X, X)."""

    def __init__(
        self, in_dim: int, hidden_dim: int, num_heads: int, use_norm: bool = True
    ) -> None:
        super().__init__()
        self.mab = MAB(in_dim, in_dim, hidden_dim, num_heads, use_norm)

    def forward(self, x: Float[Tensor, "B N X"]) -> Float[Tensor, "B N D"]:
        return self.mab(x, x)


class ISAB(nn.Module):
    """Self-attention through M learned inducing points I: ISAB(X) = MAB(X, MAB(I, X)).

    The cost is linear in the size of the set.
    """

    def __init__(
        self,
        in_dim: int,
        hidden_dim: int,
        num_heads: int,
        num_inducing: int,
        use_norm: bool = True,
    ) -> None:
        super().__init__()
        self.inducing = _xavier_uniform(num_inducing, hidden_dim)  # I
        self.mab0 = MAB(hidden_dim, in_dim, hidden_dim, num_heads, use_norm)
        self.mab1 = MAB(in_dim, hidden_dim, hidden_dim, num_heads, use_norm)

    def forward(self, x: Float[Tensor, "B N X"]) -> Float[Tensor, "B N D"]:
        h = self.mab0(self.inducing.expand(x.shape[0], -1, -1), x)  # (B, M, D)
        return self.mab1(x, h)


class PMA(nn.Module):
    """Pooling of a set into one row per learned seed S: PMA(X) = MAB(S, X).

    As in the authors' code, there is no feed-forward before it.
    """

    def __init__(
        self,
        in_dim: int,
        hidden_dim: int,
        num_heads: int,
        num_seeds: int = 1,
        use_norm: bool = True,
    ) -> None:
        super().__init__()
        self.seeds = _xavier_uniform(num_seeds, hidden_dim)  # S
        self.mab = MAB(hidden_dim, in_dim, hidden_dim, num_heads, use_norm)

    def forward(self, x: Float[Tensor, "B N X"]) -> Float[Tensor, "B K D"]:
        return self.mab(self.seeds.expand(x.shape[0], -1, -1), x)


class SetTransformer(PretrainedModel, tags=["set-transformer"]):
    """Image classifier whose tokens exchange information through inducing points.

    >>> images = torch.randn(2, 3, 32, 32)
    >>> logits, _ = SetTransformer(SET_TRANSFORMER)(images)
    """

    positions: Tensor | None  # (N, E)

    def __init__(self, config: SetTransformerConfig) -> None:
        super().__init__()
        c = self.config = config
        by_class_token = c.pool == "cls"
        self.embed = LinearTokenEmbed(
            c.image_size,
            c.patch_size,
            c.num_channels,
            c.embed_dim,
            c.question_dim,
            use_class_token=by_class_token,
        )
        num_tokens = self.embed.num_tokens
        code = shared_workspace_positions(num_tokens, c.embed_dim) if c.pos == "fixed" else None
        self.register_buffer("positions", code, persistent=False)
        widths = [c.embed_dim] + [c.hidden_dim] * (c.depth - 1)
        self.blocks = nn.ModuleList(
            ISAB(width, c.hidden_dim, c.num_heads, c.num_inducing, c.use_norm) for width in widths
        )
        self.pool = nn.Identity() if by_class_token else _seed_pool(c)
        self.head = Float32Linear(c.hidden_dim, c.num_classes)
        self.recompute = False

    def forward(
        self,
        images: Float[Tensor, "B C H W"],
        questions: Float[Tensor, "B Q"] | None = None,
    ) -> ModelOutput:
        x = self.embed(images, questions)
        if self.positions is not None:
            x = x + self.positions
        for block in self.blocks:
            x = run_block(block, x, recompute=self.recompute)
        x = self.pool(x)[:, 0]  # the class token, or the row of the seed
        return ModelOutput(self.head(x), torch.zeros((), device=x.device))

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block in the backward pass, which saves memory."""
        self.recompute = enable

    def reference_parameters(self) -> int:
        """Count as the paper's table does, including the gates of the whole position table."""
        c = self.config
        num_gates = REFERENCE_POSITIONS * c.embed_dim if c.pos == "fixed" else 0
        return super().reference_parameters() + num_gates


SET_TRANSFORMER = SetTransformerConfig()


def _xavier_uniform(num_rows: int, width: int) -> nn.Parameter:
    """Draw rows within the authors' Xavier bound, which also depends on the batch axis."""
    return nn.Parameter(nn.init.xavier_uniform_(torch.empty(1, num_rows, width)))


def _seed_pool(config: SetTransformerConfig) -> nn.Sequential:
    c, width = config, config.hidden_dim
    decoder = (SAB(width, width, c.num_heads, c.use_norm) for _ in range(c.decoder_depth))
    return nn.Sequential(PMA(width, width, c.num_heads, use_norm=c.use_norm), *decoder)
