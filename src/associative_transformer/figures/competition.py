"""Competition in self-attention: a row per layer, with one distribution for each head.

Dims     C = N + 1 counts of tokens
"""

from typing import Any

import numpy as np
from jaxtyping import Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from associative_transformer.analysis.competition import Competition
from associative_transformer.figures.context import Context
from associative_transformer.interface import format_count

ROW_INCHES = 0.72
MIN_INCHES = 2.2  # of all rows together
HALF_WIDTH = 0.42  # of the widest part of a distribution; the heads are 1 apart


def draw_competition(figure: Figure, competition: Competition, context: Context) -> str:
    """Draw how many tokens receive most attention, a row per layer; return the caption."""
    rows, item = context.layers, context.items.removesuffix("s")
    num_heads, num_tokens = competition.counts[:, :, 1:].shape[1:]
    if not rows or not num_heads * num_tokens:
        figure.set_figheight(0.5)
        return "There is no self-attention."
    medians, uniform = competition.quantile(0.5), competition.uniform
    share = f"{100 * competition.share:.0f} %"
    figure.set_figheight(max(ROW_INCHES * len(rows), MIN_INCHES) + 0.7)
    axes = figure.subplots(len(rows), sharex=True, squeeze=False)[:, 0]
    for ax, row in zip(axes, rows, strict=True):
        for head, counts in enumerate(competition.counts[row]):
            if counts.any():
                _draw_distribution(ax, head + 1, counts, int(medians[row, head]))
        ax.axhline(competition.one, color="C1", linestyle="--", marker="", linewidth=0.8, zorder=0)
        ax.axhline(uniform, color="C2", linestyle=":", marker="", linewidth=1.2, zorder=0)
        ax.set(xlim=(0.4, num_heads + 0.6), ylim=(-0.04 * num_tokens, num_tokens + 0.5))
        ax.set_ylabel(f"layer {competition.layers[row] + 1}")
    axes[-1].set_xlabel("head (median shown above)")
    axes[-1].xaxis.set_major_locator(MaxNLocator(17, integer=True, min_n_ticks=1))
    figure.supylabel(f"tokens for {share} of the attention", fontsize=8)
    figure.legend(
        handles=[
            Patch(color="C0", alpha=0.5, label="distribution over the tokens"),
            Line2D([], [], color="k", marker="o", linestyle="", label="median"),
            Line2D([], [], color="C1", linestyle="--", label="one token"),
            Line2D([], [], color="C2", linestyle=":", label=f"uniform attention: {uniform}"),
        ],
        loc="outside upper center",
        ncols=4,
    )
    return (
        f"Each token of {format_count(competition.num_images, item)} counts once per head; each "
        f"{item} has {format_count(num_tokens, 'token')}."
    )


def _draw_distribution(ax: Axes, head: int, counts: Int[np.ndarray, " C"], median: int) -> None:
    low, high = np.flatnonzero(counts)[[0, -1]]
    width = HALF_WIDTH * counts[low : high + 1].repeat(2) / counts.max()
    edges = np.arange(low, high + 2).repeat(2)[1:-1] - 0.5
    ax.fill_betweenx(edges, head - width, head + width, color="C0", alpha=0.5, linewidth=0.5)
    ax.plot(head, median, "ko", markersize=2.5)
    above: dict[str, Any] = {"transform": ax.get_xaxis_transform(), "ha": "center", "va": "bottom"}
    ax.text(head, 1.0, str(median), fontsize=6.5, **above)
