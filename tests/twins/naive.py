"""The equations as slow loops, written from the paper independently of the package.

The loops run over heads, priors and tokens. Only operations within a vector are vectorized, and
autograd gives an independent gradient. For float64 and small sizes.

Dims     S heads   M priors   T tokens   D prior width   E token width   K winners of a prior
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor


class BottleneckAttention(NamedTuple):
    value: Tensor  # (S, M, D)
    gates: Tensor  # (S, M, T), zero for tokens that lost
    score: Tensor  # (S, M, K), largest first
    chosen: Tensor  # (S, M, K)


def dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum()


def softmax(logits: list[Tensor]) -> list[Tensor]:
    largest = max(x.item() for x in logits)
    exponentials = [torch.exp(x - largest) for x in logits]
    total = sum(exponentials, torch.zeros_like(exponentials[0]))
    return [e / total for e in exponentials]


def weighted_sum(weights: list[Tensor], vectors: list[Tensor]) -> Tensor:
    total = torch.zeros_like(vectors[0])
    for weight, vector in zip(weights, vectors, strict=True):
        total = total + weight * vector
    return total


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Multiply `weight` (out, in) with each row of `x` (rows, in)."""
    rows = []
    for vector in x:
        row = torch.stack([dot(w, vector) for w in weight])
        rows.append(row if bias is None else row + bias)
    return torch.stack(rows)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    rows = []
    for vector in x:
        mean = vector.sum() / len(vector)
        variance = ((vector - mean) ** 2).sum() / len(vector)
        rows.append((vector - mean) / torch.sqrt(variance + eps) * weight + bias)
    return torch.stack(rows)


def compete(logits: list[list[Tensor]]) -> list[list[Tensor]]:
    """Subtract from each logit the log of the sum of exponentials over the priors, by token."""
    columns = []
    for column in zip(*logits, strict=True):
        largest = max(x.item() for x in column)
        total = sum((torch.exp(x - largest) for x in column), torch.zeros_like(column[0]))
        columns.append([x - largest - torch.log(total) for x in column])
    return [list(row) for row in zip(*columns, strict=True)]


def center(rows: list[Tensor]) -> list[Tensor]:
    """Subtract the mean of all rows from each row."""
    mean = sum(rows, torch.zeros_like(rows[0])) / len(rows)
    return [row - mean for row in rows]


def bottleneck_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bottleneck: int | None,
    competition: str = "none",
    center_values: bool = False,
) -> BottleneckAttention:
    """Compute step 3: a softmax over the k largest logits of each row, all others exactly 0.

    The order is: scale, competition, top-k, softmax.
    """
    num_heads, num_priors, width = q.shape
    num_tokens = k.shape[1]
    limit = num_tokens if bottleneck is None else min(bottleneck, num_tokens)
    values, gates, scores, chosen = [], [], [], []
    for head in range(num_heads):
        all_logits = [
            [dot(query, k[head, t]) / math.sqrt(width) for t in range(num_tokens)]
            for query in q[head]
        ]
        if competition == "priors":
            all_logits = compete(all_logits)
        own_values = center(list(v[head])) if center_values else list(v[head])
        for logits in all_logits:
            descending = sorted(((-x.item(), t) for t, x in enumerate(logits)))
            winners = [t for _, t in descending[:limit]]
            weights = softmax([logits[t] for t in winners])
            row = [torch.zeros_like(logits[0])] * num_tokens
            for weight, t in zip(weights, winners, strict=True):
                row[t] = weight
            values.append(weighted_sum(weights, [own_values[t] for t in winners]))
            gates.append(torch.stack(row))
            scores.append(torch.stack(weights))
            chosen.append(torch.tensor(winners))
    shape = (num_heads, num_priors)
    return BottleneckAttention(
        torch.stack(values).reshape(*shape, -1),
        torch.stack(gates).reshape(*shape, -1),
        torch.stack(scores).reshape(*shape, -1),
        torch.stack(chosen).reshape(*shape, -1),
    )


def squared_variation(z: list[Tensor]) -> Tensor:
    """Compute CV^2 with the unbiased variance: var(z) / (mean(z)^2 + 1e-10)."""
    mean = sum(z, torch.zeros_like(z[0])) / len(z)
    squares = [(x - mean) ** 2 for x in z]
    variance = sum(squares, torch.zeros_like(mean)) / (len(z) - 1)
    return variance / (mean**2 + 1e-10)


def balance_loss(score: Tensor, chosen: Tensor, num_tokens: int) -> Tensor:
    """Compute step 5, without the weight sigma."""
    num_heads, num_priors, limit = score.shape
    total = score.new_zeros(())
    for head in range(num_heads):
        importance = [score.new_zeros(()) for _ in range(num_tokens)]
        load = [score.new_zeros(()) for _ in range(num_tokens)]
        for prior in range(num_priors):
            for i in range(limit):
                token = int(chosen[head, prior, i])
                importance[token] = importance[token] + score[head, prior, i]
                load[token] = load[token] + 1
        total = total + squared_variation(importance) + squared_variation(load)
    return total


