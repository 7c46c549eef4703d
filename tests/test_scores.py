"""Intervals and scores of classes, compared with loops and published numbers."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from associative_transformer.scores import (
    ClassMeans,
    ClassScore,
    Interval,
    average_classes,
    describe_classes,
    interval_by_image,
    is_in_top,
    score_classes,
    wilson_interval,
)

# --- intervals ---


def wilson(share: float, n: float) -> tuple[float, float]:
    """Return the interval in percent by Wilson's formula (1927)."""
    z = 1.959964
    center, spread = share + z * z / (2 * n), share * (1 - share) / n + z * z / (4 * n * n)
    low, high = ((center + side * z * math.sqrt(spread)) / (1 + z * z / n) for side in (-1, 1))
    return 100 * low, 100 * high


def interval(answers: list[list[bool]]) -> Interval:
    """Return the interval of answers that are grouped by image."""
    images = [image for image, of_image in enumerate(answers) for _ in of_image]
    is_right = [right for of_image in answers for right in of_image]
    return interval_by_image(torch.tensor(is_right), torch.tensor(images))


@pytest.mark.parametrize(("share", "count"), [(0.8, 10), (0, 1), (1, 7), (0.5, 3), (0.999, 1e5)])
def test_the_interval_of_independent_items_is_that_of_the_formula(
    share: float, count: float
) -> None:
    bounds = wilson_interval(share, count)
    assert bounds == pytest.approx(wilson(share, count), abs=1e-4)
    assert 0 <= bounds.low <= 100 * share + 1e-9
    assert 100 * share - 1e-9 <= bounds.high <= 100


def test_without_items_anything_is_possible() -> None:
    assert wilson_interval(0.0, 0) == (0, 100)
    nothing = torch.zeros(0, dtype=torch.int64)
    assert interval_by_image(nothing.bool(), nothing) == (0, 100)


@pytest.mark.parametrize("share", [0.05, 0.5, 0.9])
def test_95_of_100_intervals_contain_the_true_share(share: float) -> None:
    count, random = 40, np.random.default_rng(0)
    right = random.binomial(count, share, size=20_000)
    bounds = {n: wilson_interval(n / count, count) for n in range(count + 1)}
    covered = [bounds[n].low <= 100 * share <= bounds[n].high for n in right.tolist()]
    assert 0.93 < np.mean(covered) < 0.98


def test_one_question_about_each_image_gives_exactly_the_interval_of_independent_items() -> None:
    for n in (1, 2, 9, 100, 1_000):
        is_right = torch.rand(n) < 0.8
        share = is_right.double().mean().item()
        assert interval_by_image(is_right, torch.randperm(n)) == wilson_interval(share, n)


def test_wilson_in_this_file_gives_published_numbers() -> None:
    assert wilson(8 / 10, 10) == pytest.approx((49.02, 94.33), abs=0.01)
    assert wilson(1.0, 10) == pytest.approx((72.25, 100.0), abs=0.01)


@pytest.mark.parametrize(("num_right", "num_images"), [(8, 10), (75, 100), (1, 200)])
def test_with_one_question_per_image_the_interval_is_that_of_independent_answers(
    num_right: int, num_images: int
) -> None:
    share = num_right / num_images
    bounds = interval([[i < num_right] for i in range(num_images)])
    assert bounds == pytest.approx(wilson(share, num_images), abs=1e-4)


@pytest.mark.parametrize("each", [2, 10])
@pytest.mark.parametrize(("num_right", "num_images"), [(8, 10), (150, 200)])
def test_identical_answers_about_an_image_count_once(
    num_right: int, num_images: int, each: int
) -> None:
    bounds = interval([[i < num_right] * each for i in range(num_images)])
    assert bounds == pytest.approx(wilson(num_right / num_images, num_images), abs=1e-4)


def test_another_error_never_raises_the_interval() -> None:
    for each in (2, 10):
        flat = [True] * 200 * each
        bounds = []
        for errors in range(30):
            answers = [False] * errors + flat[errors:]
            bounds.append(interval([answers[i::200] for i in range(200)]))
        for before, after in pairwise(bounds):
            assert after.low <= before.low + 0.1  # percent
            assert after.high <= before.high + 0.1


