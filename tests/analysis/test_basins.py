"""Basins of memories with known attractors: far apart, in clusters, equal, alone."""

import math
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from associative_transformer.analysis.basins import (
    BETAS,
    Basins,
    count_fixed_points,
    measure_basins,
)
from associative_transformer.analysis.networks import (
    num_needed,
    retrieve_until_rest,
    sample_tokens,
)
from associative_transformer.analysis.storage import load_result, save_result
from associative_transformer.analysis.trace import trace
from associative_transformer.interface import PADDING, Batch, UserError
from associative_transformer.models.ait import AiT, AiTConfig
from associative_transformer.models.vit import ViT, ViTConfig
from associative_transformer.workspace_config import WorkspaceConfig
from twins import naive

DIM = 16
RADIUS = 3.0


def make_model(
    attractors: Tensor | None = None, depth: int = 1, question_dim: int = 0, beta: float = 1.0
) -> AiT:
    """Return an AiT with four patches per image.

    If attractors are given, every layer has them and widely spread tokens; otherwise both are
    random.
    """
    num_priors = 4 if attractors is None else len(attractors)
    config = AiTConfig(
        image_size=8,
        patch_size=4,
        num_channels=1,
        num_classes=3,
        question_dim=question_dim,
        embed_dim=DIM,
        depth=depth,
        num_heads=1,
        head_dim=8,
        mlp_ratio=1.0,
        workspace=WorkspaceConfig(num_priors=num_priors, prior_dim=num_priors, beta=beta),
    )
    model = AiT(config)
    if attractors is not None:
        with torch.no_grad():
            for block in model.blocks:
                block.workspace.priors.copy_(torch.eye(num_priors))
                block.workspace.to_attractor.weight.copy_(attractors.T)
                block.workspace.to_attractor.bias.zero_()
                block.feed_forward = nn.Identity()  # it would make all tokens similar
    return model


def make_batch(num_images: int) -> Batch:
    return Batch(torch.randn(num_images, 1, 8, 8), None, torch.zeros(num_images).long())


def far_apart(number: int) -> Tensor:
    """Return orthogonal attractors of the same length."""
    return RADIUS * torch.linalg.qr(torch.randn(DIM, DIM)).Q[:number]


def clusters(sizes: tuple[int, ...], spread: float = 0.05) -> Tensor:
    """Return groups of attractors around orthogonal centers, all of the same length."""
    centers = far_apart(len(sizes)).repeat_interleave(torch.tensor(sizes), dim=0)
    around = centers + spread * torch.randn_like(centers)
    return RADIUS * torch.nn.functional.normalize(around, dim=-1)


# --- retrieval until rest ---


def test_a_state_at_rest_retrieves_itself() -> None:
    attractors, state = torch.randn(5, 8), torch.randn(40, 8)
    rest = retrieve_until_rest(state, attractors, 2.0, max_steps=500).state
    again = naive.hopfield_retrieve(rest.double(), attractors.double(), 2.0)
    assert torch.allclose(rest.double(), again, atol=1e-3)
    assert (rest != state).any(dim=1).all()


def test_steps_are_counted_until_one_no_longer_moves_the_state() -> None:
    attractors, tokens = torch.randn(5, 8, dtype=torch.float64), torch.randn(30, 8).double()
    result = retrieve_until_rest(tokens, attractors, 1.0, tolerance=0.01)
    limit = 0.01 * sum(float(row.norm()) for row in attractors) / 5
    for token, rest, num_steps in zip(tokens, result.state, result.num_steps, strict=True):
        count, state = 0, token[None]
        while True:
            retrieved = naive.hopfield_retrieve(state, attractors, 1.0)
            distance, state = float((retrieved - state).norm()), retrieved
            if distance <= limit:
                break
            count += 1
        assert int(num_steps) == count
        assert torch.allclose(rest, state[0])
    assert len(set(result.num_steps.tolist())) > 1


def test_an_attractor_far_from_all_others_is_already_at_rest() -> None:
    attractors = far_apart(6)
    result = retrieve_until_rest(attractors, attractors, 4.0)
    assert result.num_steps.tolist() == [0] * 6
    assert torch.allclose(result.state, attractors, atol=1e-4)


