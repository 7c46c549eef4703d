"""The workspace against its naive twin, and when and how often its memory moves."""

import copy
import doctest
import math
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from associative_transformer import kernels
from associative_transformer import workspace as workspace_module
from associative_transformer.functional import AttendOutput, pooled_attention
from associative_transformer.kernels import PoolAttention
from associative_transformer.kernels.over_ranks import Pool
from associative_transformer.workspace import GlobalWorkspace
from associative_transformer.workspace_config import WorkspaceConfig
from twins import naive

SMALL = WorkspaceConfig(num_priors=5, prior_dim=4, num_heads=3, bottleneck=4, dropout=0.0)
EMBED_DIM = 6
WEIGHTS = (  # in the order of naive.WorkspaceWeights
    "to_q.weight",
    "to_k.weight",
    "to_v.weight",
    "to_prior.weight",
    "norm.weight",
    "norm.bias",
    "to_attractor.weight",
    "to_attractor.bias",
)
WRITE_ONLY = {"to_v.weight", "to_prior.weight", "norm.weight", "norm.bias"}

TWINS = [
    SMALL,
    replace(SMALL, bottleneck=None),
    replace(SMALL, bottleneck=1, num_heads=1, num_priors=1, prior_dim=3),
    replace(SMALL, bottleneck=100, smoothing=0.6, beta=2.5, balance_weight=0.3),
    replace(SMALL, num_steps=3, beta=0.5, smoothing=1.0),
    replace(SMALL, differentiable_write=False),
    replace(SMALL, competition="priors"),
    replace(SMALL, center_values=True, bottleneck=None),
    replace(SMALL, competition="priors", center_values=True),
    replace(SMALL, competition="priors", center_values=True, differentiable_write=False),
]


def workspace(config: WorkspaceConfig = SMALL, **kwargs: Any) -> GlobalWorkspace:  # noqa: ANN401
    built = GlobalWorkspace(EMBED_DIM, config, **kwargs).double()
    with torch.no_grad():  # the norm starts as the identity, which would hide an error
        built.norm.weight.normal_()
        built.norm.bias.normal_()
    return built


def tokens(batch: int = 3, count: int = 4) -> Tensor:
    return torch.randn(batch, count, EMBED_DIM, dtype=torch.float64, requires_grad=True)


def weights_of(module: GlobalWorkspace) -> naive.WorkspaceWeights:
    weights = (module.get_parameter(name) for name in WEIGHTS)
    return naive.WorkspaceWeights(*(w.detach().clone().requires_grad_() for w in weights))


def twin_step(
    u: Tensor, priors: Tensor, weights: naive.WorkspaceWeights, config: WorkspaceConfig
) -> naive.WorkspaceStep:
    return naive.workspace_step(
        u,
        priors,
        weights,
        config.num_heads,
        config.bottleneck,
        config.smoothing,
        config.beta,
        config.num_steps,
        config.differentiable_write,
        config.competition,
        config.center_values,
    )


def by_name(weights: naive.WorkspaceWeights) -> dict[str, Tensor]:
    return dict(zip(WEIGHTS, weights, strict=True))


def assert_close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("config", TWINS)
def test_two_training_steps_equal_the_naive_twin(config: WorkspaceConfig) -> None:
    module, pools = workspace(config), (tokens(), tokens(2, 5))
    weights, priors = weights_of(module), module.priors.clone()
    loss, twin_loss = torch.zeros(()).double(), torch.zeros(()).double()
    for u in pools:
        output, twin = module(u), twin_step(u, priors, weights, config)
        assert_close(output.read, twin.retrieved)
        assert_close(output.balance_loss, config.balance_weight * twin.balance)
        assert_close(module.priors, twin.priors)
        cotangent = torch.randn_like(output.read)
        loss = loss + (output.read * cotangent).sum() + output.balance_loss
        twin_loss = twin_loss + (twin.retrieved * cotangent).sum()
        twin_loss = twin_loss + config.balance_weight * twin.balance
        priors = twin.priors.detach()

    # backward comes after the memory has moved twice
    names, parameters = zip(*module.named_parameters(), strict=True)
    ours = torch.autograd.grad(loss, (*pools, *parameters), allow_unused=True)
    expected = torch.autograd.grad(
        twin_loss, (*pools, *(by_name(weights)[name] for name in names)), allow_unused=True
    )
    for name, mine, theirs in zip(("u0", "u1", *names), ours, expected, strict=True):
        if not config.differentiable_write and name in WRITE_ONLY:
            assert mine is None and theirs is None, name
            continue
        assert mine is not None and theirs is not None, name
        assert_close(mine, theirs)


