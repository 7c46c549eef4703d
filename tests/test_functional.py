"""The equations against slow loops, forward and backward, and the properties in the paper."""

import math

import pytest
import torch
from torch import Tensor

from associative_transformer.functional import (
    Selection,
    balance_loss,
    bottleneck_attention,
    hopfield_energy,
    hopfield_retrieve,
    update_priors,
)
from twins import naive

ATTENTION_SIZES = [  # S, M, T, D, bottleneck
    (1, 1, 1, 1, 1),
    (1, 3, 1, 2, 5),
    (1, 2, 9, 3, 4),
    (2, 3, 7, 5, 1),
    (3, 2, 11, 4, 5),
    (2, 5, 6, 3, 6),
    (2, 4, 5, 3, 9),
    (2, 3, 9, 3, None),
    (4, 7, 23, 8, 13),
]
RULES = [("priors", False), ("none", True), ("priors", True)]  # competition, center_values
HOPFIELD_SIZES = [  # shape of the states, M, beta, steps
    ((4,), 3, 1.0, 1),
    ((1, 1), 1, 1.0, 1),
    ((7, 5), 4, 0.3, 1),
    ((2, 3, 6), 5, 1.0, 3),
    ((3, 2, 1), 2, 4.0, 2),
    ((2, 2, 2, 9), 11, 0.05, 1),
]


def double(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, requires_grad=True)


def gates(selection: Selection, num_tokens: int) -> Tensor:
    """Return the scores of all tokens, (S, M, T), so that the order of winners does not matter."""
    score, chosen = selection.score, selection.chosen
    return score.new_zeros(*score.shape[:2], num_tokens).scatter(2, chosen, score)


def assert_same(ours: Tensor, theirs: Tensor, inputs: tuple[Tensor, ...]) -> None:
    """Compare two results, and their gradients for a random cotangent."""
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    cotangent = torch.randn_like(theirs)
    for mine, expected in zip(
        torch.autograd.grad(ours, inputs, cotangent, allow_unused=True, retain_graph=True),
        torch.autograd.grad(theirs, inputs, cotangent, allow_unused=True, retain_graph=True),
        strict=True,
    ):
        if expected is None:
            assert mine is None or not mine.any()
        else:
            assert mine is not None
            torch.testing.assert_close(mine, expected, rtol=1e-9, atol=1e-11)


def scores(num_heads: int, num_priors: int, num_tokens: int, limit: int) -> tuple[Tensor, Tensor]:
    """Return random scores that sum to 1, and distinct random tokens for each prior."""
    logits = torch.randn(num_heads, num_priors, limit, dtype=torch.float64)
    chosen = torch.rand(num_heads, num_priors, num_tokens).argsort(dim=-1)[..., :limit]
    return logits.softmax(dim=-1).requires_grad_(), chosen


@pytest.mark.parametrize(("heads", "priors", "tokens", "width", "bottleneck"), ATTENTION_SIZES)
def test_bottleneck_attention_equals_the_loops(
    heads: int, priors: int, tokens: int, width: int, bottleneck: int | None
) -> None:
    q, k, v = (
        double(heads, priors, width),
        double(heads, tokens, width),
        double(heads, tokens, width),
    )
    ours = bottleneck_attention(q, k, v, bottleneck)
    theirs = naive.bottleneck_attention(q, k, v, bottleneck)
    assert_same(ours.value, theirs.value, (q, k, v))
    assert_same(gates(ours, tokens), theirs.gates, (q, k, v))
    assert ours.score.shape == theirs.score.shape == ours.chosen.shape
    assert torch.equal(ours.chosen.sort().values, theirs.chosen.sort().values)


