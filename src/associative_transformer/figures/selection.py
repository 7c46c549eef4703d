"""Selection: patches that the most used priors take, drawn on images, and drift of the memory.

Dims     S heads   P patches of an image, in raster order   G patches per row and column
         C channels   H height   W width
"""

import math

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure, SubFigure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from associative_transformer.analysis.drift import Drift
from associative_transformer.analysis.selection import SelectionStatistics
from associative_transformer.figures.context import Context
from associative_transformer.interface import format_count

MAX_IMAGES = 8
MAX_PRIORS = 3  # per layer
GRAY = 0.8  # what patches are blended with: light, but distinct from white
DIMMED = 0.15  # opacity of a patch that is not taken
LAST = 0.5  # opacity of the patch that is taken last
STEP = 1.08  # from one image to the next, in images
GRID_INCHES = 4.85  # width of all images
IMAGE_INCHES = 1.0  # largest width of one image
DRIFT_INCHES = 1.6


def draw_selection(figure: Figure, selection: SelectionStatistics, context: Context) -> str:
    """Draw what the most used priors take from the first images; return the caption.

    The drift of the memory during training is drawn below, if it was measured.
    """
    layers, drift = context.layers, context.analysis.drift
    num_images = min(selection.taken.shape[3], MAX_IMAGES)
    if 0 in selection.taken.shape:
        figure.set_figheight(0.5)
        return "There are no patches to draw."
    rows = [(layer, prior) for layer in layers for prior in _most_used(selection, layer)]
    inches = min(IMAGE_INCHES, GRID_INCHES / STEP / num_images)
    height = (len(rows) + 1) * STEP * inches + 0.15
    images = [_to_rgb(context.image_of(index)) for index in range(num_images)]
    tokens = format_count(selection.pool_size, "token")
    pool = f"the {tokens} of an image" if selection.scope == "image" else f"pools of {tokens}"
    duplicates = ", ".join(str(count) for count in selection.is_duplicate[layers].sum(axis=1))
    caption = (
        f"Outlined: patches taken by any of {format_count(selection.taken.shape[1], 'head')} of a "
        f"prior from {pool}, opaque if taken "
        f"first, half transparent if taken last (number {selection.bottleneck:,}); the rest is "
        f"dimmed. Rows: the most used priors of each layer, without duplicates ({duplicates} of "
        f"{format_count(selection.usage.shape[1], 'prior')} in these layers), on {num_images} of "
        f"{format_count(selection.num_images, context.items.removesuffix('s'))}."
    )
    if drift is None:
        figure.set_figheight(height)
        _draw_taken(figure, selection, rows, images)
        return caption
    figure.set_figheight(height + DRIFT_INCHES)
    heights = [height, DRIFT_INCHES]
    upper, lower = figure.subfigures(2, 1, squeeze=False, height_ratios=heights).flat
    _draw_taken(upper, selection, rows, images)
    _draw_drift(lower, drift, layers)
    memory = "the memory"
    if selection.scope == "image":
        memory = "the learned contents with which each memory starts,"
    return (
        f"{caption} Below: {memory} after each epoch of training; drift is the mean angle "
        "between a prior and itself one epoch before."
    )


def _draw_taken(
    figure: Figure | SubFigure,
    selection: SelectionStatistics,
    rows: list[tuple[int, int]],
    images: list[Float[np.ndarray, "H W 3"]],
) -> None:
    """Draw the images, and below them a row for each prior, given as (layer, prior)."""
    ax = figure.subplots()
    for column, image in enumerate(images):
        _draw_image(ax, image, column, row=0)
        for row, (layer, prior) in enumerate(rows, start=1):
            order = _first_order(selection.taken[layer, :, prior, column])
            _draw_image(ax, _dim(image, order, selection.bottleneck), column, row)
            _draw_outline(ax, order > 0, column, row)
    labels = ["image", *(f"layer {layer + 1}\nprior {prior + 1}" for layer, prior in rows)]
    for row, label in enumerate(labels):
        ax.text(-0.1, row * STEP + 0.5, label, ha="right", va="center", fontsize=7)
    ax.set(xlim=(0, len(images) * STEP), ylim=(len(labels) * STEP, 0), aspect="equal", anchor="W")
    ax.axis("off")


