"""Adapters, pruning and hooks act on every layer, also on those whose weights kernels absorb."""

import copy
import importlib.util
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune
from torch.nn.utils.parametrizations import weight_norm

from associative_transformer.functional import pooled_attention
from associative_transformer.kernels import PoolAttention
from associative_transformer.kernels.plain_linear import is_plain
from associative_transformer.models import build_model
from associative_transformer.workspace import GlobalWorkspace
from associative_transformer.workspace_config import ImageMemoryConfig, WorkspaceConfig
from making.tiny import TINY

SMALL = WorkspaceConfig(num_priors=5, prior_dim=4, num_heads=3, bottleneck=4, dropout=0.0)
EMBED_DIM = 6
IMAGE = WorkspaceConfig(
    scope="image",
    num_priors=5,
    prior_dim=4,
    num_heads=3,
    bottleneck=2,
    balance_weight=0.1,
    image=ImageMemoryConfig(read_head_dim=3),
)
LAYERS = ("to_q", "to_k", "to_v", "to_prior", "to_attractor")

every_layer = pytest.mark.parametrize("layer", LAYERS)


class LowRank(nn.Module):
    """A parametrization that adds a low-rank matrix, as LoRA does."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        rows, columns = weight.shape
        self.a = nn.Parameter(torch.randn(rows, 2).to(weight))
        self.b = nn.Parameter(torch.randn(2, columns).to(weight))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.a @ self.b


class Wrapped(nn.Module):
    """A layer and a low-rank map next to it, without the attributes of a linear layer."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer, self.low_rank = layer, LowRank(layer.weight.detach())

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + x @ (self.low_rank.a @ self.low_rank.b).mT


class Subclass(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def workspace(config: WorkspaceConfig = SMALL, **kwargs: Any) -> GlobalWorkspace:  # noqa: ANN401
    return GlobalWorkspace(EMBED_DIM, config, **kwargs).double()


def tokens() -> Tensor:
    return torch.randn(3, 4, EMBED_DIM, dtype=torch.float64)


def results(module: GlobalWorkspace, u: Tensor) -> list[Tensor]:
    """Return what is read, the balance loss, the memory and the gradient of the tokens."""
    module, u = copy.deepcopy(module), u.clone().requires_grad_()
    output = module(u)
    (output.read.square().sum() + output.balance_loss).backward()
    assert u.grad is not None
    is_shared = module.config.scope == "batch"
    memory = module.priors if is_shared else module.write_images(u).priors
    return [output.read, output.balance_loss, memory, u.grad]


def assert_same(ours: list[Tensor], theirs: list[Tensor]) -> None:
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-11)


def merged(module: GlobalWorkspace, layer: str, weight: Tensor) -> GlobalWorkspace:
    """Return the plain module with another weight in one layer."""
    plain = copy.deepcopy(module)
    with torch.no_grad():
        plain.get_submodule(layer).weight.copy_(weight)
    return plain


ATTENDS: dict[str, dict[str, Any]] = {
    "default": {},
    "dense": {"config": replace(SMALL, bottleneck=None)},
    "detached": {"config": replace(SMALL, differentiable_write=False)},
    "functional": {"attend": PoolAttention(pooled_attention)},
    "image": {"config": IMAGE},
    "image, few priors": {"config": replace(IMAGE, num_priors=3, bottleneck=None)},
}


@every_layer
@pytest.mark.parametrize("attend", ATTENDS)
def test_a_parametrized_layer_equals_one_with_the_merged_weight(layer: str, attend: str) -> None:
    plain, u = workspace(**ATTENDS[attend]), tokens()
    adapted = copy.deepcopy(plain)
    target = adapted.get_submodule(layer)
    parametrize.register_parametrization(target, "weight", LowRank(target.weight.detach()))
    expected = results(merged(plain, layer, target.weight), u)
    assert_same(results(adapted, u), expected)
    assert not torch.allclose(results(plain, u)[2], expected[2]) or layer == "to_attractor"


@every_layer
@pytest.mark.parametrize("attend", ATTENDS)
def test_a_replaced_layer_is_called(layer: str, attend: str) -> None:
    plain, u = workspace(**ATTENDS[attend]), tokens()
    adapted = copy.deepcopy(plain)
    wrapped = Wrapped(adapted.get_submodule(layer))
    setattr(adapted, layer, wrapped)
    weight = wrapped.layer.weight + wrapped.low_rank.a @ wrapped.low_rank.b
    assert_same(results(adapted, u), results(merged(plain, layer, weight), u))