@pytest.mark.parametrize(("competition", "center_values"), RULES)
@pytest.mark.parametrize(("heads", "priors", "tokens", "width", "bottleneck"), ATTENTION_SIZES)
def test_competition_and_centered_values_equal_the_loops(
    heads: int,
    priors: int,
    tokens: int,
    width: int,
    bottleneck: int | None,
    competition: str,
    center_values: bool,
) -> None:
    q, k, v = double(heads, priors, width), *(double(heads, tokens, width) for _ in range(2))
    ours = bottleneck_attention(q, k, v, bottleneck, competition, center_values)
    theirs = naive.bottleneck_attention(q, k, v, bottleneck, competition, center_values)
    assert_same(ours.value, theirs.value, (q, k, v))
    assert_same(gates(ours, tokens), theirs.gates, (q, k, v))
    assert torch.equal(ours.chosen.sort().values, theirs.chosen.sort().values)
    plain = bottleneck_attention(q, k, v, bottleneck)
    assert tokens == 1 or not torch.allclose(ours.value, plain.value)


def test_priors_that_are_equal_share_every_token_equally_if_they_compete() -> None:
    q, k, v = double(2, 1, 4).expand(-1, 3, -1), double(2, 10, 4), double(2, 10, 4)
    selection = bottleneck_attention(q, k, v, None, competition="priors")
    torch.testing.assert_close(selection.score, torch.full_like(selection.score, 1 / 10))


def test_competition_ignores_how_similar_a_token_is_to_all_priors() -> None:
    q, k, v = torch.randn(1, 3, 4), torch.randn(1, 20, 4), torch.randn(1, 20, 4)
    q[..., 0] = 1  # so that the first column of the keys adds the same number for all priors
    louder = k.clone()
    louder[..., 0] += 5 * torch.randn(20)
    ours, theirs = (bottleneck_attention(q, x, v, 6, "priors") for x in (k, louder))
    torch.testing.assert_close(ours.value, theirs.value)
    plain = (bottleneck_attention(q, x, v, 6) for x in (k, louder))
    assert not torch.allclose(*(x.value for x in plain))


def test_what_all_tokens_share_is_not_written_with_centered_values() -> None:
    q, k, v = torch.randn(2, 3, 4), torch.randn(2, 12, 4), torch.randn(2, 12, 4)
    ours, shifted = (bottleneck_attention(q, k, x, 5, "none", True) for x in (v, v + 7))
    torch.testing.assert_close(ours.value, shifted.value, rtol=1e-4, atol=1e-5)
    constant = bottleneck_attention(q, k, torch.ones_like(v), 5, "none", True)
    torch.testing.assert_close(constant.value, torch.zeros(2, 3, 4))


def test_under_autocast_competition_is_computed_in_float32() -> None:
    q, k, v = torch.randn(2, 3, 8), torch.randn(2, 30, 8), torch.randn(2, 30, 8)
    with torch.autocast("cpu", torch.bfloat16):
        score = bottleneck_attention(q, k, v, 6, "priors").score
    assert score.dtype == torch.float32
    assert len(score.unique()) > 30  # in bfloat16, several of the 36 scores would be equal


@pytest.mark.parametrize("bottleneck", [1, 4, 16, 17, 100, None])
def test_each_prior_selects_bottleneck_tokens_or_all(bottleneck: int | None) -> None:
    q, k, v = torch.randn(3, 5, 8), torch.randn(3, 17, 8), torch.randn(3, 17, 8)
    selection = bottleneck_attention(q, k, v, bottleneck)
    winners = min(bottleneck or 17, 17)
    assert selection.chosen.shape == (3, 5, winners)
    assert all(len(set(row)) == winners for row in selection.chosen.flatten(0, 1).tolist())
    assert ((gates(selection, 17) > 0).sum(dim=-1) == winners).all()
    torch.testing.assert_close(selection.score.sum(dim=-1), torch.ones(3, 5))


def test_the_winners_are_the_most_similar_tokens() -> None:
    q, k, v = torch.randn(2, 6, 4), torch.randn(2, 50, 4), torch.randn(2, 50, 4)
    chosen = bottleneck_attention(q, k, v, 9).chosen
    similarity = q @ k.mT
    won = torch.zeros_like(similarity, dtype=torch.bool).scatter(2, chosen, True)
    weakest_winner = similarity.masked_fill(~won, math.inf).amin(dim=-1)
    strongest_loser = similarity.masked_fill(won, -math.inf).amax(dim=-1)
    assert (weakest_winner > strongest_loser).all()


