"""Activation checkpointing repeats forward passes: the memory moves once, the gradients stay."""

import copy
import pickle
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    CheckpointImpl,
    checkpoint_wrapper,
)
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from associative_transformer import AssociativeMlp, GlobalWorkspace, WorkspaceConfig
from associative_transformer.balance import collect_balance_loss
from associative_transformer.recomputation import (
    MAX_PASSES,
    MIN_PASSES,
    EarlierPasses,
    is_recomputing,
)
from associative_transformer.workspace_config import ImageMemoryConfig

BATCH = WorkspaceConfig(num_priors=4, prior_dim=8, num_heads=2, bottleneck=7, dropout=0.3)
IMAGE = WorkspaceConfig(
    num_priors=4, prior_dim=8, num_heads=2, scope="image", image=ImageMemoryConfig(8)
)
SETTINGS = {
    "batch": BATCH,
    "batch, competition": replace(BATCH, competition="priors", center_values=True),
    "batch, detached": replace(BATCH, differentiable_write=False),
    "image": IMAGE,
}
every_setting = pytest.mark.parametrize("config", SETTINGS.values(), ids=SETTINGS)

Call = Callable[[Any, Tensor], Tensor]


def plainly(layer: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return layer(x)


def wrapped(layer: nn.Module, x: Tensor, how: CheckpointImpl) -> Tensor:
    return checkpoint_wrapper(layer, how)(x)


WAYS: dict[str, Call] = {
    "not reentrant": partial(checkpoint, use_reentrant=False),
    "reentrant": partial(checkpoint, use_reentrant=True),
    "FSDP's wrapper": partial(wrapped, how=CheckpointImpl.NO_REENTRANT),
    "FSDP's wrapper, reentrant": partial(wrapped, how=CheckpointImpl.REENTRANT),
}
REENTRANT = (WAYS["reentrant"], WAYS["FSDP's wrapper, reentrant"])
every_way = pytest.mark.parametrize("call", WAYS.values(), ids=WAYS)


def stack(config: WorkspaceConfig, depth: int = 2) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*(AssociativeMlp(16, 24, workspace=config) for _ in range(depth)))


def train(model: nn.Module, call: Call, num_steps: int = 3) -> dict[str, Any]:
    """Take steps, and return everything that depends on them."""
    torch.manual_seed(1)
    optimizer, outputs, gradients = torch.optim.SGD(model.parameters(), 0.1), [], []
    for _ in range(num_steps):
        x = torch.randn(3, 5, 16, requires_grad=True)
        output = call(model, x)
        output.square().mean().backward()
        outputs.append(output.detach().clone())
        gradients += [p.grad.clone() for p in (x, *model.parameters()) if p.grad is not None]
        optimizer.step()
        optimizer.zero_grad()
    return {"outputs": outputs, "gradients": gradients, "state": model.state_dict()}


def assert_same_bits(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    for key in ("outputs", "gradients"):
        assert len(ours[key]) == len(theirs[key]) > 0
        assert all(map(torch.equal, ours[key], theirs[key])), key
    for name, value in ours["state"].items():
        assert torch.equal(value, theirs["state"][name]), name


@every_way
@every_setting
def test_checkpointing_changes_neither_memory_nor_gradients_nor_weights(
    config: WorkspaceConfig, call: Call
) -> None:
    ours, theirs = train(stack(config), call), train(stack(config), plainly)
    if config.scope == "batch" or call not in REENTRANT:
        assert_same_bits(ours, theirs)
        return
    # without a gradient, as in the first of two reentrant passes, torch computes attention
    # differently on some CPUs
    for key in ("outputs", "gradients"):
        for a, b in zip(ours[key], theirs[key], strict=True):
            torch.testing.assert_close(a, b)


@every_setting
def test_each_layer_may_be_repeated_by_itself(config: WorkspaceConfig) -> None:
    def by_layer(model: nn.Module, x: Tensor) -> Tensor:
        return checkpoint_sequential(model, 4, x, use_reentrant=False)

    assert_same_bits(train(stack(config, 4), by_layer), train(stack(config, 4), plainly))


def test_without_the_record_the_memory_would_move_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("associative_transformer.recomputation.is_recomputing", lambda: False)
    ours, theirs = train(stack(BATCH), WAYS["not reentrant"]), train(stack(BATCH), plainly)
    assert not torch.equal(
        ours["state"]["0.workspace.priors"], theirs["state"]["0.workspace.priors"]
    )


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)], ids=str)
def test_passes_may_be_repeated_in_any_order(order: tuple[int, ...]) -> None:
    """A pipeline runs the backward passes of its micro-batches first in, first out."""

    def run(call: Call) -> dict[str, Any]:
        model, inputs = stack(BATCH), torch.randn(3, 3, 5, 16)
        torch.manual_seed(2)
        outputs = [call(model, x.requires_grad_()) for x in inputs.unbind()]
        for i in order:
            outputs[i].square().mean().backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        return {"outputs": outputs, "gradients": gradients, "state": model.state_dict()}

    torch.manual_seed(3)
    ours = run(WAYS["not reentrant"])
    torch.manual_seed(3)
    assert_same_bits(ours, run(plainly))