@every_layer
def test_gradients_reach_an_adapter_and_training_moves_it(layer: str) -> None:
    module = workspace()
    wrapped = Wrapped(module.get_submodule(layer))
    setattr(module, layer, wrapped)
    module.requires_grad_(False)
    wrapped.low_rank.requires_grad_(True)
    optimizer = torch.optim.AdamW(wrapped.low_rank.parameters(), lr=0.1)
    before = [parameter.clone() for parameter in wrapped.low_rank.parameters()]
    module(tokens()).read.square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in wrapped.low_rank.parameters())
    optimizer.step()
    assert not any(map(torch.equal, before, wrapped.low_rank.parameters()))


@every_layer
def test_pruning_takes_effect_and_follows_the_optimizer(layer: str) -> None:
    plain, u = workspace(), tokens()
    pruned = copy.deepcopy(plain)
    target = pruned.get_submodule(layer)
    prune.l1_unstructured(target, "weight", amount=0.5)
    with torch.no_grad():  # a step of the optimizer; the pruned weight is computed in the call
        target.weight_orig.mul_(2)
    expected = results(merged(plain, layer, target.weight_orig * target.weight_mask), u)
    pruned(u)  # `prune` keeps the masked weight as a tensor with a graph, which cannot be copied
    assert target.weight_mask.eq(0).any()
    pruned.priors.copy_(plain.priors)
    output = pruned(u)
    assert_same([output.read, output.balance_loss, pruned.priors], expected[:3])


HOOKS: dict[str, Callable[[nn.Module, list[int]], object]] = {
    "forward": lambda m, calls: m.register_forward_hook(lambda *_: calls.append(1)),
    "forward_pre": lambda m, calls: m.register_forward_pre_hook(lambda *_: calls.append(1)),
    "backward": lambda m, calls: m.register_full_backward_hook(lambda *_: calls.append(1)),
    "backward_pre": lambda m, calls: m.register_full_backward_pre_hook(lambda *_: calls.append(1)),
}


@every_layer
@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
def test_a_hook_is_called_once(layer: str, hook: str) -> None:
    module, calls = workspace(), []
    HOOKS[hook](module.get_submodule(layer), calls)
    module(tokens()).read.square().sum().backward()
    assert len(calls) == 1


@every_layer
def test_a_forward_hook_changes_the_output(layer: str) -> None:
    plain, u = workspace(), tokens()
    hooked = copy.deepcopy(plain)
    hooked.get_submodule(layer).register_forward_hook(lambda _, __, output: 2 * output)
    doubled = copy.deepcopy(plain)
    with torch.no_grad():
        for parameter in doubled.get_submodule(layer).parameters():
            parameter.mul_(2)
    assert_same(results(hooked, u), results(doubled, u))


@pytest.mark.parametrize("layer", ["to_k", "to_v"])
def test_an_adapter_of_a_workspace_per_image_sees_no_padding(layer: str) -> None:
    plain, u = workspace(IMAGE), tokens()
    padding = torch.tensor([[0, 0, 0, 1], [0, 0, 0, 0], [1, 1, 0, 0]]).bool()
    adapted = copy.deepcopy(plain)
    setattr(adapted, layer, Wrapped(adapted.get_submodule(layer)))
    expected = adapted(u, padding)
    u[padding] = torch.nan
    output = adapted(u, padding)
    assert torch.equal(output.read, expected.read)
    assert not torch.allclose(output.read, plain(u, padding).read)


@pytest.mark.parametrize("layer", ["to_k", "to_v"])
def test_a_bias_that_a_replacement_adds_takes_effect(layer: str) -> None:
    plain, u = workspace(), tokens()
    biased = copy.deepcopy(plain)
    replacement = nn.Linear(EMBED_DIM, 12, bias=True).double()
    setattr(biased, layer, replacement)
    unbiased = merged(plain, layer, replacement.weight)
    with torch.no_grad():  # the same for all tokens: a bias of the keys changes no softmax
        replacement.bias.normal_()
    same = torch.allclose(results(biased, u)[2], results(unbiased, u)[2])
    assert same == (layer == "to_k")
    results(biased, u)
    biased(u).read.sum().backward()
    assert replacement.bias.grad is not None


