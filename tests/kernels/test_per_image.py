"""The workspace per image as equations and in its fast form, both against slow loops."""

import math
from itertools import product
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from associative_transformer.functional import (
    ImageSelection,
    balance_loss_per_image,
    bottleneck_attention_per_image,
    count_winners,
    hopfield_retrieve_per_image,
)
from associative_transformer.kernels import per_image
from twins import naive, naive_image

IMAGES, HEADS, TOKENS, PRIOR_DIM, EMBED_DIM = 2, 2, 4, 3, 4
PADDING = {  # (images, tokens), True for padding
    "no mask": None,
    "no padding": torch.zeros(IMAGES, TOKENS, dtype=torch.bool),
    "some padding": torch.tensor([[0, 1, 0, 0], [1, 0, 1, 1]]).bool(),
    "an image of padding": torch.tensor([[1, 0, 0, 0], [1, 1, 1, 1]]).bool(),
}
RETRIEVALS = [  # images, tokens, priors, width, width of a head, beta, steps
    (1, 1, 1, 1, 1, 1.0, 1),
    (2, 3, 4, 6, 6, 1.0, 1),
    (2, 3, 4, 6, 2, 0.3, 1),
    (1, 4, 2, 6, 1, 4.0, 3),
    (3, 2, 5, 12, 4, 2.5, 2),
]

every_form = pytest.mark.parametrize("form", ["functional", "kernel"])
every_mask = pytest.mark.parametrize("mask", PADDING)
every_number_of_priors = pytest.mark.parametrize(
    "num_priors", [2, PRIOR_DIM + 1], ids=["few priors", "more priors than D"]
)
every_write = pytest.mark.parametrize(
    ("competition", "center_values"), [*product(("none", "priors"), (False, True))]
)


class Given(NamedTuple):
    q: Tensor  # (S, M, D)
    tokens: Tensor  # (B, N, E)
    w_k: Tensor  # (S, D, E)
    w_v: Tensor  # (S, D, E)

    @property
    def sources(self) -> tuple[Tensor, Tensor]:
        """Return keys and values, both (B, S, N, D)."""
        k, v = (torch.einsum("sde,bne->bsnd", w, self.tokens) for w in (self.w_k, self.w_v))
        return k, v

    def attend(self, form: str, *arguments: Any) -> ImageSelection:  # noqa: ANN401
        if form == "kernel":
            return per_image.attend(*self, *arguments)
        return bottleneck_attention_per_image(self.q, *self.sources, *arguments)


def draw(
    num_priors: int = 3, num_tokens: int = TOKENS, dtype: torch.dtype = torch.float64
) -> Given:
    shapes = (
        (HEADS, num_priors, PRIOR_DIM),
        (IMAGES, num_tokens, EMBED_DIM),
        (HEADS, PRIOR_DIM, EMBED_DIM),
        (HEADS, PRIOR_DIM, EMBED_DIM),
    )
    return Given(*(torch.randn(shape, dtype=dtype).requires_grad_() for shape in shapes))


def assert_same(
    ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...], inputs: tuple[Tensor, ...]
) -> None:
    """Compare results, and the gradients of a random sum of them, to 1e-10."""
    losses = [inputs[0].new_zeros(()), inputs[0].new_zeros(())]
    for mine, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-10, atol=1e-10)
        cotangent = torch.randn_like(expected)
        losses[0] = losses[0] + (mine * cotangent).sum()
        losses[1] = losses[1] + (expected * cotangent).sum()
    gradients = [torch.autograd.grad(loss, inputs, retain_graph=True) for loss in losses]
    for mine, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-10, atol=1e-10)


# --- the twins ---


@every_mask
@every_number_of_priors
@every_write
@pytest.mark.parametrize("bottleneck", [2, 50, 0.3, None])
def test_attention_equals_the_loops(
    mask: str,
    num_priors: int,
    competition: str,
    center_values: bool,
    bottleneck: int | float | None,
) -> None:
    given, padding = draw(num_priors), PADDING[mask]
    settings = naive_image.Settings(
        HEADS, bottleneck, EMBED_DIM, competition == "priors", center_values
    )
    theirs = naive_image.attention(given.q, *given.sources, settings, padding)
    expected = (*theirs[:2], naive_image.balance_loss(*theirs[1:], padding))
    for form in ("functional", "kernel"):
        ours = given.attend(form, bottleneck, padding, competition, center_values)
        assert torch.equal(ours.chosen, theirs.is_chosen)
        balance = balance_loss_per_image(*ours[1:], padding)
        assert_same((*ours[:2], balance), expected, given)