def test_the_write_equals_that_of_the_twin_and_leaves_the_memory_unchanged() -> None:
    module, u = workspace(), tokens()
    before = module.priors.clone()
    written = module.write(u.flatten(0, 1))
    theirs, expected = naive.workspace_write(
        u.flatten(0, 1), before, weights_of(module), SMALL.num_heads, SMALL.bottleneck
    )
    assert_close(written.priors, theirs)
    score, order = written.selection.score.sort(dim=-1, descending=True)
    assert_close(score, expected.score)
    assert torch.equal(written.selection.chosen.gather(-1, order), expected.chosen)
    assert torch.equal(module.priors, before)


def test_a_detached_write_gives_no_gradient_to_values_output_and_norm() -> None:
    module = workspace(replace(SMALL, differentiable_write=False))
    output = module(tokens())
    (output.read.sum() + output.balance_loss).backward()
    without = {name for name, p in module.named_parameters() if p.grad is None}
    assert without == WRITE_ONLY


def test_a_detached_write_trains_queries_and_keys_only_through_the_balance_loss() -> None:
    module = workspace(replace(SMALL, differentiable_write=False, balance_weight=0.0))
    module(tokens()).read.sum().backward()
    without = {name for name, p in module.named_parameters() if p.grad is None}
    assert without == WRITE_ONLY | {"to_q.weight", "to_k.weight"}


def test_a_differentiable_write_trains_every_weight() -> None:
    module = workspace(replace(SMALL, balance_weight=0.0))
    module(tokens()).read.square().sum().backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), name


def test_evaluation_leaves_the_memory_unchanged() -> None:
    module = workspace().eval()
    before = module.priors.clone()
    for _ in range(3):
        output = module(tokens())
        assert output.balance_loss == 0
    assert torch.equal(module.priors, before)


def test_evaluation_writes_nothing() -> None:
    def attend(*_: Tensor | int | str | None) -> AttendOutput:
        raise AssertionError("tokens compete in evaluation")

    module = workspace(attend=attend).eval()
    module(tokens())
    with pytest.raises(AssertionError, match="compete"):
        module.train()(tokens())


def test_in_evaluation_the_output_for_an_image_does_not_depend_on_its_neighbors() -> None:
    module, u = workspace().eval(), tokens(5)
    together = module(u).read
    for i in range(5):
        assert_close(module(u[i : i + 1]).read, together[i : i + 1])


def test_evaluation_reads_the_memory_with_the_formula() -> None:
    module, u = workspace(replace(SMALL, beta=2.0, num_steps=2)).eval(), tokens()
    w = weights_of(module)
    attractors = naive.linear(module.priors, w.attractor_weight, w.attractor_bias)
    assert_close(module(u).read, naive.hopfield_retrieve(u, attractors, 2.0, 2))


def test_in_training_the_output_for_an_image_depends_on_its_neighbors() -> None:
    u = tokens(5)
    module = workspace()
    alone = copy.deepcopy(module)(u[:1]).read
    assert not torch.allclose(module(u).read[:1], alone)


@pytest.mark.parametrize("with_grad", [True, False])
def test_training_moves_the_memory_once_per_forward(with_grad: bool) -> None:
    module = workspace()
    for _ in range(3):
        before, u = module.priors.clone(), tokens()
        written = module.write(u.flatten(0, 1)).priors
        with torch.set_grad_enabled(with_grad):
            module(u)
        assert_close(module.priors, naive.update_priors(before, written, SMALL.smoothing))
        assert not torch.equal(module.priors, before)


def test_the_first_write_gives_the_priors_unit_length() -> None:
    module = workspace()
    assert not torch.allclose(module.priors.norm(dim=-1), torch.ones(5).double())
    module(tokens())
    assert_close(module.priors.norm(dim=-1), torch.ones(5).double())


def test_backward_does_not_move_the_memory() -> None:
    module = workspace()
    output = module(tokens())
    before = module.priors.clone()
    (output.read.sum() + output.balance_loss).backward()
    assert torch.equal(module.priors, before)


