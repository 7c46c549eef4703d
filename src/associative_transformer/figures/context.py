"""What a figure may need in addition to the result that it shows.

Dims     C channels   H height   W width
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
