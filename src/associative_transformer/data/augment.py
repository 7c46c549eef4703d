"""Prepare decoded images for the network: crop, flip and normalize a whole batch at a time.

Dims     N images of the data set   S steps   B batch   C channels   H height   W width
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torch.nn.functional import pad


@dataclass(frozen=True)
class Normalization:
    """How the pixels of three channels are normalized, after scaling them to [0, 1]."""

    mean: tuple[float, float, float]
    """The value subtracted from each channel."""
    std: tuple[float, float, float]
    """The value by which each channel is then divided."""


RAW = Normalization((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
"""Leaves the pixels in [0, 1]."""


def draw_crops(num_images: int, padding: int, seed: np.random.SeedSequence) -> Int[Tensor, "N 3"]:
    """Draw (top, left, is_flipped) for every image of a data set, row by row."""
    bounds = [2 * padding + 1, 2 * padding + 1, 2]
    return torch.from_numpy(np.random.default_rng(seed).integers(bounds, size=(num_images, 3)))


def crop_and_flip(
    images: UInt8[Tensor, "B C H W"], crops: Int[Tensor, "B 3"], padding: int
) -> UInt8[Tensor, "B C H W"]:
    """Pad each image with black, then crop it back to its size and flip it as `crops` says."""
    _, _, height, width = images.shape
    padded = pad(images, (padding,) * 4)
    top, left, is_flipped = crops.T[..., None]  # each (B, 1)
    column = torch.arange(width, device=images.device)
    y = top + torch.arange(height, device=images.device)  # (B, H)
    x = left + torch.where(is_flipped.bool(), width - 1 - column, column)  # (B, W)
    image = torch.arange(len(images), device=images.device)[:, None, None]
    cut = padded.movedim(1, -1)[image, y[:, :, None], x[:, None]]  # (B, H, W, C)
    return cut.movedim(-1, 1).contiguous()


class Preparation:
    """Normalization, the same in training and evaluation, and augmentation in training only."""

    def __init__(
        self,
        mean: Sequence[float],
        std: Sequence[float],
        crop_padding: int | None = None,
        device: torch.device | None = None,
    ) -> None:
        """Set the normalization; a `crop_padding` of None augments nothing, and 0 only flips."""
        scaled = 255 * torch.tensor([mean, std], dtype=torch.float64)[..., None, None]
        self.mean, self.std = scaled.to(device, torch.float32)  # each (C, 1, 1)
        self.crop_padding = crop_padding

    @property
    def device(self) -> torch.device:
        """The device of the prepared batches."""
        return self.mean.device

    def normalize(self, images: UInt8[Tensor, "B _ H W"]) -> Float[Tensor, "B C H W"]:
        """Scale to [0, 1] and normalize; a single channel is repeated to match `mean`."""
        return (images - self.mean) / self.std

    def denormalize(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """Undo `normalize` and return pixels in [0, 1]."""
        return (images * self.std + self.mean) / 255

    def batches(
        self,
        images: Iterable[UInt8[Tensor, "B _ H W"]],
        rows: Int[Tensor, "S B"],
        num_images: int,
        seed: np.random.SeedSequence | None,
    ) -> Iterator[Float[Tensor, "B C H W"]]:
        """Prepare the batches of one epoch; augment them if there is a seed."""
        crops = None
        if seed is not None and self.crop_padding is not None:
            crops = draw_crops(num_images, self.crop_padding, seed)[rows].to(self.device)
        for step, batch in enumerate(images):
            batch = batch.to(self.device, non_blocking=True)
            if crops is not None and self.crop_padding is not None:
                batch = crop_and_flip(batch, crops[step], self.crop_padding)
            yield self.normalize(batch)