def test_reordering_the_images_reorders_the_output() -> None:
    module, u, order = workspace(), tokens(5), torch.tensor([3, 0, 4, 1, 2])
    other = copy.deepcopy(module)
    output, reordered = module(u), other(u[order])
    assert_close(reordered.read, output.read[order])
    assert_close(reordered.balance_loss, output.balance_loss)
    assert_close(other.priors, module.priors)


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_a_write_that_is_not_finite_leaves_the_memory_unchanged(poison: float) -> None:
    module, u = workspace(), tokens().detach()
    before = module.priors.clone()
    u[1, 2, 3] = poison
    output = module(u)
    assert torch.equal(module.priors, before)
    assert output.read[0].isfinite().all() and output.read[2].isfinite().all()
    module(tokens())
    assert module.priors.isfinite().all() and not torch.equal(module.priors, before)


def test_the_memory_keeps_its_storage() -> None:
    module = workspace()
    buffer, address = module.priors, module.priors.data_ptr()
    module(tokens())
    module.reset()
    module.load_state_dict(workspace().state_dict())
    module.eval()(tokens())
    assert module.priors is buffer and module.priors.data_ptr() == address
    assert not module.priors.requires_grad and module.priors.grad_fn is None


def test_the_memory_is_saved_and_is_not_a_parameter() -> None:
    module = workspace()
    assert "priors" in module.state_dict()
    assert "priors" not in dict(module.named_parameters())
    assert module.priors.shape == (SMALL.num_priors, SMALL.prior_dim)


def test_the_state_dict_restores_memory_and_output() -> None:
    module, other, u = workspace(), workspace(), tokens()
    module(tokens())
    other.load_state_dict(module.state_dict())
    assert torch.equal(other(u).read, module(u).read)
    assert torch.equal(other.priors, module.priors)


def test_the_memory_starts_and_restarts_from_a_standard_normal() -> None:
    config = WorkspaceConfig(num_priors=128, prior_dim=64)
    module = GlobalWorkspace(8, config)
    drawn = [module.priors.clone()]
    for _ in range(2):
        module.reset()
        drawn.append(module.priors.clone())
    for priors in drawn:
        assert abs(priors.mean()) < 0.05 and abs(priors.std() - 1) < 0.05
        assert priors.norm(dim=-1).std() > 0.1  # not normalized
    assert not torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[1], drawn[2])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_priors", 0),
        ("prior_dim", -1),
        ("num_heads", 0),
        ("num_steps", 0),
        ("num_steps", 1_000_000_000),
        ("bottleneck", 0),
        ("bottleneck", -7),
        ("smoothing", 0.0),
        ("smoothing", 1.5),
        ("smoothing", math.nan),
        ("beta", 0.0),
        ("beta", -1.0),
        ("beta", math.nan),
        ("beta", 1e38),
        ("balance_weight", -0.01),
        ("balance_weight", math.nan),
        ("balance_weight", 1e38),
        ("dropout", -0.1),
        ("dropout", 1.0),
        ("dropout", math.nan),
    ],
)
def test_an_invalid_field_is_reported_with_its_value(name: str, value: float) -> None:
    with pytest.raises(ValueError) as caught:
        WorkspaceConfig(**{name: value})
    assert name in str(caught.value) and str(value) in str(caught.value)


def test_the_defaults_are_those_of_the_paper_and_of_its_code() -> None:
    c = WorkspaceConfig()
    assert (c.num_priors, c.prior_dim, c.num_heads, c.bottleneck) == (32, 32, 8, 512)
    assert (c.smoothing, c.beta, c.num_steps, c.balance_weight) == (0.1, 1.0, 1, 0.01)
    assert (c.dropout, c.differentiable_write, c.reset_each_epoch) == (0.1, True, False)
    assert (c.competition, c.center_values) == ("none", False)  # not in the paper


def test_a_balance_weight_of_zero_turns_the_balance_loss_off() -> None:
    module = workspace(replace(SMALL, balance_weight=0.0))
    output = module(tokens())
    assert output.balance_loss == 0 and not output.balance_loss.requires_grad


def test_the_balance_weight_scales_the_balance_loss() -> None:
    light, u = workspace(), tokens()
    heavy = workspace(replace(SMALL, balance_weight=1.0))
    heavy.load_state_dict(light.state_dict())
    assert_close(light(u).balance_loss, 0.01 * heavy(u).balance_loss)


