"""Recall: how well corrupted patterns are recalled by noise and load, compared with theory."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator, PercentFormatter

from associative_transformer.analysis.recall import NEAR, Recall
from associative_transformer.figures.context import Context
from associative_transformer.interface import format_count

ROW_INCHES = 1.6


def draw_recall(figure: Figure, recall: Recall, context: Context) -> str:
    """Draw the error by noise and the recall by load, a row per layer; return the caption."""
    layers = context.layers
    if not layers:
        figure.set_figheight(0.5)
        return "There is no memory."
    figure.set_figheight(ROW_INCHES * len(layers) + 0.4)
    axes = figure.subplots(len(layers), 3, sharex="col", sharey="col", squeeze=False)
    for row, layer in zip(axes, layers, strict=True):
        _draw_layer(row.tolist(), recall, layer)
        row[0].set_ylabel(f"layer {layer + 1}")
    load, noise = int(recall.loads[-1]), recall.noise[recall.middle]
    titles = (
        f"error with {format_count(load, 'pattern')}",
        f"recalled with noise {noise:g}",
        "stored for certain",
    )
    labels = ("noise / pattern norm", "patterns", "patterns")
    for ax, below, title, label in zip(axes[0], axes[-1], titles, labels, strict=True):
        ax.set_title(title)
        below.set_xlabel(label)
    handles, names = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=len(names))
    numbers = "; ".join(
        f"layer {layer + 1}: {', '.join(f'{number:.3g}' for number in recall.capacity[:, layer])}"
        for layer in layers
    )
    return (
        f"Patterns of width {recall.width}, in {format_count(recall.num_networks, 'network')}. "
        "Error: distance from the pattern after retrieval, in mean pattern norms; a pattern is "
        f"recalled if it is at most {NEAR:g}. Stored for certain: share of the patterns that, by "
        "the theory, are guaranteed to be stored. Number of random patterns that can be stored, "
        f"by the theory, for each β: {numbers}. Trained with "
        f"β = {recall.trained_beta:g}."
    )


def _draw_layer(axes: list[Axes], recall: Recall, layer: int) -> None:
    for i, beta in enumerate(recall.betas):
        label = f"β = {beta:g}"
        axes[0].plot(recall.noise, recall.error[i, layer, -1], label=label)
        axes[1].plot(recall.loads, recall.recalled[i, layer, :, recall.middle], label=label)
        axes[2].plot(recall.loads, recall.guaranteed[i, layer], label=label)
    axes[0].set_ylim(bottom=0)
    for ax in axes[1:]:
        ax.set_xscale("log", base=2)
        ax.set_xticks(recall.loads, [str(load) for load in recall.loads])
        ax.xaxis.set_minor_locator(NullLocator())
        ax.set_ylim(-0.05, 1.05)
        ax.yaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
