"""Perceiver (Jaegle et al. 2021, arXiv 2103.03206): latents read all pixels several times.

`form="package"` and `tie="after_first"` follow lucidrains/perceiver-pytorch, `form="paper"` and
`tie="paper"` the paper. The feed-forward has a hidden width of 4 E in the package and E in the
paper.

Dims     B batch   C channels   H W image side   N = H * W pixels   K bands of the position code
         F = C + 2 (2K + 1) data width   M latents   E latent width   L width of keys and values
         O classes
Sizes    256 latents of width 512 read 1,024 pixels of width 261 6 times
"""

import math
from dataclasses import dataclass
from typing import Literal, cast

import torch
from einops import rearrange
from jaxtyping import Float
from pydantic import ConfigDict, with_config
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention

from associative_transformer.arguments import check_count, check_factor
from associative_transformer.float32 import Float32Linear
from associative_transformer.interface import ModelOutput
from associative_transformer.models.layers import (
    check_inputs,
    check_sizes,
    run_block,
)
from associative_transformer.models.pretrained import PretrainedModel


@with_config(ConfigDict(extra="forbid"))
@dataclass(frozen=True)
class FourierConfig:
    """The position code of a pixel."""

    num_bands: int = 64
    """K: frequencies per axis, equally spaced from 1 to max_freq / 2."""
    max_freq: float | None = None
    """Sampling rate, twice the highest frequency; None: the side of the image."""

    def __post_init__(self) -> None:
        check_count("num_bands", self.num_bands)
        if self.max_freq is not None:
            check_factor("max_freq", self.max_freq)


@with_config(ConfigDict(extra="forbid"))
@dataclass(frozen=True)
class PerceiverConfig:
    """Sizes of a Perceiver; the defaults give the size in the paper's table, on CIFAR-10."""

    kind: Literal["perceiver"] = "perceiver"
    """Name of the model in saved configurations."""
    image_size: int = 32
    """Height and width of the images in pixels; each pixel is a token."""
    num_channels: int = 3
    """C: channels of the images."""
    num_classes: int = 10
    """Number of classes."""
    fourier: FourierConfig = FourierConfig()
    """Position code of the pixels."""
    num_latents: int = 256
    """M: latents that read the pixels."""
    latent_dim: int = 512
    """E: width of a latent."""
    depth: int = 6
    """Number of times that the latents read the pixels."""
    num_selfs: int = 1
    """Self-attention blocks of the latents after each read."""
    num_heads: int = 8
    """Heads of the self-attention."""
    head_dim: int = 64
    """Width of each of these heads."""
    cross_dim: int = 64
    """Width of the single head of the cross-attention."""
    tie: Literal["none", "after_first", "paper"] = "none"
    """after_first: repeats 2, 3, ... share weights; paper: the first also shares latent blocks."""
    form: Literal["package", "paper"] = "package"
    """paper: plain instead of gated feed-forward, biases everywhere, no norm before the head."""
    dropout: float = 0.0
    """Dropout rate of the attention weights and of what a feed-forward adds."""

    def __post_init__(self) -> None:
        check_sizes(self)


class PixelTokens(nn.Module):
    """Tokens of the pixels: their colors, then the Fourier code of their row and column."""

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
        return torch.cat([colors, self.code.expand(images.shape[0], -1, -1)], dim=-1)


class Attention(nn.Module):
    """Multi-head attention from the latents to keys and values computed by `to_kv`."""

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
    """Product of the first half of the features and the GELU of the second: a GELU(b)."""

    def forward(self, x: Float[Tensor, "*B E2"]) -> Float[Tensor, "*B E"]:
        a, b = x.chunk(2, dim=-1)
        return a * gelu(b)


