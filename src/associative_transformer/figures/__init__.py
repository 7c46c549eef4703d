"""Numbers drawn as pictures; the only user of matplotlib."""

import io
import textwrap
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from cycler import cycler
from jaxtyping import UInt8
from matplotlib import style
from matplotlib.figure import Figure

from associative_transformer.analysis import Analysis
from associative_transformer.figures.basins import draw_basins
from associative_transformer.figures.capacity import draw_capacity
from associative_transformer.figures.competition import draw_competition
from associative_transformer.figures.reconstruction import draw_reconstruction
from associative_transformer.figures.selection import draw_selection
from associative_transformer.figures.sheet import draw_sheet, write_images
from associative_transformer.figures.specialization import draw_specialization
from associative_transformer.files import write_file
from associative_transformer.interface import UserError

__all__ = ["draw_analysis", "draw_sheet", "write_images"]


class Drawing(NamedTuple):
    """One figure to be drawn."""

    name: str
    draw: Callable[[Figure], str]  # returns what it shows
    layers: str = ""  # which ones, where they are not all


WIDTH = 5.5  # inches: the text of a page
LINE_INCHES = 0.14
CHARACTERS = 105  # of a caption's line
SHOWN_LAYERS = 3
SHOWN_ROWS = 12  # layers in the figure of the competition, whose rows are low

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
    # Okabe and Ito's colors (2008); every line also has a marker and a dash of its own
    "axes.prop_cycle": cycler(
        color=["#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9", "#000000"],
        marker=["o", "s", "^", "D", "v", "P", "X"],
        linestyle=["-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1))],
    ),
    "text.parse_math": False,  # names are shown as they are
    "svg.fonttype": "none",
    "svg.hashsalt": "associative_transformer",  # the same figure has the same ids
    "savefig.dpi": 200,
}


def draw_analysis(
    analysis: Analysis,
    image_of: Callable[[int], UInt8[np.ndarray, "C H W"]],
    folder: Path,
    caption: str,
    items: str = "images",
) -> list[Path]:
    """Draw what there is as FOLDER/figures/NAME.png and .svg, and name the files written.

    `image_of` gives an image by its place in the split. The caption says model, data and seed; to
    it comes what each figure shows. The items of the split are images, or questions about them.
    Raises UserError where a file can't be written.
    """
    folder = folder / "figures"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"can't make the folder {folder}: {error.strerror}") from error
    written = []
    # a matplotlibrc of the user's changes nothing
    with style.context(STYLE, after_reset=True), warnings.catch_warnings():
        # letters that the font lacks are boxes in the PNG; the SVG has them
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        for drawing in _drawings(analysis, image_of, items):
            figure = Figure()
            shown = drawing.draw(figure)
            _write_below(figure, f"{caption}. {shown}{drawing.layers}")
            for ending in ("png", "svg"):
                written.append(folder / f"{drawing.name}.{ending}")
                write_file(written[-1], _encode(figure, ending))
    return written


def _drawings(
    analysis: Analysis, image_of: Callable[[int], UInt8[np.ndarray, "C H W"]], items: str
) -> Iterator[Drawing]:
    a = analysis
    if a.competition is not None:
        rows, note = _spread(a.competition.layers, SHOWN_ROWS)
        draw = partial(draw_competition, competition=a.competition, items=items, rows=rows)
        yield Drawing("competition", draw, note)
    if a.selection is not None:
        layers, note = _spread(range(len(a.selection.usage)), SHOWN_LAYERS)
        draw = partial(draw_selection, selected=a.selection, drift=a.drift, layers=layers)
        yield Drawing("selection", partial(draw, image_of=image_of, items=items), note)
    if a.specialization is not None:
        draw = partial(draw_specialization, specialization=a.specialization, items=items)
        yield Drawing("specialization", partial(draw, selected=a.selection, image_of=image_of))
    if a.basins is not None:
        layers, note = _spread(range(a.basins.energy.shape[1]), SHOWN_LAYERS)
        yield Drawing("basins", partial(draw_basins, basins=a.basins, layers=layers), note)
    if a.reconstruction is not None:
        layers, note = _spread(range(len(a.reconstruction.before)), SHOWN_LAYERS)
        draw = partial(draw_reconstruction, reconstruction=a.reconstruction, layers=layers)
        yield Drawing("reconstruction", partial(draw, items=items), note)
    if a.capacity is not None:
        layers, note = _spread(range(len(a.capacity.effective_rank)), SHOWN_LAYERS)
        yield Drawing("capacity", partial(draw_capacity, capacity=a.capacity, layers=layers), note)


def _spread(layers: Sequence[int], at_most: int) -> tuple[list[int], str]:
    """Pick the places of the first layer, the last and some between; say so if that's not all."""
    count = len(layers)
    if count <= at_most:
        return list(range(count)), ""
    places = [(count - 1) * i // (at_most - 1) for i in range(at_most)]
    shown = ", ".join(str(layers[place] + 1) for place in places)
    return places, f" Shown: layers {shown} of {count}."


def _write_below(figure: Figure, caption: str) -> None:
    plain = "".join(c if c.isprintable() else " " for c in caption)
    lines = textwrap.wrap(plain, CHARACTERS)
    figure.set_figheight(figure.get_figheight() + LINE_INCHES * len(lines))
    figure.supxlabel("\n".join(lines), x=0.01, ha="left", fontsize=7)


def _encode(figure: Figure, ending: str) -> bytes:
    buffer = io.BytesIO()
    no_time = {"Date": None} if ending == "svg" else {"Software": None}
    figure.savefig(buffer, format=ending, metadata=no_time)
    return buffer.getvalue()