def test_retrieval_ends_after_max_steps() -> None:
    attractors, state = torch.randn(5, 8), torch.randn(3, 2, 8)
    result = retrieve_until_rest(state, attractors, 1.0, max_steps=2, tolerance=0.0)
    assert result.num_steps.tolist() == [[2, 2]] * 3
    expected = naive.hopfield_retrieve(state.double(), attractors.double(), 1.0, 2)
    assert torch.allclose(result.state.double(), expected, atol=1e-5)
    assert torch.equal(retrieve_until_rest(state, attractors, 1.0, max_steps=0).state, state)


def test_states_are_retrieved_independently_and_not_overwritten() -> None:
    attractors, state = torch.randn(5, 8), torch.randn(20, 8)
    before = state.clone()
    together = retrieve_until_rest(state, attractors, 1.5)
    assert torch.equal(state, before)
    for i in range(20):
        alone = retrieve_until_rest(state[i], attractors, 1.5)
        assert torch.allclose(together.state[i], alone.state, atol=1e-5)


# --- number of attractors that make up a share ---


@pytest.mark.parametrize("num_priors", [1, 2, 3, 5, 9, 10, 20, 30, 32, 100, 128])
def test_the_share_of_equal_weights_is_rounded_up(num_priors: int) -> None:
    weights = torch.full((2, num_priors), 1 / num_priors)
    assert num_needed(weights).tolist() == [math.ceil(9 * num_priors / 10)] * 2


def test_the_largest_weights_are_counted_until_they_make_up_the_share() -> None:
    weights = torch.tensor(
        [
            [0.0, 1.0, 0.0, 0.0],
            [0.05, 0.91, 0.02, 0.02],
            [0.05, 0.15, 0.5, 0.3],
            [0.15, 0.05, 0.6, 0.2],
            [0.5, 0.5, 0.0, 0.0],
        ]
    )
    assert num_needed(weights).tolist() == [1, 1, 3, 3, 2]
    assert num_needed(weights, share=0.5).tolist() == [1, 1, 1, 1, 1]
    assert num_needed(weights[2:4], share=1.0).tolist() == [4, 4]


def test_the_number_of_weights_agrees_with_a_loop() -> None:
    weights = torch.randn(3, 7, 12).mul(2).softmax(dim=-1)
    for row, number in zip(weights.view(-1, 12), num_needed(weights).flatten(), strict=True):
        total, count = 0.0, 0
        for weight in sorted(row.tolist(), reverse=True):
            total, count = total + weight, count + 1
            if total >= 0.9:
                break
        assert int(number) == count


# --- fixed points ---


def test_planted_fixed_points_are_counted_with_their_sizes() -> None:
    points = 5 * torch.eye(DIM)[:4]
    index = torch.tensor([0] * 7 + [1] * 2 + [2] * 11 + [3])[torch.randperm(21)]
    states = points[index] + 1e-3 * torch.randn(21, DIM)
    assert count_fixed_points(states, 0.1, limit=16).number == 4
    assert count_fixed_points(states, 0.1, limit=16).sizes.tolist() == [11, 7, 2, 1]
    assert count_fixed_points(states, 1e-6, limit=100).number == 21
    assert count_fixed_points(states, 100.0, limit=16).sizes.tolist() == [21]


def test_the_tolerance_is_measured_from_the_first_state_of_a_group() -> None:
    states = torch.tensor([[0.0], [1], [2], [3], [4]])
    assert count_fixed_points(states, 1.0, limit=9).sizes.tolist() == [2, 2, 1]
    assert count_fixed_points(states, 0.999, limit=9).sizes.tolist() == [1] * 5


def test_the_search_for_fixed_points_stops_at_the_limit() -> None:
    result = count_fixed_points(torch.arange(10.0)[:, None], 0.1, limit=3)
    assert result.number == 3
    assert result.sizes.tolist() == [1, 1, 1]


# --- the sample ---


def tokens_of(model: AiT, batches: list[Batch]) -> Tensor:
    """Return all tokens that each workspace receives, (L, T, E)."""
    pools = [
        [layer.workspace_input.flatten(0, 1) for layer in trace(model, b).layers] for b in batches
    ]
    return torch.stack([torch.cat(layer) for layer in zip(*pools, strict=True)])


