"""Figures of an analysis and sheets of images; only this folder uses matplotlib."""

import io
import textwrap
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from cycler import cycler
from jaxtyping import UInt8
from matplotlib import style
from matplotlib.figure import Figure

from associative_transformer.analysis import Analysis
from associative_transformer.figures.basins import draw_basins
from associative_transformer.figures.capacity import draw_capacity
from associative_transformer.figures.competition import draw_competition
from associative_transformer.figures.context import Context
from associative_transformer.figures.recall import draw_recall
from associative_transformer.figures.reconstruction import draw_reconstruction
from associative_transformer.figures.roles import draw_roles
from associative_transformer.figures.selection import draw_selection
from associative_transformer.figures.sheet import draw_sheet, write_images
from associative_transformer.figures.silencing import draw_silencing
from associative_transformer.figures.specialization import draw_specialization
from associative_transformer.files import make_folder, write_file

__all__ = ["draw_analysis", "draw_sheet", "write_images"]


class Drawing(NamedTuple):
    """How the result of an analysis is drawn."""

    draw: Callable[[Figure, Any, Context], str]  # returns the caption
    layers: Callable[[Any], Sequence[int]]  # numbers of the layers of a result, from 0
    max_layers: int = 3


DRAWINGS = {
    "competition": Drawing(draw_competition, lambda r: r.layers, max_layers=12),  # short rows
    "selection": Drawing(draw_selection, lambda r: range(len(r.usage))),
    "specialization": Drawing(draw_specialization, lambda r: ()),  # always draws all layers
    "roles": Drawing(draw_roles, lambda r: range(len(r.write_by_position))),
    "silencing": Drawing(draw_silencing, lambda r: range(len(r.shift)), max_layers=6),
    "basins": Drawing(draw_basins, lambda r: range(r.energy.shape[1])),
    "reconstruction": Drawing(draw_reconstruction, lambda r: range(len(r.before))),
    "recall": Drawing(draw_recall, lambda r: range(r.error.shape[1])),
    "capacity": Drawing(draw_capacity, lambda r: range(len(r.effective_rank))),
}
"""How to draw each figure, by the name of its analysis."""

WIDTH = 5.5  # inches, the text width of a page
LINE_INCHES = 0.14
MAX_CHARACTERS = 105  # per line of the caption

STYLE = {
    "figure.figsize": (WIDTH, 4.0),
    "figure.constrained_layout.use": True,
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "lines.linewidth": 1.1,
    "lines.markersize": 3.5,
    "hatch.linewidth": 0.5,
    # the colors of Okabe and Ito (2008), each with its own marker and dashes
    "axes.prop_cycle": cycler(
        color=["#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9", "#000000"],
        marker=["o", "s", "^", "D", "v", "P", "X"],
        linestyle=["-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1))],
    ),
    "text.parse_math": False,  # show a $ in a name literally
    "svg.fonttype": "none",
    "svg.hashsalt": "associative_transformer",  # equal figures get equal ids
    "savefig.dpi": 200,
}


def draw_analysis(
    analysis: Analysis,
    image_of: Callable[[int], UInt8[np.ndarray, "C H W"]],
    folder: Path,
    caption: str,
    items: str = "images",
) -> list[Path]:
    """Draw each result as FOLDER/figures/NAME.png and .svg, and return the files written.

    `image_of` returns an image by its index in the split. `caption` names the model, the data
    and the seed; a description of each figure is appended to it. `items` is what the split
    consists of: images or questions. Raises UserError if a file cannot be written.
    """
    folder = folder / "figures"
    make_folder(folder)
    written = []
    # ignore the user's matplotlibrc
    with style.context(STYLE, after_reset=True), warnings.catch_warnings():
        # characters missing from the font become boxes in the PNG, but are kept in the SVG
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        for name, drawing in DRAWINGS.items():
            result = getattr(analysis, name)
            if result is None:
                continue
            figure = Figure()
            layers, note = _select_layers(drawing.layers(result), drawing.max_layers)
            description = drawing.draw(figure, result, Context(analysis, layers, image_of, items))
            _write_caption(figure, f"{caption}. {description}{note}")
            for ending in ("png", "svg"):
                written.append(folder / f"{name}.{ending}")
                write_file(written[-1], _encode(figure, ending))
    return written


def _select_layers(layers: Sequence[int], max_layers: int) -> tuple[list[int], str]:
    """Return evenly spaced indices, first and last included, and a note if any are left out."""
    count = len(layers)
    if count <= max_layers:
        return list(range(count)), ""
    indices = [(count - 1) * i // (max_layers - 1) for i in range(max_layers)]
    numbers = ", ".join(str(layers[index] + 1) for index in indices)
    return indices, f" Layers shown: {numbers} of {count}."


def _write_caption(figure: Figure, caption: str) -> None:
    """Make the figure taller and write the caption below the axes."""
    plain = "".join(c if c.isprintable() else " " for c in caption)
    lines = textwrap.wrap(plain, MAX_CHARACTERS)
    figure.set_figheight(figure.get_figheight() + LINE_INCHES * len(lines))
    figure.supxlabel("\n".join(lines), x=0.01, ha="left", fontsize=7)


def _encode(figure: Figure, ending: str) -> bytes:
    buffer = io.BytesIO()
    metadata = {"Date": None} if ending == "svg" else {"Software": None}  # for equal bytes
    figure.savefig(buffer, format=ending, metadata=metadata)
    return buffer.getvalue()
