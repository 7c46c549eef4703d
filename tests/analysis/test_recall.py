"""Recall of planted patterns, and the promises of the theory."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from associative_transformer.analysis.networks import retrieve_until_rest
from associative_transformer.analysis.recall import (
    Recall,
    is_guaranteed,
    measure_recall,
    theoretical_capacity,
)
from associative_transformer.analysis.storage import load_result, save_result
from associative_transformer.interface import Batch, UserError
from associative_transformer.models.ait import AiT
from associative_transformer.models.vit import ViT, ViTConfig
from making.image_memory import SHARED, images_of, make_batches, make_model, planted


@torch.no_grad()
def with_attractors(attractors: Tensor) -> AiT:
    """Return a model of one layer, in all heads of whose read all images have these attractors."""
    model = planted(len(attractors))
    model.blocks[0].workspace.to_attractor.weight.copy_(attractors.T.repeat(3, 1))
    return model


def recall(attractors: Tensor, betas: tuple[float, ...], noise: tuple[float, ...]) -> Recall:
    batch = Batch(images_of(torch.rand(30, 4, len(attractors))), None, torch.zeros(30).long())
    return measure_recall(with_attractors(attractors), [batch], betas, noise)


# --- the theory ---


@pytest.mark.parametrize(
    ("beta", "k", "width", "c"), [(1.0, 3.0, 20, 3.1546), (1.0, 1.0, 75, 1.3718)]
)
def test_the_capacity_agrees_with_the_examples_of_the_paper(
    beta: float, k: float, width: int, c: float
) -> None:
    norm = k * math.sqrt(width - 1)
    expected = math.sqrt(0.001) * c ** ((width - 1) / 4)
    assert theoretical_capacity(width, norm, beta) == pytest.approx(expected, rel=2e-3)


def test_the_capacity_is_zero_if_the_theory_promises_less_than_two_patterns() -> None:
    assert theoretical_capacity(32, 3.0, 0.1) == 0
    assert theoretical_capacity(32, 0.0, 1.0) == 0
    assert math.isnan(theoretical_capacity(1, 3.0, 1.0))
    values = [theoretical_capacity(64, 30.0, beta) for beta in (0.1, 0.3, 1.0, 3.0)]
    assert values == sorted(values) and values[-1] > 1e5
    assert math.isfinite(theoretical_capacity(5_000, 1e4, 100.0))


def naive_guarantee(patterns: Tensor, beta: float) -> list[bool]:
    n, rows = len(patterns), patterns.double()
    largest = max(float(x.norm()) for x in rows)
    radius = 1 / (beta * n * largest)
    threshold = 2 / (beta * n) + math.log(2 * (n - 1) * n * beta * largest**2) / beta
    results = []
    for i, x in enumerate(rows):
        others = [y for j, y in enumerate(rows) if j != i]
        separation = min(float(x @ x - x @ y) for y in others)
        distance = min(float((x - y).norm()) for y in others)
        results.append(separation >= threshold and distance > 2 * radius)
    return results


def test_guarantees_agree_with_loops_in_each_network() -> None:
    patterns = torch.randn(3, 2, 5, 8) * torch.tensor([0.5, 2.0, 6.0])[:, None, None, None]
    patterns[1, 0, 3] = patterns[1, 0, 2]
    guaranteed = is_guaranteed(patterns, 0.7)
    expected = [[naive_guarantee(each, 0.7) for each in row] for row in patterns]
    assert guaranteed.tolist() == expected
    assert 0 < guaranteed.double().mean() < 1
    assert not guaranteed[1, 0, 2:4].any()  # equal patterns


def test_a_state_near_a_guaranteed_pattern_stays_there() -> None:
    """It stays within 1 / (beta M r), which holds for no beta that is slightly too small."""
    patterns = 3 * torch.randn(60, 6, 12, dtype=torch.float64)
    for beta in (0.1, 0.2, 0.4):
        is_stored = is_guaranteed(patterns, beta)
        assert is_stored.any() and not is_stored.all()
        radius = 1 / (beta * 6 * patterns.norm(dim=-1).amax(dim=-1))[:, None, None]
        away = torch.nn.functional.normalize(torch.randn_like(patterns), dim=-1)
        rest = retrieve_until_rest(patterns + radius * away, patterns, beta).state
        distance = (rest - patterns).norm(dim=-1)
        assert (distance[is_stored] <= radius[..., 0].expand_as(distance)[is_stored]).all()
        assert (distance[~is_stored] > 1).any()


def test_a_lone_pattern_is_always_stored_but_patterns_within_their_radius_are_not() -> None:
    assert is_guaranteed(torch.randn(1, 8), 1e-3).tolist() == [True]
    close = torch.tensor([[0.3, 0.0], [0.0, 0.3]])  # the logarithm is negative for a small beta
    assert is_guaranteed(close, 0.1).tolist() == [False, False]


# --- planted patterns ---


def test_distant_patterns_are_recalled_without_an_error_if_beta_is_large() -> None:
    result = recall(6 * torch.eye(8), (64.0,), (0.0, 0.25))
    assert result.loads.tolist() == [1, 2, 4, 8]
    assert (result.recalled == 1).all() and (result.guaranteed == 1).all()
    assert result.error == pytest.approx(np.zeros((1, 1, 4, 2)), abs=1e-4)
    assert (result.width, result.num_networks) == (8, 3 * 30)


def test_patterns_rest_at_their_mean_if_beta_is_small() -> None:
    """The mean of n orthogonal patterns of length r is r sqrt(1 - 1 / n) away from each."""
    result = recall(2 * torch.eye(4), (0.01,), (0.0, 0.5))
    expected = [math.sqrt(1 - 1 / n) for n in (1, 2, 4)]
    for level in range(2):
        assert result.error[0, 0, :, level] == pytest.approx(expected, abs=1e-3)
    assert result.recalled[0, 0, :, 0].tolist() == [1, 0, 0]
    assert result.guaranteed[0, 0].tolist() == [1, 0, 0]


def test_the_inverse_temperature_of_a_head_is_divided_by_the_root_of_its_width() -> None:
    """Two orthogonal patterns: the weight w of the first rests if beta r^2 (2 w - 1) = logit w."""
    betas = []
    for distance in (0.09, 0.11):  # in norms; the first is just recalled
        w = 1 - distance / math.sqrt(2)
        betas.append(math.sqrt(2) * math.log(w / (1 - w)) / (2 * w - 1))
    result = recall(torch.eye(2), tuple(betas), (0.0,))
    assert result.error[:, 0, 1, 0] == pytest.approx([0.09, 0.11], abs=1e-3)
    assert result.recalled[:, 0, 1, 0].tolist() == [1, 0]


def test_noise_has_the_requested_length_in_pattern_norms() -> None:
    """A pattern is lost if the noise along another exceeds that along its own by its length:
    P(N(0, 1) > 1 / (s sqrt 2)) with s = level / sqrt(2) along each of two directions."""
    result = recall(5 * torch.eye(2), (500.0,), (0.01, 2.0))
    s = 2.0 / math.sqrt(2)
    kept = 0.5 + 0.5 * math.erf(1 / (s * math.sqrt(2)) / math.sqrt(2))
    assert result.recalled[0, 0, 1, 0] == 1
    assert result.recalled[0, 0, 1, 1] == pytest.approx(kept, abs=0.1)  # 180 copies


def test_errors_grow_with_the_noise_and_recall_falls_with_the_load() -> None:
    result = measure_recall(make_model(), make_batches(40), betas=(16.0, 64.0))
    assert (np.diff(result.error[:, :, -1], axis=-1) > -0.05).all()
    assert (result.recalled[:, :, 0, 0] == 1).all()  # a lone pattern
    assert (result.recalled[..., -1, 2] < result.recalled[..., 0, 2]).all()
    assert (result.guaranteed <= 1).all() and (result.guaranteed[..., 0] == 1).all()


@torch.no_grad()
def test_a_memory_of_the_batch_is_one_network_of_the_width_of_the_tokens() -> None:
    model = AiT(SHARED).eval()
    for block in model.blocks:
        block.workspace.priors.copy_(torch.eye(4, 8))
        block.workspace.to_attractor.weight.copy_(4 * torch.eye(12, 8))
        block.workspace.to_attractor.bias.zero_()
    result = measure_recall(model, make_batches(5), betas=(0.01, 40.0))
    assert (result.width, result.num_networks) == (12, 1)
    assert result.recalled[:, :, -1, 0].tolist() == [[0, 0], [1, 1]]
    assert result.error[0, 0, -1, 0] == pytest.approx(math.sqrt(1 - 1 / 4), abs=1e-2)
    capacity = theoretical_capacity(12, 4.0, 40.0)
    assert result.capacity.tolist() == [[0, 0], [pytest.approx(capacity)] * 2] and capacity > 2


# --- the result ---


def test_loads_are_powers_of_two_and_the_size_of_the_memory() -> None:
    result = recall(torch.eye(6), (1.0,), (0.1, 0.2, 0.3))
    assert result.loads.tolist() == [1, 2, 4, 6]
    assert result.middle == 1 and result.noise[result.middle] == 0.2


def test_the_description_lists_recall_and_guarantee_for_each_beta() -> None:
    result = recall(6 * torch.eye(8), (0.01, 64.0), (0.1,))
    assert list(result.describe()) == [
        "% of 8 patterns of width 8 recalled with noise 0.1 (stored for certain; trained with "
        "beta 1):",
        "  layer 1: beta 0.01: 0 (0), beta 64: 100 (100)",
    ]


def test_the_seed_fixes_the_noise() -> None:
    model, batches = make_model(), make_batches(5)
    first, again, other = (
        measure_recall(model, batches, (16.0,), (0.5,), seed=seed) for seed in (0, 0, 1)
    )
    assert (first.error == again.error).all() and (first.error != other.error).any()


def test_the_result_can_be_saved_and_read_back(tmp_path: Path) -> None:
    result = measure_recall(make_model(), make_batches(2), (1.0,), (0.1,))
    save_result(result, tmp_path, "recall")
    again = load_result(Recall, tmp_path, "recall")
    for name, value in vars(result).items():
        assert np.array_equal(getattr(again, name), value), name


def test_other_models_and_invalid_arguments_are_refused() -> None:
    vit = ViT(ViTConfig(image_size=16, patch_size=8, embed_dim=12, num_heads=2, head_dim=8))
    with pytest.raises(UserError, match="ViT has no memory to retrieve from"):
        measure_recall(vit, make_batches(1))
    with pytest.raises(ValueError, match="betas must be positive, not 0"):
        measure_recall(make_model(), make_batches(1), betas=(1.0, 0.0))
    with pytest.raises(ValueError, match="no images"):
        measure_recall(make_model(), [])
