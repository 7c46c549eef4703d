"""Image classification sets: their configuration, their columns and the decoding of an image.

Dims     N images   C channels   S side of the square image
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

import datasets
import numpy as np
import torch
from jaxtyping import Int, UInt8
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

from associative_transformer.data.augment import Preparation
from associative_transformer.data.batches import DataSet, HeldOut, Split
from associative_transformer.data.decoding import decode_image, open_image, to_tensor
from associative_transformer.data.loaders import ResidentLoader, StreamingLoader, read_once
from associative_transformer.data.sources import open_hub_data_set, open_image_folder
from associative_transformer.interface import UserError


class HubDataSet(NamedTuple):
    """A hub data set with a short name, and the columns to use where it has several."""

    hub_id: str
    image: str
    label: str


HUB_DATA_SETS = {
    "cifar10": HubDataSet("uoft-cs/cifar10", "img", "label"),
    "cifar100": HubDataSet("uoft-cs/cifar100", "img", "fine_label"),
    "pets": HubDataSet("timm/oxford-iiit-pet", "image", "label"),
    "imagenet100": HubDataSet("clane9/imagenet-100", "image", "label"),
}
LIMIT_SEED = 0  # which images a limit leaves belongs to the data set, so no run's seed changes it
TEST_SPLITS = ("test", "validation", "valid", "val")  # the first one found is the test set


@dataclass(frozen=True)
class ImagesConfig:
    """Images with a label, from the Hugging Face hub or a local folder."""

    name: str
    """cifar10, cifar100, pets, imagenet100 or the id of another data set on the hub."""
    kind: Literal["images"] = "images"
    """Tells the data sets apart in a saved experiment."""
    source: str | None = None
    """Local copy to use in place of the hub: a folder with parquet files, or with train/CLASS/ and
    test/CLASS/ folders."""
    image_column: str | None = None
    """Column of the images, where the set has several."""
    label_column: str | None = None
    """Column of the labels, where the set has several."""
    image_size: int = 32
    """Side in pixels: the shorter side is resized to it, the longer one cropped at the center."""
    augment: Literal["none", "crop", "resized_crop"] = "crop"
    """In training: crop after padding and flip, or crop at random place and size and flip (for
    large images; its training images are always decoded anew, whatever the memory budget)."""
    crop_padding: int = 4
    """Black pixels added on each side before "crop"."""
    mean: tuple[float, float, float] = (0.4914, 0.4822, 0.4465)
    """Subtracted from each channel, after scaling to [0, 1]."""
    std: tuple[float, float, float] = (0.2023, 0.1994, 0.2010)
    """Each channel is then divided by this."""
    val_fraction: float = 0.0
    """Share of the training images set aside for validation."""
    limit: int | None = None
    """Use this many training and as many test images, evenly from the classes; None: all."""
    memory_budget: float = 4.0
    """Sets up to this size, in GiB once decoded, are kept on the training device."""
    num_workers: int = 2
    """Processes that decode images."""
    on_error: Literal["stop", "skip"] = "stop"
    """What to do with an unreadable image; "skip" reads every image once at the start."""

    def __post_init__(self) -> None:
        if self.image_size < 1:
            raise ValueError(f"image_size must be at least 1, got {self.image_size}")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit must be at least 1, got {self.limit}")
        if not 0 <= self.val_fraction < 1:
            raise ValueError(f"val_fraction must lie in [0, 1), got {self.val_fraction}")
        if not all(map(math.isfinite, self.mean)):
            raise ValueError(f"mean must be finite, got {self.mean}")
        if not all(0 < value < math.inf for value in self.std):
            raise ValueError(f"std must be above 0, got {self.std}")
        limits = (self.crop_padding, self.memory_budget, self.num_workers)
        if not all(limit >= 0 for limit in limits):
            raise ValueError(
                f"crop_padding, memory_budget, num_workers must not be negative, got {limits}"
            )

    @property
    def hub_id(self) -> str:
        """The id that a short name stands for."""
        return HUB_DATA_SETS[self.name].hub_id if self.name in HUB_DATA_SETS else self.name


@dataclass(frozen=True, eq=False)
class ImageTable:
    """One split as it is stored: undecoded images and their labels."""

    name: str
    images: datasets.Dataset  # its only column holds {"bytes", "path"}
    labels: Int[Tensor, " N"]
    class_names: tuple[str, ...]
    image_size: int
    random_crop: Callable[[Image.Image], Image.Image] | None  # draws from torch's generator

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, row: int, seed: int | None = None) -> UInt8[Tensor, "3 S S"]:
        """Decode one image, randomly cropped if the split does that and there is a seed."""
        (stored,) = self.images[row].values()
        image = stored or {"bytes": None, "path": None}
        source = image["bytes"] or b""
        if image["bytes"] is None and image["path"]:
            source = Path(image["path"])
        name = f"in row {row} of {self.name}" if isinstance(source, bytes) else str(source)
        try:
            if seed is None or self.random_crop is None:
                return decode_image(source, self.image_size, name=name)
            opened = open_image(source, "RGB", name)
        except UserError as error:
            raise UserError(f"{error}, or pass --data.on_error skip") from error
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            return to_tensor(self.random_crop(opened))


class ImageSet(NamedTuple):
    """A data set as it is stored."""

    train: ImageTable
    test: ImageTable


def open_images(splits: Mapping[str, datasets.Dataset], config: ImagesConfig) -> ImageSet:
    """Find the training and the test images; raise a `UserError` that says what is missing."""
    where = config.source or config.name
    test = next((split for split in TEST_SPLITS if split in splits), None)
    if "train" not in splits or test is None:
        missing = "training" if test else "test"
        raise UserError(
            f"{where} has no {missing} split, only {', '.join(splits)}: "
            f"add files or a folder with {missing.removesuffix('ing')} in the name"
        )
    found = ImageSet(
        _table(splits["train"], config, f"the train split of {where}"),
        _table(splits[test], config, f"the {test} split of {where}"),
    )
    if found.train.class_names != found.test.class_names:
        raise UserError(
            f"the train and {test} splits of {where} name their classes differently: "
            "save both with the same ClassLabel names"
        )
    check_classes(found, found.train.labels, found.test.labels)
    return found if config.limit is None else ImageSet(*(_limit(t, config.limit) for t in found))


def check_classes(found: ImageSet, train: Int[Tensor, " N"], test: Int[Tensor, " M"]) -> None:
    """Raise a `UserError` if these labels leave nothing to learn, or something unlearnable."""
    for labels, table in ((train, found.train), (test, found.test)):
        if not len(labels):
            raise UserError(f"{table.name} is empty: add images to it")
    seen = set(train.tolist())
    names = found.train.class_names
    if len(seen) < 2:
        raise UserError(
            f"{found.train.name} has one class, {names[seen.pop()]}: add images of another"
        )
    unseen = [names[label] for label in sorted(set(test.tolist()) - seen)]
    if unseen:
        raise UserError(
            f"{found.test.name} has classes that training never sees, {', '.join(unseen)}: "
            "add training images of them or remove their test images"
        )


def _table(split: datasets.Dataset, config: ImagesConfig, name: str) -> ImageTable:
    known = HUB_DATA_SETS.get(config.name)
    image = _pick_column(split, datasets.Image, config.image_column, known and known.image, name)
    label = _pick_column(
        split, datasets.ClassLabel, config.label_column, known and known.label, name
    )
    class_names = tuple(split.features[label].names)
    labels = torch.tensor([-1 if y is None else y for y in split[label][:]], dtype=torch.int64)
    wrong = ((labels < 0) | (labels >= len(class_names))).nonzero()
    if len(wrong):
        row = int(wrong[0])
        raise UserError(
            f"row {row} of {name} has the label {split[label][row]}, outside "
            f"0 to {len(class_names) - 1}: remove it or use a copy of the data set with its labels"
        )
    undecoded = split.select_columns([image]).cast_column(image, datasets.Image(decode=False))
    crop = _random_crop(config.image_size) if config.augment == "resized_crop" else None
    return ImageTable(name, undecoded, labels, class_names, config.image_size, crop)


def _limit(table: ImageTable, limit: int) -> ImageTable:
    """Draw images, always the same: first one of each class, then a second of each, and so on."""
    if limit < len(table.class_names):
        raise UserError(
            f"data.limit {limit} leaves some of the {len(table.class_names)} classes of "
            f"{table.name} without an image: raise it"
        )
    order = np.random.default_rng(LIMIT_SEED).permutation(len(table))
    labels = table.labels.numpy()[order]
    by_class = np.argsort(labels, kind="stable")
    starts = np.searchsorted(labels[by_class], labels[by_class])
    turn = np.empty(len(table), np.int64)  # of each image among those of its class
    turn[by_class] = np.arange(len(table)) - starts
    rows = np.sort(order[np.argsort(turn, kind="stable")[:limit]])
    name = f"{table.name}, limited to {limit} images,"
    return replace(table, name=name, images=table.images.select(rows), labels=table.labels[rows])


def _pick_column(
    split: datasets.Dataset, kind: type, chosen: str | None, usual: str | None, name: str
) -> str:
    columns = [column for column, feature in split.features.items() if isinstance(feature, kind)]
    if chosen is not None or usual in columns:
        columns = [column for column in columns if column == (chosen or usual)]
    if len(columns) > 1:
        flag = "image_column" if kind is datasets.Image else "label_column"
        raise UserError(
            f"{name} has {len(columns)} columns of type {kind.__name__}, {', '.join(columns)}: "
            f"choose one with --data.{flag}"
        )
    if not columns:
        found = ", ".join(f"{column} ({type(f).__name__})" for column, f in split.features.items())
        wanted = f"column {chosen}" if chosen else "column"
        raise UserError(
            f"{name} has no {wanted} of type {kind.__name__}, only {found}: "
            "choose another or save the data set with that type"
        )
    return columns[0]


def _random_crop(image_size: int) -> Callable[[Image.Image], Image.Image]:
    return v2.RandomResizedCrop(image_size, interpolation=InterpolationMode.BICUBIC)


def load_images(config: ImagesConfig, device: torch.device) -> DataSet:
    found = _open_source(config)
    fits = _fits(config, sum(len(table) for table in found))
    train = _split(found.train, config, device, fits and config.augment != "resized_crop")
    test = _split(found.test, config, device, fits)
    num_skipped = sum(len(table) for table in found) - len(train) - len(test)
    train, validation = train.split_validation(config.val_fraction)
    check_classes(found, train.labels, test.labels)  # again: some may be skipped or carved out
    return DataSet(train, validation, test, found.train.class_names, num_skipped)


def _open_source(config: ImagesConfig) -> ImageSet:
    if config.source is None:
        return open_images(open_hub_data_set(config.hub_id), config)
    return open_images(open_image_folder(Path(config.source).expanduser()), config)


def _fits(config: ImagesConfig, num_images: int) -> bool:
    return num_images * 3 * config.image_size**2 <= config.memory_budget * 2**30


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


def load_test_images(config: ImagesConfig, device: torch.device) -> HeldOut:
    """Open the test split only, without decoding a training image."""
    found = _open_source(config)
    test = _split(found.test, config, device, _fits(config, len(found.test)))
    return HeldOut(test, found.test.class_names, len(found.test) - len(test))
