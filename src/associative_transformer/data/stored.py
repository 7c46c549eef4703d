"""Labeled images as they are stored: which data set, and which of its splits and columns."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

import tyro

from associative_transformer.data.columns import Column, UnlabeledError
from associative_transformer.data.config import DataSetConfig
from associative_transformer.data.image_table import ImageTable, check_labels, open_table
from associative_transformer.data.listing import print_once
from associative_transformer.data.sources import (
    CLASS_FOLDERS,
    VALIDATION_SPLITS,
    SplitsConfig,
    hub_folders,
    open_hub_data_set,
    open_image_folder,
)
from associative_transformer.interface import ADDED_LATER, UserError

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


@dataclass(frozen=True)
class StoredImages(DataSetConfig):
    """Where labeled images are stored: on the Hugging Face Hub or in a local folder."""

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
    splits: Annotated[SplitsConfig, tyro.conf.arg(name="")] = field(
        default=SplitsConfig(), metadata=ADDED_LATER
    )
    """Which version, splits and classes of the data set to use."""

    @property
    def hub_id(self) -> str:
        """The id on the hub, even if `name` is a short name."""
        return HUB_DATA_SETS[self.name].hub_id if self.name in HUB_DATA_SETS else self.name

    @property
    def display_name(self) -> str:
        """The short name or the id on the hub."""
        return self.name


class ImageTables(NamedTuple):
    """The splits, undecoded."""

    train: ImageTable
    validation: ImageTable | None  # None if it is taken from the training images
    test: ImageTable

    def limited(self, limit: int | None, train_limit: int | None) -> "ImageTables":
        """Return at most `limit` images of each split, and `train_limit` of the training split.

        None means all.
        """
        train, validation, test = self
        if train_limit is not None:
            train = train.limited(train_limit, "--data.train-limit")
        if limit is None:
            return ImageTables(train, validation, test)
        if len(train) > limit:
            train = train.limited(limit)
        validation = None if validation is None else validation.limited(limit)
        return ImageTables(train, validation, test.limited(limit))


def open_tables(config: StoredImages) -> ImageTables:
    """Open the splits for training; their classes are in the order of the training split.

    Raises UserError if something is missing.
    """
    splits = _open_splits(config, wanted=None)
    test, test_table = _find_test(splits, config)
    name = config.source or config.name
    if "train" not in splits:
        raise UserError(
            f"{name} has no training split, only {', '.join(splits)}: "
            "add files or a folder with train in the name"
        )
    train_table = _open_table(splits, "train", config)
    validation, validation_table = _find_validation(splits, test, config), None
    if validation is not None:
        validation_table = _open_table(splits, validation, config).with_classes_of(train_table)
        check_labels(train_table, validation_table, train_table.labels, validation_table.labels)
    test_table = test_table.with_classes_of(train_table)
    check_labels(train_table, test_table, train_table.labels, test_table.labels)
    unused = [split for split in splits if split not in ("train", validation, test)]
    if unused:
        print_once(f"{name} also has these splits, which are not used: {', '.join(unused)}")
    return ImageTables(train_table, validation_table, test_table)


def open_test_table(config: StoredImages, limit: int | None = None) -> ImageTable:
    """Open only the test split; raise UserError if it is missing."""
    splits = _open_splits(config, wanted=config.splits.test_names)
    table = _find_test(splits, config)[1]
    return table if limit is None else table.limited(limit)


def _open_splits(
    config: StoredImages, wanted: tuple[str, ...] | None
) -> "Mapping[str, datasets.Dataset]":
    if config.source is None:
        return open_hub_data_set(config.hub_id, config.splits)
    return open_image_folder(Path(config.source).expanduser(), config.splits, wanted)


def _find_test(
    splits: "Mapping[str, datasets.Dataset]", config: StoredImages
) -> tuple[str, ImageTable]:
    """Return the name and the table of the first test split that has labels."""
    name, names = config.source or config.name, config.splits.test_names
    candidates = [split for split in names if split in splits]
    if not candidates:
        missing = "test" if config.splits.test_split is None else config.splits.test_split
        raise UserError(
            f"{name} has no {missing} split, only {', '.join(splits) or 'others'}: "
            f"add files or a folder with {missing} in the name"
        )
    for split in candidates:
        try:
            return split, _open_table(splits, split, config)
        except UnlabeledError as error:
            if split == candidates[-1]:
                raise
            print_once(f"{error.args[0].partition(':')[0]} and is not used")
    raise AssertionError("unreachable")


def _find_validation(
    splits: "Mapping[str, datasets.Dataset]", test: str, config: StoredImages
) -> str | None:
    if config.splits.validation == "random":
        return None
    return next((split for split in VALIDATION_SPLITS if split in splits and split != test), None)


def _open_table(
    splits: "Mapping[str, datasets.Dataset]", split: str, config: StoredImages
) -> ImageTable:
    known = HUB_DATA_SETS.get(config.name)
    table = open_table(
        splits[split],
        f"the {split} split of {config.source or config.name}",
        Column(config.image_column, known and known.image),
        Column(config.label_column, known and known.label),
        _folders_of_images(splits[split], config),
    )
    classes = config.splits.classes
    return table if classes is None else table.with_only(classes, needs_all=split == "train")


def _folders_of_images(split: "datasets.Dataset", config: StoredImages) -> tuple[Path, ...] | None:
    """Return the folders in which images may lie; links to others are for the user to make."""
    if split.info.builder_name == CLASS_FOLDERS:
        return None
    return hub_folders() if config.source is None else (Path(config.source).expanduser(),)
