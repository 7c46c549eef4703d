"""Luna: linear unified nested attention (Ma et al. 2021, arXiv 2106.01540).

Attention takes two steps through a short packed sequence, so its cost is linear in the tokens.
The layers are those of XuezheMax/fairseq-apollo; the paper has no model for image patches.

Dims     B batch   C channels   H W image side   T tokens   L packed tokens   E token width
         Q question features   S heads   D head width   N M lengths of any two sequences
Symbols  X tokens   P packed   Y_P raw   V vocabulary: gray levels
Sizes    Luna-Small 2, Luna-Base 12 layers at E 768, L 16; Long Range Arena 1 layer at E 64, L 256
"""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from einops import rearrange
from jaxtyping import Float, Int
from pydantic import ConfigDict, with_config
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from associative_transformer.float32 import Float32Linear
from associative_transformer.interface import ModelOutput
from associative_transformer.models.layers import (
    FeedForward,
    LinearTokenEmbed,
    check_inputs,
    check_sizes,
    run_block,
)
from associative_transformer.models.pretrained import PretrainedModel


@with_config(ConfigDict(extra="forbid"))
@dataclass(frozen=True)
class LunaConfig:
    """Sizes of a Luna encoder; the defaults are those of Luna-Small."""

    kind: Literal["luna"] = "luna"
    """Name of the model in saved configurations."""
    image_size: int = 32
    """Height and width of the images in pixels."""
    patch_size: int = 4
    """Height and width of a patch in pixels; divides image_size."""
    num_channels: int = 3
    """C: channels of the images."""
    num_classes: int = 10
    """Number of classes."""
    vocabulary: int = 0
    """V: gray levels in [0, 1]; each pixel is a token, embedded by its level. 0: patches."""
    pos: Literal["none", "sinusoidal"] = "sinusoidal"
    """Fixed positions of tokens and packed tokens; without them the tokens form a set."""
    embed_dim: int = 768
    """E: token width."""
    depth: int = 2
    """Number of layers."""
    num_heads: int = 12
    """Heads of both attentions; divides embed_dim."""
    mlp_ratio: float = 4.0
    """Hidden width of the feed-forward, as a multiple of the token width."""
    num_packed: int = 16
    """L: length of the packed sequence."""
    is_tied: bool = False
    """Use the values of each attention as its keys, too."""
    dropout: float = 0.0
    """Dropout rate of embeddings, of what a layer adds, and of the input of the head."""
    attention_dropout: float = 0.0
    """Dropout rate of the attention weights."""

    def __post_init__(self) -> None:
        check_sizes(self)
        if self.embed_dim % self.num_heads:
            raise ValueError(
                f"num_heads {self.num_heads} does not divide embed_dim {self.embed_dim}"
            )
        if self.pos == "sinusoidal" and (self.embed_dim < 4 or self.embed_dim % 2):
            raise ValueError(
                f"sinusoidal positions need an even embed_dim of 4 or more, not {self.embed_dim}"
            )
        if self.vocabulary == 1:
            raise ValueError(f"vocabulary must be 0 or at least 2, not {self.vocabulary}")
        if self.takes_pixels and self.patch_size != 1:
            raise ValueError(f"a vocabulary needs patch_size 1, not {self.patch_size}")
        if self.takes_pixels and self.num_channels not in (1, 3):
            raise ValueError(f"a vocabulary needs num_channels 1 or 3, not {self.num_channels}")

    @property
    def takes_pixels(self) -> bool:
        """Whether images are pixels from 0 to 1, not normalized."""
        return self.vocabulary > 0


class Sequences(NamedTuple):
    """The two sequences that a layer takes and returns."""

    tokens: Float[Tensor, "B T E"]  # X
    packed: Float[Tensor, "B L E"] | None  # P; None after the last layer, since nothing reads it


