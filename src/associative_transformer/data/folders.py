"""Class folders: the split and the class of each image, from its path."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from associative_transformer.data.listing import LeftOut
from associative_transformer.data.parquet import normalized
from associative_transformer.data.split_names import rename_splits, with_other_names
from associative_transformer.interface import UserError

if TYPE_CHECKING:
    import datasets

CLASS_FOLDERS = "class_folders"  # names of the builders of such data sets
FLAT_FOLDERS = "flat_folders"


class ClassImage(NamedTuple):
    """An image in a class folder."""

    path: Path  # relative to the data folder
    class_name: str


ClassFolders = dict[str, list[ClassImage]]
"""The images of each split."""


def find_class_folders(
    root: Path, images: Sequence[Path], names: Collection[str], left_out: LeftOut
) -> ClassFolders:
    """Find the images in SPLIT/CLASS/ or CLASS/SPLIT/ folders, also inside a single folder.

    Raises UserError if a split is there twice, or if an image is in no class folder of a split
    that has such folders. A split without any is unlabeled and left out.
    """
    start = _common_folder(images, names)
    lower = {name.lower(): name for name in with_other_names(names)}
    inside = [(file, file.parts[start:-1]) for file in images]  # with the folders it is in
    by_split = _group(((path, folders[:1], folders[1:2]) for path, folders in inside), lower)
    if not by_split:
        pairs = ((path, folders[1:], folders[:1]) for path, folders in inside)
        by_split = _group(((p, split, name) for p, split, name in pairs if len(split) == 1), lower)
    found = {}
    for split, files in rename_splits(by_split, names).items():
        _check_spellings(split, {spelling for spelling, _ in files})
        found[split] = [image for _, image in files]
    if not any(image.class_name for split in found.values() for image in split):
        return {}
    return {
        split: labeled
        for split, files in found.items()
        if (labeled := _labeled(root, split, files, left_out))
    }


def find_flat_folders(images: Sequence[Path], names: Collection[str]) -> list[ClassImage]:
    """Find the images in CLASS/ folders without splits; none if there are not two such folders."""
    start = _common_folder(images, names)
    lower = {name.lower() for name in with_other_names(names)}
    found = [ClassImage(file, file.parts[start]) for file in images if len(file.parts) > start + 1]
    classes = {image.class_name for image in found}
    are_splits = all(name.lower() in lower for name in classes)  # train/ and test/ without classes
    have_splits = any(file.parts[start + 1].lower() in lower for file, _ in found)
    return [] if len(classes) < 2 or are_splits or have_splits else found


def open_class_folders(
    root: Path, folders: Mapping[str, Sequence[ClassImage]], builder_name: str = CLASS_FOLDERS
) -> "dict[str, datasets.Dataset]":
    """Open the images of each split; the library's `imagefolder` fails on names like `[a]`."""
    import datasets

    opened = {}
    for split, images in folders.items():
        spellings: dict[str, str] = {}  # a name may be composed in one folder, not in another
        for name in sorted({image.class_name for image in images}):
            spellings.setdefault(normalized(name), name)
        classes = datasets.ClassLabel(names=sorted(spellings.values()))
        features = datasets.Features({"image": datasets.Image(decode=False), "label": classes})
        opened[split] = datasets.Dataset.from_dict(
            {
                "image": [str(root / image.path) for image in images],
                "label": [spellings[normalized(image.class_name)] for image in images],
            },
            info=datasets.DatasetInfo(features=features, builder_name=builder_name),
        )
    return opened


def _common_folder(images: Sequence[Path], names: Collection[str]) -> int:
    """Return how many folders contain everything else, as those that archives are unpacked to."""
    lower, depth = {name.lower() for name in with_other_names(names)}, 0
    while any(len(file.parts) > depth + 2 for file in images):
        folders = {file.parts[depth] for file in images if len(file.parts) > depth + 1}
        if len(folders) > 1 or folders.pop().lower() in lower:
            break
        depth += 1
    return depth


def _group(
    files: Iterable[tuple[Path, Sequence[str], Sequence[str]]], lower: Mapping[str, str]
) -> dict[str, list[tuple[str, ClassImage]]]:
    """Group images by split, each with the name of the folder of that split."""
    by_split: dict[str, list[tuple[str, ClassImage]]] = {}
    for path, split_folder, class_folder in files:
        if split_folder and (split := lower.get(split_folder[0].lower())):
            image = ClassImage(path, class_folder[0] if class_folder else "")
            by_split.setdefault(split, []).append((split_folder[0], image))
    return by_split


def _labeled(
    root: Path, split: str, images: Sequence[ClassImage], left_out: LeftOut
) -> list[ClassImage]:
    """Return the images of a split, none if it has no class folders."""
    lost = [image.path for image in images if not image.class_name]
    if not lost or (len(lost) == len(images) and split != "train"):
        for path in lost:
            left_out.add("unlabeled images, in no class folder", path)
        return [] if lost else list(images)
    raise UserError(f"{root / lost[0]} is not in a class folder: move it into one or remove it")


def _check_spellings(split: str, spellings: set[str]) -> None:
    if len(spellings) > 1:
        raise UserError(
            f"the {split} split is there in {len(spellings)} folders "
            f"({', '.join(sorted(spellings))}), whose images may be the same: keep one of them"
        )
