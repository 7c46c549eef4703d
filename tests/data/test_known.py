"""How images are told apart from those of a named data set."""

import pytest

from associative_transformer.data import HUB_DATA_SETS
from associative_transformer.data.known import KNOWN_DATA_SETS, find_difference


def test_every_short_name_is_known() -> None:
    assert KNOWN_DATA_SETS.keys() == HUB_DATA_SETS.keys()
    for known in KNOWN_DATA_SETS.values():
        assert len(known.classes) in (0, known.num_classes)


@pytest.mark.parametrize(
    ("name", "train", "test"),
    [("cifar10", 50_000, 10_000), ("cifar100", 50_000, 10_000), ("pets", 3_680, 3_669)],
)
def test_classes_and_sizes_are_compared(name: str, train: int, test: int) -> None:
    known = KNOWN_DATA_SETS[name]
    classes = known.classes or [str(label) for label in range(known.num_classes)]
    assert find_difference(name, classes, test, train) is None
    assert find_difference(name, classes) is None
    assert find_difference(name, classes, test - 1, train - 2, num_skipped=2) is None
    assert find_difference(name, classes, test, train + 1) == (
        f"{train + 1:,} training images instead of {train:,}"
    )
    assert find_difference(name, classes, test - 1) == (
        f"{test - 1:,} test images instead of {test:,}"
    )
    assert find_difference(name, classes[1:]) == (
        f"{known.num_classes - 1} classes instead of {known.num_classes}"
    )
    assert (find_difference(name, classes[::-1]) is None) == (not known.classes)


def test_only_the_number_of_classes_of_imagenet100_is_compared() -> None:
    classes = [str(label) for label in range(100)]
    assert find_difference("imagenet100", classes, 1, 2) is None
    assert find_difference("imagenet100", classes[1:]) == "99 classes instead of 100"


def test_nothing_is_known_about_other_names() -> None:
    assert find_difference("mine", ["a", "b"], 1, 2) is None
