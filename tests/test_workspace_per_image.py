"""The workspace per image against its slow twin, its properties, and its use as a module."""

import copy
import io
import math
import pickle
from collections.abc import Callable
from dataclasses import replace
from itertools import product

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from associative_transformer import kernels
from associative_transformer.functional import hopfield_energy, hopfield_retrieve
from associative_transformer.models.ait import AiTConfig, Block
from associative_transformer.workspace import GlobalWorkspace
from associative_transformer.workspace_config import ImageMemoryConfig, WorkspaceConfig
from making.tiny import tiny
from twins import naive, naive_image

EMBED_DIM, PRIOR_DIM = 4, 3
SMALL = WorkspaceConfig(
    scope="image",
    num_priors=2,
    prior_dim=PRIOR_DIM,
    num_heads=2,
    bottleneck=2,
    beta=0.7,
    balance_weight=0.3,
    image=ImageMemoryConfig(read_head_dim=2),
)
WEIGHTS = (  # in the order of naive_image.ImageWeights
    "priors",
    "to_q.weight",
    "to_k.weight",
    "to_v.weight",
    "to_prior.weight",
    "norm.weight",
    "norm.bias",
    "to_attractor.weight",
    "to_attractor.bias",
)
READ_NORM = ("read_norm.weight", "read_norm.bias")
PADDING = {
    "no mask": None,
    "some padding": torch.tensor([[0, 1, 0, 0], [1, 0, 1, 1]]).bool(),
    "an image of padding": torch.tensor([[1, 0, 0, 0], [1, 1, 1, 1]]).bool(),
}

BOTTLENECKS = [2, 0.5, 50, None]
WRITES = [*product(("none", "priors"), (False, True))]  # competition and centered values
READS = [*product((1, 3), (False, True))]  # steps and norm
CASES = {
    f"{mask}-{bottleneck}-{priors}-{'-'.join(map(str, WRITES[i] + READS[(i + j) % 4]))}": (
        PADDING[mask],
        replace(
            SMALL,
            num_priors=priors,
            bottleneck=bottleneck,
            competition=WRITES[i][0],
            center_values=WRITES[i][1],
            num_steps=READS[(i + j) % 4][0],
            image=replace(SMALL.image, use_read_norm=READS[(i + j) % 4][1]),
        ),
    )
    for mask in PADDING
    for j, bottleneck in enumerate(BOTTLENECKS)
    for priors in (2, PRIOR_DIM + 1)
    for i in range(4)
}
"""Every combination of what the write depends on, each with one of the four reads, so that every
pair of values of two fields occurs."""

every_bottleneck = pytest.mark.parametrize("bottleneck", BOTTLENECKS)
every_mask = pytest.mark.parametrize("mask", PADDING)


def workspace(config: WorkspaceConfig = SMALL, embed_dim: int = EMBED_DIM) -> GlobalWorkspace:
    """Return a workspace in float64 whose norms are not the identity, which would hide errors."""
    built = GlobalWorkspace(embed_dim, config).double()
    with torch.no_grad():
        for name, parameter in built.named_parameters():
            if "norm" in name:
                parameter.normal_()
    return built


def tokens(images: int = 2, count: int = 4, width: int = EMBED_DIM) -> Tensor:
    return torch.randn(images, count, width, dtype=torch.float64, requires_grad=True)


def names_of(module: GlobalWorkspace) -> tuple[str, ...]:
    return WEIGHTS + (READ_NORM if module.config.image.use_read_norm else ())


def weights_of(module: GlobalWorkspace) -> naive_image.ImageWeights:
    weights = (module.get_parameter(name) for name in names_of(module))
    return naive_image.ImageWeights(*(w.detach().clone().requires_grad_() for w in weights))


def settings_of(config: WorkspaceConfig) -> naive_image.Settings:
    return naive_image.Settings(
        config.num_heads,
        config.bottleneck,
        config.image.read_head_dim,
        config.competition == "priors",
        config.center_values,
        config.beta,
        config.num_steps,
    )


def assert_close(ours: Tensor, theirs: Tensor, name: str = "") -> None:
    torch.testing.assert_close(
        ours, theirs, rtol=1e-10, atol=1e-10, msg=lambda text: f"{name}: {text}"
    )


