"""Triangle (Goyal et al. 2021, arXiv 2103.01197): is a triangle of dots equilateral?

Array operations replace the loops of the source, and a fixed data set its endless stream: an item
depends only on the seed, its split and its index.

Dims     N items   P points
"""

from dataclasses import dataclass, replace
from itertools import permutations
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Int, UInt8
from numpy.random import Generator, default_rng

from associative_transformer.data.augment import Preparation
from associative_transformer.data.batches import DataSet, HeldOut, Split
from associative_transformer.data.config import DataSetConfig, InputSize, check_settings
from associative_transformer.data.loaders import ResidentLoader

IMAGE_SIZE = 64
CLASS_NAMES = ("equilateral", "other")
EQUILATERAL, OTHER = 0, 1
TRAIN, TEST = 0, 1  # split ids

BLOCK = 1024  # items generated from one random generator
NUM_PAIRS = 4  # pairs of points around a vertex
NEAR_EQUILATERAL = 1.1  # longest divided by shortest side
MAX_MIN_SIDE = 32.0

RADIUS = 2
REACH = range(-RADIUS, RADIUS + 1)
# the same pixels as OpenCV's circle
DISC = np.array([(x, y) for x in REACH for y in REACH if abs(x) + abs(y) <= RADIUS])
MARGIN = RADIUS + 1  # a point may be 1 pixel outside the image


@dataclass(frozen=True)
class TriangleConfig(DataSetConfig):
    """Generated images of 64x64 pixels, half of them with an equilateral triangle."""

    kind: Literal["triangle"] = "triangle"
    """Name of this data set in a saved experiment."""
    num_train: int = 50_000
    """Number of training images."""
    num_test: int = 10_000
    """Number of test images."""
    channels: int = 3
    """Number of channels, all with the same pixels."""
    seed: int = 0
    """Seed of the generated data, independent of the seed of the training run."""
    val_fraction: float = 0.0
    """Fraction of the training images set aside for validation."""
    reject_near_equilateral: bool = False
    """Redraw random triangles with sides within a factor of 1.1 or equal up to rounding."""
    min_side: float = 0.0
    """Redraw triangles with a side shorter than this many pixels (0 to 32)."""
    raw: bool = False
    """Keep pixel values of 0 and 255 instead of scaling them to 0 and 1."""

    def __post_init__(self) -> None:
        check_settings(self, "num_train", "num_test", "channels")
        if not 0 <= self.min_side <= MAX_MIN_SIDE:
            raise ValueError(f"min_side must be in [0, {MAX_MIN_SIDE}], got {self.min_side}")

    @property
    def std(self) -> tuple[float, ...]:
        """1 for each channel, or 1/255 to undo the scaling to [0, 1]."""
        return (1 / 255 if self.raw else 1.0,) * self.channels

    @property
    def input_size(self) -> InputSize:
        """64x64 pixels and no questions."""
        return InputSize(IMAGE_SIZE, self.channels, question_dim=0)

    @property
    def image_mode(self) -> Literal["L"]:
        """Grayscale, which is then repeated for each channel."""
        return "L"

    def load(self, device: torch.device) -> DataSet:
        """Generate all splits."""
        train, validation = _split(self, TRAIN, device).split_validation(self.val_fraction)
        return DataSet(train, validation, _split(self, TEST, device), CLASS_NAMES)

    def load_test(self, device: torch.device) -> HeldOut:
        """Generate only the test split."""
        return HeldOut(_split(self, TEST, device), CLASS_NAMES)

    def shortened(self, num_images: int) -> "TriangleConfig":
        """Return a version with `num_images` training and test images each."""
        return replace(self, num_train=num_images, num_test=num_images)


class Triangles(NamedTuple):
    """Generated images with their labels and vertices."""

    images: UInt8[np.ndarray, "N 64 64"]  # 0 and 255
    labels: Int[np.ndarray, " N"]  # EQUILATERAL or OTHER
    vertices: Int[np.ndarray, "N 3 2"]  # (column, row)


