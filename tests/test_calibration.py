"""Calibration errors by hand and by loops, and temperatures compared with a search on a grid."""

import json
import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from associative_transformer.calibration import (
    MAX_TEMPERATURE,
    NUM_BINS,
    fit_temperature,
    measure_reliability,
)


def draw(num_items: int, num_classes: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return logits whose probabilities are those from which their labels were drawn."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(num_items, num_classes, generator=generator)
    labels = torch.multinomial(logits.softmax(dim=-1), 1, generator=generator)[:, 0]
    return logits, labels


# --- reliability ---


def error_by_loop(logits: Tensor, labels: Tensor, num_bins: int) -> float:
    """Return the expected calibration error of Guo et al., equation 3, item by item."""
    bins: list[list[tuple[float, bool]]] = [[] for _ in range(num_bins)]
    for row, label in zip(logits.double().tolist(), labels.tolist(), strict=True):
        total = sum(math.exp(x - max(row)) for x in row)
        confidence, predicted = 1 / total, row.index(max(row))
        m = next(m for m in range(num_bins) if confidence <= (m + 1) / num_bins + 1e-12)
        bins[m].append((confidence, predicted == label))
    error = 0.0
    for answers in filter(None, bins):
        accuracy = sum(is_right for _, is_right in answers) / len(answers)
        confidence = sum(sure for sure, _ in answers) / len(answers)
        error += len(answers) / len(labels) * abs(accuracy - confidence)
    return error


@pytest.mark.parametrize("num_bins", [1, 4, NUM_BINS])
@pytest.mark.parametrize("num_classes", [2, 10])
def test_the_error_is_that_of_a_loop(num_bins: int, num_classes: int) -> None:
    logits, labels = draw(300, num_classes)
    reliability = measure_reliability(3 * logits, labels, num_bins=num_bins)
    assert reliability.error == pytest.approx(error_by_loop(3 * logits, labels, num_bins))
    assert int(reliability.items.sum()) == 300


def test_the_error_of_four_answers_agrees_with_a_calculation_by_hand() -> None:
    shares = torch.tensor([[0.95, 0.05], [0.05, 0.95], [0.25, 0.75], [0.55, 0.45]])
    reliability = measure_reliability(shares.log(), torch.tensor([0, 0, 1, 1]), num_bins=10)
    assert reliability.items.tolist() == [0, 0, 0, 0, 0, 1, 0, 1, 0, 2]
    assert reliability.error == pytest.approx((2 * 0.45 + 0.25 + 0.55) / 4)


def test_there_are_fifteen_bins_and_empty_ones_have_no_mean() -> None:
    reliability = measure_reliability(torch.tensor([[9.0, 0.0]]), torch.tensor([0]))
    values = json.loads(json.dumps(reliability.to_dict()))
    assert values["edges"] == pytest.approx(np.arange(16) / 15)
    assert values["items"] == [0] * 14 + [1]
    assert values["confidence"][:14] == values["accuracy"][:14] == [None] * 14
    assert values["accuracy"][14] == 1


def test_a_temperature_divides_the_logits() -> None:
    logits, labels = draw(100, 5)
    warm, halved = (
        measure_reliability(logits, labels, 2.0),
        measure_reliability(logits / 2, labels),
    )
    assert warm.error == pytest.approx(halved.error)
    assert torch.equal(warm.items, halved.items)


def test_logits_that_are_not_finite_have_no_error() -> None:
    logits, labels = draw(10, 3)
    logits[4, 1] = float("nan")
    assert math.isnan(measure_reliability(logits, labels).error)
    assert fit_temperature(logits, labels) is None


# --- temperature ---


@pytest.mark.parametrize("factor", [0.02, 0.5, 1.0, 3.0, 40.0])
def test_the_temperature_of_scaled_logits_is_the_scale(factor: float) -> None:
    logits, labels = draw(500, 6)
    plain, scaled = fit_temperature(logits, labels), fit_temperature(factor * logits, labels)
    assert plain is not None
    assert plain == pytest.approx(1, abs=0.15)  # the labels were drawn at temperature 1
    assert scaled == pytest.approx(factor * plain, rel=1e-5)


@pytest.mark.parametrize("seed", range(5))
def test_no_temperature_on_a_grid_has_a_lower_cross_entropy(seed: int) -> None:
    logits, labels = draw(200, 4, seed)
    logits = 2.5 * logits + torch.randn(1)
    best = fit_temperature(logits, labels)
    assert best is not None

    def loss(temperature: float) -> float:
        return cross_entropy(logits.double() / temperature, labels).item()

    grid = np.exp(np.linspace(-4, 4, 400))
    assert all(loss(best) <= loss(temperature) for temperature in grid)
    for near in (0.999, 1.001):
        assert loss(best) < loss(near * best)


def test_the_optimizer_of_torch_finds_the_same_temperature() -> None:
    logits, labels = draw(300, 10)
    logits = 4 * logits.double()
    log_temperature = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([log_temperature], max_iter=100, tolerance_change=1e-15)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = cross_entropy(logits * (-log_temperature).exp(), labels)
        loss.backward()
        return loss

    optimizer.step(closure)
    assert fit_temperature(logits, labels) == pytest.approx(log_temperature.exp().item(), rel=1e-5)


def test_a_fitted_temperature_reduces_the_error_on_other_items() -> None:
    logits, labels = draw(4_000, 5)
    logits = 3 * logits  # overconfident
    temperature = fit_temperature(logits[:2_000], labels[:2_000])
    assert temperature is not None
    before = measure_reliability(logits[2_000:], labels[2_000:]).error
    after = measure_reliability(logits[2_000:], labels[2_000:], temperature).error
    assert after < 0.03 < 0.15 < before


def test_adding_a_number_to_all_logits_of_an_item_changes_nothing() -> None:
    logits, labels = draw(100, 5)
    shifted = logits.double() + 1_000 * torch.rand(100, 1, dtype=torch.float64)
    assert fit_temperature(shifted, labels) == pytest.approx(fit_temperature(logits, labels))


def test_right_answers_alone_and_mere_chance_have_no_temperature() -> None:
    logits, _ = draw(50, 5)
    assert fit_temperature(logits, logits.argmax(dim=-1)) is None
    assert fit_temperature(logits, logits.argmin(dim=-1)) is None
    assert fit_temperature(torch.zeros(50, 5), torch.zeros(50).long()) is None
    assert fit_temperature(logits[:0], torch.zeros(0).long()) is None


def test_the_range_of_temperatures_includes_very_large_and_very_small_logits() -> None:
    logits, labels = draw(200, 5)
    for factor in (MAX_TEMPERATURE / 2, 2 / MAX_TEMPERATURE):
        assert fit_temperature(factor * logits, labels) == pytest.approx(factor, rel=0.2)