class _Reader(nn.Module):
    def forward(self, u: Tensor, attractors: Tensor) -> Tensor:
        self.attractors = attractors
        return u + attractors.sum(dim=1, keepdim=True)


def test_a_reader_replaces_the_hopfield_retrieval() -> None:
    reader = _Reader()
    module, u = workspace(reader=reader), tokens()
    output = module(u)
    attractors = module.to_attractor(module.priors)
    assert_close(reader.attractors, attractors.expand(len(u), -1, -1))
    assert_close(output.read, u + attractors.sum(dim=0))


@pytest.mark.parametrize("pool", ["global", "node", "local"])
def test_a_custom_attention_replaces_the_default_and_gets_the_pool(pool: Pool) -> None:
    calls = []

    def attend(*arguments: Tensor | int | str | None) -> AttendOutput:
        calls.append([x.shape if isinstance(x, Tensor) else x for x in arguments])
        return AttendOutput(pooled_attention(*arguments[:-1]), torch.tensor(3.0).double())

    module = workspace(replace(SMALL, pool=pool), attend=attend)
    written = module.write(tokens().flatten(0, 1))
    shapes = (3, 5, 4), (12, EMBED_DIM), (3, 4, EMBED_DIM), (3, 4, EMBED_DIM)
    assert calls == [[*shapes, 4, pool]]
    assert float(written.balance_loss) == pytest.approx(0.03)


@pytest.mark.parametrize(
    "rules",
    [{"competition": "priors"}, {"center_values": True}],
    ids=lambda rules: next(iter(rules)),
)
def test_a_custom_attention_gets_the_rules_of_the_write_only_if_they_are_on(
    rules: dict[str, Any],
) -> None:
    got = []

    def attend(*arguments: Any, **keywords: Any) -> AttendOutput:  # noqa: ANN401
        got.append(keywords)
        selection = pooled_attention(*arguments[:-1], **keywords)
        return AttendOutput(selection, torch.tensor(3.0).double())

    u = tokens().flatten(0, 1)
    for config in (SMALL, replace(SMALL, **rules)):
        module, ours = workspace(config, attend=attend), workspace(config)
        module.load_state_dict(ours.state_dict())
        assert_close(module.write(u).priors, ours.write(u).priors)
    assert got == [{}, rules]


def test_the_attention_decides_how_dropout_is_applied() -> None:
    class Halving(PoolAttention):
        def share(self, dropout: nn.Dropout, update: Tensor) -> Tensor:
            assert dropout.p == 0.3
            return update / 2

    config, u = replace(SMALL, dropout=0.3), tokens().flatten(0, 1)
    module = workspace(config, attend=Halving(pooled_attention))
    plain = workspace(replace(config, dropout=0.0))
    plain.load_state_dict(module.state_dict())
    with torch.no_grad():
        plain.to_prior.weight /= 2
    assert_close(module.write(u).priors, plain.write(u).priors)


@pytest.mark.parametrize("attend", [kernels.attend, lambda *x: kernels.attend(*x)])
def test_a_single_process_draws_the_mask_that_nn_dropout_draws(attend: Any) -> None:  # noqa: ANN401
    module, u = workspace(replace(SMALL, dropout=0.3), attend=attend), tokens().flatten(0, 1)
    inputs = []
    module.dropout.register_forward_hook(lambda _, given, output: inputs.append((*given, output)))
    torch.manual_seed(1)
    module.write(u)
    ((update, dropped),) = inputs
    torch.manual_seed(1)
    assert torch.equal(nn.functional.dropout(update, 0.3), dropped)
    assert not dropped.all() and dropped.any()


def test_the_write_is_merged_before_it_is_remembered() -> None:
    plain, u = workspace(), tokens().flatten(0, 1)
    calls = []

    def merge(written: Tensor, pool: Pool) -> Tensor:
        calls.append((written, pool))
        return 2 * written

    merging = workspace(replace(SMALL, pool="local"), merge=merge)
    merging.load_state_dict(plain.state_dict())
    written = merging.write(u)
    assert_close(written.priors, 2 * plain.write(u).priors)
    assert_close(calls[0][0], plain.write(u).priors)
    assert calls[0][1] == "local"


