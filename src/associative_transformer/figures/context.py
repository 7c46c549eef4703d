"""What a figure may need in addition to the result that it shows.

Dims     C channels   H height   W width   P side of a patch
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from associative_transformer.analysis import Analysis


class Context(NamedTuple):
    """The other results, the layers to draw, and the items of the test split."""

    analysis: Analysis
    layers: list[int]  # indices into the layers of the result
    image_of: Callable[[int], UInt8[np.ndarray, "C H W"]]  # by index in the split
    items: str  # what the split consists of: "images" or "questions"

    def crop(self, index: int, patch: int, grid: int) -> UInt8[np.ndarray, "P P C"]:
        """Return the pixels of a patch of an image, which has `grid` patches per row."""
        image = self.image_of(index)
        size = image.shape[1] // grid
        top, left = patch // grid * size, patch % grid * size
        return image[:, top : top + size, left : left + size].transpose(1, 2, 0)
