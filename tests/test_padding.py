"""Padding in a workspace with one memory for the batch, in one process and in several."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from associative_transformer import functional, kernels
from associative_transformer.health import memory_health
from associative_transformer.kernels import PoolAttention, over_ranks
from associative_transformer.workspace import GlobalWorkspace
from associative_transformer.workspace_config import WorkspaceConfig
from drivers import ranks

CONFIG = WorkspaceConfig(num_priors=4, prior_dim=6, num_heads=2, bottleneck=5, dropout=0.0)
RULES = {
    "plain": CONFIG,
    "all tokens": replace(CONFIG, bottleneck=None),
    "more winners than tokens": replace(CONFIG, bottleneck=100),
    "competition": replace(CONFIG, competition="priors"),
    "centered values": replace(CONFIG, center_values=True),
    "both": replace(CONFIG, competition="priors", center_values=True, bottleneck=None),
    "detached": replace(CONFIG, differentiable_write=False),
}
every_rule = pytest.mark.parametrize("config", RULES.values(), ids=RULES)
MASK = torch.tensor([[0, 1, 0, 0, 1], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1]]).bool()
SOME = torch.tensor([[1, 0, 1, 1], [0, 1, 0, 0]]).bool()


def build(
    config: WorkspaceConfig = CONFIG, attend: PoolAttention | None = None
) -> GlobalWorkspace:
    torch.manual_seed(0)
    return GlobalWorkspace(8, config, **({} if attend is None else {"attend": attend})).double()


def step(
    module: GlobalWorkspace, u: Tensor, mask: Tensor | None, slope: Tensor
) -> dict[str, Tensor]:
    """Return what one training step gives; `slope` weighs what the tokens read."""
    u = u.clone().requires_grad_()
    read, loss = module(u, mask)
    ((read * slope).sum() + loss).backward()
    gradients = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
    assert u.grad is not None
    return {"read": read, "loss": loss, "u": u.grad, "memory": module.priors, **gradients}


@every_rule
@pytest.mark.parametrize("filling", [0.0, 3.0, torch.nan])
def test_padding_changes_nothing_for_the_other_tokens(
    config: WorkspaceConfig, filling: float
) -> None:
    u, slope = torch.randn(2, 3, 5, 8, dtype=torch.float64)
    u[MASK] = filling
    ours = step(build(config), u, MASK, slope)
    kept = ~MASK.flatten()
    # the same tokens without padding, as one image
    theirs = step(build(config), u[~MASK][None], None, slope[~MASK][None])
    for name, value in theirs.items():
        mine = ours[name]
        if name in ("read", "u"):
            assert not mine[MASK].any()
            mine = mine.flatten(0, 1)[kept][None]
        torch.testing.assert_close(mine, value, msg=name)


@every_rule
def test_the_plain_implementation_treats_padding_alike(config: WorkspaceConfig) -> None:
    u, slope = torch.randn(2, 3, 5, 8, dtype=torch.float64)
    ours = step(build(config), u, MASK, slope)
    plain = build(config, PoolAttention(functional.pooled_attention))
    for name, value in step(plain, u, MASK, slope).items():
        torch.testing.assert_close(ours[name], value, msg=name)


def test_a_mask_without_padding_is_like_no_mask() -> None:
    u, slope = torch.randn(2, 3, 5, 8, dtype=torch.float64)
    ours = step(build(), u, torch.zeros(3, 5, dtype=torch.bool), slope)
    for name, value in step(build(), u, None, slope).items():
        assert torch.equal(ours[name], value), name


def test_nothing_is_written_if_all_tokens_are_padding() -> None:
    module = build()
    before = module.priors.clone()
    read, loss = module(torch.randn(2, 4, 8).double(), torch.ones(2, 4, dtype=torch.bool))
    assert not read.any() and not loss
    assert torch.equal(module.priors, before)


@pytest.mark.parametrize("is_frozen", [False, True])
def test_in_evaluation_padding_reads_zero_and_the_others_read_as_before(is_frozen: bool) -> None:
    module = build().train(is_frozen)
    module.freeze(is_frozen)
    u = torch.randn(2, 4, 8).double()
    plain, padded = module(u).read, module(u, SOME).read
    assert torch.equal(padded[~SOME], plain[~SOME])
    assert not padded[SOME].any()


def test_the_winners_are_positions_in_the_padded_batch() -> None:
    module, u = build(replace(CONFIG, bottleneck=3)), torch.randn(2, 4, 8).double()
    winners = module.select(u, SOME)
    assert SOME.flatten()[winners.chosen].sum() == 0
    kept = (~SOME.flatten()).nonzero()[:, 0]
    alone = module.select(u[~SOME][None])
    assert torch.equal(winners.chosen, kept[alone.chosen])
    assert torch.equal(winners.score, alone.score)


def test_padding_does_not_count_in_the_health_of_a_memory() -> None:
    module, u = build(), torch.randn(2, 4, 8).double()
    other = copy.deepcopy(module)
    module(u, SOME)
    other(u[~SOME][None])
    assert memory_health(module) == memory_health(other)


# --- several processes ---


COUNTS = {"unequal": (5, 2), "one has only padding": (6, 0), "the first has none": (0, 3)}


RANK_CASES = [(CONFIG, counts) for counts in COUNTS.values()]
RANK_CASES.append((RULES["both"], COUNTS["one has only padding"]))
FURTHER = [(rule, counts) for rule in RULES.values() for counts in COUNTS.values()]
RANK_CASES += [
    pytest.param(*case, marks=pytest.mark.thorough) for case in FURTHER if case not in RANK_CASES
]


@pytest.mark.slow
@pytest.mark.parametrize(("config", "counts"), RANK_CASES)
def test_ranks_with_different_padding_compute_what_one_process_does(
    config: WorkspaceConfig, counts: tuple[int, int]
) -> None:
    whole = ranks.write_padded(0, 1, config, counts)
    group = ranks.in_ranks(2, ranks.write_padded, config, counts)
    assert torch.equal(group[0]["memory"], group[1]["memory"])
    pairs = zip(group, counts, strict=True)
    read = torch.cat([result.pop("read")[0, :count] for result, count in pairs])
    torch.testing.assert_close(read, whole.pop("read")[0])
    for result in group:
        assert result.keys() == whole.keys()
        for name, value in whole.items():
            torch.testing.assert_close(result[name], value, msg=name)


@pytest.mark.slow
def test_a_batch_of_padding_on_all_ranks_gives_finite_gradients_of_zero() -> None:
    for result in ranks.in_ranks(2, ranks.write_padded, CONFIG, (0, 0)):
        assert result["memory"].isfinite().all()
        assert not result["to_v.weight"].any()


@pytest.mark.slow
def test_a_local_pool_of_padding_leaves_its_share_of_the_priors() -> None:
    config = replace(CONFIG, pool="local")
    first, second = ranks.in_ranks(2, ranks.write_padded, config, (4, 0))
    assert torch.equal(first["memory"], second["memory"])
    torch.manual_seed(0)
    module = GlobalWorkspace(8, config).double()
    u = ranks.padded_tokens()[0][:4]
    written = torch.stack([module.write(u).priors, module.priors]).mean(dim=0)
    torch.testing.assert_close(first["memory"], module.remember(written))


def test_select_works_if_all_tokens_are_padding() -> None:
    winners = build().select(torch.randn(2, 4, 8).double(), torch.ones(2, 4, dtype=torch.bool))
    assert not winners.score.any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_centered_values_of_many_tokens_do_not_overflow(dtype: torch.dtype) -> None:
    q, w_k, w_v = (torch.randn(2, *shape).to(dtype) / 4 for shape in ((3, 4), (4, 6), (4, 6)))
    tokens = (3 + torch.randn(70_000, 6)).to(dtype)
    ours = over_ranks.pooled_attention(q, tokens, w_k, w_v, 5, 1, center_values=True)
    theirs = kernels.pooled_attention(q, tokens, w_k, w_v, 5, center_values=True)
    value = ours.selection.value
    assert value.isfinite().all()
    torch.testing.assert_close(value.float(), theirs.value.float(), rtol=0.05, atol=0.05)
