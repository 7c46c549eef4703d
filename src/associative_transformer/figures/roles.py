"""Roles: whether priors specialize by class, position or content, in what they take and are read.

Dims     L layers   S heads of the write   M priors   N patches   K clusters   G patches per row
"""

import math
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from associative_transformer.analysis.information import VARIABLES
from associative_transformer.analysis.roles import Roles
from associative_transformer.figures.context import Context
from associative_transformer.interface import format_count

BARS_INCHES = 1.7
LAYER_INCHES = 1.75
MAX_PRIORS = 16  # whose maps of positions are drawn
MAX_COLUMNS = 8  # of maps
GAP = 0.25  # between two maps, in maps
CLUSTER_INCHES = 0.6
MAX_CLUSTERS = 16  # whose patches are drawn


def draw_roles(figure: Figure, roles: Roles, context: Context) -> str:
    """Draw information by layer, and positions and contents by prior; return the caption."""
    layers = context.layers
    if not layers or 0 in roles.write_by_position.shape:
        figure.set_figheight(0.5)
        return "There are no priors."
    heights = [BARS_INCHES, *[LAYER_INCHES] * len(layers), CLUSTER_INCHES]
    figure.set_figheight(sum(heights))
    parts = figure.subfigures(len(heights), 1, squeeze=False, height_ratios=heights).flat
    upper, *rows, lower = list(parts)
    _draw_information(upper, roles, layers)
    _draw_clusters(lower.subplots(), roles, context)
    for row, layer in zip(rows, layers, strict=True):
        maps, contents = row.subplots(1, 2, width_ratios=[3, 2])
        most = _most_focused(roles, layer)
        _draw_positions(maps, roles.write_by_position[layer].mean(axis=0), most)
        maps.set_title(f"layer {layer + 1}: where priors take patches", fontsize=7)
        _draw_contents(row, contents, roles.write_by_content[layer].mean(axis=0))
    item = context.items.removesuffix("s")
    return (
        "Top: information between a variable of a patch and the prior that takes it (taken) or "
        "from which it reads most (read), mean over the heads; black lines: mean of "
        f"{format_count(roles.num_permutations, 'permutation')}. Every prior takes the same "
        f"number of tokens from each {item}, so what it takes is not shown by class. Below: "
        "distribution of the patches that a prior takes, mean over "
        f"{format_count(roles.write_information.shape[2], 'head')}: by position, for the priors "
        "whose positions differ most from those of all patches, and by content "
        f"({format_count(roles.num_clusters, 'cluster')} of patches, by k-means; bottom: the "
        f"patch nearest to each center). From {format_count(roles.num_images, item)}."
    )


def _draw_information(figure: SubFigure, roles: Roles, layers: list[int]) -> None:
    ax = figure.subplots()
    bars = [("taken", name, roles.write) for name in VARIABLES if name != "class"]
    bars += [("read", name, roles.read) for name in VARIABLES]
    width = 0.8 / len(bars)
    for i, (verb, name, act) in enumerate(bars):
        x = np.arange(len(layers)) + (i - (len(bars) - 1) / 2) * width
        variable = VARIABLES.index(name)
        true, chance = (
            np.nan_to_num(bits[variable, layers].mean(axis=-1))
            for bits in (act.information, act.baseline)
        )
        style: dict[str, Any] = {"hatch": "////" if verb == "read" else "", "edgecolor": "white"}
        color = f"C{VARIABLES.index(name)}"
        ax.bar(x, true, 0.9 * width, color=color, label=f"{verb}: {name}", linewidth=0, **style)
        ax.hlines(chance, x - width / 2, x + width / 2, color="black", linewidth=1)
    ax.set_xticks(range(len(layers)), [f"layer {layer + 1}" for layer in layers])
    ax.set(ylabel="information, bits")
    ax.set_ylim(bottom=0)
    ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))


def _most_focused(roles: Roles, layer: int) -> list[int]:
    """Return the priors whose positions differ most from all, in the order of their numbers."""
    focus = np.nan_to_num(roles.write.focus[VARIABLES.index("position"), layer].mean(axis=0))
    return sorted(np.argsort(-focus, kind="stable")[:MAX_PRIORS].tolist())


def _draw_positions(ax: Axes, shares: Float[np.ndarray, "M N"], priors: list[int]) -> None:
    """Draw a map of the picture for each of the given priors, all with the same scale."""
    grid = math.isqrt(shares.shape[1])
    largest = max(np.nan_to_num(shares).max(initial=0), 1e-6)
    step = grid + GAP * grid
    for i, prior in enumerate(priors):
        x, y = step * (i % MAX_COLUMNS), step * (i // MAX_COLUMNS)
        ax.imshow(
            shares[prior].reshape(grid, grid),
            extent=(x, x + grid, y + grid, y),
            vmin=0,
            vmax=largest,
            interpolation="nearest",
        )
        ax.text(x + grid / 2, y - 0.04 * grid, str(prior + 1), ha="center", fontsize=6)
    num_rows = math.ceil(len(priors) / MAX_COLUMNS)
    ax.set(xlim=(0, step * min(len(priors), MAX_COLUMNS)), ylim=(step * num_rows, -GAP * grid))
    ax.set_aspect("equal")
    ax.axis("off")


def _draw_contents(figure: SubFigure, ax: Axes, shares: Float[np.ndarray, "M K"]) -> None:
    num_priors, num_clusters = shares.shape
    picture = ax.imshow(
        shares,
        extent=(0.5, num_clusters + 0.5, num_priors + 0.5, 0.5),
        aspect="auto",
        interpolation="nearest",
        vmin=0,
        vmax=max(np.nan_to_num(shares).max(initial=0), 1e-6),
    )
    ax.set(xlabel="cluster", ylabel="prior")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1))
    figure.colorbar(picture, ax=ax, pad=0.02, aspect=12).locator = MaxNLocator(4)


def _draw_clusters(ax: Axes, roles: Roles, context: Context) -> None:
    """Draw the patch nearest to the center of each cluster."""
    grid = math.isqrt(roles.write_by_position.shape[3])
    for number, (index, patch) in enumerate(roles.exemplars[:MAX_CLUSTERS].tolist()):
        crop = context.crop(index, patch, grid)
        x = number * (1 + GAP)
        pixels = np.broadcast_to(crop, (*crop.shape[:2], 3))
        ax.imshow(pixels, extent=(x, x + 1, 1, 0), interpolation="nearest")
        ax.add_patch(Rectangle((x, 0), 1, 1, fill=False, edgecolor="0.6", linewidth=0.4))
        ax.text(x + 0.5, -0.1, str(number + 1), ha="center", fontsize=6)
    ax.set(xlim=(-GAP, MAX_CLUSTERS * (1 + GAP)), ylim=(1 + GAP, -2 * GAP), aspect="equal")
    ax.axis("off")
