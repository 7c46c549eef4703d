"""Labeled images as they are stored: which data set, and which of its splits and columns."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

import tyro

from associative_transformer.data.columns import Column, UnlabeledError
from associative_transformer.data.config import DataSetConfig
from associative_transformer.data.csv_files import CSV_FILES
from associative_transformer.data.folders import CLASS_FOLDERS, FLAT_FOLDERS
from associative_transformer.data.image_table import ImageTable, check_labels, open_table
from associative_transformer.data.listing import print_once
from associative_transformer.data.sources import (
    SplitsConfig,
    hub_folders,
    open_hub_data_set,
    open_image_folder,
)
from associative_transformer.data.split_names import VALIDATION_SPLITS
from associative_transformer.interface import ADDED_LATER, UserError

if TYPE_CHECKING:
    import datasets


class HubDataSet(NamedTuple):
    """A data set on the hub that has a short name, and which of its columns to use."""

    hub_id: str
    image: str
    label: str


LAYOUTS = {
    CLASS_FOLDERS: "class folders of each split",
    FLAT_FOLDERS: "class folders without splits",
    CSV_FILES: "images listed in CSV files",
}
"""Names of the builders of data sets whose images are files that were found here."""
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
    """Folder to use instead of the hub: parquet files, CLASS/ or train/CLASS/ and test/CLASS/
    folders, or a CSV file with paths and classes; also the path of one parquet or CSV file."""
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


class OpenedData(NamedTuple):
    """The splits, and how they were found."""

    tables: ImageTables
    layout: str
    is_divided: bool  # whether the test images were taken from the training images


def open_tables(config: StoredImages) -> ImageTables:
    """Open the splits for training; their classes are in the order of the training split.

    Raises UserError if something is missing.
    """
    return open_data(config).tables


def open_data(config: StoredImages) -> OpenedData:
    """Open the splits like `open_tables`, and describe how they are stored."""
    splits = _open_splits(config, wanted=None)
    name = config.source or config.name
    is_divided = _lacks_test(splits, config)
    if is_divided:
        train_table, test_table = _divide(splits, config)
        test = "train"
    else:
        test, test_table = _find_test(splits, config)
    if "train" not in splits:
        raise UserError(
            f"{name} has no training split, only {', '.join(splits)}: "
            "add files or a folder with train in the name"
        )
    if not is_divided:
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
    tables = ImageTables(train_table, validation_table, test_table)
    return OpenedData(tables, _describe_layout(splits, config), is_divided)


def open_test_table(config: StoredImages, limit: int | None = None) -> ImageTable:
    """Open only the test split, or what it is taken from; raise UserError if it is missing."""
    splits = _open_splits(config, wanted=config.splits.test_names)
    if not splits and config.splits.test_split is None:
        splits = _open_splits(config, wanted=("train",))
    is_divided = _lacks_test(splits, config)
    table = _divide(splits, config)[1] if is_divided else _find_test(splits, config)[1]
    return table if limit is None else table.limited(limit)


def _lacks_test(splits: "Mapping[str, datasets.Dataset]", config: StoredImages) -> bool:
    """Return whether all images are for training, so that some of them are taken for testing."""
    has_test = any(split in splits for split in config.splits.test_names)
    return "train" in splits and not has_test and config.splits.test_split is None


def _divide(
    splits: "Mapping[str, datasets.Dataset]", config: StoredImages
) -> tuple[ImageTable, ImageTable]:
    """Return training and test images from a training split, and print how many there are."""
    chosen = config.splits
    table = _open_table(splits, "train", config)
    train, test = table.divided(chosen.test_fraction, chosen.test_seed)
    name = config.source or config.name
    print_once(
        f"{name} has no test split: {len(test):,} of its {len(table):,} images, chosen within "
        f"each class, are the test images (--data.test-fraction {chosen.test_fraction}, "
        f"--data.test-seed {chosen.test_seed})"
    )
    return train, replace(test, name=f"the test split of {name}")


def _describe_layout(splits: "Mapping[str, datasets.Dataset]", config: StoredImages) -> str:
    builder = splits["train"].info.builder_name
    is_hub = config.source is None
    return "data set on the hub" if is_hub else LAYOUTS.get(builder, "parquet files")


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
    if split.info.builder_name in LAYOUTS:
        return None
    if config.source is None:
        return hub_folders()
    source = Path(config.source).expanduser()
    return (source.parent if source.is_file() else source,)
