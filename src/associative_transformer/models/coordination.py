"""Coordination through a shared global workspace (Goyal et al. 2022, arXiv 2103.01197).

This is the configuration that the paper calls TR + HSW, as in anirudh9119/shared_workspace, with
that code's bugs fixed. It has no self-attention: tokens meet only in the workspace's slots.

Dims     B batch   C channels   H W image side   N tokens   E token and slot width   M slots
         S heads   D key width of a head   G width of both gates, 2 E   Q question features
Symbols  `slots` W, (M, E)   `bottleneck` k   `scale` factor of Q K^T   `mlp_depth` n_mlp, of phi
Sizes    E 256, M 8, S 4; Coordination 4 layers with one set of weights, -D 8 such layers,
         -H 4 and -DH 8 layers with separate weights
"""

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from einops import rearrange
from jaxtyping import Float
from pydantic import ConfigDict, with_config
from torch import Tensor, nn

from associative_transformer.arguments import MAX_STEPS, check_count, check_factor
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


@dataclass(frozen=True)
class SlotsConfig:
    """Sizes of the workspace, and how tokens write and read it."""

    num_slots: int = 8
    """M: slots of the workspace; at most embed_dim."""
    num_heads: int = 4
    """S: heads of write and broadcast; divides embed_dim, the width of all values."""
    key_dim: int = 32
    """D: width of the queries and keys of each head."""
    bottleneck: int | None = 20
    """k: tokens that write to each slot of each head; None: all tokens, without competition."""
    mlp_depth: int = 1
    """n_mlp: how often phi applies its only layer; 4 in the reference on Sort-of-CLEVR."""
    scale: float = 1.0
    """Factor of the similarities; the reference omits the usual 1 / sqrt(D)."""
    scope: Literal["model", "layer"] = "model"
    """model: layers pass their slots on; layer: each layer starts with new slots."""

    def __post_init__(self) -> None:
        for name in ("num_slots", "num_heads", "key_dim", "mlp_depth"):
            check_count(name, getattr(self, name))
        if self.bottleneck is not None and self.bottleneck < 1:
            raise ValueError(f"bottleneck must be at least 1 (or None), not {self.bottleneck}")
        if self.mlp_depth > MAX_STEPS:
            raise ValueError(f"mlp_depth must be at most {MAX_STEPS:,}, not {self.mlp_depth}")
        check_factor("scale", self.scale)


@with_config(ConfigDict(extra="forbid"))
@dataclass(frozen=True)
class CoordinationConfig:
    """Sizes of a transformer with a shared workspace; the defaults are those of Coordination."""

    kind: Literal["coordination"] = "coordination"
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
    embed_dim: int = 256
    """E: width of tokens and slots."""
    depth: int = 4
    """L: number of layers."""
    mlp_ratio: float = 4.0
    """Hidden width of the feed-forward, as a multiple of the token width."""
    dropout: float = 0.1
    """Dropout rate of what a layer adds to the tokens."""
    share_layers: bool = True
    """Use one set of weights for all layers."""
    slots: SlotsConfig = field(default_factory=SlotsConfig)
    """The workspace."""

    def __post_init__(self) -> None:
        check_sizes(self)
        num_slots, num_heads = self.slots.num_slots, self.slots.num_heads
        if num_slots > self.embed_dim:
            raise ValueError(f"num_slots {num_slots} must be at most embed_dim {self.embed_dim}")
        if self.embed_dim % num_heads:
            raise ValueError(f"num_heads {num_heads} does not divide embed_dim {self.embed_dim}")


class SlotWrite(NamedTuple):
    """Values that the tokens write to the slots."""

    value: Float[Tensor, "B M E"]  # R
    weights: Float[Tensor, "B S M N"]  # zero for tokens that lost; the others sum to less than 1


class Gates(NamedTuple):
    """Shares of the new content that enters a slot, and of the old content that stays."""

    enter: Float[Tensor, "B M E"]  # sigmoid(i + b_i)
    stay: Float[Tensor, "B M E"]  # sigmoid(f + b_f)


class BlockOutput(NamedTuple):
    """Output of a layer."""

    tokens: Float[Tensor, "B N E"]
    slots: Float[Tensor, "B M E"]


