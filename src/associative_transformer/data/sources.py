"""Open image data sets: from the hub, from class folders or from parquet files."""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from associative_transformer.data.csv_files import (
    CSV_SUFFIXES,
    divide_list,
    group_image_lists,
    open_image_lists,
    read_image_lists,
)
from associative_transformer.data.folders import (
    CLASS_FOLDERS,
    FLAT_FOLDERS,
    ClassImage,
    find_class_folders,
    find_flat_folders,
    open_class_folders,
)
from associative_transformer.data.listing import LeftOut, choose_images, list_files
from associative_transformer.data.parquet import (
    SplitFile,
    divide_by_column,
    group_by_split,
    open_parquet,
    quiet,
    reason,
    refuse_unwritable_cache,
)
from associative_transformer.data.split_names import SPLITS, TEST_SPLITS
from associative_transformer.interface import ADDED_LATER, UserError

if TYPE_CHECKING:
    import datasets

PARQUET = ".parquet"
MOST = 0.9  # of the images in class folders that a CSV file must list to be used instead
NOT_UTF_8 = re.compile(r"[\ud800-\udfff]")  # how Python represents invalid bytes in file names


@dataclass(frozen=True)
class SplitsConfig:
    """Which version, splits and classes of a stored data set to use."""

    test_split: str | None = field(default=None, metadata=ADDED_LATER)
    """Split to test on; None: test or, without labels there, the validation split."""
    config: str | None = field(default=None, metadata=ADDED_LATER)
    """Configuration of a set on the hub, or sub-folder, if there are several."""
    revision: str | None = field(default=None, metadata=ADDED_LATER)
    """Branch, tag or commit on the hub; None: the latest version."""
    validation: Literal["auto", "random"] = field(default="auto", metadata=ADDED_LATER)
    """auto: the validation split, or images of each class; random: any images, as before 0.2."""

    classes: tuple[str, ...] | None = field(default=None, metadata=ADDED_LATER)
    """Names of the classes to use, in this order; None: all."""
    train_limit: int | None = field(default=None, metadata=ADDED_LATER)
    """Train on at most this many images, balanced by class; None: all, or as many as `limit`."""
    test_fraction: float = field(default=0.2, metadata=ADDED_LATER)
    """Fraction of the images of each class to test on, if there is no test split."""
    test_seed: int = field(default=0, metadata=ADDED_LATER)
    """Seed that chooses these images; it does not change with the seed of a run."""

    def __post_init__(self) -> None:
        if self.classes is not None and len(set(self.classes)) != max(len(self.classes), 2):
            raise ValueError(
                f"classes must name at least two classes, each once, not {', '.join(self.classes)}"
            )
        if self.train_limit is not None and self.train_limit < 1:
            raise ValueError(f"train_limit must be at least 1, got {self.train_limit}")
        if not 0 < self.test_fraction < 1:
            raise ValueError(f"test_fraction must be between 0 and 1, got {self.test_fraction}")
        if self.test_seed < 0:
            raise ValueError(f"test_seed must not be negative, got {self.test_seed}")
        if self.test_split == "train":
            raise ValueError("test_split must not be train: the model is trained on it")
        for name in ("test_split", "config", "revision"):
            if getattr(self, name) == "":
                raise ValueError(f"{name} must not be empty")

    @property
    def test_names(self) -> tuple[str, ...]:
        """The names of splits that may be the test set; the first with labels is used."""
        return TEST_SPLITS if self.test_split is None else (self.test_split,)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all splits that are known."""
        return tuple(dict.fromkeys((*SPLITS, *self.test_names)))


ALL = SplitsConfig()


def open_hub_data_set(hub_id: str, splits: SplitsConfig = ALL) -> "dict[str, datasets.Dataset]":
    """Open a data set from the Hugging Face Hub, or its cached copy.

    Raises UserError if that fails.
    """
    import datasets

    options = {"name": splits.config, "revision": splits.revision}
    options = {name: value for name, value in options.items() if value is not None}
    try:
        with quiet():
            return dict(datasets.load_dataset(hub_id, **options))
    except Exception as error:  # the hub's client raises errors from many libraries
        refuse_unwritable_cache(error)
        raise UserError(
            f"cannot load {hub_id} from the Hugging Face Hub ({reason(error)}): check its name "
            "and the network, or download its parquet files on a connected machine (`hf download "
            f"{hub_id} --repo-type dataset --include '*.parquet' --local-dir FOLDER`) and pass "
            "that folder with --data.source FOLDER"
        ) from error


def hub_folders() -> tuple[Path, ...]:
    """Return the folders in which the library stores files from the hub."""
    import datasets
    import huggingface_hub

    folders = (datasets.config.HF_DATASETS_CACHE, huggingface_hub.constants.HF_HUB_CACHE)
    return tuple(Path(folder) for folder in folders)


def open_image_folder(
    root: Path, splits: SplitsConfig = ALL, wanted: Collection[str] | None = None
) -> "dict[str, datasets.Dataset]":
    """Open the wanted splits, by default all, of the data set in a folder or in one file.

    It has parquet files, class folders, or a CSV file that lists images. Images without a split
    are for training. What is left out is printed to stderr. Raises UserError if there is no data
    set, or a file that cannot be used.
    """
    wanted = splits.names if wanted is None else wanted
    if root.is_file() and root.suffix.lower() in (*CSV_SUFFIXES, PARQUET):
        opened = _open_file(root, splits)
        return {split: rows for split, rows in opened.items() if split in wanted}
    _check_root(root, splits)
    left_out = LeftOut()
    files = sorted(list_files(root, left_out), key=str)
    parquet = [file for file in files if file.suffix.lower() == PARQUET]
    lists = [file for file in files if file.suffix.lower() in CSV_SUFFIXES]
    others = sorted(set(files) - set(parquet) - set(lists), key=str)
    if (config := splits.config) is not None:
        is_in_tables = any(config in file.parts for file in parquet)
        if not parquet or ((root / config).is_dir() and not is_in_tables):
            return open_image_folder(root / config, replace(splits, config=None), wanted)
    images = choose_images(root, others, left_out)
    for name in (str(root / file) for file in [*parquet, *images]):
        if NOT_UTF_8.search(name):
            raise UserError(f"the name {name} is not valid UTF-8: rename it")
    if not parquet and not images:
        left_out.report(root)
        raise UserError(
            f"the data source {root} has no data: add parquet files, or images in train/CLASS/ "
            "and test/CLASS/ folders"
        )
    found = _Found(root, splits, wanted, parquet, lists, images, left_out)
    opened = found.open_splits()
    left_out.report(root)
    return opened


def _open_file(path: Path, splits: SplitsConfig) -> "dict[str, datasets.Dataset]":
    """Open one parquet file, or the images that a CSV file lists."""
    root, file = path.parent, Path(path.name)
    if path.suffix.lower() == PARQUET:
        rows = open_parquet(root, "train", [SplitFile(file, ".")])
        return divide_by_column(rows, splits.names)
    left_out = LeftOut()
    images = choose_images(root, list_files(root), LeftOut())
    lists = read_image_lists(root, [file], sorted(images), splits.names, left_out)
    if not lists:
        raise UserError(
            f"{path} does not list images and their classes: it needs a first row with the names "
            f"of its columns, a column with the paths of images in {root}, and one with classes"
        )
    left_out.report(root)
    return open_image_lists(root, divide_list(lists[0], splits.names))


@dataclass(frozen=True)
class _Found:
    """The files of a data folder, and which of them to use."""

    root: Path
    splits: SplitsConfig
    wanted: Collection[str]
    parquet: Sequence[Path]
    lists: Sequence[Path]  # CSV files
    images: Sequence[Path]
    left_out: LeftOut

    def open_splits(self) -> "dict[str, datasets.Dataset]":
        """Open the files that have the wanted splits, or else those without splits."""
        root, names, unlabeled = self.root, self.splits.names, LeftOut()
        tables = group_by_split(root, self.parquet, names, self.splits.config)
        folders = find_class_folders(root, self.images, names, unlabeled)
        if self._is_complete(tables) and self._is_complete(folders):
            raise UserError(
                f"{root} has both parquet files and class folders with all splits: move one of "
                "them elsewhere"
            )
        in_folders = [image.path for each in folders.values() for image in each]
        if self._is_complete(tables):
            return self._open_tables(tables, in_folders)
        if not self._is_complete(folders) and self.lists and (listed := self._open_lists()):
            return listed
        if tables and not self._is_complete(folders):
            return self._open_tables(tables, in_folders)
        if folders:
            self.left_out.include(unlabeled)
            return self._open_folders(folders, CLASS_FOLDERS)
        if flat := find_flat_folders(self.images, names):
            return self._open_folders({"train": flat}, FLAT_FOLDERS)
        return self._open_undivided()

    def _is_complete(self, by_split: Mapping[str, object]) -> bool:
        has_training = "train" not in self.wanted or "train" in by_split
        return has_training and not by_split.keys().isdisjoint(self.splits.test_names)

    def _open_tables(
        self, by_split: Mapping[str, Sequence[SplitFile]], in_folders: Iterable[Path]
    ) -> "dict[str, datasets.Dataset]":
        opened = {
            split: open_parquet(self.root, split, files)
            for split, files in by_split.items()
            if split in self.wanted
        }
        for file in set(self.parquet) - {file.path for each in by_split.values() for file in each}:
            self.left_out.add("parquet files outside the splits or the configuration", file)
        for file in in_folders:
            self.left_out.add("images in class folders next to parquet files", file)
        self._leave_out_lists()
        return opened

    def _open_lists(self) -> "dict[str, datasets.Dataset]":
        left_out, names = LeftOut(), self.splits.names
        lists = read_image_lists(self.root, self.lists, self.images, names, left_out)
        by_split = group_image_lists(self.root, lists, names, left_out)
        used = {Path(path) for each in by_split.values() for path in each.paths}
        is_small = len(used) < MOST * len(self.images)  # such as a list of results
        if is_small and find_flat_folders(self.images, names):
            return {}
        if by_split:
            for image in set(self.images) - used:
                left_out.add("images that no CSV file lists", image)
            for file in self.parquet:
                left_out.add("parquet files next to CSV files", file)
            self.left_out.include(left_out)
        by_split = {split: each for split, each in by_split.items() if split in self.wanted}
        return open_image_lists(self.root, by_split)

    def _open_folders(
        self, folders: Mapping[str, Sequence[ClassImage]], builder_name: str
    ) -> "dict[str, datasets.Dataset]":
        outside = "class" if builder_name == FLAT_FOLDERS else "split"
        for file in set(self.images) - {image.path for each in folders.values() for image in each}:
            self.left_out.add(f"images outside the {outside} folders", file)
        for file in self.parquet:
            self.left_out.add("parquet files next to class folders", file)
        self._leave_out_lists()
        folders = {split: images for split, images in folders.items() if split in self.wanted}
        return open_class_folders(self.root, folders, builder_name)

    def _open_undivided(self) -> "dict[str, datasets.Dataset]":
        """Open parquet files without the name of a split; refuse images without classes."""
        if self.parquet:
            files = [SplitFile(file, ".") for file in self.parquet]
            opened = divide_by_column(open_parquet(self.root, "train", files), self.splits.names)
            self._leave_out_lists()
            return {split: rows for split, rows in opened.items() if split in self.wanted}
        raise UserError(
            f"{self.root} has images, but not in a folder for each class: create CLASS/ folders, "
            "or train/CLASS/ and test/CLASS/, choose a sub-folder that has them with "
            "--data.config, or add a CSV file with a column of paths and one of classes"
        )

    def _leave_out_lists(self) -> None:
        for file in self.lists:
            self.left_out.add("not images", file)


def _check_root(root: Path, splits: SplitsConfig) -> None:
    if not root.is_dir():
        state = "is a file, not a folder" if root.exists() else "does not exist"
        raise UserError(
            f"the data source {root} {state}: pass a folder, or a parquet or CSV file, with "
            "--data.source, or with --source to `ait eval`"
        )
    if splits.revision is not None:
        raise UserError(f"--data.revision applies to the hub, not to {root}: omit one of them")