@every_form
@pytest.mark.parametrize(
    ("images", "tokens", "priors", "width", "head_dim", "beta", "steps"), RETRIEVALS
)
def test_retrieval_equals_the_loops(
    form: str,
    images: int,
    tokens: int,
    priors: int,
    width: int,
    head_dim: int,
    beta: float,
    steps: int,
) -> None:
    state, attractors = (
        torch.randn(images, n, width, dtype=torch.float64, requires_grad=True)
        for n in (tokens, priors)
    )
    retrieve = per_image.retrieve if form == "kernel" else hopfield_retrieve_per_image
    ours = retrieve(state, attractors, beta, head_dim, steps)
    theirs = naive_image.retrieve(state, attractors, beta, head_dim, steps)
    assert_same((ours,), (theirs,), (state, attractors))


# --- planted cases ---


@every_form
def test_the_value_equals_one_computed_by_hand(form: str) -> None:
    # one image, head and prior, width 1: a = (0, log 2, log 4), so the best two score 1/3 and 2/3
    tokens = torch.tensor([[[0.0], [math.log(2)], [math.log(4)]]])
    one = torch.ones(1, 1, 1)
    given = Given(one, tokens, one, one)
    selection = given.attend(form, 2)
    torch.testing.assert_close(selection.score, torch.tensor([[[[0, 1 / 3, 2 / 3]]]]))
    assert selection.chosen.tolist() == [[[[False, True, True]]]]
    expected = math.log(2) / 3 + math.log(4) * 2 / 3
    torch.testing.assert_close(selection.value, torch.full((1, 1, 1, 1), expected))
    mean = (math.log(2) + math.log(4)) / 3  # over all tokens, not only over those chosen
    centered = given.attend(form, 2, None, "none", True)
    torch.testing.assert_close(centered.value, torch.full((1, 1, 1, 1), expected - mean))


@every_form
def test_in_a_competition_a_token_counts_most_for_the_prior_that_is_most_similar(
    form: str,
) -> None:
    # both priors are most similar to token 1, but prior 1 is so much more similar to it that
    # token 0 is left to prior 0: 2 - 5 > 3 - 9
    similarity, identity = torch.tensor([[2.0, 3.0], [5.0, 9.0]]), torch.eye(2)[None]
    given = Given(similarity[None] * math.sqrt(2), identity, identity, identity)
    assert given.attend(form, 1, None, "none").chosen.int().tolist() == [[[[0, 1], [0, 1]]]]
    assert given.attend(form, 1, None, "priors").chosen.int().tolist() == [[[[1, 0], [0, 1]]]]
    expected = similarity.log_softmax(dim=0).softmax(dim=1)
    score = given.attend(form, None, None, "priors").score
    torch.testing.assert_close(score, expected[None, None])


def test_the_balance_loss_equals_values_computed_by_hand() -> None:
    # all three priors of both heads choose token 0 of 4: importance = load = (3, 0, 0, 0), whose
    # mean is 0.75 and unbiased variance 2.25: CV^2 = 4, twice per head
    score = torch.zeros(1, 2, 3, 4)
    score[..., 0] = 1.0
    torch.testing.assert_close(balance_loss_per_image(score, score > 0), torch.tensor(16.0))
    padding = torch.tensor([[False, False, True, True]])
    # without the last two tokens (3, 0): mean 1.5, variance 4.5, CV^2 = 2
    loss = balance_loss_per_image(score, score > 0, padding)
    torch.testing.assert_close(loss, torch.tensor(8.0))


def test_images_with_fewer_than_two_tokens_do_not_count_in_the_balance_loss() -> None:
    score = torch.zeros(3, 1, 1, 4)
    score[..., 0] = 1.0
    padding = torch.zeros(3, 4, dtype=torch.bool)
    alone = balance_loss_per_image(score[:1], score[:1] > 0, padding[:1])
    padding[1, 1:], padding[2] = True, True
    torch.testing.assert_close(balance_loss_per_image(score, score > 0, padding), alone)
    assert balance_loss_per_image(score[1:], score[1:] > 0, padding[1:]) == 0


@pytest.mark.parametrize(
    ("bottleneck", "num_tokens", "expected"),
    [
        (0.25, 64, 16),
        (0.25, 65, 17),
        (0.07, 100, 7),
        (0.1, 30, 3),
        (0.01, 20, 1),
        (0.999, 3, 3),
        (0.25, 0, 1),  # an image without tokens has nothing to choose
        (7, 64, 7),
        (7, 5, 5),
        (None, 9, 9),
    ],
)
def test_a_share_is_rounded_up_and_a_number_is_cut_off(
    bottleneck: int | float | None, num_tokens: int, expected: int
) -> None:
    assert count_winners(bottleneck, torch.tensor([num_tokens])).tolist() == [expected]
    if num_tokens:
        assert naive_image.number_kept(bottleneck, num_tokens) == expected


