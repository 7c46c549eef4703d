"""Coordination as slow loops over images, heads, slots and tokens, written from the paper.

For float64 and small sizes, without dropout.

Dims     T tokens   M slots   E token width   S heads   D key width of a head   P patch   O classes
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from twins.naive import Affine, dot, layer_norm, linear, relu, softmax, weighted_sum


class LayerWeights(NamedTuple):
    norm1: Affine
    into: Affine  # (E, E), computes u
    q: Affine  # (S*D, E); the same three serve write and broadcast
    k: Affine  # (S*D, E)
    v: Affine  # (E, E)
    norm_a: Affine
    norm_b: Affine
    phi: Affine  # (E, E)
    w: Tensor  # (E,)
    gate: Affine  # (2E, E), computes g
    slot_weight: Tensor  # (M, E, 2E), G_m
    slot_bias: Tensor  # (M, 2E), b_m
    input_bias: Tensor  # b_i
    forget_bias: Tensor  # b_f
    norm2: Affine
    hidden: Affine  # (F, E)
    out: Affine  # (E, F)


class ModelWeights(NamedTuple):
    patches: Affine  # (E, P)
    question: Affine | None
    class_token: Tensor  # (1, E)
    positions: Tensor  # (T, E)
    layers: list[LayerWeights]  # one per layer, repeated if they are shared
    head: Affine  # (O, E)


class Settings(NamedTuple):
    patch_size: int
    num_heads: int
    num_slots: int
    bottleneck: int | None
    mlp_depth: int
    scale: float
    scope: str


class Taken(NamedTuple):
    value: Tensor  # (M, E)
    weights: Tensor  # (S, M, T), zero where a token lost


def positions(num_tokens: int, width: int) -> Tensor:
    """Return sigmoid(1) times sine in even and cosine in odd columns, of t / 10000^(2c/d)."""
    rows = []
    for t in range(num_tokens):
        row = []
        for c in range(width):
            angle = t / 10000 ** (2 * c / width)
            row.append(math.sin(angle) if c % 2 == 0 else math.cos(angle))
        rows.append(row)
    return torch.tensor(rows, dtype=torch.float64) / (1 + math.exp(-1))


def first_slots(num_slots: int, width: int) -> Tensor:
    """Return the identity, padded with zeros."""
    rows = [[float(m == c) for c in range(width)] for m in range(num_slots)]
    return torch.tensor(rows, dtype=torch.float64)


def tokens_of(image: Tensor, question: Tensor | None, weights: ModelWeights, patch: int) -> Tensor:
    """Return class token, question, patches in raster order with the channel fastest."""
    tokens = [weights.class_token[0]]
    if weights.question is not None:
        assert question is not None
        tokens.append(linear(question[None], *weights.question)[0])
    channels, height, width = image.shape
    for top in range(0, height, patch):
        for left in range(0, width, patch):
            pixels = [
                image[c, top + i, left + j]
                for i in range(patch)
                for j in range(patch)
                for c in range(channels)
            ]
            tokens.append(linear(torch.stack(pixels)[None], *weights.patches)[0])
    pairs = zip(tokens, weights.positions, strict=True)
    return torch.stack([token + position for token, position in pairs])


def attend(q: Tensor, k: Tensor, v: Tensor, settings: Settings, limit: int | None) -> Taken:
    """Attend from the rows of q to those of k and v; each row of each head keeps `limit` weights.

    Each head has its own columns of q and k, and its own columns of v.
    """
    num_heads = settings.num_heads
    key_width, value_width = q.shape[1] // num_heads, v.shape[1] // num_heads
    values: list[list[Tensor]] = [[] for _ in q]
    kept = []
    for head in range(num_heads):
        keys = slice(head * key_width, (head + 1) * key_width)
        columns = slice(head * value_width, (head + 1) * value_width)
        for row in range(len(q)):
            logits = [settings.scale * dot(q[row, keys], key[keys]) for key in k]
            weights = softmax(logits)
            winners = sorted(range(len(k)), key=lambda t: -weights[t].item())[:limit]
            weights = [
                weight if t in winners else torch.zeros_like(weight)
                for t, weight in enumerate(weights)
            ]
            values[row].append(weighted_sum(weights, [value[columns] for value in v]))
            kept.append(torch.stack(weights))
    value = torch.stack([torch.cat(heads) for heads in values])
    return Taken(value, torch.stack(kept).reshape(num_heads, len(q), len(k)))


def write(u: Tensor, slots: Tensor, layer: LayerWeights, settings: Settings) -> Taken:
    """Write tokens to slots."""
    q, k, v = linear(slots, *layer.q), linear(u, *layer.k), linear(u, *layer.v)
    return attend(q, k, v, settings, settings.bottleneck)


def update(
    u: Tensor, slots: Tensor, taken: Tensor, layer: LayerWeights, settings: Settings
) -> Tensor:
    """Update the slots through their gates."""
    first = layer_norm(slots + taken, *layer.norm_a, 1e-5)
    hidden = first
    for _ in range(settings.mlp_depth):
        hidden = relu(linear(hidden, *layer.phi))
    second = layer_norm(first + hidden, *layer.norm_b, 1e-5)
    mean = torch.zeros_like(u[0])
    for token in u:
        mean = mean + relu(layer.w * token) / len(u)
    from_tokens = linear(mean[None], *layer.gate)[0]  # (2E,)
    rows = []
    for m, slot in enumerate(slots):
        squashed = torch.tanh(slot)
        from_slot = torch.stack([dot(squashed, column) for column in layer.slot_weight[m].T])
        gates = from_tokens + from_slot + layer.slot_bias[m]
        into, forget = gates[: len(slot)], gates[len(slot) :]
        rows.append(
            torch.sigmoid(into + layer.input_bias) * torch.tanh(second[m])
            + torch.sigmoid(forget + layer.forget_bias) * slot
        )
    return torch.stack(rows)


def broadcast(u: Tensor, slots: Tensor, layer: LayerWeights, settings: Settings) -> Tensor:
    """Read slots into tokens."""
    q, k, v = linear(u, *layer.q), linear(slots, *layer.k), linear(slots, *layer.v)
    return attend(q, k, v, settings, None).value


def layer_step(
    x: Tensor, slots: Tensor, layer: LayerWeights, settings: Settings
) -> tuple[Tensor, Tensor]:
    """Return the tokens and the slots after one layer, (T, E) and (M, E)."""
    u = linear(layer_norm(x, *layer.norm1, 1e-5), *layer.into)
    taken = write(u, slots, layer, settings)
    slots = update(u, slots, taken.value, layer, settings)
    x = x + broadcast(u, slots, layer, settings)
    hidden = relu(linear(layer_norm(x, *layer.norm2, 1e-5), *layer.hidden))
    return x + linear(hidden, *layer.out), slots


def coordination(
    images: Tensor, questions: Tensor | None, weights: ModelWeights, settings: Settings
) -> Tensor:
    """Return the logits, (B, O)."""
    answers = []
    for i, image in enumerate(images):
        question = None if questions is None else questions[i]
        x = tokens_of(image, question, weights, settings.patch_size)
        start = slots = first_slots(settings.num_slots, x.shape[1])
        for layer in weights.layers:
            x, slots = layer_step(x, slots, layer, settings)
            if settings.scope == "layer":
                slots = start
        answers.append(linear(x[:1], *weights.head)[0])
    return torch.stack(answers)