def test_the_attention_decides_how_to_merge_unless_a_merge_is_passed() -> None:
    class Doubling(PoolAttention):
        def merge(self, written: Tensor, pool: Pool) -> Tensor:
            return 2 * written

    attend = Doubling(pooled_attention)
    modules = [workspace(attend=attend), workspace(attend=attend, merge=lambda x, _: x)]
    modules.append(workspace(attend=lambda *arguments: attend(*arguments)))  # has no merge
    for module in modules:
        module.load_state_dict(modules[0].state_dict())
    u = tokens().flatten(0, 1)
    doubled, *others = (module.write(u).priors for module in modules)
    for other in others:
        assert_close(doubled, 2 * other)


def test_a_custom_retrieval_replaces_the_default() -> None:
    calls = []

    def retrieve(u: Tensor, attractors: Tensor, beta: float, num_steps: int) -> Tensor:
        calls.append((u, attractors.shape, beta, num_steps))
        return 2 * u

    config = replace(SMALL, beta=3.0, num_steps=2)
    module, u = workspace(config, retrieve=retrieve), tokens()
    assert_close(module(u).read, 2 * u)
    assert calls[0][0] is u and calls[0][1:] == ((5, EMBED_DIM), 3.0, 2)


def test_dropout_applies_to_the_write_before_it_is_added_to_the_priors() -> None:
    rate = 0.25
    config = WorkspaceConfig(num_priors=64, prior_dim=32, num_heads=2, dropout=rate)
    module, u = GlobalWorkspace(EMBED_DIM, config), torch.randn(40, EMBED_DIM)
    sums = []
    module.norm.register_forward_pre_hook(lambda _, args: sums.append(args[0]))
    module.write(u)
    module.dropout.p = 0.0
    module.write(u)
    full, kept = sums[1] - module.priors, sums[0] - module.priors
    dropped = kept.abs() < 1e-6
    assert abs(dropped.float().mean() - rate) < 0.05
    torch.testing.assert_close(kept[~dropped], full[~dropped] / (1 - rate), rtol=1e-3, atol=1e-5)


def test_bfloat16_autocast_keeps_memory_scores_and_balance_loss_in_float32() -> None:
    config = replace(SMALL, bottleneck=7)
    module = GlobalWorkspace(EMBED_DIM, config)
    exact, u = copy.deepcopy(module), torch.randn(3, 4, EMBED_DIM, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        selection = module.write(u.flatten(0, 1)).selection
        output = module(u)
        (output.read.float().square().sum() + output.balance_loss).backward()
    assert module.priors.dtype == torch.float32
    assert selection.score.dtype == output.balance_loss.dtype == torch.float32
    torch.testing.assert_close(module.priors.norm(dim=-1), torch.ones(5))
    expected = exact(u)
    torch.testing.assert_close(output.read.float(), expected.read, rtol=0.05, atol=0.05)
    torch.testing.assert_close(module.priors, exact.priors, rtol=0.05, atol=0.05)
    for parameter in module.parameters():
        assert parameter.grad is not None and parameter.grad.dtype == torch.float32
        assert parameter.grad.isfinite().all()


def test_double_precision_applies_to_memory_and_output() -> None:
    module = GlobalWorkspace(EMBED_DIM, SMALL).double()
    output = module(tokens())
    assert {x.dtype for x in (*output, module.priors)} == {torch.float64}


def test_all_tokens_of_a_batch_smaller_than_the_bottleneck_are_written() -> None:
    module = workspace(replace(SMALL, bottleneck=512))
    written = module.write(tokens(1, 1).flatten(0, 1))
    assert written.selection.score.shape == (3, 5, 1)
    assert written.balance_loss == 0
    assert module(tokens(1, 1)).read.isfinite().all()


def test_the_example_in_the_docstring_works() -> None:
    results = doctest.testmod(workspace_module)
    assert results.attempted > 2
    assert not results.failed


def test_importing_the_workspace_imports_neither_the_compiler_nor_other_libraries() -> None:
    code = """
import sys
from associative_transformer import GlobalWorkspace
slow = {"torch._dynamo", "torch._inductor", "torchvision", "datasets", "accelerate", "triton"}
print(sorted(slow & set(sys.modules)))
"""
    output = subprocess.check_output([sys.executable, "-c", code], text=True)
    assert output.strip() == "[]"
