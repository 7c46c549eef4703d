"""Test images as sheets and files."""

import io
import textwrap
from collections.abc import Sequence
from pathlib import Path

from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image

from associative_transformer.files import write_file
from associative_transformer.interface import UserError

FORMATS = (".png", ".svg", ".pdf")
COLUMNS = 4
INCHES = 3.2  # side of an image on the sheet
LINE_INCHES = 0.17
CHARACTERS = 50  # of a caption's line


def draw_sheet(
    images: Float[Tensor, "N C H W"], captions: Sequence[str], path: Path, title: str
) -> None:
    """Draw images in rows, each above its caption, and write them as PNG, SVG or PDF.

    Values of the images lie in [0, 1]. Raises UserError where the file can't be written or has
    another ending.
    """
    if path.suffix.lower() not in FORMATS:
        raise UserError(f"cannot write {path}: let its name end in {', '.join(FORMATS)}")
    wrapped = ["\n".join(_wrap(caption)) for caption in captions]
    height = INCHES + LINE_INCHES * (1 + max(text.count("\n") + 1 for text in wrapped))
    columns = min(COLUMNS, len(wrapped))
    rows = -(-len(wrapped) // columns)
    figure = Figure((columns * INCHES * 1.1, rows * height + 0.5), layout="constrained")
    figure.suptitle(title, parse_math=False)
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for ax in axes[len(wrapped) :]:
        ax.remove()
    for ax, image, text in zip(axes, images, wrapped, strict=False):
        pixels = image.movedim(0, -1).clamp(0, 1).expand(-1, -1, 3)
        ax.imshow(pixels.numpy(), interpolation="nearest")
        ax.set(xticks=[], yticks=[], anchor="N")
        place = {"transform": ax.transAxes, "va": "top", "fontsize": 8}
        ax.text(0, -0.03, text, parse_math=False, **place)
    buffer = io.BytesIO()
    figure.savefig(buffer, format=path.suffix[1:].lower(), dpi=120, bbox_inches="tight")
    write_file(path, buffer.getvalue())


def write_images(images: Float[Tensor, "N C H W"], folder: Path) -> None:
    """Write images with values in [0, 1] as 0.png, 1.png, ... of their own size.

    Raises UserError where that can't be done.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"can't make the folder {folder}: {error.strerror}") from error
    for number, image in enumerate(images):
        buffer = io.BytesIO()
        to_pil_image((255 * image).round().byte()).save(buffer, "PNG")
        write_file(folder / f"{number}.png", buffer.getvalue())


def _wrap(caption: str) -> list[str]:
    return [
        part
        for line in caption.splitlines()
        for part in textwrap.wrap(line, CHARACTERS, subsequent_indent="   ") or [""]
    ]
