"""Reconstruction: tokens before and after retrieval, in two dimensions.

Dims     R inverse temperatures   J images   I images shown   N tokens per image
"""

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from associative_transformer.analysis.reconstruction import Reconstruction
from associative_transformer.figures.context import Context
from associative_transformer.interface import format_count

ROW_INCHES = 1.45
HUES = ("C0", "C1", "C2", "C3", "C4", "C5", "0.35")
MARKERS = "os^DvPX"


def draw_reconstruction(figure: Figure, reconstruction: Reconstruction, context: Context) -> str:
    """Draw tokens before retrieval and after it for each beta, by layer; return the caption."""
    r, layers, items = reconstruction, context.layers, context.items
    item = items.removesuffix("s")
    num_images, num_tokens = r.before.shape[1:3]
    num_shown = min(num_images, len(HUES))
    if not layers or not num_shown * num_tokens:
        figure.set_figheight(0.5)
        return "There are no tokens."
    figure.set_figheight(ROW_INCHES * len(layers) + 0.3)
    axes = figure.subplots(len(layers), 1 + len(r.betas), squeeze=False)
    for row, layer in zip(axes.tolist(), layers, strict=True):
        _draw_layer(row, r, layer, num_shown)
    for ax in axes[-1]:
        ax.set_xlabel("component 1")
    figure.legend(
        handles=[
            Line2D([], [], color=hue, marker=marker, linestyle="", label=f"{item} {index + 1}")
            for hue, marker, index in zip(
                HUES, MARKERS, r.images[:num_shown].tolist(), strict=False
            )
        ],
        loc="outside upper center",
        ncols=num_shown,
        columnspacing=0.5,
        handletextpad=0.2,
    )
    return (
        f"{format_count(num_images, item)} of {format_count(num_tokens, 'token')} each, "
        f"{num_shown} of them drawn: one color and marker per {item}, from dark (first token) to "
        "light (last). Both components are principal components of the tokens before retrieval. "
        "Distinct: number of different tokens after retrieval, of "
        f"{num_images * num_tokens:,}."
    )


def _draw_layer(row: list[Axes], r: Reconstruction, layer: int, num_shown: int) -> None:
    _draw_tokens(row[0], r.before[layer, :num_shown])
    row[0].set_title(f"before, {100 * r.explained[layer]:.0f} % explained", fontsize=7)
    row[0].set_ylabel(f"layer {layer + 1}\ncomponent 2")
    for i, ax in enumerate(row[1:]):
        if i > 0:  # same limits as for the first beta
            ax.sharex(row[1])
            ax.sharey(row[1])
            ax.tick_params(labelleft=False)
        _draw_tokens(ax, r.after[i, layer, :num_shown])
        title = f"β = {r.betas[i]:g}, {r.num_distinct[i, layer]:,} distinct"
        ax.set_title(title, fontsize=7)
    before, after = r.before[layer], r.after[:, layer, :num_shown]
    row[1].set_xlim(_limits(after[..., 0], before[..., 0]))
    row[1].set_ylim(_limits(after[..., 1], before[..., 1]))


def _draw_tokens(ax: Axes, tokens: Float[np.ndarray, "I N 2"]) -> None:
    for points, hue, marker in zip(tokens, HUES, MARKERS, strict=False):
        colors = _shades(hue, len(points))
        x, y = points.T
        # rasterized, because many points would make a large SVG
        ax.scatter(x, y, c=colors, s=7, marker=marker, linewidths=0, rasterized=True)
    ax.xaxis.set_major_locator(MaxNLocator(3))
    ax.yaxis.set_major_locator(MaxNLocator(4))


def _limits(
    after: Float[np.ndarray, "R I N"], before: Float[np.ndarray, "J N"]
) -> tuple[float, float]:
    """Return limits that show all retrieved tokens but hide rounding errors if all are equal."""
    after, before = after[np.isfinite(after)], before[np.isfinite(before)]
    if not len(after):
        return 0.0, 1.0
    smallest = np.ptp(before) / 100 if len(before) else 0.0
    half = 0.6 * max(np.ptp(after), smallest, 1e-6)
    middle = (after.min() + after.max()) / 2
    return middle - half, middle + half


def _shades(hue: str, count: int) -> Float[np.ndarray, "N 3"]:
    color = np.array(to_rgb(hue))
    dark, light = 0.4 * color, 0.45 * color + 0.55
    return np.linspace(dark, light, count)