class LatentFeedForward(nn.Sequential):
    """Two linear maps with GEGLU (form "package") or GELU (form "paper") in between."""

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
    """Single-head attention from latents to pixels, then feed-forward; pre-norm and residual."""

    def __init__(self, config: PerceiverConfig, data_dim: int) -> None:
        super().__init__()
        c = config
        self.data_norm = nn.LayerNorm(data_dim)
        self.norm1 = nn.LayerNorm(c.latent_dim)
        self.attention = Attention(c, data_dim, num_heads=1, head_dim=c.cross_dim)
        self.norm2 = nn.LayerNorm(c.latent_dim)
        self.feed_forward = LatentFeedForward(c)

    def keys_values(self, data: Float[Tensor, "B N F"]) -> Float[Tensor, "B N L"]:
        """Compute keys and values of the pixels, which do not depend on the latents."""
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
        self.feed_forward = LatentFeedForward(c)

    def forward(self, z: Float[Tensor, "B M E"]) -> Float[Tensor, "B M E"]:
        x = self.norm1(z)
        z = z + self.attention(x, self.attention.to_kv(x))
        return z + self.feed_forward(self.norm2(z))


class Perceiver(PretrainedModel, tags=["perceiver"]):
    """Image classifier that uses the mean of latents that repeatedly read all pixels.

    The cost is linear in the number of pixels. Modules that repeats share are registered once.

    >>> images = torch.randn(2, 3, 32, 32)
    >>> logits, _ = Perceiver(PERCEIVER)(images)
    """

    def __init__(self, config: PerceiverConfig) -> None:
        super().__init__()
        c = self.config = config
        self.embed = PixelTokens(c)
        self.latents = nn.Parameter(torch.randn(c.num_latents, c.latent_dim))
        first_and_rest = min(2, c.depth)
        num_reads = c.depth if c.tie == "none" else first_and_rest
        num_self_blocks = {"none": c.depth, "after_first": first_and_rest, "paper": 1}[c.tie]
        self.cross_blocks = nn.ModuleList(
            CrossBlock(c, self.embed.num_features) for _ in range(num_reads)
        )
        self.self_blocks = nn.ModuleList(
            nn.Sequential(*(SelfBlock(c) for _ in range(c.num_selfs)))
            for _ in range(num_self_blocks)
        )
        norm = [nn.LayerNorm(c.latent_dim)] if c.form == "package" else []
        self.head = nn.Sequential(*norm, Float32Linear(c.latent_dim, c.num_classes))
        self.recompute = False

    def forward(
        self, images: Float[Tensor, "B C H W"], questions: Float[Tensor, "B Q"] | None = None
    ) -> ModelOutput:
        check_inputs(images, questions, self.config.image_size, self.config.num_channels)
        data = self.embed(images)
        z = self.latents.expand(images.shape[0], -1, -1)
        for i in range(self.config.depth):
            if i < len(self.cross_blocks):  # the repeats that share a block share keys and values
                cross = cast(CrossBlock, self.cross_blocks[i])
                kv = run_block(cross.keys_values, data, recompute=self.recompute)
            z = run_block(self.repeat, z, kv, i, recompute=self.recompute)
        return ModelOutput(self.head(z.mean(dim=1)), torch.zeros((), device=images.device))

    def repeat(
        self, z: Float[Tensor, "B M E"], kv: Float[Tensor, "B N L"], i: int
    ) -> Float[Tensor, "B M E"]:
        """Let the latents read the pixels, then attend to each other; `i` counts from 0."""
        cross = self.cross_blocks[min(i, len(self.cross_blocks) - 1)]
        selfs = self.self_blocks[min(i, len(self.self_blocks) - 1)]
        return selfs(cross(z, kv))

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each repeat in the backward pass, which saves memory."""
        self.recompute = enable


PERCEIVER = PerceiverConfig()


def fourier_code(side: int, num_bands: int, max_freq: float) -> Float[Tensor, "N P"]:
    """Return [sin(pi s p), cos(pi s p), p] of each pixel's row and column, in raster order."""
    position = torch.linspace(-1, 1, side, dtype=torch.float64)[:, None]
    angle = math.pi * position * torch.linspace(1, max_freq / 2, num_bands, dtype=torch.float64)
    code = torch.cat([angle.sin(), angle.cos(), position], dim=-1).float()  # (H, 2K + 1)
    rows, columns = code[:, None].expand(-1, side, -1), code.expand(side, -1, -1)
    return torch.cat([rows, columns], dim=-1).flatten(0, 1)