# --- the twin ---


@pytest.mark.parametrize(("padding", "config"), CASES.values(), ids=CASES)
def test_output_and_gradients_equal_the_naive_twin(
    padding: Tensor | None, config: WorkspaceConfig
) -> None:
    module, u = workspace(config), tokens()
    weights = weights_of(module)
    theirs = naive_image.workspace_step(u, weights, settings_of(config), padding)
    ours = module(u, padding)
    assert_close(ours.read, theirs.read)
    assert_close(ours.balance_loss, 0.3 * theirs.balance)
    assert_close(module.write_images(u, padding).priors, theirs.priors)

    cotangent = torch.randn_like(ours.read)
    losses = (
        (ours.read * cotangent).sum() + ours.balance_loss,
        (theirs.read * cotangent).sum() + 0.3 * theirs.balance,
    )
    names = names_of(module)
    parameters = [module.get_parameter(name) for name in names]
    assert set(names) == {name for name, _ in module.named_parameters()}
    mine = torch.autograd.grad(losses[0], (u, *parameters))
    expected = torch.autograd.grad(losses[1], (u, *weights[: len(names)]))
    for name, a, b in zip(("u", *names), mine, expected, strict=True):
        assert_close(a, b, name)
    if padding is not None:
        assert not ours.read[padding].any() and not mine[0][padding].any()


@pytest.mark.parametrize(("num_heads", "read_head_dim"), [(1, 4), (3, 2), (5, 1)])
def test_the_heads_of_write_and_read_are_independent(num_heads: int, read_head_dim: int) -> None:
    config = replace(SMALL, num_heads=num_heads, image=ImageMemoryConfig(read_head_dim))
    module, u = workspace(config), tokens()
    theirs = naive_image.workspace_step(u, weights_of(module), settings_of(config))
    assert_close(module(u).read, theirs.read)


def test_the_twin_of_a_larger_workspace_agrees() -> None:
    config = WorkspaceConfig(
        scope="image", num_priors=7, prior_dim=5, num_heads=3, image=ImageMemoryConfig(4)
    )
    module, u = workspace(config, 12), tokens(2, 19, 12)
    padding = torch.arange(19) >= torch.tensor([[19], [11]])
    theirs = naive_image.workspace_step(u, weights_of(module), settings_of(config), padding)
    assert_close(module(u, padding).read, theirs.read)
    assert theirs.attention.is_chosen.sum(dim=-1).unique().tolist() == [3, 5]


def test_every_parameter_learns() -> None:
    for padding in PADDING.values():
        module = workspace()
        module(tokens(), padding).read.square().sum().backward()
        for name, parameter in module.named_parameters():
            assert parameter.grad is not None and parameter.grad.any(), name


# --- properties ---


@every_bottleneck
@pytest.mark.parametrize("garbage", [0.0, -1e9, math.inf, math.nan])
def test_padding_changes_nothing_for_the_other_tokens(
    bottleneck: int | float | None, garbage: float
) -> None:
    config = replace(SMALL, bottleneck=bottleneck, competition="priors", center_values=True)
    module, u = workspace(config), tokens()
    longer = torch.cat([u, torch.full((2, 2, EMBED_DIM), garbage, dtype=u.dtype)], dim=1)
    padding = torch.zeros(2, 6, dtype=torch.bool)
    padding[:, 4:] = True
    order = torch.tensor([4, 0, 1, 5, 2, 3])  # padding may stand anywhere
    outputs = [module(u), module(longer, padding), module(longer[:, order], padding[:, order])]
    reads = [outputs[0].read, outputs[1].read[:, :4], outputs[2].read[:, [1, 2, 4, 5]]]
    cotangent = torch.randn_like(reads[0])
    inputs = (u, *module.parameters())
    gradients = [
        torch.autograd.grad((read * cotangent).sum() + output.balance_loss, inputs)
        for read, output in zip(reads, outputs, strict=True)
    ]
    for i in (1, 2):
        assert_close(reads[i], reads[0])
        assert_close(outputs[i].balance_loss, outputs[0].balance_loss)
        assert not outputs[i].read[padding if i == 1 else padding[:, order]].any()
        for mine, expected in zip(gradients[i], gradients[0], strict=True):
            assert_close(mine, expected)


