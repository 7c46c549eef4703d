"""Capacity of memories, compared with small memories written by loops and planted attractors."""

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import cast

import numpy as np
import pytest
import torch
from torch import Tensor

from associative_transformer.analysis import capacity
from associative_transformer.analysis.capacity import Capacity, measure_capacity
from associative_transformer.analysis.trace import trace
from associative_transformer.interface import PADDING, Batch
from associative_transformer.models.ait import AiT, AiTConfig
from associative_transformer.workspace import GlobalWorkspace
from associative_transformer.workspace_config import WorkspaceConfig
from twins import naive

CONFIG = AiTConfig(
    image_size=8,
    patch_size=4,
    num_classes=3,
    embed_dim=10,
    depth=2,
    num_heads=1,
    head_dim=6,
    mlp_ratio=1.0,
    workspace=WorkspaceConfig(num_priors=3, prior_dim=4, num_heads=2, bottleneck=3, beta=6.0),
)
NUM_PATCHES = 4


def make_batches(sizes: tuple[int, ...] = (3, 2), question_dim: int = 0) -> list[Batch]:
    return [
        Batch(
            torch.randn(size, 3, 8, 8),
            torch.randn(size, question_dim) if question_dim else None,
            torch.zeros(size, dtype=torch.int64),
        )
        for size in sizes
    ]


def make_model(**workspace: object) -> AiT:
    """Return a small model whose attractors are far apart, so that some are recalled."""
    model = AiT(replace(CONFIG, workspace=replace(CONFIG.workspace, **workspace))).eval()
    with torch.no_grad():
        for block in model.blocks:
            block.workspace.to_attractor.weight.mul_(4)
    return model


def workspace_of(model: AiT, layer: int) -> GlobalWorkspace:
    return cast(GlobalWorkspace, model.blocks[layer].workspace)


def assert_equal(one: Capacity, two: Capacity) -> None:
    for name, value in vars(one).items():
        np.testing.assert_array_equal(value, getattr(two, name))


# --- compared with loops ---


def weights_of(workspace: GlobalWorkspace) -> naive.WorkspaceWeights:
    w = workspace
    f = w.to_attractor
    norm = (w.norm.weight, w.norm.bias)
    maps = [linear.weight for linear in (w.to_q, w.to_k, w.to_v, w.to_prior)]
    return naive.WorkspaceWeights(*maps, *norm, f.weight, f.bias)


def slow_rank(priors: Tensor) -> float:
    """Return the effective rank from the eigenvalues of the Gram matrix."""
    power = [max(x, 0.0) for x in torch.linalg.eigvalsh(priors @ priors.T).tolist()]
    shares = [x / sum(power) for x in power]
    return math.exp(-sum(s * math.log(s) for s in shares if s > 0))


def slow_recall(attractors: Tensor, beta: float) -> float:
    kept = 0
    for index, own in enumerate(attractors):
        state = naive.hopfield_retrieve(own[None], attractors, beta, num_steps=300)[0]
        distance = [float((state - y).square().sum().sqrt()) for y in attractors]
        others = [d for i, d in enumerate(distance) if i != index]
        is_near = distance[index] <= 0.1 * float(own.square().sum().sqrt())
        kept += is_near and distance[index] < min(others)
    return kept / len(attractors)


@torch.no_grad()
def test_each_size_agrees_with_a_separate_memory_written_by_loops() -> None:
    model, batches, numbers = make_model().double(), make_batches((5,)), (2, 5)
    batches = [batches[0]._replace(images=batches[0].images.double())]
    result = measure_capacity(model, batches, numbers, pool_sizes=(20,), num_moves=3, seed=7)
    drawn = torch.randn(5, 4, generator=torch.Generator().manual_seed(7)).double()
    recalled = []
    for layer, traced in enumerate(trace(model, batches[0]).layers):
        pool = cast(Tensor, traced.workspace_input).flatten(0, 1)  # the order does not matter
        workspace = workspace_of(model, layer)
        weights = weights_of(workspace)
        for row, number in enumerate(numbers):
            priors = drawn[:number]
            for _ in range(3):
                written, _ = naive.workspace_write(pool, priors, weights, 2, bottleneck=3)
                priors = naive.update_priors(priors, written, workspace.config.smoothing)
            _, taken = naive.workspace_write(pool, priors, weights, 2, bottleneck=3)
            covered = [len(set(head.flatten().tolist())) / 20 for head in taken.chosen]
            attractors = naive.linear(priors, weights.attractor_weight, weights.attractor_bias)
            recalled.append(slow_recall(attractors, beta=6.0))
            entry = (layer, row, 0)
            assert result.effective_rank[entry] == pytest.approx(slow_rank(priors), rel=1e-9)
            assert result.coverage[entry] == pytest.approx(sum(covered) / 2)
            assert result.recalled[entry] == pytest.approx(recalled[-1])
    assert 0 < sum(recalled) < 4  # some are recalled and some are not


