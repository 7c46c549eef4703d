"""Look at the images of a data set: their sizes, pixels, copies and damage.

Dims     N images   F bytes of facts
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from associative_transformer.data.batches import DataSet
from associative_transformer.data.copies import SplitDigests, count_copies
from associative_transformer.data.image_table import SKIP, ImageTable, check_labels
from associative_transformer.data.loaders import DECODE_CHUNK, read_batches
from associative_transformer.data.stored import StoredImages, open_data
from associative_transformer.data.summary import (
    LONG,
    Contents,
    DataSummary,
    Sizes,
    SplitSummary,
    Spread,
    Unreadable,
)
from associative_transformer.decoding import UnreadableImage, open_image, read_header
from associative_transformer.interface import UserError

FACTS = np.dtype(
    [
        ("width", "i4"),
        ("height", "i4"),
        ("mode", "S32"),
        ("format", "S8"),
        ("is_animated", "?"),
        ("is_constant", "?"),
        ("mean", "f8", 3),
        ("square", "f8", 3),  # mean of the squared pixels
        ("digest", "V16"),
    ]
)
"""What is kept of each image; workers send it as bytes."""
MODES = {
    "1": "black and white",
    "L": "grayscale",
    "LA": "grayscale with transparency",
    "P": "palette",
    "PA": "palette with transparency",
    "RGBA": "RGB with transparency",
    "I": "16-bit grayscale",
    "RGB;16": "16-bit RGB",
    "RGBA;16": "16-bit RGB with transparency",
}
"""What Pillow's modes are called here."""


@dataclass(frozen=True)
class FactReader:
    """Decodes the images of a table at their original size and keeps a few facts of each."""

    table: ImageTable

    def __call__(self, row: int, seed: int | None = None) -> UInt8[Tensor, "1 1 F"]:
        """Return the facts of an image as bytes; raise UnreadableImage if there are none."""
        source, name = self.table.stored(row)
        try:
            header = read_header(source)
            image = open_image(source, "RGB", name)
        except UnreadableImage as error:
            raise UnreadableImage(name, error.reason, SKIP) from error
        counts = np.array(image.histogram(), np.float64).reshape(3, 256)
        counts /= image.width * image.height
        levels = np.arange(256) / 255
        digest = hashlib.blake2b(f"{image.width}x{image.height}".encode(), digest_size=16)
        digest.update(image.tobytes())
        facts = np.zeros(1, FACTS)
        facts["width"], facts["height"] = image.size
        facts["mode"], facts["format"] = header.mode.encode(), header.format.encode()
        facts["is_animated"], facts["is_constant"] = header.is_animated, counts.max(1).min() == 1
        facts["mean"], facts["square"] = counts @ levels, counts @ levels**2
        facts["digest"] = np.void(digest.digest())
        return torch.from_numpy(facts.view(np.uint8))[None, None]


class _Seen(NamedTuple):
    """The readable images of a split, and the errors about the others."""

    table: ImageTable
    facts: np.ndarray
    rows: list[int]
    errors: list[UnreadableImage]

    @property
    def labels(self) -> Int[Tensor, " N"]:
        return self.table.labels[self.rows]


def inspect_data(
    config: StoredImages, num_workers: int, on_progress: Callable[[int, int], object] | None = None
) -> DataSummary:
    """Decode all images once and return what the data set contains.

    `on_progress` is called with the number of decoded images and of all. Raises UserError if
    there is no data set.
    """
    opened = open_data(config)
    train, validation, test = opened.tables
    tables = {"training": train, "validation": validation, "test": test}
    existing = {name: table for name, table in tables.items() if table is not None}
    total, done, seen = sum(map(len, existing.values())), 0, {}
    for name, table in existing.items():
        rows = list(range(len(table)))
        batches = [rows[i : i + DECODE_CHUNK] for i in range(0, len(rows), DECODE_CHUNK)]
        each = _Seen(table, np.zeros(0, FACTS), [], [])
        parts = []
        for batch, read in zip(
            batches, read_batches(FactReader(table), batches, num_workers), strict=True
        ):
            readable = [row for row, error in zip(batch, read.errors, strict=True) if not error]
            each.rows.extend(readable)
            each.errors.extend(error for error in read.errors if error)
            if readable:
                parts.append(read.images.numpy().reshape(-1).view(FACTS))
            done += len(batch)
            if on_progress:
                on_progress(done, total)
        seen[name] = each._replace(facts=np.concatenate([each.facts, *parts]))
    facts = np.concatenate([each.facts for each in seen.values()])
    return DataSummary(
        name=Path(config.source).absolute().name if config.source else config.name,
        layout=opened.layout,
        splits=tuple(
            SplitSummary(name, count_classes(train.class_names, each.labels))
            for name, each in seen.items()
        ),
        sizes=_sizes(np.stack([facts["width"], facts["height"]], axis=1)),
        is_divided=opened.is_divided,
        contents=_contents(seen, facts, config.source),
        problem=_find_problem(seen),
    )