def update_priors(priors: Tensor, written: Tensor, smoothing: float) -> Tensor:
    """Compute step 4, the moving average."""
    rows = []
    for old, new in zip(priors, written, strict=True):
        mixed = (1 - smoothing) * old + smoothing * new
        rows.append(mixed / torch.sqrt(dot(mixed, mixed)))
    return torch.stack(rows)


def hopfield_retrieve(
    state: Tensor, attractors: Tensor, beta: float, num_steps: int = 1
) -> Tensor:
    """Compute step 6: r = softmax(beta x Y^T) Y, repeated `num_steps` times."""
    rows = []
    for token in state.reshape(-1, state.shape[-1]):
        for _ in range(num_steps):
            weights = softmax([beta * dot(token, attractor) for attractor in attractors])
            token = weighted_sum(weights, list(attractors))
        rows.append(token)
    return torch.stack(rows).reshape(state.shape)


def hopfield_energy(state: Tensor, attractors: Tensor, beta: float) -> Tensor:
    """Compute the energy, in which zeta is the largest norm of an attractor."""
    squared_zeta = max((dot(y, y) for y in attractors), key=lambda x: x.item())
    energies = []
    for token in state.reshape(-1, state.shape[-1]):
        logits = [beta * dot(token, attractor) for attractor in attractors]
        largest = max(x.item() for x in logits)
        total = sum((torch.exp(x - largest) for x in logits), torch.zeros_like(logits[0]))
        energies.append(
            -(largest + torch.log(total)) / beta
            + dot(token, token) / 2
            + math.log(len(attractors)) / beta
            + squared_zeta / 2
        )
    return torch.stack(energies).reshape(state.shape[:-1])


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """Turn (rows, S*D) into (S, rows, D): head i gets the i-th block of D columns."""
    width = x.shape[1] // num_heads
    return torch.stack([x[:, i * width : (i + 1) * width] for i in range(num_heads)])


def merge_heads(x: Tensor) -> Tensor:
    """Turn (S, rows, D) into (rows, S*D)."""
    return torch.stack([torch.cat([head[row] for head in x]) for row in range(x.shape[1])])


class WorkspaceWeights(NamedTuple):
    q: Tensor  # (S*D, D)
    k: Tensor  # (S*D, E)
    v: Tensor  # (S*D, E)
    out: Tensor  # (D, S*D)
    norm_weight: Tensor  # (D,)
    norm_bias: Tensor  # (D,)
    attractor_weight: Tensor  # (E, D), f_LT
    attractor_bias: Tensor  # (E,)


class WorkspaceStep(NamedTuple):
    written: Tensor  # (M, D), gamma hat
    priors: Tensor  # (M, D), gamma^{t+1}
    retrieved: Tensor  # (B, N, E)
    balance: Tensor  # unweighted
    attention: BottleneckAttention


def workspace_write(
    pool: Tensor,
    priors: Tensor,
    weights: WorkspaceWeights,
    num_heads: int,
    bottleneck: int | None,
    competition: str = "none",
    center_values: bool = False,
) -> tuple[Tensor, BottleneckAttention]:
    """Compute what step 3 writes, without dropout."""
    q = split_heads(linear(priors, weights.q), num_heads)
    k = split_heads(linear(pool, weights.k), num_heads)
    v = split_heads(linear(pool, weights.v), num_heads)
    selected = bottleneck_attention(q, k, v, bottleneck, competition, center_values)
    mixed = priors + linear(merge_heads(selected.value), weights.out)
    return layer_norm(mixed, weights.norm_weight, weights.norm_bias, 1e-6), selected


