"""Capacity: measurements of memories of several sizes, one line per pool size."""

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator, PercentFormatter

from associative_transformer.analysis.capacity import Capacity
from associative_transformer.figures.context import Context
from associative_transformer.interface import format_count

ROW_INCHES = 1.5


def draw_capacity(figure: Figure, capacity: Capacity, context: Context) -> str:
    """Draw rank, coverage and recall by number of priors, a row per layer; return the caption."""
    c, layers = capacity, context.layers
    if not layers:
        figure.set_figheight(0.5)
        return "There are no memories."
    figure.set_figheight(ROW_INCHES * len(layers) + 0.4)
    axes = figure.subplots(len(layers), 3, sharex=True, sharey="col", squeeze=False)
    for row, layer in zip(axes, layers, strict=True):
        for ax, values in zip(row, (c.effective_rank, c.coverage, c.recalled), strict=True):
            for i, size in enumerate(c.pool_sizes):
                label = f"pool of {format_count(int(size), 'token')}"
                ax.plot(c.num_priors, values[layer, :, i], label=label)
        row[0].plot(c.num_priors, c.num_priors, color="0.5", ls=":", marker="", label="full rank")
        row[0].set_yscale("log", base=2)
        row[0].yaxis.set_major_locator(LogLocator(2, numticks=6))
        row[0].yaxis.set_major_formatter("{x:g}")
        row[0].yaxis.set_minor_locator(NullLocator())
        row[0].set_ylabel(f"layer {layer + 1}")
        for ax in row[1:]:
            ax.set_ylim(-0.05, 1.05)
            ax.yaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
    for ax, title in zip(axes[0], ("effective rank", "pool covered", "recalled"), strict=True):
        ax.set_title(title)
    axes[0, 0].set_xscale("log", base=2)
    axes[0, 0].set_xticks(c.num_priors, [str(number) for number in c.num_priors])
    axes[0, 0].xaxis.set_minor_locator(NullLocator())
    for ax in axes[-1]:
        ax.set_xlabel("priors")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3)
    return (
        f"Fresh memories after {format_count(c.num_moves, 'write')}. Covered: share of the pool "
        "that the priors of a head take. Recalled: share of attractors that retrieval keeps in "
        "place."
    )
