"""How far the confidence of a model is from its accuracy, and the temperature that reduces it.

Both follow Guo et al. 2017 (arXiv 1706.04599): the expected calibration error over bins of equal
width, and one temperature T that divides all logits. It changes no prediction.

Dims     N items   O classes   C confidence bins   A = C + 1 bin edges
"""

from dataclasses import dataclass
from math import exp, inf, isnan, log
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

NUM_BINS = 15
MAX_TEMPERATURE = 1_000.0
"""Temperatures between its inverse and this number are tried."""
NUM_HALVINGS = 48  # of the range of log T, to 5e-14 of its width


class Reliability(NamedTuple):
    """Confidence and accuracy in bins of equal width; a bin excludes its lower edge."""

    edges: Float[Tensor, " A"]  # from 0 to 1
    items: Int[Tensor, " C"]
    confidence: Float[Tensor, " C"]  # mean; nan if a bin is empty
    accuracy: Float[Tensor, " C"]  # share of right answers; nan if a bin is empty

    @classmethod
    def from_sums(cls, edges: Float[Tensor, " A"], sums: Float[Tensor, "3 C"]) -> "Reliability":
        """Return the means of what `sum_by_bin` sums."""
        items, confidence, right = sums
        return cls(edges, items.long(), confidence / items, right / items)  # 0 / 0 is nan

    @property
    def error(self) -> float:
        """Expected calibration error: the mean gap over the bins, weighted by their items.

        It is nan if a confidence is nan, or if there are no items.
        """
        gap = (self.confidence - self.accuracy).abs() * self.items
        return (gap[self.items > 0].sum() / self.items.sum()).item()

    def to_dict(self) -> dict[str, list[float | None]]:
        """Return the columns ready for JSON; the mean of an empty bin is None."""
        columns = {name: column.tolist() for name, column in self._asdict().items()}
        return {
            name: [None if isnan(value) else value for value in column]
            for name, column in columns.items()
        }


def sum_by_bin(
    confidence: Float[Tensor, " N"], is_right: Bool[Tensor, " N"], edges: Float[Tensor, " A"]
) -> Float[Tensor, "3 C"]:
    """Return, for each bin, its items, the sum of their confidence, and how many are right."""
    summed = torch.stack([torch.ones_like(confidence), confidence, is_right.to(confidence)])
    index = torch.bucketize(confidence, edges[1:-1])
    return edges.new_zeros(3, len(edges) - 1).index_add_(1, index, summed.to(edges))


def measure_reliability(
    logits: Float[Tensor, "N O"],
    labels: Int[Tensor, " N"],
    temperature: float = 1.0,
    num_bins: int = NUM_BINS,
) -> Reliability:
    """Compare confidence and accuracy after dividing the logits by a temperature, in float64."""
    edges = torch.from_numpy(np.linspace(0, 1, num_bins + 1))
    predicted = logits.argmax(dim=-1)
    probabilities = (logits.double() / temperature).softmax(dim=-1)
    confidence = probabilities.gather(-1, predicted[:, None])[:, 0]
    return Reliability.from_sums(edges, sum_by_bin(confidence, predicted == labels, edges))


def fit_temperature(logits: Float[Tensor, "N O"], labels: Int[Tensor, " N"]) -> float | None:
    """Return the temperature with the smallest cross-entropy, computed in float64.

    The cross-entropy is convex in 1 / T, so its slope changes sign once, and log T is found by
    halving an interval. None if there is no minimum between 1 / MAX_TEMPERATURE and
    MAX_TEMPERATURE, as when all predictions are right or no better than chance, or if the logits
    are not finite.

    Fit it on data that were used neither for training nor for the test.
    """
    z = logits.double()
    if not len(z) or not z.isfinite().all():
        return None
    z = z - z.amax(dim=-1, keepdim=True)
    true = z.gather(-1, labels[:, None])[:, 0].mean()

    def is_too_low(log_temperature: float) -> bool:
        """Return whether the cross-entropy still falls at this temperature."""
        shares = (z * exp(-log_temperature)).softmax(dim=-1)
        return bool((shares * z).sum(dim=-1).mean() > true)  # slope in 1 / T

    low, high = -log(MAX_TEMPERATURE), log(MAX_TEMPERATURE)
    if not is_too_low(low) or is_too_low(high):
        return None
    for _ in range(NUM_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if is_too_low(middle) else (low, middle)
    return exp((low + high) / 2)


@dataclass(frozen=True)
class Calibration:
    """Calibration errors on a test split, in percentage points."""

    error: float
    temperature: float | None = None  # fitted on the validation split; None: there is none
    scaled_error: float | None = None  # after dividing the logits by the temperature

    def __post_init__(self) -> None:
        if self.temperature is not None and not 0 < self.temperature < inf:
            raise ValueError(f"temperature must be a positive number, not {self.temperature}")
        if (self.temperature is None) != (self.scaled_error is None):
            raise ValueError("temperature and scaled_error must be given together")
