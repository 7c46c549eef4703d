"""Silencing: how the answers change if the tokens cannot read from one of the priors."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from associative_transformer.analysis.silencing import Silencing
from associative_transformer.figures.context import Context
from associative_transformer.interface import format_count

ROW_INCHES = 1.3


def draw_silencing(figure: Figure, silencing: Silencing, context: Context) -> str:
    """Draw accuracy, changed answers and change of the logits by prior; return the caption."""
    layers, num_priors = context.layers, silencing.shift.shape[1]
    if not layers or not num_priors:
        figure.set_figheight(0.5)
        return "There are no priors."
    figure.set_figheight(ROW_INCHES * len(layers) + 0.4)
    axes = figure.subplots(len(layers), 3, sharex=True, sharey="col", squeeze=False)
    whole = 100 * silencing.accuracy
    for row, layer in zip(axes, layers, strict=True):
        _draw_bars(row[0], 100 * silencing.silenced_accuracy[layer] - whole)
        _draw_bars(row[1], 100 * silencing.changed[layer])
        _draw_bars(row[2], silencing.shift[layer])
        row[0].set_ylabel(f"layer {layer + 1}")
    titles = ("change of accuracy, points", "answers that change, %", "mean change of a logit")
    for ax, below, title in zip(axes[0], axes[-1], titles, strict=True):
        ax.set_title(title)
        below.set_xlabel("silenced prior")
    return (
        "The attractor of one prior of one layer is taken out of what the tokens read. "
        f"{format_count(silencing.num_images, context.items.removesuffix('s')).capitalize()}; the "
        f"whole model is correct on {whole:.2f} %. Change of a logit: absolute, mean over the "
        f"{format_count(len(silencing.classes), 'class')}."
    )


def _draw_bars(ax: Axes, values: np.ndarray) -> None:
    ax.bar(np.arange(1, len(values) + 1), np.nan_to_num(values), color="C0", linewidth=0)
    ax.axhline(0, color="0.4", linestyle="-", marker="", linewidth=0.6)
    ax.set_xlim(0.3, len(values) + 0.7)
    ax.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
    ax.yaxis.set_major_locator(MaxNLocator(4))
