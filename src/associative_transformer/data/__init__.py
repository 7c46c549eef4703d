"""Data sets: what to load, and the training, validation and test split of each.

Dims     C channels   H height   W width
"""

from pathlib import Path
from typing import Annotated, NamedTuple

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from associative_transformer.data.augment import (
    Preparation,
    ResidentLoader,
    StreamingLoader,
    read_once,
)
from associative_transformer.data.batches import Split
from associative_transformer.data.images import (
    ImagesConfig,
    ImageTable,
    check_classes,
    decode_image,
    open_images,
)
from associative_transformer.data.sources import SUFFIXES, open_folder, open_hub
from associative_transformer.data.triangle import (
    CLASS_NAMES,
    IMAGE_SIZE,
    TEST,
    TRAIN,
    TriangleConfig,
    generate_triangles,
)

__all__ = [
    "IMAGE_SIZE",
    "SUFFIXES",
    "DataConfig",
    "DataSet",
    "ImagesConfig",
    "Split",
    "TriangleConfig",
    "decode_image",
    "load_data",
    "load_image",
]

DataConfig = Annotated[TriangleConfig | ImagesConfig, Field(discriminator="kind")]


class DataSet(NamedTuple):
    """The splits of a data set; model selection uses `validation`, never `test`."""

    train: Split
    validation: Split | None  # with a `val_fraction`
    test: Split
    class_names: tuple[str, ...]
    num_skipped: int  # unreadable images left out


def load_data(config: DataConfig, device: torch.device) -> DataSet:
    """Generate or open a data set whose batches lie on `device`.

    Raises a `UserError` where the data set is missing or cannot be used.
    """
    if isinstance(config, TriangleConfig):
        return _load_triangles(config, device)
    return _load_images(config, device)


def load_image(path: Path, config: DataConfig) -> Float[Tensor, "C H W"]:
    """Read one image as a model trained on this data set expects it."""
    if isinstance(config, TriangleConfig):
        image = decode_image(path, IMAGE_SIZE, "L")
    else:
        image = decode_image(path, config.image_size)
    return Preparation(config.mean, config.std).normalize(image[None])[0]


def _load_triangles(config: TriangleConfig, device: torch.device) -> DataSet:
    def generate(split: int, num_items: int) -> Split:
        images, labels, _ = generate_triangles(config, split, num_items)
        preparation = Preparation(config.mean, config.std, device=device)
        loader = ResidentLoader(torch.from_numpy(images)[:, None], preparation)
        return Split(torch.from_numpy(labels), torch.arange(num_items), loader)

    train, validation = generate(TRAIN, config.num_train).carve(config.val_fraction)
    return DataSet(train, validation, generate(TEST, config.num_test), CLASS_NAMES, num_skipped=0)


def _load_images(config: ImagesConfig, device: torch.device) -> DataSet:
    if config.source is None:
        splits = open_hub(config.hub_id)
    else:
        splits = open_folder(Path(config.source).expanduser())
    found = open_images(splits, config)
    num_bytes = sum(len(table) for table in found) * 3 * config.image_size**2
    fits = num_bytes <= config.memory_budget * 2**30
    train = _split(found.train, config, device, fits and config.augment != "resized_crop")
    test = _split(found.test, config, device, fits)
    num_skipped = sum(len(table) for table in found) - len(train) - len(test)
    if num_skipped:
        check_classes(found, train.labels, test.labels)
    train, validation = train.carve(config.val_fraction)
    return DataSet(train, validation, test, found.train.class_names, num_skipped)


def _split(
    table: ImageTable, config: ImagesConfig, device: torch.device, is_resident: bool
) -> Split:
    """Decode the images now, if they are to stay in memory, or leave that to the workers."""
    padding = {"none": None, "crop": config.crop_padding, "resized_crop": 0}[config.augment]
    preparation = Preparation(config.mean, config.std, padding, device)
    rows = torch.arange(len(table))
    size = (len(table), 3, config.image_size, config.image_size)
    images = torch.zeros(size, dtype=torch.uint8) if is_resident else None
    if is_resident or config.on_error == "skip":
        rows = read_once(table.read, len(table), config.num_workers, config.on_error, images)
    loader = (
        StreamingLoader(table.read, len(table), config.num_workers, preparation)
        if images is None
        else ResidentLoader(images, preparation)
    )
    return Split(table.labels[rows], rows, loader)
