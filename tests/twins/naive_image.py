"""The workspace per image as slow loops over images, heads, priors and tokens.

Written from the equations independently of the package. Padding is never multiplied by zero: it is
left out. For float64 and small sizes.

Dims     B images   N tokens of an image   S heads of the write   M priors   D prior width
         E token width   d width of a head of the read
"""

import math
from fractions import Fraction
from typing import NamedTuple

import torch
from torch import Tensor

from twins import naive

EPS = 1e-5


class ImageWeights(NamedTuple):
    priors: Tensor  # (M, D), gamma
    q: Tensor  # (S*D, D)
    k: Tensor  # (S*D, E)
    v: Tensor  # (S*D, E)
    out: Tensor  # (D, S*D)
    norm_weight: Tensor  # (D,)
    norm_bias: Tensor  # (D,)
    attractor_weight: Tensor  # (E, D), f_LT
    attractor_bias: Tensor  # (E,)
    read_norm_weight: Tensor | None = None  # (E,)
    read_norm_bias: Tensor | None = None  # (E,)


class Settings(NamedTuple):
    num_heads: int
    bottleneck: int | float | None
    read_head_dim: int
    competition: bool = False
    center_values: bool = False
    beta: float = 1.0
    num_steps: int = 1


class Attention(NamedTuple):
    value: Tensor  # (B, S, M, D)
    gates: Tensor  # (B, S, M, N), zero for tokens that lost and for padding
    is_chosen: Tensor  # (B, S, M, N)


class ImageStep(NamedTuple):
    priors: Tensor  # (B, M, D), the memory of each image
    read: Tensor  # (B, N, E)
    balance: Tensor  # unweighted
    attention: Attention


def real_tokens(padding: Tensor | None, image: int, num_tokens: int) -> list[int]:
    """Return the numbers of the tokens of an image that are not padding."""
    return [t for t in range(num_tokens) if padding is None or not bool(padding[image, t])]


def number_kept(bottleneck: int | float | None, num_tokens: int) -> int:
    """Return how many of `num_tokens` real tokens a prior attends to."""
    if bottleneck is None:
        return num_tokens
    if isinstance(bottleneck, float):
        return min(num_tokens, max(1, math.ceil(Fraction(repr(bottleneck)) * num_tokens)))
    return min(bottleneck, num_tokens)


def similarities(q: Tensor, k: Tensor, tokens: list[int], compete: bool) -> list[list[Tensor]]:
    """Return the logits of one image and head, of each prior for each of its real tokens."""
    rows = [[naive.dot(prior, k[t]) / math.sqrt(q.shape[-1]) for t in tokens] for prior in q]
    if not compete:
        return rows
    for i in range(len(tokens)):
        column = [row[i] for row in rows]
        largest = max(x.item() for x in column)
        total = torch.stack([torch.exp(x - largest) for x in column]).sum()
        for row, x in zip(rows, column, strict=True):
            row[i] = x - largest - torch.log(total)
    return rows


def attention(
    q: Tensor, k: Tensor, v: Tensor, settings: Settings, padding: Tensor | None = None
) -> Attention:
    """Let each prior attend to the tokens of each image: q (S, M, D), k and v (B, S, N, D)."""
    num_images, num_heads, num_tokens, width = k.shape
    num_priors = q.shape[1]
    values, gates = [], []
    is_chosen = torch.zeros(num_images, num_heads, num_priors, num_tokens, dtype=torch.bool)
    for image in range(num_images):
        tokens = real_tokens(padding, image, num_tokens)
        limit = number_kept(settings.bottleneck, len(tokens))
        for head in range(num_heads):
            sources = {t: v[image, head, t] for t in tokens}
            if settings.center_values and tokens:
                mean = sum(sources.values(), q.new_zeros(width)) / len(tokens)
                sources = {t: source - mean for t, source in sources.items()}
            rows = similarities(q[head], k[image, head], tokens, settings.competition)
            for prior, logits in enumerate(rows):
                descending = sorted(range(len(tokens)), key=lambda i: -logits[i].item())
                winners = descending[:limit]
                row = [q.new_zeros(())] * num_tokens
                value = q.new_zeros(width)
                if winners:
                    weights = naive.softmax([logits[i] for i in winners])
                    value = naive.weighted_sum(weights, [sources[tokens[i]] for i in winners])
                    for weight, i in zip(weights, winners, strict=True):
                        row[tokens[i]] = weight
                        is_chosen[image, head, prior, tokens[i]] = True
                values.append(value)
                gates.append(torch.stack(row))
    shape = (num_images, num_heads, num_priors)
    return Attention(
        torch.stack(values).reshape(*shape, width),
        torch.stack(gates).reshape(*shape, num_tokens),
        is_chosen,
    )