def test_a_bottleneck_of_all_tokens_is_dense_attention() -> None:
    q, k, v = double(2, 4, 8), double(2, 13, 8), double(2, 13, 8)
    dense = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    for bottleneck in (13, 14, None):
        assert_same(bottleneck_attention(q, k, v, bottleneck).value, dense, (q, k, v))


def test_a_bottleneck_of_one_copies_the_most_similar_token() -> None:
    q, k, v = torch.randn(2, 4, 8), torch.randn(2, 13, 8), torch.randn(2, 13, 8)
    selection = bottleneck_attention(q, k, v, 1)
    best = (q @ k.mT).argmax(dim=-1)
    expected = torch.stack([v[head, best[head]] for head in range(2)])
    assert torch.equal(selection.value, expected)
    assert (selection.score == 1).all()


def test_tokens_that_no_prior_selects_get_no_gradient() -> None:
    q, k, v = double(1, 2, 4), double(1, 20, 4), double(1, 20, 4)
    selection = bottleneck_attention(q, k, v, 3)
    selection.value.square().sum().backward()
    lost = torch.ones(20, dtype=torch.bool)
    lost[selection.chosen.flatten()] = False
    assert k.grad is not None and v.grad is not None
    assert not k.grad[0, lost].any() and not v.grad[0, lost].any()
    assert k.grad[0, ~lost].any(dim=-1).all() and v.grad[0, ~lost].any(dim=-1).all()


def test_ties_are_resolved_the_same_way_every_time() -> None:
    q, k, v = torch.ones(2, 3, 4), torch.ones(2, 30, 4), torch.randn(2, 30, 4)
    first, second = bottleneck_attention(q, k, v, 7), bottleneck_attention(q, k, v, 7)
    assert torch.equal(first.chosen, second.chosen)
    assert all(len(set(row)) == 7 for row in first.chosen.flatten(0, 1).tolist())


@pytest.mark.parametrize("bottleneck", [5, None])
def test_half_precision_inputs_give_float32_scores(bottleneck: int | None) -> None:
    q, k, v = (torch.randn(2, n, 8, dtype=torch.bfloat16) for n in (3, 11, 11))
    selection = bottleneck_attention(q, k, v, bottleneck)
    assert selection.score.dtype == torch.float32
    assert selection.value.dtype == torch.bfloat16
    torch.testing.assert_close(selection.score.sum(dim=-1), torch.ones(2, 3))
    assert balance_loss(selection.score, selection.chosen, 11).dtype == torch.float32


@pytest.mark.parametrize("bottleneck", [1, 5, None])
def test_extreme_similarities_stay_finite(bottleneck: int | None) -> None:
    q, k, v = (1e6 * torch.randn(2, n, 8) for n in (3, 11, 11))
    for x in (q, k, v):
        x.requires_grad_()
    selection = bottleneck_attention(q, k, v, bottleneck)
    gradients = torch.autograd.grad(selection.value.sum(), (q, k, v), allow_unused=True)
    assert selection.value.isfinite().all() and selection.score.isfinite().all()
    assert all(g is None or bool(g.isfinite().all()) for g in gradients)


@pytest.mark.parametrize(
    ("heads", "priors", "tokens", "limit"),
    [(1, 1, 2, 1), (1, 3, 5, 2), (3, 2, 7, 7), (2, 6, 11, 4), (4, 3, 2, 1)],
)
def test_balance_loss_equals_the_loops(heads: int, priors: int, tokens: int, limit: int) -> None:
    score, chosen = scores(heads, priors, tokens, limit)
    ours = balance_loss(score, chosen, tokens)
    assert_same(ours, naive.balance_loss(score, chosen, tokens), (score,))


def test_balance_loss_equals_values_computed_by_hand() -> None:
    all_choose_token_0 = torch.zeros(2, 3, 1, dtype=torch.long)
    # importance = load = (3, 0, 0, 0): mean 0.75, unbiased variance 2.25, CV^2 = 4; two heads
    loss = balance_loss(torch.ones(2, 3, 1), all_choose_token_0, 4)
    torch.testing.assert_close(loss, torch.tensor(16.0))

    score, chosen = torch.tensor([[[0.75, 0.25]]]), torch.tensor([[[0, 1]]])
    # importance (3/4, 1/4): mean 1/2, variance 1/8, CV^2 = 1/2; load (1, 1): CV^2 = 0
    torch.testing.assert_close(balance_loss(score, chosen, 2), torch.tensor(0.5))


