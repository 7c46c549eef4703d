"""The loss on the labels of a batch: cross-entropy, with smoothed labels or weighted classes.

Dims     B batch   O classes   N items of the training set
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy

from associative_transformer.optimization import LossConfig

Labels = Int[Tensor, " B"] | Float[Tensor, "B O"]
"""Class indices, or probabilities of the classes for mixed images."""


def balanced_weights(labels: Int[Tensor, " N"], num_classes: int) -> Float[Tensor, " O"]:
    """Return a weight for each class, inversely proportional to its number of items.

    The mean over the items is 1: weight = N / (number of classes with items * items of the class).
    A class without items has weight 0.
    """
    counts = labels.bincount(minlength=num_classes).double()
    present = counts > 0
    weights = len(labels) / (present.sum() * counts.clamp(min=1))
    return torch.where(present, weights, 0.0).float()


class Loss:
    """Mean cross-entropy over a batch, in nats."""

    def __init__(self, config: LossConfig, weights: Float[Tensor, " O"] | None = None) -> None:
        """Set the loss; `weights` are those of the classes, None: all are 1."""
        if (config.class_weights == "none") != (weights is None):
            raise ValueError(
                f"loss.class_weights is {config.class_weights!r}: pass weights if it is balanced, "
                "and only then"
            )
        self.smoothing, self.weights = config.label_smoothing, weights

    def __call__(self, logits: Float[Tensor, "B O"], labels: Labels) -> Float[Tensor, ""]:
        """Return the loss of the logits of a batch.

        Weighted losses are divided by the number of images, not by the sum of their weights, so
        that the mean over parts of a batch is that of the whole batch.
        """
        if self.weights is None:
            return cross_entropy(logits, labels, label_smoothing=self.smoothing)
        weights = self.weights.to(logits)
        total = cross_entropy(
            logits, labels, weights, reduction="sum", label_smoothing=self.smoothing
        )
        return total / len(logits)


def build_loss(config: LossConfig, labels: Int[Tensor, " N"], num_classes: int) -> Loss:
    """Return the loss for the labels of a training set."""
    if config.class_weights == "none":
        return Loss(config)
    return Loss(config, balanced_weights(labels, num_classes))


def count_correct(logits: Float[Tensor, "B O"], labels: Labels) -> Float[Tensor, ""]:
    """Return how many images are classified correctly; a mixed one counts as its larger part."""
    classes = labels.argmax(dim=-1) if labels.is_floating_point() else labels
    return (logits.detach().argmax(dim=-1) == classes).float().sum()
