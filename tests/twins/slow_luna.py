"""Luna as slow loops over heads, tokens and packed tokens, one image at a time, from the paper.

For float64 and small sizes, without dropout.

Dims     T tokens   L packed tokens   E token width   V gray levels   P pixels times channels
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from twins import naive
from twins.naive import Affine

Embed = Callable[[Tensor], Tensor]  # an image (C, H, W) to its tokens (T, E), before the scale


class LayerWeights(NamedTuple):
    """Weights of a layer; if they are tied, keys and values have the same map."""

    pack_q: Affine
    pack_k: Affine
    pack_v: Affine
    unpack_q: Affine
    unpack_k: Affine
    unpack_v: Affine
    out: Affine
    packed_norm: Affine
    attention_norm: Affine
    widen: Affine
    narrow: Affine
    feed_forward_norm: Affine


def attend(q: Tensor, k: Tensor, v: Tensor, num_heads: int) -> Tensor:
    """Attend from (rows, E) to (others, E); each head has the next columns."""
    width = q.shape[1] // num_heads
    heads = []
    for head in range(num_heads):
        columns = slice(head * width, (head + 1) * width)
        rows = []
        for query in q[:, columns]:
            logits = [naive.dot(query, key) / math.sqrt(width) for key in k[:, columns]]
            rows.append(naive.weighted_sum(naive.softmax(logits), list(v[:, columns])))
        heads.append(torch.stack(rows))
    return torch.cat(heads, dim=1)


def pack(tokens: Tensor, packed: Tensor, w: LayerWeights, num_heads: int) -> Tensor:
    """Return Y_P; there is no output projection."""
    q = naive.linear(packed, *w.pack_q)
    k, v = naive.linear(tokens, *w.pack_k), naive.linear(tokens, *w.pack_v)
    return attend(q, k, v, num_heads)


def unpack(tokens: Tensor, raw: Tensor, w: LayerWeights, num_heads: int) -> Tensor:
    """Return Y_X, which reads Y_P directly."""
    q = naive.linear(tokens, *w.unpack_q)
    k, v = naive.linear(raw, *w.unpack_k), naive.linear(raw, *w.unpack_v)
    return naive.linear(attend(q, k, v, num_heads), *w.out)


def layer(
    tokens: Tensor, packed: Tensor, w: LayerWeights, num_heads: int
) -> tuple[Tensor, Tensor]:
    """Pack and unpack, with norms after the sums; the packed sequence has no feed-forward."""
    raw = pack(tokens, packed, w, num_heads)
    unpacked = unpack(tokens, raw, w, num_heads)
    packed = naive.layer_norm(packed + raw, *w.packed_norm, 1e-5)
    tokens = naive.layer_norm(tokens + unpacked, *w.attention_norm, 1e-5)
    hidden = naive.linear(naive.gelu(naive.linear(tokens, *w.widen)), *w.narrow)
    return naive.layer_norm(tokens + hidden, *w.feed_forward_norm, 1e-5), packed


def patch_embedding(patch_size: int, weights: Affine) -> Embed:
    """Return an embedding of patches in raster order with the channel fastest."""

    def embed(image: Tensor) -> Tensor:
        _, height, width = image.shape
        patches = []
        for top in range(0, height, patch_size):
            for left in range(0, width, patch_size):
                patches.append(
                    torch.stack(
                        [
                            image[channel, top + row, left + column]
                            for row in range(patch_size)
                            for column in range(patch_size)
                            for channel in range(len(image))
                        ]
                    )
                )
        return naive.linear(torch.stack(patches), *weights)

    return embed


def gray_level(pixel: list[float], vocabulary: int) -> int:
    """Return the gray level of a pixel, from one channel or from red, green and blue."""
    gray = pixel[0]
    if len(pixel) == 3:
        gray = 0.299 * pixel[0] + 0.587 * pixel[1] + 0.114 * pixel[2]  # ITU-R 601
    return min(max(round((vocabulary - 1) * gray), 0), vocabulary - 1)


def gray_embedding(rows: Tensor) -> Embed:
    """Return an embedding of pixels in raster order by rows of the table (V, E)."""

    def embed(image: Tensor) -> Tensor:
        _, height, width = image.shape
        return torch.stack(
            [
                rows[gray_level(image[:, row, column].tolist(), len(rows))]
                for row in range(height)
                for column in range(width)
            ]
        )

    return embed


def sinusoid(position: int, embed_dim: int) -> list[float]:
    """Return sines, then cosines, at frequencies from 1 down to 1 / 10,000 in equal ratios."""
    half = embed_dim // 2
    angles = [position / 10_000 ** (i / (half - 1)) for i in range(half)]
    return [math.sin(angle) for angle in angles] + [math.cos(angle) for angle in angles]


def positions_in_the_reference(tokens: list[int], padding: int) -> list[int]:
    """Count the positions of a text, here gray levels behind a class token, as fairseq does.

    The first token that is not padding has the position `padding` + 1.
    """
    positions, count = [], 0
    for token in tokens:
        count += token != padding
        positions.append(padding + (count if token != padding else 0))
    return positions


def luna(
    image: Tensor,
    embed: Embed,
    positions: Tensor | None,  # (max(T, L), E)
    embed_norm: Affine,
    packed: Tensor,  # P_0
    layers: list[LayerWeights],
    num_heads: int,
    head: Affine,
) -> Tensor:
    """Return the logits of one image: a linear map of the mean over the last layer's tokens."""
    tokens = embed(image)
    if positions is not None:
        scale = math.sqrt(tokens.shape[1])
        tokens = torch.stack([scale * x + p for x, p in zip(tokens, positions, strict=False)])
        packed = torch.stack([scale * x + p for x, p in zip(packed, positions, strict=False)])
    tokens = naive.layer_norm(tokens, *embed_norm, 1e-5)
    for weights in layers:
        tokens, packed = layer(tokens, packed, weights, num_heads)
    mean = sum(tokens, torch.zeros_like(tokens[0])) / len(tokens)
    return naive.linear(mean[None], *head)[0]