def test_the_load_counts_in_the_value_but_not_in_the_gradient() -> None:
    # importance (2/3, 2/3, 2/3) is even; load (1, 2, 1) has mean 4/3, variance 1/3: CV^2 = 3/16
    score = torch.tensor([[[2 / 3, 1 / 3], [1 / 3, 2 / 3]]], requires_grad=True)
    loss = balance_loss(score, torch.tensor([[[0, 1], [1, 2]]]), 3)
    torch.testing.assert_close(loss, torch.tensor(3 / 16))
    (gradient,) = torch.autograd.grad(loss, score)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient))


def test_equal_use_has_zero_balance_loss() -> None:
    # five priors choose two tokens each, so each of the ten tokens is chosen once
    chosen = torch.stack([torch.randperm(10).reshape(5, 2) for _ in range(3)])
    loss = balance_loss(torch.full((3, 5, 2), 0.5), chosen, 10)
    torch.testing.assert_close(loss, torch.zeros(()))
    one_token = balance_loss(torch.ones(2, 4, 1), torch.zeros(2, 4, 1, dtype=torch.long), 1)
    torch.testing.assert_close(one_token, torch.zeros(()))


def test_uneven_use_costs_more_than_even_use() -> None:
    score, chosen = scores(2, 6, 30, 5)
    concentrated = torch.arange(5).expand(2, 6, 5)
    assert balance_loss(score, concentrated, 30) > balance_loss(score, chosen, 30) > 0


def test_balance_loss_is_the_sum_over_heads() -> None:
    score, chosen = scores(3, 4, 9, 2)
    alone = [balance_loss(score[[i]], chosen[[i]], 9) for i in range(3)]
    torch.testing.assert_close(balance_loss(score, chosen, 9), torch.stack(alone).sum())


@pytest.mark.parametrize("smoothing", [0.1, 0.37, 1.0])
@pytest.mark.parametrize(("priors", "width"), [(1, 1), (1, 5), (7, 3)])
def test_update_priors_equals_the_loops(priors: int, width: int, smoothing: float) -> None:
    old, new = double(priors, width), double(priors, width)
    theirs = naive.update_priors(old, new, smoothing)
    assert_same(update_priors(old, new, smoothing), theirs, (old, new))


def test_updated_priors_have_unit_rows() -> None:
    priors = 100 * torch.randn(32, 16)
    for _ in range(5):
        priors = update_priors(priors, torch.randn(32, 16), 0.1)
        torch.testing.assert_close(priors.norm(dim=-1), torch.ones(32))


def test_smoothing_is_the_share_of_the_new_write() -> None:
    old, new = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    updated = update_priors(old, new, 0.1)
    torch.testing.assert_close(updated, torch.tensor([[0.9, 0.1]]) / math.hypot(0.9, 0.1))


def test_a_half_precision_write_leaves_the_memory_in_float32() -> None:
    assert (
        update_priors(torch.randn(3, 4), torch.randn(3, 4).bfloat16(), 0.1).dtype == torch.float32
    )


@pytest.mark.parametrize(("shape", "priors", "beta", "steps"), HOPFIELD_SIZES)
def test_retrieval_equals_the_loops(
    shape: tuple[int, ...], priors: int, beta: float, steps: int
) -> None:
    state, attractors = double(*shape), double(priors, shape[-1])
    theirs = naive.hopfield_retrieve(state, attractors, beta, steps)
    assert_same(hopfield_retrieve(state, attractors, beta, steps), theirs, (state, attractors))


@pytest.mark.parametrize(("shape", "priors", "beta", "steps"), HOPFIELD_SIZES)
def test_energy_equals_the_loops(
    shape: tuple[int, ...], priors: int, beta: float, steps: int
) -> None:
    state, attractors = double(*shape), double(priors, shape[-1])
    theirs = naive.hopfield_energy(state, attractors, beta)
    assert_same(hopfield_energy(state, attractors, beta), theirs, (state, attractors))


