"""What a model answers on a split: how sure it is, how right, and where it is most wrong.

Calibration after Guo et al. 2017 (arXiv 1706.04599).

Dims     B batch   O classes   C bins of confidence   A = C + 1 edges of bins   W worst mistakes
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from associative_transformer.interface import PADDING, Batch, UserError


@dataclass(frozen=True)
class Answers:
    """Answers to every item of a split."""

    classes: list[str]
    confusion: Int[np.ndarray, "O O"]  # items by (true class, predicted class)
    bins: Float[np.ndarray, " A"]  # edges of the bins of confidence, from 0 to 1
    bin_items: Int[np.ndarray, " C"]
    bin_confidence: Float[np.ndarray, " C"]  # mean; nan where a bin is empty
    bin_accuracy: Float[np.ndarray, " C"]  # share that is right; nan where a bin is empty
    calibration_error: float  # expected: mean gap of the bins, weighted by their items
    worst: Int[np.ndarray, " W"]  # items answered wrong with most confidence, falling
    worst_labels: Int[np.ndarray, " W"]
    worst_predicted: Int[np.ndarray, " W"]
    worst_confidence: Float[np.ndarray, " W"]


class _Given(NamedTuple):
    """Answers to some items, on the CPU."""

    items: Int[Tensor, " B"]  # their places in the split
    labels: Int[Tensor, " B"]
    predicted: Int[Tensor, " B"]
    confidence: Float[Tensor, " B"]


def measure_answers(
    model: nn.Module,
    batches: Iterable[Batch],
    classes: Sequence[str],
    num_bins: int = 15,
    num_worst: int = 24,
) -> Answers:
    """Compare the answers of any model, and how sure it is of them, with the labels.

    A bin takes confidences above its lower edge, up to and with its upper one; of mistakes made
    with equal confidence the first come first. The model is put into evaluation mode and back.
    Raises UserError where it answers with nan, ValueError where it knows other classes.
    """
    was_training = model.training
    edges = np.linspace(0, 1, num_bins + 1)
    confusion = torch.zeros(len(classes) ** 2, dtype=torch.int64)
    sums = torch.zeros(3, num_bins, dtype=torch.float64)  # items, confidence, right answers
    none = torch.zeros(0, dtype=torch.int64)
    worst = _Given(none, none, none, none.double())
    for given in _answer(model.eval(), batches, len(classes)):
        pairs = given.labels * len(classes) + given.predicted
        confusion += pairs.bincount(minlength=len(confusion))
        sums += _sum_by_bin(given, torch.from_numpy(edges))
        is_wrong = given.predicted != given.labels
        wrong = _Given(*(column[is_wrong] for column in given))
        worst = _most_confident(worst, wrong, num_worst)
    model.train(was_training)
    items, confidence, right = sums.numpy()
    if not items.any():
        raise ValueError("there are no items to answer")
    with np.errstate(invalid="ignore"):  # 0 / 0 of an empty bin is nan
        return Answers(
            classes=list(classes),
            confusion=confusion.view(len(classes), len(classes)).numpy(),
            bins=edges,
            bin_items=items.astype(np.int64),
            bin_confidence=confidence / items,
            bin_accuracy=right / items,
            calibration_error=float(np.abs(confidence - right).sum() / items.sum()),
            worst=worst.items.numpy(),
            worst_labels=worst.labels.numpy(),
            worst_predicted=worst.predicted.numpy(),
            worst_confidence=worst.confidence.numpy(),
        )


def _answer(model: nn.Module, batches: Iterable[Batch], num_classes: int) -> Iterable[_Given]:
    """Answer one batch after another, without its padding."""
    num_seen = 0
    for batch in batches:
        with torch.no_grad():
            logits = model(batch.images, batch.questions).logits.cpu().double()
        labels = batch.labels.cpu()
        real = labels != PADDING
        if logits.shape[1] != num_classes:
            raise ValueError(f"{num_classes} classes are named but {logits.shape[1]} answered")
        best = logits[real].argmax(dim=-1)
        confidence = logits[real].softmax(dim=-1).gather(-1, best[:, None])[:, 0]
        if confidence.isnan().any():
            raise UserError("the model answers with nan: its weights are broken, train it again")
        items = num_seen + torch.arange(len(best))
        num_seen += len(best)
        yield _Given(items, labels[real], best, confidence)


def _sum_by_bin(given: _Given, edges: Float[Tensor, " A"]) -> Float[Tensor, "3 C"]:
    """Give the items, the confidence and the right answers of each bin."""
    counted = (torch.ones(len(given.items)), given.confidence, given.predicted == given.labels)
    place = torch.bucketize(given.confidence, edges[1:-1])
    sums = edges.new_zeros(3, len(edges) - 1)
    return sums.index_add_(1, place, torch.stack([column.double() for column in counted]))


def _most_confident(worst: _Given, more: _Given, count: int) -> _Given:
    both = [torch.cat(columns) for columns in zip(worst, more, strict=True)]
    order = both[-1].sort(descending=True, stable=True).indices[:count]
    return _Given(*(column[order] for column in both))
