"""Reconstruction: tokens before and after their retrieval, in two dimensions.

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

ROW_INCHES = 1.45
HUES = ("C0", "C1", "C2", "C3", "C4", "C5", "0.35")
MARKERS = "os^DvPX"


def draw_reconstruction(
    figure: Figure, reconstruction: Reconstruction, layers: list[int], items: str
) -> str:
    """Draw tokens before, and after for each beta, layer by layer; return what it shows."""
    r, one = reconstruction, items.removesuffix("s")
    num_images, num_tokens = r.before.shape[1:3]
    shown = min(num_images, len(HUES))
    if not layers or not shown * num_tokens:
        figure.set_figheight(0.5)
        return "There are no tokens."
    figure.set_figheight(ROW_INCHES * len(layers) + 0.3)
    axes = figure.subplots(len(layers), 1 + len(r.betas), squeeze=False)
    for row, layer in zip(axes, layers, strict=True):
        _draw_tokens(row[0], r.before[layer, :shown])
        row[0].set_title(f"before, {100 * r.explained[layer]:.0f} % explained", fontsize=7)
        row[0].set_ylabel(f"layer {layer + 1}\ncomponent 2")
        for place, ax in enumerate(row[1:]):
            if place:  # on the scale of the first one
                ax.sharex(row[1])
                ax.sharey(row[1])
                ax.tick_params(labelleft=False)
            _draw_tokens(ax, r.after[place, layer, :shown])
            title = f"β = {r.betas[place]:g}, {r.num_distinct[place, layer]:,} distinct"
            ax.set_title(title, fontsize=7)
        before, after = r.before[layer], r.after[:, layer, :shown]
        row[1].set_xlim(_limits(after[..., 0], before[..., 0]))
        row[1].set_ylim(_limits(after[..., 1], before[..., 1]))
    for ax in axes[-1]:
        ax.set_xlabel("component 1")
    figure.legend(
        handles=[
            Line2D([], [], color=hue, marker=marker, linestyle="", label=f"{one} {place + 1}")
            for hue, marker, place in zip(HUES, MARKERS, r.images[:shown].tolist(), strict=False)
        ],
        loc="outside upper center",
        ncols=shown,
        columnspacing=0.5,
        handletextpad=0.2,
    )
    return (
        f"{num_images} {items} of {num_tokens} tokens, {shown} of them drawn: one hue and marker "
        f"per {one}, from dark (first token) to light (last). Both components are those of the "
        "tokens before. Distinct: retrieved states that differ, "
        f"of {num_images * num_tokens:,}."
    )


def _draw_tokens(ax: Axes, tokens: Float[np.ndarray, "I N 2"]) -> None:
    for points, hue, marker in zip(tokens, HUES, MARKERS, strict=False):
        colors = _shades(hue, len(points))
        # many points would make a large SVG
        x, y = points.T
        ax.scatter(x, y, c=colors, s=7, marker=marker, linewidths=0, rasterized=True)
    ax.xaxis.set_major_locator(MaxNLocator(3))
    ax.yaxis.set_major_locator(MaxNLocator(4))


def _limits(
    after: Float[np.ndarray, "R I N"], before: Float[np.ndarray, "J N"]
) -> tuple[float, float]:
    """Show all retrieved tokens; where they are one, not the rounding that tells them apart."""
    after, before = after[np.isfinite(after)], before[np.isfinite(before)]
    if not len(after):
        return 0.0, 1.0
    least = np.ptp(before) / 100 if len(before) else 0.0
    half = 0.6 * max(np.ptp(after), least, 1e-6)
    middle = (after.min() + after.max()) / 2
    return middle - half, middle + half


def _shades(hue: str, count: int) -> Float[np.ndarray, "N 3"]:
    color = np.array(to_rgb(hue))
    dark, light = 0.4 * color, 0.45 * color + 0.55
    return np.linspace(dark, light, count)
