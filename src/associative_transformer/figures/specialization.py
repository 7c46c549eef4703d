"""Specialization: winning patches, and what they reveal about class, position and content.

Dims     V variables   L layers   S heads   M priors   W winners   C channels   H height   W width
"""

import math
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from associative_transformer.analysis.information import VARIABLES
from associative_transformer.analysis.selection import SelectionStatistics, name_token
from associative_transformer.analysis.specialization import Specialization
from associative_transformer.figures.context import Context
from associative_transformer.interface import format_count

MAX_ROWS = 8
MAX_WINNERS = 10
STEP = 1.15  # from one patch to the next, in patches
PATCH_INCHES = 0.29
LAYER_INCHES = 0.13  # height of a layer in a map
MAX_NAME_CHARACTERS = 18


class HeadOfPrior(NamedTuple):
    """One head of one prior of one layer."""

    layer: int
    head: int
    prior: int


def draw_specialization(figure: Figure, specialization: Specialization, context: Context) -> str:
    """Draw winners of the most informative priors, and maps of all priors; return the caption."""
    selection = context.analysis.selection
    excess = specialization.information - specialization.baseline
    if 0 in excess.shape:
        figure.set_figheight(0.5)
        return "There are no priors."
    is_shown = np.isfinite(excess).all(axis=(0, 2))  # (L, M)
    if selection is not None:
        is_shown &= ~selection.is_duplicate
    heads = _most_informative(excess.sum(axis=0), is_shown)
    map_inches = len(VARIABLES) * (LAYER_INCHES * min(max(excess.shape[1], 4), 12) + 0.28) + 0.3
    note = (
        "Maps: information above the mean of "
        f"{format_count(specialization.num_permutations, 'permutation')}, averaged over "
        f"{format_count(excess.shape[2], 'head')} (1 mbit = 0.001 bit), from "
        f"{format_count(specialization.num_images, context.items.removesuffix('s'))}."
    )
    if selection is None or not heads or selection.winners.shape[3] == 0:
        figure.set_figheight(map_inches)
        _draw_maps(figure, excess.mean(axis=2))
        return note
    patches_inches = PATCH_INCHES * STEP * len(heads) + 0.25
    figure.set_figheight(patches_inches + map_inches)
    heights = [patches_inches, map_inches]
    upper, lower = figure.subfigures(2, 1, squeeze=False, height_ratios=heights).flat
    ax = upper.subplots()
    for row, head in enumerate(heads):
        _draw_winners(ax, selection, head, row, context)
        _draw_labels(ax, specialization, excess, head, row)
    ax.set(xlim=(0, MAX_WINNERS * STEP), ylim=(len(heads) * STEP, 0), aspect="equal")
    ax.set_title("patches with the highest scores, best first")
    ax.axis("off")
    _draw_maps(lower, excess.mean(axis=2))
    names = [name_token(patch, context.items) for patch in (-2, -1)]
    others = [
        f"; {name[0].upper()}: a {name}"
        for name, patch in zip(names, (-2, -1), strict=True)
        if (selection.winners[..., 1] == patch).any()
    ]
    return (
        "Rows: the priors whose patches reveal the most about class, position and content, "
        "without duplicates, each with its most informative head; right: the variable they reveal "
        f"the most about, and their most frequent class{''.join(others)}. {note}"
    )


def _most_informative(
    total: Float[np.ndarray, "L S M"], is_shown: Bool[np.ndarray, "L M"]
) -> list[HeadOfPrior]:
    best = np.where(is_shown, total.max(axis=1), -np.inf)
    order = np.argsort(-best, axis=None, kind="stable")[: min(MAX_ROWS, is_shown.sum())]
    return [
        HeadOfPrior(int(layer), int(total[layer, :, prior].argmax()), int(prior))
        for layer, prior in zip(*np.unravel_index(order, best.shape), strict=True)
    ]


def _draw_winners(
    ax: Axes,
    selection: SelectionStatistics,
    head: HeadOfPrior,
    row: int,
    context: Context,
) -> None:
    grid = math.isqrt(selection.taken.shape[4])
    winners = selection.winners[head.layer, head.head, head.prior, :MAX_WINNERS]
    for column, (index, patch) in enumerate(winners.tolist()):
        x, y = column * STEP, row * STEP
        if patch < 0:
            letter = name_token(patch, context.items)[0].upper()
            ax.text(x + 0.5, y + 0.5, letter, ha="center", va="center", fontsize=7)
            continue
        crop = context.crop(index, patch, grid)
        pixels = np.broadcast_to(crop, (*crop.shape[:2], 3))
        ax.imshow(pixels, extent=(x, x + 1, y + 1, y), interpolation="nearest")
        ax.add_patch(Rectangle((x, y), 1, 1, fill=False, edgecolor="0.6", linewidth=0.4))


def _draw_labels(
    ax: Axes,
    specialization: Specialization,
    excess: Float[np.ndarray, "V L S M"],
    head: HeadOfPrior,
    row: int,
) -> None:
    """Write the name of the prior left of its patches, and what they reveal right of them."""
    information = excess[:, *head]  # (V,)
    most = int(information.argmax())
    lines = [f"{VARIABLES[most]} {1000 * information[most]:.3g} mbit"]
    shares = np.nan_to_num(specialization.by_class[head])
    if shares.size and shares.max() > 0:
        name = _shorten(specialization.classes[shares.argmax()])
        lines.append(f"{name}: {100 * shares.max():.0f} %")
    font: dict[str, Any] = {"va": "center", "fontsize": 6.5}
    middle = row * STEP + 0.5
    left = f"layer {head.layer + 1}, prior {head.prior + 1}\nhead {head.head + 1}"
    ax.text(-0.15, middle, left, ha="right", **font)
    ax.text(MAX_WINNERS * STEP, middle, "\n".join(lines), **font)


def _shorten(name: str) -> str:
    plain = "".join(letter if letter.isprintable() else " " for letter in name)
    return plain if len(plain) <= MAX_NAME_CHARACTERS else plain[: MAX_NAME_CHARACTERS - 1] + "…"


def _draw_maps(figure: Figure | SubFigure, excess: Float[np.ndarray, "V L M"]) -> None:
    num_layers, num_priors = excess.shape[1:]
    axes = figure.subplots(len(VARIABLES), sharex=True)
    for ax, variable, values in zip(axes, VARIABLES, 1000 * excess, strict=True):
        finite = values[np.isfinite(values)]
        image = ax.imshow(
            values,
            extent=(0.5, num_priors + 0.5, num_layers + 0.5, 0.5),
            aspect="auto",
            interpolation="nearest",
            vmin=0,
            vmax=max(finite.max(initial=0), 1e-3),
        )
        ax.set_facecolor("0.85")  # the color of nan
        ax.set(title=f"information about {variable}", ylabel="layer")
        ax.yaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
        bar = figure.colorbar(image, ax=ax, pad=0.01, aspect=8, label="mbit")
        bar.locator = MaxNLocator(4 if num_layers > 5 else 2)
    axes[-1].set_xlabel("prior")
    axes[-1].xaxis.set_major_locator(MaxNLocator(9, integer=True))
