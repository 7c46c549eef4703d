"""Open image data sets: from the hub, from class folders or from parquet files."""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from associative_transformer.data.listing import LeftOut, choose_images, list_files
from associative_transformer.data.parquet import (
    SplitFile,
    group_by_split,
    normalized,
    open_parquet,
    quiet,
    reason,
    refuse_unwritable_cache,
)
from associative_transformer.interface import ADDED_LATER, UserError

if TYPE_CHECKING:
    import datasets

TEST_SPLITS = ("test", "validation", "valid", "val")  # the first with labels is the test set
VALIDATION_SPLITS = TEST_SPLITS[1:]
SPLITS = ("train", *TEST_SPLITS)
CLASS_FOLDERS = "class_folders"  # name of the builder of such a data set
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

    def __post_init__(self) -> None:
        if self.classes is not None and len(set(self.classes)) != max(len(self.classes), 2):
            raise ValueError(
                f"classes must name at least two classes, each once, not {', '.join(self.classes)}"
            )
        if self.train_limit is not None and self.train_limit < 1:
            raise ValueError(f"train_limit must be at least 1, got {self.train_limit}")
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
    """Open the wanted splits, by default all, of the parquet files or class folders in a folder.

    What is left out is printed to stderr. Raises UserError if the folder contains no data set, or
    a file that cannot be used.
    """
    _check_root(root, splits)
    left_out = LeftOut()
    files = sorted(list_files(root, left_out), key=str)
    parquet = [file for file in files if file.suffix.lower() == ".parquet"]
    others = [file for file in files if file.suffix.lower() != ".parquet"]
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
    wanted = splits.names if wanted is None else wanted
    tables = group_by_split(root, parquet, splits.names, splits.config)
    folders = _group_class_folders(images, splits.names)
    if _are_tables(root, tables, folders, splits, wanted):
        unused = [file for paths in folders.values() for file in paths]
        return _open_tables(root, tables, parquet, unused, wanted)
    for file in set(images) - {file for paths in folders.values() for file in paths}:
        left_out.add("images outside the split folders", file)
    for file in parquet:
        left_out.add("parquet files next to class folders", file)
    opened = _open_class_folders(root, folders, wanted)
    left_out.report(root)
    return opened


def _check_root(root: Path, splits: SplitsConfig) -> None:
    if not root.is_dir():
        state = "is a file, not a folder" if root.exists() else "does not exist"
        raise UserError(
            f"the data source {root} {state}: "
            "pass a folder with --data.source, or with --source to `ait eval`"
        )
    if splits.revision is not None:
        raise UserError(f"--data.revision applies to the hub, not to {root}: omit one of them")


def _are_tables(
    root: Path,
    tables: Mapping[str, object],
    folders: Mapping[str, object],
    splits: SplitsConfig,
    wanted: Collection[str],
) -> bool:
    """Return whether the data are in parquet files, of which there may be some by accident."""

    def is_complete(by_split: Mapping[str, object]) -> bool:
        has_training = "train" not in wanted or "train" in by_split
        return has_training and not by_split.keys().isdisjoint(splits.test_names)

    if is_complete(tables) and is_complete(folders):
        raise UserError(
            f"{root} has both parquet files and class folders with all splits: move one of them "
            "elsewhere"
        )
    if is_complete(tables) or is_complete(folders):
        return is_complete(tables)
    return bool(tables) or not folders


def _open_tables(
    root: Path,
    by_split: Mapping[str, Sequence[SplitFile]],
    parquet: Sequence[Path],
    images: Sequence[Path],
    wanted: Collection[str],
) -> "dict[str, datasets.Dataset]":
    if not by_split and not parquet:
        raise UserError(
            f"{root} has no split folders: create train/ and test/ in it and move the class "
            "folders into them, or choose a sub-folder that has them with --data.config"
        )
    if not by_split:
        raise UserError(
            f"no parquet file in {root} has the name of a split in its path: rename the files so "
            "that their names contain train or test"
        )
    opened = {
        split: open_parquet(root, split, files)
        for split, files in by_split.items()
        if split in wanted
    }
    left_out = LeftOut()
    for file in set(parquet) - {file.path for files in by_split.values() for file in files}:
        left_out.add("parquet files outside the splits or the configuration", file)
    for file in images:
        left_out.add("images in class folders next to parquet files", file)
    left_out.report(root)
    return opened


def _group_class_folders(images: Sequence[Path], names: Collection[str]) -> dict[str, list[Path]]:
    """Group images by their first folder, if it is a split; refuse two folders of one split."""
    lower = {name.lower(): name for name in names}
    by_split: dict[str, list[Path]] = {}
    for file in images:
        if len(file.parts) > 1 and (split := lower.get(file.parts[0].lower())):
            by_split.setdefault(split, []).append(file)
    for split, files in by_split.items():
        if len(spellings := sorted({file.parts[0] for file in files})) > 1:
            raise UserError(
                f"the {split} split is there in {len(spellings)} folders "
                f"({', '.join(spellings)}), whose images may be the same: keep one of them"
            )
    return by_split


def _open_class_folders(
    root: Path, by_split: Mapping[str, Sequence[Path]], wanted: Collection[str]
) -> "dict[str, datasets.Dataset]":
    """Read SPLIT/CLASS/**/IMAGE; the library's `imagefolder` fails on names like `[a]`."""
    import datasets

    for file in (file for files in by_split.values() for file in files):
        if len(file.parts) < 3:
            raise UserError(
                f"{root / file} is not in a class folder: move it into one or remove it"
            )
    opened = {}
    for split, files in by_split.items():
        if split not in wanted:
            continue
        spellings: dict[str, str] = {}  # a name may be composed in one folder, not in another
        for name in sorted({file.parts[1] for file in files}):
            spellings.setdefault(normalized(name), name)
        classes = datasets.ClassLabel(names=sorted(spellings.values()))
        features = datasets.Features({"image": datasets.Image(decode=False), "label": classes})
        opened[split] = datasets.Dataset.from_dict(
            {
                "image": [str(root / file) for file in files],
                "label": [spellings[normalized(file.parts[1])] for file in files],
            },
            info=datasets.DatasetInfo(features=features, builder_name=CLASS_FOLDERS),
        )
    return opened
