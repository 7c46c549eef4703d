"""The sparse implementation of the pooled attention against slow loops and the plain one.

Dims     T pooled tokens   E token width   S heads   M priors   D head width   K bottleneck
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from associative_transformer import functional, kernels
from associative_transformer.functional import Selection, balance_loss
from associative_transformer.kernels import sparse
from twins import naive

S, E = 3, 7
RULES = [("priors", False), ("none", True), ("priors", True)]  # competition, center_values


class Inputs(NamedTuple):
    q: Tensor  # (S, M, D)
    tokens: Tensor  # (T, E)
    w_k: Tensor  # (S, D, E)
    w_v: Tensor  # (S, D, E)


def inputs(
    num_priors: int, width: int, num_tokens: int, dtype: torch.dtype = torch.float64
) -> Inputs:
    shapes = (S, num_priors, width), (num_tokens, E), (S, width, E), (S, width, E)
    return Inputs(*(torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes))


def loss_of(selection: Selection, num_tokens: int) -> Tensor:
    """Return a loss that depends on values and scores, with a different slope for each value."""
    slopes = torch.linspace(-1, 2, selection.value.numel()).view_as(selection.value)
    unevenness = balance_loss(selection.score, selection.chosen, num_tokens)
    return (slopes * selection.value).sum() + 0.1 * unevenness


def gradients(selection: Selection, given: Inputs) -> Sequence[Tensor]:
    return torch.autograd.grad(loss_of(selection, len(given.tokens)), given)


@pytest.fixture(params=[5, 8, 100], ids="chunks of {}".format)
def chunk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sparse, "CHUNK", request.param)
    return request.param


@pytest.mark.parametrize(("num_priors", "width"), [(2, 4), (5, 2), (1, 1)])
@pytest.mark.parametrize("bottleneck", [1, 4, 12])
def test_the_sparse_attention_equals_the_slow_loops_forward_and_backward(
    num_priors: int, width: int, bottleneck: int, chunk: int
) -> None:
    given = inputs(num_priors, width, num_tokens=13)
    ours = sparse.pooled_attention(*given, bottleneck)
    k, v = (torch.stack([naive.linear(given.tokens, head) for head in w]) for w in given[2:])
    theirs = naive.bottleneck_attention(given.q, k, v, bottleneck)
    order = ours.score.argsort(dim=-1, descending=True)
    assert torch.equal(ours.chosen.gather(-1, order), theirs.chosen)
    torch.testing.assert_close(ours.score.gather(-1, order), theirs.score)
    torch.testing.assert_close(ours.value, theirs.value)
    expected = Selection(theirs.value, theirs.score, theirs.chosen)
    for mine, other in zip(gradients(ours, given), gradients(expected, given), strict=True):
        torch.testing.assert_close(mine, other)


@pytest.mark.parametrize(("competition", "center_values"), RULES)
@pytest.mark.parametrize(("num_priors", "width"), [(2, 4), (5, 2)])
@pytest.mark.parametrize("bottleneck", [1, 4, 13])
def test_competition_and_centered_values_equal_the_slow_loops_forward_and_backward(
    num_priors: int,
    width: int,
    bottleneck: int,
    competition: str,
    center_values: bool,
    chunk: int,
) -> None:
    given = inputs(num_priors, width, num_tokens=13)
    ours = sparse.pooled_attention(*given, bottleneck, competition, center_values)
    k, v = (torch.stack([naive.linear(given.tokens, head) for head in w]) for w in given[2:])
    theirs = naive.bottleneck_attention(given.q, k, v, bottleneck, competition, center_values)
    order = ours.score.argsort(dim=-1, descending=True)
    assert torch.equal(ours.chosen.gather(-1, order), theirs.chosen)
    torch.testing.assert_close(ours.score.gather(-1, order), theirs.score)
    torch.testing.assert_close(ours.value, theirs.value)
    expected = Selection(theirs.value, theirs.score, theirs.chosen)
    for mine, other in zip(gradients(ours, given), gradients(expected, given), strict=True):
        torch.testing.assert_close(mine, other)


def test_a_single_prior_without_rivals_wins_every_token_equally(chunk: int) -> None:
    given = inputs(1, 4, num_tokens=13)
    selection = sparse.pooled_attention(*given, 5, "priors")
    torch.testing.assert_close(selection.score, torch.full_like(selection.score, 1 / 5))
    q_grad, _, k_grad, _ = gradients(selection, given)
    torch.testing.assert_close(q_grad, torch.zeros_like(q_grad))
    torch.testing.assert_close(k_grad, torch.zeros_like(k_grad))


@pytest.mark.parametrize("bottleneck", [None, 9, 10])
def test_if_all_tokens_win_it_equals_the_plain_implementation(bottleneck: int | None) -> None:
    given = inputs(2, 4, num_tokens=9)
    ours = sparse.pooled_attention(*given, bottleneck)
    assert all(map(torch.equal, ours, functional.pooled_attention(*given, bottleneck)))


@pytest.mark.parametrize("num_priors", [2, 6])  # fewer than the width of a head, and more
def test_at_odd_sizes_in_float32_it_equals_the_plain_implementation(
    num_priors: int, chunk: int
) -> None:
    given = inputs(num_priors, 5, num_tokens=211, dtype=torch.float32)
    ours, theirs = (module.pooled_attention(*given, 17) for module in (sparse, functional))
    torch.testing.assert_close(ours.value, theirs.value, rtol=1e-4, atol=1e-5)
    for mine, other in zip(gradients(ours, given), gradients(theirs, given), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-4)


def test_exactly_k_tokens_win_even_if_all_are_equal(chunk: int) -> None:
    given = inputs(2, 4, num_tokens=30)._replace(tokens=torch.ones(30, E).double())
    first, second = (sparse.pooled_attention(*given, 11) for _ in range(2))
    assert torch.equal(first.chosen, second.chosen)
    assert all(len(row.unique()) == 11 for row in first.chosen.flatten(0, 1))
    torch.testing.assert_close(first.score, torch.full_like(first.score, 1 / 11))


def test_large_similarities_do_not_overflow() -> None:
    given = inputs(2, 4, num_tokens=30, dtype=torch.float32)
    given = given._replace(q=given.q * 1e4)
    selection = sparse.pooled_attention(*given, 5)
    assert selection.value.isfinite().all()
    torch.testing.assert_close(selection.score.sum(dim=-1), torch.ones(S, 2))
    assert all(
        g.isfinite().all() for g in torch.autograd.grad(selection.value.sum(), given.tokens)
    )


def test_a_token_with_a_similarity_of_minus_infinity_is_excluded() -> None:
    queries, tokens = (torch.randn(n, E).double().requires_grad_() for n in (2, 6))
    chosen = torch.tensor([[0, 1, 2], [3, 4, 5]])
    similarity = (queries @ tokens.mT).gather(1, chosen).detach()
    similarity[:, 1] = -math.inf
    shift = similarity.amax(dim=-1)
    weight, mixed = sparse.weigh_and_sum(queries, tokens, similarity, chosen, shift)
    assert not weight[:, 1].any()
    gradient = torch.autograd.grad(mixed.square().sum() + weight.square().sum(), tokens)[0]
    assert not gradient[[1, 4]].any()
    assert gradient[[0, 2, 3, 5]].all()


def test_the_gradients_of_weights_and_sums_equal_finite_differences() -> None:
    inputs = [torch.randn(n, 3).double().requires_grad_() for n in (2, 6)]
    chosen = torch.tensor([[0, 1, 2], [3, 1, 5]])

    def weigh(queries: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        similarity = (queries @ tokens.mT).gather(1, chosen)
        shift = torch.zeros(2).double()
        return sparse.weigh_and_sum(queries, tokens, similarity, chosen, shift)

    assert torch.autograd.gradcheck(weigh, inputs)


def test_the_operators_are_sound_for_autograd_and_compiler() -> None:
    given = inputs(2, 4, num_tokens=9)
    queries = torch.randn(S * 2, E).double().requires_grad_()
    without_gradient = (given.q.detach(), given.w_k.detach(), given.tokens.detach(), 4)
    torch.library.opcheck(sparse.find_most_similar, without_gradient)
    similarity, chosen = sparse.find_most_similar(*without_gradient)
    arguments = (queries, given.tokens, similarity, chosen, similarity.amax(dim=-1))
    torch.library.opcheck(sparse.weigh_and_sum, arguments)
    weight, mixed = (x.detach() for x in sparse.weigh_and_sum(*arguments))
    tensors = (weight, mixed, queries.detach(), given.tokens.detach(), weight, chosen)
    torch.library.opcheck(sparse.weigh_and_sum_backward, tensors)
    torch.library.opcheck(sparse.find_most_similar, (*without_gradient, True))
    torch.library.opcheck(sparse.weigh_and_sum, (*arguments, 2))
    torch.library.opcheck(sparse.weigh_and_sum_backward, (*tensors, 2))


@pytest.mark.parametrize(("competition", "center_values"), [("none", False), *RULES])
def test_bfloat16_autocast_keeps_the_scores_in_float32_and_is_close_to_float32(
    competition: str, center_values: bool
) -> None:
    given = inputs(2, 4, num_tokens=60, dtype=torch.float32)
    exact = sparse.pooled_attention(*given, 50, competition, center_values)
    with torch.autocast("cpu", torch.bfloat16):
        selection = sparse.pooled_attention(*given, 50, competition, center_values)
        ours = gradients(selection, given)
    assert selection.score.dtype == torch.float32
    assert selection.value.dtype == torch.bfloat16
    torch.testing.assert_close(selection.value.float(), exact.value, rtol=0.1, atol=0.1)
    for mine, other in zip(ours, gradients(exact, given), strict=True):
        assert (mine - other).norm() < 0.1 * other.norm()


class Largest(TorchDispatchMode):
    """Record the size of the largest tensor that an operator returns."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # noqa: ANN001, ANN204
        result = func(*args, **(kwargs or {}))
        for output in result if isinstance(result, tuple | list) else [result]:
            if isinstance(output, Tensor):
                self.elements = max(self.elements, output.numel())
        return result


