"""Answers of a model on a split: accuracy by class, calibration, and the worst mistakes.

Calibration follows Guo et al. 2017 (arXiv 1706.04599).

Dims     B batch   O classes   C confidence bins   A = C + 1 bin edges   W worst mistakes
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from associative_transformer.calibration import NUM_BINS, Reliability, sum_by_bin
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
    temperature: float | None = None  # of the model; this and below: None if it has none
    scaled_confidence: Float[np.ndarray, " C"] | None = None  # with logits divided by it
    scaled_accuracy: Float[np.ndarray, " C"] | None = None
    scaled_error: float | None = None

    def describe(self) -> Iterator[str]:
        """Yield the main numbers as lines of text."""
        num_items, num_correct = int(self.confusion.sum()), int(self.confusion.trace())
        line = (
            f"{100 * num_correct / num_items:.2f} % of {format_count(num_items, 'item')} correct, "
            f"calibration error {100 * self.calibration_error:.2f} %"
        )
        if self.temperature is not None and self.scaled_error is not None:
            line += f", {100 * self.scaled_error:.2f} % at temperature {self.temperature:.3f}"
        yield line


class _Predictions(NamedTuple):
    """Predictions for some items, on the CPU."""

    items: Int[Tensor, " B"]  # indices in the split
    labels: Int[Tensor, " B"]
    predicted: Int[Tensor, " B"]
    scaled: Float[Tensor, " B"]  # confidence with the logits divided by the temperature
    confidence: Float[Tensor, " B"]


def measure_answers(
    model: nn.Module,
    batches: Iterable[Batch],
    classes: Sequence[str],
    num_bins: int = NUM_BINS,
    num_worst: int = 24,
) -> Answers:
    """Compare the predictions of any model, and their confidence, with the labels.

    A bin includes its upper edge and excludes its lower one. Equally confident mistakes keep their
    order. The model runs in evaluation mode and is then returned to its own. Raises UserError if
    it predicts nan, and ValueError if `classes` has the wrong length or there are no items.
    """
    edges = np.linspace(0, 1, num_bins + 1)
    temperature: float | None = getattr(model, "temperature", None)
    predictions = _predict(model, batches, len(classes), temperature or 1.0)
    confusion, sums, worst = _count(predictions, len(classes), edges, num_worst)
    plain, scaled = (Reliability.from_sums(torch.from_numpy(edges), each) for each in sums)
    if not plain.items.any():
        raise ValueError("there are no items to answer")
    answers = Answers(
        classes=list(classes),
        confusion=confusion.numpy(),
        bins=edges,
        bin_items=plain.items.numpy(),
        bin_confidence=plain.confidence.numpy(),
        bin_accuracy=plain.accuracy.numpy(),
        calibration_error=plain.error,
        worst=worst.items.numpy(),
        worst_labels=worst.labels.numpy(),
        worst_predicted=worst.predicted.numpy(),
        worst_confidence=worst.confidence.numpy(),
    )
    if temperature is None:
        return answers
    return replace(
        answers,
        temperature=temperature,
        scaled_confidence=scaled.confidence.numpy(),
        scaled_accuracy=scaled.accuracy.numpy(),
        scaled_error=scaled.error,
    )


class _Counts(NamedTuple):
    """What is counted over all batches."""

    confusion: Int[Tensor, "O O"]
    sums: Float[Tensor, "2 3 C"]  # see `sum_by_bin`; as predicted, then scaled
    worst: _Predictions


def _count(
    all_predictions: Iterable[_Predictions],
    num_classes: int,
    edges: Float[np.ndarray, " A"],
    num_worst: int,
) -> _Counts:
    confusion = torch.zeros(num_classes**2, dtype=torch.int64)
    sums = torch.zeros(2, 3, len(edges) - 1, dtype=torch.float64)
    empty = torch.zeros(0, dtype=torch.int64)
    worst = _Predictions(empty, empty, empty, empty.double(), empty.double())
    for predictions in all_predictions:
        pairs = predictions.labels * num_classes + predictions.predicted
        confusion += pairs.bincount(minlength=len(confusion))
        is_right = predictions.predicted == predictions.labels
        for i, confidence in enumerate((predictions.confidence, predictions.scaled)):
            sums[i] += sum_by_bin(confidence, is_right, torch.from_numpy(edges))
        wrong = _Predictions(*(column[~is_right] for column in predictions))
        worst = _most_confident(worst, wrong, num_worst)
    return _Counts(confusion.view(num_classes, num_classes), sums, worst)


def _predict(
    model: nn.Module, batches: Iterable[Batch], num_classes: int, temperature: float
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
            scaled, confidence = (
                (logits[is_real] / divisor).softmax(dim=-1).gather(-1, best[:, None])[:, 0]
                for divisor in (temperature, 1)
            )
            if confidence.isnan().any():
                raise UserError(
                    "the model predicts nan: check the images, or train again if its weights "
                    "are damaged"
                )
            items = num_items + torch.arange(len(best))
            num_items += len(best)
            yield _Predictions(items, labels[is_real], best, scaled, confidence)
    finally:
        model.train(was_training)


def _most_confident(one: _Predictions, other: _Predictions, count: int) -> _Predictions:
    both = [torch.cat(columns) for columns in zip(one, other, strict=True)]
    order = both[-1].sort(descending=True, stable=True).indices[:count]
    return _Predictions(*(column[order] for column in both))
