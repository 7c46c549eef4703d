"""Decode an image file to an 8-bit image of a given size.

Dims     C channels   H height   W width
"""

import io
import math
import re
import struct
import sys
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Integer, UInt8
from PIL import ExifTags, Image, ImageFile, ImageOps, UnidentifiedImageError
from PIL.PngImagePlugin import MAX_TEXT_CHUNK
from torch import Tensor

from associative_transformer.interface import UserError

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")  # Pillow starts programs for others
TURNS = {  # how to turn an image upright, by its EXIF orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SIDEWAYS = (
    Image.Transpose.TRANSPOSE,
    Image.Transpose.ROTATE_270,
    Image.Transpose.TRANSVERSE,
    Image.Transpose.ROTATE_90,
)
"""Turns that exchange width and height."""
DEPTHS = (8, 10, 12, 14)
"""Bits per color that cameras and scanners store in the lower end of 16 bits."""
DEEP_COLOR = re.compile("(RGB|RGBA);16[BLN]")
"""Pillow's names for 16 bits per color in files."""


class UnreadableImage(UserError):
    """An image that cannot be read."""

    def __init__(self, name: str, reason: str, option: str = "") -> None:
        """Take its name, why it cannot be read, and the option that leaves such images out."""
        super().__init__(name, reason, option)  # the arguments, so that it can be pickled
        self.name, self.reason, self.option = name, reason, option

    def __str__(self) -> str:
        advice = f"replace or remove it{self.option and f', or pass {self.option}'}"
        return f"cannot read the image {self.name} ({self.reason}): {advice}"


def decode_image(
    source: bytes | Path | Image.Image,
    image_size: int | tuple[int, int],
    mode: Literal["RGB", "L"] = "RGB",
    name: str | None = None,
) -> UInt8[Tensor, "C H W"]:
    """Decode a file, its bytes or a Pillow image to an upright image on a white background.

    It is resized (bicubic, antialiased) until it covers `image_size`, the height and width or the
    side of a square, and cropped at the center; an image that already has this size is not
    changed. Raises UnreadableImage with `name` (by default the path) if it cannot be read.
    """
    if isinstance(source, Image.Image):
        image = _convert_open(source, mode)
    else:
        image = open_image(source, mode, name)
    height, width = (image_size,) * 2 if isinstance(image_size, int) else image_size
    return to_tensor(ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC))


class Header(NamedTuple):
    """What an image file says about itself."""

    size: tuple[int, int]  # width and height, upright
    mode: str  # Pillow's name of its pixels; RGB;16 if it has 16 bits per color
    format: str
    is_animated: bool


def read_header(source: bytes | Path) -> Header:
    """Read the size and kind of an image without its pixels.

    Raises UnreadableImage if it is not one.
    """
    file = io.BytesIO(source) if isinstance(source, bytes) else source
    try:
        with (
            warnings.catch_warnings(action="ignore"),
            Image.open(file, formats=FORMATS) as image,
        ):
            has_exif = "exif" in image.info or image.format == "TIFF"
            turn = _read_turn(image) if has_exif else None  # a PNG would be decoded to find out
            size = image.size[::-1] if turn in SIDEWAYS else image.size
            deep = f"{image.mode};16" if _is_deep_color(image) else image.mode
            is_transparent = image.has_transparency_data and "A" not in image.mode
            mode = f"{deep} with transparency" if is_transparent else deep
            is_animated = bool(getattr(image, "is_animated", False))
            return Header(size, mode, str(image.format), is_animated)
    except Exception as error:  # broken files make Pillow raise almost any error
        name = str(source) if isinstance(source, Path) else "given as bytes"
        raise UnreadableImage(name, _reason(error)) from error


def open_image(source: bytes | Path, mode: str, name: str | None = None) -> Image.Image:
    """Decode an image upright and at its original size; raise like `decode_image`."""
    name = name or (str(source) if isinstance(source, Path) else "given as bytes")
    file = io.BytesIO(source) if isinstance(source, bytes) else source
    try:
        with warnings.catch_warnings(action="ignore"):  # Pillow's warnings do not name the file
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file, formats=FORMATS) as image:
                _check_webp(image)
                is_deep = _is_deep_color(image)
                _load(image)
                turn = _read_turn(image)
                opaque = _rescaled_color(image, file) if is_deep else _eight_bit(image)
                converted = opaque if opaque.mode == mode != image.mode else opaque.convert(mode)
            del image, opaque  # the largest ones take a third of a gibibyte each
            return converted if turn is None else converted.transpose(turn)
    except Exception as error:  # broken files make Pillow raise almost any error
        raise UnreadableImage(name, _reason(error)) from error


def _convert_open(image: Image.Image, mode: str) -> Image.Image:
    """Convert a Pillow image that is already open; raise like `decode_image`."""
    try:
        turn = _read_turn(image)
        converted = _eight_bit(image).convert(mode)
        return converted if turn is None else converted.transpose(turn)
    except Exception as error:  # its file is read now
        raise UnreadableImage("given as a Pillow image", _reason(error)) from error