@pytest.mark.parametrize("competes", [False, True])
@pytest.mark.parametrize("num_tokens", [600, 1200])
def test_only_the_gradient_of_the_tokens_grows_with_the_pool(
    num_tokens: int, competes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sparse, "CHUNK", 50)
    num_priors, width, bottleneck = 4, 8, 6
    with torch.no_grad():
        given = inputs(num_priors, width, num_tokens)
        q, tokens, w_k, _ = given
        queries = (q @ w_k).flatten(0, 1)
        # the mode does not see inside operators, so call the functions that implement them
        with Largest() as forward:
            find = sparse.find_most_similar._init_fn
            similarity, chosen = find(q, w_k, tokens, bottleneck, competes)
            shift = similarity.amax(dim=-1)
            weigh_and_sum = sparse.weigh_and_sum._init_fn
            weight, mixed = weigh_and_sum(queries, tokens, similarity, chosen, shift)
        with Largest() as backward:
            tensors = (weight, mixed, queries, tokens, weight, chosen)
            sparse.weigh_and_sum_backward._init_fn(*tensors, num_priors * competes)
        with Largest() as plain:
            functional.pooled_attention(*given, bottleneck)
    assert forward.elements == S * num_priors * 50  # similarities to a chunk
    assert backward.elements == num_tokens * E  # the gradient of the tokens
    assert plain.elements >= S * num_priors * num_tokens  # so this test can fail


