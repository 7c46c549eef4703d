"""BRIMs as slow loops over images, steps, layers, modules and heads, written from the paper.

The loops go down to single modules; torch only sums along vectors. For float64 and small sizes. A
source is a vector that a layer may attend to; the first one is the null source.

Dims     n modules   s width of a module   E = n * s width of a layer   S sources
         K key width   V value width   h heads   d width of a head
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from twins.naive import Affine, dot, softmax, weighted_sum


class Layer(NamedTuple):
    q: Tensor  # (n, s, K)
    k: Tensor  # (S, E, K)
    v: Tensor  # (S, E, V)
    lstm_x: Tensor  # (n, V, 4s), gates i f g o
    lstm_h: Tensor  # (n, s, 4s)
    lstm_biases: list[Tensor]  # two, (n, 4s) each
    comm_q: Tensor  # (n, s, hd)
    comm_k: Tensor  # (n, s, hd)
    comm_v: Tensor  # (n, s, hd)
    comm_gate: Affine  # (s, hd), (s,)
    comm_out: Affine  # (s, hd), (s,)
    num_heads: int


class Dropout(NamedTuple):
    """Factors for one step: 0, or 1 / (1 - rate)."""

    seen: Tensor  # (n, V)
    heard: Tensor  # (n, s)


class Step(NamedTuple):
    h: list[Tensor]  # n of (s,)
    c: list[Tensor]
    is_active: list[bool]
    null_score: list[float]


def times(x: Tensor, matrix: Tensor) -> Tensor:
    """Multiply x (in) with a matrix (in, out)."""
    return torch.stack([dot(x, column) for column in matrix.T])


def affine(x: Tensor, layer: Affine) -> Tensor:
    return times(x, layer.weight.T) + layer.bias


def lstm(u: Tensor, h: Tensor, c: Tensor, layer: Layer, i: int) -> tuple[Tensor, Tensor]:
    gates = times(u, layer.lstm_x[i]) + times(h, layer.lstm_h[i])
    for bias in layer.lstm_biases:
        gates = gates + bias[i]
    s = len(h)
    to_input, forget, cell, output = (gates[g * s : (g + 1) * s] for g in range(4))
    c = torch.sigmoid(forget) * c + torch.sigmoid(to_input) * torch.tanh(cell)
    return torch.sigmoid(output) * torch.tanh(c), c


def communicate(h: list[Tensor], layer: Layer, dropout: Dropout | None) -> list[Tensor]:
    """Compute what is added to each module: attention among all modules."""
    q, k, v = (
        [times(x, w[i]) for i, x in enumerate(h)]
        for w in (layer.comm_q, layer.comm_k, layer.comm_v)
    )
    width, updates = len(q[0]) // layer.num_heads, []
    for i in range(len(h)):
        heads = []
        for head in range(layer.num_heads):
            own = slice(head * width, (head + 1) * width)
            scores = [dot(q[i][own], key[own]) / math.sqrt(width) for key in k]
            heads.append(weighted_sum(softmax(scores), [value[own] for value in v]))
        y = torch.cat(heads)
        gate, out = torch.sigmoid(affine(y, layer.comm_gate)), affine(y, layer.comm_out)
        updates.append(gate * torch.tanh(out if dropout is None else out * dropout.heard[i]))
    return updates


def step(
    sources: list[Tensor],
    h: list[Tensor],
    c: list[Tensor],
    layer: Layer,
    num_active: int,
    dropout: Dropout | None = None,
) -> Step:
    """Take one step of one layer for one image."""
    keys = [times(x, w) for x, w in zip(sources, layer.k, strict=True)]
    values = [times(x, w) for x, w in zip(sources, layer.v, strict=True)]
    null_score, updated = [], []
    for i in range(len(h)):
        q = times(h[i], layer.q[i])
        attention = softmax([dot(q, key) / math.sqrt(len(q)) for key in keys])
        null_score.append(attention[0].item())
        u = weighted_sum(attention, values)
        updated.append(lstm(u if dropout is None else u * dropout.seen[i], h[i], c[i], layer, i))
    order = sorted(
        range(len(h)), key=lambda i: (null_score[i], i)
    )  # least attention to null first
    is_active = [i in order[:num_active] for i in range(len(h))]
    heard = [
        new if active else new.detach()
        for (new, _), active in zip(updated, is_active, strict=True)
    ]
    updates = communicate(heard, layer, dropout)
    return Step(
        [updated[i][0] + updates[i] if is_active[i] else h[i] for i in range(len(h))],
        [updated[i][1] if is_active[i] else c[i] for i in range(len(h))],
        is_active,
        null_score,
    )


def pixels(image: Tensor, resolution: int) -> list[list[int]]:
    """Return the channels of each pixel of the resized image in raster order, from 0 to 255."""
    _, height, width = image.shape
    colors = []
    for row in range(resolution):
        for column in range(resolution):
            color = image[:, row * height // resolution, column * width // resolution]
            colors.append([min(max(round(x.item() * 255), 0), 255) for x in color])
    return colors


def brims(
    images: Tensor,
    resolution: int,
    embeddings: list[Tensor],
    layers: list[Layer],
    head: Affine,
    num_active: int,
) -> tuple[Tensor, list[list[list[Step]]]]:
    """Return the logits, and the steps by image, time and layer; embeddings are (256, E/C)."""
    logits, histories = [], []
    for image in images:
        n, s = layers[0].q.shape[:2]
        blank = [image.new_zeros(s) for _ in range(n)]
        h, c = [blank] * len(layers), [blank] * len(layers)
        history = []
        for color in pixels(image, resolution):
            below = torch.cat([table[x] for table, x in zip(embeddings, color, strict=True)])
            steps = []
            for i, layer in enumerate(layers):
                sources = [torch.zeros_like(below), below]
                if i + 1 < len(layers):
                    sources.append(torch.cat(h[i + 1]))  # of the previous step
                new = step(sources, h[i], c[i], layer, num_active)
                h[i], c[i] = new.h, new.c
                below = torch.cat(new.h)
                steps.append(new)
            history.append(steps)
        logits.append(affine(torch.cat(h[-1]), head))
        histories.append(history)
    return torch.stack(logits), histories
