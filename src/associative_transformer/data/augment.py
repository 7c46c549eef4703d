"""Prepare decoded images for the network: augment and normalize a whole batch at a time.

Dims     N images of the data set   S steps   B batch   R rounds of operations   K numbers
         C channels   H height   W width
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torch.nn.functional import pad

from associative_transformer.data.augmentation import NUM_LEVELS, Augmentation
from associative_transformer.data.operations import (
    JITTERED,
    NAMES,
    apply_operations,
    list_levels,
    to_values,
)

JITTER, POLICY, ERASURE = 1, 2, 3  # each draws its own numbers, so that they change nothing else
ERASED_AREA = (0.02, 0.33)  # shares of an image, as in torchvision
ERASED_RATIO = (0.3, 3.3)  # height divided by width


@dataclass(frozen=True)
class Normalization:
    """How the pixels of three channels are normalized, after scaling them to [0, 1]."""

    mean: tuple[float, float, float]
    """The value subtracted from each channel."""
    std: tuple[float, float, float]
    """The value by which each channel is then divided."""


RAW = Normalization((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
"""Leaves the pixels in [0, 1]."""
UNCHANGED = Augmentation()


class Rounds(NamedTuple):
    """Operations on each image of a data set, one after the other, in the order of its rows."""

    operations: Int[Tensor, "N R"]  # indices in OPERATIONS
    values: Float[Tensor, "N R"]


class Drawn(NamedTuple):
    """What was drawn for each image of a data set, in the order of its rows; None: nothing."""

    crops: Int[Tensor, "N 3"] | None = None  # top, left, is_flipped
    rounds: Rounds | None = None
    erased: Int[Tensor, "N 4"] | None = None  # top, left, height, width


def draw(
    augmentation: Augmentation,
    num_images: int,
    size: tuple[int, int],
    seed: np.random.SeedSequence,
) -> Drawn:
    """Draw for each image of a data set, row by row: more images do not change the first ones.

    `size` is the height and width of the images.
    """
    crops = rounds = erased = None
    is_flipped = augmentation.flip == "horizontal"
    if augmentation.crop_padding or is_flipped:
        crops = draw_crops(num_images, augmentation.crop_padding, seed)
        crops[:, 2] *= is_flipped
    if augmentation.color_jitter or augmentation.policy != "none":
        jitter = _draw_jitter(augmentation, num_images, seed)
        policy = _draw_policy(augmentation, num_images, size, seed)
        rounds = Rounds(*(torch.cat(parts, dim=1) for parts in zip(jitter, policy, strict=True)))
    if augmentation.erase:
        erased = draw_rectangles(augmentation.erase, num_images, size, seed)
    return Drawn(crops, rounds, erased)


def draw_crops(num_images: int, padding: int, seed: np.random.SeedSequence) -> Int[Tensor, "N 3"]:
    """Draw (top, left, is_flipped) for every image of a data set, row by row."""
    bounds = [2 * padding + 1, 2 * padding + 1, 2]
    return torch.from_numpy(np.random.default_rng(seed).integers(bounds, size=(num_images, 3)))


def draw_rectangles(
    probability: float, num_images: int, size: tuple[int, int], seed: np.random.SeedSequence
) -> Int[Tensor, "N 4"]:
    """Draw (top, left, height, width) of the rectangle to erase in each image, row by row.

    It is empty in the images that stay whole. The ratio of its sides is drawn among those that
    fit into the image, where torchvision repeats the draw until it fits.
    """
    height, width = size
    is_erased, area, ratio, top, left = _draw_numbers(num_images, 5, seed, ERASURE).T
    area = ERASED_AREA[0] + area * (ERASED_AREA[1] - ERASED_AREA[0])
    lowest = area.clamp(min=ERASED_RATIO[0]).log()
    highest = (1 / area).clamp(max=ERASED_RATIO[1]).log()
    ratio = (lowest + ratio * (highest - lowest)).exp()
    tall = (height * (area * ratio).sqrt()).round().clamp(max=height)
    wide = (width * (area / ratio).sqrt()).round().clamp(max=width)
    corner = (top * (height - tall + 1)).floor(), (left * (width - wide + 1)).floor()
    rectangle = torch.stack([*corner, tall, wide], dim=1).long()
    return rectangle * (is_erased < probability)[:, None]


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


def erase(
    images: Float[Tensor, "B C H W"], rectangles: Int[Tensor, "B 4"]
) -> Float[Tensor, "B C H W"]:
    """Set a rectangle of each normalized image to 0, which is the mean color."""
    top, left, tall, wide = rectangles.T[..., None]  # each (B, 1)
    row, column = (torch.arange(side, device=images.device) for side in images.shape[2:])
    is_row, is_column = (
        (row >= top) & (row < top + tall),
        (column >= left) & (column < left + wide),
    )
    return images.masked_fill((is_row[:, :, None] & is_column[:, None])[:, None], 0.0)


class Preparation:
    """Normalization, the same in training and evaluation, and augmentation in training only."""

    def __init__(
        self,
        mean: Sequence[float],
        std: Sequence[float],
        augmentation: Augmentation = UNCHANGED,
        device: torch.device | None = None,
    ) -> None:
        """Set normalization and augmentation; random resized crops are up to the reader."""
        scaled = 255 * torch.tensor([mean, std], dtype=torch.float64)[..., None, None]
        self.mean, self.std = scaled.to(device, torch.float32)  # each (C, 1, 1)
        self.augmentation = augmentation

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
        drawn = Drawn()
        for step, batch in enumerate(images):
            if step == 0 and seed is not None:
                size = (batch.shape[2], batch.shape[3])
                drawn = draw(self.augmentation, num_images, size, seed)
            yield self._prepare(batch.to(self.device, non_blocking=True), drawn, rows[step])

    def _prepare(
        self, images: UInt8[Tensor, "B _ H W"], drawn: Drawn, rows: Int[Tensor, " B"]
    ) -> Float[Tensor, "B C H W"]:
        """Augment a batch as it was drawn, and normalize it."""
        if drawn.crops is not None:
            crops = drawn.crops[rows].to(self.device)
            images = crop_and_flip(images, crops, self.augmentation.crop_padding)
        if drawn.rounds is not None:
            codes, values = (table[rows] for table in drawn.rounds)
            for code, value in zip(codes.T, values.T, strict=True):
                images = apply_operations(images, code, value)
        prepared = self.normalize(images)
        if drawn.erased is not None:
            prepared = erase(prepared, drawn.erased[rows].to(self.device))
        return prepared


def _draw_jitter(
    augmentation: Augmentation, num_images: int, seed: np.random.SeedSequence
) -> Rounds:
    """Draw how to change brightness, contrast and saturation of each image, in random order."""
    strength = augmentation.color_jitter
    if not strength:
        return Rounds(torch.empty(num_images, 0).long(), torch.empty(num_images, 0))
    numbers = _draw_numbers(num_images, 2 * len(JITTERED), seed, JITTER)
    order, numbers = numbers.chunk(2, dim=1)
    lowest = max(0.0, 1 - strength)
    factors = lowest + numbers * (1 + strength - lowest)
    return Rounds(torch.tensor(JITTERED)[order.argsort(dim=1)], factors.float())


def _draw_policy(
    augmentation: Augmentation,
    num_images: int,
    size: tuple[int, int],
    seed: np.random.SeedSequence,
) -> Rounds:
    """Draw the operations of a policy for each image, their strengths and their signs."""
    policy = augmentation.policy
    num_ops = {"none": 0, "randaugment": augmentation.num_ops, "trivialaugment": 1}[policy]
    numbers = _draw_numbers(num_images, 3 * num_ops, seed, POLICY)
    code, level, sign = numbers.view(num_images, num_ops, 3).unbind(dim=-1)  # each (N, R)
    code, level = (code * len(NAMES)).long(), (level * NUM_LEVELS).long()
    if policy == "randaugment":
        level = torch.full_like(level, augmentation.magnitude)
    strength = list_levels(policy, *size)[code, level]
    return Rounds(code, to_values(code, strength, sign < 0.5))


def _draw_numbers(
    num_images: int, num_numbers: int, seed: np.random.SeedSequence, purpose: int
) -> Float[Tensor, "N K"]:
    """Draw numbers in [0, 1) for each image, row by row."""
    own = np.random.SeedSequence(seed.entropy, spawn_key=(*seed.spawn_key, purpose))
    numbers = np.random.default_rng(own).random((num_images, num_numbers), dtype=np.float32)
    return torch.from_numpy(numbers).double()