def indices_of(sample: Tensor, tokens: Tensor) -> list[int]:
    """Return the index of each sampled token among all tokens of one layer."""
    distance = torch.cdist(sample.double(), tokens.double())
    assert (distance.min(dim=1).values < 1e-4).all()
    return distance.argmin(dim=1).tolist()


def test_the_same_tokens_are_sampled_in_every_layer_without_repetition() -> None:
    model = make_model(depth=3)
    batches = [make_batch(5) for _ in range(4)]
    sample = sample_tokens(model, batches, 30, torch.Generator().manual_seed(0))
    assert sample.shape == (3, 30, DIM)
    tokens = tokens_of(model, batches)
    indices = [indices_of(sample[layer], tokens[layer]) for layer in range(3)]
    assert indices[0] == indices[1] == indices[2]
    assert len(set(indices[0])) == 30


def test_every_token_is_equally_likely_to_be_sampled() -> None:
    model, batches = make_model(), [make_batch(1), make_batch(6), make_batch(3)]
    tokens, counts = tokens_of(model, batches)[0], np.zeros(40)
    for seed in range(60):
        sample = sample_tokens(model, batches, 10, torch.Generator().manual_seed(seed))
        counts[indices_of(sample[0], tokens)] += 1
    for part in (counts[:4], counts[4:28], counts[28:]):  # the three batches
        assert part.mean() / 60 == pytest.approx(1 / 4, abs=0.08)


def test_padding_is_not_sampled_and_a_small_split_is_used_completely() -> None:
    model = make_model(question_dim=5)
    images, _, labels = make_batch(4)
    labels[2:] = PADDING
    batch = Batch(images, torch.randn(4, 5), labels)
    sample = sample_tokens(model, [batch], 2_000, torch.Generator())
    assert sample.shape == (1, 10, DIM)  # two images of five tokens, the question included
    assert sorted(indices_of(sample[0], tokens_of(model, [batch])[0])) == list(range(10))


def test_no_batch_is_kept() -> None:
    references: list[weakref.ref[Tensor]] = []

    def stream() -> Iterator[Batch]:
        for _ in range(6):
            assert sum(images() is not None for images in references) <= 1
            batch = make_batch(3)
            references.append(weakref.ref(batch.images))
            yield batch

    assert measure_basins(make_model(), stream(), num_tokens=20).num_tokens == 20


# --- planted memories ---


def test_all_tokens_come_to_rest_at_distant_attractors_if_beta_is_large() -> None:
    attractors, batches = far_apart(4), [make_batch(30), make_batch(30)]
    model = make_model(attractors)
    result = measure_basins(model, batches, betas=(16.0,), num_tokens=10_000)
    assert result.num_tokens == 240
    assert result.num_fixed_points.tolist() == [[4]]
    assert result.single.tolist() == [[1]]
    nearest = (tokens_of(model, batches)[0] @ attractors.T).argmax(dim=1)
    sizes = nearest.bincount(minlength=4).sort(descending=True).values / 240
    assert result.basins[0, 0] == pytest.approx(sizes.numpy(), abs=0.01)
    assert result.recall[0, 0, :2].tolist() == [1, 1]


def test_all_tokens_come_to_rest_at_the_mean_of_all_attractors_if_beta_is_small() -> None:
    model = make_model(far_apart(4), depth=2)
    result = measure_basins(model, [make_batch(20)], betas=(0.001, 0.01))
    assert result.num_fixed_points.tolist() == [[1, 1], [1, 1]]
    assert result.uniform.tolist() == [[1, 1], [1, 1]]
    assert result.basins.tolist() == [[[1, 0, 0, 0]] * 2] * 2
    assert not result.recall.any()


def test_tight_clusters_have_metastable_states_for_a_moderate_beta() -> None:
    model = make_model(clusters((3, 3)))
    result = measure_basins(model, [make_batch(50)], betas=(0.001, 2.0, 4_000.0))
    assert result.metastable.tolist() == [[0], [1], [0]]
    assert result.uniform.tolist() == [[1], [0], [0]]
    assert result.single.tolist() == [[0], [0], [1]]
    assert result.num_fixed_points.tolist() == [[1], [2], [6]]
    assert result.basins[1, 0, :2].sum() == pytest.approx(1)
    assert 0 < result.basins[1, 0, 1] <= result.basins[1, 0, 0]
    assert not result.basins[1, 0, 2:].any()
    assert not result.recall[1].any()
    assert result.recall[2, 0, 0] < 1