def test_an_image_of_padding_keeps_the_normalized_contents_and_reads_zero() -> None:
    module, u = workspace(), tokens(2)
    padding = torch.tensor([[False] * 4, [True] * 4])
    of_images = module.write_images(u, padding)
    assert_close(of_images.priors[1], module.norm(module.priors))
    assert not module(u, padding).read[1].any()
    assert not of_images.selection.chosen[1].any()


@pytest.mark.parametrize("training", [True, False])
@every_mask
def test_the_read_of_an_image_does_not_depend_on_its_neighbors(training: bool, mask: str) -> None:
    module, u, padding = workspace().train(training), tokens(), PADDING[mask]
    together = module(u, padding).read
    for rows in ([0], [1], [1, 0], [1, 0, 1, 1]):
        alone = module(u[rows], None if padding is None else padding[rows]).read
        assert_close(alone, together[rows])


@every_mask
def test_reordering_the_tokens_reorders_the_read(mask: str) -> None:
    module, u, padding, order = workspace(), tokens(), PADDING[mask], torch.tensor([2, 0, 3, 1])
    shuffled = None if padding is None else padding[:, order]
    output, other = module(u, padding), module(u[:, order], shuffled)
    assert_close(other.read, output.read[:, order])
    assert_close(other.balance_loss, output.balance_loss)


def test_reordering_the_priors_changes_nothing() -> None:
    module, u = workspace(), tokens()
    other = copy.deepcopy(module)
    with torch.no_grad():
        other.priors.copy_(module.priors.flip(0))
    assert_close(other(u).read, module(u).read)


def test_tokens_read_what_other_tokens_of_the_image_have_written() -> None:
    module, u = workspace(replace(SMALL, bottleneck=None)), tokens(2)
    (gradient,) = torch.autograd.grad(module(u).read[0, 0].sum(), u)
    assert gradient[0].any(dim=-1).all()  # later tokens, too
    assert not gradient[1].any()


@every_mask
def test_training_and_evaluation_give_the_same_read(mask: str) -> None:
    module, u = workspace(), tokens()
    before = copy.deepcopy(module.state_dict())
    trained = module(u, PADDING[mask])
    evaluated = module.eval()(u, PADDING[mask])
    assert torch.equal(trained.read, evaluated.read)
    assert trained.balance_loss > 0 and evaluated.balance_loss == 0
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_dropout_acts_only_on_the_write_and_only_in_training() -> None:
    module, u = workspace(replace(SMALL, dropout=0.5)), tokens()
    assert not torch.equal(module(u).read, module(u).read)
    assert torch.equal(module.eval()(u).read, module(u).read)
    plain = workspace()
    plain.load_state_dict(module.state_dict())
    assert torch.equal(module(u).read, plain(u).read)


def test_without_a_balance_weight_there_is_no_balance_loss() -> None:
    module = workspace(replace(SMALL, balance_weight=0.0))
    loss = module(tokens()).balance_loss
    assert loss == 0 and not loss.requires_grad


@pytest.mark.parametrize("beta", [0.1, 1.0, 10.0])
def test_a_read_never_raises_the_energy_of_a_head(beta: float) -> None:
    image = replace(SMALL.image, use_read_norm=False)
    module, u = workspace(replace(SMALL, beta=beta, num_steps=1, image=image)), tokens(2, 9)
    attractors = module.to_attractor(module.write_images(u).priors)
    state = u
    for _ in range(4):
        after = module.read_images(state, module.write_images(u).priors)
        for number, start in product(range(2), (0, 2)):
            part = (number, slice(None), slice(start, start + 2))
            stored = attractors[part]
            before, now = (
                hopfield_energy(x[part], stored, beta / math.sqrt(2)) for x in (state, after)
            )
            assert (now <= before + 1e-9).all()
        state = after