def _draw_drift(figure: SubFigure, drift: Drift, layers: list[int]) -> None:
    """Draw how far the priors turn from epoch to epoch, and the effective rank of the memory."""
    angle_ax, rank_ax = figure.subplots(1, 2)
    for layer in layers:
        angle_ax.plot(drift.epochs[1:], drift.angle[1:, layer])  # the first epoch has no angle
        rank_ax.plot(drift.epochs, drift.effective_rank[:, layer], label=f"layer {layer + 1}")
    angle_ax.set(title="drift of the priors", ylabel="angle, °")
    rank_ax.set(title="effective rank of the memory", ylabel="directions")
    for ax in (angle_ax, rank_ax):
        ax.set(xlabel="epoch", xlim=(0.5, len(drift.epochs) + 0.5))
        ax.set_ylim(0, 1.1 * ax.get_ylim()[1])
        ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    rank_ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))


def _to_rgb(image: UInt8[np.ndarray, "C H W"]) -> Float[np.ndarray, "H W 3"]:
    height, width = image.shape[1:]
    return np.broadcast_to(image.transpose(1, 2, 0) / 255, (height, width, 3))


def _most_used(selection: SelectionStatistics, layer: int) -> list[int]:
    """Return the most used priors of a layer without duplicates."""
    order = np.argsort(-np.nan_to_num(selection.usage[layer]), kind="stable")
    return order[~selection.is_duplicate[layer, order]][:MAX_PRIORS].tolist()


def _first_order(taken: Int[np.ndarray, "S P"]) -> Int[np.ndarray, "G G"]:
    """Return the earliest order in which any head takes each patch; 0 if no head takes it."""
    never = np.iinfo(taken.dtype).max
    order = np.where(taken > 0, taken, never).min(axis=0)
    return np.where(order == never, 0, order).reshape(2 * (math.isqrt(len(order)),))


def _dim(
    image: Float[np.ndarray, "H W 3"], order: Int[np.ndarray, "G G"], bottleneck: int
) -> Float[np.ndarray, "H W 3"]:
    """Blend patches with gray: more if taken later, most if not taken."""
    opacity = 1 - (1 - LAST) * (order - 1) / max(bottleneck - 1, 1)
    opacity = np.where(order > 0, opacity, DIMMED)
    size = len(image) // len(order)
    opacity = opacity.repeat(size, axis=0).repeat(size, axis=1)[:, :, None]
    return image * opacity + GRAY * (1 - opacity)


def _draw_image(ax: Axes, image: Float[np.ndarray, "H W 3"], column: int, row: int) -> None:
    x, y = column * STEP, row * STEP
    ax.imshow(image, extent=(x, x + 1, y + 1, y), interpolation="nearest")
    ax.add_patch(Rectangle((x, y), 1, 1, fill=False, edgecolor="0.6", linewidth=0.4))


def _draw_outline(ax: Axes, is_taken: Bool[np.ndarray, "G G"], column: int, row: int) -> None:
    """Draw the edges between patches that are taken and those that are not, black on white."""
    grid = len(is_taken)
    padded = np.pad(is_taken, 1)
    across = np.argwhere(padded[1:, 1:-1] != padded[:-1, 1:-1])  # edges from left to right
    down = np.argwhere(padded[1:-1, 1:] != padded[1:-1, :-1])
    starts = np.concatenate([across[:, ::-1], down[:, ::-1]])  # x, y
    ends = starts + np.repeat([[1, 0], [0, 1]], [len(across), len(down)], axis=0)
    lines = np.stack([starts, ends], axis=1) / grid + (column * STEP, row * STEP)
    for color, width in (("white", 1.6), ("black", 0.7)):
        ax.add_collection(LineCollection(list(lines), colors=color, linewidths=width))
