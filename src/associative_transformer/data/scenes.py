"""Scenes of Sort-of-CLEVR: draw six colored objects and answer questions about them.

The rules are those of kimhc6028/relational-networks.

Dims     P pictures   N questions   C objects
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int, UInt8

from associative_transformer.data.questions import CIRCLE, COLORS, NO, ONE, SQUARE, YES, Questions

PICTURE_SIZE = 75
RADIUS = 5
MIDDLE = PICTURE_SIZE / 2
LINE_WIDTH = 12  # pixels above and below the line through A and B, measured vertically
FAULTY_SQUARED_DISTANCE = 999  # from an object to itself in the source; others may be farther

REACH = range(-RADIUS, RADIUS + 1)
SQUARE_PIXELS = np.array([(x, y) for x in REACH for y in REACH])
CIRCLE_PIXELS = np.array([p for p in SQUARE_PIXELS if p @ p <= RADIUS**2])  # 81, as in OpenCV
WHITE = len(COLORS)
PALETTE = np.array(
    [
        (255, 0, 0),
        (0, 255, 0),
        (0, 0, 255),
        (255, 156, 0),
        (128, 128, 128),
        (255, 255, 0),
        (255, 255, 255),
    ],
    np.uint8,
)
BLOCK = 1024  # pictures drawn together


class Scenes(NamedTuple):
    """The contents of pictures: one object of each color."""

    centers: Int[np.ndarray, "P 6 2"]  # (column, row), from 5 to 69
    is_square: Bool[np.ndarray, "P 6"]  # otherwise a circle


def draw_pictures(scenes: Scenes) -> UInt8[np.ndarray, "P 3 75 75"]:
    """Draw the objects in the order of their colors; later ones cover earlier ones."""
    pictures = np.empty((len(scenes.centers), 3, PICTURE_SIZE, PICTURE_SIZE), np.uint8)
    for start in range(0, len(pictures), BLOCK):
        part = Scenes(*(array[start : start + BLOCK] for array in scenes))
        canvas = np.full((len(part.centers), PICTURE_SIZE, PICTURE_SIZE), WHITE, np.uint8)
        for color in range(len(COLORS)):
            for is_square, pixels in ((True, SQUARE_PIXELS), (False, CIRCLE_PIXELS)):
                drawn = np.flatnonzero(part.is_square[:, color] == is_square)
                x, y = np.moveaxis(part.centers[drawn, color, None] + pixels, -1, 0)
                canvas[drawn[:, None], y, x] = color
        pictures[start : start + BLOCK] = np.moveaxis(PALETTE[canvas], -1, 1)
    return pictures


def answer(
    scenes: Scenes, picture: Int[np.ndarray, " N"], questions: Questions, strict: bool = True
) -> Int[np.ndarray, " N"]:
    """Return the answers as indices in CLASS_NAMES; ties go to the first color."""
    kind, first, second = questions
    row, colors = np.arange(len(kind)), np.arange(len(COLORS))
    centers = scenes.centers[picture]  # (N, 6, 2)
    shape = np.where(scenes.is_square[picture], SQUARE, CIRCLE)  # (N, 6)
    a, b = centers[row, first], centers[row, second]  # each (N, 2)
    is_other = (colors != first[:, None]) & (colors != second[:, None])  # (N, 6)
    distance = squared_length(centers - a[:, None])  # (N, 6)
    to_others = distance.copy()
    to_others[row, first] = distance.max() + 1 if strict else FAULTY_SQUARED_DISTANCE
    answers = [
        shape[row, first],
        np.where(a[:, 0] < MIDDLE, YES, NO),
        np.where(a[:, 1] < MIDDLE, YES, NO),
        shape[row, to_others.argmin(axis=1)],
        shape[row, distance.argmax(axis=1)],
        ONE + (shape == shape[row, first, None]).sum(axis=1) - 1,
        ONE + (is_other & _is_in_box(centers, a, b)).sum(axis=1),
        np.where((is_other & _is_near_line(centers, a, b)).any(axis=1), YES, NO),
        ONE + (is_other & _is_obtuse(centers, a, b)).sum(axis=1),
    ]
    return np.choose(kind, answers)


def squared_length(vectors: Int[np.ndarray, "N C 2"]) -> Int[np.ndarray, "N C"]:
    """Return the squared length of each vector."""
    return (vectors**2).sum(axis=-1)


def _is_in_box(
    centers: Int[np.ndarray, "N 6 2"], a: Int[np.ndarray, "N 2"], b: Int[np.ndarray, "N 2"]
) -> Bool[np.ndarray, "N 6"]:
    low, high = np.minimum(a, b)[:, None], np.maximum(a, b)[:, None]
    return ((low <= centers) & (centers <= high)).all(axis=-1)


def _is_near_line(
    centers: Int[np.ndarray, "N 6 2"], a: Int[np.ndarray, "N 2"], b: Int[np.ndarray, "N 2"]
) -> Bool[np.ndarray, "N 6"]:
    x, y = np.moveaxis(centers, -1, 0)  # each (N, 6)
    slope = (b[:, 1] - a[:, 1]) / (b[:, 0] - a[:, 0] + 1e-10)
    intercept = a[:, 1] - slope * a[:, 0]
    return np.abs(y - (slope[:, None] * x + intercept[:, None])) <= LINE_WIDTH


def _is_obtuse(
    centers: Int[np.ndarray, "N 6 2"], a: Int[np.ndarray, "N 2"], b: Int[np.ndarray, "N 2"]
) -> Bool[np.ndarray, "N 6"]:
    """Return whether the largest angle of ABC is in [90, 180) degrees, exactly, in integers."""
    to_a, to_b, base = centers - a[:, None], centers - b[:, None], (b - a)[:, None]
    sides = np.stack(
        [squared_length(to_a), squared_length(to_b), squared_length(to_a - to_b)]
    )  # (3, N, 6)
    is_flat = to_a[..., 0] * base[..., 1] == to_a[..., 1] * base[..., 0]
    return (2 * sides.max(axis=0) >= sides.sum(axis=0)) & ~is_flat