def test_the_contents_start_with_rows_of_length_sqrt_d() -> None:
    module = GlobalWorkspace(32, WorkspaceConfig(scope="image", num_priors=128, prior_dim=64))
    assert isinstance(module.priors, torch.nn.Parameter)
    torch.testing.assert_close(module.priors.norm(dim=-1), torch.full((128,), 8.0))
    assert abs(module.priors.mean()) < 0.05 and abs(module.priors.std() - 1) < 0.05
    assert not list(module.buffers())
    assert module.norm.eps == module.read_norm.eps == 1e-5


# --- precision ---


@every_mask
@pytest.mark.parametrize("num_priors", [2, PRIOR_DIM + 1])
@pytest.mark.parametrize("bottleneck", [None, 0.5])
def test_bfloat16_autocast_is_close_to_float32(
    mask: str, num_priors: int, bottleneck: float | None
) -> None:
    config = replace(SMALL, num_priors=num_priors, bottleneck=bottleneck)
    module, u = workspace(config).float(), tokens().detach().float()
    exact = module(u, PADDING[mask])
    with torch.autocast("cpu", torch.bfloat16):
        rounded = module(u, PADDING[mask])
        assert module.write_images(u, PADDING[mask]).selection.score.dtype == torch.float32
    rounded.read.square().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in module.parameters())
    difference = (rounded.read.float() - exact.read).abs()
    assert difference.mean() < 0.05 * exact.read.abs().mean()


@every_mask
@pytest.mark.parametrize("num_priors", [2, PRIOR_DIM + 1])
def test_a_workspace_cast_to_bfloat16_runs(mask: str, num_priors: int) -> None:
    module, padding = workspace(replace(SMALL, num_priors=num_priors)).bfloat16(), PADDING[mask]
    u = tokens().detach().bfloat16().requires_grad_()
    output = module(u, padding)
    (output.read.float().square().sum() + output.balance_loss).backward()
    assert output.read.dtype == torch.bfloat16  # so that the next layer can take it
    assert u.grad is not None and u.grad.dtype == torch.bfloat16
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.dtype == torch.bfloat16, name
    assert module.write_images(u, padding).selection.score.dtype == torch.float32


def test_float64_stays_float64() -> None:
    module, u = workspace(), tokens()
    for context in (torch.autocast("cpu", enabled=False), torch.autocast("cpu", torch.bfloat16)):
        with context:
            output = module(u)
            assert output.read.dtype == output.balance_loss.dtype == torch.float64
            assert module.write_images(u).selection.score.dtype == torch.float64


# --- winners ---


@every_mask
@every_bottleneck
def test_select_returns_the_winners_of_the_twin_with_sorted_scores(
    mask: str, bottleneck: int | float | None
) -> None:
    config = replace(SMALL, bottleneck=bottleneck)
    module, u, padding = workspace(config), tokens(), PADDING[mask]
    winners = module.select(u, padding)
    theirs = naive_image.workspace_step(u, weights_of(module), settings_of(config), padding)
    gates = theirs.attention.gates
    most = int(theirs.attention.is_chosen.sum(dim=-1).max())
    assert winners.score.shape == winners.chosen.shape == (*gates.shape[:3], most)
    assert (winners.score.diff(dim=-1) <= 0).all() and not winners.score.requires_grad
    assert_close(torch.zeros_like(gates).scatter(-1, winners.chosen, winners.score), gates)
    total = winners.score.sum(dim=-1)
    is_empty = torch.zeros(2, dtype=torch.bool) if padding is None else padding.all(dim=-1)
    assert_close(total, (~is_empty).double()[:, None, None].expand_as(total))


def test_select_for_the_batch_returns_the_winners_of_the_pool_and_moves_nothing() -> None:
    config = WorkspaceConfig(num_priors=5, prior_dim=4, num_heads=3, bottleneck=4)
    for training in (True, False):
        module, u = GlobalWorkspace(EMBED_DIM, config).double().train(training), tokens()
        before = module.priors.clone()
        winners = module.select(u)
        q, k, v = (
            naive.split_heads(naive.linear(x, layer.weight), 3)
            for x, layer in (
                (module.priors, module.to_q),
                (u.flatten(0, 1), module.to_k),
                (u.flatten(0, 1), module.to_v),
            )
        )
        theirs = naive.bottleneck_attention(q, k, v, 4)
        assert_close(winners.score, theirs.score)
        assert torch.equal(winners.chosen, theirs.chosen)
        assert_close(winners.score.sum(dim=-1), torch.ones(3, 5).double())
        assert torch.equal(module.priors, before) and not winners.score.requires_grad


