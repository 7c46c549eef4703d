"""Selection: the patches that some priors take, over images, and how the memory moved in training.

Dims     S heads   P patches of an image, in raster order   G patches side by side
         C channels   H height   W width
"""

import math
from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure, SubFigure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from associative_transformer.analysis.selection import Drift, Selected

SHOWN_IMAGES = 8
SHOWN_PRIORS = 3  # of a layer
VEIL = 0.8  # gray that is seen through a patch that is not solid: light, but not white
DIMMED = 0.15  # opacity of a patch that is not taken
LAST = 0.5  # of the patch that is taken last
STEP = 1.08  # from an image to the next, in images
GRID_INCHES = 4.85  # all images side by side
IMAGE_INCHES = 1.0  # one image, at most
DRIFT_INCHES = 1.6


def draw_selection(
    figure: Figure,
    selected: Selected,
    drift: Drift | None,
    layers: list[int],
    image_of: Callable[[int], UInt8[np.ndarray, "C H W"]],
    items: str,
) -> str:
    """Draw what the most used priors take from the first images; return what it shows.

    Below, where there is a drift, the way of the memory through training.
    """
    num_images = min(selected.taken.shape[3], SHOWN_IMAGES)
    if 0 in selected.taken.shape:
        figure.set_figheight(0.5)
        return "No patches were kept to be drawn."
    rows = [(layer, prior) for layer in layers for prior in _choose(selected, layer)]
    inches = min(IMAGE_INCHES, GRID_INCHES / STEP / num_images)
    height = (len(rows) + 1) * STEP * inches + 0.15
    images = [_canvas(image_of(place)) for place in range(num_images)]
    duplicates = ", ".join(str(number) for number in selected.is_duplicate[layers].sum(axis=1))
    note = (
        f"Outlined: patches taken by any of the {selected.taken.shape[1]} heads of a prior, from "
        f"pools of {selected.pool_size:,} tokens; solid at rank 1, half transparent at rank "
        f"{selected.bottleneck:,}, the rest dimmed. Of each layer the priors that are used most, "
        f"without duplicates ({duplicates} of {selected.usage.shape[1]} priors in these layers). "
        f"{num_images} {items} of {selected.num_images:,}."
    )
    if drift is None:
        figure.set_figheight(height)
        _draw_taken(figure, selected, rows, images)
        return note
    figure.set_figheight(height + DRIFT_INCHES)
    heights = [height, DRIFT_INCHES]
    upper, lower = figure.subfigures(2, 1, squeeze=False, height_ratios=heights).flat
    _draw_taken(upper, selected, rows, images)
    _draw_drift(lower, drift, layers)
    return (
        f"{note} Below: the memory after each epoch of training; its drift is the mean angle of a "
        "prior to the epoch before."
    )


def _draw_taken(
    figure: Figure | SubFigure,
    selected: Selected,
    rows: list[tuple[int, int]],
    images: list[Float[np.ndarray, "H W 3"]],
) -> None:
    """Draw the images, and below them what the prior of a layer takes, row by row."""
    ax = figure.subplots()
    for place, image in enumerate(images):
        _draw_image(ax, image, place, row=0)
        for row, (layer, prior) in enumerate(rows, start=1):
            rank = _best_rank(selected.taken[layer, :, prior, place])
            _draw_image(ax, _dim(image, rank, selected.bottleneck), place, row)
            _draw_outline(ax, rank > 0, place, row)
    labels = ["image", *(f"layer {layer + 1}\nprior {prior + 1}" for layer, prior in rows)]
    for row, label in enumerate(labels):
        ax.text(-0.1, row * STEP + 0.5, label, ha="right", va="center", fontsize=7)
    ax.set(xlim=(0, len(images) * STEP), ylim=(len(labels) * STEP, 0), aspect="equal", anchor="W")
    ax.axis("off")


def _draw_drift(figure: SubFigure, drift: Drift, layers: list[int]) -> None:
    """Draw how far the priors turn from epoch to epoch, and the directions that they fill."""
    turn, rank = figure.subplots(1, 2)
    for layer in layers:
        turn.plot(drift.epochs[1:], drift.angle[1:, layer])  # before the first there is none
        rank.plot(drift.epochs, drift.effective_rank[:, layer], label=f"layer {layer + 1}")
    turn.set(title="drift of the priors", ylabel="angle, °")
    rank.set(title="effective rank of the memory", ylabel="directions")
    for ax in (turn, rank):
        ax.set(xlabel="epoch", xlim=(0.5, len(drift.epochs) + 0.5))
        ax.set_ylim(0, 1.1 * ax.get_ylim()[1])
        ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    rank.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))


def _canvas(image: UInt8[np.ndarray, "C H W"]) -> Float[np.ndarray, "H W 3"]:
    height, width = image.shape[1:]
    return np.broadcast_to(image.transpose(1, 2, 0) / 255, (height, width, 3))


def _choose(selected: Selected, layer: int) -> list[int]:
    order = np.argsort(-np.nan_to_num(selected.usage[layer]), kind="stable")
    return order[~selected.is_duplicate[layer, order]][:SHOWN_PRIORS].tolist()


def _best_rank(taken: Int[np.ndarray, "S P"]) -> Int[np.ndarray, "G G"]:
    """Give the smallest rank of each patch over the heads, 0 where none takes it."""
    last = np.iinfo(taken.dtype).max
    rank = np.where(taken > 0, taken, last).min(axis=0)
    return np.where(rank == last, 0, rank).reshape(2 * (math.isqrt(len(rank)),))


def _dim(
    image: Float[np.ndarray, "H W 3"], rank: Int[np.ndarray, "G G"], bottleneck: int
) -> Float[np.ndarray, "H W 3"]:
    """Blend the patches with gray: the later taken the more, and most of all what is not."""
    opacity = 1 - (1 - LAST) * (rank - 1) / max(bottleneck - 1, 1)
    opacity = np.where(rank > 0, opacity, DIMMED)
    size = len(image) // len(rank)
    opacity = opacity.repeat(size, axis=0).repeat(size, axis=1)[:, :, None]
    return image * opacity + VEIL * (1 - opacity)


def _draw_image(ax: Axes, image: Float[np.ndarray, "H W 3"], column: int, row: int) -> None:
    x, y = column * STEP, row * STEP
    ax.imshow(image, extent=(x, x + 1, y + 1, y), interpolation="nearest")
    ax.add_patch(Rectangle((x, y), 1, 1, fill=False, edgecolor="0.6", linewidth=0.4))


def _draw_outline(ax: Axes, is_taken: Bool[np.ndarray, "G G"], column: int, row: int) -> None:
    """Draw the edges between what is taken and what is not, black on white."""
    grid = len(is_taken)
    padded = np.pad(is_taken, 1)
    across = np.argwhere(padded[1:, 1:-1] != padded[:-1, 1:-1])  # edges from left to right
    down = np.argwhere(padded[1:-1, 1:] != padded[1:-1, :-1])
    starts = np.concatenate([across[:, ::-1], down[:, ::-1]])  # x, y
    ends = starts + np.repeat([[1, 0], [0, 1]], [len(across), len(down)], axis=0)
    lines = np.stack([starts, ends], axis=1) / grid + (column * STEP, row * STEP)
    for color, width in (("white", 1.6), ("black", 0.7)):
        ax.add_collection(LineCollection(list(lines), colors=color, linewidths=width))