# --- pools ---


def test_pools_that_the_split_cannot_fill_are_left_out() -> None:
    result = measure_capacity(make_model(), make_batches(), (2, 4), (5, 20, 21, 99), num_moves=1)
    assert result.pool_sizes.tolist() == [5, 20]
    assert result.num_priors.tolist() == [2, 4]
    assert result.num_moves == 1
    for values in (result.effective_rank, result.coverage, result.recalled):
        assert values.shape == (2, 2, 2)
        assert np.isfinite(values).all()


def test_a_split_too_small_for_any_pool_is_one_pool() -> None:
    result = measure_capacity(make_model(), make_batches((2,)), (2,), (9, 99), num_moves=1)
    assert result.pool_sizes.tolist() == [8]
    assert result.effective_rank.shape == (2, 1, 1)


def test_batches_are_read_only_until_the_largest_pool_is_full() -> None:
    used = []

    def batches() -> Iterator[Batch]:
        for batch in make_batches((2, 2, 2, 2)):
            used.append(batch)
            yield batch

    result = measure_capacity(make_model(), batches(), (2,), (4, 13), num_moves=1)
    assert result.pool_sizes.tolist() == [4, 13]
    assert len(used) == 2  # 16 tokens


def test_pools_are_drawn_from_the_first_patches_of_every_layer() -> None:
    model = AiT(replace(CONFIG, question_dim=5)).eval()
    batches = make_batches((2, 3, 3), question_dim=5)
    padded = batches[0]._replace(labels=torch.tensor([0, PADDING]))
    gathered = capacity._gather_tokens(model, [padded, *batches[1:]], num_tokens=14)
    for layer, tokens in enumerate(gathered):
        expected = []
        for batch, num_real in zip([padded, *batches[1:]], (1, 3, 3), strict=True):
            u = trace(model, batch).layers[layer].workspace_input
            assert u is not None
            expected += [u[image, 1 + patch] for image in range(num_real) for patch in range(4)]
        torch.testing.assert_close(tokens, torch.stack(expected[:14]), rtol=0, atol=0)


def test_a_pool_has_no_repeated_token_and_each_draw_differs() -> None:
    u, generator = torch.arange(50.0)[:, None], torch.Generator().manual_seed(0)
    pools = [set(capacity._draw(u, 20, generator).flatten().tolist()) for _ in range(10)]
    assert {len(pool) for pool in pools} == {20}
    assert len(set(map(frozenset, pools))) == 10
    assert set().union(*pools) == set(range(50))


def test_each_write_uses_a_new_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    pools = []
    write = GlobalWorkspace.write

    def record(self: GlobalWorkspace, pool: Tensor) -> object:
        pools.append(pool)
        return write(self, pool)

    monkeypatch.setattr(GlobalWorkspace, "write", record)
    measure_capacity(make_model(), make_batches(), (2,), (6, 12), num_moves=4)
    sizes = [6] * 5 + [12] * 5  # the fifth write is only measured
    assert [len(pool) for pool in pools] == sizes * 2
    assert len({tuple(pool[0].tolist()) for pool in pools}) > 4


# --- coverage ---


@pytest.mark.parametrize("bottleneck", [8, 100, None])
def test_a_bottleneck_as_large_as_the_pool_covers_it(bottleneck: int | None) -> None:
    model = make_model(bottleneck=bottleneck)
    result = measure_capacity(model, make_batches(), (1, 3), (8,), num_moves=1)
    assert (result.coverage == 1).all()


def test_a_single_prior_covers_its_bottleneck() -> None:
    result = measure_capacity(make_model(bottleneck=3), make_batches(), (1,), (6, 15), num_moves=2)
    np.testing.assert_allclose(result.coverage, np.broadcast_to([3 / 6, 3 / 15], (2, 1, 2)))


def test_coverage_counts_tokens_once_and_is_the_mean_over_heads() -> None:
    chosen = torch.tensor([[[0, 1], [1, 2]], [[4, 3], [3, 4]]])
    assert capacity._coverage(chosen, pool_size=10) == pytest.approx((0.3 + 0.2) / 2)


# --- effective rank ---


def test_without_writes_the_priors_are_normal_and_their_rank_grows_with_their_number() -> None:
    result = measure_capacity(make_model(), make_batches(), (1, 2, 400), (8,), num_moves=0)
    np.testing.assert_allclose(result.effective_rank[:, 0], 1, rtol=1e-6)
    assert (result.effective_rank[:, 1] <= 2).all()
    np.testing.assert_allclose(result.effective_rank[:, 2], 4, rtol=0.02)  # D = 4