class GrayEmbed(nn.Embedding):
    """Embedding of each pixel, in raster order, by its gray level."""

    def forward(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B T E"]:
        return super().forward(gray_levels(images, self.num_embeddings))


class LunaEmbed(nn.Module):
    """Tokens of an image and the initial packed sequence, both with positions."""

    positions: Tensor | None  # (max(T, L), E)

    def __init__(self, config: LunaConfig) -> None:
        super().__init__()
        c, dim = config, config.embed_dim
        self.scale = math.sqrt(dim)
        self.tokens = (
            GrayEmbed(c.vocabulary, dim)
            if c.takes_pixels
            else LinearTokenEmbed(c.image_size, c.patch_size, c.num_channels, dim)
        )
        num_positions = max((c.image_size // c.patch_size) ** 2, c.num_packed)
        table = sinusoidal_positions(num_positions, dim) if c.pos == "sinusoidal" else None
        self.register_buffer("positions", table, persistent=False)
        self.norm = nn.LayerNorm(dim)
        self.packed = nn.Parameter(torch.randn(c.num_packed, dim) / self.scale)  # P_0
        self.dropout = nn.Dropout(c.dropout)
        self.init_tokens()

    def init_tokens(self) -> None:
        """Initialize embeddings as small as P_0; the usual scale would drown out the positions.

        The reference does this for its vocabulary; doing it for patches is our choice.
        """
        if isinstance(self.tokens, GrayEmbed):
            nn.init.normal_(self.tokens.weight, std=1 / self.scale)
        else:
            patches = self.tokens.patches
            nn.init.normal_(patches.weight, std=1 / (self.scale * math.sqrt(patches.in_features)))
            nn.init.zeros_(patches.bias)

    def forward(self, images: Float[Tensor, "B C H W"]) -> Sequences:
        x: Tensor = self.tokens(images)
        p: Tensor = self.packed
        if self.positions is not None:
            x = self.scale * x + self.positions[: x.shape[1]]
            p = self.scale * p + self.positions[: len(p)]
        return Sequences(self.dropout(self.norm(x)), self.dropout(p.expand(x.shape[0], -1, -1)))


class NestedAttention(nn.Module):
    """Multi-head attention from one sequence to another, without an output projection.

    Untied keys have no bias: it would add the same number to all logits of a query, which the
    softmax cancels.
    """

    def __init__(self, embed_dim: int, num_heads: int, is_tied: bool, dropout: float) -> None:
        super().__init__()
        self.num_heads, self.dropout = num_heads, dropout
        self.to_q = nn.Linear(embed_dim, embed_dim)
        self.to_k = None if is_tied else nn.Linear(embed_dim, embed_dim, bias=False)
        self.to_v = nn.Linear(embed_dim, embed_dim)
        for projection in self.children():
            if isinstance(projection, nn.Linear):
                nn.init.xavier_uniform_(projection.weight, gain=1 / math.sqrt(2))

    def forward(
        self, x: Float[Tensor, "B N E"], context: Float[Tensor, "B M E"]
    ) -> Float[Tensor, "B N E"]:
        q, v = self.split_heads(self.to_q(x)), self.split_heads(self.to_v(context))
        k = v if self.to_k is None else self.split_heads(self.to_k(context))
        dropout = self.dropout if self.training else 0.0
        attended = scaled_dot_product_attention(q, k, v, dropout_p=dropout)
        return rearrange(attended, "b h n d -> b n (h d)")

    def split_heads(self, x: Float[Tensor, "B N E"]) -> Float[Tensor, "B S N D"]:
        return rearrange(x, "b n (h d) -> b h n d", h=self.num_heads)


class Block(nn.Module):
    """Pack the tokens, unpack them, then feed-forward; post-norm and residual."""

    def __init__(self, config: LunaConfig, is_last: bool) -> None:
        super().__init__()
        c, dim = config, config.embed_dim
        self.pack = NestedAttention(dim, c.num_heads, c.is_tied, c.attention_dropout)
        self.unpack = NestedAttention(dim, c.num_heads, c.is_tied, c.attention_dropout)
        self.to_out = nn.Linear(dim, dim)
        nn.init.xavier_uniform_(self.to_out.weight)
        nn.init.zeros_(self.to_out.bias)
        self.norm_packed = None if is_last else nn.LayerNorm(dim)
        self.norm1 = nn.LayerNorm(dim)
        self.feed_forward = FeedForward(dim, round(dim * c.mlp_ratio))
        self.norm2 = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(c.dropout)

    def forward(self, x: Float[Tensor, "B T E"], p: Float[Tensor, "B L E"]) -> Sequences:
        raw = self.pack(p, x)  # Y_P
        x = self.norm1(x + self.dropout(self.to_out(self.unpack(x, raw))))
        x = self.norm2(x + self.dropout(self.feed_forward(x)))
        if self.norm_packed is None:
            return Sequences(x, None)
        return Sequences(x, self.norm_packed(p + self.dropout(raw)))


class Luna(PretrainedModel, tags=["luna"]):
    """Image classifier whose tokens meet only in a packed sequence.

    >>> images = torch.randn(2, 3, 32, 32)
    >>> logits, _ = Luna(LUNA_SMALL)(images)
    """

    def __init__(self, config: LunaConfig) -> None:
        super().__init__()
        c = self.config = config
        self.embed = LunaEmbed(c)
        self.blocks = nn.ModuleList(Block(c, is_last=i == c.depth - 1) for i in range(c.depth))
        self.head = nn.Sequential(nn.Dropout(c.dropout), Float32Linear(c.embed_dim, c.num_classes))
        self.recompute = False

    def forward(
        self,
        images: Float[Tensor, "B C H W"],
        questions: Float[Tensor, "B Q"] | None = None,
    ) -> ModelOutput:
        check_inputs(images, questions, self.config.image_size, self.config.num_channels)
        x, p = self.embed(images)
        for block in self.blocks:
            x, p = run_block(block, x, p, recompute=self.recompute)
        return ModelOutput(self.head(x.mean(dim=1)), torch.zeros((), device=x.device))

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each layer in the backward pass, which saves memory."""
        self.recompute = enable

    def reference_parameters(self) -> int:
        """Also count what has no effect: biases of untied keys and the last norm of P."""
        c = self.config
        key_biases = 0 if c.is_tied else 2 * c.depth * c.embed_dim
        last_norm = 2 * c.embed_dim
        return super().reference_parameters() + key_biases + last_norm


def gray_levels(images: Float[Tensor, "B C H W"], vocabulary: int) -> Int[Tensor, "B T"]:
    """Round the gray value of each pixel, in raster order, to a level from 0 to `vocabulary` - 1.

    Three channels are weighted as in ITU-R BT.601. Values outside [0, 1] are clamped.
    """
    if images.shape[1] == 1:
        gray = images[:, 0]
    else:
        red, green, blue = images.unbind(dim=1)
        gray = 0.299 * red + 0.587 * green + 0.114 * blue  # autocast would round a matmul
    levels = ((vocabulary - 1) * gray).round().clamp(0, vocabulary - 1)
    return levels.long().flatten(1)


def sinusoidal_positions(num_positions: int, embed_dim: int) -> Float[Tensor, "T E"]:
    """Return sines, then cosines, at frequencies from 1 to 1 / 10,000 in equal ratios.

    This is fairseq's code; Vaswani et al. 2017 alternate sines and cosines and stop short of
    1 / 10,000.
    """
    half = embed_dim // 2
    frequency = 10_000 ** -(torch.arange(half, dtype=torch.float64) / (half - 1))
    angle = torch.arange(num_positions, dtype=torch.float64)[:, None] * frequency
    return torch.cat([angle.sin(), angle.cos()], dim=1).float()


LUNA_SMALL = LunaConfig()
LUNA_BASE = LunaConfig(depth=12)
LUNA_LRA = LunaConfig(  # the pixels of gray CIFAR-10, as in the Long Range Arena
    patch_size=1,
    vocabulary=256,
    embed_dim=64,
    depth=1,
    num_heads=8,
    mlp_ratio=2.0,
    num_packed=256,
    dropout=0.3,
    attention_dropout=0.1,
)