def _reason(error: Exception) -> str:
    """Return why an image cannot be read, with the limit that applied to it."""
    reason = str(error)
    if isinstance(error, UnidentifiedImageError):
        return f"not an image in {', '.join(FORMATS)}"
    if isinstance(error, Image.DecompressionBombError):  # its message doubles the limit
        return re.sub(r"limit of \d+", f"limit of {Image.MAX_IMAGE_PIXELS}", reason)
    return reason.replace(
        "too large for PngImagePlugin.MAX_TEXT_CHUNK",
        f"exceeds limit of {MAX_TEXT_CHUNK} bytes for text, could be decompression bomb",
    )


def _load(image: ImageFile.ImageFile) -> None:
    """Decode the pixels; while doing so, Pillow searches the XMP data of a TIFF as bytes."""
    if not isinstance(image.info.get("xmp"), bytes):
        image.info.pop("xmp", None)
    image.load()


def _check_webp(image: Image.Image) -> None:
    """Refuse a large WebP: its decoder takes three times the time and memory of others."""
    size, limit = image.width * image.height, (Image.MAX_IMAGE_PIXELS or math.inf) // 3
    if image.format == "WEBP" and size > limit:
        raise ValueError(f"image size ({size} pixels) exceeds limit of {limit} pixels for WebP")


def _read_turn(image: Image.Image) -> Image.Transpose | None:
    """Return how to turn an image upright; of its EXIF data, only the orientation is needed."""
    tag = ExifTags.Base.Orientation
    for read in (_read_orientation, lambda image: image.getexif()[tag]):  # the other also has XMP
        with suppress(Exception):  # malformed EXIF data can raise almost any error
            return TURNS.get(read(image))
    return None


def _read_orientation(image: Image.Image) -> int:
    """Return the EXIF orientation; Pillow does not find it behind a damaged value."""
    exif = image.info["exif"].removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}[exif[:2]]
    (start,) = struct.unpack_from(f"{order}I", exif, 4)
    (count,) = struct.unpack_from(f"{order}H", exif, start)
    entries = [struct.unpack_from(f"{order}HHIH", exif, start + 2 + 12 * i) for i in range(count)]
    return next(value for tag, _, _, value in entries if tag == ExifTags.Base.Orientation)


def _eight_bit(image: Image.Image) -> Image.Image:
    """Handle what `convert` gets wrong: it clips 16 bits and drops the alpha channel."""
    if image.mode.startswith("I;16") or (image.mode, image.format) == ("I", "PPM"):
        values = np.asarray(image)
        is_clear = values == image.info.get("transparency", -1)
        return Image.fromarray(np.where(is_clear, 255, _scale(np.where(is_clear, 0, values))))
    if image.mode in ("I", "F"):
        raise ValueError(f"pixels of mode {image.mode} have no fixed range")
    return _on_white(image) if image.has_transparency_data else image


def _on_white(image: Image.Image) -> Image.Image:
    """Show an image with transparent pixels on a white background."""
    if image.mode != "RGBA":
        image = image.convert("RGBA")
    white = Image.new("RGB", image.size, "white")
    white.paste(image, mask=image.getchannel("A"))
    return white


def _scale(values: Integer[np.ndarray, "..."]) -> UInt8[np.ndarray, "..."]:
    """Keep the upper 8 of 16 bits, or of fewer if the pixels do not use the top ones."""
    largest = int(values.max())
    depth = next((depth for depth in DEPTHS if largest < 2**depth), 16)
    return (values >> (depth - 8)).astype(np.uint8)


def _raw_mode(tile: ImageFile._Tile) -> str:
    return str(tile.args if isinstance(tile.args, str) else (tile.args or [""])[0])


def _is_deep_color(image: ImageFile.ImageFile) -> bool:
    """Return whether the file stores 16 bits per color, of which Pillow reads the upper half."""
    return any(DEEP_COLOR.fullmatch(_raw_mode(tile)) for tile in image.tile)


def _rescaled_color(image: ImageFile.ImageFile, file: Path | io.BytesIO) -> Image.Image:
    """Return the 8-bit version of an image with 16 bits per color, scaled like a gray one.

    If the top bits are unused, the lower half is read as well, with the byte order swapped.
    """
    image.info.pop("transparency", None)  # a 16-bit color, which no 8-bit one can equal
    upper = np.asarray(image)  # (H, W, C)
    if upper[..., :3].max() >> (max(DEPTHS) - 8):
        return _eight_bit(image)
    with Image.open(file, formats=FORMATS) as swapped:
        swapped.tile = [_swap_bytes(tile) for tile in swapped.tile]
        _load(swapped)
        values = upper.astype(np.uint16) << 8 | np.asarray(swapped)
    parts = [part for part in np.split(values, [3], axis=-1) if part.size]  # colors, alpha
    return _eight_bit(Image.fromarray(np.concatenate([_scale(part) for part in parts], axis=-1)))


def _swap_bytes(tile: ImageFile._Tile) -> ImageFile._Tile:
    raw_mode = _raw_mode(tile)
    is_big = raw_mode[-1] == "B" or (raw_mode[-1] == "N" and sys.byteorder == "big")
    swapped = raw_mode[:-1] + ("L" if is_big else "B")
    args = swapped if isinstance(tile.args, str) else (swapped, *(tile.args or [""])[1:])
    return tile._replace(args=args)


def to_tensor(image: Image.Image) -> UInt8[Tensor, "C H W"]:
    """Return the pixels of a decoded image."""
    pixels = torch.from_numpy(np.array(image))
    return pixels.view(image.height, image.width, -1).movedim(-1, 0).contiguous()
