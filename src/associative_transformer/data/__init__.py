"""Data sets: what to load, and the training, validation and test split of each.

Dims     K kinds of questions   C channels   H height   W width
"""

from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from pydantic import Field
from torch import Tensor

from associative_transformer.data.augment import Preparation
from associative_transformer.data.batches import DataSet, HeldOut, Share, Split
from associative_transformer.data.decoding import decode_image
from associative_transformer.data.images import (
    HUB_DATA_SETS,
    ImagesConfig,
    load_images,
    load_test_images,
)
from associative_transformer.data.questions import QUESTION_DIM
from associative_transformer.data.sort_of_clevr import (
    PICTURE_SIZE,
    SortOfClevrConfig,
    load_questions,
    load_test_questions,
)
from associative_transformer.data.sources import SUFFIXES, list_files
from associative_transformer.data.triangle import (
    IMAGE_SIZE,
    TriangleConfig,
    load_test_triangles,
    load_triangles,
)

__all__ = [
    "HUB_DATA_SETS",
    "SUFFIXES",
    "DataConfig",
    "DataSet",
    "HeldOut",
    "ImagesConfig",
    "InputSize",
    "Share",
    "SortOfClevrConfig",
    "Split",
    "TriangleConfig",
    "decode_image",
    "input_size",
    "list_files",
    "load_data",
    "load_image",
    "load_test",
    "name_data",
    "name_items",
    "show_image",
]

AnyData = TriangleConfig | SortOfClevrConfig | ImagesConfig
DataConfig = Annotated[AnyData, Field(discriminator="kind")]


class InputSize(NamedTuple):
    """What a model has to take in."""

    image_size: int
    num_channels: int
    question_dim: int  # 0: there are no questions


def input_size(config: AnyData) -> InputSize:
    """Tell the size of the images and of the questions, without loading any."""
    if isinstance(config, TriangleConfig):
        return InputSize(IMAGE_SIZE, config.channels, question_dim=0)
    if isinstance(config, SortOfClevrConfig):
        return InputSize(PICTURE_SIZE, 3, QUESTION_DIM)
    return InputSize(config.image_size, 3, question_dim=0)


def name_data(config: AnyData) -> str:
    """Name a data set: as the hub does, or by its kind where it is generated."""
    return config.name if isinstance(config, ImagesConfig) else config.kind


def name_items(config: AnyData) -> str:
    """Say what is answered: images, or questions about them."""
    return "questions" if input_size(config).question_dim else "images"


def load_data(config: AnyData, device: torch.device) -> DataSet:
    """Generate or open a data set whose batches lie on `device`.

    Raises a `UserError` where the data set is missing or cannot be used.
    """
    if isinstance(config, TriangleConfig):
        return load_triangles(config, device)
    if isinstance(config, SortOfClevrConfig):
        return load_questions(config, device)
    return load_images(config, device)


def load_test(config: AnyData, device: torch.device) -> HeldOut:
    """Generate or open the test split only, without decoding a training image.

    Raises a `UserError` where the data set is missing or cannot be used.
    """
    if isinstance(config, TriangleConfig):
        return load_test_triangles(config, device)
    if isinstance(config, SortOfClevrConfig):
        return load_test_questions(config, device)
    return load_test_images(config, device)


def load_image(path: Path, config: AnyData) -> Float[Tensor, "C H W"]:
    """Read one image as a model trained on this data set expects it."""
    size = input_size(config).image_size
    image = decode_image(path, size, "L" if isinstance(config, TriangleConfig) else "RGB")
    return Preparation(config.mean, config.std).normalize(image[None])[0]


def show_image(split: Split, item: int, config: AnyData) -> UInt8[np.ndarray, "C H W"]:
    """Give the image of an item for the eye, as it was before normalization."""
    batch = next(iter(split.take(torch.tensor([item])).eval_batches(1)))
    mean, std = (torch.tensor(values)[:, None, None] for values in (config.mean, config.std))
    pixels = batch.images[0].cpu() * std + mean
    return (255 * pixels).round().clamp(0, 255).byte().numpy()
