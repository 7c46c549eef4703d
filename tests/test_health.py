"""The health of memories: planted ones, slow twins, and that measuring it changes nothing."""

import copy
import doctest
import math
import pickle
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from associative_transformer import health as health_module
from associative_transformer.health import MemoryHealth, count_distinct, memory_health
from associative_transformer.models.ait import AiT, AiTConfig
from associative_transformer.models.vit import ViT, ViTConfig
from associative_transformer.workspace import KEPT, GlobalWorkspace
from associative_transformer.workspace_config import ImageMemoryConfig, WorkspaceConfig
from making.tiny import tiny
from twins import slow_health

WIDTH = 8
SHARED = WorkspaceConfig(num_priors=5, prior_dim=4, num_heads=3, bottleneck=4)
OWN = WorkspaceConfig(
    num_priors=5,
    prior_dim=4,
    num_heads=3,
    bottleneck=4,
    scope="image",
    image=ImageMemoryConfig(read_head_dim=4),
)
QUESTION_DIM = 3
AIT = tiny(AiTConfig, workspace=SHARED, question_dim=QUESTION_DIM)
AIT_OWN = replace(AIT, workspace=replace(OWN, dropout=0.2))
both_models = pytest.mark.parametrize("config", [AIT, AIT_OWN], ids=["batch", "image"])
both_scopes = pytest.mark.parametrize("config", [SHARED, OWN], ids=["batch", "image"])


def draw(count: int = 3) -> tuple[Tensor, Tensor]:
    """Draw images and questions for `AIT`."""
    side = AIT.image_size
    return torch.randn(count, 3, side, side), torch.randn(count, QUESTION_DIM)


def workspace(config: WorkspaceConfig = SHARED) -> GlobalWorkspace:
    return GlobalWorkspace(WIDTH, config)


def planted(score: list[Any], chosen: list[Any], num_tokens: int) -> MemoryHealth:
    """Return the health of a memory whose last training step has this selection (S, M, K)."""
    gates = torch.tensor(score)
    num_heads, num_priors, _ = gates.shape
    layer = workspace(replace(SHARED, num_heads=num_heads, num_priors=num_priors))
    layer.last_step = num_tokens, gates, torch.tensor(chosen)
    return memory_health(layer)[0]


def with_priors(priors: Tensor) -> MemoryHealth:
    layer = workspace(replace(SHARED, num_priors=len(priors), prior_dim=priors.shape[1]))
    layer.priors.copy_(priors)
    return memory_health(layer)[0]


# --- rank and distinct priors ---


def test_orthogonal_priors_have_full_rank_and_are_all_distinct() -> None:
    found = with_priors(torch.eye(4))
    assert found.effective_rank == pytest.approx(4)
    assert (found.distinct, found.num_priors, found.is_collapsed) == (4, 4, False)


def test_equal_priors_have_rank_one_and_count_once_whatever_their_length() -> None:
    found = with_priors(torch.tensor([1.0, -2.0, 0.5]) * torch.arange(1, 9)[:, None])
    assert found.effective_rank == pytest.approx(1)
    assert (found.distinct, found.num_priors, found.is_collapsed) == (1, 8, True)


def at_angles(*degrees: float) -> Tensor:
    angles = torch.tensor(degrees, dtype=torch.float64).deg2rad()
    return torch.stack([angles.cos(), angles.sin()], dim=-1)


@pytest.mark.parametrize(
    ("priors", "expected"),
    [
        (at_angles(0, 8.1), 1),  # cos 8.11 degrees is 0.99
        (at_angles(0, 8.2), 2),
        (at_angles(0, 180), 2),
        (at_angles(0, 6, 12), 2),  # the second is the same as the first, the third only as it
        (at_angles(6, 0, 12), 1),
        (torch.zeros(3, 2), 1),
        (torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 0.0]]), 2),
        (at_angles(40), 1),
    ],
    ids=str,
)
def test_priors_within_a_small_angle_of_an_earlier_distinct_one_are_not_distinct(
    priors: Tensor, expected: int
) -> None:
    assert count_distinct(priors) == expected == slow_health.count_distinct(priors)


