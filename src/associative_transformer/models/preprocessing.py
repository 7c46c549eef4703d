"""What a saved model says about its images and classes, so that it can be used without its data.

Dims     B images   C channels   H height   W width
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float, UInt8
from PIL import Image
from pydantic import ConfigDict, with_config
from torch import Tensor

from associative_transformer.decoding import decode_image
from associative_transformer.interface import UserError

ImageSource = Image.Image | Path | str
"""An image in memory, or the path of its file."""


@with_config(ConfigDict(extra="forbid"))
@dataclass(frozen=True)
class Preprocessing:
    """How the images of a model are prepared, in training and by `ait predict`.

    Images are turned upright, put on a white background, resized so that they cover `image_size`,
    cropped at the center, scaled to [0, 1] and normalized.
    """

    image_size: tuple[int, int]
    """Height and width in pixels."""
    mean: tuple[float, ...]
    """The value subtracted from each channel, after scaling to [0, 1]."""
    std: tuple[float, ...]
    """The value by which each channel is then divided."""
    mode: Literal["RGB", "L"] = "RGB"
    """Pillow's mode of the decoded images; a single channel is repeated to match `mean`."""
    interpolation: Literal["bicubic"] = "bicubic"
    """How images are resized, always with antialiasing."""
    crop: Literal["center"] = "center"
    """Which part of a longer side is kept."""
    question_types: tuple[str, ...] = ()
    """Types of the questions about an image; empty if the model takes none."""

    def __post_init__(self) -> None:
        if min(self.image_size) < 1:
            raise ValueError(f"image_size must be positive, not {self.image_size}")
        if len(self.mean) != len(self.std) or not self.mean:
            raise ValueError(f"mean {self.mean} and std {self.std} must have a value per channel")
        if not all(map(math.isfinite, self.mean + self.std)) or min(self.std) <= 0:
            raise ValueError(
                f"mean {self.mean} must be finite and std {self.std} positive and finite"
            )

    def __call__(self, images: ImageSource | Sequence[ImageSource]) -> Float[Tensor, "B C H W"]:
        """Prepare one image or several, each a PIL image or the path of a file.

        Raises UserError if a file is missing, and UnreadableImage if an image cannot be read.
        """
        one_or_more = [images] if isinstance(images, ImageSource) else list(images)
        if not one_or_more:
            raise ValueError("images must not be empty: pass at least one image")
        return self.normalize(torch.stack([self.decode(each) for each in one_or_more]))

    def decode(self, image: ImageSource) -> UInt8[Tensor, "C H W"]:
        """Return the pixels of an image at the size of the model; raise like `__call__`."""
        if isinstance(image, str):
            image = Path(image)
        if isinstance(image, Path) and not image.exists():
            raise UserError(f"there is no file {image}: check the path")
        return decode_image(image, self.image_size, self.mode)

    def normalize(self, images: UInt8[Tensor, "B _ H W"]) -> Float[Tensor, "B C H W"]:
        """Scale to [0, 1] and normalize; a single channel is repeated to match `mean`."""
        scaled = 255 * torch.tensor([self.mean, self.std], dtype=torch.float64)[..., None, None]
        mean, std = scaled.to(images.device, torch.float32)  # each (C, 1, 1)
        return (images - mean) / std
