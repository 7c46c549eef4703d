"""Accuracy, precision, recall and F1 with confidence intervals, from predicted and true classes.

Dims     N items   O classes
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import NormalDist, fmean
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from associative_transformer.interface import printable

MAX_CLASSES = 20  # that are described in full
NUM_WORST = 10  # that are described if there are more
Z = NormalDist().inv_cdf(0.975)  # quantile for a two-sided 95 % interval


class Interval(NamedTuple):
    """95 % confidence interval, in percent."""

    low: float
    high: float


def wilson_interval(share: int | float, count: int | float) -> Interval:
    """Return Wilson's interval (1927) for a share, from 0 to 1, of `count` independent items.

    Without items, it is 0 to 100 %.
    """
    if count == 0:
        return Interval(0.0, 100.0)
    center = share + Z**2 / (2 * count)
    half_width = Z * sqrt(share * (1 - share) / count + Z**2 / (4 * count**2))
    low, high = ((center + side * half_width) / (1 + Z**2 / count) for side in (-1, 1))
    return Interval(100 * max(low, 0.0), 100 * min(high, 1.0))


def interval_by_image(is_right: Bool[Tensor, " N"], images: Int[Tensor, " N"]) -> Interval:
    """Return the confidence interval of the accuracy on N questions about the given images.

    Answers about the same image are correlated, so the unit is the image. This is Wilson's
    interval for the effective number of questions, which is N divided by Kish's design effect: 1
    if there is one question about each image. The design effect is the variance between images
    relative to that of independent answers, limited to the range from 1 to the number of questions
    per image. A few errors cannot show how correlated they are, so the variance includes one
    imaginary image whose answers are all wrong, or all right if most answers are wrong.
    """
    n = len(is_right)
    if n == 0:
        return wilson_interval(0.0, 0)
    share = is_right.double().mean().item()
    _, image, sizes = torch.unique(images, return_inverse=True, return_counts=True)
    size = sizes.square().sum().item() / n  # questions per image, averaged over questions
    excess = torch.zeros(len(sizes) + 1, dtype=torch.float64)
    excess.index_add_(0, image, is_right.double() - share)
    excess[-1] = size * max(share, 1 - share)
    variance, independent = excess.square().sum().item() / n**2, share * (1 - share) / n
    effect = min(max(variance / independent, 1.0) if independent else size, size)
    return wilson_interval(share, n / effect)


def is_in_top(
    logits: Float[Tensor, "N O"], labels: Int[Tensor, " N"], count: int
) -> Bool[Tensor, " N"]:
    """Return whether the true class is one of the `count` classes with the largest logits.

    Of equal logits, that of the first class counts as larger. Classes whose logits are nan count
    as the largest, except the true one.
    """
    true = logits.gather(1, labels[:, None])
    is_earlier = torch.arange(logits.shape[1], device=logits.device) < labels[:, None]
    is_ahead = ~(logits <= true) | ((logits == true) & is_earlier)
    return is_ahead.sum(dim=1) < count


@dataclass(frozen=True)
class ClassScore:
    """Scores of one class, in percent; None if a score would divide by zero."""

    name: str
    items: int  # of the class
    recall: float | None  # the accuracy on its items; None without items
    interval: Interval  # of the recall
    precision: float | None  # 0 if the class has items and is never predicted
    f1: float | None  # harmonic mean of precision and recall


def score_classes(
    labels: Int[Tensor, " N"],
    predicted: Int[Tensor, " N"],
    images: Int[Tensor, " N"],
    names: Sequence[str],
) -> list[ClassScore]:
    """Score each class; `images` are the images that the items belong to, for the intervals."""
    is_right, scores = predicted == labels, []
    num_true = labels.bincount(minlength=len(names)).tolist()
    num_predicted = predicted.bincount(minlength=len(names)).tolist()
    num_right = labels[is_right].bincount(minlength=len(names)).tolist()
    for label, name in enumerate(names):
        true, chosen, right = num_true[label], num_predicted[label], num_right[label]
        in_class = labels == label
        scores.append(
            ClassScore(
                name,
                true,
                100 * right / true if true else None,
                interval_by_image(is_right[in_class], images[in_class]),
                100 * right / chosen if chosen else (0.0 if true else None),
                200 * right / (true + chosen) if true + chosen else None,
            )
        )
    return scores


class ClassMeans(NamedTuple):
    """Means over the classes that have items, in percent."""

    recall: float  # the balanced accuracy
    precision: float
    f1: float


def average_classes(scores: Sequence[ClassScore]) -> ClassMeans:
    """Average the scores of classes; each class that has items counts once."""
    tested = [score for score in scores if score.items]
    columns = [(s.recall or 0.0, s.precision or 0.0, s.f1 or 0.0) for s in tested]
    return ClassMeans(*map(fmean, zip(*columns, strict=True)))


def describe_classes(scores: Sequence[ClassScore]) -> str:
    """Return a line for each class, or for those with the lowest recall if there are many."""
    shown, tested = list(scores), [score for score in scores if score.items]
    header = f"{'recall':>8}  {'95 % interval':>18}  precision  {'F1':>8}  {'items':>6}  class"
    lines = [header]
    if len(scores) > MAX_CLASSES:
        shown = sorted(tested, key=lambda score: (score.recall or 0.0, score.f1 or 0.0))[
            :NUM_WORST
        ]
        lines.insert(0, f"classes with the lowest recall, {len(shown)} of {len(scores):,}:")
    for score in shown:
        low, high = score.interval
        interval = f"{low:6.2f} to {high:6.2f} %" if score.items else f"{'-':>16}  "
        recall, precision, f1 = map(_percent, (score.recall, score.precision, score.f1))
        name = printable(score.name)
        lines.append(f"{recall}  {interval}  {precision:>9}  {f1}  {score.items:6,}  {name}")
    return "\n".join(lines)


def _percent(value: float | None) -> str:
    return f"{'-':>6}  " if value is None else f"{value:6.2f} %"
