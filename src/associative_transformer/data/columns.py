"""The columns of a split: find the images, and read the classes and labels.

Dims     N images
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from associative_transformer.data.listing import SUFFIXES
from associative_transformer.data.parquet import TEXT, normalized
from associative_transformer.interface import UserError

if TYPE_CHECKING:
    import datasets

UNLABELED = -1
NUM_EXAMPLES = 5  # values that are looked at to recognize the names of files
NUMBERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "bool")
BYTES = ("binary", "large_binary")
LABEL_NAMES = ("label", "labels", "class", "class_name", "classname", "category", "target")
"""Names of a column of classes, in lower case, if it has no names of classes of its own."""
MAX_NAMED = 10  # classes in a message


class Column(NamedTuple):
    """Which column to use if several have the same type."""

    chosen: str | None  # by the user
    default: str | None  # of a data set with a short name


class Labels(NamedTuple):
    """The classes of a split and the class of each of its images."""

    class_names: tuple[str, ...]
    labels: Int[Tensor, " N"]


class UnlabeledError(UserError):
    """The labels of a split are all missing or -1, as in a test set whose labels are secret."""


def find_images(split: "datasets.Dataset", column: Column, name: str) -> str:
    """Return the column of images; raise UserError if there is none or more than one.

    Without a column of type Image, it is the one that contains bytes, or paths of images.
    """
    import datasets

    features = split.features
    if not any(isinstance(feature, datasets.Image) for feature in features.values()):
        likely = [key for key in features if _may_be_images(split, key)]
        if column.chosen in likely or (column.chosen is None and len(likely) == 1):
            return column.chosen or likely[0]
    return _find_column(split, datasets.Image, column, name, "--data.image-column")


def _may_be_images(split: "datasets.Dataset", key: str) -> bool:
    """Return whether a column has the bytes of images, or names of image files."""
    feature = split.features[key]
    if isinstance(feature, dict):  # as pandas stores what the library has encoded
        return "bytes" in feature and getattr(feature["bytes"], "dtype", "") in BYTES
    if (dtype := getattr(feature, "dtype", None)) in BYTES:
        return True
    first = split[:NUM_EXAMPLES][key] if dtype in TEXT else []
    return bool(first) and all(x and PurePath(x).suffix.lower() in SUFFIXES for x in first)


def read_labels(split: "datasets.Dataset", column: Column, name: str) -> Labels:
    """Return the classes and labels of a split.

    A text column contains class names, and the classes are in alphabetical order; the classes of
    whole numbers are these numbers.
    Raises UserError if the column cannot be found, if two classes have the same name or if a label
    is not the index of a class, and UnlabeledError if there are no labels at all.
    """
    label = _find_label_column(split, column, name)
    class_names, values = _read_column(split, label)
    counts = Counter(map(normalized, class_names))
    if twice := [class_name for class_name, count in counts.items() if count > 1]:
        raise UserError(
            f"{name} has several classes with the same name ({list_classes(twice)}): rename all "
            "but one of them"
        )
    labels = torch.tensor([-1 if y is None else y for y in values], dtype=torch.int64)
    if len(labels) and (labels == -1).all():
        raise UnlabeledError(
            f"{name} has no labels (-1 throughout): use a labeled copy, or test on another split "
            "with --data.test-split"
        )
    wrong = ((labels < 0) | (labels >= len(class_names))).nonzero()
    if len(wrong):
        row = int(wrong[0])
        raise UserError(
            f"row {row} of {name} has the label {values[row]}, outside "
            f"0 to {len(class_names) - 1}: remove it or use a labeled copy of the data set"
        )
    return Labels(class_names, labels)


def list_classes(names: Sequence[str]) -> str:
    """Return the names of the first classes for a message."""
    return ", ".join(names[:MAX_NAMED]) + ", ..." * (len(names) > MAX_NAMED)


def _read_column(
    split: "datasets.Dataset", column: str
) -> tuple[tuple[str, ...], list[int | None]]:
    """Return the names of the classes and the label of each row, None if it is missing."""
    import datasets

    feature, values = split.features[column], split[column][:]
    if isinstance(feature, datasets.ClassLabel):
        return tuple(feature.names), values
    if feature.dtype in NUMBERS:
        found = {int(x) for x in values if x is not None}
        numbers = sorted(found if found == {UNLABELED, 1} else found - {UNLABELED})
        index = {number: label for label, number in enumerate(numbers)}
        places = [None if x is None else index.get(int(x), UNLABELED) for x in values]
        return tuple(map(str, numbers)), places
    texts = [None if text is None else normalized(text) for text in values]
    class_names = tuple(sorted({text for text in texts if text is not None}))
    label_of = {text: label for label, text in enumerate(class_names)}
    return class_names, [None if text is None else label_of[text] for text in texts]


def _find_label_column(split: "datasets.Dataset", column: Column, name: str) -> str:
    """Return the label column.

    A column of text or numbers must be chosen, have the name of one, or be the only one left.
    """
    import datasets

    features = split.features
    others = [key for key in features if not isinstance(features[key], datasets.Image)]
    has_classes = any(isinstance(features[key], datasets.ClassLabel) for key in others)
    plain = [key for key in others if getattr(features[key], "dtype", None) in (*TEXT, *NUMBERS)]
    plain = [key for key in plain if not isinstance(features[key], datasets.ClassLabel)]
    if column.chosen in plain:
        return str(column.chosen)
    if column.chosen is None and not has_classes and plain:
        named = [key for key in plain if key.lower() in LABEL_NAMES]
        if len(others) == 1 or len(named) == 1:
            return [*named, *plain][0]
    return _find_column(split, datasets.ClassLabel, column, name, "--data.label-column")


def _find_column(
    split: "datasets.Dataset", feature_type: type, column: Column, name: str, flag: str
) -> str:
    features = split.features.items()
    names = [key for key, feature in features if isinstance(feature, feature_type)]
    if column.chosen is not None or column.default in names:
        names = [key for key in names if key == (column.chosen or column.default)]
    if len(names) > 1:
        raise UserError(
            f"{name} has {len(names)} columns of type {feature_type.__name__} "
            f"({', '.join(names)}): choose one with {flag}"
        )
    if not names:
        existing = ", ".join(f"{key} ({_type_name(feature)})" for key, feature in features)
        wanted = f"column {column.chosen}" if column.chosen else "column"
        raise UserError(
            f"{name} has no {wanted} of type {feature_type.__name__}, only {existing}: "
            f"choose another column with {flag} or save the data set with that type"
        )
    return names[0]


def _type_name(feature: object) -> str:
    import datasets

    return str(feature.dtype) if isinstance(feature, datasets.Value) else type(feature).__name__
