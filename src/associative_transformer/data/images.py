"""Image classification data sets from the Hugging Face Hub or a local folder."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import Annotated, Literal

import torch
import tyro
from PIL import Image

from associative_transformer.data.augment import RAW, UNCHANGED, Normalization, Preparation
from associative_transformer.data.augmentation import Augmentation, AugmentationConfig, Preset
from associative_transformer.data.batches import DataSet, HeldOut, Split
from associative_transformer.data.config import InputSize, check_settings
from associative_transformer.data.contents import measure, sample_sizes, warn_of_contents
from associative_transformer.data.image_table import (
    ImageReader,
    ImageTable,
    check_labels,
    name_untested,
)
from associative_transformer.data.known import find_difference
from associative_transformer.data.listing import name_skipped
from associative_transformer.data.loaders import ResidentLoader, StreamingLoader, read_once
from associative_transformer.data.mixing import Mixing
from associative_transformer.data.stored import (
    HUB_DATA_SETS,
    ImageTables,
    StoredImages,
    open_tables,
    open_test_table,
)
from associative_transformer.decoding import UnreadableImage
from associative_transformer.interface import ADDED_LATER, UserError


@dataclass(frozen=True)
class ImagesConfig(StoredImages):
    """Labeled images from the Hugging Face Hub or a local folder."""

    image_size: int = 32
    """Height and width in pixels: the shorter side is resized, the longer one center-cropped."""
    augment: Preset = "crop"
    """Random crops in training, with flips; "resized_crop" decodes the images in every epoch, and
    "strong" adds TrivialAugment, erased rectangles, MixUp and CutMix."""
    augmentation: AugmentationConfig = field(default=AugmentationConfig(), metadata=ADDED_LATER)
    """Single settings, which replace those of `augment`."""
    sampling: Literal["shuffle", "balanced"] = field(default="shuffle", metadata=ADDED_LATER)
    """balanced: draw each class equally often in training, with replacement."""
    crop_padding: int = 4
    """Black pixels that "crop" adds to each side before cropping."""
    mean: tuple[float, float, float] | Literal["auto"] = (0.4914, 0.4822, 0.4465)
    """Mean subtracted from each channel, after scaling the pixels to [0, 1]; auto: compute mean
    and std from the training images, the default for other images than those of `name`."""
    std: tuple[float, float, float] = (0.2023, 0.1994, 0.2010)
    """Standard deviation by which each channel is then divided."""
    measured: Annotated[Normalization | None, tyro.conf.Suppress] = field(
        default=None, metadata=ADDED_LATER
    )
    """Computed mean and std, which replace the others; set when a run starts."""
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
        if self.mean != "auto" and not all(map(math.isfinite, self.mean)):
            raise ValueError(f"mean must be finite, got {self.mean}")
        if not all(0 < value < math.inf for value in self.std):
            raise ValueError(f"std must be above 0 and finite, got {self.std}")
        settings = (self.crop_padding, self.memory_budget, self.num_workers)
        if not all(setting >= 0 for setting in settings):
            raise ValueError(
                f"crop_padding, memory_budget, num_workers must not be negative, got {settings}"
            )
        _ = self.resolved_augmentation  # raises an error about settings without effect

    @property
    def resolved_augmentation(self) -> Augmentation:
        """The preset `augment` with the settings of `augmentation`."""
        return self.augmentation.resolve(self.augment, self.crop_padding, self.image_size)

    @property
    def input_size(self) -> InputSize:
        """Square RGB images and no questions."""
        return InputSize(self.image_size, 3, question_dim=0)

    @property
    def normalization(self) -> tuple[Sequence[float], Sequence[float]]:
        """The computed mean and std, or the given ones; "auto" has no effect until computed."""
        if self.measured is None and self.mean != "auto":
            return self.mean, self.std
        used = self.measured or RAW
        return used.mean, used.std

    @property
    def is_generated(self) -> bool:
        """False: the images are read from files."""
        return False

    def load_for_new_run(self, device: torch.device) -> DataSet:
        """Open all splits; compute mean and std if the default ones are for other images."""
        default = ImagesConfig(self.name)
        is_chosen = self.measured is not None or (self.mean, self.std) != (
            default.mean,
            default.std,
        )
        is_known = self.name in HUB_DATA_SETS
        tables = open_tables(self)
        if is_chosen or (is_known and self.source is None):
            return self._load(tables, device)
        num_train = len(tables.train) + len(tables.validation or ())
        names, is_subset = tables.train.class_names, self.splits.classes is not None
        sizes = (len(tables.test), num_train)
        difference = find_difference(self.name, names, *sizes, is_subset=is_subset)
        config = self if is_known and difference is None else replace(self, mean="auto")
        return config._load(tables, device)

    def as_loaded(self, data: DataSet) -> "ImagesConfig":
        """Return the same configuration with the normalization that was computed."""
        return self if data.normalization is None else replace(self, measured=data.normalization)

    @classmethod
    def examples(cls) -> "dict[str, ImagesConfig]":
        """Return CIFAR-10 and CIFAR-100."""
        return {name: cls(name) for name in ("cifar10", "cifar100")}

    def load(self, device: torch.device) -> DataSet:
        """Open all splits; decode the images now if they fit in the memory budget."""
        return self._load(open_tables(self), device)

    def _load(self, tables: ImageTables, device: torch.device) -> DataSet:
        tables = tables.limited(self.limit, self.splits.train_limit)
        if tables.validation is not None and self.val_fraction:
            raise UserError(
                f"{self.source or self.name} has a validation split: omit --data.val-fraction, or "
                "pass --data.validation random to take training images instead"
            )
        num_images = sum(len(table) for table in tables if table is not None)
        fits = _fits(self, num_images)
        augmentation = self.resolved_augmentation
        is_resident = fits and augmentation.scale is None
        train, skipped = _split(self, tables.train, device, is_resident, augmentation)
        test, skipped_in_test = _split(self, tables.test, device, fits)
        skipped += skipped_in_test
        if tables.validation is None:
            is_stratified = self.splits.validation == "auto"
            train, validation = train.split_validation(self.val_fraction, is_stratified)
        else:
            validation, skipped_in_validation = _split(self, tables.validation, device, fits)
            skipped += skipped_in_validation
        name_skipped(skipped)
        # checked again: skipped and validation images are now missing from training
        check_labels(tables.train, tables.test, train.labels, test.labels)
        if tables.validation is not None and validation is not None:
            check_labels(tables.train, tables.validation, train.labels, validation.labels)
        name_untested(tables.test, test.labels)
        warn_of_contents(train, tables.train.name)
        mixing = Mixing.of(augmentation, len(tables.train.class_names))
        train = replace(train, mixing=mixing, is_balanced=self.sampling == "balanced")
        data = DataSet(train, validation, test, tables.train.class_names, len(skipped))
        data = data._replace(skipped=skipped, normalization=self.measured)
        if self.mean != "auto" or self.measured is not None:
            return data
        return _normalized(data, measure(train))

    def load_test(self, device: torch.device) -> HeldOut:
        """Open only the test split, for which the training images need not be there."""
        table = open_test_table(self, self.limit)
        test, skipped = _split(self, table, device, _fits(self, len(table)))
        name_skipped(skipped)
        return HeldOut(test, table.class_names, len(skipped), skipped=skipped)

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
        splits = self.splits if source is None else replace(self.splits, revision=None)
        return replace(
            self,
            splits=splits,
            source=self.source if source is None else source,
            num_workers=self.num_workers if num_workers is None else num_workers,
            memory_budget=self.memory_budget if memory_budget is None else memory_budget,
        )


def _fits(config: ImagesConfig, num_images: int) -> bool:
    return num_images * 3 * config.image_size**2 <= config.memory_budget * 2**30


def _split(
    config: ImagesConfig,
    table: ImageTable,
    device: torch.device,
    is_resident: bool,
    augmentation: Augmentation = UNCHANGED,
) -> tuple[Split, tuple[UnreadableImage, ...]]:
    """Decode the images now if they stay in memory; otherwise workers decode them later.

    Returns the errors about images that were left out, too.
    """
    preparation = Preparation(*config.normalization, augmentation, device)
    scale = augmentation.scale
    crop = None if scale is None else _random_crop(config.image_size, scale)
    read = ImageReader(table, config.image_size, crop)
    rows = torch.arange(len(table))
    skipped: tuple[UnreadableImage, ...] = ()
    size = (len(table), 3, config.image_size, config.image_size)
    images = torch.zeros(size, dtype=torch.uint8) if is_resident else None
    if is_resident or config.on_error == "skip":
        rows, skipped = read_once(read, len(table), config.num_workers, config.on_error, images)
    loader = (
        StreamingLoader(read, len(table), config.num_workers, preparation)
        if images is None
        else ResidentLoader(images, preparation)
    )
    digests, sizes = cache(table.image_digests), cache(partial(sample_sizes, table))
    split = Split(table.labels[rows], rows, loader, image_digests=digests, image_sizes=sizes)
    return split, skipped


def _normalized(data: DataSet, normalization: Normalization) -> DataSet:
    """Set the normalization that was computed from the training images."""
    for split in (data.train, data.validation, data.test):
        loader = None if split is None else split.loader
        if isinstance(loader, ResidentLoader | StreamingLoader):
            augmentation = loader.preparation.augmentation
            loader.preparation = Preparation(
                normalization.mean, normalization.std, augmentation, loader.device
            )
    return data._replace(normalization=normalization)


def _random_crop(
    image_size: int, scale: tuple[float, float]
) -> Callable[[Image.Image], Image.Image]:
    from torchvision.transforms import InterpolationMode, v2

    return v2.RandomResizedCrop(image_size, scale, interpolation=InterpolationMode.BICUBIC)
