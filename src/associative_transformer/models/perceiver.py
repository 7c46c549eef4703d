"""Perceiver (Jaegle et al. 2021, arXiv 2103.03206): latents read all pixels, again and again.

Dims     B batch   C channels   H W image side   N = H * W pixels   K bands of the position code
         F = C + 2 (2K + 1) data width   M latents   E latent width   L width of keys and values
         O classes
Sizes    PERCEIVER reads 1,024 pixels of width 261 with 256 latents of width 512, 6 times;
         PERCEIVER_IMAGENET reads 50,176 with 512 latents of width 1024, 8 times
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, cast

import torch
from einops import rearrange
from jaxtyping import Float
from pydantic import ConfigDict, with_config
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

from associative_transformer.interface import ModelOutput
from associative_transformer.models.layers import check_inputs, check_sizes
from associative_transformer.models.pretrained import PretrainedModel


@with_config(ConfigDict(extra="forbid"))
@dataclass(frozen=True)
class FourierConfig:
    """The position code of a pixel."""

    num_bands: int = 64
    """K: frequencies per axis, at equal distances from 1 to max_freq / 2."""
    max_freq: float | None = None
    """Sampling rate whose half is the highest frequency; None: the image side."""

    def __post_init__(self) -> None:
        if self.num_bands < 1:
            raise ValueError(f"num_bands must be at least 1, not {self.num_bands}")
        if self.max_freq is not None and not 0 < self.max_freq < math.inf:
            raise ValueError(f"max_freq must be positive and finite, not {self.max_freq}")


@with_config(ConfigDict(extra="forbid"))
@dataclass(frozen=True)
class PerceiverConfig:
    """Sizes of a Perceiver; the defaults have the size in the paper's table, on CIFAR-10."""

    kind: Literal["perceiver"] = "perceiver"
    """Tells the model configurations apart."""
    image_size: int = 32
    """Height and width of the images in pixels; each pixel is a token."""
    num_channels: int = 3
    """C: channels of the images."""
    num_classes: int = 10
    """Classes to tell apart."""
    fourier: FourierConfig = FourierConfig()
    """Position code of the pixels."""
    num_latents: int = 256
    """M: latents that read the pixels."""
    latent_dim: int = 512
    """E: width of a latent."""
    depth: int = 6
    """Times that the latents read the pixels."""
    num_selfs: int = 1
    """Self-attention blocks of the latents after each reading."""
    num_heads: int = 8
    """Heads of the self-attention."""
    head_dim: int = 64
    """Width of one of these heads."""
    cross_dim: int = 64
    """Width of the single head of the cross-attention."""
    tie: Literal["none", "after_first", "paper"] = "none"
    """What the repeats share: nothing; all but the first share everything, as in
    lucidrains/perceiver-pytorch; or all share the latent blocks and all but the first the
    cross-attention, as in the paper.
    """
    form: Literal["package", "paper"] = "package"
    """As in lucidrains/perceiver-pytorch: gated feed-forward of factor 4, biases on output
    projections only, LayerNorm before the classifier; or as in the paper: plain feed-forward
    of factor 1, biases everywhere, no such norm.
    """
    dropout: float = 0.0
    """Share of the attention scores, and of what a feed-forward adds, dropped in training."""

    def __post_init__(self) -> None:
        check_sizes(self)