# --- recall ---


def plant(attractors: Tensor, beta: float) -> GlobalWorkspace:
    """Return a workspace with these attractors."""
    num_priors, dim = attractors.shape
    config = WorkspaceConfig(num_priors=num_priors, prior_dim=dim, num_heads=1, beta=beta)
    memory = GlobalWorkspace(dim, config).eval()
    with torch.no_grad():
        memory.to_attractor.weight.copy_(torch.eye(dim))
        memory.to_attractor.bias.zero_()
        memory.priors.copy_(attractors)
    return memory


@torch.no_grad()
def recall(attractors: Tensor, beta: float) -> float:
    return capacity._share_recalled(plant(attractors, beta), len(attractors))


def test_attractors_far_apart_are_recalled_unless_beta_mixes_them_all() -> None:
    assert recall(torch.eye(6), beta=40.0) == 1
    assert recall(torch.eye(6), beta=0.1) == 0


@pytest.mark.parametrize("size", [0.2, 1.0, 5.0])
def test_an_attractor_is_recalled_within_a_tenth_of_its_norm(size: float) -> None:
    # Two orthogonal attractors a: a state rests at weight w of one of them if
    # beta |a|^2 = logit(w) / (2w - 1), at the distance (1 - w) sqrt(2) |a| from it.
    # After a single step it is still closer.
    w = 1 - 0.1 / math.sqrt(2)
    limit = math.log(w / (1 - w)) / (2 * w - 1) / size**2
    pair = size * torch.eye(2)
    assert recall(pair, 1.001 * limit) == 1
    assert recall(pair, 0.999 * limit) == 0
    one_step = 1 / (1 + math.exp(-0.999 * limit * size**2))
    assert one_step > w


def test_an_attractor_is_recalled_only_if_it_is_closer_than_all_others() -> None:
    # two attractors 2 % apart both move to their mean, well within a tenth of their norm
    lone, near = torch.tensor([0.0, 10.0]), torch.tensor([[10.0, 0.1], [10.0, -0.1]])
    assert recall(torch.stack([lone, *near]), beta=1.0) == pytest.approx(1 / 3)
    equal = torch.stack([lone, lone])
    assert recall(equal, beta=1.0) == 0


def test_an_attractor_that_moves_to_another_is_not_recalled() -> None:
    along = torch.tensor([[10.0, 0.0], [9.5, 0.0]])  # the shorter one moves to the longer one
    assert recall(along, beta=10.0) == 0.5


def test_recall_is_measured_among_the_first_priors_only() -> None:
    memory = plant(torch.stack([torch.tensor([1.0, 0.0]), torch.tensor([3.0, 0.0])]), beta=10.0)
    with torch.no_grad():
        assert capacity._share_recalled(memory, 1) == 1
        assert capacity._share_recalled(memory, 2) == 0.5


def test_recall_is_nan_without_hopfield_retrieval() -> None:
    model = AiT(replace(CONFIG, read="cross_attention")).eval()
    result = measure_capacity(model, make_batches(), (2, 4), (8,), num_moves=1)
    assert np.isnan(result.recalled).all()
    assert np.isfinite(result.effective_rank).all()
    assert np.isfinite(result.coverage).all()


# --- seed and state ---


def test_the_seed_fixes_the_result() -> None:
    model, batches = make_model(), make_batches()
    first = measure_capacity(model, batches, (2, 4), (8, 16), num_moves=2, seed=3)
    torch.randn(100)
    assert_equal(first, measure_capacity(model, batches, (2, 4), (8, 16), num_moves=2, seed=3))
    other = measure_capacity(model, batches, (2, 4), (8, 16), num_moves=2, seed=4)
    assert (first.effective_rank != other.effective_rank).all()


def test_a_pool_size_does_not_affect_the_results_of_another() -> None:
    model, batches = make_model(), make_batches()
    both = measure_capacity(model, batches, (2, 4), (8, 20), num_moves=2)
    alone = measure_capacity(model, batches, (2, 4), (20,), num_moves=2)
    np.testing.assert_array_equal(both.effective_rank[..., 1], alone.effective_rank[..., 0])


@pytest.mark.parametrize("is_training", [False, True])
def test_the_model_does_not_change_and_dropout_is_off(is_training: bool) -> None:
    model, batches = make_model(dropout=0.9).train(is_training), make_batches()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    result = measure_capacity(model, batches, (2,), (8,), num_moves=3)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert {module.training for module in model.modules()} == {is_training}
    without = AiT(replace(CONFIG, workspace=replace(CONFIG.workspace, dropout=0.0))).eval()
    without.load_state_dict(model.state_dict())
    assert_equal(result, measure_capacity(without, batches, (2,), (8,), num_moves=3))