@pytest.mark.parametrize("is_right", [True, False])
def test_if_all_answers_are_right_or_all_are_wrong_the_number_of_images_counts(
    is_right: bool,
) -> None:
    for num_images in (1, 7, 200):
        bounds = interval([[is_right] * 10] * num_images)
        assert bounds == pytest.approx(wilson(float(is_right), num_images), abs=1e-4)
        assert bounds[is_right] == pytest.approx(100 * is_right)


def test_the_interval_of_a_single_image_is_wide() -> None:
    low, high = interval([[True] * 6 + [False] * 2])
    assert (low, high) == pytest.approx(wilson(0.75, 1), abs=1e-4)
    assert high - low > 60


def test_neither_the_order_nor_the_numbers_of_the_images_matter() -> None:
    is_right = torch.rand(60) < 0.7
    images = torch.arange(60) // 6
    order = torch.randperm(60)
    bounds = interval_by_image(is_right[order], 5 * images[order] + 3)
    assert bounds == pytest.approx(interval_by_image(is_right, images))


def test_an_interval_contains_the_accuracy_and_is_never_narrower_than_wilsons() -> None:
    random = np.random.default_rng(0)
    for _ in range(200):
        sizes = random.integers(1, 12, size=random.integers(1, 30))
        shares = random.beta(0.5, 0.2, size=len(sizes))
        answers = [(random.random(n) < p).tolist() for n, p in zip(sizes, shares, strict=True)]
        flat = [right for of_image in answers for right in of_image]
        share, (low, high) = sum(flat) / len(flat), interval(answers)
        naive_low, naive_high = wilson(share, len(flat))
        assert 0 <= low <= 100 * share + 1e-9
        assert 100 * share - 1e-9 <= high <= 100
        assert high - low >= naive_high - naive_low - 1e-3


@pytest.mark.parametrize(("share", "least"), [(0.75, 0.92), (0.99, 0.92)])
def test_the_interval_covers_the_true_accuracy_even_if_that_of_independent_answers_does_not(
    share: float, least: float
) -> None:
    random = np.random.default_rng(0)
    num_images, each, num_trials = 200, 10, 1500
    covered, covered_by_wilson = 0, 0
    images = torch.arange(num_images).repeat_interleave(each)
    for _ in range(num_trials):
        of_image = random.beta(2 * share, 2 * (1 - share), size=(num_images, 1))
        is_right = random.random((num_images, each)) < of_image
        low, high = interval_by_image(torch.from_numpy(is_right.ravel()), images)
        covered += low <= 100 * share <= high
        low, high = wilson(float(is_right.mean()), num_images * each)
        covered_by_wilson += low <= 100 * share <= high
    assert least <= covered / num_trials <= 0.99
    assert covered_by_wilson / num_trials < 0.8


# --- classes ---


def scores_by_loop(
    labels: list[int], predicted: list[int], num_classes: int
) -> list[tuple[int, float | None, float | None, float | None]]:
    """Return items, recall, precision and F1 of each class as shares, by their definitions."""
    scores = []
    for c in range(num_classes):
        pairs = list(zip(labels, predicted, strict=True))
        hits = sum(true == c and chosen == c for true, chosen in pairs)
        misses = sum(true == c and chosen != c for true, chosen in pairs)
        false_alarms = sum(true != c and chosen == c for true, chosen in pairs)
        recall = hits / (hits + misses) if hits + misses else None
        precision = hits / (hits + false_alarms) if hits + false_alarms else None
        f1 = None
        if recall and precision:
            f1 = 2 / (1 / recall + 1 / precision)
        elif hits + misses + false_alarms:
            f1 = 0.0
        if recall is not None and precision is None:
            precision = 0.0
        scores.append((hits + misses, recall, precision, f1))
    return scores


@pytest.mark.parametrize("seed", range(20))
def test_recall_precision_and_f1_are_those_of_a_loop(seed: int) -> None:
    random = np.random.default_rng(seed)
    num_classes, n = int(random.integers(2, 9)), int(random.integers(1, 40))
    labels, predicted = random.integers(num_classes, size=(2, n)).tolist()
    names = [f"class {i}" for i in range(num_classes)]
    rows = torch.arange(n)
    scores = score_classes(torch.tensor(labels), torch.tensor(predicted), rows, names)
    expected = scores_by_loop(labels, predicted, num_classes)
    for name, score, (items, *shares) in zip(names, scores, expected, strict=True):
        assert (score.name, score.items) == (name, items)
        percents = [None if share is None else pytest.approx(100 * share) for share in shares]
        assert [score.recall, score.precision, score.f1] == percents
        if score.recall is None:
            assert score.interval == (0, 100)
        else:
            assert score.interval == pytest.approx(wilson(score.recall / 100, items), abs=1e-4)
    tested = [shares for items, *shares in expected if items]
    means = [100 * sum(column) / len(tested) for column in zip(*tested, strict=True)]
    assert average_classes(scores) == pytest.approx(means)


