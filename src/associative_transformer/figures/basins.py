"""Basins: energy along the retrieval, where tokens come to rest, basin sizes, and recall.

Each row shows one quantity, each column one layer.
"""

import math
from itertools import cycle

import numpy as np
from matplotlib import rcParams
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator, PercentFormatter

from associative_transformer.analysis.basins import Basins
from associative_transformer.figures.context import Context

ROW_INCHES = 1.4
MAX_LINEAR = 20  # largest ratio of energies on a linear scale; a step may remove 95 %
STATES = (  # name, color, hatch
    ("uniform", "C5", "...."),
    ("metastable", "C3", "////"),
    ("single", "C0", ""),
)


def draw_basins(figure: Figure, basins: Basins, context: Context) -> str:
    """Draw energy, kinds of states, basin sizes and recall of each layer; return the caption."""
    layers = context.layers
    if not layers:
        figure.set_figheight(0.5)
        return "There is no memory."
    figure.set_figheight(4 * ROW_INCHES + 0.2)
    axes = figure.subplots(4, len(layers), sharex="row", sharey="row", squeeze=False)
    draws = (_draw_energy, _draw_shares, _draw_sizes, _draw_recall)
    for row, draw in zip(axes, draws, strict=True):
        for ax, layer in zip(row, layers, strict=True):
            draw(ax, basins, layer)
        position = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5), "borderaxespad": 0.4}
        row[-1].legend(reverse=draw is _draw_shares, **position)  # in the order of the bars
        row[0].set_ylabel(row[-1].get_ylabel())
        for ax in row[1:]:
            ax.set_ylabel("")
    for ax, layer in zip(axes[0], layers, strict=True):
        ax.set_title(f"layer {layer + 1}")
    figure.align_ylabels(axes[:, 0])
    return (
        f"Tokens of each layer ({basins.num_tokens:,}), retrieved until they come to rest; error "
        "bars: standard deviation over the tokens. At rest, 90 % of the weight is on one "
        "attractor (single), on several (metastable), or on all, as at their mean (uniform). "
        f"Trained with β = {basins.trained_beta:g}."
    )


def _draw_energy(ax: Axes, basins: Basins, layer: int) -> None:
    steps = np.arange(basins.energy.shape[2])
    for i, beta in enumerate(basins.betas):
        ax.errorbar(
            steps + 0.06 * (i - len(basins.betas) / 2),
            basins.energy[i, layer],
            basins.energy_spread[i, layer],
            label=f"β = {beta:g}",
            elinewidth=0.6,
            capsize=1.5,
        )
    finite = basins.energy[np.isfinite(basins.energy)]
    largest = finite.max(initial=0.0)
    if largest > MAX_LINEAR * finite.min(initial=largest) and largest > 0:
        decades = 10.0 ** (math.floor(math.log10(largest)) + np.arange(-2, 1))
        ax.set_yscale("symlog", linthresh=decades[0], linscale=0.5)
        ax.set_yticks([0.0, *decades], ["0", *(f"{tick:g}" for tick in decades)])
        ax.yaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    ax.set(xlabel="retrieval step", ylabel="energy")


def _draw_shares(ax: Axes, basins: Basins, layer: int) -> None:
    bottom = np.zeros(len(basins.betas))
    for (name, color, hatch), share in zip(
        STATES, (basins.uniform, basins.metastable, basins.single), strict=True
    ):
        heights = np.nan_to_num(share[:, layer])
        ax.bar(
            range(len(bottom)),
            heights,
            bottom=bottom,
            color=color,
            hatch=hatch,
            label=name,
            edgecolor="white",
            linewidth=0,
        )
        bottom += heights
    ax.set_xticks(range(len(bottom)), [f"{beta:g}" for beta in basins.betas], fontsize=6.5)
    ax.set(xlabel="inverse temperature β", ylabel="tokens at rest", ylim=(0, 1))
    ax.yaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))


def _draw_sizes(ax: Axes, basins: Basins, layer: int) -> None:
    """Draw the sizes for the smallest and the largest beta."""
    styles = [style for style, _ in zip(cycle(rcParams["axes.prop_cycle"]), basins.betas)]
    extremes = sorted({int(basins.betas.argmin()), int(basins.betas.argmax())})
    for i in extremes:
        share = basins.basins[i, layer]
        share = share[share > 0]
        label = f"β = {basins.betas[i]:g}"
        ax.plot(np.arange(1, len(share) + 1), share, label=label, **styles[i])
    most = max((basins.basins[extremes] > 0).sum(axis=-1).max(), 4)
    ax.set(xlabel="fixed point, by size", ylabel="tokens in its basin", ylim=(0, 1.05))
    ax.set_xlim(1 - 0.06 * most, 1.06 * most)
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    ax.yaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))


def _draw_recall(ax: Axes, basins: Basins, layer: int) -> None:
    for i, beta in enumerate(basins.betas):
        ax.plot(basins.noise, basins.recall[i, layer], label=f"β = {beta:g}")
    ax.set(xlabel="noise / attractor norm", ylabel="attractors recalled", ylim=(-0.05, 1.05))
    ax.yaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