def summarize_loaded(name: str, data: DataSet) -> DataSummary:
    """Return what is known about loaded images without decoding any: splits, classes and sizes."""
    splits = {"training": data.train, "validation": data.validation, "test": data.test}
    existing = {key: split for key, split in splits.items() if split is not None}
    sizes = [split.image_sizes() for split in existing.values() if split.image_sizes]
    return DataSummary(
        name=name,
        layout="",
        splits=tuple(
            SplitSummary(key, count_classes(data.class_names, split.labels))
            for key, split in existing.items()
        ),
        sizes=_sizes(np.concatenate(sizes)) if sizes else None,
    )


def count_classes(names: Sequence[str], labels: Int[Tensor, " N"]) -> dict[str, int]:
    """Return the number of images of each class."""
    counts = torch.bincount(labels, minlength=len(names)).tolist()
    return dict(zip(names, counts, strict=True))


def _sizes(sizes: Int[np.ndarray, "N 2"]) -> Sizes | None:
    if not len(sizes):
        return None
    return Sizes(
        _spread(sizes[:, 0]),
        _spread(sizes[:, 1]),
        _spread(sizes.max(axis=1) / sizes.min(axis=1)),
    )


def _spread(values: Float[np.ndarray, " N"] | Int[np.ndarray, " N"]) -> Spread:
    return Spread(float(values.min()), float(np.median(values)), float(values.max()))


def _find_problem(seen: dict[str, _Seen]) -> str | None:
    train = seen["training"]
    try:
        for name, other in seen.items():
            if name != "training":
                check_labels(train.table, other.table, train.labels, other.labels)
    except UserError as error:
        return str(error)
    return None


def _contents(seen: dict[str, _Seen], facts: np.ndarray, source: str | None) -> Contents:
    train = seen["training"].facts
    mean = train["mean"].mean(axis=0) if len(train) else np.zeros(3)
    square = train["square"].mean(axis=0) if len(train) else np.zeros(3)
    std = np.sqrt(np.maximum(square - mean**2, 0))
    short = np.minimum(facts["width"], facts["height"])
    modes = Counter(_name_mode(mode.decode()) for mode in facts["mode"].tolist())
    copies = count_copies(
        {
            name: SplitDigests(each.table, each.rows, each.labels, each.facts["digest"].tolist())
            for name, each in seen.items()
        },
        lambda name: _shorten(name, source),
    )
    return Contents(
        modes=dict(modes.most_common()),
        formats=dict(Counter(name.decode() for name in facts["format"].tolist()).most_common()),
        num_animated=int(facts["is_animated"].sum()),
        num_constant=int(facts["is_constant"].sum()),
        num_long=int((np.maximum(facts["width"], facts["height"]) > LONG * short).sum()),
        mean=tuple(mean.round(4).tolist()),
        std=tuple(std.round(4).tolist()),
        unreadable=tuple(
            Unreadable(_shorten(error.name, source), error.reason)
            for each in seen.values()
            for error in each.errors
        ),
        repeated=copies.repeated,
        shared=copies.shared,
        contradictory=copies.contradictory,
    )


def _name_mode(mode: str) -> str:
    """Return what a mode is called, such as palette with transparency."""
    base, _, rest = mode.partition(" with ")
    name = "16-bit grayscale" if base.startswith("I;16") else MODES.get(base, base)
    return f"{name} with {rest}" if rest and rest not in name else name


def _shorten(name: str, source: str | None) -> str:
    """Return the path of an image relative to the data folder, if it is a path."""
    folder = Path(source or "").expanduser()
    folder = folder.parent if folder.is_file() else folder
    return str(Path(name).relative_to(folder)) if source and name.startswith(str(folder)) else name