def test_the_balanced_accuracy_does_not_depend_on_how_frequent_a_class_is() -> None:
    labels, predicted = torch.tensor([0] * 8 + [1] * 2), torch.tensor([0] * 9 + [1])
    scores = score_classes(labels, predicted, torch.arange(10), ["frequent", "rare"])
    assert average_classes(scores).recall == pytest.approx(75)
    more, labels = torch.cat([predicted, predicted[:8]]), torch.cat([labels, labels[:8]])
    scores = score_classes(labels, more, torch.arange(18), ["frequent", "rare"])
    assert average_classes(scores).recall == pytest.approx(75)


def test_the_interval_of_a_class_counts_images_rather_than_questions() -> None:
    labels, predicted = torch.zeros(40).long(), torch.zeros(40).long()
    predicted[:20] = 1
    alone = score_classes(labels, predicted, torch.arange(40), ["yes", "no"])[0]
    shared = score_classes(labels, predicted, torch.arange(40) // 10, ["yes", "no"])[0]
    assert shared.interval.high - shared.interval.low > 2 * (alone.interval[1] - alone.interval[0])


def test_a_class_that_is_never_predicted_lowers_the_means_and_one_without_items_does_not() -> None:
    scores = score_classes(torch.tensor([0, 1]), torch.tensor([0, 2]), torch.arange(2), "abcd")
    assert [score.precision for score in scores] == [100, 0, 0, None]
    assert [score.recall for score in scores] == [100, 0, None, None]
    assert [score.f1 for score in scores] == [100, 0, 0, None]
    assert average_classes(scores) == ClassMeans(50, 50, 50)


# --- the most probable classes ---


@pytest.mark.parametrize("count", [1, 2, 5])
def test_the_true_class_is_searched_among_the_most_probable_ones(count: int) -> None:
    logits, labels = torch.randn(200, 8).round(decimals=0), torch.randint(8, (200,))  # many ties
    expected = []
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        order = sorted(range(8), key=lambda c: (-row[c], c))
        expected.append(label in order[:count])
    assert is_in_top(logits, labels, count).tolist() == expected


def test_the_most_probable_class_is_the_predicted_one() -> None:
    logits, labels = torch.randn(100, 7), torch.randint(7, (100,))
    assert torch.equal(is_in_top(logits, labels, 1), logits.argmax(dim=-1) == labels)


def test_a_model_that_predicts_nan_finds_nothing() -> None:
    logits = torch.full((4, 6), float("nan"))
    assert not is_in_top(logits, torch.tensor([0, 1, 4, 5]), 5).any()


# --- text ---


def test_few_classes_are_all_described_in_their_order() -> None:
    scores = [
        ClassScore("cat", 20, 50.0, Interval(29.93, 70.07), 62.5, 55.5556),
        ClassScore("none", 0, None, Interval(0, 100), None, None),
    ]
    header, cat, none = describe_classes(scores).splitlines()
    assert header.split() == ["recall", "95", "%", "interval", "precision", "F1", "items", "class"]
    assert " ".join(cat.split()) == "50.00 % 29.93 to 70.07 % 62.50 % 55.56 % 20 cat"
    assert none.split() == ["-", "-", "-", "-", "0", "none"]
    assert header.index("class") == cat.index("cat") == none.index("none")


def test_of_many_classes_those_with_the_lowest_recall_are_described() -> None:
    recalls = np.random.default_rng(0).permutation(30).tolist()
    bounds = Interval(0, 100)
    scores = [ClassScore(f"class {r}", 9, float(r), bounds, 1.0, 1.0) for r in recalls]
    scores.append(ClassScore("without items", 0, None, bounds, None, None))
    first, _, *lines = describe_classes(scores).splitlines()
    assert first == "classes with the lowest recall, 10 of 31:"
    assert [line.rpartition("  ")[2] for line in lines] == [f"class {i}" for i in range(10)]