def test_many_memories_are_counted_at_once() -> None:
    memories = torch.randn(2, 3, 12, 2, dtype=torch.float64)
    counts = count_distinct(memories)
    assert counts.shape == (2, 3)
    expected = [[slow_health.count_distinct(memory) for memory in row] for row in memories]
    assert counts.tolist() == expected
    assert len({x for row in expected for x in row}) > 1


@pytest.mark.parametrize(
    ("rank", "distinct", "num_priors", "expected"),
    [
        (1.49, 32, 32, True),
        (1.5, 32, 32, False),
        (3.0, 7, 32, True),
        (3.0, 8, 32, False),
        (1.0, 1, 1, False),  # a single prior has nothing to be equal to
        (math.nan, 32, 32, False),
    ],
)
def test_a_memory_has_collapsed_below_a_rank_of_1_5_or_a_quarter_of_distinct_priors(
    rank: float, distinct: float, num_priors: int, expected: bool
) -> None:
    assert MemoryHealth(rank, distinct, num_priors).is_collapsed is expected


def test_a_memory_that_is_not_finite_has_no_rank() -> None:
    priors = torch.eye(3)
    priors[1, 1] = math.inf
    assert math.isnan(with_priors(priors).effective_rank)


# --- what the priors take ---


def test_the_overlap_is_the_mean_over_pairs_of_different_priors_of_a_head() -> None:
    # head 1: {0, 1}, {1, 2}, {0, 1}; head 2: {0, 1}, {2, 3}, {4, 5}
    chosen = [[[0, 1], [1, 2], [1, 0]], [[0, 1], [2, 3], [4, 5]]]
    found = planted([[[0.5, 0.5]] * 3] * 2, chosen, num_tokens=10)
    assert found.overlap == pytest.approx((1 / 3 + 1 + 1 / 3 + 0 + 0 + 0) / 6)
    assert found.tokens_used == 0.6


def test_priors_that_take_the_same_tokens_overlap_fully_and_use_few() -> None:
    found = planted([[[0.5, 0.5]] * 4], [[[3, 1], [1, 3], [3, 1], [3, 1]]], num_tokens=40)
    assert (found.overlap, found.tokens_used) == (1.0, 0.05)
    assert found.priors_winning == 0.25  # the first of equal ones wins


def test_a_prior_wins_if_no_other_of_its_head_attends_more_to_one_of_its_tokens() -> None:
    chosen = [[[0, 1], [0, 1], [2, 3]]]
    found = planted([[[0.9, 0.8], [0.1, 0.2], [0.5, 0.5]]], chosen, num_tokens=4)
    assert found.priors_winning == pytest.approx(2 / 3)
    found = planted([[[0.9, 0.2], [0.1, 0.8], [0.5, 0.5]]], chosen, num_tokens=4)
    assert found.priors_winning == 1


def test_a_prior_that_wins_hardly_anything_counts_as_dead() -> None:
    # two priors, of which the second wins one of n tokens: a tenth of the mean share is 1 / 20
    def winning(n: int) -> float:
        chosen = torch.arange(n).expand(1, 2, n)
        score = torch.ones(1, 2, n)
        score[0, 1, 0] = 2
        found = planted(score.tolist(), chosen.tolist(), n).priors_winning
        assert found is not None
        return found

    assert winning(20) == 1
    assert winning(21) == 0.5


def test_wins_are_averaged_over_the_heads() -> None:
    one, other = [[1.0], [0.5]], [[0.5], [1.0]]
    same = [[0], [0]]
    assert planted([one, one], [same, same], 1).priors_winning == 0.5
    assert planted([one, other], [same, same], 1).priors_winning == 1
    # the second prior wins one of twelve tokens in one of the heads: 1 / 24 is below 1 / 20
    score, chosen = torch.ones(2, 2, 12), torch.arange(12).expand(2, 2, 12)
    score[0, 1, 0] = 2
    assert planted(score.tolist(), chosen.tolist(), 12).priors_winning == 0.5


