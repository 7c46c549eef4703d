"""Image classification data sets from the Hugging Face hub or a local folder."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from PIL import Image

from associative_transformer.data.augment import Preparation
from associative_transformer.data.batches import DataSet, HeldOut, Split
from associative_transformer.data.config import DataSetConfig, InputSize, check_settings
from associative_transformer.data.image_table import (
    Column,
    ImageReader,
    ImageTable,
    check_labels,
    open_table,
)
from associative_transformer.data.loaders import ResidentLoader, StreamingLoader, read_once
from associative_transformer.data.sources import open_hub_data_set, open_image_folder
from associative_transformer.interface import UserError

if TYPE_CHECKING:
    import datasets


class HubDataSet(NamedTuple):
    """A data set on the hub that has a short name, and which of its columns to use."""

    hub_id: str
    image: str
    label: str


HUB_DATA_SETS = {
    "cifar10": HubDataSet("uoft-cs/cifar10", "img", "label"),
    "cifar100": HubDataSet("uoft-cs/cifar100", "img", "fine_label"),
    "pets": HubDataSet("timm/oxford-iiit-pet", "image", "label"),
    "imagenet100": HubDataSet("clane9/imagenet-100", "image", "label"),
}
TEST_SPLITS = ("test", "validation", "valid", "val")  # the first that exists is the test set


@dataclass(frozen=True)
class ImagesConfig(DataSetConfig):
    """Labeled images from the Hugging Face hub or a local folder."""

    name: str
    """cifar10, cifar100, pets, imagenet100 or the id of another data set on the hub."""
    kind: Literal["images"] = "images"
    """Name of this kind of data set in a saved experiment."""
    source: str | None = None
    """Folder to use instead of the hub: parquet files, or train/CLASS/ and test/CLASS/ folders."""
    image_column: str | None = None
    """Image column to use, if there are several."""
    label_column: str | None = None
    """Label column to use, if there are several."""
    image_size: int = 32
    """Height and width in pixels: the shorter side is resized, the longer one center-cropped."""
    augment: Literal["none", "crop", "resized_crop"] = "crop"
    """Random crops in training, with flips; "resized_crop" decodes the images in every epoch."""
    crop_padding: int = 4
    """Black pixels that "crop" adds to each side before cropping."""
    mean: tuple[float, float, float] = (0.4914, 0.4822, 0.4465)
    """Mean subtracted from each channel, after scaling the pixels to [0, 1]."""
    std: tuple[float, float, float] = (0.2023, 0.1994, 0.2010)
    """Standard deviation by which each channel is then divided."""
    val_fraction: float = 0.0
    """Fraction of the training images set aside for validation."""
    limit: int | None = None
    """Use at most this many training and this many test images, balanced by class; None: all."""
    memory_budget: float = 4.0
    """Keep decoded images on the training device if all of them fit in this many GiB."""
    num_workers: int = 2
    """Number of worker processes that decode images."""
    on_error: Literal["stop", "skip"] = "stop"
    """What to do about unreadable images; "skip" reads every image once at the start."""

    def __post_init__(self) -> None:
        check_settings(self, "image_size")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit must be at least 1, got {self.limit}")
        if not all(map(math.isfinite, self.mean)):
            raise ValueError(f"mean must be finite, got {self.mean}")
        if not all(0 < value < math.inf for value in self.std):
            raise ValueError(f"std must be above 0 and finite, got {self.std}")
        settings = (self.crop_padding, self.memory_budget, self.num_workers)
        if not all(setting >= 0 for setting in settings):
            raise ValueError(
                f"crop_padding, memory_budget, num_workers must not be negative, got {settings}"
            )

    @property
    def hub_id(self) -> str:
        """The id on the hub, even if `name` is a short name."""
        return HUB_DATA_SETS[self.name].hub_id if self.name in HUB_DATA_SETS else self.name

    @property
    def display_name(self) -> str:
        """The short name or the id on the hub."""
        return self.name

    @property
    def input_size(self) -> InputSize:
        """Square RGB images and no questions."""
        return InputSize(self.image_size, 3, question_dim=0)

    @property
    def is_generated(self) -> bool:
        """False: the images are read from files."""
        return False

    @classmethod
    def examples(cls) -> "dict[str, ImagesConfig]":
        """Return CIFAR-10 and CIFAR-100."""
        return {name: cls(name) for name in ("cifar10", "cifar100")}

    def load(self, device: torch.device) -> DataSet:
        """Open all splits; decode the images now if they fit in the memory budget."""
        train_table, test_table = _open_tables(self)
        fits = _fits(self, len(train_table) + len(test_table))
        train = _split(self, train_table, device, fits and self.augment != "resized_crop")
        test = _split(self, test_table, device, fits)
        num_skipped = len(train_table) + len(test_table) - len(train) - len(test)
        train, validation = train.split_validation(self.val_fraction)
        # checked again: skipped and validation images are now missing from training
        check_labels(train_table, test_table, train.labels, test.labels)
        return DataSet(train, validation, test, train_table.class_names, num_skipped)

    def load_test(self, device: torch.device) -> HeldOut:
        """Open only the test split, without decoding any training images."""
        table = _open_tables(self).test
        test = _split(self, table, device, _fits(self, len(table)))
        return HeldOut(test, table.class_names, len(table) - len(test))

    def shortened(self, num_images: int) -> "ImagesConfig":
        """Return the same data set limited to `num_images` training and test images each."""
        return replace(self, limit=num_images)

    def with_storage(
        self,
        source: str | None = None,
        num_workers: int | None = None,
        memory_budget: float | None = None,
    ) -> "ImagesConfig":
        """Return the same data set with other storage settings; None keeps the current value."""
        return replace(
            self,
            source=self.source if source is None else source,
            num_workers=self.num_workers if num_workers is None else num_workers,
            memory_budget=self.memory_budget if memory_budget is None else memory_budget,
        )


class ImageTables(NamedTuple):
    """Both splits, undecoded."""

    train: ImageTable
    test: ImageTable


def _open_tables(config: ImagesConfig) -> ImageTables:
    if config.source is None:
        splits = open_hub_data_set(config.hub_id)
    else:
        splits = open_image_folder(Path(config.source).expanduser())
    tables = _find_splits(splits, config)
    if config.limit is None:
        return tables
    return ImageTables(*(table.limited(config.limit) for table in tables))


def _find_splits(splits: "Mapping[str, datasets.Dataset]", config: ImagesConfig) -> ImageTables:
    """Return the training and test images; raise UserError if something is missing."""
    name = config.source or config.name
    test = next((split for split in TEST_SPLITS if split in splits), None)
    if "train" not in splits or test is None:
        missing = "training" if test else "test"
        raise UserError(
            f"{name} has no {missing} split, only {', '.join(splits)}: "
            f"add files or a folder with {missing.removesuffix('ing')} in the name"
        )
    known = HUB_DATA_SETS.get(config.name)
    columns = (
        Column(config.image_column, known and known.image),
        Column(config.label_column, known and known.label),
    )
    tables = ImageTables(
        open_table(splits["train"], f"the train split of {name}", *columns),
        open_table(splits[test], f"the {test} split of {name}", *columns),
    )
    if tables.train.class_names != tables.test.class_names:
        raise UserError(
            f"the train and {test} splits of {name} name their classes differently: "
            "save both with the same ClassLabel names"
        )
    check_labels(*tables, tables.train.labels, tables.test.labels)
    return tables


def _fits(config: ImagesConfig, num_images: int) -> bool:
    return num_images * 3 * config.image_size**2 <= config.memory_budget * 2**30


def _split(
    config: ImagesConfig, table: ImageTable, device: torch.device, is_resident: bool
) -> Split:
    """Decode the images now if they stay in memory; otherwise workers decode them later."""
    padding = {"none": None, "crop": config.crop_padding, "resized_crop": 0}[config.augment]
    preparation = Preparation(config.mean, config.std, padding, device)
    crop = _random_crop(config.image_size) if config.augment == "resized_crop" else None
    read = ImageReader(table, config.image_size, crop)
    rows = torch.arange(len(table))
    size = (len(table), 3, config.image_size, config.image_size)
    images = torch.zeros(size, dtype=torch.uint8) if is_resident else None
    if is_resident or config.on_error == "skip":
        rows = read_once(read, len(table), config.num_workers, config.on_error, images)
    loader = (
        StreamingLoader(read, len(table), config.num_workers, preparation)
        if images is None
        else ResidentLoader(images, preparation)
    )
    return Split(table.labels[rows], rows, loader)


def _random_crop(image_size: int) -> Callable[[Image.Image], Image.Image]:
    from torchvision.transforms import InterpolationMode, v2

    return v2.RandomResizedCrop(image_size, interpolation=InterpolationMode.BICUBIC)
