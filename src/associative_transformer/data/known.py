"""What is known about the named data sets, to tell them from other images under the same name."""

from collections.abc import Sequence
from typing import NamedTuple


class KnownDataSet(NamedTuple):
    """The classes and sizes of a data set on the hub."""

    title: str
    num_classes: int
    train_images: int | None = None  # None: not compared
    test_images: int | None = None
    classes: tuple[str, ...] = ()  # in the order of their labels; empty: only the number counts

    def of_classes(self, classes: tuple[str, ...]) -> "KnownDataSet":
        """Return the part with these classes, which have equal numbers of images."""
        sizes = (self.train_images, self.test_images)
        train, test = (x and x * len(classes) // self.num_classes for x in sizes)
        return KnownDataSet(self.title, len(classes), train, test, classes)


CIFAR10_CLASSES = "airplane automobile bird cat deer dog frog horse ship truck"
CIFAR100_CLASSES = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly
camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup
dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower
leopard lion lizard lobster man maple_tree motorcycle mountain mouse mushroom oak_tree orange
orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine possum rabbit
raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider squirrel
streetcar sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip
turtle wardrobe whale willow_tree wolf woman worm
"""

KNOWN_DATA_SETS = {
    "cifar10": KnownDataSet("CIFAR-10", 10, 50_000, 10_000, tuple(CIFAR10_CLASSES.split())),
    "cifar100": KnownDataSet("CIFAR-100", 100, 50_000, 10_000, tuple(CIFAR100_CLASSES.split())),
    "pets": KnownDataSet("Oxford-IIIT Pet", 37, 3_680, 3_669),
    # its sizes are not compared: nobody has checked them against the files on the hub
    "imagenet100": KnownDataSet("ImageNet-100", 100),
}
"""By the short names of `ImagesConfig`."""


def find_difference(
    name: str,
    classes: Sequence[str],
    test_images: int | None = None,
    train_images: int | None = None,
    num_skipped: int = 0,
    is_subset: bool = False,
) -> str | None:
    """Return how a data set differs from the known one of its name; None if it does not.

    Also returns None if the name is not known. A size of None, given or known, is not compared;
    a size may be smaller by `num_skipped` images; `train_images` counts validation images too.
    With `is_subset`, it should have only some of the classes, which have equal numbers of images.
    """
    known = KNOWN_DATA_SETS.get(name)
    if known is None:
        return None
    if is_subset:
        if unknown := sorted(set(classes) - set(known.classes)):
            return f"a class {unknown[0]}"
        known = known.of_classes(tuple(classes))
    if len(classes) != known.num_classes:
        return f"{len(classes)} classes instead of {known.num_classes}"
    if known.classes and tuple(classes) != known.classes:
        mine, theirs = next(
            pair for pair in zip(classes, known.classes, strict=True) if len(set(pair)) > 1
        )
        return f"a class {mine} instead of {theirs}"
    sizes = {
        "test": (test_images, known.test_images),
        "training": (train_images, known.train_images),
    }
    for split, (number, expected) in sizes.items():
        if number is None or expected is None:
            continue
        if not expected - num_skipped <= number <= expected:
            return f"{number:,} {split} images instead of {expected:,}"
    return None