def test_a_lone_attractor_next_to_a_cluster_is_the_only_one_recalled() -> None:
    model = make_model(clusters((3, 1), spread=0.01))
    result = measure_basins(model, [make_batch(50)], betas=(4.0,), noise=(0.1,))
    assert result.num_fixed_points.item() == 2
    assert result.recall.tolist() == [[[0.25]]]
    assert result.single.item() + result.metastable.item() == 1
    assert result.single.item() in (result.basins[0, 0, 0], result.basins[0, 0, 1])
    assert 0 < result.single.item() < 1


def test_equal_attractors_are_one_fixed_point_and_never_recalled() -> None:
    model = make_model(far_apart(1).repeat(5, 1))
    result = measure_basins(model, [make_batch(10)], betas=(0.05, 16.0))
    assert result.num_fixed_points.tolist() == [[1], [1]]
    assert result.uniform.tolist() == [[1], [1]]
    assert not result.recall.any()


def test_two_equal_attractors_share_the_softmax_and_are_not_recalled() -> None:
    attractors = far_apart(4)[[0, 1, 2, 3, 3]]
    result = measure_basins(make_model(attractors), [make_batch(60)], (16.0,), noise=(0.01, 0.1))
    assert result.num_fixed_points.item() == 4
    assert result.recall.tolist() == [[[0.6, 0.6]]]
    assert result.metastable.item() > 0
    assert result.metastable.item() + result.single.item() == 1


def test_a_lone_attractor_is_single_and_always_recalled() -> None:
    result = measure_basins(make_model(far_apart(1)), [make_batch(3)], betas=(0.05, 4.0))
    assert result.single.tolist() == [[1], [1]]
    assert not result.metastable.any()
    assert not result.uniform.any()
    assert result.num_fixed_points.tolist() == [[1], [1]]
    assert result.basins.tolist() == [[[1]], [[1]]]
    assert (result.recall == 1).all()


def test_noise_has_the_requested_length() -> None:
    """Compare recall with the probability that noise moves one of two attractors to the other.

    The first of two orthogonal attractors is lost if the noise along the second exceeds that
    along the first by RADIUS: with N(0, s^2) along each, P(N(0, 1) > RADIUS / (s sqrt 2)).
    """
    model = make_model(far_apart(2), depth=12)
    result = measure_basins(model, [make_batch(1)], betas=(16.0,), noise=(0.01, 4.0, 1000.0))
    scale = 4.0 / math.sqrt(DIM)  # s in units of RADIUS
    kept = 0.5 + 0.5 * math.erf(1 / (scale * math.sqrt(2) * math.sqrt(2)))
    recall = result.recall.mean(axis=(0, 1))
    assert recall[0] == 1
    assert recall[1] == pytest.approx(kept, abs=0.08)  # 0.76
    assert recall[2] == pytest.approx(0.5, abs=0.1)


def test_tolerances_scale_with_the_length_of_the_attractors() -> None:
    model = make_model(1e-3 * far_apart(4))
    result = measure_basins(model, [make_batch(60)], betas=(16e6,), noise=(0.1, 1000.0))
    assert result.num_fixed_points.item() == 4
    assert result.recall[0, 0, 0] == 1
    assert result.recall[0, 0, 1] < 0.5  # one of four
    model = make_model(1e3 * clusters((3, 3)))
    result = measure_basins(model, [make_batch(60)], betas=(2e-6,))
    assert result.num_fixed_points.item() == 2


def test_the_number_of_fixed_points_does_not_exceed_the_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("associative_transformer.analysis.basins.POINTS_PER_PRIOR", 1)
    monkeypatch.setattr("associative_transformer.analysis.basins.SAME", 0.0)
    result = measure_basins(make_model(far_apart(2)), [make_batch(20)], betas=(0.3,))
    assert result.num_fixed_points.item() == 2
    assert result.basins.sum() < 1