@every_form
@pytest.mark.parametrize(
    ("num_tokens", "bottleneck"),
    [(64, 0.25), (65, 0.25), (100, 0.07), (30, 0.1), (20, 0.01), (20, 6)],
)
def test_each_prior_chooses_exactly_that_many_tokens_with_and_without_a_mask(
    form: str, num_tokens: int, bottleneck: int | float
) -> None:
    given = draw(num_tokens=num_tokens, dtype=torch.float32)
    expected = naive_image.number_kept(bottleneck, num_tokens)
    assert (given.attend(form, bottleneck).chosen.sum(dim=-1) == expected).all()
    padding = torch.zeros(IMAGES, num_tokens, dtype=torch.bool)
    padding[1, 10:] = True
    whole, short = given.attend(form, bottleneck, padding).chosen.sum(dim=-1)
    fewer = naive_image.number_kept(bottleneck, 10)
    assert (whole == expected).all() and (short == fewer).all()


@every_form
@every_mask
def test_equal_similarities_give_the_same_choice_of_the_right_size_every_time(
    form: str, mask: str
) -> None:
    given, padding = draw(), PADDING[mask]
    given = given._replace(q=torch.ones_like(given.q), tokens=torch.ones_like(given.tokens))
    chosen = [given.attend(form, 2, padding).chosen for _ in range(3)]
    assert torch.equal(chosen[0], chosen[1]) and torch.equal(chosen[1], chosen[2])
    count = torch.full((IMAGES,), TOKENS) if padding is None else (~padding).sum(dim=-1)
    expected = count.clamp(max=2)[:, None, None].expand(chosen[0].shape[:3])
    assert torch.equal(chosen[0].sum(dim=-1), expected)


# --- numbers ---


@every_form
@every_number_of_priors
@every_mask
def test_half_precision_gives_float32_scores(form: str, num_priors: int, mask: str) -> None:
    given = Given(*(x.detach().bfloat16() for x in draw(num_priors)))
    selection = given.attend(form, 0.5, PADDING[mask], "priors")
    assert selection.score.dtype == torch.float32
    assert selection.value.dtype == torch.bfloat16
    assert balance_loss_per_image(*selection[1:], PADDING[mask]).dtype == torch.float32


@every_number_of_priors
@every_mask
@pytest.mark.parametrize("bottleneck", [0.5, None])
def test_under_autocast_the_scores_are_float32_and_close(
    num_priors: int, mask: str, bottleneck: float | None
) -> None:
    given = draw(num_priors, dtype=torch.float32)
    exact = per_image.attend(*given, bottleneck, PADDING[mask])
    with torch.autocast("cpu", torch.bfloat16):
        rounded = per_image.attend(*given, bottleneck, PADDING[mask])
        read = per_image.retrieve(given.tokens, given.tokens, 1.0, 2)
    assert rounded.score.dtype == read.dtype == torch.float32
    same = (rounded.chosen == exact.chosen).all(dim=-1)  # a near tie may be decided otherwise
    assert same.float().mean() > 0.8
    torch.testing.assert_close(rounded.score[same], exact.score[same], rtol=0.1, atol=0.05)
    exact_read = per_image.retrieve(given.tokens, given.tokens, 1.0, 2)
    torch.testing.assert_close(read, exact_read, rtol=1e-5, atol=1e-6)


def test_half_precision_states_are_retrieved_in_float32() -> None:
    state, attractors = torch.randn(2, 5, 12).bfloat16(), torch.randn(2, 3, 12).bfloat16()
    read = per_image.retrieve(state, attractors, 1.0, 4, 3)
    assert read.dtype == torch.float32
    exact = per_image.retrieve(state.double(), attractors.double(), 1.0, 4, 3)
    torch.testing.assert_close(read.double(), exact, rtol=1e-5, atol=1e-6)


@every_form
@every_mask
@pytest.mark.parametrize("competition", ["none", "priors"])
@pytest.mark.parametrize("bottleneck", [1, 0.5, None])
def test_extreme_similarities_stay_finite(
    form: str, mask: str, competition: str, bottleneck: int | float | None
) -> None:
    given = Given(*((1e4 * x).detach().float().requires_grad_() for x in draw()))
    selection = given.attend(form, bottleneck, PADDING[mask], competition, True)
    gradients = torch.autograd.grad(selection.value.sum(), given, allow_unused=True)
    assert selection.value.isfinite().all() and selection.score.isfinite().all()
    assert all(g is None or bool(g.isfinite().all()) for g in gradients)


@pytest.mark.parametrize("beta", [0.05, 1.0, 20.0])
def test_retrieval_never_raises_the_energy_of_a_head(beta: float) -> None:
    state, attractors = torch.randn(2, 9, 12).double(), 2 * torch.randn(2, 5, 12).double()
    for _ in range(4):
        after = per_image.retrieve(state, attractors, beta, 4)
        for image, start in product(range(2), range(0, 12, 4)):
            part = slice(start, start + 4)
            before, now = (
                naive.hopfield_energy(x[image, :, part], attractors[image, :, part], beta / 2)
                for x in (state, after)
            )
            assert (now <= before + 1e-9).all()
        state = after
