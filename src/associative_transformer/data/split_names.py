"""The names of splits in folders, files and columns."""

import re
from collections.abc import Collection, Iterable, Mapping
from typing import TypeVar

TEST_SPLITS = ("test", "validation", "valid", "val")  # the first with labels is the test set
VALIDATION_SPLITS = TEST_SPLITS[1:]
SPLITS = ("train", *TEST_SPLITS)
OTHER_NAMES = {
    "train": ("training",),
    "test": ("testing",),
    "validation": ("dev", "development"),
}
"""Other names of a split, which are used if none of its usual names is there."""
COLUMNS = ("split", "set", "subset", "partition", "fold", "usage")
"""Names of a column that names the split of each row."""
USUAL_NAMES = {"train": ("train",), "test": ("test",), "validation": VALIDATION_SPLITS}

Content = TypeVar("Content")


def with_other_names(names: Collection[str]) -> tuple[str, ...]:
    """Return the names of splits, and the other names under which they may be found."""
    others = [other for split, group in OTHER_NAMES.items() if split in names for other in group]
    return tuple(dict.fromkeys((*names, *others)))


def rename_splits(by_split: Mapping[str, Content], names: Collection[str]) -> dict[str, Content]:
    """Return the splits under the names that are known, without those that are there twice."""
    renamed = {split: content for split, content in by_split.items() if split in names}
    for split, others in OTHER_NAMES.items():
        for other in others:
            is_there = any(name in renamed for name in USUAL_NAMES[split])
            if other in by_split and other not in names and not is_there:
                renamed[split] = by_split[other]
    return renamed


def split_pattern(names: Collection[str]) -> re.Pattern[str]:
    """Return a pattern that finds the names of splits as words of a path, in any case."""
    return re.compile(rf"(?<![a-z])({'|'.join(map(re.escape, names))})(?![a-z])", re.IGNORECASE)


def rows_by_split(values: Iterable[object], names: Collection[str]) -> dict[str, list[int]]:
    """Return the rows of each split from the values of a column; none if others are in it."""
    known = {name.lower(): name for name in with_other_names(names)}
    rows: dict[str, list[int]] = {}
    for row, value in enumerate(values):
        split = known.get(str(value).strip().lower())
        if split is None:
            return {}
        rows.setdefault(split, []).append(row)
    return rename_splits(rows, names)
