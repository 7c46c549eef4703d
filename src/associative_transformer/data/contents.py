"""What the decoded training images contain: their mean, and signs that they cannot be learned.

Dims     M images   C channels   H height   W width
"""

from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from associative_transformer.data.augment import Normalization
from associative_transformer.data.batches import Split
from associative_transformer.data.image_table import ImageTable
from associative_transformer.data.listing import print_once
from associative_transformer.data.loaders import ResidentLoader, StreamingLoader
from associative_transformer.decoding import UnreadableImage, read_header

SAMPLE = 10_000  # images in memory that are compared with each other
SIZES = 200  # images whose size is read when a run starts
STREAMED_SAMPLE = 1_000  # images that are decoded to be compared, or to compute the mean
FAULTY = 0.1  # share of the images


class _Decoded(NamedTuple):
    items: Int[Tensor, " M"]
    images: UInt8[Tensor, "M C H W"]


def measure(split: Split) -> Normalization:
    """Return the mean and standard deviation of the pixels of a split.

    It is computed from all images in memory, or from 1,000 images at equal distances if they are
    streamed. A channel of one value gets a standard deviation of 1.
    """
    counts = np.zeros((3, 256), np.int64)  # exact, whatever the order of the images
    for _, images in _decode(split, len(split)):
        for channel, values in zip(counts, images.movedim(1, 0), strict=True):
            channel += np.bincount(values.flatten().numpy(), minlength=256)
    levels, total = np.arange(256) / 255, counts.sum(axis=1)
    mean = counts @ levels / total
    std = np.sqrt(counts @ levels**2 / total - mean**2)
    mean, std = mean.round(4).tolist(), np.where(std > 1e-4, std.round(4), 1.0).tolist()
    return Normalization((mean[0], mean[1], mean[2]), (std[0], std[1], std[2]))


def warn_of_contents(split: Split, name: str) -> None:
    """Print a warning if a tenth of the images of a split cannot be learned from.

    These are images of one color, and images of different classes with the same pixels. They are
    looked for among 10,000 images at equal distances, or 1,000 if the images are streamed.
    """
    labels_of: defaultdict[int, list[int]] = defaultdict(list)
    num_images = num_constant = 0
    for items, images in _decode(split, SAMPLE):
        num_images += len(images)
        is_constant = (images == images[..., :1, :1]).flatten(1).all(dim=1)
        num_constant += int(is_constant.sum())
        for image, label in zip(images.numpy(), split.labels[items].tolist(), strict=True):
            labels_of[hash(image.tobytes())].append(label)
    num_same = sum(len(labels) for labels in labels_of.values() if len(set(labels)) > 1)
    for count, fault in (
        (num_constant, "decode to a single color"),
        (num_same, "decode to the same pixels as an image of another class"),
    ):
        if num_images and count >= FAULTY * num_images:
            print_once(
                f"{count:,} of {num_images:,} images of {name} {fault}, so they cannot be learned "
                "from: look at them, and convert or remove them"
            )


def sample_sizes(table: ImageTable) -> Int[np.ndarray, "N 2"]:
    """Return width and height of up to 200 images at equal distances, without decoding them."""
    number, sizes = min(SIZES, len(table)), []
    for row in (place * len(table) // number for place in range(number)):
        with suppress(UnreadableImage):
            sizes.append(read_header(table.stored(row)[0]).size)
    return np.array(sizes, np.int64).reshape(-1, 2)


def _decode(split: Split, at_most: int) -> Iterator[_Decoded]:
    """Decode items of a split at equal distances; an unreadable image is left out here."""
    loader: Any = split.loader
    if isinstance(loader, StreamingLoader):
        at_most = STREAMED_SAMPLE
    elif not isinstance(loader, ResidentLoader):
        return
    number = min(at_most, len(split))
    items = torch.arange(number) * len(split) // max(number, 1)
    for images, is_readable, chunk in loader.decode(split.rows[items]):
        yield _Decoded(items[chunk][is_readable], images)
