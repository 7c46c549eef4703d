"""Answers of a model on a split: accuracy by class, calibration, and the worst mistakes.

Calibration follows Guo et al. 2017 (arXiv 1706.04599).

Dims     B batch   O classes   C confidence bins   A = C + 1 bin edges   W worst mistakes
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from associative_transformer.interface import PADDING, Batch, UserError, format_count


@dataclass(frozen=True)
class Answers:
    """A model's answers to all items of a split."""

    classes: list[str]
    confusion: Int[np.ndarray, "O O"]  # items by (true class, predicted class)
    bins: Float[np.ndarray, " A"]  # edges of the confidence bins, from 0 to 1
    bin_items: Int[np.ndarray, " C"]
    bin_confidence: Float[np.ndarray, " C"]  # mean; nan if a bin is empty
    bin_accuracy: Float[np.ndarray, " C"]  # share of correct answers; nan if a bin is empty
    calibration_error: float  # expected: mean gap over the bins, weighted by their items
    worst: Int[np.ndarray, " W"]  # indices of the wrong answers, most confident first
    worst_labels: Int[np.ndarray, " W"]
    worst_predicted: Int[np.ndarray, " W"]
    worst_confidence: Float[np.ndarray, " W"]

    def describe(self) -> Iterator[str]:
        """Yield the main numbers as lines of text."""
        num_items, num_correct = int(self.confusion.sum()), int(self.confusion.trace())
        yield (
            f"{100 * num_correct / num_items:.2f} % of {format_count(num_items, 'item')} correct, "
            f"calibration error {100 * self.calibration_error:.2f} %"
        )


class _Predictions(NamedTuple):
    """Predictions for some items, on the CPU."""

    items: Int[Tensor, " B"]  # indices in the split
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
    """Compare the predictions of any model, and their confidence, with the labels.

    A bin includes its upper edge and excludes its lower one. Equally confident mistakes keep their
    order. The model runs in evaluation mode and is then returned to its own. Raises UserError if
    it predicts nan, and ValueError if `classes` has the wrong length or there are no items.
    """
    edges = np.linspace(0, 1, num_bins + 1)
    confusion = torch.zeros(len(classes) ** 2, dtype=torch.int64)
    sums = torch.zeros(3, num_bins, dtype=torch.float64)  # items, confidence, correct answers
    empty = torch.zeros(0, dtype=torch.int64)
    worst = _Predictions(empty, empty, empty, empty.double())
    for predictions in _predict(model, batches, len(classes)):
        pairs = predictions.labels * len(classes) + predictions.predicted
        confusion += pairs.bincount(minlength=len(confusion))
        sums += _sum_by_bin(predictions, torch.from_numpy(edges))
        is_wrong = predictions.predicted != predictions.labels
        wrong = _Predictions(*(column[is_wrong] for column in predictions))
        worst = _most_confident(worst, wrong, num_worst)
    items, confidence, correct = sums.numpy()
    if not items.any():
        raise ValueError("there are no items to answer")
    with np.errstate(invalid="ignore"):  # an empty bin gives 0 / 0, which is nan
        return Answers(
            classes=list(classes),
            confusion=confusion.view(len(classes), len(classes)).numpy(),
            bins=edges,
            bin_items=items.astype(np.int64),
            bin_confidence=confidence / items,
            bin_accuracy=correct / items,
            calibration_error=float(np.abs(confidence - correct).sum() / items.sum()),
            worst=worst.items.numpy(),
            worst_labels=worst.labels.numpy(),
            worst_predicted=worst.predicted.numpy(),
            worst_confidence=worst.confidence.numpy(),
        )


def _predict(
    model: nn.Module, batches: Iterable[Batch], num_classes: int
) -> Iterator[_Predictions]:
    """Yield the predictions for each batch without its padding, in evaluation mode."""
    num_items, was_training = 0, model.training
    model.eval()
    try:
        for batch in batches:
            with torch.no_grad():
                logits = model(batch.images, batch.questions).logits.cpu().double()
            labels = batch.labels.cpu()
            is_real = labels != PADDING
            if logits.shape[1] != num_classes:
                raise ValueError(
                    f"the model predicts {logits.shape[1]} classes, but {num_classes} are given"
                )
            best = logits[is_real].argmax(dim=-1)
            confidence = logits[is_real].softmax(dim=-1).gather(-1, best[:, None])[:, 0]
            if confidence.isnan().any():
                raise UserError(
                    "the model predicts nan: check the images, or train again if its weights "
                    "are damaged"
                )
            items = num_items + torch.arange(len(best))
            num_items += len(best)
            yield _Predictions(items, labels[is_real], best, confidence)
    finally:
        model.train(was_training)


def _sum_by_bin(predictions: _Predictions, edges: Float[Tensor, " A"]) -> Float[Tensor, "3 C"]:
    """Sum items, confidence and correct answers in each bin."""
    is_correct = predictions.predicted == predictions.labels
    summed = (torch.ones(len(is_correct)), predictions.confidence, is_correct)
    index = torch.bucketize(predictions.confidence, edges[1:-1])
    sums = edges.new_zeros(3, len(edges) - 1)
    return sums.index_add_(1, index, torch.stack([column.double() for column in summed]))


def _most_confident(one: _Predictions, other: _Predictions, count: int) -> _Predictions:
    both = [torch.cat(columns) for columns in zip(one, other, strict=True)]
    order = both[-1].sort(descending=True, stable=True).indices[:count]
    return _Predictions(*(column[order] for column in both))