# --- contents: frozen, saved, edited ---


def test_a_frozen_memory_of_the_batch_is_read_but_not_written_in_training() -> None:
    module = GlobalWorkspace(EMBED_DIM, replace(WorkspaceConfig(), num_priors=5)).double()
    u, before = tokens(), module.priors.clone()
    module.freeze()
    output = module(u)
    assert torch.equal(module.priors, before) and output.balance_loss == 0
    assert torch.equal(output.read, module.eval()(u).read)
    module.train().freeze(False)
    module(u)
    assert not torch.equal(module.priors, before)


@pytest.mark.parametrize("method", ["freeze", "reset"])
def test_freeze_and_reset_raise_where_no_memory_is_kept(method: str) -> None:
    before = workspace()
    with pytest.raises(ValueError, match=f"no memory to {method}"):
        getattr(before, method)()


def test_contents_that_need_no_gradient_stay_as_they_are() -> None:
    module, u = workspace(), tokens()
    module.priors.requires_grad_(False)
    before = module.priors.clone()
    module(u).read.square().sum().backward()
    torch.optim.SGD(module.parameters(), lr=0.1).step()
    assert torch.equal(module.priors, before)


COPIES: dict[str, Callable[[GlobalWorkspace], GlobalWorkspace]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda module: pickle.loads(pickle.dumps(module)),
}


def through_a_file(module: GlobalWorkspace) -> GlobalWorkspace:
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    other = workspace(module.config)
    other.load_state_dict(torch.load(file, weights_only=True))
    return other


@pytest.mark.parametrize("way", [*COPIES, "file"])
def test_a_copy_has_the_same_contents_and_gives_the_same_read(way: str) -> None:
    module, u = workspace(), tokens()
    module(u).read.square().sum().backward()
    torch.optim.SGD(module.parameters(), lr=0.1).step()
    other = COPIES.get(way, through_a_file)(module)
    assert "priors" in module.state_dict() and torch.equal(other.priors, module.priors)
    assert isinstance(other.priors, torch.nn.Parameter)
    assert torch.equal(other(u).read, module(u).read)
    with torch.no_grad():  # edited contents take effect, and only in the copy
        other.priors[0] = 0
    assert not torch.allclose(other(u).read, module(u).read)


# --- activation checkpointing ---


@every_mask
def test_a_recomputed_workspace_gives_the_same_gradients(mask: str) -> None:
    plain, u = workspace(replace(SMALL, dropout=0.2)), tokens()
    saving = copy.deepcopy(plain)
    torch.manual_seed(1)
    expected = plain(u, PADDING[mask])
    torch.manual_seed(1)
    output = checkpoint(saving, u, PADDING[mask], use_reentrant=False)
    assert torch.equal(output.read, expected.read)
    for result in (expected, output):
        (result.read.square().sum() + result.balance_loss).backward()
    for (name, a), b in zip(plain.named_parameters(), saving.parameters(), strict=True):
        assert a.grad is not None and b.grad is not None and torch.equal(a.grad, b.grad), name


def test_a_whole_block_may_be_recomputed() -> None:
    memory = WorkspaceConfig(
        num_priors=6, prior_dim=4, num_heads=3, scope="image", image=ImageMemoryConfig(8)
    )
    plain = Block(tiny(AiTConfig, workspace=memory), 0, kernels.attend, hopfield_retrieve)
    saving, x = copy.deepcopy(plain), torch.randn(3, 5, 24)
    expected, output = plain(x).tokens, checkpoint(saving, x, use_reentrant=False).tokens
    assert torch.equal(output, expected)
    for result in (expected, output):
        result.square().sum().backward()
    for (name, a), b in zip(plain.named_parameters(), saving.parameters(), strict=True):
        assert a.grad is not None and b.grad is not None and torch.equal(a.grad, b.grad), name
