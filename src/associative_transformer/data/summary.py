"""What a data set of images contains: its summary, as a table, as sentences and as JSON."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

from associative_transformer.interface import format_count
from associative_transformer.tabular import RowGroup, Table

MAX_CLASSES = 20  # rows of the table
MAX_NAMED = 5  # classes or images in a sentence
FEW_IMAGES = 5  # of a class
STRONG_IMBALANCE = 10.0  # images of the largest class for one of the smallest
LONG = 2.0  # longer side of an image, for a shorter side of 1
NOTABLE = 0.1  # share of the images


@dataclass(frozen=True)
class Spread:
    """The smallest, the median and the largest of some values."""

    smallest: int | float
    median: int | float
    largest: int | float

    def __str__(self) -> str:
        low, middle, high = (f"{x:,.4g}" for x in (self.smallest, self.median, self.largest))
        return low if low == high else f"{low} to {high} (median {middle})"


@dataclass(frozen=True)
class SplitSummary:
    """How many readable images of each class are in a split."""

    name: str
    classes: dict[str, int]

    @property
    def num_images(self) -> int:
        """The number of images of all classes."""
        return sum(self.classes.values())

    @property
    def missing(self) -> list[str]:
        """The classes without an image."""
        return [name for name, count in self.classes.items() if not count]

    @property
    def imbalance(self) -> float:
        """The number of images of the largest class for one of the smallest, if not empty."""
        counts = [count for count in self.classes.values() if count]
        return max(counts) / min(counts) if counts else 1.0


@dataclass(frozen=True)
class Sizes:
    """Width, height and longer side for a shorter side of 1, of upright images."""

    width: Spread
    height: Spread
    ratio: Spread


@dataclass(frozen=True)
class Unreadable:
    """An image that cannot be read."""

    image: str
    reason: str


@dataclass(frozen=True)
class Copies:
    """Images with the same decoded pixels, and the first of them, in groups."""

    num_images: int
    examples: tuple[tuple[str, ...], ...]

    @property
    def example(self) -> str:
        """The first images with the same pixels."""
        return " = ".join(self.examples[0]) if self.examples else ""


@dataclass(frozen=True)
class Contents:
    """What decoding all images has shown.

    Two images are the same if they have the same size and pixels once they are upright, 8-bit RGB
    and on white, as models see them: a PNG and its palette version are the same, a JPEG is not.
    """

    modes: dict[str, int]
    formats: dict[str, int]
    num_animated: int
    num_constant: int  # images of a single color
    num_long: int  # images whose longer side is over twice the shorter one
    mean: tuple[float, float, float]  # of the training images, each of which counts the same
    std: tuple[float, float, float]
    unreadable: tuple[Unreadable, ...]
    repeated: dict[str, Copies]  # copies of another image of the same split, by split
    shared: dict[
        str, dict[str, Copies]
    ]  # images of a split, by split, that are also in an earlier one
    contradictory: Copies  # images with copies of another class, in any split


@dataclass(frozen=True)
class DataSummary:
    """What a data set contains. Without `contents`, the images have not been decoded."""

    name: str
    layout: str
    splits: tuple[SplitSummary, ...]
    sizes: Sizes | None
    is_divided: bool = False  # whether the test images were taken from the training images
    contents: Contents | None = None
    problem: str | None = None  # why no model can be trained on the data

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return len(self.splits[0].classes)

    @property
    def headline(self) -> str:
        """The splits and classes in one sentence."""
        parts = [f"{split.num_images:,} {split.name}" for split in self.splits]
        counts = [count for count in self.splits[0].classes.values() if count]
        each = f"{min(counts, default=0):,} to {max(counts, default=0):,}"
        if counts and min(counts) == max(counts):
            each = f"{counts[0]:,}"
        images = f"{' and '.join([*[', '.join(parts[:-1])][: len(parts) > 1], parts[-1]])} images"
        classes = format_count(self.num_classes, "class")
        return f"{self.name}: {images} of {classes}, {each} training images of each"

    def to_lines(self) -> list[str]:
        """Return one or two sentences for the start of training."""
        if self.sizes is None:
            return [self.headline]
        width, height = self.sizes.width, self.sizes.height
        return [self.headline, f"width {width}, height {height} pixels"]

    def to_json(self) -> str:
        """Return all values as JSON."""
        return json.dumps(asdict(self), indent=2) + "\n"

    def to_table(self) -> Table:
        """Return a table of the images of each class, with what else was found below it."""
        names = [split.name for split in self.splits]
        total = [split.num_images for split in self.splits]
        by_class = {
            name: [split.classes.get(name, 0) for split in self.splits]
            for name in self.splits[0].classes
        }
        shown = list(by_class.items())[:MAX_CLASSES]
        rows = [(name, *_counts(counts)) for name, counts in shown]
        if len(by_class) > MAX_CLASSES:
            hidden = list(by_class.values())[MAX_CLASSES:]
            others = [sum(column) for column in zip(*hidden, strict=True)]
            rows.append((f"{len(by_class) - MAX_CLASSES:,} other classes", *_counts(others)))
        groups = [
            RowGroup("all", [("images", *_counts(total))]),
            RowGroup("by class", rows),
        ]
        notes = [*self._describe(), *(f"warning: {text}" for text in self.list_warnings())]
        title = f"{self.name}: {self.layout}" if self.layout else self.name
        return Table(title, ("class", *names, "together"), groups, notes)

    def _describe(self) -> Iterator[str]:
        if self.is_divided:
            yield "There is no test split: the test images are chosen within each class."
        if self.sizes is not None:
            yield f"width: {self.sizes.width}, height: {self.sizes.height} pixels"
            yield f"longer side / shorter side: {self.sizes.ratio}"
        if (contents := self.contents) is not None:
            yield f"formats: {_list_counts(contents.formats)}"
            yield f"pixels: {_list_counts(contents.modes)}"
            mean, std = (", ".join(f"{x:.4f}" for x in y) for y in (contents.mean, contents.std))
            yield f"mean of the training images: {mean}; standard deviation: {std}"

    def list_warnings(self) -> list[str]:
        """Return what may go wrong when a model is trained, each with what to do about it."""
        warnings = list(_warn_of_classes(self.splits))
        if self.contents is not None:
            number = sum(split.num_images for split in self.splits)
            warnings += _warn_of_copies(self.contents)
            warnings += _warn_of_images(self.contents, number)
        return warnings


def _counts(values: Sequence[int]) -> list[str]:
    return [f"{value:,}" for value in (*values, sum(values))]


def _list_counts(counts: Mapping[str, int]) -> str:
    ordered = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    return ", ".join(f"{name} ({count:,})" for name, count in ordered)


def _name(names: Sequence[str]) -> str:
    return ", ".join(names[:MAX_NAMED]) + ", ..." * (len(names) > MAX_NAMED)


def _warn_of_classes(splits: Sequence[SplitSummary]) -> Iterator[str]:
    train, *others = splits
    few = [name for name, count in train.classes.items() if count < FEW_IMAGES]
    if few:
        classes = format_count(len(few), "class")
        yield (
            f"{classes} with fewer than {FEW_IMAGES} training images ({_name(few)}): add images, "
            "or name the other classes with --data.classes"
        )
    if train.imbalance >= STRONG_IMBALANCE:
        yield (
            f"the largest class has {train.imbalance:,.0f} times as many training images as the "
            "smallest: pass --data.sampling balanced or --train.loss.class-weights balanced, and "
            "look at the accuracy of each class"
        )
    for split in others:
        if missing := split.missing:
            classes = format_count(len(missing), "class")
            yield (
                f"{classes} without {split.name} images ({_name(missing)}), whose accuracy is "
                f"not known: add {split.name} images of them"
            )


def _warn_of_copies(contents: Contents) -> Iterator[str]:
    for split, by_other in contents.shared.items():
        for other, copies in by_other.items():
            yield (
                f"{format_count(copies.num_images, f'{split} image')} also in the {other} split "
                f"({copies.example}): keep them in one of the two only, or the {split} "
                "accuracy will be too high"
            )
    for split, copies in contents.repeated.items():
        yield (
            f"{format_count(copies.num_images, f'{split} image')} with the pixels of another one "
            f"({copies.example}): keep one of each, because copies count twice"
        )
    if contents.contradictory.num_images:
        yield (
            f"{format_count(contents.contradictory.num_images, 'image')} with a copy of another "
            f"class ({contents.contradictory.example}): keep one of each, in its right class"
        )


def _warn_of_images(contents: Contents, number: int) -> Iterator[str]:
    if contents.unreadable:
        first = contents.unreadable[0]
        yield (
            f"{format_count(len(contents.unreadable), 'unreadable image')} "
            f"({first.image}: {first.reason}): replace or remove them, or train with "
            "--data.on-error skip"
        )
    if contents.num_constant:
        yield (
            f"{format_count(contents.num_constant, 'image')} of a single color: look at them, and "
            "convert or remove them"
        )
    if contents.num_animated:
        yield (
            f"{format_count(contents.num_animated, 'animated image')}, of which only the first "
            "frame is used: extract the other frames as images of their own if they matter"
        )
    if contents.num_long >= NOTABLE * number:
        yield (
            f"{format_count(contents.num_long, 'image')} with sides longer than {LONG:g} to 1, of "
            "which only the center is used: crop them to what matters, or add a margin"
        )