def test_tokens_with_a_score_of_zero_are_not_taken() -> None:
    found = planted([[[1.0, 0.0], [0.5, 0.5]]], [[[0, 1], [1, 2]]], num_tokens=4)
    assert (found.overlap, found.tokens_used) == (0, 0.75)


def test_a_single_prior_has_no_overlap() -> None:
    assert planted([[[1.0]]], [[[2]]], num_tokens=3).overlap == 0


@pytest.mark.parametrize("bottleneck", [1, 4, 9])
@pytest.mark.parametrize("heads", [1, 3])
def test_a_pool_equals_the_loops(bottleneck: int, heads: int) -> None:
    layer = workspace(replace(SHARED, bottleneck=bottleneck, num_heads=heads))
    u = torch.randn(2, 7, WIDTH)
    score, chosen = layer.eval().select(u)
    groups = [slow_health.gates_of(score, chosen)]
    [found] = memory_health(layer, u)
    assert found.overlap == pytest.approx(slow_health.mean_overlap(groups))
    assert found.tokens_used == pytest.approx(slow_health.share_used(groups, 14))
    assert found.priors_winning == pytest.approx(slow_health.share_winning(groups))
    assert found.effective_rank == pytest.approx(slow_health.effective_rank(layer.priors))
    assert found.distinct == slow_health.count_distinct(layer.priors)


class Padded(nn.Module):
    """Passes tokens to a workspace; those without a single positive number are padding."""

    def __init__(self, config: WorkspaceConfig, by_name: bool = False) -> None:
        super().__init__()
        self.layer, self.by_name = workspace(config), by_name

    def forward(self, u: Tensor) -> Tensor:
        mask = (u <= 0).all(dim=-1)
        return (self.layer(u, key_padding_mask=mask) if self.by_name else self.layer(u, mask)).read


@pytest.mark.parametrize("by_name", [False, True])
@pytest.mark.parametrize("bottleneck", [2, 0.4, None])
def test_padded_images_equal_the_loops_over_their_real_tokens(
    bottleneck: int | float | None, by_name: bool
) -> None:
    model = Padded(replace(OWN, bottleneck=bottleneck), by_name)
    u = torch.randn(4, 7, WIDTH)
    lengths = [7, 4, 1, 0]
    for image, length in zip(u, lengths, strict=True):
        image[length:] = -1
    [found] = memory_health(model, u)
    groups, ranks, distinct = [], [], []
    for image, length in zip(u, lengths, strict=True):
        mask = (image[None] <= 0).all(dim=-1)
        written = model.layer.write_images(image[None], mask)
        ranks.append(slow_health.effective_rank(written.priors[0]))
        distinct.append(slow_health.count_distinct(written.priors[0]))
        if length:  # each image by itself, without its padding
            score, chosen = model.layer.select(image[None, :length])
            groups.append(slow_health.gates_of(score[0], chosen[0]))
    assert found.overlap == pytest.approx(slow_health.mean_overlap(groups))
    assert found.tokens_used == pytest.approx(slow_health.share_used(groups, sum(lengths)))
    assert found.priors_winning == pytest.approx(slow_health.share_winning(groups))
    assert found.effective_rank == pytest.approx(sum(ranks) / 4, rel=1e-5)
    assert found.distinct == pytest.approx(sum(distinct) / 4)


def test_images_without_any_token_have_no_overlap() -> None:
    [found] = memory_health(Padded(OWN), -torch.ones(2, 3, WIDTH))
    assert (found.overlap, found.tokens_used, found.priors_winning) == (0, 0, 0)


# --- where the tokens come from ---


@both_scopes
def test_before_the_first_step_only_rank_and_distinct_priors_are_known(
    config: WorkspaceConfig,
) -> None:
    layer = workspace(config)
    layer.eval()(torch.randn(2, 7, WIDTH))
    [found] = memory_health(layer)
    assert found.effective_rank > 1 and found.num_priors == 5
    assert (found.overlap, found.tokens_used, found.priors_winning) == (None, None, None)


