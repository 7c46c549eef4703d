"""The columns of a split: find the images, and read the classes and labels.

Dims     N images
"""

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from associative_transformer.data.parquet import normalized
from associative_transformer.interface import UserError

if TYPE_CHECKING:
    import datasets

TEXT = ("string", "large_string")  # types of a column
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
    """Return the column of images; raise UserError if there is none or more than one."""
    import datasets

    return _find_column(split, datasets.Image, column, name, "--data.image-column")


def read_labels(split: "datasets.Dataset", column: Column, name: str) -> Labels:
    """Return the classes and labels of a split.

    A text column contains class names; the classes are then in alphabetical order.
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
    texts = [None if text is None else normalized(text) for text in values]
    class_names = tuple(sorted({text for text in texts if text is not None}))
    index = {text: label for label, text in enumerate(class_names)}
    return class_names, [None if text is None else index[text] for text in texts]


def _find_label_column(split: "datasets.Dataset", column: Column, name: str) -> str:
    """Return the label column; a text column must be chosen or the only one without images."""
    import datasets

    features = split.features
    others = [key for key in features if not isinstance(features[key], datasets.Image)]
    texts = [key for key in others if getattr(features[key], "dtype", None) in TEXT]
    if column.chosen in texts:
        return str(column.chosen)
    if column.chosen is None and len(others) == 1 and texts:
        return texts[0]
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