@pytest.mark.parametrize("scale", [0.1, 1.0, 5.0])
@pytest.mark.parametrize("beta", [0.01, 0.05, 0.3, 1.0, 4.0, 20.0])
def test_retrieval_never_raises_the_energy(beta: float, scale: float) -> None:
    state = 3 * torch.randn(64, 8, dtype=torch.float64)
    attractors = scale * torch.randn(5, 8, dtype=torch.float64)
    for _ in range(4):
        before = hopfield_energy(state, attractors, beta)
        state = hopfield_retrieve(state, attractors, beta)
        after = hopfield_energy(state, attractors, beta)
        assert (after <= before + 1e-9).all()


def test_the_first_retrieval_lowers_the_energy_of_states_far_from_the_attractors() -> None:
    state, attractors = 10 * torch.randn(64, 8), torch.randn(5, 8)
    before = hopfield_energy(state, attractors, 1.0)
    assert (
        hopfield_energy(hopfield_retrieve(state, attractors, 1.0), attractors, 1.0) < before
    ).all()


def test_the_energy_is_never_negative() -> None:
    state, attractors = 3 * torch.randn(500, 8), torch.randn(5, 8)
    for beta in (0.05, 1.0, 4.0):
        assert (hopfield_energy(state, attractors, beta) >= -1e-4).all()


def test_retrieval_moves_down_the_gradient_of_the_energy() -> None:
    state, attractors = double(6, 5), torch.randn(4, 5, dtype=torch.float64)
    (slope,) = torch.autograd.grad(hopfield_energy(state, attractors, 0.7).sum(), state)
    torch.testing.assert_close(state - slope, hopfield_retrieve(state, attractors, 0.7))


def test_a_small_beta_retrieves_the_average_of_the_attractors() -> None:
    state, attractors = torch.randn(9, 6), torch.randn(4, 6)
    retrieved = hopfield_retrieve(state, attractors, 1e-6)
    torch.testing.assert_close(retrieved, attractors.mean(dim=0).expand(9, 6), rtol=0, atol=1e-4)


def test_a_large_beta_retrieves_the_most_similar_attractor() -> None:
    state, attractors = torch.randn(9, 6), torch.randn(4, 6)
    retrieved = hopfield_retrieve(state, attractors, 1e4)
    nearest = attractors[(state @ attractors.mT).argmax(dim=-1)]
    torch.testing.assert_close(retrieved, nearest, rtol=0, atol=1e-3)


def test_several_steps_are_several_retrievals() -> None:
    state, attractors = torch.randn(9, 6), torch.randn(4, 6)
    thrice = state
    for _ in range(3):
        thrice = hopfield_retrieve(thrice, attractors, 1.5)
    torch.testing.assert_close(hopfield_retrieve(state, attractors, 1.5, 3), thrice)
    assert not torch.allclose(thrice, hopfield_retrieve(state, attractors, 1.5))


@pytest.mark.parametrize("beta", [1e-6, 1.0, 1e6])
def test_extreme_states_stay_finite(beta: float) -> None:
    state, attractors = 1e4 * torch.randn(9, 6), 1e4 * torch.randn(4, 6)
    state.requires_grad_()
    retrieved = hopfield_retrieve(state, attractors, beta, 2)
    energy = hopfield_energy(state, attractors, beta)
    (gradient,) = torch.autograd.grad(retrieved.sum() + energy.sum(), state)
    assert retrieved.isfinite().all() and energy.isfinite().all() and gradient.isfinite().all()


def test_the_energy_of_half_precision_states_is_computed_in_float32() -> None:
    state, attractors = torch.randn(9, 6).bfloat16(), torch.randn(4, 6).bfloat16()
    energy = hopfield_energy(state, attractors, 1.0)
    assert energy.dtype == torch.float32
    torch.testing.assert_close(energy, hopfield_energy(state.float(), attractors.float(), 1.0))