def test_a_training_step_shows_what_the_memory_before_it_took() -> None:
    layer, u = workspace(), torch.randn(2, 7, WIDTH)
    [expected] = memory_health(layer, u)
    before = layer.priors.clone()
    layer(u)
    assert not torch.equal(layer.priors, before)
    [found] = memory_health(layer)
    assert found[3:] == expected[3:]
    assert found.effective_rank == pytest.approx(slow_health.effective_rank(layer.priors))


def test_a_step_on_images_shows_what_the_priors_take_from_the_first_ones() -> None:
    layer, u = workspace(OWN), torch.randn(KEPT + 3, 7, WIDTH)
    layer(u)
    [expected], [found] = memory_health(layer, u[:KEPT]), memory_health(layer)
    assert found[3:] == expected[3:]
    # the learned contents, not the memories of the images
    assert found.effective_rank == pytest.approx(slow_health.effective_rank(layer.priors))
    assert found.effective_rank != pytest.approx(expected.effective_rank)
    assert memory_health(layer, u)[0][3:] != expected[3:]


def test_the_padding_of_a_step_is_kept() -> None:
    model = Padded(OWN)
    u = torch.randn(3, 7, WIDTH)
    u[0, 2:], u[1] = -1, -1
    model(u)
    [found], [expected] = memory_health(model), memory_health(model, u)
    assert found[3:] == expected[3:]


def test_the_last_of_several_steps_counts_and_evaluation_does_not() -> None:
    layer, first, last = workspace(), *torch.randn(2, 2, 7, WIDTH)
    layer(first)
    [expected] = memory_health(layer, last)
    layer(last)
    layer.eval()(first)
    assert memory_health(layer)[0][3:] == expected[3:]


def test_a_dense_step_uses_all_tokens_and_overlaps_fully() -> None:
    layer = workspace(replace(SHARED, bottleneck=None))
    layer(torch.randn(2, 7, WIDTH))
    [found] = memory_health(layer)
    assert (found.overlap, found.tokens_used) == (1, 1)


def test_a_model_has_one_entry_per_workspace_in_the_order_of_its_modules() -> None:
    model = nn.Sequential(*(nn.Sequential(Padded(SHARED), nn.Identity()) for _ in range(3)))
    for i, each in enumerate(model):
        each[0].layer.priors.copy_(torch.eye(5, 4) if i == 1 else torch.ones(5, 4))
    assert [x.distinct for x in memory_health(model)] == [1, 5, 1]
    config = tiny(ViTConfig)
    assert memory_health(ViT(config)) == []


@both_models
def test_a_model_with_questions_is_run_with_them(config: AiTConfig) -> None:
    model, (images, questions) = AiT(config), draw()
    seen: list[Tensor] = []
    for block in model.blocks:
        block.workspace.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    found = memory_health(model, images, questions)
    for block, u, each in zip(model.blocks, tuple(seen), found, strict=True):
        assert each[3:] == memory_health(block.workspace, u)[0][3:]
        assert 0 < each.tokens_used <= 1 and 0 <= each.overlap <= 1
    first = seen[0]
    seen.clear()
    memory_health(model, images, -questions)
    is_same = (seen[0] == first).all(dim=-1)
    assert not is_same[:, 0].any() and is_same[:, 1:].sum() == 0


