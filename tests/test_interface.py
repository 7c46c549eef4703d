"""Counts in texts."""

import pytest

from associative_transformer.interface import format_count


@pytest.mark.parametrize(
    ("number", "noun", "text"),
    [
        (1, "layer", "1 layer"),
        (0, "image", "0 images"),
        (2_000, "test image", "2,000 test images"),
        (1, "class", "1 class"),
        (10, "class", "10 classes"),
    ],
)
def test_a_noun_is_singular_only_after_one(number: int, noun: str, text: str) -> None:
    assert format_count(number, noun) == text
