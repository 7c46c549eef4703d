"""Sheets of images with captions, and images as files."""

import io
import textwrap
from collections.abc import Sequence
from pathlib import Path

from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image

from associative_transformer.files import make_folder, write_file
from associative_transformer.interface import UserError

FORMATS = (".png", ".svg", ".pdf")
MAX_COLUMNS = 4
INCHES = 3.2  # width of an image on the sheet
LINE_INCHES = 0.17
MAX_CHARACTERS = 50  # per line of a caption


def draw_sheet(
    images: Float[Tensor, "N C H W"], captions: Sequence[str], path: Path, title: str
) -> None:
    """Draw images in rows, each with its caption below, and write the sheet as PNG, SVG or PDF.

    Image values are clamped to [0, 1]. Raises UserError if the file cannot be written or its name
    has another ending.
    """
    if path.suffix.lower() not in FORMATS:
        raise UserError(f"cannot write {path}: the name must end in {', '.join(FORMATS)}")
    wrapped = ["\n".join(_wrap(caption)) for caption in captions]
    height = INCHES + LINE_INCHES * (1 + max(text.count("\n") + 1 for text in wrapped))
    num_columns = min(MAX_COLUMNS, len(wrapped))
    num_rows = -(-len(wrapped) // num_columns)
    size = (num_columns * INCHES * 1.1, num_rows * height + 0.5)
    figure = Figure(size, layout="constrained")
    figure.suptitle(title, parse_math=False)
    axes = list(figure.subplots(num_rows, num_columns, squeeze=False).flat)
    for ax in axes[len(wrapped) :]:
        ax.remove()
    for ax, image, text in zip(axes, images, wrapped, strict=False):
        pixels = image.movedim(0, -1).clamp(0, 1).expand(-1, -1, 3)
        ax.imshow(pixels.numpy(), interpolation="nearest")
        ax.set(xticks=[], yticks=[], anchor="N")
        below = {"transform": ax.transAxes, "va": "top", "fontsize": 8}
        ax.text(0, -0.03, text, parse_math=False, **below)
    buffer = io.BytesIO()
    figure.savefig(buffer, format=path.suffix[1:].lower(), dpi=120, bbox_inches="tight")
    write_file(path, buffer.getvalue())


def write_images(images: Float[Tensor, "N C H W"], folder: Path) -> None:
    """Write images, clamped to [0, 1], at their own size as 0.png, 1.png, ...

    Raises UserError if a file cannot be written.
    """
    make_folder(folder)
    for number, image in enumerate(images):
        buffer = io.BytesIO()
        to_pil_image((255 * image.clamp(0, 1)).round().byte()).save(buffer, "PNG")
        write_file(folder / f"{number}.png", buffer.getvalue())


def _wrap(caption: str) -> list[str]:
    return [
        part
        for line in caption.splitlines()
        for part in textwrap.wrap(line, MAX_CHARACTERS, subsequent_indent="   ") or [""]
    ]