def compete(
    similarity: Float[Tensor, "B S M N"], bottleneck: int | None
) -> Float[Tensor, "B S M N"]:
    """Let the tokens compete for each slot of each head: only the `bottleneck` best may write.

    The softmax is over all tokens and is not renormalized, so gradients reach the losing tokens
    through its denominator. Which of several equal tokens wins is not specified.
    """
    # float32 at least: equal weights are common at lower precision
    dtype = torch.promote_types(similarity.dtype, torch.float32)
    weights = similarity.to(dtype).softmax(dim=-1)
    if bottleneck is None or bottleneck >= weights.shape[-1]:
        return weights
    top = weights.topk(bottleneck, dim=-1)
    return torch.zeros_like(weights).scatter(-1, top.indices, top.values)


class SlotwiseLinear(nn.Module):
    """A separate linear map for each slot."""

    def __init__(self, num_slots: int, in_dim: int, out_dim: int) -> None:
        super().__init__()
        bound = out_dim**-0.5  # as in the reference: the output width, not the usual input width
        self.weight = nn.Parameter(torch.empty(num_slots, in_dim, out_dim).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(num_slots, out_dim).uniform_(-bound, bound))

    def forward(self, x: Float[Tensor, "B M E"]) -> Float[Tensor, "B M G"]:
        return torch.einsum("bme,meg->bmg", x, self.weight) + self.bias


class SharedWorkspace(nn.Module):
    """The workspace: tokens write to the slots, the slots are updated and then broadcast.

    Write and broadcast share their projections. The bias of the keys has no effect, since it
    shifts all similarities of a query equally; it is kept because the published sizes include it.
    """

    def __init__(self, embed_dim: int, config: SlotsConfig) -> None:
        super().__init__()
        c = self.config = config
        self.to_q = nn.Linear(embed_dim, c.num_heads * c.key_dim)
        self.to_k = nn.Linear(embed_dim, c.num_heads * c.key_dim)
        self.to_v = nn.Linear(embed_dim, embed_dim)
        self.norm1 = nn.LayerNorm(embed_dim)  # LN_a
        self.phi = nn.Linear(embed_dim, embed_dim)
        self.norm2 = nn.LayerNorm(embed_dim)  # LN_b
        self.token_scale = nn.Parameter(torch.randn(embed_dim))  # w
        self.token_gates = nn.Linear(embed_dim, 2 * embed_dim)
        self.slot_gates = SlotwiseLinear(c.num_slots, embed_dim, 2 * embed_dim)
        self.enter_bias = nn.Parameter(torch.tensor(0.0))  # b_i
        self.stay_bias = nn.Parameter(torch.tensor(1.0))  # b_f

    def write(self, u: Float[Tensor, "B N E"], slots: Float[Tensor, "B M E"]) -> SlotWrite:
        """Let each slot collect the values of its most similar tokens."""
        q, k, v = (self.split(x) for x in (self.to_q(slots), self.to_k(u), self.to_v(u)))
        weights = compete(self.config.scale * (q @ k.mT), self.config.bottleneck)
        return SlotWrite(rearrange(weights.to(v.dtype) @ v, "b s m d -> b m (s d)"), weights)

    def update(
        self,
        u: Float[Tensor, "B N E"],
        slots: Float[Tensor, "B M E"],
        written: Float[Tensor, "B M E"],
    ) -> Float[Tensor, "B M E"]:
        """Mix what was written into the slots, weighted by the gates."""
        new = hidden = self.norm1(slots + written)  # W'
        for _ in range(self.config.mlp_depth):
            hidden = self.phi(hidden).relu()
        new = self.norm2(new + hidden)  # W''
        enter, stay = self.gates(u, slots)
        return enter * new.tanh() + stay * slots

    def gates(self, u: Float[Tensor, "B N E"], slots: Float[Tensor, "B M E"]) -> Gates:
        """Compute the gates of each slot from the mean of the tokens and its old content."""
        by_tokens = self.token_gates((self.token_scale * u).relu().mean(dim=1))  # (B, G)
        enter, stay = (by_tokens[:, None] + self.slot_gates(slots.tanh())).chunk(2, dim=-1)
        return Gates((enter + self.enter_bias).sigmoid(), (stay + self.stay_bias).sigmoid())

    def broadcast(
        self, u: Float[Tensor, "B N E"], slots: Float[Tensor, "B M E"]
    ) -> Float[Tensor, "B N E"]:
        """Let each token read from all slots, without competition."""
        q, k, v = (self.split(x) for x in (self.to_q(u), self.to_k(slots), self.to_v(slots)))
        read = attention(q, k, v, scale=self.config.scale)
        return rearrange(read, "b s n d -> b n (s d)")

    def split(self, x: Float[Tensor, "B X F"]) -> Float[Tensor, "B S X D"]:
        """Split the columns into heads."""
        return rearrange(x, "b x (s d) -> b s x d", s=self.config.num_heads)


