"""Splits of images that are already in memory."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from associative_transformer.data import Split


class Images:
    """A loader that returns rows of a tensor of images."""

    device = torch.device("cpu")

    def __init__(self, images: Tensor) -> None:
        self.images = images

    def load(self, rows: Tensor, seed: np.random.SeedSequence | None) -> Iterator[Tensor]:
        return (self.images[batch] for batch in rows)


def make_split(images: Tensor, question_dim: int = 0) -> Split:
    """Return a split with random labels from three classes, and questions if they have a width."""
    questions = torch.randn(len(images), question_dim) if question_dim else None
    rows = torch.arange(len(images))
    return Split(torch.randint(3, rows.shape), rows, Images(images), questions)