def generate_triangles(config: TriangleConfig, split: int, num_items: int) -> Triangles:
    """Generate the first `num_items` of a split."""
    items = Triangles(
        np.empty((num_items, IMAGE_SIZE, IMAGE_SIZE), np.uint8),
        np.empty(num_items, np.int64),
        np.empty((num_items, 3, 2), np.int64),
    )
    for block, start in enumerate(range(0, num_items, BLOCK)):
        generated = _generate_block(config, default_rng((config.seed, split, block)))
        for array, new in zip(items, generated, strict=True):
            array[start : start + BLOCK] = new[: num_items - start]
    return items


def third_vertex(
    first: Int[np.ndarray, "N 2"], second: Int[np.ndarray, "N 2"]
) -> Int[np.ndarray, "N 2"]:
    """Return the third vertex of an equilateral triangle, truncated to whole pixels."""
    x, y = first.T
    dx, dy = (second - first).T
    height = np.sqrt(3) / 2
    third = np.stack([x + dx / 2 + height * dy, y - height * dx + dy / 2], axis=-1)
    return np.trunc(third).astype(np.int64)


def draw_points(points: Int[np.ndarray, "N P 2"]) -> UInt8[np.ndarray, "N 64 64"]:
    """Draw a white disc of 13 pixels at every (column, row), clipped at the border."""
    size = IMAGE_SIZE + 2 * MARGIN
    canvas = np.zeros((len(points), size, size), np.uint8)
    x, y = np.moveaxis(points[:, :, None] + DISC + MARGIN, -1, 0)  # each (N, P, 13)
    canvas[np.arange(len(points))[:, None, None], y, x] = 255
    return canvas[:, MARGIN:-MARGIN, MARGIN:-MARGIN]


def _generate_block(config: TriangleConfig, rng: Generator) -> Triangles:
    """Generate a whole block, so that an item does not depend on how many are used."""
    labels = rng.integers(2, size=BLOCK)
    vertices = _draw_vertices(config, labels, rng)
    offsets = rng.integers(-1, 2, size=(BLOCK, 3, NUM_PAIRS, 2))
    center = vertices[:, :, None]
    points = np.concatenate([center + offsets, center - offsets], axis=2)  # (BLOCK, 3, 8, 2)
    return Triangles(draw_points(points.reshape(BLOCK, -1, 2)), labels, vertices)


def _draw_vertices(
    config: TriangleConfig, labels: Int[np.ndarray, " N"], rng: Generator
) -> Int[np.ndarray, "N 3 2"]:
    vertices = np.empty((len(labels), 3, 2), np.int64)
    pending = np.arange(len(labels))
    while len(pending):
        drawn = rng.integers(1, IMAGE_SIZE, size=(len(pending), 3, 2))
        is_equilateral = labels[pending] == EQUILATERAL
        third = third_vertex(drawn[:, 0], drawn[:, 1])
        drawn[:, 2] = np.where(is_equilateral[:, None], third, drawn[:, 2])
        vertices[pending] = drawn
        pending = pending[~_is_accepted(config, drawn, is_equilateral)]
    return vertices


def _is_accepted(
    config: TriangleConfig,
    vertices: Int[np.ndarray, "N 3 2"],
    is_equilateral: Bool[np.ndarray, " N"],
) -> Bool[np.ndarray, " N"]:
    third = vertices[:, 2]
    is_inside = ((third >= 1) & (third < IMAGE_SIZE)).all(axis=-1)
    sides = np.linalg.norm(vertices - np.roll(vertices, 1, axis=1), axis=-1)
    is_accepted: Bool[np.ndarray, " N"] = is_inside & (sides.min(axis=-1) >= config.min_side)
    if config.reject_near_equilateral:
        is_near = sides.max(axis=-1) <= NEAR_EQUILATERAL * sides.min(axis=-1)
        for i, j, k in permutations(range(3)):
            is_near |= (third_vertex(vertices[:, i], vertices[:, j]) == vertices[:, k]).all(-1)
        is_accepted &= is_equilateral | ~is_near
    return is_accepted


def _split(config: TriangleConfig, split: int, device: torch.device) -> Split:
    num_items = config.num_train if split == TRAIN else config.num_test
    images, labels, _ = generate_triangles(config, split, num_items)
    preparation = Preparation(*config.normalization, device=device)
    loader = ResidentLoader(torch.from_numpy(images)[:, None], preparation)
    return Split(torch.from_numpy(labels), torch.arange(num_items), loader)
