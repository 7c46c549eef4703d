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
from associative_transformer.recomputation import MAX_PASSES, EarlierPasses, is_recomputing
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

Call = Callable[[nn.Module, Tensor], Tensor]


def plainly(layer: nn.Module, x: Tensor) -> Tensor:
    return layer(x)


def wrapped(layer: nn.Module, x: Tensor, how: CheckpointImpl) -> Tensor:
    return checkpoint_wrapper(layer, how)(x)


WAYS: dict[str, Call] = {
    "not reentrant": partial(checkpoint, use_reentrant=False),
    "reentrant": partial(checkpoint, use_reentrant=True),
    "FSDP's wrapper": partial(wrapped, how=CheckpointImpl.NO_REENTRANT),
    "FSDP's wrapper, reentrant": partial(wrapped, how=CheckpointImpl.REENTRANT),
}
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
    assert_same_bits(train(stack(config), call), train(stack(config), plainly))


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


def test_passes_without_a_backward_pass_are_forgotten_in_the_end() -> None:
    passes, inputs = EarlierPasses(), torch.randn(MAX_PASSES + 1, 200)
    for number, x in enumerate(inputs):
        passes.add(x, torch.tensor(float(number)))
    assert passes.take(inputs[0]) is None
    assert passes.take(inputs[1]) == 1
    assert passes.take(inputs[1]) is None


def test_of_equal_inputs_the_latest_is_repeated_first() -> None:
    passes, x = EarlierPasses(), torch.randn(5)
    passes.add(x, torch.tensor(1.0))
    passes.add(x, torch.tensor(2.0))
    assert [passes.take(x), passes.take(x), passes.take(x)] == [2, 1, None]


def test_a_trained_layer_can_be_copied_and_pickled() -> None:
    layer = GlobalWorkspace(16, BATCH)
    layer(torch.randn(3, 5, 16)).read.sum().backward()
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(other.priors, layer.priors)
        other(torch.randn(3, 5, 16))
        assert not torch.equal(other.priors, layer.priors)
