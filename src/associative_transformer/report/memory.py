"""The section on the explicit memory: how similar its priors are, how they move, what they take.

Dims     T epochs   L layers   M priors   D prior width
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int

from associative_transformer.analysis.capacity import Capacity
from associative_transformer.analysis.drift import Drift, measure_drift
from associative_transformer.health import MemoryHealth, count_distinct
from associative_transformer.interface import format_count
from associative_transformer.report.charts import (
    Chart,
    Choice,
    Figure,
    Heat,
    Lines,
    Points,
    Section,
    Series,
)

SAME = 1e-4  # priors that differ by a smaller share of their norm are drawn as one point
TAKEN = (  # in the last step of an epoch: title, label and key in `metrics.jsonl`
    ("Overlap of winners", "Jaccard, mean over pairs of priors", "overlap"),
    ("Tokens used", "share of the tokens that a prior takes", "tokens_used"),
    ("Priors that win", "share of the priors", "priors_winning"),
)

Rows = Sequence[Mapping[str, Any]]


def memory_section(
    memory: Float[np.ndarray, "T L M D"] | None,
    epoch: int,
    capacity: Capacity | None = None,
    metrics: Rows = (),
    scope: str = "batch",
) -> Section:
    """Return the section on the memory after `epoch`, counted from 1, and on its history.

    `memory` is None if the model has none; with scope "image", it is what the memories of images
    start from. `metrics` are the rows of `metrics.jsonl`.
    """
    if memory is None:
        return Section("memory", "Memory", "This model has no memory.")
    num_layers, num_priors, prior_dim = memory.shape[1:]
    layers = [f"layer {layer + 1}" for layer in range(num_layers)]
    figures = []
    for layer, priors in enumerate(memory[epoch - 1]):
        charts: list[Chart] = [
            _draw_similarity(priors, layers[layer]),
            _draw_plane(priors, layers[layer]),
        ]
        figures += [Figure(chart, {"layer": layer}) for chart in charts]
    figures += [
        Figure(chart, {"layer": layer}) for layer, chart in _draw_capacity(capacity, layers)
    ]
    drift = measure_drift(memory)
    # epoch by epoch, to save memory
    distinct = np.array([count_distinct(torch.from_numpy(each)).numpy() for each in memory])
    figures += [Figure(chart) for chart in _draw_drift(drift, layers, min(num_priors, prior_dim))]
    figures.append(Figure(_draw_distinct(distinct, layers, num_priors)))
    figures += [Figure(chart) for chart in _draw_taken(metrics, layers)]
    ranks = ", ".join(f"{value:.1f}" for value in drift.effective_rank[epoch - 1])
    note = (
        f"Each layer has {format_count(num_priors, 'prior')} of width {prior_dim}, shown after "
        f"epoch {epoch}. "
        f"Effective rank (the number of directions in use) by layer: {ranks}."
    )
    if scope == "image":
        note += " The memory of each image starts from these priors, which are learned."
    note = " ".join([note, *_name_collapsed(drift, distinct, num_priors, epoch)])
    return Section("memory", "Memory", note, figures, [Choice("layer", "Layer", layers)])


def _draw_similarity(priors: Float[np.ndarray, "M D"], layer: str) -> Heat:
    unit = priors / np.linalg.norm(priors, axis=-1, keepdims=True)
    similarity, numbers = unit @ unit.T, _number(len(priors))
    off_diagonal = similarity[~np.eye(len(priors), dtype=bool)]
    mean = off_diagonal.mean() if off_diagonal.size else 1
    return Heat(
        f"Cosine similarity of the priors, {layer}",
        "prior",
        "prior",
        rows=numbers,
        columns=numbers,
        values=similarity.tolist(),
        low=-1,
        high=1,
        note=f"Mean over pairs of different priors: {mean:.2f}.",
        colors="diverging",
    )


def _draw_plane(priors: Float[np.ndarray, "M D"], layer: str) -> Points:
    """Draw the priors in the plane of their two principal components."""
    centered = priors - priors.mean(axis=0)
    u, strength, _ = np.linalg.svd(centered, full_matrices=False)
    if strength[0] < SAME * np.linalg.norm(priors):  # only rounding errors are left
        strength = np.zeros_like(strength)
    shares = 100 * strength**2 / max((strength**2).sum(), 1e-12)
    coordinates = np.zeros((len(priors), 2))
    num_shown = min(2, len(strength))
    coordinates[:, :num_shown] = (u * strength)[:, :num_shown] + 0.0  # turns -0 into 0
    first, second = (f"{share:.0f} %" for share in [*shares, 0.0, 0.0][:2])
    x, y = coordinates.T.tolist()
    return Points(
        f"Priors in a plane, {layer}",
        f"component 1 ({first})",
        f"component 2 ({second})",
        x,
        y,
        "The axes are the first two principal components, with their shares of the variance.",
        labels=_number(len(priors)),
    )


def _draw_capacity(capacity: Capacity | None, layers: list[str]) -> Iterator[tuple[int, Lines]]:
    """Draw what a memory can hold by the number of its priors and by the size of the pool."""
    if capacity is None:
        return
    num_priors = capacity.num_priors.tolist()
    for layer, name in enumerate(layers):
        for title, label, values in (
            (
                "Effective rank of new memories",
                "directions in use",
                capacity.effective_rank,
            ),
            ("Attractors that are recalled", "share", capacity.recalled),
        ):
            lines = [
                Series(f"pool of {size:,}", num_priors, values[layer, :, i].tolist())
                for i, size in enumerate(capacity.pool_sizes.tolist())
            ]
            x_label = "number of priors"
            yield layer, Lines(f"{title}, {name}", x_label, label, lines, is_log=True, start=0)


def _draw_drift(drift: Drift, layers: list[str], full_rank: int) -> Iterator[Lines]:
    """Draw how the memory moved from epoch to epoch; the first epoch has no angle."""
    for title, label, values, first in (
        ("Drift of the priors", "mean angle to the previous epoch, °", drift.angle, 1),
        ("Effective rank", f"directions in use, out of {full_rank}", drift.effective_rank, 0),
    ):
        lines = [
            Series(name, drift.epochs[first:], column[first:].tolist())
            for name, column in zip(layers, values.T, strict=True)
        ]
        if drift.epochs[first:]:
            yield Lines(title, "epoch", label, lines, start=0)


def _draw_distinct(distinct: Int[np.ndarray, "T L"], layers: list[str], num_priors: int) -> Lines:
    epochs = list(range(1, len(distinct) + 1))
    lines = [
        Series(name, epochs, column.tolist())
        for name, column in zip(layers, distinct.T, strict=True)
    ]
    note = "Priors with a cosine above 0.99 count as one."
    return Lines("Distinct priors", "epoch", f"number, out of {num_priors}", lines, note, start=0)


def _draw_taken(metrics: Rows, layers: list[str]) -> Iterator[Lines]:
    """Draw what the priors took at the end of each epoch; early runs did not record it."""
    rows = [row for row in metrics if len(row.get("health") or ()) == len(layers)]
    for title, label, key in TAKEN:
        lines = []
        for layer, name in enumerate(layers):
            points = [(row["epoch"], row["health"][layer].get(key)) for row in rows]
            points = [(epoch, value) for epoch, value in points if value is not None]
            if points:
                epochs, values = zip(*points, strict=True)
                lines.append(Series(name, epochs, values))
        if lines:
            yield Lines(title, "epoch", label, lines, start=0)
    losses = [row["balance_loss"] for row in metrics]
    if any(losses):
        line = Series("all layers", [row["epoch"] for row in metrics], losses)
        yield Lines("Balance loss of the memories", "epoch", "sum, weighted", [line], start=0)


def _name_collapsed(
    drift: Drift, distinct: Int[np.ndarray, "T L"], num_priors: int, epoch: int
) -> Iterator[str]:
    """Yield a sentence for each memory that has collapsed, and since which epoch."""
    for layer in range(distinct.shape[1]):
        is_collapsed = [
            MemoryHealth(float(rank), float(count), num_priors).is_collapsed
            for rank, count in zip(drift.effective_rank[:, layer], distinct[:, layer], strict=True)
        ]
        if is_collapsed[epoch - 1]:
            since = epoch
            while since > 1 and is_collapsed[since - 2]:
                since -= 1
            yield (
                f"The memory of layer {layer + 1} has collapsed (since epoch {since}): "
                f"{distinct[epoch - 1, layer]} of {num_priors} priors are distinct, with an "
                f"effective rank of {drift.effective_rank[epoch - 1, layer]:.1f}."
            )


def _number(num_priors: int) -> list[str]:
    return [str(prior + 1) for prior in range(num_priors)]