def test_removing_the_adapter_restores_every_number() -> None:
    module, u = workspace(), tokens()
    expected = results(module, u)
    handle = module.to_k.register_forward_hook(lambda *_: None)
    assert_same(results(module, u), expected)
    handle.remove()
    assert all(map(torch.equal, results(module, u), expected))


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (nn.Linear(2, 2), True),
        (Subclass(2, 2), False),
        (weight_norm(nn.Linear(2, 2)), False),
        (nn.Identity(), False),
        (nn.LazyLinear(2), False),
    ],
    ids=lambda value: type(value).__name__,
)
def test_only_an_untouched_linear_layer_is_plain(layer: nn.Module, expected: bool) -> None:
    assert is_plain(layer) is expected


def test_a_patched_forward_is_called() -> None:
    module, calls = workspace(), []
    original = module.to_v.forward
    module.to_v.forward = lambda x: (calls.append(1), original(x))[1]  # type: ignore[method-assign]
    module(tokens())
    assert calls == [1]


def test_bfloat16_autocast_runs_with_an_adapter() -> None:
    plain = GlobalWorkspace(EMBED_DIM, replace(SMALL, bottleneck=7))
    adapted, u = copy.deepcopy(plain), torch.randn(3, 4, EMBED_DIM)
    adapted.to_k.register_forward_hook(lambda *_: None)
    with torch.autocast("cpu", torch.bfloat16):
        adapted(u).read.float().square().sum().backward()
        plain(u)
    assert adapted.to_k.weight.grad is not None and adapted.to_k.weight.grad.any()
    torch.testing.assert_close(adapted.priors, plain.priors, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("num_objects", [2, 3])
@pytest.mark.parametrize("where", ["first", "all of g", "replaced"])
def test_the_first_layer_of_a_relation_is_called_if_it_is_touched(
    num_objects: int, where: str
) -> None:
    config = replace(TINY["relation-network"], num_objects=num_objects, question_dim=7)
    plain = build_model(config).double()
    adapted, calls = copy.deepcopy(plain), []
    if where == "replaced":
        adapted.g[0] = nn.Sequential(adapted.g[0])
    (adapted.g[0] if where != "all of g" else adapted.g).register_forward_hook(
        lambda *_: calls.append(1)
    )
    images, questions = torch.rand(4, 3, 9, 9).double(), torch.rand(4, 7).double()
    losses = []
    for model in (plain, adapted):
        torch.manual_seed(0)
        losses.append(model(images, questions).logits.square().sum())
        losses[-1].backward()
    assert calls
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-10, atol=1e-12)
    pairs = zip(plain.parameters(), adapted.parameters(), strict=True)
    for mine, other in pairs:
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("name", TINY)
def test_a_forward_hook_on_any_layer_of_any_model_is_called(name: str) -> None:
    config = TINY[name]
    for part in (nn.Linear, nn.LayerNorm, nn.Embedding, nn.Conv2d, nn.Dropout):
        model, called = build_model(config), set()
        names = [key for key, module in model.named_modules() if isinstance(module, part)]
        for key in names:
            model.get_submodule(key).register_forward_hook(
                lambda *_, key=key, called=called: called.add(key)
            )
        model(torch.rand(4, config.num_channels, config.image_size, config.image_size))
        assert called == set(names)


@pytest.mark.skipif(not importlib.util.find_spec("peft"), reason="peft is not installed")
def test_lora_of_peft_trains_keys_and_values() -> None:
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(
        build_model(TINY["ait"]), LoraConfig(r=2, target_modules=list(LAYERS))
    ).train()
    adapters = {name: p for name, p in model.named_parameters() if "lora_" in name}
    assert all(any(f".{layer}." in name for name in adapters) for layer in LAYERS)
    optimizer = torch.optim.AdamW(adapters.values(), lr=0.1)
    images = torch.randn(4, 3, 8, 8)
    for _ in range(2):  # B of LoRA starts at zero, so that A has no gradient in the first step
        optimizer.zero_grad()
        output = model(images)
        (output.logits.square().sum() + output.aux_loss).backward()
        optimizer.step()
    assert all(p.grad is not None and p.grad.any() for p in adapters.values())
