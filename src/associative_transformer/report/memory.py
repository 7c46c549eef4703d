"""The section on the explicit memory: how similar its priors are, and how they move.

Dims     T epochs   L layers   M priors   D prior width
"""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float

from associative_transformer.analysis.capacity import Capacity
from associative_transformer.analysis.drift import Drift, measure_drift
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


def memory_section(
    memory: Float[np.ndarray, "T L M D"] | None, epoch: int, capacity: Capacity | None = None
) -> Section:
    """Return the section on the memory after `epoch`, counted from 1, and on its history.

    `memory` is None if the model has none.
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
    figures += [Figure(chart) for chart in _draw_drift(drift, layers, min(num_priors, prior_dim))]
    ranks = ", ".join(f"{value:.1f}" for value in drift.effective_rank[epoch - 1])
    note = (
        f"Each layer has {format_count(num_priors, 'prior')} of width {prior_dim}, shown after "
        f"epoch {epoch}. "
        f"Effective rank (the number of directions in use) by layer: {ranks}."
    )
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


def _number(num_priors: int) -> list[str]:
    return [str(prior + 1) for prior in range(num_priors)]