def workspace_step(
    u: Tensor,
    priors: Tensor,
    weights: WorkspaceWeights,
    num_heads: int,
    bottleneck: int | None,
    smoothing: float,
    beta: float,
    num_steps: int = 1,
    differentiable_write: bool = True,
    competition: str = "none",
    center_values: bool = False,
) -> WorkspaceStep:
    """Write, remember and read in training mode: `u` is (B, N, E)."""
    pool = torch.cat(list(u))
    rules = (competition, center_values)
    written, selected = workspace_write(pool, priors, weights, num_heads, bottleneck, *rules)
    updated = update_priors(
        priors, written if differentiable_write else written.detach(), smoothing
    )
    attractors = linear(updated, weights.attractor_weight, weights.attractor_bias)
    retrieved = hopfield_retrieve(u, attractors, beta, num_steps)
    balance = balance_loss(selected.score, selected.chosen, len(pool))
    return WorkspaceStep(written, updated, retrieved, balance, selected)


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Compute softmax attention within one image: (S, N, D), (S, T, D), (S, T, D) to (S, N, D)."""
    scale = 1 / math.sqrt(q.shape[-1])
    heads = []
    for head in range(len(q)):
        rows = []
        for query in q[head]:
            weights = softmax([dot(query, key) * scale for key in k[head]])
            rows.append(weighted_sum(weights, list(v[head])))
        heads.append(torch.stack(rows))
    return torch.stack(heads)


def relu(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, torch.zeros_like(x))


def gelu(x: Tensor) -> Tensor:
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


class Affine(NamedTuple):
    weight: Tensor
    bias: Tensor


class ConvLayer(NamedTuple):
    conv: Affine  # (D, C, 3, 3), (D,)
    norm: Affine  # (D,), (D,)
    mean: Tensor  # (D,), running statistics of BatchNorm
    variance: Tensor  # (D,)


def convolution(image: Tensor, conv: Affine) -> Tensor:
    """Convolve with 3x3 kernels and stride 2; the image is padded with one ring of zeros."""
    channels, height, width = image.shape
    planes = []
    for kernel, bias in zip(*conv, strict=True):
        plane = []
        for top in range(-1, height - 1, 2):
            for left in range(-1, width - 1, 2):
                total = bias
                for c in range(channels):
                    for i in range(3):
                        for j in range(3):
                            if 0 <= top + i < height and 0 <= left + j < width:
                                pixel = image[c, top + i, left + j]
                                total = total + kernel[c, i, j] * pixel
                plane.append(total)
        planes.append(torch.stack(plane).reshape((height + 1) // 2, (width + 1) // 2))
    return torch.stack(planes)


def batch_norm(grids: Tensor, layer: ConvLayer, training: bool) -> Tensor:
    """Normalize each channel over all pixels of all images, or by the running statistics."""
    channels = []
    for c in range(grids.shape[1]):
        values = grids[:, c]
        mean, variance = layer.mean[c], layer.variance[c]
        if training:
            mean = values.sum() / values.numel()
            variance = ((values - mean) ** 2).sum() / values.numel()
        normalized = (values - mean) / torch.sqrt(variance + 1e-5)
        channels.append(normalized * layer.norm.weight[c] + layer.norm.bias[c])
    return torch.stack(channels, dim=1)


def conv_stem(images: Tensor, layers: list[ConvLayer], training: bool) -> Tensor:
    """Apply convolution, ReLU and BatchNorm, in this order, layer by layer."""
    for layer in layers:
        features = torch.stack([relu(convolution(image, layer.conv)) for image in images])
        images = batch_norm(features, layer, training)
    return images


def mlp(x: Tensor, layers: list[Affine], last_relu: bool) -> Tensor:
    for i, layer in enumerate(layers):
        x = linear(x[None], *layer)[0]
        if last_relu or i < len(layers) - 1:
            x = relu(x)
    return x


def objects_of(grid: Tensor) -> list[Tensor]:
    """Return the objects of a grid: features, then row and column between -1 and 1."""
    _, height, width = grid.shape
    objects = []
    for row in range(height):
        for column in range(width):
            position = [
                2 * index / (size - 1) - 1 if size > 1 else 0.0
                for index, size in ((row, height), (column, width))
            ]
            objects.append(torch.cat([grid[:, row, column], grid.new_tensor(position)]))
    return objects


def relation_network(
    images: Tensor,
    questions: Tensor,
    stem: list[ConvLayer],
    g: list[Affine],
    f: list[Affine],
    num_objects: int,
    training: bool,
) -> Tensor:
    """Sum g over all pairs or triples of objects, then apply f; no dropout, no log-softmax."""
    answers = []
    for grid, question in zip(conv_stem(images, stem, training), questions, strict=True):
        objects = objects_of(grid)
        total = torch.zeros_like(g[-1].bias)
        for first in objects:
            for second in objects:
                if num_objects == 2:
                    total = total + mlp(torch.cat([first, second, question]), g, True)
                    continue
                for third in objects:
                    relation = torch.cat([first, second, third, question])
                    total = total + mlp(relation, g, True)
        answers.append(mlp(total, f, False))
    return torch.stack(answers)


def conv_mlp(
    images: Tensor,
    questions: Tensor,
    stem: list[ConvLayer],
    layers: list[Affine],
    training: bool,
) -> Tensor:
    """Apply an MLP to the flattened grid and the question, without dropout."""
    answers = []
    for grid, question in zip(conv_stem(images, stem, training), questions, strict=True):
        features = [pixel for plane in grid for row in plane for pixel in row]
        answers.append(mlp(torch.cat([torch.stack(features), question]), layers, False))
    return torch.stack(answers)


def dense(tokens: Tensor, blocks: list[tuple[Affine, Affine, Affine]]) -> Tensor:
    """Compute x + MLP(LN(x)) for each token separately, (N, E) to (N, E)."""
    rows = []
    for token in tokens:
        x = token[None]
        for norm, into, out in blocks:
            hidden = gelu(linear(layer_norm(x, *norm, 1e-5), *into))
            x = x + linear(hidden, *out)
        rows.append(x[0])
    return torch.stack(rows)
