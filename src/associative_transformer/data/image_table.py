"""A split of an image data set before decoding: its columns, labels and stored images.

Dims     N images   C channels   S side of the square image
"""

import hashlib
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Int, UInt8
from PIL import Image
from torch import Tensor

from associative_transformer.data.batches import stratified
from associative_transformer.data.columns import (
    Column,
    find_images,
    list_classes,
    read_labels,
)
from associative_transformer.data.listing import print_once
from associative_transformer.data.parquet import find_classes
from associative_transformer.decoding import (
    UnreadableImage,
    decode_image,
    open_image,
    to_tensor,
)
from associative_transformer.interface import UserError

if TYPE_CHECKING:
    import datasets
    import pyarrow as pa

WHOLE = 4096  # bytes of an image that its digest covers completely
PIECE, NUM_PIECES = 1024, 4  # of a larger image it covers these, from the first to the last byte
ROWS_AT_ONCE = 1000
SKIP = "--data.on-error skip"
LIMIT_SEED = 0  # the limit is part of the data set, so the seed of a run does not change it


@dataclass(frozen=True, eq=False)
class ImageTable:
    """Undecoded images and their labels."""

    name: str
    images: "datasets.Dataset"  # its only column contains {"bytes", "path"}
    labels: Int[Tensor, " N"]
    class_names: tuple[str, ...]
    roots: tuple[Path, ...] | None = None  # where images may lie outside the table; None: anywhere

    def __len__(self) -> int:
        return len(self.labels)

    def limited(self, limit: int, flag: str = "--data.limit") -> "ImageTable":
        """Return the same `limit` images every time, evenly distributed over the classes.

        One image of each class is selected, then a second one of each, and so on. Raises UserError
        that names the `flag` if `limit` is less than the number of classes.
        """
        if limit < len(self.class_names):
            raise UserError(
                f"{flag} {limit} leaves some of the {len(self.class_names)} classes of "
                f"{self.name} without an image: raise it to {len(self.class_names)} or more"
            )
        order = np.random.default_rng(LIMIT_SEED).permutation(len(self))
        labels = self.labels.numpy()[order]
        by_class = np.argsort(labels, kind="stable")
        starts = np.searchsorted(labels[by_class], labels[by_class])
        index_in_class = np.empty(len(self), np.int64)
        index_in_class[by_class] = np.arange(len(self)) - starts
        rows = np.sort(order[np.argsort(index_in_class, kind="stable")[:limit]])
        name = f"{self.name}, limited to {limit} images,"
        return replace(self, name=name, images=self.images.select(rows), labels=self.labels[rows])

    def divided(self, fraction: float, seed: int) -> "tuple[ImageTable, ImageTable]":
        """Return the same training and test images every time, chosen within each class.

        A class with two images or more is in both parts if there is room. Raises UserError if one
        of the parts would be empty.
        """
        num_test = round(fraction * len(self))
        if not 0 < num_test < len(self):
            raise UserError(
                f"{self.name} has {len(self)} images, of which a test fraction of {fraction} "
                "leaves none for training or testing: add images or change --data.test-fraction"
            )
        order = np.random.default_rng(seed).permutation(len(self))
        is_test = torch.zeros(len(self), dtype=torch.bool)
        is_test[stratified(self.labels.numpy(), order, num_test)] = True
        train, test = (mask.nonzero()[:, 0] for mask in (~is_test, is_test))
        return self._take(train), self._take(test)

    def _take(self, rows: Int[Tensor, " M"]) -> "ImageTable":
        return replace(self, images=self.images.select(rows.numpy()), labels=self.labels[rows])

    def stored(self, row: int) -> tuple[bytes | Path, str]:
        """Return the bytes or the path of an image, and what to call it in a message.

        Raises UnreadableImage if its path may not be read.
        """
        (stored,) = self.images[row].values()
        image = stored or {"bytes": None, "path": None}
        name = f"in row {row} of {self.name}"
        if image["bytes"] is not None or not image["path"]:
            return image["bytes"] or b"", name
        try:
            path = self.locate(image["path"])
        except UserError as error:
            raise UnreadableImage(name, str(error), SKIP) from error
        return path, str(path)

    def with_only(self, classes: tuple[str, ...], needs_all: bool) -> "ImageTable":
        """Return the images of these classes, with labels in their order.

        Raises UserError if none of them exists or, with `needs_all`, if any is missing.
        """
        known = [name for name in classes if find_classes([name], self.class_names) != [-1]]
        index = find_classes(known, self.class_names)
        unknown = [name for name in classes if name not in known]
        if unknown and (needs_all or not known):
            raise UserError(
                f"{self.name} has no class {list_classes(unknown)}: pass names from "
                f"[{list_classes(self.class_names)}] to --data.classes"
            )
        new_labels = torch.full((len(self.class_names),), -1)
        new_labels[index] = torch.arange(len(index))
        labels = new_labels[self.labels]
        rows = (labels >= 0).nonzero()[:, 0]
        names = tuple(self.class_names[place] for place in index)
        images = self.images.select(rows.numpy())
        return replace(self, images=images, labels=labels[rows], class_names=names)

    def with_classes_of(self, train: "ImageTable") -> "ImageTable":
        """Return the same images with labels that index the classes of the training images.

        Classes are matched by name. Raises UserError if the training images lack one.
        """
        index = find_classes(self.class_names, train.class_names)
        unknown = [self.class_names[label] for label, place in enumerate(index) if place < 0]
        if unknown:
            ours, theirs = (list_classes(table.class_names) for table in (self, train))
            raise UserError(
                f"{self.name} has the classes [{ours}], but {train.name} has [{theirs}]: add "
                f"training images of {list_classes(unknown)}, or remove "
                f"{'that class' if len(unknown) == 1 else 'those classes'}"
            )
        labels = torch.tensor(index, dtype=torch.int64)[self.labels]
        return replace(self, labels=labels, class_names=train.class_names)

    def image_digests(self) -> list[bytes]:
        """Return a digest of each stored image: of its size and a sample of its bytes.

        The sample is the whole image if it has at most 4 KiB, and otherwise four pieces of 1 KiB
        at equal distances, from the first to the last byte. An image that cannot be read has the
        digest of an empty one.
        """
        digests = []
        table = self.images.with_format("arrow")
        for start in range(0, len(self), ROWS_AT_ONCE):
            column = table[start : start + ROWS_AT_ONCE].column(0).combine_chunks()
            pairs = zip(column.field("bytes"), column.field("path"), strict=True)
            for stored, path in pairs:
                if stored.is_valid or not path.is_valid:
                    digests.append(_digest_of_bytes(stored.as_buffer() or b""))
                else:
                    digests.append(self._digest_of_file(path.as_py()))
        return digests

    def _digest_of_file(self, path: str) -> bytes:
        try:
            with self.locate(path).open("rb") as file:

                def read(start: int, length: int) -> bytes:
                    file.seek(start)
                    return file.read(length)

                return _digest(file.seek(0, os.SEEK_END), read)
        except (OSError, ValueError, UserError):
            return _digest(0, lambda start, length: b"")

    def locate(self, path: str) -> Path:
        """Return the file of an image that is not in the table itself.

        Raises UserError if it is not a regular file in one of the folders that may contain it.
        """
        if self.roots is None:
            return Path(path)
        for root in self.roots:
            with suppress(OSError, ValueError, RuntimeError):  # too long, a null byte, a loop
                file = (root / path).resolve()
                if file.is_relative_to(root.resolve()) and file.is_file():
                    return file
        raise UserError(
            f"{self.name} refers to {path!r}, which is not a file inside the data set: store the "
            "bytes of its images instead, or copy the file there"
        )


