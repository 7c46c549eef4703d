"""The Set Transformer as slow loops over patches, heads and tokens, written from the paper.

One image at a time, for float64 and small sizes.

Dims     N rows of X   L rows of Y   D width of a block   M inducing points   K seeds
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from twins.naive import Affine, dot, layer_norm, linear, relu, softmax, weighted_sum


class MABWeights(NamedTuple):
    q: Affine  # (D, width of X)
    k: Affine  # (D, width of Y)
    v: Affine  # (D, width of Y)
    feed_forward: Affine  # (D, D)
    norms: tuple[Affine, Affine] | None  # after the attention, after the feed-forward


class ISABWeights(NamedTuple):
    inducing: Tensor  # (M, D)
    write: MABWeights  # MAB0
    read: MABWeights  # MAB1


class PMAWeights(NamedTuple):
    seeds: Tensor  # (K, D)
    mab: MABWeights


class Weights(NamedTuple):
    patches: Affine
    question: Affine | None
    class_token: Tensor | None  # (1, E)
    positions: Tensor | None  # (N, E)
    blocks: list[ISABWeights]
    pma: PMAWeights | None
    decoder: list[MABWeights]
    head: Affine


def mab(x: Tensor, y: Tensor, weights: MABWeights, num_heads: int) -> Tensor:
    """Attend from the rows of x to those of y, then apply the feed-forward."""
    q, k, v = linear(x, *weights.q), linear(y, *weights.k), linear(y, *weights.v)
    width = q.shape[1]
    size = width // num_heads
    rows = []
    for n in range(len(q)):
        parts = []
        for head in range(num_heads):
            own = slice(head * size, (head + 1) * size)
            scores = [dot(q[n, own], k[i, own]) / math.sqrt(width) for i in range(len(k))]
            mixed = weighted_sum(softmax(scores), [v[i, own] for i in range(len(v))])
            parts.append(q[n, own] + mixed)
        rows.append(torch.cat(parts))
    o = torch.stack(rows)
    if weights.norms is not None:
        o = layer_norm(o, *weights.norms[0], 1e-5)
    o = o + relu(linear(o, *weights.feed_forward))
    return o if weights.norms is None else layer_norm(o, *weights.norms[1], 1e-5)


def sab(x: Tensor, weights: MABWeights, num_heads: int) -> Tensor:
    return mab(x, x, weights, num_heads)


def isab(x: Tensor, weights: ISABWeights, num_heads: int) -> Tensor:
    return mab(x, mab(weights.inducing, x, weights.write, num_heads), weights.read, num_heads)


def pma(x: Tensor, weights: PMAWeights, num_heads: int) -> Tensor:
    return mab(weights.seeds, x, weights.mab, num_heads)


def patches_of(image: Tensor, size: int) -> Tensor:
    """Return patches in raster order; inside a patch the channel varies fastest."""
    channels, height, width = image.shape
    rows = []
    for top in range(0, height, size):
        for left in range(0, width, size):
            row = [
                image[c, top + i, left + j]
                for i in range(size)
                for j in range(size)
                for c in range(channels)
            ]
            rows.append(torch.stack(row))
    return torch.stack(rows)


def positions_of(num_tokens: int, width: int) -> Tensor:
    """Return sigmoid(1) * PE."""
    gate = 1 / (1 + math.exp(-1))
    rows = []
    for t in range(num_tokens):
        angles = [t / 10_000 ** (2 * c / width) for c in range(width)]
        rows.append([gate * (math.cos(a) if c % 2 else math.sin(a)) for c, a in enumerate(angles)])
    return torch.tensor(rows, dtype=torch.float64)


def set_transformer(
    images: Tensor, questions: Tensor | None, weights: Weights, patch_size: int, num_heads: int
) -> Tensor:
    """Return the logits, from a class token or through PMA and SABs."""
    answers = []
    for i, image in enumerate(images):
        parts = [linear(patches_of(image, patch_size), *weights.patches)]
        if questions is not None and weights.question is not None:
            parts.insert(0, linear(questions[i][None], *weights.question))
        if weights.class_token is not None:
            parts.insert(0, weights.class_token)
        x = torch.cat(parts)
        if weights.positions is not None:
            x = x + weights.positions
        for block in weights.blocks:
            x = isab(x, block, num_heads)
        if weights.pma is not None:
            x = pma(x, weights.pma, num_heads)
        for layer in weights.decoder:
            x = sab(x, layer, num_heads)
        answers.append(linear(x[:1], *weights.head)[0])
    return torch.stack(answers)