class Block(nn.Module):
    """The workspace, then feed-forward, both pre-norm and residual."""

    def __init__(self, config: CoordinationConfig) -> None:
        super().__init__()
        dim, hidden_dim = config.embed_dim, round(config.embed_dim * config.mlp_ratio)
        self.norm1 = nn.LayerNorm(dim)
        self.to_u = nn.Linear(dim, dim)
        self.workspace = SharedWorkspace(dim, config.slots)
        self.norm2 = nn.LayerNorm(dim)
        self.feed_forward = nn.Sequential(
            nn.Linear(dim, hidden_dim), nn.ReLU(), nn.Linear(hidden_dim, dim)
        )
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Float[Tensor, "B N E"], slots: Float[Tensor, "B M E"]) -> BlockOutput:
        u = self.to_u(self.norm1(x))
        written = self.workspace.write(u, slots)
        slots = self.workspace.update(u, slots, written.value)
        x = x + self.dropout(self.workspace.broadcast(u, slots))
        return BlockOutput(x + self.dropout(self.feed_forward(self.norm2(x))), slots)


class Coordination(PretrainedModel, tags=["shared-workspace"]):
    """Image classifier whose tokens exchange information only through a few slots.

    >>> images = torch.randn(2, 3, 32, 32)
    >>> logits, _ = Coordination(COORDINATION)(images)
    """

    positions: Tensor  # (N, E)

    def __init__(self, config: CoordinationConfig) -> None:
        super().__init__()
        c = self.config = config
        image = (c.image_size, c.patch_size, c.num_channels)
        self.embed = LinearTokenEmbed(*image, c.embed_dim, c.question_dim, use_class_token=True)
        positions = shared_workspace_positions(self.embed.num_tokens, c.embed_dim)
        self.register_buffer("positions", positions, persistent=False)
        self.blocks = nn.ModuleList(Block(c) for _ in range(1 if c.share_layers else c.depth))
        self.head = Float32Linear(c.embed_dim, c.num_classes)
        self.recompute = False

    def forward(
        self,
        images: Float[Tensor, "B C H W"],
        questions: Float[Tensor, "B Q"] | None = None,
    ) -> ModelOutput:
        x = self.embed(images, questions) + self.positions
        start = slots = self.first_slots(x)
        for block in self.layers():
            if self.config.slots.scope == "layer":
                slots = start
            x, slots = run_block(block, x, slots, recompute=self.recompute)
        return ModelOutput(self.head(x[:, 0]), torch.zeros((), device=x.device))

    def first_slots(self, x: Float[Tensor, "B N E"]) -> Float[Tensor, "B M E"]:
        """Return the slots at the start of a forward pass: [I | 0], neither learned nor saved."""
        shape = (self.config.slots.num_slots, self.config.embed_dim)
        return torch.eye(*shape, dtype=x.dtype, device=x.device).expand(x.shape[0], -1, -1)

    def layers(self) -> list[nn.Module]:
        """Return the block of each layer: always the same one if the layers are shared."""
        return [self.blocks[layer % len(self.blocks)] for layer in range(self.config.depth)]

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block in the backward pass, which saves memory."""
        self.recompute = enable

    def reference_parameters(self) -> int:
        """Count as the paper's table does, including what the reference registers but never uses.

        These are two position tables of 300 rows and another one in each block. Its code for
        questions adds to each block an attention of 4 heads of width 32, with a gate and a norm.
        """
        dim, heads_dim, blocks = self.config.embed_dim, 4 * 32, len(self.blocks)
        tables = (2 + blocks) * 300 * dim
        attention = 3 * (dim + 1) * heads_dim + 2 * (heads_dim + 1) * dim + 2 * dim
        live = super().reference_parameters()
        return live + tables + (self.config.question_dim > 0) * blocks * attention


COORDINATION = CoordinationConfig()
COORDINATION_D = CoordinationConfig(depth=8)
COORDINATION_H = CoordinationConfig(share_layers=False)
COORDINATION_DH = CoordinationConfig(depth=8, share_layers=False)
