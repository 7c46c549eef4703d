"""Images with the same pixels: within a split, in two splits and with two classes.

Dims     N images
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import combinations
from typing import NamedTuple

from jaxtyping import Int
from torch import Tensor

from associative_transformer.data.image_table import ImageTable
from associative_transformer.data.summary import Copies

NUM_EXAMPLES, GROUP = 3, 3  # groups of copies that are named, and images of each


class SplitDigests(NamedTuple):
    """The readable images of a split, and a digest of the pixels of each."""

    table: ImageTable
    rows: Sequence[int]
    labels: Int[Tensor, " N"]
    digests: Sequence[bytes]


class CopyCounts(NamedTuple):
    """Images with the same pixels; the fields are those of `Contents`."""

    repeated: dict[str, Copies]
    shared: dict[str, dict[str, Copies]]
    contradictory: Copies


class _Copy(NamedTuple):
    split: str
    row: int
    label: int


Group = Sequence[_Copy]


def count_copies(
    splits: dict[str, SplitDigests], shorten: Callable[[str], str] = str
) -> CopyCounts:
    """Count the images with the same pixels, and name some by their shortened names."""
    groups = _group(splits)

    def describe(chosen: Sequence[Group], number: int) -> Copies:
        examples = [
            tuple(shorten(splits[copy.split].table.stored(copy.row)[1]) for copy in group[:GROUP])
            for group in chosen[:NUM_EXAMPLES]
        ]
        return Copies(number, tuple(examples))

    repeated: dict[str, Copies] = {}
    shared: defaultdict[str, dict[str, Copies]] = defaultdict(dict)
    for split in splits:
        inside = [group for group in _within(groups, split) if len(group) > 1]
        if inside:
            repeated[split] = describe(inside, sum(len(group) - 1 for group in inside))
    for earlier, later in combinations(splits, 2):
        pairs = zip(_within(groups, later), _within(groups, earlier), strict=True)
        both = [(ours, theirs) for ours, theirs in pairs if ours and theirs]
        if both:
            first = [(ours[0], theirs[0]) for ours, theirs in both]
            shared[later][earlier] = describe(first, sum(len(ours) for ours, _ in both))
    mixed = [group for group in groups if len({copy.label for copy in group}) > 1]
    one_each = [_one_of_each_class(group) for group in mixed]
    return CopyCounts(repeated, dict(shared), describe(one_each, sum(map(len, mixed))))


def _group(splits: dict[str, SplitDigests]) -> list[list[_Copy]]:
    """Return the images with the same pixels, in groups of two or more."""
    groups: defaultdict[bytes, list[_Copy]] = defaultdict(list)
    for split, (_, rows, labels, digests) in splits.items():
        for digest, row, label in zip(digests, rows, labels.tolist(), strict=True):
            groups[digest].append(_Copy(split, row, label))
    return [group for group in groups.values() if len(group) > 1]


def _within(groups: Sequence[Group], split: str) -> list[list[_Copy]]:
    """Return the images of each group that are in a split."""
    return [[copy for copy in group if copy.split == split] for group in groups]


def _one_of_each_class(group: Group) -> list[_Copy]:
    first: dict[int, _Copy] = {}
    for copy in group:
        first.setdefault(copy.label, copy)
    return list(first.values())