class PixelTokens(nn.Module):
    """Turn each pixel into a token: its colors, then the Fourier code of its row and column."""

    code: Tensor  # (N, 2 * (2K + 1))

    def __init__(self, config: PerceiverConfig) -> None:
        super().__init__()
        side, fourier = config.image_size, config.fourier
        max_freq = float(fourier.max_freq or side)
        code = fourier_code(side, fourier.num_bands, max_freq)
        self.register_buffer("code", code, persistent=False)
        self.num_features = config.num_channels + code.shape[1]

    def forward(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B N F"]:
        colors = rearrange(images, "b c h w -> b (h w) c")
        return torch.cat([colors, self.code.expand(len(images), -1, -1)], dim=-1)


class Attention(nn.Module):
    """Multi-head attention of the latents to keys and values that `to_kv` gives."""

    def __init__(
        self, config: PerceiverConfig, context_dim: int, num_heads: int, head_dim: int
    ) -> None:
        super().__init__()
        inner, bias = num_heads * head_dim, config.form == "paper"
        self.num_heads, self.dropout = num_heads, config.dropout
        self.to_q = nn.Linear(config.latent_dim, inner, bias=bias)
        self.to_kv = nn.Linear(context_dim, 2 * inner, bias=bias)
        self.to_out = nn.Linear(inner, config.latent_dim)

    def forward(
        self, z: Float[Tensor, "B M E"], kv: Float[Tensor, "B N L"]
    ) -> Float[Tensor, "B M E"]:
        q = rearrange(self.to_q(z), "b m (h d) -> b h m d", h=self.num_heads)
        k, v = rearrange(kv, "b n (z h d) -> z b h n d", z=2, h=self.num_heads)
        dropout = self.dropout if self.training else 0.0
        attended = scaled_dot_product_attention(q, k, v, dropout_p=dropout)
        return self.to_out(rearrange(attended, "b h m d -> b m (h d)"))


class GEGLU(nn.Module):
    """Gate the first half of the features by the second: a GELU(b)."""

    def forward(self, x: Float[Tensor, "*B E2"]) -> Float[Tensor, "*B E"]:
        a, b = x.chunk(2, dim=-1)
        return a * gelu(b)


class FeedForward(nn.Sequential):
    """Two linear maps, between them GEGLU, which takes two inputs for a hidden unit, or GELU."""

    def __init__(self, config: PerceiverConfig) -> None:
        dim, is_gated = config.latent_dim, config.form == "package"
        hidden = 4 * dim if is_gated else dim
        super().__init__(
            nn.Linear(dim, 2 * hidden if is_gated else hidden),
            GEGLU() if is_gated else nn.GELU(),
            nn.Linear(hidden, dim),
            nn.Dropout(config.dropout),
        )


class CrossBlock(nn.Module):
    """Latents read the pixels by attention of one head, then feed-forward; pre-norm, residual."""

    def __init__(self, config: PerceiverConfig, data_dim: int) -> None:
        super().__init__()
        c = config
        self.data_norm = nn.LayerNorm(data_dim)
        self.norm1 = nn.LayerNorm(c.latent_dim)
        self.attention = Attention(c, data_dim, num_heads=1, head_dim=c.cross_dim)
        self.norm2 = nn.LayerNorm(c.latent_dim)
        self.feed_forward = FeedForward(c)

    def keys_values(self, data: Float[Tensor, "B N F"]) -> Float[Tensor, "B N L"]:
        """Give what the latents read of the pixels; the latents have no part in it."""
        return self.attention.to_kv(self.data_norm(data))

    def forward(
        self, z: Float[Tensor, "B M E"], kv: Float[Tensor, "B N L"]
    ) -> Float[Tensor, "B M E"]:
        z = z + self.attention(self.norm1(z), kv)
        return z + self.feed_forward(self.norm2(z))


class SelfBlock(nn.Module):
    """Self-attention of the latents, then feed-forward, both pre-norm and residual."""

    def __init__(self, config: PerceiverConfig) -> None:
        super().__init__()
        c = config
        self.norm1 = nn.LayerNorm(c.latent_dim)
        self.attention = Attention(c, c.latent_dim, c.num_heads, c.head_dim)
        self.norm2 = nn.LayerNorm(c.latent_dim)
        self.feed_forward = FeedForward(c)

    def forward(self, z: Float[Tensor, "B M E"]) -> Float[Tensor, "B M E"]:
        x = self.norm1(z)
        z = z + self.attention(x, self.attention.to_kv(x))
        return z + self.feed_forward(self.norm2(z))


class Perceiver(PretrainedModel, tags=["perceiver"]):
    """Classify images from the mean of latents that read all pixels in turns.

    The cost is linear in the number of pixels. Modules that repeats share are registered once.
    """

    def __init__(self, config: PerceiverConfig) -> None:
        super().__init__()
        c = self.config = config
        self.embed = PixelTokens(c)
        self.latents = nn.Parameter(torch.randn(c.num_latents, c.latent_dim))
        first_and_rest = min(2, c.depth)
        num_reads = c.depth if c.tie == "none" else first_and_rest
        num_thoughts = {"none": c.depth, "after_first": first_and_rest, "paper": 1}[c.tie]
        self.cross_blocks = nn.ModuleList(
            CrossBlock(c, self.embed.num_features) for _ in range(num_reads)
        )
        self.self_blocks = nn.ModuleList(
            nn.Sequential(*(SelfBlock(c) for _ in range(c.num_selfs))) for _ in range(num_thoughts)
        )
        norm = [nn.LayerNorm(c.latent_dim)] if c.form == "package" else []
        self.head = nn.Sequential(*norm, nn.Linear(c.latent_dim, c.num_classes))
        self.recompute = False

    def forward(
        self, images: Float[Tensor, "B C H W"], questions: Float[Tensor, "B Q"] | None = None
    ) -> ModelOutput:
        check_inputs(images, questions, self.config.image_size, takes_questions=False)
        data = self.embed(images)
        z = self.latents.expand(len(images), -1, -1)
        for i in range(self.config.depth):
            if i < len(self.cross_blocks):  # repeats that share the last share what it read
                cross = cast(CrossBlock, self.cross_blocks[i])
                kv = self._run(cross.keys_values, data)
            z = self._run(self.repeat, z, kv, i)
        return ModelOutput(self.head(z.mean(dim=1)), torch.zeros((), device=images.device))

    def repeat(
        self, z: Float[Tensor, "B M E"], kv: Float[Tensor, "B N L"], i: int
    ) -> Float[Tensor, "B M E"]:
        """Read once, then let the latents attend to each other; `i` counts from 0."""
        read = self.cross_blocks[min(i, len(self.cross_blocks) - 1)]
        think = self.self_blocks[min(i, len(self.self_blocks) - 1)]
        return think(read(z, kv))

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trade time for memory: recompute each repeat in the backward pass."""
        self.recompute = enable

    def _run(self, step: Callable[..., Tensor], *inputs: Tensor | int) -> Tensor:
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(step, *inputs, use_reentrant=False)
        return step(*inputs)


PERCEIVER = PerceiverConfig()
PERCEIVER_IMAGENET = PerceiverConfig(
    image_size=224,
    num_classes=1000,
    num_latents=512,
    latent_dim=1024,
    depth=8,
    num_selfs=6,
    head_dim=128,
    cross_dim=261,  # as wide as the data
    tie="paper",
    form="paper",
)


def fourier_code(side: int, num_bands: int, max_freq: float) -> Float[Tensor, "N P"]:
    """Give [sin(pi s p), cos(pi s p), p] of row and column of each pixel in raster order."""
    position = torch.linspace(-1, 1, side, dtype=torch.float64)[:, None]
    angle = math.pi * position * torch.linspace(1, max_freq / 2, num_bands, dtype=torch.float64)
    code = torch.cat([angle.sin(), angle.cos(), position], dim=-1).float()  # (H, 2K + 1)
    rows, columns = code[:, None].expand(-1, side, -1), code.expand(side, -1, -1)
    return torch.cat([rows, columns], dim=-1).flatten(0, 1)