def test_a_layer_that_is_used_twice_in_a_model_is_repeated_right() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = stack(BATCH, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(self.layer(x))

    torch.manual_seed(0)
    first, second = Twice(), Twice()
    assert_same_bits(train(first, WAYS["not reentrant"]), train(second, plainly))


def test_under_autocast_and_in_bfloat16_checkpointing_changes_nothing() -> None:
    def autocast(model: nn.Module, x: Tensor, call: Call) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return call(model, x).float()

    runs = [
        train(stack(BATCH), partial(autocast, call=call))
        for call in (WAYS["not reentrant"], plainly)
    ]
    assert_same_bits(*runs)


def test_a_stored_balance_loss_is_stored_once(recwarn: pytest.WarningsRecorder) -> None:
    layer = AssociativeMlp(16, 24, workspace=BATCH, loss_scale=None)
    x = torch.randn(3, 5, 16, requires_grad=True)
    output = checkpoint(layer, x, use_reentrant=False)
    (output.sum() + collect_balance_loss(layer)).backward()
    assert layer.workspace.to_q.weight.grad.abs().sum() > 0
    with pytest.raises(RuntimeError, match="no balance loss to collect"):
        collect_balance_loss(layer)
    assert not recwarn.list


def test_a_forward_pass_outside_of_backward_is_not_a_repeated_one() -> None:
    assert not is_recomputing()
    seen: list[bool] = []
    x = torch.ones(2, requires_grad=True)
    x.register_hook(lambda _: seen.append(is_recomputing()))
    x.sum().backward()
    assert seen == [True]
    assert not is_recomputing()


def test_a_new_pass_within_backward_moves_the_memory() -> None:
    layer, x = GlobalWorkspace(16, BATCH), torch.ones(2, requires_grad=True)
    moved: list[bool] = []

    def run(_: Tensor) -> None:
        before = layer.priors.clone()
        layer(torch.randn(3, 5, 16))
        moved.append(not torch.equal(before, layer.priors))

    x.register_hook(run)
    x.sum().backward()
    assert moved == [True]


# --- several backward passes, nested regions, many passes, and inputs that are alike ---


def gradients(call: Callable[[GlobalWorkspace, Tensor], Tensor], **changes: Any) -> list[Tensor]:  # noqa: ANN401
    """Return the gradient of the input and of all weights, and the memory after that."""
    torch.manual_seed(0)
    layer = GlobalWorkspace(16, replace(BATCH, dropout=0.0, **changes))
    x = torch.randn(3, 5, 16, requires_grad=True)
    loss = call(layer, x)
    if loss.requires_grad:
        loss.backward()
    found = [p.grad for p in (x, *layer.parameters()) if p.grad is not None]
    return [*found, layer.priors]


def assert_equal(
    ours: Callable[[GlobalWorkspace, Tensor], Tensor],
    theirs: Callable[[GlobalWorkspace, Tensor], Tensor],
) -> None:
    mine, other = gradients(ours), gradients(theirs)
    assert len(mine) == len(other)
    for a, b in zip(mine, other, strict=True):
        torch.testing.assert_close(a, b)


def read(layer: GlobalWorkspace) -> Callable[[Tensor], Tensor]:
    return lambda x: layer(x).read


@pytest.mark.parametrize("reentrant", [False, True])
def test_two_backward_passes_over_one_graph(reentrant: bool) -> None:
    def twice(layer: GlobalWorkspace, x: Tensor, call: Call) -> Tensor:
        y = call(read(layer), x)
        y.sum().backward(retain_graph=True)
        return y.square().sum()

    repeated = partial(checkpoint, use_reentrant=reentrant)
    assert_equal(partial(twice, call=repeated), partial(twice, call=plainly))


@pytest.mark.parametrize("outer", [False, True])
@pytest.mark.parametrize("inner", [False, True])
def test_nested_regions(outer: bool, inner: bool) -> None:
    def nested(layer: GlobalWorkspace, x: Tensor) -> Tensor:
        def region(x: Tensor) -> Tensor:
            return checkpoint(read(layer), x.sin(), use_reentrant=inner)

        return checkpoint(region, x, use_reentrant=outer).square().sum()

    assert_equal(nested, lambda layer, x: layer(x.sin()).read.square().sum())


def test_a_hundred_passes_in_one_region() -> None:
    def many(layer: GlobalWorkspace, x: Tensor) -> Tensor:
        for i in range(100):
            x = x + 0.01 * layer(x + i).read
        return x

    assert_equal(
        lambda layer, x: checkpoint(partial(many, layer), x, use_reentrant=False).square().sum(),
        lambda layer, x: many(layer, x).square().sum(),
    )


def test_a_pass_without_gradients_in_between_is_not_taken_for_the_first_one() -> None:
    def between(layer: GlobalWorkspace, x: Tensor, call: Call) -> Tensor:
        y = call(read(layer), x)
        with torch.no_grad():
            layer(x)
        return y.square().sum()

    repeated = partial(checkpoint, use_reentrant=False)
    assert_equal(partial(between, call=repeated), partial(between, call=plainly))


def test_images_that_begin_alike_are_told_apart() -> None:
    def both(layer: GlobalWorkspace, x: Tensor, call: Call) -> Tensor:
        first = x.repeat(64, 1, 1)
        second = first.clone()
        second[:, 1:] = second[:, 1:].flip(2)  # the same first tokens, and the same sums
        outputs = [call(read(layer), each) for each in (first, second)]
        outputs[0].square().sum().backward(retain_graph=True)
        return outputs[1].cos().sum()

    repeated = partial(checkpoint, use_reentrant=False)
    assert_equal(partial(both, call=repeated), partial(both, call=plainly))


def test_a_pass_with_a_slightly_different_input_does_not_move_the_memory() -> None:
    layer, calls = GlobalWorkspace(16, BATCH), []

    def drifting(x: Tensor) -> Tensor:
        calls.append(None)
        return layer(x * (1 + 1e-6 * len(calls))).read

    y = checkpoint(drifting, torch.randn(3, 5, 16, requires_grad=True), use_reentrant=False)
    before = layer.priors.clone()
    with pytest.warns(UserWarning, match="got another input than the first one"):
        y.sum().backward()
    assert torch.equal(layer.priors, before)


def test_inputs_that_are_not_numbers_are_recognized(recwarn: pytest.WarningsRecorder) -> None:
    layer, x = GlobalWorkspace(16, BATCH), torch.full((3, 5, 16), torch.nan, requires_grad=True)
    checkpoint(read(layer), x, use_reentrant=False).sum().backward()
    assert not [w for w in recwarn.list if "another input" in str(w.message)]


def test_nothing_is_kept_outside_of_checkpointed_regions() -> None:
    layer = GlobalWorkspace(16, BATCH)
    layer(torch.randn(3, 5, 16)).read.sum().backward()
    assert not layer.earlier._passes
    checkpoint(read(layer), torch.randn(3, 5, 16, requires_grad=True), use_reentrant=False)
    assert len(layer.earlier._passes) == 1


def test_only_so_many_states_are_kept() -> None:
    passes, inputs = EarlierPasses(), torch.randn(MAX_PASSES + 1, 200)
    for number, x in enumerate(inputs):
        passes.add(x, torch.tensor(float(number)))
    assert len(passes._passes) == MAX_PASSES
    assert passes.take(inputs[1]) == 1
    large = EarlierPasses()
    for x in inputs[:50]:
        large.add(x, torch.empty(2**21))
    assert len(large._passes) == MIN_PASSES


def test_a_trained_layer_can_be_copied_and_pickled() -> None:
    layer = GlobalWorkspace(16, BATCH)
    layer(torch.randn(3, 5, 16)).read.sum().backward()
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(other.priors, layer.priors)
        other(torch.randn(3, 5, 16))
        assert not torch.equal(other.priors, layer.priors)