def _digest_of_bytes(content: "bytes | pa.Buffer") -> bytes:
    view = memoryview(content)
    return _digest(len(view), lambda start, length: view[start : start + length])


def _digest(size: int, read: Callable[[int, int], "bytes | memoryview"]) -> bytes:
    digest = hashlib.blake2b(str(size).encode(), digest_size=16)
    if size <= WHOLE:
        digest.update(read(0, size))
    else:
        for piece in range(NUM_PIECES):
            digest.update(read(piece * (size - PIECE) // (NUM_PIECES - 1), PIECE))
    return digest.digest()


@dataclass(frozen=True)
class ImageReader:
    """Decodes the images of a table; each worker process gets a copy."""

    table: ImageTable
    image_size: int
    random_crop: Callable[[Image.Image], Image.Image] | None  # draws from torch's generator

    def __call__(self, row: int, seed: int | None = None) -> UInt8[Tensor, "3 S S"]:
        """Decode one image, cropped at random if there are both a random crop and a seed.

        Raises UserError if it cannot be read.
        """
        source, name = self.table.stored(row)
        try:
            if seed is None or self.random_crop is None:
                return decode_image(source, self.image_size, name=name)
            opened = open_image(source, "RGB", name)
        except UnreadableImage as error:
            raise UnreadableImage(name, error.reason, SKIP) from error
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            return to_tensor(self.random_crop(opened))


def open_table(
    split: "datasets.Dataset",
    name: str,
    image_column: Column,
    label_column: Column,
    roots: tuple[Path, ...] | None = None,
) -> ImageTable:
    """Find the images and labels of a split.

    Raises UserError if one of the columns cannot be found, and the errors of `read_labels`.
    """
    import datasets

    image = find_images(split, image_column, name)
    undecoded = split.select_columns([image]).cast_column(image, datasets.Image(decode=False))
    is_typed = isinstance(split.features[image], datasets.Image)
    rest = split if is_typed else split.remove_columns(image)
    class_names, labels = read_labels(rest, label_column, name)
    return ImageTable(name, undecoded, labels, class_names, roots)


def check_labels(
    train: ImageTable,
    test: ImageTable,
    train_labels: Int[Tensor, " N"],
    test_labels: Int[Tensor, " M"],
) -> None:
    """Raise UserError if these labels do not suffice to train and test a classifier."""
    for labels, table in ((train_labels, train), (test_labels, test)):
        if not len(labels):
            raise UserError(f"{table.name} is empty: add images to it")
    seen = set(train_labels.tolist())
    names = train.class_names
    if len(seen) < 2:
        raise UserError(
            f"{train.name} has only one class, {names[seen.pop()]}: add images of another class"
        )
    unseen = [names[label] for label in sorted(set(test_labels.tolist()) - seen)]
    if unseen:
        raise UserError(
            f"{test.name} has classes without training images ({list_classes(unseen)}): "
            "add training images for them or remove their test images"
        )


def name_untested(test: ImageTable, labels: Int[Tensor, " N"]) -> None:
    """Print the classes without test images, if there are any."""
    tested = set(labels.tolist())
    if names := [name for label, name in enumerate(test.class_names) if label not in tested]:
        print_once(f"{test.name} has no images of these classes: {list_classes(names)}")
