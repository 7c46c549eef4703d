"""The loss: smoothed labels, weighted classes, mixed images."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from associative_transformer.optimization import LossConfig
from associative_transformer.training.loss import (
    Loss,
    balanced_weights,
    build_loss,
    count_correct,
)

LABELS = torch.tensor([0, 0, 0, 2, 2, 3])  # class 1 does not occur
CONFIGS: dict[str, Any] = {
    "plain": {},
    "smoothed": {"label_smoothing": 0.2},
    "weighted": {"class_weights": "balanced"},
    "both": {"label_smoothing": 0.2, "class_weights": "balanced"},
}
each_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


def slow_loss(logits: Tensor, shares: Tensor, smoothing: float, weights: list[float]) -> float:
    """Compute the loss one image and one class at a time."""
    total = 0.0
    for row, share in zip(logits.tolist(), shares.tolist(), strict=True):
        normalizer = math.log(sum(math.exp(value) for value in row))
        for value, target, weight in zip(row, share, weights, strict=True):
            target = (1 - smoothing) * target + smoothing / len(row)
            total += weight * target * (normalizer - value)
    return total / len(logits)


def weights_of(config: LossConfig) -> list[float]:
    counts = [3, 0, 2, 1]
    if config.class_weights == "none":
        return [1.0] * 4
    return [6 / (3 * count) if count else 0.0 for count in counts]


@each_config
@pytest.mark.parametrize("is_mixed", [False, True])
def test_the_loss_equals_the_loops(config: dict[str, Any], is_mixed: bool) -> None:
    settings = LossConfig(**config)
    loss = build_loss(settings, LABELS, 4)
    logits = torch.randn(5, 4, dtype=torch.float64)
    labels = torch.randint(4, (5,))
    shares = torch.nn.functional.one_hot(labels, 4).double()
    if is_mixed:
        shares = torch.rand(5, 4, dtype=torch.float64)
        shares /= shares.sum(dim=1, keepdim=True)
    expected = slow_loss(logits, shares, settings.label_smoothing, weights_of(settings))
    given = shares if is_mixed else labels
    assert loss(logits, given).item() == pytest.approx(expected, rel=1e-6)  # weights in float32


@each_config
def test_the_mean_over_parts_of_a_batch_is_that_of_the_batch(config: dict[str, Any]) -> None:
    loss = build_loss(LossConfig(**config), LABELS, 4)
    logits, labels = torch.randn(6, 4), torch.randint(4, (6,))
    parts = [loss(*part) for part in zip(logits.chunk(3), labels.chunk(3), strict=True)]
    torch.testing.assert_close(torch.stack(parts).mean(), loss(logits, labels))


def test_weights_average_to_one_over_the_items() -> None:
    weights = balanced_weights(LABELS, 4)
    assert weights[LABELS].mean().item() == pytest.approx(1)
    assert weights[1] == 0
    assert weights[3] == 3 * weights[0]


def test_weights_without_a_setting_and_the_reverse_are_refused() -> None:
    with pytest.raises(ValueError, match="pass weights if"):
        Loss(LossConfig(), torch.ones(3))
    with pytest.raises(ValueError, match="pass weights if"):
        Loss(LossConfig(class_weights="balanced"))


def test_a_mixed_image_counts_as_the_class_with_the_larger_share() -> None:
    logits = torch.tensor([[2.0, 1.0], [2.0, 1.0], [1.0, 2.0]])
    assert count_correct(logits, torch.tensor([0, 1, 1])) == 2
    mixed = torch.tensor([[0.7, 0.3], [0.4, 0.6], [0.1, 0.9]])
    assert count_correct(logits, mixed) == 2
