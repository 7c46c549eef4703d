"""Decode an image file to a square 8-bit image.

Dims     C channels   H height   W width   S side of a square image
"""

import io
import warnings
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from associative_transformer.interface import UserError

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")  # Pillow starts programs for others


def decode_image(
    source: bytes | Path,
    image_size: int,
    mode: Literal["RGB", "L"] = "RGB",
    name: str | None = None,
) -> UInt8[Tensor, "C S S"]:
    """Decode a file or its bytes to an upright square image without an alpha channel.

    The shorter side is resized to `image_size` (bicubic, antialiased) and the longer one cropped
    at the center; an image that already has this size is not changed. Raises UserError with
    `name` (by default the path) if the image cannot be read.
    """
    image = open_image(source, mode, name)
    return to_tensor(ImageOps.fit(image, (image_size, image_size), Image.Resampling.BICUBIC))


def open_image(source: bytes | Path, mode: str, name: str | None = None) -> Image.Image:
    """Decode an image upright and at its original size; raise UserError like `decode_image`."""
    name = name or (str(source) if isinstance(source, Path) else "given as bytes")
    file = io.BytesIO(source) if isinstance(source, bytes) else source
    try:
        with warnings.catch_warnings(action="ignore"):  # Pillow's warnings do not name the file
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file, formats=FORMATS) as image:
                ImageOps.exif_transpose(image, in_place=True)
                return _eight_bit(image).convert(mode)
    except Exception as error:  # broken files make Pillow raise almost any error
        is_image = not isinstance(error, UnidentifiedImageError)
        reason = error if is_image else f"not an image in {', '.join(FORMATS)}"
        raise UserError(
            f"cannot read the image {name} ({reason}): replace or remove it"
        ) from error


def _eight_bit(image: Image.Image) -> Image.Image:
    """Handle what `convert` gets wrong: it clips 16 bits and warns about transparency."""
    if image.mode.startswith("I;16") or (image.mode, image.format) == ("I", "PPM"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(f"pixels of mode {image.mode} have no fixed range")
    return image.convert("RGBA") if "transparency" in image.info else image


def to_tensor(image: Image.Image) -> UInt8[Tensor, "C H W"]:
    """Return the pixels of a decoded image."""
    pixels = torch.from_numpy(np.array(image))
    return pixels.view(image.height, image.width, -1).movedim(-1, 0).contiguous()