class Twice(nn.Module):
    """Calls one workspace twice."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = workspace()

    def forward(self, u: Tensor) -> Tensor:
        return self.layer(u[:, :3]).read.mean() + self.layer(u[:, 3:]).read.mean()


def test_the_calls_of_a_shared_workspace_are_counted_together() -> None:
    model, u = Twice().eval(), torch.randn(2, 9, WIDTH)
    groups = [slow_health.gates_of(*model.layer.select(part)) for part in (u[:, :3], u[:, 3:])]
    [found] = memory_health(model, u)
    assert found.overlap == pytest.approx(slow_health.mean_overlap(groups))
    assert found.tokens_used == pytest.approx(slow_health.share_used(groups, 18))
    assert found.priors_winning == pytest.approx(slow_health.share_winning(groups))


def test_low_precision_does_not_blur_the_counts() -> None:
    layer, u = workspace(replace(SHARED, bottleneck=300)), torch.randn(2, 257, WIDTH)
    layer(u)
    [expected] = memory_health(layer)
    with torch.autocast("cpu", torch.bfloat16):
        [found] = memory_health(layer)
    assert found == expected


# --- what must not change ---


@both_models
@pytest.mark.parametrize("training", [True, False])
def test_measuring_changes_neither_modes_nor_memory_nor_random_numbers(
    config: AiTConfig, training: bool
) -> None:
    model, (images, questions) = AiT(config), draw()
    model(images, questions)
    model.train(training)
    model.blocks[0].feed_forward.train(not training)  # a part in a mode of its own
    modes = [module.training for module in model.modules()]
    state = copy.deepcopy(model.state_dict())
    steps = [block.workspace.last_step for block in model.blocks]
    hooks = [len(module._forward_pre_hooks) for module in model.modules()]
    random = torch.get_rng_state()
    for arguments in ((), (images, questions)):
        memory_health(model, *arguments)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(x, state[name]) for name, x in model.state_dict().items())
    assert all(x is y.workspace.last_step for x, y in zip(steps, model.blocks, strict=True))
    assert [len(module._forward_pre_hooks) for module in model.modules()] == hooks
    assert torch.equal(torch.get_rng_state(), random)
    assert all(parameter.grad is None for parameter in model.parameters())


class Noisy(nn.Module):
    """Draws random numbers in every mode, and fails on request."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.is_broken = workspace(), False

    def forward(self, u: Tensor) -> Tensor:
        if self.is_broken:
            raise RuntimeError("broken")
        return self.layer(u + torch.randn_like(u)).read


def test_a_model_that_draws_numbers_or_fails_is_left_as_it_was() -> None:
    model, u = Noisy(), torch.randn(2, 7, WIDTH)
    random = torch.get_rng_state()
    memory_health(model, u)
    assert torch.equal(torch.get_rng_state(), random)
    model.is_broken = True
    with pytest.raises(RuntimeError, match="broken"):
        memory_health(model, u)
    assert model.training and model.layer.training
    assert not model.layer._forward_pre_hooks
    assert torch.equal(torch.get_rng_state(), random)


@both_scopes
def test_the_last_step_is_copied_and_pickled_but_not_saved(config: WorkspaceConfig) -> None:
    layer, u = workspace(config), torch.randn(2, 7, WIDTH, requires_grad=True)
    names = set(layer.state_dict())
    output = layer(u)
    (output.read.sum() + output.balance_loss).backward()
    assert set(layer.state_dict()) == names
    expected = memory_health(layer)
    assert expected[0].overlap is not None
    assert memory_health(copy.deepcopy(layer)) == expected
    assert memory_health(pickle.loads(pickle.dumps(layer))) == expected
    assert not any(x.requires_grad for x in layer.last_step if isinstance(x, Tensor))


@both_models
def test_after_a_step_in_bfloat16_the_health_is_close_to_that_in_float32(
    config: AiTConfig,
) -> None:
    model, (images, questions) = AiT(config), draw()
    other = copy.deepcopy(model)
    model(images, questions)
    with torch.autocast("cpu", torch.bfloat16):
        other(images, questions)
    for mine, theirs in zip(memory_health(other), memory_health(model), strict=True):
        assert mine.overlap == pytest.approx(theirs.overlap, abs=0.1)
        assert mine.tokens_used == pytest.approx(theirs.tokens_used, abs=0.1)


def test_the_tokens_of_a_step_on_images_are_kept_without_the_other_images() -> None:
    layer = workspace(OWN)
    layer(torch.randn(100, 7, WIDTH))
    tokens, mask = layer.last_step
    assert tokens.shape == (KEPT, 7, WIDTH) and mask is None
    assert tokens.untyped_storage().nbytes() == tokens.nbytes


def test_the_example_in_the_docstring_works() -> None:
    results = doctest.testmod(health_module)
    assert results.attempted > 3
    assert not results.failed
