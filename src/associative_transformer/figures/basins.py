"""Basins: energy along the retrieval, where tokens come to rest, and how large the basins are.

Rows are what is measured, columns are layers.
"""

import math
from itertools import cycle

import numpy as np
from matplotlib import rcParams
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator, PercentFormatter

from associative_transformer.analysis.basins import Basins

ROW_INCHES = 1.4
NARROW = 20  # the first step often takes away more than 95 % of the energy
STATES = (  # name, color, hatch
    ("uniform", "C5", "...."),
    ("metastable", "C3", "////"),
    ("single", "C0", ""),
)


def draw_basins(figure: Figure, basins: Basins, layers: list[int]) -> str:
    """Draw energy, shares, basin sizes and recall, layer by layer; return what it shows."""
    if not layers:
        figure.set_figheight(0.5)
        return "There is no memory."
    figure.set_figheight(4 * ROW_INCHES + 0.2)
    axes = figure.subplots(4, len(layers), sharex="row", sharey="row", squeeze=False)
    draws = (_draw_energy, _draw_shares, _draw_sizes, _draw_recall)
    for row, draw in zip(axes, draws, strict=True):
        for ax, layer in zip(row, layers, strict=True):
            draw(ax, basins, layer)
        place = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5), "borderaxespad": 0.4}
        row[-1].legend(reverse=draw is _draw_shares, **place)  # in the order of the bars
        row[0].set_ylabel(row[-1].get_ylabel())
        for ax in row[1:]:
            ax.set_ylabel("")
    for ax, layer in zip(axes[0], layers, strict=True):
        ax.set_title(f"layer {layer + 1}")
    figure.align_ylabels(axes[:, 0])
    return (
        f"{basins.num_tokens:,} tokens of each layer, retrieved until they stay; bars: standard "
        "deviation over the tokens. At rest, 90 % of the weight lies on one attractor (single), "
        "on several (metastable) or on all as in their mean (uniform). "
        f"Trained at β = {basins.trained_beta:g}."
    )


def _draw_energy(ax: Axes, basins: Basins, layer: int) -> None:
    steps = np.arange(basins.energy.shape[2])
    for place, beta in enumerate(basins.betas):
        ax.errorbar(
            steps + 0.06 * (place - len(basins.betas) / 2),
            basins.energy[place, layer],
            basins.energy_spread[place, layer],
            label=f"β = {beta:g}",
            elinewidth=0.6,
            capsize=1.5,
        )
    finite = basins.energy[np.isfinite(basins.energy)]
    largest = finite.max(initial=0.0)
    if largest > NARROW * finite.min(initial=largest) and largest > 0:
        decades = 10.0 ** (math.floor(math.log10(largest)) + np.arange(-2, 1))
        ax.set_yscale("symlog", linthresh=decades[0], linscale=0.5)
        ax.set_yticks([0.0, *decades], ["0", *(f"{tick:g}" for tick in decades)])
        ax.yaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    ax.set(xlabel="retrieval step", ylabel="energy")


def _draw_shares(ax: Axes, basins: Basins, layer: int) -> None:
    below = np.zeros(len(basins.betas))
    for (name, color, hatch), share in zip(
        STATES, (basins.uniform, basins.metastable, basins.single), strict=True
    ):
        heights = np.nan_to_num(share[:, layer])
        ax.bar(
            range(len(below)),
            heights,
            bottom=below,
            color=color,
            hatch=hatch,
            label=name,
            edgecolor="white",
            linewidth=0,
        )
        below += heights
    ax.set_xticks(range(len(below)), [f"{beta:g}" for beta in basins.betas], fontsize=6.5)
    ax.set(xlabel="inverse temperature β", ylabel="tokens at rest", ylim=(0, 1))
    ax.yaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))


def _draw_sizes(ax: Axes, basins: Basins, layer: int) -> None:
    styles = [style for style, _ in zip(cycle(rcParams["axes.prop_cycle"]), basins.betas)]
    places = sorted({int(basins.betas.argmin()), int(basins.betas.argmax())})
    for place in places:
        share = basins.basins[place, layer]
        share = share[share > 0]
        label = f"β = {basins.betas[place]:g}"
        ax.plot(np.arange(1, len(share) + 1), share, label=label, **styles[place])
    most = max((basins.basins[places] > 0).sum(axis=-1).max(), 4)
    ax.set(xlabel="fixed point, by size", ylabel="tokens in its basin", ylim=(0, 1.05))
    ax.set_xlim(1 - 0.06 * most, 1.06 * most)
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    ax.yaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))


def _draw_recall(ax: Axes, basins: Basins, layer: int) -> None:
    for place, beta in enumerate(basins.betas):
        ax.plot(basins.noise, basins.recall[place, layer], label=f"β = {beta:g}")
    ax.set(xlabel="noise / attractor norm", ylabel="attractors recalled", ylim=(-0.05, 1.05))
    ax.yaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