# --- energy ---


@pytest.mark.parametrize(
    "make", [far_apart, lambda n: clusters((n,)), lambda n: torch.randn(n, DIM)]
)
def test_no_step_raises_the_energy(make: Callable[[int], Tensor]) -> None:
    result = measure_basins(make_model(make(4), depth=2), [make_batch(25)], num_steps=8)
    assert result.energy.shape == result.energy_spread.shape == (len(BETAS), 2, 9)
    assert (np.diff(result.energy, axis=-1) <= 1e-9).all()
    assert (result.energy[..., 0] > result.energy[..., 1]).all()


def test_energies_agree_with_loops_over_tokens() -> None:
    model, batches = make_model(depth=2), [make_batch(3), make_batch(2)]
    result = measure_basins(model, batches, betas=(0.5, 2.0), num_steps=2)
    tokens = tokens_of(model, batches).double()
    for r, beta in enumerate((0.5, 2.0)):
        for layer, block in enumerate(model.blocks):
            workspace = block.workspace
            with torch.no_grad():
                attractors = workspace.to_attractor(workspace.priors).double()
            for step in range(3):
                state = naive.hopfield_retrieve(tokens[layer], attractors, beta, step)
                energy = naive.hopfield_energy(state, attractors, beta).flatten().numpy()
                assert result.energy[r, layer, step] == pytest.approx(energy.mean(), rel=1e-5)
                spread = result.energy_spread[r, layer, step]
                assert spread == pytest.approx(energy.std(), rel=1e-4, abs=1e-6)


# --- the whole result ---


def test_the_shares_of_the_three_kinds_of_states_sum_to_one() -> None:
    model = make_model(torch.randn(7, DIM), depth=2, beta=0.7)
    result = measure_basins(model, [make_batch(40)], betas=(0.05, 0.1, 0.2, 0.3, 0.5, 1.0))
    kinds = result.single + result.metastable + result.uniform
    assert kinds == pytest.approx(np.ones((6, 2)))
    assert ((result.metastable > 0) & (result.metastable < 1)).any()
    assert (np.diff(result.basins, axis=-1) <= 0).all()
    assert result.trained_beta == 0.7
    assert result.betas.tolist() == [0.05, 0.1, 0.2, 0.3, 0.5, 1.0]


def test_the_seed_fixes_the_sample_and_the_noise() -> None:
    model, batches = make_model(), [make_batch(30)]
    first, again, other = (
        measure_basins(model, batches, num_tokens=20, noise=(0.5, 1.0), seed=seed)
        for seed in (0, 0, 1)
    )
    assert (first.energy == again.energy).all()
    assert (first.recall == again.recall).all()
    assert (first.energy != other.energy).any()
    assert (first.recall != other.recall).any()


def test_the_model_and_its_memory_do_not_change() -> None:
    model = make_model(depth=2)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    measure_basins(model, [make_batch(2)] * 2)
    after = model.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_the_result_can_be_saved_and_read_back(tmp_path: Path) -> None:
    result = measure_basins(make_model(), [make_batch(2)])
    save_result(result, tmp_path, "basins")
    again = load_result(Basins, tmp_path, "basins")
    assert again.num_tokens == 8
    assert (again.num_fixed_points == result.num_fixed_points).all()
    assert (again.recall == result.recall).all()


def test_models_without_basins_and_invalid_arguments_are_refused() -> None:
    vit = ViT(ViTConfig(image_size=8, patch_size=4, num_channels=1, embed_dim=8, depth=1))
    with pytest.raises(UserError, match="ViT has no memory to retrieve from: use a run of AiT"):
        measure_basins(vit, [make_batch(1)])
    config = AiTConfig(
        image_size=8, patch_size=4, num_channels=1, embed_dim=8, depth=1, read="cross_attention"
    )
    with pytest.raises(UserError, match=r"cross-attention.*use a run with --model.read hopfield"):
        measure_basins(AiT(config), [make_batch(1)])
    with pytest.raises(ValueError, match="betas must be positive, not 0"):
        measure_basins(make_model(), [make_batch(1)], betas=(1.0, 0.0))
    with pytest.raises(ValueError, match="no tokens"):
        measure_basins(make_model(), [])