def test_a_cpu_uses_the_sparse_implementation(monkeypatch: pytest.MonkeyPatch) -> None:
    given = inputs(2, 4, num_tokens=9)
    selection = functional.pooled_attention(*given, 3)
    monkeypatch.setattr(sparse, "pooled_attention", lambda *_: selection)
    assert kernels.pooled_attention(*given, 3) is selection


@pytest.mark.parametrize("bottleneck", [3, None])
def test_an_attend_returns_the_selection_of_its_implementation_and_the_balance_loss(
    bottleneck: int | None,
) -> None:
    given = inputs(2, 4, num_tokens=9)
    attend = kernels.PoolAttention(functional.pooled_attention)
    selection, unevenness = attend(*given, bottleneck, "global")
    expected = functional.pooled_attention(*given, bottleneck)
    assert all(map(torch.equal, selection, expected))
    assert torch.equal(unevenness, balance_loss(expected.score, expected.chosen, 9))
    written = torch.randn(2, 4)
    assert attend.merge(written, "local") is written  # one process, one pool


def test_the_default_attend_uses_the_fastest_implementation() -> None:
    assert kernels.attend == kernels.PoolAttention(kernels.pooled_attention)


@pytest.mark.parametrize("dense", [0, 1_000], ids=["gathered", "dense"])
def test_in_bfloat16_both_forms_of_the_gradient_equal_the_exact_one(
    dense: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sparse, "DENSE", dense)
    queries, tokens = (0.3 * torch.randn(n, 40) for n in (6, 50))
    chosen = torch.stack([torch.randperm(50)[:9] for _ in queries])
    slopes = torch.linspace(-1, 2, queries.numel()).view_as(queries)
    gradients = []
    for dtype in (torch.bfloat16, torch.float64):
        given = [x.bfloat16().to(dtype).requires_grad_() for x in (queries, tokens)]
        similarity = (given[0] @ given[1].mT).gather(1, chosen)
        if dtype == torch.bfloat16:
            similarity = similarity.detach()  # its gradient flows to the queries and tokens
            weight, mixed = sparse.weigh_and_sum(*given, similarity, chosen, similarity.amax(1))
            shifted = weight
        else:
            shifted = (similarity - similarity.amax(1, keepdim=True).detach()).exp()
            mixed = torch.einsum("rk,rke->re", shifted, given[1][chosen])
        loss = (slopes * mixed).sum() + shifted.square().sum()
        gradients.append(torch.autograd.grad(loss, given))
    for mine, other in zip(*gradients, strict=True):
        scale = other.abs().max().item()
        torch.testing.assert_close(mine.double(), other, rtol=0, atol=0.02 * scale)