def balance_loss(gates: Tensor, is_chosen: Tensor, padding: Tensor | None = None) -> Tensor:
    """Return the squared variation of importance and load, a mean over images."""
    num_images, num_heads, num_priors, num_tokens = gates.shape
    losses = []
    for image in range(num_images):
        tokens = real_tokens(padding, image, num_tokens)
        if len(tokens) < 2:
            continue
        total = gates.new_zeros(())
        for head in range(num_heads):
            importance = [gates.new_zeros(()) for _ in tokens]
            load = [gates.new_zeros(()) for _ in tokens]
            for prior in range(num_priors):
                for i, t in enumerate(tokens):
                    importance[i] = importance[i] + gates[image, head, prior, t]
                    load[i] = load[i] + float(is_chosen[image, head, prior, t])
            total = total + naive.squared_variation(importance) + naive.squared_variation(load)
        losses.append(total)
    return sum(losses, gates.new_zeros(())) / max(1, len(losses))


def retrieve(
    u: Tensor, attractors: Tensor, beta: float, read_head_dim: int, num_steps: int = 1
) -> Tensor:
    """Read (B, N, E) from the attractors (B, M, E): head j of the read owns the j-th slice."""
    width = read_head_dim
    images = []
    for tokens, patterns in zip(u, attractors, strict=True):
        rows = []
        for state in tokens:
            for _ in range(num_steps):
                heads = []
                for start in range(0, u.shape[-1], width):
                    part = state[start : start + width]
                    stored = [pattern[start : start + width] for pattern in patterns]
                    logits = [beta * naive.dot(part, y) / math.sqrt(width) for y in stored]
                    heads.append(naive.weighted_sum(naive.softmax(logits), stored))
                state = torch.cat(heads)
            rows.append(state)
        images.append(torch.stack(rows))
    return torch.stack(images)


def workspace_step(
    u: Tensor, weights: ImageWeights, settings: Settings, padding: Tensor | None = None
) -> ImageStep:
    """Write and read: `u` is (B, N, E), `padding` (B, N) is True for tokens to leave out."""
    q = naive.split_heads(naive.linear(weights.priors, weights.q), settings.num_heads)
    k, v = (
        torch.stack([naive.split_heads(naive.linear(x, w), settings.num_heads) for x in u])
        for w in (weights.k, weights.v)
    )
    selected = attention(q, k, v, settings, padding)
    memories = []
    for value in selected.value:
        mixed = weights.priors + naive.linear(naive.merge_heads(value), weights.out)
        memories.append(naive.layer_norm(mixed, weights.norm_weight, weights.norm_bias, EPS))
    attractors = [
        naive.linear(memory, weights.attractor_weight, weights.attractor_bias)
        for memory in memories
    ]
    read = retrieve(
        u, torch.stack(attractors), settings.beta, settings.read_head_dim, settings.num_steps
    )
    if weights.read_norm_weight is not None and weights.read_norm_bias is not None:
        norm = (weights.read_norm_weight, weights.read_norm_bias, EPS)
        read = torch.stack([naive.layer_norm(rows, *norm) for rows in read])
    if padding is not None:
        read = torch.where(padding[..., None], torch.zeros_like(read), read)
    balance = balance_loss(selected.gates, selected.is_chosen, padding)
    return ImageStep(torch.stack(memories), read, balance, selected)
