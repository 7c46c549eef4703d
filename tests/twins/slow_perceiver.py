"""The Perceiver as slow loops over pixels, bands, heads and latents, written from the paper.

One image at a time, for float64 and small sizes.

Dims     H W image side   C channels   N = H * W pixels   K bands   F = C + 2 (2K + 1)
         M latents   E latent width
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from twins.naive import Affine, dot, gelu, layer_norm, linear, softmax, weighted_sum


class Map(NamedTuple):
    weight: Tensor  # (out, in)
    bias: Tensor | None


class Attention(NamedTuple):
    norm: Affine  # of the latents
    q: Map
    kv: Map  # keys first, then values
    out: Map
    num_heads: int


class FeedForward(NamedTuple):
    norm: Affine
    into: Map
    out: Map
    is_gated: bool


class Cross(NamedTuple):
    data_norm: Affine
    attention: Attention
    feed_forward: FeedForward


class Block(NamedTuple):
    attention: Attention
    feed_forward: FeedForward


class Repeat(NamedTuple):
    cross: Cross
    blocks: list[Block]


class Head(NamedTuple):
    norm: Affine | None
    to_logits: Map


def fourier(position: float, num_bands: int, max_freq: float) -> list[float]:
    """Return [sin(pi s_j p), cos(pi s_j p), p] with s_j = linspace(1, max_freq / 2, K)."""
    last = max_freq / 2
    scales = [1.0]
    for j in range(1, num_bands):
        scales.append(1 + (last - 1) * j / (num_bands - 1))
    sines = [math.sin(math.pi * s * position) for s in scales]
    cosines = [math.cos(math.pi * s * position) for s in scales]
    return [*sines, *cosines, position]


def position(index: int, size: int) -> float:
    """Return an entry of linspace(-1, 1)."""
    return 2 * index / (size - 1) - 1 if size > 1 else -1.0


def tokens_of(image: Tensor, num_bands: int, max_freq: float) -> Tensor:
    """Turn (C, H, W) into (N, F), rows first; the code has the precision of float32."""
    _, height, width = image.shape
    tokens = []
    for row in range(height):
        for column in range(width):
            code = fourier(position(row, height), num_bands, max_freq)
            code += fourier(position(column, width), num_bands, max_freq)
            rounded = torch.tensor(code, dtype=torch.float32).to(image.dtype)
            tokens.append(torch.cat([image[:, row, column], rounded]))
    return torch.stack(tokens)


def attend(z: Tensor, context: Tensor, attention: Attention) -> Tensor:
    """Return Wo softmax(Q K^T / sqrt(d_h)) V of normalized latents and context."""
    q, kv = linear(z, *attention.q), linear(context, *attention.kv)
    inner = q.shape[1]
    width = inner // attention.num_heads
    rows = []
    for query in q:
        merged = []
        for head in range(attention.num_heads):
            own = slice(head * width, (head + 1) * width)
            logits = [dot(query[own], pair[:inner][own]) / math.sqrt(width) for pair in kv]
            merged.append(weighted_sum(softmax(logits), [pair[inner:][own] for pair in kv]))
        rows.append(torch.cat(merged))
    return linear(torch.stack(rows), *attention.out)


def feed_forward(z: Tensor, weights: FeedForward) -> Tensor:
    """Apply the feed-forward with a * GELU(b) if it is gated, otherwise with GELU."""
    hidden = linear(layer_norm(z, *weights.norm, 1e-5), *weights.into)
    if weights.is_gated:
        half = hidden.shape[1] // 2
        hidden = torch.stack([row[:half] * gelu(row[half:]) for row in hidden])
    else:
        hidden = gelu(hidden)
    return linear(hidden, *weights.out)


def perceiver(
    images: Tensor,
    latents: Tensor,
    repeats: list[Repeat],
    head: Head,
    num_bands: int,
    max_freq: float,
) -> Tensor:
    """Return the logits; tied repeats occur in `repeats` several times."""
    answers = []
    for image in images:
        data = tokens_of(image, num_bands, max_freq)
        z = latents
        for cross, blocks in repeats:
            normalized_data = layer_norm(data, *cross.data_norm, 1e-5)
            z = z + attend(
                layer_norm(z, *cross.attention.norm, 1e-5), normalized_data, cross.attention
            )
            z = z + feed_forward(z, cross.feed_forward)
            for block in blocks:
                normalized = layer_norm(z, *block.attention.norm, 1e-5)
                z = z + attend(normalized, normalized, block.attention)
                z = z + feed_forward(z, block.feed_forward)
        mean = sum(z, torch.zeros_like(z[0])) / len(z)
        if head.norm is not None:
            mean = layer_norm(mean[None], *head.norm, 1e-5)[0]
        answers.append(linear(mean[None], *head.to_logits)[0])
    return torch.stack(answers)
